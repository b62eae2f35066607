package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sanctuary/node/api"
	"sanctuary/node/client"
	"sanctuary/node/config"
)

func (c *cli) poolCommand() *cobra.Command {
	group := &cobra.Command{
		Use: "pool", Short: "Pools: the disks and the memory that LUNs are kept on", Args: noSuchCommand, RunE: help,
		Long: `A pool is what a node keeps copies of LUNs on: files in a directory, a raw block device, or memory. A node has those of its
configuration, called "file" and "ram", and those that are added while it runs; it remembers them.

Each pool has a class: ssd, hdd or ram. A LUN asks for a class (sanctuary lun create --class), or for any that lasts, and each
of its copies goes to the pool with the most room on its node.`,
	}
	group.AddCommand(c.poolAdd(), c.poolList(), c.poolShow(), c.poolRemove())
	return group
}

// poolFlags say what a pool is to be made on.
type poolFlags struct {
	node, device, dir string
	capacity, ram     config.Size
	spec              api.PoolSpec
}

// complete fills in the spec; exactly one of the three media is given.
func (f *poolFlags) complete() error {
	media := 0
	for _, given := range []bool{f.device != "", f.dir != "", f.ram != 0} {
		if given {
			media++
		}
	}
	switch {
	case f.node == "":
		return errors.New("name the node that has the disk: --node NODE (sanctuary node list)")
	case media != 1:
		return errors.New("say what the pool is to be on: one of --device, --file and --ram")
	case f.dir != "" && f.capacity == 0:
		return errors.New("say how much of the file system the pool is to have: --capacity 100GiB")
	case f.dir == "" && (f.capacity != 0 || f.spec.Sparse):
		return errors.New("--capacity and --sparse are for --file: a device is used as a whole, and --ram says its size")
	case f.device == "" && f.dir == "" && f.spec.Force:
		return errors.New("--force is for --device and --file: memory holds nothing")
	}
	switch {
	case f.device != "":
		f.spec.Media, f.spec.Path = "device", f.device
	case f.dir != "":
		f.spec.Media, f.spec.Path, f.spec.CapacityBytes = "file", f.dir, int64(f.capacity)
	default:
		f.spec.Media, f.spec.CapacityBytes = "ram", int64(f.ram)
	}
	return nil
}

func (c *cli) poolAdd() *cobra.Command {
	var in poolFlags
	cmd := &cobra.Command{
		Use: "add --node NODE (--device PATH | --file DIR --capacity SIZE | --ram SIZE)", Short: "Add a pool to a running node", Args: cobra.NoArgs,
		Long: `Add a pool to a node, while it runs. Paths are on that node, and absolute.

--device takes a whole disk, partition or logical volume. Use /dev/disk/by-id/…: names like /dev/sdb may change. What is mounted or in
use is always refused. What holds anything (a file system, partitions, a RAID or LVM member, another pool) is refused unless --force
is given, and then it is lost; the message says what was found, and where.

--file makes files in a directory that is empty or not there yet, and reserves the capacity on its file system at once: it is
refused where there is no room, and keeps what is unmapped. With --sparse it takes space as it is needed and gives it back. A pool that was removed from this node without --wipe is taken back as it is.

--ram is memory: what is in it is gone when the node ends, and is rebuilt from the LUN's other copies.`,
		Example: `  sanctuary pool add --node alpha --device /dev/disk/by-id/nvme-SAMSUNG_MZQL2_S64HNE0
  sanctuary pool add --node beta --file /srv/pool2 --capacity 500GiB --class hdd --name archive
  sanctuary pool add --node alpha --ram 4GiB`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := in.complete(); err != nil {
				return &usageError{cmd.CommandPath(), err}
			}
			return c.asking(func(cmd *cobra.Command, cl *client.Client, _ []string) error {
				p, err := cl.AddPool(cmd.Context(), in.node, in.spec)
				if err != nil {
					return err
				}
				return c.print(p, func(w io.Writer) {
					printPool(w, p)
					line(w, "\nNext: sanctuary lun create NAME --size SIZE --class %s, which needs such a pool on every node that is to have a copy.", p.Class)
				})
			})(cmd, args)
		},
	}
	f := cmd.Flags()
	f.StringVar(&in.node, "node", "", "node to add it to")
	f.StringVar(&in.device, "device", "", "block device, such as /dev/disk/by-id/…")
	f.StringVar(&in.dir, "file", "", "directory for a pool of files")
	f.Var(&in.capacity, "capacity", "of a pool of files: what LUNs may allocate, at least 64MiB")
	f.Var(&in.ram, "ram", "size of a pool in memory, at least 64MiB")
	f.StringVar(&in.spec.Name, "name", "", "name of the pool (default: its class and a number)")
	f.StringVar(&in.spec.Class, "class", "", "ssd or hdd (default: what the system says of the disk)")
	f.BoolVar(&in.spec.Sparse, "sparse", false, "of a pool of files: take space when it is needed, not all of it at once")
	f.BoolVar(&in.spec.Force, "force", false, "although it holds something, which is lost")
	must(cmd.RegisterFlagCompletionFunc("class", cobra.FixedCompletions([]string{"ssd", "hdd", "ram"}, cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("node", c.completeNode))
	must(cmd.MarkFlagDirname("file"))
	return cmd
}

func (c *cli) poolList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the pools of all nodes", Args: cobra.NoArgs,
		Long: `List the pools of all nodes, with what is free in them and how many copies of LUNs they hold. A pool that is "failed" cannot be
used: its copies are out of service, and kept.`,
		Example: "  sanctuary pool list\n  sanctuary pool list -o json | jq '.pools[] | select(.state != \"ok\")'",
		RunE: c.asking(func(cmd *cobra.Command, cl *client.Client, _ []string) error {
			l, err := cl.Pools(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(l, func(w io.Writer) { printPools(w, l) })
		}),
	}
}

func (c *cli) poolShow() *cobra.Command {
	var node string
	cmd := &cobra.Command{
		Use: "show NAME", Short: "Show a pool and what is in it", Args: oneName("the name of the pool"),
		Long:              "Show a pool: where it is, how its class is known, how full it is, and the copies of LUNs in it.",
		Example:           "  sanctuary pool show ssd1 --node alpha",
		ValidArgsFunction: c.completePool,
		RunE: c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) error {
			p, err := pickPool(cmd, cl, node, args[0])
			if err != nil {
				return err
			}
			return c.print(p, func(w io.Writer) { printPool(w, p) })
		}),
	}
	c.poolNodeFlag(cmd, &node)
	return cmd
}

func (c *cli) poolRemove() *cobra.Command {
	var (
		node string
		how  api.PoolRemoval
		yes  bool
	)
	cmd := &cobra.Command{
		Use: "remove NAME", Short: "Remove a pool that holds nothing", Args: oneName("the name of the pool"),
		Long: `Remove a pool from a node. It is refused while copies of LUNs are in it, and says which. The pool's files, or the header by which a
device is known, stay unless --wipe is given.

--lost is for a pool whose disk will not come back: its copies are given up, and the node makes new ones in its other pools of that
class from the LUNs' other copies. It works only while the pool is failed since the node's start. A LUN whose only copy was there is lost.

--wipe and --lost ask for the pool's name unless --yes is given.`,
		Example:           "  sanctuary pool remove ssd1 --node alpha --wipe\n  sanctuary pool remove hdd2 --node beta --lost",
		ValidArgsFunction: c.completePool,
		RunE: c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) error {
			p, err := pickPool(cmd, cl, node, args[0])
			if err != nil {
				return err
			}
			if warning := removalWarning(p, how); warning != "" && !yes {
				if err := c.confirmName(cmd, "pool", p.Name, warning, "removed"); err != nil {
					return err
				}
			}
			if err := cl.RemovePool(cmd.Context(), p.Node, p.Name, how); err != nil {
				return err
			}
			return c.print(map[string]string{"removed": p.Name, "node": p.Node}, func(w io.Writer) {
				line(w, "Pool %s removed from node %s.", p.Name, p.Node)
				if !how.Wipe && p.Media != "ram" {
					line(w, "What lies on %s was left as it is.", p.Path)
				}
			})
		}),
	}
	c.poolNodeFlag(cmd, &node)
	f := cmd.Flags()
	f.BoolVar(&how.Wipe, "wipe", false, "delete the pool's files, or its header on the device")
	f.BoolVar(&how.Lost, "lost", false, "its disk is lost: give up the copies in it")
	f.BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// removalWarning says what cannot be undone about a removal.
func removalWarning(p api.Pool, how api.PoolRemoval) string {
	var parts []string
	if how.Lost {
		parts = append(parts, fmt.Sprintf("This gives up the %d copies of LUNs in pool %s of node %s: those without another copy are lost.", len(p.Replicas), p.Name, p.Node))
	}
	if how.Wipe {
		parts = append(parts, fmt.Sprintf("This destroys pool %s of node %s on %s.", p.Name, p.Node, dash(p.Path)))
	}
	return strings.Join(parts, "\n")
}

func (c *cli) poolNodeFlag(cmd *cobra.Command, node *string) {
	cmd.Flags().StringVar(node, "node", "", "node that has it (needed if several have a pool of that name)")
	must(cmd.RegisterFlagCompletionFunc("node", c.completeNode))
}

// pickPool returns the pool of that name, on that node if one is given.
func pickPool(cmd *cobra.Command, cl *client.Client, node, name string) (api.Pool, error) {
	if node != "" {
		return cl.Pool(cmd.Context(), node, name)
	}
	l, err := cl.Pools(cmd.Context())
	if err != nil {
		return api.Pool{}, err
	}
	of := slices.DeleteFunc(l.Pools, func(p api.Pool) bool { return p.Name != name })
	switch {
	case len(of) == 1 && len(l.Unreachable) == 0:
		return of[0], nil
	case len(of) > 0 || len(l.Unreachable) > 0:
		var nodes []string
		for _, p := range of {
			nodes = append(nodes, p.Node)
		}
		what := fmt.Sprintf("pool %q: it is not clear which one is meant; nodes that have one: %s", name, dash(strings.Join(nodes, ", ")))
		if len(l.Unreachable) > 0 {
			what += "; nodes that do not answer: " + strings.Join(l.Unreachable, ", ")
		}
		return api.Pool{}, &failure{what: errors.New(what), data: "Nothing was changed.", next: "Say which: --node NODE."}
	}
	return api.Pool{}, &failure{what: fmt.Errorf("no node has a pool %q", name), next: "List what there is: sanctuary pool list."}
}

func printPools(w io.Writer, l api.PoolList) {
	rows := [][]string{{"NODE", "POOL", "CLASS", "ON", "CAPACITY", "ALLOCATED", "USED", "FREE", "COPIES", "STATE"}}
	for _, p := range l.Pools {
		rows = append(rows, []string{
			p.Node, p.Name, p.Class, poolPlace(p), formatSize(p.CapacityBytes), formatSize(p.AllocatedBytes), poolUsed(p), formatSize(p.FreeBytes), fmt.Sprint(len(p.Replicas)), p.State,
		})
	}
	if len(l.Pools) == 0 {
		line(w, "No pools.")
	} else {
		table(w, rows...)
	}
	for _, p := range l.Pools {
		if p.Reason != "" {
			line(w, "%s/%s: %s", p.Node, p.Name, p.Reason)
		}
	}
	if len(l.Unreachable) > 0 {
		line(w, "No answer from %s: pools there are not shown.", strings.Join(l.Unreachable, ", "))
	}
}

func poolPlace(p api.Pool) string {
	if p.Path == "" {
		return "memory"
	}
	if p.Sparse {
		return p.Path + " (sparse)"
	}
	return p.Path
}

// poolUsed is the share of a pool that is allocated, rounded down: 100% is full. Of one that could not be opened it is not known.
func poolUsed(p api.Pool) string {
	if p.CapacityBytes == 0 || p.AllocatedBytes+p.FreeBytes != p.CapacityBytes {
		return "-"
	}
	return fmt.Sprintf("%d%%", p.AllocatedBytes*100/p.CapacityBytes)
}

// poolSpace says whether what is free in a pool is there.
func poolSpace(p api.Pool) string {
	switch {
	case p.Sparse:
		return "taken from its file system as it is needed (sparse): that must not run full"
	case p.Media == "file":
		return "reserved on its file system"
	}
	return "all its own"
}

func printPool(w io.Writer, p api.Pool) {
	from := "added; the node remembers it"
	if p.Configured {
		from = "the node's configuration file"
	}
	table(w,
		[]string{"Name:", p.Name},
		[]string{"Node:", p.Node},
		[]string{"State:", p.State},
		[]string{"Reason:", dash(p.Reason)},
		[]string{"Media:", p.Media},
		[]string{"On:", cmp.Or(p.Path, "memory")},
		[]string{"Class:", fmt.Sprintf("%s (%s)", p.Class, dash(p.ClassBecause))},
		[]string{"Capacity:", fmt.Sprintf("%s (%d bytes)", formatSize(p.CapacityBytes), p.CapacityBytes)},
		[]string{"Allocated:", fmt.Sprintf("%s (%d bytes)", formatSize(p.AllocatedBytes), p.AllocatedBytes)},
		[]string{"Free:", fmt.Sprintf("%s (%d bytes)", formatSize(p.FreeBytes), p.FreeBytes)},
		[]string{"Space:", poolSpace(p)},
		[]string{"From:", from},
		[]string{"ID:", dash(p.ID)},
	)
	if len(p.Replicas) == 0 {
		line(w, "\nNothing is in it.")
		return
	}
	line(w, "")
	rows := [][]string{{"LUN", "REPLICA"}}
	for _, r := range p.Replicas {
		rows = append(rows, []string{r.LUN, r.Replica})
	}
	table(w, rows...)
}

// completePool completes the names of pools for the shell.
func (c *cli) completePool(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.completeNames(cmd, func(cl *client.Client) (names []string, err error) {
		l, err := cl.Pools(cmd.Context())
		for _, p := range l.Pools {
			names = append(names, p.Name)
		}
		slices.Sort(names)
		return slices.Compact(names), err
	})
}

// completeNode completes the names of data nodes for the shell.
func (c *cli) completeNode(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return c.completeNames(cmd, func(cl *client.Client) (names []string, err error) {
		l, err := cl.Nodes(cmd.Context())
		for _, n := range l.Nodes {
			if n.Kind == config.KindData {
				names = append(names, n.Name)
			}
		}
		return names, err
	})
}
