package vfs

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A read that waits for a disk in a system call holds one of the few threads Go runs goroutines on, until the runtime has noticed
// (20 µs and more). With two of them, 32 readers got a third of what the disk could do. So what the page cache has is copied from
// it, which never waits, and for the rest the kernel is asked through a ring, where only the goroutine waits. Where there is no
// such ring (io_uring is often forbidden in containers), or it is full, the read waits in the system call after all.

// reads is how a descriptor is read.
type reads struct {
	plain atomic.Bool // neither way: the file system cannot say what is in the page cache
	once  sync.Once   // makes rings, when a read first finds something not in the page cache
	rings *rings      // nil: there are none to be had
}

// rawBytes is how much is copied without telling Go's scheduler: some microseconds.
const rawBytes = 64 << 10

// readAt is called with the descriptor kept open.
func (d *descriptor) readAt(p []byte, off int64) error {
	if !d.reads.plain.Load() {
		n := d.readCached(p, off)
		if n == len(p) {
			return nil
		}
		p, off = p[n:], off+int64(n)
		if !d.reads.plain.Load() {
			d.reads.once.Do(func() { d.reads.rings, _ = newRings() }) // why there is none does not matter
		}
		if rs := d.reads.rings; rs != nil {
			n, err := rs.read(int(d.f.Fd()), p, off)
			if err != nil {
				return &os.PathError{Op: "read", Path: d.f.Name(), Err: err}
			}
			if p, off = p[n:], off+int64(n); len(p) == 0 {
				return nil
			}
		}
	}
	// Also what was read short, which may be the end of the file.
	_, err := d.f.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readCached copies what lies in the page cache, up to the first page that does not, and returns how much that was.
func (d *descriptor) readCached(p []byte, off int64) (n int) {
	if len(p) == 0 {
		return 0
	}
	iov := unix.Iovec{Base: &p[0]}
	iov.SetLen(len(p))
	call := unix.RawSyscall6
	if len(p) > rawBytes {
		call = unix.Syscall6
	}
	got, _, errno := call(unix.SYS_PREADV2, d.f.Fd(), uintptr(unsafe.Pointer(&iov)), 1, uintptr(off), 0, unix.RWF_NOWAIT)
	switch errno {
	case 0:
		return int(got)
	case unix.EOPNOTSUPP, unix.ENOSYS:
		d.reads.plain.Store(true)
	}
	return 0 // whatever it was, the next way will say so if it is still true
}

func (r *reads) close() error {
	if r.rings == nil {
		return nil
	}
	return r.rings.close()
}
