package replication

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/replication/transport"
)

func spec(n byte) block.SnapshotSpec {
	return block.SnapshotSpec{ID: block.SnapshotID{15: n}, Name: "s" + string(rune('0'+n)), Created: int64(n)}
}

// snap makes snapshot n through whoever owns the LUN.
func (c *cluster) snap(ctx context.Context, n byte) {
	c.t.Helper()
	c.byOwner(ctx, "snapshot "+spec(n).Name, func(g *Group) error { return g.CreateSnapshot(ctx, spec(n)) })
}

func (c *cluster) rollBack(ctx context.Context, n byte) {
	c.t.Helper()
	c.byOwner(ctx, "roll back to "+spec(n).Name, func(g *Group) error { return g.Rollback(ctx, spec(n).ID) })
}

func (c *cluster) deleteSnapshot(ctx context.Context, n byte) {
	c.t.Helper()
	asked := false
	c.byOwner(ctx, "delete "+spec(n).Name, func(g *Group) error {
		err := g.DeleteSnapshot(ctx, spec(n).ID)
		if asked && errors.Is(err, block.ErrNoSnapshot) { // that was the one whose outcome was unknown
			return nil
		}
		asked = asked || errors.Is(err, block.ErrUnknown)
		return err
	})
}

// byOwner has whoever owns the LUN do something, as often as it takes on a machine so busy that ownership changes meanwhile.
func (c *cluster) byOwner(ctx context.Context, what string, do func(*Group) error) {
	c.t.Helper()
	for {
		err := do(c.group(c.owner()))
		if err == nil {
			return
		}
		if !retryable(err) {
			c.t.Fatalf("%s: %v", what, err)
		}
		select {
		case <-ctx.Done():
			c.t.Fatalf("%s: %v", what, err)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// version reads one block of a state.
func version(t *testing.T, r blockstore.Reader, n int) uint64 {
	t.Helper()
	buf := make([]byte, block.Size)
	if err := r.ReadAt(blockRange(n), buf); err != nil {
		t.Fatal(err)
	}
	v, err := untag(n, buf)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func view(t *testing.T, g *Group, n byte) *blockstore.View {
	t.Helper()
	v, err := g.View(spec(n).ID)
	if err != nil {
		t.Fatalf("snapshot %d: %v", n, err)
	}
	return v
}

// compareSnapshots fails unless two copies have the same snapshots with the same contents, and the same live volume.
func compareSnapshots(t *testing.T, c *cluster, a, b string) {
	t.Helper()
	compareCopies(t, c, a, b)
	have := c.group(a).Snapshots()
	if !slices.Equal(have, c.group(b).Snapshots()) {
		t.Fatalf("%s has %v, %s has %v", a, have, b, c.group(b).Snapshots())
	}
	for _, s := range have {
		va, errA := c.group(a).View(s.ID)
		vb, errB := c.group(b).View(s.ID)
		if err := errors.Join(errA, errB); err != nil {
			t.Fatal(err)
		}
		r := block.Range{Count: s.Capacity}
		da, db := make([]byte, r.Bytes()), make([]byte, r.Bytes())
		if err := errors.Join(va.ReadAt(r, da), vb.ReadAt(r, db)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(da, db) {
			t.Fatalf("snapshot %s is not the same on both", s.Name)
		}
	}
}

// A snapshot is the same on every copy, survives what is written later and a new owner, and is what a rollback brings back.
func TestSnapshotsAreTheSameOnEveryCopy(t *testing.T) {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	write := func(blocks int, v uint64) {
		t.Helper()
		for n := range blocks {
			if err := c.write(ctx, n, v); err != nil {
				t.Fatal(err)
			}
		}
	}
	owner := c.owner()
	other := map[string]string{"a": "b", "b": "a"}[owner]
	eventually(t, "both copies in sync", func() bool { return c.group(owner).Status().Health == HealthHealthy })
	write(100, 1)
	c.snap(ctx, 1)
	c.snap(ctx, 1) // as after an unknown outcome
	write(50, 2)
	c.snap(ctx, 2)
	write(10, 3)
	if n := len(c.group(owner).Snapshots()); n != 2 {
		t.Fatalf("%d snapshots", n)
	}
	compareSnapshots(t, c, "a", "b")
	for _, node := range []string{"a", "b"} {
		for n, want := range map[int][2]uint64{5: {1, 2}, 40: {1, 2}, 80: {1, 1}, 200: {0, 0}} {
			if one, two := version(t, view(t, c.group(node), 1), n), version(t, view(t, c.group(node), 2), n); one != want[0] || two != want[1] {
				t.Fatalf("on %s block %d is %d and %d in the snapshots", node, n, one, two)
			}
		}
	}
	refused := map[string]error{}
	eventually(t, "one node owns the LUN for as long as is asked", func() bool { // on a busy machine an election may come between
		owner = c.owner()
		other = map[string]string{"a": "b", "b": "a"}[owner]
		term := c.group(owner).Status().Term
		refused = map[string]error{
			"create on a node that does not own the LUN":    c.group(other).CreateSnapshot(ctx, spec(1)),
			"delete on a node that does not own the LUN":    c.group(other).DeleteSnapshot(ctx, spec(9).ID),
			"roll back on a node that does not own the LUN": c.group(other).Rollback(ctx, spec(9).ID),
			"delete what is not there":                      c.group(owner).DeleteSnapshot(ctx, spec(9).ID),
			"roll back what is not there":                   c.group(owner).Rollback(ctx, spec(9).ID),
		}
		st := c.group(owner).Status()
		return st.Serving && st.Term == term
	})
	for what, err := range refused {
		want := block.ErrNotOwner
		if strings.HasSuffix(what, "not there") {
			want = block.ErrNoSnapshot
		}
		if !errors.Is(err, want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	c.moved(t, other)
	c.rollBack(ctx, 1)
	compareSnapshots(t, c, "a", "b")
	for n := range 100 {
		if v := version(t, c.nodes[owner].vol, n); v != 1 {
			t.Fatalf("block %d is %d after the rollback", n, v)
		}
	}
	for node := range map[string]bool{"a": true, "b": true} {
		if n := c.nodes[node].rollbacks.Load(); n != 1 {
			t.Errorf("%s has told of %d rollbacks", node, n)
		}
	}
	write(20, 4)
	c.rollBack(ctx, 2)
	c.deleteSnapshot(ctx, 1)
	compareSnapshots(t, c, "a", "b")
	if v := version(t, c.nodes[owner].vol, 15); v != 2 {
		t.Fatalf("block 15 is %d", v)
	}
	if _, err := c.group(owner).View(spec(1).ID); !errors.Is(err, block.ErrNoSnapshot) {
		t.Fatalf("a deleted snapshot: %v", err)
	}
}

// A command is in a snapshot entirely or not at all: the snapshot waits for what is under way, and what comes later for it.
func TestSnapshotWaitsForWhatIsUnderWay(t *testing.T) {
	c := newCluster(t, blockstore.MediaRAM, "a")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	g := c.group(c.owner())
	under, err := g.locks.lock(ctx, blockRange(5)) // as a write of several entries holds it
	if err != nil {
		t.Fatal(err)
	}
	waiting := func(n int) {
		t.Helper()
		eventually(t, "it waits", func() bool {
			g.locks.mu.Lock()
			defer g.locks.mu.Unlock()
			return len(g.locks.tickets) >= n
		})
	}
	done := make(chan error, 2)
	go func() { done <- g.CreateSnapshot(ctx, spec(1)) }()
	waiting(2)
	go func() { done <- g.Write(ctx, g.Fence(), blockRange(9), tagged(9, 1)) }()
	waiting(3)
	if n := len(g.Snapshots()); n != 0 {
		t.Fatal("the snapshot did not wait")
	}
	g.locks.unlock(under)
	if err := errors.Join(<-done, <-done); err != nil {
		t.Fatal(err)
	}
	if v := version(t, view(t, g, 1), 9); v != 0 {
		t.Fatalf("what came after the snapshot is in it: %d", v)
	}
}

// The limit is the owner's to look at: an entry that does nothing on one copy might do something on another.
func TestTooManySnapshotsAreRefusedBeforeTheyAreProposed(t *testing.T) {
	c := newCluster(t, blockstore.MediaRAM, "a")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	g := c.group(c.owner())
	id := func(n int) block.SnapshotSpec {
		return block.SnapshotSpec{ID: block.SnapshotID{1, byte(n), byte(n >> 8)}, Name: "x"}
	}
	for n := range block.MaxSnapshots {
		if err := g.CreateSnapshot(ctx, id(n)); err != nil {
			t.Fatalf("snapshot %d: %v", n, err)
		}
	}
	last := g.Status().LastIndex
	if err := g.CreateSnapshot(ctx, id(block.MaxSnapshots)); !errors.Is(err, ErrTooManySnapshots) {
		t.Fatalf("one too many: %v", err)
	}
	if got := g.Status().LastIndex; got != last {
		t.Fatalf("the log went from %d to %d", last, got)
	}
	if err := g.CreateSnapshot(ctx, id(7)); err != nil {
		t.Fatalf("one that is there: %v", err)
	}
	if err := g.DeleteSnapshot(ctx, id(7).ID); err != nil {
		t.Fatal(err)
	}
	if err := g.CreateSnapshot(ctx, id(block.MaxSnapshots)); err != nil {
		t.Fatalf("after one was deleted: %v", err)
	}
}

// A log entry an older program cannot read would take its copy out: nothing about snapshots is proposed until all can.
func TestSnapshotsWaitUntilEveryCopyKnowsThem(t *testing.T) {
	c := newCluster(t, blockstore.MediaRAM, "a", "b", "w")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	owner := c.owner()
	other := map[string]string{"a": "b", "b": "a"}[owner]
	var mu sync.Mutex
	speaks := map[string]uint32{other: 0, "w": 1} // the witness does not read entries
	c.nodes[owner].host.protocol = func(node string) uint32 {
		mu.Lock()
		defer mu.Unlock()
		return speaks[node]
	}
	for _, v := range []uint32{0, transport.ProtocolSnapshots - 1} {
		mu.Lock()
		speaks[other] = v
		mu.Unlock()
		if err := c.group(owner).CreateSnapshot(ctx, spec(1)); !errors.Is(err, ErrOldMember) {
			t.Fatalf("with a copy that speaks %d: %v", v, err)
		}
	}
	mu.Lock()
	speaks[other] = c.nodes[owner].mux.Protocol(other)
	mu.Unlock()
	c.snap(ctx, 1)
}

// An older program that asks to be rebuilt would end without the snapshots.
func TestOlderReceiverIsRefusedWhereThereAreSnapshots(t *testing.T) {
	c := newCluster(t, blockstore.MediaRAM, "a")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	if err := c.write(ctx, 1, 1); err != nil {
		t.Fatal(err)
	}
	old := []byte(`{"lun":"` + testLUN + `","id":"b/1"}`)
	host := c.nodes[c.owner()].host
	if _, err := host.serveRebuildPin(ctx, "b", old); err != nil {
		t.Fatalf("without snapshots: %v", err)
	}
	c.snap(ctx, 1)
	if _, err := host.serveRebuildPin(ctx, "b", old); err == nil {
		t.Fatal("it would be rebuilt without the snapshot")
	}
}

// What may not share an entry goes alone, and keeps its place.
func TestOperationsOnSnapshotsAreAloneInTheirEntry(t *testing.T) {
	c := newCluster(t, blockstore.MediaRAM, "a")
	p := newProposer(c.group("a"), 1<<20)
	add := func(op block.Op) {
		q := &part{w: &write{fence: 1}}
		q.add(op)
		p.queue = append(p.queue, q)
	}
	zero := block.Op{Kind: block.OpZero, Range: blockRange(1)}
	for _, op := range []block.Op{zero, zero, block.DeleteSnapshotOp(block.SnapshotID{1}), zero, block.RollbackOp(block.SnapshotID{1}), block.SnapshotOp(spec(1)), zero, zero} {
		add(op)
	}
	var sizes []int
	for len(p.queue) > 0 {
		p.eager = 0
		parts, _ := p.takeLocked()
		sizes = append(sizes, len(parts))
	}
	if !slices.Equal(sizes, []int{2, 1, 1, 1, 1, 2}) {
		t.Fatalf("entries of %v operations", sizes)
	}
}
