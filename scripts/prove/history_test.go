package prove

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/lincheck"
	"sanctuary/target/initiator"
	"sanctuary/target/scsi"
)

// event is one command to one block, an attempt of an operation: what it did and when. Call and Return are nanoseconds since the
// history's start, on the monotonic clock.
type event struct {
	lincheck.Op
	// After an unknown one, Return is not known when the command ends: it is when the disk's session number fence became
	// usable (see fences), and until then never.
	fences *fences
	fence  int
}

const never = lincheck.Never

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
	e := event{Op: lincheck.Op{Client: r.client, Block: n, Call: r.h.at(a.Start), Return: r.h.at(a.End), At: a.Start.Sub(r.h.start)}}
	var err error
	switch a.Op {
	case initiator.OpRead:
		if a.Outcome != initiator.Acknowledged {
			return
		}
		for i := 0; i < len(a.Data) && err == nil; i += block.Size {
			e.Block = n + uint64(i/block.Size)
			e.Kind = lincheck.Read
			if e.Value, err = valueOf(a.Data[i:i+block.Size], e.Block); err == nil {
				r.h.add(e)
			}
		}
		if err != nil {
			r.h.violation(fmt.Errorf("read over path %d: %w", a.Path, err))
		}
		return
	case initiator.OpWrite:
		e.Kind = lincheck.Write
		e.Value, err = valueOf(a.Data, n)
	case initiator.OpCompareAndWrite:
		e.Kind = lincheck.Swap
		if e.Value, err = valueOf(a.Data, n); err == nil {
			e.Want, err = valueOf(a.Want, n)
		}
	case initiator.OpUnmap:
		e.Kind = lincheck.Write // of zeros; the load unmaps single blocks only
	case initiator.OpFlush:
	}
	if err != nil {
		r.h.violation(fmt.Errorf("the load itself is wrong: %w", err))
		return
	}
	switch a.Outcome {
	case initiator.Acknowledged:
	case initiator.Unknown:
		e.Unknown, e.Return, e.fences, e.fence = true, never, &r.fences, fence
	case initiator.Failed:
		if !isMiscompare(a.Err) {
			return // never begun, so the target says
		}
		e.Kind = lincheck.Miss
	}
	r.h.add(e)
}

func isMiscompare(err error) bool {
	var s *initiator.StatusError
	return errors.As(err, &s) && s.Key == scsi.Miscompare
}

// resolved returns the operations with the ends of unknown ones as they are known now.
func (h *history) resolved() []lincheck.Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]lincheck.Op, len(h.events))
	for i, e := range h.events {
		out[i] = e.Op
		if e.Unknown && e.fences != nil {
			out[i].Return = max(e.Call, e.fences.time(e.fence))
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
	err := lincheck.Check(h.resolved(), limit)
	var v *lincheck.Violation
	if !errors.As(err, &v) {
		return err
	}
	files, serr := save(v, dir)
	return errors.Join(fmt.Errorf("%w; see %s", err, strings.Join(files, " and ")), serr)
}

// save writes one block's history, as text in the order of calls and as a picture.
func save(v *lincheck.Violation, dir string) (files []string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("save history: %w", err)
	}
	text := filepath.Join(dir, fmt.Sprintf("block-%d.txt", v.Block))
	if err := os.WriteFile(text, []byte(v.Text()), 0o644); err != nil {
		return nil, fmt.Errorf("save history: %w", err)
	}
	picture := filepath.Join(dir, fmt.Sprintf("block-%d.html", v.Block))
	if err := v.Draw(picture); err != nil {
		return []string{text}, err
	}
	return []string{text, picture}, nil
}
