package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"sanctuary/node/catalog"
	"sanctuary/node/client"
	"sanctuary/node/config"
	"sanctuary/node/membership"
)

// meta is what this node tells the others about itself.
func (n *Node) meta(portGroup uint16) membership.Meta {
	m := membership.Meta{
		ID: n.id.ID, Kind: membership.KindData, PortGroup: portGroup,
		Peer: n.cfg.Advertise.Peer, API: n.cfg.Advertise.API, ISCSI: n.cfg.Advertise.ISCSI,
	}
	if n.cfg.Kind == config.KindWitness {
		m.Kind = membership.KindWitness
	}
	free := n.pools.FreeBytes()
	m.FreeFileBytes, m.FreeRAMBytes = free[catalog.ClassAny], free[catalog.ClassRAM]
	m.FreeSSDBytes, m.FreeHDDBytes = free[catalog.ClassSSD], free[catalog.ClassHDD]
	return m
}

func (n *Node) openGossip(ctx context.Context) error {
	join, err := n.knownPeers()
	if err != nil {
		return err
	}
	for _, m := range n.cfg.Members {
		if m.Name != n.cfg.Node {
			join = append(join, m.Gossip)
		}
	}
	for wait := time.Second; len(join) == 0 && len(n.cfg.Join.API) > 0; wait = min(2*wait, 10*time.Second) {
		if join, err = n.findGossip(ctx); len(join) > 0 {
			break
		}
		n.log.Warn("no node of the cluster to join answers yet; trying again", "api", n.cfg.Join.API, "error", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	gossip, err := membership.Start(membership.Config{
		Cluster: n.cfg.Cluster, Node: n.cfg.Node, Listen: n.cfg.Listen.Gossip, Advertise: n.cfg.Advertise.Gossip, Join: join,
		Meta: n.meta(0), Probe: n.cfg.Timing.Probe.Std(), Logger: n.log.With("component", "gossip"),
		Known: func(node string) (string, bool) {
			m, ok := n.catalog.Model().Nodes[node]
			return m.ID, ok
		},
		OnEvent: n.onGossip,
	})
	if err != nil {
		return err
	}
	n.gossip.Store(gossip)
	return nil
}

// peersFile is where a node finds the others after a blackout, when nobody is up yet to be asked. It only suggests.
type peersFile struct {
	Version int               `json:"version"`
	Gossip  map[string]string `json:"gossip"` // node → host:port
}

const peersFileVersion = 1

func (n *Node) knownPeers() ([]string, error) {
	path := filepath.Join(n.cfg.DataDir, "peers.json")
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var f peersFile
	if err := json.Unmarshal(raw, &f); err != nil || f.Version != peersFileVersion {
		n.log.Warn("the addresses of other nodes remembered from last time cannot be read", "file", path, "version", f.Version, "error", err)
		return nil, nil
	}
	return slices.Sorted(maps.Values(f.Gossip)), nil
}

func (n *Node) rememberPeers() {
	f := peersFile{Version: peersFileVersion, Gossip: map[string]string{}}
	for _, m := range n.members().Members() {
		f.Gossip[m.Name] = m.Gossip
	}
	if len(f.Gossip) == 0 {
		return
	}
	if err := writeJSON(filepath.Join(n.cfg.DataDir, "peers.json"), f); err != nil {
		n.log.Warn("the addresses of other nodes are not remembered", "error", err)
	}
}

// members returns the gossip, nil before it has been started.
func (n *Node) members() *membership.Membership { return n.gossip.Load() }

// findGossip asks a node that is in the cluster where the others gossip.
func (n *Node) findGossip(ctx context.Context) ([]string, error) {
	cl, err := client.New(client.Config{Addresses: n.cfg.Join.API})
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	list, err := cl.Nodes(ctx)
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	var out []string
	for _, m := range list.Nodes {
		if m.GossipAddress != "" && m.Name != n.cfg.Node {
			out = append(out, m.GossipAddress)
		}
	}
	return out, nil
}

// onGossip acts on hints. A death is passed on to the replicas, whose rules say what may be done about it.
func (n *Node) onGossip(e membership.Event) {
	n.log.Info("gossip", "event", e.Kind.String(), "peer", e.Member.Name)
	switch e.Kind {
	case membership.Joined, membership.Updated:
		n.mux.Connect(e.Member.Name)
	case membership.Left, membership.Died:
		n.host.PeerDied(e.Member.Name)
	}
	n.replicas.changed("")
	if n.members() != nil && e.Kind == membership.Joined {
		n.rememberPeers()
	}
}

// tellPeers announces this node's port group, and from time to time how much room is left, until ctx ends.
func (n *Node) tellPeers(ctx context.Context, self catalog.Node) {
	ticker := time.NewTicker(tellEvery)
	defer ticker.Stop()
	for {
		if err := n.members().Update(n.meta(self.PortGroup)); err != nil {
			n.log.Warn("gossip does not carry this node's state", "error", err)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

const tellEvery = 5 * time.Second

// resolvePeer finds a node's peer address: from gossip, which follows changes, or from the configuration at the first start.
func (n *Node) resolvePeer(name string) (string, bool) {
	if g := n.members(); g != nil {
		if m, ok := g.Lookup(name); ok && m.Meta.Peer != "" {
			return m.Meta.Peer, true
		}
	}
	for _, m := range n.cfg.Members {
		if m.Name == name {
			return m.Peer, true
		}
	}
	return "", false
}
