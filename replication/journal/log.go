package journal

import (
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
)

// Log is a Raft group's log and stable state. Concurrent-safe.
type Log interface {
	raft.LogStore    // StoreLogs returns when the entries are durable
	raft.StableStore // Set returns when the value is durable
	// Append is StoreLogs without the waiting: the entries can be read, and will be durable. They must not be changed any more.
	Append(logs []*raft.Log) error
	// AwaitDurable returns nil when the log is durable up to index, as it was when Append was called for it. It returns an error if the journal has failed, if the entry
	// has been cut off, or when quit is closed.
	AwaitDurable(index uint64, quit <-chan struct{}) error
	// Durable returns the index up to which the log is durable.
	Durable() uint64
	// Snapshots returns the store of snapshot metadata that belongs to this log.
	Snapshots() *Snapshots
	// Reset drops the whole log, so that the next entry may have any index. Term and vote stay.
	Reset() error
	// Damaged returns the entries of which only that they were there is known, lowest index first.
	Damaged() []Damage
	// Mend stores a damaged entry again. It returns an error if what it is given is not that entry.
	Mend(l *raft.Log) error
	// Head returns what is known of an entry without reading it: index, term and type.
	Head(index uint64, out *raft.Log) error
	// Bytes returns what the log's entries occupy, in bytes.
	Bytes() int64
	// Stalled returns for how long the write under way has been waiting for the disk, 0 if there is none.
	Stalled() time.Duration
	// Tight says that the journal's file system has no room for the next segment: whoever has a log is to cut it off at the front, as far as can be.
	Tight() bool
	// Takes says whether entries that are stored now will be at once. If not, they wait until logs have been cut off, which a caller of StoreLogs may be needed for.
	Takes() bool
	// Admit is Takes for entries of some bytes, as Cost counts them, beside all others that are on their way to the journal. If it says yes they are on their way too,
	// until they have been stored, or never will be, and Arrived is told.
	Admit(bytes int64) bool
	Arrived(bytes int64)
	// Failed returns the error that made the journal unusable, or nil.
	Failed() error
	io.Closer
}

// ErrTooLarge: an entry beyond what a segment can hold.
var ErrTooLarge = errors.New("the entry is too large for the journal's segments")

// ErrCutOff: the entry has been replaced or cut off.
var ErrCutOff = errors.New("the entry is not in the log any more")

// groupLog is a group's log in a journal. What is asked for takes effect here at once, and in Journal.index when it is written:
// what lies between the two is in recent.
type groupLog struct {
	j         *Journal
	name      string
	recent    *recent
	snapshots *Snapshots

	// Guarded by Journal.mu.
	number      uint32 // 0: nothing was ever stored
	named       int    // how often the name has been written since the log was opened, of a new one
	first, last uint64 // 0 and 0: empty
	durable     uint64
	era         uint64     // counts what cuts the log off at the back
	pending     []*request // what Append and StoreLogs have asked for, in order
	waiters     chan struct{}
	closed      bool
	voteTerm    []byte // written by Raft, not yet stored: waits for its candidate
}

// newGroupLog is called with mu held.
func newGroupLog(j *Journal, name string) (*groupLog, error) {
	l := &groupLog{j: j, name: name, recent: &recent{shared: &j.cache}}
	if g := j.index.names[name]; g != nil {
		l.number = g.number
		l.first, l.last = g.bounds()
		l.durable = l.last
	}
	l.recent.keep.Store(l.durable)
	s, err := openSnapshots(l.stable(keySnapshot), func(raw []byte) error { return l.Set([]byte(keySnapshot), raw) })
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	l.snapshots = s
	return l, nil
}

func (l *groupLog) group() *groupIndex { return l.j.index.groups[l.number] }

// stable is called with mu held.
func (l *groupLog) stable(key string) []byte {
	if g := l.group(); g != nil {
		return g.stable[key]
	}
	return nil
}

func (l *groupLog) Snapshots() *Snapshots  { return l.snapshots }
func (l *groupLog) Failed() error          { return l.j.Failed() }
func (l *groupLog) Stalled() time.Duration { return l.j.Stalled() }

func (l *groupLog) Tight() bool { return l.j.tight.Load() }
func (l *groupLog) Takes() bool { return l.j.takes() }

func (l *groupLog) Admit(bytes int64) bool { return l.j.admit(bytes) }
func (l *groupLog) Arrived(bytes int64)    { l.j.onWay.Add(-bytes) }

func (l *groupLog) Bytes() int64 {
	l.j.mu.Lock()
	defer l.j.mu.Unlock()
	if g := l.group(); g != nil {
		return g.bytes
	}
	return 0
}

func (l *groupLog) FirstIndex() (uint64, error) {
	l.j.mu.Lock()
	defer l.j.mu.Unlock()
	return l.first, nil
}

func (l *groupLog) LastIndex() (uint64, error) {
	l.j.mu.Lock()
	defer l.j.mu.Unlock()
	return l.last, nil
}

// ready is called with mu held, and returns what a record needs first.
func (l *groupLog) ready() (records []record, err error) {
	switch {
	case l.closed || l.j.closed:
		return nil, block.ErrClosed
	case l.j.Failed() != nil:
		return nil, l.j.Failed()
	}
	switch {
	case l.number == 0:
		l.number = l.j.index.next
		l.j.index.next++
		l.named = 1
	case l.named == 1:
		l.named = 2 // again, in another batch: damage to one place must not lose the name
	default:
		return nil, nil
	}
	return append(records, newRecord(record{group: l.number, kind: kindGroup, data: []byte(l.name)})), nil
}

func (l *groupLog) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

func (l *groupLog) StoreLogs(logs []*raft.Log) error { return l.append(logs, true) }

func (l *groupLog) Append(logs []*raft.Log) error { return l.append(logs, false) }

func (l *groupLog) append(logs []*raft.Log, wait bool) error {
	if len(logs) == 0 {
		return l.Failed()
	}
	r := &request{log: l, records: make([]record, 0, len(logs)+1), last: logs[len(logs)-1].Index}
	if wait {
		r.done = make(chan error, 1)
	}
	limit := int(min(maxPayloadBytes, l.j.opts.SegmentBytes/2))
	for i, e := range logs {
		if len(e.Data)+len(e.Extensions) > limit {
			return fmt.Errorf("entry %d of %d bytes: %w (at most %d)", e.Index, len(e.Data)+len(e.Extensions), ErrTooLarge, limit)
		}
		if e.Index == 0 || e.Index != logs[0].Index+uint64(i) {
			return fmt.Errorf("journal: entry %d after entry %d", e.Index, logs[0].Index+uint64(i)-1)
		}
		rec := record{kind: kindEntry, typ: e.Type, index: e.Index, term: e.Term, data: e.Data, exts: e.Extensions}
		if !e.AppendedAt.IsZero() {
			rec.appended = e.AppendedAt.UnixNano()
		}
		r.records = append(r.records, newRecord(rec))
	}
	l.j.mu.Lock()
	before, err := l.ready()
	if err != nil {
		l.j.mu.Unlock()
		return err
	}
	for i := range r.records {
		r.records[i].group = l.number
	}
	if len(before) > 0 {
		r.records = append(before, r.records...)
	}
	switch first := logs[0].Index; {
	case l.last == 0:
		l.first = first
	case first > l.last+1 || first < l.first: // it goes on behind a gap: what was before is obsolete
		l.cut(0)
		l.first = first
	case first <= l.last:
		l.cut(first)
	}
	l.last = r.last
	l.pending = append(l.pending, r)
	l.recent.add(logs)
	return l.j.submit(r)
}

// cut notes that the entries from i on do not count any more. Called with mu held.
func (l *groupLog) cut(i uint64) {
	l.era++
	if i > 0 {
		i--
	}
	l.durable = min(l.durable, i)
	for _, r := range l.pending {
		r.last = min(r.last, i)
	}
	l.recent.keep.Store(l.durable)
	l.moved()
}

// moved wakes who waits for durability. Called with mu held.
func (l *groupLog) moved() {
	if l.recent.keep.Load() < l.durable {
		l.recent.keep.Store(l.durable)
	}
	if l.waiters != nil {
		close(l.waiters)
		l.waiters = nil
	}
}

// waiting is called with mu held.
func (l *groupLog) waiting() <-chan struct{} {
	if l.waiters == nil {
		l.waiters = make(chan struct{})
	}
	return l.waiters
}

func (l *groupLog) Durable() uint64 {
	l.j.mu.Lock()
	defer l.j.mu.Unlock()
	return l.durable
}

func (l *groupLog) AwaitDurable(index uint64, quit <-chan struct{}) error {
	l.j.mu.Lock()
	for era := l.era; ; {
		switch {
		case l.durable >= index:
			l.j.mu.Unlock()
			return nil
		case l.j.Failed() != nil:
			l.j.mu.Unlock()
			return l.j.Failed()
		case l.era != era || index > l.last:
			l.j.mu.Unlock()
			return ErrCutOff
		case l.closed:
			l.j.mu.Unlock()
			return block.ErrClosed
		}
		waiters := l.waiting()
		l.j.mu.Unlock()
		select {
		case <-waiters:
		case <-quit:
			return block.ErrClosed
		}
		l.j.mu.Lock()
	}
}

func (l *groupLog) DeleteRange(lo, hi uint64) error {
	l.j.mu.Lock()
	if l.last == 0 || hi < l.first || lo > l.last {
		l.j.mu.Unlock()
		return nil
	}
	lo, hi = max(lo, l.first), min(hi, l.last)
	if lo > l.first && hi < l.last {
		l.j.mu.Unlock()
		return fmt.Errorf("journal: entries %d to %d are in the middle of a log from %d to %d", lo, hi, l.first, l.last)
	}
	records, err := l.ready()
	if err != nil {
		l.j.mu.Unlock()
		return err
	}
	rec := record{group: l.number, kind: kindFront, index: hi + 1}
	if lo > l.first || hi == l.last {
		// To the end, and perhaps from the beginning: what is stored next may have any index.
		rec.kind, rec.index = kindBack, lo
		l.last = lo - 1
		if lo == l.first {
			lo, l.first, l.last = 0, 0, 0
		}
		l.cut(lo)
	} else {
		l.first = hi + 1
	}
	l.recent.deleteRange(lo, hi)
	return l.j.submit(&request{records: append(records, rec), done: make(chan error, 1)})
}

func (l *groupLog) Reset() error { return l.DeleteRange(0, math.MaxUint64) }

func (l *groupLog) GetLog(i uint64, out *raft.Log) error {
	if l.recent.get(i, out) {
		return nil
	}
	return l.read(i, out)
}

// read reads an entry from the disk.
func (l *groupLog) read(i uint64, out *raft.Log) error {
	for {
		e, dev, err := l.find(i)
		if err != nil {
			return err
		}
		if !e.damaged {
			buf := make([]byte, e.payload())
			err = dev.ReadAt(buf, int64(e.offset))
			data, exts := buf[:e.dataLen:e.dataLen], buf[e.dataLen:]
			if err == nil && payloadSum(data, exts) == e.sum {
				*out = raft.Log{Index: i, Term: e.term, Type: e.typ, Data: data}
				if len(exts) > 0 {
					out.Extensions = exts
				}
				return nil
			}
		}
		// Its segment may have been let go of, or it may have been moved, since it was looked for.
		l.j.mu.Lock()
		g := l.group()
		if g == nil {
			l.j.mu.Unlock()
			return raft.ErrLogNotFound
		}
		if now := g.at(i); now == nil || now.term != e.term || now.place() != e.place() {
			l.j.mu.Unlock()
			continue
		}
		if err == nil {
			if now := g.at(i); !now.damaged {
				now.damaged = true
				g.damaged++
			}
		}
		l.j.mu.Unlock()
		if err != nil {
			return l.j.fail(fmt.Errorf("read entry %d of %s: %w", i, l.name, err))
		}
		return &block.CorruptError{Where: fmt.Sprintf("journal entry %d of %s", i, l.name)}
	}
}

func (l *groupLog) find(i uint64) (e entryAt, dev interface {
	ReadAt(p []byte, off int64) error
}, err error,
) {
	l.j.mu.Lock()
	defer l.j.mu.Unlock()
	if err := l.j.Failed(); err != nil {
		return e, nil, err
	}
	if l.closed || l.j.closed {
		return e, nil, block.ErrClosed
	}
	g := l.group()
	if g == nil || l.last == 0 || i < l.first || i > l.last {
		return e, nil, raft.ErrLogNotFound
	}
	at := g.at(i)
	if at == nil {
		return e, nil, raft.ErrLogNotFound
	}
	return *at, l.j.index.segment(at.segment).dev, nil
}

func (l *groupLog) Head(i uint64, out *raft.Log) error {
	if l.recent.get(i, out) {
		out.Data, out.Extensions = nil, nil
		return nil
	}
	e, _, err := l.find(i)
	if err == nil {
		*out = raft.Log{Index: i, Term: e.term, Type: e.typ}
	}
	return err
}

// Close closes the log; the journal stays open. What was appended is durable then, or the journal has failed.
func (l *groupLog) Close() error {
	l.j.mu.Lock()
	if l.closed {
		l.j.mu.Unlock()
		return nil
	}
	l.closed = true
	last := l.last
	l.moved()
	l.j.mu.Unlock()
	for pending := true; pending; { // it can be opened again when the index has everything
		l.j.mu.Lock()
		pending = l.durable < last && l.j.Failed() == nil
		if !pending {
			delete(l.j.logs, l.name)
			l.j.mu.Unlock()
			break
		}
		waiters := l.waiting()
		l.j.mu.Unlock()
		<-waiters
	}
	l.recent.reset()
	return nil
}
