package prove

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/lincheck"
	"sanctuary/target/initiator"
	"sanctuary/target/scsi"
)

// TestViolationIsSaved: what is wrong about a history, clients cannot say a second time.
func TestViolationIsSaved(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := &history{events: []event{{Op: lincheck.Op{Kind: lincheck.Read, Value: 9, Call: 10, Return: 20}}}}
	err := h.check(10*time.Second, dir)
	if err == nil || !strings.Contains(err.Error(), "no linearization") {
		t.Fatalf("the illegal history: %v", err)
	}
	for _, suffix := range []string{"block-0.txt", "block-0.html"} {
		if s, serr := os.Stat(dir + "/" + suffix); serr != nil || s.Size() == 0 || !strings.Contains(err.Error(), suffix) {
			t.Errorf("%s: %v, %v; want it written and named in %v", suffix, s, serr, err)
		}
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
		if e.Return != never {
			end = time.Duration(e.Return).String()
			end = strings.TrimSuffix(end, "ns")
		}
		got := e.String() + " " + strings.TrimSuffix(time.Duration(e.Call).String(), "ns") + " " + end
		if got != want[i] || e.Block != 5 {
			t.Errorf("event %d: %q of block %d, want %q of block 5", i, got, e.Block, want[i])
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
