package lincheck

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestCheckerSeesWhatMustNotHappen: a checker that cannot go red proves nothing. Each history is of one block, and good is
// the same with the one difference that makes it legal.
func TestCheckerSeesWhatMustNotHappen(t *testing.T) {
	t.Parallel()
	read := func(v Value, call, ret int64) Op { return Op{Kind: Read, Value: v, Call: call, Return: ret} }
	write := func(v Value, call, ret int64) Op { return Op{Kind: Write, Value: v, Call: call, Return: ret} }
	maybe := func(v Value, call, ret int64) Op {
		return Op{Kind: Write, Value: v, Call: call, Return: ret, Unknown: true}
	}
	swap := func(want, v Value, call, ret int64) Op {
		return Op{Kind: Swap, Want: want, Value: v, Call: call, Return: ret}
	}
	for _, c := range []struct {
		name      string
		bad, good []Op
	}{
		{
			"lost write",
			[]Op{write(1, 10, 20), write(2, 30, 40), read(1, 50, 60)},
			[]Op{write(1, 10, 20), write(2, 30, 55), read(1, 50, 60)}, // still under way
		},
		{
			"lost first write",
			[]Op{write(1, 10, 20), read(0, 50, 60)},
			[]Op{write(1, 10, 20), write(0, 25, 26), read(0, 50, 60)},
		},
		{
			"stale read behind another reader",
			[]Op{write(1, 1, 2), write(2, 10, 100), read(2, 20, 30), read(1, 40, 50)},
			[]Op{write(1, 1, 2), write(2, 10, 100), read(2, 20, 45), read(1, 40, 50)},
		},
		{
			"ghost write after its fence",
			[]Op{maybe(1, 10, 20), write(2, 30, 40), read(2, 50, 60), read(1, 70, 80)},
			[]Op{maybe(1, 10, Never), write(2, 30, 40), read(2, 50, 60), read(1, 70, 80)},
		},
		{
			"unknown write that took effect and then had not",
			[]Op{maybe(1, 10, Never), read(1, 20, 30), read(0, 40, 50)},
			[]Op{maybe(1, 10, Never), read(0, 20, 30), read(1, 40, 50)},
		},
		{
			"write without effect before its fence",
			[]Op{write(1, 10, 20), read(0, 30, 40)},
			[]Op{maybe(1, 10, 20), read(0, 30, 40)},
		},
		{
			"swap of what was not there",
			[]Op{write(1, 10, 20), swap(2, 3, 30, 40)},
			[]Op{write(1, 10, 20), swap(1, 3, 30, 40), read(3, 50, 60)},
		},
		{
			"unknown swap of what was never there",
			[]Op{write(1, 10, 20), {Kind: Swap, Want: 2, Value: 3, Call: 30, Return: Never, Unknown: true}, read(3, 50, 60)},
			[]Op{write(1, 10, 20), {Kind: Swap, Want: 2, Value: 3, Call: 30, Return: Never, Unknown: true}, read(1, 50, 60)},
		},
		{
			"two winners of one swap",
			[]Op{swap(0, 1, 10, 40), swap(0, 2, 20, 50)},
			[]Op{swap(0, 1, 10, 40), {Kind: Miss, Want: 0, Value: 2, Call: 20, Return: 50}, read(1, 60, 70)},
		},
		{
			"a miscompare of what was there",
			[]Op{write(1, 10, 20), {Kind: Miss, Want: 1, Call: 30, Return: 40}},
			[]Op{write(1, 10, 20), {Kind: Miss, Want: 2, Call: 30, Return: 40}},
		},
		{
			"a value nobody wrote",
			[]Op{read(9, 10, 20)},
			[]Op{maybe(9, 5, 15), read(9, 10, 20)},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if err := Check(c.good, 10*time.Second); err != nil {
				t.Errorf("the legal history: %v", err)
			}
			other := Op{Block: 1, Kind: Write, Value: 7, Call: 1, Return: 2}
			err := Check(append([]Op{other}, c.bad...), 10*time.Second)
			var v *Violation
			if !errors.As(err, &v) || v.TimedOut || v.Block != 0 || len(v.Ops) != len(c.bad) || !strings.Contains(err.Error(), "no linearization") {
				t.Fatalf("the illegal history: %v, %+v", err, v)
			}
			if lines := strings.Count(v.Text(), "\n"); lines != len(c.bad) {
				t.Errorf("its text has %d lines, not %d:\n%s", lines, len(c.bad), v.Text())
			}
		})
	}
}

func TestCheckerOutOfTimeIsAFailure(t *testing.T) {
	t.Parallel()
	err := Check([]Op{{Kind: Write, Value: 1, Call: 1, Return: 2}}, 0)
	var v *Violation
	if !errors.As(err, &v) || !v.TimedOut || !strings.Contains(err.Error(), "could not be judged") {
		t.Errorf("check without time: %v", err)
	}
}

func TestBlocksAreJudgedApart(t *testing.T) {
	t.Parallel()
	ops := []Op{{Block: 1, Kind: Write, Value: 1, Call: 1, Return: 2}, {Block: 2, Kind: Read, Value: 0, Call: 3, Return: 4}, {Block: 1, Kind: Read, Value: 1, Call: 5, Return: 6}}
	if err := Check(ops, time.Second); err != nil {
		t.Error(err)
	}
}

func TestPictureIsDrawn(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "block.html")
	v := &Violation{Ops: []Op{{Kind: Read, Value: 9, Call: 1, Return: 2}}}
	if err := v.Draw(path); err != nil {
		t.Fatal(err)
	}
	if s, err := os.Stat(path); err != nil || s.Size() == 0 {
		t.Errorf("%v, %v", s, err)
	}
}
