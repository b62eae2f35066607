package blockstore

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
)

// sums keep the checksum of every block of every slot: all in memory, or on the medium with a cache. Those of one slot are guarded by
// the lock of the chunk that has the slot, so get and set of the same slot never run at once, except for the whole-page accesses of
// flush.
//
// Checksums are overwritten in place, and may reach the medium before or after the data they belong to, torn at 512 bytes. A
// crash heals as for the data itself: both were written by an entry that is replayed. What is not rewritten by the replay
// has the same value in the old and the new version of a torn page.
//
// It is not an interface, because the buffers of a read would then be made on the heap.
type sums struct {
	resident *residentSums
	cached   *cachedSums // if resident is nil
}

// get copies the checksums of the blocks from first on to dst.
func (s *sums) get(slot uint32, first int, dst []uint32) error {
	if s.resident != nil {
		s.resident.get(slot, first, dst)
		return nil
	}
	return s.cached.get(slot, first, dst)
}

// set replaces those of n blocks; values has one for each, or one for all.
func (s *sums) set(slot uint32, first, n int, values []uint32) error {
	if s.resident != nil {
		s.resident.set(slot, first, n, values)
		return nil
	}
	return s.cached.set(slot, first, n, values)
}

// flush writes to the medium, unsynced, all that was set before it was called.
func (s *sums) flush() error {
	if s.resident != nil {
		return nil
	}
	return s.cached.flush()
}

// prepare returns an error unless setting checksums of a slot will find space.
func (s *sums) prepare(slot uint32) error {
	if s.resident != nil {
		s.resident.prepare(slot)
		return nil
	}
	return s.cached.prepare(slot)
}

// residentSums keep all checksums in memory, for media that are memory themselves: 1 MiB for each GiB that is in use.
type residentSums struct {
	slabs []atomic.Pointer[sumSlab]
}

const slabSlots = 1024

type sumSlab [slabSlots][block.BlocksPerChunk]uint32

func newResidentSums(slots uint32) *residentSums {
	return &residentSums{slabs: make([]atomic.Pointer[sumSlab], slots/slabSlots+1)}
}

func (s *residentSums) get(slot uint32, first int, dst []uint32) {
	copy(dst, s.slabs[slot/slabSlots].Load()[slot%slabSlots][first:])
}

func (s *residentSums) set(slot uint32, first, n int, values []uint32) {
	spread(s.slabs[slot/slabSlots].Load()[slot%slabSlots][first:first+n], values)
}

func (s *residentSums) prepare(slot uint32) {
	if at := &s.slabs[slot/slabSlots]; at.Load() == nil {
		at.CompareAndSwap(nil, new(sumSlab))
	}
}

// spread copies sums, or repeats the only one.
func spread(dst, sums []uint32) {
	if copy(dst, sums) < len(dst) {
		for i := range dst {
			dst[i] = sums[0]
		}
	}
}

// cachedSums keep the checksums on the medium, and those in use in a cache of pages: each has 16 slots', so the default of
// 64 MiB covers 64 GiB of data.
type cachedSums struct {
	dev    vfs.Dev
	layout *layout
	shards [sumShards]sumShard

	preparedMu sync.Mutex
	prepared   map[int64]struct{} // 256 KiB of the checksums' area the file system has been asked for
}

const (
	sumShards         = 64
	sumsPerPage       = pageBytes / 4
	sumCacheBytes     = 64 << 20
	sumFramesPerShard = sumCacheBytes / pageBytes / sumShards
)

type sumShard struct {
	mu     sync.Mutex // guards what follows; held across the I/O of loading and of writing back a frame
	frames map[int64]*sumFrame
	ring   []*sumFrame // for choosing whom to drop
	hand   int
}

type sumFrame struct {
	page int64        // offset on the medium, in pages
	pins atomic.Int32 // who works with it; not dropped meanwhile
	used atomic.Bool  // since the hand was here

	writing sync.Mutex // held across writing back, so that an older version never overtakes a newer one; taken before mu

	mu    sync.RWMutex // guards what follows; never held across I/O
	dirty bool
	sums  [sumsPerPage]uint32
}

func newCachedSums(dev vfs.Dev, l *layout) *cachedSums {
	s := &cachedSums{dev: dev, layout: l, prepared: map[int64]struct{}{}}
	for i := range s.shards {
		s.shards[i].frames = map[int64]*sumFrame{}
	}
	return s
}

// place returns which page of the medium has a slot's checksums, and where in it.
func (s *cachedSums) place(slot uint32) (page int64, at int) {
	off := s.layout.sumsOffset(slot)
	return off / pageBytes, int(off % pageBytes / 4)
}

func (s *cachedSums) get(slot uint32, first int, dst []uint32) error {
	page, at := s.place(slot)
	f, err := s.pin(page)
	if err != nil {
		return err
	}
	f.mu.RLock()
	copy(dst, f.sums[at+first:])
	f.mu.RUnlock()
	f.pins.Add(-1)
	return nil
}

func (s *cachedSums) set(slot uint32, first, n int, sums []uint32) error {
	page, at := s.place(slot)
	f, err := s.pin(page)
	if err != nil {
		return err
	}
	f.mu.Lock()
	spread(f.sums[at+first:at+first+n], sums)
	f.dirty = true
	f.mu.Unlock()
	f.pins.Add(-1)
	return nil
}

// pin returns the frame of a page, which stays until its pins have gone back.
func (s *cachedSums) pin(page int64) (*sumFrame, error) {
	shard := &s.shards[page%sumShards]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if f := shard.frames[page]; f != nil {
		f.pins.Add(1)
		f.used.Store(true)
		return f, nil
	}
	f, err := shard.vacate(s)
	if err != nil {
		return nil, err
	}
	buf := sumBuffers.Get().(*[pageBytes]byte)
	defer sumBuffers.Put(buf)
	if err := s.dev.ReadAt(buf[:], page*pageBytes); err != nil {
		shard.ring = append(shard.ring, f) // empty, for the next one
		return nil, err
	}
	for i := range f.sums {
		f.sums[i] = binary.LittleEndian.Uint32(buf[4*i:])
	}
	f.page = page
	f.pins.Store(1)
	f.used.Store(true)
	shard.frames[page] = f
	shard.ring = append(shard.ring, f)
	return f, nil
}

var sumBuffers = sync.Pool{New: func() any { return new([pageBytes]byte) }}

// vacate returns a frame that is in neither frames nor ring: a new one, or the first that was not used for a round of the
// hand, written back if need be. If all are in use the cache grows by one.
func (shard *sumShard) vacate(s *cachedSums) (*sumFrame, error) {
	if len(shard.ring) < sumFramesPerShard {
		return new(sumFrame), nil
	}
	for range 2 * len(shard.ring) {
		shard.hand = (shard.hand + 1) % len(shard.ring)
		f := shard.ring[shard.hand]
		if f.used.Swap(false) || f.pins.Load() > 0 {
			continue
		}
		if err := s.writeBack(f); err != nil {
			return nil, err
		}
		if shard.frames[f.page] == f {
			delete(shard.frames, f.page)
		}
		last := len(shard.ring) - 1
		shard.ring[shard.hand] = shard.ring[last]
		shard.ring = shard.ring[:last]
		return f, nil
	}
	return new(sumFrame), nil
}

// writeBack writes a frame that has changed.
func (s *cachedSums) writeBack(f *sumFrame) error {
	buf := sumBuffers.Get().(*[pageBytes]byte)
	defer sumBuffers.Put(buf)
	f.writing.Lock()
	defer f.writing.Unlock()
	f.mu.Lock()
	if !f.dirty {
		f.mu.Unlock()
		return nil
	}
	for i, sum := range f.sums {
		binary.LittleEndian.PutUint32(buf[4*i:], sum)
	}
	f.dirty = false // whoever sets it again meanwhile writes it again
	f.mu.Unlock()
	if err := s.dev.WriteAt(buf[:], f.page*pageBytes); err != nil {
		f.mu.Lock()
		f.dirty = true
		f.mu.Unlock()
		return err
	}
	return nil
}

func (s *cachedSums) flush() error {
	var pinned []*sumFrame
	for i := range s.shards {
		shard := &s.shards[i]
		shard.mu.Lock()
		pinned = pinned[:0]
		for _, f := range shard.ring {
			f.pins.Add(1)
			pinned = append(pinned, f)
		}
		shard.mu.Unlock()
		var err error
		for _, f := range pinned {
			if err == nil {
				err = s.writeBack(f)
			}
			f.pins.Add(-1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *cachedSums) prepare(slot uint32) error {
	a, ok := s.dev.(vfs.Allocator)
	if !ok {
		return nil
	}
	at := s.layout.sumsOffset(slot) / block.ChunkSize
	s.preparedMu.Lock()
	defer s.preparedMu.Unlock()
	if _, done := s.prepared[at]; done {
		return nil
	}
	if err := a.Allocate(at*block.ChunkSize, block.ChunkSize); err != nil {
		return err
	}
	s.prepared[at] = struct{}{}
	return nil
}
