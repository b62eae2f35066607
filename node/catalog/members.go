package catalog

import (
	"slices"
)

// How a LUN's replicas change while it is used. The catalog has the set that is wanted, and what is left of the one before: replicas that
// are joining hold nothing yet, those that are leaving hold everything until the joining ones do. The owner brings the group there, one step
// at a time, and reports each; whoever dies on the way, the next owner goes on from what is written here. Wanting the old set again
// undoes what has not been done yet.
//
// A node may have one that leaves and one that comes: its witness is to be a copy, or the other way round, or its copy is to be in another pool. Two
// members of a group cannot run on one node, so the one that comes is filled beside the other first, and takes its place in a moment.

// SetReplicas says where the replicas of a LUN shall be. What is there already stays, with its contents.
type SetReplicas struct {
	LUN      string      `json:"lun"` // ID
	Replicas []Placement `json:"replicas"`
	// Was are the IDs of the replicas the proposer looked at, in any order; if the LUN has others it is refused as stale.
	Was []string `json:"was"`
}

// ReplicaRemoved says that a leaving replica is not a member of its group any more: its storage may be deleted.
type ReplicaRemoved struct {
	LUN     string `json:"lun"`
	Replica string `json:"replica"`
}

// ReplicaDeleted says that nothing of a removed replica is left on its node.
type ReplicaDeleted struct {
	LUN     string `json:"lun"`
	Replica string `json:"replica"`
}

// ReplicaFilled says that a joining replica holds what the LUN held a moment ago, as a learner or beside another on its node that still runs. It is
// proposed BEFORE the replica gets a vote: from then on it may be the one that is left, and the LUN is not lost without the others.
type ReplicaFilled struct {
	LUN     string `json:"lun"`
	Replica string `json:"replica"`
}

func (*ReplicaFilled) kind() string  { return "replica_filled" }
func (*SetReplicas) kind() string    { return "set_replicas" }
func (*ReplicaRemoved) kind() string { return "replica_removed" }
func (*ReplicaDeleted) kind() string { return "replica_deleted" }

// MaxCopies is the largest number of data replicas of a LUN.
const MaxCopies = 5

// CheckShape says what is wrong with a number of data replicas and witnesses. A majority of an even number of voters survives no more losses
// than one of the odd number below it; so an even number of copies has a witness, and an odd one has none.
func CheckShape(data, witnesses int) error {
	if data < 1 || data > MaxCopies || witnesses != (data+1)%2 {
		return refuse(CodeInvalid, "%d data replicas and %d witnesses are not supported: use one replica, three or five, or two or four and a witness "+
			"(the number of votes has to be odd)", data, witnesses)
	}
	return nil
}

// checkPlaces returns the numbers of data replicas and witnesses after checking that every node can take what it is given.
func (m *Model) checkPlaces(lun string, places []Placement) (data, witnesses int, err error) {
	seen := map[string]bool{}
	for _, p := range places {
		n, ok := m.Nodes[p.Node]
		switch {
		case !ok:
			return 0, 0, refuse(CodeNotFound, "LUN %q: there is no node %q in the cluster", lun, p.Node)
		case seen[p.Node]:
			return 0, 0, refuse(CodeInvalid, "LUN %q: node %q is given two replicas; one failure would take both", lun, p.Node)
		case !p.Witness && n.Kind != KindData:
			return 0, 0, refuse(CodeInvalid, "LUN %q: node %q is a witness and holds no data", lun, p.Node)
		case p.Witness && p.Pool != "":
			return 0, 0, refuse(CodeInvalid, "LUN %q: the witness on node %q holds no data and needs no pool", lun, p.Node)
		}
		seen[p.Node] = true
		if p.Witness {
			witnesses++
		} else {
			data++
		}
	}
	return data, witnesses, nil
}

// Wanted returns the places of the replicas that are to stay or to come.
func (l LUN) Wanted() (out []Placement) {
	for _, r := range l.Replicas {
		if !r.Leaving {
			out = append(out, Placement{Node: r.Node, Witness: r.Witness, Pool: r.Pool})
		}
	}
	return out
}

// is says whether a replica is what is asked for.
func (p Placement) is(r Replica) bool {
	return p.Node == r.Node && p.Witness == r.Witness && (p.Pool == "" || p.Pool == r.Pool)
}

// ComingOn returns the replica that is to take the place of another on the same node.
func (l LUN) ComingOn(node string) (Replica, bool) {
	for _, r := range l.Replicas {
		if r.Node == node && r.State == ReplicaJoining && l.givesWay(r) {
			return r, true
		}
	}
	return Replica{}, false
}

// givesWay says whether a replica of the same node leaves for this one.
func (l LUN) givesWay(to Replica) bool {
	return !to.Leaving && slices.ContainsFunc(l.Replicas, func(r Replica) bool { return r.Leaving && r.Node == to.Node })
}

// Settled says whether the replicas are those that are wanted, and all of them hold what they should.
func (l LUN) Settled() bool {
	return !slices.ContainsFunc(l.Replicas, func(r Replica) bool { return r.Leaving || r.State == ReplicaJoining })
}

func (c *SetReplicas) apply(m *Model, r *Result) error {
	l, err := m.lun(c.LUN)
	if err != nil {
		return err
	}
	data, witnesses, err := m.checkPlaces(l.Name, c.Replicas)
	if err != nil {
		return err
	}
	if err := CheckShape(data, witnesses); err != nil {
		return err
	}
	if l.wants(c.Replicas) {
		r.Changed, r.LUN = false, &l
		return nil
	}
	var have []string
	for _, rep := range l.Replicas {
		have = append(have, rep.ID)
	}
	if !sameSet(have, c.Was) {
		return refuse(CodeStale, "LUN %q has other replicas now than when they were looked at: look again", l.Name)
	}
	if l.Lost {
		return refuse(CodeInUse, "LUN %q is lost: there is nothing its new replicas could be made from", l.Name)
	}
	if i := slices.IndexFunc(l.Replicas, func(x Replica) bool { return x.State == ReplicaPending }); i >= 0 {
		return refuse(CodeInUse, "LUN %q is still being made: replica %s has never been started. Wait until it is, or delete the LUN", l.Name, l.Replicas[i].ID)
	}
	if clone, waits := m.waitingFor(l.ID, ""); waits {
		return refuse(CodeInUse, "LUN %q, a clone of LUN %q, has yet to be made from it where its replicas are: wait until it is, or delete the clone", clone.Name, l.Name)
	}
	var next []Replica
	found := make([]bool, len(c.Replicas))
	for _, rep := range l.Replicas {
		i := slices.IndexFunc(c.Replicas, func(p Placement) bool { return p.is(rep) })
		switch {
		case i >= 0 && !found[i]:
			found[i], rep.Leaving = true, false
		case rep.State == ReplicaJoining && (!rep.Filled || l.givesWay(rep)):
			m.leave(&l, rep) // it holds nothing that anybody relies on
			continue
		default:
			rep.Leaving = true
		}
		next = append(next, rep)
	}
	for i, p := range c.Replicas {
		if !found[i] {
			next = append(next, Replica{ID: m.nextReplicaID(p.Node), Node: p.Node, Witness: p.Witness, Pool: p.Pool, State: ReplicaJoining})
		}
	}
	for _, rep := range next {
		swaps := rep.Leaving && slices.ContainsFunc(c.Replicas, func(p Placement) bool { return p.Node == rep.Node })
		if swaps && !slices.ContainsFunc(next, func(x Replica) bool { return !x.Witness && x.State == ReplicaActive && x.Node != rep.Node }) {
			return refuse(CodeInUse, "LUN %q: while the replica on node %q is changed no other copy would be there to go on from. Add one first", l.Name, rep.Node)
		}
	}
	if !slices.ContainsFunc(next, func(x Replica) bool { return !x.Witness && x.State == ReplicaActive }) {
		return refuse(CodeInUse, "LUN %q: no replica that holds the data would be left to make the new ones from", l.Name)
	}
	l.Replicas = next
	m.prefer(&l)
	m.LUNs[l.ID] = l
	m.needs(versionMembers)
	r.LUN = &l
	return nil
}

// wants says whether these are the places that are wanted already.
func (l LUN) wants(places []Placement) bool {
	n := 0
	for _, r := range l.Replicas {
		if r.Leaving {
			continue
		}
		n++
		if !slices.ContainsFunc(places, func(p Placement) bool { return p.is(r) }) {
			return false
		}
	}
	return n == len(places)
}

// leave notes that a replica's storage may be deleted. The caller takes it out of the replicas.
func (m *Model) leave(l *LUN, r Replica) {
	l.Left = append(slices.Clone(l.Left), r.ReplacedIDs()...)
	l.Left = append(l.Left, r.ID)
	l.copied(r.ID)
	m.needs(versionMembers)
}

// prefer chooses another owner if the preferred one is to hold no data any more.
func (m *Model) prefer(l *LUN) {
	if r, ok := l.ReplicaOn(l.Preferred); ok && !r.Witness && !r.Leaving {
		return
	}
	for _, r := range l.Replicas {
		if !r.Witness && !r.Leaving {
			l.Preferred = r.Node
			return
		}
	}
}

func (c *ReplicaRemoved) apply(m *Model, r *Result) error {
	l, err := m.lun(c.LUN)
	if err != nil {
		return err
	}
	if slices.Contains(l.Left, c.Replica) {
		r.Changed, r.LUN = false, &l
		return nil
	}
	i := slices.IndexFunc(l.Replicas, func(x Replica) bool { return x.ID == c.Replica })
	switch {
	case i < 0:
		return refuse(CodeStale, "replica %s is not a replica of LUN %q any more", c.Replica, l.Name)
	case !l.Replicas[i].Leaving:
		return refuse(CodeStale, "replica %s of LUN %q is to stay: this node's catalog is behind", c.Replica, l.Name)
	case !l.mayGo(l.Replicas[i]):
		return refuse(CodeStale, "LUN %q: a replica that is to take over does not hold the data yet", l.Name)
	}
	m.leave(&l, l.Replicas[i])
	l.Replicas = slices.Delete(slices.Clone(l.Replicas), i, i+1)
	m.prefer(&l)
	m.LUNs[l.ID] = l
	r.LUN = &l
	return nil
}

// mayGo says whether all that a leaving replica has is held by those that stay: no one is joining any more, or only replicas that take
// another's place on its node, and this one's place by one that has been filled.
func (l LUN) mayGo(leaving Replica) bool {
	replaced := false
	for _, r := range l.Replicas {
		switch {
		case r.Leaving || r.State == ReplicaActive:
		case !l.givesWay(r):
			return false
		case r.Node != leaving.Node:
		case !r.Filled:
			return false
		default:
			replaced = true
		}
	}
	return replaced || !slices.ContainsFunc(l.Replicas, func(r Replica) bool { return !r.Leaving && r.State != ReplicaActive })
}

func (c *ReplicaFilled) apply(m *Model, r *Result) error {
	l, i, err := m.replica(c.LUN, c.Replica)
	if err != nil {
		return err
	}
	rep := &l.Replicas[i]
	switch {
	case rep.State != ReplicaJoining || rep.Filled:
		r.Changed = false
	case rep.Claim == "":
		return refuse(CodeStale, "replica %s of LUN %q has no storage yet", c.Replica, l.Name)
	default:
		rep.Filled = true
		m.needs(versionMembers)
	}
	m.put(l, i, r)
	return nil
}

func (c *ReplicaDeleted) apply(m *Model, r *Result) error {
	l, ok := m.LUNs[c.LUN]
	if !ok || !slices.Contains(l.Left, c.Replica) {
		r.Changed = false
		return nil
	}
	l.Left = slices.DeleteFunc(slices.Clone(l.Left), func(id string) bool { return id == c.Replica })
	m.LUNs[l.ID] = l
	r.LUN = &l
	return nil
}

// forgetNode takes a node that is removed out of what is still to be deleted there.
func (m *Model) forgetNode(node string) {
	for id, l := range m.LUNs {
		left := slices.DeleteFunc(slices.Clone(l.Left), func(r string) bool {
			n, _, _ := SplitReplicaID(r)
			return n == node
		})
		if len(left) != len(l.Left) {
			l.Left = left
			m.LUNs[id] = l
		}
	}
}

// sameSet says whether two lists hold the same, in whatever order.
func sameSet(a, b []string) bool {
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	return slices.Equal(slices.Compact(a), slices.Compact(b))
}
