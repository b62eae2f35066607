package walv1

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"go.etcd.io/bbolt"

	"sanctuary/blockstore/block"
)

// seal returns a copy of the entry with its seal; the data is shared.
func seal(l *raft.Log) *raft.Log {
	ext := make([]byte, sealBytes, sealBytes+len(l.Extensions))
	binary.LittleEndian.PutUint32(ext, sealSum(l, l.Extensions))
	ext[4] = sealVersion
	sealed := *l
	sealed.Extensions = append(ext, l.Extensions...)
	return &sealed
}

// write makes a directory as the old program did: the entries from 1 to last, of which the first gone have been cut off.
func write(t *testing.T, last, gone uint64) (dir string) {
	t.Helper()
	dir = t.TempDir()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.MkdirAll(filepath.Join(dir, walFolder), 0o700))
	w, err := wal.Open(filepath.Join(dir, walFolder), wal.WithSegmentSize(64<<10))
	check(err)
	for i := uint64(1); i <= last; i++ {
		check(w.StoreLogs([]*raft.Log{seal(&raft.Log{Index: i, Term: 1, Type: raft.LogCommand, Data: fmt.Appendf(make([]byte, 3000), "entry %d", i)})}))
	}
	if gone > 0 {
		check(w.DeleteRange(1, gone))
	}
	check(w.Close())
	db, err := bbolt.Open(filepath.Join(dir, stableFile), 0o600, nil)
	check(err)
	check(db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucket(stableBucket)
		if err != nil {
			return err
		}
		return b.Put([]byte("CurrentTerm"), binary.BigEndian.AppendUint64(nil, 7))
	}))
	check(db.Close())
	s := Snapshot{Version: 1, Meta: raft.SnapshotMeta{ID: "1-10", Index: 10, Term: 1}, Body: []byte("body")}
	meta, err := json.Marshal(s.Meta)
	check(err)
	s.CRC32C = block.Sum(append(meta, s.Body...))
	raw, err := json.Marshal(s)
	check(err)
	check(os.WriteFile(filepath.Join(dir, snapshotName), raw, 0o600))
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
