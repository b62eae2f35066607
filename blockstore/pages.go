package blockstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
)

// Metadata lie in pages of 4 KiB that are never overwritten while a durable superblock leads to them. What does not fit one
// page is a chain of them. Whoever points at a page has its checksum, so a page that was lost, put somewhere else or is of
// an earlier time is noticed like one that has rotted.
//
//	 0  4  "SPAG"
//	 4  4  CRC32C of the 4096 bytes with this field zero
//	 8  1  kind: 1 catalogue, 2 volume, 3 directory, 4 leaf
//	 9  1  zero
//	10  2  bytes of payload in this page
//	12  4  volume number, 0 in the catalogue
//	16  8  number of the directory or leaf, else 0
//	24  8  generation of the superblock it was written for
//	32  8  next page of the chain and its checksum, or zeros
//	40     payload
const (
	pageBytes       = 4096
	pageHeaderBytes = 40
	pagePayload     = pageBytes - pageHeaderBytes
	pageMagic       = "SPAG"
	ptrBytes        = 8
)

type pageKind uint8

const (
	kindCatalogue pageKind = 1
	kindVolume    pageKind = 2
	kindDirectory pageKind = 3
	kindLeaf      pageKind = 4
)

// pagePtr points at a page of a certain content. The zero pagePtr points at nothing.
type pagePtr struct{ page, sum uint32 }

func (p pagePtr) append(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, p.page), p.sum)
}

func (d *decoder) ptr() pagePtr { return pagePtr{page: d.u32(), sum: d.u32()} }

// twins are two chains with the same content: of what is small, and without which much is lost.
type twins [2]pagePtr

func (t twins) append(b []byte) []byte { return t[1].append(t[0].append(b)) }

func (d *decoder) twins() twins { return twins{d.ptr(), d.ptr()} }

// nowhere points at what was lost: a page that no pool has.
var nowhere = pagePtr{page: math.MaxUint32}

// object says what a chain holds.
type object struct {
	kind   pageKind
	volume uint32
	key    uint64
}

func (o object) String() string {
	return fmt.Sprintf("%s of volume %d, number %d", [...]string{"?", "catalogue", "root", "directory", "leaf"}[min(o.kind, kindLeaf)], o.volume, o.key)
}

func pagesFor(payloadBytes int) int { return max(1, (payloadBytes+pagePayload-1)/pagePayload) }

// pageStore gives out pages and knows how to write and read them. All methods may be called concurrently.
type pageStore struct {
	dev    vfs.Dev
	layout *layout

	mu       sync.Mutex // guards what follows; never held across I/O but that of asking the file system for room
	used     []uint64
	free     uint32
	hint     int
	prepared []uint64 // slots of pages the file system has been asked for

	demand atomic.Int64 // pages that all metadata would take if they were written now
}

func newPageStore(dev vfs.Dev, l *layout) *pageStore {
	s := &pageStore{dev: dev, layout: l, free: l.pages}
	s.used = make([]uint64, (uint64(l.pages)+1+63)/64)
	s.used[0] = 1 // there is no page 0
	if tail := (l.pages + 1) % 64; tail != 0 {
		s.used[len(s.used)-1] |= ^uint64(0) << tail
	}
	s.prepared = make([]uint64, (l.pages/pagesPerSlot+1+63)/64)
	return s
}

// room returns block.ErrNoSpace unless n more pages of metadata leave room for writing all of them anew: what is there is
// only freed afterwards.
func (s *pageStore) room(n int64) error {
	if demand := s.demand.Load() + n; demand > int64(s.layout.pages)/2 {
		return fmt.Errorf("%w for metadata: %d pages would be needed, %d are allowed", block.ErrNoSpace, demand, s.layout.pages/2)
	}
	return nil
}

// kept is how many pages writes may not take: a sixteenth of those allowed is for what makes metadata larger without a chunk, as snapshots and zeros
// over what a snapshot holds.
func (s *pageStore) kept() int64 { return int64(s.layout.pages) / 32 }

// mark takes a page that is in use; false: there is no such page, or it is taken already.
func (s *pageStore) mark(page uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if page > s.layout.pages || s.used[page/64]>>(page%64)&1 == 1 {
		return false
	}
	s.used[page/64] |= 1 << (page % 64)
	s.free--
	return true
}

// take returns n free pages, the lowest, or block.ErrNoSpace and takes none.
func (s *pageStore) take(n int) ([]uint32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if uint64(n) > uint64(s.free) {
		return nil, fmt.Errorf("%w for metadata: %d pages needed, %d free", block.ErrNoSpace, n, s.free)
	}
	taken := make([]uint32, 0, n)
	for len(taken) < n {
		for s.used[s.hint] == math.MaxUint64 {
			s.hint++
		}
		bit := bits.TrailingZeros64(^s.used[s.hint])
		page := uint32(s.hint*64 + bit)
		s.used[s.hint] |= 1 << bit
		taken = append(taken, page)
	}
	s.free -= uint32(n)
	for _, page := range taken {
		if err := s.prepareLocked(page); err != nil {
			s.releaseLocked(taken)
			return nil, err
		}
	}
	return taken, nil
}

// prepareLocked has a thin file take room for the 256 KiB around a page.
func (s *pageStore) prepareLocked(page uint32) error {
	slot := (page - 1) / pagesPerSlot
	a, ok := s.dev.(vfs.Allocator)
	if !ok || s.prepared[slot/64]>>(slot%64)&1 == 1 {
		return nil
	}
	first := slot*pagesPerSlot + 1
	if err := a.Allocate(s.layout.pageOffset(first), block.ChunkSize); err != nil {
		if errors.Is(err, vfs.ErrNoSpace) {
			return fmt.Errorf("%w for metadata: %w", block.ErrNoSpace, err)
		}
		return err
	}
	s.prepared[slot/64] |= 1 << (slot % 64)
	return nil
}

// release gives pages back that no durable superblock leads to.
func (s *pageStore) release(pages []uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.releaseLocked(pages)
}

func (s *pageStore) releaseLocked(pages []uint32) {
	for _, page := range pages {
		s.used[page/64] &^= 1 << (page % 64)
		s.hint = min(s.hint, int(page/64))
	}
	s.free += uint32(len(pages))
}

// pageWriter writes the chains of one checkpoint, neighbouring pages together. All pages it has taken are in taken: they are
// free again if the checkpoint does not come about.
type pageWriter struct {
	s          *pageStore
	generation uint64
	taken      []uint32
	spare      []uint32 // taken and not yet used
	buf        []byte
	first      uint32 // page of buf's first byte
}

func (s *pageStore) newWriter(generation uint64) *pageWriter {
	return &pageWriter{s: s, generation: generation}
}

// reserve takes pages for what is about to be written, so that want of space shows before the first write.
func (w *pageWriter) reserve(n int) error {
	pages, err := w.s.take(n)
	w.taken = append(w.taken, pages...)
	w.spare = append(w.spare, pages...)
	return err
}

// put writes a chain, into pages that were reserved or new ones, and returns where it is and which pages it takes.
func (w *pageWriter) put(o object, payload []byte) (pagePtr, []uint32, error) {
	n := pagesFor(len(payload))
	if missing := n - len(w.spare); missing > 0 {
		if err := w.reserve(missing); err != nil {
			return pagePtr{}, nil, err
		}
	}
	pages := slices.Clone(w.spare[:n])
	w.spare = w.spare[n:]
	var next pagePtr
	images := make([]byte, n*pageBytes)
	for i := n - 1; i >= 0; i-- { // from the end, since each page has the checksum of the next one
		part := payload[i*pagePayload:]
		payload = payload[:i*pagePayload]
		b := images[i*pageBytes : (i+1)*pageBytes]
		copy(b, pageMagic)
		b[8] = byte(o.kind)
		binary.LittleEndian.PutUint16(b[10:], uint16(len(part)))
		binary.LittleEndian.PutUint32(b[12:], o.volume)
		binary.LittleEndian.PutUint64(b[16:], o.key)
		binary.LittleEndian.PutUint64(b[24:], w.generation)
		next.append(b[32:32])
		copy(b[pageHeaderBytes:], part)
		sum := crc32.Checksum(b, castagnoli)
		binary.LittleEndian.PutUint32(b[4:], sum)
		next = pagePtr{page: pages[i], sum: sum}
	}
	for i, page := range pages {
		if err := w.add(page, images[i*pageBytes:(i+1)*pageBytes]); err != nil {
			return pagePtr{}, nil, err
		}
	}
	return next, pages, nil
}

// putTwins is put for what is kept twice.
func (w *pageWriter) putTwins(o object, payload []byte) (t twins, pages []uint32, err error) {
	for i := range t {
		ptr, taken, err := w.put(o, payload)
		if err != nil {
			return t, nil, err
		}
		t[i], pages = ptr, append(pages, taken...)
	}
	return t, pages, nil
}

const writerBytes = 256 << 10

func (w *pageWriter) add(page uint32, image []byte) error {
	follows := len(w.buf) > 0 && page == w.first+uint32(len(w.buf)/pageBytes) && len(w.buf) < writerBytes &&
		w.s.layout.pageOffset(page) == w.s.layout.pageOffset(w.first)+int64(len(w.buf))
	if !follows {
		if err := w.flush(); err != nil {
			return err
		}
		w.first = page
	}
	w.buf = append(w.buf, image...)
	return nil
}

// flush writes what has gathered; it is not synced.
func (w *pageWriter) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	err := w.s.dev.WriteAt(w.buf, w.s.layout.pageOffset(w.first))
	w.buf = w.buf[:0]
	return err
}

// abandon gives back everything taken.
func (w *pageWriter) abandon() {
	w.s.release(w.taken)
	w.taken, w.spare = nil, nil
}

// checkPage returns the payload of one page of a chain and its successor, or an error that says how it differs from what the
// pointer and the object promise.
func checkPage(b []byte, ptr pagePtr, o object) (payload []byte, next pagePtr, err error) {
	sum := binary.LittleEndian.Uint32(b[4:])
	n := int(binary.LittleEndian.Uint16(b[10:]))
	switch {
	case string(b[:4]) != pageMagic || sumWithout(b, 4) != sum || n > pagePayload:
		return nil, next, damaged(fmt.Sprintf("page %d (%v)", ptr.page, o))
	case sum != ptr.sum || pageKind(b[8]) != o.kind || binary.LittleEndian.Uint32(b[12:]) != o.volume || binary.LittleEndian.Uint64(b[16:]) != o.key:
		return nil, next, damaged(fmt.Sprintf("page %d, which holds something else than the %v,", ptr.page, o))
	}
	d := decoder{b: b[32:40]}
	return b[pageHeaderBytes : pageHeaderBytes+n], d.ptr(), nil
}

// pageError says which page of a chain is not what it should be, or cannot be read.
type pageError struct {
	page uint32 // 0: none, the pointer to it is wrong
	err  error
}

func (e *pageError) Error() string { return e.err.Error() }
func (e *pageError) Unwrap() error { return e.err }

// get reads a chain. Its errors are *pageError: a *block.CorruptError says that it is damaged; others are the medium's.
func (s *pageStore) get(ptr pagePtr, o object) (payload []byte, pages []uint32, err error) {
	b := make([]byte, pageBytes)
	for ptr.page != 0 {
		if ptr == nowhere {
			return nil, nil, &pageError{err: damaged(o.String() + ", which could not be read at an earlier start,")}
		}
		if ptr.page > s.layout.pages || len(pages) > int(s.layout.pages) {
			return nil, nil, &pageError{err: damaged(fmt.Sprintf("pointer to page %d (%v)", ptr.page, o))}
		}
		if err := s.dev.ReadAt(b, s.layout.pageOffset(ptr.page)); err != nil {
			return nil, nil, &pageError{ptr.page, fmt.Errorf("read page %d: %w", ptr.page, err)}
		}
		part, next, err := checkPage(b, ptr, o)
		if err != nil {
			return nil, nil, &pageError{ptr.page, err}
		}
		payload, pages, ptr = append(payload, part...), append(pages, ptr.page), next
	}
	return payload, pages, nil
}

// getTwins reads what is kept twice: the first of the two that is whole. pages are those of both as far as they can be read; what
// is left out may be used again, and then shows nobody anything else, since the pointers' checksums do not match. both says that both
// are whole.
func (s *pageStore) getTwins(t twins, o object) (payload []byte, pages []uint32, both bool, err error) {
	first, pages, err := s.get(t[0], o)
	if corrupt := (*block.CorruptError)(nil); err != nil && !errors.As(err, &corrupt) {
		return nil, nil, false, err
	}
	second, more, otherErr := s.get(t[1], o)
	if corrupt := (*block.CorruptError)(nil); otherErr != nil && !errors.As(otherErr, &corrupt) {
		return nil, nil, false, otherErr
	}
	switch {
	case err == nil:
		return first, append(pages, more...), otherErr == nil, nil
	case otherErr == nil:
		return second, append(pages, more...), false, nil
	}
	return nil, nil, false, err
}
