// Package loopback answers one question: where on 127.0.0.1 can the nodes of a test listen?
//
// Invariant: nobody listens there when the answer is given, and no outgoing connection ever has such a port: it lies below Linux's range for
// those. A port from that range could be somebody's source port at the moment at which a node that was killed comes back for it. Within a process no port
// is given twice, and two processes begin at different ones. It is for tests only.
package loopback

import (
	"errors"
	"net"
	"os"
	"strconv"
	"sync/atomic"
)

const (
	lowest  = 10_000
	highest = 32_000 // Linux: net.ipv4.ip_local_port_range begins at 32768
)

// tried is how many ports this process has looked at.
var tried atomic.Int64

// Addresses returns n addresses of 127.0.0.1, with ports as Ports gives them.
func Addresses(n int) ([]string, error) {
	ports, err := Ports(n)
	out := make([]string, len(ports))
	for i, p := range ports {
		out[i] = address(p)
	}
	return out, err
}

func address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// Ports returns n ports at which nobody listens, neither over TCP nor over UDP. All are held until the last is found.
func Ports(n int) ([]int, error) {
	var out []int
	for try := 0; len(out) < n; try++ {
		if try > 1000+100*n {
			return nil, errors.New("no free ports on loopback")
		}
		port := lowest + (100*os.Getpid()+int(tried.Add(1)))%(highest-lowest)
		l, err := net.Listen("tcp", address(port))
		if err != nil {
			continue
		}
		defer l.Close()
		u, err := net.ListenPacket("udp", address(port))
		if err != nil {
			continue
		}
		defer u.Close()
		out = append(out, port)
	}
	return out, nil
}
