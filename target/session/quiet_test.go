package session

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"
)

// tcpPair returns both ends of a connection over loopback; the first is quiet where the system lets it be.
func tcpPair(tb testing.TB) (quiet net.Conn, far *net.TCPConn) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close(); s.Close() })
	return quieten(s), c.(*net.TCPConn)
}

func writeAll(c net.Conn, b net.Buffers) (int64, error) {
	if w, ok := c.(interface {
		WriteBuffers(*net.Buffers) (int64, error)
	}); ok {
		return w.WriteBuffers(&b)
	}
	return b.WriteTo(c)
}

// Small vectors and large ones, of few buffers and many, to somebody who listens slowly: nothing is lost, doubled or out of order.
func TestQuietWritesArriveWholeAndInOrder(t *testing.T) {
	q, far := tcpPair(t)
	if err := q.(interface{ SetWriteBuffer(int) error }).SetWriteBuffer(8 << 10); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	var want []byte
	var vectors []net.Buffers
	for range 60 {
		var v net.Buffers
		for range 1 + rng.IntN(20) {
			p := make([]byte, rng.IntN(6<<10))
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			v, want = append(v, p), append(want, p...)
		}
		vectors = append(vectors, v)
	}
	failed := make(chan error, 1)
	go func() {
		defer q.Close() // the reader is to see an end in any case
		for _, v := range vectors {
			size := int64(0)
			for _, p := range v {
				size += int64(len(p))
			}
			if n, err := writeAll(q, v); err != nil || n != size {
				failed <- errors.Join(err, errors.New("short write"))
				return
			}
		}
		failed <- nil
	}()
	var got bytes.Buffer
	part := make([]byte, 5000)
	for {
		n, err := far.Read(part[:1+rng.IntN(len(part)-1)])
		got.Write(part[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Fatalf("%d bytes arrived of %d, or in another order", got.Len(), len(want))
	}
}

func TestQuietReadsWaitEndAndFailAsOthersDo(t *testing.T) {
	q, far := tcpPair(t)
	buf := make([]byte, 256<<10)
	go func() {
		for range 100 {
			_, _ = far.Write(buf[:1000])
		}
	}()
	if _, err := io.ReadFull(q, make([]byte, 30<<10)); err != nil { // short reads, and waiting
		t.Fatal(err)
	}
	if _, err := io.ReadFull(q, make([]byte, 70000)[:100*1000-30<<10]); err != nil { // a long one
		t.Fatal(err)
	}
	_ = q.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := q.Read(buf[:48]); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the deadline: %v", err)
	}
	_ = q.SetReadDeadline(time.Time{})
	_ = far.CloseWrite()
	if n, err := q.Read(buf[:48]); n != 0 || err != io.EOF {
		t.Errorf("after the end: %d, %v", n, err)
	}
	ended := make(chan error, 1)
	q, far = tcpPair(t)
	go func() { _, err := q.Read(buf[:48]); ended <- err }()
	_ = q.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	q, far = tcpPair(t)
	_ = far.SetLinger(0)
	_ = far.Close() // a reset
	if _, err := q.Read(buf[:48]); err == nil || err == io.EOF {
		t.Errorf("after a reset: %v", err)
	}
	if _, err := writeAll(q, net.Buffers{buf[:48]}); err == nil {
		t.Error("written after a reset")
	}
}

func TestQuietCallsAllocateNothing(t *testing.T) {
	q, far := tcpPair(t)
	in, out := make([]byte, 48), make([]byte, 48)
	vector := make(net.Buffers, 1)
	n := testing.AllocsPerRun(200, func() {
		vector = vector[:1]
		vector[0] = out
		v := vector
		_, err := writeAll(q, v)
		_, err2 := io.ReadFull(far, in)
		_, err3 := far.Write(in)
		_, err4 := io.ReadFull(q, in)
		if err := errors.Join(err, err2, err3, err4); err != nil {
			t.Fatal(err)
		}
	})
	if n > 1 { // v's header, which the Writer keeps in a field
		t.Errorf("%v allocations for a write and a read", n)
	}
}
