package blockstore

import (
	"fmt"
	"math"

	"sanctuary/blockstore/block"
)

// A medium begins with 256 KiB for its header and superblocks. Then come regions, one when the pool is made and one for each
// time it grows. A region holds, in this order in a new pool: the checksums of its data slots (256 bytes each), metadata
// pages (4 KiB each, one for 256 KiB of data), and data slots (256 KiB each).
//
// Slots and pages are numbered from 1 through all regions; 0 is none.
type region struct {
	data, sums, pages int64 // byte offsets
	slots, pageCount  uint32
}

const (
	superblockBytes  = block.ChunkSize // what lies before the first region
	sumsPerSlotBytes = 4 * block.BlocksPerChunk
	slotsPerSums     = block.ChunkSize / sumsPerSlotBytes // slots whose checksums fill one slot
	pagesPerSlot     = block.ChunkSize / pageBytes
	minPageSlots     = 4
)

// planRegion lays out a region of so many data slots from byte at on.
func planRegion(at int64, slots uint32) region {
	r := region{slots: slots, sums: at}
	r.pages = at + (int64(slots)+slotsPerSums-1)/slotsPerSums*block.ChunkSize
	pageSlots := max(minPageSlots, (int64(slots)+pagesPerSlot-1)/pagesPerSlot)
	r.pageCount = uint32(pageSlots * pagesPerSlot)
	r.data = r.pages + pageSlots*block.ChunkSize
	return r
}

// end is the first byte after everything the region has.
func (r region) end() int64 {
	return max(r.data+int64(r.slots)*block.ChunkSize, r.pages+int64(r.pageCount)*pageBytes, r.sums+int64(r.slots)*sumsPerSlotBytes)
}

// MediumBytes returns how large a medium must be for a new pool of the given capacity: about 1.7 % larger. Capacities are
// rounded down to chunks of 256 KiB.
func MediumBytes(capacityBytes int64) int64 {
	return planRegion(superblockBytes, uint32(capacityBytes/block.ChunkSize)).end()
}

// CapacityOf returns the largest capacity of a new pool on a medium of the given size, a multiple of 256 KiB, or an error if
// there is room for none.
func CapacityOf(mediumBytes int64) (int64, error) {
	low, high := int64(0), min(mediumBytes/block.ChunkSize, math.MaxUint32-1)
	for low < high {
		mid := (low + high + 1) / 2
		if planRegion(superblockBytes, uint32(mid)).end() <= mediumBytes {
			low = mid
		} else {
			high = mid - 1
		}
	}
	if low == 0 {
		return 0, fmt.Errorf("a medium of %d bytes has no room for a pool: at least %d are needed", mediumBytes, MediumBytes(block.ChunkSize))
	}
	return low * block.ChunkSize, nil
}

// layout finds slots, their checksums and pages on the medium. It does not change while the pool is open.
type layout struct {
	regions []region
	slots   uint32 // in all regions
	pages   uint32
}

func newLayout(regions []region) layout {
	l := layout{regions: regions}
	for _, r := range regions {
		l.slots += r.slots
		l.pages += r.pageCount
	}
	return l
}

// check returns an error unless every region lies within the medium.
func (l *layout) check(mediumBytes int64) error {
	for _, r := range l.regions {
		if min(r.data, r.sums, r.pages) < superblockBytes || r.end() > mediumBytes {
			return fmt.Errorf("the pool needs %d bytes, the medium has %d", r.end(), mediumBytes)
		}
	}
	return nil
}

// regionOf returns the region of a data slot, and the slot's place in it, from 0.
func (l *layout) regionOf(slot uint32) (r *region, n int64) {
	rest := slot - 1
	for i := range l.regions {
		if r = &l.regions[i]; rest < r.slots {
			return r, int64(rest)
		}
		rest -= r.slots
	}
	panic(fmt.Sprintf("slot %d of %d", slot, l.slots))
}

// slotOffset returns where a data slot begins.
func (l *layout) slotOffset(slot uint32) int64 {
	r, n := l.regionOf(slot)
	return r.data + n*block.ChunkSize
}

// sumsOffset returns where the checksums of a slot begin.
func (l *layout) sumsOffset(slot uint32) int64 {
	r, n := l.regionOf(slot)
	return r.sums + n*sumsPerSlotBytes
}

// pageOffset returns where a metadata page lies.
func (l *layout) pageOffset(page uint32) int64 {
	n := page - 1
	for i := range l.regions {
		r := &l.regions[i]
		if n < r.pageCount {
			return r.pages + int64(n)*pageBytes
		}
		n -= r.pageCount
	}
	panic(fmt.Sprintf("page %d of %d", page, l.pages))
}
