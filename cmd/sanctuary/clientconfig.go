package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sanctuary/cmd/sanctuary/hostsetup"
	"sanctuary/node/api"
	"sanctuary/node/client"
)

func clientNames() []string {
	var names []string
	for _, c := range hostsetup.Clients() {
		names = append(names, string(c))
	}
	return names
}

// clientText is what client-config prints with -o json.
type clientText struct {
	For  string `json:"for"`
	Text string `json:"text"`
}

func (c *cli) clientConfig() *cobra.Command {
	var what, host, lun string
	cmd := &cobra.Command{
		Use: "client-config --for " + strings.Join(clientNames(), "|"), Short: "Print how to set up an initiator, with this cluster's values", Args: cobra.NoArgs,
		Long: `Print the commands and files that connect an initiator to this cluster: its portals, names of targets and disks, timeouts and
multipath, with comments that say what each line is for. It can be pasted as it is, except for CHAP secrets, which nobody but
you has: they stand in angle brackets.

With --host it is for that host and all LUNs allowed to it; with --lun for one LUN; without either for the LUNs that are open to
anyone. Hosts with a single path, QEMU and open-iscsi alone log in to each LUN's own target, which sends them to its owner;
all others to the host's own target, once for each portal.`,
		Example: `  sanctuary target client-config --for esxi --host esx1
  sanctuary target client-config --for linux-multipath --host db1 > setup.sh
  sanctuary target client-config --for qemu --host qemu7 --lun vm7`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client := hostsetup.Client(what)
			if !slices.Contains(hostsetup.Clients(), client) {
				return &usageError{cmd.CommandPath(), fmt.Errorf("--for %q: use %s", what, strings.Join(clientNames(), ", "))}
			}
			return c.printClientConfig(cmd, client, host, lun)
		},
	}
	f := cmd.Flags()
	f.StringVar(&what, "for", "", strings.Join(clientNames(), ", "))
	f.StringVar(&host, "host", "", "host to set up")
	f.StringVar(&lun, "lun", "", "only this LUN")
	must(cmd.RegisterFlagCompletionFunc("for", cobra.FixedCompletions(clientNames(), cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("host", c.completeHost))
	must(cmd.RegisterFlagCompletionFunc("lun", c.completeLUN))
	return cmd
}

func (c *cli) printClientConfig(cmd *cobra.Command, what hostsetup.Client, host, lun string) error {
	return c.asking(func(cmd *cobra.Command, cl *client.Client, _ []string) error {
		status, err := cl.Status(cmd.Context())
		if err != nil {
			return err
		}
		all, err := cl.Targets(cmd.Context())
		if err != nil {
			return err
		}
		setup := hostsetup.Setup{Cluster: status.Cluster, Host: host}
		if host != "" {
			h, err := cl.Host(cmd.Context(), host)
			if err != nil {
				return err
			}
			setup.Initiators, setup.SinglePath = h.Initiators, h.SinglePath
			if h.CHAP != nil {
				setup.CHAPUser, setup.MutualUser = h.CHAP.User, h.CHAP.MutualUser
				set, err := cl.Settings(cmd.Context())
				if err != nil {
					return err
				}
				if chosen := set.Settings["chap.algorithms"]; strings.TrimSpace(chosen) != "" {
					setup.NoMD5 = !strings.Contains(chosen, "md5")
				}
			}
		}
		chosen, err := chooseTargets(all.Targets, host, lun, setup.SinglePath || what == hostsetup.QEMU || what == hostsetup.OpenISCSI)
		if err != nil {
			return err
		}
		for _, t := range chosen {
			setup.Targets = append(setup.Targets, targetSetup(t, status.LUNs))
		}
		text, err := hostsetup.Text(what, setup)
		if err != nil {
			return &failure{what: err, next: "See what is missing: sanctuary status."}
		}
		return c.print(clientText{string(what), text}, func(w io.Writer) { _, _ = io.WriteString(w, text) })
	})(cmd, nil)
}

// chooseTargets returns the targets to log in to; each means that LUNs are reached through their own.
func chooseTargets(all []api.Target, host, lun string, each bool) ([]api.Target, error) {
	mayUse := func(t api.Target) bool { return t.Open && host == "" || slices.Contains(t.Hosts, host) }
	if lun != "" {
		i := slices.IndexFunc(all, func(t api.Target) bool {
			return t.Kind == api.TargetOfLUN && len(t.LUNs) == 1 && (t.LUNs[0].Name == lun || t.LUNs[0].ID == lun)
		})
		switch {
		case i < 0:
			return nil, &failure{what: fmt.Errorf("there is no LUN %q", lun), next: "List what there is: sanctuary lun list."}
		case host == "" && !all[i].Open:
			return nil, &failure{
				what: fmt.Errorf("LUN %s is not open to anyone", lun), next: "Say for which host: --host HOST (sanctuary host list).",
			}
		case !mayUse(all[i]) && !all[i].Open:
			return nil, &failure{
				what: fmt.Errorf("LUN %s is not allowed to host %s", lun, host), next: fmt.Sprintf("Allow it: sanctuary lun allow %s --host %s", lun, host),
			}
		}
		return all[i : i+1], nil
	}
	var out []api.Target
	for _, t := range all {
		own := t.Kind == api.TargetOfHost
		if len(t.LUNs) > 0 && mayUse(t) && own == (host != "" && !each) {
			out = append(out, t)
		}
	}
	switch {
	case len(out) == 0 && host == "":
		return nil, &failure{what: errors.New("no LUN is open to anyone"), next: "Say for which host: --host HOST (sanctuary host list)."}
	case len(out) == 0:
		return nil, &failure{
			what: fmt.Errorf("host %s may use no LUN yet", host), next: fmt.Sprintf("Allow it one: sanctuary lun allow LUN --host %s", host),
		}
	}
	return out, nil
}

func targetSetup(t api.Target, luns []api.LUN) hostsetup.Target {
	out := hostsetup.Target{IQN: t.Name}
	for _, p := range t.Portals {
		out.Portals = append(out.Portals, hostsetup.Portal{Node: p.Node, Address: p.Address, Tag: p.Tag})
	}
	for _, l := range t.LUNs {
		size := "size not known"
		for _, known := range luns {
			if known.ID == l.ID {
				size = formatSize(known.SizeBytes)
			}
		}
		out.LUNs = append(out.LUNs, hostsetup.LUN{Number: l.Number, Name: l.Name, NAA: l.NAA, Size: size})
	}
	return out
}
