package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"sanctuary/node/config"
)

// plan is a demo cluster: what demo.json in its directory says. Whoever starts the demo there again gets the same one.
type plan struct {
	Format    int        `json:"format"` // of this file
	Cluster   string     `json:"cluster"`
	LUN       string     `json:"lun"`
	Media     string     `json:"media"`
	SizeBytes int64      `json:"size_bytes"`
	API       []string   `json:"api"` // of all nodes, for --api
	Nodes     []planNode `json:"nodes"`
}

// planNode is one process of it.
type planNode struct {
	Name   string `json:"name"`
	Kind   string `json:"kind"`
	Peer   string `json:"peer"`
	Gossip string `json:"gossip"`
	API    string `json:"api"`
	ISCSI  string `json:"iscsi,omitempty"`
	Config string `json:"config"` // TOML file
	Log    string `json:"log"`    // what the process writes
}

const (
	planFormat   = 1
	planFile     = "demo.json"
	demoMaxNodes = 7 // members of a cluster at its first start, see node/config
	portsPerNode = 4 // peer, gossip, API, iSCSI
)

var dataNames = []string{"alpha", "beta", "gamma", "delta", "epsilon", "zeta"}

// demoOptions are the flags that shape a plan.
type demoOptions struct {
	nodes     int
	media     string
	sizeBytes int64
	basePort  int // 0: any that are free
}

func (o demoOptions) validate() error {
	switch {
	case o.nodes == 2:
		return errors.New("--nodes 2: two nodes stop when either is lost, because neither can tell a dead peer from a cut cable; " +
			"use --nodes 3 (two data nodes and a witness) or --nodes 1 (one copy)")
	case o.nodes < 1 || o.nodes > demoMaxNodes:
		return fmt.Errorf("--nodes %d: use 1, or 3 to %d", o.nodes, demoMaxNodes)
	case o.media != "file" && o.media != "ram":
		return fmt.Errorf("--media %q: use file or ram", o.media)
	case o.basePort != 0 && (o.basePort < 1024 || o.basePort+o.nodes*portsPerNode > 65536):
		return fmt.Errorf("--base-port %d: use 1024 to %d; %d ports from there on are taken", o.basePort, 65536-o.nodes*portsPerNode, o.nodes*portsPerNode)
	}
	return nil
}

// newPlan lays out a cluster in dir, an absolute path: one data node, or data nodes and one witness.
func newPlan(dir string, o demoOptions) (plan, error) {
	if err := o.validate(); err != nil {
		return plan{}, err
	}
	ports, err := pickPorts(o.nodes*portsPerNode, o.basePort)
	if err != nil {
		return plan{}, err
	}
	p := plan{Format: planFormat, Cluster: "demo", LUN: "demo", Media: o.media, SizeBytes: o.sizeBytes}
	for i := range o.nodes {
		n := planNode{Kind: config.KindData}
		if o.nodes > 1 && i == o.nodes-1 {
			n.Kind, n.Name = config.KindWitness, "witness"
		} else {
			n.Name = dataNames[i]
		}
		at := ports[i*portsPerNode:]
		n.Peer, n.Gossip, n.API = loopback(at[0]), loopback(at[1]), loopback(at[2])
		if n.Kind == config.KindData {
			n.ISCSI = loopback(at[3])
		}
		n.Config, n.Log = filepath.Join(dir, n.Name+".toml"), filepath.Join(dir, n.Name+".log")
		p.Nodes = append(p.Nodes, n)
		p.API = append(p.API, n.API)
	}
	return p, nil
}

// dataNodes returns how many nodes hold data.
func (p plan) dataNodes() int { return max(1, len(p.Nodes)-1) }

// nodeConfig returns the configuration of one node.
func (p plan) nodeConfig(dir string, n planNode) config.Config {
	cfg := config.Default()
	if n.Kind == config.KindWitness {
		cfg = config.DefaultWitness()
	}
	cfg.Cluster, cfg.Node, cfg.DataDir = p.Cluster, n.Name, filepath.Join(dir, n.Name)
	cfg.Listen.Peer, cfg.Listen.Gossip, cfg.Listen.API = n.Peer, n.Gossip, n.API
	if n.Kind == config.KindData {
		cfg.Listen.ISCSI = []string{n.ISCSI}
		// Room for the demo's LUN and for what else somebody wants to try; space is taken when it is written.
		cfg.Pools.File.Capacity = max(cfg.Pools.File.Capacity, config.Size(2*p.SizeBytes))
		cfg.Pools.RAM.Capacity = 1 << 30
		if p.Media == "ram" {
			cfg.Pools.RAM.Capacity = config.Size(p.SizeBytes + 1<<30)
		}
	}
	for _, m := range p.Nodes {
		cfg.Members = append(cfg.Members, config.Member{Name: m.Name, Kind: m.Kind, Peer: m.Peer, Gossip: m.Gossip})
	}
	return cfg
}

// write puts the plan and the nodes' configuration into dir; demo.json last, so that it is only there with the rest.
func (p plan) write(dir string) error {
	for _, n := range p.Nodes {
		cfg := p.nodeConfig(dir, n)
		if err := cfg.Complete().Validate(); err != nil {
			return fmt.Errorf("configuration of demo node %s: %w", n.Name, err)
		}
		text, err := cfg.Marshal()
		if err != nil {
			return fmt.Errorf("configuration of demo node %s: %w", n.Name, err)
		}
		if err := os.WriteFile(n.Config, text, 0o600); err != nil {
			return fmt.Errorf("write demo configuration: %w", err)
		}
	}
	text, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return fmt.Errorf("write demo plan: %w", err)
	}
	tmp := filepath.Join(dir, planFile+".new")
	if err := os.WriteFile(tmp, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("write demo plan: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, planFile)); err != nil {
		return fmt.Errorf("write demo plan: %w", err)
	}
	return nil
}

// readPlan returns the plan in dir; found is false if there is none.
func readPlan(dir string) (p plan, found bool, err error) {
	text, err := os.ReadFile(filepath.Join(dir, planFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return plan{}, false, nil
	case err != nil:
		return plan{}, false, fmt.Errorf("read demo plan: %w", err)
	}
	if err := json.Unmarshal(text, &p); err != nil {
		return plan{}, false, fmt.Errorf("%s: %w", filepath.Join(dir, planFile), err)
	}
	if p.Format != planFormat || len(p.Nodes) == 0 {
		return plan{}, false, fmt.Errorf("%s is of format %d, this program writes %d: use another --dir", filepath.Join(dir, planFile), p.Format, planFormat)
	}
	return p, true, nil
}

// portsFree returns an error that names the first address of the plan that somebody else listens on.
func (p plan) portsFree() error {
	for _, n := range p.Nodes {
		for _, addr := range []string{n.Peer, n.Gossip, n.API, n.ISCSI} {
			if addr == "" {
				continue
			}
			release, err := occupy(addr)
			if err != nil {
				return fmt.Errorf("node %s needs %s: %w", n.Name, addr, err)
			}
			release()
		}
	}
	return nil
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// Ports are taken from below Linux's range for outgoing connections (32768 and up by default): one from there could be
// somebody's source port at the very moment a killed node comes back for it.
const lowestPort, highestPort = 20000, 32000

// pickPorts returns n ports free on loopback for TCP and UDP: from base on, or any if base is 0. All are held until the
// last is found, so that none is given twice.
func pickPorts(n, base int) ([]int, error) {
	ports := make([]int, 0, n)
	for port := base; base != 0 && len(ports) < n; port++ {
		release, err := occupy(loopback(port))
		if err != nil {
			return nil, fmt.Errorf("port %d is not free: %w; choose another --base-port, or leave it out", port, err)
		}
		defer release()
		ports = append(ports, port)
	}
	for try := 0; len(ports) < n; try++ {
		if try > 100*n {
			return nil, fmt.Errorf("no %d free ports between %d and %d on loopback", n, lowestPort, highestPort)
		}
		port := lowestPort + rand.IntN(highestPort-lowestPort)
		release, err := occupy(loopback(port))
		if err != nil {
			continue
		}
		defer release()
		ports = append(ports, port)
	}
	return ports, nil
}

// occupy takes an address for TCP and UDP until release is called.
func occupy(addr string) (release func(), err error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("take TCP port: %w", err)
	}
	u, err := net.ListenPacket("udp", addr)
	if err != nil {
		_ = l.Close() // nothing was sent over it
		return nil, fmt.Errorf("take UDP port: %w", err)
	}
	return func() {
		_ = l.Close() // nothing was sent over either
		_ = u.Close()
	}, nil
}
