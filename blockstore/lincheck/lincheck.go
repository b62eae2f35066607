// Package lincheck answers one question: can what the clients of a disk saw have happened? Tests ask it (replication/sim, scripts/prove).
//
// Invariant: a history passes only if for every block its operations can be put in one order, each between its call and its return, in which
// every answer is right: no acknowledged write was lost, no read was stale, and nothing landed after it was given up. Blocks are judged one by one: a disk
// promises nothing across them. What could not be judged in time has not passed. It does not record histories, and does not know when an operation of
// unknown outcome can take effect no more: whoever records says so, with its return.
package lincheck

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// Value is what a block holds: 0 is all zeros, anything else a number that only one operation writes.
type Value uint64

// Kind is what an operation does to the register that a block is.
type Kind uint8

// Kinds of operations.
const (
	Read  Kind = iota // observed Value
	Write             // sets to Value; an unmapped block is one that value 0 was written to
	Swap              // sets to Value if the register is Want
	Miss              // observed that the register is not Want
)

// Never is the return of an operation that may take effect at any time.
const Never = math.MaxInt64

// Op is one attempt of one operation on one block. Call and Return count anything that grows.
type Op struct {
	Client       int // for the picture only
	Block        uint64
	Kind         Kind
	Value, Want  Value
	Call, Return int64
	Unknown      bool          // it may have taken effect at some moment between Call and Return, or not at all
	At           time.Duration // when it began, for people
}

func (o Op) String() string {
	what := map[Kind]string{
		Read: fmt.Sprintf("read %d", o.Value), Write: fmt.Sprintf("write %d", o.Value),
		Swap: fmt.Sprintf("swap %d for %d", o.Want, o.Value), Miss: fmt.Sprintf("found no %d", o.Want),
	}[o.Kind]
	if o.Unknown {
		what += " (unknown)"
	}
	return what
}

// model is one register. An unknown operation may have taken effect or not; a checker that knows only one successor of a state cannot say so,
// hence the nondeterministic kind.
var model = func() porcupine.Model {
	m := porcupine.NondeterministicModel{
		Init: func() []any { return []any{Value(0)} },
		Step: func(state, input, _ any) []any {
			o, now := input.(Op), state.(Value)
			effect := now
			switch o.Kind {
			case Read:
				if o.Value != now {
					return nil
				}
			case Miss:
				if o.Want == now {
					return nil
				}
			case Swap:
				if o.Want == now {
					effect = o.Value
				} else if !o.Unknown {
					return nil
				}
			case Write:
				effect = o.Value
			}
			if o.Unknown && effect != now {
				return []any{now, effect}
			}
			return []any{effect}
		},
		DescribeOperation: func(input, _ any) string { return input.(Op).String() },
		DescribeState:     func(state any) string { return fmt.Sprint(state) },
	}
	return m.ToModel()
}()

// Violation is the history of a block that did not pass.
type Violation struct {
	Block    uint64
	Ops      []Op // in the order of their calls
	TimedOut bool // it could not be judged
}

func (v *Violation) Error() string {
	if v.TimedOut {
		return fmt.Sprintf("block %d: its %d operations could not be judged in time", v.Block, len(v.Ops))
	}
	return fmt.Sprintf("block %d: its %d operations have no linearization: a write was lost, a read was stale, or a write landed after it was given up", v.Block, len(v.Ops))
}

// Check judges a history of a disk that held zeros, within limit of real time. Of several blocks that do not pass the first one is returned, as a
// *Violation.
func Check(ops []Op, limit time.Duration) error {
	by := map[uint64][]Op{}
	for _, o := range ops {
		by[o.Block] = append(by[o.Block], o)
	}
	blocks := make([]uint64, 0, len(by))
	for n := range by {
		blocks = append(blocks, n)
	}
	slices.Sort(blocks)
	deadline := time.Now().Add(limit)
	for _, n := range blocks {
		result := porcupine.Unknown
		if left := time.Until(deadline); left > 0 { // none at all would mean no limit
			result = porcupine.CheckOperationsTimeout(model, operations(by[n]), left)
		}
		if result == porcupine.Ok {
			continue
		}
		slices.SortStableFunc(by[n], func(a, b Op) int { return cmp.Compare(a.Call, b.Call) })
		return &Violation{Block: n, Ops: by[n], TimedOut: result == porcupine.Unknown}
	}
	return nil
}

func operations(ops []Op) []porcupine.Operation {
	out := make([]porcupine.Operation, len(ops))
	for i, o := range ops {
		out[i] = porcupine.Operation{ClientId: o.Client, Input: o, Call: o.Call, Return: o.Return}
	}
	return out
}

// Text is the history, an operation a line: when it began, its call and return, its client, and what it was.
func (v *Violation) Text() string {
	var b strings.Builder
	for _, o := range v.Ops {
		end := "never"
		if o.Return != Never {
			end = fmt.Sprint(o.Return)
		}
		fmt.Fprintf(&b, "%12.6f %14d %14s  client %-3d %v\n", o.At.Seconds(), o.Call, end, o.Client, o)
	}
	return b.String()
}

// Draw writes a picture of the history, as HTML, and takes up to 20 s for it.
func (v *Violation) Draw(path string) error {
	_, info := porcupine.CheckOperationsVerbose(model, operations(v.Ops), 20*time.Second)
	if err := porcupine.VisualizePath(model, info, path); err != nil {
		return fmt.Errorf("draw history: %w", err)
	}
	return nil
}
