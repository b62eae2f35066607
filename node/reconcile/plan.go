// Package reconcile makes this node what the catalog says it should be: it starts, stops and deletes replicas, and asks the
// catalog for what only the catalog may decide.
//
// Invariants, all of them about amnesia and deletion, which are the two ways a control plane loses data:
//
//   - Storage is created once for each replica ID, by the process start that claimed the ID in the catalog, after the
//     catalog has recorded the claim. No storage under an ID that another start has claimed means it is lost, and the
//     replica goes on under a new ID as a learner. So no voter ever forgets what it has acknowledged.
//   - Storage is deleted on positive knowledge only: a tombstone, a newer incarnation of the same replica that holds the
//     data, or the record that the LUN has removed the replica. A catalog that does not mention a LUN may be behind, or be a new one over old disks: such storage is left and reported.
//   - A clone's first replicas are made from the snapshot, never empty: one is begun only once that is there to be copied. Those that
//     replace them are empty, joining, and are rebuilt from the others, which is recorded before they are made.
//   - Nothing of a LUN that is lost is deleted or started: what is left is for the operator.
//   - The catalog this node sees may be old. Every decision above is right with an old one, or is refused by the catalog.
//
// It does not choose nodes (node/placement), nor change Raft groups itself (the Runner does), nor decide when to give a node up.
package reconcile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"sanctuary/node/catalog"
)

// Actual is what there is on this node.
type Actual struct {
	Claim   string              // the random name of this process start
	Storage map[string][]string // replica IDs whose storage is here, by LUN ID
	Running map[string]string   // the replica ID that runs, by LUN ID
	History map[string]uint64   // the epoch of what runs, by LUN ID
	Owned   map[string]bool     // LUN IDs whose group this node leads
	Created map[string]bool     // replica IDs whose storage this process has created
	Useless map[string]bool     // replica IDs that cannot go on from the storage that is here
}

// ActionKind says what to do.
type ActionKind uint8

// Kinds of actions.
const (
	// Begin records the first start in the catalog, then creates the storage and starts the replica with the LUN's first configuration.
	Begin ActionKind = iota + 1
	// Create makes the empty storage of a replica this process has claimed, and starts it.
	Create
	// Start starts a replica whose storage is here.
	Start
	// Replace asks the catalog for a new incarnation, since the storage is gone.
	Replace
	// Reconfigure makes the group's members what the catalog wants, on the owner, and reports who has been promoted.
	Reconfigure
	// Stop ends what runs. The storage stays.
	Stop
	// Delete deletes a storage for good.
	Delete
	// Report tells the catalog that nothing of a deleted LUN is left here.
	Report
	// Copied tells the catalog that a clone's replica has been made and needs the snapshot no more.
	Copied
	// Forget tells the catalog that nothing of a removed replica is left here.
	Forget
	// Prepare claims a replica that is to take the place of the one that runs here, and makes its storage. It is not started.
	Prepare
	// Fill brings that storage up to what the LUN holds, and tells the catalog.
	Fill
)

func (k ActionKind) String() string {
	return [...]string{"?", "begin", "create", "start", "replace", "reconfigure", "stop", "delete", "report", "copied", "forget", "prepare", "fill"}[min(k, Fill)]
}

// Action is one step.
type Action struct {
	Kind    ActionKind
	LUN     catalog.LUN     // of a deleted LUN only ID and Name
	Replica catalog.Replica // this node's; of Stop and Delete only the ID
	Why     string          // for the log and the operator
}

func (a Action) String() string { return fmt.Sprintf("%s %s of %s", a.Kind, a.Replica.ID, a.LUN.Name) }

// Plan returns what this node has to do, by LUN ID: the steps of one LUN in order, each only if the one before it succeeded.
// It is a pure function.
func Plan(m *catalog.Model, node string, a Actual) map[string][]Action {
	out := map[string][]Action{}
	for id, l := range m.LUNs {
		if steps := planLUN(l, node, a); len(steps) > 0 {
			out[id] = steps
		}
	}
	for id, t := range m.Deleted {
		l := catalog.LUN{ID: id, Name: t.Name}
		if !slices.Contains(t.Nodes, node) {
			continue
		}
		var steps []Action
		if r, ok := a.Running[id]; ok {
			steps = append(steps, stop(l, r, "the LUN has been deleted"))
		}
		for _, r := range a.Storage[id] {
			steps = append(steps, Action{Delete, l, catalog.Replica{ID: r}, "the LUN has been deleted"})
		}
		out[id] = append(steps, Action{Kind: Report, LUN: l, Why: "nothing of the deleted LUN is left"})
	}
	for id, r := range a.Running {
		_, exists := m.LUNs[id]
		_, deleted := m.Deleted[id]
		if !exists && !deleted {
			out[id] = []Action{stop(catalog.LUN{ID: id, Name: id}, r, "the catalog does not have the LUN any more")}
		}
	}
	return out
}

func planLUN(l catalog.LUN, node string, a Actual) []Action {
	running, runs := a.Running[l.ID]
	mine, ok := l.ReplicaOn(node)
	if steps := planLeft(l, node, a); len(steps) > 0 {
		return steps
	}
	switch {
	case l.Lost && runs:
		return []Action{stop(l, running, "every copy of the LUN has lost its data; an operator has to decide")}
	case l.Lost:
		return nil
	case !ok && runs:
		return []Action{stop(l, running, "this node holds no replica of the LUN any more")}
	case !ok:
		return nil
	}
	var steps []Action
	if runs && running != mine.ID {
		if !older(running, mine.ID) {
			return nil // the catalog here is behind what has been started
		}
		steps = append(steps, stop(l, running, "replaced by "+mine.ID))
		runs = false
	}
	if history := a.History[l.ID]; runs && history != 0 && history < l.Epoch {
		if r, ok := l.RecoveredBy(); !ok || r.Replica != mine.ID {
			return append(steps, stop(l, running, "the LUN has been recovered without it"))
		}
		steps = append(steps, stop(l, running, "the LUN goes on from it in a new history"))
		runs = false
	}
	here := slices.Contains(a.Storage[l.ID], mine.ID)
	switch {
	case mine.State == catalog.ReplicaPending && here:
		return nil // storage is created after the catalog has made it active: the catalog here is behind
	case mine.State == catalog.ReplicaPending:
		return append(steps, Action{Begin, l, mine, "placed here"})
	case here && !runs && a.Useless[mine.ID]:
		return append(steps, Action{Replace, l, mine, "it cannot go on from its storage on this node: its log is gone, or it ended before it was sent anything"})
	case here && !runs:
		steps = append(steps, Action{Start, l, mine, "its storage is here"})
	case !here && runs:
		// The Runner still runs what it says it has no storage for: it is about to stop, or wrong. Waiting harms nobody.
		return nil
	case !here && mine.State == catalog.ReplicaJoining && mine.Claim == "":
		return append(steps, Action{Begin, l, mine, "added here"})
	case !here && mine.Claim == a.Claim && !a.Created[mine.ID]:
		return append(steps, Action{Create, l, mine, "claimed by this process"})
	case !here:
		return append(steps, Action{Replace, l, mine, "its storage is not on this node: a blank disk, or memory that was lost with the last process"})
	case a.Owned[l.ID] && !l.Settled():
		steps = append(steps, Action{Reconfigure, l, mine, "replicas are joining or leaving"})
	}
	if here && l.IsWaiting(mine.ID) {
		steps = append(steps, Action{Copied, l, mine, "it has been made from the snapshot"})
	}
	if runs {
		steps = append(steps, planComing(l, node, a)...)
	}
	if mine.State == catalog.ReplicaActive {
		for _, r := range a.Storage[l.ID] {
			if r != running && older(r, mine.ID) {
				steps = append(steps, Action{Delete, l, catalog.Replica{ID: r}, mine.ID + " has taken its place and holds the data"})
			}
		}
	}
	return steps
}

func stop(l catalog.LUN, replica, why string) Action {
	return Action{Stop, l, catalog.Replica{ID: replica}, why}
}

// planComing makes and fills what is to take the place of the replica that runs here.
func planComing(l catalog.LUN, node string, a Actual) []Action {
	next, ok := l.ComingOn(node)
	here := slices.Contains(a.Storage[l.ID], next.ID)
	switch {
	case !ok || here && next.Filled:
		return nil
	case here:
		return []Action{{Fill, l, next, "it is to take the place of the replica that runs here"}}
	case next.Claim == "" || next.Claim == a.Claim && !a.Created[next.ID]:
		return []Action{{Prepare, l, next, "it is to take the place of the replica that runs here"}}
	}
	return []Action{{Replace, l, next, "its storage is not on this node: memory that was lost with the last process, or a blank disk"}}
}

// planLeft ends and deletes what the LUN has removed from this node. A newer replica of the LUN may be here as well.
func planLeft(l catalog.LUN, node string, a Actual) (steps []Action) {
	for _, id := range l.Left {
		if n, _, _ := catalog.SplitReplicaID(id); n != node {
			continue
		}
		if a.Running[l.ID] == id {
			steps = append(steps, stop(l, id, "it has been removed from the LUN"))
		}
		if slices.Contains(a.Storage[l.ID], id) {
			steps = append(steps, Action{Delete, l, catalog.Replica{ID: id}, "it has been removed from the LUN, whose other replicas hold everything"})
		}
		steps = append(steps, Action{Forget, l, catalog.Replica{ID: id}, "nothing of the removed replica is left"})
	}
	return steps
}

// older says whether a and b are incarnations of one node's replica and a was there before b.
func older(a, b string) bool {
	na, ia, oka := catalog.SplitReplicaID(a)
	nb, ib, okb := catalog.SplitReplicaID(b)
	return oka && okb && na == nb && ia < ib
}

// Orphan is storage nobody has a use for, and nobody may delete but the operator.
type Orphan struct {
	LUN     string `json:"lun"` // ID
	Replica string `json:"replica"`
	Why     string `json:"why"`
}

// Orphans returns the storage on this node that the catalog explains in no way, sorted by LUN and replica.
func Orphans(m *catalog.Model, node string, a Actual) []Orphan {
	var out []Orphan
	for _, id := range slices.Sorted(maps.Keys(a.Storage)) {
		l, exists := m.LUNs[id]
		t, deleted := m.Deleted[id]
		mine, placed := l.ReplicaOn(node)
		for _, r := range a.Storage[id] {
			switch {
			case deleted && slices.Contains(t.Nodes, node):
			case !exists:
				out = append(out, Orphan{id, r, "the catalog does not know this LUN: it may be of another cluster, or the catalog may be new. It is left alone"})
			case slices.Contains(l.Left, r): // about to be deleted
			case !placed:
				out = append(out, Orphan{id, r, fmt.Sprintf("LUN %q has no replica on this node any more. It is left alone", l.Name)})
			case r != mine.ID && l.Lost:
				out = append(out, Orphan{id, r, fmt.Sprintf("LUN %q is lost, and this may be its last copy. It is left alone", l.Name)})
			}
		}
	}
	slices.SortFunc(out, func(a, b Orphan) int { return cmp.Or(cmp.Compare(a.LUN, b.LUN), cmp.Compare(a.Replica, b.Replica)) })
	return out
}
