package blockstore

import (
	"sync"
	"sync/atomic"

	"sanctuary/blockstore/block"
)

// pageChunks is how many chunks one page of the map holds: 256 MiB of the volume, 24 KiB of memory, made when the first
// block is written there.
const pageChunks = 1024

// mapPage is a piece of the chunk map in flat arrays, so that the garbage collector has nothing to walk.
type mapPage struct {
	// Guarded by the chunk's stripe.
	slot  [pageChunks]uint64 // 0: none
	valid [pageChunks]uint64 // bit n: block n of the chunk is stored; otherwise it reads as zeros
	index [pageChunks]uint64 // the entry that changed the chunk last; 0: never

	// Guarded by Volume.applyMu: what the next checkpoint has to write.
	dirty  [pageChunks / 64]uint64
	listed bool
}

// stripes is how many locks the chunks of a volume share. A chunk's lock is held across the copy of its data: a reader
// then sees a block before or after a write, never a mixture, and never beside the wrong checksum. A slow read holds up
// only writes to one chunk in 256.
const stripes = 256

type stripe struct {
	sync.RWMutex
	_ [40]byte // a cache line each
}

// wait returns when everyone who has the lock now has released it.
func (s *stripe) wait() {
	s.Lock()
	defer s.Unlock()
}

// chunkMap finds the chunks of one volume.
type chunkMap struct {
	chunks atomic.Uint32
	// pages is replaced by a longer one when the volume grows. Whoever still holds the old one misses at most what is
	// written after that, as if it had read before.
	pages   atomic.Pointer[[]atomic.Pointer[mapPage]]
	stripes [stripes]stripe
}

func newChunkMap(capacity block.Count) *chunkMap {
	m := &chunkMap{}
	m.pages.Store(&[]atomic.Pointer[mapPage]{})
	m.grow(capacity)
	return m
}

// grow makes room for the chunks of a larger volume. It is called by the one goroutine that changes the map.
func (m *chunkMap) grow(capacity block.Count) {
	chunks := (capacity.Bytes() + block.ChunkSize - 1) / block.ChunkSize
	old := *m.pages.Load()
	if n := int((chunks + pageChunks - 1) / pageChunks); n > len(old) {
		pages := make([]atomic.Pointer[mapPage], n)
		for i := range old {
			pages[i].Store(old[i].Load())
		}
		m.pages.Store(&pages)
	}
	m.chunks.Store(uint32(chunks))
}

func (m *chunkMap) lockOf(chunk uint32) *stripe { return &m.stripes[chunk%stripes] }

// find returns the page of a chunk, which may be nil, and the chunk's place in it.
func (m *chunkMap) find(chunk uint32) (*mapPage, uint32) {
	return (*m.pages.Load())[chunk/pageChunks].Load(), chunk % pageChunks
}

// make is find for the one goroutine that changes the map.
func (m *chunkMap) make(chunk uint32) (*mapPage, uint32) {
	at := &(*m.pages.Load())[chunk/pageChunks]
	page := at.Load()
	if page == nil {
		page = new(mapPage)
		at.Store(page)
	}
	return page, chunk % pageChunks
}

// blockMask has the bits of n blocks from block first on; n is 1 to 64.
func blockMask(first, n int) uint64 { return ^uint64(0) >> (block.BlocksPerChunk - n) << first }

// span is the part of a range that lies in one chunk, in blocks.
type span struct {
	chunk uint32
	first int // block within the chunk
	n     int
}

func (s span) mask() uint64 { return blockMask(s.first, s.n) }

// next returns the part of the aligned range that lies in its first chunk, and the rest.
func next(r block.Range) (span, block.Range) {
	const perChunk = block.BlocksPerChunk * block.SectorsPerBlock
	within := int(r.Start % perChunk)
	count := min(block.Count(perChunk-within), r.Count)
	s := span{chunk: uint32(r.Start / perChunk), first: within / block.SectorsPerBlock, n: int(count / block.SectorsPerBlock)}
	return s, block.Range{Start: r.Start + block.Sector(count), Count: r.Count - count}
}
