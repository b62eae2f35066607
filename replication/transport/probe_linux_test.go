package transport

import (
	"context"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"sanctuary/proto/peerpb"
)

// Both ends of every connection are watched over by the kernel: the other end may go without a word.
func TestConnectionsAreProbed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialled, err := (&Config{}).dial(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer dialled.Close()
	accepted, err := probed{l}.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	for end, c := range map[string]net.Conn{"dialled": dialled, "accepted": accepted} {
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		for name, o := range map[string]struct{ level, option, want int }{
			"SO_KEEPALIVE":     {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			"TCP_KEEPIDLE":     {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(probeAfter / time.Second)},
			"TCP_KEEPINTVL":    {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(probeEvery / time.Second)},
			"TCP_KEEPCNT":      {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, probes},
			"TCP_USER_TIMEOUT": {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unacknowledged.Milliseconds())},
		} {
			var got int
			var failed error
			if err := raw.Control(func(fd uintptr) { got, failed = unix.GetsockoptInt(int(fd), o.level, o.option) }); err != nil || failed != nil {
				t.Fatal(err, failed)
			}
			if got != o.want {
				t.Errorf("%s of the end that was %s is %d, want %d", name, end, got, o.want)
			}
		}
	}
}

// halfRequest is a stream of a sender that stands still when it has sent the first frame of a request.
type halfRequest struct {
	grpc.BidiStreamingServer[peerpb.AppendFrame, peerpb.AppendReply]
	ctx   context.Context
	frame *outFrame
}

func (s *halfRequest) Context() context.Context { return s.ctx }

func (s *halfRequest) RecvMsg(v any) error {
	if s.frame == nil {
		<-s.ctx.Done()
		return s.ctx.Err()
	}
	data, err := newCodec().Marshal(s.frame)
	if err != nil {
		return err
	}
	s.frame = nil
	return newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(data.Materialize())}, v)
}

// What a sender has begun and does not end keeps no room for longer than the sender itself would wait.
func TestARequestThatDoesNotGoOnGivesItsRoomBack(t *testing.T) {
	p := newPair(t, nil)
	ctx, cancel := context.WithCancel(grpcpeer.NewContext(t.Context(), &grpcpeer.Peer{}))
	whole := p.b.receive.free
	in := inbound{mux: p.b.Mux, stream: &halfRequest{ctx: ctx, frame: &outFrame{
		envelope: p.from.envelope(target{"server-b", "b"}), id: 1, total: 5000, timeoutMillis: 50, chunk: [][]byte{make([]byte, 1000)},
	}}}
	within(t, 10*time.Second, "the end of a request that does not go on", func() {
		if _, _, _, err := in.next(); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("half a request ended with %v", err)
		}
	})
	if in.held != 5000 {
		t.Errorf("%d bytes were held for it, want 5000", in.held)
	}
	in.release()
	if p.b.receive.free != whole {
		t.Errorf("%d bytes are free afterwards, want %d", p.b.receive.free, whole)
	}
	cancel() // as the return of the handler does
}
