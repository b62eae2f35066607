package target

import (
	"cmp"
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"sanctuary/target/login"
	"sanctuary/target/pdu"
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
	tsih     uint16
	conn     net.Conn
	nexus    *scsi.Nexus
	executor scsi.Executor // attached while not nil
	since    time.Time
	done     chan struct{} // closed when its last task has ended and it is detached

	mu      sync.Mutex
	session *session.Session // nil until full feature phase
	params  login.Params
	ended   error // why it was ended from outside
}

// begin says whether the session may run; it may not if it was ended meanwhile.
func (e *entry) begin(s *session.Session, params login.Params) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.session, e.params = s, params
	return e.ended == nil
}

// close ends the session, from outside. It does not wait.
func (e *entry) close(cause error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended != nil {
		return
	}
	e.ended = cause
	if e.session != nil {
		e.session.Close(cause)
	} else {
		_ = e.conn.Close()
	}
}

func (e *entry) running() *session.Session {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended != nil {
		return nil
	}
	return e.session
}

// loginConfig is the rules for a login on conn, which becomes *out.
func (p *Portal) loginConfig(conn net.Conn, group Group, out **entry) login.Config {
	return login.Config{
		Offer: p.cfg.Offer, GroupTag: group.Tag,
		Admit: func(l *login.Params) error {
			if l.Discovery {
				return nil
			}
			_, err := p.openTarget(l, group)
			return err
		},
		Establish: func(l *login.Params) (uint16, error) {
			e, err := p.establish(conn, group, l)
			if err != nil {
				return 0, err
			}
			*out = e
			return e.tsih, nil
		},
	}
}

func (p *Portal) openTarget(l *login.Params, group Group) (scsi.Executor, error) {
	p.mu.Lock()
	draining := p.draining
	p.mu.Unlock()
	if draining {
		return nil, &login.Refusal{Status: login.ServiceUnavailable, Reason: "this node is being drained"}
	}
	x, err := p.cfg.Directory.Open(Opening{Initiator: l.Initiator, Target: l.Target, Group: group})
	var refusal *login.Refusal
	switch {
	case err == nil:
		return x, nil
	case errors.As(err, &refusal): // the directory redirects
		return nil, refusal
	case errors.Is(err, ErrNoTarget):
		return nil, &login.Refusal{Status: login.TargetNotFound, Reason: l.Target + ": " + err.Error()}
	case errors.Is(err, ErrNotAllowed):
		return nil, &login.Refusal{Status: login.NotAuthorized, Reason: l.Initiator + ": " + err.Error()}
	}
	return nil, &login.Refusal{Status: login.ServiceUnavailable, Reason: err.Error()}
}

// establish enters the session into the books. An older session of the same name is ended first, with all its tasks, so
// that nothing it began can land after the new one's first command (session reinstatement, RFC 7143 §6.3.5).
func (p *Portal) establish(conn net.Conn, group Group, l *login.Params) (*entry, error) {
	e := &entry{
		name: sessionName{l.Initiator, l.Target, l.ISID, group.Tag}, conn: conn, since: time.Now(), done: make(chan struct{}),
	}
	deadline := time.NewTimer(p.cfg.LoginTimeout)
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
			"initiator", l.Initiator, "target", l.Target, "remote", conn.RemoteAddr().String())
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
	x, err := p.openTarget(l, group)
	if err != nil {
		return nil, err
	}
	e.nexus = &scsi.Nexus{Initiator: l.Initiator, ISID: l.ISID, Port: group.Port}
	e.executor = x
	x.Attach(e.nexus)
	kept = true
	return e, nil
}

// enter gives e a TSIH; p.mu is held.
func (p *Portal) enter(e *entry, discovery bool) error {
	if len(p.entries) >= 65535 {
		return &login.Refusal{Status: login.OutOfResources, Reason: "no session handle left"}
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
	if !discovery {
		p.byName[e.name] = e
	}
	return nil
}

// end takes e out of the books after its last task.
func (p *Portal) end(e *entry) {
	defer func() {
		p.mu.Lock()
		delete(p.entries, e.tsih)
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
	Remote    string        `json:"remote"` // host:port
	Local     string        `json:"local"`  // host:port
	Since     time.Time     `json:"since"`
	Params    login.Params  `json:"params"` // as negotiated
	Stats     session.Stats `json:"stats"`
}

// Sessions returns every session in full feature phase, the oldest first.
func (p *Portal) Sessions() []Session {
	var list []Session
	for _, e := range p.snapshot() {
		s := e.running()
		if s == nil {
			continue
		}
		list = append(list, Session{
			Initiator: e.params.Initiator, ISID: e.params.ISID, TSIH: e.tsih, Target: e.params.Target,
			Remote: e.conn.RemoteAddr().String(), Local: e.conn.LocalAddr().String(),
			Since: e.since, Params: e.params, Stats: s.Stats(),
		})
	}
	slices.SortFunc(list, func(a, b Session) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.TSIH, b.TSIH))
	})
	return list
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

// sendTargets answers SendTargets for a session on conn (RFC 7143 appendix C): only targets the initiator may use, only
// addresses it can connect to.
func (p *Portal) sendTargets(conn net.Conn, group Group, l *login.Params) func(value string) []pdu.Pair {
	return func(value string) []pdu.Pair {
		if value == "" {
			value = l.Target
		}
		var pairs []pdu.Pair
		for _, t := range p.cfg.Directory.List(l.Initiator, group.Index) {
			if value != "All" && !strings.EqualFold(value, t.Name) {
				continue
			}
			pairs = append(pairs, pdu.Pair{Key: "TargetName", Value: t.Name})
			for _, a := range t.Portals {
				if address, ok := reachable(a.Address, conn.LocalAddr()); ok {
					pairs = append(pairs, pdu.Pair{
						Key: "TargetAddress", Value: address + "," + strconv.Itoa(int(a.GroupTag)),
					})
				}
			}
		}
		return pairs
	}
}

// reachable puts the address the initiator has connected to in the place of one that only means "all of mine".
func reachable(address string, local net.Addr) (string, bool) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", false
	}
	ip := net.ParseIP(host)
	if host != "" && (ip == nil || !ip.IsUnspecified()) {
		return address, true
	}
	mine, _, err := net.SplitHostPort(local.String())
	if err != nil {
		return "", false
	}
	return net.JoinHostPort(mine, port), true
}
