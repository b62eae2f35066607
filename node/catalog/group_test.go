package catalog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cluster is a catalog's group in one process, over Raft's in-memory transport.
type cluster struct {
	t       *testing.T
	initial []string

	mu    sync.Mutex
	nodes map[string]*testNode
	cut   map[string]bool
}

type testNode struct {
	cfg   Config
	trans *raft.InmemTransport
	cat   *Catalog
	fails chan error
}

func newCluster(t *testing.T, initial ...string) *cluster {
	c := &cluster{t: t, initial: initial, nodes: map[string]*testNode{}, cut: map[string]bool{}}
	t.Cleanup(func() {
		for name := range c.nodes {
			c.stop(name)
		}
	})
	for i, n := range initial {
		c.nodes[n] = &testNode{cfg: Config{Cluster: "lab", Node: n, NodeID: uid(i + 1), Dir: filepath.Join(t.TempDir(), n), Initial: initial}}
	}
	return c
}

func (c *cluster) open(name string) error {
	n := c.nodes[name]
	n.fails = make(chan error, 1)
	n.cfg.Heartbeat = 100 * time.Millisecond
	n.cfg.OnFailure = func(err error) { n.fails <- err }
	_, trans := raft.NewInmemTransportWithTimeout(raft.ServerAddress(name), 200*time.Millisecond)
	n.trans = trans
	n.cfg.Transport = trans
	cat, err := Open(n.cfg)
	if err != nil {
		return err
	}
	c.mu.Lock()
	n.cat = cat
	c.mu.Unlock()
	c.connect()
	return nil
}

// start opens nodes and connects them with all that run and are not cut off.
func (c *cluster) start(names ...string) {
	c.t.Helper()
	for _, n := range names {
		if err := c.open(n); err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c *cluster) connect() {
	for a, x := range c.nodes {
		if x.cat == nil {
			continue
		}
		x.trans.DisconnectAll()
		for b, y := range c.nodes {
			if a != b && y.cat != nil && !c.cut[a] && !c.cut[b] {
				x.trans.Connect(raft.ServerAddress(b), y.trans)
			}
		}
	}
}

func (c *cluster) isolate(name string, cut bool) {
	c.cut[name] = cut
	c.connect()
}

func (c *cluster) stop(name string) {
	n := c.nodes[name]
	if n.cat == nil {
		return
	}
	cat := n.cat
	n.cat = nil
	c.connect()
	if err := cat.Close(); err != nil {
		c.t.Errorf("close %s: %v", name, err)
	}
}

// wipe takes a stopped node's disk away and gives it a blank one, with another ID.
func (c *cluster) wipe(name string, id int) {
	n := c.nodes[name]
	if err := os.RemoveAll(n.cfg.Dir); err != nil {
		c.t.Fatal(err)
	}
	n.cfg.NodeID = uid(id)
}

// eventually polls, since Raft tells nobody when it has caught up.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("still not so after 20 s: %s", what)
}

func (c *cluster) leader() string {
	for name, n := range c.nodes {
		if n.cat != nil && !c.cut[name] && n.cat.IsLeader() {
			return name
		}
	}
	return ""
}

// propose finds the leader, as the API does, and proposes again while the outcome is unknown.
func (c *cluster) propose(change Change) (Result, error) {
	c.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		name := c.leader()
		if name == "" {
			continue
		}
		ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Second)
		r, err := c.nodes[name].cat.Propose(ctx, change)
		cancel()
		var not *NotLeaderError
		if errors.As(err, &not) || errors.Is(err, ErrUnknown) {
			continue
		}
		return r, err
	}
	c.t.Fatalf("no leader took %s", change.kind())
	return Result{}, nil
}

func (c *cluster) mustPropose(changes ...Change) Result {
	c.t.Helper()
	var r Result
	for _, ch := range changes {
		var err error
		if r, err = c.propose(ch); err != nil {
			c.t.Fatalf("%s: %v", ch.kind(), err)
		}
	}
	return r
}

func (c *cluster) register(names ...string) {
	c.t.Helper()
	for _, n := range names {
		kind := KindData
		if n == "w" {
			kind = KindWitness
		}
		c.mustPropose(&RegisterNode{Name: n, ID: c.nodes[n].cfg.NodeID, Kind: kind})
	}
}

func (c *cluster) sees(name string, r Result) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	if _, err := c.nodes[name].cat.WaitIndex(ctx, r.Index); err != nil {
		c.t.Fatalf("%s does not see change %d: %v", name, r.Index, err)
	}
}

func TestGroupAgreesAndSurvivesRestartsOfAllInEveryOrder(t *testing.T) {
	c := newCluster(t, "a", "b", "w")
	c.start("a", "b", "w")
	c.register("a", "b", "w")
	r := c.mustPropose(mirrored(7, "vm1"))
	want := ""
	for round, order := range [][]string{{"a", "b", "w"}, {"w", "b", "a"}, {"b", "w", "a"}} {
		for _, n := range []string{"a", "b", "w"} {
			c.sees(n, r)
			got := asJSON(t, c.nodes[n].cat.Model())
			if want != "" && got != want {
				t.Fatalf("round %d: %s has %s\nothers %s", round, n, got, want)
			}
			want = got
		}
		for _, n := range order {
			c.stop(n)
		}
		c.start(order...)
		r = c.mustPropose(&SetSetting{Key: "round", Value: fmt.Sprint(round)})
		if r.Index <= 4 {
			t.Fatalf("index %d after a restart", r.Index)
		}
		want = ""
	}
}

func TestFollowerNamesTheLeaderAndChangesNothing(t *testing.T) {
	c := newCluster(t, "a", "b", "w")
	c.start("a", "b", "w")
	c.register("a", "b", "w")
	tries := 0
	eventually(t, "every follower names the leader", func() bool { // there may be an election on a busy machine
		leader := c.leader()
		if leader == "" {
			return false
		}
		tries++
		key := fmt.Sprintf("try.%d", tries)
		for name, n := range c.nodes {
			if name == leader {
				continue
			}
			var not *NotLeaderError
			if _, err := n.cat.Barrier(t.Context()); !errors.As(err, &not) {
				return false
			}
			if _, err := n.cat.Propose(t.Context(), &SetSetting{Key: key, Value: "v"}); !errors.As(err, &not) || not.Leader != leader {
				return false
			}
		}
		m, err := c.nodes[leader].cat.Barrier(t.Context())
		return err == nil && len(m.Nodes) == 3 && m.Settings[key] == ""
	})
}

func TestIsolatedLeaderDoesNotCommitAndSaysSo(t *testing.T) {
	c := newCluster(t, "a", "b", "w")
	c.start("a", "b", "w")
	c.register("a", "b", "w")
	old := c.leader()
	c.isolate(old, true)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := c.nodes[old].cat.Propose(ctx, &SetSetting{Key: "k", Value: "old"})
	var not *NotLeaderError
	if !errors.Is(err, ErrUnknown) && !errors.As(err, &not) {
		t.Fatalf("a leader without a majority answered %v", err)
	}
	r := c.mustPropose(&SetSetting{Key: "k", Value: "new"})
	c.isolate(old, false)
	c.sees(old, r)
	if got := c.nodes[old].cat.Model().Settings["k"]; got != "new" {
		t.Fatalf("setting is %q", got)
	}
}

// Who hands over knows at once who leads, and a change made there is taken without an election.
func TestLeadershipIsHandedOver(t *testing.T) {
	c := newCluster(t, "a", "b", "w")
	c.start("a", "b", "w")
	c.register("a", "b", "w")
	eventually(t, "somebody leads", func() bool { return c.leader() != "" })
	old := c.nodes[c.leader()].cat
	if err := old.HandOver(t.Context()); err != nil {
		t.Fatal(err)
	}
	leader, known := old.Leader()
	if !known || leader == old.cfg.Node || old.IsLeader() {
		t.Fatalf("%q leads, as %s sees it", leader, old.cfg.Node)
	}
	if _, err := c.nodes[leader].cat.Propose(t.Context(), &SetSetting{Key: "k", Value: "v"}); err != nil {
		t.Error(err)
	}
	if err := old.HandOver(t.Context()); err != nil { // it has nothing to hand over any more
		t.Error(err)
	}

	alone := newCluster(t, "s")
	alone.start("s")
	eventually(t, "it leads", func() bool { return alone.leader() == "s" })
	if err := alone.nodes["s"].cat.HandOver(t.Context()); err == nil || !alone.nodes["s"].cat.IsLeader() {
		t.Errorf("handed over to nobody: %v", err)
	}
}

// TestBlankDiskDoesNotVote is the case that loses data without the guard: an entry committed by a and w, then w's disk is
// lost and a is down. b lacks the entry; with the vote of a blank w it would lead.
func TestBlankDiskDoesNotVote(t *testing.T) {
	c := newCluster(t, "a", "b", "w")
	c.start("a", "b", "w")
	c.register("a", "b", "w")
	eventually(t, "a leads", func() bool {
		if l := c.leader(); l != "" && l != "a" {
			c.nodes[l].cat.raft.LeadershipTransferToServer("a", "a")
			return false
		}
		return c.leader() == "a"
	})
	c.isolate("b", true)
	r := c.mustPropose(&SetSetting{Key: "k", Value: "acknowledged"})
	c.sees("w", r)
	c.stop("w")
	c.stop("a")
	c.wipe("w", 33)
	c.isolate("b", false)
	c.start("w")

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second) // 20 election timeouts
	defer cancel()
	for ctx.Err() == nil {
		if l := c.leader(); l != "" {
			t.Fatalf("%s was elected without the acknowledged change", l)
		}
		time.Sleep(5 * time.Millisecond)
	}

	c.start("a")
	eventually(t, "a leads again", func() bool { return c.leader() != "" })
	c.sees("b", r)
	if _, err := c.propose(&RegisterNode{Name: "w", ID: uid(33), Kind: KindWitness}); !errors.Is(err, ErrIdentity) {
		t.Fatalf("the blank disk was registered under the lost one's name: %v", err)
	}
	if c.nodes["w"].cat.guard.confirmed.Load() {
		t.Fatal("the blank disk may vote")
	}

	// The operator's way out: remove the lost node, add the new one.
	c.mustPropose(&RemoveNode{Name: "w"})
	c.register("w")
	eventually(t, "w has found itself", func() bool { return c.nodes["w"].cat.guard.confirmed.Load() })
	c.mustPropose(&RegisterNode{Name: "w", ID: uid(33), Kind: KindWitness, Ready: true})
	c.stop("a")
	r = c.mustPropose(&SetSetting{Key: "k", Value: "without a"})
	c.sees("w", r)
}

func TestNodeAddedLaterVotesOnceItHasCaughtUp(t *testing.T) {
	c := newCluster(t, "a")
	c.start("a")
	c.register("a")
	for i, n := range []string{"b", "w"} {
		c.nodes[n] = &testNode{cfg: Config{Cluster: "lab", Node: n, NodeID: uid(50 + i), Dir: filepath.Join(t.TempDir(), n)}}
		c.start(n)
		c.register(n)
		if m, err := c.nodes["a"].cat.Members(); err != nil || len(m) != i+2 || m[i+1] != (Member{Node: n}) {
			t.Fatalf("members %v, %v", m, err)
		}
		eventually(t, n+" sees itself", func() bool { _, ok := c.nodes[n].cat.Model().Nodes[n]; return ok })
		c.mustPropose(&RegisterNode{Name: n, ID: c.nodes[n].cfg.NodeID, Kind: c.nodes["a"].cat.Model().Nodes[n].Kind, Ready: true})
	}
	members, err := c.nodes["a"].cat.Members()
	if err != nil || len(members) != 3 || !members[1].Voter || !members[2].Voter {
		t.Fatalf("members %v, %v", members, err)
	}
	c.stop("a")
	r := c.mustPropose(&SetSetting{Key: "k", Value: "v"})
	c.sees("b", r)
	c.sees("w", r)
	c.mustPropose(&RemoveNode{Name: "a"})
	members, err = c.nodes[c.leader()].cat.Members()
	if err != nil || len(members) != 2 {
		t.Fatalf("members after the removal %v, %v", members, err)
	}
}

func TestMemberFarBehindCatchesUpBySnapshot(t *testing.T) {
	c := newCluster(t, "a", "b", "w")
	for _, n := range c.nodes {
		n.cfg.SnapshotEntries = 5
	}
	c.start("a", "b", "w")
	c.register("a", "b", "w")
	c.stop("w")
	var r Result
	for i := range 40 {
		r = c.mustPropose(&SetSetting{Key: "k", Value: fmt.Sprint(i)})
	}
	for _, n := range []string{"a", "b"} {
		c.sees(n, r)
		if err := c.nodes[n].cat.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
		if first, err := c.nodes[n].cat.store.FirstIndex(); err != nil || first < 20 {
			t.Fatalf("%s's log begins at %d (%v): the test needs it cut", n, first, err)
		}
	}
	c.start("w")
	c.sees("w", r)
	if got := c.nodes["w"].cat.Model().Settings["k"]; got != "39" {
		t.Fatalf("w has %q", got)
	}
	// From its own snapshot and log alone it starts again with no leader to ask.
	for _, n := range []string{"a", "b", "w"} {
		c.stop(n)
	}
	c.start("a")
	if got := c.nodes["a"].cat.Model().Settings["k"]; got != "39" {
		t.Fatalf("after a restart from the snapshot: %q", got)
	}
}

func TestDamageOnDiskStopsTheCatalogWithTheReason(t *testing.T) {
	c := newCluster(t, "a")
	c.start("a")
	c.register("a")
	for i := range 20 {
		c.mustPropose(&SetSetting{Key: fmt.Sprintf("k%d", i), Value: "v"})
	}
	c.stop("a")
	path := filepath.Join(c.nodes["a"].cfg.Dir, "raft.db")
	for name, damage := range map[string]func(*bbolt.Tx, []byte) error{
		"flipped bit in an entry": func(tx *bbolt.Tx, key []byte) error {
			v := append([]byte(nil), tx.Bucket([]byte("logs")).Get(key)...)
			v[len(v)/2] ^= 1
			return tx.Bucket([]byte("logs")).Put(key, v)
		},
		"entry of another index": func(tx *bbolt.Tx, key []byte) error {
			b := tx.Bucket([]byte("logs"))
			_, other := b.Cursor().Last()
			return b.Put(key, append([]byte(nil), other...))
		},
		"hole": func(tx *bbolt.Tx, key []byte) error { return tx.Bucket([]byte("logs")).Delete(key) },
		"flipped bit in the term": func(tx *bbolt.Tx, _ []byte) error {
			v := append([]byte(nil), tx.Bucket([]byte("conf")).Get(keyTerm)...)
			v[0] ^= 4
			return tx.Bucket([]byte("conf")).Put(keyTerm, v)
		},
		"flipped bit in the confirmation": func(tx *bbolt.Tx, _ []byte) error {
			v := append([]byte(nil), tx.Bucket([]byte("conf")).Get(keyMember)...)
			v[0] ^= 4
			return tx.Bucket([]byte("conf")).Put(keyMember, v)
		},
	} {
		t.Run(name, func(t *testing.T) {
			good, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			db, err := bbolt.Open(path, 0o600, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := db.Update(func(tx *bbolt.Tx) error { return damage(tx, []byte{0, 0, 0, 0, 0, 0, 0, 9}) }); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			if err := c.open("a"); !errors.Is(err, ErrCorrupt) {
				c.stop("a")
				t.Fatalf("opened a damaged catalog: %v", err)
			}
			if err := os.WriteFile(path, good, 0o600); err != nil {
				t.Fatal(err)
			}
		})
	}
	c.start("a")
	c.mustPropose(&SetSetting{Key: "k", Value: "well again"})
}

func TestDamagedSnapshotIsNotReplacedByAnOlderOne(t *testing.T) {
	c := newCluster(t, "a")
	c.nodes["a"].cfg.SnapshotEntries = 1
	c.start("a")
	c.register("a")
	for i := range 2 {
		for j := range 20 {
			c.mustPropose(&SetSetting{Key: "k", Value: fmt.Sprint(i, j)})
		}
		if err := c.nodes["a"].cat.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	c.stop("a")
	found, err := filepath.Glob(filepath.Join(c.nodes["a"].cfg.Dir, "snapshots", "*"))
	if err != nil || len(found) != 2 {
		t.Fatalf("snapshots %v, %v", found, err)
	}
	newest := found[1] // names begin with term and index
	for _, file := range []string{"state.bin", "meta.json"} {
		path := filepath.Join(newest, file)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		bad := append([]byte(nil), good...)
		bad[0] ^= 1
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := c.open("a"); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%s damaged: %v", file, err)
		}
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	db := filepath.Join(c.nodes["a"].cfg.Dir, "raft.db")
	if err := os.Rename(db, db+".away"); err != nil {
		t.Fatal(err)
	}
	if err := c.open("a"); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "raft.db") {
		t.Fatalf("without the log and the votes: %v", err)
	}
	if err := os.Rename(db+".away", db); err != nil {
		t.Fatal(err)
	}
	c.start("a")
	if got := c.nodes["a"].cat.Model().Settings["k"]; got != "1 19" {
		t.Fatalf("after the repair: %q", got)
	}
}

func TestEntryThatCannotBeUnderstoodIsNeverApplied(t *testing.T) {
	c := newCluster(t, "a", "b", "w")
	c.start("a", "b", "w")
	c.register("a", "b", "w")
	leader := c.nodes[c.leader()]
	before := asJSON(t, leader.cat.Model())
	// What a leader of a newer version would write.
	_ = leader.cat.raft.Apply([]byte(`{"v":1,"kind":"conquer","crc":0,"body":{}}`), time.Second).Error()
	select {
	case err := <-leader.fails:
		if leader.cat.Err() == nil || !strings.Contains(err.Error(), "log entry") {
			t.Fatal(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the leader went on")
	}
	if _, err := leader.cat.Propose(t.Context(), &SetSetting{Key: "k", Value: "v"}); err == nil {
		t.Fatal("a stopped catalog took a change")
	}
	for name, n := range c.nodes {
		// A follower that has not heard of the commit is merely waiting.
		if got := asJSON(t, n.cat.Model()); got != before && n.cat.Err() != nil {
			t.Fatalf("%s applied it: %s", name, got)
		}
	}
}

func TestCloseEndsWaitersAndIsIdempotent(t *testing.T) {
	c := newCluster(t, "a", "b", "w")
	c.start("a", "b", "w")
	c.register("a", "b", "w")
	leader := c.leader()
	cat := c.nodes[leader].cat
	for n := range c.nodes {
		if n != leader {
			c.stop(n)
		}
	}
	answers := make(chan error, 2)
	go func() { _, err := cat.WaitIndex(context.Background(), 1<<40); answers <- err }()
	go func() {
		_, err := cat.Propose(context.Background(), &SetSetting{Key: "k", Value: "v"})
		answers <- err
	}()
	c.stop(leader)
	for range 2 {
		if err := <-answers; err == nil {
			t.Fatal("a waiter was told of success")
		}
	}
	if err := cat.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := cat.Propose(t.Context(), &RemoveNode{Name: "a"}); !errors.Is(err, ErrClosed) {
		t.Fatalf("propose after close: %v", err)
	}
	if _, err := cat.Barrier(t.Context()); !errors.Is(err, ErrClosed) {
		t.Fatalf("barrier after close: %v", err)
	}
}

func TestOpenRefusesADirectoryOfAnother(t *testing.T) {
	c := newCluster(t, "a")
	c.start("a")
	if err := c.open("a"); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Fatalf("two processes opened one catalog: %v", err)
	}
	c.register("a")
	if err := c.nodes["a"].cat.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	c.stop("a")
	c.nodes["a"].cfg.NodeID = uid(77)
	if err := c.open("a"); !errors.Is(err, ErrIdentity) {
		t.Fatalf("opened with another node's ID: %v", err)
	}
	c.nodes["a"].cfg.NodeID, c.nodes["a"].cfg.Cluster = uid(1), "other"
	if err := c.open("a"); err == nil || !strings.Contains(err.Error(), `"lab"`) {
		t.Fatalf("opened as another cluster: %v", err)
	}
}

func TestVoteIsOneWrite(t *testing.T) {
	dir := t.TempDir()
	s, err := openStore(dir, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	vote := func(term uint64, who string) {
		if err := errors.Join(s.SetUint64(keyVoteTerm, term), s.Set(keyVoteCand, []byte(who))); err != nil {
			t.Fatal(err)
		}
	}
	vote(5, "a")
	// The power is cut between the two.
	if err := errors.Join(s.SetUint64(keyVoteTerm, 6), s.Close()); err != nil {
		t.Fatal(err)
	}
	if s, err = openStore(dir, func(error) {}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	term, err := s.GetUint64(keyVoteTerm)
	who, err2 := s.Get(keyVoteCand)
	if err != nil || err2 != nil || term != 5 || string(who) != "a" {
		t.Fatalf("vote %d %q (%v, %v), want 5 a: a's vote of term 5 stands under term 6", term, who, err, err2)
	}
	vote(6, "b")
	term, _ = s.GetUint64(keyVoteTerm)
	if who, _ = s.Get(keyVoteCand); term != 6 || string(who) != "b" {
		t.Fatalf("vote %d %q", term, who)
	}
}

func TestRestoreNeverGoesBackwards(t *testing.T) {
	f := newFSM("lab", func(*Model) {}, func(error) {})
	m, _ := must(t, NewModel("lab"), &SetSetting{Key: "k", Value: "1"}, &SetSetting{Key: "k", Value: "2"})
	old, _ := must(t, NewModel("lab"), &SetSetting{Key: "k", Value: "1"})
	for _, test := range []struct {
		m  *Model
		ok bool
	}{{m, true}, {old, false}, {m, true}} {
		b, err := encodeSnapshot(test.m)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Restore(readCloser{strings.NewReader(string(b))}); (err == nil) != test.ok {
			t.Fatalf("restore of index %d over %d: %v", test.m.Index, f.model.Load().Index, err)
		}
		b[len(b)/2] ^= 1
		if err := f.Restore(readCloser{strings.NewReader(string(b))}); err == nil {
			t.Fatal("a damaged snapshot was restored")
		}
	}
	if f.model.Load().Settings["k"] != "2" {
		t.Fatal("went backwards")
	}
}

type readCloser struct{ *strings.Reader }

func (readCloser) Close() error { return nil }
