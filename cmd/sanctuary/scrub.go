package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sanctuary/node/api"
	"sanctuary/node/client"
)

func (c *cli) lunScrub() *cobra.Command {
	var start, pause, resume bool
	cmd := &cobra.Command{
		Use: "scrub NAME", Short: "Show, start, pause or resume the scrub of a LUN", Args: oneName("the name or ID of the LUN"),
		Long: `The scrub reads every stored block of every copy, snapshots included, once a week, while nothing else needs the disks.
A block that does not match its checksum is repaired from another copy; metadata that is damaged on the disk is written again from memory. The owner also has all copies compared with one another.

Without a flag it shows how far the scrub of each copy is and what it has found. --start begins a pass on every copy now.

How often, and how fast, are settings: sanctuary setting set scrub.interval 168h, sanctuary setting set scrub.rate 32 (MiB/s of each node).`,
		Example:           "  sanctuary lun scrub vm1\n  sanctuary lun scrub vm1 --start\n  sanctuary lun scrub vm1 --pause",
		ValidArgsFunction: c.completeLUN,
		RunE: c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) error {
			var l api.LUN
			var err error
			switch {
			case boolCount(start, pause, resume) > 1:
				return &usageError{cmd.CommandPath(), errors.New("give only one of --start, --pause and --resume")}
			case start:
				l, err = cl.StartScrub(cmd.Context(), args[0])
			case pause || resume:
				l, err = cl.PauseScrub(cmd.Context(), args[0], pause)
			default:
				l, err = cl.LUN(cmd.Context(), args[0])
			}
			if err != nil {
				return err
			}
			return c.print(l.Scrub, func(w io.Writer) {
				if len(l.Scrub) == 0 {
					line(w, "Nothing is known of the scrub of LUN %s: its owner has not answered.", l.Name)
					return
				}
				printScrub(w, l.Scrub)
			})
		}),
	}
	cmd.Flags().BoolVar(&start, "start", false, "begin a pass on every copy now")
	cmd.Flags().BoolVar(&pause, "pause", false, "scrub no copy of this LUN until it is resumed")
	cmd.Flags().BoolVar(&resume, "resume", false, "go on where it was paused")
	return cmd
}

func boolCount(all ...bool) (n int) {
	for _, b := range all {
		if b {
			n++
		}
	}
	return n
}

func printScrub(w io.Writer, scrubs []api.ReplicaScrub) {
	rows := [][]string{{"SCRUB OF", "STATE", "LAST COMPLETE", "BAD BLOCKS", "REPAIRED", "LEFT", "LAST BAD"}}
	for _, s := range scrubs {
		rows = append(rows, []string{
			s.Replica, scrubState(s), timeOrDash(s.Completed), fmt.Sprint(s.Bad), fmt.Sprint(s.Repaired), fmt.Sprint(s.Unrepaired), timeOrDash(s.LastBad),
		})
	}
	table(w, rows...)
	for _, s := range scrubs {
		if s.Compared > 0 {
			line(w, "%s, the owner, has compared %s of all copies: %d blocks differed, %d of them are the same again.",
				s.Replica, formatSize(int64(s.Compared)*chunkBytes), s.Diverged, s.Mended)
		}
		if s.Pages > 0 {
			line(w, "%s: %d pages of metadata were damaged on the disk, and have been written again from memory.", s.Replica, s.Pages)
		}
		if s.Waits != "" {
			line(w, "%s: %s", s.Replica, s.Waits)
		}
		for _, d := range s.Findings {
			end := "repaired"
			if !d.Repaired {
				end = "NOT repaired: " + d.Error
			}
			where := fmt.Sprintf("chunk %d", d.Chunk)
			if d.Snapshot != "" {
				where += " of snapshot " + d.Snapshot
			}
			line(w, "%s: %s, blocks %v differed on %s: %s", d.At.UTC().Format(time.RFC3339), where, d.Blocks, strings.Join(d.Replicas, ", "), end)
		}
	}
}

// chunkBytes is the unit of api.ReplicaScrub.Compared.
const chunkBytes = 256 << 10

func scrubState(s api.ReplicaScrub) string {
	switch {
	case !s.Enabled:
		return "off"
	case s.Paused:
		return "paused"
	case s.Running:
		return fmt.Sprintf("%.1f%%, %s read", s.Percent, formatSize(s.Bytes))
	}
	return "idle"
}

func timeOrDash(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}
