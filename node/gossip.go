package node

import (
	"context"
	"fmt"

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
	if p := n.pools[catalog.MediaFile]; p != nil {
		m.FreeFileBytes = uint64(max(0, p.Usage().FreeBytes()))
	}
	if p := n.pools[catalog.MediaRAM]; p != nil {
		m.FreeRAMBytes = uint64(max(0, p.Usage().FreeBytes()))
	}
	return m
}

func (n *Node) openGossip(ctx context.Context) (err error) {
	var join []string
	for _, m := range n.cfg.Members {
		if m.Name != n.cfg.Node {
			join = append(join, m.Gossip)
		}
	}
	if len(n.cfg.Join.API) > 0 {
		if join, err = n.findGossip(ctx); err != nil {
			return err
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
}

// tellPeers announces this node's port group, once it has one, and how much room is left.
func (n *Node) tellPeers(self catalog.Node) {
	if err := n.members().Update(n.meta(self.PortGroup)); err != nil {
		n.log.Warn("gossip does not carry this node's state", "error", err)
	}
}

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
