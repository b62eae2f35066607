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

// What has been admitted finds room in the segments there are, also before anybody knows whether there will be another one: the file system takes its time to say that it is full.
func TestWhatIsAdmittedFindsRoom(t *testing.T) {
	folder := crashdev.NewFolder(crashdev.NewPower(-1))
	opts := small
	opts.IdleAfter, opts.noRoomPause = 20*time.Millisecond, time.Millisecond
	j := mustOpen(t, folder, opts)
	l := mustLog(t, j, "a")
	answer, full := make(chan struct{}), &atomic.Bool{}
	full.Store(true)
	folder.SetHook(func(_ string, k crashdev.Kind, _, _ int64) error {
		if k != crashdev.Allocate {
			return nil
		}
		<-answer
		if full.Load() {
			return vfs.ErrNoSpace
		}
		return nil
	})
	const size = 10_000
	next := uint64(1)
	admit := func() (n int) {
		for l.Admit(Cost(1, size)) {
			n++
		}
		return n
	}
	store := func(n int) {
		t.Helper()
		for range n {
			if err := l.Append(sized(next, next, 1, size-20)); err != nil {
				t.Fatal(err)
			}
			l.Arrived(Cost(1, size))
			next++
		}
	}
	onWay := admit()
	if onWay < 5 {
		t.Fatalf("%d entries are admitted to a segment of %d bytes", onWay, opts.SegmentBytes)
	}
	if store(onWay / 2); l.Admit(Cost(1, int64(size*onWay/2))) {
		t.Fatal("what is on its way does not count")
	}
	store(onWay - onWay/2)
	for n := onWay; n > 0; { // what is durable takes less than was counted: frames have several entries
		late := make(chan struct{})
		timer := time.AfterFunc(10*time.Second, func() { close(late) })
		if err := l.AwaitDurable(next-1, late); err != nil {
			t.Fatalf("what was admitted waits for room: %v", err)
		}
		timer.Stop()
		n = admit()
		store(n)
	}
	if j.Tight() {
		t.Fatal("the file system has said something")
	}
	close(answer)
	wait(t, "there is no room", j.Tight)
	if l.Admit(Cost(1, size)) {
		t.Fatal("entries are admitted without room")
	}
	full.Store(false)
	wait(t, "there is room", func() bool { return l.Admit(Cost(1, size)) })
	store(1)
	if err := l.AwaitDurable(next-1, nil); err != nil {
		t.Fatal(err)
	}
}

// What is left of a segment is known from the start on, not from the first batch.
func TestAStartedJournalAdmitsWhatItsSegmentHasRoomFor(t *testing.T) {
	folder := crashdev.NewFolder(crashdev.NewPower(-1))
	j := mustOpen(t, folder, small)
	mustStore(t, mustLog(t, j, "a"), sized(1, 3, 1, 100))
	left := j.left.Load()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = mustOpen(t, folder, small)
	if now := j.left.Load(); now <= 0 || now > left {
		t.Errorf("%d bytes are left after a start, %d before it", now, left)
	}
	folder.SetHook(func(_ string, k crashdev.Kind, _, _ int64) error {
		if k == crashdev.Allocate {
			return vfs.ErrNoSpace
		}
		return nil
	})
	l := mustLog(t, j, "a")
	for n := range 3 { // one alone may be admitted as no larger than a segment
		if !l.Admit(Cost(1, 100)) {
			t.Errorf("it admits %d entries", n)
		}
	}
}
