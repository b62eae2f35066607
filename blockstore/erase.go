package blockstore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/poolv1"
	"sanctuary/blockstore/vfs"
)

// ErrNoPool: there is no pool to erase.
var ErrNoPool = errors.New("there is no pool")

// HasPool says whether a directory holds a pool of files, or what is left of one.
func HasPool(dir string) (bool, error) {
	for _, name := range poolFiles {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return true, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	return false, nil
}

// poolFiles are what a pool of files consists of, and what one of version 1 had beside it.
var poolFiles = []string{poolv1.MetadataFile, dataFile}

// ErasePool destroys a pool that nobody has open, and nothing else: of a pool of files its files, of one on a device the header by which it is
// known. Errors: vfs.ErrLocked while it is open, ErrNoPool if there is none.
func ErasePool(cfg PoolConfig) error {
	var err error
	switch cfg.Media {
	case MediaFile:
		err = eraseFiles(cfg.Dir)
	case MediaDevice:
		err = eraseHeader(cfg.Path)
	case MediaRAM:
	}
	if err != nil {
		return fmt.Errorf("erase pool %s%s: %w", cfg.Dir, cfg.Path, err)
	}
	return nil
}

func eraseFiles(dir string) error {
	if has, err := HasPool(dir); err != nil || !has {
		return errors.Join(err, ErrNoPool)
	}
	// Whoever has the pool open has this lock.
	data := filepath.Join(dir, dataFile)
	if _, err := os.Stat(data); err == nil {
		lock, err := vfs.OpenFile(vfs.FileConfig{Path: data})
		if err != nil {
			return err
		}
		defer func() { _ = lock.Close() }() // the file is gone by then
	}
	for _, name := range poolFiles {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return vfs.SyncDir(dir)
}

func eraseHeader(path string) error {
	d, err := vfs.OpenDevice(vfs.DeviceConfig{Path: path})
	if err != nil {
		return err
	}
	return errors.Join(func() error {
		magic := make([]byte, len(mediumMagic))
		if err := d.ReadAt(magic, 0); err != nil {
			return err
		}
		if !bytes.Equal(magic, []byte(mediumMagic)) {
			return ErrNoPool
		}
		if err := d.WriteAt(make([]byte, min(block.ChunkSize, d.Size())), 0); err != nil {
			return err
		}
		return d.Sync()
	}(), d.Close())
}
