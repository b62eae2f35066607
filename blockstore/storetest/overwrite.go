package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// astray is a volume that has missed some of what was written, beside the model of one that has not.
type astray struct {
	rnd          Source
	machine      Machine
	pool         *blockstore.Pool
	v, clone     *blockstore.Volume // clone: nil until it is made, and never written
	right, model *Model
	of           block.SnapshotID // the clone's
}

// testOverwrite has a volume that went wrong put right block by block, while it goes on being written: every block of every state changes when
// it is put right itself, and at no other time; and what was never wrong is not after a crash either.
func testOverwrite(t *testing.T, m Medium) {
	overwritten := 0
	rapid.Check(t, func(rt *rapid.T) {
		check := func(err error) {
			if err != nil {
				rt.Fatal(err)
			}
		}
		a := astray{rnd: Drawn{rt}, machine: m.New(t, 16*chunk), right: NewModel(geometry), model: NewModel(geometry)}
		var err error
		a.pool, err = a.machine.Open()
		check(err)
		a.v, err = a.pool.Create("astray", geometry)
		check(err)
		for range 3 + a.rnd.IntN(20) {
			check(a.step(4))
		}
		if m.Lasts && a.rnd.IntN(2) == 0 {
			_, err := a.v.Checkpoint(t.Context())
			check(err)
		}
		check(a.makeClone())
		for range a.rnd.IntN(4) {
			a.spoil()
		}
		for n := 0; ; n++ {
			wrong := a.wrong()
			if len(wrong) == 0 || m.Lasts && a.rnd.IntN(30) == 0 {
				break
			}
			w := wrong[a.rnd.IntN(len(wrong))]
			err := a.overwrite(w)
			if errors.Is(err, block.ErrNoSpace) {
				check(a.compare())
				break
			}
			if err != nil {
				rt.Fatalf("overwrite %d, of block %d of snapshot %v: %v", n, w.n, w.id, err)
			}
			overwritten++
			if a.rnd.IntN(4) == 0 {
				check(a.step(0))
			}
		}
		if m.Lasts {
			check(a.crash(uint64(a.rnd.IntN(1 << 20))))
		}
		check(a.pool.Close())
	})
	t.Logf("%d blocks overwritten", overwritten)
	if overwritten == 0 {
		t.Error("nothing was overwritten")
	}
}

// step applies an entry, of which one op in so many is missed, or does what a volume's owner does now and then.
func (a *astray) step(missed int) error {
	switch a.rnd.IntN(8) {
	case 0:
		_, err := a.v.Reclaim(1 + a.rnd.IntN(8))
		return err
	case 1:
		_, err := a.v.Checkpoint(context.Background())
		return err
	}
	index, ops := a.right.Last()+1, a.right.Random(a.rnd)
	if a.of != (block.SnapshotID{}) { // a clone's snapshot is kept, where nobody sees what it holds but the clone
		ops = slices.DeleteFunc(ops, func(op block.Op) bool {
			id, err := op.SnapshotID()
			return op.Kind == block.OpDeleteSnapshot && err == nil && id == a.of
		})
	}
	have := slices.DeleteFunc(slices.Clone(ops), func(op block.Op) bool {
		data := op.Kind == block.OpWrite || op.Kind == block.OpZero || op.Kind == block.OpFill
		return data && missed > 0 && a.rnd.IntN(missed) == 0
	})
	err := a.v.Apply(index, have)
	if errors.Is(err, block.ErrNoSpace) {
		return MakeRoom(a.v)
	}
	a.right.Commit(index, ops)
	a.model.Commit(index, have)
	return errors.Join(err, a.compare())
}

// spoil makes a block of one state wrong that may be right in others: it was changed before its checksum was computed, say.
func (a *astray) spoil() {
	n, blocks := uint64(a.rnd.IntN(min(a.right.Blocks(), 12))), a.right.blocks
	if len(a.right.snapshots) > 0 && a.rnd.IntN(4) > 0 {
		blocks = a.right.snapshots[a.rnd.IntN(len(a.right.snapshots))].blocks
	}
	if a.rnd.IntN(3) == 0 {
		delete(blocks, n)
		return
	}
	op := a.right.Write(int(n), 1)
	blocks[n] = stored{op.Data, drawn.Add(1)}
}

func (a *astray) makeClone() (err error) {
	if len(a.model.snapshots) == 0 || a.rnd.IntN(2) == 0 {
		return nil
	}
	a.of = a.model.snapshots[a.rnd.IntN(len(a.model.snapshots))].ID
	a.clone, err = a.pool.Clone("clone", "astray", a.of)
	return err
}

// wrongBlock is a block of a state; the zero ID is the live one.
type wrongBlock struct {
	id block.SnapshotID
	n  uint64
}

// wrong returns what the two models do not agree on.
func (a *astray) wrong() (out []wrongBlock) {
	for n := range uint64(a.right.Blocks()) {
		if !bytes.Equal(a.right.Block(n), a.model.Block(n)) {
			out = append(out, wrongBlock{n: n})
		}
		for _, s := range a.right.snapshots {
			if !bytes.Equal(s.blocks.block(n), a.model.find(s.ID).blocks.block(n)) {
				out = append(out, wrongBlock{s.ID, n})
			}
		}
	}
	return out
}

// overwrite puts a block right.
func (a *astray) overwrite(w wrongBlock) error {
	good, blocks := a.right.blocks, a.model.blocks
	if w.id != (block.SnapshotID{}) {
		good, blocks = a.right.find(w.id).blocks, a.model.find(w.id).blocks
	}
	bit := uint64(1) << (w.n % block.BlocksPerChunk)
	overwrite := func() (uint64, error) {
		return a.v.Overwrite(w.id, uint32(w.n/block.BlocksPerChunk), bit, good.block(w.n), math.MaxUint64)
	}
	done, err := overwrite()
	if errors.Is(err, block.ErrNoSpace) && done == 0 {
		if err := MakeRoom(a.v); err != nil {
			return err
		}
		done, err = overwrite()
	}
	if err != nil || done != bit {
		return fmt.Errorf("done %#x: %w", done, err)
	}
	if b, ok := good[w.n]; ok {
		blocks[w.n] = b
	} else {
		delete(blocks, w.n)
	}
	return a.compare()
}

// compare compares all states.
func (a *astray) compare() error {
	if err := a.model.CompareBlocks(a.v); err != nil {
		return fmt.Errorf("live: %w", err)
	}
	if err := a.model.CompareSnapshots(a.v); err != nil {
		return err
	}
	if got, want := a.v.Usage().StoredBytes, int64(len(a.model.blocks))*block.Size; got != want {
		return fmt.Errorf("%d bytes are stored, want %d", got, want)
	}
	if a.clone == nil {
		return nil
	}
	s := a.model.find(a.of)
	if err := compareReader(a.clone, block.Geometry{Capacity: s.Capacity, LogicalBlockBytes: a.model.Geometry.LogicalBlockBytes}, s.blocks); err != nil {
		return fmt.Errorf("clone: %w", err)
	}
	return nil
}

// crash cuts the power and replays the journal. What was put right is durable.
func (a *astray) crash(seed uint64) (err error) {
	a.machine.Crash(seed)
	if a.pool, err = a.machine.Open(); err != nil {
		return err
	}
	if a.v, err = a.pool.Open("astray"); err != nil {
		return err
	}
	if err := a.model.Replay(a.v, nil); err != nil {
		return err
	}
	if a.clone != nil {
		if a.clone, err = a.pool.Open("clone"); err != nil {
			return err
		}
	}
	if err := a.compare(); err != nil {
		return fmt.Errorf("after a crash: %w", err)
	}
	return nil
}
