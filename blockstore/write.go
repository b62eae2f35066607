package blockstore

import (
	"fmt"
	"math/bits"

	"sanctuary/blockstore/block"
)

// Where a block goes when it is written in epoch e:
//
//   - If a layer of e has it already, into its place there. Nobody but the live state sees that place.
//   - Otherwise into a place for that block in one of the chunk's slots which no layer has, if there is one. So the blocks
//     of many snapshots share slots, and a chunk takes as many slots as the block with the most versions has.
//   - Otherwise into a new slot.
//
// A place that no layer in memory has may still be the live state's in the map of the last checkpoint A. It is overwritten all the
// same: the zeroing that made it free is an entry after A, the log is replayed at least that far, and the replay makes it free
// again before anything depends on it. What Reclaim frees, without an entry, are places that no state of A sees, and whole
// slots, which wait for a checkpoint.

// wantsSlot says whether writing these blocks of a chunk takes a new slot.
func (v *Volume) wantsSlot(chunk uint32, mask uint64) bool {
	lock := v.m.lockOf(chunk)
	lock.RLock()
	defer lock.RUnlock()
	l, at := v.m.find(chunk)
	if l == nil {
		return true
	}
	epoch := v.lineage.Load().epoch
	if !l.hasMore(at) {
		return l.slot[at] == noSlot || l.epoch[at] != epoch && l.valid[at]&mask != 0
	}
	rest := mask
	if l.slot[at] != noSlot && l.epoch[at] == epoch {
		rest &^= l.valid[at]
	}
	for _, y := range l.extras(at) {
		if y.epoch == epoch && y.slot != noSlot {
			rest &^= y.bits
		}
	}
	if rest == 0 {
		return false // all of it has its place: nothing is allocated for that either
	}
	var room [8]layer
	return placeFor(l.layers(at, room[:0]), rest) == noSlot
}

// placeFor returns a slot of the chunk in which none of the wanted places is taken, or noSlot.
func placeFor(list []layer, want uint64) uint32 {
	for i, y := range list {
		if y.slot == noSlot || y.slot == lostSlot {
			continue
		}
		taken := uint64(0)
		for _, other := range list {
			if other.slot == y.slot {
				taken |= other.bits
			}
		}
		if taken&want == 0 {
			return list[i].slot
		}
	}
	return noSlot
}

// store writes whole blocks of one chunk. sums has one checksum per block, or one that goes for all of them.
func (v *Volume) store(index uint64, s span, data []byte, sums []uint32) error {
	l, at := v.leafOf(s.chunk)
	lock := v.m.lockOf(s.chunk)
	lock.Lock()
	defer lock.Unlock()
	epoch, mask := v.lineage.Load().epoch, s.mask()
	if !l.hasMore(at) && v.origin.ground == nil && (l.slot[at] == noSlot || l.epoch[at] == epoch) {
		// Nothing else to look at: the chunk is new, or was written in this epoch only.
		fresh := l.slot[at] == noSlot
		slot := l.slot[at]
		if fresh {
			var err error
			if slot, err = v.useReserved(s.chunk); err != nil {
				return err
			}
		}
		if err := v.pool.writeBlocks(slot, s.first, data, sums); err != nil {
			return err
		}
		v.stored.Add(int64(bits.OnesCount64(mask &^ l.valid[at])))
		l.slot[at], l.epoch[at] = slot, epoch
		l.valid[at] |= mask
		v.touch(l, s.chunk, index, fresh)
		return nil
	}
	list := l.layers(at, v.layers[:0])
	before := v.storedNow(s.chunk, mask)
	// In place, run by run, what this epoch has already.
	rest := mask
	for _, y := range list {
		if y.epoch == epoch && y.slot != noSlot {
			if err := v.pool.writeParts(y.slot, y.bits&mask, s, data, sums); err != nil {
				return err
			}
			rest &^= y.bits
		}
	}
	if rest != 0 {
		slot := placeFor(list, rest)
		if slot == noSlot {
			var err error
			if slot, err = v.useReserved(s.chunk); err != nil {
				return err
			}
		}
		if err := v.pool.writeParts(slot, rest, s, data, sums); err != nil {
			return err
		}
		list = addBits(list, epoch, slot, rest)
	}
	changed := rest != 0
	for i := range list {
		if list[i].epoch == epoch && list[i].slot == noSlot && list[i].bits&mask != 0 {
			list[i].bits &^= mask
			changed = true
		}
	}
	if changed {
		l.setLayers(at, list)
	}
	v.layers = list[:0]
	v.stored.Add(int64(bits.OnesCount64(mask &^ before)))
	v.touch(l, s.chunk, index, changed)
	return nil
}

// addBits adds blocks to the layer of an epoch and a slot, which it makes if need be, behind those of the same epoch.
func addBits(list []layer, epoch, slot uint32, bitmap uint64) []layer {
	n := 0
	for n < len(list) && list[n].epoch >= epoch {
		if list[n].epoch == epoch && list[n].slot == slot {
			list[n].bits |= bitmap
			return list
		}
		n++
	}
	list = append(list, layer{})
	copy(list[n+1:], list[n:])
	list[n] = layer{bits: bitmap, epoch: epoch, slot: slot}
	return list
}

// storedNow is called with the chunk locked for writing; what lies below, for a clone, is locked here.
func (v *Volume) storedNow(chunk uint32, want uint64) uint64 {
	v.origin.ground.rlock(chunk)
	defer v.origin.ground.runlock(chunk)
	return v.ground.Load().storedBlocks(chunk, want)
}

func (v *Volume) useReserved(chunk uint32) (uint32, error) {
	last := len(v.reserved) - 1
	if last < 0 {
		return noSlot, v.pool.fail("count of new chunks", fmt.Errorf("none left for chunk %d of volume %s", chunk, v.id))
	}
	slot := v.reserved[last]
	v.reserved = v.reserved[:last]
	v.allocatedChunks.Add(1)
	return slot, nil
}

// writeBlocks writes neighbouring blocks of a slot and their checksums.
func (p *Pool) writeBlocks(slot uint32, first int, data []byte, sums []uint32) error {
	if err := p.dev.WriteAt(data, p.layout.slotOffset(slot)+int64(first)*block.Size); err != nil {
		return p.fail("write to the medium", err)
	}
	if err := p.sums.set(slot, first, len(data)/block.Size, sums); err != nil {
		return p.fail("change of checksums", err)
	}
	return nil
}

// writeParts writes those blocks of a span that are in bitmap.
func (p *Pool) writeParts(slot uint32, bitmap uint64, s span, data []byte, sums []uint32) error {
	for bitmap != 0 {
		first, n := runOf(bitmap)
		bitmap &^= blockMask(first, n)
		at := first - s.first
		part := sums
		if len(sums) > 1 {
			part = sums[at : at+n]
		}
		if err := p.writeBlocks(slot, first, data[at*block.Size:(at+n)*block.Size], part); err != nil {
			return err
		}
	}
	return nil
}

// zero makes blocks of one chunk read as zeros, and frees its slots that nothing is left in.
func (v *Volume) zero(index uint64, s span) error {
	l, at := v.m.find(s.chunk)
	if l == nil && v.origin.ground == nil {
		return nil
	}
	freed, err := v.clearBlocks(l, at, index, s)
	if err != nil {
		return err
	}
	return v.letGo(freed)
}

// letGo gives slots back: at once where no durable map can point at them, else after the next checkpoint.
func (v *Volume) letGo(freed []uint32) error {
	if len(freed) == 0 {
		return nil
	}
	v.allocatedChunks.Add(-int64(len(freed)))
	if v.pool.volatile {
		// There is no reader either: who freed them had the chunk's lock.
		return v.pool.giveBack(freed, false)
	}
	v.freed = append(v.freed, freed...)
	v.pool.addPending(int64(len(freed)))
	return nil
}

func (v *Volume) clearBlocks(l *leaf, at uint32, index uint64, s span) (freed []uint32, err error) {
	mask := s.mask()
	lock := v.m.lockOf(s.chunk)
	lock.Lock()
	defer lock.Unlock()
	gone := v.storedNow(s.chunk, mask)
	if gone == 0 {
		return nil, nil // zeros already: the chunk has not changed
	}
	if l == nil {
		l, at = v.leafOf(s.chunk)
	}
	v.stored.Add(-int64(bits.OnesCount64(gone)))
	list := l.layers(at, v.layers[:0])
	before := slotsOf(list, nil)
	list = v.zeroLayers(s.chunk, list, v.lineage.Load(), gone)
	l.setLayers(at, list)
	v.layers = list[:0]
	v.touch(l, s.chunk, index, true)
	return missing(before, l, at), nil
}

// zeroLayers makes blocks read as zeros in the newest epoch: what it has itself goes, and what older layers have is hidden.
func (v *Volume) zeroLayers(chunk uint32, list []layer, lin *lineage, gone uint64) []layer {
	older := uint64(0)
	for i := range list {
		if y := &list[i]; y.slot != noSlot && y.epoch == lin.epoch {
			y.bits &^= gone
		} else if y.slot != noSlot && lin.live.sees(y.epoch) {
			older |= y.bits
		}
	}
	if v.origin.ground != nil {
		v.origin.ground.rlock(chunk)
		older |= v.origin.ground.storedBlocks(chunk, gone)
		v.origin.ground.runlock(chunk)
	}
	if hide := gone & older; hide != 0 {
		list = addBits(list, lin.epoch, noSlot, hide)
	}
	return list
}

// slotsOf appends the slots of layers to dst, each once.
func slotsOf(list []layer, dst []uint32) []uint32 {
next:
	for _, y := range list {
		if y.slot == noSlot || y.slot == lostSlot {
			continue
		}
		for _, have := range dst {
			if have == y.slot {
				continue next
			}
		}
		dst = append(dst, y.slot)
	}
	return dst
}

// missing returns those of a chunk's former slots that it does not use any more.
func missing(before []uint32, l *leaf, at uint32) (gone []uint32) {
next:
	for _, slot := range before {
		if l.slot[at] == slot {
			continue
		}
		for _, y := range l.extras(at) {
			if y.slot == slot {
				continue next
			}
		}
		gone = append(gone, slot)
	}
	return gone
}

// leafOf is find for the one goroutine that changes the map: it makes the leaf if need be.
func (v *Volume) leafOf(chunk uint32) (*leaf, uint32) {
	l, at, fresh := v.m.make(chunk)
	if fresh {
		v.resize(l)
	}
	return l, at
}

// resize notes how many pages a leaf will take.
func (v *Volume) resize(l *leaf) {
	if v.pool.pages == nil {
		return
	}
	n := int32(pagesFor(l.size()))
	v.pool.pages.demand.Add(int64(n - l.pages))
	l.pages = n
}

// touch notes that a chunk has changed; resized: it may take more or less room in the leaf. It is called with the chunk's lock and
// applyMu held.
func (v *Volume) touch(l *leaf, chunk uint32, index uint64, resized bool) {
	at := chunk % leafChunks
	l.index[at] = max(l.index[at], index)
	if resized {
		v.resize(l)
	}
	v.markDirty(l, chunk)
}

func (v *Volume) markDirty(l *leaf, chunk uint32) {
	if !l.dirty {
		l.dirty = true
		v.dirtyLeaves = append(v.dirtyLeaves, chunk/leafChunks)
	}
}
