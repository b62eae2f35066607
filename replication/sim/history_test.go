package sim

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// value is what a block holds: 0 is all zeros, anything else a number that only one operation writes.
type value uint64

// kind is what an operation does to the register that a block is.
type kind uint8

const (
	kindRead  kind = iota
	kindWrite      // sets to value; an unmapped block is one that value 0 was written to
	kindSwap       // sets to value if the register is want
	kindMiss       // observed that the register is not want
)

const never = math.MaxInt64

// event is one attempt of one operation on one block. call and ret count what happened in the whole run, so that they order what time, which
// stands still while anything runs, does not.
type event struct {
	client      int
	block       uint64
	kind        kind
	value, want value
	call, ret   int64
	// unknown: it may have taken effect or not, but no later than an owner of a later term than this has served (rule F).
	unknown bool
	term    uint64
	at      time.Duration // when it began, for people
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
	owners  []serving // in the order of sight
	highest uint64    // the highest term of anybody, ever
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
		if e.ret == 0 {
			e.ret = h.count
		}
		if e.unknown {
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

var model = func() porcupine.Model {
	m := porcupine.NondeterministicModel{
		Init: func() []any { return []any{value(0)} },
		Step: func(state, input, _ any) []any {
			e, now := input.(event), state.(value)
			effect := e.value
			switch {
			case e.kind == kindRead && e.value != now, e.kind == kindMiss && e.want == now, e.kind == kindSwap && e.want != now && !e.unknown:
				return nil
			case e.kind == kindMiss, e.kind == kindSwap && e.want != now:
				effect = now
			}
			if e.unknown && effect != now {
				return []any{now, effect}
			}
			return []any{effect}
		},
		DescribeOperation: func(input, _ any) string { return input.(event).String() },
		DescribeState:     func(state any) string { return fmt.Sprint(state) },
	}
	return m.ToModel()
}()

func (e event) String() string {
	what := map[kind]string{
		kindRead: fmt.Sprintf("read %d", e.value), kindWrite: fmt.Sprintf("write %d", e.value),
		kindSwap: fmt.Sprintf("swap %d for %d", e.want, e.value), kindMiss: fmt.Sprintf("found no %d", e.want),
	}[e.kind]
	if e.unknown {
		what += " (unknown)"
	}
	return what
}

// judged bounds the judging of one block. A history that cannot be judged in it has failed.
const judged = 20 * time.Second

// check judges the history. It is called outside of the bubble: its limit is of real time.
func (h *history) check() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := errors.Join(h.broken...); err != nil {
		return err
	}
	by := map[uint64][]porcupine.Operation{}
	for _, e := range h.events {
		if e.unknown {
			e.ret = max(e.call, h.fencedLocked(e.term, ""))
		}
		by[e.block] = append(by[e.block], porcupine.Operation{ClientId: e.client, Input: e, Call: e.call, Return: e.ret})
	}
	for n, ops := range by {
		result := porcupine.CheckOperationsTimeout(model, ops, judged)
		if result == porcupine.Ok {
			continue
		}
		what := "its operations have no linearization: a write was lost, a read was stale, or a write landed after it was given up"
		if result == porcupine.Unknown {
			what = fmt.Sprintf("its operations could not be judged within %v", judged)
		}
		slices.SortFunc(ops, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
		var b strings.Builder
		for _, o := range ops {
			fmt.Fprintf(&b, "\n  %8d %20d  %10.6f client %-3d %v", o.Call, o.Return, o.Input.(event).at.Seconds(), o.ClientId, o.Input)
		}
		return fmt.Errorf("block %d: %s%s", n, what, b.String())
	}
	return nil
}

// TestCheckerSeesWhatMustNotHappen: a checker that cannot go red proves nothing. good differs from bad in what makes it legal.
func TestCheckerSeesWhatMustNotHappen(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		bad, good []event
	}{
		{"a lost write", []event{{kind: kindWrite, value: 1, call: 1, ret: 2}, {kind: kindRead, value: 0, call: 3, ret: 4}}, []event{{kind: kindWrite, value: 1, call: 1, ret: 4}, {kind: kindRead, value: 0, call: 3, ret: 4}}},
		{"an unknown write that comes and goes", []event{{kind: kindWrite, value: 1, call: 1, unknown: true}, {kind: kindRead, value: 1, call: 3, ret: 4}, {kind: kindRead, value: 0, call: 5, ret: 6}}, []event{{kind: kindWrite, value: 1, call: 1, unknown: true}, {kind: kindRead, value: 0, call: 3, ret: 4}, {kind: kindRead, value: 1, call: 5, ret: 6}}},
		{"a write that lands after its fence", []event{{kind: kindWrite, value: 1, call: 1, unknown: true, term: 1}, {kind: kindRead, value: 0, call: 11, ret: 12}, {kind: kindRead, value: 1, call: 13, ret: 14}}, []event{{kind: kindWrite, value: 1, call: 1, unknown: true, term: 2}, {kind: kindRead, value: 0, call: 11, ret: 12}, {kind: kindRead, value: 1, call: 13, ret: 14}}},
		{"two winners of one swap", []event{{kind: kindSwap, value: 1, call: 1, ret: 5}, {kind: kindSwap, value: 2, call: 2, ret: 6}}, []event{{kind: kindSwap, value: 1, call: 1, ret: 5}, {kind: kindMiss, value: 2, call: 2, ret: 6}}},
	} {
		h := &history{events: c.good, owners: []serving{{term: 2, node: "a", seen: 10}}}
		if err := h.check(); err != nil {
			t.Errorf("%s, made legal: %v", c.name, err)
		}
		h.events = c.bad
		if h.check() == nil {
			t.Errorf("%s passes", c.name)
		}
	}
	h := &history{}
	if h.serves("a", 1); !h.serves("b", 2) || h.serves("a", 2) || h.check() == nil {
		t.Error("two owners of one term pass")
	}
}
