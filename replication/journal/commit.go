package journal

import (
	"context"
	"slices"
	"time"

	"sanctuary/blockstore/block"
)

// Group commit. Whoever has something to store puts it into the queue. If nobody is writing, he writes himself, at depth 1 without another
// goroutine between him and the disk; otherwise it goes with the next batch, in which is everything that came while the last one
// was on its way. What was put in by nobody who waits (Append) is written by a goroutine of the journal's.
//
// One batch is under way at a time: it is written when the one before it is durable. Recovery relies on it (recover.go).

// request is what one caller wants to be durable.
type request struct {
	log     *groupLog
	records []record
	next    int        // records that were written already
	last    uint64     // the last entry in it that has not been cut off again; only of one that is in log.pending
	marker  bool       // an empty batch
	moved   bool       // a few entries whose segment comes free with that
	done    chan error // nil: nobody waits
}

// batchBytes bounds a batch, in bytes, unless one record is larger.
const batchBytes = 8 << 20

// submit queues a request and waits until it is durable, or, if nobody waits for it, returns at once. It is called with mu held, and
// returns without.
func (j *Journal) submit(r *request) error {
	j.queue = append(j.queue, r)
	j.queued.Add(r.cost())
	if j.leading {
		if j.tight.Load() && j.makesRoom(r) {
			j.hurry()
		}
		j.mu.Unlock()
	} else {
		j.leading = true
		j.mu.Unlock()
		if r.done == nil {
			j.lead <- struct{}{} // never blocks: whoever leads is the only one to send
		} else {
			j.write(r)
		}
	}
	if r.done == nil {
		return nil
	}
	return <-r.done
}

// writer leads when nobody who waits does.
func (j *Journal) writer(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-j.lead:
			j.write(nil)
		}
	}
}

// write leads until the queue is empty, or until mine is done and the writer can go on.
func (j *Journal) write(mine *request) {
	for {
		j.mu.Lock()
		if len(j.queue) == 0 {
			j.leading = false
			j.mu.Unlock()
			return
		}
		j.mu.Unlock()
		if mine != nil && len(mine.done) > 0 {
			j.lead <- struct{}{}
			return
		}
		j.batch()
	}
}

// batch makes durable what fits of what is queued.
func (j *Journal) batch() {
	err := j.Failed()
	var taken []*request
	if err == nil {
		j.writing.Store(int64(time.Since(j.opened)) | 1)
		taken, err = j.writeBatch()
		j.wrote.Store(int64(time.Since(j.opened)))
		j.writing.Store(0)
		if err != nil {
			err = j.fail(err)
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil {
		for _, r := range append(taken, j.queue...) {
			r.finish(err)
		}
		j.queue = nil
		j.queued.Store(0)
		for _, l := range j.logs {
			l.moved()
		}
		return
	}
	for i := range j.head.moved {
		if m := &j.head.moved[i]; !j.skip(m, nil) {
			j.mustApply(j.index.last(), m)
		}
	}
	j.head.moved = nil
	for _, r := range taken {
		r.finish(nil)
	}
	j.collect()
}

// mustApply: what a record of ours does to the index cannot fail, submit's callers have seen to it.
func (j *Journal) mustApply(s *segment, r *record) {
	if err := j.index.apply(s, r, false); err != nil {
		panic(err)
	}
}

func (r *request) finish(err error) {
	if l := r.log; l != nil {
		if len(l.pending) > 0 && l.pending[0] == r {
			l.pending[0] = nil
			l.pending = l.pending[1:]
		}
		if err == nil && r.last > l.durable {
			l.durable = r.last
			l.moved()
		}
	}
	if r.done != nil {
		select {
		case r.done <- err:
		default: // it is in taken, and in the queue with its rest
		}
	}
}

// writeBatch writes one batch, and a new segment before it if it does not fit. It returns the requests that are done with it.
func (j *Journal) writeBatch() (taken []*request, err error) {
	for {
		j.mu.Lock()
		cur := j.index.last()
		frames, done, full := j.take(cur)
		next := j.hasNext(cur)
		j.mu.Unlock()
		switch {
		case !full:
			return done, j.put(cur, frames[0].at)
		case next:
			err = j.turn(cur)
		default: // a segment is closed when there is another one: until then there is some room in it for what makes more
			err = j.awaitRoom()
			j.writing.Store(int64(time.Since(j.opened)) | 1)
		}
		if err != nil {
			return nil, err
		}
	}
}

// put writes the frames that were made, from an offset on, and syncs.
func (j *Journal) put(s *segment, at int64) error {
	h := &j.head
	if err := s.dev.WriteAt(h.buf, at); err != nil {
		return err
	}
	if err := s.dev.Sync(); err != nil {
		return err
	}
	h.batch++
	if cap(h.buf) > bufferBytes {
		h.buf = nil
	}
	return nil
}

// bufferBytes is how large a buffer is kept for the next batch.
const bufferBytes = 1 << 20

// take makes frames of what is queued, as far as it fits into the segment and a batch, and lets the index know. What the segment's reserve is not for stays in the
// queue, and others go before it. full says that nothing fits. Called with mu held.
func (j *Journal) take(s *segment) (frames []*frame, done []*request, full bool) {
	h := &j.head
	h.buf = h.buf[:0]
	all := s.bytes - h.at
	reserve := j.reserve(s)
	var kept []*request // they wait for the next segment
	var records []record
	var size int64
	flush := func() {
		frames = append(frames, h.frame(s, j.id, records))
		for i := range records {
			if k := records[i].kind; k == kindMoved || k == kindLost {
				h.moved = append(h.moved, records[i]) // it is read where it was until it is where it will be
				continue
			}
			j.mustApply(s, &records[i])
		}
		records, size = nil, 0
	}
	n := 0
queue:
	for _, r := range j.queue {
		room := all
		if reserve > 0 && !j.makesRoom(r) {
			room -= reserve
			if len(kept) > 0 { // in their order
				kept, n = append(kept, r), n+1
				continue
			}
		}
		for r.next < len(r.records) {
			rec := &r.records[r.next]
			if j.skip(rec, records) {
				r.next++
				continue
			}
			more := recordBytes + rec.payloadBytes()
			frameNow := frameHeaderBytes + int64(len(records)+len(h.previous))*recordBytes + size
			grown := int64(len(h.buf)) + roundUp(frameNow+more) + footerRoom(h.records+len(records)+1)
			if grown > room && reserve > 0 { // something smaller behind it may be what makes room
				kept, n = append(kept, r), n+1
				continue queue
			}
			if grown > room || int64(len(h.buf))+frameNow+more > batchBytes && len(records)+len(frames) > 0 {
				if len(records) > 0 {
					flush()
				}
				if len(frames) == 0 {
					return nil, nil, true
				}
				j.keep(append(kept, j.queue[n:]...))
				j.leave(s)
				j.marked.Store(false)
				if !j.ahead.Swap(true) {
					j.poke()
				}
				return frames, done, false
			}
			if len(records) == maxFrameRecords || size+more > frameBytes && len(records) > 0 {
				flush()
				continue
			}
			records, size = append(records, *rec), size+more
			r.next++
		}
		done = append(done, r)
		n++
	}
	if len(records)+len(frames)+len(done) == 0 {
		return nil, nil, true
	}
	j.keep(kept)
	if len(records) > 0 || len(frames) == 0 { // an empty one is a marker, or all that was to be moved has gone
		if len(records) == 0 && h.at+roundUp(frameHeaderBytes+int64(len(h.previous))*recordBytes)+footerRoom(h.records) > s.bytes {
			j.keep(append(done, kept...))
			return nil, nil, true
		}
		flush()
	}
	if h.at > s.bytes/2 && !j.ahead.Swap(true) {
		j.poke()
	}
	j.leave(s)
	j.marked.Store(len(frames) == 1 && len(frames[0].records) == 0)
	return frames, done, false
}

// skip says that a record need not be written any more: an entry to be moved that has gone, or anything of a group that has. before is what
// is in the frame already, and not yet in the index: an entry that was moved behind its own end would count again for whoever reads the journal
// when its first place is gone.
func (j *Journal) skip(rec *record, before []record) bool {
	g := j.index.groups[rec.group]
	switch {
	case rec.kind == kindGroup:
		return false
	case g == nil:
		return !slices.ContainsFunc(before, func(r record) bool { return r.kind == kindGroup && r.group == rec.group })
	case rec.kind == kindMoved || rec.kind == kindLost:
		e := g.at(rec.index)
		return e == nil || e.term != rec.term || e.place() != rec.from || slices.ContainsFunc(before, func(o record) bool {
			return o.group == rec.group && o.ends(rec.index)
		})
	}
	return false
}

// frame makes the next frame and appends its bytes to buf.
func (h *head) frame(s *segment, journal uint64, records []record) *frame {
	f := &frame{sequence: s.sequence, journal: journal, batch: h.batch + 1, at: h.at, chain: h.chain, before: h.before, beforeIn: h.beforeIn, records: records, previous: h.previous}
	h.buf = f.encode(h.buf)
	h.pass(f)
	return f
}

// bare copies records without what they carry.
func bare(records []record) []record {
	out := make([]record, len(records))
	for i, r := range records {
		r.data, r.exts = nil, nil
		out[i] = r
	}
	return out
}

// turn closes the segment and begins the next one.
func (j *Journal) turn(cur *segment) error {
	if !cur.sealed { // it is only if there was no room at the start; nobody but whoever leads changes that
		if err := j.seal(cur); err != nil {
			return err
		}
	}
	return j.advance(cur)
}

// advance begins the segment behind one that is full.
func (j *Journal) advance(cur *segment) error {
	j.making.Lock() // until it is the last one: the janitor makes the one after that
	defer j.making.Unlock()
	next, err := j.nextSegment(cur.sequence + 1)
	if err != nil {
		return err
	}
	return j.begin(next)
}

// seal writes the footer and the trailer of a segment, and makes them durable.
func (j *Journal) seal(s *segment) error {
	h := &j.head
	footer := make([]byte, roundUp(int64(len(h.footer))))
	copy(footer, h.footer)
	if err := s.dev.WriteAt(footer, h.at); err != nil {
		return err
	}
	t := trailer{
		sequence: s.sequence, journal: j.id, batch: h.batch, records: uint32(h.records), footer: h.at, chain: h.chain, sum: block.Sum(h.footer),
	}
	if err := s.dev.WriteAt(t.encode(), s.bytes-blockBytes); err != nil {
		return err
	}
	if err := s.dev.Sync(); err != nil {
		return err
	}
	j.mu.Lock()
	s.sealed = true
	j.mu.Unlock()
	return nil
}

// begin makes a segment the one that is written to. Its header and table become durable with the first batch.
func (j *Journal) begin(s *segment) error {
	h := &j.head
	j.ahead.Store(false)
	j.mu.Lock()
	j.index.segments = append(j.index.segments, s) // whatever becomes of it, it is closed with them
	j.mu.Unlock()
	first := header{sequence: s.sequence, journal: j.id, batch: h.batch, bytes: s.bytes, chain: h.chain}
	if err := s.dev.WriteAt(first.encode(), 0); err != nil {
		return err
	}
	h.begin()
	j.mu.Lock()
	h.buf = h.buf[:0]
	for range 2 { // it may be the only place that has a name or a vote, and damage to one place must not lose them
		for table := j.index.table(); len(table) > 0; {
			n, size := 0, int64(0)
			for n < len(table) && n < maxFrameRecords && (n == 0 || size+table[n].payloadBytes() < frameBytes) {
				size += table[n].payloadBytes()
				n++
			}
			h.frame(s, j.id, table[:n])
			table = table[n:]
		}
	}
	j.leave(s)
	j.mu.Unlock()
	return s.dev.WriteAt(h.buf, blockBytes)
}

// tableBytes is what the table takes in a segment, in bytes, at most.
func (x *index) tableBytes() int64 {
	var n int64
	for _, g := range x.groups {
		n += 3*recordBytes + int64(len(g.name))
		for key, value := range g.stable {
			n += 3*recordBytes + int64(len(key)+len(value))
		}
	}
	return 2*n + n/8 + 4*blockBytes // twice, and frames filled up
}

// nextSegment returns the file for the next segment: the one that the janitor has made ready, or a new one. While there is no room on the file system
// it waits: a log is cut off, or somebody frees room. Called with making held.
func (j *Journal) nextSegment(sequence uint64) (*segment, error) {
	for {
		s, err := j.pick(sequence)
		if err == nil {
			return s, nil
		}
		if err := j.noRoom(err); err != nil {
			return nil, err
		}
	}
}

// pick is nextSegment without the waiting.
func (j *Journal) pick(sequence uint64) (*segment, error) {
	j.mu.Lock()
	s := j.spare
	ready := s != nil && s.sequence == sequence
	if ready {
		j.offer(nil)
	}
	j.mu.Unlock()
	if !ready {
		var err error
		if s, err = j.obtain(sequence); err != nil {
			return nil, err
		}
	}
	j.poke()
	return s, nil
}

// poke wakes the janitor.
func (j *Journal) poke() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}
