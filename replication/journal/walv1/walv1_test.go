package walv1

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"

	"sanctuary/replication/journal/walv1/walv1test"
)

// write makes a directory as the old program did: the entries from 1 to last, of which the first gone have been cut off.
func write(t *testing.T, last, gone uint64) (dir string) {
	t.Helper()
	dir = t.TempDir()
	l := walv1test.Log{
		Gone: gone, Values: map[string][]byte{"CurrentTerm": binary.BigEndian.AppendUint64(nil, 7)},
		Snapshot: raft.SnapshotMeta{ID: "1-10", Index: 10, Term: 1}, Body: []byte("body"),
	}
	for i := uint64(1); i <= last; i++ {
		l.Entries = append(l.Entries, &raft.Log{Index: i, Term: 1, Type: raft.LogCommand, Data: fmt.Appendf(make([]byte, 3000), "entry %d", i)})
	}
	if err := walv1test.Write(dir, l); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestWhatTheOldProgramKeptIsRead(t *testing.T) {
	l, err := Open(write(t, 100, 10))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if first, last, err := l.Bounds(); first != 11 || last != 100 || err != nil {
		t.Fatalf("%d..%d, %v", first, last, err)
	}
	for i := uint64(11); i <= 100; i++ {
		e, err := l.Entry(i)
		if err != nil || e.Index != i || e.Term != 1 || string(e.Data[3000:]) != fmt.Sprint("entry ", i) || len(e.Extensions) > 0 {
			t.Fatalf("entry %d: %+v, %v", i, e, err)
		}
	}
	if l.Snapshot == nil || l.Snapshot.Meta.Index != 10 || string(l.Snapshot.Body) != "body" {
		t.Fatalf("snapshot: %+v", l.Snapshot)
	}
	if v := l.Values["CurrentTerm"]; len(v) != 8 || v[7] != 7 {
		t.Fatalf("term: %v", v)
	}
}

func TestDamageToWhatTheOldProgramKeptIsAnError(t *testing.T) {
	dir := write(t, 3, 0)
	segments, _ := filepath.Glob(filepath.Join(dir, walFolder, "*.wal"))
	raw, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	raw[2000] ^= 1
	if err := os.WriteFile(segments[0], raw, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := Open(dir)
	if err == nil {
		defer l.Close()
		_, err = l.Entry(1)
	}
	if err == nil {
		t.Fatal("a flipped bit went unnoticed")
	}
	raw, _ = os.ReadFile(filepath.Join(dir, snapshotName))
	for i := range raw {
		if raw[i] == '1' && i > 30 {
			raw[i] = '2'
			break
		}
	}
	_ = os.WriteFile(filepath.Join(dir, snapshotName), raw, 0o600)
	if l, err := Open(dir); err == nil {
		l.Close()
		t.Fatal("a changed snapshot went unnoticed")
	}
}
