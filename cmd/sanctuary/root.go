package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sanctuary/node/api"
	"sanctuary/node/client"
)

// cli is what all commands share.
type cli struct {
	env    environment
	apis   []string
	output outputFlag
}

const rootLong = `Sanctuary turns ordinary machines into shared storage: every node serves the same iSCSI LUNs, replicates every
write to its peers, and takes over when another node dies. An acknowledged write survives any of them.

  node      a process started with "sanctuary run"; holds copies of LUNs and serves initiators
  witness   a process started with "sanctuary witness"; only votes, and fits on the smallest board
  LUN       a disk for initiators; one node owns it at a time and serves it, the others stand by
  pool      a disk, files or memory that a node keeps copies of LUNs on
  host      an initiator, or several that share LUNs; a LUN is used by the hosts it is allowed to
  portal    host:port where initiators find LUNs; give them all portals (multipath)

Start with "sanctuary demo": it runs a whole cluster on this machine in one terminal.

"sanctuary inspect" reads this machine's disks. All other commands ask a node's management API; any node will do, it forwards to
the one that decides.

Exit status: 0 done; 1 failed, and the message says what it means for the data; 2 the command line makes no sense, or what is to be
inspected cannot be read; 3 a drill found a promise broken.`

func newRoot(env environment) *cobra.Command {
	c := &cli{env: env, output: outputTable}
	root := &cobra.Command{
		Use:           "sanctuary",
		Short:         "A peer-to-peer replicated virtual SAN",
		Long:          rootLong,
		Example:       "  sanctuary demo\n  sanctuary status\n  sanctuary lun create vm1 --size 10GiB --open",
		SilenceErrors: true, // execute explains them
		SilenceUsage:  true,
		RunE:          help,
		Args:          noSuchCommand,
	}
	root.SetOut(env.out)
	root.SetErr(env.err)
	root.SetIn(env.in)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return &usageError{cmd.CommandPath(), err} })
	root.CompletionOptions.HiddenDefaultCmd = false

	f := root.PersistentFlags()
	f.StringSliceVar(&c.apis, "api", nil, fmt.Sprintf(
		"host:port of one or more nodes' API, separated by commas; tried in order (default $SANCTUARY_API, or 127.0.0.1:%d)", api.DefaultPort))
	f.VarP(&c.output, "output", "o", "table for people, wide with more columns where there are some, json for programs: the API's own objects")
	must(root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "wide", "json"}, cobra.ShellCompDirectiveNoFileComp)))

	root.AddCommand(c.runCommand(), c.witnessCommand(), c.demoCommand(), c.statusCommand(), c.rescueCommand(), c.lunCommand(), c.hostCommand(), c.nodeCommand(), c.poolCommand(),
		c.targetCommand(), c.sessionCommand(), c.reservationCommand(), c.settingCommand(), c.inspectCommand(), c.versionCommand())
	root.InitDefaultCompletionCmd("completion")
	wrapArgs(root)
	return root
}

// must is for what can only fail by a mistake in this program's own command definitions.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// wrapArgs makes every complaint about arguments a usage error.
func wrapArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return &usageError{cmd.CommandPath(), err}
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		wrapArgs(sub)
	}
}

// help is what a command that only groups others does.
func help(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// noSuchCommand refuses arguments of a command that only groups others.
func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	msg := fmt.Sprintf("%s has no command %q", cmd.CommandPath(), args[0])
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		msg += "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return errors.New(msg)
}

// addresses returns where the API is: flag, environment, default.
func (c *cli) addresses() []string {
	if len(c.apis) > 0 {
		return c.apis
	}
	if env := c.env.getenv("SANCTUARY_API"); env != "" {
		list := strings.Split(env, ",")
		for i := range list {
			list[i] = strings.TrimSpace(list[i])
		}
		return slices.DeleteFunc(list, func(s string) bool { return s == "" })
	}
	return []string{fmt.Sprintf("127.0.0.1:%d", api.DefaultPort)}
}

// client returns a client of the API.
func (c *cli) client(cmd *cobra.Command) (*client.Client, error) {
	cl, err := client.New(client.Config{Addresses: c.addresses()})
	if err != nil {
		return nil, &usageError{cmd.CommandPath(), err}
	}
	return cl, nil
}

// outputFlag is the format of answers (pflag.Value).
type outputFlag string

// Formats.
const (
	outputTable outputFlag = "table"
	outputJSON  outputFlag = "json"
	outputWide  outputFlag = "wide"
)

var _ pflag.Value = (*outputFlag)(nil)

func (o *outputFlag) String() string { return string(*o) }
func (o *outputFlag) Type() string   { return "table|wide|json" }

func (o *outputFlag) Set(text string) error {
	switch v := outputFlag(text); v {
	case outputTable, outputJSON, outputWide:
		*o = v
		return nil
	}
	return errors.New("use table, wide or json")
}
