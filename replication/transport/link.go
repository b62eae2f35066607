package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"sanctuary/proto/peerpb"
)

// Protocol versions this code speaks; see peer.proto.
const (
	protocolMin = 1
	protocolMax = 3
)

// ProtocolSnapshots is the version from which on a node knows log entries about snapshots, and rebuilds that carry them.
const ProtocolSnapshots = 2

// ProtocolTransfers is the version from which on a node does not stand for a transfer of a log that has gone on since.
const ProtocolTransfers = 3

// link is one connection to a peer as its dialler sees it: three TCP connections and the control stream on the first. It
// is used from dial to the first failure and then thrown away as a whole: connections a dead peer has left half open must
// not be met again when it is back.
type link struct {
	peer     *peer
	control  *grpc.ClientConn
	bulk     *grpc.ClientConn
	transfer *grpc.ClientConn

	ctx    context.Context // ends with the link
	cancel context.CancelCauseFunc
	stream grpc.BidiStreamingClient[peerpb.ControlFrame, peerpb.ControlFrame]
	queue  *controlQueue

	reads uint32 // what the peer can unpack, as it has said

	born  time.Time    // for heard; monotonic
	heard atomic.Int64 // when the peer last sent anything, nanoseconds after born

	pinged atomic.Int64 // when the newest ping was sent, nanoseconds after born; 0: it has been answered
	round  atomic.Int64 // what a message and its answer take on the way, nanoseconds

	mu      sync.Mutex // guards what follows
	nextID  uint64
	pending map[uint64]chan *peerpb.ControlMessage // capacity 1 each
}

// dial connects and exchanges hellos, within Limits.DialTimeout.
func (p *peer) dial() (_ *link, err error) {
	l := &link{
		peer: p, queue: newControlQueue(p.mux.cfg.Limits.ControlQueueBytes), born: time.Now(),
		pending: make(map[uint64]chan *peerpb.ControlMessage),
	}
	l.ctx, l.cancel = context.WithCancelCause(p.ctx)
	defer func() {
		if err != nil {
			l.close(err)
		}
	}()
	for _, cc := range []**grpc.ClientConn{&l.control, &l.bulk, &l.transfer} {
		if *cc, err = p.client(); err != nil {
			return nil, err
		}
	}
	late := time.AfterFunc(p.mux.cfg.Limits.DialTimeout, func() {
		l.cancel(fmt.Errorf("%w: connecting took longer than %s", ErrTimeout, p.mux.cfg.Limits.DialTimeout))
	})
	defer late.Stop()
	if l.stream, err = peerpb.NewPeerClient(l.control).Control(l.ctx); err != nil {
		return nil, l.failure(err)
	}
	if err := l.hello(); err != nil {
		return nil, err
	}
	if !late.Stop() {
		return nil, l.failure(ErrTimeout)
	}
	l.bulk.Connect()
	return l, nil
}

func (p *peer) client() (*grpc.ClientConn, error) {
	m := p.mux
	creds := m.cfg.Credentials
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	limits := &m.cfg.Limits
	cc, err := grpc.NewClient("passthrough:///"+p.node,
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			addr, ok := m.cfg.Resolve(p.node)
			if !ok {
				return nil, fmt.Errorf("no address known for node %s", p.node)
			}
			return m.cfg.dial(ctx, addr)
		}),
		grpc.WithNoProxy(),
		grpc.WithIdleTimeout(0),
		// Most reconnecting is done by peer.run with fresh clients; this is for a bulk connection lost by itself.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: limits.ReconnectMin, Multiplier: 2, Jitter: 0.2, MaxDelay: limits.ReconnectMax},
			MinConnectTimeout: limits.DialTimeout,
		}),
		grpc.WithInitialWindowSize(int32(limits.StreamWindowBytes)), // <= 1 GiB by validate
		grpc.WithInitialConnWindowSize(int32(limits.StreamWindowBytes)),
		grpc.WithWriteBufferSize(ioBufferBytes),
		grpc.WithReadBufferSize(ioBufferBytes),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(newCodec()), grpc.MaxCallRecvMsgSize(limits.maxMessage()), grpc.MaxCallSendMsgSize(limits.maxMessage())),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, fmt.Errorf("client for %s: %w", p.node, err)
	}
	return cc, nil
}

func (l *link) hello() error {
	cfg := &l.peer.mux.cfg
	began := time.Now()
	err := l.stream.Send(&peerpb.ControlFrame{Hello: &peerpb.Hello{
		Cluster: cfg.Cluster, Node: cfg.Node, NodeId: cfg.NodeID, ToNode: l.peer.node, ProtocolMin: protocolMin, ProtocolMax: protocolMax,
		Reads: l.peer.mux.reads,
	}})
	var frame *peerpb.ControlFrame
	if err == nil || errors.Is(err, errEOF) { // after EOF, Recv has the reason
		frame, err = l.stream.Recv()
	}
	if err != nil {
		return l.failure(err)
	}
	l.noteRound(time.Since(began))
	h := frame.GetHello()
	if err := errorOf(l.peer.node, h.GetStatus()); err != nil {
		return err
	}
	switch {
	case h.GetCluster() != cfg.Cluster:
		return fmt.Errorf("%w: %s answered for cluster %q", ErrWrongCluster, l.peer.node, h.GetCluster())
	case h.GetNode() != l.peer.node:
		return fmt.Errorf("%w: %q answered at the address of %s", ErrWrongNode, h.GetNode(), l.peer.node)
	case h.GetProtocolMin() < protocolMin || h.GetProtocolMin() > protocolMax:
		return fmt.Errorf("%w: %s chose %d", ErrWrongVersion, l.peer.node, h.GetProtocolMin())
	}
	l.peer.protocol.Store(h.GetProtocolMin())
	l.reads = h.GetReads()
	return nil
}

// serve runs the link until it fails and says why.
func (l *link) serve() error {
	l.hear()
	var wg sync.WaitGroup
	wg.Go(func() { l.cancel(l.failure(l.queue.run(l.ctx, l.stream.Send))) })
	wg.Go(func() { l.cancel(l.failure(l.receive())) })
	wg.Go(func() { l.cancel(l.watch()) })
	wg.Wait()
	return context.Cause(l.ctx)
}

func (l *link) receive() error {
	for {
		frame, err := l.stream.Recv()
		if err != nil {
			return err
		}
		l.hear()
		for _, msg := range frame.GetMessages() {
			if msg.GetPong() != nil {
				if at := l.pinged.Swap(0); at != 0 {
					l.noteRound(time.Since(l.born) - time.Duration(at))
				}
				continue
			}
			l.mu.Lock()
			waiter := l.pending[msg.GetId()]
			delete(l.pending, msg.GetId())
			l.mu.Unlock()
			if waiter != nil { // else its request has timed out
				waiter <- msg
			}
		}
	}
}

// watch pings a silent peer and gives up on one that stays silent.
func (l *link) watch() error {
	limits := &l.peer.mux.cfg.Limits
	ticker := time.NewTicker(limits.PingInterval)
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case <-ticker.C:
		case <-l.ctx.Done():
			return context.Cause(l.ctx)
		}
		now := time.Now()
		if now.Sub(last) > 2*limits.PingInterval {
			// It is we who were not running (stopped, starved): what the peer has sent meanwhile has not been read yet.
			l.hear()
		}
		last = now
		silence := l.silence()
		if silence > limits.PeerTimeout {
			return fmt.Errorf("%w: silent for %s", ErrUnreachable, silence.Round(time.Millisecond))
		}
		if silence >= limits.PingInterval/2 {
			l.pinged.Store(int64(time.Since(l.born)))
			// A full queue is the peer's silence in another form; the time limit deals with it.
			_ = l.queue.push(&peerpb.ControlMessage{Body: &peerpb.ControlMessage_Ping{Ping: &peerpb.Ping{}}})
		}
	}
}

// noteRound takes in how long an answer took. The link's delay is the least of it; what is more is mostly a busy machine.
func (l *link) noteRound(d time.Duration) {
	if old := time.Duration(l.round.Load()); old != 0 && d > old {
		d = old + (d-old)/8
	}
	l.round.Store(int64(d))
}

// requestEvery is how often a pipeline should be able to send a request, whatever the delay of the link: about what a disk's sync takes.
const requestEvery = 5 * time.Millisecond

// maxDepth bounds what a link's delay makes of GroupConfig.MaxInflightRequests.
const maxDepth = 64

// depth is how many requests a pipeline may have under way: as many as it is set to, more on a link whose delay would let it stand still.
func (l *link) depth(set int) int {
	return max(set, min(int(time.Duration(l.round.Load())/requestEvery), maxDepth))
}

func (l *link) hear()                  { l.heard.Store(int64(time.Since(l.born))) }
func (l *link) silence() time.Duration { return time.Since(l.born) - time.Duration(l.heard.Load()) }

// failure gives the reason the link ended, if it was ended by us, or else what gRPC says.
func (l *link) failure(err error) error {
	if l.ctx.Err() != nil {
		return context.Cause(l.ctx)
	}
	return fromGRPC(l.peer.node, err)
}

// close ends the link and all streams on it, and answers what is pending.
func (l *link) close(cause error) {
	l.cancel(cause)
	for _, cc := range []*grpc.ClientConn{l.control, l.bulk, l.transfer} {
		if cc != nil {
			_ = cc.Close() // only says that it was closed before
		}
	}
}

// request sends msg and waits for its answer, ctx, or the link's end. ctx must have a deadline.
func (l *link) request(ctx context.Context, msg *peerpb.ControlMessage) (*peerpb.ControlMessage, error) {
	deadline, _ := ctx.Deadline()
	msg.TimeoutMillis = toMillis(time.Until(deadline))
	answer := make(chan *peerpb.ControlMessage, 1)
	l.mu.Lock()
	l.nextID++
	msg.Id = l.nextID
	id := msg.Id // msg is the sender's once pushed
	l.pending[id] = answer
	l.mu.Unlock()
	forget := func() {
		l.mu.Lock()
		delete(l.pending, id)
		l.mu.Unlock()
	}
	if err := l.queue.push(msg); err != nil {
		forget()
		return nil, fmt.Errorf("%s: %w", l.peer.node, err)
	}
	select {
	case got := <-answer:
		return got, nil
	case <-ctx.Done():
		forget()
		return nil, fmt.Errorf("%s: %w", l.peer.node, ctxError(ctx))
	case <-l.ctx.Done():
		forget()
		return nil, unreachable(l.peer.node, context.Cause(l.ctx))
	}
}
