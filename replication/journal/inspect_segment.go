package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"

	"sanctuary/blockstore/block"
	"sanctuary/replication/command"
)

// A segment of raft-wal v0.4.2 is a header of 32 bytes and frames: entries, at the end of a closed segment an index of them, and after each write a commit frame
// with the CRC32C of everything since the one before. The library looks at that checksum only for the last write, when it recovers the tail, and has no
// function that tells where frames lie; so they are read here, all of them.
//
// In the tail the last write may have been cut off by a crash. It was acknowledged to nobody, and the library drops it. What follows the last
// commit frame may be left over from such a write, too. So at the end of the tail
//
//   - entries without a commit frame are no damage;
//   - a last write that does not match its checksum is none if a sector of it was never written, that is, reads as zeros; or if every entry in it is
//     whole: then it is the rest of a longer one that was cut off, behind what was written over its beginning;
//   - what is no frame is damage only if a whole write follows, with its checksum.
//
// That leaves what the format cannot tell apart: a last write that has rotted so that it looks like one of these.
const (
	segmentMagic  = 0x58eb6b0d
	segmentHeader = 32
	frameHeader   = 8
	windowBytes   = 1 << 20
)

func segmentHead(i types.SegmentInfo) []byte {
	b := binary.LittleEndian.AppendUint64(nil, segmentMagic)
	b = binary.LittleEndian.AppendUint64(b, i.BaseIndex)
	b = binary.LittleEndian.AppendUint64(b, i.ID)
	return binary.LittleEndian.AppendUint64(b, i.Codec)
}

// segmentScan reads one segment.
type segmentScan struct {
	r    *reading
	info types.SegmentInfo
	tail bool
	path string
	last *raft.Log // the last entry that counts, of all segments so far

	f        *os.File
	window   []byte // what was read last, from windowAt on
	windowAt int64
	buf      []byte

	off      int64  // of the next frame
	next     uint64 // index of the next entry
	offsets  []uint32
	w        write  // what has been read since the last commit frame
	held     *write // the last one that has a commit frame: what follows says what it means
	gap      *gap   // what is no frame, if nothing that follows has shown yet that it should be one
	report   InspectedSegment
	finished bool // the index of the segment and its commit frame were read
}

// write is what lies between two commit frames.
type write struct {
	at, end   int64
	crc       uint32
	unknown   bool // where it began is not known: its checksum cannot be compared
	entries   []entryAt
	index     int64 // offset of an index; 0: it has none
	wrong     bool  // it does not match its checksum
	explained bool  // and why was found
}

type entryAt struct {
	e   InspectedEntry
	bad string
}

func (s *segmentScan) scan(ctx context.Context) (err error) {
	s.report = InspectedSegment{File: filepath.Base(s.path), Min: s.info.MinIndex, Sealed: !s.info.SealTime.IsZero()}
	s.f, err = os.Open(s.path)
	if errors.Is(err, os.ErrNotExist) {
		if s.tail {
			s.r.note("%s has not been made yet, or is missing: it is made at the next start", s.path)
		} else {
			s.find("segment", -1, fmt.Sprintf("the file is missing: entries %d to %d", s.info.MinIndex, s.info.MaxIndex), "")
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = s.f.Close() }() // read-only: nothing to lose
	info, err := s.f.Stat()
	if err != nil {
		return err
	}
	s.report.Bytes = info.Size()
	s.off, s.next = segmentHeader, s.info.BaseIndex
	s.begin(segmentHeader)
	s.w.at = 0
	head, err := s.at(0, segmentHeader)
	if err != nil {
		return err
	}
	s.w.crc = crc32.Update(0, castagnoli, head)
	headless := !bytes.Equal(head, segmentHead(s.info))
	for more := true; more; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if more, err = s.frame(&headless); err != nil {
			return err
		}
	}
	s.end()
	s.r.report.Segments = append(s.r.report.Segments, s.report)
	return nil
}

func (s *segmentScan) find(kind string, off int64, what, data string) {
	s.r.find(block.Finding{Kind: kind, Path: s.path, Offset: off, What: what, Data: data})
}

func (s *segmentScan) begin(at int64) { s.w = write{at: at} }

// at returns n bytes of the file, fewer at its end. They are valid until the next call.
func (s *segmentScan) at(off int64, n int) ([]byte, error) {
	if off < s.windowAt || off+int64(n) > s.windowAt+int64(len(s.window)) {
		size := max(n, int(min(windowBytes, s.report.Bytes)))
		if cap(s.buf) < size {
			s.buf = make([]byte, size)
		}
		got, err := s.f.ReadAt(s.buf[:size], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read %d bytes at %d of %s: %w", n, off, s.path, err)
		}
		s.window, s.windowAt = s.buf[:got], off
	}
	from := off - s.windowAt
	return s.window[from:min(from+int64(n), int64(len(s.window)))], nil
}

func padded(n int) int { return (n + frameHeader - 1) / frameHeader * frameHeader }

// frame reads one frame. more is false when there is none any more.
func (s *segmentScan) frame(headless *bool) (more bool, err error) {
	head, err := s.at(s.off, frameHeader)
	if err != nil || len(head) < frameHeader {
		return false, err
	}
	typ, n := head[0], int(binary.LittleEndian.Uint32(head[4:]))
	switch {
	case typ == segment.FrameCommit:
		s.commit(binary.LittleEndian.Uint32(head[4:]), head[1]|head[2]|head[3] != 0, headless)
		s.off += frameHeader
		s.begin(s.off)
		return !s.finished, nil
	case typ != segment.FrameEntry && typ != segment.FrameIndex, n > segment.MaxEntrySize, s.off+frameHeader+int64(padded(n)) > s.report.Bytes:
		return s.resume()
	}
	b, err := s.at(s.off, frameHeader+padded(n))
	if err != nil {
		return false, err
	}
	if len(b) < frameHeader+padded(n) {
		return false, nil // somebody has made the file shorter
	}
	s.w.crc = crc32.Update(s.w.crc, castagnoli, b)
	payload := b[frameHeader : frameHeader+n]
	if typ == segment.FrameIndex {
		s.index(payload)
	} else {
		s.entry(payload)
	}
	s.off += frameHeader + int64(padded(n))
	return true, nil
}

// entry takes in an entry's frame.
func (s *segmentScan) entry(payload []byte) {
	e := entryAt{e: InspectedEntry{Index: s.next, File: filepath.Base(s.path), Offset: s.off}}
	l, err := decodeEntry(payload)
	switch {
	case errors.As(err, new(*block.CorruptError)):
		e.bad = "it does not match its checksum"
	case err != nil:
		e.bad = err.Error()
	case l.Index != s.next:
		e.bad = fmt.Sprintf("it says that it is entry %d", l.Index)
	default:
		e.e.Term, e.e.Type, e.e.DataBytes, e.e.AppendedAt = l.Term, l.Type.String(), len(l.Data), l.AppendedAt
		if l.Type == raft.LogCommand && len(l.Data) > 0 {
			c, err := command.Decode(l.Data)
			if err != nil {
				e.bad = err.Error()
			}
			for i := range c.Ops {
				c.Ops[i].Data, c.Ops[i].Sums = nil, nil // what was written is not kept
			}
			e.e.Command = &c
		}
	}
	s.w.entries = append(s.w.entries, e)
	s.offsets = append(s.offsets, uint32(s.off))
	s.next++
}

// decodeEntry returns an entry whose seal is right. The library's decoder panics over some kinds of nonsense.
func decodeEntry(b []byte) (l raft.Log, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = &block.CorruptError{Where: "journal entry"}
		}
	}()
	if err := (&wal.BinaryCodec{}).Decode(b, &l); err != nil {
		return l, &block.CorruptError{Where: "journal entry"}
	}
	return l, unseal(&l)
}

// index compares the index of a segment with where its entries lie.
func (s *segmentScan) index(payload []byte) {
	s.w.index = s.off + frameHeader
	same := len(payload) == 4*len(s.offsets)
	for i, off := range s.offsets {
		same = same && (off == 0 || binary.LittleEndian.Uint32(payload[4*i:]) == off) // 0: its frame could not be read
	}
	if !same {
		s.find("index", s.off, "the index of the segment names other places than those of its entries", "Entries are looked for in the wrong places. "+dataReplica)
		s.w.explained = true
	}
}

// commit ends a write. What it means is known when the next one has been read.
func (s *segmentScan) commit(sum uint32, spoiled bool, headless *bool) {
	w := s.w
	w.end = s.off
	if *headless {
		s.find("segment", 0, "the header does not say which segment it is", "")
		w.explained, *headless = true, false
	}
	w.wrong = !w.unknown && w.crc != sum || spoiled
	if w.index != 0 && !s.tail && w.index != int64(s.info.IndexStart) {
		s.find("index", w.index-frameHeader, fmt.Sprintf("the index of the segment is at byte %d, the table of segments says %d", w.index, s.info.IndexStart), "Entries are looked for in the wrong places. "+dataReplica)
	}
	s.finished = w.index != 0 && !s.tail
	s.report.Writes++
	if s.gap != nil {
		s.gap.writes = append(s.gap.writes, &w)
		if w.unknown || w.wrong {
			return
		}
		s.closeGap()
		return
	}
	s.settle(false)
	s.held = &w
}

const dataLastWrite = "It is the last write to the log, and is dropped at the next start as if it had been cut off. If it was acknowledged, this replica forgets that it has it. The other copies have it."

// settle takes the write that was held as it is. final: nothing follows it.
func (s *segmentScan) settle(final bool) {
	w := s.held
	s.held = nil
	if w == nil {
		return
	}
	final = final && s.tail && w.wrong
	if final && (s.torn(w) || !slices.ContainsFunc(w.entries, func(e entryAt) bool { return e.bad != "" })) {
		s.r.note("the last write to %s, at byte %d, was cut off, or is the rest of one that was: it is dropped at the next start", s.path, w.at)
		return
	}
	s.report.Written = w.end + frameHeader
	for _, e := range w.entries {
		counts := e.e.Index >= s.info.MinIndex && (s.info.SealTime.IsZero() || e.e.Index <= s.info.MaxIndex)
		switch {
		case e.bad != "" && !counts:
			w.explained = true
			s.r.note("entry %d at byte %d of %s is damaged; it is not part of the log any more", e.e.Index, e.e.Offset, s.path)
			continue
		case e.bad != "":
			w.explained = true
			data := "What it wrote cannot be read here. The replica stops when it needs the entry. The other copies have it."
			if final {
				data = dataLastWrite
			}
			s.find("entry", e.e.Offset, fmt.Sprintf("entry %d: %s", e.e.Index, e.bad), data)
		case !counts:
			continue
		case e.e.Term < s.last.Term:
			s.find("entry", e.e.Offset, fmt.Sprintf("entry %d is of term %d, one before it of term %d", e.e.Index, e.e.Term, s.last.Term), "")
		default:
			s.last.Term = e.e.Term
		}
		if p := s.r.report; p.First == 0 {
			p.First, p.FirstTerm = e.e.Index, e.e.Term
		}
		s.last.Index, s.report.Max = e.e.Index, e.e.Index
		if s.r.cfg.Entry != nil && e.bad == "" {
			s.r.cfg.Entry(e.e)
		}
	}
	if w.wrong && !w.explained {
		s.find("write", w.at, fmt.Sprintf("the %d bytes up to byte %d do not match their checksum, and each entry in them is whole", w.end-w.at, w.end),
			"No entry is lost, but what lies around them has changed.")
	}
}

// torn says whether a write has a sector that reads as zeros: it was never written.
func (s *segmentScan) torn(w *write) bool {
	for from := w.at; from < w.end; {
		to := min((from/block.SectorSize+1)*block.SectorSize, w.end)
		b, err := s.at(from, int(to-from))
		if err != nil {
			return false
		}
		if len(bytes.Trim(b, "\x00")) == 0 {
			return true
		}
		from = to
	}
	return false
}

// end says what the end of the segment means.
func (s *segmentScan) end() {
	switch {
	case s.gap != nil && !s.tail:
		s.closeGap()
	case s.gap != nil:
		s.r.note("what lies behind byte %d of %s is left over from a write that was cut off, and acknowledged to nobody", s.gap.at, s.path)
		s.settle(true)
	case len(s.w.entries) > 0 && s.tail:
		s.settle(false)
		s.r.note("the last write to %s, at byte %d, was cut off, or is under way: it has been acknowledged to nobody", s.path, s.w.at)
	default:
		s.settle(true)
	}
	if s.tail {
		return
	}
	switch {
	case s.report.Max < s.info.MaxIndex && s.finished && s.w.index == 0:
		s.find("segment", s.off, fmt.Sprintf("the segment ends with entry %d, it should end with %d", s.report.Max, s.info.MaxIndex), "")
	case !s.finished:
		s.find("segment", s.off, "the end of the segment is missing, with the index of its entries", "Its entries cannot be found. "+dataReplica)
	}
}
