package prove

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"sanctuary/blockstore/block"
	"sanctuary/target/initiator"
	"sanctuary/target/scsi"
)

// kind is what a command does to the register that a block is.
type kind uint8

const (
	kindRead  kind = iota // observed is what was read
	kindWrite             // sets to value; an unmapped block is one that value 0 was written to
	kindSwap              // sets to value if the register is want
	kindMiss              // observed that the register is not want
)

// event is one command to one block, an attempt of an operation: what it did and when. Times are nanoseconds since the
// history's start, on the monotonic clock.
type event struct {
	client      int
	block       uint64
	kind        kind
	value, want value
	call, ret   int64
	// unknown: it may have taken effect at some moment between call and ret, or not at all.
	unknown bool
	// After an unknown one, ret is not known when the command ends: it is when the disk's session number fence became
	// usable (see fences), and until then never.
	fences *fences
	fence  int
}

const never = math.MaxInt64

// A history is what all clients of a campaign did, for one LUN that held zeros at the start. Safe for concurrent use.
type history struct {
	start time.Time

	mu      sync.Mutex // guards what follows; never held during I/O
	events  []event
	broken  []error // what is wrong without asking a checker: torn blocks
	clients int
}

func newHistory() *history { return &history{start: time.Now()} }

func (h *history) at(t time.Time) int64 { return int64(t.Sub(h.start)) }

func (h *history) add(e event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, e)
}

func (h *history) violation(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.broken) < 20 {
		h.broken = append(h.broken, err)
	}
}

func (h *history) length() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.events)
}

// fences tells until when a command without a status may still take effect. A Disk has one session at a time; when the
// next one is usable, the target has promised that nothing of the former lands any more: reinstatement ends the old
// session's tasks before the login is answered, and a new owner serves only behind an entry of its own term (rule F).
// Sessions are numbered by the losses before them, so that the count can be taken without knowing which session a command
// is on: a command whose session was lost before it was counted gets a later fence than its own, which only makes the check milder.
type fences struct {
	h *history

	mu     sync.Mutex
	losses int
	usable []int64 // when session n, the one after n losses, was seen to be usable
}

func (f *fences) path(e initiator.PathEvent) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch e.What {
	case initiator.PathLost:
		f.losses++
	case initiator.PathActive:
		f.usable = append(f.usable, f.h.at(e.Time))
	case initiator.PathRefused, initiator.PathMismatch:
	}
}

// next returns the number of the session whose coming ends what is begun now.
func (f *fences) next() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.losses + 1
}

func (f *fences) time(n int) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n >= len(f.usable) {
		return never
	}
	return f.usable[n]
}

// recorder turns the attempts of one Disk into events.
type recorder struct {
	h      *history
	client int // for the picture only
	fences fences

	mu      sync.Mutex
	pending map[uint64]int // operation -> fence of its running attempt
}

func (h *history) recorder() *recorder {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clients++
	return &recorder{h: h, client: h.clients - 1, fences: fences{h: h}, pending: map[uint64]int{}}
}

// attempt is initiator.MultipathConfig.OnAttempt.
func (r *recorder) attempt(a initiator.Attempt) {
	if a.Op == initiator.OpFlush {
		return
	}
	if a.End.IsZero() {
		next := r.fences.next()
		r.mu.Lock()
		r.pending[a.IO] = next
		r.mu.Unlock()
		return
	}
	r.mu.Lock()
	fence := r.pending[a.IO]
	delete(r.pending, a.IO)
	r.mu.Unlock()

	n := uint64(a.Offset) / block.Size
	e := event{client: r.client, block: n, call: r.h.at(a.Start), ret: r.h.at(a.End)}
	var err error
	switch a.Op {
	case initiator.OpRead:
		if a.Outcome != initiator.Acknowledged {
			return
		}
		for i := 0; i < len(a.Data) && err == nil; i += block.Size {
			e.block = n + uint64(i/block.Size)
			e.kind = kindRead
			if e.value, err = valueOf(a.Data[i:i+block.Size], e.block); err == nil {
				r.h.add(e)
			}
		}
		if err != nil {
			r.h.violation(fmt.Errorf("read over path %d: %w", a.Path, err))
		}
		return
	case initiator.OpWrite:
		e.kind = kindWrite
		e.value, err = valueOf(a.Data, n)
	case initiator.OpCompareAndWrite:
		e.kind = kindSwap
		if e.value, err = valueOf(a.Data, n); err == nil {
			e.want, err = valueOf(a.Want, n)
		}
	case initiator.OpUnmap:
		e.kind = kindWrite // of zeros; the load unmaps single blocks only
	case initiator.OpFlush:
	}
	if err != nil {
		r.h.violation(fmt.Errorf("the load itself is wrong: %w", err))
		return
	}
	switch a.Outcome {
	case initiator.Acknowledged:
	case initiator.Unknown:
		e.unknown, e.ret, e.fences, e.fence = true, never, &r.fences, fence
	case initiator.Failed:
		if !isMiscompare(a.Err) {
			return // never begun, so the target says
		}
		e.kind = kindMiss
	}
	r.h.add(e)
}

func isMiscompare(err error) bool {
	var s *initiator.StatusError
	return errors.As(err, &s) && s.Key == scsi.Miscompare
}

// model is one register per block. An unknown command may have taken effect or not; a checker that knows only one successor of
// a state cannot say so, hence the nondeterministic kind.
func model() porcupine.Model {
	m := porcupine.NondeterministicModel{
		Partition: func(all []porcupine.Operation) [][]porcupine.Operation {
			by := map[uint64][]porcupine.Operation{}
			for _, o := range all {
				e := o.Input.(event)
				by[e.block] = append(by[e.block], o)
			}
			blocks := make([]uint64, 0, len(by))
			for b := range by {
				blocks = append(blocks, b)
			}
			slices.Sort(blocks)
			out := make([][]porcupine.Operation, 0, len(by))
			for _, b := range blocks {
				out = append(out, by[b])
			}
			return out
		},
		Init: func() []any { return []any{value(0)} },
		Step: func(state, input, _ any) []any {
			e, now := input.(event), state.(value)
			var effect value
			switch e.kind {
			case kindRead:
				if e.value != now {
					return nil
				}
				return []any{now}
			case kindMiss:
				if e.want == now {
					return nil
				}
				return []any{now}
			case kindSwap:
				if e.want != now {
					if e.unknown {
						return []any{now}
					}
					return nil
				}
				effect = e.value
			case kindWrite:
				effect = e.value
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
}

func (e event) String() string {
	what := map[kind]string{
		kindRead: fmt.Sprintf("read %d", e.value), kindWrite: fmt.Sprintf("write %d", e.value),
		kindSwap: fmt.Sprintf("swap %d for %d", e.value, e.want), kindMiss: fmt.Sprintf("found no %d", e.want),
	}[e.kind]
	if e.unknown {
		what += " (unknown)"
	}
	return what
}

// resolved returns the events with the ends of unknown ones as they are known now.
func (h *history) resolved() []event {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := slices.Clone(h.events)
	for i := range out {
		if e := &out[i]; e.unknown && e.fences != nil {
			e.ret = max(e.call, e.fences.time(e.fence))
		}
	}
	return out
}

// check judges the history within limit. A violation, or a history that could not be judged, is an error that names the
// files in dir where the history of the first bad block and its picture are.
func (h *history) check(limit time.Duration, dir string) error {
	h.mu.Lock()
	broken := errors.Join(h.broken...)
	h.mu.Unlock()
	if broken != nil {
		return broken
	}
	m, events := model(), h.resolved()
	operations := func(events []event) []porcupine.Operation {
		out := make([]porcupine.Operation, len(events))
		for i, e := range events {
			out[i] = porcupine.Operation{ClientId: e.client, Input: e, Call: e.call, Return: e.ret}
		}
		return out
	}
	deadline := time.Now().Add(limit)
	for _, ops := range m.Partition(operations(events)) {
		left := time.Until(deadline)
		result := porcupine.Unknown
		if left > 0 { // none at all would mean no limit
			result = porcupine.CheckOperationsTimeout(m, ops, left)
		}
		if result == porcupine.Ok {
			continue
		}
		number := ops[0].Input.(event).block
		files, err := save(m, ops, dir)
		what := fmt.Errorf("block %d: its %d commands have no linearization: a write was lost, a read was stale, or a write landed after it was given up", number, len(ops))
		if result == porcupine.Unknown {
			what = fmt.Errorf("block %d: its %d commands could not be judged within %v", number, len(ops), limit)
		}
		return errors.Join(fmt.Errorf("%w; see %s", what, strings.Join(files, " and ")), err)
	}
	return nil
}

// save writes one block's history, as text in the order of calls and as a picture.
func save(m porcupine.Model, ops []porcupine.Operation, dir string) (files []string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("save history: %w", err)
	}
	number := ops[0].Input.(event).block
	text := filepath.Join(dir, fmt.Sprintf("block-%d.txt", number))
	sorted := slices.Clone(ops)
	slices.SortFunc(sorted, func(a, b porcupine.Operation) int { return int(min(1, max(-1, a.Call-b.Call))) })
	var b strings.Builder
	for _, o := range sorted {
		end := "never"
		if o.Return != never {
			end = fmt.Sprintf("%.6f", float64(o.Return)/1e9)
		}
		fmt.Fprintf(&b, "%14.6f %14s  client %-3d %v\n", float64(o.Call)/1e9, end, o.ClientId, o.Input)
	}
	if err := os.WriteFile(text, []byte(b.String()), 0o644); err != nil {
		return nil, fmt.Errorf("save history: %w", err)
	}
	picture := filepath.Join(dir, fmt.Sprintf("block-%d.html", number))
	_, info := porcupine.CheckOperationsVerbose(m, ops, 20*time.Second)
	if err := porcupine.VisualizePath(m, info, picture); err != nil {
		return []string{text}, fmt.Errorf("draw history: %w", err)
	}
	return []string{text, picture}, nil
}
