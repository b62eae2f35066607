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
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	return v.rewrite(id, chunk, blocks, data, asOf, v.repairBlock)
}

// rewrite calls one for each block, with applyMu held.
func (v *Volume) rewrite(id block.SnapshotID, chunk uint32, blocks uint64, data []byte, asOf uint64, one func(*state, *replacement) error) (done uint64, err error) {
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
	if s.snapshot == nil && s.lastIndexLocked(chunk) > asOf {
		return 0, fmt.Errorf("volume %s, chunk %d: %w", v.id, chunk, ErrChanged)
	}
	for rest := blocks; rest != 0; data = data[block.Size:] {
		n, _ := runOf(rest)
		rest &^= 1 << n
		b := replacement{chunk: chunk, n: n, data: data[:block.Size]}
		b.sums[0] = block.Sum(b.data)
		b.zeros = len(bytes.Trim(b.data, "\x00")) == 0
		g := s.lock(chunk)
		b.slot = g.find(chunk, n)
		g.runlock(chunk)
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
	n     int // within the chunk
	// slot is where the state has it now; noSlot: it reads as zeros. Nothing but this changes the volume's own map meanwhile; of a clone it
	// may be its origin's, which moves what it likes.
	slot  uint32
	data  []byte
	sums  [1]uint32
	zeros bool
}

func (b *replacement) bit() uint64 { return 1 << b.n }

// find returns the slot of one block, noSlot if it is not stored. The chunk is locked by the caller.
func (g *ground) find(chunk uint32, n int) uint32 {
	var slots slotMap
	if g.resolve(chunk, 1<<n, &slots) == 0 {
		return noSlot
	}
	return slots[n]
}

func (s *state) lastIndexLocked(chunk uint32) uint64 {
	g := s.lock(chunk)
	defer g.runlock(chunk)
	return s.lastIndex(chunk)
}

func (v *Volume) repairBlock(s *state, b *replacement) error {
	switch {
	case b.slot != noSlot && b.slot != lostSlot:
		// Both locks of a clone, if it is the origin's place: its readers hold theirs, and so does who moves it.
		for g := s.g; g != nil; g = g.under {
			g.m.lockOf(b.chunk).Lock()
			defer g.m.lockOf(b.chunk).Unlock()
		}
		slot := s.g.find(b.chunk, b.n)
		if slot == noSlot || slot == lostSlot {
			return fmt.Errorf("volume %s, chunk %d, block %d: its place has changed", v.id, b.chunk, b.n)
		}
		return v.pool.writeBlocks(slot, b.n, b.data, b.sums[:])
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
	v.undurable = true // what Reclaim finds unused now is what the last checkpoint has of it
	r := blockRange(b.chunk, b.n, 1)
	if b.zeros {
		return v.change(0, []block.Op{{Kind: block.OpZero, Range: r}})
	}
	return v.change(0, []block.Op{{Kind: block.OpWrite, Range: r, Data: b.data, Sums: b.sums[:]}})
}
