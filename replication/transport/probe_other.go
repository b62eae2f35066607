//go:build !linux

package transport

import (
	"net"
	"time"
)

// setUserTimeout does nothing: the system's own patience, of minutes, has to do.
func setUserTimeout(*net.TCPConn, time.Duration) error { return nil }
