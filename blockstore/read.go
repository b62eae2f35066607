package blockstore

import (
	"fmt"
	"math/bits"
	"sync"

	"sanctuary/blockstore/block"
)

// Reader is a state of a volume that can be read: the live one (Volume) or a snapshot (View).
type Reader interface {
	Geometry() block.Geometry
	ReadAt(r block.Range, dst []byte) error
	Allocated(r block.Range) (allocated bool, n block.Count, err error)
	ChunkInfo(chunk uint32, info *ChunkInfo) error
	CheckChunk(chunk uint32, info *ChunkInfo) (bad uint64, err error)
	ReadChunk(chunk uint32, blocks uint64, info *ChunkInfo, fn func(n int, data []byte)) (bad uint64, err error)
}

var _, _ Reader = (*Volume)(nil), (*View)(nil)

// state is one state of a volume, for one call.
type state struct {
	v        *Volume
	g        *ground
	capacity block.Count
	snapshot *snapshot // nil: the live one
	lineage  *lineage  // in which the snapshot was found
}

// live returns the state that the newest applied entry has left.
func (v *Volume) live() state { return state{v: v, g: v.ground.Load(), capacity: v.capacityNow()} }

// lock locks a chunk for reading and returns what to read it from. That of the live state is looked up under the lock: an older
// one might see what Reclaim has freed since.
func (s state) lock(chunk uint32) *ground {
	s.g.rlock(chunk)
	if s.snapshot == nil {
		return s.v.ground.Load() // another path, over the same maps
	}
	return s.g
}

// usable is called with the chunk locked: what Close, an import or the deletion of the snapshot waits for.
func (s state) usable() error {
	if err := s.v.usable(); err != nil {
		return err
	}
	if s.snapshot != nil {
		if now := s.v.lineage.Load(); now != s.lineage && !now.has(s.snapshot) {
			return fmt.Errorf("volume %s, snapshot %s: %w", s.v.id, s.snapshot.Name, block.ErrNoSnapshot)
		}
		return nil // an import leaves snapshots alone
	}
	if s.v.inconsistent.Load() {
		return fmt.Errorf("volume %s: %w", s.v.id, ErrInconsistent)
	}
	return nil
}

// ReadAt fills dst, which must be r.Bytes() long, with what the newest applied entries have left there. r need not be
// aligned to blocks. Each block of 4 KiB is as of one moment; several blocks need not be of the same one.
//
// Errors: block.ErrOutOfRange; *block.CorruptError for the first block that does not match its checksum; ErrInconsistent;
// block.ErrClosed; block.ErrFailed. dst is zeroed then, so that nothing unverified can get out.
func (v *Volume) ReadAt(r block.Range, dst []byte) error { return v.live().readAt(r, dst) }

func (s state) readAt(r block.Range, dst []byte) error {
	if err := r.Check(s.capacity); err != nil {
		return err
	}
	if int64(len(dst)) != r.Bytes() {
		return fmt.Errorf("read of sectors %v into %d bytes", r, len(dst))
	}
	for off, rest := r.Offset(), dst; len(rest) > 0; {
		within := off % block.ChunkSize
		n := min(int64(len(rest)), block.ChunkSize-within)
		if err := s.readChunk(uint32(off/block.ChunkSize), within, rest[:n]); err != nil {
			clear(dst)
			return err
		}
		off, rest = off+n, rest[n:]
	}
	return nil
}

// readChunk reads bytes of one chunk, from byte within on.
func (s state) readChunk(chunk uint32, within int64, dst []byte) error {
	first := int(within / block.Size)
	last := int((within + int64(len(dst)) - 1) / block.Size)
	want := blockMask(first, last-first+1)
	g := s.lock(chunk)
	defer g.runlock(chunk)
	if err := s.usable(); err != nil {
		return err
	}
	var slots slotMap
	slot, stored, one := g.resolveOne(chunk, want)
	if !one {
		stored = g.resolve(chunk, want, &slots)
	}
	for len(dst) > 0 {
		first, skip := int(within/block.Size), within%block.Size
		var n int64
		var err error
		switch {
		case stored>>first&1 == 0:
			n = min(int64(len(dst)), int64(bits.TrailingZeros64(stored>>first|1<<(block.BlocksPerChunk-first)))*block.Size-skip)
			clear(dst[:n])
		default:
			blocks := min(max(1, len(dst)/block.Size), bits.TrailingZeros64(^(stored >> first)))
			if !one {
				slot = slots[first]
				for i := 1; i < blocks; i++ {
					if slots[first+i] != slot {
						blocks = i
					}
				}
			}
			if skip != 0 || len(dst) < block.Size {
				n = min(int64(len(dst)), block.Size-skip)
				err = s.v.pool.readPart(chunk, slot, first, skip, dst[:n])
			} else {
				n = int64(blocks) * block.Size
				err = s.v.pool.readBlocks(chunk, slot, first, dst[:n])
			}
		}
		if err != nil {
			return err
		}
		dst, within = dst[n:], within+n
	}
	return nil
}

// readBlocks reads whole blocks of a slot, which are those of the given chunk, and verifies each.
func (p *Pool) readBlocks(chunk, slot uint32, first int, dst []byte) error {
	if slot == lostSlot {
		return &block.CorruptError{Range: blockRange(chunk, first, 1), Where: "map page"}
	}
	if err := p.dev.ReadAt(dst, p.layout.slotOffset(slot)+int64(first)*block.Size); err != nil {
		return p.fail("read from the medium", err)
	}
	var room [block.BlocksPerChunk]uint32
	sums := room[:len(dst)/block.Size]
	if err := p.sums.get(slot, first, sums); err != nil {
		return p.fail("read checksums from the medium", err)
	}
	for i, want := range sums {
		if block.Sum(dst[i*block.Size:(i+1)*block.Size]) != want {
			return &block.CorruptError{Range: blockRange(chunk, first+i, 1), Where: "medium"}
		}
	}
	return nil
}

// oneBlock holds the blocks of which a read wants only a part.
var oneBlock = sync.Pool{New: func() any { return new([block.Size]byte) }}

// oneChunk holds what is read of a chunk to be checked or passed on.
var oneChunk = sync.Pool{New: func() any { return new([block.ChunkSize]byte) }}

// readPart reads a part of one block; the whole block is verified.
func (p *Pool) readPart(chunk, slot uint32, first int, skip int64, dst []byte) error {
	buf := oneBlock.Get().(*[block.Size]byte)
	defer oneBlock.Put(buf)
	if err := p.readBlocks(chunk, slot, first, buf[:]); err != nil {
		return err
	}
	copy(dst, buf[skip:])
	return nil
}

// blockRange returns the range of n blocks of a chunk.
func blockRange(chunk uint32, first, n int) block.Range {
	return block.BytesRange(int64(chunk)*block.ChunkSize+int64(first)*block.Size, int64(n)*block.Size)
}

// maxAllocatedSteps bounds the work of one call of Allocated: chunks looked at, or leaves of the map that are not there.
const maxAllocatedSteps = 32768

// Allocated says whether the first sector of r, which must not be empty, is stored (it reads as zeros if not), and for how
// many sectors from there on that goes: at least to the end of its block or of r, and not beyond 32768 chunks or missing
// leaves of the map, so that the caller asks again. Each block is as of one moment; several need not be of the same one.
//
// Errors: block.ErrOutOfRange; ErrInconsistent; block.ErrClosed; block.ErrFailed.
func (v *Volume) Allocated(r block.Range) (allocated bool, n block.Count, err error) {
	return v.live().allocated(r)
}

func (s state) allocated(r block.Range) (allocated bool, n block.Count, err error) {
	if err := r.Check(s.capacity); err != nil {
		return false, 0, err
	}
	if r.Count == 0 {
		return false, 0, fmt.Errorf("volume %s: allocation of an empty range at sector %d", s.v.id, r.Start)
	}
	for rest, step := r.Widen(), 0; rest.Count > 0 && step < maxAllocatedSteps; step++ {
		sp, after := next(rest)
		stored, mapped, err := s.storedOf(sp.chunk)
		if err != nil {
			return false, 0, err
		}
		stored >>= sp.first
		if step == 0 {
			allocated = stored&1 != 0
		}
		differs := stored
		if allocated {
			differs = ^stored
		}
		same := min(sp.n, bits.TrailingZeros64(differs))
		n += block.Count(same) * block.SectorsPerBlock
		if same < sp.n {
			break
		}
		rest = after
		if !mapped {
			// Nothing in the other chunks of this leaf either.
			skip := min(rest.Count, block.Count(leafChunks-1-sp.chunk%leafChunks)*block.BlocksPerChunk*block.SectorsPerBlock)
			n += skip
			rest = block.Range{Start: rest.Start + block.Sector(skip), Count: rest.Count - skip}
		}
	}
	return allocated, min(n-block.Count(r.Start%block.SectorsPerBlock), r.Count), nil
}

// storedOf returns which blocks of a chunk are stored, and whether the map has a leaf for it.
func (s state) storedOf(chunk uint32) (stored uint64, mapped bool, err error) {
	g := s.lock(chunk)
	defer g.runlock(chunk)
	if err := s.usable(); err != nil {
		return 0, false, err
	}
	if !g.maps(chunk) {
		return 0, false, nil
	}
	return g.storedBlocks(chunk, ^uint64(0)), true, nil
}

// ChunkInfo is what the map knows about a chunk.
type ChunkInfo struct {
	// Index is of an entry at or after the one that changed the chunk last; 0: it has never been changed. For a snapshot it is
	// at most that of the snapshot.
	Index uint64
	Valid uint64 // bit n: block n is stored; otherwise it reads as zeros
	Sums  [block.BlocksPerChunk]uint32
}

// ChunkInfo fills info with what the map knows about a chunk; Sums of blocks that are not valid are 0. Unlike ReadAt it
// works during an import. The medium may hold something else: after a crash, until the log is replayed, and when it has
// rotted; CheckChunk tells.
func (v *Volume) ChunkInfo(chunk uint32, info *ChunkInfo) error {
	_, err := v.live().info(chunk, info, 0, nil)
	return err
}

// CheckChunk is ChunkInfo that also reads every valid block and returns those that do not match their checksum, as a
// bitmap. The chunk cannot be written meanwhile.
func (v *Volume) CheckChunk(chunk uint32, info *ChunkInfo) (bad uint64, err error) {
	return v.live().info(chunk, info, ^uint64(0), nil)
}

// ReadChunk is CheckChunk of some of the blocks, a bitmap, that passes on what it reads: fn gets each block that is valid and not bad, in ascending
// order, all as of one moment. It must not keep data, nor call the volume. Like ChunkInfo it works during an import.
func (v *Volume) ReadChunk(chunk uint32, blocks uint64, info *ChunkInfo, fn func(n int, data []byte)) (bad uint64, err error) {
	return v.live().info(chunk, info, blocks, fn)
}

// info reads the blocks in check, and passes them on if fn is not nil.
func (s state) info(chunk uint32, info *ChunkInfo, check uint64, fn func(n int, data []byte)) (bad uint64, err error) {
	if chunk >= chunksFor(s.capacity) {
		return 0, fmt.Errorf("chunk %d: %w", chunk, block.ErrOutOfRange)
	}
	g := s.lock(chunk)
	defer g.runlock(chunk)
	if err := s.v.usable(); err != nil {
		return 0, err
	}
	if s.snapshot != nil {
		if err := s.usable(); err != nil {
			return 0, err
		}
	}
	*info = ChunkInfo{Index: s.lastIndex(chunk)}
	var slots slotMap
	info.Valid = g.resolve(chunk, ^uint64(0), &slots)
	var buf *[block.ChunkSize]byte
	if check != 0 {
		buf = oneChunk.Get().(*[block.ChunkSize]byte)
		defer oneChunk.Put(buf)
	}
	for rest := info.Valid; rest != 0; {
		first, n := runOf(rest)
		for i := 1; i < n; i++ {
			if slots[first+i] != slots[first] {
				n = i
			}
		}
		rest &^= blockMask(first, n)
		if slots[first] == lostSlot {
			bad |= blockMask(first, n) & check
			continue
		}
		if err := s.v.pool.sums.get(slots[first], first, info.Sums[first:first+n]); err != nil {
			return 0, s.v.pool.fail("read checksums from the medium", err)
		}
		for want := blockMask(first, n) & check; want != 0; {
			at, run := runOf(want)
			want &^= blockMask(at, run)
			data := buf[:run*block.Size]
			if err := s.v.pool.dev.ReadAt(data, s.v.pool.layout.slotOffset(slots[first])+int64(at)*block.Size); err != nil {
				return 0, s.v.pool.fail("read from the medium", err)
			}
			for i := range run {
				one := data[i*block.Size : (i+1)*block.Size]
				switch {
				case block.Sum(one) != info.Sums[at+i]:
					bad |= 1 << (at + i)
				case fn != nil:
					fn(at+i, one)
				}
			}
		}
	}
	return bad, nil
}

// MediumSums returns the checksums of what lies on the medium in the places of these blocks of a chunk, right or wrong; 0 for blocks
// that have no place, or one that is not known. The zero ID is the live state. Who repairs tells by it a rotten block from a
// rotten checksum.
func (v *Volume) MediumSums(id block.SnapshotID, chunk uint32, blocks uint64) (sums [block.BlocksPerChunk]uint32, err error) {
	s, err := v.stateAt(id)
	if err != nil {
		return sums, err
	}
	g := s.lock(chunk)
	defer g.runlock(chunk)
	if err := v.usable(); err != nil {
		return sums, err
	}
	buf := oneBlock.Get().(*[block.Size]byte)
	defer oneBlock.Put(buf)
	var slots slotMap
	for stored := g.resolve(chunk, blocks, &slots); stored != 0; stored &= stored - 1 {
		n := bits.TrailingZeros64(stored)
		if slots[n] == lostSlot {
			continue
		}
		if err := v.pool.dev.ReadAt(buf[:], v.pool.layout.slotOffset(slots[n])+int64(n)*block.Size); err != nil {
			return sums, v.pool.fail("read from the medium", err)
		}
		sums[n] = block.Sum(buf[:])
	}
	return sums, nil
}

// lastIndex is called with the chunk locked.
func (s state) lastIndex(chunk uint32) uint64 {
	index := s.v.floor.Load()
	if l, at := s.v.m.find(chunk); l != nil {
		index = max(index, l.index[at])
	}
	if s.snapshot != nil {
		index = min(index, s.snapshot.Index)
	}
	return index
}

// Locate returns where on the medium a block lies, and its checksum. It is for those who look for damage, and for tests that do some. The
// zero ID is the live state.
func (v *Volume) Locate(id block.SnapshotID, start block.Sector) (data, sum int64, stored bool, err error) {
	s, err := v.stateAt(id)
	if err != nil {
		return 0, 0, false, err
	}
	sp, _ := next(block.Range{Start: start, Count: block.SectorsPerBlock})
	g := s.lock(sp.chunk)
	defer g.runlock(sp.chunk)
	var slots slotMap
	if g.resolve(sp.chunk, sp.mask(), &slots) == 0 || slots[sp.first] == lostSlot {
		return 0, 0, false, nil
	}
	slot := slots[sp.first]
	return v.pool.layout.slotOffset(slot) + int64(sp.first)*block.Size, v.pool.layout.sumsOffset(slot) + int64(sp.first)*4, true, nil
}
