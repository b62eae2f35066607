package journal

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
	"sanctuary/blockstore/vfs/crashdev"
)

// small makes segments turn often. The idle marker is left to the tests that want it.
var small = Options{SegmentBytes: minSegmentBytes, CacheBytes: 64 << 10, IdleAfter: time.Hour}

func entries(from, to, term uint64) (logs []*raft.Log) {
	for i := from; i <= to; i++ {
		logs = append(logs, &raft.Log{Index: i, Term: term, Type: raft.LogCommand, Data: fmt.Appendf(nil, "entry %d of term %d", i, term)})
	}
	return logs
}

// sized are entries of that many bytes each.
func sized(from, to, term uint64, size int) []*raft.Log {
	logs := entries(from, to, term)
	for _, l := range logs {
		l.Data = append(l.Data, bytes.Repeat([]byte{byte(l.Index)}, size)...)
	}
	return logs
}

func mustOpen(t testing.TB, folder vfs.Folder, opts Options) *Journal {
	t.Helper()
	j, err := Open(folder, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func mustLog(t testing.TB, j *Journal, name string) Log {
	t.Helper()
	l, err := j.Log(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustStore(t testing.TB, l Log, logs []*raft.Log) {
	t.Helper()
	if err := l.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
}

func wantBounds(t testing.TB, l Log, first, last uint64) {
	t.Helper()
	f, err1 := l.FirstIndex()
	n, err2 := l.LastIndex()
	if f != first || n != last || err1 != nil || err2 != nil {
		t.Fatalf("log is %d..%d (%v, %v), want %d..%d", f, n, err1, err2, first, last)
	}
}

func wantEntries(t testing.TB, l Log, want []*raft.Log) {
	t.Helper()
	for _, w := range want {
		var got raft.Log
		if err := l.GetLog(w.Index, &got); err != nil {
			t.Fatalf("entry %d: %v", w.Index, err)
		}
		if got.Index != w.Index || got.Term != w.Term || got.Type != w.Type || !bytes.Equal(got.Data, w.Data) || !bytes.Equal(got.Extensions, w.Extensions) {
			t.Fatalf("entry %d: got term %d, %q", w.Index, got.Term, got.Data)
		}
	}
}

// onDisk is a journal in a directory, closed and opened again by again.
type onDisk struct {
	t   *testing.T
	dir *vfs.Dir
	j   *Journal
}

func newOnDisk(t *testing.T) *onDisk {
	dir, err := vfs.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return &onDisk{t: t, dir: dir, j: mustOpen(t, dir, small)}
}

func (d *onDisk) again() {
	d.t.Helper()
	if err := d.j.Close(); err != nil {
		d.t.Fatal(err)
	}
	d.j = mustOpen(d.t, d.dir, small)
}

// Every log must behave alike; one on disk also when it is opened again.
func TestLogKeepsWhatRaftExpects(t *testing.T) {
	d := newOnDisk(t)
	for name, open := range map[string]func() Log{
		"memory": NewMemory,
		"file":   func() Log { return mustLog(t, d.j, "group") },
	} {
		t.Run(name, func(t *testing.T) {
			l := open()
			wantBounds(t, l, 0, 0)
			mustStore(t, l, entries(1, 100, 1))
			if err := l.DeleteRange(91, 100); err != nil { // a conflicting tail
				t.Fatal(err)
			}
			mustStore(t, l, entries(91, 95, 2))
			mustStore(t, l, entries(94, 95, 3))          // as raft does not, but might
			if err := l.DeleteRange(1, 10); err != nil { // compaction
				t.Fatal(err)
			}
			again := func() {
				if name == "file" {
					d.again()
					l = open()
				}
			}
			check := func() {
				t.Helper()
				wantBounds(t, l, 11, 95)
				wantEntries(t, l, entries(11, 90, 1))
				wantEntries(t, l, entries(91, 93, 2))
				wantEntries(t, l, entries(94, 95, 3))
				for _, i := range []uint64{10, 96} {
					if err := l.GetLog(i, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
						t.Fatalf("entry %d: %v", i, err)
					}
				}
			}
			check()
			again()
			check()
			mustStore(t, l, entries(1000, 1001, 3)) // behind a gap, as after a rebuild
			wantBounds(t, l, 1000, 1001)
			again()
			wantBounds(t, l, 1000, 1001)
			if err := l.Reset(); err != nil {
				t.Fatal(err)
			}
			wantBounds(t, l, 0, 0)
			again()
			wantBounds(t, l, 0, 0)
			mustStore(t, l, entries(5, 6, 4))
			again()
			wantBounds(t, l, 5, 6)
			wantEntries(t, l, entries(5, 6, 4))
		})
	}
}

func TestTermVoteAndSnapshotAreThereAfterARestart(t *testing.T) {
	d := newOnDisk(t)
	l := mustLog(t, d.j, "group")
	vote := func(term uint64, candidate string) {
		if err := l.SetUint64([]byte(keyVoteTerm), term); err != nil {
			t.Fatal(err)
		}
		if candidate != "" {
			if err := l.Set([]byte(keyVoteCandidate), []byte(candidate)); err != nil {
				t.Fatal(err)
			}
		}
	}
	vote(3, "a")
	vote(4, "") // the process ends between Raft's two writes: the vote of one election never stands beside the candidate of another
	sink, err := l.Snapshots().Create(1, 20, 2, raft.Configuration{Servers: []raft.Server{{ID: "a/1", Address: "a"}}}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(sink, "body")
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	d.again()
	l = mustLog(t, d.j, "group")
	term, _ := l.GetUint64([]byte(keyVoteTerm))
	candidate, _ := l.Get([]byte(keyVoteCandidate))
	if term != 3 || string(candidate) != "a" {
		t.Fatalf("voted for %q in term %d", candidate, term)
	}
	meta, body, ok := l.Snapshots().Newest()
	if !ok || meta.Index != 20 || string(body) != "body" || len(meta.Configuration.Servers) != 1 {
		t.Fatalf("got %+v %q %v", meta, body, ok)
	}
}

func TestGroupsShareSegmentsAndLetThemGo(t *testing.T) {
	d := newOnDisk(t)
	quiet, busy := mustLog(t, d.j, "quiet"), mustLog(t, d.j, "busy")
	mustStore(t, quiet, sized(1, 3, 1, 1000)) // would keep the first segment for ever
	for i := uint64(1); i < 2000; i += 10 {
		mustStore(t, busy, sized(i, i+9, 1, 4000))
		if i > 100 {
			if err := busy.DeleteRange(0, i-100); err != nil {
				t.Fatal(err)
			}
		}
	}
	wait(t, "old segments are let go of", func() bool { return d.j.Stats().Segments <= movableNumber+2 })
	check := func() {
		t.Helper()
		wantBounds(t, quiet, 1, 3)
		wantEntries(t, quiet, sized(1, 3, 1, 1000))
		wantBounds(t, busy, 1892, 2000)
		wantEntries(t, busy, sized(1892, 2000, 1, 4000))
	}
	check()
	d.again()
	quiet, busy = mustLog(t, d.j, "quiet"), mustLog(t, d.j, "busy")
	check()
	names, err := d.dir.List()
	if err != nil || len(names) > movableNumber+4 {
		t.Fatalf("%d files: %v (%v)", len(names), names, err)
	}
}

func wait(t testing.TB, what string, until func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !until(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func TestRemovedGroupIsGoneAndItsNameIsFree(t *testing.T) {
	d := newOnDisk(t)
	l := mustLog(t, d.j, "a")
	mustStore(t, l, entries(1, 3, 1))
	if err := d.j.Remove("a"); !errors.Is(err, ErrInUse) {
		t.Fatalf("an open log was removed: %v", err)
	}
	l.Close()
	if err := errors.Join(d.j.Remove("a"), d.j.Remove("a"), d.j.Remove("never")); err != nil {
		t.Fatal(err)
	}
	l = mustLog(t, d.j, "a")
	wantBounds(t, l, 0, 0)
	mustStore(t, l, entries(7, 8, 2))
	d.again()
	l = mustLog(t, d.j, "a")
	wantBounds(t, l, 7, 8)
	if _, err := d.j.Log("a"); !errors.Is(err, ErrInUse) {
		t.Fatalf("the log was opened twice: %v", err)
	}
}

func TestAppendedEntriesCanBeReadBeforeTheyAreDurable(t *testing.T) {
	folder := crashdev.NewFolder(crashdev.NewPower(-1))
	j := mustOpen(t, folder, small)
	l := mustLog(t, j, "a")
	mustStore(t, l, entries(1, 1, 1))
	release := make(chan struct{})
	folder.SetHook(func(_ string, k crashdev.Kind, _, _ int64) error {
		if k == crashdev.Sync {
			<-release
		}
		return nil
	})
	if err := l.Append(sized(2, 100, 1, 4000)); err != nil { // more than the cache holds: it may not drop them
		t.Fatal(err)
	}
	wantBounds(t, l, 1, 100)
	wantEntries(t, l, sized(2, 100, 1, 4000))
	if d := l.Durable(); d != 1 {
		t.Fatalf("durable to %d", d)
	}
	quit := make(chan struct{})
	close(quit)
	if err := l.AwaitDurable(100, quit); !errors.Is(err, block.ErrClosed) {
		t.Fatalf("waiting ended with %v", err)
	}
	cut := make(chan error, 1)
	go func() { cut <- l.AwaitDurable(100, nil) }()
	go func() { _ = l.DeleteRange(50, 100) }()
	if err := <-cut; !errors.Is(err, ErrCutOff) {
		t.Fatalf("entry 100 was cut off, and waiting for it ended with %v", err)
	}
	close(release)
	if err := l.AwaitDurable(49, nil); err != nil || l.Durable() < 49 {
		t.Fatalf("%v, durable to %d", err, l.Durable())
	}
	wantBounds(t, l, 1, 49)
}

// One sync serves all who wait.
func TestGroupCommit(t *testing.T) {
	folder := crashdev.NewFolder(crashdev.NewPower(-1))
	j := mustOpen(t, folder, small)
	var logs []Log
	for i := range 20 {
		logs = append(logs, mustLog(t, j, fmt.Sprint(i)))
		mustStore(t, logs[i], entries(1, 1, 1))
	}
	release, syncs := make(chan struct{}), 0
	folder.SetHook(func(_ string, k crashdev.Kind, _, _ int64) error {
		if k == crashdev.Sync {
			syncs++
			<-release
		}
		return nil
	})
	done := make(chan error, len(logs))
	for _, l := range logs {
		go func() { done <- l.StoreLogs(entries(2, 2, 1)) }()
	}
	wait(t, "all are queued", func() bool {
		j.mu.Lock()
		defer j.mu.Unlock()
		return len(j.queue) == len(logs)-1 || len(j.queue) == len(logs)
	})
	close(release)
	for range logs {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if syncs > 2 {
		t.Fatalf("%d syncs for %d groups", syncs, len(logs))
	}
}

func TestFailedSyncIsFinal(t *testing.T) {
	folder := crashdev.NewFolder(crashdev.NewPower(-1))
	j := mustOpen(t, folder, small)
	a, b := mustLog(t, j, "a"), mustLog(t, j, "b")
	mustStore(t, a, entries(1, 1, 1))
	broken := errors.New("medium error")
	folder.SetHook(func(_ string, k crashdev.Kind, _, _ int64) error {
		if k == crashdev.Sync {
			return broken
		}
		return nil
	})
	if err := a.Append(entries(2, 2, 1)); err != nil {
		t.Fatal(err)
	}
	if err := a.AwaitDurable(2, nil); !errors.Is(err, broken) || !errors.Is(err, block.ErrFailed) {
		t.Fatalf("got %v", err)
	}
	folder.SetHook(nil)
	if err := b.StoreLogs(entries(1, 1, 1)); !errors.Is(err, block.ErrFailed) {
		t.Fatalf("a failed journal took an entry: %v", err)
	}
	if err := b.SetUint64([]byte("CurrentTerm"), 2); !errors.Is(err, block.ErrFailed) {
		t.Fatalf("a failed journal took a term: %v", err)
	}
	if a.Failed() == nil || b.Failed() == nil {
		t.Fatal("the journal does not say so")
	}
}

func TestFullFileSystemHoldsWritesUpUntilThereIsRoom(t *testing.T) {
	folder := crashdev.NewFolder(crashdev.NewPower(-1))
	full := fullable(folder)
	j := mustOpen(t, folder, small)
	l := mustLog(t, j, "a")
	full.Store(true)
	stored := make(chan uint64, 1000)
	go func() {
		for i := uint64(1); i <= 100; i++ {
			if l.StoreLogs(sized(i, i, 1, 60_000)) != nil {
				break
			}
			stored <- i
		}
		close(stored)
	}()
	wait(t, "it stops", func() bool { n := len(stored); time.Sleep(300 * time.Millisecond); return len(stored) == n && n > 10 })
	if j.Failed() != nil {
		t.Fatalf("a full file system ended the journal: %v", j.Failed())
	}
	if s := j.Stalled(); s != 0 {
		t.Fatalf("it takes the disk for one that hangs: %v", s)
	}
	full.Store(false)
	last := uint64(0)
	for i := range stored {
		last = i
	}
	if last != 100 {
		t.Fatalf("it went on to %d", last)
	}
	wantEntries(t, l, sized(1, 100, 1, 60_000))
}

func TestEntryThatIsTooLargeIsRefused(t *testing.T) {
	d := newOnDisk(t)
	l := mustLog(t, d.j, "a")
	if err := l.StoreLogs(sized(1, 1, 1, minSegmentBytes)); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("got %v", err)
	}
	mustStore(t, l, sized(1, 40, 1, minSegmentBytes/2-100)) // as large as may be, and more than a batch
	d.again()
	wantEntries(t, mustLog(t, d.j, "a"), sized(1, 40, 1, minSegmentBytes/2-100))
}

func TestCacheIsBoundedInBytesOverAllLogs(t *testing.T) {
	d := newOnDisk(t)
	var logs []Log
	for g := range 4 {
		l := mustLog(t, d.j, fmt.Sprint(g))
		logs = append(logs, l)
		for i := uint64(1); i <= 50; i++ {
			mustStore(t, l, sized(i, i, 1, 1000))
			if held := d.j.cache.bytes.Load(); held > small.CacheBytes+2000 {
				t.Fatalf("holds %d bytes", held)
			}
		}
	}
	for _, l := range logs {
		wantEntries(t, l, sized(1, 50, 1, 1000))
	}
}

// A segment of which a batch that is under way leaves nothing is let go of when the batch is durable, and there is nothing to move until then: the janitor
// must not look again and again.
func TestJanitorWaitsForABatchThatEmptiesASegment(t *testing.T) {
	folder := crashdev.NewFolder(crashdev.NewPower(-1))
	j := mustOpen(t, folder, small)
	quiet, busy := mustLog(t, j, "quiet"), mustLog(t, j, "busy")
	const half = minSegmentBytes * 2 / 5
	mustStore(t, quiet, sized(1, 1, 1, half))
	for i := range uint64(12) {
		mustStore(t, busy, sized(i+1, i+1, 1, half))
	}
	if err := busy.DeleteRange(1, 11); err != nil {
		t.Fatal(err)
	}
	syncs, goOn := make(chan struct{}, 1), make(chan struct{})
	folder.SetHook(func(_ string, k crashdev.Kind, _, _ int64) error {
		if k == crashdev.Sync {
			select {
			case syncs <- struct{}{}:
			default:
			}
			<-goOn
		}
		return nil
	})
	deleted := make(chan error, 1)
	go func() { deleted <- quiet.DeleteRange(1, 1) }()
	<-syncs
	if n := j.Stats().Segments; n <= movableNumber+1 {
		t.Errorf("%d segments are too few to move anything", n)
	}
	more, err := j.move()
	close(goOn)
	if more || err != nil {
		t.Errorf("while a batch is under way that empties the oldest segment there is more to move: %v, %v", more, err)
	}
	if err := <-deleted; err != nil {
		t.Fatal(err)
	}
	wait(t, "the empty segments are let go of", func() bool { return j.Stats().Segments <= movableNumber+2 })
}

// An entry that is to be moved is not, if what is in the frame before it has ended it: read alone, that frame would bring it back.
func TestNothingIsMovedThatHasJustBeenCutOff(t *testing.T) {
	j := mustOpen(t, crashdev.NewFolder(crashdev.NewPower(-1)), small)
	l := mustLog(t, j, "a")
	mustStore(t, l, entries(1, 9, 1))
	j.mu.Lock()
	defer j.mu.Unlock()
	g := j.index.names["a"]
	e := g.at(5)
	m := record{group: g.number, kind: kindMoved, index: 5, term: e.term, from: e.place()}
	for _, test := range []struct {
		before record
		gone   bool
	}{
		{record{group: g.number, kind: kindBack, index: 5}, true},
		{record{group: g.number, kind: kindBack, index: 6}, false},
		{record{group: g.number, kind: kindFront, index: 6}, true},
		{record{group: g.number, kind: kindFront, index: 5}, false},
		{record{group: g.number, kind: kindEntry, index: 5}, true},
		{record{group: g.number, kind: kindEntry, index: 10}, false},
		{record{group: g.number, kind: kindForget}, true},
		{record{group: g.number, kind: kindStable}, false},
		{record{group: g.number + 1, kind: kindBack, index: 5}, false},
	} {
		if got := j.skip(&m, []record{{group: g.number, kind: kindStable}, test.before}); got != test.gone {
			t.Errorf("behind %+v: left out: %v", test.before, got)
		}
	}
}
