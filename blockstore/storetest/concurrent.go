package storetest

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// testConcurrent does everything that is allowed beside Apply beside Apply. It finds what the race detector, deadlocks and
// the last comparison find.
func testConcurrent(t *testing.T, m Medium) {
	p := open(t, m.New(t, 12*chunk))
	v, model := create(t, p, "v"), NewModel(geometry)
	rnd := rand.New(rand.NewPCG(1, 1))
	var beside sync.WaitGroup
	done := make(chan struct{})
	for _, do := range []func() error{
		func() error {
			return v.ReadAt(block.Range{Count: geometry.Capacity}, make([]byte, geometry.Capacity.Bytes()))
		},
		func() error { _, err := v.Checkpoint(t.Context()); return err },
		func() error { return v.Changed(v.Durable(), func(block.Range) error { return nil }) },
		func() error { return v.ChunkInfo(1, new(blockstore.ChunkInfo)) },
		func() error {
			bad, err := v.CheckChunk(0, new(blockstore.ChunkInfo))
			if bad != 0 {
				t.Errorf("bad blocks %#x", bad)
			}
			return err
		},
		func() error {
			if v.Durable() > v.Applied() { // in this order: both only grow
				t.Error("durable before it was applied")
			}
			if u := v.Usage(); u.StoredBytes < 0 || p.Usage().FreeBytes() < 0 || len(v.State().Blob) > 100 {
				t.Errorf("usage %+v", u)
			}
			return nil
		},
		func() error {
			other, err := p.Create("other", geometry)
			if err != nil {
				return err
			}
			if err := other.Close(); err != nil {
				return err
			}
			return p.Delete("other")
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
	entries := 60
	if RaceEnabled {
		entries = 20
	}
	for range entries {
		ops := model.Random(rnd)
		index := model.Last() + 1
		if err := v.Apply(index, ops); err == nil {
			model.Commit(index, ops)
		} else if errors.Is(err, block.ErrNoSpace) { // freed chunks wait for a checkpoint, and deleted snapshots for Reclaim
			must(t, MakeRoom(v))
		} else {
			t.Error(err)
		}
	}
	close(done)
	beside.Wait()
	compare(t, v, model)
	must(t, v.Close())
	v, err := p.Open("v")
	must(t, err)
	compare(t, v, model)
}
