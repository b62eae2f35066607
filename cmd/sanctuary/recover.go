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

func (c *cli) lunRecover() *cobra.Command {
	var (
		accept, yes bool
		spec        api.RecoverSpec
		wait        time.Duration
	)
	cmd := &cobra.Command{
		Use: "recover NAME", Short: "Let a LUN go on from the only copy left, by force", Args: oneName("the name or ID of the LUN"),
		Long: `When more than half of a LUN's voters are gone for good it cannot be served: nobody can tell whether the copies that are left hold everything.
This lets it go on from one of them. What that one does not hold is lost.

Without --accept-loss nothing is changed: it shows what was found of every replica, which copy holds most, and what others prove to have existed
beyond it. It is refused while the LUN is served or could help itself: bring nodes back first, whenever that is possible.

You vouch for it that the nodes that do not answer are off, or cut off from every initiator: two halves that cannot reach each other cannot be
told apart, and both would serve. When they come back they are told: what they hold is of a history that has been given up, and they are made
anew from the copy the LUN went on from. To look at what is on them, do so before they are started.

What was decided, by whom (--by), when and on what evidence is kept: sanctuary lun show NAME.`,
		Example:           "  sanctuary lun recover vm1\n  sanctuary lun recover vm1 --accept-loss --by kk --why 'alpha burnt down'",
		ValidArgsFunction: c.completeLUN,
		RunE: c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) error {
			if err := checkWait(cmd, wait); err != nil {
				return err
			}
			if !accept && (spec.By != "" || spec.Why != "" || yes) {
				return &usageError{cmd.CommandPath(), errors.New("--by, --why and --yes say something about a decision: give --accept-loss")}
			}
			r, err := cl.Recovery(cmd.Context(), args[0], spec.Node)
			if err != nil {
				return err
			}
			if !accept {
				return c.print(r, func(w io.Writer) { printRecovery(w, r) })
			}
			if r.Refused != "" {
				printRecovery(c.env.err, r)
				return &failure{
					what: fmt.Errorf("LUN %s is not recovered by force: %s", r.LUN, r.Refused), data: "Nothing was changed.",
					next: "Bring its other replicas back, or do what the message says.",
				}
			}
			if !yes {
				printRecovery(c.env.err, r)
				if err := c.confirmName(cmd, "LUN", r.LUN, fmt.Sprintf("\nThis lets LUN %s go on from %s alone. Lost: %s.", r.LUN, r.From, r.Lost), "changed"); err != nil {
					return err
				}
			}
			spec.AcceptLoss, spec.History, spec.Node = true, r.History, r.Node
			if r, err = cl.Recover(cmd.Context(), r.ID, spec, wait); err != nil {
				return err
			}
			return c.print(r, func(w io.Writer) {
				line(w, "LUN %s goes on from %s, in history %d. Lost: %s.", r.LUN, r.From, r.History, r.Lost)
				line(w, "Its other replicas are made anew when their nodes are there: sanctuary lun show %s. If some never return, move them: sanctuary lun replica move.", r.LUN)
			})
		}),
	}
	f := cmd.Flags()
	f.BoolVar(&accept, "accept-loss", false, "do it: whatever the copy does not hold is lost")
	f.StringVar(&spec.Node, "node", "", "node whose copy it is to go on from (default: the one that holds most)")
	f.StringVar(&spec.By, "by", "", "who decides this, for the record")
	f.StringVar(&spec.Why, "why", "", "why, for the record")
	f.BoolVar(&yes, "yes", false, "do not ask")
	f.DurationVar(&wait, "wait", 30*time.Second, "how long to wait until it is served; 0 does not wait")
	return cmd
}

func printRecovery(w io.Writer, r api.Recovery) {
	rows := [][]string{{"REPLICA", "ROLE", "ANSWERS", "LOG ENDS AT", "NEWEST ENTRY", "LAST HEARD", "NOTE"}}
	for _, x := range r.Replicas {
		ends := "-"
		if x.Index > 0 {
			ends = fmt.Sprintf("%d (term %d)", x.Index, x.Term)
		}
		heard := timeOrDash(x.LastHeard)
		if x.NotHeardSince != nil {
			heard = "not since " + timeOrDash(x.NotHeardSince)
		}
		rows = append(rows, []string{x.Replica, x.Role, yesNo(x.Reached), ends, timeOrDash(x.NewestEntry), heard, x.Unusable})
	}
	table(w, rows...)
	line(w, "")
	if r.From != "" {
		line(w, "The copy that holds most is %s. Going on from it would lose: %s.", r.From, r.Lost)
	}
	if r.Refused != "" {
		line(w, "LUN %s is not recovered by force now: %s.", r.LUN, r.Refused)
		return
	}
	line(w, "To do it: sanctuary lun recover %s --accept-loss", r.LUN)
}

// printRecoveries shows the record of a LUN's recoveries by force.
func printRecoveries(w io.Writer, all []api.RecoveryRecord) {
	for _, r := range all {
		line(w, "\nHistory %d began at %s: recovered by force from %s, through node %s. Decided by %s: %s. Lost: %s.",
			r.History, r.At.UTC().Format(time.RFC3339), r.Replica, r.Through, dash(r.By), dash(r.Why), dash(r.Lost))
	}
}
