package journal

import (
	"sync/atomic"
	"testing"
	"time"

	"sanctuary/blockstore/vfs"
	"sanctuary/blockstore/vfs/crashdev"
)

// fullable has a folder's file system be full while it is set.
func fullable(folder *crashdev.Folder) *atomic.Bool {
	full := &atomic.Bool{}
	folder.SetHook(func(_ string, k crashdev.Kind, _, _ int64) error {
		if k == crashdev.Allocate && full.Load() {
			return vfs.ErrNoSpace
		}
		return nil
	})
	return full
}

// tightJournal is one of a few segments, on a file system that has been full since, and whose room has been written to as far as entries may. stored gets the
// index of every entry of log a that is durable from then on, and is closed behind the last, of 400.
func tightJournal(t *testing.T) (j *Journal, a, b Log, stored chan uint64) {
	folder := crashdev.NewFolder(crashdev.NewPower(-1))
	full := fullable(folder)
	stored = make(chan uint64, 1000)
	opts := small
	opts.IdleAfter, opts.noRoomPause = 20*time.Millisecond, time.Millisecond
	j = mustOpen(t, folder, opts)
	a, b = mustLog(t, j, "a"), mustLog(t, j, "b")
	for term := range uint64(3) { // the third says nothing of the group's name any more
		if err := b.SetUint64([]byte("CurrentTerm"), term+1); err != nil {
			t.Fatal(err)
		}
	}
	mustStore(t, a, sized(1, 60, 1, 60_000))
	full.Store(true)
	go func() {
		defer close(stored)
		for i := uint64(61); i <= 400; i++ {
			if a.StoreLogs(sized(i, i, 1, 60_000)) != nil {
				return
			}
			stored <- i
		}
	}()
	wait(t, "entries wait", func() bool { n := len(stored); time.Sleep(300 * time.Millisecond); return len(stored) == n })
	if n := len(stored); n == 340 {
		t.Fatal("the file system is not full")
	}
	return j, a, b, stored
}

// A journal without room asks for logs to be cut off, takes that in although entries wait, and goes on in the segments that come free. Raft has its
// terms and votes stored meanwhile.
func TestFullFileSystemIsHelpedByCuttingLogsOff(t *testing.T) {
	j, a, b, stored := tightJournal(t)
	if !a.Tight() || !b.Tight() {
		t.Fatal("it does not say that it has no room")
	}
	for term := uint64(4); term < 10; term++ {
		if err := b.SetUint64([]byte("CurrentTerm"), term); err != nil {
			t.Fatal(err)
		}
	}
	last := uint64(60)
	for open := true; open; {
		select {
		case i, ok := <-stored:
			if open = ok; ok {
				last = i
			}
		case <-time.After(300 * time.Millisecond): // it waits again
			if err := a.DeleteRange(0, last-2); err != nil {
				t.Fatal(err)
			}
		}
	}
	if last != 400 {
		t.Fatalf("it went on to %d", last)
	}
	first, _ := a.FirstIndex()
	wantEntries(t, a, sized(first, 400, 1, 60_000))
	if term, err := b.GetUint64([]byte("CurrentTerm")); term != 9 || err != nil {
		t.Errorf("the other group's term is %d, %v", term, err)
	}
	if n := j.Stats().Segments; n > 6 {
		t.Errorf("%d segments", n)
	}
}

// Entries wait behind what goes before them, and not in another order: what a group stored, cut off at the back and stored anew is what it is at the end.
func TestEntriesThatWaitForRoomKeepTheirOrder(t *testing.T) {
	_, a, b, stored := tightJournal(t)
	if err := b.Append(sized(1, 10, 1, 100)); err != nil {
		t.Fatal(err)
	}
	cut := make(chan error, 1)
	go func() { cut <- b.DeleteRange(5, 10) }()
	wait(t, "the end is cut off", func() bool { last, _ := b.LastIndex(); return last == 4 })
	if err := b.Append(sized(5, 8, 2, 100)); err != nil {
		t.Fatal(err)
	}
	if err := b.SetUint64([]byte("CurrentTerm"), 9); err != nil {
		t.Fatal(err)
	}
	if b.Durable() != 0 {
		t.Fatal("entries did not wait")
	}
	for open := true; open; {
		select {
		case _, open = <-stored:
		case <-time.After(100 * time.Millisecond):
			last, _ := a.LastIndex()
			if err := a.DeleteRange(0, last-2); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := <-cut; err != nil {
		t.Fatal(err)
	}
	if err := b.AwaitDurable(8, nil); err != nil {
		t.Fatal(err)
	}
	wantBounds(t, b, 1, 8)
	wantEntries(t, b, append(sized(1, 4, 1, 100), sized(5, 8, 2, 100)...))
}
