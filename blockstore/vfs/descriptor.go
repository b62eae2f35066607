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

// Sync implements Dev with fdatasync. After an error it never succeeds again.
func (d *descriptor) Sync() error {
	if failed := d.failed.Load(); failed != nil {
		return *failed
	}
	if err := d.fdatasync(); err != nil {
		err = fmt.Errorf("sync %s: %w", d.f.Name(), err)
		d.failed.CompareAndSwap(nil, &err)
		return err
	}
	// A Sync that ran beside one that failed may have been told "done" for pages the other was told are lost.
	if failed := d.failed.Load(); failed != nil {
		return *failed
	}
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
