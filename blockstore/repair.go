package blockstore

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"

	"sanctuary/blockstore/block"
)

// Errors of Repair and Overwrite.
var (
	// ErrChanged: the chunk has been changed by a later entry.
	ErrChanged = errors.New("the chunk has been changed by a later entry")
	// ErrLiveFirst: where the block of the snapshot lay is not known, nor where the live one did, and that one has to be repaired first.
	ErrLiveFirst = errors.New("the live block is lost as well and has to be repaired first")
)

// Repair overwrites blocks of one chunk that do not match their checksums with what a peer has. blocks has a bit per block of the
// chunk, data those blocks in order. snapshot is the state the blocks are of; zero for the live one. It returns which of the blocks are
// repaired, and what was in the way of the first of the others.
//
// A block is written into the place where it is read from, so that every state that shares it is repaired: what lies there is bad
// for all of them. One that has no place, because it reads as zeros or because the map page was damaged, gets one; zeros need none. In a
// snapshot that goes only for what the damaged page spoke of, and the live block must have been repaired before (ErrLiveFirst).
// Nothing the log knows of changes, so the chunk's index stays.
//
// asOf is the index up to which the peer's contents are those of the log: nothing is done and ErrChanged returned if the live chunk
// has changed after it. It is not looked at for a snapshot. Other errors: block.ErrNoSpace, block.ErrNoSnapshot, block.ErrClosed,
// block.ErrFailed; one that says so for blocks of a snapshot that are stored in no place and not lost.
func (v *Volume) Repair(id block.SnapshotID, chunk uint32, blocks uint64, data []byte, asOf uint64) (done uint64, err error) {
	return v.rewrite(id, chunk, blocks, data, asOf, v.repairBlock)
}

// rewrite calls one for each block, with applyMu held.
func (v *Volume) rewrite(id block.SnapshotID, chunk uint32, blocks uint64, data []byte, asOf uint64, one func(*state, *replacement) error) (done uint64, err error) {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	if err := v.usable(); err != nil {
		return 0, err
	}
	s, err := v.stateAt(id)
	if err != nil {
		return 0, err
	}
	if chunk >= chunksFor(s.capacity) || blocks == 0 || len(data) != block.Size*bits.OnesCount64(blocks) {
		return 0, fmt.Errorf("repair of blocks %#x of chunk %d with %d bytes: %w", blocks, chunk, len(data), block.ErrOutOfRange)
	}
	g := s.lock(chunk)
	index := s.lastIndex(chunk)
	var slots slotMap
	stored := g.resolve(chunk, blocks, &slots)
	g.runlock(chunk)
	if s.snapshot == nil && index > asOf {
		return 0, fmt.Errorf("volume %s, chunk %d: %w", v.id, chunk, ErrChanged)
	}
	// Nothing but this changes the map meanwhile.
	for rest := blocks; rest != 0; data = data[block.Size:] {
		n, _ := runOf(rest)
		rest &^= 1 << n
		b := replacement{chunk: chunk, n: n, slot: noSlot, data: data[:block.Size]}
		b.sums[0] = block.Sum(b.data)
		b.zeros = len(bytes.Trim(b.data, "\x00")) == 0
		if stored>>n&1 == 1 {
			b.slot = slots[n]
		}
		switch bad := one(&s, &b); {
		case bad == nil:
			done |= 1 << n
		case err == nil:
			err = bad
		}
	}
	return done, err
}

// replacement is a block that is to be replaced, and by what.
type replacement struct {
	chunk uint32
	n     int    // within the chunk
	slot  uint32 // where the state has it now; noSlot: it reads as zeros
	data  []byte
	sums  [1]uint32
	zeros bool
}

func (b *replacement) bit() uint64 { return 1 << b.n }

func (v *Volume) repairBlock(s *state, b *replacement) error {
	switch {
	case b.slot != noSlot && b.slot != lostSlot:
		// Both locks of a clone, if it is the origin's place: its readers hold theirs.
		for g := s.g; g != nil; g = g.under {
			g.m.lockOf(b.chunk).Lock()
			defer g.m.lockOf(b.chunk).Unlock()
		}
		return v.pool.writeBlocks(b.slot, b.n, b.data, b.sums[:])
	case b.slot == noSlot && b.zeros:
		return nil
	case b.slot == lostSlot && s.snapshot != nil:
		return v.restore(s, b)
	case s.snapshot != nil:
		return fmt.Errorf("volume %s, snapshot %s, chunk %d, block %d: its place is not known; the replica must be rebuilt", v.id, s.snapshot.Name, b.chunk, b.n)
	}
	return v.setLive(b)
}

// setLive gives the live state a block as if it had been written, or zeroed, without an entry.
func (v *Volume) setLive(b *replacement) error {
	r := blockRange(b.chunk, b.n, 1)
	if b.zeros {
		return v.change(0, []block.Op{{Kind: block.OpZero, Range: r}})
	}
	return v.change(0, []block.Op{{Kind: block.OpWrite, Range: r, Data: b.data, Sums: b.sums[:]}})
}
