package storetest

import (
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// testImportSnapshots rebuilds a volume that has some of its source's snapshots and one that the source has no more.
func testImportSnapshots(t *testing.T, m Medium) {
	ctx := t.Context()
	w := newWorld(t, m, 40)
	model := w.Members[0].Model
	for i := range 3 {
		w.apply(t, 0, model.Write(50*i, 60), model.Snapshot()) // 1, 2, 3
	}
	w.apply(t, 0, model.Write(3, 1), model.SetState(0, "old"))
	must(t, w.Clone(0, 0))
	kept, gone := model.snapshots[1].ID, model.snapshots[2].ID
	between := block.Snapshot{SnapshotSpec: NewSpec(), Index: 11, Capacity: geometry.Capacity}
	last := block.Snapshot{SnapshotSpec: NewSpec(), Index: 17, Capacity: geometry.Capacity}
	if err := w.Members[0].Volume.ImportSnapshot(between); err == nil {
		t.Fatal("ImportSnapshot without BeginImport: no error")
	}
	// What comes before the first snapshot covers what comes between the two: an earlier attempt may have left that.
	before, middle, after := []block.Op{model.Write(0, 110), model.Zero(128, 40)}, []block.Op{model.Fill(5, 100)}, []block.Op{model.Write(11, 1), model.Write(200, 9)}
	half := func() {
		v := w.Members[0].Volume
		must(t, v.BeginImport(ctx))
		must(t, v.Import([]block.Op{block.DeleteSnapshotOp(gone)}))
		must(t, v.Import(before))
		must(t, v.ImportSnapshot(between))
		must(t, v.Import(middle))
		must(t, v.ImportSnapshot(last))
	}
	half()
	if m.Lasts {
		for round := range 3 { // it is begun again, over what an earlier attempt has left
			if round > 0 {
				_, err := w.Members[0].Volume.Checkpoint(ctx)
				must(t, err)
			}
			w.Machine.Crash(uint64(round))
			var err error
			w.Pool, err = w.Machine.Open()
			must(t, err)
			for _, x := range w.Members {
				x.Volume, err = w.Pool.Open(x.Name)
				must(t, err)
			}
			if v := w.Members[0].Volume; !v.Inconsistent() {
				t.Fatal("consistent in the middle of an import")
			}
			must(t, w.Compare(1)) // the clone is none of its business
			v := w.Members[0].Volume
			for _, s := range v.Snapshots() { // whoever rebuilds takes away what does not come from a finished attempt
				if s.ID == between.ID || s.ID == last.ID {
					must(t, v.Import([]block.Op{block.DeleteSnapshotOp(s.ID)}))
				}
			}
			half()
		}
	}
	v := w.Members[0].Volume
	must(t, v.ImportSnapshot(last)) // there already: nothing
	must(t, v.Import(after))
	must(t, v.EndImport(ctx, 20, block.State{Version: 5, Blob: []byte("new")}))
	model.Import([]block.Op{block.DeleteSnapshotOp(gone)})
	model.Import(before)
	model.Freeze(between)
	model.Import(middle)
	model.Freeze(last)
	model.Import(after)
	model.EndImport(20, block.State{Version: 5, Blob: []byte("new")})
	must(t, w.CompareAll())
	w.reopened(t, m)
	w.apply(t, 0, model.Write(0, 20), block.RollbackOp(kept))
	w.apply(t, 0, model.Write(70, 2), block.DeleteSnapshotOp(between.ID))
	must(t, w.Settle())
	w.reopened(t, m)
	var _ blockstore.Reader = v
	w.end(t)
}
