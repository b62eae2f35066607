package blockstore_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/storetest"
)

// The crash tests run volumes on one pool that is nearly full, so that slots move from one to the other, and cut the power
// somewhere. The journals (in the models) are durable before an entry is applied, as replication's are.

var crashGeometry = block.Geometry{Capacity: block.CountOf(3 * chunk), LogicalBlockBytes: 4096}

// action is one step; it returns the first error.
type action func(w *storetest.World) error

// script is what happens on a pool of some chunks, after two volumes, 0 and 1, have been made.
type script struct {
	chunks int64
	steps  []action
	thin   bool // the medium may have no room, once
}

func apply(i int, ops func(m *storetest.Model) []block.Op) action {
	return func(w *storetest.World) error {
		done, err := w.Apply(i, ops(w.Members[i].Model))
		if err == nil && !done {
			return storetest.MakeRoom(w.Members[i].Volume)
		}
		return err
	}
}

func write(i, first, n int) action {
	return apply(i, func(m *storetest.Model) []block.Op { return []block.Op{m.Write(first, n)} })
}

func zero(i, first, n int) action {
	return apply(i, func(m *storetest.Model) []block.Op { return []block.Op{m.Zero(first, n)} })
}

func snapshot(i int) action {
	return apply(i, func(m *storetest.Model) []block.Op { return []block.Op{m.Snapshot()} })
}

// unsnap deletes the nth oldest snapshot, and rollback goes back to it.
func unsnap(i, n int) action {
	return apply(i, func(m *storetest.Model) []block.Op { return []block.Op{block.DeleteSnapshotOp(m.Snapshots()[n].ID)} })
}

func rollback(i, n int) action {
	return apply(i, func(m *storetest.Model) []block.Op { return []block.Op{block.RollbackOp(m.Snapshots()[n].ID)} })
}

func checkpoint(i int) action { return func(w *storetest.World) error { return w.Checkpoint(i) } }
func reopen(i int) action     { return func(w *storetest.World) error { return w.Reopen(i) } }
func remove(i int) action     { return func(w *storetest.World) error { return w.Delete(i) } }
func clone(i, n int) action   { return func(w *storetest.World) error { return w.Clone(i, n) } }
func create() action          { return func(w *storetest.World) error { return w.Create(crashGeometry) } }
func reopenPool() action      { return func(w *storetest.World) error { return w.ReopenPool() } }

// overwrite has blocks of the nth oldest snapshot, -1 for the live state, overwritten with what they hold.
func overwrite(i, snapshot, first, n int) action {
	return func(w *storetest.World) error { return w.Overwrite(i, snapshot, first, n) }
}

func reclaim(i int) action {
	return func(w *storetest.World) error { return storetest.ReclaimAll(w.Members[i].Volume, 2) }
}

// play runs a script on the machine until it fails. cut says whether that was because the power did.
func play(t *testing.T, machine *simulated, s script) (w *storetest.World, cut bool) {
	t.Helper()
	w, err := runScript(machine, s)
	if err != nil && !machine.power.Lost() {
		t.Fatalf("the script failed without a power cut: %v", err)
	}
	return w, err != nil
}

func runScript(machine *simulated, s script) (w *storetest.World, err error) {
	w, err = storetest.NewWorld(machine)
	if err != nil {
		return w, err
	}
	w.Thin = s.thin
	for i, step := range append([]action{create(), create()}, s.steps...) {
		if err := step(w); err != nil {
			return w, fmt.Errorf("step %d: %w", i-2, err)
		}
	}
	return w, nil
}

// recovered crashes, opens what is left, checks the promises, replays, and goes on for a while.
func recovered(w *storetest.World, seed uint64) error {
	if err := w.Recover(seed); err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(seed, 8))
	for n := range 6 {
		if err := w.Step(rnd, true); err != nil {
			return fmt.Errorf("step %d after recovery: %w", n, err)
		}
	}
	if err := w.CompareAll(); err != nil {
		return fmt.Errorf("six steps after recovery: %w", err)
	}
	if seed%2 == 0 { // what a crash has left must not show in a second one
		if err := w.Recover(seed + 1); err != nil {
			return fmt.Errorf("second crash: %w", err)
		}
	}
	if err := w.End(rnd); err != nil {
		return fmt.Errorf("at the end: %w", err)
	}
	return nil
}

var scripts = map[string]script{
	// Slots move between the volumes, and what checkpoints have recorded is overwritten.
	"slots": {chunks: 5, steps: []action{
		write(0, 0, 4), write(0, 62, 4), write(1, 0, 70), checkpoint(0), checkpoint(1),
		write(0, 0, 2), write(0, 3, 1), // overwrites of what a checkpoint knows
		write(1, 1, 1), zero(1, 0, 64), // 1 frees a chunk it has just written to: 0's new chunk may not go there yet
		write(0, 128, 2), write(1, 64, 1), write(0, 129, 3), checkpoint(0),
		checkpoint(1), state(1), zero(0, 128, 64), write(0, 5, 1), checkpoint(0), write(1, 130, 2), checkpoint(1),
		state(0), reopen(0), write(0, 1, 9), zero(0, 64, 64), write(0, 64, 1), state(1), checkpoint(1), write(1, 0, 64), checkpoint(0),
	}},
	// Snapshots' data is overwritten in the live volume, and their slots go to the other one.
	"snapshots": {chunks: 8, steps: []action{
		write(0, 0, 70), write(1, 0, 10), checkpoint(0), snapshot(0), write(0, 0, 2), write(0, 64, 64), write(0, 1, 2),
		checkpoint(1), write(1, 3, 3), snapshot(1), checkpoint(1), write(1, 3, 1), // shared and not yet durable; durable and written over
		checkpoint(0), snapshot(0), write(0, 5, 5), zero(0, 64, 64), snapshot(0),
		unsnap(0, 0), reclaim(0), write(1, 64, 70), checkpoint(0), write(1, 130, 3), checkpoint(1),
		unsnap(0, 0), write(0, 6, 1), reclaim(0), checkpoint(0), write(1, 64, 64), snapshot(1), write(1, 70, 9),
		unsnap(0, 0), unsnap(1, 0), reclaim(1), checkpoint(1), write(0, 100, 60), reclaim(0), reopen(0), reopenPool(), write(0, 1, 1),
	}},
	// Blocks get other places without an entry, and what they had is written, reclaimed and given to the other volume.
	"overwrite": {chunks: 14, steps: []action{
		write(0, 0, 6), snapshot(0), write(0, 8, 4), snapshot(0), rollback(0, 0), write(1, 0, 70), checkpoint(0), checkpoint(1),
		overwrite(0, 0, 0, 3), write(0, 0, 1), checkpoint(1), overwrite(0, 1, 0, 2), write(0, 1, 1), checkpoint(1),
		overwrite(0, -1, 2, 3), snapshot(0), write(0, 2, 2), zero(0, 5, 1), snapshot(0), write(0, 5, 1), overwrite(0, 2, 4, 3), checkpoint(1),
		clone(0, 1), write(2, 1, 2), overwrite(0, 1, 0, 4), snapshot(2), overwrite(2, 0, 0, 4), overwrite(2, -1, 0, 4), checkpoint(1),
		unsnap(0, 0), overwrite(0, 0, 1, 3), reclaim(0), write(0, 3, 3), checkpoint(1), unsnap(0, 1), write(0, 0, 6), reclaim(0), write(1, 64, 70),
		checkpoint(0), overwrite(0, 0, 0, 6), write(1, 70, 3), reopenPool(), write(0, 1, 1),
	}},
	"rollback": {chunks: 10, steps: []action{
		write(0, 0, 130), snapshot(0), checkpoint(0), write(0, 10, 60), snapshot(0), write(0, 64, 3), zero(0, 0, 64),
		rollback(0, 0), write(0, 11, 2), checkpoint(0), write(1, 0, 100), rollback(0, 1), write(0, 12, 2), reclaim(0), checkpoint(0),
		write(1, 130, 9), rollback(0, 0), unsnap(0, 0), write(0, 13, 2), reclaim(0), checkpoint(0), write(1, 0, 64), checkpoint(1),
		rollback(0, 0), unsnap(0, 0), reclaim(0), write(0, 0, 70), checkpoint(0), write(1, 100, 64),
	}},
	// A clone is made of what no checkpoint has recorded, and the origin replays the writes that led there and on.
	"clones": {chunks: 12, steps: []action{
		write(0, 0, 70), checkpoint(0), write(0, 3, 3), snapshot(0), clone(0, 0), write(0, 3, 3), write(2, 4, 3), write(2, 64, 64), checkpoint(2),
		write(0, 0, 9), snapshot(2), write(2, 5, 1), clone(2, 0), write(3, 5, 70), unsnap(0, 0), reclaim(0), checkpoint(0), write(1, 0, 64), checkpoint(1),
		remove(0), write(0, 65, 64), checkpoint(0), unsnap(1, 0), write(2, 6, 1), reclaim(1), checkpoint(1), write(0, 0, 60),
		remove(1), write(0, 1, 3), remove(1), checkpoint(0), write(0, 130, 10),
	}},
	"growth": {chunks: 10, steps: []action{
		write(0, 0, 3), snapshot(0), grow(0, 70), write(0, 190, 70), checkpoint(0), snapshot(0), grow(0, 64), write(0, 250, 70),
		clone(0, 1), rollback(0, 0), write(0, 300, 3), checkpoint(0), grow(2, 30), write(2, 270, 9), remove(0), reclaim(1), checkpoint(1),
		create(), write(2, 0, 130), checkpoint(2),
	}},
}

func state(i int) action {
	return apply(i, func(m *storetest.Model) []block.Op {
		return []block.Op{m.SetState(m.State().Version, "state"), m.Fill(10, 30), m.Write(60, 8)}
	})
}

func grow(i, n int) action {
	return apply(i, func(m *storetest.Model) []block.Op { return []block.Op{m.Grow(n)} })
}

func TestCrashAtEveryEventHealsByReplay(t *testing.T) {
	t.Parallel()
	seeds := uint64(2)
	every := int64(1)
	if storetest.RaceEnabled || testing.Short() { // they have little concurrency; the races are elsewhere
		seeds, every = 1, 7
	}
	for name, s := range scripts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			events, cut := int64(0), true
			for ; cut; events += every {
				for seed := range seeds {
					var w *storetest.World
					machine := newSimulated(s.chunks*chunk, events)
					w, cut = play(t, machine, s)
					if err := recovered(w, uint64(events)+seed); err != nil {
						t.Fatalf("power cut at event %d, seed %d: %v", events, uint64(events)+seed, err)
					}
				}
			}
			if events < 50 {
				t.Errorf("the script has only %d events", events)
			}
			t.Logf("%d events", events)
		})
	}
}

func TestCrashOfRandomRunsHealsByReplay(t *testing.T) {
	t.Parallel()
	runs := uint64(2000)
	if testing.Short() || storetest.RaceEnabled {
		runs = 40
	}
	for seed := range runs {
		rnd := rand.New(rand.NewPCG(seed, 1))
		s := script{chunks: 8}
		for range 5 + rnd.IntN(60) {
			s.steps = append(s.steps, func(w *storetest.World) error { return w.Step(rnd, true) })
		}
		w, _ := play(t, newSimulated(s.chunks*chunk, int64(3+rnd.IntN(250))), s)
		if err := recovered(w, seed); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}
