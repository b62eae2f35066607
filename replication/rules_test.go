package replication

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/replication/command"
)

// Rule F at the state machine: an entry committed in another term than it was accepted in changes nothing, and whoever
// waits for it is not told that it did.
func TestEntryOfAnotherTermChangesNothing(t *testing.T) {
	c := newCluster(t, blockstore.MediaRAM, "a")
	g := c.group(c.owner())
	term := g.Status().Term
	if err := g.Write(context.Background(), g.Fence(), blockRange(3), tagged(3, 1)); err != nil {
		t.Fatal(err)
	}
	data := tagged(3, 2)
	stale, err := command.Encode(term-1, 12345, []block.Op{{
		Kind: block.OpWrite, Range: blockRange(3), Data: data, Sums: block.AppendSums(nil, data),
	}})
	if err != nil {
		t.Fatal(err)
	}
	before := c.nodes["a"].vol.Applied()
	f := g.running().raft.ApplyLog(raft.Log{Data: stale}, time.Second)
	if err := f.Error(); err != nil {
		t.Fatal(err)
	}
	if v, err := c.read(3); err != nil || v != 1 {
		t.Fatalf("block holds version %d (%v): the fence did not hold", v, err)
	}
	if after := c.nodes["a"].vol.Applied(); after <= before {
		t.Fatal("the entry was not counted as applied")
	}
	// The same through the proposer: a command accepted under an old term.
	if _, err := g.writes.propose(context.Background(), term-1, []block.Op{{Kind: block.OpZero, Range: blockRange(3)}}, false); !errors.Is(err, block.ErrNotOwner) {
		t.Fatalf("a stale command: %v", err)
	}
}

// An entry without its payload, as a witness has them, stops the replica that meets it.
func TestStrippedEntryHaltsADataReplica(t *testing.T) {
	c := newCluster(t, blockstore.MediaRAM, "a")
	g := c.group(c.owner())
	if err := g.Write(context.Background(), g.Fence(), blockRange(1), tagged(1, 1)); err != nil {
		t.Fatal(err)
	}
	applied := c.nodes["a"].vol.Applied()
	_ = g.running().raft.ApplyLog(raft.Log{Data: nil}, time.Second).Error()
	eventually(t, "the replica is out", func() bool { return g.Err() != nil })
	if got := c.nodes["a"].vol.Applied(); got != applied {
		t.Fatalf("applied went from %d to %d", applied, got)
	}
	if err := g.Read(context.Background(), blockRange(1), make([]byte, block.Size)); !errors.Is(err, block.ErrNotOwner) {
		t.Fatalf("a halted replica answers %v", err)
	}
	if err := g.Err(); !errors.Is(err, command.ErrFormat) {
		t.Fatalf("it is out for %v", err)
	}
}

// A replica that was away while the log moved on is rebuilt, and only what changed travels.
func TestReplicaThatWasAwayIsRebuiltByDifference(t *testing.T) {
	c := &cluster{limits: Limits{JournalKeepBytes: 1, CheckpointBytes: 256 << 10}}
	c = newClusterWith(t, c, blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	const all, changed = 2000, 40
	for n := range all {
		if err := c.write(ctx, n, 1); err != nil {
			t.Fatal(err)
		}
	}
	away := map[string]string{"a": "b", "b": "a"}[c.owner()]
	c.stop(away)
	for round := range 20 { // the same few blocks, so that the log grows by more than what has changed
		for n := range changed {
			if err := c.write(ctx, n*7, uint64(2+round)); err != nil {
				t.Fatal(err)
			}
		}
	}
	owner := c.owner()
	eventually(t, "the owner's log begins after what the other has", func() bool {
		first, _ := c.group(owner).cfg.Journal.FirstIndex()
		return first > all+10*changed
	})
	c.start(away, false)
	eventually(t, "both copies in sync", func() bool { return c.group(owner).Status().Health == HealthHealthy })
	if got := c.group(away).Status().Copied; got == 0 || got > 2*changed*block.Size {
		t.Errorf("%d bytes travelled for %d changed blocks of %d", got, changed, all)
	}
	compareCopies(t, c, "a", "b")
	// It counts again: the LUN survives the other one.
	c.stop(owner)
	for n := range all {
		want := uint64(1)
		if n%7 == 0 && n/7 < changed {
			want = 21
		}
		if got, err := c.read(n); err != nil || got != want {
			t.Fatalf("block %d: version %d (%v), want %d", n, got, err, want)
		}
	}
}

// A replica that falls behind the log again, after a rebuild and before it votes, is rebuilt once more: an order that was
// carried out does not count for the next time.
func TestReplicaThatFallsBehindAgainIsRebuiltAgain(t *testing.T) {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := c.write(ctx, 1, 1); err != nil {
		t.Fatal(err)
	}
	owner := c.owner()
	eventually(t, "both copies in sync", func() bool { return c.group(owner).Status().Health == HealthHealthy })
	g, receiver := c.group(owner), c.group(map[string]string{"a": "b", "b": "a"}[owner])
	id := receiver.cfg.Self.ID
	const before = "carried out"
	receiver.mu.Lock()
	receiver.rebuild.order = before
	receiver.mu.Unlock()
	g.changing.Lock()
	g.mu.Lock()
	g.rebuild.orders = map[raft.ServerID]string{id: before}
	g.mu.Unlock()
	for removed := false; !removed; { // a success that is still on its way takes the need back: again
		if ctx.Err() != nil {
			t.Fatal("the replica is not removed to be rebuilt")
		}
		g.mu.Lock()
		delete(g.match, id) // of one that has been heard to have everything it would not be believed
		g.mu.Unlock()
		g.needsRebuild(id)
		inst, servers, err := g.configuration()
		if err != nil {
			t.Fatal(err)
		}
		_ = g.settleMember(ctx, inst, receiver.cfg.Self, servers[id], servers) // says that something is left to do
		if _, servers, err = g.configuration(); err != nil {
			t.Fatal(err)
		}
		_, present := servers[id]
		removed = !present
	}
	g.changing.Unlock()
	receiver.mu.Lock()
	order := receiver.rebuild.order
	receiver.mu.Unlock()
	if order == before {
		t.Error("the replica was not told to rebuild again")
	}
	eventually(t, "both copies in sync again", func() bool { return c.group(owner).Status().Health == HealthHealthy })
	compareCopies(t, c, "a", "b")
}

// A replica in RAM returns empty, under a new ID, as a learner; the old ID never comes back.
func TestReplicaInRAMReturnsAsANewIncarnation(t *testing.T) {
	c := &cluster{limits: Limits{JournalKeepBytes: 1, CheckpointBytes: 256 << 10}}
	c = newClusterWith(t, c, blockstore.MediaRAM, "a", "b", "w")
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for n := range 500 {
		if err := c.write(ctx, n, 1); err != nil {
			t.Fatal(err)
		}
	}
	owner := c.owner()
	away := map[string]string{"a": "b", "b": "a"}[owner]
	c.stop(away)
	if err := c.write(ctx, 7, 2); err != nil {
		t.Fatal(err)
	}
	want := c.rename(away, "2")
	eventually(t, "the owner's log is cut", func() bool {
		first, _ := c.group(owner).cfg.Journal.FirstIndex()
		return first > 100
	})
	c.start(away, false)
	eventually(t, "the new incarnation votes", func() bool {
		return c.settled(owner, want, 1)
	})
	eventually(t, "both copies in sync", func() bool { return c.group(owner).Status().Health == HealthHealthy })
	for _, p := range c.group(owner).Status().Peers {
		if p.ID == raft.ServerID(away+"/1") {
			t.Fatal("the old incarnation is still a member")
		}
	}
	compareCopies(t, c, "a", "b")
	c.stop(owner)
	if got, err := c.read(7); err != nil || got != 2 {
		t.Fatalf("read %d, %v", got, err)
	}
}

func compareCopies(t *testing.T, c *cluster, a, b string) {
	t.Helper()
	// What was acknowledged has been applied by the owner, and lies in the journals of the others.
	eventually(t, "both copies at the newest index", func() bool {
		newest := uint64(0)
		for _, n := range c.nodes {
			if n.vol != nil {
				newest = max(newest, n.vol.Applied())
			}
		}
		return c.nodes[a].vol.Applied() == newest && c.nodes[b].vol.Applied() == newest
	})
	r := block.Range{Count: c.geometry.Capacity}
	va, vb := make([]byte, r.Bytes()), make([]byte, r.Bytes())
	if err := errors.Join(c.nodes[a].vol.ReadAt(r, va), c.nodes[b].vol.ReadAt(r, vb)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(va, vb) {
		t.Fatal("the copies differ")
	}
}
