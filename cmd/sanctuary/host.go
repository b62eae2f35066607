package main

import (
	"bufio"
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sanctuary/node/api"
	"sanctuary/node/client"
)

func (c *cli) hostCommand() *cobra.Command {
	group := &cobra.Command{
		Use: "host", Short: "Hosts: initiators that may use LUNs", Args: noSuchCommand, RunE: help,
		Long: `A host is an initiator, or several that share what they may use: a hypervisor with its adapters, or all hypervisors of a
cluster. It is known by its iSCSI names (iqn., eui. or naa.), and if it has CHAP credentials its initiators must prove them. A
name alone proves nothing: whoever reaches the storage network can claim any.

Each host has a target of its own that presents every LUN allowed to it, so that one login per portal is enough.`,
		Example: `  sanctuary host create esx1 --initiator iqn.1998-01.com.vmware:esx1-4a5b6c7d --chap-user esx1 --chap-generate
  sanctuary lun allow vm1 --host esx1
  sanctuary target client-config --for esxi --host esx1`,
	}
	group.AddCommand(c.hostCreate(), c.hostSet(), c.hostList(), c.hostShow(), c.hostDelete())
	return group
}

// hostFlags are the flags of create and set.
type hostFlags struct {
	initiators           []string
	add, remove          []string // set only
	chap                 chapFlags
	singlePath, multiple bool
}

// chapFlags say where secrets come from; never from the command line itself, which other users of the machine can read.
type chapFlags struct {
	off                             bool
	user, secretFile                string
	generate                        bool
	mutualUser, mutualSecretFile    string
	mutualGenerate                  bool
	generatedSecret, generatedOther string // what --chap-generate and --chap-mutual-generate made
}

const chapHelp = `

CHAP secrets are never given on the command line, where other users of the machine could see them. --chap-generate makes one of 16
characters, which every initiator takes, and prints it once; --chap-secret-file reads one from a file, "-" from standard input;
with --chap-user alone it is asked for. With --chap-mutual-user the target proves itself to the initiator too, with a second
secret that must differ.`

func (c *cli) hostCreate() *cobra.Command {
	var h hostFlags
	cmd := &cobra.Command{
		Use: "create NAME --initiator IQN…", Short: "Create a host", Args: oneName("the name of the host"),
		Long: `Create a host. It may use nothing yet: allow it LUNs with "sanctuary lun allow".

--single-path is for initiators that use one path and know nothing of multipath, like QEMU's own driver: they are sent to the node
that owns a LUN, and follow it when it moves.` + chapHelp,
		Example: `  sanctuary host create esx1 --initiator iqn.1998-01.com.vmware:esx1-4a5b6c7d
  sanctuary host create pve --initiator iqn.1993-08.org.debian:01:a1b2c3 --initiator iqn.1993-08.org.debian:01:d4e5f6
  sanctuary host create win1 --initiator iqn.1991-05.com.microsoft:win1 --chap-user win1 --chap-generate
  sanctuary host create qemu7 --initiator iqn.2008-11.org.linux-kvm:vm7 --single-path`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(h.initiators) == 0 {
				return &usageError{cmd.CommandPath(), errors.New("give the initiator's iSCSI name with --initiator; the initiator shows it (on Linux: /etc/iscsi/initiatorname.iscsi)")}
			}
			spec := api.HostSpec{Initiators: h.initiators, SinglePath: h.singlePath}
			if err := c.applyCHAP(cmd, &h.chap, &spec, nil); err != nil {
				return err
			}
			return c.putHost(cmd, args[0], spec, true, h.chap, "It may use nothing yet. Next: sanctuary lun allow LUN --host "+args[0])
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&h.initiators, "initiator", nil, "iSCSI name of an initiator; repeat for each")
	f.BoolVar(&h.singlePath, "single-path", false, "its initiators use one path: send them to a LUN's owner")
	h.chap.flags(cmd)
	return cmd
}

func (f *chapFlags) flags(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.user, "chap-user", "", "name the initiators prove with CHAP")
	fs.StringVar(&f.secretFile, "chap-secret-file", "", `file with the secret, 12 to 255 characters (Windows: 12 to 16); "-" is standard input`)
	fs.BoolVar(&f.generate, "chap-generate", false, "make a secret and print it once")
	fs.StringVar(&f.mutualUser, "chap-mutual-user", "", "name the target proves to the initiators (mutual CHAP)")
	fs.StringVar(&f.mutualSecretFile, "chap-mutual-secret-file", "", `file with the target's secret; "-" is standard input`)
	fs.BoolVar(&f.mutualGenerate, "chap-mutual-generate", false, "make the target's secret and print it once")
}

func (c *cli) hostSet() *cobra.Command {
	var h hostFlags
	cmd := &cobra.Command{
		Use: "set NAME", Short: "Change a host: initiators, credentials, paths", Args: oneName("the name of the host"),
		Long: `Change a host; what is not given stays. Sessions of initiators that no longer belong to it end. New credentials are asked for
at the next login; sessions that are logged in go on.` + chapHelp,
		Example: `  sanctuary host set pve --add-initiator iqn.1993-08.org.debian:01:777777
  sanctuary host set win1 --chap-user win1 --chap-generate
  sanctuary host set win1 --no-chap
  sanctuary host set qemu7 --multipath`,
		ValidArgsFunction: c.completeHost,
		RunE: func(cmd *cobra.Command, args []string) error {
			if h.singlePath && h.multiple {
				return &usageError{cmd.CommandPath(), errors.New("--single-path and --multipath: give one")}
			}
			cl, err := c.client(cmd)
			if err != nil {
				return err
			}
			defer cl.Close()
			old, err := cl.Host(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			spec := api.HostSpec{Initiators: old.Initiators, SinglePath: old.SinglePath && !h.multiple || h.singlePath}
			if cmd.Flags().Changed("initiator") {
				spec.Initiators = h.initiators
			}
			spec.Initiators = append(slices.Clone(spec.Initiators), h.add...)
			for _, gone := range h.remove {
				n := len(spec.Initiators)
				spec.Initiators = slices.DeleteFunc(spec.Initiators, func(i string) bool { return strings.EqualFold(i, gone) })
				if len(spec.Initiators) == n {
					return &usageError{cmd.CommandPath(), fmt.Errorf("--remove-initiator %s: host %s has no such initiator", gone, old.Name)}
				}
			}
			if err := c.applyCHAP(cmd, &h.chap, &spec, old.CHAP); err != nil {
				return err
			}
			return c.putHost(cmd, old.Name, spec, false, h.chap, "")
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&h.initiators, "initiator", nil, "iSCSI name of an initiator, instead of all it has; repeat for each")
	f.StringArrayVar(&h.add, "add-initiator", nil, "one more")
	f.StringArrayVar(&h.remove, "remove-initiator", nil, "one less")
	f.BoolVar(&h.singlePath, "single-path", false, "its initiators use one path: send them to a LUN's owner")
	f.BoolVar(&h.multiple, "multipath", false, "its initiators use all paths (ALUA)")
	f.BoolVar(&h.chap.off, "no-chap", false, "believe its initiators without proof")
	h.chap.flags(cmd)
	return cmd
}

// applyCHAP puts credentials into spec: old ones as they are, and what the flags change. It reads secrets where they say.
func (c *cli) applyCHAP(cmd *cobra.Command, f *chapFlags, spec *api.HostSpec, old *api.HostCHAP) error {
	usage := func(format string, args ...any) error {
		return &usageError{cmd.CommandPath(), fmt.Errorf(format, args...)}
	}
	given := f.user != "" || f.secretFile != "" || f.generate || f.mutualUser != "" || f.mutualSecretFile != "" || f.mutualGenerate
	switch {
	case f.off && given:
		return usage("--no-chap together with credentials: give one")
	case f.off || old == nil && !given:
		return nil
	}
	chap := api.CHAPSpec{User: f.user, MutualUser: f.mutualUser}
	if old != nil {
		chap.User, chap.MutualUser = cmp.Or(f.user, old.User), cmp.Or(f.mutualUser, old.MutualUser)
	}
	switch {
	case chap.User == "":
		return usage("give the name the initiators prove, with --chap-user")
	case f.secretFile != "" && f.generate || f.mutualSecretFile != "" && f.mutualGenerate:
		return usage("a secret from a file and a generated one: give one")
	case f.secretFile == "-" && f.mutualSecretFile == "-":
		return usage("only one secret can come from standard input")
	case chap.MutualUser == "" && (f.mutualGenerate || f.mutualSecretFile != ""):
		return usage("give the name the target proves, with --chap-mutual-user")
	}
	var err error
	newUser := f.user != "" && (old == nil || f.user != old.User)
	if chap.Secret, err = c.secret(cmd, f.secretFile, f.generate, old == nil || newUser, "CHAP secret of "+chap.User); err != nil {
		return err
	}
	newMutual := f.mutualUser != "" && (old == nil || f.mutualUser != old.MutualUser)
	if chap.MutualSecret, err = c.secret(cmd, f.mutualSecretFile, f.mutualGenerate, newMutual, "CHAP secret of the target, "+chap.MutualUser); err != nil {
		return err
	}
	if f.generate {
		f.generatedSecret = chap.Secret
	}
	if f.mutualGenerate {
		f.generatedOther = chap.MutualSecret
	}
	spec.CHAP = &chap
	return nil
}

// secret returns a secret from a file, standard input, the generator or, if it is needed, the person in front; "" if none.
func (c *cli) secret(cmd *cobra.Command, file string, generate, needed bool, what string) (string, error) {
	switch {
	case generate:
		return newSecret(), nil
	case file == "-":
		return readSecret(c.env.in, cmd, what)
	case file != "":
		f, err := os.Open(file)
		if err != nil {
			return "", &usageError{cmd.CommandPath(), fmt.Errorf("%s: %w", what, err)}
		}
		defer func() { _ = f.Close() }() // read-only: nothing to lose
		return readSecret(f, cmd, what)
	case !needed:
		return "", nil
	}
	_, _ = fmt.Fprintf(c.env.err, "%s (12 to 255 characters): ", what)
	restore := hideTyping(c.env.in)
	s, err := readSecret(c.env.in, cmd, what)
	restore()
	line(c.env.err, "")
	return s, err
}

// readSecret reads one line.
func readSecret(r io.Reader, cmd *cobra.Command, what string) (string, error) {
	text, err := bufio.NewReader(io.LimitReader(r, 4096)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	text = strings.TrimRight(text, "\r\n")
	if text == "" {
		return "", &usageError{cmd.CommandPath(), fmt.Errorf("there is no %s to read; give --chap-secret-file FILE, or --chap-generate", what)}
	}
	return text, nil
}

// newSecret returns 16 random characters of 64: 96 bits, what RFC 7143 §9.2.1 asks for at least, and no longer than Windows takes.
func newSecret() string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	for i := range b {
		b[i] = alphabet[b[i]%64]
	}
	return string(b[:])
}

// madeHost is what create and set print with -o json: the secrets made are shown this once.
type madeHost struct {
	api.Host
	Secret       string `json:"generated_secret,omitempty"`
	MutualSecret string `json:"generated_mutual_secret,omitempty"`
}

func (c *cli) putHost(cmd *cobra.Command, name string, spec api.HostSpec, create bool, f chapFlags, next string) error {
	cl, err := c.client(cmd)
	if err != nil {
		return err
	}
	defer cl.Close()
	h, err := cl.SetHost(cmd.Context(), name, spec, create)
	if err != nil {
		return err
	}
	return c.print(madeHost{h, f.generatedSecret, f.generatedOther}, func(w io.Writer) {
		printHost(w, h)
		if f.generatedSecret != "" {
			line(w, "\nCHAP secret of %s, shown only now: %s", spec.CHAP.User, f.generatedSecret)
		}
		if f.generatedOther != "" {
			line(w, "\nCHAP secret of the target, %s, shown only now: %s", spec.CHAP.MutualUser, f.generatedOther)
		}
		if next != "" {
			line(w, "\n%s", next)
		}
	})
}

func (c *cli) hostList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List all hosts", Args: cobra.NoArgs,
		Long:    "List all hosts with their initiators and what they may use by grant. LUNs that are open to anyone are not counted.",
		Example: "  sanctuary host list\n  sanctuary host list -o json | jq -r '.hosts[].initiators[]'",
		RunE: c.asking(func(cmd *cobra.Command, cl *client.Client, _ []string) error {
			l, err := cl.Hosts(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(l, func(w io.Writer) { printHosts(w, l.Hosts) })
		}),
	}
}

func (c *cli) hostShow() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show a host and its LUNs", Args: oneName("the name of the host"),
		Long:              "Show a host: its initiators, its own target, and its LUNs with their numbers. Secrets are never shown.",
		Example:           "  sanctuary host show esx1",
		ValidArgsFunction: c.completeHost,
		RunE: c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) error {
			h, err := cl.Host(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.print(h, func(w io.Writer) { printHost(w, h) })
		}),
	}
}

func (c *cli) hostDelete() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Delete a host", Args: oneName("the name of the host"),
		Long: `Delete a host. The data of LUNs is not touched. It is refused while LUNs are allowed to it, unless --force is given: then they
are taken away, and its sessions end.`,
		Example:           "  sanctuary host delete esx1\n  sanctuary host delete esx1 --force",
		ValidArgsFunction: c.completeHost,
		RunE: c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) error {
			if err := cl.DeleteHost(cmd.Context(), args[0], force); err != nil {
				return err
			}
			return c.print(map[string]string{"deleted": args[0]}, func(w io.Writer) { line(w, "Host %s deleted.", args[0]) })
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "although LUNs are allowed to it: its initiators are cut off from them")
	return cmd
}

// asking makes a command of what only needs a client and the arguments.
func (c *cli) asking(f func(cmd *cobra.Command, cl *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		cl, err := c.client(cmd)
		if err != nil {
			return err
		}
		defer cl.Close()
		return f(cmd, cl, args)
	}
}

// completeHost completes the names of hosts for the shell.
func (c *cli) completeHost(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.completeNames(cmd, func(cl *client.Client) (names []string, err error) {
		l, err := cl.Hosts(cmd.Context())
		for _, h := range l.Hosts {
			names = append(names, h.Name)
		}
		return names, err
	})
}
