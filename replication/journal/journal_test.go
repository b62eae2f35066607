package journal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
)

func entries(from, to, term uint64) (logs []*raft.Log) {
	for i := from; i <= to; i++ {
		logs = append(logs, &raft.Log{Index: i, Term: term, Type: raft.LogCommand, Data: fmt.Appendf(nil, "entry %d of term %d", i, term)})
	}
	return logs
}

func mustStore(t *testing.T, j Journal, logs []*raft.Log) {
	t.Helper()
	if err := j.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
}

func wantBounds(t *testing.T, j Journal, first, last uint64) {
	t.Helper()
	f, err1 := j.FirstIndex()
	l, err2 := j.LastIndex()
	if f != first || l != last || err1 != nil || err2 != nil {
		t.Fatalf("log is %d..%d (%v, %v), want %d..%d", f, l, err1, err2, first, last)
	}
}

// Every journal must behave alike; the file journal is also reopened.
func TestJournalKeepsWhatRaftExpects(t *testing.T) {
	dir := t.TempDir()
	for name, open := range map[string]func() Journal{
		"memory": NewMemory,
		"file": func() Journal {
			j, err := Open(dir, Options{SegmentBytes: 64 << 10, CacheBytes: 2 << 10})
			if err != nil {
				t.Fatal(err)
			}
			return j
		},
	} {
		t.Run(name, func(t *testing.T) {
			j := open()
			defer func() { j.Close() }()
			wantBounds(t, j, 0, 0)
			mustStore(t, j, entries(1, 100, 1))
			if err := j.DeleteRange(91, 100); err != nil { // a conflicting tail
				t.Fatal(err)
			}
			mustStore(t, j, entries(91, 95, 2))
			if err := j.DeleteRange(1, 10); err != nil { // compaction
				t.Fatal(err)
			}
			check := func() {
				t.Helper()
				wantBounds(t, j, 11, 95)
				for i := uint64(11); i <= 95; i++ {
					var l raft.Log
					if err := j.GetLog(i, &l); err != nil {
						t.Fatal(err)
					}
					want := entries(i, i, map[bool]uint64{false: 1, true: 2}[i >= 91])[0]
					if l.Index != i || l.Term != want.Term || !bytes.Equal(l.Data, want.Data) {
						t.Fatalf("entry %d: got %+v", i, l)
					}
				}
				for _, i := range []uint64{10, 96} {
					if err := j.GetLog(i, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
						t.Fatalf("entry %d: %v", i, err)
					}
				}
			}
			check()
			if name == "file" {
				if err := j.Close(); err != nil {
					t.Fatal(err)
				}
				j = open()
				check()
			}
			mustStore(t, j, entries(1000, 1001, 3)) // behind a gap, as after a rebuild
			wantBounds(t, j, 1000, 1001)
			if err := j.Reset(); err != nil {
				t.Fatal(err)
			}
			wantBounds(t, j, 0, 0)
			mustStore(t, j, entries(5, 6, 4))
			wantBounds(t, j, 5, 6)
		})
	}
}

func TestFlippedBitInJournalIsAnErrorNotAnAbsence(t *testing.T) {
	dir := t.TempDir()
	j, err := Open(dir, Options{SegmentBytes: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	mustStore(t, j, entries(1, 3, 1))
	mustStore(t, j, entries(4, 6, 1))
	j.Close()
	segments, _ := filepath.Glob(filepath.Join(dir, "wal", "*.wal"))
	if len(segments) != 1 {
		t.Fatalf("segments: %v", segments)
	}
	raw, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(raw, []byte("entry 2 of term"))
	raw[at] ^= 1
	if err := os.WriteFile(segments[0], raw, 0o600); err != nil {
		t.Fatal(err)
	}
	j, err = Open(dir, Options{SegmentBytes: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	err = j.GetLog(2, new(raft.Log))
	var corrupt *block.CorruptError
	if !errors.As(err, &corrupt) || !errors.Is(err, block.ErrFailed) || j.Failed() == nil {
		t.Fatalf("got %v, failed %v", err, j.Failed())
	}
	if err := j.StoreLogs(entries(7, 7, 1)); !errors.Is(err, block.ErrFailed) {
		t.Fatalf("a failed journal took an entry: %v", err)
	}
}

func TestVoteIsCommittedAsOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stable.db")
	s, err := OpenStable(path)
	if err != nil {
		t.Fatal(err)
	}
	vote := func(term uint64, candidate string) {
		if err := s.SetUint64([]byte(keyVoteTerm), term); err != nil {
			t.Fatal(err)
		}
		if candidate != "" {
			if err := s.Set([]byte(keyVoteCandidate), []byte(candidate)); err != nil {
				t.Fatal(err)
			}
		}
	}
	vote(3, "a")
	vote(4, "") // the crash comes between the two writes
	s.Close()
	if s, err = OpenStable(path); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	term, _ := s.GetUint64([]byte(keyVoteTerm))
	candidate, _ := s.Get([]byte(keyVoteCandidate))
	if term != 3 || string(candidate) != "a" {
		t.Fatalf("voted for %q in term %d", candidate, term)
	}
}

func TestSnapshotMetadataIsReplacedWholeAndChecked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot.json")
	s, err := OpenSnapshots(path)
	if err != nil {
		t.Fatal(err)
	}
	conf := raft.Configuration{Servers: []raft.Server{{ID: "a/1", Address: "a"}}}
	for index := uint64(10); index <= 20; index += 10 {
		k, err := s.Create(1, index, 2, conf, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(k, "body %d", index)
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if s, err = OpenSnapshots(path); err != nil {
		t.Fatal(err)
	}
	meta, body, ok := s.Newest()
	if !ok || meta.Index != 20 || string(body) != "body 20" || len(meta.Configuration.Servers) != 1 {
		t.Fatalf("got %+v %q %v", meta, body, ok)
	}
	raw, _ := os.ReadFile(path)
	raw = bytes.Replace(raw, []byte(`"Index":20`), []byte(`"Index":90`), 1)
	os.WriteFile(path, raw, 0o600)
	if _, err := OpenSnapshots(path); err == nil {
		t.Fatal("a changed index went unnoticed")
	}
}

func TestCacheIsBoundedInBytes(t *testing.T) {
	c := recent{limit: 10_000}
	for i := uint64(1); i <= 1000; i++ {
		c.add([]*raft.Log{{Index: i, Data: make([]byte, 1000)}})
		if c.held() > 10_000 {
			t.Fatalf("holds %d bytes", c.held())
		}
	}
	if first, last := c.bounds(); last != 1000 || first < 990 {
		t.Fatalf("holds %d..%d", first, last)
	}
}
