package vfs

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func allocatedBytes(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

func TestFileIsThinUntilAllocatedAndAgainAfterDiscard(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	d, err := OpenFile(FileConfig{Path: path, SizeBytes: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if d.Size() != 64<<20 || allocatedBytes(t, path) > 1<<20 {
		t.Errorf("size %d, allocated %d", d.Size(), allocatedBytes(t, path))
	}
	if err := errors.Join(d.Allocate(0, 8<<20), d.WriteAt([]byte("x"), 8<<20-1), d.Sync()); err != nil {
		t.Fatal(err)
	}
	if got := allocatedBytes(t, path); got < 8<<20 {
		t.Errorf("allocated %d after Allocate", got)
	}
	if err := errors.Join(d.Discard(0, 8<<20), d.Sync()); err != nil {
		t.Fatal(err)
	}
	if got := allocatedBytes(t, path); got > 1<<20 {
		t.Errorf("allocated %d after Discard", got)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d, err = OpenFile(FileConfig{Path: path, Preallocate: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Discard(0, 8<<20); err != nil || allocatedBytes(t, path) < 64<<20 {
		t.Errorf("preallocated: %v, allocated %d", err, allocatedBytes(t, path))
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// What does not fit is refused before anything is taken of the file system, which others use, too.
func TestPreallocationThatDoesNotFitTakesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	if _, err := OpenFile(FileConfig{Path: path, SizeBytes: 1 << 50, Preallocate: true, Insist: true}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("a petabyte: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() != 0 || allocatedBytes(t, path) != 0 {
		t.Errorf("%v, %v", info, err)
	}
	d, err := OpenFile(FileConfig{Path: path, SizeBytes: 1 << 20, Preallocate: true, Insist: true})
	if err != nil || allocatedBytes(t, path) < 1<<20 {
		t.Fatalf("a mebibyte: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestFileIsExclusive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	d, err := OpenFile(FileConfig{Path: path, SizeBytes: 4096})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenFile(FileConfig{Path: path}); !errors.Is(err, ErrLocked) {
		t.Errorf("second open: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d, err = OpenFile(FileConfig{Path: path})
	if err != nil {
		t.Fatalf("after closing: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenFile(FileConfig{Path: os.DevNull}); err == nil {
		t.Error("a device node was taken for a file")
	}
}

func TestRangesAreChecked(t *testing.T) {
	file, err := OpenFile(FileConfig{Path: filepath.Join(t.TempDir(), "data"), SizeBytes: 8192})
	if err != nil {
		t.Fatal(err)
	}
	arena, err := NewArena(8192)
	if err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]Dev{"file": file, "arena": arena} {
		want := bytes.Repeat([]byte("ab"), 500)
		got := make([]byte, len(want))
		if err := errors.Join(d.WriteAt(want, 8192-1000), d.Sync(), d.ReadAt(got, 8192-1000)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v", name, err)
		}
		for _, off := range []int64{-1, 8192 - 999, 8193, 1<<63 - 1} {
			for what, err := range map[string]error{
				"read": d.ReadAt(got, off), "write": d.WriteAt(got, off), "discard": d.Discard(off, 1000),
			} {
				if !errors.Is(err, ErrOutOfRange) {
					t.Errorf("%s: %s at %d: %v", name, what, off, err)
				}
			}
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if err := d.ReadAt(got, 0); err == nil {
			t.Errorf("%s: read after Close: no error", name)
		}
	}
	if _, err := NewArena(0); err == nil {
		t.Error("arena of no bytes: no error")
	}
}

func TestSyncErrorIsFinal(t *testing.T) {
	d, err := OpenFile(FileConfig{Path: filepath.Join(t.TempDir(), "data"), SizeBytes: 4096})
	if err != nil {
		t.Fatal(err)
	}
	good := d.f
	r, w, err := os.Pipe() // fdatasync of a pipe is EINVAL
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(r.Close(), w.Close()) }()
	d.f = w
	first := d.Sync()
	if first == nil {
		t.Fatal("sync of what cannot be synced: no error")
	}
	d.f = good // a retry would succeed
	if err := d.Sync(); !errors.Is(err, first) {
		t.Errorf("second sync: %v, want the first error", err)
	}
	if err := d.WriteAt([]byte("x"), 0); !errors.Is(err, first) {
		t.Errorf("write after it: %v, want the first error", err)
	}
	if err := good.Close(); err != nil {
		t.Error(err)
	}
}
