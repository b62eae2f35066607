package vfs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ClassOf returns the class of a block device, or of the device that the file system of a file or directory lies on, and
// how that is known. What cannot be told is taken for an SSD, and why says so: the operator may know better.
func ClassOf(path string) (class Class, why string) {
	return classifier{sys: sysfs, mounts: "/proc/self/mountinfo"}.of(path)
}

// classifier is ClassOf with the kernel's files where a test wants them.
type classifier struct{ sys, mounts string }

// maxDepth bounds how many devices may lie on one another: loop devices on files on volumes on arrays.
const maxDepth = 8

func (c classifier) of(path string) (Class, string) {
	class, why, err := c.path(path, maxDepth)
	if err != nil {
		return ClassSSD, fmt.Sprintf("it cannot be told whether %s rotates (%v): taken for an SSD", path, err)
	}
	return class, why
}

var errUnknownDisk = errors.New("the system does not say which disk it is on")

func (c classifier) path(path string, depth int) (Class, string, error) {
	if depth == 0 {
		return "", "", errors.New("too many devices on one another")
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", "", err
	}
	st := info.Sys().(*syscall.Stat_t)
	if isBlockDevice(info) {
		return c.device(uint64(st.Rdev), depth)
	}
	if unix.Major(uint64(st.Dev)) != 0 {
		return c.device(uint64(st.Dev), depth)
	}
	// A file system without a device of its own: in memory, over several disks, or from elsewhere.
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return "", "", err
	}
	if fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC {
		return ClassRAM, path + " is on a file system in memory", nil
	}
	source, err := c.mountSource(path)
	if err != nil {
		return "", "", err
	}
	return c.path(source, depth-1)
}

// mountSource returns the device that a path's file system was mounted from.
func (c classifier) mountSource(path string) (string, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	f, err := os.Open(c.mounts)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // read-only: nothing to lose
	source := longestMount(f, path)
	if !strings.HasPrefix(source, "/dev/") {
		return "", errUnknownDisk
	}
	return source, nil
}

// longestMount returns what the mount that a path lies on was made from, going by the kernel's list of mounts.
func longestMount(mounts io.Reader, path string) (source string) {
	best := ""
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		// 36 35 98:0 /root /point options tags… - type source options
		head, tail, ok := strings.Cut(lines.Text(), " - ")
		h, t := strings.Fields(head), strings.Fields(tail)
		if !ok || len(h) < 5 || len(t) < 2 {
			continue
		}
		point := unescape(h[4])
		if within := point == path || point == "/" || strings.HasPrefix(path, point+"/"); within && len(point) >= len(best) {
			best, source = point, unescape(t[1])
		}
	}
	return source
}

// unescape undoes what the kernel does to blanks in names: \040.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func (c classifier) device(device uint64, depth int) (Class, string, error) {
	if depth == 0 {
		return "", "", errors.New("too many devices on one another")
	}
	dir, err := wholeDisk(c.sys, device)
	if err != nil {
		return "", "", err
	}
	name := filepath.Base(dir)
	if unix.Major(device) == ramdiskMajor {
		return ClassRAM, name + " is memory", nil
	}
	if file, err := os.ReadFile(filepath.Join(dir, "loop", "backing_file")); err == nil {
		return c.path(strings.TrimSpace(string(file)), depth-1)
	}
	slaves, err := os.ReadDir(filepath.Join(dir, "slaves"))
	if err == nil && len(slaves) > 0 {
		return c.slaves(dir, slaves, depth)
	}
	text, err := os.ReadFile(filepath.Join(dir, "queue", "rotational"))
	if err != nil {
		return "", "", err
	}
	if strings.TrimSpace(string(text)) == "0" {
		return ClassSSD, "the kernel says that " + name + " does not rotate", nil
	}
	return ClassHDD, "the kernel says that " + name + " rotates", nil
}

// ramdiskMajor is the major number of /dev/ram0 and its like (brd).
const ramdiskMajor = 1

// slaves returns the class of a device made of others (device-mapper, md): as slow as the slowest of them.
func (c classifier) slaves(dir string, slaves []os.DirEntry, depth int) (Class, string, error) {
	rank := map[Class]int{ClassRAM: 1, ClassSSD: 2, ClassHDD: 3}
	var slowest Class
	var reason string
	for _, s := range slaves {
		text, err := os.ReadFile(filepath.Join(dir, "slaves", s.Name(), "dev"))
		if err != nil {
			return "", "", err
		}
		major, minor, _ := strings.Cut(strings.TrimSpace(string(text)), ":")
		maj, err1 := strconv.ParseUint(major, 10, 32)
		mnr, err2 := strconv.ParseUint(minor, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return "", "", err
		}
		class, why, err := c.device(unix.Mkdev(uint32(maj), uint32(mnr)), depth-1)
		if err != nil {
			return "", "", err
		}
		if rank[class] > rank[slowest] {
			slowest, reason = class, why
		}
	}
	return slowest, reason, nil
}
