package journal

import (
	"errors"
	"fmt"
)

// scan reads a segment frame by frame: one that has no footer.
type scan struct {
	*recovery
	labels
	last  bool   // no segment follows: its end may be torn
	first uint64 // the last batch before it

	window   []byte // what was read last
	windowAt int64
	held     []found // frames from a bad one on: whether they count is not known yet
	damaged  bool
}

// found is a frame, or what is known of one that is bad.
type found struct {
	frame
	bad     bool
	lost    []bool // per record: its payload cannot be read
	unknown bool   // it is not known what else lay between this one and the last
}

const windowBytes = 1 << 20

func (s *scan) run() error {
	at := int64(blockBytes)
	chain, batch := s.recovery.head.chain, s.first
	for {
		f, ok, err := s.read(at, s.bytes)
		if err != nil {
			return err
		}
		if ok && (f.batch != batch && f.batch != batch+1 || f.chain != chain) {
			ok = false // left over from an earlier end
		}
		if !ok {
			next, err := s.search(at, batch)
			if err != nil {
				return err
			}
			if next < 0 {
				break
			}
			f, _, err = s.read(next, s.bytes)
			if err != nil {
				return err
			}
			gone := found{frame: frame{at: at, bytes: next - at, batch: f.beforeIn, records: f.previous}, bad: true, lost: make([]bool, len(f.previous)), unknown: f.before != at}
			for i := range gone.records {
				if gone.lost[i], err = s.payload(s.segment, &gone.records[i]); err != nil {
					return err
				}
			}
			s.take(gone)
		}
		s.take(f)
		at, chain, batch = f.at+f.bytes, f.sum, f.batch
	}
	return s.end()
}

// read reads the frame at an offset, with all its payloads.
func (s *scan) read(at, end int64) (f found, ok bool, err error) {
	head, err := s.bytesAt(at, frameHeaderBytes)
	if err != nil || len(head) < frameHeaderBytes {
		return f, false, err
	}
	need := frameHeaderBytes
	for range 2 {
		b, err := s.bytesAt(at, need)
		if err != nil || len(b) < need {
			return f, false, err
		}
		fr, n, err := parseFrame(b, at, s.sequence, s.id)
		if errors.Is(err, errNoFrame) {
			return f, false, nil
		}
		if err != nil {
			return f, false, err
		}
		if n <= need {
			f.frame = fr
			break
		}
		need = n
	}
	if f.bytes == 0 || f.bytes > end-at {
		return f, false, nil
	}
	f.lost = make([]bool, len(f.records))
	for i := range f.records {
		rec := &f.records[i]
		n := int(rec.payloadBytes())
		b, err := s.bytesAt(int64(rec.offset), n)
		if err != nil {
			return f, false, err
		}
		if len(b) < n || rec.kind != kindLost && payloadSum(b[:rec.dataBytes], b[rec.dataBytes:]) != rec.sum {
			f.lost[i], f.bad = true, true
			continue
		}
		if rec.kind == kindGroup || rec.kind == kindStable {
			rec.data, rec.exts = append([]byte(nil), b[:rec.dataBytes]...), append([]byte(nil), b[rec.dataBytes:]...)
		}
	}
	return f, true, nil
}

// bytesAt returns n bytes of the segment, fewer at its end. They are valid until the next call.
func (s *scan) bytesAt(off int64, n int) ([]byte, error) {
	if off < s.windowAt || off+int64(n) > s.windowAt+int64(len(s.window)) {
		length := min(int64(max(n, windowBytes)), s.bytes-off)
		if length <= 0 {
			return nil, nil
		}
		if int64(cap(s.window)) < length {
			s.window = make([]byte, length)
		}
		s.window, s.windowAt = s.window[:length], off
		if err := s.dev.ReadAt(s.window, off); err != nil {
			s.window = s.window[:0]
			return nil, fmt.Errorf("journal: %s: %w", s.name, err)
		}
	}
	b := s.window[off-s.windowAt:]
	return b[:min(n, len(b))], nil
}

// searchBytes is how far behind a bad frame a good one is looked for: the bad one is at most a batch, and so is what follows.
const searchBytes = 2*batchBytes + 2*maxPayloadBytes

// search looks for the first good frame behind a bad one, if something shows that the bad one was durable; else it returns -1. batch is that
// of the last good one.
func (s *scan) search(bad int64, batch uint64) (int64, error) {
	var maybe []found // frames of the same batch, or the next: they count if what proves it goes on from them
	for at := bad + blockBytes; at+frameHeaderBytes <= s.bytes && at < bad+searchBytes; at += blockBytes {
		b, err := s.bytesAt(at, 4)
		if err != nil {
			return -1, err
		}
		if string(b) != frameMagic {
			continue
		}
		f, ok, err := s.read(at, s.bytes)
		switch {
		case err != nil:
			return -1, err
		case !ok || f.batch < batch:
		case f.batch > batch+1, f.before == bad && f.beforeIn == batch && f.batch > batch, !s.last && f.before == bad:
			for _, m := range maybe {
				if joined, err := s.joined(m, f); joined || err != nil {
					return m.at, err
				}
			}
			return at, nil
		case f.before >= bad && f.beforeIn >= batch:
			maybe = append(maybe, f)
		}
	}
	if !s.last && len(maybe) > 0 {
		return maybe[0].at, nil
	}
	return -1, nil
}

// joined says whether the frames from one to another are one behind the other.
func (s *scan) joined(from, to found) (bool, error) {
	for from.at < to.at {
		next, ok, err := s.read(from.at+from.bytes, s.bytes)
		if err != nil || !ok || next.chain != from.sum {
			return false, err
		}
		from = next
	}
	return from.at == to.at, nil
}

// take applies a frame, or holds it until it is known whether it counts.
func (s *scan) take(f found) {
	if len(s.held) > 0 && (f.batch > s.held[0].batch || !s.last) {
		s.settle()
	}
	if f.bad || len(s.held) > 0 {
		s.held = append(s.held, f)
		return
	}
	s.commit(f)
}

// settle applies what was held: it was durable once.
func (s *scan) settle() {
	for _, f := range s.held {
		if f.bad {
			s.damaged = true
			s.find(s.segment, f.at, "a frame of %d bytes and %d entries cannot be read, or not all of it", f.bytes, len(f.records))
		}
		if f.unknown {
			s.unknown = true
		}
		s.commit(f)
	}
	s.held = nil
}

// commit applies a frame.
func (s *scan) commit(f found) {
	h := &s.recovery.head
	for i := range f.records {
		s.apply(s.segment, &f.records[i], f.lost[i])
	}
	if f.batch != h.batch {
		h.batch, h.batchAt = f.batch, f.at
	}
	h.pass(&f.frame)
}

// end says where the journal goes on. What is still held was torn: nobody was told of it.
func (s *scan) end() error {
	if !s.last {
		s.settle()
		return nil
	}
	if s.labels.head == nil {
		s.find(s.segment, 0, "the header of the last segment cannot be read")
		s.damaged = true
	}
	// In its first batch is the table, which is needed when older segments are let go of; whether all of it is there does not show before the next batch.
	s.anew = s.damaged || s.recovery.head.batch < s.first+2
	return nil
}
