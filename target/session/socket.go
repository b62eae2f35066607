package session

import (
	"net"
	"syscall"
	"time"
)

// goneAfter is how long sent bytes may stay unacknowledged, or the initiator's window shut, before the kernel gives the
// connection up. Without it a peer that lost its power would hold its commands and buffers for a quarter of an hour.
const goneAfter = 10 * time.Second

const tcpUserTimeout = 18 // TCP_USER_TIMEOUT of linux/tcp.h, which package syscall lacks

// tune makes a connection notice a peer that is gone. What cannot be set is left: the pings find out too.
func tune(conn net.Conn) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	_ = tcp.SetNoDelay(true)
	_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3})
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(goneAfter/time.Millisecond))
	})
}
