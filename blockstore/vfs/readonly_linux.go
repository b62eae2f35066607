package vfs

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func memoryFile(b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("copy", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "copy in memory")
	if _, err := f.WriteAt(b, 0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Holder returns the process that has a file or device locked (flock), as this package does with what it opens. It asks the kernel's list
// and locks nothing itself. ok is false as well for a process in another container, of which the kernel tells nothing.
func Holder(path string) (pid int, ok bool) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, false
	}
	stat, isStat := info.Sys().(*syscall.Stat_t)
	locks, err := os.ReadFile("/proc/locks")
	if err != nil || !isStat {
		return 0, false
	}
	return holder(string(locks), stat.Ino)
}

// holder looks for the holder of an inode's lock. The device is not compared: some file systems tell stat and this list different numbers, and
// taking a file for one in use does less harm than the reverse.
func holder(locks string, inode uint64) (pid int, ok bool) {
	for line := range strings.Lines(locks) {
		f := strings.Fields(line) // 1: FLOCK ADVISORY WRITE 1234 08:01:5678 0 EOF
		if len(f) < 6 || f[1] != "FLOCK" || f[3] != "WRITE" {
			continue
		}
		where := strings.Split(f[5], ":")
		if n, err := strconv.ParseUint(where[len(where)-1], 10, 64); err == nil && n == inode {
			pid, err = strconv.Atoi(f[4])
			return pid, err == nil
		}
	}
	return 0, false
}
