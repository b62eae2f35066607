package main

import (
	"bufio"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sanctuary/node/api"
	"sanctuary/node/client"
)

// version is set by the build: -ldflags "-X main.version=…".
var version = "dev"

func (c *cli) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the whole cluster: nodes, LUNs, and what needs attention",
		Long: `Show the whole cluster at a glance, and for everything that is not as it should be what happened, what it means for
the data and what to do next.

Any node answers. Each LUN is shown as its owner sees it; where the owner does not answer, that is said.`,
		Example: "  sanctuary status\n  sanctuary status --api 10.0.0.1:7442,10.0.0.2:7442\n  sanctuary status -o json | jq '.alerts'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client(cmd)
			if err != nil {
				return err
			}
			defer cl.Close()
			s, err := cl.Status(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(s, func(w io.Writer) { printStatus(w, s) })
		},
	}
}

func (c *cli) nodeCommand() *cobra.Command {
	group := &cobra.Command{
		Use: "node", Short: "Nodes of the cluster", Args: noSuchCommand, RunE: help,
		Long: `A node is one running process: "sanctuary run" holds data and serves initiators, "sanctuary witness" only votes.`,
	}
	group.AddCommand(&cobra.Command{
		Use:   "list",
		Short: "List the nodes with their addresses",
		Long: `List the members of the cluster, whether gossip reaches them, and how many LUNs each serves now.

"Alive" is a hint: it makes survivors act sooner, but never decides who may write.`,
		Example: "  sanctuary node list\n  sanctuary node list -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client(cmd)
			if err != nil {
				return err
			}
			defer cl.Close()
			l, err := cl.Nodes(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(l, func(w io.Writer) { printNodes(w, l.Nodes) })
		},
	}, c.nodeDrain(), c.nodeRemove())
	return group
}

func (c *cli) lunCommand() *cobra.Command {
	group := &cobra.Command{
		Use: "lun", Short: "Create, list, show, allow, move, copy, clone, scrub, recover and delete LUNs", Args: noSuchCommand, RunE: help,
		Long: `A LUN is a disk that initiators (ESXi, QEMU, Windows, Linux) use over iSCSI.

Every node offers it under the same name and identity. One node owns it and serves it; when that node dies, another that has
every acknowledged write takes over, and initiators that know all portals go on there.`,
	}
	group.AddCommand(c.lunCreate(), c.lunList(), c.lunShow(), c.lunAllow(), c.lunDeny(), c.lunSet(), c.lunResize(), c.lunMove(), c.replicaCommand(), c.lunRecover(), c.lunClone(), c.lunScrub(), c.snapshotCommand(), c.lunDelete())
	return group
}

func (c *cli) lunCreate() *cobra.Command {
	var (
		size sizeFlag
		spec api.LUNSpec
		wait time.Duration
	)
	cmd := &cobra.Command{
		Use:   "create NAME --size SIZE",
		Short: "Create a LUN and wait until it is served",
		Long: `Create a LUN and wait until initiators can use it. Space is allocated when it is written, so a large LUN costs nothing
yet. With two data nodes there are two copies and every acknowledged write is on both.

--class says which pools its copies are to be in: ssd, hdd, or ram; without it any that survives a power cut, where most is free.
ram is as fast as memory and gone when the process ends; as long as one copy lives, the other is rebuilt from it, but if all go
at once the LUN is lost. --media is the older way to say it: file is any class that lasts, ram is class ram.

It must fit what is free in its pools now, unless --overcommit is given. When a pool is full, writes that need new space are
refused until there is some; nothing that was acknowledged is lost.

With --zero-detect blocks that initiators write as zeros take no space, as if they had been unmapped: see "sanctuary lun set".

With --host these hosts may use it, with --open anyone who reaches a portal. With neither nobody may, until "sanctuary lun
allow" says who.`,
		Example: `  sanctuary lun create vm1 --size 10GiB --host esx1
  sanctuary lun create scratch --size 512MiB --class ram --open
  sanctuary lun create vm2 --size 2TiB --node alpha --node beta --prefer alpha`,
		Args: oneName("the name of the LUN"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkWait(cmd, wait); err != nil {
				return err
			}
			if size == 0 {
				return &usageError{cmd.CommandPath(), fmt.Errorf("give the size of the LUN, for example --size 10GiB")}
			}
			cl, err := c.client(cmd)
			if err != nil {
				return err
			}
			defer cl.Close()
			spec.Name, spec.SizeBytes = args[0], int64(size)
			l, err := cl.CreateLUN(cmd.Context(), spec, wait)
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
			if !l.Served() && wait > 0 {
				return &failure{
					what: fmt.Errorf("LUN %s is recorded, but not served after %v: %s", l.Name, wait, l.Reason),
					data: "It holds none yet.", next: "Wait, or see what is missing: sanctuary lun show " + l.Name,
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.Var(&size, "size", "capacity: a whole number with KiB, MiB, GiB or TiB; a multiple of 4KiB, at most 16TiB")
	f.StringVar(&spec.Class, "class", "", "class of the pools the copies are kept in: ram, ssd or hdd (default: any that lasts)")
	f.StringVar(&spec.Media, "media", "", "older name of --class: file (any that lasts) or ram")
	f.IntVar(&spec.Copies, "copies", 0, "copies of the data, 1 to 5 (default: 2 if there are two data nodes, otherwise 1)")
	f.StringSliceVar(&spec.Nodes, "node", nil, "data node to place a copy on; repeat for each copy (default: chosen by free space)")
	f.StringVar(&spec.Preferred, "prefer", "", "data node that should own the LUN")
	f.StringSliceVar(&spec.Hosts, "host", nil, "host that may use it; repeat for each")
	f.BoolVar(&spec.Open, "open", false, "anyone who reaches a portal may use it")
	f.BoolVar(&spec.Overcommit, "overcommit", false, "make it though it is larger than what is free in its pools now")
	f.BoolVar(&spec.ZeroDetection, "zero-detect", false, "blocks of 4 KiB that are written as zeros take no space")
	f.IntVar(&spec.BlockBytes, "block", 512, "logical block length in bytes: 512 suits every hypervisor, 4096 is 4Kn")
	f.DurationVar(&wait, "wait", 30*time.Second, "how long to wait until it is served; 0 does not wait")
	must(cmd.RegisterFlagCompletionFunc("class", cobra.FixedCompletions([]string{"ram", "ssd", "hdd"}, cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("media", cobra.FixedCompletions([]string{"file", "ram"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func checkWait(cmd *cobra.Command, wait time.Duration) error {
	if wait < 0 || wait > 5*time.Minute {
		return &usageError{cmd.CommandPath(), fmt.Errorf("--wait %v: use a time from 0s to 5m", wait)}
	}
	return nil
}

func oneName(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) == 0:
			return fmt.Errorf("give %s", what)
		case len(args) > 1:
			return fmt.Errorf("give only %s, not also %q", what, args[1:])
		case args[0] == "":
			return fmt.Errorf("%s is empty", what)
		}
		return nil
	}
}

func (c *cli) lunList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List all LUNs", Args: cobra.NoArgs,
		Long: `List all LUNs with their health and owner. IN SYNC counts the copies that have every acknowledged write.

  healthy      served, every copy in sync
  degraded     served, a copy is missing: one more failure may stop I/O
  catching-up  served, a copy is back and receives what it missed
  unavailable  not served: nothing acknowledged is lost, I/O waits
  lost         every copy is gone

With -o wide it shows what each LUN holds instead: ALLOCATED is what it occupies in the owner's pool with its snapshots; STORED, EXCLUSIVE and
SHARED are of the LUN itself, without them, and "-" until they have been counted; THEIR OWN is what its snapshots hold alone.`,
		Example: "  sanctuary lun list\n  sanctuary lun list -o wide\n  sanctuary lun list -o json | jq -r '.luns[].portals[].url'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client(cmd)
			if err != nil {
				return err
			}
			defer cl.Close()
			l, err := cl.LUNs(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(l, func(w io.Writer) {
				if c.output == outputWide && len(l.LUNs) > 0 {
					printWideLUNs(w, l.LUNs)
					return
				}
				printLUNs(w, l.LUNs)
			})
		},
	}
}

func (c *cli) lunShow() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show one LUN: owner, copies, portals", Args: oneName("the name or ID of the LUN"),
		Long: `Show everything about one LUN, as its owner sees it. If the owner does not answer, the node that was asked shows what it
knows and says so ("Known by", "Note").`,
		Example:           "  sanctuary lun show vm1\n  sanctuary lun show vm1 -o json",
		ValidArgsFunction: c.completeLUN,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client(cmd)
			if err != nil {
				return err
			}
			defer cl.Close()
			l, err := cl.LUN(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.print(l, func(w io.Writer) { printLUN(w, l) })
		},
	}
}

func (c *cli) lunMove() *cobra.Command {
	var (
		to   string
		wait time.Duration
	)
	cmd := &cobra.Command{
		Use: "move NAME --to NODE", Short: "Make another node the owner", Args: oneName("the name or ID of the LUN"),
		Long: `Hand the ownership of a LUN to another node that holds a copy in sync, for example before maintenance of the owner. No
data moves and none is at risk. Initiators with multipath pause for a moment and go on. So do those of a host with a single path
(sanctuary host set --single-path), which are sent to the new owner; any other that uses one path gets an I/O error.`,
		Example:           "  sanctuary lun move vm1 --to beta",
		ValidArgsFunction: c.completeLUN,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkWait(cmd, wait); err != nil {
				return err
			}
			if to == "" {
				return &usageError{cmd.CommandPath(), fmt.Errorf("give the node that should own the LUN, for example --to beta")}
			}
			cl, err := c.client(cmd)
			if err != nil {
				return err
			}
			defer cl.Close()
			l, err := cl.MoveLUN(cmd.Context(), args[0], to, wait)
			if err != nil {
				return err
			}
			return c.print(l, func(w io.Writer) { printLUN(w, l) })
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "node that should own the LUN")
	cmd.Flags().DurationVar(&wait, "wait", 30*time.Second, "how long to wait until it serves; 0 does not wait")
	return cmd
}

func (c *cli) lunDelete() *cobra.Command {
	var yes, force bool
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Delete a LUN and its data on every node", Args: oneName("the name or ID of the LUN"),
		Long: `Delete a LUN and its data on every node, its snapshots too. There is no way back. Clones of it go on: what they need is kept, and
takes space until they are deleted.

It asks for the LUN's name unless --yes is given, and refuses while an initiator is logged in unless --force is given.`,
		Example:           "  sanctuary lun delete vm1\n  sanctuary lun delete vm1 --yes",
		ValidArgsFunction: c.completeLUN,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client(cmd)
			if err != nil {
				return err
			}
			defer cl.Close()
			l, err := cl.LUN(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if !yes {
				if err := c.confirm(cmd, l); err != nil {
					return err
				}
			}
			// By ID: the LUN that was shown is the one that goes, whatever has become of the name meanwhile.
			if err := cl.DeleteLUN(cmd.Context(), l.ID, force); err != nil {
				return err
			}
			return c.print(map[string]string{"deleted": l.ID, "name": l.Name}, func(w io.Writer) { line(w, "LUN %s deleted.", l.Name) })
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	cmd.Flags().BoolVar(&force, "force", false, "although initiators use it, or a node cannot be asked whether any do")
	return cmd
}

// confirm asks for the LUN's name.
func (c *cli) confirm(cmd *cobra.Command, l api.LUN) error {
	return c.confirmName(cmd, "LUN", l.Name, fmt.Sprintf("This deletes LUN %s (%s) and its data on every node, for good.", l.Name, formatSize(l.SizeBytes)), "deleted")
}

// confirmName asks for the name of a thing of that kind after a warning; done is what was not done if it is not given.
func (c *cli) confirmName(cmd *cobra.Command, kind, name, warning, done string) error {
	_, _ = fmt.Fprintf(c.env.err, "%s\nType its name to go on: ", warning)
	answer, err := bufio.NewReader(c.env.in).ReadString('\n')
	if strings.TrimSpace(answer) == name {
		return nil
	}
	line(c.env.err, "")
	if err != nil && answer == "" {
		return &usageError{cmd.CommandPath(), fmt.Errorf("nobody to ask about %s %s; nothing was %s. In scripts give --yes", kind, name, done)}
	}
	return &failure{what: fmt.Errorf("that is not the name of %s %s", kind, name), data: "Nothing was " + done + ".", next: "Repeat it if you meant to."}
}

// completeNames completes the names that list returns, for the shell.
func (c *cli) completeNames(cmd *cobra.Command, list func(cl *client.Client) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	cl, err := c.client(cmd)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	defer cl.Close()
	names, err := list(cl)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeLUN completes the names of LUNs for the shell.
func (c *cli) completeLUN(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.completeNames(cmd, func(cl *client.Client) (names []string, err error) {
		l, err := cl.LUNs(cmd.Context())
		for _, lun := range l.LUNs {
			names = append(names, lun.Name)
		}
		return names, err
	})
}

func (c *cli) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Show the version of this program", Args: cobra.NoArgs,
		Long:    "Show the version of this program and what it was built with. It asks no node; the nodes' versions are in node list.",
		Example: "  sanctuary version\n  sanctuary version -o json",
		RunE: func(*cobra.Command, []string) error {
			v := buildVersion()
			return c.print(v, func(w io.Writer) {
				line(w, "sanctuary %s", v["version"])
				line(w, "built with %s for %s, from commit %s", v["go"], v["platform"], v["commit"])
			})
		},
	}
}

func buildVersion() map[string]string {
	v := map[string]string{"version": version, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH, "commit": "unknown"}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				v["commit"] = s.Value
			}
		}
	}
	return v
}
