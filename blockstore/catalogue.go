package blockstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"sanctuary/blockstore/block"
)

// Errors of the pool's catalogue of volumes.
var (
	// ErrExists: there is a volume of that name.
	ErrExists = errors.New("the volume exists already")
	// ErrNotFound: there is no volume of that name.
	ErrNotFound = errors.New("no such volume")
	// ErrInUse: the volume is open.
	ErrInUse = errors.New("the volume is in use")
)

// maxNameBytes bounds the name of a volume.
const maxNameBytes = 255

// catalogueState is what the newest superblock says: which volumes there are, and where.
type catalogueState struct {
	super   superblock
	entries map[uint32]catalogueEntry // by volume number
	pages   []uint32
	unread  int // roots that could not be read: the entries say so, and the superblock on the medium does not
}

type catalogueEntry struct {
	name string // empty: deleted, and kept for its clones
	root twins
}

// The catalogue's payload: for each volume, in ascending order, its number (4), page and checksum of its root, twice (16), the length
// of its name (2) and its name.
func (c *catalogueState) encode() []byte {
	var b []byte
	for _, n := range slices.Sorted(maps.Keys(c.entries)) {
		b = binary.LittleEndian.AppendUint32(b, n)
		b = appendString(c.entries[n].root.append(b), c.entries[n].name)
	}
	return b
}

func decodeCatalogue(b []byte) (map[uint32]catalogueEntry, error) {
	entries := map[uint32]catalogueEntry{}
	d := decoder{b: b}
	for len(d.b) > 0 {
		n := d.u32()
		e := catalogueEntry{root: d.twins()}
		e.name = string(d.bytes(int(d.u16())))
		entries[n] = e
	}
	if d.short {
		return nil, damaged("catalogue")
	}
	return entries, nil
}

func (p *Pool) nextGeneration() uint64 {
	p.commitMu.Lock()
	defer p.commitMu.Unlock()
	return p.catalogue.super.generation + 1
}

// publish makes a change of the catalogue, and everything w has written, durable as one step. change may write roots with w and
// note them; an error of it, or block.ErrNoSpace, means that nothing has happened. After any other error it may have, or may not.
func (p *Pool) publish(w *pageWriter, change func(c *catalogueState) error) error {
	p.commitMu.Lock()
	defer p.commitMu.Unlock()
	if err := p.Failed(); err != nil {
		return err
	}
	next := catalogueState{super: p.catalogue.super, entries: maps.Clone(p.catalogue.entries)} // with what could not be read
	if next.entries == nil {
		next.entries = map[uint32]catalogueEntry{}
	}
	next.super.generation++
	w.generation = next.super.generation
	if err := change(&next); err != nil {
		return err
	}
	next.super.catalogue = twins{}
	if len(next.entries) > 0 {
		var err error
		if next.super.catalogue, next.pages, err = w.putTwins(object{kind: kindCatalogue}, next.encode()); err != nil {
			return err
		}
	}
	if err := w.flush(); err != nil {
		return err
	}
	if err := writeSuperblock(p.dev, next.super); err != nil {
		return err
	}
	w.s.release(w.spare)
	w.s.release(p.catalogue.pages)
	p.addUnrecorded(-p.catalogue.unread)
	p.catalogue = next
	return nil
}

// publishAlone is publish for what needs no pages but the roots it writes. Errors but block.ErrNoSpace end the pool.
func (p *Pool) publishAlone(change func(c *catalogueState, w *pageWriter) error) error {
	w := p.pages.newWriter(p.nextGeneration())
	err := p.publish(w, func(c *catalogueState) error { return change(c, w) })
	if errors.Is(err, block.ErrNoSpace) {
		w.abandon()
		return err
	}
	if err != nil {
		return p.fail("commit of metadata", err)
	}
	return nil
}

// rootDemand is what a volume counts for in pageStore.demand besides its leaves: both copies of a root of one page. Directories and longer
// roots are within the room that is kept free.
const rootDemand = 2

// Create makes a volume, durable before Create returns, and opens it. Errors: ErrExists, block.ErrNoSpace, block.ErrFailed.
func (p *Pool) Create(id string, g block.Geometry) (*Volume, error) {
	if err := g.Validate(); err != nil {
		return nil, fmt.Errorf("volume %s: %w", id, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.mayCreate(id); err != nil {
		return nil, err
	}
	v := newVolume(p, 0, id, g)
	if err := p.addVolume(v); err != nil {
		return nil, err
	}
	return v, nil
}

// mayCreate is called with mu held.
func (p *Pool) mayCreate(id string) error {
	if id == "" || len(id) > maxNameBytes {
		return fmt.Errorf("volume name of %d bytes: use 1 to %d", len(id), maxNameBytes)
	}
	if err := p.usable(); err != nil {
		return err
	}
	if p.volumes[id] != nil || p.broken[id] != nil {
		return fmt.Errorf("volume %s: %w", id, ErrExists)
	}
	return nil
}

// addVolume gives a new volume its number and makes it durable. It is called with mu held.
func (p *Pool) addVolume(v *Volume) error {
	if p.volatile {
		p.commitMu.Lock()
		v.number = p.catalogue.super.nextVolume
		p.catalogue.super.nextVolume++ // numbers are never used again
		p.commitMu.Unlock()
	} else {
		if err := p.pages.room(rootDemand + catalogueReserve); err != nil {
			return fmt.Errorf("volume %s: %w", v.id, err)
		}
		record := v.capture().record
		err := p.publishAlone(func(c *catalogueState, w *pageWriter) (err error) {
			v.number = c.super.nextVolume
			c.super.nextVolume++
			v.onMedium.root, v.onMedium.rootPages, err = w.putTwins(object{kind: kindVolume, volume: v.number}, record.encode())
			c.entries[v.number] = catalogueEntry{v.id, v.onMedium.root}
			return err
		})
		if err != nil {
			return fmt.Errorf("volume %s: %w", v.id, err)
		}
		p.pages.demand.Add(rootDemand)
	}
	p.volumes[v.id] = v
	p.open[v.id] = true
	return nil
}

// Open opens a volume as of its last checkpoint. Errors: ErrNotFound, ErrInUse, *block.CorruptError, block.ErrFailed.
func (p *Pool) Open(id string) (*Volume, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.usable(); err != nil {
		return nil, err
	}
	v := p.volumes[id]
	switch {
	case p.broken[id] != nil:
		return nil, fmt.Errorf("open volume %s: %w", id, p.broken[id])
	case v == nil:
		return nil, fmt.Errorf("open volume %s: %w", id, ErrNotFound)
	case p.open[id]:
		return nil, fmt.Errorf("volume %s: %w", id, ErrInUse)
	}
	p.open[id] = true
	return v, nil
}

// Volumes returns the names of all volumes, open or not, in ascending order.
func (p *Pool) Volumes() ([]string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, block.ErrClosed
	}
	ids := slices.Collect(maps.Keys(p.volumes))
	ids = slices.AppendSeq(ids, maps.Keys(p.broken))
	slices.Sort(ids)
	return ids, nil
}
