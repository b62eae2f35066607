package blockstore

import (
	"encoding/binary"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"sanctuary/blockstore/block"
)

// leafChunks is how many chunks one leaf of the map holds: 32 MiB of the volume, in 3.1 KiB of memory and one page on the
// medium, made when the first block is written there. It stays when all of that was zeroed: without the indexes in it Changed would not report
// that, and a replica that was away would keep what it had there.
const leafChunks = 128

// layer is what one epoch has left of a chunk: where blocks lie that were written in it.
//
// An epoch is the time between two snapshots of a volume. The blocks of the newest layer that the reader's path sees are what
// it reads; so a snapshot is nothing but the rule which epochs are seen, and taking one touches no chunk. Layers of one
// chunk may share a slot as long as no block has a place in two of them.
type layer struct {
	bits  uint64 // bit n: block n
	epoch uint32
	slot  uint32 // noSlot: the blocks read as zeros from this epoch on, whatever older layers hold. lostSlot: unknown
	chunk uint8  // within the leaf
}

const (
	noSlot   = 0
	lostSlot = ^uint32(0) // the map page was damaged: what these blocks hold is not known
)

// leaf is a piece of the chunk map in flat arrays, so that the garbage collector has nothing to walk. Nearly all chunks have
// one layer, which is in the arrays; what more there is lies in extra.
type leaf struct {
	// Read under the chunk's lock; changed with that and Volume.applyMu held.
	slot  [leafChunks]uint32 // of the newest layer with a slot; 0: none
	epoch [leafChunks]uint32
	valid [leafChunks]uint64 // its bits
	index [leafChunks]uint64 // the entry that changed the live chunk last; 0: never

	// What belongs to all chunks of the leaf, and is replaced whole: a reader holds the lock of one chunk only, and finds that
	// chunk's layers unchanged in whatever version it sees.
	more  [leafChunks / 64]atomic.Uint64 // bit n: chunk n has layers in extra
	extra atomic.Pointer[[]layer]        // by chunk, newest epoch first; nil: none

	// Guarded by Volume.applyMu.
	dirty bool  // the next checkpoint has to write it
	pages int32 // what it takes on the medium, counted in pageStore.demand
}

// hasMore says whether the chunk has other layers than the one in the arrays.
func (l *leaf) hasMore(at uint32) bool { return l.more[at/64].Load()>>(at%64)&1 == 1 }

func (l *leaf) allExtra() []layer {
	if p := l.extra.Load(); p != nil {
		return *p
	}
	return nil
}

// extraOf returns the place in list of a chunk's layers.
func extraOf(list []layer, at uint32) (lo, hi int) {
	lo, _ = slices.BinarySearchFunc(list, uint8(at), func(y layer, c uint8) int { return int(y.chunk) - int(c) })
	for hi = lo; hi < len(list) && list[hi].chunk == uint8(at); {
		hi++
	}
	return lo, hi
}

// extras returns the chunk's layers that are not in the arrays, newest first.
func (l *leaf) extras(at uint32) []layer {
	if !l.hasMore(at) {
		return nil
	}
	list := l.allExtra()
	lo, hi := extraOf(list, at)
	return list[lo:hi]
}

// layers appends the chunk's layers to buf, newest first; of one epoch, the one in the arrays first.
func (l *leaf) layers(at uint32, buf []layer) []layer {
	extra := l.extras(at)
	if l.slot[at] == noSlot {
		return append(buf, extra...)
	}
	first := layer{bits: l.valid[at], epoch: l.epoch[at], slot: l.slot[at], chunk: uint8(at)}
	n := 0
	for n < len(extra) && extra[n].epoch > first.epoch {
		n++
	}
	buf = append(buf, extra[:n]...)
	buf = append(buf, first)
	return append(buf, extra[n:]...)
}

// setLayers replaces the chunk's layers with list, newest first, without those that have no bits.
func (l *leaf) setLayers(at uint32, list []layer) {
	first := -1
	list = slices.DeleteFunc(list, func(y layer) bool { return y.bits == 0 })
	for i, y := range list {
		if y.slot != noSlot && y.slot != lostSlot {
			first = i
			break
		}
	}
	if first < 0 {
		l.slot[at], l.epoch[at], l.valid[at] = noSlot, 0, 0
	} else {
		l.slot[at], l.epoch[at], l.valid[at] = list[first].slot, list[first].epoch, list[first].bits
	}
	old := l.allExtra()
	lo, hi := extraOf(old, at)
	rest := len(list)
	if first >= 0 {
		rest--
	}
	if lo == hi && rest == 0 {
		return
	}
	fresh := make([]layer, 0, len(old)-(hi-lo)+rest)
	fresh = append(fresh, old[:lo]...)
	for i, y := range list {
		if i != first {
			y.chunk = uint8(at)
			fresh = append(fresh, y)
		}
	}
	fresh = append(fresh, old[hi:]...)
	l.extra.Store(&fresh)
	if rest > 0 {
		l.more[at/64].Or(1 << (at % 64))
	} else {
		l.more[at/64].And(^uint64(1 << (at % 64)))
	}
}

// stripes is how many locks the chunks of a volume share. A chunk's lock is held across the copy of its data: a reader
// then sees a block before or after a write, never a mixture, and never beside the wrong checksum. A slow read holds up
// only writes to one chunk in 256.
const stripes = 256

type stripe struct {
	sync.RWMutex
	_ [40]byte // a cache line each
}

// chunkMap finds the chunks of one volume.
type chunkMap struct {
	chunks atomic.Uint32
	// leaves is replaced by a longer one when the volume grows. Whoever still holds the old one misses at most what is
	// written after that, as if it had read before.
	leaves  atomic.Pointer[[]atomic.Pointer[leaf]]
	stripes [stripes]stripe
}

func chunksFor(capacity block.Count) uint32 {
	return uint32((capacity.Bytes() + block.ChunkSize - 1) / block.ChunkSize)
}

func leavesFor(chunks uint32) int { return int((uint64(chunks) + leafChunks - 1) / leafChunks) }

func newChunkMap(capacity block.Count) *chunkMap {
	m := &chunkMap{}
	m.leaves.Store(&[]atomic.Pointer[leaf]{})
	m.grow(capacity)
	return m
}

// grow makes room for the chunks of a larger volume. It is called by the one goroutine that changes the map.
func (m *chunkMap) grow(capacity block.Count) {
	chunks := chunksFor(capacity)
	old := *m.leaves.Load()
	if n := leavesFor(chunks); n > len(old) {
		leaves := make([]atomic.Pointer[leaf], n)
		for i := range old {
			leaves[i].Store(old[i].Load())
		}
		m.leaves.Store(&leaves)
	}
	m.chunks.Store(chunks)
}

func (m *chunkMap) lockOf(chunk uint32) *stripe { return &m.stripes[chunk%stripes] }

// find returns the leaf of a chunk, nil if there is none (or no such chunk), and the chunk's place in it.
func (m *chunkMap) find(chunk uint32) (*leaf, uint32) {
	leaves := *m.leaves.Load()
	if n := chunk / leafChunks; int(n) < len(leaves) {
		return leaves[n].Load(), chunk % leafChunks
	}
	return nil, chunk % leafChunks
}

// make is find for the one goroutine that changes the map; fresh says that the leaf was not there.
func (m *chunkMap) make(chunk uint32) (l *leaf, at uint32, fresh bool) {
	place := &(*m.leaves.Load())[chunk/leafChunks]
	l = place.Load()
	if l == nil {
		l, fresh = new(leaf), true
		place.Store(l)
	}
	return l, chunk % leafChunks, fresh
}

// The payload of a leaf on the medium:
//
//	 0 16  bit n: chunk n has an entry
//	16  4  number of further layers
//	20     entries, 24 bytes each, in the order of the chunks: slot (4), epoch (4), bits (8), index (8)
//	       further layers, 17 bytes each: chunk (1), epoch (4), slot (4), bits (8)
const (
	leafHeaderBytes = 20
	leafEntryBytes  = 24
	leafLayerBytes  = 17
)

func (l *leaf) present(at uint32) bool { return l.index[at] != 0 || l.slot[at] != noSlot }

// size returns the length of the payload.
func (l *leaf) size() int {
	n := leafHeaderBytes + leafLayerBytes*len(l.allExtra())
	for at := range uint32(leafChunks) {
		if l.present(at) {
			n += leafEntryBytes
		}
	}
	return n
}

func (l *leaf) encode(b []byte) []byte {
	head := len(b)
	b = append(b, make([]byte, 16)...)
	extra := l.allExtra()
	b = binary.LittleEndian.AppendUint32(b, uint32(len(extra)))
	for at := range uint32(leafChunks) {
		if !l.present(at) {
			continue
		}
		b[head+int(at/8)] |= 1 << (at % 8)
		b = binary.LittleEndian.AppendUint32(b, l.slot[at])
		b = binary.LittleEndian.AppendUint32(b, l.epoch[at])
		b = binary.LittleEndian.AppendUint64(b, l.valid[at])
		b = binary.LittleEndian.AppendUint64(b, l.index[at])
	}
	for _, y := range extra {
		b = append(b, y.chunk)
		b = binary.LittleEndian.AppendUint32(b, y.epoch)
		b = binary.LittleEndian.AppendUint32(b, y.slot)
		b = binary.LittleEndian.AppendUint64(b, y.bits)
	}
	return b
}

// decodeLeaf is the reverse of encode. It checks what can be checked without knowing the volume.
func decodeLeaf(b []byte) (*leaf, bool) {
	d := decoder{b: b}
	bitmap := d.bytes(16)
	extra := d.u32()
	if bitmap == nil {
		return nil, false
	}
	l := new(leaf)
	for at := range uint32(leafChunks) {
		if bitmap[at/8]>>(at%8)&1 == 0 {
			continue
		}
		l.slot[at], l.epoch[at], l.valid[at], l.index[at] = d.u32(), d.u32(), d.u64(), d.u64()
		if (l.slot[at] == noSlot) != (l.valid[at] == 0) || l.slot[at] == lostSlot {
			return nil, false
		}
	}
	if d.short || uint64(len(d.b)) != uint64(extra)*leafLayerBytes {
		return nil, false
	}
	if extra == 0 {
		return l, true
	}
	list := make([]layer, 0, extra)
	for i := range extra {
		y := layer{chunk: d.bytes(1)[0], epoch: d.u32(), slot: d.u32(), bits: d.u64()}
		if y.chunk >= leafChunks || y.bits == 0 {
			return nil, false
		}
		if i > 0 {
			if was := list[i-1]; y.chunk < was.chunk || y.chunk == was.chunk && y.epoch > was.epoch {
				return nil, false
			}
		}
		list = append(list, y)
		l.more[y.chunk/64].Or(1 << (y.chunk % 64))
	}
	l.extra.Store(&list)
	return l, true
}

// lostLeaf stands for one that could not be read: its blocks are neither zeros nor anything else. index is at or after whatever
// changed it last, blocks how many the volume has from its first one on: what a volume may grow by is not lost.
func lostLeaf(index uint64, blocks int) *leaf {
	l := new(leaf)
	list := make([]layer, 0, leafChunks)
	for at := 0; at < leafChunks && blocks > 0; at, blocks = at+1, blocks-block.BlocksPerChunk {
		list = append(list, layer{bits: blockMask(0, min(blocks, block.BlocksPerChunk)), slot: lostSlot, chunk: uint8(at)})
		l.index[at] = index
		word := &l.more[at/64]
		word.Store(word.Load() | 1<<(at%64))
	}
	l.extra.Store(&list)
	return l
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

// runOf returns the first run of set bits: where it begins and how long it is. bitmap is not 0.
func runOf(bitmap uint64) (first, n int) {
	first = bits.TrailingZeros64(bitmap)
	return first, bits.TrailingZeros64(^(bitmap >> first))
}
