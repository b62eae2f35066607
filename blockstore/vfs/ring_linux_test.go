package vfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

const patternBytes = 8 << 20

// patterned makes a file in which every 8 bytes say where they lie.
func patterned(t *testing.T) *File {
	t.Helper()
	d, err := OpenFile(FileConfig{Path: filepath.Join(t.TempDir(), "data"), SizeBytes: patternBytes})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.WriteAt(pattern(0, patternBytes), 0), d.Sync()); err != nil {
		t.Fatal(err)
	}
	return d
}

func pattern(off, n int64) []byte {
	b := make([]byte, 0, n+8)
	for at := off / 8 * 8; at < off+n; at += 8 {
		b = binary.LittleEndian.AppendUint64(b, uint64(at)*0x9e3779b97f4a7c15+1)
	}
	return b[off%8:][:n]
}

// cold drops the file from the page cache, as far as the file system has one.
func cold(t *testing.T, d *File) {
	t.Helper()
	if err := unix.Fadvise(int(d.f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
}

// readers runs n readers at once, each of which reads pieces of other lengths, in another order.
func readers(t *testing.T, n int, read func(p []byte, off int64) error) {
	t.Helper()
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			for k := range 6 {
				size := int64(1+(i+k)%5) * 4096
				if k == 5 {
					size = rawBytes + 999 // some of it cached, some not
				}
				off := int64((i*7919+k*104729)*512) % (patternBytes - size)
				got := make([]byte, size)
				if err := read(got, off); err != nil || !bytes.Equal(got, pattern(off, size)) {
					t.Errorf("%d bytes at %d: %v, or they are others", size, off, err)
					return
				}
			}
		})
	}
	all.Wait()
}

func TestReadsAreTheSameWhicheverWayTheyGo(t *testing.T) {
	d := patterned(t)
	readers(t, 20, d.ReadAt) // from the page cache
	cold(t, d)
	readers(t, 2*ringDepth, d.ReadAt)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}

	d = patterned(t) // no ring to be had
	d.reads.once.Do(func() {})
	cold(t, d)
	readers(t, 20, d.ReadAt)
	d.reads.plain.Store(true) // and nobody knows what is cached
	cold(t, d)
	readers(t, 20, d.ReadAt)
	if err := d.f.Truncate(patternBytes / 2); err != nil {
		t.Fatal(err)
	}
	for _, plain := range []bool{true, false} {
		d.reads.plain.Store(plain)
		if err := d.ReadAt(make([]byte, 8192), patternBytes/2-4096); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("read over the end of a file that was cut off: %v", err)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestRingReads(t *testing.T) {
	r, err := newRing()
	if err != nil {
		if !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM) && !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("no ring, and not because this machine forbids it: %v", err)
		}
		return // what happens then is tested above
	}
	d := patterned(t)
	fd := int(d.f.Fd())
	cold(t, d)
	var done, refused atomic.Int64
	readers(t, 4*ringDepth, func(p []byte, off int64) error {
		for len(p) > 0 {
			n, err := r.read(fd, p, off)
			if err != nil {
				return err
			}
			if n == 0 { // it is full
				refused.Add(1)
				_, err := d.f.ReadAt(p, off)
				return err
			}
			done.Add(1)
			p, off = p[n:], off+int64(n)
		}
		return nil
	})
	if done.Load() < ringDepth {
		t.Errorf("the ring has done %d reads, and refused %d", done.Load(), refused.Load())
	}
	if n, err := r.read(fd, make([]byte, 10), patternBytes); n != 0 || err != nil {
		t.Errorf("read at the end: %d bytes, %v", n, err)
	}
	if _, err := r.read(-1, make([]byte, 10), 0); !errors.Is(err, unix.EBADF) {
		t.Errorf("read of no file: %v", err)
	}
	if len(r.free) != ringDepth {
		t.Errorf("%d calls are free, want all %d", len(r.free), ringDepth)
	}
	if err := errors.Join(r.close(), d.Close()); err != nil {
		t.Error(err)
	}
}

// TestCloseWaitsForReads closes a file under its readers: they get what is there, or are told that it is closed. The number of a
// file that was closed would soon be another's.
func TestCloseWaitsForReads(t *testing.T) {
	for range 5 {
		d := patterned(t)
		cold(t, d)
		var begun, all sync.WaitGroup
		for i := range 16 {
			begun.Add(1)
			all.Go(func() {
				for k := 0; ; k++ {
					if k == 3 {
						begun.Done()
					}
					got, off := make([]byte, 4096), int64(i*128+k*37%128)*4096
					err := d.ReadAt(got, off)
					if errors.Is(err, ErrClosed) {
						return
					}
					if err != nil || !bytes.Equal(got, pattern(off, 4096)) {
						t.Errorf("read beside Close: %v, or other bytes", err)
						return
					}
				}
			})
		}
		begun.Wait()
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		all.Wait()
	}
}
