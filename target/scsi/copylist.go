package scsi

import (
	"encoding/binary"

	"sanctuary/blockstore/block"
)

// What EXTENDED COPY (LID1) may ask for at the most. RECEIVE COPY RESULTS (OPERATING PARAMETERS) and VPD page 8Fh report these.
const (
	maxCopyCSCDs     = 16
	maxCopySegments  = 16
	maxCopyListBytes = 1024 // CSCD and segment descriptors together
	// maxSegmentBytes bounds the work of one segment. As much as LIO allows, so that ESXi can move what it asks for.
	maxSegmentBytes = 256 << 20
	// copyGranularity is the power of two of which every segment is a multiple, in bytes: one sector.
	copyGranularity = 9
	// maxCopies is how many EXTENDED COPY commands a unit carries out at once.
	maxCopies = 16
)

// Descriptor type codes of EXTENDED COPY (SPC-4 r37 §6.4.5.1, §6.4.6.1).
const (
	segmentBlocks  = 0x02 // block device to block device
	segmentOffsets = 0x0A // block device to block device, each with an offset in bytes
	cscdIdentified = 0xE4 // identification descriptor
)

const (
	copyHeaderBytes     = 16
	cscdBytes           = 32
	segmentBlocksBytes  = 28
	segmentOffsetsBytes = 32
	// cscdSelf is the CSCD descriptor ID that stands for the logical unit the command was sent to.
	cscdSelf = 0xFFFF
)

// List identifier usage (SPC-4 r37 §6.4.3.2).
const (
	copyHolds    = 0 // status is kept until it is asked for
	copyDiscards = 2 // status need not be kept
	copyUnnamed  = 3 // no list identifier
)

var (
	senseTooManyCSCDs     = &Sense{Key: IllegalRequest, Code: 0x2606} // too many target descriptors
	senseUnknownCSCD      = &Sense{Key: IllegalRequest, Code: 0x2607} // unsupported target descriptor type code
	senseTooManySegments  = &Sense{Key: IllegalRequest, Code: 0x2608} // too many segment descriptors
	senseUnknownSegment   = &Sense{Key: IllegalRequest, Code: 0x2609} // unsupported segment descriptor type code
	senseInlineData       = &Sense{Key: IllegalRequest, Code: 0x260B} // inline data length exceeded
	senseCopyInProgress   = &Sense{Key: IllegalRequest, Code: 0x0016} // operation in progress
	codeNoInformation     = uint16(0x0000)
	codeUnreachableTarget = uint16(0x0804) // unreachable copy target
	codeThirdPartyFailed  = uint16(0x0D01) // third party device failure
	codeNotReachable      = uint16(0x0D02) // copy target device not reachable
	codeWrongDeviceType   = uint16(0x0D03) // incorrect copy target device type
	codeInexactSegment    = uint16(0x260A) // unexpected inexact segment
	codeGranularity       = uint16(0x260E) // copy segment granularity violation
)

// copyList is the parameter list of EXTENDED COPY (LID1), taken apart.
type copyList struct {
	id       byte
	usage    byte
	cscds    []cscd
	segments []segment
}

// cscd is an identification CSCD descriptor: a copy source or destination.
type cscd struct {
	null       bool // obsolete NUL bit: a device that takes part in nothing
	peripheral byte
	codeSet    byte
	kind       byte // ASSOCIATION and DESIGNATOR TYPE, as in VPD page 83h
	designator []byte
	blockBytes int // 0: not said
}

// segment is a segment descriptor, still as it came: whether its CSCDs exist and its ranges lie within them is checked
// before the first segment is processed.
type segment struct {
	offset   int // of the descriptor in the parameter list, for sense data
	kind     byte
	from, to uint16 // CSCD descriptor IDs
	count    uint64 // segmentBlocks: logical blocks of the destination if countTo, else of the source; segmentOffsets: bytes
	countTo  bool
	fromLBA  uint64
	toLBA    uint64
	fromSkip uint16 // bytes behind the LBA, segmentOffsets only
	toSkip   uint16
}

// parseCopyList checks the shape of a parameter list of at least copyHeaderBytes. It refuses what SPC-4 r37 §6.4.3 lets a
// copy manager refuse before anything is copied; whatever lies behind the descriptors it announces is ignored.
func parseCopyList(b []byte) (copyList, error) {
	l := copyList{id: b[0], usage: b[1] >> 3 & 0x03}
	cscdLen := uint64(binary.BigEndian.Uint16(b[2:]))
	segmentLen := uint64(binary.BigEndian.Uint32(b[8:]))
	inlineLen := binary.BigEndian.Uint32(b[12:])
	switch {
	case l.usage == 1, l.usage == copyUnnamed && l.id != 0:
		return l, senseInvalidList
	case inlineLen > 0: // MAXIMUM INLINE DATA LENGTH is 0
		return l, senseInlineData
	case cscdLen+segmentLen > maxCopyListBytes, cscdLen+segmentLen > uint64(len(b)-copyHeaderBytes):
		return l, senseListLength
	}
	cscds := b[copyHeaderBytes:][:cscdLen]
	for ; len(cscds) > 0; cscds = cscds[cscdBytes:] {
		switch {
		case cscds[0] != cscdIdentified:
			return l, senseUnknownCSCD
		case len(cscds) < cscdBytes:
			return l, senseListLength
		case len(l.cscds) == maxCopyCSCDs:
			return l, senseTooManyCSCDs
		}
		c := cscds[:cscdBytes]
		if c[7] > 20 {
			return l, senseInvalidList
		}
		l.cscds = append(l.cscds, cscd{
			null: c[1]&0x20 != 0, peripheral: c[1] & 0x1F, codeSet: c[4] & 0x0F, kind: c[5] & 0x3F, designator: c[8 : 8+c[7]],
			blockBytes: int(c[29])<<16 | int(c[30])<<8 | int(c[31]),
		})
	}
	return l, l.parseSegments(b, copyHeaderBytes+int(cscdLen), int(segmentLen))
}

// parseSegments takes the length bytes of b from start on for segment descriptors.
func (l *copyList) parseSegments(b []byte, start, length int) error {
	for at := start; at < start+length; {
		d := b[at : start+length]
		size := segmentBlocksBytes
		switch d[0] {
		case segmentBlocks:
		case segmentOffsets:
			size = segmentOffsetsBytes
		default:
			return senseUnknownSegment
		}
		switch {
		case len(d) < size:
			return senseListLength
		case int(binary.BigEndian.Uint16(d[2:])) != size-4: // DESCRIPTOR LENGTH
			return senseInvalidList
		case len(l.segments) == maxCopySegments:
			return senseTooManySegments
		}
		s := segment{
			offset: at, kind: d[0],
			from: binary.BigEndian.Uint16(d[4:]), to: binary.BigEndian.Uint16(d[6:]),
			fromLBA: binary.BigEndian.Uint64(d[12:]), toLBA: binary.BigEndian.Uint64(d[20:]),
		}
		if s.kind == segmentBlocks {
			s.count, s.countTo = uint64(binary.BigEndian.Uint16(d[10:])), d[1]&0x02 != 0
		} else {
			s.count = uint64(binary.BigEndian.Uint32(d[8:]))
			s.fromSkip, s.toSkip = binary.BigEndian.Uint16(d[28:]), binary.BigEndian.Uint16(d[30:])
		}
		l.segments = append(l.segments, s)
		at += size
	}
	return nil
}

// copyAborted is the sense of a segment that cannot be processed (SPC-4 r37 §5.17.7.4): its number goes to bytes 2 and 3 of
// COMMAND-SPECIFIC INFORMATION, and SENSE KEY SPECIFIC points at the field of its descriptor.
func copyAborted(code uint16, number int, at int) *Sense {
	s := &Sense{Key: CopyAborted, Code: code, Specific: uint32(number)}
	if at >= 0 {
		s.KeySpecific = [3]byte{0x80 | 0x20 /* SD: within the segment descriptor */, byte(at >> 8), byte(at)}
	}
	return s
}

// move is a segment with everything resolved and checked: what is to be copied, in sectors.
type move struct {
	number   int
	from, to *copyUnit
	source   block.Range
	target   block.Sector
}

// overlaps says whether the move reads what it writes.
func (m *move) overlaps() bool {
	return m.from.unit == m.to.unit && m.source.Overlaps(block.Range{Start: m.target, Count: m.source.Count})
}

// place turns a position in a CSCD, from its descriptor, into a range of bytes, which must be whole sectors within the unit.
func place(g block.Geometry, lba uint64, skip uint16, bytes int64) (rng block.Range, ok bool) {
	size := uint64(g.LogicalBlockBytes)
	capacity := uint64(g.Capacity.Bytes())
	if lba > capacity/size || uint64(skip) >= size {
		return rng, false
	}
	if off := lba*size + uint64(skip); off <= capacity && uint64(bytes) <= capacity-off {
		return block.BytesRange(int64(off), bytes), true
	}
	return rng, false
}

// resolve checks a segment against its CSCDs. units finds a CSCD; it returns the code of a COPY ABORTED if that fails.
func (s *segment) resolve(number int, find func(id uint16) (*copyUnit, uint16)) (move, error) {
	from, code := find(s.from)
	if from == nil {
		return move{}, copyAborted(code, number, 4)
	}
	to, code := find(s.to)
	if to == nil {
		return move{}, copyAborted(code, number, 6)
	}
	fromSize, toSize := int64(from.geo.LogicalBlockBytes), int64(to.geo.LogicalBlockBytes)
	bytes := int64(s.count) // at most 32 bits
	if s.kind == segmentBlocks {
		counted := fromSize
		if s.countTo {
			counted = toSize
		}
		if bytes *= counted; bytes%fromSize != 0 || bytes%toSize != 0 {
			return move{}, copyAborted(codeInexactSegment, number, 10) // neither CAT nor PAD is honoured
		}
	} else if bytes%block.SectorSize != 0 || s.fromSkip%block.SectorSize != 0 || s.toSkip%block.SectorSize != 0 {
		return move{}, copyAborted(codeGranularity, number, 8)
	}
	if bytes > maxSegmentBytes {
		return move{}, senseInvalidList
	}
	source, ok := place(from.geo, s.fromLBA, s.fromSkip, bytes)
	if !ok {
		return move{}, copyAborted(codeNoInformation, number, 12)
	}
	target, ok := place(to.geo, s.toLBA, s.toSkip, bytes)
	if !ok {
		return move{}, copyAborted(codeNoInformation, number, 20)
	}
	return move{number: number, from: from, to: to, source: source, target: target.Start}, nil
}
