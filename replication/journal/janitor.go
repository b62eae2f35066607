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
	if j.closed || j.leading || j.Failed() != nil { // somebody writes, or waits for room
		j.mu.Unlock()
		return
	}
	_ = j.submit(&request{marker: true}) // nobody waits: the janitor may be needed to make room for it
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
	keep := len(j.dead) == 0 || len(j.dead) == 1 && j.spare == nil // one, to be the next
	j.mu.Unlock()
	if keep {
		return false, nil
	}
	return true, j.discard(j.oldestDead())
}

// oldestDead takes the oldest segment that is of no use any more off the list, nil if there is none: the oldest goes first, so what is there is consecutive. Called
// with making held.
func (j *Journal) oldestDead() *segment {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.dead) == 0 {
		return nil
	}
	dead := j.dead[0]
	j.dead = j.dead[1:]
	return dead
}

func (j *Journal) discard(dead *segment) error {
	if err := dead.dev.Close(); err != nil {
		return err
	}
	return j.folder.Remove(dead.name)
}

// obtain returns the file for the next segment: one that is of no use any more, or a new one. Called with making held.
func (j *Journal) obtain(sequence uint64) (*segment, error) {
	if sequence > maxSequence {
		return nil, errors.New("the journal has used up its sequence numbers")
	}
	j.mu.Lock()
	size := max(j.opts.SegmentBytes, roundUp(4*j.index.tableBytes()))
	j.mu.Unlock()
	dead := j.oldestDead()
	for dead != nil && dead.bytes != size {
		if err := j.discard(dead); err != nil {
			return nil, err
		}
		dead = j.oldestDead()
	}
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
	j.offer(s)
	j.mu.Unlock()
	j.tight.Store(false)
}

// offer makes s the next segment, nil: there is none. Called with mu held, or at the start.
func (j *Journal) offer(s *segment) {
	j.spare = s
	if s == nil {
		j.next.Store(0)
		return
	}
	j.next.Store(max(1, s.bytes-2*s.bytes/reserveShare-j.index.tableBytes()))
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
	// Without room what is moved must fit into half of what is left, with the directories of its frames: the other half is for votes, and what cuts logs off.
	cost := oldest.liveSize + int64(oldest.live)*3*recordBytes + (oldest.liveSize/frameBytes+int64(oldest.live)/maxFrameRecords+2)*blockBytes
	if oldest.liveSize*movableShare > oldest.bytes || live*2 > bytes && !tight || tight && cost > (j.left.Load()+2*j.reserve(segments[len(segments)-1]))/2 {
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
		r := &request{moved: tight, done: make(chan error, 1)}
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
