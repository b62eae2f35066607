package sim

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"sanctuary/blockstore/lincheck"
)

type value = lincheck.Value

const never = lincheck.Never

// event is one attempt of one operation on one block. Call and Return count what happened in the whole run, so that they order what time, which
// stands still while anything runs, does not. One of unknown outcome takes effect no later than an owner of a later term than term has served, and, if it
// was accepted by an owner in accepted, than another node has served in a later one (rule F).
type event struct {
	lincheck.Op
	term     uint64
	accepted uint64 // 0: not known
	node     string
}

// serving is the first sight of an owner.
type serving struct {
	term uint64
	node string
	seen int64
}

// history is what all clients saw. Safe for concurrent use.
type history struct {
	mu      sync.Mutex // guards what follows
	count   int64
	events  []event
	broken  []error
	owners  []serving         // in the order of sight
	elected map[uint64]string // by term
	highest uint64            // the highest term of anybody, ever
}

func (h *history) tick() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count++
	return h.count
}

func (h *history) add(events ...event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count++
	for _, e := range events {
		if e.Return == 0 {
			e.Return = h.count
		}
		if e.Unknown {
			e.term = h.highest
		}
		h.events = append(h.events, e)
	}
}

func (h *history) violation(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.broken) < 20 {
		h.broken = append(h.broken, fmt.Errorf(format, args...))
	}
}

// inTerm notes that somebody is in a term.
func (h *history) inTerm(term uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.highest = max(h.highest, term)
}

// serves notes that a node owns the LUN in a term. One term has one owner.
func (h *history) serves(node string, term uint64) (first bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.owners {
		if s.term != term {
			continue
		}
		if s.node != node {
			h.broken = append(h.broken, fmt.Errorf("term %d has two owners: %s and %s", term, s.node, node))
		}
		return false
	}
	h.count++
	h.owners = append(h.owners, serving{term, node, h.count})
	h.highest = max(h.highest, term)
	return true
}

// leads notes that a node was elected in a term: one term has one leader, whether it serves or not.
func (h *history) leads(node string, term uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch before, ok := h.elected[term]; {
	case !ok && h.elected == nil:
		h.elected = map[uint64]string{term: node}
	case !ok:
		h.elected[term] = node
	case before != node:
		h.broken = append(h.broken, fmt.Errorf("term %d has two leaders: %s and %s", term, before, node))
		h.elected[term] = node
	}
}

// fenced returns from when on what was begun in term, or before, can take effect no more: another has served in a later one. With node "",
// another term will do.
func (h *history) fenced(term uint64, node string) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.fencedLocked(term, node)
}

func (h *history) fencedLocked(term uint64, node string) int64 {
	for _, s := range h.owners {
		if s.term > term && s.node != node {
			return s.seen
		}
	}
	return never
}

// judged bounds the judging of a history. One that cannot be judged in it has failed.
const judged = 20 * time.Second

// check judges the history. It is called outside of the bubble: its limit is of real time.
func (h *history) check() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := errors.Join(h.broken...); err != nil {
		return err
	}
	ops := make([]lincheck.Op, len(h.events))
	for i, e := range h.events {
		if ops[i] = e.Op; e.Unknown {
			ends := h.fencedLocked(e.term, "")
			if e.accepted > 0 {
				ends = min(ends, h.fencedLocked(e.accepted, e.node))
			}
			ops[i].Return = max(e.Call, ends)
		}
	}
	err := lincheck.Check(ops, judged)
	var v *lincheck.Violation
	if errors.As(err, &v) {
		return fmt.Errorf("%w\n%s", err, v.Text())
	}
	return err
}

// TestUnknownWriteMayLandUntilALaterOwnerServes, and not after that; and one term has one owner.
func TestUnknownWriteMayLandUntilALaterOwnerServes(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		term, accepted uint64 // of a write of node b's
		legal          bool
	}{{1, 0, false}, {2, 0, true}, {2, 1, false}, {3, 2, true}} {
		events := []event{
			{Op: lincheck.Op{Kind: lincheck.Write, Value: 1, Call: 1, Unknown: true}, term: x.term, accepted: x.accepted, node: "b"},
			{Op: lincheck.Op{Kind: lincheck.Read, Value: 0, Call: 11, Return: 12}},
			{Op: lincheck.Op{Kind: lincheck.Read, Value: 1, Call: 13, Return: 14}},
		}
		h := &history{events: events, owners: []serving{{term: 2, node: "a", seen: 10}}}
		if err := h.check(); (err == nil) != x.legal {
			t.Errorf("%+v lands after node a has served in term 2: %v", x, err)
		}
	}
	h := &history{events: []event{
		{Op: lincheck.Op{Kind: lincheck.Write, Value: 1, Call: 1, Unknown: true}, term: 2, accepted: 1, node: "a"},
		{Op: lincheck.Op{Kind: lincheck.Read, Value: 0, Call: 11, Return: 12}},
		{Op: lincheck.Op{Kind: lincheck.Read, Value: 1, Call: 13, Return: 14}},
	}, owners: []serving{{term: 2, node: "a", seen: 10}}}
	if err := h.check(); err != nil {
		t.Errorf("the same node served, so it may land: %v", err)
	}
	h = &history{}
	if h.serves("a", 1); !h.serves("b", 2) || h.serves("a", 2) || h.check() == nil {
		t.Error("two owners of one term pass")
	}
	h = &history{}
	h.leads("a", 1)
	h.leads("b", 2)
	if h.leads("a", 1); h.check() != nil {
		t.Error("two terms with a leader each do not pass")
	}
	if h.leads("a", 2); h.check() == nil {
		t.Error("two leaders of one term pass")
	}
}
