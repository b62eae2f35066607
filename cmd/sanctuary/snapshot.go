package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sanctuary/node/api"
	"sanctuary/node/client"
)

func (c *cli) snapshotCommand() *cobra.Command {
	group := &cobra.Command{
		Use: "snapshot", Short: "Take, list, compare, restore and schedule snapshots of LUNs", Args: noSuchCommand, RunE: help,
		Long: `A snapshot is a LUN as it was at one moment. It takes no space at first: what is overwritten afterwards is kept for it. It is
made by an entry of the LUN's log, so every copy has it, and it survives what the LUN survives. It is no backup: it is on the
same disks.

To the file system on it a snapshot looks like the disk after a power cut. SNAP is its name, or its ID or the beginning of that.`,
	}
	group.AddCommand(c.snapshotCreate(), c.snapshotList(), c.snapshotDelete(), c.snapshotRollback(), c.snapshotDiff(), c.snapshotExport(), c.snapshotSchedule())
	return group
}

func (c *cli) snapshotCreate() *cobra.Command {
	var with []string
	cmd := &cobra.Command{
		Use: "create LUN [NAME]", Short: "Take a snapshot, of several LUNs at one moment if wanted",
		Long: `Take a snapshot of a LUN while it is used. Without a name it gets one from the time.

With --with it is one of several LUNs at the same moment, under one name and ID, for a machine or a cluster whose data is on more than one
disk: writes to all of them are held for as long as it takes, milliseconds as a rule, and either all get a snapshot or none.`,
		Example: "  sanctuary lun snapshot create vm1\n  sanctuary lun snapshot create vm1 before-upgrade\n  sanctuary lun snapshot create db-data before-upgrade --with db-log,db-temp",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return errors.New("give the LUN, and a name for the snapshot if you like")
			}
			return nil
		},
		ValidArgsFunction: c.completeLUN,
		RunE: c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) error {
			spec := api.SnapshotSpec{With: with}
			if len(args) > 1 {
				spec.Name = args[1]
			}
			s, err := cl.CreateSnapshot(cmd.Context(), args[0], spec)
			if err != nil {
				return err
			}
			return c.print(s, func(w io.Writer) {
				line(w, "Snapshot %s (%s) of LUN %s taken.", s.Name, s.ID[:8], strings.Join(s.LUNs, ", "))
				if len(s.LUNs) > 1 {
					line(w, "Writes were held for %v.", s.Held.Round(time.Millisecond))
				}
			})
		}),
	}
	cmd.Flags().StringSliceVar(&with, "with", nil, "other LUNs to take at the same moment, separated by commas")
	must(cmd.RegisterFlagCompletionFunc("with", c.completeAnyLUN))
	return cmd
}

func (c *cli) snapshotList() *cobra.Command {
	return &cobra.Command{
		Use: "list LUN", Short: "List the snapshots of a LUN and what they take", Args: oneName("the name or ID of the LUN"),
		Long: `List the snapshots of a LUN, oldest first, with what each holds in one copy.

  STORED     blocks that hold data
  EXCLUSIVE  of those, what nothing else refers to: deleting this snapshot alone frees as much
  SHARED     the rest: also in the LUN, in other snapshots or in clones

What only two snapshots share is exclusive to neither; deleting both frees it.`,
		Example:           "  sanctuary lun snapshot list vm1\n  sanctuary lun snapshot list vm1 -o json | jq -r '.snapshots[].name'",
		ValidArgsFunction: c.completeLUN,
		RunE: c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) error {
			l, err := cl.Snapshots(cmd.Context(), args[0], true)
			if err != nil {
				return err
			}
			return c.print(l, func(w io.Writer) { printSnapshots(w, l) })
		}),
	}
}

func (c *cli) snapshotDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete LUN SNAP...", Short: "Delete snapshots",
		Long: `Delete snapshots of a LUN. Clones and exports of it go on: what they need of it is kept. It is refused only while a clone has yet
to be made from it, which takes a moment, or until a node that is down is back.`,
		Example: "  sanctuary lun snapshot delete vm1 before-upgrade\n  sanctuary lun snapshot delete vm1 00112233 4455667788",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 {
				return errors.New("give the LUN and at least one snapshot")
			}
			return nil
		},
		ValidArgsFunction: c.completeSnapshots(1 << 10),
		RunE: c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) error {
			l, err := cl.Snapshots(cmd.Context(), args[0], false)
			if err != nil {
				return err
			}
			var chosen []api.Snapshot // all of them, before the first is deleted
			for _, ref := range args[1:] {
				x, err := pickSnapshot(l, ref)
				if err != nil {
					return err
				}
				chosen = append(chosen, x)
			}
			for _, x := range chosen {
				if err := cl.DeleteSnapshot(cmd.Context(), l.ID, x.ID); err != nil {
					return fmt.Errorf("snapshot %s: %w", x.Name, err)
				}
			}
			return c.print(map[string]any{"lun": l.LUN, "deleted": chosen}, func(w io.Writer) {
				for _, x := range chosen {
					line(w, "Snapshot %s (%s) of LUN %s deleted.", x.Name, x.ID[:8], l.LUN)
				}
			})
		}),
	}
}

// pickSnapshot returns the snapshot that ref names: by name if only one has it, by ID or the beginning of that.
func pickSnapshot(l api.SnapshotList, ref string) (api.Snapshot, error) {
	for _, matches := range []func(api.Snapshot) bool{
		func(x api.Snapshot) bool { return x.ID == ref || x.Name == ref },
		func(x api.Snapshot) bool { return len(ref) >= 4 && strings.HasPrefix(x.ID, ref) },
	} {
		i := slices.IndexFunc(l.Snapshots, matches)
		if i < 0 {
			continue
		}
		if slices.ContainsFunc(l.Snapshots[i+1:], matches) {
			return api.Snapshot{}, &failure{
				what: fmt.Errorf("LUN %s has several snapshots %q", l.LUN, ref), data: "Nothing was changed.", next: "Give its ID: sanctuary lun snapshot list " + l.LUN + ".",
			}
		}
		return l.Snapshots[i], nil
	}
	return api.Snapshot{}, &failure{
		what: fmt.Errorf("LUN %s has no snapshot %q", l.LUN, ref), data: "Nothing was changed.", next: "List what there is: sanctuary lun snapshot list " + l.LUN + ".",
	}
}

func (c *cli) snapshotRollback() *cobra.Command {
	var spec api.RollbackSpec
	var yes bool
	cmd := &cobra.Command{
		Use: "rollback LUN SNAP", Short: "Make a LUN what it was when the snapshot was taken", Args: lunAndSnapshot,
		Long: `Make a LUN what it was when the snapshot was taken. What was written since is gone from it, but a snapshot of it is taken first
("before-rollback-…"), unless --no-safety is given. All snapshots stay, also later ones.

Shut down what uses the LUN and log it out: it is refused while initiators are logged in or hold reservations. With --force it is
done all the same, and they are told by a unit attention; but what they hold in their caches does not change with it, and what
they write back destroys the file system.

It asks for the LUN's name unless --yes is given.`,
		Example:           "  sanctuary lun snapshot rollback vm1 before-upgrade",
		ValidArgsFunction: c.completeSnapshots(1),
		RunE: c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) error {
			l, err := cl.Snapshots(cmd.Context(), args[0], false)
			if err != nil {
				return err
			}
			x, err := pickSnapshot(l, args[1])
			if err != nil {
				return err
			}
			if !yes {
				if err := c.confirmName(cmd, "LUN", l.LUN, fmt.Sprintf("This makes LUN %s what it was at %s (snapshot %s).", l.LUN, x.Created.Format(time.RFC3339), x.Name), "rolled back"); err != nil {
					return err
				}
			}
			spec.Snapshot = x.ID
			r, err := cl.RollBack(cmd.Context(), l.ID, spec)
			if err != nil {
				return err
			}
			return c.print(r, func(w io.Writer) {
				line(w, "LUN %s is what it was at %s (snapshot %s).", r.LUN, r.To.Created.Format(time.RFC3339), r.To.Name)
				if r.Safety != nil {
					line(w, "What was there before is in snapshot %s. Delete it when it is not needed: sanctuary lun snapshot delete %s %s", r.Safety.Name, r.LUN, r.Safety.Name)
				}
			})
		}),
	}
	f := cmd.Flags()
	f.BoolVar(&spec.Force, "force", false, "although initiators use it, or a node cannot be asked whether any do")
	f.BoolVar(&spec.NoSafety, "no-safety", false, "take no snapshot of what is there now")
	f.BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

func lunAndSnapshot(_ *cobra.Command, args []string) error {
	if len(args) != 2 {
		return errors.New("give the LUN and the snapshot")
	}
	return nil
}

// changedRanges is what diff prints with -o json.
type changedRanges struct {
	api.Diff
	ChangedBytes int64 `json:"changed_bytes"`
}

func (c *cli) snapshotDiff() *cobra.Command {
	return &cobra.Command{
		Use: "diff LUN FROM [TO]", Short: "Show which ranges differ between two snapshots, or a snapshot and now",
		Long: `Show the ranges in which a LUN may differ between two snapshots, or between a snapshot and now: what an incremental backup has to
copy. They are whole blocks of 4096 bytes; a block that was written with the same contents counts as different. With FROM given as
"-" everything that is stored in TO is shown.

Without TO the LUN may change while it is compared: for a backup take a snapshot, compare with that, and read it through an export
(sanctuary lun snapshot export).`,
		Example: "  sanctuary lun snapshot diff vm1 monday tuesday\n  sanctuary lun snapshot diff vm1 monday tuesday -o json | jq -c '.ranges[] | [.offset, .length]'",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 || len(args) > 3 {
				return errors.New("give the LUN and one or two snapshots")
			}
			return nil
		},
		ValidArgsFunction: c.completeSnapshots(2),
		RunE: c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) error {
			from, to := args[1], ""
			if from == "-" {
				from = ""
			}
			if len(args) == 3 {
				to = args[2]
			}
			ranges, changed := []api.DiffRange{}, int64(0)
			d, err := cl.Diff(cmd.Context(), args[0], from, to, func(r api.DiffRange) error {
				ranges = append(ranges, r)
				changed += r.Length
				return nil
			})
			if err != nil {
				return err
			}
			d.Ranges = ranges
			return c.print(changedRanges{d, changed}, func(w io.Writer) { printDiff(w, d, changed) })
		}),
	}
}

// completeAnyLUN completes the names of LUNs wherever it is asked to.
func (c *cli) completeAnyLUN(cmd *cobra.Command, _ []string, text string) ([]string, cobra.ShellCompDirective) {
	return c.completeLUN(cmd, nil, text)
}

// completeSnapshots completes the name of a LUN, then those of up to n of its snapshots.
func (c *cli) completeSnapshots(n int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, text string) ([]string, cobra.ShellCompDirective) {
		switch {
		case len(args) == 0:
			return c.completeLUN(cmd, args, text)
		case len(args) > n:
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		cl, err := c.client(cmd)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		defer cl.Close()
		l, err := cl.Snapshots(cmd.Context(), args[0], false)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var names []string
		for _, x := range l.Snapshots {
			if !slices.Contains(args[1:], x.Name) {
				names = append(names, x.Name)
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	}
}
