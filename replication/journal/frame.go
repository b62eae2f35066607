package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
)

// What is written at once is a frame, at a multiple of 4 KiB and filled up to one, so that nothing written later shares a page with
// it. All numbers are little-endian.
//
//	 0  4  "SJf1"
//	 4  4  CRC32C of what follows, to the end of the second directory
//	 8  8  the segment's sequence number: what an earlier use of the file has left is told by it
//	16  8  the journal's random identity
//	24  8  batch: what one sync makes durable. A batch is written when the one before it is durable
//	32  4  offset of the frame in the segment, in blocks of 4 KiB
//	36  4  length of the frame, in blocks
//	40  4  CRC32C field of the frame before it: the chain
//	44  4  offset of the frame before it, in blocks; 0 if it is in another segment
//	48  4  records in this frame (n)
//	52  4  records in the frame before it, if that is in this segment (m)
//	56  8  batch of the frame before it
//	64     directory: n records of 56 bytes
//	       directory of the frame before it again: m records
//	       payloads, in the order of the records
//
// The second directory is what makes damage to one frame exact: the next one tells what it held. Each record has the checksum of its
// payload, which is therefore covered by the frame's as well.
const (
	frameMagic       = "SJf1"
	blockBytes       = 4096
	frameHeaderBytes = 64
	recordBytes      = 56
	// maxFrameRecords and frameBytes bound a frame. A single record may be larger than frameBytes.
	maxFrameRecords = 512
	frameBytes      = 4 << 20
	// maxPayloadBytes bounds one record.
	maxPayloadBytes = 8 << 20
)

// kind says what a record does.
type kind uint8

const (
	kindEntry  kind = 1 // an entry of the log: it replaces what the log has from its index on
	kindGroup  kind = 2 // Data is the name of the group with this number, from here on; Index its first entry that counts
	kindFront  kind = 3 // entries before Index do not count any more
	kindBack   kind = 4 // entries from Index on do not count any more
	kindForget kind = 5 // the group is gone
	kindStable kind = 6 // Extensions is a key of the stable store, Data its value
	kindMoved  kind = 7 // an entry again, elsewhere: the same entry, and nothing after it is touched
	kindLost   kind = 8 // as kindMoved, of an entry that is damaged: only what its payload must be like is known, its lengths and its checksum
)

func (k kind) String() string {
	return map[kind]string{
		kindEntry: "entry", kindGroup: "group", kindFront: "front", kindBack: "back", kindForget: "forget", kindStable: "stable", kindMoved: "moved", kindLost: "lost",
	}[k]
}

// record is one line of a directory:
//
//	 0  4  number of the group
//	 4  1  kind
//	 5  1  type of the entry (raft.LogType)
//	 6  2  0
//	 8  8  index
//	16  8  term
//	24  8  when the owner accepted it, in ns since 1970; 0 if that is not known
//	32  4  length of Data in bytes
//	36  4  length of Extensions in bytes
//	40  4  CRC32C of Data and Extensions
//	44  4  offset of the payload in the segment, in bytes
//	48  8  0
type record struct {
	group      uint32
	kind       kind
	typ        raft.LogType
	index      uint64
	term       uint64
	appended   int64
	dataBytes  uint32
	extBytes   uint32
	sum        uint32
	offset     uint32
	data, exts []byte // what is to be written, or what was read
	from       place  // of one that is to be written again: where it is now
}

// place is where a payload is.
type place struct{ segment, offset uint32 }

func (r *record) payloadBytes() int64 {
	if r.kind == kindLost {
		return 0
	}
	return int64(r.dataBytes) + int64(r.extBytes)
}

func (r *record) put(b []byte) {
	le := binary.LittleEndian
	le.PutUint32(b, r.group)
	b[4], b[5], b[6], b[7] = byte(r.kind), byte(r.typ), 0, 0
	le.PutUint64(b[8:], r.index)
	le.PutUint64(b[16:], r.term)
	le.PutUint64(b[24:], uint64(r.appended))
	le.PutUint32(b[32:], r.dataBytes)
	le.PutUint32(b[36:], r.extBytes)
	le.PutUint32(b[40:], r.sum)
	le.PutUint32(b[44:], r.offset)
	le.PutUint64(b[48:], 0)
}

func parseRecord(b []byte) record {
	le := binary.LittleEndian
	return record{
		group: le.Uint32(b), kind: kind(b[4]), typ: raft.LogType(b[5]), index: le.Uint64(b[8:]), term: le.Uint64(b[16:]), appended: int64(le.Uint64(b[24:])),
		dataBytes: le.Uint32(b[32:]), extBytes: le.Uint32(b[36:]), sum: le.Uint32(b[40:]), offset: le.Uint32(b[44:]),
	}
}

// newRecord fills in lengths and checksum of what it is given.
func newRecord(r record) record {
	r.dataBytes, r.extBytes = uint32(len(r.data)), uint32(len(r.exts))
	r.sum = payloadSum(r.data, r.exts)
	return r
}

func payloadSum(data, exts []byte) uint32 {
	s := block.Sum(data)
	if len(exts) > 0 {
		s = block.ExtendSum(s, exts)
	}
	return s
}

// frame is what a header says.
type frame struct {
	sum      uint32
	sequence uint64
	journal  uint64
	batch    uint64
	at       int64 // in bytes, as are the next two
	bytes    int64
	before   int64
	beforeIn uint64 // batch of the frame before
	chain    uint32
	records  []record
	previous []record
}

// frameLength returns how long a frame with these records will be, in bytes.
func frameLength(records []record, previous int) int64 {
	n := int64(frameHeaderBytes) + int64(len(records)+previous)*recordBytes
	for i := range records {
		n += records[i].payloadBytes()
	}
	return roundUp(n)
}

func roundUp(n int64) int64 { return (n + blockBytes - 1) / blockBytes * blockBytes }

// encode appends the frame to b, whose length stays a multiple of a block, and fills in sum, bytes and where the payloads are.
func (f *frame) encode(b []byte) []byte {
	le := binary.LittleEndian
	f.bytes = frameLength(f.records, len(f.previous))
	start, head := len(b), frameHeaderBytes+(len(f.records)+len(f.previous))*recordBytes
	b = append(b, make([]byte, head)...)
	at := uint32(f.at) + uint32(head)
	for i := range f.records {
		r := &f.records[i]
		r.offset = at
		if r.kind != kindLost {
			b = append(append(b, r.data...), r.exts...)
		}
		at += uint32(r.payloadBytes())
		r.put(b[start+frameHeaderBytes+i*recordBytes:])
	}
	for i := range f.previous {
		f.previous[i].put(b[start+frameHeaderBytes+(len(f.records)+i)*recordBytes:])
	}
	b = append(b, make([]byte, start+int(f.bytes)-len(b))...)
	h := b[start:]
	copy(h, frameMagic)
	le.PutUint64(h[8:], f.sequence)
	le.PutUint64(h[16:], f.journal)
	le.PutUint64(h[24:], f.batch)
	le.PutUint32(h[32:], uint32(f.at/blockBytes))
	le.PutUint32(h[36:], uint32(f.bytes/blockBytes))
	le.PutUint32(h[40:], f.chain)
	le.PutUint32(h[44:], uint32(f.before/blockBytes))
	le.PutUint32(h[48:], uint32(len(f.records)))
	le.PutUint32(h[52:], uint32(len(f.previous)))
	le.PutUint64(h[56:], f.beforeIn)
	f.sum = block.Sum(h[8:head])
	le.PutUint32(h[4:], f.sum)
	return b
}

// errNoFrame: what is there is no frame of this journal, in this use of the file, at this place. It may be the rest of one.
var errNoFrame = errors.New("no frame")

// parseFrame reads the header and both directories of the frame at offset at, of which b is the beginning. It returns how many bytes of
// it are needed if b is too short.
func parseFrame(b []byte, at int64, sequence, journal uint64) (f frame, need int, err error) {
	le := binary.LittleEndian
	if len(b) < frameHeaderBytes || string(b[:4]) != frameMagic {
		return f, 0, errNoFrame
	}
	f = frame{
		sum: le.Uint32(b[4:]), sequence: le.Uint64(b[8:]), journal: le.Uint64(b[16:]), batch: le.Uint64(b[24:]), at: int64(le.Uint32(b[32:])) * blockBytes,
		bytes: int64(le.Uint32(b[36:])) * blockBytes, chain: le.Uint32(b[40:]), before: int64(le.Uint32(b[44:])) * blockBytes, beforeIn: le.Uint64(b[56:]),
	}
	n, m := int64(le.Uint32(b[48:])), int64(le.Uint32(b[52:]))
	head := frameHeaderBytes + (n+m)*recordBytes
	if f.sequence != sequence || f.journal != journal || f.at != at || n > maxFrameRecords || m > maxFrameRecords || head > f.bytes {
		return f, 0, errNoFrame
	}
	if int64(len(b)) < head {
		return f, int(head), nil
	}
	if block.Sum(b[8:head]) != f.sum {
		return f, 0, errNoFrame
	}
	directory := b[frameHeaderBytes:head]
	f.records, f.previous = make([]record, n), make([]record, m)
	for i := range f.records {
		f.records[i] = parseRecord(directory[i*recordBytes:])
	}
	for i := range f.previous {
		f.previous[i] = parseRecord(directory[(int(n)+i)*recordBytes:])
	}
	end := at + f.bytes
	for i := range f.records {
		if r := &f.records[i]; int64(r.offset) < at+head || r.payloadBytes() > end-int64(r.offset) {
			return f, 0, fmt.Errorf("%w: record %d has its payload elsewhere", errNoFrame, i)
		}
	}
	return f, int(head), nil
}

// segmentLimit is what 32 bits of an offset allow, in bytes.
const segmentLimit = math.MaxUint32 &^ (blockBytes - 1)
