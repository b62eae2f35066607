package target

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"sanctuary/target/login"
	"sanctuary/target/scsi"
	"sanctuary/target/session"
)

// sessionName is what makes two logins the same session (RFC 7143 §4.4.3): the initiator port and the target portal group.
type sessionName struct {
	initiator, target string
	isid              [6]byte
	tag               uint16
}

// entry is one session in the portal's books, from just before its last login response until it is detached.
type entry struct {
	name     sessionName
	opening  Opening
	tsih     uint16
	conn     net.Conn
	address  netip.Addr // the initiator's
	nexus    *scsi.Nexus
	executor scsi.Executor // attached while not nil
	since    time.Time
	done     chan struct{} // closed when its last task has ended and it is detached
	sentAway bool          // a discovery session that has made room for another; guarded by Portal.mu

	mu      sync.Mutex
	session *session.Session // nil until full feature phase
	params  login.Params
	ended   error // why it was ended from outside
	asked   bool  // to log out, by recheck
}

// begin says whether the session may run; it may not if it was ended meanwhile.
func (e *entry) begin(s *session.Session, params login.Params) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.session, e.params = s, params
	return e.ended == nil
}

// close ends the session, from outside, at once even if it has been dropped. It does not wait.
func (e *entry) close(cause error) { e.endWith(cause, (*session.Session).Close) }

// drop is close for an initiator that may come straight back, which is told so first and has a second to hear it.
func (e *entry) drop(cause error) {
	e.endWith(cause, func(s *session.Session, cause error) {
		if e.ended == nil {
			s.Drop(cause, 0)
		}
	})
}

func (e *entry) endWith(cause error, end func(*session.Session, error)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.session != nil {
		end(e.session, cause)
	} else {
		_ = e.conn.Close()
	}
	if e.ended == nil {
		e.ended = cause
	}
}

// begun says whether the session has reached full feature phase. It may have been ended since: its tasks may still run.
func (e *entry) begun() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.session != nil
}

func (e *entry) running() *session.Session {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended != nil {
		return nil
	}
	return e.session
}

// enter gives e a TSIH; p.mu is held.
func (p *Portal) enter(e *entry, discovery bool) error {
	switch {
	case len(p.entries) >= 65535:
		return &login.Refusal{Status: login.OutOfResources, Reason: "no session handle left"}
	case discovery && p.discoveriesOf(e.address) >= p.cfg.MaxDiscoveryPerAddress && !p.makeWay(func(o *entry) bool { return o.address == e.address }):
		return &login.Refusal{Status: login.OutOfResources, Reason: "too many discovery sessions of this address"}
	case discovery && p.discoveries >= p.cfg.MaxDiscovery && !p.makeWay(func(*entry) bool { return true }):
		return &login.Refusal{Status: login.OutOfResources, Reason: "too many discovery sessions"}
	}
	for {
		if p.nextTSIH++; p.nextTSIH == 0 { // 0 means "new session"
			continue
		}
		if _, used := p.entries[p.nextTSIH]; !used {
			break
		}
	}
	e.tsih = p.nextTSIH
	p.entries[e.tsih] = e
	if discovery {
		p.discoveries++
	} else {
		p.byName[e.name] = e
	}
	return nil
}

// discoveriesOf counts the discovery sessions of an address; p.mu is held.
func (p *Portal) discoveriesOf(address netip.Addr) int {
	n := 0
	for _, e := range p.entries {
		if e.name.target == "" && e.address == address && !e.sentAway {
			n++
		}
	}
	return n
}

// makeWay ends the oldest discovery session among some that has lasted for longer than patience, and says whether there was one; p.mu is held.
func (p *Portal) makeWay(among func(*entry) bool) bool {
	var oldest *entry
	for _, e := range p.entries {
		if e.name.target == "" && !e.sentAway && among(e) && (oldest == nil || e.since.Before(oldest.since)) {
			oldest = e
		}
	}
	if oldest == nil || time.Since(oldest.since) < patience {
		return false
	}
	oldest.sentAway = true
	p.discoveries--
	go oldest.close(errMadeRoom) // it does not wait, and may want what is held here
	return true
}

// end takes e out of the books after its last task.
func (p *Portal) end(e *entry) {
	defer func() {
		if r := recover(); r != nil {
			p.panicked(e.conn, r)
		}
		p.mu.Lock()
		delete(p.entries, e.tsih)
		if e.name.target == "" && !e.sentAway {
			p.discoveries--
		}
		if p.byName[e.name] == e {
			delete(p.byName, e.name)
		}
		close(e.done)
		close(p.changed)
		p.changed = make(chan struct{})
		p.mu.Unlock()
	}()
	if e.executor != nil {
		e.executor.Detach(e.nexus)
	}
}

// Session describes one session at one moment.
type Session struct {
	Initiator string        `json:"initiator"`
	ISID      [6]byte       `json:"isid"`
	TSIH      uint16        `json:"tsih"`
	Target    string        `json:"target"` // empty: discovery
	Group     Group         `json:"group"`  // portal group it came in by
	Remote    string        `json:"remote"` // host:port
	Local     string        `json:"local"`  // host:port
	Since     time.Time     `json:"since"`
	Params    login.Params  `json:"params"` // as negotiated; with the CHAP user and algorithm
	Stats     session.Stats `json:"stats"`
	// Port is the relative target port identifier; 0 in a discovery session, as are the counters.
	Port     uint16          `json:"port"`
	Counters scsi.NexusStats `json:"counters"`
}

func describe(e *entry, s *session.Session) Session {
	d := Session{
		Initiator: e.params.Initiator, ISID: e.params.ISID, TSIH: e.tsih, Target: e.params.Target, Group: e.opening.Group,
		Remote: e.conn.RemoteAddr().String(), Local: e.conn.LocalAddr().String(),
		Since: e.since, Params: e.params, Stats: s.Stats(),
	}
	if e.nexus != nil {
		d.Port, d.Counters = e.nexus.Port, e.nexus.Stats()
	}
	return d
}

// Sessions returns every session in full feature phase, the oldest first.
func (p *Portal) Sessions() []Session {
	var list []Session
	for _, e := range p.snapshot() {
		if s := e.running(); s != nil {
			list = append(list, describe(e, s))
		}
	}
	slices.SortFunc(list, func(a, b Session) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.TSIH, b.TSIH))
	})
	return list
}

// AskForLogout asks the initiators of the sessions that filter picks to log out and come back, with a Time2Wait of 0, and
// returns how many it asked. Those that have not left within that time are cut off. It does not wait.
func (p *Portal) AskForLogout(filter func(Session) bool, within time.Duration) int {
	asked := 0
	for _, e := range p.snapshot() {
		if s := e.running(); s != nil && filter(describe(e, s)) {
			s.AskForLogout(within)
			asked++
		}
	}
	return asked
}

// endOthers ends every other session of e's target, after e's initiator has reset it cold (RFC 7143 §11.5.1).
func (p *Portal) endOthers(e *entry) {
	for _, o := range p.snapshot() {
		if o != e && o.name.target == e.name.target {
			o.drop(session.ErrColdReset)
		}
	}
}

// panicked counts and logs a mistake of ours that has ended a connection, of which it is called in the place.
func (p *Portal) panicked(conn net.Conn, what any) {
	p.logins.panics.Add(1)
	p.log.Error("a panic ended this connection only", "remote", conn.RemoteAddr(), "panic", what, "stack", string(debug.Stack()))
}

// CloseSession ends the session with that handle and says whether there was one. It does not wait for its tasks to end. Its
// initiator may come back at once.
func (p *Portal) CloseSession(tsih uint16) bool {
	p.mu.Lock()
	e := p.entries[tsih]
	p.mu.Unlock()
	if e == nil || e.running() == nil {
		return false
	}
	e.drop(errEnded)
	return true
}

// Recheck asks the Directory about every session again, after what it says may have changed. Sessions that it no longer
// opens are cut off; those that it sends elsewhere are asked to log out, and cut off if they do not. It waits until the tasks
// of the former have ended, also if they were ended for another reason before, or ctx has. What has been proved stays proved: a new secret counts from the next login on.
func (p *Portal) Recheck(ctx context.Context) error {
	var ended []*entry
	for _, e := range p.snapshot() {
		if e.begun() && p.recheck(e) {
			ended = append(ended, e)
		}
	}
	for _, e := range ended {
		select {
		case <-e.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// moveWithin is how long the initiator of a session that belongs elsewhere has to log out.
const moveWithin = 5 * time.Second

// recheck ends a session if it may not go on, and says whether it did.
func (p *Portal) recheck(e *entry) bool {
	if e.executor == nil { // discovery
		return false
	}
	e.nexus.SetSinglePath(p.cfg.Directory.SinglePath(e.opening))
	x, err := p.cfg.Directory.Open(e.opening)
	var refusal *login.Refusal
	isRefusal := errors.As(err, &refusal)
	cause := errRevoked
	switch {
	case err == nil && x == e.executor:
		return false
	case err == nil || errors.Is(err, ErrNoTarget) || errors.Is(err, ErrNotServed):
		cause = errGone
	case errors.Is(err, ErrNotAllowed):
	case !isRefusal || refusal.Status>>8 == 3:
		return false // not now: no reason to end what works
	case refusal.Status>>8 == 1:
		if s := e.askedOnce(); s != nil {
			s.AskForLogout(moveWithin)
		}
		return false
	case refusal.Status>>8 == 2:
		return false // of new logins: what an initiator has goes on
	}
	e.close(cause)
	return true
}

// askedOnce returns the session the first time, nil after that.
func (e *entry) askedOnce() *session.Session {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.asked || e.ended != nil {
		return nil
	}
	e.asked = true
	return e.session
}

// MemoryUsed returns the bytes of data buffers lent out at this moment.
func (p *Portal) MemoryUsed() int64 { return p.memory.Used() }

func (p *Portal) snapshot() []*entry {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]*entry, 0, len(p.entries))
	for _, e := range p.entries {
		list = append(list, e)
	}
	return list
}

// CloseTarget ends every session of a target, for a LUN that was deleted or is no longer served here, and waits until
// their tasks have ended or ctx has. The Directory must no longer open it, or initiators come straight back.
func (p *Portal) CloseTarget(ctx context.Context, target string) error {
	return p.endSessions(ctx, strings.ToLower(target), func(e *entry) { e.close(errGone) })
}

// Drain refuses new logins to targets, asks every initiator to log out, waits for that until ctx ends, and then ends the
// sessions that are left. Portal.Close may follow. It returns ctx's error if an initiator had to be cut off.
func (p *Portal) Drain(ctx context.Context) error {
	p.mu.Lock()
	p.draining = true
	p.mu.Unlock()
	within := 10 * time.Second
	if d, ok := ctx.Deadline(); ok {
		within = time.Until(d)
	}
	err := p.endSessions(ctx, "", func(e *entry) {
		if s := e.running(); s != nil {
			s.AskForLogout(within)
		}
	})
	for _, e := range p.snapshot() {
		if e.name.target != "" {
			e.close(errClosed)
		}
	}
	return err
}

// Resume takes logins again after Drain.
func (p *Portal) Resume() {
	p.mu.Lock()
	p.draining = false
	p.mu.Unlock()
}

// endSessions asks each session of target (empty: of any) to end, once, and waits until there is none or ctx ends.
func (p *Portal) endSessions(ctx context.Context, target string, ask func(*entry)) error {
	asked := make(map[*entry]bool)
	for {
		p.mu.Lock()
		changed := p.changed
		p.mu.Unlock()
		left := 0
		for _, e := range p.snapshot() {
			if e.name.target == "" || target != "" && e.name.target != target {
				continue
			}
			left++
			if !asked[e] {
				asked[e] = true
				ask(e)
			}
		}
		if left == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
