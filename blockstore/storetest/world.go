package storetest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// World is a pool with several volumes, what they should be, and what their owners have been told. Its actions return the
// first error, after which only Recover makes sense; or an error of their own if the pool has broken a promise.
type World struct {
	Machine Machine
	Pool    *blockstore.Pool
	Members []*Member
	// Thin: the medium may run out of space though the pool is not full.
	Thin  bool
	named int
	empty blockstore.PoolUsage // of a pool without volumes
}

// Member is a volume. The journal in its model is durable before an entry is applied, as replication's is.
type Member struct {
	Name    string
	Model   *Model
	Volume  *blockstore.Volume // nil while it is made, deleted or opened again
	Durable uint64             // what it has said to be durable
	unsure  bool               // it was being made or deleted
}

// NewWorld opens the machine's pool, which must be empty.
func NewWorld(m Machine) (*World, error) {
	w := &World{Machine: m}
	var err error
	if w.Pool, err = m.Open(); err != nil {
		return w, err
	}
	w.empty = w.Pool.Usage()
	return w, nil
}

// Create adds an empty volume.
func (w *World) Create(g block.Geometry) error {
	return w.add(NewModel(g), func(name string) (*blockstore.Volume, error) { return w.Pool.Create(name, g) })
}

// Clone adds a clone of a snapshot, numbered from the oldest, of a member. If there is none, or no space, it does nothing.
func (w *World) Clone(i, snapshot int) error {
	origin := w.Members[i]
	if snapshot >= len(origin.Model.snapshots) {
		return nil
	}
	id := origin.Model.snapshots[snapshot].ID
	return w.add(origin.Model.NewClone(id), func(name string) (*blockstore.Volume, error) {
		return w.Pool.Clone(name, origin.Name, id)
	})
}

func (w *World) add(model *Model, open func(name string) (*blockstore.Volume, error)) error {
	w.named++
	x := &Member{Name: fmt.Sprintf("v%02d", w.named), Model: model, unsure: true}
	w.Members = append(w.Members, x)
	v, err := open(x.Name)
	if errors.Is(err, block.ErrNoSpace) && w.Thin { // it was a passing want
		v, err = open(x.Name)
	}
	if errors.Is(err, block.ErrNoSpace) {
		w.drop(x)
		return nil
	}
	if err != nil {
		return fmt.Errorf("make %s: %w", x.Name, err)
	}
	x.Volume, x.unsure = v, false
	if v.Applied() != 0 || v.Durable() != 0 || v.Inconsistent() || v.ID() != x.Name {
		return fmt.Errorf("new volume %s: %s, applied %d, durable %d", x.Name, v.ID(), v.Applied(), v.Durable())
	}
	return w.Compare(len(w.Members) - 1)
}

func (w *World) drop(x *Member) {
	x.Model.Delete()
	w.Members = slices.DeleteFunc(w.Members, func(o *Member) bool { return o == x })
}

// Delete closes and deletes a member.
func (w *World) Delete(i int) error {
	x := w.Members[i]
	if err := w.close(x); err != nil {
		return err
	}
	x.unsure = true
	if err := w.Pool.Delete(x.Name); err != nil {
		return fmt.Errorf("delete %s: %w", x.Name, err)
	}
	w.drop(x)
	return nil
}

func (w *World) close(x *Member) error {
	v := x.Volume
	x.Volume = nil
	if err := v.Close(); err != nil {
		return fmt.Errorf("close %s: %w", x.Name, err)
	}
	x.Durable = x.Model.Last()
	return nil
}

// Apply applies an entry, and returns whether there was room for it.
func (w *World) Apply(i int, ops []block.Op) (done bool, err error) {
	x := w.Members[i]
	index := x.Model.Last() + 1
	before, needs := w.Pool.Usage(), x.Volume.Needs(ops)
	err = x.Volume.Apply(index, ops)
	after := w.Pool.Usage()
	if errors.Is(err, block.ErrNoSpace) {
		if needs <= before.FreeBytes() && !w.Thin || after != before || x.Volume.Applied() != index-1 {
			return false, fmt.Errorf("entry %d of %s needs %d bytes of %d and was refused (%w); afterwards %d bytes are free and %d is applied",
				index, x.Name, needs, before.FreeBytes(), err, after.FreeBytes(), x.Volume.Applied())
		}
		return false, nil
	}
	x.Model.Commit(index, ops) // it is in the journal, whatever became of applying it
	if err != nil {
		return true, fmt.Errorf("entry %d of %s: %w", index, x.Name, err)
	}
	if took := after.AllocatedBytes - before.AllocatedBytes; took > needs {
		return true, fmt.Errorf("entry %d of %s took %d bytes, was to need at most %d", index, x.Name, took, needs)
	}
	return true, nil
}

// Checkpoint checkpoints a member.
func (w *World) Checkpoint(i int) error {
	x := w.Members[i]
	got, err := x.Volume.Checkpoint(context.Background())
	if err != nil {
		return fmt.Errorf("checkpoint of %s: %w", x.Name, err)
	}
	if got != x.Model.Last() || x.Volume.Durable() != got {
		return fmt.Errorf("checkpoint of %s says %d, Durable %d, want %d", x.Name, got, x.Volume.Durable(), x.Model.Last())
	}
	x.Durable = got
	return nil
}

// Overwrite has blocks of a state of a member overwritten with what they hold: the live one, or the nth snapshot. They lie elsewhere then, and
// nothing else has changed for anybody, whenever the power goes.
func (w *World) Overwrite(i, snapshot, first, n int) error {
	x := w.Members[i]
	id, blocks := block.SnapshotID{}, x.Model.blocks
	if snapshot >= 0 && snapshot < len(x.Model.snapshots) {
		id, blocks = x.Model.snapshots[snapshot].ID, x.Model.snapshots[snapshot].blocks
	}
	chunk := first / block.BlocksPerChunk
	mask, data := uint64(0), []byte(nil)
	for k := first; k < min(first+n, (chunk+1)*block.BlocksPerChunk, x.Model.Blocks()); k++ {
		mask |= 1 << (k % block.BlocksPerChunk)
		data = append(data, blocks.block(uint64(k))...)
	}
	x.Model.scattered = true
	_, err := x.Volume.Overwrite(id, uint32(chunk), mask, data, math.MaxUint64)
	if errors.Is(err, block.ErrNoSpace) || errors.Is(err, block.ErrOutOfRange) { // a snapshot may have been smaller
		return nil
	}
	return err
}

// Reclaim lets a member look at some chunks.
func (w *World) Reclaim(i, limit int) error {
	_, err := w.Members[i].Volume.Reclaim(limit)
	return err
}

// Reopen closes a member and opens it again.
func (w *World) Reopen(i int) error {
	x := w.Members[i]
	if err := w.close(x); err != nil {
		return err
	}
	var err error
	x.Volume, err = w.Pool.Open(x.Name)
	return err
}

// ReopenPool closes the pool and opens it again.
func (w *World) ReopenPool() error {
	if err := w.Pool.Close(); err != nil {
		return err
	}
	for _, x := range w.Members {
		x.Volume, x.Durable = nil, x.Model.Last()
	}
	var err error
	if w.Pool, err = w.Machine.Open(); err != nil {
		return err
	}
	for _, x := range w.Members {
		if x.Volume, err = w.Pool.Open(x.Name); err != nil {
			return err
		}
	}
	return nil
}

// Compare compares a member with its model.
func (w *World) Compare(i int) error {
	x := w.Members[i]
	if err := x.Model.Compare(x.Volume); err != nil {
		return fmt.Errorf("%s: %w", x.Name, err)
	}
	return nil
}

// CompareAll compares all members.
func (w *World) CompareAll() error {
	for i := range w.Members {
		if err := w.Compare(i); err != nil {
			return err
		}
	}
	return nil
}

// Recover crashes the machine, opens what is left, checks that it is what was promised, and replays the journals.
func (w *World) Recover(seed uint64) (err error) {
	w.Machine.Crash(seed)
	if w.Pool, err = w.Machine.Open(); err != nil {
		return fmt.Errorf("open after the crash: %w", err)
	}
	if w.empty.CapacityBytes == 0 { // the crash was before there was a pool
		w.empty.CapacityBytes = w.Pool.Usage().CapacityBytes
	}
	names, err := w.Pool.Volumes()
	if err != nil {
		return err
	}
	for _, x := range slices.Clone(w.Members) {
		if !slices.Contains(names, x.Name) && x.unsure {
			w.drop(x)
			continue
		}
		x.unsure = false
		if x.Volume, err = w.Pool.Open(x.Name); err != nil {
			return fmt.Errorf("open %s after the crash: %w", x.Name, err)
		}
		v := x.Volume
		if v.Durable() < x.Durable || v.Applied() != v.Durable() || v.Durable() > x.Model.Last() {
			return fmt.Errorf("%s is at %d (durable %d) after the crash; durable at %d was reported", x.Name, v.Applied(), v.Durable(), x.Durable)
		}
		if err := x.Model.CompareOrCorrupt(v); err != nil {
			return fmt.Errorf("%s before replay: %w", x.Name, err)
		}
	}
	if len(names) != len(w.Members) {
		return fmt.Errorf("volumes %v after the crash, want %d", names, len(w.Members))
	}
	// Any of them may be first: what one replays must not touch what the others have.
	for _, i := range rand.New(rand.NewPCG(seed, 7)).Perm(len(w.Members)) {
		x := w.Members[i]
		if err := x.Model.Replay(x.Volume, w.makeRoom); err != nil {
			return fmt.Errorf("%s: %w", x.Name, err)
		}
	}
	if err := w.CompareAll(); err != nil {
		return fmt.Errorf("after replay: %w", err)
	}
	return nil
}

// makeRoom frees what can be freed in any volume: while one is replayed it may take what Reclaim had given up before the crash.
func (w *World) makeRoom() error {
	for _, x := range w.Members {
		if err := MakeRoom(x.Volume); err != nil {
			return err
		}
	}
	return nil
}

// Settle reclaims and checkpoints until nothing is left to be freed, and compares the space of everything exactly.
func (w *World) Settle() error {
	for range 2 { // what one has freed may have been all that another's was kept for
		for _, x := range w.Members {
			if err := ReclaimAll(x.Volume, 5); err != nil {
				return err
			}
		}
	}
	for i := range w.Members {
		if err := w.Checkpoint(i); err != nil {
			return err
		}
	}
	for _, x := range w.Members {
		if err := x.Model.CompareSpace(x.Volume, true); err != nil {
			return fmt.Errorf("%s: %w", x.Name, err)
		}
	}
	if got := w.Pool.Usage().PendingFreeBytes; got != 0 {
		return fmt.Errorf("%d bytes wait to be freed after everything was reclaimed and checkpointed", got)
	}
	return nil
}

// End settles, deletes all members, in any order, and checks that nothing is left of them, also when the pool has been
// opened again.
func (w *World) End(rnd Source) error {
	if err := w.Settle(); err != nil {
		return err
	}
	for len(w.Members) > 0 {
		if err := w.Delete(rnd.IntN(len(w.Members))); err != nil {
			return err
		}
		if err := w.CompareAll(); err != nil {
			return fmt.Errorf("after a deletion: %w", err)
		}
	}
	if got := w.Pool.Usage(); got != w.empty {
		return fmt.Errorf("the pool without volumes has usage %+v, had %+v at first", got, w.empty)
	}
	return w.Pool.Close()
}
