package transport

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"sanctuary/proto/peerpb"
)

// appendStream carries AppendEntries of this group to one replica and takes its answers, which come in order.
//
// It fails once and for all: on the first error, on the first answer that is an error, and when nothing has been answered
// for Limits.AppendTimeout (more, if many bytes are under way). Everything outstanding is then answered with the reason, and
// every wait on the stream ends. So nobody can wait for a stream for ever, whatever the peer does.
type appendStream struct {
	group  *GroupTransport
	to     target
	stream grpc.ClientStream
	ctx    context.Context // ends with the stream, group or link
	cancel context.CancelCauseFunc
	ready  chan raft.AppendFuture // nil outside a pipeline
	depth  int                    // requests under way at most
	pack   Compression
	count  *traffic

	sendMu  sync.Mutex // one request's frames are sent together; guards opened and lastID
	opened  bool       // the envelope has been sent
	lastID  uint64
	gone    chan struct{} // closed by fail
	freed   chan struct{} // capacity 1: an answer has made room
	expired *time.Timer   // calls expire

	mu       sync.Mutex // guards what follows
	err      error
	queue    []*appendFuture // sent or being sent, not answered, oldest first
	bytes    int             // of queue
	deadline time.Time       // of the oldest, with queue not empty
}

// appendFuture is a request under way; it implements raft.AppendFuture.
type appendFuture struct {
	id    uint64
	bytes int
	start time.Time
	args  *raft.AppendEntriesRequest
	resp  *raft.AppendEntriesResponse
	done  chan struct{}
	err   error // before done is closed: nobody's; after: fixed
}

func (f *appendFuture) Error() error                          { <-f.done; return f.err }
func (f *appendFuture) Start() time.Time                      { return f.start }
func (f *appendFuture) Request() *raft.AppendEntriesRequest   { return f.args }
func (f *appendFuture) Response() *raft.AppendEntriesResponse { return f.resp }

func (f *appendFuture) answer(err error) {
	f.err = err
	close(f.done)
}

var appendStreamDesc = grpc.StreamDesc{StreamName: "Append", ServerStreams: true, ClientStreams: true}

// openStream opens a stream, for a pipeline or for one request at a time.
func (g *GroupTransport) openStream(to target, pipelined bool) (*appendStream, error) {
	limits := &g.mux.cfg.Limits
	awaited, done := context.WithTimeout(g.ctx, limits.DialTimeout)
	defer done()
	l, err := g.mux.link(awaited, string(to.node))
	if err != nil {
		return nil, err
	}
	s := &appendStream{
		group: g, to: to, depth: 1, gone: make(chan struct{}), freed: make(chan struct{}, 1),
		pack: g.mux.compression(string(to.node)).agreed(l.reads), count: g.mux.trafficTo(string(to.node)),
	}
	if pipelined {
		s.depth = l.depth(g.cfg.MaxInflightRequests)
		s.ready = make(chan raft.AppendFuture, s.depth)
	}
	s.expired = time.AfterFunc(time.Hour, s.expire) // finds nothing outstanding
	s.expired.Stop()
	s.ctx, s.cancel = context.WithCancelCause(g.ctx)
	late := time.AfterFunc(limits.DialTimeout, func() { s.cancel(fmt.Errorf("%w: bulk connection", ErrTimeout)) })
	s.stream, err = l.bulk.NewStream(s.ctx, &appendStreamDesc, peerpb.Peer_Append_FullMethodName)
	if !late.Stop() && err == nil {
		err = ErrTimeout
	}
	if err == nil && !g.mux.spawn(s.receive) {
		err = ErrClosed
	}
	if err != nil {
		err = s.reason(err)
		s.cancel(err)
		return nil, err
	}
	return s, nil
}

// reason is why the stream ended: what we ended it with, or what gRPC says.
func (s *appendStream) reason(err error) error {
	if s.ctx.Err() != nil {
		return fmt.Errorf("%s: %w", s.to.node, context.Cause(s.ctx))
	}
	return fromGRPC(string(s.to.node), err)
}

func (s *appendStream) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// fail ends the stream. The first reason stays.
func (s *appendStream) fail(err error) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	s.err = err
	queue := s.queue
	s.queue, s.bytes = nil, 0
	s.expired.Stop()
	s.mu.Unlock()
	s.cancel(err)
	close(s.gone)
	for _, f := range queue {
		s.answer(f, err)
	}
}

// answer ends a request, on a pipeline with notice to the group first.
func (s *appendStream) answer(f *appendFuture, err error) {
	if replied := s.group.cfg.Replied; replied != nil && s.ready != nil {
		replied(s.to.id, f.args, f.resp, err)
	}
	f.answer(err)
}

// submit sends a request; it waits while the stream is full. On success the future will be answered. args must not be
// touched, and the bytes of its entries never be changed, until it is.
func (s *appendStream) submit(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (*appendFuture, error) {
	start := time.Now()
	pieces, total, err := encodeAppend(args)
	if err != nil {
		return nil, fmt.Errorf("encode append request: %w", err)
	}
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	s.lastID++
	f := &appendFuture{id: s.lastID, bytes: total, start: start, args: args, resp: resp, done: make(chan struct{})}
	for {
		entered, err := s.enter(f)
		if err != nil {
			return nil, err
		}
		if entered {
			break
		}
		// Not for ever: what is outstanding is answered, or expires and fails the stream.
		select {
		case <-s.freed:
		case <-s.gone:
		}
	}
	if err := s.send(f, pieces); err != nil {
		s.fail(err)
		return nil, s.failed()
	}
	return f, nil
}

// enter puts f into the queue if there is room.
func (s *appendStream) enter(f *appendFuture) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return false, s.err
	}
	cfg := &s.group.cfg
	if n := len(s.queue); n > 0 && (n >= s.depth || s.bytes+f.bytes > cfg.MaxInflightBytes) {
		return false, nil
	}
	s.queue = append(s.queue, f)
	s.bytes += f.bytes
	if len(s.queue) == 1 {
		s.armLocked()
	}
	return true, nil
}

// timeout is how long the oldest request may take with all that is under way.
func (s *appendStream) timeout(bytes int) time.Duration {
	limits := &s.group.mux.cfg.Limits
	return slowed(limits.AppendTimeout, int64(bytes), limits.MinBytesPerSecond)
}

func (s *appendStream) armLocked() {
	if len(s.queue) == 0 {
		s.expired.Stop()
		return
	}
	d := s.timeout(s.bytes)
	s.deadline = time.Now().Add(d)
	s.expired.Reset(d)
}

func (s *appendStream) expire() {
	s.mu.Lock()
	late := len(s.queue) > 0 && !time.Now().Before(s.deadline)
	s.mu.Unlock()
	if late { // else an answer has come at the same moment and armed the timer again
		s.fail(fmt.Errorf("%s: %w: append of group %s", s.to.node, ErrTimeout, s.group.cfg.Group))
	}
}

func (s *appendStream) send(f *appendFuture, pieces [][]byte) error {
	chunks := chunker{rest: pieces}
	frame := outFrame{id: f.id, total: uint64(f.bytes), timeoutMillis: toMillis(s.timeout(f.bytes))}
	if !s.opened {
		frame.envelope = s.group.envelope(s.to)
		s.opened = true
	}
	for sent := 0; sent < f.bytes; frame.envelope = nil {
		frame.chunk = chunks.next(s.group.mux.cfg.Limits.FrameBytes)
		n := 0
		for _, c := range frame.chunk {
			n += len(c)
		}
		sent += n
		if frame.packed = pack(s.pack, frame.chunk, n); frame.packed != nil {
			frame.encoding, frame.unpacked = s.pack, n
			s.count.add(n, frame.packed.Len())
		} else {
			s.count.add(n, n)
		}
		if err := s.stream.SendMsg(&frame); err != nil {
			if errors.Is(err, errEOF) { // the peer has ended the stream; receive learns why
				<-s.gone
				return s.failed()
			}
			return s.reason(err)
		}
	}
	return nil
}

// receive takes answers until the stream fails.
func (s *appendStream) receive() {
	for {
		var reply peerpb.AppendReply
		if err := s.stream.RecvMsg(&reply); err != nil {
			if errors.Is(err, errEOF) {
				err = fmt.Errorf("%s: %w: peer ended the stream", s.to.node, ErrUnreachable)
			} else {
				err = s.reason(err)
			}
			s.fail(err)
			return
		}
		if err := s.take(&reply); err != nil {
			s.fail(err)
			return
		}
	}
}

// take matches one answer; an error is the stream's end.
func (s *appendStream) take(reply *peerpb.AppendReply) error {
	said := errorOf(string(s.to.node), reply.GetStatus())
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return s.err
	}
	if reply.GetId() == 0 || len(s.queue) == 0 || reply.GetId() != s.queue[0].id {
		s.mu.Unlock()
		if said == nil {
			said = fmt.Errorf("%s: %w: answer %d out of order", s.to.node, ErrInternal, reply.GetId())
		}
		return said
	}
	f := s.queue[0]
	s.queue[0] = nil
	s.queue = s.queue[1:]
	s.bytes -= f.bytes
	s.armLocked()
	s.mu.Unlock()
	select {
	case s.freed <- struct{}{}:
	default:
	}
	answered := reply.GetResponse() != nil
	if answered {
		*f.resp = *appendResponseFromWire(reply.GetResponse())
	} else if said == nil {
		said = fmt.Errorf("%s: %w: empty answer", s.to.node, ErrInternal)
	}
	s.answer(f, said)
	// Raft takes whatever comes out of Consumer as a sign of life of the follower's Raft, errors included
	// (replication.go:588 does not ask for Error), so only what Raft itself has answered goes there.
	if answered && s.ready != nil {
		select {
		case s.ready <- f:
		case <-s.gone:
		}
	}
	return said
}

// pipeline is an appendStream as Raft uses it. Requests may be sent while others are unanswered, as many as
// GroupConfig and the link's delay allow; AppendEntries waits beyond that, and fails once the stream has. Consumer has room for all that can be
// under way. After a failure every future is answered with an error; those Raft on the other end has not answered do not
// appear on Consumer (see take), the next AppendEntries tells.
type pipeline struct{ stream *appendStream }

func (p *pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	// Cutting here only keeps within what the peer can take at all: in a pipeline Raft sends the rest no sooner than with the
	// next write, so a soft limit would cost latency.
	hard := p.stream.group.mux.cfg.Limits.RequestBytes
	if err := cut(args, hard, hard); err != nil {
		return nil, err
	}
	f, err := p.stream.submit(args, resp)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.stream.ready }

// Answer gives Raft the answer to a request that was not sent, unless it is behind with reading real ones. It does not wait.
func (p *pipeline) Answer(f raft.AppendFuture) {
	select {
	case p.stream.ready <- f:
	default:
	}
}

func (p *pipeline) Close() error {
	p.stream.fail(fmt.Errorf("%w: %w", ErrClosed, raft.ErrPipelineShutdown))
	return nil
}
