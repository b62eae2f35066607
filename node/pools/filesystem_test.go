//go:build linux && loopdev

package pools

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
	"sanctuary/node/catalog"
)

// fileSystem mounts a file system of its own for the test.
func fileSystem(t *testing.T, kind, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("sanctuary-test", dir, kind, 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fillUp takes all that a file system has left.
func fillUp(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "others"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, mib))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// A pool that was added is never short of the space it says it has, whatever else fills its file system: nor after all of it was written,
// freed and written again. A sparse one is, and says so with block.ErrNoSpace.
func TestAddedPoolHasWhatItSays(t *testing.T) {
	for _, sparse := range []bool{false, true} {
		dir, data := fileSystem(t, "tmpfs", "size=80m"), t.TempDir()
		s := open(t, data, "a")
		spec := Spec{Media: blockstore.MediaFile, Path: filepath.Join(dir, "p"), CapacityBytes: 64 * mib, Class: catalog.ClassSSD, Sparse: sparse}
		if p := add(t, s, spec); p.Sparse() != sparse {
			t.Errorf("sparse: %v, want %v", p.Sparse(), sparse)
		}
		fillUp(t, dir)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, data, "a")
		p, _ := s.Get("ssd1")
		store, err := p.Store()
		if err != nil || p.Sparse() != sparse {
			t.Fatal(err)
		}
		v, err := store.Create("v", block.Geometry{Capacity: block.CountOf(64 * mib), LogicalBlockBytes: 512})
		if sparse && errors.Is(err, block.ErrNoSpace) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		index, chunk := uint64(0), bytes.Repeat([]byte("0123456789abcdef"), block.ChunkSize/16)
		apply := func(op block.Op) error {
			index++
			return v.Apply(index, []block.Op{op})
		}
		for range 2 {
			for off := int64(0); off < 64*mib && err == nil; off += block.ChunkSize {
				err = apply(block.Op{Kind: block.OpWrite, Range: block.BytesRange(off, block.ChunkSize), Data: chunk, Sums: block.AppendSums(nil, chunk)})
			}
			if err != nil {
				break
			}
			err = apply(block.Op{Kind: block.OpZero, Range: block.BytesRange(0, 64*mib)})
			if _, failed := v.Checkpoint(t.Context()); failed != nil { // it gives back what was freed
				t.Fatal(failed)
			}
			fillUp(t, dir)
		}
		if sparse != (err != nil) || err != nil && !errors.Is(err, block.ErrNoSpace) || store.Failed() != nil {
			t.Errorf("sparse: %v: %v, and the pool: %v", sparse, err, store.Failed())
		}
	}
}

// Where the whole pool has no place, or cannot be reserved, it is refused with the way out, and nothing is left of it or taken meanwhile.
func TestPoolThatCannotBeReservedIsRefused(t *testing.T) {
	for _, test := range []struct{ kind, options, want string }{
		{"tmpfs", "size=60m", "no room"},
		{"ramfs", "", "cannot reserve"},
	} {
		dir := fileSystem(t, test.kind, test.options)
		s := open(t, t.TempDir(), "a")
		spec := Spec{Media: blockstore.MediaFile, Path: filepath.Join(dir, "p"), CapacityBytes: 64 * mib, Class: catalog.ClassSSD}
		_, err := s.Add(spec)
		var refusal *Refusal
		if !errors.As(err, &refusal) || !refusal.Conflict || !strings.Contains(refusal.What, test.want) || !strings.Contains(refusal.Next, "--sparse") {
			t.Errorf("%s: %v", test.kind, err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: left behind: %v, %v", test.kind, left, err)
		}
		spec.Sparse = true
		p := add(t, s, spec)
		// Nor does one that is taken back as it is become anything else by being refused.
		if err := s.Remove(p.Name, Removal{InUse: unused}); err != nil {
			t.Fatal(err)
		}
		spec.Sparse = false
		if _, err := s.Add(spec); !errors.As(err, &refusal) || !strings.Contains(refusal.Next, "--sparse") {
			t.Errorf("%s, taken back: %v", test.kind, err)
		}
		if has, err := blockstore.HasPool(spec.Path); !has || err != nil {
			t.Errorf("%s: the pool that was there is gone: %v", test.kind, err)
		}
		spec.Sparse = true
		add(t, s, spec)
		if err := s.Close(); err != nil { // before its file system goes
			t.Fatal(err)
		}
	}
}

// A pool that was added by an older program on a file system that cannot reserve is opened as it was made.
func TestPoolOnAFileSystemThatCannotReserveStillOpens(t *testing.T) {
	path := filepath.Join(fileSystem(t, "ramfs", ""), "data")
	d, err := vfs.OpenFile(vfs.FileConfig{Path: path, SizeBytes: mib, Preallocate: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}
