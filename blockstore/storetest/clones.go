package storetest

import (
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

func testCloneErrors(t *testing.T, m Medium) {
	w := newWorld(t, m, 8)
	model := w.Members[0].Model
	w.apply(t, 0, model.Write(0, 3), model.Snapshot())
	name, id := w.Members[0].Name, lastID(model)
	before := w.Pool.Usage()
	_, err := w.Pool.Clone("c", "none", id)
	wantError(t, "of a volume that is not there", err, blockstore.ErrNotFound)
	_, err = w.Pool.Clone("c", name, NewSpec().ID)
	wantError(t, "of a snapshot that is not there", err, block.ErrNoSnapshot)
	_, err = w.Pool.Clone("c", name, block.SnapshotID{})
	wantError(t, "of the zero ID", err, block.ErrNoSnapshot)
	_, err = w.Pool.Clone(name, name, id)
	wantError(t, "under its own name", err, blockstore.ErrExists)
	if _, err := w.Pool.Clone("", name, id); err == nil {
		t.Error("clone without a name: no error")
	}
	if ids, err := w.Pool.Volumes(); err != nil || len(ids) != 1 || w.Pool.Usage() != before {
		t.Errorf("volumes %v, %v, usage %+v, was %+v", ids, err, w.Pool.Usage(), before)
	}
	must(t, w.Members[0].Volume.Close()) // it need not be open
	c, err := w.Pool.Clone("c", name, id)
	must(t, err)
	must(t, c.Close())
	must(t, w.Pool.Delete("c"))
	w.Members[0].Volume, err = w.Pool.Open(name)
	must(t, err)
	w.reopened(t, m)
	w.end(t)
}

// testClone makes a clone of a snapshot that no checkpoint has recorded, and crashes.
func testClone(t *testing.T, m Medium) {
	w := newWorld(t, m, 24)
	origin := w.Members[0].Model
	w.apply(t, 0, origin.Write(0, 130), origin.SetState(0, "of the origin"))
	must(t, w.Checkpoint(0))
	w.apply(t, 0, origin.Write(60, 10), origin.Snapshot())
	w.apply(t, 0, origin.Write(61, 3))
	before := w.Pool.Usage()
	must(t, w.Clone(0, 0))
	if got := w.Pool.Usage(); got.AllocatedBytes > before.AllocatedBytes {
		t.Errorf("a clone has taken space: %+v, was %+v", got, before)
	}
	if got := w.Members[1].Volume.State(); got.Version != 0 || len(got.Blob) != 0 {
		t.Errorf("a clone has a state: %+v", got)
	}
	if m.Lasts {
		must(t, w.Recover(2))
		must(t, w.Recover(3)) // nothing checkpointed in between
	}
	// Both are written, in the same places and in others.
	clone := w.Members[1].Model
	w.apply(t, 0, origin.Write(0, 2), origin.Zero(128, 2))
	w.apply(t, 1, clone.Write(0, 2), clone.SetState(0, "of the clone"), clone.Zero(0, 1))
	must(t, w.CompareAll())
	w.apply(t, 1, clone.Snapshot(), clone.Fill(62, 9))
	w.apply(t, 0, origin.Write(62, 9))
	must(t, w.CompareAll())
	w.apply(t, 1, clone.Grow(block.BlocksPerChunk))
	w.apply(t, 1, clone.Write(250, 70))
	w.reopened(t, m)
	must(t, w.Settle())
	w.apply(t, 1, block.RollbackOp(lastID(clone)))
	w.apply(t, 0, block.RollbackOp(lastID(origin)))
	w.reopened(t, m)
	// The clone's own snapshots go without harm to the origin's.
	w.apply(t, 1, block.DeleteSnapshotOp(lastID(clone)))
	must(t, w.Settle())
	w.reopened(t, m)
	w.end(t)
}

// testCloneOutlives deletes the snapshot a clone was made of, then the origin, while the clone lives, then the clone.
func testCloneOutlives(t *testing.T, m Medium) {
	w := newWorld(t, m, 24)
	origin := w.Members[0].Model
	w.apply(t, 0, origin.Write(0, 130), origin.Snapshot())
	w.apply(t, 0, origin.Write(10, 3), origin.Snapshot())
	w.apply(t, 0, origin.Write(20, 3), origin.Zero(64, 64))
	must(t, w.Clone(0, 0))
	must(t, w.Clone(0, 1))
	must(t, w.Clone(0, 0)) // a second one of the same
	gone := origin.snapshots[0].ID
	w.apply(t, 0, block.DeleteSnapshotOp(gone))
	must(t, w.CompareAll())
	_, err := w.Members[0].Volume.View(gone)
	wantError(t, "view of a deleted snapshot that clones need", err, block.ErrNoSnapshot)
	_, err = w.Pool.Clone("late", w.Members[0].Name, gone)
	wantError(t, "clone of a deleted snapshot that clones need", err, block.ErrNoSnapshot)
	must(t, w.Settle())
	w.reopened(t, m)
	for i := 1; i <= 3; i++ {
		w.apply(t, i, w.Members[i].Model.Write(9*i, 30))
	}
	w.apply(t, 0, origin.Write(0, 64))
	must(t, w.CompareAll())
	must(t, w.Delete(0))
	w.reopened(t, m)
	// The space the origin alone had is used by somebody else now, which must not be seen in the clones.
	must(t, w.Create(geometry))
	w.apply(t, 3, w.Members[3].Model.Write(0, 200))
	w.reopened(t, m)
	must(t, w.Settle())
	must(t, w.Delete(1))
	must(t, w.Settle())
	w.reopened(t, m)
	w.end(t)
}

// testClonesOfClones makes a chain of them, each written and grown, and deletes them from the middle.
func testClonesOfClones(t *testing.T, m Medium) {
	w := newWorld(t, m, 60)
	w.apply(t, 0, w.Members[0].Model.Write(0, 200))
	for i := range 5 {
		model := w.Members[i].Model
		w.apply(t, i, model.Snapshot())
		w.apply(t, i, model.Write(11*i, 40), model.Zero(100+i, 1))
		w.apply(t, i, model.Snapshot())
		must(t, w.Clone(i, i%2))
		w.apply(t, i+1, w.Members[i+1].Model.Grow(20*i))
	}
	w.reopened(t, m)
	must(t, w.Settle())
	for i := range w.Members {
		model := w.Members[i].Model
		w.apply(t, i, model.Write(model.Blocks()-3, 3), model.Write(5, 1))
		if len(model.snapshots) > 0 {
			w.apply(t, i, block.DeleteSnapshotOp(model.snapshots[0].ID))
		}
	}
	w.reopened(t, m)
	must(t, w.Settle())
	for _, i := range []int{2, 0, 2} {
		must(t, w.Delete(i))
		must(t, w.CompareAll())
		must(t, w.Settle())
	}
	w.reopened(t, m)
	w.end(t)
}
