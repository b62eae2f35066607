package blockstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"

	"sanctuary/blockstore/block"
)

// The map is in memory while the pool is open, and so are the checksums in use: that their pages rot on the medium would show at the next
// start, when it has become a loss. CheckMap reads them where they lie. What memory holds is whole, so what is damaged is written anew: pages
// of the map to other places, as by any checkpoint; checksums and the medium's header over themselves.

// MapCheck is what CheckMap has done.
type MapCheck struct {
	Next    uint32 // the chunk to go on at; at or beyond the volume's end: that was all
	Bytes   int64  // read from the medium
	Damaged int    // pages that did not hold what they should
	cutOff  int    // of those, superblocks whose writing may have been cut off
}

// mapCheckChunks is how much of the map one call looks at: what one directory leads to, 8 GiB of the volume.
const mapCheckChunks = leafChunks * directoryLeaves

// CheckMap verifies, on the medium, what the last checkpoint has left of the map from this chunk on, and the cached checksums of those
// chunks. Together with chunk 0 it looks at what there is one of: the volume's root, the pool's catalogue, superblock and header. It returns
// when what was damaged is durable anew. Of a clone it looks in the same way at the volumes below it that are kept for clones only, which nobody has open. A checkpoint waits for it meanwhile, 30 ms of reading at most on a disk that is not busy.
//
// block.ErrNoSpace: there is no room for the pages yet, and the next checkpoint tries again. block.ErrClosed, block.ErrFailed.
func (v *Volume) CheckMap(chunk uint32) (MapCheck, error) {
	c := MapCheck{Next: (chunk/mapCheckChunks + 1) * mapCheckChunks}
	if v.pool.volatile {
		c.Next = ^uint32(0)
		return c, nil
	}
	err := v.checkMap(chunk, &c, false)
	for _, o := range v.pool.buriedBelow(v) {
		if err != nil {
			break
		}
		if err = o.checkMap(chunk, &c, true); errors.Is(err, block.ErrClosed) { // its last clone has been deleted meanwhile, and it with that
			err = nil
		}
	}
	return c, err
}

// buriedBelow returns the deleted volumes that a clone is made of.
func (p *Pool) buriedBelow(v *Volume) (below []*Volume) {
	if v.origin.volume == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for o := p.buried[v.origin.volume]; o != nil; o = p.buried[o.origin.volume] {
		below = append(below, o)
	}
	return below
}

// checkMap looks at one volume, and makes what was damaged durable anew. Of one that is buried the pool and the checksums are its clone's to look at.
func (v *Volume) checkMap(chunk uint32, c *MapCheck, buried bool) error {
	before := c.Damaged
	err := v.checkPages(chunk, c, buried)
	if err == nil && c.Damaged > before {
		_, err = v.Checkpoint(context.Background())
	}
	return err
}

func (v *Volume) checkPages(chunk uint32, c *MapCheck, buried bool) error {
	v.checkpointMu.Lock()
	defer v.checkpointMu.Unlock()
	v.applyMu.Lock()
	err := v.usable()
	v.applyMu.Unlock()
	if err != nil {
		return err
	}
	if chunk == 0 {
		err = v.checkRoots(c, buried)
	}
	if err == nil {
		err = v.checkLeaves(int(chunk/mapCheckChunks), c)
	}
	if err == nil && !buried {
		err = v.checkSums(chunk/mapCheckChunks*mapCheckChunks, c)
	}
	if err != nil {
		return v.pool.fail("read metadata from the medium", err)
	}
	return nil
}

// intact reads a chain again.
func (p *Pool) intact(ptr pagePtr, o object, c *MapCheck) (bool, error) {
	if ptr.page == 0 {
		return true, nil
	}
	_, pages, err := p.pages.get(ptr, o)
	c.Bytes += int64(max(1, len(pages))) * pageBytes
	if corrupt := (*block.CorruptError)(nil); errors.As(err, &corrupt) {
		c.Damaged++
		return false, nil
	}
	return err == nil, err
}

// renew has the next checkpoint write a leaf, or nothing but the roots if there is none.
func (v *Volume) renew(number int) {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	v.dirty = true
	if leaves := *v.m.leaves.Load(); number >= 0 && number < len(leaves) {
		if l := leaves[number].Load(); l != nil {
			v.markDirty(l, uint32(number)*leafChunks)
		}
	}
}

// checkRoots looks at what a checkpoint writes in any case.
func (v *Volume) checkRoots(c *MapCheck, buried bool) error {
	before := c.Damaged
	for _, ptr := range v.onMedium.root {
		if _, err := v.pool.intact(ptr, object{kind: kindVolume, volume: v.number}, c); err != nil {
			return err
		}
	}
	var err error
	if !buried {
		err = v.pool.checkRoots(c)
	}
	if c.Damaged > before {
		v.renew(-1)
	}
	return err
}

// checkRoots looks at the catalogue and at both copies of the newest superblock: the next publish writes them anew, in other places. The
// header has one place.
func (p *Pool) checkRoots(c *MapCheck) error {
	p.commitMu.Lock()
	defer p.commitMu.Unlock()
	for _, ptr := range p.catalogue.super.catalogue {
		if _, err := p.intact(ptr, object{kind: kindCatalogue}, c); err != nil {
			return err
		}
	}
	b := make([]byte, pageBytes)
	for _, off := range superblockOffsets[p.catalogue.super.generation%2] {
		if err := p.dev.ReadAt(b, off); err != nil {
			return err
		}
		c.Bytes += pageBytes
		s, err := decodeSuperblock(b)
		if err == nil && s.generation == p.catalogue.super.generation {
			continue
		}
		c.Damaged++
		if err == nil && s.uuid == p.catalogue.super.uuid || err != nil && (torn(b) || bytes.Count(b, []byte{0}) == len(b)) {
			c.cutOff++
		}
	}
	header, want := b[:block.SectorSize], encodeMediumHeader(p.catalogue.super.uuid)
	if err := p.dev.ReadAt(header, 0); err != nil {
		return err
	}
	if bytes.Equal(header, want) {
		return nil
	}
	c.Damaged++
	if err := p.dev.WriteAt(want, 0); err != nil {
		return err
	}
	return p.dev.Sync()
}

// checkLeaves looks at one directory and its leaves.
func (v *Volume) checkLeaves(n int, c *MapCheck) error {
	if n >= len(v.onMedium.directories) {
		return nil
	}
	whole, err := v.pool.intact(v.onMedium.directories[n], object{kindDirectory, v.number, uint64(n)}, c)
	if err != nil {
		return err
	}
	for i := n * directoryLeaves; i < min(len(v.onMedium.leaves), (n+1)*directoryLeaves); i++ {
		ptr := v.onMedium.leaves[i]
		if ptr.page == 0 {
			continue
		}
		ok, err := v.pool.intact(ptr, object{kindLeaf, v.number, uint64(i)}, c)
		if err != nil {
			return err
		}
		if !ok || !whole { // one leaf takes its directory along
			v.renew(i)
			whole = true
		}
	}
	return nil
}

// checkSums looks at the cached checksums of all slots that these chunks have, in this map and in those below it.
func (v *Volume) checkSums(first uint32, c *MapCheck) error {
	pages := map[int64]struct{}{}
	var room []layer
	for g := v.ground.Load(); g != nil; g = g.under {
		for chunk := first; chunk < min(first+mapCheckChunks, g.m.chunks.Load()); chunk++ {
			l, at := g.m.find(chunk)
			if l == nil {
				chunk |= leafChunks - 1
				continue
			}
			lock := g.m.lockOf(chunk)
			lock.RLock()
			room = l.layers(at, room[:0])
			lock.RUnlock()
			for _, y := range room {
				if y.slot != noSlot && y.slot != lostSlot {
					page, _ := v.pool.sums.cached.place(y.slot)
					pages[page] = struct{}{}
				}
			}
		}
	}
	before := c.Damaged
	for page := range pages {
		if err := v.pool.sums.cached.check(page, c); err != nil {
			return err
		}
	}
	if c.Damaged > before {
		v.renew(-1)
	}
	return nil
}

// check compares a page that is cached, and has not changed since it was read or written, with what is on the medium. If that is something
// else the next flush writes it. A page that is not cached will be read when a block of it is.
func (s *cachedSums) check(page int64, c *MapCheck) error {
	shard := &s.shards[page%sumShards]
	shard.mu.Lock()
	f := shard.frames[page]
	if f != nil {
		f.pins.Add(1)
	}
	shard.mu.Unlock()
	if f == nil {
		return nil
	}
	defer f.pins.Add(-1)
	f.writing.Lock() // nobody writes the page meanwhile
	defer f.writing.Unlock()
	f.mu.RLock()
	dirty := f.dirty
	f.mu.RUnlock()
	if dirty {
		return nil
	}
	buf := sumBuffers.Get().(*[pageBytes]byte)
	defer sumBuffers.Put(buf)
	if err := s.dev.ReadAt(buf[:], page*pageBytes); err != nil {
		return err
	}
	c.Bytes += pageBytes
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dirty {
		return nil // it has been set since, and will be written
	}
	for i, sum := range f.sums {
		if binary.LittleEndian.Uint32(buf[4*i:]) != sum {
			f.dirty = true
			c.Damaged++
			return nil
		}
	}
	return nil
}
