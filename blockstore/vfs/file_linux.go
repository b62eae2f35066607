package vfs

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// fallocate reserves blocks without changing what the file reads as. A file system that cannot (EOPNOTSUPP) reserves
// nothing and is not an error: running out of space then shows when writing.
func fallocate(f *os.File, off, n int64) error {
	return ignoreUnsupported(retryInterrupted(func() error { return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, off, n) }))
}

func punchHole(f *os.File, off, n int64) error {
	return ignoreUnsupported(retryInterrupted(func() error {
		return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	}))
}

func fdatasync(f *os.File) error { return unix.Fdatasync(int(f.Fd())) }

func retryInterrupted(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func ignoreUnsupported(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return nil
	}
	return noSpace(err)
}
