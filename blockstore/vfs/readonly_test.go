package vfs

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

func TestReadOnlyKeepsNobodyOut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(path, []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := OpenReadOnly(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	f, err := OpenFile(FileConfig{Path: path, SizeBytes: 20})
	if err != nil {
		t.Fatalf("opened to be looked at, it cannot be opened: %v", err)
	}
	if pid, held := Holder(path); runtime.GOOS == "linux" && (!held || pid != os.Getpid()) {
		t.Errorf("held by %d, %t", pid, held)
	}
	b := make([]byte, 4)
	if err := d.ReadAt(b, 6); err != nil || string(b) != "6789" || d.Size() != 20 {
		t.Errorf("%q of %d bytes, %v", b, d.Size(), err)
	}
	if err := d.ReadAt(b, 18); !errors.Is(err, ErrOutOfRange) {
		t.Errorf("beyond the end: %v", err)
	}
	if !errors.Is(d.WriteAt(b, 0), ErrReadOnly) || !errors.Is(d.Sync(), ErrReadOnly) || !errors.Is(d.Discard(0, 1), ErrReadOnly) {
		t.Error("it can be written to")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if pid, held := Holder(path); held {
		t.Errorf("held by %d after it was closed", pid)
	}
	if _, err := OpenReadOnly("/dev/null"); !errors.Is(err, ErrNotDevice) {
		t.Errorf("/dev/null: %v", err)
	}
	if _, err := OpenReadOnly(path + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
}

func TestCopyToMemoryTakesSmallFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("what it holds"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := CopyToMemory(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b, err := io.ReadAll(f); err != nil || string(b) != "what it holds" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := CopyToMemory(t.TempDir()); err == nil {
		t.Error("copied a directory")
	}
	if err := os.Truncate(path, maxCopyBytes+1); err != nil {
		t.Fatal(err)
	}
	if _, err := CopyToMemory(path); err == nil {
		t.Error("copied more than is allowed")
	}
}
