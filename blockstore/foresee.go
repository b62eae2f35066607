package blockstore

import (
	"sanctuary/blockstore/block"
)

// What an entry takes is known before it is applied, so that nothing can run out of space half way.

// Needs returns how many bytes of the pool applying ops now would allocate: also for blocks that are stored already, if they
// are shared with a snapshot. It may be called while Apply runs, and counts what that is about to allocate.
func (v *Volume) Needs(ops []block.Op) int64 { return int64(v.countSlots(ops)) * block.ChunkSize }

func writesBlocks(k block.OpKind) bool { return k == block.OpWrite || k == block.OpFill }

// countSlots returns how many slots applying ops would take.
func (v *Volume) countSlots(ops []block.Op) (n int) {
	only := true // nothing but writes, and what touches no chunk
	for i := range ops {
		op := &ops[i]
		if !writesBlocks(op.Kind) {
			only = only && (op.Kind == block.OpState || op.Kind == block.OpGrow)
			continue
		}
		for r := op.Range; r.Count > 0; {
			var s span
			s, r = next(r)
			if v.wantsSlot(s.chunk, s.mask()) {
				n++
			}
		}
	}
	if len(ops) == 1 || only && n == 0 {
		return n // a single op does not meet a chunk twice
	}
	return v.playSlots(ops)
}

// chunkSectors is the length of a chunk, in sectors.
const chunkSectors = block.ChunkSize / block.SectorSize

// playSlots plays the ops through on copies of the layers of those chunks that they write to.
func (v *Volume) playSlots(ops []block.Op) (n int) {
	chunks := map[uint32][]layer{}
	for i := range ops {
		if !writesBlocks(ops[i].Kind) {
			continue
		}
		for r := ops[i].Range; r.Count > 0; {
			var s span
			s, r = next(r)
			if _, seen := chunks[s.chunk]; !seen {
				chunks[s.chunk] = v.copyLayers(s.chunk)
			}
		}
	}
	lin := v.lineage.Load()
	virtual := uint32(lostSlot)
	for i := range ops {
		switch op := &ops[i]; {
		case writesBlocks(op.Kind):
			for r := op.Range; r.Count > 0; {
				var s span
				s, r = next(r)
				list, rest := chunks[s.chunk], s.mask()
				for n := range list {
					if list[n].epoch == lin.epoch && list[n].slot != noSlot {
						rest &^= list[n].bits
					} else if list[n].epoch == lin.epoch {
						list[n].bits &^= s.mask()
					}
				}
				if rest != 0 {
					slot := placeFor(list, rest)
					if slot == noSlot {
						n++
						virtual--
						slot = virtual
					}
					list = addBits(list, lin.epoch, slot, rest)
				}
				chunks[s.chunk] = compact(list)
			}
		case op.Kind == block.OpZero:
			for chunk, list := range chunks {
				if mask := maskIn(chunk, op.Range); mask != 0 {
					chunks[chunk] = compact(v.zeroLayers(chunk, list, lin, mask))
				}
			}
		case op.Kind.Blob():
			lin = v.turn(lin, op, 0, 0)
		}
	}
	return n
}

// maskIn returns which blocks of a chunk an aligned range covers.
func maskIn(chunk uint32, r block.Range) uint64 {
	start := block.Sector(chunk) * chunkSectors
	if !r.Overlaps(block.Range{Start: start, Count: chunkSectors}) {
		return 0
	}
	from, to := max(start, r.Start)-start, min(start+chunkSectors, r.End())-start
	return blockMask(int(from/block.SectorsPerBlock), int((to-from)/block.SectorsPerBlock))
}

func (v *Volume) copyLayers(chunk uint32) []layer {
	lock := v.m.lockOf(chunk)
	lock.RLock()
	defer lock.RUnlock()
	l, at := v.m.find(chunk)
	if l == nil {
		return nil
	}
	return l.layers(at, nil)
}

// roomForPages returns block.ErrNoSpace unless there is room for the metadata that applying ops adds. It counts with care only where
// a rough count does not fit.
func (v *Volume) roomForPages(ops []block.Op) error {
	if v.pool.pages == nil {
		return nil
	}
	rough := int64(0)
	v.eachGrowth(ops, func(uint32, int) { rough++ }) // what one of them adds is less than a page
	if rough == 0 || v.pool.pages.room(rough) == nil {
		return nil
	}
	return v.pool.pages.room(v.growth(ops, 0))
}

// growth returns how many pages applying ops adds, at most, where each leaf may have become so many bytes larger by then. It is called with
// applyMu held.
func (v *Volume) growth(ops []block.Op, meanwhile int) (pages int64) {
	growth := map[uint32]int{}
	v.eachGrowth(ops, func(number uint32, bytes int) { growth[number] += bytes })
	for number, bytes := range growth {
		l, _ := v.m.find(number * leafChunks)
		if l == nil {
			l = new(leaf)
		}
		pages += int64(pagesFor(l.size()+bytes+meanwhile)) - int64(l.pages)
	}
	return pages
}

// meanwhileBytes is what a leaf may grow by while an entry is on its way, by others that are: 30 layers.
const meanwhileBytes = 30 * leafLayerBytes

// NeedsMetadata returns how many pages of metadata applying ops may add, at most, besides the page for each chunk that Promise(Needs(ops)) sees to: by
// zeros over what a snapshot or a clone's origin holds, by blocks that share a slot with older ones, and by snapshots. It may be called while
// Apply runs. A count that is not exact is quick, and may be far too high.
func (v *Volume) NeedsMetadata(ops []block.Op, exact bool) (pages int64) {
	if v.pool.pages == nil {
		return 0
	}
	if v.eachGrowth(ops, func(uint32, int) { pages++ }); pages == 0 {
		return 0
	}
	if exact {
		v.applyMu.Lock()
		pages = v.growth(ops, meanwhileBytes)
		v.applyMu.Unlock()
	}
	return max(0, pages-int64(v.countSlots(ops)))
}

// rootLeaf stands for the volume's root in eachGrowth: it is the number of no leaf.
const rootLeaf = ^uint32(0) / leafChunks

// eachGrowth calls fn for each part of ops that may make a leaf larger, with at most how much, in bytes.
func (v *Volume) eachGrowth(ops []block.Op, fn func(number uint32, bytes int)) {
	lin := v.lineage.Load()
	for i := range ops {
		op := &ops[i]
		switch {
		case writesBlocks(op.Kind):
			for r := op.Range; r.Count > 0; {
				var s span
				s, r = next(r)
				if v.growsBy(s.chunk, lin.epoch) {
					fn(s.chunk/leafChunks, leafEntryBytes+leafLayerBytes)
				}
			}
		case op.Kind == block.OpZero && op.Range.Count > 0 && (len(lin.snapshots) > 0 || v.origin.ground != nil):
			// Layers that say "zeros", where there is anything.
			first, last := uint32(op.Range.Start/chunkSectors), uint32((op.Range.End()-1)/chunkSectors)
			for number := first / leafChunks; number <= last/leafChunks; number++ {
				from, to := max(first, number*leafChunks), min(last, number*leafChunks+leafChunks-1)
				if v.ground.Load().maps(from) {
					fn(number, int(to-from+1)*leafLayerBytes)
				}
			}
		case op.Kind == block.OpSnapshot:
			fn(rootLeaf, block.MaxSnapshotNameBytes+64)
		}
	}
}

// growsBy says whether a write to a chunk may add to its leaf.
func (v *Volume) growsBy(chunk, epoch uint32) bool {
	lock := v.m.lockOf(chunk)
	lock.RLock()
	defer lock.RUnlock()
	l, at := v.m.find(chunk)
	return l == nil || l.hasMore(at) || l.slot[at] == noSlot || l.epoch[at] != epoch
}
