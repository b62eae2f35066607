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

func (c *cli) replicaCommand() *cobra.Command {
	group := &cobra.Command{
		Use: "replica", Short: "Add, remove and move the copies of a LUN, while it is used", Args: noSuchCommand, RunE: help,
		Long: `A LUN has 1, 3 or 5 copies, or 2 or 4 and a witness: the witness comes and goes with the number of copies.

While copies change the LUN is used as ever. A new copy is filled first; only when it holds every acknowledged write, and everybody knows
of it, the one it takes over from goes, and what that had on its disk is deleted last. If the owner goes, it hands the LUN over before. Whoever
dies on the way, the others go on; asking for the old set again undoes what has not been done.

Initiators find a new node's portal only if they are told: let them discover it before the last node they know goes.`,
	}
	group.AddCommand(c.replicaAdd(), c.replicaRemove(), c.replicaMove(), c.replicaRevert())
	return group
}

// changeReplicas asks for a change and shows how far it has come.
func (c *cli) changeReplicas(cmd *cobra.Command, name string, wait time.Duration, change func(cl *client.Client) (api.ReplicaChange, error)) error {
	if err := checkWait(cmd, wait); err != nil {
		return err
	}
	return c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) error {
		want, err := change(cl)
		if err != nil {
			return err
		}
		l, err := cl.ChangeReplicas(cmd.Context(), name, want, wait)
		if err != nil {
			return err
		}
		return c.print(l, func(w io.Writer) {
			printLUN(w, l)
			if !l.Settled() {
				line(w, "\nThis goes on by itself: sanctuary lun show %s.", l.Name)
			}
		})
	})(cmd, []string{name})
}

func (c *cli) replicaAdd() *cobra.Command {
	var (
		node string
		add  api.ReplicaChange
		wait time.Duration
	)
	cmd := &cobra.Command{
		Use: "add NAME", Short: "Give a LUN one copy more", Args: oneName("the name or ID of the LUN"),
		Long: `Give a LUN one copy more, on a node that has none of it. The witness goes if the number of copies becomes odd, and comes if it becomes even.

A node holds one replica of a LUN at a time. On the node of the witness the copy is filled beside it and takes its place; another node becomes the witness,
if there is to be one.`,
		Example:           "  sanctuary lun replica add vm1 --node gamma\n  sanctuary lun replica add vm1",
		ValidArgsFunction: c.completeLUN,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.changeReplicas(cmd, args[0], wait, func(*client.Client) (api.ReplicaChange, error) {
				add.Add = []string{node}
				return add, nil
			})
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "node to have the copy (default: one that suits)")
	cmd.Flags().StringVar(&add.Pool, "pool", "", "pool there (default: the one of the LUN's class with the most room)")
	cmd.Flags().StringVar(&add.Witness, "witness", "", "node to be the witness, if one is needed (default: one that suits)")
	cmd.Flags().DurationVar(&wait, "wait", 30*time.Second, "how long to wait until it is done; 0 does not wait")
	return cmd
}

func (c *cli) replicaRemove() *cobra.Command {
	var (
		node   string
		remove api.ReplicaChange
		wait   time.Duration
	)
	cmd := &cobra.Command{
		Use: "remove NAME --node NODE", Short: "Take a copy of a LUN away", Args: oneName("the name or ID of the LUN"),
		Long: `Take a copy of a LUN away from a node, and delete what it holds there. The witness goes if the number of copies becomes odd, and comes
first if it becomes even. The last copy stays: lun delete.`,
		Example:           "  sanctuary lun replica remove vm1 --node beta",
		ValidArgsFunction: c.completeLUN,
		RunE: func(cmd *cobra.Command, args []string) error {
			if node == "" {
				return &usageError{cmd.CommandPath(), errors.New("give the node whose copy is to go, for example --node beta")}
			}
			return c.changeReplicas(cmd, args[0], wait, func(*client.Client) (api.ReplicaChange, error) {
				remove.Remove = []string{node}
				return remove, nil
			})
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "node whose copy is to go")
	cmd.Flags().StringVar(&remove.Witness, "witness", "", "node to be the witness, if one is needed (default: one that suits)")
	cmd.Flags().DurationVar(&wait, "wait", 30*time.Second, "how long to wait until it is done; 0 does not wait")
	return cmd
}

func (c *cli) replicaMove() *cobra.Command {
	var (
		from, to, pool string
		wait           time.Duration
	)
	cmd := &cobra.Command{
		Use: "move NAME --from NODE --to NODE", Short: "Move a copy of a LUN, or its witness, to another node", Args: oneName("the name or ID of the LUN"),
		Long: `Move a copy of a LUN to a node that has none of it: the new one is filled, takes over, and only then the old one goes. Likewise the witness,
if that is what --from has.`,
		Example:           "  sanctuary lun replica move vm1 --from beta --to gamma\n  sanctuary lun replica move vm1 --from beta --to gamma --pool ssd1",
		ValidArgsFunction: c.completeLUN,
		RunE: func(cmd *cobra.Command, args []string) error {
			if from == "" || to == "" {
				return &usageError{cmd.CommandPath(), errors.New("give both nodes, for example --from beta --to gamma")}
			}
			return c.changeReplicas(cmd, args[0], wait, func(cl *client.Client) (api.ReplicaChange, error) {
				l, err := cl.LUN(cmd.Context(), args[0])
				if err != nil {
					return api.ReplicaChange{}, err
				}
				for _, r := range l.Replicas {
					if r.Node == from && r.Role == api.RoleWitness {
						return api.ReplicaChange{Remove: []string{from}, Witness: to}, nil
					}
				}
				return api.ReplicaChange{Add: []string{to}, Remove: []string{from}, Pool: pool}, nil
			})
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "node that has it")
	cmd.Flags().StringVar(&to, "to", "", "node to have it")
	cmd.Flags().StringVar(&pool, "pool", "", "pool there (default: the one of the LUN's class with the most room)")
	cmd.Flags().DurationVar(&wait, "wait", 30*time.Second, "how long to wait until it is done; 0 does not wait")
	return cmd
}

func (c *cli) replicaRevert() *cobra.Command {
	var (
		node string
		yes  bool
	)
	cmd := &cobra.Command{
		Use: "revert NAME --node NODE", Short: "Make a copy again what it held before its rebuild", Args: oneName("the name or ID of the LUN"),
		Long: `A copy in the middle of being rebuilt is of no one moment, and cannot be served. If what it is rebuilt from is gone for good, this gives the rebuild up
and makes the copy again what it held before: older, but whole. That is kept for it until the rebuild ends, where there was room in the pool.

Nothing is decided by it: if another copy returns, this one is rebuilt from that. To let the LUN go on from it: sanctuary lun recover. It is refused
while what it is rebuilt from answers.`,
		Example:           "  sanctuary lun replica revert vm1 --node beta",
		ValidArgsFunction: c.completeLUN,
		RunE: c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) error {
			if node == "" {
				return &usageError{cmd.CommandPath(), errors.New("give the node whose copy it is, for example --node beta")}
			}
			if !yes {
				l, err := cl.LUN(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if err := c.confirmName(cmd, "LUN", l.Name, fmt.Sprintf("This gives the rebuild of the copy of LUN %s on node %s up; what has been copied is lost.", l.Name, node), "changed"); err != nil {
					return err
				}
			}
			b, err := cl.RevertReplica(cmd.Context(), args[0], node)
			if err != nil {
				return err
			}
			return c.print(b, func(w io.Writer) {
				taken := "before " + timeOrDash(&b.Began) + ", when the rebuild began"
				if b.AsOf != nil {
					taken = timeOrDash(b.AsOf)
				}
				line(w, "The copy of LUN %s on node %s is again what it was at log entry %d, written %s.", args[0], node, b.Index, taken)
				line(w, "To let the LUN go on from it: sanctuary lun recover %s.", args[0])
			})
		}),
	}
	cmd.Flags().StringVar(&node, "node", "", "node whose copy it is")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}
