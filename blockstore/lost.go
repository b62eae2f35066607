package blockstore

import (
	"fmt"
	"math/bits"
	"slices"

	"sanctuary/blockstore/block"
)

// A leaf of the map that could not be read at the start leaves its chunks with one layer, lostLeaf's, older than every epoch: any state
// finds it where it finds nothing newer. The blocks are lost one by one for each state, and come back one by one, from a peer.
//
// What a state gets back is a layer of its own epoch, which later states see as well, unless they have something newer. What they hold may
// be something else, so a state that has still lost the block gets a layer first that says so: of its own epoch, over the restored one.
// Only the live state must have its block by then, since a layer of the epoch that is being written has to have a slot.

// LostChunk is a chunk of a state of which blocks are lost.
type LostChunk struct {
	Snapshot block.SnapshotID // zero: the live state
	Chunk    uint32
	Blocks   uint64
}

// LostChunks returns what is lost, of the live state and of every snapshot, and at most so many: see Lost.
func (v *Volume) LostChunks(limit int) (lost []LostChunk) {
	states := []state{v.live()}
	lin := v.lineage.Load()
	for i := range lin.snapshots {
		if !lin.snapshots[i].hidden {
			states = append(states, v.stateOf(lin, i))
		}
	}
	chunks := v.m.chunks.Load()
	for chunk := uint32(0); chunk < chunks && len(lost) < limit; chunk++ {
		if !v.ground.Load().mayLack(chunk) {
			chunk |= leafChunks - 1
			continue
		}
		for _, s := range states {
			var slots slotMap
			if chunk >= chunksFor(s.capacity) {
				continue
			}
			g := s.lock(chunk)
			blocks := slots.lost(g.resolve(chunk, ^uint64(0), &slots))
			g.runlock(chunk)
			if blocks != 0 && len(lost) < limit {
				out := LostChunk{Chunk: chunk, Blocks: blocks}
				if s.snapshot != nil {
					out.Snapshot = s.snapshot.ID
				}
				lost = append(lost, out)
			}
		}
	}
	return lost
}

// mayLack says whether the leaf of a chunk, on any level, has something that is lost.
func (g *ground) mayLack(chunk uint32) bool {
	for ; g != nil; g = g.under {
		if l, _ := g.m.find(chunk); l != nil && slices.ContainsFunc(l.allExtra(), func(y layer) bool { return y.slot == lostSlot }) {
			return true
		}
	}
	return false
}

// lost returns which of the stored blocks have no place.
func (s *slotMap) lost(stored uint64) (lost uint64) {
	for n := range s {
		if stored>>n&1 == 1 && s[n] == lostSlot {
			lost |= 1 << n
		}
	}
	return lost
}

// restore gives a snapshot's lost block a place, or none if it is zeros. It is called with applyMu held.
func (v *Volume) restore(s *state, b *replacement) error {
	l, at := v.leafOf(b.chunk)
	r := restoring{v: v, s: s, lin: v.lineage.Load(), chunk: b.chunk, bit: b.bit(), was: l.layers(at, nil)}
	if r.lin.live.sees(s.snapshot.epoch) && r.find(r.lin.live, r.was) == lostSlot {
		return fmt.Errorf("volume %s, snapshot %s, chunk %d, block %d: %w", v.id, s.snapshot.Name, b.chunk, b.n, ErrLiveFirst)
	}
	if err := v.pool.pages.room(1); err != nil {
		return err
	}
	list := r.with(r.was, noSlot)
	if !b.zeros {
		var err error
		if list, err = r.shared(b.sums[0]); err != nil {
			return err
		}
		if list == nil {
			slot := placeFor(r.was, r.bit)
			if slot == noSlot {
				taken, err := v.pool.takeSlots(1, nil)
				if err != nil {
					return err
				}
				slot = taken[0]
				v.allocatedChunks.Add(1)
			}
			if err := v.pool.writeBlocks(slot, b.n, b.data, b.sums[:]); err != nil {
				return err
			}
			list = r.with(r.was, slot)
		}
	}
	lock := v.m.lockOf(b.chunk)
	lock.Lock()
	defer lock.Unlock()
	l.setLayers(at, list)
	v.touch(l, b.chunk, 0, true)
	v.undurable = true
	return nil
}

// restoring is one block of a snapshot on its way back.
type restoring struct {
	v     *Volume
	s     *state
	lin   *lineage
	chunk uint32
	bit   uint64
	was   []layer
}

// find returns the slot in which a state has the block: noSlot if it reads as zeros.
func (r *restoring) find(p path, list []layer) uint32 {
	for _, y := range list {
		if y.bits&r.bit != 0 && p.sees(y.epoch) {
			return y.slot
		}
	}
	under := r.v.origin.ground
	under.rlock(r.chunk)
	defer under.runlock(r.chunk)
	return under.find(r.chunk, bits.TrailingZeros64(r.bit))
}

// with returns the layers with the block in a slot, and lost as before for every other snapshot that has lost it.
func (r *restoring) with(list []layer, slot uint32) []layer {
	epoch := r.s.snapshot.epoch
	out := slices.Clone(list)
	for i := range out {
		if out[i].epoch == epoch {
			out[i].bits &^= r.bit
		}
	}
	out = addBits(out, epoch, slot, r.bit)
	for i := range r.lin.snapshots { // in the order of their epochs: what one hides is hidden from those that came of it
		o := &r.lin.snapshots[i]
		if o.epoch != epoch && r.find(o.path, r.was) == lostSlot && r.find(o.path, out) != lostSlot {
			out = addBits(out, o.epoch, lostSlot, r.bit)
		}
	}
	return compact(out)
}

// shared returns the layers with the block where a later state has the same contents, so that it takes no space; nil if there is no such
// place, or some other state would find something else than before.
func (r *restoring) shared(sum uint32) ([]layer, error) {
	n := bits.TrailingZeros64(r.bit)
next:
	for i, y := range r.was {
		if y.bits&r.bit == 0 || y.epoch < r.s.snapshot.epoch || y.slot == noSlot || y.slot == lostSlot {
			continue
		}
		var have [1]uint32
		if err := r.v.pool.sums.get(y.slot, n, have[:]); err != nil {
			return nil, r.v.pool.fail("read checksums from the medium", err)
		}
		if have[0] != sum {
			continue
		}
		list := slices.Clone(r.was)
		list[i].bits &^= r.bit
		list = r.with(list, y.slot)
		for _, p := range r.lin.paths() {
			if r.find(p, list) != r.find(p, r.was) && !slices.Equal(p, r.s.snapshot.path) {
				continue next
			}
		}
		return list, nil
	}
	return nil, nil
}
