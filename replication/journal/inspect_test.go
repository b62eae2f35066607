package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
	"sanctuary/replication/command"
)

// written is a journal of several logs, and what it was told.
type written struct {
	t    *testing.T
	dir  string
	rnd  *rand.Rand
	j    *Journal
	logs map[string]Log
}

func newWritten(t *testing.T, seed uint64) *written {
	w := &written{t: t, dir: t.TempDir(), rnd: rand.New(rand.NewPCG(seed, 9))}
	w.open()
	t.Cleanup(func() { _ = w.j.Close() })
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
	folder, err := vfs.OpenDir(w.dir)
	w.check(err)
	w.j, err = Open(folder, small)
	w.check(err)
	w.logs = map[string]Log{}
}

func (w *written) close() {
	w.t.Helper()
	w.check(w.j.Close())
}

func (w *written) log(name string) Log {
	w.t.Helper()
	if w.logs[name] == nil {
		w.logs[name] = mustLog(w.t, w.j, name)
	}
	return w.logs[name]
}

// entry is a command whose data has no zeros.
func (w *written) entry(index, term uint64, blocks int) *raft.Log {
	data := make([]byte, blocks*block.Size)
	for i := range data {
		data[i] = byte(w.rnd.IntN(255)) + 1
	}
	op := block.Op{Kind: block.OpWrite, Range: block.BytesRange(int64(index)*block.ChunkSize, int64(len(data))), Data: data, Sums: block.AppendSums(nil, data)}
	b, err := command.Encode(term, index, []block.Op{op})
	if err != nil {
		panic(err) // not of the test's goroutine
	}
	return &raft.Log{Index: index, Term: term, Type: raft.LogCommand, Data: b}
}

// store writes so many entries, in writes of up to three.
func (w *written) store(name string, n int, term uint64) error {
	l := w.log(name)
	last, err := l.LastIndex()
	if err == nil {
		err = l.SetUint64([]byte("CurrentTerm"), term)
	}
	for err == nil && n > 0 {
		var logs []*raft.Log
		for range 1 + w.rnd.IntN(min(n, 3)) {
			last++
			logs = append(logs, w.entry(last, term, 1+w.rnd.IntN(3)))
		}
		err = l.StoreLogs(logs)
		n -= len(logs)
	}
	return err
}

func (w *written) snapshot(name string, index, term uint64) error {
	k, err := w.log(name).Snapshots().Create(1, index, term, raft.Configuration{}, 1, nil)
	if err != nil {
		return err
	}
	return k.Close()
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

func group(t *testing.T, r *Inspected, name string) InspectedGroup {
	t.Helper()
	for _, g := range r.Groups {
		if g.Name == name {
			return g
		}
	}
	t.Fatalf("no log %s in %+v", name, r.Groups)
	return InspectedGroup{}
}

// wantSound checks a journal and one log of it, of which all entries are shown, in order.
func (w *written) wantSound(name string, first, last uint64) *Inspected {
	w.t.Helper()
	r, entries := inspect(w.t, w.dir)
	g := group(w.t, r, name)
	if !r.Sound() || g.First != first || g.Last != last || g.Damaged != 0 {
		w.t.Fatalf("%+v; want %d to %d, sound", r, first, last)
	}
	entries = slices.DeleteFunc(entries, func(e InspectedEntry) bool { return e.Group != name })
	if first > 0 && uint64(len(entries)) != last-first+1 {
		w.t.Fatalf("%d entries, of %d to %d", len(entries), first, last)
	}
	for i, e := range entries {
		if e.Index != first+uint64(i) || e.Command == nil || len(e.Command.Ops) != 1 || e.Command.Ops[0].Range.Start != block.Sector(e.Index*block.ChunkSize/block.SectorSize) {
			w.t.Fatalf("entry %d: %+v", first+uint64(i), e)
		}
	}
	return r
}

// TestInspectFindsNothingInSoundJournals looks at one while it is open, through all that replication does with it.
func TestInspectFindsNothingInSoundJournals(t *testing.T) {
	w := newWritten(t, 1)
	if r, _ := inspect(t, w.dir); !r.Sound() || len(r.Groups) != 0 || len(r.Segments) != 1 {
		t.Fatalf("a new one: %+v", r)
	}
	w.check(w.store("a", 60, 1))
	w.check(w.store("b", 7, 5))
	w.wantSound("a", 1, 60)
	w.check(w.log("a").DeleteRange(41, 60)) // a conflicting tail
	w.wantSound("a", 1, 40)
	w.check(w.store("a", 500, 3))
	w.check(w.log("a").SetUint64([]byte(keyVoteTerm), 3))
	w.check(w.log("a").Set([]byte(keyVoteCandidate), []byte("beta/2")))
	w.check(w.snapshot("a", 30, 1))
	w.check(w.log("a").DeleteRange(1, 25)) // compaction
	r := w.wantSound("a", 26, 540)
	if g := group(t, r, "a"); g.FirstTerm != 1 || g.LastTerm != 3 || g.CurrentTerm != 3 || g.VoteTerm != 3 || g.VotedFor != "beta/2" || g.Snapshot != 30 || g.SnapshotTerm != 1 ||
		g.Bytes != w.log("a").Bytes() {
		t.Errorf("%+v", g)
	}
	if n := len(r.Segments); n < 4 || !r.Segments[n-2].Sealed || r.Segments[n-1].Sealed || r.Segments[n-2].Live == 0 {
		t.Errorf("%+v", r.Segments)
	}
	w.close()
	w.wantSound("a", 26, 540)
	if g := group(t, w.wantSound("b", 1, 7), "b"); g.LastTerm != 5 {
		t.Errorf("%+v", g)
	}
	one, err := Inspect(t.Context(), InspectConfig{Dir: w.dir, Group: "b", Entry: func(e InspectedEntry) {
		if e.Group != "b" {
			t.Errorf("asked for b, got %+v", e)
		}
	}})
	if err != nil || len(one.Groups) != 1 || one.Groups[0].Name != "b" {
		t.Errorf("%+v, %v", one, err)
	}
	w.open()
	w.check(w.log("a").Reset())
	w.wantSound("a", 0, 0)
	w.check(w.snapshot("a", 700, 3))
	w.check(w.log("a").SetUint64([]byte("CurrentTerm"), 4))
	w.check(w.log("a").StoreLogs([]*raft.Log{w.entry(701, 4, 1)}))
	w.wantSound("a", 701, 701)
	w.close()
}

func TestInspectSaysWhyAJournalCannotBeLookedAt(t *testing.T) {
	if _, err := Inspect(t.Context(), InspectConfig{Dir: t.TempDir()}); !errors.Is(err, ErrNoJournal) {
		t.Errorf("an empty directory: %v", err)
	}
	if _, err := Inspect(t.Context(), InspectConfig{Dir: filepath.Join(t.TempDir(), "nowhere")}); !errors.Is(err, ErrNoJournal) {
		t.Errorf("no directory: %v", err)
	}
	w := newWritten(t, 2)
	w.check(w.store("a", 3, 1))
	w.close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Inspect(ctx, InspectConfig{Dir: w.dir}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	w.edit(segmentName(1), func(b []byte) { // as a newer program would write it
		b[8] = formatVersion + 1
		sum := block.Sum(b[8:labelBytes])
		copy(b[4:], []byte{byte(sum), byte(sum >> 8), byte(sum >> 16), byte(sum >> 24)})
	})
	if r, err := Inspect(t.Context(), InspectConfig{Dir: w.dir}); !errors.Is(err, ErrVersion) {
		t.Errorf("a newer version: %+v, %v", r, err)
	}
	w.close()
	w.check(os.Remove(filepath.Join(w.dir, segmentName(1))))
	folder, err := vfs.OpenDir(w.dir)
	w.check(err)
	for i := range uint64(2) { // segments of two journals
		d, err := folder.Create(segmentName(i+1), minSegmentBytes)
		w.check(errors.Join(err, d.Close()))
		w.edit(segmentName(i+1), func(b []byte) { copy(b, header{sequence: i + 1, journal: i + 7, bytes: minSegmentBytes}.encode()) })
	}
	if r, err := Inspect(t.Context(), InspectConfig{Dir: w.dir}); err == nil || !strings.Contains(err.Error(), "belongs to another journal") {
		t.Errorf("two journals: %+v, %v", r, err)
	}
}

// edit changes a segment in place.
func (w *written) edit(name string, f func(b []byte)) {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	b, err := os.ReadFile(path)
	w.check(err)
	f(b)
	w.check(os.WriteFile(path, b, 0o600))
}

// TestInspectTellsATornEndFromDamage spoils the last write in the ways a power cut does, and Open recovers it to the same end.
func TestInspectTellsATornEndFromDamage(t *testing.T) {
	torn := 0
	for seed := range uint64(40) {
		w := newWritten(t, 100+seed)
		w.check(w.store("a", 8+w.rnd.IntN(10), 1))
		before, _ := os.ReadFile(filepath.Join(w.dir, segmentName(1)))
		sound, _ := inspect(t, w.dir)
		last := group(t, sound, "a").Last
		var logs []*raft.Log
		for i := range 1 + w.rnd.Uint64N(3) {
			logs = append(logs, w.entry(last+1+i, 1, 1+w.rnd.IntN(3)))
		}
		w.check(w.log("a").StoreLogs(logs))
		after, err := os.ReadFile(filepath.Join(w.dir, segmentName(1)))
		w.check(err)
		w.close()
		lost := 0
		image := bytes.Clone(after)
		for off := 0; off < len(image); off += block.SectorSize {
			if old, now := before[off:off+block.SectorSize], after[off:off+block.SectorSize]; !bytes.Equal(old, now) && w.rnd.IntN(3<<(seed%4)) == 0 {
				copy(image[off:], old)
				lost++
			}
		}
		w.check(os.WriteFile(filepath.Join(w.dir, segmentName(1)), image, 0o600))
		r, _ := inspect(t, w.dir)
		found := group(t, r, "a").Last
		w.open()
		got, _ := w.log("a").LastIndex()
		if !r.Sound() || got != found || found < last || lost == 0 && found != last+uint64(len(logs)) {
			t.Errorf("seed %d: %d sectors lost, %d was last, and %d more written; inspection says %d (%+v), the journal %d", seed, lost, last, len(logs), found, r.Findings, got)
		}
		if found == last {
			torn++
		}
		w.check(w.log("a").StoreLogs([]*raft.Log{w.entry(found+1, 1, 1)})) // shorter than what was lost, some of which is left behind it
		w.wantSound("a", 1, found+1)
		w.close()
	}
	if torn < 10 {
		t.Errorf("only %d of 40 writes were cut off", torn)
	}
}

// TestInspectFindsEveryFlippedByteThatIsNeeded flips bytes of segments, in turn: everything but what fills up, the frames' directories in a segment that has a footer, and entries that do
// not count any more.
func TestInspectFindsEveryFlippedByteThatIsNeeded(t *testing.T) {
	w := newWritten(t, 4)
	w.check(w.store("a", 260, 1))
	w.check(w.store("b", 20, 1))
	w.close()
	clean, entries := inspect(t, w.dir)
	if len(clean.Segments) != 3 {
		t.Fatalf("%+v", clean.Segments)
	}
	found := map[string]int{}
	for _, s := range clean.Segments {
		image, err := os.ReadFile(filepath.Join(w.dir, s.File))
		w.check(err)
		for _, n := range needed(t, image, s, entries) {
			for _, off := range w.some(n) {
				b := bytes.Clone(image)
				b[off] ^= 0x40
				w.check(os.WriteFile(filepath.Join(w.dir, s.File), b, 0o600))
				r, _ := inspect(t, w.dir)
				if len(r.Findings) != 1 || r.MoreFindings != 0 {
					t.Errorf("%s, byte %d of %s: %+v", s.File, off, n.what, r.Findings)
					continue
				}
				f := r.Findings[0]
				if f.Path != filepath.Join(w.dir, s.File) || f.Offset != n.at || f.What == "" || f.Data == "" || f.Next == "" {
					t.Errorf("%s, byte %d of %s, which begins at %d: %+v", s.File, off, n.what, n.at, f)
				}
				if n.entry > 0 && (f.Kind != "entry" || f.Volume != n.group || !strings.Contains(f.What, fmt.Sprintf("entry %d ", n.entry)) || group(t, r, n.group).Damaged != 1) {
					t.Errorf("%s, entry %d of %s: %+v", s.File, n.entry, n.group, f)
				}
				if n.entry == 0 && (f.Kind == "entry" || f.Data != dataKnown) {
					t.Errorf("%s, byte %d of %s: %+v", s.File, off, n.what, f)
				}
				if group(t, r, "a").Last != 260 || group(t, r, "b").Last != 20 {
					t.Errorf("%s, byte %d of %s: %+v", s.File, off, n.what, r.Groups)
				}
				found[n.what]++
			}
		}
		w.check(os.WriteFile(filepath.Join(w.dir, s.File), image, 0o600))
	}
	t.Log(found)
	for _, what := range []string{"header", "trailer", "footer", "frame", "entry"} {
		if found[what] == 0 {
			t.Errorf("no byte of a %s was flipped: %v", what, found)
		}
	}
}

// some returns where to flip bytes: at the edges and in between, and of most entries and frames nowhere.
func (w *written) some(n need) []int64 {
	if (n.what == "entry" || n.what == "frame") && w.rnd.IntN(8) > 0 {
		return nil
	}
	return []int64{n.from, n.from + w.rnd.Int64N(n.to-n.from), n.to - 1}
}

// need is a range of a segment that is needed, and the place of what is found when it is spoilt.
type need struct {
	what     string
	from, to int64
	at       int64
	group    string
	entry    uint64
}

func needed(t *testing.T, image []byte, s InspectedSegment, entries []InspectedEntry) (out []need) {
	t.Helper()
	h, err := parseHeader(image)
	if err != nil {
		t.Fatal(err)
	}
	out = append(out, need{what: "header", to: labelBytes})
	for _, e := range entries {
		if e.File == s.File {
			out = append(out, need{what: "entry", from: e.Offset, to: e.Offset + int64(e.DataBytes), at: e.Offset, group: e.Group, entry: e.Index})
		}
	}
	if s.Sealed {
		tail, err := parseTrailer(image[s.Bytes-blockBytes:])
		if err != nil {
			t.Fatal(err)
		}
		return append(out, need{what: "trailer", from: s.Bytes - blockBytes, to: s.Bytes - blockBytes + labelBytes, at: s.Bytes - blockBytes},
			need{what: "footer", from: tail.footer, to: tail.footer + int64(tail.records)*recordBytes, at: s.Bytes - blockBytes})
	}
	var last frame
	for at := int64(blockBytes); ; {
		f, _, err := parseFrame(image[at:], at, h.sequence, h.journal)
		if err != nil {
			break
		}
		if last.bytes > 0 { // not the last one: that one may be torn
			head := int64(frameHeaderBytes + (len(last.records)+len(last.previous))*recordBytes)
			out = append(out, need{what: "frame", from: last.at, to: last.at + head, at: last.at})
		}
		last, at = f, f.at+f.bytes
	}
	return out
}
