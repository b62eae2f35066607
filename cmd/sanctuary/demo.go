package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// Times of the demo. They bound waiting; on a machine that is not overloaded each takes a second or two.
const (
	startTimeout = 60 * time.Second // until all nodes are up and the LUN is served
	healTimeout  = 60 * time.Second // until a restarted node is in sync again
	demoPoll     = 100 * time.Millisecond
)

func (c *cli) demoCommand() *cobra.Command {
	var (
		dir   string
		o     = demoOptions{}
		size  = sizeFlag(1 << 30)
		drill drillOptions
	)
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a whole cluster on this machine, with a LUN, until Ctrl-C",
		Long: `Run a whole cluster on loopback, each node a process of its own, with a LUN named demo, and print where initiators find it
and what to try. Ctrl-C stops everything.

--nodes counts all processes: 3 is two data nodes and a witness, 4 and more have more data nodes, 1 is a single copy. Two
would stop when either is lost, so that is refused.

Without --dir the state goes to a temporary directory and is removed at the end. With --dir it stays, and "demo --dir" on the
same directory brings the same cluster back, data included. Each node's log and configuration are there too; a node that was
killed can be started again with the command shown.

--drill proves what the cluster promises: it writes through a real iSCSI session over all portals, kills the LUN's owner with
SIGKILL in the middle, goes on writing, starts the node again, waits until it is in sync, reads everything back, and prints a
timeline. Exit status 0: every promise held. 3: one did not, and the state is kept.`,
		Example: `  sanctuary demo
  sanctuary demo --dir /tmp/demo --size 10GiB --media ram
  sanctuary demo --drill
  sanctuary demo --drill --drill-kills 5`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.sizeBytes = int64(size)
			if err := o.validate(); err != nil {
				return &usageError{cmd.CommandPath(), err}
			}
			if err := drill.validate(o); err != nil {
				return &usageError{cmd.CommandPath(), err}
			}
			changed := func(flag string) bool { return cmd.Flags().Changed(flag) }
			return c.demo(cmd.Context(), dir, o, drill, changed)
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", "", "directory for the state (default: a temporary one, removed at the end)")
	f.IntVar(&o.nodes, "nodes", 3, "processes: 1, or 3 to 7, of which one is a witness")
	f.StringVar(&o.media, "media", "file", "what the LUN is kept on: file or ram")
	f.Var(&size, "size", "capacity of the LUN; space is taken when it is written")
	f.IntVar(&o.basePort, "base-port", 0, "first of the ports to use, four for each node (default: any that are free)")
	f.BoolVar(&drill.enabled, "drill", false, "kill the owner under load and verify every acknowledged block")
	f.IntVar(&drill.kills, "drill-kills", 1, "how many times the drill kills the owner, 1 to 1000")
	must(cmd.RegisterFlagCompletionFunc("media", cobra.FixedCompletions([]string{"file", "ram"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

// demo runs the demo in dir ("" = a temporary one).
func (c *cli) demo(ctx context.Context, dir string, o demoOptions, drill drillOptions, changed func(string) bool) (err error) {
	keep := dir != ""
	if dir, err = demoDir(dir); err != nil {
		return err
	}
	if !keep {
		defer func() {
			var broken *brokenPromise
			if errors.As(err, &broken) {
				line(c.env.err, "State and logs are kept in %s", dir)
				return
			}
			if rmErr := os.RemoveAll(dir); rmErr != nil && err == nil {
				err = fmt.Errorf("remove %s: %w", dir, rmErr)
			}
		}()
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer unlock()
	p, err := c.loadOrPlan(dir, o, changed)
	if err != nil {
		return err
	}
	d, err := newDemo(c, dir, p)
	if err != nil {
		return err
	}
	defer func() {
		if killed := d.close(); len(killed) > 0 {
			line(c.env.err, "sanctuary: had to kill %s: not stopped %v after SIGTERM", strings.Join(killed, ", "), stopGrace)
		}
	}()
	l, err := d.bringUp(ctx)
	if err != nil {
		return err
	}
	if drill.enabled && c.output == outputJSON {
		return d.drill(ctx, l, drill) // one document, not two
	}
	if err := d.announce(l, keep); err != nil {
		return err
	}
	if drill.enabled {
		return d.drill(ctx, l, drill)
	}
	<-ctx.Done()
	line(c.env.err, "Stopping.")
	return nil
}

func demoDir(dir string) (string, error) {
	if dir == "" {
		tmp, err := os.MkdirTemp("", "sanctuary-demo-")
		if err != nil {
			return "", fmt.Errorf("directory for the demo: %w", err)
		}
		return tmp, nil
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("directory for the demo: %w", err)
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return "", fmt.Errorf("directory for the demo: %w", err)
	}
	return abs, nil
}

// lockDir makes sure that one demo runs in dir. The kernel drops the lock when this process ends.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "demo.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the demo's directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		return nil, &failure{
			what: fmt.Errorf("a demo is running in %s already", dir), data: "It is not touched.",
			next: "Stop it with Ctrl-C, or use another --dir.",
		}
	}
	return func() { _ = f.Close() }, nil
}

// loadOrPlan returns the plan of the cluster in dir, or makes one there.
func (c *cli) loadOrPlan(dir string, o demoOptions, changed func(string) bool) (plan, error) {
	p, found, err := readPlan(dir)
	if err != nil {
		return plan{}, err
	}
	if !found {
		if p, err = newPlan(dir, o); err != nil {
			return plan{}, err
		}
		return p, p.write(dir)
	}
	for flag, differs := range map[string]bool{
		"nodes": o.nodes != len(p.Nodes), "media": o.media != p.Media, "size": o.sizeBytes != p.SizeBytes, "base-port": true,
	} {
		if changed(flag) && differs && !(flag == "base-port" && p.Nodes[0].Peer == loopback(o.basePort)) {
			return plan{}, &usageError{"sanctuary demo", fmt.Errorf(
				"%s holds a cluster made with other flags (--nodes %d --media %s --size %s): leave --%s out to resume it, or use another --dir",
				dir, len(p.Nodes), p.Media, formatSize(p.SizeBytes), flag)}
		}
	}
	if err := p.portsFree(); err != nil {
		return plan{}, &failure{
			what: fmt.Errorf("the cluster in %s cannot be resumed: %w", dir, err), data: "Its data is not touched.",
			next: "End the process that holds the port (a node started by hand?), and try again.",
		}
	}
	line(c.env.err, "Resuming the cluster in %s", dir)
	return p, nil
}
