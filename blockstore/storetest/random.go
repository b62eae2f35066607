package storetest

import (
	"context"
	"errors"
	"fmt"

	"pgregory.net/rapid"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// Source draws numbers from 0 to below n: a *rand.Rand, or Drawn.
type Source interface{ IntN(n int) int }

// Drawn draws from rapid, which then looks for the shortest run that fails.
type Drawn struct{ T *rapid.T }

// IntN implements Source.
func (d Drawn) IntN(n int) int { return rapid.IntRange(0, n-1).Draw(d.T, "") }

// maxRandomBlocks keeps volumes that grow at random small enough to be compared over and over, and maxRandomSnapshots their
// number.
const (
	maxRandomBlocks    = 8 * block.BlocksPerChunk
	maxRandomSnapshots = 6
)

// Random returns a random entry of one to three ops.
func (m *Model) Random(rnd Source) []block.Op {
	if rnd.IntN(24) == 0 && m.Blocks() < maxRandomBlocks {
		return []block.Op{m.Grow(rnd.IntN(2 * block.BlocksPerChunk))}
	}
	var ops []block.Op
	for range 1 + rnd.IntN(3) {
		if rnd.IntN(5) == 0 {
			ops = append(ops, m.RandomSnapshot(rnd))
			continue
		}
		first := rnd.IntN(m.Blocks())
		n := 1 + rnd.IntN(min(m.Blocks()-first, 8))
		switch rnd.IntN(8) {
		case 0:
			ops = append(ops, m.Zero(first, n))
		case 1, 2: // whole chunks
			first = first / block.BlocksPerChunk * block.BlocksPerChunk
			n = min(m.Blocks()-first, block.BlocksPerChunk*(1+rnd.IntN(2)))
			ops = append(ops, m.Zero(first, n))
		case 3:
			ops = append(ops, m.Fill(first, min(m.Blocks()-first, n*20)))
		case 4:
			ops = append(ops, m.SetState(m.state.Version-uint64(rnd.IntN(2)), fmt.Sprint("state ", m.Last())))
		default:
			ops = append(ops, m.Write(first, n))
		}
	}
	return ops
}

// RandomSnapshot returns an op that makes, deletes or goes back to a snapshot, or tries to with one that is not there or is
// there already.
func (m *Model) RandomSnapshot(rnd Source) block.Op {
	spec := NewSpec()
	n := rnd.IntN(len(m.snapshots) + 2)
	if n < len(m.snapshots) {
		spec.ID = m.snapshots[n].ID
		switch {
		case rnd.IntN(8) == 0:
			return block.SnapshotOp(spec)
		case rnd.IntN(3) == 0:
			return block.RollbackOp(spec.ID)
		}
		return block.DeleteSnapshotOp(spec.ID)
	}
	switch {
	case rnd.IntN(16) == 0:
		return block.RollbackOp(spec.ID)
	case rnd.IntN(16) == 0 || len(m.snapshots) >= maxRandomSnapshots:
		return block.DeleteSnapshotOp(spec.ID)
	}
	return block.SnapshotOp(spec)
}

// maxReclaimCalls is far more than it takes for the volumes of these tests, with limits of at least one chunk.
const maxReclaimCalls = 200_000

// ReclaimAll calls Reclaim until there is nothing more to do.
func ReclaimAll(v *blockstore.Volume, limit int) error {
	for range maxReclaimCalls {
		if more, err := v.Reclaim(limit); err != nil || !more {
			return err
		}
	}
	return fmt.Errorf("Reclaim(%d) of volume %s has not come to an end after %d calls", limit, v.ID(), maxReclaimCalls)
}

// applyMakingRoom applies an entry that found room once.
func applyMakingRoom(v *blockstore.Volume, e Entry, room func() error) error {
	err := v.Apply(e.Index, e.Ops)
	if !errors.Is(err, block.ErrNoSpace) {
		return err
	}
	if err := room(); err != nil {
		return err
	}
	return v.Apply(e.Index, e.Ops)
}

// MakeRoom gives back all that the volume has freed.
func MakeRoom(v *blockstore.Volume) error {
	if err := ReclaimAll(v, 64); err != nil {
		return err
	}
	_, err := v.Checkpoint(context.Background())
	return err
}
