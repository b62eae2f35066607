package vfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// FileConfig says which file to use as a medium, and how.
type FileConfig struct {
	Path string
	// SizeBytes is the least length of the file; a shorter file is extended (sparsely). 0 takes the file as it is.
	SizeBytes int64
	// Preallocate reserves all blocks of the file at once, so that it can never run out of space. Discard then keeps them.
	Preallocate bool
	// Insist, with Preallocate, has a file system that cannot reserve blocks be an error (errors.ErrUnsupported), and asks for room before anything
	// is taken: some file systems give all they have before they say that it is not enough, and others write there, too. It is for a file that is
	// new: one that was made without is opened as it was made.
	Insist bool
}

// File is a regular file as a medium, written through the page cache. It holds an exclusive advisory lock (flock) on the
// file while it is open.
type File struct {
	descriptor
	preallocated bool
}

var (
	_ Dev       = (*File)(nil)
	_ Allocator = (*File)(nil)
)

// OpenFile opens or creates the file. It returns ErrLocked if the file is in use, ErrNoSpace if it cannot be
// preallocated. Length, allocation and directory entry are on stable storage when it returns nil.
func OpenFile(cfg FileConfig) (*File, error) {
	f, err := os.OpenFile(cfg.Path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	d, err := prepareFile(f, cfg)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open medium %s: %w", cfg.Path, err), f.Close())
	}
	return d, nil
}

func prepareFile(f *os.File, cfg FileConfig) (*File, error) {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrLocked
		}
		return nil, fmt.Errorf("lock: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("not a regular file (%v)", info.Mode().Type())
	}
	size := max(info.Size(), cfg.SizeBytes)
	if cfg.Preallocate && cfg.Insist {
		if err := fits(f, info, size); err != nil {
			return nil, err
		}
	}
	if size > info.Size() {
		if err := f.Truncate(size); err != nil {
			return nil, fmt.Errorf("extend to %d bytes: %w", size, err)
		}
	}
	if cfg.Preallocate && size > 0 {
		take := fallocate
		if cfg.Insist {
			take = reserve
		}
		if err := take(f, 0, size); err != nil {
			return nil, fmt.Errorf("preallocate %d bytes: %w", size, err)
		}
	}
	if err := f.Sync(); err != nil {
		return nil, fmt.Errorf("sync: %w", err)
	}
	if err := SyncDir(filepath.Dir(cfg.Path)); err != nil {
		return nil, err
	}
	return &File{descriptor: descriptor{f: f, size: size}, preallocated: cfg.Preallocate}, nil
}

// SyncDir makes the entries of a directory durable: files created in it, renamed into it or removed from it.
func SyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return errors.Join(fmt.Errorf("sync directory %s: %w", dir, err), f.Close())
	}
	return f.Close()
}

// Discard implements Dev: it punches a hole where the operating system can, else it does nothing.
func (d *File) Discard(off, n int64) error {
	if err := CheckRange(off, n, d.size); err != nil {
		return err
	}
	if d.preallocated || n == 0 {
		return nil
	}
	return punchHole(d.f, off, n)
}

// Allocate implements Allocator.
func (d *File) Allocate(off, n int64) error {
	if err := CheckRange(off, n, d.size); err != nil {
		return err
	}
	if d.preallocated || n == 0 {
		return nil
	}
	return fallocate(d.f, off, n)
}

// SectorSize implements Dev.
func (d *File) SectorSize() int { return SectorSize }
