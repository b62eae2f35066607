package target

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"sanctuary/target/login"
	"sanctuary/target/pdu"
	"sanctuary/target/session"
)

// Defaults of Config.
const (
	DefaultMaxConnections           = 1024
	DefaultMaxPerAddress            = 256
	DefaultMaxBeforeLogin           = 64
	DefaultMaxBeforeLoginPerAddress = 32
	DefaultMaxDiscovery             = 64
	DefaultMaxDiscoveryPerAddress   = 16
	DefaultLoginTimeout             = 15 * time.Second
	DefaultDiscoveryIdle            = time.Minute
	DefaultFailureDelay             = time.Second
	DefaultMemoryBytes              = 256 << 20
)

// Reasons a session can be ended for; Run of the session returns them.
var (
	errClosed     = errors.New("the portal is closing")
	errReinstated = errors.New("the initiator logged in again")
	errGone       = errors.New("the target is no longer served here")
	errRevoked    = errors.New("the initiator may no longer use the target")
	errEnded      = errors.New("an operator ended the session")
	errIdle       = errors.New("the discovery session has asked for nothing")
	errMadeRoom   = errors.New("the discovery session has made room for another")
)

// Config is what a Portal is made of. Zero means the default where one is named.
type Config struct {
	Directory Directory // needed
	// GroupOf returns the portal group that an address of this node is in; needed. It is asked for every connection, with
	// the address that was connected to, so one listener on all addresses may serve several groups. A group whose Tag or
	// Port is 0 means that nothing is served at that address.
	GroupOf func(local netip.Addr) Group

	// Offer is what is asked for in negotiations; the zero value means login.DefaultOffer.
	Offer login.Params

	// Connections at once: in all, default 1024, and from one address, default 256; and of these, not yet logged in, default
	// 64 and 32. Whoever comes beyond is closed unheard, unless one that has not logged in for 2 s can make room for it.
	MaxConnections, MaxPerAddress, MaxBeforeLogin, MaxBeforeLoginPerAddress int
	// Discovery sessions at once, which need no proof: in all, default 64, and from one address, default 16. Whoever comes beyond
	// is refused, unless one that has lasted for 2 s can make room: to discover takes milliseconds.
	MaxDiscovery, MaxDiscoveryPerAddress int

	LoginTimeout  time.Duration // from connecting to full feature phase, default 15 s
	DiscoveryIdle time.Duration // a discovery session that asks for nothing for so long is ended, default 1 min
	FailureDelay  time.Duration // between refusing a wrong proof and closing the connection, default 1 s
	Window        int           // commands outstanding per session, 1..1024, default 128
	MemoryBytes   int64         // budget for data buffers of all sessions, default 256 MiB, at least 1 MiB
	Ping          time.Duration // silence after which an initiator is pinged, default 5 s
	PingTimeout   time.Duration // silence after a ping that ends its session, default 5 s
	Logger        *slog.Logger  // default: discard
}

// Portal is the iSCSI service of one node: it takes connections from any number of listeners. Its methods may be called
// concurrently.
type Portal struct {
	cfg     Config
	memory  *session.Memory
	log     *slog.Logger
	ctx     context.Context // ends with Close
	cancel  context.CancelCauseFunc
	conns   sync.WaitGroup
	watch   *session.Watch
	watched bool // watch runs, since the first Serve; guarded by mu
	door    *door
	logins  loginCounters

	mu          sync.Mutex
	open        map[net.Conn]struct{} // every connection
	entries     map[uint16]*entry     // sessions by TSIH
	byName      map[sessionName]*entry
	discoveries int // entries that are discovery sessions
	nextTSIH    uint16
	draining    bool
	changed     chan struct{} // closed and replaced when an entry has gone
}

// New returns a portal that serves nothing yet. The error names the field of cfg and the way out.
func New(cfg Config) (*Portal, error) {
	if cfg.Offer == (login.Params{}) {
		cfg.Offer = login.DefaultOffer()
	}
	for v, d := range map[*int]int{
		&cfg.MaxConnections: DefaultMaxConnections, &cfg.MaxPerAddress: DefaultMaxPerAddress,
		&cfg.MaxBeforeLogin: DefaultMaxBeforeLogin, &cfg.MaxBeforeLoginPerAddress: DefaultMaxBeforeLoginPerAddress,
		&cfg.MaxDiscovery: DefaultMaxDiscovery, &cfg.MaxDiscoveryPerAddress: DefaultMaxDiscoveryPerAddress,
		&cfg.Window: session.DefaultWindow,
	} {
		if *v == 0 {
			*v = d
		}
	}
	for v, d := range map[*time.Duration]time.Duration{
		&cfg.LoginTimeout: DefaultLoginTimeout, &cfg.DiscoveryIdle: DefaultDiscoveryIdle, &cfg.FailureDelay: DefaultFailureDelay,
	} {
		if *v == 0 {
			*v = d
		}
	}
	if cfg.MemoryBytes == 0 {
		cfg.MemoryBytes = DefaultMemoryBytes
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case cfg.Directory == nil:
		return nil, errors.New("portal: Directory is needed")
	case cfg.GroupOf == nil:
		return nil, errors.New("portal: GroupOf is needed, use OneGroup for a node in one network")
	case cfg.Window < 1 || cfg.Window > 1024:
		return nil, fmt.Errorf("portal: Window is %d, use 1..1024", cfg.Window)
	case min(cfg.MaxConnections, cfg.MaxPerAddress, cfg.MaxBeforeLogin, cfg.MaxBeforeLoginPerAddress, cfg.MaxDiscovery, cfg.MaxDiscoveryPerAddress) < 1:
		return nil, errors.New("portal: MaxConnections and the other limits must be at least 1")
	case min(cfg.LoginTimeout, cfg.DiscoveryIdle, cfg.FailureDelay, cfg.Ping, cfg.PingTimeout) < 0:
		return nil, errors.New("portal: a timeout is negative")
	case cfg.MemoryBytes < 1<<20:
		return nil, fmt.Errorf("portal: MemoryBytes is %d, use at least 1 MiB", cfg.MemoryBytes)
	}
	p := &Portal{
		watch: session.NewWatch(),
		cfg:   cfg, memory: session.NewMemory(cfg.MemoryBytes), log: cfg.Logger, door: newDoor(&cfg),
		open: make(map[net.Conn]struct{}), entries: make(map[uint16]*entry), byName: make(map[sessionName]*entry),
		changed: make(chan struct{}),
	}
	p.ctx, p.cancel = context.WithCancelCause(context.Background())
	lc := p.loginConfig(&arrival{group: Group{Tag: 1, Port: 1}})
	if err := lc.Validate(); err != nil {
		return nil, err
	}
	return p, nil
}

// Serve takes connections from ln until ctx ends or the portal is closed (then it returns nil), or ln fails. It closes ln.
// Sessions that began go on: Close or Drain ends them.
func (p *Portal) Serve(ctx context.Context, ln net.Listener) error {
	p.startWatch()
	closeListener := func() { _ = ln.Close() }
	defer closeListener()
	defer context.AfterFunc(ctx, closeListener)()
	defer context.AfterFunc(p.ctx, closeListener)()
	for {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil || p.ctx.Err() != nil {
				return nil
			}
			var temporary interface{ Temporary() bool }
			if !errors.As(err, &temporary) || !temporary.Temporary() {
				return fmt.Errorf("accept on %v: %w", ln.Addr(), err)
			}
			// Out of file descriptors or the like: others may end soon.
			p.log.Warn("cannot take a connection, trying again", "listener", ln.Addr(), "error", err)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			case <-p.ctx.Done():
			}
			continue
		}
		if a := p.admit(conn); a != nil {
			go p.serve(a)
		}
	}
}

// arrival is a connection until its session begins.
type arrival struct {
	conn      net.Conn
	visitor   *visitor
	address   netip.Addr // the initiator's
	group     Group
	deadline  time.Time // of the login
	names     attempt   // once they are known
	throttled bool      // refused because of earlier failures
	entry     *entry    // once it is established
}

// admit counts a connection in, or closes it and returns nil.
func (p *Portal) admit(conn net.Conn) *arrival {
	address, err := addressOf(conn.RemoteAddr())
	var v *visitor
	why := ""
	if err != nil {
		why = err.Error()
	} else {
		v, why = p.door.enter(address, conn)
	}
	if why == "" {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.ctx.Err() == nil {
			p.open[conn] = struct{}{}
			p.conns.Add(1)
			return &arrival{conn: conn, visitor: v, address: address, names: attempt{address: address}}
		}
		p.door.leave(v)
		why = errClosed.Error()
	}
	_ = conn.Close()
	if ok, unsaid := p.door.mayLog(address); ok {
		p.log.Warn("connection refused", "remote", conn.RemoteAddr(), "reason", why, "not_logged", unsaid)
	}
	return nil
}

func (p *Portal) startWatch() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.watched || p.ctx.Err() != nil { // Close waits for nothing that begins after it
		return
	}
	p.watched = true
	p.conns.Add(1)
	go func() {
		defer p.conns.Done()
		p.watch.Run(p.ctx)
	}()
}

// serve runs one connection from its first byte to its last task.
func (p *Portal) serve(a *arrival) {
	defer p.conns.Done()
	conn := a.conn
	defer func() {
		if r := recover(); r != nil {
			p.panicked(conn, r)
		}
		_ = conn.Close()
		p.mu.Lock()
		delete(p.open, conn)
		p.mu.Unlock()
		p.door.leave(a.visitor)
		if a.entry != nil {
			p.end(a.entry)
		}
	}()
	a.deadline = time.Now().Add(p.cfg.LoginTimeout)
	_ = conn.SetDeadline(a.deadline)
	hs, err := p.login(a)
	if err != nil {
		p.loginFailed(a, err)
		return
	}
	_ = conn.SetDeadline(time.Time{})
	p.door.loggedIn(a.visitor)
	p.logins.succeeded.Add(1)

	log := p.log.With("initiator", hs.Params.Initiator, "target", hs.Params.Target, "remote", conn.RemoteAddr().String())
	e, sendTargets := a.entry, p.sendTargets(conn, a.group, &hs.Params)
	if hs.Params.Discovery {
		idle := time.AfterFunc(p.cfg.DiscoveryIdle, func() { e.close(errIdle) })
		defer idle.Stop()
		list := sendTargets
		sendTargets = func(value string) []pdu.Pair {
			idle.Reset(p.cfg.DiscoveryIdle)
			return list(value)
		}
	}
	s := session.New(hs, session.Config{
		Watch: p.watch,
		Nexus: e.nexus, Executor: e.executor, Memory: p.memory, SendTargets: sendTargets,
		ColdReset: func() { p.endOthers(e) },
		Window:    p.cfg.Window, Ping: p.cfg.Ping, PingTimeout: p.cfg.PingTimeout, Logger: log,
	})
	if !e.begin(s, hs.Params) {
		return // ended from outside while the login was being answered
	}
	log.Debug("session began")
	// What has changed between Open and begin went unnoticed: Recheck did not see this session yet.
	p.recheck(e)
	err = s.Run(p.ctx)
	if errors.Is(err, session.ErrPanic) { // the session has logged it
		p.logins.panics.Add(1)
	}
	switch {
	case errors.Is(err, session.ErrLoggedOut), errors.Is(err, errClosed), errors.Is(err, io.EOF) && hs.Params.Discovery:
		log.Debug("session ended", "reason", err)
	default:
		log.Info("session ended", "reason", err)
	}
}

// OneGroup is Config.GroupOf for a node whose portals are all in one network, with tag as the relative target port too.
func OneGroup(tag uint16) func(netip.Addr) Group {
	return func(netip.Addr) Group { return Group{Tag: tag, Port: tag} }
}

// Close ends every session and connection and waits for them. The listeners of Serve are closed.
func (p *Portal) Close() error {
	p.mu.Lock()
	p.cancel(errClosed)
	for conn := range p.open {
		// A connection in its login has nobody else to end it; a session hears of it anyway.
		_ = conn.Close()
	}
	p.mu.Unlock()
	p.conns.Wait()
	return nil
}
