// Package initiator is a small iSCSI initiator (RFC 7143): one connection per session, ERL 0, and above it a disk that
// uses several paths to one LUN. Tests, the demo's drill and benchmarks use it.
//
// Invariant: a command has exactly one outcome, and "acknowledged" is said only when its own response with GOOD has come;
// a Disk never has two copies of one write outstanding on two connections it has not closed.
// It is no block device driver: it does not cache, merge or reorder.
package initiator

import (
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"sanctuary/target/login"
	"sanctuary/target/scsi"
)

// Config describes a session. Zero means the default where one is named.
type Config struct {
	Address       string // host:port of the portal, IPv6 in brackets; without a port, 3260
	InitiatorName string // iSCSI name, default "iqn.2024-01.io.sanctuary:initiator"
	Target        string // iSCSI name; empty for a discovery session (see Discover)
	LUN           uint16 // for the helper commands, 0..16383
	// ISID names this initiator port; the same one at a later login takes the old session's place (reinstatement).
	// Default: random, type 10b.
	ISID [6]byte

	// CHAP is what this initiator proves and, with a mutual user, what it wants proved; without a User, nothing.
	CHAP login.Credentials

	HeaderDigest, DataDigest bool // CRC32C
	InitialR2T               bool // true: no unsolicited data
	NoImmediateData          bool

	MaxRecvData   int           // longest Data-In segment taken, in bytes, 512..16777215, default 256 KiB
	FirstBurst    int           // unsolicited data of one command, in bytes, 512..16777215, default 256 KiB
	MaxBurst      int           // data of one R2T or Data-In sequence, in bytes, at least FirstBurst, default 1 MiB
	LoginTimeout  time.Duration // connecting and login, default 5 s
	KeepAlive     time.Duration // silence after which the target is pinged, default 1 s, negative for never
	SilentTimeout time.Duration // silence after the ping, or a stalled write, that ends the session; default 2 s
	AbortTimeout  time.Duration // how long a cancelled command's ABORT TASK may take before the session is given up, default 1 s
}

// DefaultInitiatorName is used when Config.InitiatorName is empty.
const DefaultInitiatorName = "iqn.2024-01.io.sanctuary:initiator"

func (c *Config) setDefaults() error {
	duration := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	size := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	duration(&c.LoginTimeout, 5*time.Second)
	duration(&c.KeepAlive, time.Second)
	duration(&c.SilentTimeout, 2*time.Second)
	duration(&c.AbortTimeout, time.Second)
	size(&c.MaxRecvData, 256<<10)
	size(&c.FirstBurst, 256<<10)
	size(&c.MaxBurst, max(1<<20, c.FirstBurst))
	if c.InitiatorName == "" {
		c.InitiatorName = DefaultInitiatorName
	}
	for _, f := range []struct {
		name  string
		bytes int
	}{{"MaxRecvData", c.MaxRecvData}, {"FirstBurst", c.FirstBurst}, {"MaxBurst", c.MaxBurst}} {
		if f.bytes < 512 || f.bytes > 1<<24-1 {
			return fmt.Errorf("%s of %d bytes: use 512 to 16777215", f.name, f.bytes)
		}
	}
	switch {
	case c.FirstBurst > c.MaxBurst:
		return fmt.Errorf("FirstBurst of %d bytes: use at most MaxBurst, %d", c.FirstBurst, c.MaxBurst)
	case c.CHAP.Validate() != nil:
		return c.CHAP.Validate()
	case c.LUN > scsi.MaxLUN:
		return fmt.Errorf("LUN %d: use at most %d", c.LUN, scsi.MaxLUN)
	}
	if c.ISID == ([6]byte{}) {
		c.ISID = NewISID()
	}
	return nil
}

// NewISID returns a random initiator session ID (RFC 7143 §11.12.5, type 10b).
func NewISID() (isid [6]byte) {
	// crypto/rand.Read never fails; see its documentation.
	_, _ = rand.Read(isid[:])
	isid[0] = 0x80
	return isid
}

var (
	// ErrSession: the connection or session has ended; what happened to its unanswered commands is unknown.
	ErrSession = errors.New("iSCSI session has ended")
	// ErrProtocol: the target broke the protocol. The session is given up.
	ErrProtocol = errors.New("iSCSI protocol error")
	// ErrAskedToLeave: the target asked for a logout, and got it once the commands at work had ended; it expects this
	// initiator back at once. Commands that came meanwhile were not sent. Wraps into ErrSession.
	ErrAskedToLeave = errors.New("the target asked for a logout")
	// ErrSilent: the target answered nothing, not even a ping. Wraps into ErrSession.
	ErrSilent = errors.New("target is silent")
)

// LoginError is a login that the target refused (RFC 7143 §11.13.5).
type LoginError struct {
	Status uint16 // class and detail, for example 0203h: target not found
}

func (e *LoginError) Error() string { return fmt.Sprintf("login refused with status %04Xh", e.Status) }

// StatusError is a command that the target answered with anything but GOOD.
type StatusError struct {
	Status scsi.Status
	Key    scsi.SenseKey // with CHECK CONDITION
	Code   uint16        // ASC<<8 | ASCQ
	// Info is the INFORMATION field if HasInfo: the offset of a miscompare, in bytes.
	Info    uint32
	HasInfo bool
}

func (e *StatusError) Error() string {
	if e.Status != scsi.StatusCheckCondition {
		return fmt.Sprintf("SCSI status %02Xh", uint8(e.Status))
	}
	return fmt.Sprintf("check condition %X/%02X/%02X", uint8(e.Key), e.Code>>8, e.Code&0xFF)
}
