package journal

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
)

// How a journal is read at a start: of full segments the footers, of the last one every frame. So a start costs 56 bytes per entry that is
// kept, and one segment.
//
// In the last segment something may be missing that was being written when the power went. It is the rest of one batch, and nobody was told of it.
// Everything else that is missing was durable once, and is damage:
//
//   - A frame that cannot be read is of the batch of the last good one, L, or of L+1.
//   - If a good frame of a batch after L+1 follows, it was written when L+1 was durable: damage.
//   - If one of L+1 follows that says that the frame before it is the bad one, and of batch L: damage.
//   - Else the journal ends before the bad frame. What lies behind it, of that batch or left over from an earlier end, does not count.
//
// A frame whose header is good but not the payload of one of its records is bad in the same way; only more is known of it. What the
// format cannot tell apart is damage to the very last batch; therefore a batch is followed by an empty one when the journal is idle for a second, and when it is closed.
//
// What a bad frame held is in the second directory of the one after it. Only if several in a row are bad is it unknown what was lost; then every
// group is suspect (ErrDamaged), and its replica must begin anew.

// firstSegmentBytes is what the first segment of a new journal has at most, so that a node starts at once.
const firstSegmentBytes = 8 << 20

// Open opens the journal in the folder, and makes one if there is none. Only one process may have it open.
func Open(folder vfs.Folder, opts Options) (_ *Journal, err error) {
	opts, err = opts.withDefaults()
	if err != nil {
		return nil, err
	}
	j := &Journal{
		folder: folder, opts: opts, opened: time.Now(), index: newIndex(), logs: map[string]*groupLog{}, suspect: map[string]error{},
		wake: make(chan struct{}, 1), lead: make(chan struct{}, 1), hurried: make(chan struct{}, 1),
	}
	j.cache.limit = opts.CacheBytes
	r := &recovery{folder: folder, index: j.index, log: func(f block.Finding) {
		opts.Logger.Error("the journal is damaged: "+f.What, "file", f.Path, "offset", f.Offset)
	}}
	defer func() {
		if err != nil {
			for _, s := range j.index.segments {
				if !slices.Contains(r.opened, s) {
					err = errors.Join(err, s.dev.Close())
				}
			}
			err = errors.Join(err, r.close())
		}
	}()
	if err := r.run(); err != nil {
		return nil, err
	}
	j.index.done()
	if err := j.clean(); err != nil {
		return nil, err
	}
	j.id = r.id
	j.offer(r.spare)
	j.head = r.head
	for name, err := range r.suspects() {
		j.suspect[name] = err
	}
	if err := j.resume(r); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	j.stop = cancel
	j.wg.Go(func() { j.writer(ctx) })
	j.wg.Go(func() { j.janitor(ctx) })
	j.poke()
	return j, nil
}

// clean deletes what an attempt to make a segment has left that was cut off.
func (j *Journal) clean() error {
	names, err := j.folder.List()
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasSuffix(name, segmentSuffix+".new") {
			if err := j.folder.Remove(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// resume makes the journal one that can be written to.
func (j *Journal) resume(r *recovery) error {
	switch {
	case len(j.index.segments) == 0:
		var id [8]byte
		_, _ = rand.Read(id[:]) // it never fails
		j.id = binary.LittleEndian.Uint64(id[:])
		if j.spare != nil {
			if err := j.spare.dev.Close(); err != nil {
				return err
			}
			j.offer(nil)
		}
		s, err := j.make(1, min(j.opts.SegmentBytes, firstSegmentBytes))
		if err != nil {
			return err
		}
		if err := j.begin(s); err != nil {
			return err
		}
	case r.sealed:
		last := j.index.last()
		if err := last.dev.Sync(); err != nil { // its end may be all that is not: without it the frames are read
			return err
		}
		if err := j.goOn(last); err != nil {
			return err
		}
	case r.anew:
		last := j.index.last()
		if err := j.settle(last); err != nil {
			return err
		}
		if err := j.seal(last); err != nil {
			return err
		}
		if err := j.goOn(last); err != nil {
			return err
		}
	default:
		j.leave(j.index.last())
		return j.settle(j.index.last())
	}
	return j.index.last().dev.Sync()
}

// settle makes durable what was read. The process before may have been killed before it could sync; or its last sync may have failed, after which the system
// goes on showing what it has not written, and says of it that it has been synced. So the last batch is written again, the only one of which that can be so.
func (j *Journal) settle(s *segment) error {
	from := j.head.batchAt
	if from <= blockBytes {
		from = 0 // the first one: the header is as new
	}
	if b := make([]byte, j.head.at-from); len(b) > 0 {
		if err := s.dev.ReadAt(b, from); err != nil {
			return err
		}
		if err := s.dev.WriteAt(b, from); err != nil {
			return err
		}
	}
	return s.dev.Sync()
}

// recovery reads a journal. It writes nothing.
type recovery struct {
	folder vfs.Folder
	index  *index
	log    func(block.Finding)

	id     uint64
	opened []*segment
	spare  *segment
	head   head
	sealed bool // the last segment is full
	anew   bool // it is better not to go on in the last segment

	unknown bool                      // something is lost, and it is not known what
	values  map[uint32]map[value]bool // stable values that were read, by group
	missing map[uint32]map[value]bool // those that could not be
}

// value tells stable values apart.
type value struct{ sum, dataBytes, extBytes uint32 }

func noteValue(in map[uint32]map[value]bool, group uint32, v value) {
	if in[group] == nil {
		in[group] = map[value]bool{}
	}
	in[group][v] = true
}

func (r *recovery) find(s *segment, off int64, format string, args ...any) {
	r.log(block.Finding{Kind: "journal", Path: s.name, Offset: off, What: fmt.Sprintf(format, args...)})
}

func (r *recovery) close() error {
	var err error
	for _, s := range r.opened {
		err = errors.Join(err, s.dev.Close())
	}
	return err
}

// labels is what a file says of itself.
type labels struct {
	*segment
	head    *header
	tail    *trailer
	started bool // a frame of it is there, though it has no header
}

func (r *recovery) run() error {
	r.values, r.missing = map[uint32]map[value]bool{}, map[uint32]map[value]bool{}
	files, err := r.files()
	if err != nil {
		return err
	}
	var begun []labels
	for _, f := range files {
		switch {
		case f.head != nil || f.tail != nil || f.started:
			begun = append(begun, f)
		case r.spare == nil && f == files[len(files)-1]:
			r.spare = f.segment
		default:
			r.find(f.segment, 0, "%s has neither a header nor a trailer nor a frame of the journal's", f.name)
			begun = append(begun, f)
		}
	}
	if len(begun) > 0 && r.spare != nil && r.spare.sequence != begun[len(begun)-1].sequence+1 {
		r.spare = nil // it will be made anew
	}
	for i, f := range begun {
		if i > 0 && f.sequence != begun[i-1].sequence+1 {
			return fmt.Errorf("journal: the segments between %s and %s are missing, and with them entries that were acknowledged: %w", begun[i-1].name, f.name, ErrDamaged)
		}
		if i == 0 {
			if h := f.head; h != nil {
				r.head.batch, r.head.chain = h.batch, h.chain
			} else {
				r.find(f.segment, 0, "the header of the first segment cannot be read")
			}
		}
		r.index.segments = append(r.index.segments, f.segment)
		r.head.begin()
		last := i == len(begun)-1
		ok, err := r.footer(f)
		if err != nil {
			return err
		}
		r.sealed = ok
		f.sealed = ok
		if ok {
			continue
		}
		if !last {
			r.find(f.segment, f.bytes-blockBytes, "the footer of a full segment cannot be read: its frames are read instead")
		}
		if err := (&scan{recovery: r, labels: f, last: last, first: r.head.batch}).run(); err != nil {
			return err
		}
		if !last {
			if next := begun[i+1].head; next != nil && next.chain != r.head.chain {
				r.find(f.segment, r.head.at, "the last frames of a full segment cannot be read")
				r.unknown = true
				r.head.batch, r.head.chain = next.batch, next.chain
			}
		}
	}
	return nil
}

// files opens all segments, in order.
func (r *recovery) files() (files []labels, err error) {
	names, err := r.folder.List()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		sequence, ok := segmentSequence(name)
		if !ok {
			continue
		}
		dev, err := r.folder.Open(name)
		if err != nil {
			return nil, fmt.Errorf("journal: %w", err)
		}
		f := labels{segment: &segment{sequence: sequence, name: name, dev: dev, bytes: dev.Size()}}
		r.opened = append(r.opened, f.segment)
		if err := vfs.Forget(dev, 0, f.bytes); err != nil { // what the process before could not make durable
			return nil, fmt.Errorf("journal: %s: %w", name, err)
		}
		if err := r.label(&f); err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	slices.SortFunc(files, func(a, b labels) int { return cmp.Compare(a.sequence, b.sequence) })
	return files, nil
}

// label reads what a file says of itself.
func (r *recovery) label(f *labels) error {
	if f.bytes < 3*blockBytes || f.bytes%blockBytes != 0 {
		return nil
	}
	b := make([]byte, blockBytes)
	read := func(off int64) error {
		if err := f.dev.ReadAt(b, off); err != nil {
			return fmt.Errorf("journal: %s: %w", f.name, err)
		}
		return nil
	}
	same := func(journal uint64) error {
		if r.id != 0 && r.id != journal {
			return fmt.Errorf("journal: %s belongs to another journal than the files beside it", f.name)
		}
		r.id = journal
		return nil
	}
	if err := read(0); err != nil {
		return err
	}
	switch h, err := parseHeader(b); {
	case errors.Is(err, ErrVersion):
		return err
	case err == nil && h.sequence == f.sequence:
		f.head = &h
		if err := same(h.journal); err != nil {
			return err
		}
	}
	if err := read(f.bytes - blockBytes); err != nil {
		return err
	}
	switch t, err := parseTrailer(b); {
	case errors.Is(err, ErrVersion):
		return err
	case err == nil && t.sequence == f.sequence:
		f.tail = &t
		if err := same(t.journal); err != nil {
			return err
		}
	}
	if f.head == nil && f.tail == nil && r.id != 0 {
		if err := read(blockBytes); err != nil {
			return err
		}
		_, need, err := parseFrame(b, blockBytes, f.sequence, r.id)
		f.started = err == nil && need <= blockBytes
	}
	return nil
}

// footer applies a full segment by its footer; ok is false if it has none that can be read.
func (r *recovery) footer(f labels) (ok bool, err error) {
	t := f.tail
	if t == nil || t.footer < blockBytes || int64(t.records)*recordBytes > f.bytes-t.footer {
		return false, nil
	}
	b := make([]byte, int64(t.records)*recordBytes)
	if err := f.dev.ReadAt(b, t.footer); err != nil {
		return false, fmt.Errorf("journal: %s: %w", f.name, err)
	}
	if block.Sum(b) != t.sum {
		return false, nil
	}
	for ; len(b) > 0; b = b[recordBytes:] {
		rec := parseRecord(b)
		damaged := false
		if rec.kind == kindGroup || rec.kind == kindStable {
			if damaged, err = r.payload(f.segment, &rec); err != nil {
				return false, err
			}
		}
		r.apply(f.segment, &rec, damaged)
	}
	r.head.batch, r.head.chain = t.batch, t.chain
	return true, nil
}

// payload reads what a record carries.
func (r *recovery) payload(s *segment, rec *record) (damaged bool, err error) {
	n := rec.payloadBytes()
	if n > maxPayloadBytes || int64(rec.offset) > s.bytes-n {
		return true, nil
	}
	b := make([]byte, n)
	if err := s.dev.ReadAt(b, int64(rec.offset)); err != nil {
		return false, fmt.Errorf("journal: %s: %w", s.name, err)
	}
	rec.data, rec.exts = b[:rec.dataBytes:rec.dataBytes], b[rec.dataBytes:]
	return rec.kind != kindLost && payloadSum(rec.data, rec.exts) != rec.sum, nil
}

// apply lets a record take effect, and notes what cannot.
func (r *recovery) apply(s *segment, rec *record, damaged bool) {
	v := value{rec.sum, rec.dataBytes, rec.extBytes}
	switch {
	case rec.kind == kindStable && damaged:
		noteValue(r.missing, rec.group, v)
		r.find(s, int64(rec.offset), "a value of term or vote cannot be read; it is there twice")
		return
	case rec.kind == kindStable:
		noteValue(r.values, rec.group, v)
	case rec.kind == kindGroup && damaged:
		r.find(s, int64(rec.offset), "the name of a group cannot be read; it is there twice")
		known := ""
		if g := r.index.groups[rec.group]; g != nil {
			known = g.name
		}
		rec.data, damaged = []byte(known), false
	}
	if err := r.index.apply(s, rec, damaged); err != nil {
		r.find(s, int64(rec.offset), "%v", err)
		r.unknown = true
	}
}

// suspects returns the groups that must not go on from what is here.
func (r *recovery) suspects() map[string]error {
	out := map[string]error{}
	for number, g := range r.index.groups {
		if r.unknown {
			out[g.name] = ErrDamaged
		}
		for v := range r.missing[number] {
			if !r.values[number][v] {
				out[g.name] = fmt.Errorf("term or vote: %w", ErrDamaged)
			}
		}
	}
	return out
}
