package blockstore

import (
	"errors"
	"fmt"

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
		CapacityBytes:    int64(p.slots.count-1) * block.ChunkSize,
		AllocatedBytes:   int64(p.slots.count-1-p.slots.free) * block.ChunkSize,
		PendingFreeBytes: p.pendingFree * block.ChunkSize,
	}
}

func slotOffset(slot uint64) int64 { return int64(slot) * block.ChunkSize }

// sumsOf returns the checksums of a slot that has been taken.
func (p *Pool) sumsOf(slot uint64) *chunkSums {
	return &p.sums[slot/slabSlots].Load()[slot%slabSlots]
}

// ensureSlab makes room for the checksums of a slot.
func (p *Pool) ensureSlab(slot uint64) {
	if at := &p.sums[slot/slabSlots]; at.Load() == nil {
		at.CompareAndSwap(nil, new(sumSlab))
	}
}

// takeSlots appends n free slots to dst, on which writing will find space. block.ErrNoSpace: none was taken.
func (p *Pool) takeSlots(n int, dst []uint32) ([]uint32, error) {
	from := len(dst)
	p.slotsMu.Lock()
	dst, err := p.slots.take(n, dst)
	for _, slot := range dst[from:] {
		p.ensureSlab(uint64(slot))
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
	a, ok := p.dev.(vfs.Allocator)
	if !ok {
		return nil
	}
	for len(taken) > 0 {
		n := run(taken)
		err := a.Allocate(slotOffset(uint64(taken[0])), int64(n)*block.ChunkSize)
		if errors.Is(err, vfs.ErrNoSpace) {
			return fmt.Errorf("%w: %w", block.ErrNoSpace, err)
		}
		if err != nil {
			return p.fail("allocate on the medium", err)
		}
		taken = taken[n:]
	}
	return nil
}

// run returns how many of the first slots are neighbours in ascending order.
func run(s []uint32) int {
	n := 1
	for n < len(s) && s[n] == s[n-1]+1 {
		n++
	}
	return n
}

// returnSlots gives back slots that no map has pointed at since they were taken.
func (p *Pool) returnSlots(unused []uint32) {
	p.slotsMu.Lock()
	defer p.slotsMu.Unlock()
	for _, slot := range unused {
		p.slots.release(slot)
	}
}

// giveBack frees slots that no durable map points at any more; pending of them were counted as waiting for that. The
// holes are punched first: afterwards somebody else may be writing there.
func (p *Pool) giveBack(freed []uint32, pending int64) error {
	for rest := freed; len(rest) > 0; {
		n := run(rest)
		if err := p.dev.Discard(slotOffset(uint64(rest[0])), int64(n)*block.ChunkSize); err != nil {
			return p.fail("discard on the medium", err)
		}
		rest = rest[n:]
	}
	p.slotsMu.Lock()
	defer p.slotsMu.Unlock()
	for _, slot := range freed {
		p.slots.release(slot)
	}
	p.pendingFree -= pending
	return nil
}

func (p *Pool) addPending(n int64) {
	p.slotsMu.Lock()
	defer p.slotsMu.Unlock()
	p.pendingFree += n
}

// Needs returns at most how many bytes of the pool applying ops now would allocate. It may be called while Apply runs.
func (v *Volume) Needs(ops []block.Op) int64 {
	n := int64(0)
	for i := range ops {
		if op := &ops[i]; op.Kind == block.OpWrite || op.Kind == block.OpFill {
			for r := op.Range; r.Count > 0; {
				var s span
				s, r = next(r)
				if !v.allocated(s.chunk) {
					n += block.ChunkSize
				}
			}
		}
	}
	return n
}

func (v *Volume) allocated(chunk uint32) bool {
	lock := v.m.lockOf(chunk)
	lock.RLock()
	defer lock.RUnlock()
	page, at := v.m.find(chunk)
	return page != nil && page.slot[at] != 0
}

// FreeBytes returns what the volume's pool can allocate at once and has not promised to anyone.
func (v *Volume) FreeBytes() int64 {
	p := v.pool
	p.slotsMu.Lock()
	defer p.slotsMu.Unlock()
	return int64(p.slots.free)*block.ChunkSize - p.promised
}

// Promise sets n bytes of the pool aside for entries on their way, whichever volume of the pool they are for, or returns
// block.ErrNoSpace. Apply does not look at promises: they are for those who decide what is to be applied. The caller takes
// the promise back with Promise(-n) when the entry has been applied, or never will be.
func (v *Volume) Promise(n int64) error {
	p := v.pool
	p.slotsMu.Lock()
	defer p.slotsMu.Unlock()
	if free := int64(p.slots.free) * block.ChunkSize; n > 0 && p.promised+n > free {
		return fmt.Errorf("%w: %d bytes are free, %d of them promised", block.ErrNoSpace, free, p.promised)
	}
	p.promised += n
	return nil
}
