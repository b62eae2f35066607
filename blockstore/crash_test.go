package blockstore_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/blockstore/storetest"
)

// The crash tests run two volumes on one pool that is nearly full, so that slots move from one to the other, and cut the
// power somewhere. The journals (in the models) are durable before an entry is applied, as replication's are.

var crashGeometry = block.Geometry{Capacity: block.CountOf(3 * chunk), LogicalBlockBytes: 4096}

const crashPoolBytes = 5 * chunk

type crashRun struct {
	machine *simulated
	pool    *blockstore.Pool
	names   [2]string
	volumes [2]*blockstore.Volume // nil: not created yet
	models  [2]*storetest.Model
	durable [2]uint64
}

// action is one step; it returns the first error.
type action func(r *crashRun) error

func apply(i int, ops func(m *storetest.Model) []block.Op) action {
	return func(r *crashRun) error {
		m, v := r.models[i], r.volumes[i]
		index, entry := m.Last()+1, ops(m)
		err := v.Apply(index, entry)
		if !errors.Is(err, block.ErrNoSpace) {
			m.Commit(index, entry) // in the journal, whatever became of applying it
			return err
		}
		return nil
	}
}

func checkpoint(i int) action {
	return func(r *crashRun) error {
		index, err := r.volumes[i].Checkpoint(ctx)
		if err == nil {
			r.durable[i] = index
		}
		return err
	}
}

func reopen(i int) action {
	return func(r *crashRun) (err error) {
		if err := r.volumes[i].Close(); err != nil {
			return err
		}
		r.durable[i] = r.models[i].Last()
		r.volumes[i], err = r.pool.Open(r.names[i])
		return err
	}
}

// play runs the script until the power fails; it returns false if it did not.
func (r *crashRun) play(t *testing.T, script []action) (cut bool) {
	t.Helper()
	err := func() (err error) {
		if r.pool, err = r.machine.Open(); err != nil {
			return err
		}
		for i := range r.volumes {
			if r.volumes[i], err = r.pool.Create(r.names[i], crashGeometry); err != nil {
				return err
			}
		}
		for _, step := range script {
			if err := step(r); err != nil {
				return err
			}
		}
		return nil
	}()
	if err != nil && !r.machine.power.Lost() {
		t.Fatalf("the script failed without a power cut: %v", err)
	}
	return err != nil
}

func newCrashRun(events int64, commitOnCut bool) *crashRun {
	r := &crashRun{machine: newSimulated(crashPoolBytes, events), names: [2]string{"a", "b"}}
	r.machine.meta.commitOnCut = commitOnCut
	for i := range r.models {
		r.models[i] = storetest.NewModel(crashGeometry)
	}
	return r
}

// recover opens what the crash has left, checks the promises, replays, and goes on for a while.
func (r *crashRun) recover(seed uint64) error {
	r.machine.Crash(seed)
	pool, err := r.machine.Open()
	if err != nil {
		return fmt.Errorf("open after the crash: %w", err)
	}
	var opened [2]*blockstore.Volume
	for i, name := range r.names {
		v, err := pool.Open(name)
		if errors.Is(err, blockstore.ErrNotFound) && r.volumes[i] == nil {
			if v, err = pool.Create(name, crashGeometry); err != nil {
				return err
			}
		}
		if err != nil {
			return fmt.Errorf("open %s after the crash: %w", name, err)
		}
		if v.Durable() < r.durable[i] || v.Applied() != v.Durable() || v.Durable() > r.models[i].Last() {
			return fmt.Errorf("%s is at %d (durable %d) after the crash; a checkpoint at %d was reported", name, v.Applied(), v.Durable(), r.durable[i])
		}
		if err := r.models[i].CompareOrCorrupt(v); err != nil {
			return fmt.Errorf("%s before replay: %w", name, err)
		}
		opened[i] = v
	}
	rnd := rand.New(rand.NewPCG(seed, 7))
	// Either volume may be first: what one replays must not touch what the other has.
	for _, i := range rnd.Perm(2) {
		if err := r.models[i].Replay(opened[i]); err != nil {
			return fmt.Errorf("%s: %w", r.names[i], err)
		}
	}
	for round := range 2 {
		for i, v := range opened {
			if err := r.models[i].Compare(v); err != nil {
				return fmt.Errorf("%s after replay, round %d: %w", r.names[i], round, err)
			}
			index, ops := r.models[i].Last()+1, r.models[i].Random(rnd)
			if err := v.Apply(index, ops); err == nil {
				r.models[i].Commit(index, ops)
			} else if !errors.Is(err, block.ErrNoSpace) {
				return err
			}
			if _, err := v.Checkpoint(ctx); err != nil {
				return err
			}
		}
	}
	if err := pool.Close(); err != nil {
		return err
	}
	if pool, err = r.machine.Open(); err != nil {
		return err
	}
	for i, name := range r.names {
		v, err := pool.Open(name)
		if err != nil {
			return err
		}
		if err := r.models[i].Compare(v); err != nil {
			return fmt.Errorf("%s after closing: %w", name, err)
		}
	}
	return pool.Close()
}

// script moves slots between the volumes and overwrites what checkpoints have recorded.
func script() []action {
	write := func(i, first, n int) action {
		return apply(i, func(m *storetest.Model) []block.Op { return []block.Op{m.Write(first, n)} })
	}
	zero := func(i, first, n int) action {
		return apply(i, func(m *storetest.Model) []block.Op { return []block.Op{m.Zero(first, n)} })
	}
	state := func(i int) action {
		return apply(i, func(m *storetest.Model) []block.Op {
			return []block.Op{m.SetState(m.State().Version, "state"), m.Fill(10, 30), m.Write(60, 8)}
		})
	}
	return []action{
		write(0, 0, 4), write(0, 62, 4), write(1, 0, 70), checkpoint(0), checkpoint(1),
		write(0, 0, 2), write(0, 3, 1), // overwrites of what a checkpoint knows
		write(1, 1, 1), zero(1, 0, 64), // b frees a chunk it has just written to: a's new chunk may not go there yet
		write(0, 128, 2), write(1, 64, 1), write(0, 129, 3), checkpoint(0),
		checkpoint(1), state(1), zero(0, 128, 64), write(0, 5, 1), checkpoint(0), write(1, 130, 2), checkpoint(1),
		state(0), reopen(0), write(0, 1, 9), zero(0, 64, 64), write(0, 64, 1), state(1), checkpoint(1), write(1, 0, 64), checkpoint(0),
	}
}

func TestCrashAtEveryEventHealsByReplay(t *testing.T) {
	seeds := uint64(4)
	if storetest.RaceEnabled {
		seeds = 1
	}
	for _, commitOnCut := range []bool{false, true} {
		cut := true
		events := int64(0)
		for ; cut; events++ {
			for seed := range seeds {
				r := newCrashRun(events, commitOnCut)
				cut = r.play(t, script())
				if err := r.recover(seed); err != nil {
					t.Fatalf("power cut at event %d (commit on cut: %v), seed %d: %v", events, commitOnCut, seed, err)
				}
			}
		}
		if events < 50 {
			t.Errorf("the script has only %d events", events)
		}
	}
}

func TestCrashOfRandomRunsHealsByReplay(t *testing.T) {
	runs := uint64(300)
	if testing.Short() || storetest.RaceEnabled { // they have little concurrency; the races are elsewhere
		runs = 30
	}
	for seed := range runs {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var script []action
		for range 5 + rnd.IntN(40) {
			i := rnd.IntN(2)
			switch rnd.IntN(8) {
			case 0, 1:
				script = append(script, checkpoint(i))
			case 2:
				script = append(script, reopen(i))
			default:
				script = append(script, apply(i, func(m *storetest.Model) []block.Op { return m.Random(rnd) }))
			}
		}
		r := newCrashRun(int64(3+rnd.IntN(80)), seed%2 == 0)
		r.play(t, script)
		if err := r.recover(seed); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// TestCrashDuringImportIsOldInconsistentOrNew cuts the power at every event of a rebuild.
func TestCrashDuringImportIsOldInconsistentOrNew(t *testing.T) {
	seen := map[string]int{}
	for events, cut := int64(0), true; cut; events++ {
		for seed := range uint64(6) {
			r := newCrashRun(events, seed%3 == 0)
			source := storetest.NewModel(crashGeometry)
			var begun, ended bool
			imported := []block.Op{source.Write(1, 6), source.Zero(64, 64), source.Write(130, 4)}
			state := block.State{Version: 9, Blob: []byte("of the source")}
			rebuild := func(v *blockstore.Volume) error {
				if err := v.BeginImport(ctx); err != nil {
					return err
				}
				begun = true
				for i := range imported {
					if err := v.Import(imported[i : i+1]); err != nil {
						return err
					}
				}
				if err := v.EndImport(ctx, 50, state); err != nil {
					return err
				}
				ended = true
				return nil
			}
			old := []action{
				apply(0, func(m *storetest.Model) []block.Op { return []block.Op{m.Write(0, 70)} }),
				checkpoint(0),
				apply(0, func(m *storetest.Model) []block.Op { return []block.Op{m.Write(2, 3)} }),
			}
			cut = r.play(t, append(old, func(r *crashRun) error { return rebuild(r.volumes[0]) }))
			if r.volumes[0] == nil {
				continue
			}
			r.machine.Crash(seed)
			pool, err := r.machine.Open()
			if err != nil {
				t.Fatal(err)
			}
			v, err := pool.Open("a")
			if err != nil {
				t.Fatal(err)
			}
			want := r.models[0]
			switch {
			case v.Inconsistent():
				seen["inconsistent"]++
				if ended {
					t.Fatalf("event %d, seed %d: inconsistent after EndImport", events, seed)
				}
				if err := rebuild(v); err != nil {
					t.Fatal(err)
				}
				fallthrough
			case v.Applied() == 50:
				seen["new"]++
				want.Commit(50, append(imported, block.Op{Kind: block.OpState, Data: state.Blob}))
				if got := v.State(); got.Version != state.Version || string(got.Blob) != string(state.Blob) {
					t.Fatalf("state %+v", got)
				}
				if err := want.CompareBlocks(v); err != nil {
					t.Fatalf("event %d, seed %d: %v", events, seed, err)
				}
			default:
				seen["old"]++
				if begun {
					t.Fatalf("event %d, seed %d: consistent after BeginImport", events, seed)
				}
				if err := errors.Join(want.Replay(v), want.Compare(v)); err != nil {
					t.Fatalf("event %d, seed %d: %v", events, seed, err)
				}
			}
			if err := pool.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if seen["old"] == 0 || seen["inconsistent"] == 0 || seen["new"] <= seen["inconsistent"] {
		t.Errorf("outcomes seen: %v, want all three", seen)
	}
}
