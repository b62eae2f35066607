package vfs

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Arena is memory as a medium: an anonymous mapping outside the garbage collector's heap, so that neither its size nor
// its contents cost collection time. Pages are taken from the system when they are first written and go back with
// Discard. Its contents end with the process.
//
// The caller must see to it that no access is under way when Close is called, since the memory is unmapped.
type Arena struct {
	mem    []byte
	closed atomic.Bool
}

var (
	_ Dev      = (*Arena)(nil)
	_ Volatile = (*Arena)(nil)
)

// NewArena maps sizeBytes of zeros, which must be positive.
func NewArena(sizeBytes int64) (*Arena, error) {
	if sizeBytes <= 0 || int64(int(sizeBytes)) != sizeBytes {
		return nil, fmt.Errorf("arena of %d bytes: the size must be positive and addressable", sizeBytes)
	}
	// MAP_NORESERVE: the arena is thin; how much of it may be used is the pool's capacity and the operator's business.
	mem, err := unix.Mmap(-1, 0, int(sizeBytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes of memory: %w", sizeBytes, err)
	}
	return &Arena{mem: mem}, nil
}

// ReadAt implements Dev.
func (a *Arena) ReadAt(p []byte, off int64) error {
	if err := a.check(off, int64(len(p))); err != nil {
		return err
	}
	copy(p, a.mem[off:])
	return nil
}

// WriteAt implements Dev.
func (a *Arena) WriteAt(p []byte, off int64) error {
	if err := a.check(off, int64(len(p))); err != nil {
		return err
	}
	copy(a.mem[off:], p)
	return nil
}

// Sync implements Dev. Memory is as durable as it gets.
func (a *Arena) Sync() error { return a.check(0, 0) }

// Discard implements Dev: whole pages go back to the system.
func (a *Arena) Discard(off, n int64) error {
	if err := a.check(off, n); err != nil {
		return err
	}
	page := int64(unix.Getpagesize())
	start, end := (off+page-1)/page*page, (off+n)/page*page
	if start >= end {
		return nil
	}
	return unix.Madvise(a.mem[start:end], unix.MADV_DONTNEED)
}

// Size implements Dev.
func (a *Arena) Size() int64 { return int64(len(a.mem)) }

// SectorSize implements Dev.
func (a *Arena) SectorSize() int { return SectorSize }

// Volatile implements Volatile.
func (a *Arena) Volatile() bool { return true }

// Close unmaps the memory.
func (a *Arena) Close() error {
	if a.closed.Swap(true) {
		return ErrClosed
	}
	return unix.Munmap(a.mem)
}

func (a *Arena) check(off, n int64) error {
	if a.closed.Load() {
		return ErrClosed
	}
	return CheckRange(off, n, int64(len(a.mem)))
}
