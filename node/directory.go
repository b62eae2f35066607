package node

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"sanctuary/node/catalog"
	"sanctuary/target"
	"sanctuary/target/login"
	"sanctuary/target/scsi"
)

// directory tells the portal what the catalog says: which targets exist, who may use them, and what must be proved first.
//
// There are two kinds of targets. Each LUN has one, which this node offers if it holds a replica. Each host has one, with
// every LUN granted to it that has a replica here, under the numbers of its grants; see hostTargets.
type directory struct{ n *Node }

// Credentials implements target.Directory.
func (d directory) Credentials(initiator string) (login.Credentials, bool) {
	m := d.n.catalog.Model()
	h, known := m.HostOf(initiator)
	if !known || h.CHAP == nil {
		return login.Credentials{}, known
	}
	return login.Credentials{
		User: h.CHAP.User, Secret: h.CHAP.Secret.Reveal(),
		MutualUser: h.CHAP.MutualUser, MutualSecret: h.CHAP.MutualSecret.Reveal(),
		Algorithms: chapAlgorithms(m),
	}, true
}

// chapAlgorithms returns the algorithms the cluster's setting allows, nil for all. A setting that this program cannot read,
// of a newer one perhaps, allows only the strongest it knows.
func chapAlgorithms(m *catalog.Model) []login.Algorithm {
	text := m.Settings[catalog.SettingCHAPAlgorithms]
	if text == "" {
		return nil
	}
	var out []login.Algorithm
	for name := range strings.SplitSeq(text, ",") {
		if a, err := login.ParseAlgorithm(strings.TrimSpace(name)); err == nil {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		return login.Strongest()[:1]
	}
	return out
}

// List implements target.Directory.
func (d directory) List(initiator string, group uint16) []target.Listing {
	m := d.n.catalog.Model()
	var out []target.Listing
	add := func(name string, nodes []string) {
		l := target.Listing{Name: name}
		for _, node := range nodes {
			for _, p := range d.n.portals(m, node) {
				if uint16(p.Group) == group {
					l.Portals = append(l.Portals, target.PortalAddress{Address: p.Address, GroupTag: m.Nodes[node].PortID(p.Group)})
				}
			}
		}
		if len(l.Portals) > 0 {
			out = append(out, l)
		}
	}
	host, luns := m.Discovery(initiator)
	for _, l := range luns {
		add(l.IQN, d.n.dataNodes(l))
	}
	if host != "" {
		var nodes []string
		for _, mapped := range m.LUNMap(host) {
			nodes = append(nodes, d.n.dataNodes(mapped.LUN)...)
		}
		slices.Sort(nodes)
		add(m.TargetOf(host), slices.Compact(nodes))
	}
	slices.SortFunc(out, func(a, b target.Listing) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Open implements target.Directory.
func (d directory) Open(o target.Opening) (scsi.Executor, error) {
	m := d.n.catalog.Model()
	if h, ok := m.HostByTarget(o.Target); ok {
		if own, known := m.HostOf(o.Initiator); !known || own.Name != h.Name {
			return nil, target.ErrNotAllowed
		}
		t := d.n.hostTargets.get(h.Name)
		if t == nil {
			return nil, absent(slices.ContainsFunc(m.LUNMap(h.Name), func(x catalog.MappedLUN) bool { return x.LUN.HasCopyOn(d.n.cfg.Node) }))
		}
		if h.SinglePath { // nobody there could be sent on to an owner, and a LUN that moves would be an I/O error
			return nil, &login.Refusal{Status: login.TargetNotFound, Reason: fmt.Sprintf("host %s uses one path: its initiators log in to each LUN's own target, which discovery shows", h.Name)}
		}
		return t, nil
	}
	l, ok := m.LUNByIQN(o.Target)
	if !ok {
		return nil, target.ErrNoTarget
	}
	if _, ok := m.MayUse(o.Initiator, l.ID); !ok {
		return nil, target.ErrNotAllowed
	}
	run := d.n.replicas.get(l.ID)
	here := run != nil && run.target != nil && d.n.replicas.offered(l.IQN)
	if m.SinglePath(o.Initiator, l.ID) {
		if address := d.n.sentTo(m, l, run, here, uint8(o.Group.Index)); address != "" {
			return nil, &login.Refusal{
				Status: login.MovedTemporarily, Address: address,
				Reason: fmt.Sprintf("%s uses one path, and the LUN is served, or known, at %s", o.Initiator, address),
			}
		}
	}
	if !here {
		return nil, absent(l.HasCopyOn(d.n.cfg.Node))
	}
	return run.target, nil
}

// absent is why a target is not served here: this node holds a copy of it, or of a LUN in it, which is not running, and may be soon; or it
// holds none. An initiator tries the one again, and gives the other up.
func absent(held bool) error {
	if held {
		return target.ErrNotServed
	}
	return target.ErrNoTarget
}

// SinglePath implements target.Directory. A host's own target cannot be followed to an owner: its LUNs may have several.
func (d directory) SinglePath(o target.Opening) bool {
	m := d.n.catalog.Model()
	l, ok := m.LUNByIQN(o.Target)
	return ok && m.SinglePath(o.Initiator, l.ID)
}

// sentTo returns a portal, in the given portal group, of the node that owns the LUN if that is another one, as "host:port,tag"; empty if it
// is this node, or unknown: then commands are held here until there is an owner. A node whose copy has failed, or is not here although
// everything has been started that can be, does not hear who owns the LUN: it names the next one that has a copy, which does.
func (n *Node) sentTo(m *catalog.Model, l catalog.LUN, run *running, here bool, group uint8) string {
	owner := ""
	switch {
	case here:
		s := run.group.Status()
		if owner = s.Owner.Node; owner == "" && s.Failed != nil {
			owner = n.nextCopy(l, run.group.IsOut)
		}
	case run == nil && n.isReady():
		owner = n.nextCopy(l, func(string) bool { return false })
	}
	if owner == "" || owner == n.cfg.Node {
		return ""
	}
	for _, p := range n.portals(m, owner) {
		if p.Group == group {
			return fmt.Sprintf("%s,%d", p.Address, m.Nodes[owner].PortID(p.Group))
		}
	}
	return ""
}

// nextCopy returns the node, of those that are alive and have a copy of the LUN that is not out, whose name follows this one's; after the
// last comes the first. Empty if there is none.
func (n *Node) nextCopy(l catalog.LUN, out func(node string) bool) string {
	nodes := slices.DeleteFunc(n.dataNodes(l), func(node string) bool {
		_, alive := n.members().Lookup(node)
		return node == n.cfg.Node || !alive || out(node)
	})
	if len(nodes) == 0 {
		return ""
	}
	slices.Sort(nodes)
	at, _ := slices.BinarySearch(nodes, n.cfg.Node)
	return nodes[at%len(nodes)]
}

// dataNodes returns the nodes that hold a LUN's data, its owner last: the order means nothing (RFC 7143), but libiscsi's
// tools begin at the end of the list.
func (n *Node) dataNodes(l catalog.LUN) []string {
	owner := ""
	if run := n.replicas.get(l.ID); run != nil {
		owner = run.group.Status().Owner.Node
	}
	var nodes []string
	for _, r := range l.Replicas {
		if !r.Witness && r.Node != owner {
			nodes = append(nodes, r.Node)
		}
	}
	if l.HasCopyOn(owner) {
		nodes = append(nodes, owner)
	}
	return nodes
}

// portals returns a node's portals: those it registered, whether it is up or not, since initiators keep what they discover.
// For one that an older program registered, what gossip knows now.
func (n *Node) portals(m *catalog.Model, node string) []catalog.Portal {
	if p := m.Nodes[node].Portals; len(p) > 0 {
		return p
	}
	addresses := n.cfg.Advertise.ISCSI
	if node != n.cfg.Node {
		member, _ := n.members().Lookup(node)
		addresses = member.Meta.ISCSI
	}
	out := make([]catalog.Portal, 0, len(addresses))
	for _, a := range addresses {
		out = append(out, catalog.Portal{Address: a})
	}
	return out
}
