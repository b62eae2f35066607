package reconcile

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"sanctuary/blockstore/block"
	"sanctuary/node/catalog"
)

const lunID = "00000000-0000-4000-8000-000000000100"

func uid(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", n) }

// history makes a model of nodes a, b and w with one mirrored LUN, and applies changes written as words.
func history(t interface{ Fatal(...any) }, changes string) *catalog.Model {
	m := catalog.NewModel("lab")
	apply := func(c catalog.Change) {
		next, _, err := catalog.Apply(m, m.Index+1, c)
		if err != nil {
			t.Fatal(err)
		}
		m = next
	}
	for i, n := range []string{"a", "b", "w"} {
		kind := catalog.KindData
		if n == "w" {
			kind = catalog.KindWitness
		}
		apply(&catalog.RegisterNode{Name: n, ID: uid(i + 1), Kind: kind})
	}
	apply(&catalog.CreateLUN{
		ID: lunID, Name: "vm1", Media: catalog.MediaRAM, Geometry: block.Geometry{Capacity: block.CountOf(1 << 30), LogicalBlockBytes: 512},
		Replicas: []catalog.Placement{{Node: "a"}, {Node: "b"}, {Node: "w", Witness: true}},
	})
	for _, c := range strings.Fields(changes) {
		verb, rest, _ := strings.Cut(c, ":")
		id, claim, _ := strings.Cut(rest, ":")
		switch verb {
		case "started":
			apply(&catalog.ReplicaStarted{LUN: lunID, Replica: id, Claim: claim})
		case "running":
			for _, r := range m.LUNs[lunID].Replicas {
				apply(&catalog.ReplicaStarted{LUN: lunID, Replica: r.ID, Claim: "earlier"})
			}
		case "replaced":
			apply(&catalog.ReplaceReplica{LUN: lunID, Old: id, Claim: claim})
		case "promoted":
			apply(&catalog.ReplicaPromoted{LUN: lunID, Replica: id})
		case "recovered":
			l := m.LUNs[lunID]
			apply(&catalog.RecoverLUN{LUN: lunID, Recovery: catalog.Recovery{Epoch: l.Epoch + 1, Replica: id}})
		case "moved": // from b to c
			apply(&catalog.RegisterNode{Name: "c", ID: uid(9), Kind: catalog.KindData})
			apply(&catalog.SetReplicas{
				LUN: lunID, Replicas: []catalog.Placement{{Node: "a"}, {Node: "c"}, {Node: "w", Witness: true}}, Was: []string{"a/1", "b/2", "w/3"},
			})
		case "swapped": // the witness and the copy on b
			apply(&catalog.SetReplicas{
				LUN: lunID, Replicas: []catalog.Placement{{Node: "a"}, {Node: "w", Witness: true}, {Node: "b", Pool: "other"}}, Was: []string{"a/1", "b/2", "w/3"},
			})
		case "filled":
			apply(&catalog.ReplicaFilled{LUN: lunID, Replica: id})
		case "removed":
			apply(&catalog.ReplicaRemoved{LUN: lunID, Replica: id})
		case "deleted":
			apply(&catalog.DeleteLUN{ID: lunID})
		case "clone": // the same LUN, begun as a clone
			m = history(t, "")
			l := m.LUNs[lunID]
			from := l
			from.ID, from.NAA = uid(99), catalog.NAA(uid(99))
			m.LUNs[from.ID] = from
			delete(m.LUNs, lunID)
			apply(&catalog.CreateLUN{
				ID: lunID, Name: "copy", Media: l.Media, Geometry: l.Geometry, Origin: &catalog.NewOrigin{LUN: from.ID, Snapshot: strings.Repeat("0a", 16)},
				Replicas: []catalog.Placement{{Node: "a"}, {Node: "b"}, {Node: "w", Witness: true}},
			})
			delete(m.LUNs, from.ID)
		case "copied":
			apply(&catalog.ReplicaCopied{LUN: lunID, Replica: id})
		case "gone":
			apply(&catalog.StorageDeleted{LUN: lunID, Node: id})
		default:
			t.Fatal("unknown change ", c)
		}
	}
	return m
}

func steps(plan map[string][]Action) string {
	var out []string
	for _, a := range plan[lunID] {
		out = append(out, strings.TrimSpace(a.Kind.String()+" "+a.Replica.ID))
	}
	return strings.Join(out, ", ")
}

func TestPlan(t *testing.T) {
	for _, test := range []struct {
		name    string
		history string
		node    string // default b
		storage string
		running string
		owned   bool
		epoch   uint64 // of what runs; 0: 1
		created string
		useless string
		want    string
		orphans int
	}{
		{name: "placed here", want: "begin b/2"},
		{name: "not placed here", node: "c", want: ""},
		{name: "started, create failed or was cut short in this process", history: "started:b/2:me", want: "create b/2"},
		{name: "created by this process, and lost", history: "started:b/2:me", created: "b/2", want: "replace b/2"},
		{name: "blank disk or memory after a restart", history: "running", want: "replace b/2"},
		{name: "storage is here", history: "running", storage: "b/2", want: "start b/2"},
		{name: "storage is here, and nothing can be started on it", history: "running", storage: "b/2", useless: "b/2", want: "replace b/2"},
		{name: "that of a copy that had just begun to join", history: "running replaced:b/2:me", storage: "b/2 b/4", useless: "b/4", want: "replace b/4"},
		{name: "and another has taken its place", history: "running replaced:b/2:x replaced:b/4:me", storage: "b/2 b/4 b/5", useless: "b/4", want: "start b/5"},
		{name: "lost: storage of no use stays", history: "running replaced:b/2:x replaced:a/1:x", storage: "b/4", useless: "b/4", want: ""},
		{name: "runs", history: "running", storage: "b/2", running: "b/2", want: ""},
		{name: "witness without storage", history: "running", node: "w", want: "replace w/3"},
		{name: "new incarnation of ours", history: "running replaced:b/2:me", want: "create b/4"},
		{name: "new incarnation of an earlier process", history: "running replaced:b/2:earlier", want: "replace b/4"},
		{name: "joining, storage here", history: "running replaced:b/2:me", storage: "b/4", want: "start b/4"},
		{name: "joining, runs, not the owner", history: "running replaced:b/2:me", storage: "b/4", running: "b/4", want: ""},
		{name: "the owner brings the joiner in", history: "running replaced:b/2:x", node: "a", storage: "a/1", running: "a/1", owned: true, want: "reconfigure a/1"},
		{name: "a follower does not", history: "running replaced:b/2:x", node: "a", storage: "a/1", running: "a/1", want: ""},
		{name: "the owner of a settled group rests", history: "running", node: "a", storage: "a/1", running: "a/1", owned: true, want: ""},
		{name: "old storage is kept while the new has no data", history: "running replaced:b/2:me", storage: "b/2 b/4", running: "b/4", want: ""},
		{name: "and deleted afterwards", history: "running replaced:b/2:me promoted:b/4", storage: "b/2 b/4", running: "b/4", want: "delete b/2"},
		{name: "the old incarnation still runs", history: "running replaced:b/2:me", storage: "b/2 b/4", running: "b/2", want: "stop b/2, start b/4"},
		{name: "catalog behind: pending, but storage is here", storage: "b/2", want: ""},
		{name: "catalog behind: a newer incarnation runs", history: "running", storage: "b/9", running: "b/9", want: ""},
		{name: "catalog behind: newer storage is not deleted", history: "running", storage: "b/2 b/9", running: "b/2", want: ""},
		{name: "deleted", history: "running deleted", storage: "b/2", running: "b/2", want: "stop b/2, delete b/2, report"},
		{name: "deleted, older incarnations too", history: "running deleted", storage: "b/1 b/2", want: "delete b/1, delete b/2, report"},
		{name: "deleted, nothing here", history: "running deleted", want: "report"},
		{name: "deleted and reported", history: "running deleted gone:b", storage: "", want: ""},
		{name: "deleted and reported, storage shows up again", history: "running deleted gone:b", storage: "b/2", want: "", orphans: 1},
		{name: "deleted before this node heard of it", history: "deleted gone:a gone:b gone:w", running: "b/2", storage: "b/2", want: "stop b/2", orphans: 1},
		{name: "lost: nothing starts", history: "running replaced:b/2:x replaced:a/1:x", storage: "b/4", want: ""},
		{name: "lost: what runs is stopped", history: "running replaced:b/2:x replaced:a/1:x", storage: "b/4", running: "b/4", want: "stop b/4"},
		{name: "lost: the old disk is back and is not touched", history: "running replaced:b/2:x replaced:a/1:x", storage: "b/2 b/4", want: "", orphans: 1},
		{name: "storage of another cluster", node: "b", history: "deleted gone:a gone:b gone:w", storage: "b/2", want: "", orphans: 1},
		{name: "clone placed here", history: "clone", want: "begin b/5"},
		{name: "clone made from the snapshot", history: "clone running", storage: "b/5", running: "b/5", want: "copied b/5"},
		{name: "clone made from the snapshot, cut short before it was told", history: "clone running", storage: "b/5", want: "start b/5, copied b/5"},
		{name: "clone told", history: "clone running copied:b/5", storage: "b/5", running: "b/5", want: ""},
		{name: "clone lost before it was made", history: "clone running", want: "replace b/5"},
		{name: "clone's successor needs no snapshot", history: "clone running replaced:b/5:me", storage: "b/7", running: "b/7", want: ""},
		{name: "the copy a LUN goes on from", history: "running recovered:b/2", storage: "b/2", running: "b/2", want: "stop b/2, start b/2"},
		{name: "and when it does", history: "running recovered:b/2", storage: "b/2", running: "b/2", epoch: 2, want: ""},
		{name: "and after a restart", history: "running recovered:b/2", storage: "b/2", want: "start b/2"},
		{name: "a copy the LUN went on without", history: "running recovered:a/1", storage: "b/2", running: "b/2", want: "stop b/2, begin b/4"},
		{name: "and keeps until it has been rebuilt", history: "running recovered:a/1 started:b/4:me", storage: "b/2 b/4", running: "b/4", epoch: 2, want: ""},
		{name: "and not longer", history: "running recovered:a/1 started:b/4:me promoted:b/4", storage: "b/2 b/4", running: "b/4", epoch: 2, want: "delete b/2"},
		{name: "a witness the LUN went on without", node: "w", history: "running recovered:a/1", storage: "w/3", running: "w/3", want: "stop w/3, begin w/5"},
		{name: "a lost LUN of which a copy is back", history: "running replaced:b/2:x replaced:a/1:x recovered:b/4", storage: "b/4", want: "start b/4"},
		{name: "a copy is to come here", node: "c", history: "running moved", want: "begin c/4"},
		{name: "one that comes, claimed by an earlier process", node: "c", history: "running moved started:c/4:x", want: "replace c/4"},
		{name: "one that leaves goes on", history: "running moved", storage: "b/2", running: "b/2", want: ""},
		{name: "also after a restart", history: "running moved", storage: "b/2", want: "start b/2"},
		{name: "the owner, which leaves itself", history: "running moved", storage: "b/2", running: "b/2", owned: true, want: "reconfigure b/2"},
		{name: "one that has left", history: "running moved started:c/4:x promoted:c/4 removed:b/2", storage: "b/2", running: "b/2", want: "stop b/2, delete b/2, forget b/2"},
		{name: "and does not run", history: "running moved started:c/4:x promoted:c/4 removed:b/2", storage: "b/2", want: "delete b/2, forget b/2"},
		{name: "and is gone", history: "running moved started:c/4:x promoted:c/4 removed:b/2", want: "forget b/2"},
		{name: "somebody else has left", node: "a", history: "running moved started:c/4:x promoted:c/4 removed:b/2", storage: "a/1", running: "a/1", owned: true, want: ""},
		{name: "another is to take its place", history: "running swapped", storage: "b/2", running: "b/2", want: "prepare b/4"},
		{name: "the one that runs is started first", history: "running swapped", storage: "b/2", want: "start b/2"},
		{name: "claimed, and not made", history: "running swapped started:b/4:me", storage: "b/2", running: "b/2", want: "prepare b/4"},
		{name: "claimed by an earlier process", history: "running swapped started:b/4:x", storage: "b/2", running: "b/2", want: "replace b/4"},
		{name: "made, and to be filled", history: "running swapped started:b/4:me", storage: "b/2 b/4", running: "b/2", want: "fill b/4"},
		{name: "on the owner's node", history: "running swapped started:b/4:me", storage: "b/2 b/4", running: "b/2", owned: true, want: "reconfigure b/2, fill b/4"},
		{name: "filled", history: "running swapped started:b/4:me filled:b/4", storage: "b/2 b/4", running: "b/2", want: ""},
		{name: "its turn", history: "running swapped started:b/4:me filled:b/4 removed:b/2", storage: "b/2 b/4", running: "b/2", want: "stop b/2, delete b/2, forget b/2"},
		{name: "and it starts", history: "running swapped started:b/4:me filled:b/4 removed:b/2", storage: "b/4", want: "forget b/2"},
		{name: "strange replica ID", history: "running", storage: "b/2 x", running: "b/2", want: ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := history(t, test.history)
			a := Actual{Claim: "me", Storage: map[string][]string{}, Running: map[string]string{}, History: map[string]uint64{lunID: max(test.epoch, 1)}, Owned: map[string]bool{lunID: test.owned}, Created: map[string]bool{test.created: true}, Useless: map[string]bool{test.useless: true}}
			if test.storage != "" {
				a.Storage[lunID] = strings.Fields(test.storage)
			}
			if test.running != "" {
				a.Running[lunID] = test.running
			}
			if test.node == "" {
				test.node = "b"
			}
			if got := steps(Plan(m, test.node, a)); got != test.want {
				t.Errorf("plan is %q, want %q", got, test.want)
			}
			if got := Orphans(m, test.node, a); len(got) != test.orphans {
				t.Errorf("orphans %v, want %d", got, test.orphans)
			}
		})
	}
}

// TestPlanNeverDeletesTheLastCopyNorReusesAnID checks the two invariants over random states, among them impossible ones.
func TestPlanNeverDeletesTheLastCopyNorReusesAnID(t *testing.T) {
	histories := []string{
		"", "started:b/2:me", "started:b/2:earlier", "running", "running replaced:b/2:me", "running replaced:b/2:earlier", "running replaced:b/2:me replaced:b/4:me",
		"running replaced:b/2:me promoted:b/4", "running replaced:a/1:x replaced:b/2:me", "running deleted", "running deleted gone:b", "deleted gone:a gone:b gone:w",
		"running recovered:a/1", "running recovered:b/2", "running recovered:a/1 started:b/4:me", "running recovered:a/1 started:b/4:me promoted:b/4",
		"running moved", "running moved started:c/4:x promoted:c/4", "running moved started:c/4:x promoted:c/4 removed:b/2",
		"running swapped", "running swapped started:b/4:me", "running swapped started:b/4:me filled:b/4", "running swapped started:b/4:me filled:b/4 removed:b/2",
	}
	rapid.Check(t, func(t *rapid.T) {
		m := history(t, rapid.SampledFrom(histories).Draw(t, "history"))
		ids := rapid.SampledFrom([]string{"b/2", "b/4", "b/5", "b/9", "b/1"})
		a := Actual{
			Claim: "me", Storage: map[string][]string{lunID: rapid.SliceOfDistinct(ids, rapid.ID[string]).Draw(t, "storage")},
			Running: map[string]string{}, History: map[string]uint64{lunID: rapid.Uint64Range(0, 2).Draw(t, "running history")}, Owned: map[string]bool{lunID: rapid.Bool().Draw(t, "owned")}, Created: map[string]bool{ids.Draw(t, "created"): true},
			Useless: map[string]bool{ids.Draw(t, "useless"): true},
		}
		if rapid.Bool().Draw(t, "runs") {
			a.Running[lunID] = ids.Draw(t, "running")
		}
		l, exists := m.LUNs[lunID]
		mine, _ := l.ReplicaOn("b")
		_, tombstone := m.Deleted[lunID]
		for _, s := range Plan(m, "b", a)[lunID] {
			switch s.Kind {
			case Delete:
				newer := exists && !l.Lost && mine.State == catalog.ReplicaActive && older(s.Replica.ID, mine.ID)
				if !newer && !tombstone && !slices.Contains(l.Left, s.Replica.ID) {
					t.Fatalf("%v with %+v", s, l)
				}
			case Create:
				if s.Replica.Claim != "me" || a.Created[s.Replica.ID] || l.Lost {
					t.Fatalf("%v with %+v", s, l)
				}
			case Begin:
				if s.Replica.State != catalog.ReplicaPending && (s.Replica.State != catalog.ReplicaJoining || s.Replica.Claim != "") {
					t.Fatalf("%v of %+v", s, s.Replica)
				}
			case Replace:
				if next, _ := l.ComingOn("b"); l.Lost || slices.Contains(a.Storage[lunID], s.Replica.ID) && !a.Useless[s.Replica.ID] || s.Replica.ID != mine.ID && s.Replica.ID != next.ID {
					t.Fatalf("%v with %+v", s, l)
				}
			case Start:
				if l.Lost || s.Replica.ID != mine.ID {
					t.Fatalf("%v with %+v", s, l)
				}
			}
		}
	})
}
