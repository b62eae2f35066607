package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"sanctuary/node/api"
	"sanctuary/node/client"
)

func (c *cli) targetCommand() *cobra.Command {
	group := &cobra.Command{
		Use: "target", Short: "iSCSI targets: who is logged in, and how to set up an initiator", Args: noSuchCommand, RunE: help,
		Long: `There are two kinds of iSCSI targets. Each LUN has its own, with the LUN as number 0. Each host has its own, with all LUNs
allowed to it under their numbers. Every node that holds data of the LUNs offers them, under the same names.`,
	}
	group.AddCommand(c.targetShow(), c.clientConfig())
	return group
}

// shownTarget is what target show prints about one target with -o json.
type shownTarget struct {
	api.Target
	Reservations []api.Reservations `json:"reservations"`
	// Through are the hosts' targets that present a LUN as well, whose own target this is.
	Through []api.Target `json:"through,omitempty"`
	// Logins are those at the nodes that offer it, to whatever target.
	Logins      []api.Logins `json:"logins"`
	Unreachable []string     `json:"unreachable,omitempty"`
}

func (c *cli) targetShow() *cobra.Command {
	return &cobra.Command{
		Use: "show [TARGET]", Short: "Show targets: portals, sessions of all nodes, logins, reservations",
		Long: `Show all targets, or everything about one: portals with their groups, sessions on all nodes with what they negotiated and
have done, and persistent reservations. TARGET is an IQN, or the name of a LUN or a host. How logins have ended is counted for each node since
it was started, to whatever target; who was refused, and why, is in that node's log.`,
		Example: "  sanctuary target show\n  sanctuary target show vm1\n  sanctuary target show esx1 -o json",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return errors.New("give one target, or none for all")
			}
			return nil
		},
		ValidArgsFunction: c.completeLUN,
		RunE: c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) error {
			l, err := cl.Targets(cmd.Context())
			if err != nil {
				return err
			}
			if len(args) == 0 {
				return c.print(l, func(w io.Writer) { printTargets(w, l) })
			}
			t, err := pickTarget(l, args[0])
			if err != nil {
				return err
			}
			shown := shownTarget{Target: t, Reservations: []api.Reservations{}, Logins: []api.Logins{}, Unreachable: l.Unreachable}
			for _, at := range l.Logins {
				if slices.ContainsFunc(t.Portals, func(p api.TargetPortal) bool { return p.Node == at.Node }) {
					shown.Logins = append(shown.Logins, at)
				}
			}
			for _, other := range l.Targets {
				if t.Kind == api.TargetOfLUN && len(t.LUNs) == 1 && other.Kind == api.TargetOfHost &&
					slices.ContainsFunc(other.LUNs, func(u api.TargetLUN) bool { return u.ID == t.LUNs[0].ID }) {
					shown.Through = append(shown.Through, other)
				}
			}
			for _, lun := range t.LUNs {
				r, err := cl.Reservations(cmd.Context(), lun.ID)
				var p *api.Problem
				if errors.As(err, &p) {
					// Sessions are worth showing without them.
					r = api.Reservations{LUN: lun.Name, Registrations: []api.Registration{}, View: api.View{Note: p.Error()}}
				} else if err != nil {
					return err
				}
				shown.Reservations = append(shown.Reservations, r)
			}
			return c.print(shown, func(w io.Writer) { printTarget(w, shown) })
		}),
	}
}

// pickTarget returns the target of that IQN, or of the LUN of that name, or of the host.
func pickTarget(l api.TargetList, name string) (api.Target, error) {
	for _, matches := range []func(api.Target) bool{
		func(t api.Target) bool { return strings.EqualFold(t.Name, name) },
		func(t api.Target) bool {
			return t.Kind == api.TargetOfLUN && len(t.LUNs) == 1 && t.LUNs[0].Name == name
		},
		func(t api.Target) bool { return t.Host == name && t.Kind == api.TargetOfHost },
	} {
		if i := slices.IndexFunc(l.Targets, matches); i >= 0 {
			return l.Targets[i], nil
		}
	}
	return api.Target{}, &failure{what: fmt.Errorf("there is no target %q", name), next: "List what there is: sanctuary target show."}
}

func (c *cli) sessionCommand() *cobra.Command {
	group := &cobra.Command{
		Use: "session", Short: "iSCSI sessions on all nodes", Args: noSuchCommand, RunE: help,
		Long: "An iSCSI session is one login of an initiator at one portal. With multipath an initiator has one for each path.",
	}
	group.AddCommand(&cobra.Command{
		Use: "list", Short: "List the sessions on all nodes", Args: cobra.NoArgs,
		Long:    "List the iSCSI sessions on all nodes. What they negotiated is shown by target show.",
		Example: "  sanctuary session list\n  sanctuary session list -o json | jq -r '.sessions[].initiator' | sort -u",
		RunE: c.asking(func(cmd *cobra.Command, cl *client.Client, _ []string) error {
			l, err := cl.Sessions(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(l, func(w io.Writer) {
				if len(l.Sessions) == 0 {
					line(w, "No sessions.")
				} else {
					printSessions(w, l.Sessions, true)
				}
				printUnreachable(w, l.Unreachable)
			})
		}),
	}, &cobra.Command{
		Use: "close SESSION", Short: "End a session", Args: oneName("the session, as session list shows it"),
		Long: `End a session: its commands are aborted and its connection closed. The initiator may log in again at once, and most do; to keep
it out, take away what lets it in (sanctuary lun deny, sanctuary host set).`,
		Example: "  sanctuary session close alpha.17",
		RunE: c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) error {
			l, err := cl.Sessions(cmd.Context())
			if err != nil {
				return err
			}
			i := slices.IndexFunc(l.Sessions, func(s api.Session) bool { return s.ID == args[0] })
			if i < 0 {
				return &failure{what: fmt.Errorf("there is no session %q", args[0]), next: "List what there is: sanctuary session list."}
			}
			// With its initiator: a node that is restarted between the two requests begins to count anew.
			if err := cl.CloseSession(cmd.Context(), args[0], l.Sessions[i].Initiator); err != nil {
				return err
			}
			return c.print(map[string]string{"closed": args[0], "initiator": l.Sessions[i].Initiator}, func(w io.Writer) {
				line(w, "Session %s of %s closed.", args[0], l.Sessions[i].Initiator)
			})
		}),
	})
	return group
}

func (c *cli) reservationCommand() *cobra.Command {
	group := &cobra.Command{
		Use: "reservation", Short: "Persistent reservations of LUNs", Args: noSuchCommand, RunE: help,
		Long: `Cluster software (Windows failover clusters, ESXi, Linux fencing) registers keys with a LUN and reserves it, so that a node it
has thrown out cannot write. Registrations survive logouts, failovers and power cuts, as they must; what a host that is gone
for good leaves behind is removed here.`,
	}
	group.AddCommand(&cobra.Command{
		Use: "list LUN", Short: "List the registrations and the reservation of a LUN", Args: oneName("the name or ID of the LUN"),
		Long: `List who is registered with a LUN and who holds its reservation, as its owner knows it. "LOGGED IN no" marks registrations
without a session: the host is down, or has come back under another session ID and left them behind.`,
		Example:           "  sanctuary reservation list vm1",
		ValidArgsFunction: c.completeLUN,
		RunE: c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) error {
			r, err := cl.Reservations(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.print(r, func(w io.Writer) { printReservations(w, r) })
		}),
	}, c.reservationPurge())
	return group
}

func (c *cli) reservationPurge() *cobra.Command {
	var (
		key, initiator string
		all, yes       bool
	)
	cmd := &cobra.Command{
		Use: "purge LUN", Short: "Remove registrations that hosts have left behind", Args: oneName("the name or ID of the LUN"),
		Long: `Remove registrations of a LUN: those with one key, those of one initiator, or all of them together with the reservation.

It asks for the LUN's name unless --yes is given, because a cluster that still runs loses its protection by it: two of its nodes
might write at the same time. Make sure that the hosts concerned are down, or do not use the LUN.`,
		Example: `  sanctuary reservation purge vm1 --initiator iqn.1991-05.com.microsoft:win1
  sanctuary reservation purge vm1 --key 00000000abcd0001 --yes
  sanctuary reservation purge vm1 --all`,
		ValidArgsFunction: c.completeLUN,
		RunE: func(cmd *cobra.Command, args []string) error {
			what, text, err := purgeOf(key, initiator, all)
			if err != nil {
				return &usageError{cmd.CommandPath(), err}
			}
			return c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) error {
				l, err := cl.LUN(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if !yes {
					if err := c.confirmName(cmd, "LUN", l.Name, fmt.Sprintf("This removes %s of LUN %s. A host that is up and counts on them may write together with another.",
						text, l.Name), "removed"); err != nil {
						return err
					}
				}
				p, err := cl.PurgeReservations(cmd.Context(), l.ID, what)
				if err != nil {
					return err
				}
				return c.print(p, func(w io.Writer) {
					line(w, "Removed: %d. What there is now:\n", p.Removed)
					printReservations(w, p.Left)
				})
			})(cmd, args)
		},
	}
	f := cmd.Flags()
	f.StringVar(&key, "key", "", "registrations with this key, as reservation list shows it")
	f.StringVar(&initiator, "initiator", "", "registrations of this initiator (IQN)")
	f.BoolVar(&all, "all", false, "all registrations, and the reservation")
	f.BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// purgeOf reads the flags of purge.
func purgeOf(key, initiator string, all bool) (what api.ReservationPurge, text string, err error) {
	ways := 0
	if key != "" {
		ways++
		k, err := parseKey(key)
		if err != nil {
			return what, "", err
		}
		what.Key, text = &k, fmt.Sprintf("all registrations with key %016x", k)
	}
	if initiator != "" {
		ways++
		what.Initiator, text = initiator, "all registrations of "+initiator
	}
	if all {
		ways++
		what.All, text = true, "all registrations and the reservation"
	}
	if ways != 1 {
		return what, "", errors.New("give one of --key, --initiator and --all")
	}
	return what, text, nil
}

// parseKey reads a reservation key: up to 16 hex digits, not 0.
func parseKey(text string) (uint64, error) {
	k, err := strconv.ParseUint(strings.TrimPrefix(strings.ToLower(text), "0x"), 16, 64)
	if err != nil || k == 0 {
		return 0, fmt.Errorf("--key %q: use up to 16 hex digits, as reservation list shows them", text)
	}
	return k, nil
}
