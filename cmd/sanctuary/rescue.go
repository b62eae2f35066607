package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"sanctuary/node"
)

func (c *cli) rescueCommand() *cobra.Command {
	var accept bool
	cmd := &cobra.Command{
		Use: "rescue-catalog DATA_DIR", Short: "Let the cluster's catalog go on from this node alone, by force", Args: oneName("the data directory of a node that has been stopped"),
		Long: `When more than half of a cluster's nodes are gone for good its catalog has no majority: nothing can be created, moved or recovered any more. Run on
the machine of one node that is left, with that node stopped, this lets the catalog go on from what that node has. Changes it has not heard of are lost.

The nodes that are gone must never be started again with what is on their disks: they would be a cluster of their own. Remove each from the
cluster, and let it join with an empty data directory. The data of LUNs is not touched; those that have lost their majority, too, are
recovered one by one afterwards: sanctuary lun recover.

Choose one node. If two are left that can reach each other, and are less than half, choose the one with the newest copies; the other one is removed and joins again like the rest.`,
		Example: "  systemctl stop sanctuary\n  sanctuary rescue-catalog /var/lib/sanctuary --accept-loss\n  systemctl start sanctuary",
		RunE: func(cmd *cobra.Command, args []string) error {
			if !accept {
				return &usageError{cmd.CommandPath(), fmt.Errorf("nothing was changed: what other nodes have decided and this one has not heard of is lost by it. Give --accept-loss if that is meant")}
			}
			name, others, err := node.Rescue(args[0])
			if err != nil {
				return &failure{what: fmt.Errorf("the catalog does not go on from %s: %w", args[0], err), data: "No data of a LUN was touched.", next: "Remove the cause, and repeat it: it may be repeated."}
			}
			return c.print(map[string]any{"node": name, "others": others}, func(w io.Writer) {
				line(w, "The catalog goes on from node %s alone. Start it again; then, for each of the others that is gone (%s):", name, strings.Join(others, ", "))
				line(w, "  sanctuary lun recover LUN                  for every LUN that is unavailable")
				line(w, "  sanctuary node drain NODE                  what it held is made anew elsewhere")
				line(w, "  sanctuary node remove NODE                 it may join again, with an empty data directory")
			})
		},
	}
	cmd.Flags().BoolVar(&accept, "accept-loss", false, "do it: changes this node has not heard of are lost")
	return cmd
}
