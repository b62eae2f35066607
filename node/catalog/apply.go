package catalog

import (
	"maps"
	"slices"
)

// Versions of Model's format. A model has the lowest one that can express it, so that going back to an older program is
// possible until something is used that it does not know.
const (
	modelVersion     = 1
	versionAccess    = 2            // hosts, access, portals, NonOptimized
	versionClass     = 3            // the class of a LUN
	versionSnapshots = 4            // Origin, ReadOnly, Schedules, Dropped
	versionMembers   = 5            // Leaving, Pool, Left, Recoveries, four and five copies
	versionZeros     = 6            // ZeroDetection
	newestVersion    = versionZeros // the newest this program can read
)

// needs raises the model's version to at least v.
func (m *Model) needs(v uint64) { m.Version = max(m.Version, v) }

// NewModel returns the model before the first change.
func NewModel(cluster string) *Model {
	return &Model{
		Version: modelVersion, Cluster: cluster, NextPort: 1, NextInc: 1,
		Nodes: map[string]Node{}, LUNs: map[string]LUN{}, Settings: map[string]string{}, Deleted: map[string]Tombstone{},
		Hosts: map[string]Host{},
	}
}

// Result is what a change did.
type Result struct {
	Index   uint64   `json:"index"`             // a model with at least this Index shows the change
	Changed bool     `json:"changed"`           // false: it had been made before
	Node    *Node    `json:"node,omitempty"`    // RegisterNode
	LUN     *LUN     `json:"lun,omitempty"`     // every change of a LUN, as it is now; absent when deleted
	Replica *Replica `json:"replica,omitempty"` // ReplicaStarted, ReplaceReplica, ReplicaPromoted: as it is now
	Host    *Host    `json:"host,omitempty"`    // SetHost: as it is now, without its secrets
}

// Apply returns the model after the change at the given Raft index, without touching m, which may be read meanwhile.
// The error is a *Refusal; then the model returned is m itself. It depends on its arguments alone.
func Apply(m *Model, index uint64, c Change) (*Model, Result, error) {
	next := *m
	next.Nodes, next.LUNs = maps.Clone(m.Nodes), maps.Clone(m.LUNs)
	next.Settings, next.Deleted, next.Hosts = maps.Clone(m.Settings), maps.Clone(m.Deleted), maps.Clone(m.Hosts)
	r := Result{Changed: true}
	if err := c.apply(&next, &r); err != nil {
		return m, Result{Index: m.Index}, err
	}
	if !r.Changed {
		r.Index = m.Index
		return m, r, nil
	}
	next.Index = index
	r.Index = index
	return &next, r, nil
}

func (c *RegisterNode) apply(m *Model, r *Result) error {
	if err := checkName("node", c.Name); err != nil {
		return err
	}
	if err := checkUUID("node", c.ID); err != nil {
		return err
	}
	if c.Kind != KindData && c.Kind != KindWitness {
		return refuse(CodeInvalid, "kind %q of node %q: use %q or %q", c.Kind, c.Name, KindData, KindWitness)
	}
	portals, err := m.portals(c)
	if err != nil {
		return err
	}
	if n, ok := m.Nodes[c.Name]; ok {
		if n.ID != c.ID {
			return refuse(CodeIdentity, "node name %q belongs to the disk with ID %s, not to %s: this node's data directory is blank, or is "+
				"another node's. Nothing was changed. Mount the right disk; if it is lost for good, start the new one under another name, "+
				"or remove the node from the cluster first", c.Name, n.ID, c.ID)
		}
		if n.Kind != c.Kind {
			return refuse(CodeIdentity, "node %q is registered as %q and was started as %q: set the kind back, or remove the node first", c.Name, n.Kind, c.Kind)
		}
		r.Changed = len(portals) > 0 && !slices.Equal(portals, n.Portals)
		if r.Changed {
			n.Portals = portals
			m.Nodes[n.Name] = n
			m.needs(versionAccess)
		}
		r.Node = &n
		return nil
	}
	for _, n := range m.Nodes {
		if n.ID == c.ID {
			return refuse(CodeIdentity, "the disk with ID %s belongs to node %q: a node keeps its name. Start it as %q", c.ID, n.Name, n.Name)
		}
	}
	if len(m.Nodes) >= MaxNodes {
		return refuse(CodeFull, "the cluster has %d nodes, the largest number supported: remove one first", MaxNodes)
	}
	if m.NextPort > MaxPortGroup {
		return refuse(CodeFull, "all %d target port groups have been given out and are never used again", MaxPortGroup)
	}
	n := Node{Name: c.Name, ID: c.ID, Kind: c.Kind, PortGroup: m.NextPort, Portals: portals}
	m.NextPort++
	m.Nodes[n.Name] = n
	if len(portals) > 0 {
		m.needs(versionAccess)
	}
	r.Node = &n
	return nil
}

func (c *RemoveNode) apply(m *Model, r *Result) error {
	if _, ok := m.Nodes[c.Name]; !ok {
		r.Changed = false
		return nil
	}
	for _, l := range sortedLUNs(m) {
		if _, ok := l.ReplicaOn(c.Name); ok {
			return refuse(CodeInUse, "node %q holds a replica of LUN %q: removing it would cost redundancy. Move or delete the LUN first", c.Name, l.Name)
		}
	}
	delete(m.Nodes, c.Name)
	m.forgetNode(c.Name)
	for id := range m.Deleted {
		bury(m, id, c.Name)
	}
	return nil
}

func (c *CreateLUN) apply(m *Model, r *Result) error {
	if err := checkUUID("LUN", c.ID); err != nil {
		return err
	}
	if l, ok := m.LUNs[c.ID]; ok {
		if l.Name != c.Name || l.Geometry != c.Geometry || l.Media != c.Media || l.Class != c.Class {
			return refuse(CodeIdentity, "ID %s belongs to LUN %q, which is another one: use a new ID", c.ID, l.Name)
		}
		r.Changed, r.LUN = false, &l
		return nil
	}
	if _, ok := m.Deleted[c.ID]; ok {
		return refuse(CodeExists, "ID %s belonged to a LUN that has been deleted: an ID is never used again", c.ID)
	}
	if err := checkName("LUN", c.Name); err != nil {
		return err
	}
	for _, l := range m.LUNs {
		if l.Name == c.Name {
			return refuse(CodeExists, "there is a LUN %q already: choose another name", c.Name)
		}
		if l.NAA == NAA(c.ID) {
			return refuse(CodeExists, "ID %s gives the same identity as LUN %q: use a new ID", c.ID, l.Name)
		}
	}
	if len(m.LUNs) >= MaxLUNs {
		return refuse(CodeFull, "the cluster has %d LUNs, the largest number supported: delete one first", MaxLUNs)
	}
	if err := c.Geometry.Validate(); err != nil {
		return refuse(CodeInvalid, "LUN %q: %v", c.Name, err)
	}
	if c.Media != MediaFile && c.Media != MediaRAM {
		return refuse(CodeInvalid, "media %q of LUN %q: use %q or %q", c.Media, c.Name, MediaFile, MediaRAM)
	}
	if c.Class != ClassAny && (c.Media != MediaFile || c.Class != ClassSSD && c.Class != ClassHDD) {
		return refuse(CodeInvalid, "class %q of LUN %q on media %q: use %q or %q with media %q, or no class", c.Class, c.Name, c.Media, ClassSSD, ClassHDD, MediaFile)
	}
	preferred, err := c.checkPlacement(m)
	if err != nil {
		return err
	}
	if err := c.checkOrigin(m); err != nil {
		return err
	}
	l := LUN{
		ID: c.ID, Name: c.Name, Geometry: c.Geometry, Media: c.Media, Class: c.Class, Epoch: 1,
		IQN: IQN(c.Name), NAA: NAA(c.ID), Serial: Serial(c.ID), Preferred: preferred, ZeroDetection: c.ZeroDetection,
	}
	for _, p := range c.Replicas {
		l.Replicas = append(l.Replicas, Replica{ID: m.nextReplicaID(p.Node), Node: p.Node, Witness: p.Witness, State: ReplicaPending})
	}
	c.derive(m, &l)
	m.LUNs[l.ID] = l
	if c.Class != ClassAny {
		m.needs(versionClass)
	}
	if c.ZeroDetection {
		m.needs(versionZeros)
	}
	if err := c.grant(m); err != nil {
		return err
	}
	l = m.LUNs[l.ID]
	r.LUN = &l
	return nil
}

// checkPlacement returns the node to own the LUN.
func (c *CreateLUN) checkPlacement(m *Model) (string, error) {
	data, witnesses, err := m.checkPlaces(c.Name, c.Replicas)
	if err != nil {
		return "", err
	}
	if err := CheckShape(data, witnesses); err != nil {
		return "", err
	}
	if data > 3 {
		m.needs(versionMembers)
	}
	first := ""
	for _, p := range c.Replicas {
		if p.Pool != "" {
			return "", refuse(CodeInvalid, "LUN %q: the pools of a new LUN are chosen by its class", c.Name)
		}
		if !p.Witness && (first == "" || p.Node == c.Preferred) {
			first = p.Node
		}
	}
	if c.Preferred != "" && first != c.Preferred {
		return "", refuse(CodeInvalid, "LUN %q: the preferred owner %q holds none of its data replicas", c.Name, c.Preferred)
	}
	return first, nil
}

func (c *DeleteLUN) apply(m *Model, r *Result) error {
	l, ok := m.LUNs[c.ID]
	if !ok {
		r.Changed = false
		return nil
	}
	if clone, waits := m.waitingFor(l.ID, ""); waits {
		return refuse(CodeInUse, "LUN %q, a clone of LUN %q, has yet to be made from it on %d of its nodes: wait until they are up, or delete the clone",
			clone.Name, l.Name, len(clone.Origin.Waiting))
	}
	t := Tombstone{Name: l.Name}
	for _, rep := range l.Replicas {
		t.Nodes = append(t.Nodes, rep.Node)
	}
	for _, id := range l.Left {
		node, _, _ := SplitReplicaID(id)
		t.Nodes = append(t.Nodes, node)
	}
	slices.Sort(t.Nodes)
	t.Nodes = slices.Compact(t.Nodes)
	if l.Access != nil {
		for _, g := range l.Access.Grants {
			m.free(l.ID, g)
		}
	}
	delete(m.LUNs, c.ID)
	m.Deleted[c.ID] = t
	return nil
}

func (c *ReplicaStarted) apply(m *Model, r *Result) error {
	if c.Claim == "" {
		return refuse(CodeInvalid, "replica %s: the proposal carries no claim", c.Replica)
	}
	l, i, err := m.replica(c.LUN, c.Replica)
	if err != nil {
		return err
	}
	rep := &l.Replicas[i]
	switch {
	case rep.State == ReplicaPending:
		rep.State, rep.Claim = ReplicaActive, c.Claim
	case rep.State == ReplicaJoining && rep.Claim == "":
		rep.Claim = c.Claim // it stays joining until it holds the data
	case rep.State == ReplicaJoining && rep.Claim == c.Claim:
		r.Changed = false
	case rep.State == ReplicaActive && rep.Claim == c.Claim:
		r.Changed = false
	default:
		return refuse(CodeStale, "replica %s of LUN %q has been started before: this node's catalog is behind", c.Replica, l.Name)
	}
	m.put(l, i, r)
	return nil
}

func (c *ReplaceReplica) apply(m *Model, r *Result) error {
	if c.Claim == "" {
		return refuse(CodeInvalid, "replica %s: the proposal carries no claim", c.Old)
	}
	l, err := m.lun(c.LUN)
	if err != nil {
		return err
	}
	l.Replicas = slices.Clone(l.Replicas)
	for i := range l.Replicas {
		rep := &l.Replicas[i]
		ids := rep.ReplacedIDs()
		if rep.ID != c.Old {
			// The same process asking again: its first proposal was made, but it did not hear of it.
			if rep.Claim == c.Claim && len(ids) > 0 && ids[len(ids)-1] == c.Old {
				r.Changed = false
				m.put(l, i, r)
				return nil
			}
			continue
		}
		if rep.State == ReplicaPending {
			return refuse(CodeStale, "replica %s of LUN %q has never been started: there is nothing to replace", c.Old, l.Name)
		}
		l.copied(rep.ID) // never now: its successor is rebuilt from the others
		rep.replaceBy(m.nextReplicaID(rep.Node), c.Claim)
		if !l.hasData() {
			l.Lost = true
		}
		m.put(l, i, r)
		return nil
	}
	return refuse(CodeStale, "replica %s is not a replica of LUN %q any more: this node's catalog is behind", c.Old, l.Name)
}

func (c *ReplicaPromoted) apply(m *Model, r *Result) error {
	l, i, err := m.replica(c.LUN, c.Replica)
	if err != nil {
		return err
	}
	rep := &l.Replicas[i]
	switch {
	case rep.State == ReplicaActive:
		r.Changed = false
	case rep.State == ReplicaPending:
		return refuse(CodeStale, "replica %s of LUN %q has never been started", c.Replica, l.Name)
	case l.Lost:
		return refuse(CodeStale, "LUN %q is lost: there is no data replica %s could have been rebuilt from", l.Name, c.Replica)
	case slices.ContainsFunc(l.Replicas, func(o Replica) bool { return o.State == ReplicaPending }):
		// A pending replica still has to bootstrap with the IDs of the LUN's creation, and Replaces is where they are kept.
		// With at most three voters a replacement cannot be promoted without every other replica's vote anyway.
		return refuse(CodeStale, "LUN %q: a replica has yet to start for the first time", l.Name)
	case rep.Claim == "":
		return refuse(CodeStale, "replica %s of LUN %q has no storage yet", c.Replica, l.Name)
	default:
		rep.State, rep.Replaces = ReplicaActive, ""
	}
	m.put(l, i, r)
	return nil
}

func (c *StorageDeleted) apply(m *Model, r *Result) error {
	if l, ok := m.LUNs[c.LUN]; ok {
		return refuse(CodeInUse, "LUN %q exists: its storage on node %q must not be deleted", l.Name, c.Node)
	}
	r.Changed = bury(m, c.LUN, c.Node)
	return nil
}

// bury takes a node off a tombstone, and the tombstone away with the last one. It says whether that changed anything.
func bury(m *Model, id, node string) bool {
	t, ok := m.Deleted[id]
	if !ok || !slices.Contains(t.Nodes, node) {
		return false
	}
	t.Nodes = slices.DeleteFunc(slices.Clone(t.Nodes), func(n string) bool { return n == node })
	if len(t.Nodes) == 0 {
		delete(m.Deleted, id)
	} else {
		m.Deleted[id] = t
	}
	return true
}

func (c *SetPreferred) apply(m *Model, r *Result) error {
	l, err := m.lun(c.LUN)
	if err != nil {
		return err
	}
	if !l.HasCopyOn(c.Node) {
		return refuse(CodeInvalid, "node %q holds no data replica of LUN %q: choose one that does", c.Node, l.Name)
	}
	r.Changed = l.Preferred != c.Node
	l.Preferred = c.Node
	m.LUNs[l.ID] = l
	r.LUN = &l
	return nil
}
