package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"sanctuary/node/api"
	"sanctuary/node/client"
)

func (c *cli) lunAllow() *cobra.Command {
	var (
		hosts              []string
		number             int
		anyone, singlePath bool
	)
	cmd := &cobra.Command{
		Use: "allow NAME --host HOST", Short: "Let a host, or anyone, use a LUN", Args: oneName("the name or ID of the LUN"),
		Long: `Let a host use a LUN. It finds the LUN under a number in the host's own target, and as number 0 in the LUN's own; either
will do. Without --number it gets one that the host has not used before as long as there are some: an initiator that remembers
another disk under a number has been known to write to the wrong one.

--any opens the LUN to everyone who reaches a portal, without proof: for tests, or a network that only trusted machines are on.
Initiators that belong to a host with credentials must still prove them.`,
		Example: `  sanctuary lun allow vm1 --host esx1 --host esx2
  sanctuary lun allow vm1 --host esx1 --number 7
  sanctuary lun allow scratch --any
  sanctuary lun allow scratch --any --single-path`,
		ValidArgsFunction: c.completeLUN,
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := allowed(cmd, hosts, number, anyone, singlePath)
			if err != nil {
				return &usageError{cmd.CommandPath(), err}
			}
			return c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) (err error) {
				var l api.LUN
				if anyone {
					l, err = cl.OpenLUN(cmd.Context(), args[0], api.LUNOpen{Open: true, SinglePath: singlePath})
				}
				for _, h := range hosts {
					if err == nil {
						l, err = cl.GrantLUN(cmd.Context(), args[0], h, n)
					}
				}
				if err != nil {
					return err
				}
				return c.print(l, func(w io.Writer) {
					line(w, "LUN %s: %s.", l.Name, accessText(l.Access))
					if l.Access.Open && len(hosts) > 0 {
						line(w, "Anyone else may use it as well; to end that: sanctuary lun deny %s --any", l.Name)
					}
					for _, h := range hosts {
						line(w, "How to set up host %s: sanctuary target client-config --host %s --for %s", h, h, strings.Join(clientNames(), "|"))
					}
				})
			})(cmd, args)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&hosts, "host", nil, "host that may use it; repeat for each")
	f.IntVar(&number, "number", 0, "its number in the host's own target, 0 to 254 (default: one the host has not used)")
	f.BoolVar(&anyone, "any", false, "anyone who reaches a portal may use it")
	f.BoolVar(&singlePath, "single-path", false, "with --any: send initiators that belong to no host to the owner")
	return cmd
}

// allowed checks the flags of allow and returns the number asked for.
func allowed(cmd *cobra.Command, hosts []string, number int, anyone, singlePath bool) (*uint16, error) {
	switch {
	case anyone == (len(hosts) > 0):
		return nil, errors.New("give either --host HOST or --any")
	case singlePath && !anyone:
		return nil, errors.New("--single-path goes with --any; for a host it is an attribute of the host: sanctuary host set HOST --single-path")
	case !cmd.Flags().Changed("number"):
		return nil, nil
	case number < 0 || number > 254:
		return nil, fmt.Errorf("--number %d: use 0 to 254", number)
	case len(hosts) != 1:
		return nil, errors.New("--number is for one --host")
	}
	n := uint16(number)
	return &n, nil
}

func (c *cli) lunDeny() *cobra.Command {
	var (
		hosts  []string
		anyone bool
	)
	cmd := &cobra.Command{
		Use: "deny NAME --host HOST", Short: "Take a LUN from a host, or from everyone without a grant", Args: oneName("the name or ID of the LUN"),
		Long: `Take a LUN from a host, or with --any from everyone it has not been allowed to by name. Sessions that are no longer allowed
end at once, so stop what uses the LUN there first. Its data is not touched. Persistent reservations of the host stay until they
are removed: sanctuary reservation list NAME.`,
		Example:           "  sanctuary lun deny vm1 --host esx1\n  sanctuary lun deny scratch --any",
		ValidArgsFunction: c.completeLUN,
		RunE: func(cmd *cobra.Command, args []string) error {
			if anyone == (len(hosts) > 0) {
				return &usageError{cmd.CommandPath(), errors.New("give either --host HOST or --any")}
			}
			return c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) (err error) {
				var l api.LUN
				if anyone {
					l, err = cl.OpenLUN(cmd.Context(), args[0], api.LUNOpen{})
				}
				for _, h := range hosts {
					if err == nil {
						l, err = cl.RevokeLUN(cmd.Context(), args[0], h)
					}
				}
				if err != nil {
					return err
				}
				return c.print(l, func(w io.Writer) { line(w, "LUN %s: %s.", l.Name, accessText(l.Access)) })
			})(cmd, args)
		},
	}
	cmd.Flags().StringSliceVar(&hosts, "host", nil, "host that may not use it any more; repeat for each")
	cmd.Flags().BoolVar(&anyone, "any", false, "only hosts it has been allowed to may use it")
	return cmd
}

func (c *cli) lunSet() *cobra.Command {
	paths, zeros := "", ""
	cmd := &cobra.Command{
		Use: "set NAME [--non-optimized-paths on|off] [--zero-detect on|off]", Short: "Change attributes of a LUN", Args: oneName("the name or ID of the LUN"),
		Long: `Change attributes of a LUN; those that are not given stay.

--non-optimized-paths on makes nodes that do not own the LUN serve data too, by passing commands on to the owner (ALUA
Active/Non-optimized): initiators that lose their paths to the owner go on over these, slower. off, the default: they
stand by, and take no data.

--zero-detect on stores blocks of 4 KiB that initiators write as zeros as unmapped ones: they take no space, and give back
what they had, as UNMAP and WRITE SAME of zeros do. Reads return zeros as before. It holds for what is written from then on;
off, the default, leaves what is unmapped so. A disk that a host zeroes in order to reserve its space (eager-zeroed thick) has
none reserved then. Every node must run a program that knows it: an older one stops when it learns of it.`,
		Example:           "  sanctuary lun set vm1 --non-optimized-paths on\n  sanctuary lun set vm1 --zero-detect on",
		ValidArgsFunction: c.completeLUN,
		RunE: func(cmd *cobra.Command, args []string) error {
			var change api.LUNChange
			for _, f := range []struct {
				name, value string
				to          **bool
			}{{"non-optimized-paths", paths, &change.NonOptimizedPaths}, {"zero-detect", zeros, &change.ZeroDetection}} {
				if !cmd.Flags().Changed(f.name) {
					continue
				}
				if f.value != "on" && f.value != "off" {
					return &usageError{cmd.CommandPath(), fmt.Errorf("--%s %q: use on or off", f.name, f.value)}
				}
				on := f.value == "on"
				*f.to = &on
			}
			if change == (api.LUNChange{}) {
				return &usageError{cmd.CommandPath(), errors.New("give what to change: --non-optimized-paths or --zero-detect, on or off")}
			}
			return c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) error {
				l, err := cl.ChangeLUN(cmd.Context(), args[0], change)
				if err != nil {
					return err
				}
				return c.print(l, func(w io.Writer) { printLUN(w, l) })
			})(cmd, args)
		},
	}
	cmd.Flags().StringVar(&paths, "non-optimized-paths", "", "whether nodes that do not own it serve data by forwarding: on or off")
	cmd.Flags().StringVar(&zeros, "zero-detect", "", "whether blocks of 4 KiB that are written as zeros take no space: on or off")
	for _, f := range []string{"non-optimized-paths", "zero-detect"} {
		must(cmd.RegisterFlagCompletionFunc(f, cobra.FixedCompletions([]string{"on", "off"}, cobra.ShellCompDirectiveNoFileComp)))
	}
	return cmd
}

func (c *cli) settingCommand() *cobra.Command {
	group := &cobra.Command{
		Use: "setting", Short: "Settings of the whole cluster", Args: noSuchCommand, RunE: help,
		Long: `Settings that hold for the whole cluster, unlike those in a node's configuration file:

  portal_groups    subnets of the storage networks, for example 10.0.1.0/24,10.0.2.0/24,fd00:1::/64. Discovery through a portal in one
                   of them lists only portals in the same one. A node takes it over when it is restarted: one node at a time
  chap.algorithms  CHAP algorithms initiators may use, of sha3-256,sha-256,sha-1,md5 (default: all). Not
                   every initiator knows more than md5`,
	}
	group.AddCommand(&cobra.Command{
		Use: "list", Short: "List the settings that are not at their default", Args: cobra.NoArgs,
		Long: "List the settings of the cluster that are not at their default.", Example: "  sanctuary setting list",
		RunE: c.asking(func(cmd *cobra.Command, cl *client.Client, _ []string) error {
			s, err := cl.Settings(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(s, func(w io.Writer) { printSettings(w, s) })
		}),
	}, &cobra.Command{
		Use: "set NAME VALUE", Short: `Change a setting; "" is back to the default`,
		Long:    `Change a setting of the cluster. An empty value ("") means back to the default.`,
		Example: "  sanctuary setting set portal_groups 10.0.1.0/24,10.0.2.0/24\n  sanctuary setting set chap.algorithms sha3-256,sha-256\n  sanctuary setting set portal_groups \"\"",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 || args[0] == "" {
				return errors.New(`give the name of the setting and its value ("" for the default)`)
			}
			return nil
		},
		RunE: c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) error {
			s, err := cl.SetSettings(cmd.Context(), map[string]string{args[0]: args[1]})
			if err != nil {
				return err
			}
			return c.print(s, func(w io.Writer) {
				printSettings(w, s)
				if args[0] == "portal_groups" {
					line(w, "\nRestart the data nodes, one at a time, so that their portals are divided as set.")
				}
			})
		}),
	})
	return group
}
