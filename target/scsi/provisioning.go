package scsi

import (
	"encoding/binary"
	"math"

	"sanctuary/blockstore/block"
)

// Flags in byte 1 of WRITE SAME. ANCHOR (10h) is refused: anchored blocks are not supported (VPD B2h ANC_SUP=0).
const (
	wsUnmap  = 0x08
	wsNoData = 0x01 // NDOB, WRITE SAME (16) only
)

const (
	// maxUnmapBlocks is the MAXIMUM UNMAP LBA COUNT: the sum over all descriptors, in logical blocks.
	maxUnmapBlocks = 1 << 20
	// maxUnmapDescriptors is the MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT.
	maxUnmapDescriptors = 256
	// maxWriteSameBlocks is the MAXIMUM WRITE SAME LENGTH, in logical blocks: 16 MiB with 512-byte blocks, the default limit of
	// other transfers. libiscsi's test tool takes a limit of 65536 or more to mean that as many blocks can be read at once.
	maxWriteSameBlocks = 1 << 15
	// maxCompareBlocks is the MAXIMUM COMPARE AND WRITE LENGTH, in logical blocks: all the field can hold.
	maxCompareBlocks = 255
	// maxStatusQueries bounds the work of one GET LBA STATUS, and so its descriptors; initiators ask again behind the last.
	maxStatusQueries = 32
)

// Provisioning status of a block (SBC-3 r36 §5.4.2.3). Blocks are never anchored.
const (
	provisionMapped      = 0x0
	provisionDeallocated = 0x1
)

// unmapGranularity is how many logical blocks can be unmapped at the least: one block of the store, 4 KiB, which divides
// 1 MiB as VMFS wants it.
func unmapGranularity(logicalBlockBytes int) uint32 { return uint32(block.Size / logicalBlockBytes) }

// unmapList is the length of the parameter list of UNMAP.
func unmapList(_ *Unit, cdb *[16]byte) int64 { return int64(binary.BigEndian.Uint16(cdb[7:])) }

// unmap is UNMAP (SBC-3 r36 §5.28). All descriptors are checked before the first takes effect.
func unmap(r *request) error {
	want := unmapList(nil, &r.CDB)
	r.TransferOut = want
	if want == 0 {
		return nil
	}
	list := r.DataOut
	switch {
	case int64(r.ExpectedOut) < want:
		return senseBadTransfer
	case int64(len(list)) < want:
		return senseShortData
	case want < 8:
		return senseListLength
	}
	list = list[:want]
	// A descriptor that is incomplete, or cut off by the parameter list length, is ignored.
	descriptors := min(int(binary.BigEndian.Uint16(list[2:])), len(list)-8)
	list = list[8 : 8+descriptors/16*16]
	if len(list)/16 > maxUnmapDescriptors {
		return senseInvalidList
	}
	ranges := make([]block.Range, 0, len(list)/16)
	total := uint64(0)
	for ; len(list) > 0; list = list[16:] {
		blocks := uint64(binary.BigEndian.Uint32(list[8:]))
		rng, err := r.span(binary.BigEndian.Uint64(list), blocks)
		if err != nil {
			return err
		}
		if total += blocks; total > maxUnmapBlocks {
			return senseInvalidList
		}
		if blocks > 0 {
			ranges = append(ranges, rng)
		}
	}
	if len(ranges) == 0 {
		return nil
	}
	return r.unit.cfg.Backend.Unmap(r.ctx, r.Fence, ranges)
}

// writeSame is WRITE SAME (SBC-3 r36 §5.43). With UNMAP=1 blocks are unmapped only if the data is what unmapped blocks read as
// (LBPRZ=1: zeros), else written.
func writeSame(r *request) error {
	lba, blocks := extent(&r.CDB)
	rng, err := r.span(lba, blocks)
	if err != nil {
		return err
	}
	if blocks == 0 || blocks > maxWriteSameBlocks { // WSNZ=1: 0 does not mean "to the end"
		return senseInvalidField
	}
	pattern, err := r.exactly(oneBlock(r.unit, &r.CDB))
	switch {
	case err != nil:
		return err
	case block.AllZero(pattern) && r.CDB[1]&wsUnmap != 0:
		return r.unit.cfg.Backend.Unmap(r.ctx, r.Fence, []block.Range{rng})
	case block.AllZero(pattern):
		return r.unit.cfg.Backend.WriteSame(r.ctx, r.Fence, rng, nil)
	}
	return r.unit.cfg.Backend.WriteSame(r.ctx, r.Fence, rng, pattern)
}

// getLBAStatus is GET LBA STATUS (SBC-3 r36 §5.4): from the starting LBA on, which blocks are mapped, up to the end of the
// LUN or a bound. What is returned does not depend on the ALLOCATION LENGTH, which only cuts it off.
func getLBAStatus(r *request) error {
	lba := binary.BigEndian.Uint64(r.CDB[2:])
	capacity := r.capacity()
	if lba >= capacity {
		return outOfRange(lba)
	}
	const header, each = 8, 16
	list := make([]byte, header, header+maxStatusQueries*each)
	rng, err := r.span(lba, capacity-lba)
	if err != nil {
		return err
	}
	var last uint64 // blocks of the last descriptor
	for range maxStatusQueries {
		allocated, n, err := r.unit.cfg.Backend.Allocated(r.ctx, rng)
		if err != nil {
			return err
		}
		blocks, status := uint64(n/r.perBlock()), byte(provisionDeallocated)
		if allocated {
			status = provisionMapped
		}
		switch tail := list[max(header, len(list)-each):]; {
		case len(tail) == each && tail[12] == status && last+blocks <= math.MaxUint32:
			last += blocks
			binary.BigEndian.PutUint32(tail[8:], uint32(last))
		default:
			// A descriptor counts to 32 bits; what is left of n is asked for again.
			blocks = min(blocks, math.MaxUint32)
			last = blocks
			list = binary.BigEndian.AppendUint64(list, uint64(rng.Start)/uint64(r.perBlock()))
			list = binary.BigEndian.AppendUint32(list, uint32(blocks))
			list = append(list, status, 0, 0, 0)
		}
		n = block.Count(blocks) * r.perBlock()
		rng = block.Range{Start: rng.Start + block.Sector(n), Count: rng.Count - n}
		if rng.Count == 0 {
			break
		}
	}
	binary.BigEndian.PutUint32(list, uint32(len(list)-4))
	return r.reply(list, int(binary.BigEndian.Uint32(r.CDB[10:])))
}
