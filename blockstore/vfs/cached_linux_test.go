package vfs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// What is forgotten is read from the medium, and what is still to be written there is not forgotten.
func TestForgottenPagesAreReadFromTheMedium(t *testing.T) {
	dir, err := os.MkdirTemp("/var/tmp", "cached-*") // a file system with a medium under it, as a rule
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	const size = 32 << 20
	d, err := OpenFile(FileConfig{Path: filepath.Join(dir, "medium"), SizeBytes: size, Preallocate: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	if err := errors.Join(d.WriteAt(pattern(0, size), 0), d.Sync()); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4096)
	cached := func(off int64) bool { return d.readCached(p, off) == len(p) }
	if !cached(0) || !cached(size/2) {
		t.Skip("this file system does not say what is cached")
	}
	if err := Forget(d, 1<<20, 1<<20); err != nil {
		t.Fatal(err)
	}
	if cached(1 << 20) {
		t.Skip("this file system lies in memory")
	}
	if !cached(size / 2) {
		t.Error("more was forgotten than was asked for")
	}
	if err := errors.Join(d.WriteAt(pattern(8, 4096), 0), Forget(d, 0, size), d.ReadAt(p, 0)); err != nil {
		t.Fatal(err)
	}
	if string(p) != string(pattern(8, 4096)) {
		t.Error("what had not been written yet is lost")
	}
	if err := Forget(d, size-1, 2); !errors.Is(err, ErrOutOfRange) {
		t.Errorf("beyond the end: %v", err)
	}
}
