package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"sanctuary/node/api"
	"sanctuary/node/client"
)

// cloneFlags are those of clone and export.
type cloneFlags struct {
	spec api.CloneSpec
	wait time.Duration
}

func (o *cloneFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&o.spec.Hosts, "host", nil, "host that may use it; repeat for each")
	f.BoolVar(&o.spec.Open, "open", false, "anyone who reaches a portal may use it")
	f.DurationVar(&o.wait, "wait", 30*time.Second, "how long to wait until it is served; 0 does not wait")
}

func (c *cli) lunClone() *cobra.Command {
	var o cloneFlags
	var now bool
	cmd := &cobra.Command{
		Use: "clone LUN SNAP NAME | clone LUN --now NAME", Short: "Create a LUN that begins as a snapshot of another one",
		Long: `Create a LUN that begins as a snapshot of another one, for instance of a template. It is there at once and takes no space at
first: it shares what neither has changed. It is a LUN of its own, with its own identity, snapshots and owner, on the nodes and in the
pools of the one it comes from.

With --now a snapshot is taken first. Snapshot and original may be deleted later: what the clone needs is kept, and takes space
until the clone has been deleted.

With --host these hosts may use it, with --open anyone who reaches a portal; with neither nobody may, until "sanctuary lun allow"
says who. A host that sees both takes the file systems on them for the same one: XFS, LVM and Windows refuse to use both, or mix them up.`,
		Example: "  sanctuary lun clone template golden vm7 --host esx1\n  sanctuary lun clone vm1 --now vm1-test --host lab",
		Args: func(cmd *cobra.Command, args []string) error {
			want := 3
			if now, err := cmd.Flags().GetBool("now"); err == nil && now {
				want = 2
			}
			if len(args) != want {
				return errors.New("give the LUN, the snapshot (or --now), and a name for the new LUN")
			}
			return nil
		},
		ValidArgsFunction: c.completeSnapshots(1),
		RunE: c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) error {
			o.spec.Name = args[len(args)-1]
			if !now {
				o.spec.Snapshot = args[1]
			}
			return c.makeClone(cmd, cl, args[0], o)
		}),
	}
	o.add(cmd)
	cmd.Flags().BoolVar(&now, "now", false, "take a snapshot now")
	return cmd
}

func (c *cli) snapshotExport() *cobra.Command {
	o := cloneFlags{spec: api.CloneSpec{ReadOnly: true}}
	cmd := &cobra.Command{
		Use: "export LUN SNAP --name NAME", Short: "Present a snapshot as a read-only LUN", Args: lunAndSnapshot,
		Long: `Present a snapshot as a LUN of its own that cannot be written: for backups, or to look for a file. Initiators see a write-protected
disk. Delete it like any other LUN when it is not needed: sanctuary lun delete.

A file system that was not unmounted when the snapshot was taken wants to replay its journal when it is mounted, and cannot: use
mount -o ro,noload (ext4) or ro,norecovery (XFS), or make a writable one with "sanctuary lun clone".`,
		Example:           "  sanctuary lun snapshot export vm1 monday --name vm1-monday --host backup",
		ValidArgsFunction: c.completeSnapshots(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.spec.Name == "" {
				return &usageError{cmd.CommandPath(), errors.New("give the new LUN a name, for example --name vm1-monday")}
			}
			return c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) error {
				o.spec.Snapshot = args[1]
				return c.makeClone(cmd, cl, args[0], o)
			})(cmd, args)
		},
	}
	o.add(cmd)
	cmd.Flags().StringVar(&o.spec.Name, "name", "", "name of the new LUN")
	return cmd
}

func (c *cli) makeClone(cmd *cobra.Command, cl *client.Client, origin string, o cloneFlags) error {
	if err := checkWait(cmd, o.wait); err != nil {
		return err
	}
	l, err := cl.CloneLUN(cmd.Context(), origin, o.spec, o.wait)
	if err != nil {
		return err
	}
	if err := c.print(l, func(w io.Writer) {
		printLUN(w, l)
		if !l.Access.Open && len(l.Access.Hosts) == 0 {
			line(w, "\nNobody may use it yet. Next: sanctuary lun allow %s --host HOST (sanctuary host list), or --any.", l.Name)
		}
	}); err != nil {
		return err
	}
	if !l.Served() && o.wait > 0 {
		return &failure{
			what: fmt.Errorf("LUN %s is recorded, but not served after %v: %s", l.Name, o.wait, l.Reason),
			data: "The LUN it comes from goes on.", next: "Wait, or see what is missing: sanctuary lun show " + l.Name,
		}
	}
	return nil
}
