package session

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"sanctuary/target/login"
	"sanctuary/target/pdu"
)

const (
	readBuffer   = 64 << 10
	loginSegment = 8192 // MaxRecvDataSegmentLength in force during login (RFC 7143 §13.12)
)

// Handshake is a connection that has passed its login and waits to become a session.
type Handshake struct {
	Params login.Params

	conn   net.Conn
	live   *liveReader
	reader *pdu.Reader
	writer *pdu.Writer
	statSN uint32 // of the next response
	cmdSN  uint32 // of the next command
}

// Accept runs the login on conn. The caller bounds its duration with a deadline on conn, and closes conn if an error is
// returned; a *login.Refusal has been told to the initiator by then. window is how many commands the initiator may have
// outstanding; the session must be given the same.
func Accept(conn net.Conn, cfg login.Config, window uint32) (*Handshake, error) {
	tune(conn)
	conn = quieten(conn)
	live := &liveReader{r: conn}
	hs := &Handshake{conn: conn, live: live, reader: pdu.NewReader(live, readBuffer, loginSegment), writer: pdu.NewWriter(conn)}
	m := login.New(cfg)
	var h pdu.Header
	var data [loginSegment]byte
	for first := true; ; first = false {
		if err := hs.reader.ReadHeader(&h); err != nil {
			return nil, err
		}
		body := data[:h.DataLength()]
		if err := hs.reader.ReadData(body); err != nil {
			return nil, err
		}
		if first {
			hs.statSN, hs.cmdSN = h.ExpStatSN(), h.CmdSN()
		}
		reply, refused := m.Step(&h, body)
		reply.Response.Put(&h)
		h.SetSequence(hs.statSN, hs.cmdSN, hs.cmdSN+window-1)
		hs.statSN++
		if err := errors.Join(hs.writer.Append(&h, reply.Text), hs.writer.Flush()); err != nil {
			return nil, errors.Join(refused, err)
		}
		if refused != nil {
			return nil, refused
		}
		if reply.Done {
			hs.Params = m.Params()
			return hs, nil
		}
	}
}

// liveReader notes when the initiator was last heard of, for the keepalive.
type liveReader struct {
	r    io.Reader
	last atomic.Int64 // nanoseconds since epoch

	waiting atomic.Bool // for the initiator, also in the middle of a PDU

	before func() // unless nil, called before each Read, which may wait
}

var epoch = time.Now()

func sinceEpoch() int64 { return int64(time.Since(epoch)) }

func (l *liveReader) Read(p []byte) (int, error) {
	if l.before != nil {
		l.before()
	}
	l.waiting.Store(true)
	n, err := l.r.Read(p)
	l.last.Store(sinceEpoch())
	l.waiting.Store(false)
	return n, err
}
