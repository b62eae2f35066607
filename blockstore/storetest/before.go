package storetest

import (
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// testAbandonImport gives a rebuild up at several points: the volume is what it was, but for the snapshots it was to lose.
func testAbandonImport(t *testing.T, m Medium) {
	ctx := t.Context()
	w := newWorld(t, m, 40)
	model := w.Members[0].Model
	w.apply(t, 0, model.Write(0, 70), model.SetState(0, "old"), model.Snapshot())
	w.apply(t, 0, model.Write(3, 90), model.Snapshot())
	w.apply(t, 0, model.Write(100, 5), model.Zero(0, 2))
	applied := v0(w).Applied()
	if err := v0(w).AbandonImport(ctx); err == nil {
		t.Fatal("AbandonImport without BeginImport: no error")
	}
	for round := range 4 {
		must(t, v0(w).BeginImport(ctx))
		s, ok := v0(w).Before()
		if !ok || s.Index != applied || s.Created == 0 {
			t.Fatalf("round %d: kept %v, %+v", round, ok, s)
		}
		other := NewModel(geometry)
		if round == 1 {
			gone := model.snapshots[0].ID
			must(t, v0(w).Import([]block.Op{block.DeleteSnapshotOp(gone)}))
			model.Import([]block.Op{block.DeleteSnapshotOp(gone)})
		}
		if round > 1 {
			must(t, v0(w).Import([]block.Op{other.Write(0, 64), other.Zero(64, 64), other.Fill(130, 9)}))
			must(t, v0(w).ImportSnapshot(block.Snapshot{SnapshotSpec: NewSpec(), Index: 50, Capacity: geometry.Capacity}))
			must(t, v0(w).Import([]block.Op{other.Write(5, 3), other.Write(200, 2)}))
		}
		if n := len(v0(w).Snapshots()); n != len(model.snapshots)+min(round/2, 1) {
			t.Fatalf("round %d: %d snapshots are seen", round, n)
		}
		if m.Lasts && round == 3 {
			_, err := v0(w).Checkpoint(ctx)
			must(t, err)
			w.Machine.Crash(uint64(round))
			w.Pool, err = w.Machine.Open()
			must(t, err)
			for _, x := range w.Members {
				x.Volume, err = w.Pool.Open(x.Name)
				must(t, err)
			}
			if _, ok := v0(w).Before(); !ok {
				t.Fatal("nothing is kept after a crash")
			}
		}
		must(t, v0(w).AbandonImport(ctx))
		if _, ok := v0(w).Before(); ok || v0(w).Inconsistent() || v0(w).Applied() != applied {
			t.Fatalf("round %d: still kept %v, inconsistent %v, applied %d", round, ok, v0(w).Inconsistent(), v0(w).Applied())
		}
		if got := changed(t, v0(w), applied-1); len(got) != int(v0(w).Chunks()) {
			t.Errorf("changed since %d: %v, want all", applied-1, got)
		}
		must(t, MakeRoom(v0(w)))
		must(t, model.Compare(v0(w)))
		must(t, model.CompareSpace(v0(w), true))
	}
	w.apply(t, 0, model.Write(30, 60))
	must(t, w.Reopen(0))
	must(t, w.CompareAll())
	w.end(t)
}

// testForgetBefore makes room in a full pool with what was kept from before the import.
func testForgetBefore(t *testing.T, m Medium) {
	ctx := t.Context()
	v, model := create(t, open(t, m.New(t, 5*chunk)), "v"), NewModel(geometry)
	step(t, v, model, model.Write(0, 4*64))
	must(t, v.BeginImport(ctx))
	source := NewModel(geometry)
	all := []block.Op{source.Write(0, 64), source.Write(64, 64), source.Write(128, 64), source.Write(192, 64)}
	wantError(t, "import with the old contents kept", v.Import(all), block.ErrNoSpace)
	must(t, v.ForgetBefore(ctx))
	must(t, v.ForgetBefore(ctx)) // nothing to do
	must(t, v.Import(all))
	wantError(t, "abandon", v.AbandonImport(ctx), blockstore.ErrNothingKept)
	must(t, v.EndImport(ctx, 20, block.State{}))
	source.Import(all)
	source.EndImport(20, block.State{})
	compare(t, v, source)
}
