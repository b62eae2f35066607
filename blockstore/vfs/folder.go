package vfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Folder is where media with names are kept: the segments of a journal. All methods may be called concurrently, for different
// names. What a method has done is on stable storage when it returns nil; a power cut while it runs leaves it done or not done.
type Folder interface {
	// List returns the names of all media in it, in no particular order.
	List() ([]string, error)
	// Create makes a medium of that size, written with zeros from end to end, so that no later write needs room or changes what the
	// file system knows of it. It returns ErrNoSpace, and leaves nothing, if there is no room. A medium of that name is replaced.
	Create(name string, sizeBytes int64) (Dev, error)
	// Open opens an existing medium, with the size it has; ErrLocked if it is open elsewhere.
	Open(name string) (Dev, error)
	// Rename gives a medium another name, open or not. One that has that name already is gone.
	Rename(from, to string) error
	// Remove deletes a medium, which must not be open.
	Remove(name string) error
}

// Dir is a directory of the operating system as a Folder. Media are files in it.
type Dir struct{ path string }

var _ Folder = (*Dir)(nil)

// OpenDir opens the directory, and makes it if it is missing.
func OpenDir(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	if err := SyncDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	return &Dir{path: path}, nil
}

// Path returns where the directory is.
func (d *Dir) Path() string { return d.path }

// List implements Folder.
func (d *Dir) List() (names []string, err error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// unfinished is the end of the name of what is being made.
const unfinished = ".new"

// Create implements Folder.
func (d *Dir) Create(name string, sizeBytes int64) (Dev, error) {
	path := filepath.Join(d.path, name)
	f, err := d.zeroed(path+unfinished, sizeBytes)
	if err == nil {
		err = d.Rename(name+unfinished, name)
	}
	if err != nil {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
		if gone := os.Remove(path + unfinished); gone != nil && !errors.Is(gone, os.ErrNotExist) {
			err = errors.Join(err, gone)
		}
		return nil, fmt.Errorf("make %s: %w", path, err)
	}
	return f, nil
}

func (d *Dir) zeroed(path string, sizeBytes int64) (*File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) { // of an attempt that was cut off
		return nil, err
	}
	f, err := OpenFile(FileConfig{Path: path, SizeBytes: sizeBytes, Preallocate: true})
	if err != nil {
		return nil, err
	}
	zeros := make([]byte, min(sizeBytes, zeroedBytes))
	for off := int64(0); off < sizeBytes; off += int64(len(zeros)) {
		if err := f.WriteAt(zeros[:min(int64(len(zeros)), sizeBytes-off)], off); err != nil {
			return f, err
		}
		if err := f.Sync(); err != nil {
			return f, err
		}
	}
	return f, nil
}

// zeroedBytes is how much of a new file is written before it is made durable: whoever else waits for the disk meanwhile, for an fdatasync of a
// few KiB, waits behind so much and not behind all of it.
const zeroedBytes = 1 << 20

// Open implements Folder.
func (d *Dir) Open(name string) (Dev, error) {
	path := filepath.Join(d.path, name)
	if _, err := os.Stat(path); err != nil { // OpenFile would make it
		return nil, err
	}
	return OpenFile(FileConfig{Path: path})
}

// Rename implements Folder.
func (d *Dir) Rename(from, to string) error {
	if err := os.Rename(filepath.Join(d.path, from), filepath.Join(d.path, to)); err != nil {
		return err
	}
	return SyncDir(d.path)
}

// Remove implements Folder.
func (d *Dir) Remove(name string) error {
	if err := os.Remove(filepath.Join(d.path, name)); err != nil {
		return err
	}
	return SyncDir(d.path)
}
