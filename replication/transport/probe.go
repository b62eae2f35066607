package transport

import (
	"context"
	"net"
	"time"
)

// Who finds out about connections whose other end is gone without a word, as after a power cut. On the dialling side the control stream's pings, within Limits.PeerTimeout, and
// all connections of the link end with it. On the side that was dialled the kernel: it probes a silent connection, and gives up one where what was sent is not acknowledged.
// gRPC's own keepalive is not used: it compares times of the wall clock, and breaks sound connections some seconds after that has been set back.
const (
	probeAfter = 5 * time.Second // of silence, the first time
	probeEvery = time.Second
	probes     = 5
	// unacknowledged is how long the other end's kernel may take for what was sent. A process that stands still does not count: its kernel answers, until it has no room.
	unacknowledged = probeAfter + probes*probeEvery
)

// probe has the kernel watch over a connection. Of one that is not TCP's, which tests have, or where the system does not offer it, nothing is asked.
func probe(c net.Conn) net.Conn {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: probeAfter, Interval: probeEvery, Count: probes})
		_ = setUserTimeout(tcp, unacknowledged)
	}
	return c
}

// probed is a listener whose connections are probed.
type probed struct{ net.Listener }

func (l probed) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return probe(c), nil
}

func (c *Config) dial(ctx context.Context, addr string) (net.Conn, error) {
	if c.Dial != nil {
		return c.Dial(ctx, addr)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return probe(conn), nil
}
