package vfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// OpenDevice claims the device. Errors: ErrLocked if it is mounted or in use, ErrNotDevice, and whatever the system says.
// It looks at nothing that lies on the device: see Probe.
func OpenDevice(cfg DeviceConfig) (*Device, error) {
	d, err := openDevice(cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("open medium %s: %w", cfg.Path, err)
	}
	return d, nil
}

func openDevice(path string) (*Device, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !isBlockDevice(info) {
		return nil, ErrNotDevice // opening a tape or a pipe would do things
	}
	// O_EXCL without O_CREAT is, for a block device, the kernel's own claim: the one that mount, swapon, LVM and md take.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("%w: the kernel says that it is mounted, swapped to, part of a RAID or a volume group, or open exclusively. See lsblk, and take it out of use first", ErrLocked)
	}
	if err != nil {
		return nil, err
	}
	d, err := prepareDevice(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return d, nil
}

func prepareDevice(f *os.File) (*Device, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !isBlockDevice(info) {
		return nil, ErrNotDevice
	}
	if err := lockDevice(f); err != nil {
		return nil, err
	}
	if readOnly, err := unix.IoctlGetUint32(int(f.Fd()), unix.BLKROGET); err == nil && readOnly != 0 {
		return nil, errors.New("the device is read-only: blockdev --setrw, or take another one")
	}
	sector, err := unix.IoctlGetUint32(int(f.Fd()), unix.BLKSSZGET)
	if err != nil {
		return nil, fmt.Errorf("logical sector size: %w", err)
	}
	if sector < SectorSize || sector > maxSectorBytes || sector&(sector-1) != 0 {
		return nil, fmt.Errorf("its logical sectors have %d bytes, 512 to %d can be used: format the disk with such a size, or take another one", sector, maxSectorBytes)
	}
	size, err := deviceSize(f)
	if err != nil {
		return nil, fmt.Errorf("size: %w", err)
	}
	if size <= 0 {
		return nil, errors.New("it has no bytes: is a medium in the drive?")
	}
	d := &Device{descriptor: descriptor{f: f, size: size}, sector: int(sector)}
	d.discards = canDiscard(sysfs, uint64(info.Sys().(*syscall.Stat_t).Rdev))
	return d, nil
}

// lockPatience is how long a lock that others hold is asked for again: see lockDevice.
const lockPatience = 5 * time.Second

// lockDevice takes the lock by which udev and partitioning tools know that they must keep away. The claim is ours already, so
// whoever holds the lock does not use the device: it is udev, which takes it for a moment to look at a device that is new or has
// been written to. That moment is waited for.
func lockDevice(f *os.File) error {
	for giveUp := time.Now().Add(lockPatience); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case !errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("lock: %w", err)
		case time.Now().After(giveUp):
			return fmt.Errorf("%w: another program has locked it (flock), such as a partitioning tool: see lsof", ErrLocked)
		}
	}
}

func deviceSize(f *os.File) (int64, error) {
	var size uint64
	if err := ioctl(f, unix.BLKGETSIZE64, unsafe.Pointer(&size)); err != nil {
		return 0, err
	}
	return int64(size), nil
}

func discard(f *os.File, off, n int64) error {
	span := [2]uint64{uint64(off), uint64(n)}
	return ignoreUnsupported(retryInterrupted(func() error { return ioctl(f, unix.BLKDISCARD, unsafe.Pointer(&span)) }))
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// canDiscard asks the kernel; when it does not tell, discarding is tried.
func canDiscard(sys string, device uint64) bool {
	dir, err := wholeDisk(sys, device)
	if err != nil {
		return true
	}
	text, err := os.ReadFile(filepath.Join(dir, "queue", "discard_max_bytes"))
	if err != nil {
		return true
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	return err != nil || n > 0
}

// sysfs is where the kernel tells about devices.
const sysfs = "/sys"

// wholeDisk returns the directory of a device below sys, of the whole disk if it is a partition.
func wholeDisk(sys string, device uint64) (string, error) {
	dir, err := filepath.EvalSymlinks(filepath.Join(sys, "dev", "block", fmt.Sprintf("%d:%d", unix.Major(device), unix.Minor(device))))
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir)
	}
	return dir, nil
}
