// Package journal keeps the logs, terms and votes of all Raft groups of a disk in one journal: one file is written to at a time, and one
// fdatasync serves everything that any group waits for.
//
// Invariants. A log's StoreLogs, and its stable store's Set, return when what they were given is durable; Append returns before, and
// AwaitDurable then (rule G: replication lets no success pass that is not true on disk). What was durable is there after any crash, or is known to be damaged: a torn
// end of the journal, which nobody was told of, is told apart from damage to what was durable, because a batch is only written when
// the one before it is durable, and so whatever lies before a frame of a later batch is damage ("corrupt is not missing"). A damaged entry is an error, never an absence. Terms
// and votes are written twice, in two batches, so that damage in one place does not make a replica vote twice. Once a write or a sync has
// failed, the journal has failed for good: the page cache may have dropped what the next sync would call durable (ATC'20, "Can
// applications recover from fsync failures?").
//
// Files: frame.go and segment.go have the format; index.go what is known of it in memory; commit.go how it is written; tight.go what happens without room; recover.go how it is
// read at a start; janitor.go how room comes free; log.go what one group sees. NewMemory is a log in RAM, for replicas whose data is in RAM too.
//
// It does not decide when a log is cut off at the front (replication does, after a checkpoint), and does not fetch what is damaged (replication does, from a peer).
package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
)

// Options tune a journal. The zero value of a field means its default.
type Options struct {
	SegmentBytes int64 // length of a segment file, at least 1 MiB; default 128 MiB. A node that only witnesses needs 1 MiB
	CacheBytes   int64 // payload of all groups kept in memory for peers in step; default 64 MiB
	// IdleAfter is the pause after which the last batch is followed by an empty one, which makes damage to it tellable from a torn
	// end; default 1 s.
	IdleAfter time.Duration
	Logger    *slog.Logger // default: discard

	noRoomPause time.Duration // between two attempts to make a segment on a file system that is full; default 200 ms
}

const minSegmentBytes = 1 << 20

func (o Options) withDefaults() (Options, error) {
	if o.SegmentBytes == 0 {
		o.SegmentBytes = 128 << 20
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = 64 << 20
	}
	if o.IdleAfter == 0 {
		o.IdleAfter = time.Second
	}
	if o.noRoomPause == 0 {
		o.noRoomPause = 200 * time.Millisecond
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.SegmentBytes < minSegmentBytes || o.SegmentBytes > segmentLimit {
		return o, fmt.Errorf("journal: segments of %d bytes: at least %d, at most %d", o.SegmentBytes, minSegmentBytes, int64(segmentLimit))
	}
	o.SegmentBytes = roundUp(o.SegmentBytes)
	return o, nil
}

// Journal is the journal of one disk. Concurrent-safe.
type Journal struct {
	folder vfs.Folder
	opts   Options
	id     uint64
	opened time.Time
	cache  budget

	failed  atomic.Pointer[error]
	writing atomic.Int64 // when the write under way began, ns since the journal was opened; 0: none

	// mu guards what follows and the fields of every log. Never held across I/O.
	mu      sync.Mutex
	index   *index
	logs    map[string]*groupLog
	queue   []*request
	leading bool // somebody writes
	closed  bool
	dead    []*segment       // nothing in them counts, durably; the janitor's
	suspect map[string]error // groups of which something is lost that is not known
	spare   *segment         // made ready by the janitor: the next one

	// making is held by whoever makes the next segment, or takes it. It is taken before mu.
	making sync.Mutex

	head  head        // of whoever leads
	tight atomic.Bool // there is no room for the next segment
	// strained is when there was none last, ns since the journal was opened; 0: never.
	strained atomic.Int64
	left     atomic.Int64 // of the last segment, in bytes, before twice its reserve begins
	next     atomic.Int64 // of the one behind it, in the same way; 0: it is not ready
	queued   atomic.Int64 // what is in queue may take, in bytes; changed with mu held
	onWay    atomic.Int64 // what has been admitted and is not stored, in bytes
	ahead    atomic.Bool  // the last segment is half full: the next one is to be made ready
	marked   atomic.Bool  // the last batch was an empty one
	wrote    atomic.Int64 // when the last batch was durable, ns since the journal was opened

	wake chan struct{} // for the janitor: there is something to do
	lead chan struct{} // for the writer: nobody else leads
	// hurried is for whoever waits for room: there is something that makes some.
	hurried chan struct{}
	stop    context.CancelFunc
	wg      sync.WaitGroup
}

// head is where the journal ends. It belongs to whoever leads (Journal.leading).
type head struct {
	at       int64 // where the next frame begins, in the last segment
	batch    uint64
	chain    uint32
	before   int64 // where the last frame begins, 0 if none in this segment
	beforeIn uint64
	previous []record
	footer   []byte // directories of the segment so far
	records  int
	buf      []byte
	moved    []record // in the batch that is being written
	batchAt  int64    // where the last batch that was read at the start begins
}

// begin makes it the beginning of a segment.
func (h *head) begin() {
	h.at, h.before, h.beforeIn, h.previous, h.footer, h.records = blockBytes, 0, h.batch, nil, nil, 0
}

// pass moves it behind a frame.
func (h *head) pass(f *frame) {
	var line [recordBytes]byte
	for i := range f.records {
		f.records[i].put(line[:])
		h.footer = append(h.footer, line[:]...)
	}
	h.records += len(f.records)
	h.before, h.beforeIn, h.chain, h.at = f.at, f.batch, f.sum, f.at+f.bytes
	h.previous = bare(f.records)
}

// Stats is what an operator may want to know.
type Stats struct {
	Segments int   // files in use
	Bytes    int64 // of them
	Live     int64 // bytes of entries that count
	Groups   int
}

// Stats returns them.
func (j *Journal) Stats() Stats {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := Stats{Segments: len(j.index.segments), Groups: len(j.index.groups)}
	for _, seg := range j.index.segments {
		s.Bytes += seg.bytes
		s.Live += seg.liveSize
	}
	return s
}

// Failed returns the error that made the journal unusable, or nil.
func (j *Journal) Failed() error {
	if p := j.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// fail makes the failure final and returns it.
func (j *Journal) fail(err error) error {
	err = fmt.Errorf("journal: %w: %w", block.ErrFailed, err)
	j.failed.CompareAndSwap(nil, &err)
	return j.Failed()
}

// Stalled returns for how long the write under way has been waiting for the disk, 0 if there is none.
func (j *Journal) Stalled() time.Duration {
	since := j.writing.Load()
	if since == 0 {
		return 0
	}
	return time.Since(j.opened) - time.Duration(since)
}

// Usable says whether there is a group of that name, and whether a replica may go on from it: not if something of it is lost, and it is not known what.
func (j *Journal) Usable(name string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.index.names[name] != nil && j.suspect[name] == nil
}

// ErrDamaged: of this group something is lost, and what it was is not known: it may be a vote, or the newest entries. A replica must not go on from that
// under its old identity.
var ErrDamaged = errors.New("the journal is damaged, and what was lost of this log is not known")

// ErrInUse: the log is open already.
var ErrInUse = errors.New("the log is open already")

// Log opens the log of a group, which comes to be when something is stored in it. The name is at most 255 bytes.
func (j *Journal) Log(name string) (Log, error) {
	if name == "" || len(name) > 255 {
		return nil, fmt.Errorf("journal: a group's name has 1 to 255 bytes, not %d", len(name))
	}
	if err := j.Failed(); err != nil {
		return nil, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.closed:
		return nil, block.ErrClosed
	case j.logs[name] != nil:
		return nil, fmt.Errorf("%s: %w", name, ErrInUse)
	case j.suspect[name] != nil:
		return nil, fmt.Errorf("%s: %w", name, j.suspect[name])
	}
	l, err := newGroupLog(j, name)
	if err != nil {
		return nil, err
	}
	j.logs[name] = l
	return l, nil
}

// Remove forgets a group, with its log, term and vote. It must not be open.
func (j *Journal) Remove(name string) error {
	j.mu.Lock()
	if j.logs[name] != nil {
		j.mu.Unlock()
		return fmt.Errorf("%s: %w", name, ErrInUse)
	}
	g := j.index.names[name]
	if g == nil {
		j.mu.Unlock()
		return nil
	}
	delete(j.suspect, name)
	delete(j.index.names, name) // a new group of that name is another one
	r := &request{records: []record{{group: g.number, kind: kindForget}}, done: make(chan error, 1)}
	return j.submit(r)
}

// Close writes the journal's end and closes it. Logs of it that are open fail from then on.
func (j *Journal) Close() error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil
	}
	j.closed = true
	var err error
	if j.Failed() == nil && (j.leading || !j.index.last().sealed) { // behind one that is sealed there was no room, and nothing has come
		err = j.submit(&request{marker: true, done: make(chan error, 1)})
		if errors.Is(err, vfs.ErrNoSpace) { // what waited for room is not there, and nobody was told that it is
			err = nil
		}
	} else {
		j.mu.Unlock()
	}
	j.stop()
	j.wg.Wait()
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range append(append(j.index.segments, j.dead...), j.spare) {
		if s != nil && s.dev != nil {
			err = errors.Join(err, s.dev.Close())
		}
	}
	return err
}
