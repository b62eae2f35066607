package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
	"sanctuary/replication/command"
)

// written is what a journal was told.
type written struct {
	dir          string
	j            Journal
	segmentBytes int
	rnd          *rand.Rand
	t            *testing.T
}

func newWritten(t *testing.T, seed uint64, segmentBytes int) *written {
	w := &written{dir: t.TempDir(), segmentBytes: segmentBytes, rnd: rand.New(rand.NewPCG(seed, 9)), t: t}
	w.open()
	return w
}

func (w *written) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *written) open() {
	w.t.Helper()
	var err error
	w.j, err = Open(w.dir, Options{SegmentBytes: w.segmentBytes, CacheBytes: 2 << 10})
	w.check(err)
}

func (w *written) close() {
	w.t.Helper()
	w.check(w.j.Close())
}

// entry is a command whose data has no zeros.
func (w *written) entry(index, term uint64, blocks int) *raft.Log {
	w.t.Helper()
	data := make([]byte, blocks*block.Size)
	for i := range data {
		data[i] = byte(w.rnd.IntN(255)) + 1
	}
	op := block.Op{Kind: block.OpWrite, Range: block.BytesRange(int64(index)*block.ChunkSize, int64(len(data))), Data: data, Sums: block.AppendSums(nil, data)}
	b, err := command.Encode(term, index, []block.Op{op})
	w.check(err)
	return &raft.Log{Index: index, Term: term, Type: raft.LogCommand, Data: b}
}

// store writes so many entries, in writes of up to three.
func (w *written) store(n int, term uint64) {
	w.t.Helper()
	last, err := w.j.LastIndex()
	w.check(err)
	w.check(w.j.SetUint64([]byte("CurrentTerm"), term))
	for n > 0 {
		var logs []*raft.Log
		for range 1 + w.rnd.IntN(min(n, 3)) {
			last++
			logs = append(logs, w.entry(last, term, 1+w.rnd.IntN(3)))
		}
		w.check(w.j.StoreLogs(logs))
		n -= len(logs)
	}
}

func (w *written) snapshot(index, term uint64) {
	w.t.Helper()
	k, err := w.j.Snapshots().Create(1, index, term, raft.Configuration{}, 1, nil)
	w.check(err)
	w.check(k.Close())
}

// inspect returns what is found, and the entries.
func inspect(t *testing.T, dir string) (*Inspected, []InspectedEntry) {
	t.Helper()
	var entries []InspectedEntry
	r, err := Inspect(t.Context(), InspectConfig{Dir: dir, Entry: func(e InspectedEntry) { entries = append(entries, e) }})
	if err != nil {
		t.Fatal(err)
	}
	return r, entries
}

func wantSound(t *testing.T, dir string, first, last uint64) *Inspected {
	t.Helper()
	r, entries := inspect(t, dir)
	if !r.Sound() || r.First != first || r.Last != last || first > 0 && uint64(len(entries)) != last-first+1 {
		t.Fatalf("%+v, %d entries; want %d to %d, sound", r, len(entries), first, last)
	}
	for i, e := range entries {
		if e.Index != first+uint64(i) || e.Command == nil || len(e.Command.Ops) != 1 || e.Command.Ops[0].Range.Start != block.Sector(e.Index*block.ChunkSize/block.SectorSize) {
			t.Fatalf("entry %d: %+v", first+uint64(i), e)
		}
	}
	return r
}

// TestInspectFindsNothingInSoundJournals looks at one while it is open, through all that replication does with it.
func TestInspectFindsNothingInSoundJournals(t *testing.T) {
	w := newWritten(t, 1, 64<<10)
	wantSound(t, w.dir, 0, 0)
	w.store(60, 1)
	wantSound(t, w.dir, 1, 60)
	w.check(w.j.DeleteRange(41, 60)) // a conflicting tail
	wantSound(t, w.dir, 1, 40)
	w.store(50, 3)
	w.check(w.j.SetUint64([]byte(keyVoteTerm), 3))
	w.check(w.j.Set([]byte(keyVoteCandidate), []byte("beta/2")))
	w.snapshot(30, 1)
	w.check(w.j.DeleteRange(1, 25)) // compaction
	r := wantSound(t, w.dir, 26, 90)
	if r.FirstTerm != 1 || r.LastTerm != 3 || r.CurrentTerm != 3 || r.VoteTerm != 3 || r.VotedFor != "beta/2" || r.Snapshot != 30 || r.SnapshotTerm != 1 || len(r.Segments) < 4 {
		t.Errorf("%+v", r)
	}
	w.close()
	wantSound(t, w.dir, 26, 90)
	w.open()
	w.check(w.j.Reset())
	wantSound(t, w.dir, 0, 0)
	w.snapshot(500, 3)
	w.check(w.j.StoreLogs([]*raft.Log{w.entry(501, 4, 1)}))
	w.check(w.j.SetUint64([]byte("CurrentTerm"), 4))
	wantSound(t, w.dir, 501, 501)
	w.close()
	if _, err := Inspect(t.Context(), InspectConfig{Dir: t.TempDir()}); !errors.Is(err, ErrNoJournal) {
		t.Errorf("an empty directory: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Inspect(ctx, InspectConfig{Dir: w.dir}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestInspectFindsNothingInAJournalInUse reads one that is appended to, cut at both ends and told of terms all the time.
func TestInspectFindsNothingInAJournalInUse(t *testing.T) {
	w := newWritten(t, 2, 64<<10)
	done := make(chan struct{})
	var user sync.WaitGroup
	var terms atomic.Uint64
	user.Go(func() {
		for term := uint64(1); ; term++ {
			terms.Store(term)
			select {
			case <-done:
				return
			default:
			}
			w.store(12, term)
			first, _ := w.j.FirstIndex()
			last, _ := w.j.LastIndex()
			switch {
			case term%3 == 0:
				w.check(w.j.DeleteRange(last-3, last))
			case last-first > 60:
				w.snapshot(last-20, term)
				w.check(w.j.DeleteRange(first, last-30))
			}
		}
	})
	for n := 0; n < 60 || terms.Load() < 60; n++ {
		if r, _ := inspect(t, w.dir); !r.Sound() {
			t.Fatalf("%+v", r)
		}
	}
	close(done)
	user.Wait()
	w.close()
}

// TestInspectTellsACutOffWriteFromDamage spoils the last write in the ways a power cut does, and the library recovers it to the same end.
func TestInspectTellsACutOffWriteFromDamage(t *testing.T) {
	for seed := range uint64(30) {
		w := newWritten(t, 100+seed, 1<<20)
		w.store(8+w.rnd.IntN(10), 1)
		before, _ := inspect(t, w.dir)
		var logs []*raft.Log
		for i := range 1 + w.rnd.Uint64N(3) {
			logs = append(logs, w.entry(before.Last+1+i, 1, 1+w.rnd.IntN(3)))
		}
		w.check(w.j.StoreLogs(logs))
		w.close()
		segments, err := filepath.Glob(filepath.Join(w.dir, walFolder, "*.wal"))
		w.check(err)
		path := segments[len(segments)-1]
		after, _ := inspect(t, w.dir)
		at, end := before.Segments[len(before.Segments)-1].Written, after.Segments[len(after.Segments)-1].Written
		b, err := os.ReadFile(path)
		w.check(err)
		kept, lost := at, 0
		for from := at; from < end; from = kept {
			kept = min((from/block.SectorSize+1)*block.SectorSize, end)
			if w.rnd.IntN(3<<(seed%4)) == 0 { // some lose one sector, some many
				clear(b[from:kept])
				lost++
			}
		}
		w.check(os.WriteFile(path, b, 0o600))
		r, _ := inspect(t, w.dir)
		w.open()
		_, last := r.First, r.Last
		if got, _ := w.j.LastIndex(); got != last || !r.Sound() || lost > 0 && (len(r.Notes) == 0 || last == after.Last) && last != before.Last {
			t.Errorf("seed %d: %d sectors lost, %d was last; inspection says %d (%v, %+v), the journal %d", seed, lost, after.Last, last, r.Notes, r.Findings, got)
		}
		w.check(w.j.StoreLogs([]*raft.Log{w.entry(last+1, 1, 1)})) // shorter than what was lost, some of which is left behind it
		wantSound(t, w.dir, 1, last+1)
		w.close()
	}
}

// TestInspectFindsEveryFlippedByteOfALog flips bytes of segments, in turn.
func TestInspectFindsEveryFlippedByteOfALog(t *testing.T) {
	w := newWritten(t, 3, 64<<10)
	w.store(40, 1)
	w.close()
	clean, entries := inspect(t, w.dir)
	if len(clean.Segments) < 3 {
		t.Fatalf("%+v", clean.Segments)
	}
	byOffset := map[string]uint64{}
	for _, e := range entries {
		byOffset[fmt.Sprint(e.File, e.Offset)] = e.Index
	}
	found := map[string]int{}
	for i, s := range clean.Segments {
		path := filepath.Join(w.dir, walFolder, s.File)
		image, err := os.ReadFile(path)
		w.check(err)
		end := s.Written
		if !s.Sealed { // what the last write to the tail means is another test
			for _, e := range entries {
				if e.File == s.File {
					end = e.Offset
				}
			}
			end -= 200
		}
		for off := int64(0); off < end; off += 1 + int64(w.rnd.IntN(400)) {
			b := bytes.Clone(image)
			b[off] ^= 0x40
			w.check(os.WriteFile(path, b, 0o600))
			r, _ := inspect(t, w.dir)
			if len(r.Findings) == 0 {
				t.Fatalf("segment %d of %d, byte %d flipped: nothing found; %v", i, len(clean.Segments), off, r.Notes)
			}
			f := r.Findings[0]
			if f.Path != path || f.Offset > off || f.Data == "" || f.Next == "" {
				t.Errorf("byte %d of %s flipped: %+v", off, s.File, f)
			}
			if f.Kind == "entry" {
				if at := byOffset[fmt.Sprint(s.File, f.Offset)]; at == 0 || !strings.Contains(f.What, fmt.Sprintf("entry %d:", at)) || r.Last != clean.Last {
					t.Errorf("byte %d of %s flipped: %+v", off, s.File, f)
				}
			}
			if len(r.Findings) == 1 {
				found[f.Kind]++
			} else {
				found["several"]++
			}
		}
		w.check(os.WriteFile(path, image, 0o600))
	}
	t.Logf("%v", found)
	if found["entry"] == 0 || found["segment"] == 0 || found["several"] > found["entry"]/20 {
		t.Errorf("%v", found)
	}
}

// TestInspectFindsDamageByItsPlace spoils one thing after the other.
func TestInspectFindsDamageByItsPlace(t *testing.T) {
	flip := func(t *testing.T, path string, off int64, mask byte) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err == nil {
			b[off] ^= mask
			err = os.WriteFile(path, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, kind, file string
		spoil            func(t *testing.T, w *written, r *Inspected, e []InspectedEntry)
	}{
		{"commit frame", "write", "", func(t *testing.T, w *written, r *Inspected, e []InspectedEntry) {
			flip(t, filepath.Join(w.dir, walFolder, e[0].File), firstCommit(t, w, e)+5, 1)
		}},
		{"what a commit frame does not use", "write", "", func(t *testing.T, w *written, r *Inspected, e []InspectedEntry) {
			flip(t, filepath.Join(w.dir, walFolder, e[0].File), firstCommit(t, w, e)+2, 1)
		}},
		{"kind of a commit frame", "frame", "", func(t *testing.T, w *written, r *Inspected, e []InspectedEntry) {
			flip(t, filepath.Join(w.dir, walFolder, e[0].File), firstCommit(t, w, e), 0x10)
		}},
		{"kind of an entry's frame", "frame", "", func(t *testing.T, w *written, r *Inspected, e []InspectedEntry) {
			flip(t, filepath.Join(w.dir, walFolder, e[3].File), e[3].Offset, 0x10)
		}},
		{"zeros in the middle of the tail", "frame", "", func(t *testing.T, w *written, r *Inspected, e []InspectedEntry) {
			n := len(e) - 8
			path := filepath.Join(w.dir, walFolder, e[n].File)
			b, err := os.ReadFile(path)
			w.check(err)
			clear(b[e[n].Offset : e[n].Offset+4096])
			w.check(os.WriteFile(path, b, 0o600))
		}},
		{"index of a segment", "index", "", func(t *testing.T, w *written, r *Inspected, e []InspectedEntry) {
			flip(t, filepath.Join(w.dir, walFolder, r.Segments[0].File), r.Segments[0].Written-frameHeader-8, 1)
		}},
		{"segment missing", "segment", "", func(t *testing.T, w *written, r *Inspected, e []InspectedEntry) {
			w.check(os.Remove(filepath.Join(w.dir, walFolder, r.Segments[1].File)))
		}},
		{"segment cut off", "segment", "", func(t *testing.T, w *written, r *Inspected, e []InspectedEntry) {
			w.check(os.Truncate(filepath.Join(w.dir, walFolder, r.Segments[0].File), r.Segments[0].Written-4))
		}},
		{"last write rotten", "entry", "", func(t *testing.T, w *written, r *Inspected, e []InspectedEntry) {
			last := e[len(e)-1]
			flip(t, filepath.Join(w.dir, walFolder, last.File), last.Offset+600, 1)
		}},
		{"table missing", "table", "", func(t *testing.T, w *written, r *Inspected, e []InspectedEntry) {
			w.check(os.Remove(filepath.Join(w.dir, walFolder, "wal-meta.db")))
		}},
		{"table cut off", "table", "", func(t *testing.T, w *written, r *Inspected, e []InspectedEntry) {
			w.check(os.Truncate(filepath.Join(w.dir, walFolder, "wal-meta.db"), 100))
		}},
		{"votes missing", "vote", stableFile, func(t *testing.T, w *written, r *Inspected, e []InspectedEntry) {
			w.check(os.Remove(filepath.Join(w.dir, stableFile)))
		}},
		{"votes overwritten", "vote", stableFile, func(t *testing.T, w *written, r *Inspected, e []InspectedEntry) {
			w.check(os.WriteFile(filepath.Join(w.dir, stableFile), bytes.Repeat([]byte{0xA5}, 32<<10), 0o600))
		}},
		{"older term", "vote", stableFile, func(t *testing.T, w *written, r *Inspected, e []InspectedEntry) {
			w.open()
			w.check(w.j.SetUint64([]byte("CurrentTerm"), 1))
			w.close()
		}},
		{"vote of the future", "vote", stableFile, func(t *testing.T, w *written, r *Inspected, e []InspectedEntry) {
			w.open()
			w.check(w.j.SetUint64([]byte(keyVoteTerm), 9))
			w.check(w.j.Set([]byte(keyVoteCandidate), []byte("x")))
			w.close()
		}},
		{"snapshot", "snapshot", snapshotName, func(t *testing.T, w *written, r *Inspected, e []InspectedEntry) {
			flip(t, filepath.Join(w.dir, snapshotName), 30, 1)
		}},
		{"snapshot missing", "log", walFolder, func(t *testing.T, w *written, r *Inspected, e []InspectedEntry) {
			w.check(os.Remove(filepath.Join(w.dir, snapshotName)))
		}},
		{"terms in the wrong order", "entry", "", func(t *testing.T, w *written, r *Inspected, e []InspectedEntry) {
			w.open()
			w.check(w.j.StoreLogs([]*raft.Log{w.entry(r.Last+1, 1, 1)}))
			w.close()
		}},
		{"entry that is none", "entry", "", func(t *testing.T, w *written, r *Inspected, e []InspectedEntry) {
			w.open()
			w.check(w.j.StoreLogs([]*raft.Log{{Index: r.Last + 1, Term: 2, Type: raft.LogCommand, Data: []byte("nonsense")}}))
			w.close()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWritten(t, 4, 64<<10)
			w.store(30, 1)
			w.store(15, 2)
			w.snapshot(5, 1)
			w.check(w.j.DeleteRange(1, 4))
			w.close()
			clean, entries := inspect(t, w.dir)
			if !clean.Sound() {
				t.Fatalf("%+v", clean)
			}
			c.spoil(t, w, clean, entries)
			r, _ := inspect(t, w.dir)
			if len(r.Findings) != 1 || r.Findings[0].Kind != c.kind || r.Findings[0].What == "" || r.Findings[0].Data == "" || r.Findings[0].Next == "" {
				t.Fatalf("found %+v (%v), want one of kind %s", r.Findings, r.Notes, c.kind)
			}
			if c.file != "" && r.Findings[0].Path != filepath.Join(w.dir, c.file) {
				t.Errorf("found %+v", r.Findings[0])
			}
		})
	}
}

// firstCommit returns where the first commit frame behind entries is that count.
func firstCommit(t *testing.T, w *written, e []InspectedEntry) int64 {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(w.dir, walFolder, e[0].File))
	w.check(err)
	for i := 0; i+1 < len(e) && e[i+1].File == e[0].File; i++ {
		n := int64(padded(int(b[e[i].Offset+4])|int(b[e[i].Offset+5])<<8)) + frameHeader
		if e[i].Offset+n != e[i+1].Offset {
			return e[i].Offset + n
		}
	}
	t.Fatal("no commit frame")
	return 0
}
