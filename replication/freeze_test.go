package replication

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// Writers that write to one LUN only after the other has acknowledged: snapshots of the two, taken while both are frozen, never
// hold a second write without the first.
func TestSnapshotsOfFrozenLUNsAreOneCut(t *testing.T) {
	const writers, rounds = 4, 8
	first, second := newCluster(t, blockstore.MediaRAM, "a", "b", "w"), newCluster(t, blockstore.MediaRAM, "a", "b", "w")
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	one, two := first.group(first.owner()), second.group(second.owner())
	for _, g := range []*Group{one, two} {
		eventually(t, "both copies in sync", func() bool { return g.Status().Health == HealthHealthy })
	}
	var wg sync.WaitGroup
	running, stop := context.WithCancel(ctx)
	defer stop()
	for w := range writers {
		wg.Go(func() {
			for v := uint64(1); running.Err() == nil; v++ {
				for _, g := range []*Group{one, two} {
					if err := g.Write(ctx, g.Fence(), blockRange(w), tagged(w, v)); err != nil {
						t.Errorf("write: %v", err)
						return
					}
				}
			}
		})
	}
	buf := make([]byte, block.Size)
	written := func() (v uint64) {
		if err := two.Read(ctx, blockRange(0), buf); err != nil {
			t.Fatal(err)
		}
		v, _ = untag(0, buf)
		return v
	}
	for round := byte(1); round <= rounds; round++ {
		before := written()
		eventually(t, "writers go on", func() bool { return written() > before+5 })
		var thaws []func() error
		for _, g := range []*Group{one, two} {
			thaw, err := g.Freeze(ctx, MaxFreeze)
			if err != nil {
				t.Fatal(err)
			}
			thaws = append(thaws, thaw)
		}
		for _, g := range []*Group{one, two} {
			if err := g.CreateSnapshot(ctx, spec(round)); err != nil {
				t.Fatal(err)
			}
		}
		for _, thaw := range thaws {
			if err := thaw(); err != nil {
				t.Fatal(err)
			}
		}
		a, b := view(t, one, round), view(t, two, round)
		for w := range writers {
			if va, vb := version(t, a, w), version(t, b, w); vb > va || va > vb+1 {
				t.Fatalf("round %d: writer %d has %d in the first LUN and %d in the second", round, w, va, vb)
			}
		}
	}
	stop()
	wg.Wait()
}

// A freeze is no longer than it was asked for, whatever becomes of who asked.
func TestFreezeEndsByItself(t *testing.T) {
	c := newCluster(t, blockstore.MediaRAM, "a")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	g := c.group(c.owner())
	if _, err := g.Freeze(ctx, MaxFreeze+1); err == nil {
		t.Fatal("a freeze without bound")
	}
	const d = 300 * time.Millisecond
	began := time.Now()
	thaw, err := g.Freeze(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Write(ctx, g.Fence(), blockRange(1), tagged(1, 1)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < d {
		t.Fatalf("a write was acknowledged %v after the LUN was frozen for %v", took, d)
	}
	if err := thaw(); !errors.Is(err, ErrFreezeOver) {
		t.Fatalf("thawed late: %v", err)
	}

	thaw, err = g.Freeze(ctx, MaxFreeze)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 3)
	go func() { done <- g.Write(ctx, g.Fence(), blockRange(1), tagged(1, 2)) }()
	go func() { done <- g.Grow(ctx, 2*c.geometry.Capacity) }()
	go func() { done <- g.Unmap(ctx, g.Fence(), []block.Range{blockRange(9)}) }()
	eventually(t, "they wait", func() bool {
		g.locks.mu.Lock()
		defer g.locks.mu.Unlock()
		return len(g.locks.tickets) == 4
	})
	if err := g.Read(ctx, blockRange(1), make([]byte, block.Size)); err != nil {
		t.Fatalf("a read while the LUN is frozen: %v", err)
	}
	select {
	case err := <-done:
		t.Fatalf("a change while the LUN is frozen: %v", err)
	default:
	}
	if err := thaw(); err != nil {
		t.Fatal(err)
	}
	for range cap(done) {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if err := thaw(); !errors.Is(err, ErrFreezeOver) {
		t.Fatalf("thawed twice: %v", err)
	}
}

// An owner that loses the LUN holds nothing back any more, and says that the cut is not certain.
func TestFreezeEndsWithTheTenure(t *testing.T) {
	c := newCluster(t, blockstore.MediaRAM, "a", "b", "w")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	owner := c.owner()
	other := map[string]string{"a": "b", "b": "a"}[owner]
	eventually(t, "both copies in sync", func() bool { return c.group(owner).Status().Health == HealthHealthy })
	thaw, err := c.group(owner).Freeze(ctx, MaxFreeze)
	if err != nil {
		t.Fatal(err)
	}
	c.moved(t, other)
	if err := c.write(ctx, 1, 1); err != nil {
		t.Fatal(err)
	}
	if err := c.group(owner).CreateSnapshot(ctx, spec(1)); !errors.Is(err, block.ErrNotOwner) {
		t.Fatalf("a snapshot where the LUN was: %v", err)
	}
	c.moved(t, owner) // the same node, in another tenure
	short, cancel2 := context.WithTimeout(ctx, MaxFreeze/2)
	defer cancel2()
	if err := c.write(short, 1, 2); err != nil {
		t.Fatalf("the freeze has outlived its tenure: %v", err)
	}
	if err := thaw(); !errors.Is(err, ErrFreezeOver) {
		t.Fatalf("thaw after another node served: %v", err)
	}
}
