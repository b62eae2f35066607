package target

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"sanctuary/target/login"
	"sanctuary/target/scsi"
	"sanctuary/target/session"
)

type loginCounters struct {
	succeeded, moved, notProved, notAllowed, notFound, unavailable, malformed, unfinished, panics atomic.Uint64
}

// LoginStats is how connections and logins have ended since the portal began.
type LoginStats struct {
	Succeeded   uint64 `json:"succeeded"`
	Moved       uint64 `json:"moved"`       // sent to another portal (status 01xxh)
	NotProved   uint64 `json:"not_proved"`  // wrong secret, or none where one is needed (0201h)
	Throttled   uint64 `json:"throttled"`   // refused unseen after too many of those (0301h)
	NotAllowed  uint64 `json:"not_allowed"` // at a target that they may not use (0203h too: see Portal.unknown)
	NotFound    uint64 `json:"not_found"`   // no such target here (0203h)
	Unavailable uint64 `json:"unavailable"` // our own fault, or for a moment (03xxh)
	Malformed   uint64 `json:"malformed"`   // broke the protocol (other 02xxh)
	Unfinished  uint64 `json:"unfinished"`  // closed, broken or timed out before the end
	TurnedAway  uint64 `json:"turned_away"` // connections beyond a limit, closed unheard
	Panics      uint64 `json:"panics"`      // connections ended by a mistake of ours
}

// LoginStats returns the counters of this moment.
func (p *Portal) LoginStats() LoginStats {
	c := &p.logins
	turned, throttled := p.door.refusals()
	return LoginStats{
		Succeeded: c.succeeded.Load(), Moved: c.moved.Load(), NotProved: c.notProved.Load(), Throttled: throttled,
		NotAllowed: c.notAllowed.Load(), NotFound: c.notFound.Load(), Unavailable: c.unavailable.Load(),
		Malformed: c.malformed.Load(), Unfinished: c.unfinished.Load(), TurnedAway: turned, Panics: c.panics.Load(),
	}
}

// login runs the login of a connection.
func (p *Portal) login(a *arrival) (*session.Handshake, error) {
	local, err := addressOf(a.conn.LocalAddr())
	if err != nil {
		return nil, err
	}
	if a.group = p.cfg.GroupOf(local); a.group.Tag == 0 || a.group.Port == 0 {
		return nil, fmt.Errorf("no portal group has the address %v", local)
	}
	return session.Accept(a.conn, p.loginConfig(a), uint32(p.cfg.Window))
}

// loginConfig is the rules for a login on a.
func (p *Portal) loginConfig(a *arrival) login.Config {
	return login.Config{
		Offer: p.cfg.Offer, GroupTag: a.group.Tag,
		Credentials: func(l *login.Params) (login.Credentials, error) {
			a.names = attempt{a.address, l.Initiator, l.Target}
			if !p.door.mayTry(a.names) {
				a.throttled = true
				return login.Credentials{}, &login.Refusal{
					Status: login.ServiceUnavailable,
					Reason: fmt.Sprintf("%d failed logins like this within %v", failuresPerLogin, failureWindow),
				}
			}
			if err := p.sendOn(opening(a, l), l.Discovery); err != nil {
				return login.Credentials{}, err
			}
			c, known := p.cfg.Directory.Credentials(l.Initiator)
			if !known {
				return login.Credentials{}, nil
			}
			return c, nil
		},
		Admit: func(l *login.Params) error {
			if l.User != "" { // it has proved itself
				p.door.settled(a.visitor)
			}
			if l.Discovery {
				return nil
			}
			_, err := p.openTarget(opening(a, l))
			return err
		},
		Establish: func(l *login.Params) (uint16, error) {
			p.door.settled(a.visitor)
			e, err := p.establish(a, l)
			if err != nil {
				return 0, err
			}
			a.entry = e
			return e.tsih, nil
		},
	}
}

func opening(a *arrival, l *login.Params) Opening {
	return Opening{Initiator: l.Initiator, Target: l.Target, User: l.User, Group: a.group}
}

// sendOn redirects an initiator that the Directory wants elsewhere, before it has proved anything: libiscsi, which is QEMU's,
// leaves its name out when it is redirected after the security stage. What a stranger who gives such an initiator's name
// learns is the address of a portal, where a proof is asked for all the same.
func (p *Portal) sendOn(o Opening, discovery bool) error {
	if discovery {
		return nil
	}
	_, err := p.cfg.Directory.Open(o)
	var refusal *login.Refusal
	if errors.As(err, &refusal) && refusal.Status>>8 == 1 {
		return refusal
	}
	return nil
}

func (p *Portal) openTarget(o Opening) (scsi.Executor, error) {
	began := time.Now()
	p.mu.Lock()
	draining := p.draining
	p.mu.Unlock()
	if draining {
		return nil, &login.Refusal{Status: login.ServiceUnavailable, Reason: "this node is being drained"}
	}
	x, err := p.cfg.Directory.Open(o)
	var refusal *login.Refusal
	switch {
	case err == nil:
		return x, nil
	case errors.As(err, &refusal): // the directory redirects
		return nil, refusal
	case errors.Is(err, ErrNoTarget), errors.Is(err, ErrNotAllowed):
		return nil, p.unknown(o, err, began)
	}
	return nil, &login.Refusal{Status: login.ServiceUnavailable, Reason: err.Error()}
}

// unknownAfter is how long it takes at the least to hear that there is no such target.
const unknownAfter = 20 * time.Millisecond

// unknown is the one answer to whoever wants a target that is not there and to whoever wants one that is not for it: the same status, and
// not sooner than unknownAfter, which hides how long it took to find out. Otherwise names could be tried until one exists. Our own log and
// counters tell the two apart.
func (p *Portal) unknown(o Opening, err error, began time.Time) *login.Refusal {
	timer := time.NewTimer(time.Until(began.Add(unknownAfter)))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.ctx.Done():
	}
	return &login.Refusal{Status: login.TargetNotFound, Reason: o.Initiator + " at " + o.Target + ": " + err.Error(), Cause: err}
}

// establish enters the session into the books. An older session of the same name is ended first, with all its tasks, so
// that nothing it began can land after the new one's first command (session reinstatement, RFC 7143 §6.3.5).
func (p *Portal) establish(a *arrival, l *login.Params) (*entry, error) {
	e := &entry{
		name: sessionName{l.Initiator, l.Target, l.ISID, a.group.Tag}, opening: opening(a, l), conn: a.conn, address: a.address,
		since: time.Now(), done: make(chan struct{}),
	}
	by := time.Now().Add(time.Until(a.deadline) * 9 / 10) // and some left to tell why
	deadline := time.NewTimer(time.Until(by))
	defer deadline.Stop()
	for {
		p.mu.Lock()
		old := p.byName[e.name]
		if old == nil || l.Discovery {
			err := p.enter(e, l.Discovery)
			p.mu.Unlock()
			if err != nil {
				return nil, err
			}
			break
		}
		p.mu.Unlock()
		p.log.Info("session reinstated: its tasks are ended before the login is answered",
			"initiator", l.Initiator, "target", l.Target, "remote", a.conn.RemoteAddr().String())
		old.close(errReinstated)
		select {
		case <-old.done:
		case <-p.ctx.Done():
			return nil, &login.Refusal{Status: login.ServiceUnavailable, Reason: errClosed.Error()}
		case <-deadline.C:
			return nil, &login.Refusal{Status: login.ServiceUnavailable, Reason: "the old session's tasks have not ended yet"}
		}
	}
	if l.Discovery {
		return e, nil
	}
	kept := false
	defer func() {
		if !kept { // also when the Directory panics: a name left in the books could never log in again
			p.end(e)
		}
	}()
	// Only now that CloseTarget can see the entry: a target deleted after this is closed by it.
	x, err := p.openTarget(e.opening)
	if err != nil {
		return nil, err
	}
	e.nexus = &scsi.Nexus{Initiator: l.Initiator, ISID: l.ISID, Port: a.group.Port}
	e.executor = x
	x.Attach(e.nexus)
	ctx, cancel := context.WithDeadline(p.ctx, by)
	defer cancel()
	if err := x.Reinstate(ctx, e.nexus); err != nil {
		return nil, &login.Refusal{Status: login.ServiceUnavailable, Reason: "tasks of the initiator's session on another node have not ended yet: " + err.Error()}
	}
	kept = true
	return e, nil
}

// loginFailed counts and logs a login that came to nothing, and makes whoever could not prove itself wait.
func (p *Portal) loginFailed(a *arrival, err error) {
	var refused *login.Refusal
	if !errors.As(err, &refused) {
		p.logins.unfinished.Add(1)
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed): // a port probe, or an initiator that thought better of it
			p.log.Debug("connection closed before login", "remote", a.conn.RemoteAddr())
		case errors.Is(err, os.ErrDeadlineExceeded):
			p.report(slog.LevelWarn, a, "login did not finish in time", "timeout", p.cfg.LoginTimeout)
		default:
			p.report(slog.LevelWarn, a, "login did not finish", "error", err)
		}
		return
	}
	switch s := refused.Status; {
	case a.throttled: // the door has counted it
	case s>>8 == 1:
		p.logins.moved.Add(1)
		p.report(slog.LevelInfo, a, "login sent to another portal", "to", refused.Address, "reason", refused.Reason)
		return
	case s == login.AuthenticationFailed:
		p.logins.notProved.Add(1)
		p.door.settled(a.visitor)
		p.door.failed(a.names)
	case errors.Is(err, ErrNotAllowed):
		p.logins.notAllowed.Add(1)
	case s == login.TargetNotFound:
		p.logins.notFound.Add(1)
	case s>>8 == 3:
		p.logins.unavailable.Add(1)
	default:
		p.logins.malformed.Add(1)
	}
	p.report(slog.LevelWarn, a, "login refused", "status", fmt.Sprintf("%04Xh", uint16(refused.Status)), "reason", refused.Reason)
	if refused.Status == login.AuthenticationFailed {
		// The connection stays counted meanwhile: this many guesses a second and no more, however many connections.
		timer := time.NewTimer(p.cfg.FailureDelay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-p.ctx.Done():
		}
	}
}

// report logs how a login ended, unless its address has filled its share of the log.
func (p *Portal) report(level slog.Level, a *arrival, what string, args ...any) {
	ok, unsaid := p.door.mayLog(a.address)
	if !ok {
		return
	}
	args = append([]any{"remote", a.conn.RemoteAddr(), "initiator", a.names.initiator, "target", a.names.target}, args...)
	if unsaid > 0 {
		args = append(args, "not_logged", unsaid)
	}
	p.log.Log(context.Background(), level, what, args...)
}
