package node

import (
	"slices"

	"sanctuary/node/catalog"
	"sanctuary/target"
	"sanctuary/target/login"
	"sanctuary/target/scsi"
)

// directory tells the portal which targets exist: one for each LUN with a replica on this node. Who may use which is a
// later matter; until then, everybody.
type directory struct{ n *Node }

// Credentials implements target.Directory.
func (directory) Credentials(string) (login.Credentials, bool) { return login.Credentials{}, false }

// List implements target.Directory.
func (d directory) List(string, uint16) []target.Listing {
	m := d.n.catalog.Model()
	var out []target.Listing
	for _, l := range m.LUNs {
		listing := target.Listing{Name: l.IQN}
		owner := ""
		if run := d.n.replicas.get(l.ID); run != nil {
			owner = run.group.Status().Owner.Node
		}
		// The owner's portals last: the order means nothing (RFC 7143), but libiscsi's tools begin at the end of the list.
		replicas := slices.SortedStableFunc(slices.Values(l.Replicas), func(a, b catalog.Replica) int {
			switch {
			case a.Node == owner && b.Node != owner:
				return 1
			case b.Node == owner && a.Node != owner:
				return -1
			}
			return 0
		})
		for _, r := range replicas {
			if r.Witness {
				continue
			}
			for _, a := range d.n.iscsiAddresses(r.Node) {
				listing.Portals = append(listing.Portals, target.PortalAddress{Address: a, GroupTag: m.Nodes[r.Node].PortGroup})
			}
		}
		out = append(out, listing)
	}
	slices.SortFunc(out, func(a, b target.Listing) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return out
}

// Open implements target.Directory.
func (d directory) Open(o target.Opening) (scsi.Executor, error) {
	if t := d.n.replicas.target(o.Target); t != nil {
		return t, nil
	}
	return nil, target.ErrNoTarget
}

// iscsiAddresses returns a node's portals, as far as gossip knows them now.
func (n *Node) iscsiAddresses(name string) []string {
	if name == n.cfg.Node {
		return n.cfg.Advertise.ISCSI
	}
	if m, ok := n.members().Lookup(name); ok {
		return m.Meta.ISCSI
	}
	return nil
}

// access computes a LUN's port groups: the owner's is active, the others stand by; while nobody owns it, all are in
// transition and commands wait a moment.
func (r *running) computeAccess(m *catalog.Model, self string) scsi.Access {
	s := r.group.Status()
	a := scsi.Access{Local: m.Nodes[self].PortGroup, LocalPort: m.Nodes[self].PortGroup}
	for _, rep := range r.lun.Replicas {
		node := m.Nodes[rep.Node]
		if rep.Witness || node.PortGroup == 0 {
			continue
		}
		g := scsi.PortGroup{ID: node.PortGroup, State: scsi.Standby, Ports: []uint16{node.PortGroup}}
		switch {
		case s.Failed != nil && rep.Node == self:
			g.State = scsi.Unavailable
		case s.Owner.Node == "" || s.Owner.Node == self && !s.Serving:
			g.State = scsi.Transitioning
		case s.Owner.Node == rep.Node:
			g.State = scsi.ActiveOptimized
		}
		a.Groups = append(a.Groups, g)
	}
	return a
}
