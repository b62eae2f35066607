package blockstore

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
)

// PoolUsage is how full a pool is, in bytes; all are multiples of 256 KiB.
type PoolUsage struct {
	CapacityBytes int64
	// AllocatedBytes is what volumes have, with what waits to be freed.
	AllocatedBytes int64
	// PendingFreeBytes of those have been freed and can be used again after the next checkpoint of their volume.
	PendingFreeBytes int64
}

// FreeBytes is what can be allocated at once.
func (u PoolUsage) FreeBytes() int64 { return u.CapacityBytes - u.AllocatedBytes }

// Usage returns how full the pool is.
func (p *Pool) Usage() PoolUsage {
	p.slotsMu.Lock()
	defer p.slotsMu.Unlock()
	return PoolUsage{
		CapacityBytes:    int64(p.slots.count) * block.ChunkSize,
		AllocatedBytes:   int64(p.slots.count-p.slots.free) * block.ChunkSize,
		PendingFreeBytes: p.pendingFree * block.ChunkSize,
	}
}

// takeSlots appends n free slots to dst, on which writing will find space. block.ErrNoSpace: none was taken.
func (p *Pool) takeSlots(n int, dst []uint32) ([]uint32, error) {
	from := len(dst)
	p.slotsMu.Lock()
	err := p.mayGiveLocked()
	if err == nil {
		dst, err = p.slots.take(n, dst)
	}
	p.slotsMu.Unlock()
	if err != nil {
		return dst, err
	}
	if err := p.allocate(dst[from:]); err != nil {
		p.returnSlots(dst[from:])
		return dst[:from], err
	}
	return dst, nil
}

// allocate has the medium reserve what slots need, neighbours together.
func (p *Pool) allocate(taken []uint32) error {
	for _, slot := range taken {
		if err := p.sums.prepare(slot); err != nil {
			return p.noRoom(err)
		}
	}
	a, ok := p.dev.(vfs.Allocator)
	if !ok {
		return nil
	}
	return p.eachRun(taken, func(off, n int64) error {
		if err := a.Allocate(off, n); err != nil {
			return p.noRoom(err)
		}
		return nil
	})
}

func (p *Pool) noRoom(err error) error {
	if errors.Is(err, vfs.ErrNoSpace) {
		return fmt.Errorf("%w: %w", block.ErrNoSpace, err)
	}
	return p.fail("allocate on the medium", err)
}

// eachRun calls fn for slots, ascending, neighbours on the medium together.
func (p *Pool) eachRun(slots []uint32, fn func(off, n int64) error) error {
	for len(slots) > 0 {
		off := p.layout.slotOffset(slots[0])
		n := 1
		for n < len(slots) && slots[n] == slots[n-1]+1 && p.layout.slotOffset(slots[n]) == off+int64(n)*block.ChunkSize {
			n++
		}
		if err := fn(off, int64(n)*block.ChunkSize); err != nil {
			return err
		}
		slots = slots[n:]
	}
	return nil
}

// returnSlots gives back slots that no map has pointed at since they were taken.
func (p *Pool) returnSlots(unused []uint32) {
	p.slotsMu.Lock()
	defer p.slotsMu.Unlock()
	for _, slot := range unused {
		p.slots.release(slot)
	}
}

// giveBackSlots is how many slots are given back at a time, so that nobody who needs one waits for longer than that: 20 µs.
const giveBackSlots = freeLeaves * leafChunks

// giveBack frees slots that no durable map points at any more; pending says that they were counted as waiting for that. The
// holes are punched first: afterwards somebody else may be writing there.
func (p *Pool) giveBack(freed []uint32, pending bool) error {
	for part := range slices.Chunk(freed, giveBackSlots) {
		err := p.eachRun(part, func(off, n int64) error {
			if err := p.dev.Discard(off, n); err != nil {
				return p.fail("discard on the medium", err)
			}
			return nil
		})
		if err != nil {
			return err
		}
		p.gaveBack(part, pending)
	}
	return nil
}

func (p *Pool) gaveBack(freed []uint32, pending bool) {
	p.slotsMu.Lock()
	defer p.slotsMu.Unlock()
	for _, slot := range freed {
		p.slots.release(slot)
	}
	if pending {
		p.pendingFree -= int64(len(freed))
	}
}

func (p *Pool) addPending(n int64) {
	p.slotsMu.Lock()
	defer p.slotsMu.Unlock()
	p.pendingFree += n
}

// FreeBytes returns what the volume's pool can allocate at once and has not promised to anyone.
func (v *Volume) FreeBytes() int64 {
	p := v.pool
	p.slotsMu.Lock()
	defer p.slotsMu.Unlock()
	if p.mayGiveLocked() != nil {
		return 0
	}
	return int64(p.slots.free)*block.ChunkSize - p.promised
}

// Promise sets n bytes of the pool aside for entries on their way, whichever volume of the pool they are for, or returns
// block.ErrNoSpace: also where there is no room for what they may add to the metadata, which is at most a page for each chunk. Apply does not
// look at promises: they are for those who decide what is to be applied. The caller takes the promise back with Promise(-n) when
// the entry has been applied, or never will be.
func (v *Volume) Promise(n int64) error { return v.pool.promise(n, true) }

// promise is Promise, without regard to the metadata for what sees to its room for them itself.
func (p *Pool) promise(n int64, metadata bool) error {
	p.slotsMu.Lock()
	defer p.slotsMu.Unlock()
	if err := p.mayGiveLocked(); n > 0 && err != nil {
		return err
	}
	if free := int64(p.slots.free) * block.ChunkSize; n > 0 && p.promised+n > free {
		return fmt.Errorf("%w: %d bytes are free, %d of them promised", block.ErrNoSpace, free, p.promised)
	}
	if n > 0 && metadata && p.pages != nil {
		if err := p.pages.room((p.promised+n)/block.ChunkSize + p.promisedPages + p.pages.kept()); err != nil {
			return err
		}
	}
	p.promised += n
	return nil
}

// MetadataRoom returns how many pages of metadata can be added to the pool that nobody has been promised, by what takes no chunk. Half of what is
// kept for that is left out: for entries that were on their way when it was asked, to LUNs whose owners are elsewhere.
func (v *Volume) MetadataRoom() int64 {
	p := v.pool
	p.slotsMu.Lock()
	defer p.slotsMu.Unlock()
	return p.metadataRoomLocked()
}

func (p *Pool) metadataRoomLocked() int64 {
	if p.pages == nil {
		return math.MaxInt64
	}
	return int64(p.layout.pages)/2 - p.pages.kept()/2 - p.pages.demand.Load() - p.promised/block.ChunkSize - p.promisedPages
}

// PromiseMetadata is Promise for NeedsMetadata.
func (v *Volume) PromiseMetadata(pages int64) error {
	p := v.pool
	p.slotsMu.Lock()
	defer p.slotsMu.Unlock()
	if room := p.metadataRoomLocked(); pages > 0 && pages > room {
		return fmt.Errorf("%w for metadata: %d pages would be needed, %d can be had", block.ErrNoSpace, pages, max(0, room))
	}
	p.promisedPages += pages
	return nil
}
