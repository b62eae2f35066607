//go:build linux

// Package loopdev makes block devices of files, for tests and benchmarks of what uses block devices.
//
// Invariant: a device ends with the test, or with who has it open, at the latest with the process if that is killed: the kernel takes it down when nobody has it open
// any more. It needs root and the kernel's loop driver; tests that use it have the build tag loopdev, which the Makefile
// sets where both are there, and a test that is built and cannot have its device fails.
package loopdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Config says what device to make.
type Config struct {
	SizeBytes   int64 // of the device
	SectorBytes int   // logical sector: 512 (the default) to 4096
	ReadOnly    bool
	DirectIO    bool // past the page cache of the file, so that the device's own is the only one
}

// New makes a device over a sparse file in the test's own directory, and returns the paths of both.
func New(t testing.TB, c Config) (device, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "disk")
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }() // the device holds the file by itself
	if err := f.Truncate(c.SizeBytes); err != nil {
		t.Fatal(err)
	}
	holder, err := Attach(f, c)
	if err != nil {
		t.Fatalf("this test needs a loop device and cannot have one (root, and the loop driver, are needed): %v", err)
	}
	t.Cleanup(func() {
		if err := holder.Close(); err != nil {
			t.Error(err)
		}
	})
	return holder.Name(), file
}

// attempts bounds how often a number that another process took first is replaced.
const attempts = 20

// Attach makes a device over a file and returns it open; it ends when the last who has it open closes it. The device holds the file
// by itself. What SizeBytes says does not matter here: the device is as long as the file.
func Attach(f *os.File, c Config) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = control.Close() }() // nothing is written to it
	for range attempts {
		var n int
		if n, err = unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE); err != nil {
			return nil, err
		}
		var device *os.File
		if device, err = os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0); err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(f.Fd()), Size: uint32(c.SectorBytes)}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		if c.ReadOnly {
			config.Info.Flags |= unix.LO_FLAGS_READ_ONLY
		}
		if c.DirectIO {
			config.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
		}
		if err = unix.IoctlLoopConfigure(int(device.Fd()), &config); err == nil {
			return device, nil
		}
		err = errors.Join(err, device.Close())
		if !errors.Is(err, unix.EBUSY) {
			return nil, err
		}
	}
	return nil, err
}
