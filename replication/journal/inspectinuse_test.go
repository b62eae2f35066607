package journal

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/vfs"
)

// TestInspectFindsNothingInAJournalInUse reads one that is appended to, cut at both ends and told of terms all the time, so that segments turn and are used
// again while it is read.
func TestInspectFindsNothingInAJournalInUse(t *testing.T) {
	w := newWritten(t, 3)
	w.check(w.store("quiet", 3, 1)) // is moved from segment to segment
	w.log("busy")
	done := make(chan struct{})
	var user sync.WaitGroup
	var rounds atomic.Uint64
	user.Go(func() {
		defer rounds.Store(1 << 32)
		for term := uint64(1); ; term++ {
			rounds.Store(term)
			select {
			case <-done:
				return
			default:
			}
			l := w.log("busy")
			err := w.store("busy", 12, term)
			first, _ := l.FirstIndex()
			last, _ := l.LastIndex()
			switch {
			case term%3 == 0:
				err = errors.Join(err, l.DeleteRange(last-3, last))
			case last-first > 200:
				err = errors.Join(err, w.snapshot("busy", last-20, term), l.DeleteRange(first, last-60))
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	seen := map[string]bool{}
	for n := 0; n < 40 || rounds.Load() < 200; n++ {
		r, entries := inspect(t, w.dir)
		if !r.Sound() {
			t.Fatalf("%+v", r)
		}
		for _, s := range r.Segments {
			seen[s.File] = true
		}
		for i := 1; i < len(entries); i++ {
			if a, b := entries[i-1], entries[i]; a.Group == b.Group && b.Index <= a.Index {
				t.Fatalf("entry %d after entry %d", b.Index, a.Index)
			}
		}
		if g := group(t, r, "quiet"); g.First != 1 || g.Last != 3 {
			t.Fatalf("%+v", g)
		}
	}
	close(done)
	user.Wait()
	if j := w.j.Stats(); len(seen) < j.Segments+10 {
		t.Errorf("%d segments were seen, and %d are there: few were let go of", len(seen), j.Segments)
	}
	w.close()
}

// meanwhile is a context that does something when it is asked whether to go on, which Inspect does before it reads an entry.
type meanwhile struct {
	context.Context
	do func()
}

func (m meanwhile) Err() error { m.do(); return m.Context.Err() }

// TestInspectDoesNotMindSegmentsThatAreUsedAgain: in every reading the oldest segment is let go of, used again and overwritten while its entries are read.
func TestInspectDoesNotMindSegmentsThatAreUsedAgain(t *testing.T) {
	w := newWritten(t, 7)
	w.check(w.log("a").SetUint64([]byte("CurrentTerm"), 1))
	w.fill(3)
	asked, again := 0, 0
	ctx := meanwhile{t.Context(), func() {
		if asked++; asked%20 == 0 {
			w.useOldestAgain()
			if again++; again > 12 {
				t.Fatal("what it found in segments that are gone has it read again and again")
			}
		}
	}}
	if r, err := Inspect(ctx, InspectConfig{Dir: w.dir}); err != nil || !r.Sound() || again == 0 {
		t.Fatalf("%+v, %v, %d segments used again", r, err, again)
	}
	w.close()
}

// fill writes to log a until that many segments have been begun.
func (w *written) fill(segments uint64) {
	w.t.Helper()
	newest := func() uint64 {
		w.j.mu.Lock()
		defer w.j.mu.Unlock()
		return w.j.index.segments[len(w.j.index.segments)-1].sequence
	}
	for begun := newest(); newest() < begun+segments; {
		last, err := w.log("a").LastIndex()
		w.check(errors.Join(err, w.log("a").StoreLogs([]*raft.Log{w.entry(last+1, 1, 8)})))
	}
}

// useOldestAgain lets go of the oldest segment at the moment when the next one is to be made ready, and fills that.
func (w *written) useOldestAgain() {
	w.t.Helper()
	l := w.log("a")
	w.j.mu.Lock()
	oldest, g := w.j.index.segments[0], w.j.index.names["a"]
	first, to := g.first, g.first
	for g.at(to+1) != nil && g.at(to+1).segment == uint32(oldest.sequence) {
		to++
	}
	w.j.mu.Unlock()
	w.check(w.snapshot("a", to, 1))
	w.fill(1)
	for w.j.head.at < minSegmentBytes/2 { // the smallest frames there are
		last, err := l.LastIndex()
		w.check(errors.Join(err, l.StoreLogs([]*raft.Log{{Index: last + 1, Term: 1, Type: raft.LogNoop}})))
	}
	w.j.making.Lock() // the janitor waits
	w.check(l.DeleteRange(first, to))
	w.j.making.Unlock()
	wait(w.t, "the oldest segment is used again", func() bool {
		w.j.mu.Lock()
		defer w.j.mu.Unlock()
		return w.j.spare != nil && w.j.spare.dev == oldest.dev
	})
	w.fill(2)
}

// TestInspectBelievesWhatItFindsTwice: what one reading finds and the next one does not was in the middle of a change.
func TestInspectBelievesWhatItFindsTwice(t *testing.T) {
	w := newWritten(t, 8)
	w.check(w.store("a", 10, 1))
	w.close()
	_, entries := inspect(t, w.dir)
	asked := 0
	changing := meanwhile{t.Context(), func() {
		if asked++; asked == 1 || asked == 10 { // at the beginning of the first reading, and at its end
			w.flip(entries[6].File, entries[6].Offset+9)
		}
	}}
	shown := 0
	r, err := Inspect(changing, InspectConfig{Dir: w.dir, Entry: func(InspectedEntry) { shown++ }})
	if err != nil || !r.Sound() || asked < 20 || shown != 10 {
		t.Fatalf("%+v, %v, asked %d times, %d entries shown", r, err, asked, shown)
	}
	asked = 0
	always := meanwhile{t.Context(), func() { // another entry in every reading
		if asked++; asked%10 == 0 {
			n := asked / 10 % 9
			w.flip(entries[n].File, entries[n].Offset+9)
			w.flip(entries[(n+8)%9].File, entries[(n+8)%9].Offset+9)
		}
	}}
	w.flip(entries[0].File, entries[0].Offset+9)
	if r, err := Inspect(always, InspectConfig{Dir: w.dir}); !errors.Is(err, vfs.ErrUnsteady) {
		t.Fatalf("%+v, %v", r, err)
	}
}
