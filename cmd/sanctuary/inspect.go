package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"sanctuary/node/inspect"
)

// notSound says that inspect has found damage, which has been printed. Exit code 1.
type notSound struct{ findings int64 }

func (e *notSound) Error() string {
	if e.findings == 1 {
		return "not sound: 1 finding, above"
	}
	return fmt.Sprintf("not sound: %d findings, above", e.findings)
}

const inspectLong = `Inspect reads what a node has on its disks, checks every structure of it, and prints what it finds. It writes nothing and locks nothing.
PATH is a node's data directory, a pool (its directory, its file "data", a block device or an image of one) or a node's journal.
It finds out which; "inspect pool" and "inspect journal" say so. Several paths are looked at together.

The node may be running: what changes meanwhile is read again, and is no damage. Then --data takes longer where blocks are being written.

  pool            header, superblocks, catalogue, the map of every volume with its snapshots and clones, which slot is whose;
                  with --data every stored block against its checksum
  journal         every segment; of every log each entry, term and vote, and the mark of the last snapshot
  data directory  the node's identity and catalog, its journal, and the pools that are in it or were added. Blocks that the log writes again when the
                  node starts are no damage. A pool of the configuration that lies elsewhere (pools.file.dir) is given as a second path

Without --data the blocks themselves are not read, only what says where they are.

Exit status: 0 sound; 1 damaged, and each finding says what it means for the data and what to do; 2 it could not be read, or the
command line makes no sense: that says nothing about the data.`

// inspectFlags are the flags of inspect.
type inspectFlags struct {
	data    bool
	rate    sizeFlag
	volume  string
	verbose bool
}

func (c *cli) inspectCommand() *cobra.Command {
	cmd := c.inspectFor("inspect PATH...", "Check pools, journals and data directories on this machine's disks", inspect.Auto)
	cmd.Long = inspectLong
	cmd.Example = "  sanctuary inspect /var/lib/sanctuary\n  sanctuary inspect /dev/disk/by-id/nvme-X --data --rate 100MiB\n  sanctuary inspect journal /var/lib/sanctuary/journal --verbose --volume LUN.5"
	pool := c.inspectFor("pool PATH...", "Check a pool: its directory, its file or its device", inspect.Pool)
	journal := c.inspectFor("journal PATH...", "Check the journal of a node: its directory", inspect.Journal)
	for _, sub := range []*cobra.Command{pool, journal} {
		sub.Long = "See sanctuary inspect --help."
	}
	cmd.AddCommand(pool, journal)
	return cmd
}

func (c *cli) inspectFor(use, short string, kind inspect.Kind) *cobra.Command {
	var f inspectFlags
	cmd := &cobra.Command{
		Use: use, Short: short,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("give the path of a data directory, a pool or a journal")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return c.inspect(cmd, args, kind, f) },
	}
	if kind != inspect.Journal {
		cmd.Flags().BoolVar(&f.data, "data", false, "read every stored block and compare it with its checksum")
		cmd.Flags().Var(&f.rate, "rate", "read at most so much of the data a second, for example 100MiB (default: as fast as it goes)")
	}
	cmd.Flags().StringVar(&f.volume, "volume", "", "list only this volume or log (LUN.INCARNATION), or the logs of this replica or LUN; checks everything all the same")
	cmd.Flags().BoolVarP(&f.verbose, "verbose", "v", false, "list chunks with their layers, places and pages, snapshots, segments and log entries (not with -o json)")
	return cmd
}

func (c *cli) inspect(cmd *cobra.Command, paths []string, kind inspect.Kind, f inspectFlags) error {
	cfg := inspect.Config{Paths: paths, Kind: kind, Data: f.data, BytesPerSecond: int64(f.rate), Volume: f.volume, Progress: c.inspectProgress()}
	list := f.verbose && c.output != outputJSON
	if list {
		cfg.Chunk = func(ch inspect.Chunk) { printChunk(c.env.out, ch) }
		cfg.Entry = func(e inspect.Entry) { printEntry(c.env.out, e) }
	}
	r, err := inspect.Run(cmd.Context(), cfg)
	if errors.Is(err, context.Canceled) {
		return &inspect.UnreadableError{Err: errors.New("interrupted")} // exit status 1 would say that it is damaged
	}
	if err != nil {
		return err
	}
	if err := c.print(r, func(w io.Writer) { printInspection(w, r, f) }); err != nil {
		return &inspect.UnreadableError{Err: err}
	}
	if !r.Sound {
		return &notSound{int64(len(r.Findings)) + r.More}
	}
	return nil
}

// inspectProgress tells on a terminal's standard error how far the reading of data is, at most every second.
func (c *cli) inspectProgress() func(what string, done, total int64) {
	if !isTerminal(c.env.err) {
		return nil
	}
	var last time.Time
	return func(what string, done, total int64) {
		if total == 0 || done < total && time.Since(last) < time.Second {
			return
		}
		last = time.Now()
		line(c.env.err, "%s: %d%% of %s read", what, done*100/total, roughSize(total))
	}
}
