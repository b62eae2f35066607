package vfs

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// reserve reserves blocks without changing what the file reads as. An error of a file system that cannot is errors.ErrUnsupported.
func reserve(f *os.File, off, n int64) error {
	return noSpace(retryInterrupted(func() error { return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, off, n) }))
}

// fallocate is reserve, but that a file system that cannot reserves nothing and is not an error: running out of space then shows when writing.
func fallocate(f *os.File, off, n int64) error { return ignoreUnsupported(reserve(f, off, n)) }

// fits returns ErrNoSpace unless the file system has room for what the file lacks to have all blocks of its first size bytes.
func fits(f *os.File, info os.FileInfo, size int64) error {
	missing := size
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		missing -= st.Blocks * 512
	}
	var fs unix.Statfs_t
	if err := retryInterrupted(func() error { return unix.Fstatfs(int(f.Fd()), &fs) }); err != nil {
		return fmt.Errorf("ask for the room on the file system: %w", err)
	}
	if fs.Blocks == 0 { // one that does not tell
		return nil
	}
	if free := int64(fs.Bavail) * int64(fs.Bsize); missing > free {
		return fmt.Errorf("%w: %d bytes more are needed, and %d are free", ErrNoSpace, missing, free)
	}
	return nil
}

func punchHole(f *os.File, off, n int64) error {
	return ignoreUnsupported(retryInterrupted(func() error {
		return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	}))
}

// dropCache has the system drop its clean pages.
func dropCache(f *os.File, off, n int64) error {
	return unix.Fadvise(int(f.Fd()), off, n, unix.FADV_DONTNEED)
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
