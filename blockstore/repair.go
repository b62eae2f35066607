package blockstore

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"

	"sanctuary/blockstore/block"
)

// Errors of Repair.
var (
	// ErrChanged: the chunk has been changed by a later entry.
	ErrChanged = errors.New("the chunk has been changed by a later entry")
	// ErrLiveFirst: where the block of the snapshot lay is not known, nor where the live one did, and that one has to be repaired first.
	ErrLiveFirst = errors.New("the live block is lost as well and has to be repaired first")
)

// Repair overwrites blocks of one chunk with what a peer has, and their checksums, whether or not they match now. blocks has a bit
// per block of the chunk, data those blocks in order. snapshot is the state the blocks are of; zero for the live one.
//
// A block is written into the place where it is read from, so that every state that shares it is repaired. One that has no place,
// because it reads as zeros or because the map page was damaged, gets one; zeros need none. In a snapshot that goes only for
// what the damaged page spoke of, and the live block must have been repaired before (ErrLiveFirst).
// Nothing the log knows of changes, so the chunk's index stays.
//
// asOf is the index up to which the peer's contents are those of the log: nothing is done and ErrChanged returned if the live chunk
// has changed after it. It is not looked at for a snapshot. Other errors: block.ErrNoSpace, block.ErrNoSnapshot, block.ErrClosed,
// block.ErrFailed; one that says so for blocks of a snapshot that are stored in no place and not lost.
func (v *Volume) Repair(id block.SnapshotID, chunk uint32, blocks uint64, data []byte, asOf uint64) error {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	if err := v.usable(); err != nil {
		return err
	}
	s, err := v.stateAt(id)
	if err != nil {
		return err
	}
	if chunk >= chunksFor(s.capacity) || blocks == 0 || len(data) != block.Size*bits.OnesCount64(blocks) {
		return fmt.Errorf("repair of blocks %#x of chunk %d with %d bytes: %w", blocks, chunk, len(data), block.ErrOutOfRange)
	}
	g := s.lock(chunk)
	index := s.lastIndex(chunk)
	var slots slotMap
	stored := g.resolve(chunk, blocks, &slots)
	g.runlock(chunk)
	if s.snapshot == nil && index > asOf {
		return fmt.Errorf("volume %s, chunk %d: %w", v.id, chunk, ErrChanged)
	}
	// Nothing but this changes the map meanwhile.
	for rest := blocks; rest != 0; data = data[block.Size:] {
		n, _ := runOf(rest)
		rest &^= 1 << n
		one := data[:block.Size]
		if err := v.repairBlock(&s, chunk, n, stored>>n&1 == 1, slots[n], one); err != nil {
			return err
		}
	}
	return nil
}

// repairBlock is called with applyMu held.
func (v *Volume) repairBlock(s *state, chunk uint32, n int, stored bool, slot uint32, data []byte) error {
	sums := []uint32{block.Sum(data)}
	if stored && slot != lostSlot {
		// Both locks of a clone, if it is the origin's place: its readers hold theirs.
		for g := s.g; g != nil; g = g.under {
			g.m.lockOf(chunk).Lock()
			defer g.m.lockOf(chunk).Unlock()
		}
		return v.pool.writeBlocks(slot, n, data, sums)
	}
	zeros := len(bytes.Trim(data, "\x00")) == 0
	switch {
	case !stored && zeros:
		return nil
	case stored && s.snapshot != nil:
		return v.restore(s, chunk, n, data, sums, zeros)
	case s.snapshot != nil:
		return fmt.Errorf("volume %s, snapshot %s, chunk %d, block %d: its place is not known; the replica must be rebuilt", v.id, s.snapshot.Name, chunk, n)
	case zeros:
		return v.change(0, []block.Op{{Kind: block.OpZero, Range: blockRange(chunk, n, 1)}})
	}
	op := block.Op{Kind: block.OpWrite, Range: blockRange(chunk, n, 1), Data: data, Sums: sums}
	return v.change(0, []block.Op{op})
}
