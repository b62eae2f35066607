package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sanctuary/blockstore"
	"sanctuary/blockstore/vfs/loopdev"
)

// medium is what a pool lies on, and another of the same kind and size for fio to write to.
type medium struct {
	name   string
	config blockstore.PoolConfig
	pool   string // the file or device with the pool: fio reads from it what the blockstore has written
	rival  string

	folder  string
	holders []*os.File
}

const (
	fileMedium = "file"
	loopMedium = "loop device"
)

// mediumNames are the media of the second table. A loop device stands for a disk: it is read and written past the page cache of
// its file, so that it has one page cache, its own.
func mediumNames() []string {
	if os.Getuid() != 0 {
		return []string{fileMedium} // only root has loop devices
	}
	return []string{fileMedium, loopMedium}
}

// newMedium makes files below the folder for LUNs in files, and devices of them if that is what is asked for.
func newMedium(o options, name string) (m *medium, err error) {
	if err := os.MkdirAll(o.cache, 0o755); err != nil {
		return nil, err
	}
	m = &medium{name: name}
	if m.folder, err = os.MkdirTemp(o.cache, "bench-"); err != nil {
		return nil, err
	}
	if m.folder, err = filepath.Abs(m.folder); err == nil {
		err = m.make(o.storeBytes)
	}
	if err != nil {
		return nil, errors.Join(err, m.close())
	}
	return m, nil
}

func (m *medium) make(bytes int64) error {
	capacity := 4 * bytes // chunks that snapshots keep and the live volume has anew
	m.config = blockstore.PoolConfig{Media: blockstore.MediaFile, Dir: filepath.Join(m.folder, "pool"), CapacityBytes: capacity, Preallocate: true}
	m.pool = filepath.Join(m.config.Dir, "data")
	m.rival = filepath.Join(m.folder, "rival")
	if err := sparse(m.rival, bytes); err != nil {
		return err
	}
	if m.name == fileMedium {
		return nil
	}
	disk := filepath.Join(m.folder, "disk")
	if err := sparse(disk, blockstore.MediumBytes(capacity)); err != nil {
		return err
	}
	var err error
	if m.pool, err = m.attach(disk); err != nil {
		return err
	}
	m.config = blockstore.PoolConfig{Media: blockstore.MediaDevice, Path: m.pool}
	m.rival, err = m.attach(m.rival)
	return err
}

// sparse makes a file of which nothing is stored.
func sparse(path string, bytes int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(bytes), f.Close())
}

func (m *medium) attach(path string) (device string, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	holder, err := loopdev.Attach(f, loopdev.Config{DirectIO: true})
	if err = errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("loop device over %s: %w", path, err)
	}
	m.holders = append(m.holders, holder)
	return holder.Name(), nil
}

// forget drops what the page cache has of the pool, once that is on the medium.
func (m *medium) forget() error {
	f, err := os.OpenFile(m.pool, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
}

func (m *medium) close() error {
	var err error
	for _, f := range m.holders {
		err = errors.Join(err, f.Close())
	}
	return errors.Join(err, os.RemoveAll(m.folder))
}
