package vfs

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
)

// descriptor is what File and Device have in common: one open file of fixed size, read and written through the page cache, that
// believes nothing any more once a sync has failed.
type descriptor struct {
	f      *os.File
	size   int64
	failed atomic.Pointer[error] // the first error of Sync; it is returned for ever
	syncs  sync.Mutex            // held by Sync: the system tells an error once, and whoever syncs next must know that it did
	begun  atomic.Uint64         // syncs; changed with syncs held
	synced uint64                // of them, the newest that is done; guarded by syncs
	reads  reads

	using  sync.RWMutex // held for reading while a read is under way, which Close waits for
	closed bool         // guarded by using
}

// ReadAt implements Dev.
func (d *descriptor) ReadAt(p []byte, off int64) error {
	if err := CheckRange(off, int64(len(p)), d.size); err != nil {
		return err
	}
	d.using.RLock()
	defer d.using.RUnlock()
	if d.closed {
		return ErrClosed
	}
	// Within Size a short read means that someone else has truncated the file: io.EOF or io.ErrUnexpectedEOF, an error as any other.
	return d.readAt(p, off)
}

// WriteAt implements Dev.
func (d *descriptor) WriteAt(p []byte, off int64) error {
	if err := CheckRange(off, int64(len(p)), d.size); err != nil {
		return err
	}
	if failed := d.failed.Load(); failed != nil {
		return *failed
	}
	_, err := d.f.WriteAt(p, off)
	return noSpace(err)
}

// Sync implements Dev with fdatasync. After an error it never succeeds again. Those who wait for one that is under way share the next.
func (d *descriptor) Sync() error {
	wanted := d.begun.Load() + 1 // the first that begins from here on
	d.syncs.Lock()
	defer d.syncs.Unlock()
	if failed := d.failed.Load(); failed != nil {
		return *failed
	}
	if d.synced >= wanted {
		return nil
	}
	begun := d.begun.Add(1)
	if err := d.fdatasync(); err != nil {
		err = fmt.Errorf("sync %s: %w", d.f.Name(), err)
		d.failed.Store(&err)
		return err
	}
	d.synced = begun
	return nil
}

func (d *descriptor) fdatasync() error {
	for {
		err := fdatasync(d.f)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// Forget implements Cached.
func (d *descriptor) Forget(off, n int64) error {
	if err := CheckRange(off, n, d.size); err != nil {
		return err
	}
	from, to := max(0, off-largestFolio), min(d.size, off+n+largestFolio)
	return dropCache(d.f, from, to-from)
}

// largestFolio is how much the system caches as one piece, of which it drops all or nothing: 2 MiB with pages of 4 KiB, and room to spare.
const largestFolio = 4 << 20

// Size implements Dev.
func (d *descriptor) Size() int64 { return d.size }

// Close releases the lock. It does not sync.
func (d *descriptor) Close() error {
	d.using.Lock()
	defer d.using.Unlock()
	if d.closed {
		return ErrClosed
	}
	d.closed = true
	return errors.Join(d.reads.close(), d.f.Close())
}

// noSpace adds ErrNoSpace to the system's errors for a full file system or quota.
func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}
