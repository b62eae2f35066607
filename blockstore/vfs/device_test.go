//go:build linux && loopdev

package vfs_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sanctuary/blockstore/vfs"
	"sanctuary/blockstore/vfs/loopdev"
)

func openDevice(t *testing.T, path string) *vfs.Device {
	t.Helper()
	d, err := vfs.OpenDevice(vfs.DeviceConfig{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func allocated(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

// What is written and synced is on the disk, what is discarded is not, and sizes are the disk's own.
func TestDeviceKeepsWhatIsSyncedAndGivesBackWhatIsDiscarded(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		device, file := loopdev.New(t, loopdev.Config{SizeBytes: 32 << 20, SectorBytes: sector})
		d := openDevice(t, device)
		if d.Size() != 32<<20 || d.SectorSize() != sector {
			t.Errorf("%d bytes, sectors of %d; want sectors of %d", d.Size(), d.SectorSize(), sector)
		}
		want := bytes.Repeat([]byte("ab"), 1<<20)
		if err := errors.Join(d.WriteAt(want, 4<<20), d.Sync()); err != nil {
			t.Fatal(err)
		}
		image, err := os.ReadFile(file) // the disk itself, not the device's page cache
		if err != nil || !bytes.Equal(image[4<<20:6<<20], want) {
			t.Fatalf("a sync did not reach the disk: %v", err)
		}
		if got := allocated(t, file); got < 2<<20 {
			t.Fatalf("allocated %d", got)
		}
		if err := errors.Join(d.Discard(4<<20+100, 2<<20-100), d.Discard(0, 100), d.Sync()); err != nil {
			t.Fatal(err)
		}
		if got := allocated(t, file); got > 1<<20 {
			t.Errorf("allocated %d after Discard", got)
		}
		got := make([]byte, 100)
		if err := d.ReadAt(got, 4<<20); err != nil || !bytes.Equal(got, want[:100]) {
			t.Errorf("what lies before the first whole sector was discarded with it: %q, %v", got, err)
		}
		for _, err := range []error{d.ReadAt(got, 32<<20-99), d.WriteAt(got, -1), d.Discard(32<<20, 1)} {
			if !errors.Is(err, vfs.ErrOutOfRange) {
				t.Errorf("beyond the end: %v", err)
			}
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDeviceInUseIsRefused(t *testing.T) {
	device, _ := loopdev.New(t, loopdev.Config{SizeBytes: 8 << 20})
	d := openDevice(t, device)
	if _, err := vfs.OpenDevice(vfs.DeviceConfig{Path: device}); !errors.Is(err, vfs.ErrLocked) || !strings.Contains(err.Error(), "lsblk") {
		t.Errorf("a second claim: %v", err)
	}
	if _, err := vfs.Probe(device); err != nil {
		t.Errorf("a device in use cannot be looked at: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	// Who only locks it, as udev does for a moment, is waited for.
	f, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	opened := make(chan error)
	go func() {
		d, err := vfs.OpenDevice(vfs.DeviceConfig{Path: device})
		if err == nil {
			err = d.Close()
		}
		opened <- err
	}()
	select {
	case err := <-opened:
		t.Errorf("opened though it was locked: %v", err)
	case <-waitedInLine(t, device):
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Errorf("the lock is free: %v", err)
	}
}

// waitedInLine is closed when the device is open once more than by its holder and the one with the lock: that one waits.
func waitedInLine(t *testing.T, device string) <-chan struct{} {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; n < 3; {
			n = 0
			links, _ := filepath.Glob("/proc/self/fd/*")
			for _, l := range links {
				if to, _ := os.Readlink(l); to == device {
					n++
				}
			}
		}
	}()
	return done
}

func TestDeviceThatCannotBeUsed(t *testing.T) {
	readOnly, _ := loopdev.New(t, loopdev.Config{SizeBytes: 8 << 20, ReadOnly: true})
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{file: vfs.ErrNotDevice, os.DevNull: vfs.ErrNotDevice, file + "x": os.ErrNotExist, readOnly: nil} {
		_, err := vfs.OpenDevice(vfs.DeviceConfig{Path: path})
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
}

func TestProbeOfADevice(t *testing.T) {
	device, _ := loopdev.New(t, loopdev.Config{SizeBytes: 8 << 20})
	if found, err := vfs.Probe(device); err != nil || len(found) != 0 {
		t.Errorf("an empty one: %v, %v", found, err)
	}
	d := openDevice(t, device)
	if err := errors.Join(d.WriteAt([]byte("EFI PART"), 8<<20-512), d.Sync(), d.Close()); err != nil {
		t.Fatal(err)
	}
	if found, err := vfs.Probe(device); err != nil || found.String() != "a partition table (GPT) (at byte 8388096)" {
		t.Errorf("%v, %v", found, err)
	}
}

// A loop device is as fast as what its file lies on.
func TestClassOfALoopDeviceIsThatOfItsFile(t *testing.T) {
	device, file := loopdev.New(t, loopdev.Config{SizeBytes: 8 << 20})
	want, why := vfs.ClassOf(file)
	if got, reason := vfs.ClassOf(device); got != want || reason != why {
		t.Errorf("%s (%s), want %s (%s)", got, reason, want, why)
	}
}
