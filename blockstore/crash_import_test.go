package blockstore_test

import (
	"errors"
	"testing"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/storetest"
)

// TestCrashDuringImportIsOldInconsistentOrNew cuts the power at every event of a rebuild, which brings a snapshot and takes
// one away.
func TestCrashDuringImportIsOldInconsistentOrNew(t *testing.T) {
	t.Parallel()
	seen := map[string]int{}
	for events, cut := int64(0), true; cut; events++ {
		for seed := range uint64(4) {
			r := newImportRun(events)
			var w *storetest.World
			w, cut = play(t, r.machine, script{chunks: 8, steps: []action{
				write(0, 0, 70), snapshot(0), checkpoint(0), write(0, 2, 3), snapshot(0), write(0, 66, 3),
				func(w *storetest.World) error { return r.rebuild(w.Members[0]) },
			}})
			if len(w.Members) < 2 || w.Members[0].Volume == nil || len(w.Members[0].Model.Journal) < 5 {
				continue // before the volumes were there, or anything in them
			}
			outcome, err := r.recover(w.Members[0], seed)
			if err != nil {
				t.Fatalf("event %d, seed %d: %v", events, seed, err)
			}
			seen[outcome]++
		}
	}
	if seen["old"] == 0 || seen["inconsistent"] == 0 || seen["new"] == 0 {
		t.Errorf("outcomes seen: %v, want all three", seen)
	}
}

// TestCrashWhileAnImportIsAbandonedIsInconsistentOrOld cuts the power at every event of a rebuild that is given up.
func TestCrashWhileAnImportIsAbandonedIsInconsistentOrOld(t *testing.T) {
	t.Parallel()
	seen := map[bool]int{}
	for events, cut := int64(0), true; cut; events++ {
		for seed := range uint64(4) {
			r, abandoned := newImportRun(events), false
			var w *storetest.World
			w, cut = play(t, r.machine, script{chunks: 16, steps: []action{
				write(0, 0, 70), snapshot(0), checkpoint(0), write(0, 2, 3), write(0, 66, 3), checkpoint(0),
				func(w *storetest.World) error {
					v := w.Members[0].Volume
					if err := v.BeginImport(ctx); err != nil {
						return err
					}
					r.begun = true
					if err := errors.Join(v.Import(r.imported[0]), v.ImportSnapshot(r.snapshot)); err != nil {
						return err
					}
					if _, err := v.Checkpoint(ctx); err != nil {
						return err
					}
					if err := errors.Join(v.Import(r.imported[1]), v.AbandonImport(ctx)); err != nil {
						return err
					}
					abandoned = true
					return nil
				},
			}})
			if !r.begun {
				continue
			}
			r.machine.Crash(seed)
			pool, err := r.machine.Open()
			if err != nil {
				t.Fatal(err)
			}
			x := w.Members[0]
			v, err := pool.Open(x.Name)
			if err != nil {
				t.Fatal(err)
			}
			half := v.Inconsistent()
			seen[half]++
			if half {
				if abandoned {
					t.Fatalf("event %d, seed %d: inconsistent after AbandonImport", events, seed)
				}
				if err := v.AbandonImport(ctx); err != nil {
					t.Fatalf("event %d, seed %d: %v", events, seed, err)
				}
			}
			if err := errors.Join(x.Model.Compare(v), storetest.MakeRoom(v), x.Model.Compare(v), x.Model.CompareSpace(v, true), pool.Close()); err != nil {
				t.Fatalf("event %d, seed %d, inconsistent %v: %v", events, seed, half, err)
			}
		}
	}
	if seen[false] == 0 || seen[true] == 0 {
		t.Errorf("inconsistent after a crash or not: %v, want both", seen)
	}
}

type importRun struct {
	machine      *simulated
	imported     [2][]block.Op // before the snapshot and after it
	snapshot     block.Snapshot
	state        block.State
	begun, ended bool
}

func newImportRun(events int64) *importRun {
	source := storetest.NewModel(crashGeometry)
	return &importRun{
		machine: newSimulated(8*chunk, events),
		// The first part covers the second: an earlier attempt may have left that.
		imported: [2][]block.Op{{source.Write(1, 6), source.Zero(64, 74)}, {source.Write(130, 4), source.Fill(3, 1)}},
		snapshot: block.Snapshot{SnapshotSpec: storetest.NewSpec(), Index: 30, Capacity: crashGeometry.Capacity},
		state:    block.State{Version: 9, Blob: []byte("of the source")},
	}
}

func (r *importRun) rebuild(x *storetest.Member) error {
	v, old := x.Volume, x.Model.Snapshots()
	if err := v.BeginImport(ctx); err != nil {
		return err
	}
	r.begun = true
	// What an earlier attempt has left goes, and a snapshot the source does not have any more.
	if err := v.Import([]block.Op{block.DeleteSnapshotOp(r.snapshot.ID), block.DeleteSnapshotOp(old[0].ID)}); err != nil {
		return err
	}
	for i := range r.imported[0] {
		if err := v.Import(r.imported[0][i : i+1]); err != nil {
			return err
		}
	}
	if err := v.ImportSnapshot(r.snapshot); err != nil {
		return err
	}
	if _, err := v.Checkpoint(ctx); err != nil {
		return err
	}
	if err := errors.Join(v.Import(r.imported[1]), v.EndImport(ctx, 50, r.state)); err != nil {
		return err
	}
	r.ended = true
	return nil
}

// recover returns what the crash has left, and brings it to an end.
func (r *importRun) recover(x *storetest.Member, seed uint64) (outcome string, err error) {
	r.machine.Crash(seed)
	pool, err := r.machine.Open()
	if err != nil {
		return "", err
	}
	if x.Volume, err = pool.Open(x.Name); err != nil {
		return "", err
	}
	v, m := x.Volume, x.Model
	switch {
	case v.Inconsistent():
		outcome = "inconsistent"
		if r.ended {
			return outcome, errors.New("inconsistent after EndImport")
		}
		if err := r.rebuild(x); err != nil {
			return outcome, err
		}
	case v.Applied() == 50:
		outcome = "new"
	default:
		if r.begun {
			return "old", errors.New("consistent after BeginImport")
		}
		return "old", errors.Join(m.CompareOrCorrupt(v), m.Replay(v, nil), m.Compare(v), pool.Close())
	}
	m.Import([]block.Op{block.DeleteSnapshotOp(m.Snapshots()[0].ID)})
	m.Import(r.imported[0])
	m.Freeze(r.snapshot)
	m.Import(r.imported[1])
	m.EndImport(50, r.state)
	for range 2 {
		if err := m.Compare(v); err != nil {
			return outcome, err
		}
		if err := v.Close(); err != nil {
			return outcome, err
		}
		if v, err = pool.Open(x.Name); err != nil {
			return outcome, err
		}
	}
	return outcome, errors.Join(storetest.MakeRoom(v), m.CompareSpace(v, true), pool.Close())
}
