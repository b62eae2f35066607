package journal

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/hashicorp/raft-wal/segment"
)

// What to do where a frame should be and is none: look for the next entry whose seal is right, and see whether a whole write follows.

// gap is a place where a frame should be and is none.
type gap struct {
	at      int64
	next    uint64 // index that was expected
	resumed uint64
	writes  []*write // that follow, until it is known what they are
}

// closeGap reports what is no frame though a whole write follows.
func (s *segmentScan) closeGap() {
	g := s.gap
	s.gap = nil
	s.settle(false)
	missing := "the frame of no entry"
	if g.resumed > g.next {
		missing = fmt.Sprintf("entries %d to %d", g.next, g.resumed-1)
	}
	s.find("frame", g.at, fmt.Sprintf("there is no frame where one should be, and a write that is whole follows: %s cannot be read", missing),
		"The log is taken to end here: what follows, though it was acknowledged, would be cut off at the next start. "+dataReplica)
	s.last.Index = max(s.last.Index, g.resumed-1)
	for _, w := range g.writes {
		s.held = w
		s.settle(false)
	}
	s.held = nil
}

const blankBytes = 4096

var blank [blankBytes]byte

// resume looks for the next entry behind a place where there is no frame.
func (s *segmentScan) resume() (more bool, err error) {
	if s.gap != nil && !s.gapGoesOn() {
		return false, nil
	}
	bad := s.off
	for p := bad + frameHeader; p+frameHeader <= s.report.Bytes; p += frameHeader {
		if p%blankBytes == 0 { // most of what was never written
			b, err := s.at(p, blankBytes)
			if err != nil {
				return false, err
			}
			if len(b) == blankBytes && bytes.Equal(b, blank[:]) {
				p += blankBytes - frameHeader
				continue
			}
		}
		head, err := s.at(p, frameHeader)
		if err != nil || len(head) < frameHeader {
			return false, err
		}
		n := int(binary.LittleEndian.Uint32(head[4:]))
		if head[0] != segment.FrameEntry || head[1]|head[2]|head[3] != 0 || n > segment.MaxEntrySize || p+frameHeader+int64(n) > s.report.Bytes {
			continue
		}
		b, err := s.at(p, frameHeader+n)
		if err != nil || len(b) < frameHeader+n {
			return false, err
		}
		l, err := decodeEntry(b[frameHeader:])
		if err != nil || l.Index < s.next || l.Index-s.next > uint64(s.report.Bytes) {
			continue
		}
		s.gap = &gap{at: bad, next: s.next, resumed: l.Index}
		for s.next < l.Index {
			s.offsets, s.next = append(s.offsets, 0), s.next+1
		}
		s.off, s.w.unknown = p, true
		return true, nil
	}
	if !s.tail && s.gap == nil {
		s.find("frame", bad, fmt.Sprintf("there is no frame where one should be: nothing from entry %d on can be read", s.next), "")
		s.finished = true
	}
	return false, nil
}

// gapGoesOn says whether a second place without a frame belongs to a gap that is known to be one: in a closed segment it always does.
func (s *segmentScan) gapGoesOn() bool {
	if s.tail {
		return false
	}
	s.w.unknown = true
	s.gap.writes = append(s.gap.writes, &write{at: s.w.at, end: s.off, unknown: true, entries: s.w.entries})
	s.closeGap()
	return true
}
