package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"sanctuary/node/api"
	"sanctuary/node/client"
)

func (c *cli) nodeDrain() *cobra.Command {
	return &cobra.Command{
		Use: "drain NODE", Short: "Move everything a node holds to other nodes", Args: oneName("the name of the node"),
		Long: `Move every copy and every witness that a node holds to other nodes, while the LUNs are used: as sanctuary lun replica move does it for
one. It does not wait for that: sanctuary lun list, and sanctuary lun show for one. What has no place elsewhere stays, and is named; repeat it
when there is one.

For maintenance that ends soon this is not needed: stopping a node hands its LUNs over. A node that has died for good can be drained, too: its
copies are made anew elsewhere from the others.`,
		Example:           "  sanctuary node drain beta",
		ValidArgsFunction: c.completeNode,
		RunE: c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) error {
			d, err := cl.DrainNode(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if err := c.print(d, func(w io.Writer) { printDrain(w, d) }); err != nil {
				return err
			}
			if n := d.Kept(); n > 0 {
				return &failure{
					what: fmt.Errorf("%d of %d LUNs keep what they have on node %s", n, len(d.LUNs), d.Node), data: "They go on as before.",
					next: "Add what is missing, for example a node (docs/OPERATING.md), and repeat it.",
				}
			}
			return nil
		}),
	}
}

func printDrain(w io.Writer, d api.Drain) {
	if len(d.LUNs) == 0 {
		line(w, "Node %s holds nothing. To take it out of the cluster: stop it, then sanctuary node remove %s", d.Node, d.Node)
		return
	}
	rows := [][]string{{"LUN", "WHAT NODE " + d.Node + " HOLDS OF IT"}}
	for _, l := range d.LUNs {
		what := "moves to another node"
		if l.Error != "" {
			what = "stays: " + l.Error
		}
		rows = append(rows, []string{l.LUN, what})
	}
	table(w, rows...)
}

func (c *cli) nodeRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove NODE", Short: "Forget a node that holds nothing and does not run", Args: oneName("the name of the node"),
		Long: `Forget a node: it is no member of the cluster any more, and its vote in the catalog is not counted. It must hold nothing (sanctuary node drain)
and must have been stopped. Its name may be used again, by a machine with an empty data directory.`,
		Example:           "  sanctuary node drain beta\n  sanctuary node remove beta",
		ValidArgsFunction: c.completeNode,
		RunE: c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) error {
			if err := cl.RemoveNode(cmd.Context(), args[0]); err != nil {
				return err
			}
			return c.print(map[string]string{"removed": args[0]}, func(w io.Writer) { line(w, "Node %s is not a member of the cluster any more.", args[0]) })
		}),
	}
}
