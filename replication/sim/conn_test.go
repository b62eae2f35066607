//go:build sim

package sim

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// conn is one end of a connection.
type conn struct{ in, out *pipe }

var _ net.Conn = (*conn)(nil)

func (c *conn) Read(p []byte) (int, error)         { return c.in.read(p) }
func (c *conn) Write(p []byte) (int, error)        { return c.out.write(p) }
func (c *conn) LocalAddr() net.Addr                { return address(c.out.from) }
func (c *conn) RemoteAddr() net.Addr               { return address(c.out.to) }
func (c *conn) SetReadDeadline(t time.Time) error  { c.in.readBy.set(t); return nil }
func (c *conn) SetWriteDeadline(t time.Time) error { c.out.writeBy.set(t); return nil }

func (c *conn) SetDeadline(t time.Time) error {
	c.in.readBy.set(t)
	c.out.writeBy.set(t)
	return nil
}

func (c *conn) Close() error {
	c.out.end()
	c.in.lose()                  // who writes to it hears of that when the end arrives there
	c.in.readBy.set(time.Time{}) // no timer stays
	c.out.writeBy.set(time.Time{})
	c.out.net.forget(c)
	return nil
}

// segment is what one write put on the way.
type segment struct {
	data []byte
	at   time.Time // when it arrives
}

// pipe is one direction of a connection.
type pipe struct {
	net             *network
	from, to        string
	readBy, writeBy deadline

	mu      sync.Mutex // guards what follows; never held while waiting
	segs    []segment
	queued  int       // bytes
	last    time.Time // when the newest arrives
	ended   bool      // the writer has closed it
	silent  bool      // nothing arrives any more
	gone    bool      // the reader is no more, and the writer has not heard of it
	err     error     // broken
	changed chan struct{}
}

func newPipe(n *network, from, to string) *pipe {
	return &pipe{net: n, from: from, to: to, changed: make(chan struct{})}
}

// wakeLocked tells whoever waits that something has changed.
func (p *pipe) wakeLocked() {
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *pipe) breakOff(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err, p.segs = err, nil
		p.wakeLocked()
	}
}

// end lets what is on the way arrive, and then the end.
func (p *pipe) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	p.wakeLocked()
}

// lose ends the reader. The writer hears nothing of that.
func (p *pipe) lose() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent, p.gone, p.segs, p.queued = true, true, nil, 0
	p.wakeLocked()
}

// mute loses everything that has not arrived, the end included.
func (p *pipe) mute() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent, p.segs = true, nil
}

func (p *pipe) resume(at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.segs {
		if p.segs[i].at.Before(at) {
			p.segs[i].at = at
		}
	}
	if p.last.Before(at) {
		p.last = at
	}
	p.wakeLocked()
}

func (p *pipe) write(b []byte) (int, error) {
	p.net.mu.Lock()
	d := p.net.delayLocked(p.from, p.to)
	p.net.bytes += int64(len(b))
	p.net.mu.Unlock()
	for {
		p.mu.Lock()
		switch {
		case p.err != nil:
			defer p.mu.Unlock()
			return 0, p.err
		case p.ended:
			defer p.mu.Unlock()
			return 0, net.ErrClosed
		case p.silent:
			defer p.mu.Unlock()
			return len(b), nil
		case p.queued < windowBytes:
			at := time.Now().Add(d)
			if at.Before(p.last) {
				at = p.last
			}
			p.last = at
			p.segs = append(p.segs, segment{append([]byte(nil), b...), at})
			p.queued += len(b)
			if len(p.segs) == 1 {
				p.wakeLocked()
			}
			p.mu.Unlock()
			return len(b), nil
		}
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-p.writeBy.wait():
			return 0, os.ErrDeadlineExceeded
		}
	}
}

func (p *pipe) read(b []byte) (int, error) {
	for {
		passes, heals := p.net.passes(p.from, p.to)
		var arrives <-chan time.Time
		p.mu.Lock()
		switch {
		case p.err != nil:
			defer p.mu.Unlock()
			return 0, p.err
		case p.gone:
			defer p.mu.Unlock()
			return 0, errReset
		case !passes || p.silent:
		case len(p.segs) > 0:
			wait := time.Until(p.segs[0].at)
			if wait <= 0 {
				n := copy(b, p.segs[0].data)
				if p.segs[0].data = p.segs[0].data[n:]; len(p.segs[0].data) == 0 {
					p.segs[0] = segment{}
					p.segs = p.segs[1:]
				}
				full := p.queued >= windowBytes
				if p.queued -= n; full {
					p.wakeLocked()
				}
				p.mu.Unlock()
				return n, nil
			}
			arrives = time.After(wait)
		case p.ended:
			defer p.mu.Unlock()
			return 0, io.EOF
		}
		changed := p.changed
		p.mu.Unlock()
		if passes {
			heals = nil
		}
		select {
		case <-changed:
		case <-arrives:
		case <-heals:
		case <-p.readBy.wait():
			return 0, os.ErrDeadlineExceeded
		}
	}
}

// deadline of reads or writes.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	over  chan struct{}
}

func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over == nil {
		d.over = make(chan struct{})
	}
	return d.over
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	if d.over == nil {
		d.over = make(chan struct{})
	}
	select {
	case <-d.over:
		d.over = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return
	}
	over := d.over
	if wait := time.Until(t); wait > 0 {
		d.timer = time.AfterFunc(wait, func() { close(over) })
	} else {
		close(over)
	}
}
