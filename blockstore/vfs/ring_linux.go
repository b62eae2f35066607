package vfs

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ring asks the kernel to read without waiting for it: io_uring, as in io_uring(7). It only reads.
//
// Invariant: the kernel writes into a buffer only while the goroutine that has brought it waits in read, and that waits until the
// kernel has said that it is done. So a buffer is never given up while something may still be written there.
type ring struct {
	fd     int
	events *os.File // an eventfd: the kernel counts there what it has done
	reaped chan struct{}
	free   chan *call // calls nobody uses; a read that finds none does without the ring

	rings, entries []byte // shared with the kernel

	mu     sync.Mutex // guards what follows; held while the kernel takes in an entry, never while it reads
	calls  [ringDepth]call
	sqes   []sqe
	cqes   []cqe
	sqTail *uint32
	cqHead *uint32
	cqTail *uint32
}

// ringDepth is how many reads of one ring may wait in the kernel at once. Those beyond it wait in threads.
const ringDepth = 256

// call is one read under way.
type call struct {
	number uint64
	buf    []byte     // kept from the garbage collector
	done   chan int32 // bytes, or an error's number below zero; has room for one
}

// The layouts are the kernel's: linux/io_uring.h.
type (
	sqe struct { // submission queue entry
		opcode, flags uint8
		ioprio        uint16
		fd            int32
		off, addr     uint64
		length, rw    uint32
		userData      uint64
		_             [3]uint64
	}
	cqe struct { // completion queue entry
		userData uint64
		res      int32
		flags    uint32
	}
	ringParams struct {
		sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
		_                                                                      [3]uint32
		sq                                                                     struct{ head, tail, ringMask, ringEntries, flags, dropped, array, _, _, _ uint32 }
		cq                                                                     struct{ head, tail, ringMask, ringEntries, overflow, cqes, flags, _, _, _ uint32 }
	}
)

const (
	ringOpRead          = 22         // IORING_OP_READ, Linux 5.6
	ringRegisterEventfd = 4          // IORING_REGISTER_EVENTFD
	ringOffEntries      = 0x10000000 // IORING_OFF_SQES
	// IORING_FEAT_SINGLE_MMAP, and IORING_FEAT_RW_CUR_POS, which came with IORING_OP_READ.
	ringFeatures = 1<<0 | 1<<3
)

// rings share the reads of one medium in turn. With one ring for all, threads that submit at the same time wait for each other, for the kernel takes
// microseconds to take in a read of a file system.
type rings struct {
	each [ringsPerMedium]*ring
	next atomic.Uint32
}

const ringsPerMedium = 4 // more made no difference

// newRings returns an error under the conditions of newRing.
func newRings() (*rings, error) {
	rs := &rings{}
	for i := range rs.each {
		r, err := newRing()
		if err != nil {
			return nil, errors.Join(err, rs.close())
		}
		rs.each[i] = r
	}
	return rs, nil
}

// read reads as ring.read does.
func (rs *rings) read(fd int, p []byte, off int64) (n int, err error) {
	return rs.each[rs.next.Add(1)%ringsPerMedium].read(fd, p, off)
}

func (rs *rings) close() (err error) {
	for _, r := range rs.each {
		if r != nil {
			err = errors.Join(err, r.close())
		}
	}
	return err
}

// newRing returns an error where the kernel has no io_uring, is too old, or does not let us have it.
func newRing() (r *ring, err error) {
	var p ringParams
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, ringDepth, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("io_uring: %w", errno)
	}
	r = &ring{fd: int(fd), reaped: make(chan struct{}), free: make(chan *call, ringDepth)}
	if err := r.share(&p); err != nil {
		return nil, errors.Join(fmt.Errorf("io_uring: %w", err), r.release())
	}
	for i := range r.calls {
		c := &r.calls[i]
		c.number, c.done = uint64(i), make(chan int32, 1)
		r.free <- c
	}
	go r.reap()
	return r, nil
}

// share maps what is shared with the kernel.
func (r *ring) share(p *ringParams) (err error) {
	if p.features&ringFeatures != ringFeatures || p.sqEntries < ringDepth || p.cqEntries < ringDepth {
		return errors.ErrUnsupported
	}
	size := max(p.sq.array+p.sqEntries*4, p.cq.cqes+p.cqEntries*uint32(unsafe.Sizeof(cqe{})))
	if r.rings, err = unix.Mmap(r.fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		return err
	}
	if r.entries, err = unix.Mmap(r.fd, ringOffEntries, int(p.sqEntries)*int(unsafe.Sizeof(sqe{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		return err
	}
	word := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.rings[off])) }
	r.sqTail, r.cqHead, r.cqTail = word(p.sq.tail), word(p.cq.head), word(p.cq.tail)
	r.sqes = unsafe.Slice((*sqe)(unsafe.Pointer(&r.entries[0])), p.sqEntries)
	r.cqes = unsafe.Slice((*cqe)(unsafe.Pointer(&r.rings[p.cq.cqes])), p.cqEntries)
	order := unsafe.Slice(word(p.sq.array), p.sqEntries)
	for i := range order {
		order[i] = uint32(i) // entries are used in their order
	}
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return err
	}
	r.events = os.NewFile(uintptr(event), "io_uring events")
	if err := r.events.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("wait for events: %w", err) // by epoll, of which a user can have used up all
	}
	number := int32(event)
	if _, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), ringRegisterEventfd, uintptr(unsafe.Pointer(&number)), 1, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// read reads from byte off of a file on, and returns how much the kernel has read, which may be less than asked for, or nothing
// where the ring is full.
func (r *ring) read(fd int, p []byte, off int64) (n int, err error) {
	var c *call
	select {
	case c = <-r.free:
	default:
		return 0, nil
	}
	c.buf = p
	submitted := r.submit(c, fd, off)
	if submitted {
		if res := <-c.done; res >= 0 {
			n = int(res)
		} else if errno := syscall.Errno(-res); errno != unix.EAGAIN && errno != unix.EINTR && errno != unix.EINVAL {
			err = errno
		}
	}
	c.buf = nil
	r.free <- c
	return n, err
}

// submit gives a call to the kernel, or returns false: then the kernel does not know of it.
func (r *ring) submit(c *call, fd int, off int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	tail := *r.sqTail // only we write it
	r.sqes[tail%uint32(len(r.sqes))] = sqe{
		opcode: ringOpRead, fd: int32(fd), off: uint64(off), addr: uint64(uintptr(unsafe.Pointer(&c.buf[0]))), length: uint32(len(c.buf)), userData: c.number,
	}
	atomic.StoreUint32(r.sqTail, tail+1)
	for {
		// Raw, for it takes two microseconds: telling Go's scheduler costs more than that.
		taken, _, errno := unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), 1, 0, 0, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if taken != 1 || errno != 0 {
			atomic.StoreUint32(r.sqTail, tail) // it takes entries only in this call
			return false
		}
		return true
	}
}

// deliver tells those whose reads are done. It is called with mu held. Who submits does not deliver, though it could: Go runs next whoever was told last, who would
// submit and deliver in turn, and those who had been told before waited for up to 10 ms.
func (r *ring) deliver() {
	head, tail := *r.cqHead, atomic.LoadUint32(r.cqTail)
	for ; head != tail; head++ {
		e := &r.cqes[head%uint32(len(r.cqes))]
		r.calls[e.userData].done <- e.res // there is room: it is the only answer to the only call
	}
	atomic.StoreUint32(r.cqHead, head)
}

// reap delivers until the ring is closed. It never reads the eventfd: each time the kernel adds to it
// wakes whoever waits for it.
func (r *ring) reap() {
	defer close(r.reaped)
	conn, err := r.events.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Read(func(uintptr) bool { // it ends when events is closed
		r.mu.Lock()
		r.deliver()
		r.mu.Unlock()
		return false
	})
}

// close is called when no read is under way.
func (r *ring) close() error {
	err := r.events.Close()
	<-r.reaped
	r.events = nil
	return errors.Join(err, r.release())
}

// release gives back what the kernel has given.
func (r *ring) release() error {
	var err error
	if r.events != nil {
		err = r.events.Close()
	}
	for _, shared := range [][]byte{r.entries, r.rings} {
		if shared != nil {
			err = errors.Join(err, unix.Munmap(shared))
		}
	}
	return errors.Join(err, unix.Close(r.fd))
}
