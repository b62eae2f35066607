//go:build sim

package sim

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/lincheck"
	"sanctuary/replication"
)

const (
	clients   = 4
	hotBlocks = 12
	patience  = 4 * time.Second // of one attempt; then the initiator gives the path up
	thinkTime = 60 * time.Millisecond
)

// detailed: the trace has what the product says, and what clients meet.
var detailed = os.Getenv("SIM_LOG") != ""

// client is an initiator with a path to every node.
type client struct {
	w    *world
	id   int
	rng  *rand.Rand
	path int // where the last attempt went well
	seen map[uint64]value
	held func(p *process) (arrives bool) // returns when a command that was sent to p arrives, which may be late; nil: at once
}

// run works until stop is closed.
func (c *client) run(stop <-chan struct{}) {
	c.held = func(p *process) bool {
		if c.rng.IntN(40) > 0 {
			return true
		}
		select {
		case <-time.After(time.Duration(c.rng.Int64N(int64(3 * time.Second)))):
			return true
		case <-p.dead:
			return false
		}
	}
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(c.rng.Int64N(int64(thinkTime)))):
		}
		if !c.w.hushed.Load() {
			c.operation(stop)
		}
	}
}

// request is what one operation is about.
type request struct {
	kind  lincheck.Kind
	first uint64
	data  []byte
	want  []byte
	unmap bool
	evs   []event // of each block, without times
}

func (c *client) request() *request {
	n := c.w.hot[c.rng.IntN(len(c.w.hot))]
	r := &request{first: n}
	blocks := 1
	dice := c.rng.IntN(100)
	switch {
	case dice < 45:
		r.kind = lincheck.Read
	case dice < 88:
		r.kind = lincheck.Write
		if c.rng.IntN(8) == 0 {
			blocks = 2 + c.rng.IntN(2)
		}
	case dice < 95:
		r.kind = lincheck.Swap
		r.want = make([]byte, block.Size)
		fill(r.want, c.seen[n], n)
	default:
		r.kind, r.unmap = lincheck.Write, true
	}
	return c.about(r, blocks)
}

// about completes a request for so many blocks.
func (c *client) about(r *request, blocks int) *request {
	n := r.first
	r.data = make([]byte, blocks*block.Size)
	for i := range blocks {
		e := event{Op: lincheck.Op{Client: c.id, Block: n + uint64(i), Kind: r.kind, Want: c.seen[n]}}
		if r.kind != lincheck.Read && !r.unmap {
			e.Value = c.w.value()
			fill(r.data[i*block.Size:][:block.Size], e.Value, e.Block)
		}
		r.evs = append(r.evs, e)
	}
	return r
}

// operation tries one operation until it has an answer, each time as an operation of its own.
func (c *client) operation(stop <-chan struct{}) {
	r := c.request()
	for {
		for range len(c.w.nodes) {
			p := c.w.process(c.w.nodes[c.path%len(c.w.nodes)])
			if p != nil && !p.m.witness && c.attempt(p, r) {
				return
			}
			c.path++
		}
		select {
		case <-stop:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// attempt sends a request over one path and says whether it was answered.
func (c *client) attempt(p *process, r *request) (answered bool) {
	h := c.w.h
	call := h.tick()
	fence := p.group.Fence()
	began := time.Since(c.w.began)
	if c.held != nil && !c.held(p) { // on its way, or in a queue, for long: this path is given up, and others write meanwhile
		return false
	}
	bound := h.fenced(fence.Term, p.m.name)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	type answer struct {
		mismatch int
		err      error
	}
	done := make(chan answer, 1)
	own := *r
	own.data = append([]byte(nil), r.data...) // it may be used for longer than we wait
	c.w.attempts.Go(func() {
		var a answer
		a.mismatch, a.err = c.do(ctx, p.group, fence, &own)
		done <- a
	})
	var a answer
	select {
	case a = <-done:
	case <-p.dead:
		a.err = block.ErrUnknown
	}
	select {
	case <-p.dead: // nobody hears what a dead process says
		a.err = block.ErrUnknown
	default:
	}
	events := append([]event(nil), r.evs...)
	for i := range events {
		events[i].Call, events[i].At = call, began
		if events[i].node = p.m.name; fence.Index == math.MaxUint64 {
			events[i].accepted = fence.Term
		}
	}
	if a.err != nil && r.kind != lincheck.Read && detailed {
		c.w.note("client %d: %v of block %d through %s: %v", c.id, events[0], r.first, p.m.name, a.err)
	}
	switch {
	case r.kind == lincheck.Read && a.err != nil:
		return false
	case r.kind == lincheck.Read:
		for i := range events {
			v, err := valueOf(own.data[i*block.Size:][:block.Size], events[i].Block)
			if err != nil {
				h.violation("read at %v through %s: %w", began, p.m.name, err)
				return true
			}
			events[i].Value, c.seen[events[i].Block] = v, v
		}
	case a.err == nil && a.mismatch >= 0 && r.kind == lincheck.Swap:
		events[0].Kind = lincheck.Miss
	case a.err == nil:
		if bound != never && fence.Index == math.MaxUint64 {
			h.violation("%v at %v through %s took effect though it was accepted before another owner served", events[0], began, p.m.name)
		}
		for i := range events {
			c.seen[events[i].Block] = events[i].Value
		}
	case refused(a.err):
		return false // never begun, it says
	default:
		h.inTerm(p.term())
		for i := range events {
			events[i].Unknown = true
		}
	}
	h.add(events...)
	return a.err == nil
}

func (c *client) do(ctx context.Context, g *replication.Group, f block.Fence, r *request) (mismatch int, err error) {
	at := rangeOf(r.first, len(r.data)/block.Size)
	switch {
	case r.kind == lincheck.Read:
		return -1, g.Read(ctx, at, r.data)
	case r.kind == lincheck.Swap:
		return g.CompareAndWrite(ctx, f, at, r.want, r.data)
	case r.unmap:
		return -1, g.Unmap(ctx, f, []block.Range{at})
	}
	return -1, g.Write(ctx, f, at, r.data)
}

// refused says that a command had no effect and will have none.
func refused(err error) bool {
	return errors.Is(err, block.ErrNotOwner) || errors.Is(err, block.ErrUnavailable) || errors.Is(err, block.ErrFenced) || errors.Is(err, block.ErrNoSpace)
}
