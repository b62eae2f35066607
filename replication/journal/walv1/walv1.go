// Package walv1 reads what was written before the journal was shared: one directory per replica, with the log in hashicorp/raft-wal and a seal of our own
// on every entry, term and vote in bbolt, and the snapshot's metadata in a file. It is for the move to the journal of now (journal.Log): nothing writes this format any more.
package walv1

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"go.etcd.io/bbolt"

	"sanctuary/blockstore/block"
)

// What lies in a directory.
const (
	walFolder    = "wal"
	stableFile   = "stable.db"
	snapshotName = "snapshot.json"
)

var stableBucket = []byte("stable-v1")

// Log is what was in one directory.
type Log struct {
	wal      *wal.WAL
	Values   map[string][]byte // of the stable store
	Snapshot *Snapshot         // nil: none
}

// Snapshot is the newest one.
type Snapshot struct {
	Version int               `json:"version"`
	Meta    raft.SnapshotMeta `json:"meta"`
	Body    []byte            `json:"body"`
	CRC32C  uint32            `json:"crc32c"`
}

// Open reads the directory. An error means that it cannot be gone on from: it is damaged, or of a version that is not known.
func Open(dir string) (*Log, error) {
	l := &Log{Values: map[string][]byte{}}
	if err := l.readValues(filepath.Join(dir, stableFile)); err != nil {
		return nil, err
	}
	if err := l.readSnapshot(filepath.Join(dir, snapshotName)); err != nil {
		return nil, err
	}
	folder := filepath.Join(dir, walFolder)
	var err error
	if l.wal, err = wal.Open(folder, wal.WithLogger(hclog.NewNullLogger())); err != nil {
		return nil, fmt.Errorf("open journal %s: %w", folder, err)
	}
	return l, nil
}

func (l *Log) readValues(path string) error {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: 2 * time.Second, NoFreelistSync: true})
	if err != nil {
		return fmt.Errorf("open term and vote %s: %w", path, err)
	}
	err = db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(stableBucket)
		if b == nil {
			return nil
		}
		return b.ForEach(func(key, value []byte) error {
			l.Values[string(key)] = append([]byte{}, value...)
			return nil
		})
	})
	return errors.Join(err, db.Close())
}

func (l *Log) readSnapshot(path string) error {
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	s := &Snapshot{}
	if err := json.Unmarshal(raw, s); err != nil {
		return fmt.Errorf("snapshot metadata %s: %w", path, err)
	}
	if s.Version != 1 {
		return fmt.Errorf("snapshot metadata %s has version %d, this program reads version 1", path, s.Version)
	}
	meta, err := json.Marshal(s.Meta)
	if err != nil {
		return err
	}
	if block.Sum(append(meta, s.Body...)) != s.CRC32C {
		return fmt.Errorf("snapshot metadata %s does not match its checksum", path)
	}
	l.Snapshot = s
	return nil
}

// Bounds returns the first and the last index, 0 and 0 of an empty log.
func (l *Log) Bounds() (first, last uint64, err error) {
	first, err1 := l.wal.FirstIndex()
	last, err2 := l.wal.LastIndex()
	return first, last, errors.Join(err1, err2)
}

// Entry reads one entry.
func (l *Log) Entry(index uint64) (*raft.Log, error) {
	out := &raft.Log{}
	err := l.wal.GetLog(index, out)
	if err == nil {
		err = unseal(out)
	}
	if err == nil && out.Index != index {
		err = &block.CorruptError{Where: "journal entry"}
	}
	if err != nil {
		return nil, fmt.Errorf("read entry %d: %w", index, err)
	}
	return out, nil
}

// Close closes it.
func (l *Log) Close() error { return l.wal.Close() }
