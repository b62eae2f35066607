package session

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// quietConn is a TCP connection whose short reads and writes are not announced to Go's scheduler.
//
// Go announces every system call, because it may block, and the first one after a moment in which the whole process was idle wakes
// the runtime's monitor thread. At queue depth 1 that is every command: a futex wake-up, and a thread that looks at things twice
// before it sleeps again, together a quarter of the processor time of a small command, some of it on the core the initiator needs.
// On a non-blocking socket these calls do not block; they only copy. So they are made without the announcement, as long as there is
// little to copy: for that long nothing else of the process runs on this thread's share of the processors. Waiting for the initiator
// is the scheduler's as ever, and so are deadlines and Close.
//
// Like the connection it is for one reader and one writer at a time.
type quietConn struct {
	*net.TCPConn
	raw syscall.RawConn

	in   quietCall
	read func(fd uintptr) bool // reads once; false if there is nothing yet

	out    quietCall
	vector [quietBuffers]unix.Iovec
	write  func(fd uintptr) bool // writes once, whatever comes of it
}

// quietCall is one system call: its arguments and what came of it.
type quietCall struct {
	base   unsafe.Pointer
	length int
	n      int
	errno  syscall.Errno
}

const (
	quietBytes   = 64 << 10 // most bytes that are copied without an announcement: some 10 microseconds
	quietBuffers = 16
)

// quieten returns conn, made quiet if it is of a kind that can be.
func quieten(conn net.Conn) net.Conn {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return conn
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return conn
	}
	q := &quietConn{TCPConn: tcp, raw: raw}
	q.read, q.write = q.readOnce, q.writeOnce
	return q
}

// Read implements net.Conn.
func (q *quietConn) Read(p []byte) (int, error) {
	if len(p) == 0 || len(p) > quietBytes {
		return q.TCPConn.Read(p)
	}
	q.in = quietCall{base: unsafe.Pointer(unsafe.SliceData(p)), length: len(p)}
	err := q.raw.Read(q.read)
	n, errno := q.in.n, q.in.errno
	q.in = quietCall{}
	switch {
	case err != nil:
		return 0, err
	case errno != 0:
		return 0, &net.OpError{Op: "read", Net: "tcp", Source: q.LocalAddr(), Addr: q.RemoteAddr(), Err: os.NewSyscallError("read", errno)}
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

func (q *quietConn) readOnce(fd uintptr) bool {
	q.in.do(unix.SYS_READ, fd)
	return q.in.errno != unix.EAGAIN
}

// WriteBuffers writes all of b, as b.WriteTo would.
func (q *quietConn) WriteBuffers(b *net.Buffers) (int64, error) {
	total := 0
	for _, p := range *b {
		total += len(p)
	}
	if total == 0 || total > quietBytes || len(*b) > quietBuffers {
		return b.WriteTo(q.TCPConn)
	}
	for i, p := range *b {
		q.vector[i].Base = unsafe.SliceData(p)
		q.vector[i].SetLen(len(p))
	}
	q.out = quietCall{base: unsafe.Pointer(&q.vector), length: len(*b)}
	err := q.raw.Write(q.write)
	clear(q.vector[:len(*b)])
	if err != nil {
		return 0, err
	}
	// The initiator does not listen: what is left, and what is wrong, is for the call that waits.
	done := int64(max(q.out.n, 0))
	consume(b, done)
	if len(*b) == 0 {
		return done, nil
	}
	more, err := b.WriteTo(q.TCPConn)
	return done + more, err
}

func (q *quietConn) writeOnce(fd uintptr) bool {
	q.out.do(unix.SYS_WRITEV, fd)
	return true
}

// do makes the call, again if a signal came in between.
func (c *quietCall) do(call, fd uintptr) {
	for {
		n, _, errno := syscall.RawSyscall(call, fd, uintptr(c.base), uintptr(c.length))
		if errno == unix.EINTR {
			continue
		}
		if c.n, c.errno = int(n), errno; errno != 0 {
			c.n = 0
		}
		return
	}
}

// consume takes n bytes off the front of b.
func consume(b *net.Buffers, n int64) {
	for len(*b) > 0 && n >= int64(len((*b)[0])) {
		n -= int64(len((*b)[0]))
		(*b)[0] = nil
		*b = (*b)[1:]
	}
	if n > 0 {
		(*b)[0] = (*b)[0][n:]
	}
}
