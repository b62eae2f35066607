package blockstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
	"sanctuary/blockstore/vfs/crashdev"
)

// largeMedium is one on which the data of a synthetic map are not there: nothing becomes of discarding them, but each time is told.
type largeMedium struct {
	vfs.Dev
	discard func(n int64)
}

func (d *largeMedium) Discard(_, n int64) error {
	if d.discard != nil {
		d.discard(n)
	}
	return nil
}

// mapAll gives a volume a slot for each of its chunks.
func mapAll(t *testing.T, v *Volume) {
	t.Helper()
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	chunks := v.m.chunks.Load()
	slots, err := v.pool.takeSlots(int(chunks), nil)
	if err != nil {
		t.Fatal(err)
	}
	for chunk := range chunks {
		l, at := v.leafOf(chunk)
		l.slot[at], l.epoch[at], l.valid[at] = slots[chunk], 1, ^uint64(0)
		v.touch(l, chunk, 1, false)
	}
	for n := range leavesFor(chunks) {
		l, _ := v.m.find(uint32(n) * leafChunks)
		v.resize(l)
	}
	v.allocatedChunks.Store(int64(chunks))
	v.applied.Store(1)
}

func try(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// While a large volume is deleted others are written and checkpointed, made and opened between any two of its steps, and none of its steps is
// longer than a slice.
func TestDeletingALargeVolumeHoldsNobodyUp(t *testing.T) {
	const capacity = 64 << 30
	const slice = freeLeaves * leafChunks * block.ChunkSize
	dev := &largeMedium{Dev: crashdev.New(MediumBytes(2*capacity), crashdev.NewPower(-1))}
	p, err := OpenPool(PoolConfig{Device: dev, CapacityBytes: 2 * capacity})
	if err != nil {
		t.Fatal(err)
	}
	g := block.Geometry{Capacity: block.CountOf(capacity), LogicalBlockBytes: 512}
	large, err := p.Create("large", g)
	if err != nil {
		t.Fatal(err)
	}
	mapAll(t, large)
	try(t, large.Close())
	other, err := p.Create("other", g)
	if err != nil {
		t.Fatal(err)
	}
	before, steps := p.Usage(), int64(0)
	written := int64(0)
	use := func() {
		try(t, other.Apply(uint64(written)+1, oneBlockAt(written*32<<20)))
		written++
		_, err := other.Checkpoint(context.Background())
		try(t, err)
		v, err := p.Create(fmt.Sprint("v", written), g)
		if err != nil {
			t.Error(err)
			return
		}
		try(t, v.Close())
	}
	dev.discard = func(n int64) {
		if freed := before.AllocatedBytes + written*block.ChunkSize - p.Usage().AllocatedBytes; n > slice || freed > steps*slice {
			t.Errorf("step %d: %d bytes are discarded at once, %d have become free by then", steps, n, freed)
		}
		if steps++; steps%8 != 1 {
			return
		}
		used := make(chan struct{})
		go func() { use(); close(used) }()
		select {
		case <-used:
		case <-time.After(10 * time.Second):
			t.Errorf("step %d: others wait for it", steps)
		}
	}
	if err := p.Delete("large"); err != nil {
		t.Fatal(err)
	}
	if steps < capacity/slice || written < 2 {
		t.Errorf("%d steps, beside which %d blocks were written", steps, written)
	}
	if got := p.Usage(); got.AllocatedBytes != written*block.ChunkSize || got.PendingFreeBytes != 0 {
		t.Errorf("afterwards: %+v", got)
	}
	dev.discard = nil
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

// A pool that is closed waits for what is being deleted.
func TestCloseWaitsForDeletions(t *testing.T) {
	v, cfg := roomyVolume(t)
	try(t, v.Apply(1, oneBlockAt(0)))
	try(t, v.Close())
	discarding, closed := make(chan struct{}), make(chan error, 1)
	var once sync.Once
	cfg.Device.(*crashdev.Dev).SetHook(func(k crashdev.Kind, _, _ int64) error {
		if k == crashdev.Discard {
			once.Do(func() {
				close(discarding)
				select {
				case err := <-closed:
					t.Errorf("closed before the end: %v", err)
					closed <- err
				case <-time.After(20 * time.Millisecond):
				}
			})
		}
		return nil
	})
	go func() { <-discarding; closed <- v.pool.Close() }()
	try(t, v.pool.Delete("v"))
	try(t, <-closed)
	if err := v.pool.Delete("v"); !errors.Is(err, block.ErrClosed) {
		t.Errorf("deleted in a closed pool: %v", err)
	}
}

// Clones are deleted at once, and with them what was kept for them: of a volume that is reclaimed meanwhile, too. Nothing is left, nor comes
// back with a checkpoint that was under way.
func TestDeletionsBesideOneAnother(t *testing.T) {
	const clones = 6
	for round := range 20 {
		v, cfg := roomyVolume(t)
		p := v.pool
		try(t, v.Apply(1, oneBlockAt(0)))
		for n := range clones {
			id := block.SnapshotID{byte(n + 1)}
			ops := append(oneBlockAt(int64(n)*block.ChunkSize), block.SnapshotOp(block.SnapshotSpec{ID: id, Name: "s"}))
			for i := range ops {
				try(t, v.Apply(v.Applied()+1, ops[i:i+1]))
			}
			c, err := p.Clone(fmt.Sprint("c", n), "v", id)
			if err != nil {
				t.Fatal(err)
			}
			try(t, c.Apply(1, oneBlockAt(32<<20)))
			try(t, c.Close())
		}
		try(t, v.Close())
		var all sync.WaitGroup
		for n := range clones {
			all.Go(func() { try(t, p.Delete(fmt.Sprint("c", n))) })
		}
		if round%2 == 0 {
			all.Wait() // else its snapshots are held by fewer and fewer
		}
		try(t, p.Delete("v"))
		all.Wait()
		for _, what := range []string{"afterwards", "opened again"} {
			names, err := p.Volumes()
			if u := p.Usage(); err != nil || len(names) > 0 || u.AllocatedBytes != 0 || u.PendingFreeBytes != 0 || len(p.catalogue.entries) != 0 || p.pages.demand.Load() != 0 {
				t.Fatalf("round %d, %s: %v, %v, %+v, %d entries, %d pages", round, what, names, err, u, len(p.catalogue.entries), p.pages.demand.Load())
			}
			try(t, p.Close())
			cfg.Device = cfg.Device.(*crashdev.Dev).Clone(crashdev.NewPower(-1))
			if p, err = OpenPool(cfg); err != nil {
				t.Fatal(err)
			}
		}
		try(t, p.Close())
	}
}

// Whoever still reclaims a kept volume when its last clone is deleted does not bring it back.
func TestReclaimingBringsNoDeletedVolumeBack(t *testing.T) {
	v, _ := roomyVolume(t)
	p, id := v.pool, block.SnapshotID{1}
	try(t, v.Apply(1, []block.Op{oneBlockAt(0)[0], block.SnapshotOp(block.SnapshotSpec{ID: id, Name: "s"})}))
	c, err := p.Clone("c", "v", id)
	if err != nil {
		t.Fatal(err)
	}
	try(t, errors.Join(c.Close(), v.Close(), p.Delete("v")))
	kept := p.buried[v.number]
	kept.applyMu.Lock()
	kept.reclaimLater()
	kept.applyMu.Unlock()
	try(t, p.Delete("c"))
	if err := p.settle(kept); !errors.Is(err, block.ErrClosed) {
		t.Errorf("reclaimed afterwards: %v", err)
	}
	if n := len(p.catalogue.entries); n != 0 || p.Usage().AllocatedBytes != 0 {
		t.Errorf("%d entries, %+v", n, p.Usage())
	}
}
