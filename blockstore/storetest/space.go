package storetest

import (
	"context"
	"errors"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// testFullWithSnapshots: overwriting what is shared needs space; without any nothing is changed, until something goes.
func testFullWithSnapshots(t *testing.T, m Medium) {
	w := newWorld(t, m, 4)
	v, model := w.Members[0].Volume, w.Members[0].Model
	w.apply(t, 0, model.Write(0, 64), model.Write(64, 64), model.Write(128, 64))
	w.apply(t, 0, model.Snapshot())
	w.apply(t, 0, model.Write(0, 64)) // takes the last
	refused := func(ops ...block.Op) {
		t.Helper()
		if done, err := w.Apply(0, ops); err != nil || done {
			t.Fatalf("applied %t, %v, want no space", done, err)
		}
		must(t, w.CompareAll())
	}
	for name, op := range map[string]block.Op{"write": model.Write(64, 1), "fill": model.Fill(70, 80), "whole chunk": model.Write(64, 64)} {
		if got := v.Needs([]block.Op{op}); got < chunk {
			t.Errorf("%s over shared data needs %d bytes", name, got)
		}
		refused(op)
	}
	refused(model.Write(0, 1), model.SetState(0, "s"), model.Write(130, 1))
	// Counted as in order: the first write takes nothing, the second has to.
	refused(model.Write(3, 2), model.Snapshot(), model.Write(3, 2))
	// What needs nothing works: writing over what is the volume's own, zeros, snapshots, deletions, going back.
	w.apply(t, 0, model.Write(0, 64), model.Zero(80, 5))
	must(t, w.CompareAll())
	if !m.Lasts {
		return // RAM: what was freed is there at once; the rest of the space depends on when
	}
	w.apply(t, 0, block.DeleteSnapshotOp(lastID(model)))
	must(t, MakeRoom(v))
	if got := w.Pool.Usage(); got.FreeBytes() != chunk || got.PendingFreeBytes != 0 {
		t.Fatalf("usage after the snapshot was deleted: %+v", got)
	}
	w.apply(t, 0, model.Write(192, 1), model.Write(64, 64), model.Write(130, 9))
	must(t, w.CompareAll())
	w.apply(t, 0, model.Snapshot())
	w.apply(t, 0, block.RollbackOp(lastID(model)), model.Zero(0, 64), model.Zero(66, 1)) // deletes always work
	w.reopened(t, m)
	refused(model.Write(0, 1))
	w.apply(t, 0, block.RollbackOp(lastID(model)))
	w.apply(t, 0, block.DeleteSnapshotOp(lastID(model)))
	must(t, MakeRoom(v0(w)))
	w.apply(t, 0, model.Write(0, 200))
	w.reopened(t, m)
	w.end(t)
}

func v0(w *World) *blockstore.Volume { return w.Members[0].Volume }

// testReclaimRuns: it comes to an end whatever the limit, does not free what is needed, and has something to do only after
// a deletion.
func testReclaimRuns(t *testing.T, m Medium) {
	for _, limit := range []int{1, 2, 1000} {
		w := newWorld(t, m, 40)
		v, model := w.Members[0].Volume, w.Members[0].Model
		if more, err := v.Reclaim(limit); err != nil || more {
			t.Fatalf("reclaim of a new volume: %t, %v", more, err)
		}
		for i := range 6 {
			w.apply(t, 0, model.Write(40*i, 59), model.Snapshot())
		}
		must(t, ReclaimAll(v, limit))
		must(t, model.CompareSpace(v, true))
		for _, n := range []int{4, 0, 1} {
			w.apply(t, 0, block.DeleteSnapshotOp(model.snapshots[n].ID))
			_, err := v.Reclaim(limit)
			must(t, err)
			w.apply(t, 0, model.Write(17*n, 70)) // beside it
			must(t, w.CompareAll())
		}
		must(t, w.Settle())
		if more, err := v.Reclaim(limit); err != nil || more {
			t.Fatalf("reclaim after its end: %t, %v", more, err)
		}
		w.reopened(t, m)
		must(t, w.Settle())
		w.end(t)
	}
}

// testSpaceCancelled: a context that has ended ends Space.
func testSpaceCancelled(t *testing.T, m Medium) {
	w := newWorld(t, m, 8)
	model := w.Members[0].Model
	w.apply(t, 0, model.Write(0, 100), model.Snapshot())
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := v0(w).Space(ended)
	wantError(t, "space with a context that has ended", err, context.Canceled)
	must(t, w.CompareAll())
}

// testSnapshotsClosed: what a closed volume refuses.
func testSnapshotsClosed(t *testing.T, m Medium) {
	w := newWorld(t, m, 8)
	v, model := v0(w), w.Members[0].Model
	w.apply(t, 0, model.Write(0, 100), model.Snapshot())
	id := lastID(model)
	must(t, v.Close())
	_, err := v.View(id)
	wantError(t, "view", err, block.ErrClosed)
	wantError(t, "diff", v.Diff(id, block.SnapshotID{}, func(block.Range) error { return errors.New("called") }), block.ErrClosed)
	_, err = v.Space(t.Context())
	wantError(t, "space", err, block.ErrClosed)
	_, err = v.Reclaim(1)
	wantError(t, "reclaim", err, block.ErrClosed)
	w.Members[0].Volume, err = w.Pool.Open(w.Members[0].Name)
	must(t, err)
	must(t, w.CompareAll())
	must(t, w.Pool.Close())
	_, err = w.Pool.Clone("c", w.Members[0].Name, id)
	wantError(t, "clone in a closed pool", err, block.ErrClosed)
}
