package blockstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"sanctuary/blockstore/block"
)

// A volume is deleted in one step: without its entry in the catalogue nothing leads to it any more. What it had is given back afterwards, and what
// only a kept origin of it had is reclaimed, which takes as long as the volumes are large. Nobody waits for that: it is done without the
// pool's mutex, on volumes that nobody else finds any more, or that are locked by the chunk. A crash meanwhile leaves it to the next start,
// which finds those slots and pages in no map.

// leftovers is what deletions leave to be done when the pool's mutex has been let go.
type leftovers struct {
	gone []*Volume // from the medium: what they had is free
	kept []*Volume // for their clones: what those do not need is to be reclaimed
}

// Delete removes a volume and frees what it has; both are durable when it returns. What clones of its snapshots need stays until
// they are gone, too. Everything else in the pool goes on meanwhile. Errors: ErrNotFound, ErrInUse, block.ErrFailed.
func (p *Pool) Delete(id string) error {
	var left leftovers
	begun, err := p.beginDelete(id, &left)
	if begun {
		defer p.deletions.Done()
	}
	if err = errors.Join(err, p.finish(&left)); err != nil {
		return fmt.Errorf("delete volume %s: %w", id, err)
	}
	return nil
}

// beginDelete is the part of Delete that decides whether it has happened. begun says that Close waits for the rest.
func (p *Pool) beginDelete(id string, left *leftovers) (begun bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.usable(); err != nil {
		return false, err
	}
	v := p.volumes[id]
	switch {
	case p.open[id]:
		return false, ErrInUse
	case v == nil && p.broken[id] == nil:
		return false, ErrNotFound
	case v == nil:
		return false, p.deleteBroken(id)
	}
	p.deletions.Add(1)
	for i := range v.lineage.Load().snapshots {
		if p.held(v.number, v.lineage.Load().snapshots[i].epoch) {
			return true, p.bury(v, left)
		}
	}
	if err := p.remove(v, left); err != nil {
		return true, err
	}
	delete(p.volumes, v.id)
	return true, p.dropHold(v, left)
}

// deleteBroken takes a volume off the medium whose root cannot be read. It is called with mu held.
func (p *Pool) deleteBroken(id string) error {
	err := p.publishAlone(func(c *catalogueState, _ *pageWriter) error {
		maps.DeleteFunc(c.entries, func(_ uint32, e catalogueEntry) bool { return e.name == id })
		return nil
	})
	if err == nil {
		delete(p.broken, id)
	}
	return err
}

// remove takes a volume off the medium. It is called with mu held. Somebody may be reclaiming it, if it was kept for its clones: no checkpoint
// of that may bring it back.
func (p *Pool) remove(v *Volume, left *leftovers) error {
	v.checkpointMu.Lock()
	defer v.checkpointMu.Unlock()
	if !p.volatile {
		if err := p.publishAlone(func(c *catalogueState, _ *pageWriter) error { delete(c.entries, v.number); return nil }); err != nil {
			return err
		}
		v.recorded()
	}
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	v.closed.Store(true)
	left.gone = append(left.gone, v)
	return nil
}

// finish does what deletions have left. Where there is no room for that, the next start goes on with it.
func (p *Pool) finish(left *leftovers) error {
	for _, v := range left.gone {
		if err := p.free(v); err != nil {
			return err
		}
	}
	for _, v := range left.kept {
		err := p.settle(v)
		if err != nil && !errors.Is(err, block.ErrNoSpace) && !errors.Is(err, block.ErrClosed) { // its last clone may have been deleted meanwhile
			return err
		}
	}
	return nil
}

// freeLeaves is how many leaves of a volume that is gone are given back at a time: what they have in the pool, 2 GiB at most but for
// snapshots, is sorted, so that neighbours are discarded together.
const freeLeaves = 64

// free gives back what a volume had that is gone from the medium, and nobody has.
func (p *Pool) free(v *Volume) error {
	if err := p.giveBack(v.freed, true); err != nil {
		return err
	}
	if !p.volatile {
		p.pages.release(v.onMedium.rootPages)
		p.pages.demand.Add(-rootDemand)
		for _, ptr := range v.onMedium.directories {
			if ptr.page != 0 {
				p.pages.release([]uint32{ptr.page})
			}
		}
	}
	var slots []uint32 // of one slice
	for from, leaves := 0, len(*v.m.leaves.Load()); from < leaves; from += freeLeaves {
		if err := p.Failed(); err != nil {
			return err
		}
		slots = slots[:0]
		for number := from; number < min(leaves, from+freeLeaves); number++ {
			slots = v.freeLeaf(uint32(number), slots)
		}
		slices.Sort(slots)
		if err := p.giveBack(slots, false); err != nil {
			return err
		}
	}
	return nil
}

// freeLeaf gives back the pages of a leaf and appends its slots to dst.
func (v *Volume) freeLeaf(number uint32, dst []uint32) []uint32 {
	l, _ := v.m.find(number * leafChunks)
	if v.pool.pages != nil {
		v.pool.pages.release(v.pagesOfLeaf(number))
		if l != nil {
			v.pool.pages.demand.Add(-int64(l.pages))
		}
	}
	if l == nil {
		return dst
	}
	var room [8]layer
	for at := range uint32(leafChunks) {
		// slotsOf looks for each slot in what it appends to: in that of one chunk only.
		dst = append(dst, slotsOf(l.layers(at, room[:0]), nil)...)
	}
	return dst
}

// settle reclaims a volume that nobody has open, to the end, and makes that durable.
func (p *Pool) settle(v *Volume) error {
	for more := true; more; {
		var err error
		if more, err = v.Reclaim(reclaimBatch); err != nil {
			return err
		}
	}
	_, err := v.Checkpoint(context.Background())
	return err
}
