package replication

import (
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// backlog counts what a copy has been sent and has not applied. The library queues what is committed by number of entries; in bytes that is no bound, and a copy
// whose volume is slow, or whose pool is full, while its journal is not, would hold gigabytes. So its owner's next entries are not taken in (Group.awaitBacklog)
// while more than Limits.BacklogBytes are committed and not applied. The owner sees a copy that makes no progress, which rule W knows how to deal with. Heartbeats and
// requests without entries are never held: they carry the ownership, and the news of what is committed.
//
// Only what is committed counts: all of that is in the library's queue, or about to be, and is applied without another request.
type backlog struct {
	mu      sync.Mutex
	pieces  []piece // by index, oldest first: received, not all of it applied
	due     int     // of pieces: those that are committed
	bytes   int64   // of those
	applied uint64
	moved   chan struct{} // nil, or closed when something has been applied
}

// piece is the entries of one AppendEntries.
type piece struct {
	first, last uint64 // last: of its commands
	bytes       int64
}

// entryCost is what an entry takes beside its payload, in bytes, roughly.
const entryCost = 256

// add notes what is handed to Raft.
func (b *backlog) add(entries []*raft.Log) {
	p := piece{first: entries[0].Index}
	for _, e := range entries {
		if e.Type == raft.LogCommand { // the state machine does not hear of others
			p.last, p.bytes = e.Index, p.bytes+int64(len(e.Data)+len(e.Extensions))+entryCost
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	// Sent again, or in place of what another owner had sent.
	for n := len(b.pieces) - 1; n >= 0 && b.pieces[n].last >= p.first; n-- {
		q := &b.pieces[n]
		less := q.bytes
		if q.first < p.first { // a part of it stays
			less = int64(float64(q.bytes) * float64(q.last-p.first+1) / float64(q.last-q.first+1))
			q.last, q.bytes = p.first-1, q.bytes-less
		}
		if n < b.due {
			b.bytes -= less
		}
		if q.last >= p.first {
			b.pieces = b.pieces[:n]
			b.due = min(b.due, n)
		}
	}
	if p.last > 0 {
		b.pieces = append(b.pieces, p)
	}
	b.dropLocked()
}

// waiting returns the bytes of what is committed up to an index and has not been applied, and a channel that is closed when that changes.
func (b *backlog) waiting(committed uint64) (int64, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.due < len(b.pieces) && b.pieces[b.due].last <= committed {
		b.bytes += b.pieces[b.due].bytes
		b.due++
	}
	if b.moved == nil {
		b.moved = make(chan struct{})
	}
	return b.bytes, b.moved
}

// apply notes that everything up to index has been applied.
func (b *backlog) apply(index uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.applied = max(b.applied, index)
	b.dropLocked()
}

// dropLocked takes out what has been applied.
func (b *backlog) dropLocked() {
	n := 0
	for n < len(b.pieces) && b.pieces[n].last <= b.applied {
		if n < b.due {
			b.bytes -= b.pieces[n].bytes
		}
		n++
	}
	if n == 0 {
		return
	}
	b.due = max(b.due-n, 0)
	if b.pieces = b.pieces[n:]; len(b.pieces) == 0 {
		b.pieces = nil
	}
	if b.moved != nil {
		close(b.moved)
		b.moved = nil
	}
}

// reset forgets everything: Raft begins anew.
func (b *backlog) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pieces, b.due, b.bytes, b.applied = nil, 0, 0, 0
}

var errBehind = errors.New("this copy is behind with applying what is committed")

// behindWait is how long a request is held: about as long as its sender waits for the answer.
const behindWait = 10 * time.Second

// awaitBacklog holds entries while this copy is too far behind with applying those before them, and notes those that it lets through.
func (g *Group) awaitBacklog(inst *instance, req *raft.AppendEntriesRequest) error {
	if g.cfg.Store == nil || len(req.Entries) == 0 {
		return nil
	}
	var late <-chan time.Time
	for {
		bytes, moved := g.backlog.waiting(inst.raft.CommitIndex())
		if bytes <= g.cfg.Limits.BacklogBytes {
			g.backlog.add(req.Entries)
			return nil
		}
		if late == nil {
			timer := time.NewTimer(behindWait)
			defer timer.Stop()
			late = timer.C
		}
		select {
		case <-moved:
		case <-late:
			return errBehind
		case <-inst.ctx.Done():
			return errBehind
		}
	}
}
