package replication

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/semaphore"

	"sanctuary/blockstore/block"
	"sanctuary/replication/command"
	"sanctuary/replication/journal"
)

const (
	// entryTargetBytes is where an entry is full. Larger writes are cut: within a block a write is whole, across blocks
	// SCSI promises nothing.
	entryTargetBytes = 256 << 10
	// maxInflightEntries bounds the entries proposed and not yet settled; see maxAppendEntries.
	maxInflightEntries = 32
	// eagerEntries are proposed at once, however small; beyond them a small entry waits for company until one settles.
	eagerEntries = 1
	// companyBytes is when an entry need not wait for company.
	companyBytes = 128 << 10
)

// proposer packs the writes that wait into log entries (the coalescer) and tells each writer what became of it.
type proposer struct {
	g      *Group
	budget *semaphore.Weighted // bytes accepted and not settled

	mu       sync.Mutex
	queue    []*part
	inflight map[uint64]*entry // by proposal
	eager    int               // of inflight, those not yet settled; failed ones whose fate is open do not count
	nextID   uint64
	closed   bool
	paused   int  // transfers of the leadership under way
	pumping  bool // some goroutine is proposing what there is
	cramped  bool // the journal has no room for the next entry; somebody will look again

	// pause between entries while a copy catches up, and when the one after the last entry ends; see Group.paceLocked.
	pace      time.Duration
	notBefore time.Time
}

// write is one command's change: acknowledged when all of its parts are.
type write struct {
	fence uint64
	done  chan error // capacity 1: what propose returns
	late  chan error // capacity 1: after block.ErrUnknown of a whole write, nil if it has taken effect, else ErrNotOwner

	mu      sync.Mutex // parts end on different goroutines
	parts   int
	applied int
	err     error

	only part // as a rule there is one
}

// part is as much of a write as goes into one entry.
type part struct {
	w     *write
	ops   []block.Op
	bytes int
	alone bool // it goes into an entry of its own

	one [1]block.Op // memory of ops
}

// entry is a proposal on its way.
type entry struct {
	parts  []*part
	bytes  int
	cost   int64 // what the journal counts as on its way, in bytes; 0: it has been stored
	failed bool  // Raft has given it up, but it may still be committed: the writers have been told ErrUnknown
	parked bool  // it has taken effect; what it waits for are copies in sync

	few [4]*part // memory of parts
}

func newProposer(g *Group, inflightBytes int64) *proposer {
	return &proposer{
		g: g, budget: semaphore.NewWeighted(inflightBytes), inflight: map[uint64]*entry{},
		// Proposals of another node, or of an earlier life of this one, must not be taken for ours when they are applied.
		nextID: rand.Uint64() | 1,
	}
}

// propose has the operations applied under the given fence and returns when they are, or when this node has lost the LUN.
// Operations may refer to the caller's memory until it returns. ctx ends the wait for room, not a proposal under way:
// a change that may yet happen is not abandoned while its range lock is held. whole puts everything into one entry, which
// takes effect entirely or not at all; it must not exceed command.MaxEntryBytes.
func (p *proposer) propose(ctx context.Context, fence uint64, ops []block.Op, whole bool) (*write, error) {
	w := &write{fence: fence, done: make(chan error, 1)}
	if len(ops) == 0 {
		return w, nil
	}
	for i := range ops { // what a replica cannot apply would take every one of them out
		if err := ops[i].Check(p.g.capacity()); err != nil {
			return w, err
		}
	}
	var few [1]*part
	parts := append(few[:0], &w.only)
	switch {
	case whole:
		w.late = make(chan error, 1)
		fallthrough
	case len(ops) == 1 && len(ops[0].Data) <= entryTargetBytes:
		w.only.w = w
		for _, op := range ops {
			w.only.add(op)
		}
	default:
		parts = split(w, ops)
	}
	if err := p.g.awaitTakes(ctx); err != nil {
		return w, err
	}
	size := int64(0)
	for _, q := range parts {
		size += int64(q.bytes)
	}
	size = min(size, p.g.cfg.Limits.InflightBytes)
	if !p.budget.TryAcquire(size) { // to wait costs more
		if err := p.budget.Acquire(ctx, size); err != nil {
			return w, err
		}
	}
	defer p.budget.Release(size)

	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return w, block.ErrClosed
	}
	w.parts = len(parts)
	p.queue = append(p.queue, parts...)
	p.mu.Unlock()
	p.pump()
	return w, <-w.done
}

// split cuts operations into parts no larger than an entry should be.
func split(w *write, ops []block.Op) []*part {
	var parts []*part
	cur := &part{w: w}
	flush := func() {
		if len(cur.ops) > 0 {
			parts = append(parts, cur)
			cur = &part{w: w}
		}
	}
	for _, op := range ops {
		for op.Kind == block.OpWrite && len(op.Data) > entryTargetBytes {
			head := op
			n := block.CountOf(entryTargetBytes)
			head.Range.Count, head.Data, head.Sums = n, op.Data[:entryTargetBytes], op.Sums[:entryTargetBytes/block.Size]
			op.Range = block.Range{Start: op.Range.Start + block.Sector(n), Count: op.Range.Count - n}
			op.Data, op.Sums = op.Data[entryTargetBytes:], op.Sums[entryTargetBytes/block.Size:]
			flush()
			cur.add(head)
			flush()
		}
		if size := command.OpSize(&op); cur.bytes+size > entryTargetBytes || len(cur.ops) == command.MaxOps {
			flush()
		}
		cur.add(op)
	}
	flush()
	return parts
}

func (q *part) add(op block.Op) {
	if q.ops == nil {
		q.ops = q.one[:0]
	}
	q.ops = append(q.ops, op)
	q.bytes += command.OpSize(&op)
	// What these leave of the volume, and of its space, others in the same entry would have to foresee.
	q.alone = q.alone || op.Kind == block.OpGrow || aboutSnapshots(&op)
}

// pump proposes what may be proposed now. It has no goroutine of its own: whoever brings a write, or settles an entry and so
// makes room, does it, unless somebody else is at it, who will then see the change. Proposing does not block: Raft's channel
// has room for more than maxInflightEntries.
func (p *proposer) pump() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pumping {
		return
	}
	p.pumping = true
	for {
		parts, id := p.takeLocked()
		if len(parts) == 0 {
			p.pumping = false
			return
		}
		p.mu.Unlock()
		p.send(parts, id)
		p.mu.Lock()
	}
}

// takeLocked returns the parts of the next entry, or none if it should wait. All have one fence.
func (p *proposer) takeLocked() ([]*part, uint64) {
	if len(p.queue) == 0 || p.paused > 0 || p.eager >= maxInflightEntries {
		return nil, 0
	}
	if p.pace > 0 {
		now := time.Now()
		if wait := p.notBefore.Sub(now); wait > 0 {
			time.AfterFunc(wait, p.pump)
			return nil, 0
		}
		p.notBefore = now.Add(p.pace)
	}
	n, size, ops := 0, 0, 0
	for _, q := range p.queue {
		if n > 0 && (size+q.bytes > entryTargetBytes || ops+len(q.ops) > command.MaxOps || q.w.fence != p.queue[0].w.fence || q.alone || p.queue[0].alone) {
			break
		}
		n++
		size += q.bytes
		ops += len(q.ops)
	}
	if p.eager >= eagerEntries && n == len(p.queue) && size < companyBytes {
		return nil, 0
	}
	cost := journal.Cost(1, int64(size))
	if !p.owns(p.queue[0].w.fence) {
		cost = 0 // send refuses it
	} else if !p.admitLocked(cost) {
		return nil, 0
	}
	e := &entry{bytes: size, cost: cost}
	e.parts = append(e.few[:0], p.queue[:n]...)
	p.queue = slices.Delete(p.queue, 0, n)
	p.nextID++
	p.inflight[p.nextID] = e
	p.eager++
	return e.parts, p.nextID
}

// owns says whether the LUN is still owned under that fence.
func (p *proposer) owns(fence uint64) bool {
	t := p.g.tenure.Load()
	return t != nil && t.term == fence
}

func (p *proposer) send(parts []*part, id uint64) {
	fence := parts[0].w.fence
	inst := p.g.running()
	if inst == nil || !p.owns(fence) {
		p.settled(id, block.ErrNotOwner)
		return
	}
	data, err := command.Encode(fence, id, packed(parts))
	if err != nil {
		p.settled(id, err)
		return
	}
	// Nobody waits for the future: settled hears from the state machine what became of the entry, and if this node ceases to
	// lead, endTerm gives up what is under way. (The library leaves futures unanswered when it is shut down, #498.)
	inst.raft.ApplyLog(raft.Log{Data: data}, 0)
}

// packed are the operations of an entry. Zeros come last, for what they free is free only behind the entry: before an overwrite of the same chunk they would
// have it take a new place, which a full pool does not have. What several parts change does not overlap.
func packed(parts []*part) []block.Op {
	if len(parts) == 1 {
		return parts[0].ops
	}
	var ops []block.Op
	for _, zeros := range []bool{false, true} {
		for _, q := range parts {
			for i := range q.ops {
				if (q.ops[i].Kind == block.OpZero) == zeros {
					ops = append(ops, q.ops[i])
				}
			}
		}
	}
	return ops
}

// proposed says whether this node has encoded that entry and not yet seen its end.
func (p *proposer) proposed(id uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.inflight[id] != nil
}

// settled is called by the state machine when an entry has been applied (err nil) or refused by its fence.
func (p *proposer) settled(id uint64, err error) {
	p.mu.Lock()
	e := p.inflight[id]
	if e == nil {
		p.mu.Unlock()
		return
	}
	p.removeLocked(id, e)
	p.mu.Unlock()
	if e.failed {
		e.tell(err)
	} else {
		e.finish(err)
	}
	p.pump()
}

func (p *proposer) removeLocked(id uint64, e *entry) {
	delete(p.inflight, id)
	p.arrivedLocked(e)
	if !e.failed {
		p.eager--
	}
}

func (e *entry) finish(err error) {
	for _, q := range e.parts {
		q.w.finish(err)
	}
}

// finish counts a part as ended. A write of which one part took effect and another did not, or may have, is unknown.
func (w *write) finish(err error) {
	w.mu.Lock()
	w.parts--
	switch {
	case err == nil:
		w.applied++
	case w.err == nil || errors.Is(err, block.ErrUnknown):
		w.err = err
	}
	last, result := w.parts == 0, w.err
	if result != nil && w.applied > 0 {
		result = block.ErrUnknown
	}
	w.mu.Unlock()
	if last {
		w.done <- result
	}
}

// endTerm is called when this node has ceased to own the LUN: nothing that waits will be proposed, and whoever waits for an
// entry under way is told that its outcome is unknown.
func (p *proposer) endTerm() {
	p.mu.Lock()
	queue := p.queue
	p.queue = nil
	ids := slices.Collect(maps.Keys(p.inflight))
	p.mu.Unlock()
	for _, q := range queue {
		q.w.finish(block.ErrNotOwner)
	}
	for _, id := range ids {
		p.unknown(id)
	}
}

// pause holds back new entries and waits until none is under way, or ctx ends: Raft drops proposals while it transfers the
// leadership, without an answer anyone would wait for. resume must follow.
func (p *proposer) pause(ctx context.Context) error {
	p.mu.Lock()
	p.paused++
	p.mu.Unlock()
	for {
		p.mu.Lock()
		idle := p.eager == 0
		p.mu.Unlock()
		if idle {
			return nil
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// setPace sets the pause between entries; 0 is none.
func (p *proposer) setPace(d time.Duration) {
	p.mu.Lock()
	p.pace = d
	p.mu.Unlock()
	if d == 0 {
		p.pump()
	}
}

func (p *proposer) resume() {
	p.mu.Lock()
	p.paused--
	p.mu.Unlock()
	p.pump()
}

// idle says whether there is nothing to propose, and nothing under way.
func (p *proposer) idle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.queue) == 0 && len(p.inflight) == 0 && p.paused == 0
}

func (p *proposer) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.endTerm()
}
