package replication

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/replication/transport/loopback"
)

// aloneInRAM is a LUN whose only copy is in RAM, on a, and whose data goes past the log.
func aloneInRAM(t *testing.T) *cluster {
	t.Helper()
	c := newClusterWith(t, &cluster{addrs: addresses(t, "b", "w")}, blockstore.MediaRAM, "a")
	c.awaitAlone("a")
	return c
}

// addresses are those of nodes that are to be started later.
func addresses(t *testing.T, nodes ...string) map[string]string {
	t.Helper()
	free, err := loopback.Addresses(len(nodes))
	if err != nil {
		t.Fatal(err)
	}
	addrs := map[string]string{}
	for i, n := range nodes {
		addrs[n] = free[i]
	}
	return addrs
}

func (g *Group) goesPastTheLog() bool {
	g.alone.mu.RLock()
	defer g.alone.mu.RUnlock()
	t := g.tenure.Load()
	return t != nil && g.alone.term == t.term
}

func (c *cluster) awaitAlone(node string) {
	c.t.Helper()
	eventually(c.t, node+" is alone, and its data goes past the log", c.group(node).goesPastTheLog)
}

// join starts a new incarnation on a node and tells everybody of it.
func (c *cluster) join(node string, id raft.ServerID, view View) {
	c.t.Helper()
	c.members = append(c.members, Member{ID: id, Node: node, Witness: node == "w", Joining: true})
	if err := c.startJoining(node); err != nil {
		c.t.Fatal(err)
	}
	c.follow(view)
}

// follow tells everybody of c.members.
func (c *cluster) follow(view View) {
	for _, n := range c.nodes {
		n.group.Follow(c.members, view)
	}
}

// awaitWhole waits until so many that joined hold everything and vote, and all are in sync.
func (c *cluster) awaitWhole(whole int) {
	c.t.Helper()
	eventually(c.t, "whoever joined is whole", func() bool {
		for node, n := range c.nodes {
			if n.group.Status().Serving {
				now, err := c.setMembers(node, c.members) // notes in c.members who has caught up
				n.group.Follow(c.members, View{Index: n.group.viewIndex(), Next: 100})
				return err == nil && len(now.Whole) == whole && n.group.Status().Health == HealthHealthy
			}
		}
		return false
	})
	for i := range c.members {
		c.members[i].Joining = false
	}
}

func (g *Group) viewIndex() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.view.Index
}

func lastIndex(t *testing.T, g *Group) uint64 {
	t.Helper()
	last, err := g.cfg.Journal.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	return last
}

// Whatever changes data, of one copy in RAM: the contents are what a model says, and the log does not grow by it.
func TestDataOfOneCopyInRAMGoesPastTheLog(t *testing.T) {
	c := aloneInRAM(t)
	g, ctx := c.group("a"), t.Context()
	const size = 1 << 20
	model := make([]byte, size)
	before, rng := lastIndex(t, g), rand.New(rand.NewPCG(1, 2))
	for i := range 2000 {
		r := block.Range{Start: block.Sector(rng.IntN(size/512 - 64)), Count: block.Count(1 + rng.IntN(64))}
		piece := model[r.Offset() : r.Offset()+r.Bytes()]
		var err error
		switch op := rng.IntN(4); op {
		case 0:
			clear(piece)
			err = g.Unmap(ctx, g.Fence(), []block.Range{r})
		case 1:
			pattern := bytes.Repeat([]byte{byte(1 + i%255)}, 512)
			copy(piece, bytes.Repeat(pattern, int(r.Count)))
			err = g.WriteSame(ctx, g.Fence(), r, pattern)
		case 2:
			err = g.Modify(ctx, g.Fence(), r, func(off int64, have []byte) {
				for j := range have {
					have[j] |= byte(i)
				}
			})
			for j := range piece {
				piece[j] |= byte(i)
			}
		default:
			for j := range piece {
				piece[j] = byte(rng.Uint32())
			}
			err = g.Write(ctx, g.Fence(), r, piece)
		}
		if err != nil {
			t.Fatal(err)
		}
		if i%50 == 0 {
			have := make([]byte, size)
			if err := g.Read(ctx, block.BytesRange(0, size), have); err != nil || !bytes.Equal(have, model) {
				t.Fatalf("after %d changes the contents are not what the model says (%v)", i+1, err)
			}
		}
	}
	if last := lastIndex(t, g); last != before {
		t.Errorf("the log has grown by %d entries", last-before)
	}
	// A command of another tenure finds no way past the log.
	if done, _ := g.applyAlone(&tenure{term: g.tenure.Load().term}, nil); done {
		t.Error("changed in a tenure that is not the current one")
	}
	// A compare and write decides, and is in the log.
	if at, err := g.CompareAndWrite(ctx, g.Fence(), blockRange(3), model[3*block.Size:4*block.Size], tagged(3, 1)); at != -1 || err != nil {
		t.Fatalf("%d, %v", at, err)
	}
	if v, err := c.read(3); err != nil || v != 1 {
		t.Fatalf("version %d, %v", v, err)
	}
}

// versionLoad writes new versions of some blocks, one after the other; each is acknowledged before the next.
type versionLoad struct {
	t        testing.TB
	versions []uint64 // that were acknowledged; the load's own until stop has returned
	groups   atomic.Pointer[[]*Group]
	writes   atomic.Int64
	stop     func()
}

func (c *cluster) startVersionLoad(versions []uint64) *versionLoad {
	l := &versionLoad{t: c.t, versions: versions}
	l.meet(c)
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ctx.Err() == nil; n = (n + 1) % len(versions) {
			for !l.write(n) {
				if ctx.Err() != nil {
					return
				}
				time.Sleep(time.Millisecond)
			}
			l.writes.Add(1)
		}
	}()
	l.stop = func() {
		cancel()
		<-done
	}
	return l
}

// meet tells the load who may own the LUN now.
func (l *versionLoad) meet(c *cluster) {
	var groups []*Group
	for _, n := range c.nodes {
		groups = append(groups, n.group)
	}
	l.groups.Store(&groups)
}

func (l *versionLoad) write(n int) bool {
	for _, g := range *l.groups.Load() {
		err := g.Write(context.Background(), g.Fence(), blockRange(n), tagged(n, l.versions[n]+1))
		if err == nil {
			l.versions[n]++
			return true
		}
		if !retryable(err) {
			l.t.Errorf("write of block %d: %v", n, err)
		}
	}
	return false
}

func (l *versionLoad) goesOn(writes int64) {
	l.t.Helper()
	from := l.writes.Load()
	eventually(l.t, "the load goes on", func() bool { return l.writes.Load() >= from+writes })
}

func (c *cluster) holds(versions []uint64) {
	c.t.Helper()
	for n, want := range versions {
		if v, err := c.read(n); err != nil || v != want {
			c.t.Fatalf("block %d is of version %d (%v), want %d", n, v, err, want)
		}
	}
}

// A second copy joins one in RAM that kept no log, under load, then the first goes, then it comes back, and so on: what was acknowledged is on both, each time.
func TestCopiesJoinOneInRAMThatKeptNoLog(t *testing.T) {
	c := aloneInRAM(t)
	const blocks = 200
	here, there := "a", "b"
	versions := make([]uint64, blocks)
	for round := range uint64(4) {
		quiet := lastIndex(t, c.group(here))
		for n := range versions {
			versions[n]++
			if err := c.write(t.Context(), n, versions[n]); err != nil {
				t.Fatal(err)
			}
		}
		if last := lastIndex(t, c.group(here)); last != quiet {
			t.Fatalf("round %d: the log has grown by %d entries", round, last-quiet)
		}
		load := c.startVersionLoad(versions)
		load.goesOn(blocks)
		c.join(there, raft.ServerID(there+"/"+string(rune('2'+round))), View{Index: 10*round + 5, Next: 100})
		load.meet(c)
		c.awaitWhole(1)
		load.goesOn(blocks)
		load.stop()
		compareCopies(t, c, "a", "b")
		c.holds(versions)
		if last := lastIndex(t, c.group(there)); last < quiet+blocks {
			t.Fatalf("round %d: two copies, and the log ends at %d", round, last)
		}
		load = c.startVersionLoad(versions)
		for i := range c.members {
			c.members[i].Leaving = c.members[i].Node == here
		}
		c.follow(View{Index: 10*round + 6, Next: 100})
		eventually(t, "the first has left", func() bool {
			_, servers, err := c.group(there).configuration()
			return err == nil && len(servers) == 1
		})
		c.members = []Member{c.member(there)}
		c.follow(View{Index: 10*round + 7, Next: 100})
		c.awaitAlone(there)
		load.goesOn(blocks)
		load.stop()
		c.stop(here)
		here, there = there, here
		c.holds(versions)
	}
}

// What takes a copy's place on its node is filled from it before it is a member. What went past the log since it was told where to begin is
// brought by the next fill, although the log would not tell of it.
func TestFillFromACopyThatKeptNoLog(t *testing.T) {
	c := aloneInRAM(t)
	ctx, g := t.Context(), c.group("a")
	f := newFilled(t, c)
	f.node = "a"
	for round := uint64(1); round < 4; round++ {
		for n := range 100 {
			if err := c.write(ctx, n, round); err != nil {
				t.Fatal(err)
			}
		}
		if !g.goesPastTheLog() {
			t.Fatal("not alone")
		}
		if err := f.fill(ctx); err != nil {
			t.Fatal(err)
		}
		if g.goesPastTheLog() {
			t.Fatal("data goes past the log after a copy was told where to begin")
		}
		for n := range 100 {
			got := make([]byte, block.Size)
			if err := f.vol.ReadAt(blockRange(n), got); err != nil || !bytes.Equal(got, tagged(n, round)) {
				v, _ := untag(n, got)
				t.Fatalf("round %d, block %d: version %d, %v", round, n, v, err)
			}
		}
		if err := g.maintained(ctx); err != nil || g.goesPastTheLog() {
			t.Fatalf("data goes past the log while somebody may join from an index (%v)", err)
		}
		g.mu.Lock()
		clear(g.rebuild.pinUntil) // as after a minute
		g.mu.Unlock()
		if err := g.maintained(ctx); err != nil {
			t.Fatal(err)
		}
		c.awaitAlone("a")
	}
}

// brokenOffStore is the store of a receiver whose copy is broken off at the first block behind a snapshot.
type brokenOffStore struct {
	Store
	snapshots, broken int
}

func (s *brokenOffStore) ImportSnapshot(x block.Snapshot) error {
	s.snapshots++
	return s.Store.ImportSnapshot(x)
}

func (s *brokenOffStore) Import(ops []block.Op) error {
	if s.broken < s.snapshots {
		s.broken++
		return errors.New("broken off")
	}
	return s.Store.Import(ops)
}

// A receiver that has a snapshot, and whose copy is broken off then, asks for what has changed since the snapshot's entry: what went past the log after it is among that.
func TestCopyBrokenOffBehindASnapshotOfOneThatKeptNoLog(t *testing.T) {
	c := aloneInRAM(t)
	ctx, g := t.Context(), c.group("a")
	const blocks = 3 * block.BlocksPerChunk
	for round := uint64(1); round < 4; round++ {
		for n := range blocks {
			if err := c.write(ctx, n, 10*round); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.CreateSnapshot(ctx, spec(byte(round))); err != nil {
			t.Fatal(err)
		}
		for v := range uint64(2) { // before it has begun again, and behind that
			for n := range blocks {
				if err := c.write(ctx, n, 10*round+1+v); err != nil {
					t.Fatal(err)
				}
			}
			c.awaitAlone("a")
		}
	}
	f := newFilled(t, c)
	broken := &brokenOffStore{}
	f.node, f.wrap = "a", func(s Store) Store { broken.Store = s; return broken }
	if err := f.fill(ctx); err != nil {
		t.Fatal(err)
	}
	if broken.snapshots != 3 || broken.broken != 3 {
		t.Fatalf("%d snapshots, broken off %d times", broken.snapshots, broken.broken)
	}
	want, got := make([]byte, blocks*block.Size), make([]byte, blocks*block.Size)
	for _, s := range c.nodes["a"].vol.Snapshots() {
		ours, err1 := c.nodes["a"].vol.View(s.ID)
		theirs, err2 := f.vol.View(s.ID)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		r := block.BytesRange(0, int64(len(want)))
		if err := errors.Join(ours.ReadAt(r, want), theirs.ReadAt(r, got)); err != nil || !bytes.Equal(want, got) {
			t.Errorf("snapshot %v is not the same (%v)", s.ID, err)
		}
	}
	for n := range blocks {
		if err := f.vol.ReadAt(blockRange(n), got[:block.Size]); err != nil {
			t.Fatal(err)
		}
		if v, err := untag(n, got[:block.Size]); err != nil || v != 32 {
			t.Fatalf("block %d is of version %d, %v", n, v, err)
		}
	}
}

// A group is closed and another one opened over the same volume in RAM, whose log does not hold everything: a copy that joins at once gets it all the same.
func TestLogThatIsNotCompleteIsKnownToTheNextGroup(t *testing.T) {
	c := aloneInRAM(t)
	for n := range 50 {
		if err := c.write(t.Context(), n, 7); err != nil {
			t.Fatal(err)
		}
	}
	g := c.group("a")
	cfg := g.cfg
	cfg.First, cfg.Bootstrap = false, nil
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	c.members = append(c.members, Member{ID: "b/2", Node: "b", Joining: true})
	cfg.Members = c.members // it is never alone again
	var err error
	if c.nodes["a"].group, err = c.nodes["a"].host.Open(cfg); err != nil {
		t.Fatal(err)
	}
	if err := c.startJoining("b"); err != nil {
		t.Fatal(err)
	}
	c.follow(View{Index: 5, Next: 100})
	c.awaitWhole(1)
	if err := c.write(t.Context(), 50, 7); err != nil { // now both count the same entry as applied last
		t.Fatal(err)
	}
	compareCopies(t, c, "a", "b")
	for n := range 51 {
		if v, err := c.read(n); err != nil || v != 7 {
			t.Fatalf("block %d is of version %d, %v", n, v, err)
		}
	}
}

// One copy on files keeps its log: what was acknowledged survives its process.
func TestOneCopyOnFilesKeepsItsLog(t *testing.T) {
	c := newCluster(t, blockstore.MediaFile, "a")
	c.owner()
	if err := c.group("a").maintained(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := lastIndex(t, c.group("a"))
	if err := c.write(t.Context(), 1, 1); err != nil {
		t.Fatal(err)
	}
	if last := lastIndex(t, c.group("a")); last != before+1 || c.group("a").goesPastTheLog() {
		t.Fatalf("the log has grown by %d entries", last-before)
	}
}

// A copy in RAM does not come back from the death of its process. Where two votes are left, on the way to two copies with a witness and back, it is not one of them beside another: the LUN would never
// have a majority again.
func TestCopyInRAMIsNotOneOfTwoVotesBesideAnother(t *testing.T) {
	c := aloneInRAM(t)
	for n := range 100 {
		if err := c.write(t.Context(), n, 1); err != nil {
			t.Fatal(err)
		}
	}
	c.join("b", "b/3", View{Index: 5, Next: 100})
	c.join("w", "w/2", View{Index: 6, Next: 100})
	c.awaitWhole(2)
	g := c.group("a")
	for i := range c.members {
		c.members[i].Leaving = c.members[i].Node != "a"
	}
	c.follow(View{Index: 7, Next: 100})
	eventually(t, "a is alone again", func() bool {
		_, servers, err := g.configuration()
		return err == nil && len(servers) == 1
	})
	first, err := g.cfg.Journal.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]int{} // configurations by their voters
	for i := first; i <= lastIndex(t, g); i++ {
		var l raft.Log
		if err := g.cfg.Journal.GetLog(i, &l); err != nil {
			t.Fatal(err)
		}
		if l.Type != raft.LogConfiguration {
			continue
		}
		voters := map[raft.ServerID]raft.Server{}
		for _, s := range raft.DecodeConfiguration(l.Data).Servers {
			if s.Suffrage == raft.Voter {
				voters[s.ID] = s
			}
		}
		seen[len(voters)]++
		if len(voters) == 2 && vote(voters, "a/1", "b/3") {
			t.Errorf("entry %d: the voters are %v", i, voters)
		}
	}
	if seen[2] != 2 || seen[3] == 0 {
		t.Fatalf("changes of members by voters: %v", seen)
	}
}

// A witness that is away is not waited for: a second copy is worth more.
func TestSecondCopyInRAMVotesWithoutAWitnessThatIsAway(t *testing.T) {
	c := aloneInRAM(t)
	if err := c.write(t.Context(), 1, 1); err != nil {
		t.Fatal(err)
	}
	c.members = append(c.members, Member{ID: "w/2", Node: "w", Witness: true, Joining: true})
	c.join("b", "b/3", View{Index: 5, Next: 100})
	g := c.group("a")
	eventually(t, "the copy votes", func() bool {
		_, _ = c.setMembers("a", c.members)
		g.Follow(c.members, View{Index: g.viewIndex(), Next: 100})
		_, servers, err := g.configuration()
		return err == nil && vote(servers, "a/1", "b/3")
	})
}

// slowStore takes its time over what goes past the log.
type slowStore struct {
	Store
	entered, leave chan struct{}
}

func (s slowStore) ApplyUnlogged(ops []block.Op) error {
	close(s.entered)
	<-s.leave
	return s.Store.ApplyUnlogged(ops)
}

// A tenure has ended only when nothing of it can change the volume any more: another group over the same volume may serve from then on.
func TestTenureEndsBehindWhatGoesPastTheLog(t *testing.T) {
	slow := slowStore{entered: make(chan struct{}), leave: make(chan struct{})}
	c := newClusterWith(t, &cluster{wrapStore: func(_ string, s Store) Store { slow.Store = s; return slow }}, blockstore.MediaRAM, "a")
	c.awaitAlone("a")
	g := c.group("a")
	wrote, ended := make(chan error, 1), make(chan struct{})
	go func() { wrote <- g.Write(context.Background(), g.Fence(), blockRange(1), tagged(1, 1)) }()
	<-slow.entered
	go func() {
		defer close(ended)
		g.endTenure()
	}()
	eventually(t, "the tenure is over", func() bool { return g.tenure.Load() == nil })
	select {
	case <-ended:
		t.Fatal("endTenure did not wait")
	case <-time.After(50 * time.Millisecond):
	}
	close(slow.leave)
	<-ended
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	if v := version(t, c.nodes["a"].vol, 1); v != 1 {
		t.Fatalf("version %d", v)
	}
}
