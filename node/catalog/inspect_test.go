package catalog

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
)

// inspectable is a catalog's directory, with a log behind a snapshot, and its store, open.
func inspectable(t *testing.T) (dir string, s *store) {
	t.Helper()
	dir = t.TempDir()
	s, err := openStore(dir, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	var logs []*raft.Log
	for i := uint64(5); i <= 20; i++ {
		logs = append(logs, logAt(t, i))
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.StoreLogs(logs))
	must(s.SetUint64(keyTerm, 3))
	must(s.SetUint64(keyVoteTerm, 3))
	must(s.Set(keyVoteCand, []byte("beta")))
	must(s.put(keyMember, []byte("some UUID")))
	writeSnapshot(t, dir, 8)
	return dir, s
}

func logAt(t *testing.T, index uint64) *raft.Log {
	t.Helper()
	b, err := EncodeChange(&SetSetting{Key: "k", Value: fmt.Sprint(index)})
	if err != nil {
		t.Fatal(err)
	}
	return &raft.Log{Index: index, Term: 2, Type: raft.LogCommand, Data: b}
}

func writeSnapshot(t *testing.T, dir string, index uint64) string {
	t.Helper()
	path := filepath.Join(dir, "snapshots", fmt.Sprintf("2-%d-1", index))
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	body, err := encodeSnapshot(NewModel("lab"))
	if err != nil {
		t.Fatal(err)
	}
	meta, err := json.Marshal(raft.SnapshotMeta{ID: filepath.Base(path), Index: index, Term: 2})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"meta.json": meta, "state.bin": body} {
		if err := os.WriteFile(filepath.Join(path, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func TestInspectReadsACatalogInUse(t *testing.T) {
	dir, s := inspectable(t)
	defer s.Close()
	r, err := Inspect(t.Context(), dir, "lab")
	if err != nil || len(r.Findings) > 0 || r.First != 5 || r.Last != 20 || r.CurrentTerm != 3 || r.VoteTerm != 3 || r.VotedFor != "beta" || r.Snapshot != 8 {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := Inspect(t.Context(), t.TempDir(), "lab"); err != nil || len(r.Findings) > 0 || r.Last != 0 {
		t.Errorf("of a node that has just been made: %+v, %v", r, err)
	}
}

func TestInspectFindsWhatIsWrongWithACatalog(t *testing.T) {
	flip := func(t *testing.T, path string, what []byte) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for at := bytes.Index(b, what); at >= 0; at = bytes.Index(b, what) { // older transactions have it, too
			b[at] ^= 1
			n++
		}
		if n == 0 {
			t.Fatalf("%s does not hold %q", path, what)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, kind string
		spoil      func(t *testing.T, dir string)
	}{
		{"an entry", "catalog log", func(t *testing.T, dir string) {
			flip(t, filepath.Join(dir, dbFile), binary.LittleEndian.AppendUint32(nil, entrySum(logAt(t, 9))))
		}},
		{"the vote", "catalog vote", func(t *testing.T, dir string) { flip(t, filepath.Join(dir, dbFile), []byte("beta")) }},
		{"the identity", "catalog vote", func(t *testing.T, dir string) { flip(t, filepath.Join(dir, dbFile), []byte("some UUID")) }},
		{"the file", "catalog log", func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, dbFile), bytes.Repeat([]byte{7}, 32<<10), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{"the file is missing", "catalog log", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, dbFile)); err != nil {
				t.Fatal(err)
			}
		}},
		{"an older snapshot", "catalog snapshot", func(t *testing.T, dir string) {
			flip(t, filepath.Join(writeSnapshot(t, dir, 6), "state.bin"), []byte("cluster"))
		}},
		{"no snapshot", "catalog log", func(t *testing.T, dir string) {
			if err := os.RemoveAll(filepath.Join(dir, "snapshots")); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, s := inspectable(t)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			c.spoil(t, dir)
			r, err := Inspect(t.Context(), dir, "lab")
			if err != nil || len(r.Findings) != 1 || r.Findings[0].Kind != c.kind || r.Findings[0].Data == "" || r.Findings[0].Next == "" {
				t.Errorf("%+v, %v; want a %s", r, err, c.kind)
			}
		})
	}
}
