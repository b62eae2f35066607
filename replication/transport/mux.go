package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"sanctuary/proto/peerpb"
)

// Mux is a node's end of all connections to its peers. Its methods may be called from any goroutine.
type Mux struct {
	cfg      Config
	log      *slog.Logger
	server   *grpc.Server
	receive  *budget // Limits.ReceiveBytes
	calls    callSlots
	appendIn slots // Limits.BulkStreamsPerNode

	ctx    context.Context // ends with Close; only goroutines of the Mux's own live under it
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	reads     uint32     // encodings it says it can read; tests have older nodes
	trafficMu sync.Mutex // guards traffic
	traffic   map[string]*traffic

	mu       sync.RWMutex // guards what follows; never held across a call out or the network
	closed   bool
	groups   map[string]*GroupTransport
	peers    map[string]*peer
	handlers map[string]Handler

	// notifyMu orders peer events: each observer sees every node's ups and downs alternate. Held while observers run.
	notifyMu  sync.Mutex
	observers []func(node string, up bool, cause error)
}

// New makes a Mux. It dials nothing before Connect or a first request, and accepts nothing before Serve.
func New(cfg Config) (*Mux, error) {
	cfg.Limits.setDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	m := &Mux{
		cfg:      cfg,
		log:      cfg.Logger.With("component", "transport"),
		receive:  newBudget(int64(cfg.Limits.ReceiveBytes) + requestSlack),
		calls:    callSlots{used: make(map[callSlot]int)},
		appendIn: slots{limit: cfg.Limits.BulkStreamsPerNode},
		groups:   make(map[string]*GroupTransport),
		peers:    make(map[string]*peer),
		handlers: make(map[string]Handler),
		traffic:  make(map[string]*traffic),
		reads:    readable,
	}
	m.ctx, m.cancel = context.WithCancelCause(context.Background())
	m.server = grpc.NewServer(m.serverOptions()...)
	peerpb.RegisterPeerServer(m.server, &server{mux: m})
	return m, nil
}

func (m *Mux) serverOptions() []grpc.ServerOption {
	l := &m.cfg.Limits
	opts := []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(l.maxMessage()),
		grpc.MaxSendMsgSize(l.maxMessage()),
		grpc.InitialWindowSize(int32(l.StreamWindowBytes)), // <= 1 GiB by validate
		// gRPC gives the connection's window back on arrival, not when the stream is read: it does not couple streams.
		grpc.InitialConnWindowSize(int32(l.StreamWindowBytes)),
		grpc.WriteBufferSize(ioBufferBytes),
		grpc.ReadBufferSize(ioBufferBytes),
		grpc.ConnectionTimeout(max(5*time.Second, l.DialTimeout)),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: never}), // see probe.go
		// Peers of older programs send pings of gRPC's.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 2 * time.Second, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
	}
	if m.cfg.Credentials != nil {
		opts = append(opts, grpc.Creds(m.cfg.Credentials))
	}
	return opts
}

// never is a time that gRPC takes for none.
const never = time.Duration(math.MaxInt64)

const (
	ioBufferBytes = 128 << 10 // per connection and direction
	messageSlack  = 128 << 10 // what a message may hold beside its payload: envelope, names, error text
)

// maxMessage bounds any gRPC message, in bytes.
func (l *Limits) maxMessage() int {
	return max(l.FrameBytes, l.BulkCallBytes, l.CallBytes, maxControlFrame) + messageSlack
}

// Serve accepts peers' connections on l, which it closes, until Close. It returns nil after Close.
func (m *Mux) Serve(l net.Listener) error {
	err := m.server.Serve(probed{l})
	if err == nil || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return fmt.Errorf("serve peers on %s: %w", l.Addr(), err)
}

// Close ends all connections and groups and waits for every goroutine of the Mux, including running handlers, whose
// contexts it cancels. Later calls fail with ErrClosed. It may be called more than once.
func (m *Mux) Close() error {
	m.mu.Lock()
	m.closed = true
	groups := make([]*GroupTransport, 0, len(m.groups))
	for _, g := range m.groups {
		groups = append(groups, g)
	}
	m.mu.Unlock()
	m.cancel(ErrClosed)
	for _, g := range groups {
		_ = g.Close() // always nil
	}
	m.server.Stop()
	m.wg.Wait()
	return nil
}

// spawn runs fn on a goroutine that Close waits for; false if the Mux is closed.
func (m *Mux) spawn(fn func()) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return false
	}
	m.wg.Go(fn)
	return true
}

// Go runs fn on a goroutine that Close waits for, with a context that Close ends; false if the Mux is closed.
func (m *Mux) Go(fn func(ctx context.Context)) bool { return m.spawn(func() { fn(m.ctx) }) }

// Connect makes the Mux keep a connection to node from now on: it is dialled again whenever it breaks. Any request to a
// node does the same. It does not wait.
func (m *Mux) Connect(node string) { _, _ = m.peer(node) }

// Disconnect undoes Connect, for a node that has left the cluster. Observers hear of it if the node was up.
func (m *Mux) Disconnect(node string) {
	m.mu.Lock()
	p := m.peers[node]
	delete(m.peers, node)
	m.mu.Unlock()
	if p != nil {
		p.cancel(fmt.Errorf("%w: disconnected", ErrUnreachable))
	}
}

func (m *Mux) peer(node string) (*peer, error) {
	m.mu.RLock()
	p, closed := m.peers[node], m.closed
	m.mu.RUnlock()
	switch {
	case closed:
		return nil, ErrClosed
	case p != nil:
		return p, nil
	case node == "":
		return nil, fmt.Errorf("%w: no node name", ErrUnreachable)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	if p = m.peers[node]; p == nil {
		p = newPeer(m, node)
		m.peers[node] = p
		m.wg.Go(p.run)
	}
	return p, nil
}

// link gives a live connection to node; see peer.await.
func (m *Mux) link(ctx context.Context, node string) (*link, error) {
	p, err := m.peer(node)
	if err != nil {
		return nil, err
	}
	return p.await(ctx)
}

// hint tells the dialling side that node is alive, since it has just dialled us.
func (m *Mux) hint(node string) {
	m.mu.RLock()
	p := m.peers[node]
	m.mu.RUnlock()
	if p != nil {
		select {
		case p.hint <- struct{}{}:
		default:
		}
	}
}

// OnPeer registers fn to hear of peers this node has connected to (Connect, or a first request): up when a connection
// stands and the peer has proved who it is, down with the cause at once when it breaks or falls silent. For peers that
// are up already fn is called before OnPeer returns. fn must not block, and must not call OnPeer, Disconnect or Close.
func (m *Mux) OnPeer(fn func(node string, up bool, cause error)) {
	m.notifyMu.Lock()
	defer m.notifyMu.Unlock()
	m.mu.RLock()
	peers := make([]*peer, 0, len(m.peers))
	for _, p := range m.peers {
		peers = append(peers, p)
	}
	m.mu.RUnlock()
	m.observers = append(m.observers, fn)
	for _, p := range peers {
		if p.announced {
			fn(p.node, true, nil)
		}
	}
}

func (m *Mux) notify(p *peer, up bool, cause error) {
	m.notifyMu.Lock()
	defer m.notifyMu.Unlock()
	p.announced = up
	for _, fn := range m.observers {
		fn(p.node, up, cause)
	}
}

// Up reports whether there is a live connection to node.
func (m *Mux) Up(node string) bool {
	m.mu.RLock()
	p := m.peers[node]
	m.mu.RUnlock()
	if p == nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.live != nil
}

// Protocol returns the protocol version that node spoke when this Mux was connected to it last, 0 if it never was. Whoever
// is about to send what an older node cannot read, and has no other way to know, asks here.
func (m *Mux) Protocol(node string) uint32 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if p := m.peers[node]; p != nil {
		return p.protocol.Load()
	}
	return 0
}

// Group adds a replica. It fails with ErrExists if the node has one of this group open.
func (m *Mux) Group(cfg GroupConfig) (*GroupTransport, error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	if _, ok := m.groups[cfg.Group]; ok {
		return nil, fmt.Errorf("group %s: %w", cfg.Group, ErrExists)
	}
	g := newGroup(m, cfg)
	m.groups[cfg.Group] = g
	return g, nil
}

func (m *Mux) forget(g *GroupTransport) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.groups[g.cfg.Group] == g {
		delete(m.groups, g.cfg.Group)
	}
}

// addressed gives the replica an envelope is addressed to, or why there is none.
func (m *Mux) addressed(e *peerpb.Envelope) (*GroupTransport, error) {
	if e.GetCluster() != m.cfg.Cluster {
		return nil, fmt.Errorf("%w: this node belongs to %s, the request to %s", ErrWrongCluster, m.cfg.Cluster, e.GetCluster())
	}
	m.mu.RLock()
	g := m.groups[e.GetGroup()]
	m.mu.RUnlock()
	switch {
	case g == nil:
		return nil, fmt.Errorf("%w: %s has no replica of %s", ErrUnknownGroup, m.cfg.Node, e.GetGroup())
	case e.GetEpoch() != g.cfg.Epoch:
		return nil, fmt.Errorf("%w: group %s is in epoch %d, the request in %d", ErrWrongEpoch, g.cfg.Group, g.cfg.Epoch, e.GetEpoch())
	case e.GetToServer() != string(g.cfg.Self):
		return nil, fmt.Errorf("%w: group %s is served here by %s, the request is for %s", ErrWrongServer, g.cfg.Group, g.cfg.Self, e.GetToServer())
	}
	return g, nil
}
