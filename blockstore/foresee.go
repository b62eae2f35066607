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

// countPages returns how many pages of metadata applying ops would add, at most.
func (v *Volume) countPages(ops []block.Op) (pages int64) {
	if v.pool.pages == nil {
		return 0
	}
	lin := v.lineage.Load()
	for i := range ops {
		op := &ops[i]
		switch {
		case writesBlocks(op.Kind):
			for r := op.Range; r.Count > 0; {
				var s span
				s, r = next(r)
				if l, at := v.m.find(s.chunk); l == nil || l.hasMore(at) || l.epoch[at] != lin.epoch && l.slot[at] != noSlot {
					pages++
				}
			}
		case op.Kind == block.OpZero && (len(lin.snapshots) > 0 || v.origin.ground != nil):
			// Layers that say "zeros": in leaves that are there, or in a clone in new ones.
			pages += 2 * int64(leavesFor(chunksFor(op.Range.Count))+1)
		case op.Kind == block.OpSnapshot:
			pages++ // the root may need another one
		}
	}
	return pages
}
