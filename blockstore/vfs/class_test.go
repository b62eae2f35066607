//go:build linux

package vfs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fakeSys is the kernel's tree of devices as far as it is looked at.
type fakeSys struct {
	t   *testing.T
	dir string
}

func (s fakeSys) write(path, text string) {
	s.t.Helper()
	path = filepath.Join(s.dir, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s fakeSys) device(number, dir string) {
	s.t.Helper()
	s.write(filepath.Join(dir, "dev"), number)
	link := filepath.Join(s.dir, "dev", "block", number)
	if err := os.MkdirAll(filepath.Dir(link), 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(s.dir, dir), link); err != nil {
		s.t.Fatal(err)
	}
}

func (s fakeSys) slave(of, name, dir string) {
	s.t.Helper()
	link := filepath.Join(s.dir, of, "slaves", name)
	if err := os.MkdirAll(filepath.Dir(link), 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(s.dir, dir), link); err != nil {
		s.t.Fatal(err)
	}
}

func TestClassFollowsTheDisksBelow(t *testing.T) {
	s := fakeSys{t, t.TempDir()}
	s.device("8:0", "devices/a/block/sda")
	s.write("devices/a/block/sda/queue/rotational", "1")
	s.device("8:1", "devices/a/block/sda/sda1")
	s.write("devices/a/block/sda/sda1/partition", "1")
	s.device("259:0", "devices/b/block/nvme0n1")
	s.write("devices/b/block/nvme0n1/queue/rotational", "0")
	s.device("1:0", "devices/virtual/block/ram0")
	s.device("253:0", "devices/virtual/block/dm-0") // on both disks
	s.write("devices/virtual/block/dm-0/queue/rotational", "0")
	s.slave("devices/virtual/block/dm-0", "nvme0n1", "devices/b/block/nvme0n1")
	s.slave("devices/virtual/block/dm-0", "sda1", "devices/a/block/sda/sda1")
	s.device("253:1", "devices/virtual/block/dm-1") // on the fast one
	s.write("devices/virtual/block/dm-1/queue/rotational", "1")
	s.slave("devices/virtual/block/dm-1", "nvme0n1", "devices/b/block/nvme0n1")
	s.device("253:2", "devices/virtual/block/dm-2") // on itself
	s.slave("devices/virtual/block/dm-2", "dm-2", "devices/virtual/block/dm-2")
	s.device("7:0", "devices/virtual/block/loop0")
	s.write("devices/virtual/block/loop0/loop/backing_file", filepath.Join(s.dir, "gone (deleted)"))
	c := classifier{sys: s.dir}
	for number, want := range map[[2]uint32]string{
		{8, 0}: "hdd: the kernel says that sda rotates", {8, 1}: "hdd: the kernel says that sda rotates",
		{259, 0}: "ssd: the kernel says that nvme0n1 does not rotate", {1, 0}: "ram: ram0 is memory",
		{253, 0}: "hdd: the kernel says that sda rotates", {253, 1}: "ssd: the kernel says that nvme0n1 does not rotate",
		{253, 2}: "too many devices", {7, 0}: "no such file", {9, 9}: "no such file",
	} {
		class, why, err := c.device(unix.Mkdev(number[0], number[1]), maxDepth)
		got := fmt.Sprintf("%s: %s", class, why)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) {
			t.Errorf("%v: %s, want %s", number, got, want)
		}
	}
}

func TestClassOfWhatCannotBeToldIsSSDWithTheReason(t *testing.T) {
	if class, why := ClassOf(filepath.Join(t.TempDir(), "none")); class != ClassSSD || !strings.Contains(why, "no such file") {
		t.Errorf("%s: %s", class, why)
	}
	if class, why := ClassOf("/dev/shm"); class != ClassRAM || !strings.Contains(why, "in memory") {
		t.Errorf("%s: %s", class, why)
	}
	mounts := filepath.Join(t.TempDir(), "mountinfo")
	text := `22 1 0:20 / / rw - overlay overlay rw
23 22 0:21 / /srv rw shared:1 - btrfs /dev/sdb1 rw
24 23 0:22 / /srv/a\040b rw - btrfs /dev/sdc rw
25 22 0:23 / /srvx rw - nfs server:/x rw
`
	if err := os.WriteFile(mounts, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	// Paths that exist anywhere are needed, for links in them are followed.
	for path, want := range map[string]string{"/": "", "/proc": "", "/usr": ""} {
		if got, err := (classifier{mounts: mounts}).mountSource(path); got != want || err == nil {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	if got := longestMount(strings.NewReader(text), "/srv/a b/c"); got != "/dev/sdc" {
		t.Error(got)
	}
	if got := longestMount(strings.NewReader(text), "/srv/q"); got != "/dev/sdb1" {
		t.Error(got)
	}
	if got := longestMount(strings.NewReader(text), "/srvx/q"); got != "server:/x" {
		t.Error(got)
	}
}
