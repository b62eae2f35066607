package blockstore

import (
	"errors"
	"fmt"
	"slices"

	"sanctuary/blockstore/block"
)

// A block that matches its checksum and is wrong all the same, because this copy has missed a write, say, is wrong for one state. Others
// that are read from the same place may be right: so the place is left to them.
//
// The live state gets what a write would have given it. A snapshot gets a layer of its own epoch, which all states that came of it see as
// well, unless they have something newer. So each epoch that came directly after the snapshot's is given what it has been reading, first. If
// the block lies in the snapshot's own epoch, the first of those takes the place over; for the others it is copied.
//
// None of it is an entry, so no replay repeats it. Therefore it begins only when the last checkpoint knows all that was done without an entry
// before, and ends with one of its own. A crash in between leaves what was wrong wrong, perhaps in another way, and what was right right:
// of the places that checkpoint points at, only those are written, or made free, that no state but the one that is wrong finds; and Reclaim waits.

// Overwrite replaces blocks of one state that match their checksums, and no other state's but that of clones that read them from it.
// Arguments, results and errors are Repair's; a snapshot's block may be one that is stored in no place.
func (v *Volume) Overwrite(id block.SnapshotID, chunk uint32, blocks uint64, data []byte, asOf uint64) (done uint64, err error) {
	for {
		if err := v.knowGone(); err != nil {
			return 0, err
		}
		done, again, err := v.overwriteOnce(id, chunk, blocks, data, asOf)
		if again {
			continue
		}
		if done != 0 {
			if kerr := v.knowGone(); kerr != nil {
				return 0, errors.Join(err, kerr)
			}
		}
		return done, err
	}
}

// overwriteOnce returns again if something was done without an entry since knowGone.
func (v *Volume) overwriteOnce(id block.SnapshotID, chunk uint32, blocks uint64, data []byte, asOf uint64) (done uint64, again bool, err error) {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	if v.unknownGone() {
		return 0, true, nil
	}
	v.reclaimLater() // what nobody finds any more
	v.dirty = true
	done, err = v.rewrite(id, chunk, blocks, data, asOf, v.overwriteBlock)
	return done, false, err
}

func (v *Volume) overwriteBlock(s *state, b *replacement) error {
	switch {
	case b.slot == noSlot && b.zeros:
		return nil
	case s.snapshot == nil && !b.zeros && v.wantsSlot(b.chunk, b.bit()) && v.FreeBytes() < block.ChunkSize:
		return errPromised
	case s.snapshot == nil:
		return v.setLive(b)
	case b.slot == lostSlot:
		return v.restore(s, b)
	}
	return v.overwriteSnapshot(s, b)
}

// errPromised: what is left is meant for what initiators write.
var errPromised = fmt.Errorf("%w: what is free has been promised to writes", block.ErrNoSpace)

// overwriteSnapshot is called with applyMu held.
func (v *Volume) overwriteSnapshot(s *state, b *replacement) error {
	l, at := v.leafOf(b.chunk)
	was := l.layers(at, nil)
	epoch := s.snapshot.epoch
	after := v.lineage.Load().after(epoch)
	after = slices.DeleteFunc(after, func(e uint32) bool {
		return slices.ContainsFunc(was, func(y layer) bool { return y.epoch == e && y.bits&b.bit() != 0 })
	})
	own := slices.ContainsFunc(was, func(y layer) bool { return y.epoch == epoch && y.slot == b.slot && y.bits&b.bit() != 0 })
	if own && b.slot != noSlot && len(after) == 0 && !b.zeros {
		lock := v.m.lockOf(b.chunk)
		lock.Lock()
		defer lock.Unlock()
		return v.pool.writeBlocks(b.slot, b.n, b.data, b.sums[:])
	}

	list := slices.Clone(was)
	if own {
		list = takeBits(list, epoch, b.bit())
		if b.slot != noSlot && len(after) > 0 {
			list = addBits(list, after[0], b.slot, b.bit())
			after = after[1:]
		}
	}
	p := placing{v: v, chunk: b.chunk, n: b.n, list: list}
	if err := p.fill(s, b, after); err != nil {
		v.pool.returnSlots(p.taken)
		return err
	}
	v.allocatedChunks.Add(int64(len(p.taken)))
	v.countSnapshot(epoch, b)
	lock := v.m.lockOf(b.chunk)
	lock.Lock()
	defer lock.Unlock()
	l.setLayers(at, p.list)
	v.touch(l, b.chunk, 0, true)
	return v.letGo(missing(slotsOf(was, nil), l, at))
}

// countSnapshot counts a block of a snapshot that is stored from now on, or no longer.
func (v *Volume) countSnapshot(epoch uint32, b *replacement) {
	if (b.slot == noSlot) == b.zeros {
		return
	}
	now := *v.lineage.Load()
	now.snapshots = slices.Clone(now.snapshots)
	for i := range now.snapshots {
		switch s := &now.snapshots[i]; {
		case s.epoch != epoch:
		case b.zeros:
			s.stored--
		default:
			s.stored++
		}
	}
	v.setLineage(&now)
}

// after returns the epochs that came directly after one, on the paths of all states.
func (l *lineage) after(epoch uint32) (out []uint32) {
	for _, p := range l.paths() {
		if next, ok := p.next(epoch); ok && !slices.Contains(out, next) {
			out = append(out, next)
		}
	}
	slices.Sort(out) // the live one, which is written in place, last
	return out
}

// next returns the epoch that follows one on the path; ok is false if the path does not see that, or ends with it.
func (p path) next(epoch uint32) (next uint32, ok bool) {
	for i, e := range p {
		if epoch < e.first || epoch > e.last {
			continue
		}
		if epoch < e.last {
			return epoch + 1, true
		}
		if i+1 < len(p) {
			return p[i+1].first, true
		}
	}
	return 0, false
}

// placing finds places for versions of one block.
type placing struct {
	v     *Volume
	chunk uint32
	n     int
	list  []layer  // with what has been placed
	taken []uint32 // slots that are new
}

// fill gives the snapshot its new block, and the epochs after it the old one.
func (p *placing) fill(s *state, b *replacement, after []uint32) error {
	if pages := p.v.pool.pages; pages != nil {
		if err := pages.room(1); err != nil {
			return err
		}
	}
	var old []byte
	var oldSums [1]uint32
	if b.slot != noSlot && len(after) > 0 {
		old = make([]byte, block.Size)
		err := s.readAt(blockRange(b.chunk, b.n, 1), old)
		if corrupt := (*block.CorruptError)(nil); errors.As(err, &corrupt) {
			return fmt.Errorf("volume %s, snapshot %s, chunk %d, block %d: it is to be repaired before it can be replaced: %w", p.v.id, s.snapshot.Name, b.chunk, b.n, err)
		}
		if err != nil {
			return err
		}
		oldSums[0] = block.Sum(old)
	}
	for _, e := range after {
		if err := p.put(e, old, oldSums); err != nil {
			return err
		}
	}
	data := b.data
	if b.zeros {
		data = nil
	}
	return p.put(s.snapshot.epoch, data, b.sums)
}

// put adds a layer with the block; data nil: one that reads as zeros.
func (p *placing) put(epoch uint32, data []byte, sums [1]uint32) error {
	bit := uint64(1) << p.n
	if data == nil {
		p.list = addBits(p.list, epoch, noSlot, bit)
		return nil
	}
	slot := placeFor(p.list, bit)
	if slot == noSlot {
		if p.v.FreeBytes() < block.ChunkSize {
			return errPromised
		}
		taken, err := p.v.pool.takeSlots(1, nil)
		if err != nil {
			return err
		}
		slot = taken[0]
		p.taken = append(p.taken, slot)
	}
	if err := p.v.pool.writeBlocks(slot, p.n, data, sums[:]); err != nil {
		return err
	}
	p.list = addBits(p.list, epoch, slot, bit)
	return nil
}

// takeBits takes blocks from the layers of an epoch.
func takeBits(list []layer, epoch uint32, bitmap uint64) []layer {
	for i := range list {
		if list[i].epoch == epoch {
			list[i].bits &^= bitmap
		}
	}
	return list
}
