package main

import (
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"sanctuary/node/config"
)

const configHelp = `
The configuration is the defaults, then the TOML file given with --config (or SANCTUARY_CONFIG), then the flags. A setting the
file gets wrong, or one that does not exist, is an error that names it.

--members is the same on every node, in the same order, and matters at the first start only. One member, or three and more: a
cluster of two stops when either is lost, and a witness is enough for the third.

The node writes its log to standard error and stops in order on SIGINT or SIGTERM. Being killed instead loses nothing that was
acknowledged. There is no authentication yet: keep its addresses on networks that only nodes and initiators are on.`

// nodeFlags are what run and witness take besides the file.
type nodeFlags struct {
	file    string
	members []string
	check   bool
	config.Config
}

func (c *cli) runCommand() *cobra.Command {
	cmd := c.nodeProcess(config.Default(), &cobra.Command{
		Use:   "run [--config FILE]",
		Short: "Run a node that holds data and serves initiators",
		Long:  "Run a data node: it holds copies of LUNs, serves initiators over iSCSI and answers the management API.\n" + configHelp,
		Example: `  sanctuary run --config /etc/sanctuary/node.toml
  sanctuary run --node alpha --data-dir /srv/alpha --listen-peer 127.0.0.1:7440 --listen-gossip 127.0.0.1:7441 \
      --listen-iscsi 127.0.0.1:3260 --members alpha,data,127.0.0.1:7440,127.0.0.1:7441
  sanctuary run --config node.toml --check -o json`,
	})
	return cmd
}

func (c *cli) witnessCommand() *cobra.Command {
	return c.nodeProcess(config.DefaultWitness(), &cobra.Command{
		Use:   "witness [--config FILE]",
		Short: "Run a witness: a vote without data",
		Long: `Run a witness: it votes on who owns a LUN and holds no data, so that two data nodes can lose either one and go on. It needs
little memory and disk, and should stand where it does not fail together with a data node.
` + configHelp,
		Example: `  sanctuary witness --config /etc/sanctuary/witness.toml
  sanctuary witness --node tiny --data-dir /srv/tiny --listen-peer 10.0.0.3:7440 --listen-gossip 10.0.0.3:7441 \
      --listen-api 10.0.0.3:7442 --members alpha,data,10.0.0.1:7440,10.0.0.1:7441 \
      --members beta,data,10.0.0.2:7440,10.0.0.2:7441 --members tiny,witness,10.0.0.3:7440,10.0.0.3:7441`,
	})
}

// nodeProcess completes the command of either kind of node.
func (c *cli) nodeProcess(base config.Config, cmd *cobra.Command) *cobra.Command {
	in := nodeFlags{Config: base}
	cmd.Args = cobra.NoArgs
	f := cmd.Flags()
	f.StringVar(&in.file, "config", "", "TOML file with the configuration (default $SANCTUARY_CONFIG)")
	f.BoolVar(&in.check, "check", false, "only check the configuration and print it, complete")
	f.StringVar(&in.Cluster, "cluster", base.Cluster, "name of the cluster, the same on every node")
	f.StringVar(&in.Node, "node", "", "name of this node, unique in the cluster and never changed")
	f.StringVar(&in.DataDir, "data-dir", base.DataDir, "directory of this node's identity, catalog and journals")
	f.StringVar(&in.Listen.Peer, "listen-peer", base.Listen.Peer, "host:port for replication")
	f.StringVar(&in.Listen.Gossip, "listen-gossip", base.Listen.Gossip, "host:port for gossip, TCP and UDP")
	f.StringVar(&in.Listen.API, "listen-api", base.Listen.API, "host:port for the management API")
	f.StringArrayVar(&in.members, "members", nil, "NAME,data|witness,PEER host:port,GOSSIP host:port of one first member; repeat for each")
	f.StringSliceVar(&in.Join.API, "join", nil, "instead of --members, for a node added later: API addresses of the cluster")
	f.StringVar(&in.Log.Level, "log-level", base.Log.Level, "debug, info, warn or error")
	f.StringVar(&in.Log.Format, "log-format", base.Log.Format, "text or json")
	if base.Kind == config.KindData {
		f.StringSliceVar(&in.Listen.ISCSI, "listen-iscsi", base.Listen.ISCSI, "host:port for initiators; repeat for several")
		f.Var(&in.Pools.File.Capacity, "file-capacity", "what LUNs may allocate in files; 0B is none")
		f.Var(&in.Pools.RAM.Capacity, "ram-capacity", "what LUNs may allocate in memory; 0B is none")
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := in.merge(cmd, c.env.getenv, base.Kind)
		if err != nil {
			return &usageError{cmd.CommandPath(), err}
		}
		if in.check {
			return c.printConfig(cfg)
		}
		log := newLogger(c.env.err, cfg.Log).With("node", cfg.Node)
		if err := runNode(cmd.Context(), cfg, log); err != nil {
			return &failure{
				what: fmt.Errorf("node %s stopped: %w", cfg.Node, err),
				data: "What this node has acknowledged is on its disk and its peers; they go on as long as more than half are left.",
				next: "Remove the cause and start it again: it catches up by itself.",
			}
		}
		return nil
	}
	return cmd
}

// merge returns the configuration from file and flags, complete and valid.
func (in *nodeFlags) merge(cmd *cobra.Command, getenv func(string) string, kind string) (config.Config, error) {
	cfg := in.Config
	file := in.file
	if file == "" {
		file = getenv("SANCTUARY_CONFIG")
	}
	if file != "" {
		loaded, err := config.Load(file)
		if err != nil {
			return config.Config{}, err
		}
		if loaded.Kind != kind {
			return config.Config{}, fmt.Errorf("%s describes a %s node: start it with %q", file, loaded.Kind, commandOf(loaded.Kind))
		}
		in.over(cmd, &loaded)
		cfg = loaded
	}
	if len(in.members) > 0 {
		cfg.Members = nil
		for _, text := range in.members {
			m, err := parseMember(text)
			if err != nil {
				return config.Config{}, err
			}
			cfg.Members = append(cfg.Members, m)
		}
	}
	cfg = cfg.Complete()
	if err := cfg.Validate(); err != nil {
		return config.Config{}, fmt.Errorf("the configuration is not usable; nothing was started:\n%s", indent(err.Error()))
	}
	return cfg, nil
}

// over puts the flags that were given over what the file says.
func (in *nodeFlags) over(cmd *cobra.Command, cfg *config.Config) {
	for name, put := range map[string]func(){
		"cluster":       func() { cfg.Cluster = in.Cluster },
		"node":          func() { cfg.Node = in.Node },
		"data-dir":      func() { cfg.DataDir = in.DataDir },
		"listen-peer":   func() { cfg.Listen.Peer = in.Listen.Peer },
		"listen-gossip": func() { cfg.Listen.Gossip = in.Listen.Gossip },
		"listen-api":    func() { cfg.Listen.API = in.Listen.API },
		"listen-iscsi":  func() { cfg.Listen.ISCSI = in.Listen.ISCSI },
		"join":          func() { cfg.Join = in.Join },
		"log-level":     func() { cfg.Log.Level = in.Log.Level },
		"log-format":    func() { cfg.Log.Format = in.Log.Format },
		"file-capacity": func() { cfg.Pools.File.Capacity = in.Pools.File.Capacity },
		"ram-capacity":  func() { cfg.Pools.RAM.Capacity = in.Pools.RAM.Capacity },
	} {
		if cmd.Flags().Changed(name) {
			put()
		}
	}
}

func commandOf(kind string) string {
	if kind == config.KindWitness {
		return "sanctuary witness"
	}
	return "sanctuary run"
}

func parseMember(text string) (config.Member, error) {
	parts := strings.Split(text, ",")
	if len(parts) != 4 {
		return config.Member{}, fmt.Errorf("--members %q: write NAME,data|witness,PEER,GOSSIP, for example alpha,data,10.0.0.1:7440,10.0.0.1:7441", text)
	}
	return config.Member{Name: parts[0], Kind: parts[1], Peer: parts[2], Gossip: parts[3]}, nil
}

func indent(s string) string { return "    " + strings.ReplaceAll(s, "\n", "\n    ") }

func (c *cli) printConfig(cfg config.Config) error {
	text, err := cfg.Marshal()
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return c.print(cfg, func(w io.Writer) { _, _ = w.Write(text) })
}

func newLogger(w io.Writer, l config.Log) *slog.Logger {
	opts := &slog.HandlerOptions{Level: l.Slog()}
	if l.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}
