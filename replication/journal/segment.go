package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
)

// A segment is one file, of fixed length, written with zeros before it is used: a write into it then changes no metadata of the file
// system, and fdatasync has one thing to wait for. A file that is no longer needed is used again.
//
//	block 0         header
//	blocks 1…       frames, one behind the other. The first ones restate every group (the table), so that what is older may go
//	after the last  the footer: the directories of all frames, in one piece       ┐ of a segment that is full
//	last block      trailer                                                        ┘
//
// Header, 64 bytes:  "SJs1", CRC32C of the rest, version (4), 4 × 0, sequence (8), journal (8), bytes of the file (8), last batch before it (8),
// chain before it (4), 0.
//
// Trailer, 64 bytes: "SJt1", CRC32C of the rest, version (4), records (4), sequence (8), journal (8), offset of the footer (8), last batch in it
// (8), chain at its end (4), CRC32C of the footer (4), 8 × 0.
const (
	headerMagic   = "SJs1"
	trailerMagic  = "SJt1"
	labelBytes    = 64
	formatVersion = 1
)

// segment is one file of the journal. Its fields are guarded by Journal.mu, but for those that never change.
type segment struct {
	sequence uint64 // never changes, as dev, name and bytes
	name     string
	dev      vfs.Dev
	bytes    int64
	sealed   bool
	live     int   // entries in it that count
	liveSize int64 // bytes of their payload
}

// header is what a segment begins with.
type header struct {
	sequence, journal, batch uint64
	bytes                    int64
	chain                    uint32
}

func (h header) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, blockBytes)
	le.PutUint64(b[16:], h.sequence)
	le.PutUint64(b[24:], h.journal)
	le.PutUint64(b[32:], uint64(h.bytes))
	le.PutUint64(b[40:], h.batch)
	le.PutUint32(b[48:], h.chain)
	return label(b, headerMagic)
}

// label fills in what a header and a trailer have in common.
func label(b []byte, magic string) []byte {
	copy(b, magic)
	binary.LittleEndian.PutUint32(b[8:], formatVersion)
	binary.LittleEndian.PutUint32(b[4:], block.Sum(b[8:labelBytes]))
	return b
}

// checkLabel returns errNoLabel if b does not begin with such a one, or ErrVersion.
func checkLabel(b []byte, magic string) error {
	le := binary.LittleEndian
	if string(b[:4]) != magic || le.Uint32(b[4:]) != block.Sum(b[8:labelBytes]) {
		return errNoLabel
	}
	if v := le.Uint32(b[8:]); v != formatVersion {
		return fmt.Errorf("the journal has %w %d, this program reads version %d", ErrVersion, v, formatVersion)
	}
	return nil
}

// errNoLabel: there is no header, or no trailer.
var errNoLabel = errors.New("nothing of the journal's")

func parseHeader(b []byte) (h header, err error) {
	le := binary.LittleEndian
	if err := checkLabel(b, headerMagic); err != nil {
		return h, err
	}
	return header{
		sequence: le.Uint64(b[16:]), journal: le.Uint64(b[24:]), bytes: int64(le.Uint64(b[32:])), batch: le.Uint64(b[40:]), chain: le.Uint32(b[48:]),
	}, nil
}

// trailer is what a full segment ends with.
type trailer struct {
	sequence, journal, batch uint64
	records                  uint32
	footer                   int64
	chain, sum               uint32
}

func (t trailer) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, blockBytes)
	le.PutUint32(b[12:], t.records)
	le.PutUint64(b[16:], t.sequence)
	le.PutUint64(b[24:], t.journal)
	le.PutUint64(b[32:], uint64(t.footer))
	le.PutUint64(b[40:], t.batch)
	le.PutUint32(b[48:], t.chain)
	le.PutUint32(b[52:], t.sum)
	return label(b, trailerMagic)
}

func parseTrailer(b []byte) (t trailer, err error) {
	le := binary.LittleEndian
	if err := checkLabel(b, trailerMagic); err != nil {
		return t, err
	}
	return trailer{
		records: le.Uint32(b[12:]), sequence: le.Uint64(b[16:]), journal: le.Uint64(b[24:]), footer: int64(le.Uint64(b[32:])), batch: le.Uint64(b[40:]),
		chain: le.Uint32(b[48:]), sum: le.Uint32(b[52:]),
	}, nil
}

// footerRoom is what a segment with so many records needs behind its last frame, in bytes.
func footerRoom(records int) int64 { return roundUp(int64(records)*recordBytes) + blockBytes }

const segmentSuffix = ".journal"

func segmentName(sequence uint64) string { return fmt.Sprintf("%016x%s", sequence, segmentSuffix) }

// segmentSequence returns which segment a file is, or is to be.
func segmentSequence(name string) (sequence uint64, ok bool) {
	hex, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(hex) != 16 {
		return 0, false
	}
	sequence, err := strconv.ParseUint(hex, 16, 64)
	return sequence, err == nil && sequence > 0
}

// Sequence numbers stay below 2³²: an entry in memory has four bytes for one. At 128 MiB each that is 512 PiB.
const maxSequence = 1<<32 - 1
