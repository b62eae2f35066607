package journal

import (
	"context"
	"errors"
	"time"

	"sanctuary/blockstore/vfs"
)

// The janitor makes the next segment ready, lets go of those of which nothing counts, and moves what keeps an old one alive: the few entries of a quiet
// group would otherwise keep everything that others have written since. Segments go in the order in which they came, so whatever a start
// reads goes on from what it read before.

// collect notes which segments are of no use any more. Called with mu held, after a batch is durable: the index has nothing that
// is not.
func (j *Journal) collect() {
	for len(j.index.segments) > 1 && j.index.segments[0].live == 0 {
		j.dead = append(j.dead, j.index.segments[0])
		j.index.segments = j.index.segments[1:]
		j.poke()
	}
}

func (j *Journal) janitor(ctx context.Context) {
	idle := time.NewTicker(j.opts.IdleAfter)
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-j.wake:
		case <-idle.C:
			j.mark()
			if !j.tight.Load() {
				continue
			}
		}
		for j.Failed() == nil && ctx.Err() == nil {
			more, err := j.tidy()
			if err != nil {
				_ = j.fail(err)
				break
			}
			if !more {
				break
			}
		}
	}
}

// mark writes an empty batch behind the last one if nothing has come since.
func (j *Journal) mark() {
	if j.marked.Load() || time.Since(j.opened)-time.Duration(j.wrote.Load()) < j.opts.IdleAfter {
		return
	}
	j.mu.Lock()
	if j.closed || j.Failed() != nil {
		j.mu.Unlock()
		return
	}
	_ = j.submit(&request{marker: true, done: make(chan error, 1)}) // the journal has failed then
}

// tidy does one thing that is to be done, and says whether there may be more.
func (j *Journal) tidy() (more bool, err error) {
	more, err = j.prepare()
	switch {
	case errors.Is(err, vfs.ErrNoSpace):
		j.strain(err)
	case more || err != nil:
		return more, err
	}
	return j.move()
}

// prepare makes the next segment ready, and deletes what is of no use any more.
func (j *Journal) prepare() (more bool, err error) {
	j.making.Lock()
	defer j.making.Unlock()
	j.mu.Lock()
	next := j.index.last().sequence + 1
	wanted := (j.ahead.Load() || j.tight.Load()) && (j.spare == nil || j.spare.sequence != next)
	j.mu.Unlock()
	if wanted {
		s, err := j.obtain(next)
		if err != nil {
			return false, err
		}
		j.ready(s)
		return true, nil
	}
	j.mu.Lock()
	if len(j.dead) == 0 || len(j.dead) == 1 && j.spare == nil { // one is kept, to be the next
		j.mu.Unlock()
		return false, nil
	}
	dead := j.dead[0]
	j.dead = j.dead[1:]
	j.mu.Unlock()
	if err := dead.dev.Close(); err != nil {
		return false, err
	}
	return true, j.folder.Remove(dead.name)
}

// obtain returns the file for the next segment: one that is of no use any more, or a new one. Called with making held.
func (j *Journal) obtain(sequence uint64) (*segment, error) {
	if sequence > maxSequence {
		return nil, errors.New("the journal has used up its sequence numbers")
	}
	j.mu.Lock()
	size := max(j.opts.SegmentBytes, roundUp(4*j.index.tableBytes()))
	var dead *segment
	if len(j.dead) > 0 && j.dead[0].bytes == size { // the oldest goes first: what is there is consecutive
		dead, j.dead = j.dead[0], j.dead[1:]
	}
	j.mu.Unlock()
	if dead == nil {
		return j.make(sequence, size)
	}
	name := segmentName(sequence)
	if err := j.folder.Rename(dead.name, name); err != nil {
		return nil, err
	}
	return &segment{sequence: sequence, name: name, dev: dead.dev, bytes: dead.bytes}, nil
}

func (j *Journal) make(sequence uint64, size int64) (*segment, error) {
	name := segmentName(sequence)
	dev, err := j.folder.Create(name, size)
	if err != nil {
		return nil, err
	}
	return &segment{sequence: sequence, name: name, dev: dev, bytes: dev.Size()}, nil
}

// ready offers the next segment. Nobody begins another one meanwhile: that takes making.
func (j *Journal) ready(s *segment) {
	j.mu.Lock()
	j.spare = s
	j.mu.Unlock()
	if j.tight.Swap(false) {
		j.opts.Logger.Info("there is room for the journal again")
	}
}

// movable: a segment is emptied when less than a quarter of it counts, and if at least as much is to be gained in all.
const (
	movableShare  = 4
	movableNumber = 3 // segments beside the last one, at least
)

// move stores again what still counts of the oldest segment, if that is little and the journal is larger than what is in it calls for.
func (j *Journal) move() (more bool, err error) {
	j.mu.Lock()
	segments := j.index.segments
	tight := j.tight.Load()
	if len(segments) <= movableNumber && !tight || len(segments) == 1 {
		j.mu.Unlock()
		return false, nil
	}
	oldest := segments[0]
	var bytes, live int64
	for _, s := range segments[:len(segments)-1] {
		bytes, live = bytes+s.bytes, live+s.liveSize
	}
	last := segments[len(segments)-1]
	if oldest.liveSize*movableShare > oldest.bytes || live*2 > bytes && !tight || tight && oldest.liveSize > j.reserve(last)/2 {
		j.mu.Unlock()
		return false, nil
	}
	var all []record
	for _, g := range j.index.groups {
		for i := range g.entries {
			if e := g.entries[i]; e.segment == uint32(oldest.sequence) {
				k := kindMoved
				if e.damaged {
					k = kindLost
				}
				all = append(all, record{
					group: g.number, kind: k, typ: e.typ, index: g.first + uint64(i), term: e.term, dataBytes: e.dataLen, extBytes: e.extLen, sum: e.sum, from: e.place(),
				})
			}
		}
	}
	j.mu.Unlock()
	if len(all) == 0 {
		return false, nil // a batch that is under way has ended it: collect will say so
	}
	for len(all) > 0 {
		r := &request{done: make(chan error, 1)}
		for size := int64(0); len(all) > 0 && size < frameBytes && len(r.records) < maxFrameRecords; all = all[1:] {
			m := all[0]
			buf := make([]byte, m.payloadBytes())
			err := oldest.dev.ReadAt(buf, int64(m.from.offset))
			if err != nil {
				return false, err
			}
			if m.kind == kindMoved {
				m.data, m.exts = buf[:m.dataBytes:m.dataBytes], buf[m.dataBytes:]
				if payloadSum(m.data, m.exts) != m.sum {
					m.kind, m.data, m.exts = kindLost, nil, nil
				}
			}
			r.records = append(r.records, m)
			size += int64(len(buf))
		}
		j.mu.Lock()
		if j.closed {
			j.mu.Unlock()
			return false, nil
		}
		if err := j.submit(r); err != nil {
			return false, nil // the journal has failed, or is closed: said elsewhere
		}
	}
	return true, nil
}
