package blockstore

import (
	"context"
	"fmt"

	"sanctuary/blockstore/block"
)

// cloneFloor makes Changed report everything of a clone to whoever has nothing of it.
const cloneFloor = 1

// Clone makes a volume whose contents are those of a snapshot of another one of this pool, without copying anything: durable
// before it returns, and opened, with Applied 0 and an empty state. It may be written, grow, have snapshots and be cloned like any
// other. The snapshot's data stays for as long as the clone needs it, even if the snapshot or its volume is deleted.
//
// Errors: ErrNotFound (the volume), block.ErrNoSnapshot, ErrExists, block.ErrNoSpace, block.ErrFailed. The origin may be open or not.
func (p *Pool) Clone(id, from string, snapshot block.SnapshotID) (*Volume, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.mayCreate(id); err != nil {
		return nil, err
	}
	o := p.volumes[from]
	if o == nil {
		return nil, fmt.Errorf("clone of volume %s: %w", from, ErrNotFound)
	}
	s, h, err := o.holdFor(snapshot)
	if err != nil {
		return nil, fmt.Errorf("clone of volume %s: %w", from, err)
	}
	v := newVolume(p, 0, id, block.Geometry{Capacity: s.capacity, LogicalBlockBytes: o.blockBytes})
	v.origin = origin{volume: h.volume, epoch: h.epoch, ground: s.g}
	v.floor.Store(cloneFloor)
	v.stored.Store(s.snapshot.stored)
	v.setLineage(v.lineage.Load())
	// The snapshot first: a clone on the medium whose origin does not know the snapshot would read something else.
	if _, err = o.Checkpoint(context.Background()); err == nil {
		err = p.addVolume(v)
	}
	if err != nil {
		p.addHold(h, -1)
		return nil, fmt.Errorf("clone of volume %s: %w", from, err)
	}
	return v, nil
}

// holdFor keeps a snapshot from being freed.
func (v *Volume) holdFor(id block.SnapshotID) (state, hold, error) {
	v.applyMu.Lock() // no entry deletes it meanwhile
	defer v.applyMu.Unlock()
	w, err := v.View(id)
	if err != nil {
		return state{}, hold{}, err
	}
	h := hold{v.number, w.s.snapshot.epoch}
	v.pool.addHold(h, 1)
	return w.s, h, nil
}

// bury takes a volume's name away and keeps what its clones need. It is called with mu held.
func (p *Pool) bury(v *Volume, left *leftovers) error {
	was, id, state := v.lineage.Load(), v.id, v.state.Load()
	kept := &lineage{epoch: was.epoch}
	for _, s := range was.snapshots {
		if s.hidden = true; p.held(v.number, s.epoch) {
			kept.snapshots = append(kept.snapshots, s)
		}
	}
	v.id, v.deleted, v.dirty = "", true, true
	v.setLineage(kept)
	v.state.Store(&block.State{})
	if _, err := v.Checkpoint(context.Background()); err != nil {
		v.id, v.deleted = id, false
		v.setLineage(was)
		v.state.Store(state)
		return err
	}
	delete(p.volumes, id)
	p.buried[v.number] = v
	v.stored.Store(0)
	v.reclaimAt, v.reclaimDone = 0, false // what it was is gone from the medium, too
	left.kept = append(left.kept, v)
	return nil
}

// dropHold gives up what a deleted clone needed of its origin. It is called with mu held.
func (p *Pool) dropHold(clone *Volume, left *leftovers) error {
	h := hold{clone.origin.volume, clone.origin.epoch}
	if h.volume == 0 || p.addHold(h, -1) > 0 {
		return nil
	}
	if o := p.buried[h.volume]; o != nil {
		l := o.lineage.Load()
		if len(l.snapshots) == 1 {
			delete(p.buried, h.volume)
			if err := p.remove(o, left); err != nil {
				return err
			}
			return p.dropHold(o, left)
		}
		o.forget(h.epoch)
		left.kept = append(left.kept, o)
		return nil
	}
	for _, o := range p.volumes {
		if o.number == h.volume {
			o.forget(h.epoch)
		}
	}
	return nil
}

// forget removes a hidden snapshot.
func (v *Volume) forget(epoch uint32) {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	l := v.lineage.Load()
	for i := range l.snapshots {
		if l.snapshots[i].epoch == epoch && l.snapshots[i].hidden {
			v.setLineage(l.without(i, false))
			v.dirty = true
			v.reclaimLater()
			return
		}
	}
}
