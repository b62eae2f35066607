// Package journal stores one Raft group's log, its term and vote, and its snapshot metadata.
//
// Invariant: StoreLogs returns only when every entry is durable (rule G: an AppendEntries success, and the owner's own
// count towards a commit, follow it). An entry that does not match its checksum is an error, never an absence: Raft must
// not take it for one it may refetch and count twice. Once a write or a sync has failed the journal is failed for good:
// the page cache may have dropped what the next sync would call durable (ATC'20, "Can applications recover from fsync
// failures?").
//
// Open keeps the log in files (hashicorp/raft-wal below, a seal of our own on every entry, and a cache of the newest entries
// bounded in bytes); NewMemory keeps it in RAM, for replicas whose data is in RAM too. It does not decide when to
// truncate: replication does, after a checkpoint.
package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"

	"sanctuary/blockstore/block"
)

// Journal is a Raft group's log and stable state. Concurrent-safe.
type Journal interface {
	raft.LogStore
	raft.StableStore
	// Snapshots returns the store of snapshot metadata that belongs to this log.
	Snapshots() *Snapshots
	// Reset drops the whole log, so that the next entry may have any index. Term and vote stay.
	Reset() error
	// Bytes returns what the log occupies now, in bytes of its medium.
	Bytes() int64
	// Stalled returns for how long the write under way has been waiting for the disk, 0 if there is none.
	Stalled() time.Duration
	// Failed returns the error that made the journal unusable, or nil.
	Failed() error
	io.Closer
}

// Options tune Open. The zero value of a field means its default.
type Options struct {
	SegmentBytes int          // preallocated size of a segment file; default 64 MiB, a witness needs 1 MiB
	CacheBytes   int64        // payload kept in memory for peers in step; default 16 MiB
	Logger       hclog.Logger // default: discard
}

func (o Options) withDefaults() Options {
	if o.SegmentBytes == 0 {
		o.SegmentBytes = 64 << 20
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = 16 << 20
	}
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	return o
}

// What lies in a journal's directory.
const (
	walFolder    = "wal"
	stableFile   = "stable.db"
	snapshotName = "snapshot.json"
)

type fileJournal struct {
	*Stable
	walDir    string
	log       *wal.WAL
	snapshots *Snapshots
	recent    recent
	failed    atomic.Pointer[error]
	writing   atomic.Int64 // when the write under way began, ns since the journal was opened; 0: none
	opened    time.Time
}

// Open opens the journal in dir, which it creates if missing. Only one process may have it open.
func Open(dir string, opts Options) (Journal, error) {
	opts = opts.withDefaults()
	walDir := filepath.Join(dir, walFolder)
	if err := os.MkdirAll(walDir, 0o700); err != nil {
		return nil, err
	}
	stable, err := OpenStable(filepath.Join(dir, stableFile))
	if err != nil {
		return nil, err
	}
	snapshots, err := OpenSnapshots(filepath.Join(dir, snapshotName))
	if err != nil {
		return nil, errors.Join(err, stable.Close())
	}
	table := &metadb.BoltMetaDB{}
	var log *wal.WAL
	if err = mend(walDir, table); err == nil {
		log, err = wal.Open(walDir, wal.WithSegmentSize(opts.SegmentBytes), wal.WithLogger(opts.Logger), wal.WithMetaStore(table))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open journal %s: %w", walDir, err), table.Close(), stable.Close())
	}
	return &fileJournal{Stable: stable, opened: time.Now(), walDir: walDir, log: log, snapshots: snapshots, recent: recent{limit: opts.CacheBytes}}, nil
}

func (j *fileJournal) Snapshots() *Snapshots { return j.snapshots }

func (j *fileJournal) Failed() error {
	if p := j.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// fail makes the failure final and returns it.
func (j *fileJournal) fail(err error) error {
	err = fmt.Errorf("journal: %w: %w", block.ErrFailed, err)
	j.failed.CompareAndSwap(nil, &err)
	return err
}

func (j *fileJournal) Stalled() time.Duration {
	since := j.writing.Load()
	if since == 0 {
		return 0
	}
	return time.Since(j.opened) - time.Duration(since)
}

func (j *fileJournal) FirstIndex() (uint64, error) { return j.log.FirstIndex() }
func (j *fileJournal) LastIndex() (uint64, error)  { return j.log.LastIndex() }

func (j *fileJournal) GetLog(index uint64, out *raft.Log) error {
	if j.recent.get(index, out) {
		return nil
	}
	err := j.log.GetLog(index, out)
	if err == nil {
		err = unseal(out)
	}
	if err == nil && out.Index != index {
		err = &block.CorruptError{Where: "journal entry"}
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrLogNotFound), errors.Is(err, wal.ErrNotFound):
		return raft.ErrLogNotFound
	default:
		return j.fail(fmt.Errorf("read entry %d: %w", index, err))
	}
}

func (j *fileJournal) StoreLog(l *raft.Log) error { return j.StoreLogs([]*raft.Log{l}) }

func (j *fileJournal) StoreLogs(logs []*raft.Log) error {
	if err := j.Failed(); err != nil {
		return err
	}
	if len(logs) == 0 {
		return nil
	}
	last, err := j.log.LastIndex()
	if err != nil {
		return j.fail(err)
	}
	// After a snapshot was installed (witness) or a rebuild, the log goes on behind a gap: what is before it is obsolete.
	if last != 0 && logs[0].Index > last+1 {
		if err := j.Reset(); err != nil {
			return err
		}
	}
	sealed := make([]*raft.Log, len(logs))
	for i, l := range logs {
		sealed[i] = seal(l)
	}
	j.writing.Store(int64(time.Since(j.opened)) | 1)
	err = j.log.StoreLogs(sealed)
	j.writing.Store(0)
	if err != nil {
		return j.fail(err)
	}
	j.recent.add(logs)
	return nil
}

func (j *fileJournal) DeleteRange(lo, hi uint64) error {
	if err := j.Failed(); err != nil {
		return err
	}
	j.recent.deleteRange(lo, hi)
	if err := j.log.DeleteRange(lo, hi); err != nil {
		return j.fail(err)
	}
	return nil
}

func (j *fileJournal) Reset() error {
	first, err := j.log.FirstIndex()
	if err != nil {
		return err
	}
	last, err := j.log.LastIndex()
	if err != nil || last == 0 {
		return err
	}
	return j.DeleteRange(first, last)
}

func (j *fileJournal) Bytes() int64 {
	var n int64
	files, err := os.ReadDir(j.walDir)
	if err != nil {
		return 0 // an estimate is all that is asked for; a directory that cannot be read shows at the next write
	}
	for _, f := range files {
		if info, err := f.Info(); err == nil {
			n += info.Size()
		}
	}
	return n
}

func (j *fileJournal) Close() error { return errors.Join(j.log.Close(), j.Stable.Close()) }

// memoryJournal keeps everything in RAM: it ends with the process, as its replica's data does.
type memoryJournal struct {
	*memoryStable
	snapshots *Snapshots
	recent    recent
}

// NewMemory returns an empty journal in memory. It holds what Raft has not truncated.
func NewMemory() Journal {
	return &memoryJournal{memoryStable: newMemoryStable(), snapshots: NewMemorySnapshots(), recent: recent{limit: -1}}
}

func (j *memoryJournal) Snapshots() *Snapshots  { return j.snapshots }
func (j *memoryJournal) Failed() error          { return nil }
func (j *memoryJournal) Stalled() time.Duration { return 0 }
func (j *memoryJournal) FirstIndex() (uint64, error) {
	first, _ := j.recent.bounds()
	return first, nil
}

func (j *memoryJournal) LastIndex() (uint64, error) { _, last := j.recent.bounds(); return last, nil }
func (j *memoryJournal) StoreLog(l *raft.Log) error { return j.StoreLogs([]*raft.Log{l}) }
func (j *memoryJournal) Bytes() int64               { return j.recent.held() }
func (j *memoryJournal) Close() error               { return nil }

func (j *memoryJournal) GetLog(index uint64, out *raft.Log) error {
	if j.recent.get(index, out) {
		return nil
	}
	return raft.ErrLogNotFound
}

func (j *memoryJournal) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	if _, last := j.recent.bounds(); last != 0 && logs[0].Index > last+1 {
		j.recent.reset()
	}
	j.recent.add(logs)
	return nil
}

func (j *memoryJournal) DeleteRange(lo, hi uint64) error { j.recent.deleteRange(lo, hi); return nil }
func (j *memoryJournal) Reset() error                    { j.recent.reset(); return nil }
