package vfs

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// ErrReadOnly: the medium was opened to be looked at.
var ErrReadOnly = errors.New("the medium was opened to be read only")

// ReadOnly is a file or a block device that is looked at, perhaps while somebody else uses it. It claims nothing and locks
// nothing, so it keeps nobody out; whoever reads must expect that what it reads changes. Its writing methods return ErrReadOnly.
type ReadOnly struct {
	f      *os.File
	device bool
}

var _ Dev = (*ReadOnly)(nil)

// OpenReadOnly opens a regular file or a block device. Errors: ErrNotDevice for anything else, and whatever the system says.
func OpenReadOnly(path string) (*ReadOnly, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !isBlockDevice(info) && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("open %s: %w, nor a file", path, ErrNotDevice)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &ReadOnly{f: f, device: isBlockDevice(info)}, nil
}

// ReadAt implements Dev.
func (d *ReadOnly) ReadAt(p []byte, off int64) error {
	n, err := d.f.ReadAt(p, off)
	if errors.Is(err, io.EOF) && n < len(p) {
		return fmt.Errorf("%w: %d bytes at %d of %d", ErrOutOfRange, len(p), off, d.Size())
	}
	if n == len(p) {
		return nil
	}
	return err
}

// WriteAt implements Dev: ErrReadOnly.
func (d *ReadOnly) WriteAt([]byte, int64) error { return ErrReadOnly }

// Sync implements Dev: ErrReadOnly.
func (d *ReadOnly) Sync() error { return ErrReadOnly }

// Discard implements Dev: ErrReadOnly.
func (d *ReadOnly) Discard(int64, int64) error { return ErrReadOnly }

// Size implements Dev. It is the length now: whoever uses the file may make it longer. 0 if that cannot be found out.
func (d *ReadOnly) Size() int64 {
	if d.device {
		size, err := deviceSize(d.f)
		if err != nil {
			return 0
		}
		return size
	}
	info, err := d.f.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}

// SectorSize implements Dev.
func (d *ReadOnly) SectorSize() int { return SectorSize }

// Close implements Dev.
func (d *ReadOnly) Close() error { return d.f.Close() }

// maxCopyBytes bounds what CopyToMemory takes.
const maxCopyBytes = 256 << 20

// copyTries is how often CopyToMemory reads a file that changes meanwhile.
const copyTries = 50

// ErrUnsteady: a file, or a medium, changes faster than it can be read.
var ErrUnsteady = errors.New("it changes faster than it can be read")

// CopyToMemory returns a copy of a file that is only in memory and has no name, as of one moment: two readings of the whole file were the same.
// So a file can be opened by what would lock it. The file must have at most 256 MiB.
func CopyToMemory(path string) (*os.File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxCopyBytes {
		return nil, fmt.Errorf("%s: %v of %d bytes, want a file of at most %d", path, info.Mode().Type(), info.Size(), int64(maxCopyBytes))
	}
	last, err := os.ReadFile(path)
	for range copyTries {
		if err != nil {
			return nil, err
		}
		var again []byte
		if again, err = os.ReadFile(path); err == nil && string(again) == string(last) {
			return memoryFile(last)
		}
		last = again
	}
	if err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("read %s: %w", path, ErrUnsteady)
}
