// Package walv1test writes what programs before the shared journal kept in the directory of a replica, for tests of the move away from it (walv1).
//
// It shares no code with what reads it.
package walv1test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"go.etcd.io/bbolt"
)

// Log is what is to be there.
type Log struct {
	Entries  []*raft.Log // one behind the other
	Gone     uint64      // entries up to this one have been cut off again
	Values   map[string][]byte
	Snapshot raft.SnapshotMeta
	Body     []byte
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal returns a copy of the entry with its seal; the data is shared.
func seal(l *raft.Log) *raft.Log {
	head := binary.LittleEndian.AppendUint64([]byte{byte(l.Type)}, l.Index)
	head = binary.LittleEndian.AppendUint64(head, l.Term)
	sum := crc32.Update(crc32.Update(crc32.Update(0, castagnoli, head), castagnoli, l.Data), castagnoli, l.Extensions)
	sealed := *l
	sealed.Extensions = append(append(binary.LittleEndian.AppendUint32(nil, sum), 1, 0, 0, 0), l.Extensions...)
	return &sealed
}

// Write makes the directory.
func Write(dir string, l Log) error {
	if err := os.MkdirAll(filepath.Join(dir, "wal"), 0o700); err != nil {
		return err
	}
	return errors.Join(writeEntries(filepath.Join(dir, "wal"), l), writeValues(filepath.Join(dir, "stable.db"), l.Values), writeSnapshot(filepath.Join(dir, "snapshot.json"), l))
}

func writeEntries(dir string, l Log) error {
	w, err := wal.Open(dir, wal.WithSegmentSize(64<<10), wal.WithLogger(hclog.NewNullLogger()))
	if err != nil {
		return err
	}
	for _, e := range l.Entries {
		if err := w.StoreLogs([]*raft.Log{seal(e)}); err != nil {
			return errors.Join(err, w.Close())
		}
	}
	if l.Gone > 0 {
		err = w.DeleteRange(l.Entries[0].Index, l.Gone)
	}
	return errors.Join(err, w.Close())
}

func writeValues(path string, values map[string][]byte) error {
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucket([]byte("stable-v1"))
		for key, value := range values {
			err = errors.Join(err, b.Put([]byte(key), value))
		}
		return err
	})
	return errors.Join(err, db.Close())
}

func writeSnapshot(path string, l Log) error {
	if l.Snapshot.Index == 0 {
		return nil
	}
	meta, err := json.Marshal(l.Snapshot)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(map[string]any{"version": 1, "meta": l.Snapshot, "body": l.Body, "crc32c": crc32.Checksum(append(meta, l.Body...), castagnoli)})
	if err != nil {
		return err
	}
	return os.WriteFile(path, raw, 0o600)
}
