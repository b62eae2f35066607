package storetest

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// newWorld returns a pool with one volume of geometry.
func newWorld(t testing.TB, m Medium, chunks int64) *World {
	t.Helper()
	w := newEmptyWorld(t, m, chunks)
	must(t, w.Create(geometry))
	return w
}

func newEmptyWorld(t testing.TB, m Medium, chunks int64) *World {
	t.Helper()
	w, err := NewWorld(m.New(t, chunks*chunk))
	must(t, err)
	t.Cleanup(func() {
		if err := w.Pool.Close(); err != nil && w.Pool.Failed() == nil {
			t.Errorf("close of the pool: %v", err)
		}
	})
	return w
}

// apply applies an entry for which there must be room.
func (w *World) apply(t testing.TB, i int, ops ...block.Op) {
	t.Helper()
	done, err := w.Apply(i, ops)
	must(t, err)
	if !done {
		t.Fatalf("no room for an entry of %d ops: %+v", len(ops), w.Pool.Usage())
	}
}

// reopened compares everything, closes and opens the volume and, where it lasts, the pool, and compares again.
func (w *World) reopened(t testing.TB, m Medium) {
	t.Helper()
	must(t, w.CompareAll())
	for i := range w.Members {
		must(t, w.Reopen(i))
	}
	must(t, w.CompareAll())
	if m.Lasts {
		must(t, w.ReopenPool())
		must(t, w.CompareAll())
		must(t, w.Recover(4))
	}
}

// end deletes everything and checks that it is gone.
func (w *World) end(t testing.TB) {
	t.Helper()
	must(t, w.End(rand.New(rand.NewPCG(1, 2))))
	var err error
	w.Pool, err = w.Machine.Open() // for the cleanup
	must(t, err)
}

func lastID(m *Model) block.SnapshotID { return m.snapshots[len(m.snapshots)-1].ID }

func testSnapshotOfEmpty(t *testing.T, m Medium) {
	w := newWorld(t, m, 8)
	model := w.Members[0].Model
	w.apply(t, 0, model.Snapshot())
	must(t, w.CompareAll())
	if got := w.Pool.Usage(); got != w.empty {
		t.Errorf("a snapshot of nothing takes something: %+v", got)
	}
	w.apply(t, 0, model.Write(0, 3))
	w.apply(t, 0, model.Snapshot())
	w.reopened(t, m)
	w.apply(t, 0, block.RollbackOp(model.snapshots[0].ID))
	w.reopened(t, m)
	w.apply(t, 0, block.DeleteSnapshotOp(lastID(model)), block.DeleteSnapshotOp(model.snapshots[0].ID))
	w.reopened(t, m)
	must(t, w.Settle())
	if got := w.Pool.Usage(); got != w.empty {
		t.Errorf("usage of an empty volume %+v", got)
	}
	w.end(t)
}

// testSnapshotKeeps changes what a snapshot has, in every way and in the same entry, over borders of chunks.
func testSnapshotKeeps(t *testing.T, m Medium) {
	w := newWorld(t, m, 40)
	model := w.Members[0].Model
	w.apply(t, 0, model.Write(0, 130), model.SetState(0, "before"))
	before := w.Pool.Usage()
	w.apply(t, 0, model.Snapshot())
	if got := w.Pool.Usage(); got != before {
		t.Errorf("a snapshot has taken space: %+v, was %+v", got, before)
	}
	for _, ops := range [][]block.Op{
		{model.Write(1, 1)}, {model.Write(62, 4)}, {model.Write(0, 64)}, // the first in a chunk, over a border, all of one
		{model.Zero(5, 1)}, {model.Zero(0, 64)}, {model.Zero(100, 100)},
		{model.Fill(3, 1)}, {model.Fill(60, 140)}, {model.Write(258, 1)},
		{model.Write(7, 1), model.Snapshot(), model.Write(7, 1), model.Zero(8, 1)}, // both sides of one snapshot in one entry
		{model.Snapshot(), model.Write(7, 2), model.Snapshot(), model.Write(8, 2), model.Zero(128, 64)},
		{model.SetState(1, "after")},
		{model.Grow(100)},
		{model.Write(258, 60)},
	} {
		w.apply(t, 0, ops...)
		must(t, w.CompareAll())
		w.apply(t, 0, model.Snapshot())
		must(t, w.CompareAll())
	}
	w.reopened(t, m)
	for len(model.snapshots) > 0 { // every second one, so that each kind of neighbour goes
		w.apply(t, 0, block.DeleteSnapshotOp(model.snapshots[len(model.snapshots)/2].ID))
		must(t, w.CompareAll())
		must(t, ReclaimAll(w.Members[0].Volume, 1))
		must(t, w.CompareAll())
		must(t, model.CompareSpace(w.Members[0].Volume, true))
	}
	w.reopened(t, m)
	w.end(t)
}

// testFirstWriteAfterSnapshot: one slot for a chunk that is shared, however often it is written to.
func testFirstWriteAfterSnapshot(t *testing.T, m Medium) {
	w := newWorld(t, m, 8)
	model := w.Members[0].Model
	w.apply(t, 0, model.Write(0, 64))
	w.apply(t, 0, model.Snapshot())
	for range 3 {
		w.apply(t, 0, model.Write(3, 2), model.Write(9, 1))
		w.apply(t, 0, model.Zero(3, 1), model.Fill(20, 9))
		if got := w.Pool.Usage().AllocatedBytes; got > 2*chunk {
			t.Fatalf("%d bytes are allocated for a chunk and its snapshot", got)
		}
	}
	must(t, w.CompareAll())
	// What is overwritten entirely leaves nothing behind.
	w.apply(t, 0, model.Write(0, 64))
	w.apply(t, 0, block.DeleteSnapshotOp(lastID(model)))
	must(t, w.Settle())
	if got := w.Pool.Usage().AllocatedBytes; got != chunk {
		t.Errorf("%d bytes are allocated for one chunk", got)
	}
	must(t, w.CompareAll())
	w.end(t)
}

func testSnapshotBadInput(t *testing.T, m Medium) {
	w := newWorld(t, m, 8)
	v, model := w.Members[0].Volume, w.Members[0].Model
	w.apply(t, 0, model.Write(0, 2), model.Snapshot())
	good := model.Write(0, 1)
	long, noName, noID := NewSpec(), NewSpec(), NewSpec()
	long.Name, noName.Name, noID.ID = string(make([]byte, block.MaxSnapshotNameBytes+1)), "", block.SnapshotID{}
	ranged := model.Snapshot()
	ranged.Range = blocks(0, 1)
	for name, bad := range map[string]block.Op{
		"long name": block.SnapshotOp(long), "no name": block.SnapshotOp(noName), "no ID": block.SnapshotOp(noID), "range": ranged,
		"short": {Kind: block.OpSnapshot, Data: []byte("short")}, "delete nothing": {Kind: block.OpDeleteSnapshot},
		"roll back to nothing": {Kind: block.OpRollback, Data: make([]byte, 15)},
	} {
		if err := v.Apply(model.Last()+1, []block.Op{good, bad}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	must(t, w.CompareAll())
	_, err := v.View(block.SnapshotID{})
	wantError(t, "view of the zero ID", err, block.ErrNoSnapshot)
	_, err = v.View(NewSpec().ID)
	wantError(t, "view of an unknown ID", err, block.ErrNoSnapshot)
	enough := errors.New("enough")
	wantError(t, "fn's error", v.Diff(block.SnapshotID{}, block.SnapshotID{}, func(block.Range) error { return enough }), enough)
	view, err := v.View(lastID(model))
	must(t, err)
	w.apply(t, 0, model.Grow(64))
	end := block.Sector(geometry.Capacity)
	wantError(t, "read beyond the end of a snapshot", view.ReadAt(block.Range{Start: end, Count: 8}, make([]byte, 4096)), block.ErrOutOfRange)
	_, _, err = view.Allocated(block.Range{Start: end - 8, Count: 16})
	wantError(t, "allocated beyond the end of a snapshot", err, block.ErrOutOfRange)
	if err := view.ReadAt(block.Range{Count: 2}, make([]byte, 512)); err == nil {
		t.Error("read into a short buffer: no error")
	}
	// With an ID that is not there, nothing happens, and it is not an error.
	w.apply(t, 0, block.RollbackOp(NewSpec().ID), block.DeleteSnapshotOp(NewSpec().ID))
	w.reopened(t, m)
}

func testRepeatedSnapshot(t *testing.T, m Medium) {
	w := newWorld(t, m, 16)
	model := w.Members[0].Model
	w.apply(t, 0, model.Write(0, 70))
	spec := NewSpec()
	w.apply(t, 0, block.SnapshotOp(spec))
	first := model.snapshots[0].Snapshot
	w.apply(t, 0, model.Write(3, 1))
	again := spec
	again.Name, again.Created = "another", 5
	w.apply(t, 0, block.SnapshotOp(again), model.Write(4, 1), block.SnapshotOp(spec))
	w.reopened(t, m)
	if got := w.Members[0].Volume.Snapshots(); !slices.Equal(got, []block.Snapshot{first}) {
		t.Fatalf("snapshots %+v, want the first", got)
	}
	// The name need not be unique. After its deletion the volume does not have that snapshot any more.
	same := NewSpec()
	same.Name = spec.Name
	w.apply(t, 0, block.SnapshotOp(same))
	old, err := w.Members[0].Volume.View(spec.ID)
	must(t, err)
	w.apply(t, 0, block.DeleteSnapshotOp(spec.ID), block.DeleteSnapshotOp(spec.ID), model.Write(5, 1), block.SnapshotOp(again))
	wantError(t, "view of a snapshot that was deleted and made again", old.ReadAt(blocks(0, 1), make([]byte, block.Size)), block.ErrNoSnapshot)
	w.reopened(t, m)
	must(t, ReclaimAll(w.Members[0].Volume, 2))
	w.reopened(t, m)
	w.end(t)
}

func testSnapshotLimit(t *testing.T, m Medium) {
	w := newEmptyWorld(t, m, 8)
	must(t, w.Create(block.Geometry{Capacity: block.CountOf(16 * block.Size), LogicalBlockBytes: 4096}))
	v, model := w.Members[0].Volume, w.Members[0].Model
	for n := range block.MaxSnapshots {
		ops := []block.Op{model.Snapshot()}
		if n%100 == 0 {
			ops = append(ops, model.Write(n/100, 1))
		}
		w.apply(t, 0, ops...)
	}
	refused := model.Snapshot()
	w.apply(t, 0, model.Write(9, 1), refused, model.Write(10, 1))
	id, err := refused.SnapshotID()
	if err == nil {
		_, err = v.View(id)
	}
	if err == nil || len(v.Snapshots()) != block.MaxSnapshots || v.Applied() != model.Last() {
		t.Fatalf("%d snapshots, applied %d of %d", len(v.Snapshots()), v.Applied(), model.Last())
	}
	must(t, w.CompareAll())
	// Whether there is room for one more depends on the log alone, not on whether Reclaim has got to those deleted: replicas
	// must agree.
	w.apply(t, 0, block.DeleteSnapshotOp(model.snapshots[200].ID), model.Snapshot(), model.Snapshot())
	if got := len(v.Snapshots()); got != block.MaxSnapshots {
		t.Fatalf("%d snapshots", got)
	}
	w.reopened(t, m)
}

// testViewsEnd deletes snapshots whose views are open, one of many, and has their space used for something else.
func testViewsEnd(t *testing.T, m Medium) {
	w := newWorld(t, m, 10)
	v, model := w.Members[0].Volume, w.Members[0].Model
	var views []*blockstore.View
	for range 3 {
		w.apply(t, 0, model.Write(0, 64), model.Snapshot())
		view, err := v.View(lastID(model))
		must(t, err)
		views = append(views, view)
	}
	twin, err := v.View(model.snapshots[1].ID)
	must(t, err)
	w.apply(t, 0, model.Write(0, 65), block.DeleteSnapshotOp(model.snapshots[1].ID))
	over := func() {
		t.Helper()
		for _, view := range []*blockstore.View{views[1], twin} {
			buf := slices.Repeat([]byte{0xee}, block.Size)
			wantError(t, "read", view.ReadAt(blocks(0, 1), buf), block.ErrNoSnapshot)
			_, _, err := view.Allocated(blocks(0, 1))
			wantError(t, "allocated", err, block.ErrNoSnapshot)
			wantError(t, "chunk info", view.ChunkInfo(0, new(blockstore.ChunkInfo)), block.ErrNoSnapshot)
			_, err = view.CheckChunk(0, new(blockstore.ChunkInfo))
			wantError(t, "check", err, block.ErrNoSnapshot)
		}
		for i, s := range []int{0, 2} {
			must(t, compareView(views[s], model.snapshots[i], geometry.LogicalBlockBytes))
		}
		must(t, w.CompareAll())
	}
	over()
	must(t, MakeRoom(v))
	over()
	for i := range 3 {
		w.apply(t, 0, model.Write(66+64*i, 2))
	}
	over()
	must(t, v.Close())
	w.Members[0].Volume = nil
	wantError(t, "view of a closed volume", views[0].ReadAt(blocks(0, 1), make([]byte, block.Size)), block.ErrClosed)
	w.Members[0].Volume, err = w.Pool.Open(w.Members[0].Name)
	must(t, err)
	must(t, w.CompareAll())
}

func testRollback(t *testing.T, m Medium) {
	w := newWorld(t, m, 40)
	model := w.Members[0].Model
	for i := range 4 {
		w.apply(t, 0, model.Write(i*50, 60), model.Zero(i*40+7, 3), model.SetState(model.State().Version, "kept"))
		w.apply(t, 0, model.Snapshot())
	}
	w.apply(t, 0, model.Grow(70))
	w.apply(t, 0, model.Write(250, 70), model.Zero(64, 64))
	for _, n := range []int{3, 0, 2, 2, 1} { // the newest, the oldest, the same twice
		w.apply(t, 0, block.RollbackOp(model.snapshots[n].ID))
		w.reopened(t, m)
		w.apply(t, 0, model.Write(10*n, 3), model.Fill(100, 70), model.Write(259, 5)) // also beyond the snapshot's end
		w.apply(t, 0, model.Snapshot())
		must(t, w.CompareAll())
	}
	// In one entry with what comes before and after it, and from what it goes back to when that is deleted next.
	w.apply(t, 0, model.Write(5, 2), block.RollbackOp(model.snapshots[2].ID), model.Write(6, 2), block.DeleteSnapshotOp(model.snapshots[2].ID))
	w.reopened(t, m)
	for len(model.snapshots) > 0 {
		id := model.snapshots[len(model.snapshots)/3].ID
		w.apply(t, 0, block.RollbackOp(id))
		w.apply(t, 0, block.DeleteSnapshotOp(id))
		must(t, w.CompareAll())
		must(t, ReclaimAll(w.Members[0].Volume, 3))
		must(t, w.CompareAll())
		must(t, model.CompareSpace(w.Members[0].Volume, true))
	}
	w.reopened(t, m)
	w.end(t)
}

// testManySnapshots makes 300 and deletes them in any order, with Reclaim at times, until nothing is left of them.
func testManySnapshots(t *testing.T, m Medium) {
	w := newEmptyWorld(t, m, 400)
	must(t, w.Create(block.Geometry{Capacity: block.CountOf(2*chunk + 3*block.Size), LogicalBlockBytes: 512}))
	model := w.Members[0].Model
	rnd := rand.New(rand.NewPCG(3, 3))
	n := 300
	if RaceEnabled {
		n = 80
	}
	for i := range n {
		switch i % 10 {
		case 0:
			first := rnd.IntN(2) * block.BlocksPerChunk
			w.apply(t, 0, model.Write(first, block.BlocksPerChunk))
		case 1:
			w.apply(t, 0, model.Zero(rnd.IntN(100), 20))
		default:
			w.apply(t, 0, model.Write(rnd.IntN(model.Blocks()-2), 2))
		}
		w.apply(t, 0, model.Snapshot())
		if i%70 == 0 {
			must(t, w.Checkpoint(0))
		}
	}
	w.reopened(t, m)
	v := w.Members[0].Volume
	must(t, model.CompareSpace(v, true))
	for deleted := 0; len(model.snapshots) > 0; deleted++ {
		w.apply(t, 0, block.DeleteSnapshotOp(model.snapshots[rnd.IntN(len(model.snapshots))].ID))
		switch deleted % 25 {
		case 3, 7, 8:
			must(t, w.Reclaim(0, 1+rnd.IntN(4)))
		case 12:
			must(t, w.Checkpoint(0))
		case 24:
			must(t, ReclaimAll(v, 100))
			must(t, w.CompareAll())
			must(t, model.CompareSpace(v, true))
		}
	}
	must(t, w.Settle())
	w.reopened(t, m)
	// Writing everything anew leaves each chunk in one place.
	w.apply(t, 0, model.Write(0, model.Blocks()))
	must(t, w.Settle())
	if got := w.Pool.Usage().AllocatedBytes; got != 3*chunk {
		t.Errorf("%d bytes are allocated for 3 chunks", got)
	}
	w.end(t)
}
