// Package vfs is what the blockstore keeps its bytes on: a file, an arena of memory, and in tests (vfs/crashdev) a device
// that loses, tears and reorders what was not synced.
//
// It is a block device rather than a file system, because raw devices and memory have no file names, and because that is
// where the faults happen that matter here: a torn sector, a lost write, a sync that failed. It knows nothing of chunks,
// checksums or volumes.
package vfs

import (
	"errors"
	"fmt"
)

// SectorSize is the length in bytes that every device here writes without tearing.
const SectorSize = 512

// Dev is one medium of fixed size. All methods may be called concurrently. Whether overlapping concurrent reads and
// writes are atomic is not promised: whoever owns the medium orders them.
type Dev interface {
	// ReadAt fills p from byte offset off. A range beyond Size is an error, and so is a short read.
	ReadAt(p []byte, off int64) error
	// WriteAt stores p at byte offset off. Until Sync returns nil a power cut may keep all of it, none of it or any of its
	// sectors, in any order with regard to other writes. p is not kept.
	WriteAt(p []byte, off int64) error
	// Sync returns nil when everything written before it was called is on stable storage. An error is final: what was
	// written since the last successful Sync may be lost, whatever a later Sync says (Rebello et al., "Can applications
	// recover from fsync failures?", ATC'20), so the caller must stop using the medium.
	Sync() error
	// Discard says that n bytes from off on are no longer needed. What they read as afterwards is not specified.
	Discard(off, n int64) error
	// Size is the length of the medium in bytes.
	Size() int64
	// SectorSize is the number of bytes written without tearing, a power of two.
	SectorSize() int
	Close() error
}

// Allocator is a Dev on which writing can run out of space though it is within Size (a sparse file).
type Allocator interface {
	// Allocate makes sure that writes within n bytes from off on will find space. It returns ErrNoSpace, with nothing
	// that was stored changed, when they would not.
	Allocate(off, n int64) error
}

// Cached is a Dev of which the system may show what is not on the medium: what a sync that failed should have written there stays in its cache, and
// counts as written. Whoever takes a medium over from another process, which may have ended for that very reason, forgets what it is going to
// believe, after a Sync of its own: what is still to be written is not forgotten.
type Cached interface {
	// Forget has n bytes from off on read from the medium the next time.
	Forget(off, n int64) error
}

// Forget does what Cached says, with a medium that has no cache as with one that has.
func Forget(d Dev, off, n int64) error {
	if c, ok := d.(Cached); ok {
		return c.Forget(off, n)
	}
	return nil
}

// Volatile is a Dev that says whether its contents end with the process. One that does not implement it lasts.
type Volatile interface {
	Volatile() bool
}

var (
	// ErrNoSpace: what the medium itself lies on is full.
	ErrNoSpace = errors.New("no space on the file system of the medium")
	// ErrOutOfRange: an access beyond the end of the medium.
	ErrOutOfRange = errors.New("beyond the end of the medium")
	// ErrLocked: another process (or another pool of this one) has the medium open.
	ErrLocked = errors.New("the medium is in use by another process")
	// ErrClosed: the medium has been closed.
	ErrClosed = errors.New("the medium is closed")
)

// CheckRange returns ErrOutOfRange unless n bytes from off on lie within a medium of the given size.
func CheckRange(off, n, size int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("%w: %d bytes at %d of %d", ErrOutOfRange, n, off, size)
	}
	return nil
}
