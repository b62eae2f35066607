package journal

import (
	"testing"
	"time"

	"sanctuary/blockstore/vfs/crashdev"
)

// startWithin is how long a start may take that has nothing to wait for.
const startWithin = 20 * time.Second

// openFull opens a journal on a file system that is full, which must not wait until there is room.
func openFull(t *testing.T, folder *crashdev.Folder, opts Options) *Journal {
	t.Helper()
	type opened struct {
		j   *Journal
		err error
	}
	done := make(chan opened, 1)
	go func() {
		j, err := Open(folder, opts)
		done <- opened{j, err}
	}()
	select {
	case o := <-done:
		if o.err != nil {
			t.Fatal(o.err)
		}
		return o.j
	case <-time.After(startWithin):
		t.Fatal("it waits for room before it starts")
		return nil
	}
}

// A journal starts on a full file system wherever the process was killed, and with damage after which it would rather go on in another segment: what is in it is
// read, it says that there is no room, and what is stored waits until there is. So it is after the next start, and after one in order.
func TestJournalStartsOnAFullFileSystem(t *testing.T) {
	opts := small
	opts.noRoomPause = time.Millisecond
	folder := crashdev.NewFolder(crashdev.NewPower(-1))
	j := mustOpen(t, folder, opts)
	a, b := mustLog(t, j, "a"), mustLog(t, j, "b")
	sealed := 0
	for i := uint64(1); i <= 60; i++ {
		mustStore(t, a, sized(i, i, 1, 60_000))
		if err := b.SetUint64([]byte("CurrentTerm"), i); err != nil {
			t.Fatal(err)
		}
		for _, spoilt := range []bool{false, true} {
			if startFull(t, folder.Clone(crashdev.NewPower(-1)), opts, i, spoilt) {
				sealed++
			}
		}
	}
	if sealed < 40 {
		t.Errorf("%d starts had no segment to go on in", sealed)
	}
}

// startFull starts a journal with so many entries again and again, and says whether the last segment was of no use.
func startFull(t *testing.T, folder *crashdev.Folder, opts Options, last uint64, spoilt bool) (sealed bool) {
	t.Helper()
	full := fullable(folder)
	names, err := folder.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names { // a segment that is ready would do: the process was killed before there was one
		if seq, ok := segmentSequence(name); ok && blank(t, folder.Dev(name), 0) && seq > 1 {
			if err := folder.Remove(name); err != nil {
				t.Fatal(err)
			}
			names = names[:len(names)-1]
		}
	}
	if spoilt && len(names) > 1 { // the header of the last one
		folder.Dev(names[len(names)-1]).FlipBit(8, 1)
	}
	full.Store(true)
	for range 2 {
		j := openFull(t, folder, opts)
		sealed = j.index.last().sealed
		if sealed && (!j.Tight() || j.takes() || j.Stalled() != 0) {
			t.Fatalf("without room: tight %v, takes %v, stalled %v", j.Tight(), j.takes(), j.Stalled())
		}
		a := mustLog(t, j, "a")
		wantEntries(t, a, sized(1, last, 1, 60_000))
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	j := openFull(t, folder, opts)
	a, b := mustLog(t, j, "a"), mustLog(t, j, "b")
	if term, err := b.GetUint64([]byte("CurrentTerm")); term != last || err != nil {
		t.Fatalf("the term is %d, %v", term, err)
	}
	stored := make(chan error, 2)
	go func() { stored <- a.StoreLogs(sized(last+1, last+1, 1, 60_000)) }()
	go func() { stored <- b.SetUint64([]byte("CurrentTerm"), last+1) }()
	if sealed {
		select {
		case err := <-stored:
			t.Fatalf("something was stored without room: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	full.Store(false)
	for range 2 {
		if err := <-stored; err != nil {
			t.Fatal(err)
		}
	}
	wantEntries(t, a, sized(1, last+1, 1, 60_000))
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = mustOpen(t, folder, opts)
	wantEntries(t, mustLog(t, j, "a"), sized(1, last+1, 1, 60_000))
	if term, err := mustLog(t, j, "b").GetUint64([]byte("CurrentTerm")); term != last+1 || err != nil {
		t.Fatalf("the term is %d, %v", term, err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	return sealed
}
