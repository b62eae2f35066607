package blockstore

import (
	"context"
	"errors"
	"fmt"

	"sanctuary/blockstore/block"
)

// What a page of the map spoke of is free as soon as the page could not be read: nobody knows which slots those were. But the medium may
// return the page the next time (one of two mirrored disks was wrong, or a cable). Were it believed then, after a crash, though others had been
// given its slots, the volume would read what they have written, and their checksums would match.
//
// So no slot is given away before it is durable that the page is lost: a start makes a checkpoint of each volume that lost something. A root
// that could not be read, in neither of its two copies, is lost by an entry of the catalogue that leads nowhere. Where there is no room for
// that, nothing is given away until somebody's checkpoint has found some; everything that needs no slot goes on.

// mayGiveLocked returns block.ErrNoSpace while slots may be those of a page that comes back. It is called with slotsMu held.
func (p *Pool) mayGiveLocked() error {
	if p.unrecorded == 0 {
		return nil
	}
	return fmt.Errorf("%w for recording that pages of the map are damaged: until then nothing is allocated", block.ErrNoSpace)
}

func (p *Pool) addUnrecorded(n int) {
	p.slotsMu.Lock()
	defer p.slotsMu.Unlock()
	p.unrecorded += n
}

// unreadRoot is called by load, for a volume without which the pool goes on. Whatever becomes durable next says that it is lost; of one that was kept
// for its clones nothing is left, since nobody can ask for its deletion: those are lost with it, in the same step.
func (p *Pool) unreadRoot(number uint32) {
	e := p.catalogue.entries[number]
	lost := twins{nowhere, nowhere}
	known := e.root == lost // to the medium, by an earlier start
	if e.root = lost; e.name == "" {
		delete(p.catalogue.entries, number)
	} else {
		p.catalogue.entries[number] = e
	}
	if !known {
		p.catalogue.unread++
		p.addUnrecorded(1)
	}
}

// recordLosses makes durable what volumes have lost. What it finds no room for is recorded by the next checkpoints.
func (p *Pool) recordLosses(volumes map[uint32]*Volume) error {
	for number, v := range volumes {
		if _, there := p.catalogue.entries[number]; !there || !v.unread {
			continue
		}
		if _, err := v.Checkpoint(context.Background()); err != nil && !errors.Is(err, block.ErrNoSpace) {
			return err
		}
	}
	return nil
}

// recorded is called when it is durable what was lost, or that the volume is gone: with checkpointMu held, or of a volume nobody else has.
func (v *Volume) recorded() {
	if v.unread {
		v.unread = false
		v.pool.addUnrecorded(-1)
	}
}
