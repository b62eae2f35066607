package transport

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testCluster = "c0ffee00-0000-4000-8000-000000000001"

// network is where test nodes find each other: names to loopback addresses, which tests may change.
type network struct {
	mu    sync.Mutex
	addrs map[string]string
}

func newNetwork() *network { return &network{addrs: make(map[string]string)} }

func (n *network) resolve(node string) (string, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	addr, ok := n.addrs[node]
	return addr, ok
}

func (n *network) set(node, addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addrs[node] = addr
}

// testNode is a Mux that serves on loopback.
type testNode struct {
	*Mux
	addr   string
	served chan error
	once   sync.Once
}

// start brings up a node, at addr if given, else at a free port, and tells the network.
func (n *network) start(t testing.TB, name, addr string, change ...func(*Config)) *testNode {
	t.Helper()
	cfg := Config{
		Cluster: testCluster, Node: name, NodeID: "id-of-" + name, Resolve: n.resolve,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	for _, c := range change {
		c(&cfg)
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	var l net.Listener
	eventually(t, "listen on "+addr, func() bool {
		l, err = net.Listen("tcp", addr)
		return err == nil
	})
	node := &testNode{Mux: m, addr: l.Addr().String(), served: make(chan error, 1)}
	go func() { node.served <- m.Serve(l) }()
	n.set(name, node.addr)
	t.Cleanup(func() { node.stop(t) })
	return node
}

func (n *testNode) stop(t testing.TB) {
	t.Helper()
	n.once.Do(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if err := <-n.served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
}

// eventually polls for a condition that other goroutines bring about, and fails the test after a generous while.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// within fails the test if fn takes longer than d.
func within(t testing.TB, d time.Duration, what string, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); fn() }()
	select {
	case <-done:
	case <-time.After(d):
		t.Fatalf("%s took longer than %s", what, d)
	}
}

// tap is a TCP proxy in front of a node. While it is held it accepts and reads nothing, like a stopped process: bytes pile
// up in the sockets' buffers and no further. Cutting it resets all connections.
type tap struct {
	l      net.Listener
	target string
	delay  atomic.Int64 // each way, in nanoseconds; of connections that are made from then on

	mu    sync.Mutex
	free  chan struct{} // closed while not held
	conns map[net.Conn]struct{}
	wg    sync.WaitGroup
}

func newTap(t testing.TB, target string) *tap {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &tap{l: l, target: target, free: make(chan struct{}), conns: make(map[net.Conn]struct{})}
	close(p.free)
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.release()
		p.cut()
		p.wg.Wait()
	})
	return p
}

func (p *tap) addr() string { return p.l.Addr().String() }

func (p *tap) accept() {
	for {
		in, err := p.l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = in.Close()
			continue
		}
		p.mu.Lock()
		p.conns[in], p.conns[out] = struct{}{}, struct{}{}
		p.mu.Unlock()
		p.wg.Go(func() { p.pump(in, out) })
		p.wg.Go(func() { p.pump(out, in) })
	}
}

func (p *tap) pump(from, to net.Conn) {
	defer func() {
		_, _ = from.Close(), to.Close()
		p.mu.Lock()
		delete(p.conns, from)
		delete(p.conns, to)
		p.mu.Unlock()
	}()
	if p.delay.Load() > 0 {
		p.slowly(from, to)
		return
	}
	buf := make([]byte, 32<<10)
	for {
		p.mu.Lock()
		free := p.free
		p.mu.Unlock()
		<-free
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		free = p.free
		p.mu.Unlock()
		<-free
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// slowly passes everything on after the delay, without holding up what comes behind it.
func (p *tap) slowly(from, to net.Conn) {
	type piece struct {
		due time.Time
		b   []byte
	}
	way := make(chan piece, 4096)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(way)
	wg.Go(func() {
		for x := range way {
			time.Sleep(time.Until(x.due))
			if _, err := to.Write(x.b); err != nil {
				_ = from.Close() // ends the reading
			}
		}
	})
	for {
		b := make([]byte, 64<<10)
		n, err := from.Read(b)
		if err != nil {
			return
		}
		way <- piece{time.Now().Add(time.Duration(p.delay.Load())), b[:n]}
	}
}

func (p *tap) hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = make(chan struct{})
}

func (p *tap) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.free:
	default:
		close(p.free)
	}
}

func (p *tap) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.(*net.TCPConn).SetLinger(0) // RST, as after a killed process
		_ = c.Close()
	}
}

func nodeName(i int) string { return fmt.Sprintf("node-%d", i) }
