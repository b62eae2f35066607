//go:build sim

package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

var (
	errReset   = errors.New("connection reset by peer")
	errRefused = errors.New("connection refused")
)

// network carries the connections of a cluster. What it may do to a connection is what TCP lets a network do: delay it, stall it (a lost
// segment is sent again), stop one direction of it, break it. It never loses, repeats or reorders bytes within one: those who use it are
// promised that. Messages are repeated all the same, by those above who ask again.
type network struct {
	mu    sync.Mutex // guards what follows; never held while waiting
	rng   *rand.Rand
	ports map[string]*port    // node → its running process; none: refused, or lost if the machine is off
	off   map[string]bool     // machines without power
	cut   map[[2]string]bool  // directions from → to that nothing passes
	slow  map[[2]string]delay // directions with a delay of their own
	usual delay
	conns map[*conn]bool // both ends of each
	heals chan struct{}  // closed and replaced when a direction opens
	bytes int64
}

// delay of one segment: between least and least+spread; one in lossOneIn is lost once and takes retransmit longer.
type delay struct {
	least, spread time.Duration
	lossOneIn     int
}

const (
	retransmit  = 200 * time.Millisecond
	windowBytes = 1 << 20 // on the way in one direction of a connection
)

func newNetwork(rng *rand.Rand) *network {
	return &network{
		rng: rng, ports: map[string]*port{}, off: map[string]bool{}, cut: map[[2]string]bool{}, slow: map[[2]string]delay{},
		usual: delay{least: 50 * time.Microsecond, spread: 150 * time.Microsecond}, conns: map[*conn]bool{}, heals: make(chan struct{}),
	}
}

// port is a listener: what one process accepts.
type port struct {
	net    *network
	node   string
	accept chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (n *network) listen(node string) *port {
	p := &port{net: n, node: node, accept: make(chan net.Conn, 64), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ports[node] = p
	delete(n.off, node)
	return p
}

func (p *port) Accept() (net.Conn, error) {
	select {
	case c := <-p.accept:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *port) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *port) Addr() net.Addr { return address(p.node) }

type address string

func (a address) Network() string { return "sim" }
func (a address) String() string  { return string(a) }

// dial connects one node's process to another's.
func (n *network) dial(ctx context.Context, from *port, to string) (net.Conn, error) {
	for {
		n.mu.Lock()
		lost := n.off[to] || n.cut[[2]string{from.node, to}] || n.cut[[2]string{to, from.node}]
		heals, rtt, p := n.heals, n.delayLocked(from.node, to)+n.delayLocked(to, from.node), n.ports[to]
		n.mu.Unlock()
		if lost { // nobody says anything
			select {
			case <-heals:
				continue
			case <-from.closed:
				return nil, net.ErrClosed
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		select {
		case <-time.After(rtt):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if p == nil {
			return nil, fmt.Errorf("%s: %w", to, errRefused)
		}
		there, back := newPipe(n, from.node, to), newPipe(n, to, from.node)
		a, b := &conn{in: back, out: there}, &conn{in: there, out: back}
		n.mu.Lock()
		if n.ports[to] != p || n.ports[from.node] != from {
			n.mu.Unlock()
			return nil, errReset
		}
		n.conns[a], n.conns[b] = true, true
		n.mu.Unlock()
		select {
		case p.accept <- b:
			return a, nil
		default:
			return nil, errRefused
		}
	}
}

func (n *network) delayLocked(from, to string) time.Duration {
	d, ok := n.slow[[2]string{from, to}]
	if !ok {
		d = n.usual
	}
	t := d.least
	if d.spread > 0 {
		t += time.Duration(n.rng.Int64N(int64(d.spread)))
	}
	if d.lossOneIn > 0 && n.rng.IntN(d.lossOneIn) == 0 {
		t += retransmit
	}
	return t
}

func (n *network) passes(from, to string) (bool, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.cut[[2]string{from, to}], n.heals
}

// sever stops directions; what is on its way waits.
func (n *network) sever(directions ...[2]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, d := range directions {
		n.cut[d] = true
	}
}

// mend opens both directions between two nodes.
func (n *network) mend(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cut, [2]string{a, b})
	delete(n.cut, [2]string{b, a})
	n.openLocked()
}

// heal opens every direction and takes every delay back. Connections go on as soon as what was lost is sent again, or are found broken.
func (n *network) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		d := [2]string{c.out.from, c.out.to}
		back := [2]string{d[1], d[0]}
		if !n.cut[d] && !n.cut[back] {
			continue
		}
		if n.rng.IntN(3) == 0 {
			c.out.breakOff(errReset)
			c.in.breakOff(errReset)
			continue
		}
		c.out.resume(time.Now().Add(time.Duration(n.rng.Int64N(int64(2 * retransmit)))))
	}
	clear(n.cut)
	clear(n.slow)
	n.openLocked()
}

func (n *network) openLocked() {
	close(n.heals)
	n.heals = make(chan struct{})
}

// setSlowFrom delays what one node sends another.
func (n *network) setSlowFrom(from, to string, d delay) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.slow[[2]string{from, to}] = d
}

// quicken takes the delay back of what one node sends another from now on. What is on its way over the same connection comes first.
func (n *network) quicken(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.slow, [2]string{from, to})
}

// leaveHalf breaks what one node hears of another: it finds its connections to that broken, and closes them. What it has sent arrives, the
// other hears nothing of the rest.
func (n *network) leaveHalf(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		if c.in.from == from && c.in.to == to {
			c.in.lose()
		}
	}
}

// setSlow delays what two nodes send each other, in both directions.
func (n *network) setSlow(a, b string, d delay) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.slow[[2]string{a, b}], n.slow[[2]string{b, a}] = d, d
}

// reset breaks the connections between two nodes.
func (n *network) reset(a, b string) {
	n.each(func(from, to string) bool { return from == a && to == b || from == b && to == a }, errReset)
}

// leave takes a node's process off. A process that died says goodbye through its kernel; a machine without power says nothing, and
// those who talk to it find out when it is back.
func (n *network) leave(node string, power bool) {
	n.mu.Lock()
	p := n.ports[node]
	delete(n.ports, node)
	n.off[node] = power
	n.mu.Unlock()
	if p != nil {
		_ = p.Close()
	}
	if !power {
		n.each(func(from, to string) bool { return from == node || to == node }, errReset)
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		if c.in.to == node { // its own ends
			c.in.lose()
			c.out.mute()
		}
	}
}

// back says that a machine has power again: it knows no connection of before.
func (n *network) back(node string) {
	n.mu.Lock()
	delete(n.off, node)
	n.openLocked()
	n.mu.Unlock()
	n.each(func(from, to string) bool { return from == node || to == node }, errReset)
}

func (n *network) each(which func(from, to string) bool, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		if which(c.out.from, c.out.to) {
			c.out.breakOff(err)
			c.in.breakOff(err) // the other end may have been closed, and forgotten, without a word
		}
	}
}

func (n *network) forget(c *conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.conns, c)
}
