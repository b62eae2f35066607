package replication

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore"
	"sanctuary/replication/journal"
)

// newHistory makes node's copy the beginning of the next history: the members of the other nodes are new incarnations from now on.
func (c *cluster) newHistory(node string) {
	if c.epochs == nil {
		c.epochs = map[string]uint64{}
	}
	members := slices.Clone(c.members) // what runs has the old slice
	for i, m := range members {
		if m.Node != node {
			members[i].ID = raft.ServerID(m.Node + "/2")
			continue
		}
	}
	c.members = members
	c.epochs[node]++
	if c.epochs[node] == 1 {
		c.epochs[node] = 2
	}
	c.recovers = node
}

// joinHistory starts a node's new incarnation, with nothing, in the history of another.
func (c *cluster) joinHistory(node, of string) {
	c.t.Helper()
	if err := os.RemoveAll(filepath.Join(c.dir, node)); err != nil {
		c.t.Fatal(err)
	}
	c.epochs[node] = c.epochs[of]
	if err := c.startJoining(node); err != nil {
		c.t.Fatal(err)
	}
}

// witnessAhead leaves b behind what a and the witness have committed, and then a dead: nobody can be elected.
func witnessAhead(t *testing.T, ctx context.Context) *cluster {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "w")
	for n := range 20 {
		if err := c.write(ctx, n, 1); err != nil {
			t.Fatal(err)
		}
	}
	if c.owner() != "a" {
		if err := c.group("b").Transfer(ctx, c.member("a").ID); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a serves", func() bool { return c.group("a").Status().Serving })
	}
	eventually(t, "b has it", func() bool { return c.nodes["b"].vol.Applied() == c.nodes["a"].vol.Applied() })
	c.stop("b")
	for n := range 10 {
		if err := c.write(ctx, n, 2); err != nil {
			t.Fatal(err)
		}
	}
	c.stop("a")
	c.start("b", false)
	return c
}

// The only copy left is behind the witness. By itself it never serves; recovered by force it does, with what it has, and the old
// copies change nothing when they come back: not apart, not together, and not before they have been made anew.
func TestOldHistoryCannotComeBack(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 120*time.Second)
	defer cancel()
	c := witnessAhead(t, ctx)
	behind, err := c.group("b").Survey()
	if err != nil {
		t.Fatal(err)
	}
	ahead, err := c.group("w").Survey()
	if err != nil {
		t.Fatal(err)
	}
	if !behind.Last.Less(ahead.Last) || behind.Shared(&ahead) != behind.Last.Index || ahead.LastAt.IsZero() {
		t.Fatalf("b ends at %+v, the witness at %+v; they share %d", behind.Last, ahead.Last, behind.Shared(&ahead))
	}
	old := slices.Clone(c.members)
	c.stop("b")
	c.newHistory("b")
	c.start("b", false)
	eventually(t, "the copy that was left serves", func() bool { return c.group("b").Status().Serving })
	if s := c.group("b").Status(); s.Term < behind.Term+termGap {
		t.Errorf("the new history begins with term %d, the old one had %d", s.Term, behind.Term)
	}
	for n := range 20 {
		if v, err := c.read(n); err != nil || v != 1 {
			t.Fatalf("block %d: version %d, %v", n, v, err)
		}
	}
	if err := c.write(ctx, 3, 7); err != nil {
		t.Fatal(err)
	}

	// The old owner is back, and with the witness it is a majority of the old history, the only one it knows.
	fresh := c.members
	c.members = old
	c.start("a", false)
	eventually(t, "the old owner ends", func() bool { return errors.Is(c.group("a").Err(), ErrSuperseded) })
	c.stop("w")
	c.start("w", false)
	c.stop("a")
	c.start("a", false)
	eventually(t, "and again", func() bool { return errors.Is(c.group("a").Err(), ErrSuperseded) })
	c.members = fresh
	if s := c.group("b").Status(); !s.Serving {
		t.Fatalf("the new history has stopped: %+v", s)
	}
	if v, err := c.read(3); err != nil || v != 7 {
		t.Fatalf("version %d, %v", v, err)
	}

	// They are made anew, and then the LUN is as it was before.
	c.stop("a")
	c.stop("w")
	c.joinHistory("a", "b")
	c.joinHistory("w", "b")
	var want []Member
	for _, m := range c.members {
		want = append(want, joining(m, m.Node != "b"))
	}
	eventually(t, "the new incarnations vote", func() bool {
		return c.settled("b", want, 2)
	})
	eventually(t, "healthy", func() bool { return c.group("b").Status().Health == HealthHealthy })
	c.stop("b")
	if v, err := c.read(3); err != nil || v != 7 {
		t.Fatalf("from the rebuilt copy: version %d, %v", v, err)
	}
}

// A recovery that is killed at any point is done again, and what was done twice is as good as what was done once.
func TestRecoveryMayBeRepeated(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	c := witnessAhead(t, ctx)
	c.stop("b")
	for range 3 { // interrupted behind the last step, before anybody notes that it is done
		c.newHistory("b")
		c.atJournal("b", func(j journal.Log) error {
			_, err := Recover(j, stillStore{durable: 9}, Recovery{LUN: testLUN, Epoch: 2, Self: c.member("b")})
			return err
		})
	}
	c.start("b", false)
	eventually(t, "it serves", func() bool { return c.group("b").Status().Serving })
	if _, servers, err := c.group("b").configuration(); err != nil || len(servers) != 1 {
		t.Fatalf("members are %v, %v", servers, err)
	}
	if v, err := c.read(5); err != nil || v != 1 {
		t.Fatalf("version %d, %v", v, err)
	}
}

// stillStore is a volume that is whole up to some entry, for Recover, which asks for no more; halfStore is one in the middle of a rebuild.
type (
	stillStore struct {
		Store
		durable uint64
	}
	halfStore struct{ stillStore }
)

func (stillStore) Inconsistent() bool { return false }
func (s stillStore) Durable() uint64  { return s.durable }
func (halfStore) Inconsistent() bool  { return true }

func TestRecoveryRefusesWhatIsNoWholeCopy(t *testing.T) {
	self := Member{ID: "b/1", Node: "b"}
	marked := journal.NewMemory()
	sink, err := marked.Snapshots().Create(1, 9, 2, raft.Configuration{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	g := &Group{cfg: Config{LUN: testLUN}}
	if _, err := sink.Write(g.encodeMark(9)); err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		j    journal.Log
		s    Store
		self Member
		ok   bool
	}{
		"whole":      {marked, stillStore{durable: 9}, self, true},
		"no log":     {journal.NewMemory(), stillStore{durable: 9}, self, false},
		"rebuilding": {marked, halfStore{stillStore{durable: 9}}, self, false},
		"too old":    {marked, stillStore{durable: 8}, self, false},
		"witness":    {marked, nil, Member{ID: "w/1", Node: "w", Witness: true}, false},
	} {
		if _, err := Recover(test.j, test.s, Recovery{LUN: testLUN, Epoch: 2, Self: test.self}); (err == nil) != test.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if last, err := lastOf(marked); err != nil || last.Index != 10 || last.Term <= termGap {
		t.Errorf("it ends at %+v, %v", last, err)
	}
}

func TestLogsAreComparedByTheirRuns(t *testing.T) {
	log := func(last Position, runs ...Position) *Survey { return &Survey{Last: last, Runs: runs} }
	for name, test := range map[string]struct {
		a, b *Survey
		want uint64
	}{
		"same":          {log(Position{3, 30}, Position{3, 20}, Position{1, 1}), log(Position{3, 30}, Position{3, 20}, Position{1, 1}), 30},
		"shorter":       {log(Position{3, 25}, Position{3, 20}, Position{1, 1}), log(Position{3, 30}, Position{3, 20}, Position{1, 1}), 25},
		"parted":        {log(Position{2, 28}, Position{2, 24}, Position{1, 1}), log(Position{3, 30}, Position{3, 20}, Position{1, 1}), 19},
		"cut":           {log(Position{3, 25}, Position{3, 20}, Position{1, 1}), log(Position{3, 30}, Position{3, 27}), 0},
		"cut, overlaps": {log(Position{3, 25}, Position{3, 20}, Position{1, 1}), log(Position{3, 30}, Position{3, 22}), 25},
		"empty":         {log(Position{}), log(Position{3, 30}, Position{3, 22}), 0},
	} {
		if got := test.a.Shared(test.b); got != test.want {
			t.Errorf("%s: %d, want %d", name, got, test.want)
		}
		if got := test.b.Shared(test.a); got != test.want {
			t.Errorf("%s, the other way: %d, want %d", name, got, test.want)
		}
	}
}

// A log that is empty behind a snapshot, or ends before it, is not said to have the snapshot's entry, and can be surveyed at all.
func TestSurveyTellsALogThatIsEmptyFromOneThatHasItsEnd(t *testing.T) {
	at := func(first, last, mark uint64) journal.Log {
		j := journal.NewMemory()
		for i := first; i <= last && i > 0; i++ {
			if err := j.StoreLog(&raft.Log{Index: i, Term: 1 + i/5, Type: raft.LogCommand}); err != nil {
				t.Fatal(err)
			}
		}
		if mark > 0 {
			if err := j.Snapshots().Put(raft.SnapshotMeta{ID: "m", Index: mark, Term: 1 + mark/5}, nil); err != nil {
				t.Fatal(err)
			}
		}
		return j
	}
	for name, test := range map[string]struct {
		j     journal.Log
		last  Position
		runs  []Position
		empty bool
	}{
		"nothing":               {at(0, 0, 0), Position{}, nil, true},
		"whole":                 {at(1, 7, 0), Position{2, 7}, []Position{{2, 5}, {1, 1}}, false},
		"behind a snapshot":     {at(8, 12, 7), Position{3, 12}, []Position{{3, 10}, {2, 8}}, false},
		"over a snapshot":       {at(4, 7, 7), Position{2, 7}, []Position{{2, 5}, {1, 4}}, false},
		"empty":                 {at(0, 0, 7), Position{2, 7}, []Position{{2, 7}}, true},
		"older than a snapshot": {at(1, 6, 12), Position{3, 12}, []Position{{3, 12}}, true},
	} {
		last, err := lastOf(test.j)
		if err != nil || last != test.last {
			t.Errorf("%s: it ends at %+v, %v", name, last, err)
		}
		runs, empty, err := runsOf(test.j, last)
		if err != nil || !slices.Equal(runs, test.runs) || empty != test.empty {
			t.Errorf("%s: %+v, empty %v, %v", name, runs, empty, err)
		}
	}
}
