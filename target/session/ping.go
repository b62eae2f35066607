package session

import (
	"fmt"
	"sync"
	"time"

	"sanctuary/target/pdu"
)

// pinger asks a silent initiator whether it is still there (NOP-In), and ends the session if it says nothing. Any byte
// received is a sign of life. While the reader is busy with us (waiting for memory), silence is our own doing; while it waits
// for the rest of a PDU it is the initiator's.
type pinger struct {
	s     *Session
	mu    sync.Mutex
	timer *time.Timer
	done  bool
	asked int64 // sinceEpoch of the ping outstanding, 0 if there is none
	tag   uint32
}

func newPinger(s *Session) *pinger {
	p := &pinger{s: s}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = time.AfterFunc(s.cfg.Ping, p.tick)
	return p
}

func (p *pinger) stop() {
	p.mu.Lock()
	p.done = true
	p.timer.Stop()
	p.mu.Unlock()
}

func (p *pinger) tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done {
		return
	}
	now := sinceEpoch()
	heard := p.s.live.last.Load()
	if p.asked != 0 && heard >= p.asked {
		p.asked = 0
	}
	overdue := p.s.overdue(now)
	switch {
	case p.s.out.stuck(now):
		p.s.Close(fmt.Errorf("%w: it has not read for %v", ErrSilent, writeTimeout))
	case overdue != nil:
		p.s.Close(overdue)
	case !p.s.live.waiting.Load():
		p.asked = 0
		p.timer.Reset(p.s.cfg.Ping)
	case p.asked == 0:
		silent := time.Duration(now - heard)
		if silent < p.s.cfg.Ping {
			p.timer.Reset(p.s.cfg.Ping - silent)
			return
		}
		p.asked = now
		p.tag = (p.tag + 1) & 0x7FFFFFFF
		var h pdu.Header
		(&pdu.NopIn{Tag: pdu.NoTag, TransferTag: p.tag}).Put(&h)
		p.s.stats.pings.Add(1)
		p.s.out.post(item{header: h, ping: true})
		p.timer.Reset(p.s.cfg.PingTimeout)
	case p.s.pinged.Load() < p.asked: // still behind other data; the writer has a timeout of its own
		p.timer.Reset(p.s.cfg.PingTimeout)
	case time.Duration(now-p.s.pinged.Load()) < p.s.cfg.PingTimeout:
		p.timer.Reset(p.s.cfg.PingTimeout - time.Duration(now-p.s.pinged.Load()))
	default:
		p.s.Close(fmt.Errorf("%w: nothing for %v after a ping", ErrSilent, p.s.cfg.PingTimeout))
	}
}
