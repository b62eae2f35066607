package storetest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// testConcurrentSnapshots reads live contents and views, reclaims, checkpoints, clones and measures while entries make,
// delete and go back to snapshots. A view is right until its snapshot is deleted, and never wrong.
func testConcurrentSnapshots(t *testing.T, m Medium) {
	w := newWorld(t, m, 40)
	v, model := v0(w), w.Members[0].Model
	w.apply(t, 0, model.Write(0, 200), model.Snapshot())

	// views are of the snapshots that are there, with what they must hold. Whoever deletes one takes it away afterwards.
	type watched struct {
		view    *blockstore.View
		s       *frozen
		deleted atomic.Bool // it is about to be
	}
	var mu sync.Mutex
	views := map[block.SnapshotID]*watched{}
	watch := func(s *frozen) {
		view, err := v.View(s.ID)
		must(t, err)
		mu.Lock()
		defer mu.Unlock()
		views[s.ID] = &watched{view: view, s: s}
	}
	some := func() *watched {
		mu.Lock()
		defer mu.Unlock()
		for _, x := range views { // any: maps are walked in no order
			return x
		}
		return nil
	}
	watch(model.snapshots[0])
	gone := func(x *watched, err error) error { // tolerates the end of a view that is being deleted
		if errors.Is(err, block.ErrNoSnapshot) && x.deleted.Load() {
			return nil
		}
		return err
	}
	var beside sync.WaitGroup
	done := make(chan struct{})
	var clones atomic.Int64
	readView := func() error {
		x := some()
		if x == nil {
			return nil
		}
		n := int(x.s.Capacity / block.SectorsPerBlock)
		buf := make([]byte, n*block.Size)
		if err := x.view.ReadAt(blocks(0, n), buf); err != nil {
			return gone(x, err)
		}
		for at := range n {
			if !bytes.Equal(buf[at*block.Size:(at+1)*block.Size], x.s.blocks.block(uint64(at))) {
				t.Errorf("block %d of the snapshot of entry %d begins with %x", at, x.s.Index, buf[at*block.Size:at*block.Size+8])
			}
		}
		bad, err := x.view.CheckChunk(uint32(n/block.BlocksPerChunk/2), new(blockstore.ChunkInfo))
		if bad != 0 {
			t.Errorf("bad blocks %#x in a view", bad)
		}
		return gone(x, err)
	}
	for _, do := range []func() error{
		readView, readView,
		func() error {
			return v.ReadAt(block.Range{Count: geometry.Capacity}, make([]byte, geometry.Capacity.Bytes()))
		},
		func() error { _, err := v.Checkpoint(t.Context()); return err },
		func() error { _, err := v.Reclaim(2); return err },
		func() error {
			_, err := v.Space(t.Context())
			return errors.Join(err, v.Changed(v.Durable(), func(block.Range) error { return nil }))
		},
		func() error {
			x := some()
			if x == nil {
				return nil
			}
			last := block.Sector(0)
			err := v.Diff(x.s.ID, block.SnapshotID{}, func(r block.Range) error {
				if r.Start < last {
					t.Errorf("range %v after sector %d", r, last)
				}
				last = r.End()
				return nil
			})
			return gone(x, err)
		},
		func() error {
			x := some()
			if x == nil {
				return nil
			}
			c, err := w.Pool.Clone("clone", v.ID(), x.s.ID)
			if err != nil {
				return gone(x, err)
			}
			clones.Add(1)
			if err := compareReader(c, block.Geometry{Capacity: x.s.Capacity, LogicalBlockBytes: 512}, x.s.blocks); err != nil {
				return err
			}
			write := block.Op{Kind: block.OpZero, Range: blocks(3, 70)}
			return errors.Join(c.Apply(1, []block.Op{write}), c.Close(), w.Pool.Delete("clone"))
		},
		func() error {
			ops := []block.Op{{Kind: block.OpZero, Range: blocks(0, 9)}, {Kind: block.OpFill, Range: blocks(3, 70), Data: make([]byte, block.Size)}}
			if len(v.Snapshots()) > block.MaxSnapshots || v.Needs(ops) < 0 || v.NeedsMetadata(ops, false) < 0 || v.NeedsMetadata(ops, true) < 0 {
				t.Error("snapshots or needs beyond all bounds")
			}
			return errors.Join(v.PromiseMetadata(1), v.PromiseMetadata(-1))
		},
	} {
		beside.Go(func() {
			for {
				if err := do(); err != nil {
					t.Error(err)
					return
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	rnd := rand.New(rand.NewPCG(5, 5))
	entries := 150
	if RaceEnabled {
		entries = 50
	}
	for i := 0; i < entries || clones.Load() == 0 && !t.Failed(); i++ {
		ops := model.Random(rnd)
		if i%3 == 0 {
			ops = []block.Op{model.RandomSnapshot(rnd)}
		}
		deleted := map[block.SnapshotID]bool{}
		for _, op := range ops {
			if id, err := op.SnapshotID(); err == nil && op.Kind == block.OpDeleteSnapshot {
				deleted[id] = true
			}
		}
		mu.Lock()
		for id := range deleted {
			if x := views[id]; x != nil {
				x.deleted.Store(true)
				delete(views, id)
			}
		}
		mu.Unlock()
		index := model.Last() + 1
		if err := v.Apply(index, ops); errors.Is(err, block.ErrNoSpace) {
			must(t, MakeRoom(v))
		} else if err != nil {
			t.Error(err)
		} else {
			model.Commit(index, ops)
		}
		for _, s := range model.snapshots {
			mu.Lock()
			known := views[s.ID] != nil
			mu.Unlock()
			if !known {
				watch(s)
			}
		}
	}
	close(done)
	beside.Wait()
	must(t, w.CompareAll())
	must(t, w.Settle())
	w.reopened(t, m)
	w.end(t)
}
