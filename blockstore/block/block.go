// Package block is the vocabulary every layer shares: addresses, ranges, operations, checksums and the errors that
// cross from storage to SCSI. It does no I/O, starts no goroutine and imports nothing of the project.
//
// Addresses are counted in sectors of 512 bytes whatever the LUN's logical block length is; what is stored,
// checksummed and replicated is always whole blocks of 4 KiB. Turning a smaller write into whole blocks is the
// business of whoever holds the range lock (replication), never of the store.
package block

import (
	"fmt"
	"math"
)

const (
	// SectorSize is the unit of addresses, in bytes.
	SectorSize = 512
	// Size is the length in bytes of a block: the unit of checksums, of replication and of storage.
	Size = 4096
	// SectorsPerBlock is the number of sectors in one block.
	SectorsPerBlock = Size / SectorSize
	// ChunkSize is the unit of allocation, in bytes.
	ChunkSize = 256 << 10
	// BlocksPerChunk is the number of blocks in one chunk: the bits of one 64-bit map word.
	BlocksPerChunk = ChunkSize / Size
	// MaxVolumeBytes is the largest volume: 16 TiB.
	MaxVolumeBytes = 16 << 40
)

// Sector is a position on a LUN, in units of 512 bytes from its start.
type Sector uint64

// Count is a number of sectors (512 bytes each).
type Count uint64

// Bytes returns the length in bytes. Counts that passed Range.Check or Geometry.Validate do not overflow.
func (c Count) Bytes() int64 { return int64(c) * SectorSize }

// CountOf returns the sectors in a number of bytes, which must be a multiple of SectorSize.
func CountOf(bytes int64) Count { return Count(bytes / SectorSize) }

// Range is Count sectors from Start on. The zero Range is empty.
type Range struct {
	Start Sector
	Count Count
}

// BytesRange returns the range of n bytes from byte offset off on; both must be multiples of SectorSize.
func BytesRange(off, n int64) Range { return Range{Start: Sector(off / SectorSize), Count: CountOf(n)} }

// End returns the first sector after the range.
func (r Range) End() Sector { return r.Start + Sector(r.Count) }

// Offset returns the position of the first byte.
func (r Range) Offset() int64 { return int64(r.Start) * SectorSize }

// Bytes returns the length in bytes.
func (r Range) Bytes() int64 { return r.Count.Bytes() }

// Aligned says whether the range begins and ends on a block boundary.
func (r Range) Aligned() bool {
	return r.Start%SectorsPerBlock == 0 && r.Count%SectorsPerBlock == 0
}

// Widen returns the smallest aligned range that contains r. It may end beyond a volume whose size is no multiple of
// Size; Geometry.Validate refuses such volumes.
func (r Range) Widen() Range {
	start := r.Start / SectorsPerBlock * SectorsPerBlock
	end := (r.End() + SectorsPerBlock - 1) / SectorsPerBlock * SectorsPerBlock
	return Range{Start: start, Count: Count(end - start)}
}

// Overlaps says whether the two ranges share a sector.
func (r Range) Overlaps(o Range) bool { return r.Start < o.End() && o.Start < r.End() }

// Check returns ErrOutOfRange unless the range lies within a volume of the given capacity. It cannot be fooled by overflow.
func (r Range) Check(capacity Count) error {
	if uint64(r.Start) > uint64(capacity) || r.Count > capacity-Count(r.Start) {
		return fmt.Errorf("%w: sectors %d+%d of %d", ErrOutOfRange, r.Start, r.Count, capacity)
	}
	return nil
}

func (r Range) String() string { return fmt.Sprintf("%d+%d", r.Start, r.Count) }

// Geometry is what an initiator is told about a LUN's size.
type Geometry struct {
	Capacity          Count // in 512-byte sectors, a multiple of SectorsPerBlock, at most MaxVolumeBytes
	LogicalBlockBytes int   // 512 or 4096 (SBC-3 LOGICAL BLOCK LENGTH)
}

// Validate returns an error that names the field and the way out.
func (g Geometry) Validate() error {
	switch {
	case g.Capacity == 0 || g.Capacity%SectorsPerBlock != 0:
		return fmt.Errorf("size of %d bytes: use a multiple of %d bytes, at least %d", g.Capacity.Bytes(), Size, Size)
	case g.Capacity > MaxVolumeBytes/SectorSize:
		return fmt.Errorf("size of %d sectors: the largest LUN is 16 TiB", g.Capacity)
	case g.LogicalBlockBytes != 512 && g.LogicalBlockBytes != 4096:
		return fmt.Errorf("logical block length of %d bytes: use 512 or 4096", g.LogicalBlockBytes)
	}
	return nil
}

// State is the small opaque blob kept beside a LUN's data and replicated with it (persistent reservations).
// Version counts its changes, from 0 (never set). It is compared and raised by one by SwapState.
type State struct {
	Version uint64
	Blob    []byte
}

// Fence marks the moment a command was accepted: the newest log entry its node knew of. A node that has become the owner
// since carries the command out only if nobody else can have served the LUN in between, which that entry's place tells.
// The zero Fence is older than everything: nothing is done under it.
type Fence struct {
	Term  uint64 // Raft term of the entry
	Index uint64 // and its index; math.MaxUint64: accepted as owner in that term
}

// Before says whether an entry at f is older than one at o, or the same.
func (f Fence) Before(o Fence) bool { return f.Term < o.Term || f.Term == o.Term && f.Index <= o.Index }

// MaxStateBytes bounds State.Blob.
const MaxStateBytes = 64 << 10

// NoIndex is an index no log entry has.
const NoIndex = math.MaxUint64
