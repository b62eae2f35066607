package blockstore

import (
	"context"
	"errors"
	"math/bits"

	"sanctuary/blockstore/block"
)

// reclaimBatch is how many chunks are looked at before Apply gets a turn.
const reclaimBatch = 256

// Reclaim frees what deleted snapshots have left behind: it looks at up to limit chunks, beginning where it stopped, and
// returns whether there is more to do. Whoever owns the volume calls it in the background until it returns false, and again
// after each OpDeleteSnapshot and OpRollback. It runs beside Apply and everything else.
//
// It begins with a checkpoint if there is none yet that knows of the deletion: until then the snapshot is still there after a crash,
// and is to read as what it was until the log is replayed.
//
// For each chunk it takes from every layer the blocks that no state finds there, puts together what only the live state sees, so that
// it is written in place again, and moves the blocks of slots that are hardly used into others of the chunk.
func (v *Volume) Reclaim(limit int) (more bool, err error) {
	if err := v.knowGone(); err != nil {
		return false, err
	}
	for limit > 0 {
		n := min(limit, reclaimBatch)
		more, err = v.reclaimSome(n)
		if err != nil || !more {
			return false, err
		}
		limit -= n
	}
	return true, nil
}

func (v *Volume) reclaimSome(n int) (more bool, err error) {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	if err := v.usable(); err != nil {
		return false, err
	}
	switch {
	case v.reclaimDone:
		return false, nil
	case v.unknownGone(): // since the call began
		return true, nil
	}
	return v.reclaimChunks(n)
}

// reclaimLater is called when a state is given up.
func (v *Volume) reclaimLater() { v.reclaimAt, v.reclaimDone, v.undurable = 0, false, true }

// unknownGone says whether a crash would bring back a state that was given up, or changed without an entry. It is called with applyMu held.
func (v *Volume) unknownGone() bool { return !v.pool.volatile && (v.undurable || v.committing) }

// knowGone makes durable that states were given up, or changed without an entry.
func (v *Volume) knowGone() error {
	v.applyMu.Lock()
	wait := v.unknownGone()
	v.applyMu.Unlock()
	if !wait {
		return nil
	}
	_, err := v.Checkpoint(context.Background())
	return err
}

// reclaimChunks is called with applyMu held, or on a volume nobody else has.
func (v *Volume) reclaimChunks(n int) (more bool, err error) {
	lin := v.lineage.Load()
	paths := lin.paths()
	chunks := v.m.chunks.Load()
	for ; n > 0 && v.reclaimAt < chunks; n-- {
		l, at := v.m.find(v.reclaimAt)
		if l == nil {
			v.reclaimAt = (v.reclaimAt/leafChunks + 1) * leafChunks
			continue
		}
		freed, err := v.reclaimChunk(l, at, lin, paths)
		if err != nil {
			return false, err
		}
		if err := v.letGo(freed); err != nil {
			return false, err
		}
		v.reclaimAt++
	}
	v.reclaimDone = v.reclaimAt >= chunks
	return !v.reclaimDone, nil
}

func (v *Volume) reclaimChunk(l *leaf, at uint32, lin *lineage, paths []path) (freed []uint32, err error) {
	chunk := v.reclaimAt
	if !l.hasMore(at) && (l.slot[at] == noSlot || l.epoch[at] == lin.epoch) {
		return nil, nil
	}
	lock := v.m.lockOf(chunk)
	lock.Lock()
	defer lock.Unlock()
	list := l.layers(at, v.layers[:0])
	before := slotsOf(list, nil)
	shared, changed := v.dropUnseen(list, paths, lin.live != nil)
	list, claimed := claim(list, lin, shared)
	list = compact(list)
	list, merged := merge(list, paths)
	moved, err := v.moveTogether(chunk, list)
	if err != nil {
		return nil, err
	}
	if !changed && !claimed && !merged && !moved {
		return nil, nil
	}
	l.setLayers(at, list)
	v.layers = list[:0]
	v.resize(l)
	v.markDirty(l, chunk)
	return missing(before, l, at), nil
}

// dropUnseen takes from each layer the blocks that no path finds there. It returns those that others than the live state find; its
// path, if there is one, is the first.
func (v *Volume) dropUnseen(list []layer, paths []path, live bool) (shared []uint64, changed bool) {
	needed := make([]uint64, len(list))
	shared = make([]uint64, len(list))
	for i, p := range paths {
		want := ^uint64(0)
		for n := range list {
			got := list[n].bits & want
			if got == 0 || !p.sees(list[n].epoch) {
				continue
			}
			want &^= got
			if list[n].slot == noSlot && v.origin.ground == nil {
				// Zeros are worth a layer only where something would shine through.
				older := uint64(0)
				for _, y := range list[n+1:] {
					if y.slot != noSlot && p.sees(y.epoch) {
						older |= y.bits
					}
				}
				got &= older
			}
			needed[n] |= got
			if i > 0 || !live {
				shared[n] |= got
			}
		}
	}
	for n := range list {
		if list[n].bits != needed[n] {
			list[n].bits = needed[n]
			changed = true
		}
	}
	return shared, changed
}

// compact removes layers without blocks.
func compact(list []layer) []layer {
	kept := list[:0]
	for _, y := range list {
		if y.bits != 0 {
			kept = append(kept, y)
		}
	}
	return kept
}

// claim makes blocks that only the live state finds part of the present epoch, so that they are written over in place. shared says which blocks of
// each layer others find, too. After a rollback a layer may hold both.
func claim(list []layer, lin *lineage, shared []uint64) (out []layer, changed bool) {
	for n := range shared { // the layers that are added come behind
		y := &list[n]
		own := y.bits &^ shared[n]
		if own == 0 || y.epoch == lin.epoch || y.slot == lostSlot || !lin.live.sees(y.epoch) {
			continue
		}
		// No layer of the present epoch has any of them: the live state finds each block in one place.
		y.bits &^= own
		list = append(list, layer{bits: own, epoch: lin.epoch, slot: y.slot, chunk: y.chunk})
		changed = true
	}
	if changed {
		sortLayers(list)
	}
	return list, changed
}

// sortLayers puts the newest first, and keeps the order of what is of one epoch.
func sortLayers(list []layer) {
	for i := 1; i < len(list); i++ {
		for j := i; j > 0 && list[j].epoch > list[j-1].epoch; j-- {
			list[j], list[j-1] = list[j-1], list[j]
		}
	}
}

// merge makes one layer of neighbours that lie in one slot and are seen by the same paths.
func merge(list []layer, paths []path) (out []layer, merged bool) {
	out = list[:0]
next:
	for _, y := range list {
		for n := len(out) - 1; n >= 0; n-- {
			o := &out[n]
			if o.slot != y.slot || !seenAlike(o.epoch, y.epoch, paths) {
				continue
			}
			// What lies between them in age may hide y from some, or be hidden by it, only where blocks are the same.
			apart := o.bits&y.bits == 0
			for _, between := range out[n+1:] {
				apart = apart && between.bits&y.bits == 0
			}
			if apart {
				o.bits |= y.bits
				merged = true
				continue next
			}
		}
		out = append(out, y)
	}
	return out, merged
}

func seenAlike(a, b uint32, paths []path) bool {
	if a == b {
		return true
	}
	for _, p := range paths {
		if p.sees(a) != p.sees(b) {
			return false
		}
	}
	return true
}

// moveTogether empties slots of the chunk whose blocks all have a free place in another one, and points the layers there. The slot
// that is left has not changed, so the map of the last checkpoint stays true; it is given away only after the next one.
func (v *Volume) moveTogether(chunk uint32, list []layer) (moved bool, err error) {
	for {
		slots := slotsOf(list, nil)
		if len(slots) < 2 {
			return moved, nil
		}
		used := make([]uint64, len(slots))
		for i, slot := range slots {
			for _, y := range list {
				if y.slot == slot {
					used[i] |= y.bits
				}
			}
		}
		from, to := -1, -1
		for i := range slots {
			for j := range slots {
				if i != j && used[i]&used[j] == 0 && (from < 0 || bits.OnesCount64(used[i]) < bits.OnesCount64(used[from])) {
					from, to = i, j
				}
			}
		}
		if from < 0 {
			return moved, nil
		}
		ok, err := v.copyBlocks(chunk, slots[from], slots[to], used[from])
		if err != nil || !ok {
			return moved, err
		}
		for n := range list {
			if list[n].slot == slots[from] {
				list[n].slot = slots[to]
			}
		}
		moved = true
	}
}

// copyBlocks copies blocks to the same places in another slot. A block that is corrupt stays where it is, to be repaired: ok is
// false then.
func (v *Volume) copyBlocks(chunk, from, to uint32, bitmap uint64) (ok bool, err error) {
	buf := make([]byte, bits.OnesCount64(bitmap)*block.Size)
	sums := make([]uint32, 0, block.BlocksPerChunk)
	rest := buf
	for left := bitmap; left != 0; {
		first, n := runOf(left)
		left &^= blockMask(first, n)
		part := rest[:n*block.Size]
		rest = rest[n*block.Size:]
		err := v.pool.readBlocks(chunk, from, first, part)
		if corrupt := (*block.CorruptError)(nil); errors.As(err, &corrupt) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	sums = block.AppendSums(sums, buf)
	for left := bitmap; left != 0; {
		first, n := runOf(left)
		left &^= blockMask(first, n)
		if err := v.pool.writeBlocks(to, first, buf[:n*block.Size], sums[:n]); err != nil {
			return false, err
		}
		buf, sums = buf[n*block.Size:], sums[n:]
	}
	return true, nil
}
