package blockstore

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"sanctuary/blockstore/block"
)

// load reads the maps of all volumes. Damage to what belongs to one volume is that volume's alone: without its root it cannot be
// opened; without a directory or a leaf, the chunks those spoke of are lost (Volume.Lost). A volume of a newer version keeps the pool from
// being opened: what it has could not be told from what is free. Nothing was written by then.
func (p *Pool) load() error {
	payload, pages, _, err := p.pages.getTwins(p.catalogue.super.catalogue, object{kind: kindCatalogue})
	if err != nil {
		return err
	}
	if p.catalogue.entries, err = decodeCatalogue(payload); err != nil {
		return err
	}
	p.catalogue.pages = pages
	if err := p.markPages(pages); err != nil {
		return err
	}
	byNumber := map[uint32]*Volume{}
	for _, number := range slices.Sorted(maps.Keys(p.catalogue.entries)) {
		v, err := p.loadVolume(number, byNumber)
		if corrupt := (*block.CorruptError)(nil); errors.As(err, &corrupt) {
			p.unreadRoot(number)
			if name := p.catalogue.entries[number].name; name != "" { // else its clones cannot be opened, and are rebuilt
				p.broken[name] = err
			}
			continue
		}
		if err != nil {
			return err
		}
		byNumber[number] = v
		if v.unread {
			p.addUnrecorded(1)
		}
		if v.deleted {
			p.buried[number] = v
		} else {
			p.volumes[v.id] = v
		}
		if v.origin.volume != 0 {
			p.addHold(hold{v.origin.volume, v.origin.epoch}, 1)
		}
	}
	if err := p.forgetUnheld(byNumber); err != nil {
		return err
	}
	return p.recordLosses(byNumber)
}

// forgetUnheld drops what was kept for clones that are gone: those two steps are not one.
func (p *Pool) forgetUnheld(volumes map[uint32]*Volume) error {
	var left leftovers
	for _, number := range slices.Backward(slices.Sorted(maps.Keys(volumes))) { // clones before their origins
		v := volumes[number]
		if _, there := p.catalogue.entries[number]; !there {
			continue // removed with its last clone
		}
		for _, s := range v.lineage.Load().snapshots {
			if s.hidden && !p.held(number, s.epoch) && !(s.before && v.inconsistent.Load()) {
				v.forget(s.epoch)
			}
		}
		if v.deleted && len(v.lineage.Load().snapshots) == 0 {
			delete(p.buried, number)
			if err := p.remove(v, &left); err != nil {
				return err
			}
			if err := p.dropHold(v, &left); err != nil {
				return err
			}
		} else if v.deleted {
			left.kept = append(left.kept, v)
		}
	}
	return p.finish(&left)
}

func (p *Pool) markPages(pages []uint32) error {
	for _, page := range pages {
		if !p.pages.mark(page) {
			return damaged(fmt.Sprintf("metadata page %d, which is in two places,", page))
		}
	}
	return nil
}

// loadVolume reads a volume as of its last checkpoint.
func (p *Pool) loadVolume(number uint32, others map[uint32]*Volume) (*Volume, error) {
	name, root := p.catalogue.entries[number].name, p.catalogue.entries[number].root
	payload, pages, both, err := p.pages.getTwins(root, object{kind: kindVolume, volume: number})
	if err != nil {
		return nil, err
	}
	r, err := decodeVolume(volumeName(name, number), payload)
	if err != nil {
		return nil, err
	}
	v, err := p.volumeOf(number, r, others)
	if err != nil {
		return nil, err
	}
	if v.dirty = !both; v.dirty { // the next checkpoint writes two again
		p.rotted++
	}
	v.onMedium = onMedium{root: root, rootPages: pages, directories: r.directories}
	if err := p.markPages(pages); err != nil {
		return nil, err
	}
	p.pages.demand.Add(rootDemand)
	if err := v.loadMap(); err != nil {
		return nil, err
	}
	return v, nil
}

// volumeOf makes a volume of its record, without its map. A clone needs its origin among the others.
func (p *Pool) volumeOf(number uint32, r volumeRecord, others map[uint32]*Volume) (*Volume, error) {
	v := newVolume(p, number, r.id, r.geometry)
	v.applied.Store(r.applied)
	v.durable.Store(r.applied)
	v.floor.Store(r.floor)
	v.inconsistent.Store(r.inconsistent)
	v.state.Store(&r.state)
	v.deleted = r.deleted
	v.reclaimDone = false // it is not remembered how far that was
	if r.originVolume != 0 {
		o := others[r.originVolume]
		if o == nil {
			return nil, fmt.Errorf("volume %s is a clone of volume %d, which is not there: %w", r.id, r.originVolume, &block.CorruptError{Where: "metadata"})
		}
		i := slices.IndexFunc(o.lineage.Load().snapshots, func(s snapshot) bool { return s.epoch == r.originEpoch })
		if i < 0 {
			return nil, fmt.Errorf("volume %s is a clone of a snapshot of volume %s that is not there: %w", r.id, o.id, &block.CorruptError{Where: "metadata"})
		}
		v.origin = origin{volume: r.originVolume, epoch: r.originEpoch, ground: o.stateOf(o.lineage.Load(), i).g}
	}
	v.setLineage(r.lineage)
	return v, nil
}

// loadMap reads directories and leaves, in the order in which they lie on the medium.
func (v *Volume) loadMap() error {
	p := v.pool
	leaves := leavesFor(v.m.chunks.Load())
	directories := (leaves + directoryLeaves - 1) / directoryLeaves
	v.onMedium.directories = grown(v.onMedium.directories, directories)
	v.onMedium.leaves = make([]pagePtr, leaves)
	place := *v.m.leaves.Load()
	for n, ptr := range v.onMedium.directories {
		if ptr.page == 0 {
			continue
		}
		payload, pages, err := p.pages.get(ptr, object{kindDirectory, v.number, uint64(n)})
		if corrupt := (*block.CorruptError)(nil); errors.As(err, &corrupt) {
			v.onMedium.directories[n] = pagePtr{}
			for i := n * directoryLeaves; i < min(leaves, (n+1)*directoryLeaves); i++ {
				v.lose(&place[i], uint32(i))
			}
			continue
		}
		if err == nil {
			err = p.markPages(pages)
		}
		if err != nil {
			return err
		}
		d := decoder{b: payload}
		for i := n * directoryLeaves; i < min(leaves, (n+1)*directoryLeaves) && len(d.b) >= ptrBytes; i++ {
			v.onMedium.leaves[i] = d.ptr()
		}
	}
	if err := v.loadLeaves(); err != nil {
		return err
	}
	return v.takeStock()
}

// lose puts a lost leaf in the place of one that could not be read.
func (v *Volume) lose(place *atomic.Pointer[leaf], number uint32) {
	first := int64(number) * leafChunks * block.BlocksPerChunk
	blocks := (v.capacityNow() + block.SectorsPerBlock - 1) / block.SectorsPerBlock
	l := lostLeaf(v.applied.Load(), int(min(int64(blocks)-first, leafChunks*block.BlocksPerChunk)))
	place.Store(l)
	v.resize(l)
	v.markDirty(l, number*leafChunks)
	v.unread = true
}

const (
	loadWorkers   = 4
	loadReadBytes = 1 << 20
	loadGapPages  = 16 // pages nobody wants that are read along rather than sought over
)

// leafAt is a leaf to be read.
type leafAt struct {
	number uint32
	ptr    pagePtr
}

// loadLeaves reads all leaves the directories point at.
func (v *Volume) loadLeaves() error {
	var items []leafAt
	for n, ptr := range v.onMedium.leaves {
		if ptr.page != 0 {
			items = append(items, leafAt{uint32(n), ptr})
		}
	}
	slices.SortFunc(items, func(a, b leafAt) int { return cmp.Compare(a.ptr.page, b.ptr.page) })
	p := v.pool
	place := *v.m.leaves.Load()
	var mu sync.Mutex // guards what the workers have in common
	var failed error
	runs := make(chan []leafAt)
	var workers sync.WaitGroup
	for range min(loadWorkers, 1+len(items)/directoryLeaves) {
		workers.Go(func() {
			var b []byte // as long as the longest run so far, which is at most loadReadBytes
			for run := range runs {
				first := run[0].ptr.page
				n := int(run[len(run)-1].ptr.page-first+1) * pageBytes
				b = slices.Grow(b[:0], n)[:n]
				err := p.dev.ReadAt(b, p.layout.pageOffset(first))
				for i := range run {
					if err != nil {
						break
					}
					it := &run[i]
					image := b[int(it.ptr.page-first)*pageBytes:][:pageBytes]
					err = v.loadLeaf(it.number, it.ptr, image, &mu, &place[it.number])
				}
				if err != nil {
					mu.Lock()
					failed = errors.Join(failed, err)
					mu.Unlock()
				}
			}
		})
	}
	for len(items) > 0 {
		n := p.layout.leafRun(items)
		if items[0].ptr.page > p.layout.pages {
			mu.Lock()
			v.onMedium.leaves[items[0].number] = pagePtr{}
			v.lose(&place[items[0].number], items[0].number)
			mu.Unlock()
		} else {
			runs <- items[:n]
		}
		items = items[n:]
	}
	close(runs)
	workers.Wait()
	return failed
}

// leafRun returns how many of the leaves, which are in the order of their pages, are best read together.
func (l *layout) leafRun(items []leafAt) int {
	n := 1
	for n < len(items) && items[n].ptr.page-items[n-1].ptr.page <= loadGapPages &&
		items[n].ptr.page <= l.pages &&
		l.pageOffset(items[n].ptr.page)-l.pageOffset(items[0].ptr.page) == int64(items[n].ptr.page-items[0].ptr.page)*pageBytes &&
		int64(items[n].ptr.page-items[0].ptr.page+1)*pageBytes <= loadReadBytes {
		n++
	}
	return n
}

// readLeaf makes a leaf of its first page, which has been read, and of those that follow. pages are all it takes.
func (s *pageStore) readLeaf(o object, ptr pagePtr, image []byte) (l *leaf, pages []uint32, err error) {
	payload, next, err := checkPage(image, ptr, o)
	if err != nil {
		return nil, nil, &pageError{ptr.page, err}
	}
	pages = []uint32{ptr.page}
	if next.page != 0 {
		rest, more, err := s.get(next, o)
		if err != nil {
			return nil, nil, err
		}
		payload, pages = append(slices.Clone(payload), rest...), append(pages, more...)
	}
	l, ok := decodeLeaf(payload)
	if !ok {
		return nil, nil, &pageError{ptr.page, damaged(o.String())}
	}
	return l, pages, nil
}

// loadLeaf takes in one leaf, whose first page has been read.
func (v *Volume) loadLeaf(number uint32, ptr pagePtr, image []byte, mu *sync.Mutex, place *atomic.Pointer[leaf]) error {
	l, pages, err := v.pool.pages.readLeaf(object{kindLeaf, v.number, uint64(number)}, ptr, image)
	mu.Lock()
	defer mu.Unlock()
	if corrupt := (*block.CorruptError)(nil); errors.As(err, &corrupt) {
		v.onMedium.leaves[number] = pagePtr{}
		v.lose(place, number)
		return nil
	}
	if err != nil {
		return err
	}
	if err := v.pool.markPages(pages); err != nil {
		return err
	}
	if len(pages) > 1 {
		if v.onMedium.leafPages == nil {
			v.onMedium.leafPages = map[uint32][]uint32{}
		}
		v.onMedium.leafPages[number] = pages
	}
	place.Store(l)
	l.pages = int32(len(pages))
	v.pool.pages.demand.Add(int64(len(pages)))
	return nil
}

// takeStock marks the slots the map uses, and counts.
func (v *Volume) takeStock() error {
	p := v.pool
	leaves := *v.m.leaves.Load()
	g := v.ground.Load()
	shared := len(v.lineage.Load().snapshots) > 0 || v.origin.ground != nil || len(v.lineage.Load().live) != 1
	var list []layer
	allocated, stored := int64(0), int64(0)
	for n := range leaves {
		l := leaves[n].Load()
		if l == nil {
			continue
		}
		for at := range uint32(leafChunks) {
			if !l.hasMore(at) {
				if l.slot[at] == noSlot {
					continue
				}
				if !p.slots.mark(l.slot[at]) {
					return p.badSlot(v, l.slot[at])
				}
				allocated++
				if !shared {
					stored += int64(bits.OnesCount64(l.valid[at]))
				}
				continue
			}
			list = l.layers(at, list[:0])
			for _, slot := range slotsOf(list, nil) {
				if !p.slots.mark(slot) {
					return p.badSlot(v, slot)
				}
				allocated++
			}
			if !shared {
				stored += int64(bits.OnesCount64(g.storedBlocks(uint32(n)*leafChunks+at, ^uint64(0))))
			}
		}
	}
	if shared && !v.deleted {
		stored = v.countStored()
	}
	v.allocatedChunks.Store(allocated)
	v.stored.Store(stored)
	return nil
}

// countStored counts the blocks of the live state.
func (v *Volume) countStored() (stored int64) {
	g := v.ground.Load()
	for chunk, chunks := uint32(0), v.m.chunks.Load(); chunk < chunks; {
		if !g.maps(chunk) {
			chunk = (chunk/leafChunks + 1) * leafChunks
			continue
		}
		stored += int64(bits.OnesCount64(g.storedBlocks(chunk, ^uint64(0))))
		chunk++
	}
	return stored
}

func (p *Pool) badSlot(v *Volume, slot uint32) error {
	return damaged(fmt.Sprintf("map of volume %s, whose slot %d of %d is beyond the end or in two places,", v.id, slot, p.layout.slots))
}

// Lost returns what of the live volume is not known, because a page of the map was damaged: reading it is a *block.CorruptError.
// Writing or zeroing whole blocks there, or repairing them, makes them good.
func (v *Volume) Lost() (lost []block.Range) {
	chunks := v.m.chunks.Load()
	for chunk := uint32(0); chunk < chunks; {
		if !v.ground.Load().mayLack(chunk) {
			chunk = (chunk/leafChunks + 1) * leafChunks
			continue
		}
		var slots slotMap
		s := v.live()
		g := s.lock(chunk)
		stored := g.resolve(chunk, ^uint64(0), &slots)
		g.runlock(chunk)
		for ; stored != 0; stored &= stored - 1 {
			n := bits.TrailingZeros64(stored)
			r := blockRange(chunk, n, 1)
			if slots[n] != lostSlot || r.Check(s.capacity) != nil {
				continue
			}
			if last := len(lost) - 1; last >= 0 && lost[last].End() == r.Start {
				lost[last].Count += r.Count
			} else {
				lost = append(lost, r)
			}
		}
		chunk++
	}
	return lost
}
