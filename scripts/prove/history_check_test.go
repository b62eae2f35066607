package prove

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/target/initiator"
	"sanctuary/target/scsi"
)

// TestCheckerSeesWhatMustNotHappen: a checker that cannot go red proves nothing. Each history is of one block, and good is
// the same with the one difference that makes it legal.
func TestCheckerSeesWhatMustNotHappen(t *testing.T) {
	t.Parallel()
	read := func(v value, call, ret int64) event { return event{kind: kindRead, value: v, call: call, ret: ret} }
	write := func(v value, call, ret int64) event { return event{kind: kindWrite, value: v, call: call, ret: ret} }
	maybe := func(v value, call, ret int64) event {
		return event{kind: kindWrite, value: v, call: call, ret: ret, unknown: true}
	}
	swap := func(want, v value, call, ret int64) event {
		return event{kind: kindSwap, want: want, value: v, call: call, ret: ret}
	}
	for _, c := range []struct {
		name      string
		bad, good []event
	}{
		{
			"lost write",
			[]event{write(1, 10, 20), write(2, 30, 40), read(1, 50, 60)},
			[]event{write(1, 10, 20), write(2, 30, 55), read(1, 50, 60)}, // still under way
		},
		{
			"lost first write",
			[]event{write(1, 10, 20), read(0, 50, 60)},
			[]event{write(1, 10, 20), write(0, 25, 26), read(0, 50, 60)},
		},
		{
			"stale read behind another reader",
			[]event{write(1, 1, 2), write(2, 10, 100), read(2, 20, 30), read(1, 40, 50)},
			[]event{write(1, 1, 2), write(2, 10, 100), read(2, 20, 45), read(1, 40, 50)},
		},
		{
			"ghost write after its fence",
			[]event{maybe(1, 10, 20), write(2, 30, 40), read(2, 50, 60), read(1, 70, 80)},
			[]event{maybe(1, 10, never), write(2, 30, 40), read(2, 50, 60), read(1, 70, 80)},
		},
		{
			"unknown write that took effect and then had not",
			[]event{maybe(1, 10, never), read(1, 20, 30), read(0, 40, 50)},
			[]event{maybe(1, 10, never), read(0, 20, 30), read(1, 40, 50)},
		},
		{
			"swap of what was not there",
			[]event{write(1, 10, 20), swap(2, 3, 30, 40)},
			[]event{write(1, 10, 20), swap(1, 3, 30, 40), read(3, 50, 60)},
		},
		{
			"two winners of one swap",
			[]event{swap(0, 1, 10, 40), swap(0, 2, 20, 50)},
			[]event{swap(0, 1, 10, 40), {kind: kindMiss, want: 0, value: 2, call: 20, ret: 50}, read(1, 60, 70)},
		},
		{
			"a value nobody wrote",
			[]event{read(9, 10, 20)},
			[]event{maybe(9, 5, 15), read(9, 10, 20)},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			good := &history{events: c.good}
			if err := good.check(10*time.Second, dir); err != nil {
				t.Errorf("the legal history: %v", err)
			}
			bad := &history{events: c.bad}
			err := bad.check(10*time.Second, dir)
			if err == nil || !strings.Contains(err.Error(), "no linearization") {
				t.Fatalf("the illegal history: %v", err)
			}
			for _, suffix := range []string{"block-0.txt", "block-0.html"} {
				if s, serr := os.Stat(dir + "/" + suffix); serr != nil || s.Size() == 0 || !strings.Contains(err.Error(), suffix) {
					t.Errorf("%s: %v, %v; want it written and named in %v", suffix, s, serr, err)
				}
			}
		})
	}
}

func TestCheckerOutOfTimeIsAFailure(t *testing.T) {
	t.Parallel()
	h := &history{events: []event{{kind: kindWrite, value: 1, call: 1, ret: 2}}}
	if err := h.check(0, t.TempDir()); err == nil || !strings.Contains(err.Error(), "could not be judged") {
		t.Errorf("check without time: %v", err)
	}
}

// TestRecorderKeepsAttemptsApart drives the recorder as a Disk does, through one lost session.
func TestRecorderKeepsAttemptsApart(t *testing.T) {
	t.Parallel()
	h := newHistory()
	r := h.recorder()
	at := func(n int) time.Time { return h.start.Add(time.Duration(n)) }
	data := func(v value) []byte {
		p := make([]byte, block.Size)
		fill(p, v, 5)
		return p
	}
	step := func(io uint64, op initiator.Operation, p []byte, from, to int, o initiator.Outcome, err error) {
		a := initiator.Attempt{IO: io, Op: op, Offset: 5 * block.Size, Data: p, Want: data(1), Start: at(from)}
		r.attempt(a)
		a.End, a.Outcome, a.Err = at(to), o, err
		if to == 30 { // the session ends between the attempt's start and its end
			r.fences.path(initiator.PathEvent{Time: at(29), What: initiator.PathLost})
		}
		r.attempt(a)
	}
	r.fences.path(initiator.PathEvent{Time: at(1), What: initiator.PathActive})
	step(1, initiator.OpWrite, data(1), 10, 11, initiator.Acknowledged, nil)
	step(2, initiator.OpWrite, data(2), 20, 30, initiator.Unknown, initiator.ErrSession)
	r.fences.path(initiator.PathEvent{Time: at(40), What: initiator.PathActive})
	step(2, initiator.OpWrite, data(2), 41, 45, initiator.Acknowledged, nil)
	step(3, initiator.OpRead, data(2), 50, 55, initiator.Acknowledged, nil)
	step(4, initiator.OpCompareAndWrite, data(4), 60, 65, initiator.Failed, &initiator.StatusError{Status: scsi.StatusCheckCondition, Key: scsi.Miscompare})
	step(5, initiator.OpUnmap, nil, 70, 75, initiator.Acknowledged, nil)
	step(6, initiator.OpWrite, data(6), 80, 85, initiator.Failed, &initiator.StatusError{Status: scsi.StatusCheckCondition, Key: scsi.NotReady})
	step(7, initiator.OpWrite, data(7), 90, 95, initiator.Unknown, errors.New("cut off"))

	want := []string{"write 1 10 11", "write 2 (unknown) 20 40", "write 2 41 45", "read 2 50 55", "found no 1 60 65", "write 0 70 75", "write 7 (unknown) 90 never"}
	events := h.resolved()
	if len(events) != len(want) {
		t.Fatalf("recorded %v, want %q", events, want)
	}
	for i, e := range events {
		end := "never"
		if e.ret != never {
			end = time.Duration(e.ret).String()
			end = strings.TrimSuffix(end, "ns")
		}
		got := e.String() + " " + strings.TrimSuffix(time.Duration(e.call).String(), "ns") + " " + end
		if got != want[i] || e.block != 5 {
			t.Errorf("event %d: %q of block %d, want %q of block 5", i, got, e.block, want[i])
		}
	}
	if err := h.check(10*time.Second, t.TempDir()); err != nil {
		t.Errorf("check: %v", err)
	}
	torn := append(data(8)[:block.SectorSize:block.SectorSize], data(9)[block.SectorSize:]...)
	step(8, initiator.OpRead, torn, 100, 101, initiator.Acknowledged, nil)
	if err := h.check(10*time.Second, t.TempDir()); err == nil || !strings.Contains(err.Error(), "torn") {
		t.Errorf("a torn block: %v", err)
	}
}
