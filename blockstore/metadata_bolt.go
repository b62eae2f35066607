package blockstore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"sanctuary/blockstore/vfs"
)

// boltLockTimeout bounds the wait for another process to close the file: long enough for one that is just ending.
const boltLockTimeout = time.Second

var boltBucket = []byte("blockstore")

// boltMetadata keeps the records in one bucket of a bbolt file.
type boltMetadata struct{ db *bbolt.DB }

var _ Metadata = (*boltMetadata)(nil)

// createBolt makes a new file with what fill puts into it. It appears under its name complete and durable, or not at all,
// so that a file found later was once whole.
func createBolt(path string, fill func(MetadataTx) error) error {
	draft := path + ".new"
	if err := os.Remove(draft); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	m, err := openBoltFile(draft)
	if err != nil {
		return err
	}
	err = m.db.Update(func(tx *bbolt.Tx) error {
		bucket, err := tx.CreateBucket(boltBucket)
		if err != nil {
			return err
		}
		return fill(boltTx{bucket})
	})
	if err := errors.Join(err, m.Close()); err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	if err := os.Rename(draft, path); err != nil {
		return err
	}
	return vfs.SyncDir(filepath.Dir(path))
}

// openBolt opens a file that createBolt has made.
func openBolt(path string) (*boltMetadata, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	m, err := openBoltFile(path)
	if err != nil {
		return nil, err
	}
	err = m.guard(func() error {
		return m.db.View(func(tx *bbolt.Tx) error {
			if tx.Bucket(boltBucket) == nil {
				return errors.New("not the metadata of a pool")
			}
			return nil
		})
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, err), m.Close())
	}
	return m, nil
}

func openBoltFile(path string) (*boltMetadata, error) {
	m := &boltMetadata{}
	var file *os.File
	err := m.guard(func() (err error) {
		m.db, err = bbolt.Open(path, 0o600, &bbolt.Options{
			Timeout:      boltLockTimeout,
			FreelistType: bbolt.FreelistMapType, // the other type slows down as a large file fragments
			NoStatistics: true,
			OpenFile: func(name string, flag int, perm os.FileMode) (_ *os.File, err error) {
				file, err = os.OpenFile(name, flag, perm)
				return file, err
			},
		})
		return err
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("open %s: %w", path, vfs.ErrLocked)
	}
	if err != nil {
		// If bbolt has panicked, it has left the file open, and so locked against our own next attempt: even closing it would
		// not help, as bbolt's memory mapping keeps the lock. If it has not, the file is closed and this does nothing.
		if file != nil {
			if raw, rawErr := file.SyscallConn(); rawErr == nil {
				err = errors.Join(err, ignoreClosed(raw.Control(func(fd uintptr) { _ = unix.Flock(int(fd), unix.LOCK_UN) })))
			}
			err = errors.Join(err, ignoreClosed(file.Close()))
		}
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return m, nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// Update implements Metadata.
func (m *boltMetadata) Update(fn func(MetadataTx) error) error {
	err := m.guard(func() error {
		return m.db.Update(func(tx *bbolt.Tx) error { return fn(boltTx{tx.Bucket(boltBucket)}) })
	})
	// Only a write that the file system refused for want of space leaves the file as it was. The same error from a sync
	// does not: what was written may be gone.
	if path := (*fs.PathError)(nil); errors.As(err, &path) && path.Op == "write" && errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("%w: %w", vfs.ErrNoSpace, err)
	}
	return err
}

// View implements Metadata.
func (m *boltMetadata) View(fn func(MetadataTx) error) error {
	return m.guard(func() error {
		return m.db.View(func(tx *bbolt.Tx) error { return fn(boltTx{tx.Bucket(boltBucket)}) })
	})
}

// Close implements Metadata.
func (m *boltMetadata) Close() error { return m.guard(m.db.Close) }

// guard turns the panics of bbolt on a damaged file, and memory faults in its mapping, into errors.
func (m *boltMetadata) guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the metadata file is damaged: %v", p)
		}
	}()
	return fn()
}

type boltTx struct{ bucket *bbolt.Bucket }

func (t boltTx) Get(key []byte) []byte { return t.bucket.Get(key) }

func (t boltTx) Put(key, value []byte) error { return t.bucket.Put(key, value) }

func (t boltTx) Delete(key []byte) error { return t.bucket.Delete(key) }

func (t boltTx) Scan(prefix []byte, fn func(key, value []byte) error) error {
	c := t.bucket.Cursor()
	for key, value := c.Seek(prefix); key != nil && bytes.HasPrefix(key, prefix); key, value = c.Next() {
		if err := fn(key, value); err != nil {
			return err
		}
	}
	return nil
}
