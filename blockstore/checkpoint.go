package blockstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"sanctuary/blockstore/block"
)

// onMedium is where the last durable checkpoint of a volume lies.
type onMedium struct {
	root      twins
	rootPages []uint32
	// Per directory and per leaf; shorter than the map if the volume has grown since.
	directories []pagePtr
	leaves      []pagePtr
	leafPages   map[uint32][]uint32 // of leaves that take more than one page
}

// directoryLeaves is how many leaves one directory points at, in one page.
const directoryLeaves = 256

// capture is what one checkpoint writes: the volume between two entries.
type capture struct {
	record    volumeRecord
	leaves    []capturedLeaf
	freed     []uint32
	undurable bool
}

type capturedLeaf struct {
	number  uint32
	payload []byte
}

// Checkpoint makes everything applied so far durable, and returns the index up to which that is. Apply goes on meanwhile,
// except while the leaves that have changed are copied in memory (about 1 µs each); what it applies meanwhile may or may not
// be covered. ctx can keep a checkpoint from beginning, not end it half way.
//
// block.ErrNoSpace (no room for metadata) changes nothing and may be tried again; block.ErrFailed is final.
func (v *Volume) Checkpoint(ctx context.Context) (applied uint64, err error) {
	v.checkpointMu.Lock()
	defer v.checkpointMu.Unlock()
	if err := ctx.Err(); err != nil {
		return v.Durable(), err
	}
	v.applyMu.Lock()
	if err := v.usable(); err != nil {
		v.applyMu.Unlock()
		return v.Durable(), err
	}
	if v.pool.volatile || v.clean() {
		v.applyMu.Unlock()
		return v.Durable(), nil
	}
	c := v.capture()
	v.applyMu.Unlock()

	if err := v.commit(c); err != nil {
		return v.Durable(), err
	}
	return c.record.applied, nil
}

// clean says that the durable checkpoint is the present state. It is called with applyMu held. A volatile volume has no
// checkpoints.
func (v *Volume) clean() bool {
	return !v.pool.volatile && !v.dirty && len(v.dirtyLeaves) == 0 && len(v.freed) == 0 && !v.undurable && v.applied.Load() == v.durable.Load()
}

// capture copies what has changed since the last capture and counts it as written. It is called with checkpointMu and
// applyMu held, so nobody else changes the map.
func (v *Volume) capture() *capture {
	c := &capture{
		record: volumeRecord{
			id: v.id, geometry: v.Geometry(), applied: v.applied.Load(), floor: v.floor.Load(), inconsistent: v.inconsistent.Load(),
			deleted: v.deleted, originVolume: v.origin.volume, originEpoch: v.origin.epoch, lineage: v.lineage.Load(), state: *v.state.Load(),
		},
		freed: v.freed, undurable: v.undurable,
	}
	v.freed, v.undurable, v.committing = nil, false, v.undurable
	slices.Sort(v.dirtyLeaves) // neighbours on the medium, too
	for _, number := range v.dirtyLeaves {
		l, _ := v.m.find(number * leafChunks)
		c.leaves = append(c.leaves, capturedLeaf{number, l.encode(make([]byte, 0, l.size()))})
		l.dirty = false
	}
	v.dirtyLeaves, v.dirty = v.dirtyLeaves[:0], false
	return c
}

// release takes a capture back that could not be written.
func (v *Volume) release(c *capture) {
	for i := range c.leaves {
		chunk := c.leaves[i].number * leafChunks
		l, _ := v.m.find(chunk)
		v.markDirty(l, chunk)
	}
	v.freed = append(v.freed, c.freed...)
	v.dirty = true
	v.undurable, v.committing = v.undurable || c.undurable, false
}

// commit makes a capture durable. The order of its steps is argued in the package comment. It is called with checkpointMu
// held and without applyMu.
func (v *Volume) commit(c *capture) error {
	err := v.write(c)
	if err != nil {
		if errors.Is(err, block.ErrNoSpace) {
			v.applyMu.Lock()
			v.release(c)
			v.applyMu.Unlock()
		}
		return fmt.Errorf("checkpoint of volume %s: %w", v.id, err)
	}
	v.durable.Store(c.record.applied)
	v.applyMu.Lock()
	v.committing = false
	v.applyMu.Unlock()
	return v.pool.giveBack(c.freed, true)
}

// write is the part of commit that decides whether it has happened.
func (v *Volume) write(c *capture) error {
	p := v.pool
	if p.volatile {
		return nil
	}
	if err := p.Failed(); err != nil {
		return err
	}
	w := p.pages.newWriter(p.nextGeneration())
	next, old, err := v.putLeaves(w, c)
	if err == nil {
		err = w.flush()
	}
	if err == nil {
		err = p.sums.flush()
	}
	if err == nil {
		// Most of what is unsynced, before anybody else has to wait for it.
		err = p.dev.Sync()
	}
	if err == nil {
		c.record.directories = next.directories
		err = p.publish(w, func(cat *catalogueState) (err error) {
			next.root, next.rootPages, err = w.putTwins(object{kind: kindVolume, volume: v.number}, c.record.encode())
			cat.entries[v.number] = catalogueEntry{c.record.id, next.root}
			return err
		})
	}
	if err != nil {
		if !errors.Is(err, block.ErrNoSpace) {
			return p.fail("checkpoint", err) // the pages stay taken: the superblock may be on the medium
		}
		w.abandon()
		return err
	}
	p.pages.release(append(old, v.onMedium.rootPages...))
	v.onMedium = next
	v.recorded()
	return nil
}

// putLeaves writes leaves and directories. It returns where everything is afterwards, without the root, and the pages that are
// free once that is durable.
func (v *Volume) putLeaves(w *pageWriter, c *capture) (next onMedium, old []uint32, err error) {
	was := &v.onMedium
	chunks := chunksFor(c.record.geometry.Capacity)
	leaves := leavesFor(chunks)
	next = onMedium{
		directories: grown(was.directories, (leaves+directoryLeaves-1)/directoryLeaves), leaves: grown(was.leaves, leaves),
	}
	total := 0
	touched := map[uint32]struct{}{}
	for i := range c.leaves {
		total += pagesFor(len(c.leaves[i].payload))
		touched[c.leaves[i].number/directoryLeaves] = struct{}{}
	}
	// Everything that is needed, with the root and the catalogue, so that there is room or nothing is begun.
	if err := w.reserve(total + len(touched) + w.s.rootPages(c)); err != nil {
		return next, nil, err
	}
	long := map[uint32][]uint32{}
	for i := range c.leaves {
		l := &c.leaves[i]
		ptr, pages, err := w.put(object{kindLeaf, v.number, uint64(l.number)}, l.payload)
		if err != nil {
			return next, nil, err
		}
		old = append(old, v.pagesOfLeaf(l.number)...)
		next.leaves[l.number] = ptr
		long[l.number] = pages
	}
	numbers := make([]uint32, 0, len(touched))
	for n := range touched {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	for _, n := range numbers {
		part := next.leaves[n*directoryLeaves : min(len(next.leaves), int(n+1)*directoryLeaves)]
		payload := make([]byte, 0, len(part)*ptrBytes)
		for _, ptr := range part {
			payload = ptr.append(payload)
		}
		ptr, _, err := w.put(object{kindDirectory, v.number, uint64(n)}, payload)
		if err != nil {
			return next, nil, err
		}
		if p := next.directories[n]; p.page != 0 {
			old = append(old, p.page)
		}
		next.directories[n] = ptr
	}
	next.leafPages = maps.Clone(was.leafPages) // was stays as it is, if this comes to nothing
	for n, pages := range long {
		if len(pages) > 1 {
			if next.leafPages == nil {
				next.leafPages = map[uint32][]uint32{}
			}
			next.leafPages[n] = pages
		} else {
			delete(next.leafPages, n)
		}
	}
	return next, old, nil
}

// rootPages is how many pages a volume's root and the catalogue may take, at most.
func (s *pageStore) rootPages(c *capture) int {
	directories := (leavesFor(chunksFor(c.record.geometry.Capacity)) + directoryLeaves - 1) / directoryLeaves
	return 2*pagesFor(len(c.record.encode())+directories*ptrBytes) + catalogueReserve
}

// catalogueReserve is what is set aside for the catalogue when leaves are written; if it has grown beyond that, what is
// missing is taken when it is written.
const catalogueReserve = 2

func grown(p []pagePtr, n int) []pagePtr {
	out := make([]pagePtr, n)
	copy(out, p)
	return out
}

// pagesOfLeaf returns the pages of a leaf's durable version.
func (v *Volume) pagesOfLeaf(number uint32) []uint32 {
	if pages := v.onMedium.leafPages[number]; len(pages) > 0 {
		return pages
	}
	if int(number) < len(v.onMedium.leaves) {
		if ptr := v.onMedium.leaves[number]; ptr.page != 0 {
			return []uint32{ptr.page}
		}
	}
	return nil
}

// Close waits for calls under way, makes a last checkpoint unless the pool has failed, and returns its error. Everything
// returns block.ErrClosed afterwards; closing again does nothing. Pool.Open opens the volume again.
func (v *Volume) Close() error {
	closed, err := v.end()
	if closed {
		v.pool.closedVolume(v) // with checkpointMu let go: Clone takes that with the pool's mutex held
	}
	return err
}

// end makes the last checkpoint, and says whether the volume was open.
func (v *Volume) end() (closed bool, err error) {
	v.checkpointMu.Lock()
	defer v.checkpointMu.Unlock()
	v.applyMu.Lock()
	if v.closed.Swap(true) {
		v.applyMu.Unlock()
		return false, nil
	}
	var c *capture
	if v.pool.Failed() == nil && !v.pool.volatile && !v.clean() {
		c = v.capture()
	}
	v.applyMu.Unlock()
	for i := range v.m.stripes { // readers that saw the volume open have finished
		v.m.stripes[i].wait()
	}
	if c != nil {
		err = v.commit(c)
	}
	return true, err
}

// wait returns when everyone who has the lock now has released it.
func (s *stripe) wait() {
	s.Lock()
	defer s.Unlock()
}
