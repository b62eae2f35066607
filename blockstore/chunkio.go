package blockstore

import (
	"fmt"
	"math/bits"
	"sync"

	"sanctuary/blockstore/block"
)

// store writes whole blocks of one chunk. sums has one checksum per block, or one that goes for all of them.
func (v *Volume) store(index uint64, s span, data []byte, sums []uint32) error {
	page, at := v.m.make(s.chunk)
	lock := v.m.lockOf(s.chunk)
	lock.Lock()
	defer lock.Unlock()
	slot := page.slot[at]
	if slot == 0 {
		last := len(v.reserved) - 1
		if last < 0 {
			return v.pool.fail("count of new chunks", fmt.Errorf("none left for chunk %d of volume %s", s.chunk, v.id))
		}
		slot = uint64(v.reserved[last])
		v.reserved = v.reserved[:last]
		v.allocatedChunks.Add(1)
	}
	if err := v.pool.dev.WriteAt(data, slotOffset(slot)+int64(s.first)*block.Size); err != nil {
		return v.pool.fail("write to the medium", err)
	}
	kept := v.pool.sumsOf(slot)[s.first : s.first+s.n]
	if copy(kept, sums) < s.n {
		for i := range kept {
			kept[i] = sums[0]
		}
	}
	v.storedBlocks.Add(int64(bits.OnesCount64(s.mask() &^ page.valid[at])))
	page.slot[at] = slot
	page.valid[at] |= s.mask()
	v.touch(page, s.chunk, index)
	return nil
}

// zero makes blocks of one chunk invalid, and frees the chunk with its last one.
func (v *Volume) zero(index uint64, s span) error {
	page, at := v.m.find(s.chunk)
	if page == nil {
		return nil
	}
	freed, err := v.clearBlocks(page, at, index, s)
	if freed == 0 || err != nil {
		return err
	}
	v.allocatedChunks.Add(-1)
	if v.pool.volatile {
		// There is no durable map that could still point at it, and no reader: clearBlocks had the chunk's lock.
		return v.pool.giveBack([]uint32{freed}, 0)
	}
	v.freed = append(v.freed, freed)
	v.pool.addPending(1)
	return nil
}

func (v *Volume) clearBlocks(page *mapPage, at uint32, index uint64, s span) (freed uint32, err error) {
	lock := v.m.lockOf(s.chunk)
	lock.Lock()
	defer lock.Unlock()
	gone := page.valid[at] & s.mask()
	if gone == 0 {
		return 0, nil // zeros already: the chunk has not changed
	}
	v.storedBlocks.Add(-int64(bits.OnesCount64(gone)))
	page.valid[at] &^= gone
	if page.valid[at] == 0 {
		freed = uint32(page.slot[at])
		page.slot[at] = 0
	}
	v.touch(page, s.chunk, index)
	return freed, nil
}

// touch notes that a chunk has changed. It is called with the chunk's lock and applyMu held.
func (v *Volume) touch(page *mapPage, chunk uint32, index uint64) {
	at := chunk % pageChunks
	page.index[at] = max(page.index[at], index)
	v.markDirty(page, chunk)
}

func (v *Volume) markDirty(page *mapPage, chunk uint32) {
	at := chunk % pageChunks
	page.dirty[at/64] |= 1 << (at % 64)
	if !page.listed {
		page.listed = true
		v.dirtyPages = append(v.dirtyPages, chunk/pageChunks)
	}
}

// repeat returns n bytes of copies of one block. They are valid until the next call.
func (v *Volume) repeat(one []byte, n int64) []byte {
	if v.pattern == nil {
		v.pattern = make([]byte, block.ChunkSize)
	}
	for filled := copy(v.pattern, one); int64(filled) < n; filled *= 2 {
		copy(v.pattern[filled:n], v.pattern[:filled])
	}
	return v.pattern[:n]
}

// oneBlock holds the blocks of which a read wants only a part.
var oneBlock = sync.Pool{New: func() any { return new([block.Size]byte) }}

// ReadAt fills dst, which must be r.Bytes() long, with what the newest applied entries have left there. r need not be
// aligned to blocks. Each block of 4 KiB is as of one moment; several blocks need not be of the same one.
//
// Errors: block.ErrOutOfRange; *block.CorruptError for the first block that does not match its checksum; ErrInconsistent;
// block.ErrClosed; block.ErrFailed. dst is zeroed then, so that nothing unverified can get out.
func (v *Volume) ReadAt(r block.Range, dst []byte) error {
	if err := r.Check(v.capacityNow()); err != nil {
		return err
	}
	if int64(len(dst)) != r.Bytes() {
		return fmt.Errorf("read of sectors %v into %d bytes", r, len(dst))
	}
	for off, rest := r.Offset(), dst; len(rest) > 0; {
		within := off % block.ChunkSize
		n := min(int64(len(rest)), block.ChunkSize-within)
		if err := v.readChunk(uint32(off/block.ChunkSize), within, rest[:n]); err != nil {
			clear(dst)
			return err
		}
		off, rest = off+n, rest[n:]
	}
	return nil
}

// readChunk reads bytes of one chunk, from byte within on.
func (v *Volume) readChunk(chunk uint32, within int64, dst []byte) error {
	lock := v.m.lockOf(chunk)
	lock.RLock()
	defer lock.RUnlock()
	if err := v.usable(); err != nil {
		return err
	}
	if v.inconsistent.Load() { // under the lock: no import can have changed this chunk since
		return fmt.Errorf("volume %s: %w", v.id, ErrInconsistent)
	}
	page, at := v.m.find(chunk)
	if page == nil || page.slot[at] == 0 {
		clear(dst)
		return nil
	}
	slot, valid := page.slot[at], page.valid[at]
	for len(dst) > 0 {
		first, skip := int(within/block.Size), within%block.Size
		var n int64
		var err error
		switch {
		case valid>>first&1 == 0:
			n = min(int64(len(dst)), int64(bits.TrailingZeros64(valid>>first|1<<(block.BlocksPerChunk-first)))*block.Size-skip)
			clear(dst[:n])
		case skip != 0 || len(dst) < block.Size:
			n = min(int64(len(dst)), block.Size-skip)
			err = v.readPart(chunk, slot, first, skip, dst[:n])
		default:
			blocks := min(len(dst)/block.Size, bits.TrailingZeros64(^(valid >> first)))
			n = int64(blocks) * block.Size
			err = v.readBlocks(chunk, slot, first, dst[:n])
		}
		if err != nil {
			return err
		}
		dst, within = dst[n:], within+n
	}
	return nil
}

// maxAllocatedSteps bounds the work of one call of Allocated: chunks looked at, or pages of the map that are not there.
const maxAllocatedSteps = 4096

// Allocated says whether the first sector of r, which must not be empty, is stored (it reads as zeros if not), and for how
// many sectors from there on that goes: at least to the end of its block or of r, and not beyond 4096 chunks or missing
// pages of the map, so that the caller asks again. Each block is as of one moment; several need not be of the same one.
//
// Errors: block.ErrOutOfRange; ErrInconsistent; block.ErrClosed; block.ErrFailed.
func (v *Volume) Allocated(r block.Range) (allocated bool, n block.Count, err error) {
	if err := r.Check(v.capacityNow()); err != nil {
		return false, 0, err
	}
	if r.Count == 0 {
		return false, 0, fmt.Errorf("volume %s: allocation of an empty range at sector %d", v.id, r.Start)
	}
	for rest, step := r.Widen(), 0; rest.Count > 0 && step < maxAllocatedSteps; step++ {
		s, after := next(rest)
		valid, mapped, err := v.validBlocks(s.chunk)
		if err != nil {
			return false, 0, err
		}
		valid >>= s.first
		if step == 0 {
			allocated = valid&1 != 0
		}
		differs := valid
		if allocated {
			differs = ^valid
		}
		same := min(s.n, bits.TrailingZeros64(differs))
		n += block.Count(same) * block.SectorsPerBlock
		if same < s.n {
			break
		}
		rest = after
		if !mapped {
			// Nothing in the other chunks of this page either.
			skip := min(rest.Count, block.Count(pageChunks-1-s.chunk%pageChunks)*block.BlocksPerChunk*block.SectorsPerBlock)
			n += skip
			rest = block.Range{Start: rest.Start + block.Sector(skip), Count: rest.Count - skip}
		}
	}
	return allocated, min(n-block.Count(r.Start%block.SectorsPerBlock), r.Count), nil
}

// validBlocks returns which blocks of a chunk are stored, and whether the map has a page for it.
func (v *Volume) validBlocks(chunk uint32) (valid uint64, mapped bool, err error) {
	lock := v.m.lockOf(chunk)
	lock.RLock()
	defer lock.RUnlock()
	if err := v.usable(); err != nil {
		return 0, false, err
	}
	if v.inconsistent.Load() { // under the lock, as in readChunk
		return 0, false, fmt.Errorf("volume %s: %w", v.id, ErrInconsistent)
	}
	page, at := v.m.find(chunk)
	if page == nil {
		return 0, false, nil
	}
	return page.valid[at], true, nil
}

// readBlocks reads whole valid blocks and verifies each.
func (v *Volume) readBlocks(chunk uint32, slot uint64, first int, dst []byte) error {
	if err := v.pool.dev.ReadAt(dst, slotOffset(slot)+int64(first)*block.Size); err != nil {
		return v.pool.fail("read from the medium", err)
	}
	sums := v.pool.sumsOf(slot)
	for i := 0; len(dst) > 0; i, dst = i+1, dst[block.Size:] {
		if block.Sum(dst[:block.Size]) != sums[first+i] {
			return &block.CorruptError{Range: blockRange(chunk, first+i, 1), Where: "medium"}
		}
	}
	return nil
}

// readPart reads a part of one valid block; the whole block is verified.
func (v *Volume) readPart(chunk uint32, slot uint64, first int, skip int64, dst []byte) error {
	buf := oneBlock.Get().(*[block.Size]byte)
	defer oneBlock.Put(buf)
	if err := v.readBlocks(chunk, slot, first, buf[:]); err != nil {
		return err
	}
	copy(dst, buf[skip:])
	return nil
}

// blockRange returns the range of n blocks of a chunk.
func blockRange(chunk uint32, first, n int) block.Range {
	return block.BytesRange(int64(chunk)*block.ChunkSize+int64(first)*block.Size, int64(n)*block.Size)
}
