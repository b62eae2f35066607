package vfs

import "errors"

// DeviceConfig says which block device to use as a medium.
type DeviceConfig struct {
	// Path of the device, best one that keeps its meaning when disks are plugged in another order: /dev/disk/by-id/….
	Path string
}

// Device is a raw block device (a disk, a partition, a logical volume) as a medium, written through the page cache like a
// File. While it is open the kernel lets nobody else claim it: it cannot be mounted, and no other Device can be made of it.
//
// Sync is fdatasync, and that is enough: a block device has no metadata of its own that could be missing, since its size
// never changes. The kernel writes the pages of the device that are dirty, waits for them, and then has the disk flush
// its volatile cache, if it says that it has one (blkdev_fsync; /sys/block/X/queue/write_cache). A page that could not be
// written is told once to every descriptor that was open then: ours is open from before the first write to the end, and an
// error is kept for ever. A disk that says it has flushed and has not is beyond what anybody can do about here.
type Device struct {
	descriptor
	sector   int
	discards bool
}

var _ Dev = (*Device)(nil)

// ErrNotDevice: the path is of something else than a block device.
var ErrNotDevice = errors.New("not a block device")

// maxSectorBytes is the largest logical sector a device may have: a block here is 4 KiB, and must be written in one piece.
const maxSectorBytes = 4096

// SectorSize implements Dev: the device's logical sector, 512 or 4096 bytes as a rule.
func (d *Device) SectorSize() int { return d.sector }

// Discard implements Dev: whole sectors within the range are unmapped where the device can do that; else it does nothing.
func (d *Device) Discard(off, n int64) error {
	if err := CheckRange(off, n, d.size); err != nil {
		return err
	}
	sector := int64(d.sector)
	start, end := (off+sector-1)/sector*sector, (off+n)/sector*sector
	if !d.discards || start >= end {
		return nil
	}
	return discard(d.f, start, end-start)
}
