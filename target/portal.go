package target

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"sanctuary/target/login"
	"sanctuary/target/session"
)

// Defaults of Config.
const (
	DefaultMaxConnections = 256
	DefaultMaxBeforeLogin = 64
	DefaultLoginTimeout   = 15 * time.Second
	DefaultMemoryBytes    = 256 << 20
)

// Reasons a session can be ended for; Run of the session returns them.
var (
	errClosed     = errors.New("the portal is closing")
	errReinstated = errors.New("the initiator logged in again")
	errGone       = errors.New("the target is no longer served here")
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

	MaxConnections int           // connections at once, default 256; more are closed at once
	MaxBeforeLogin int           // of these not yet logged in, default 64
	LoginTimeout   time.Duration // from connecting to full feature phase, default 15 s
	Window         int           // commands outstanding per session, 1..1024, default 128
	MemoryBytes    int64         // budget for data buffers of all sessions, default 256 MiB, at least 1 MiB
	Ping           time.Duration // silence after which an initiator is pinged, default 5 s
	PingTimeout    time.Duration // silence after a ping that ends its session, default 5 s
	Logger         *slog.Logger  // default: discard
}

// Portal is the iSCSI service of one node: it takes connections from any number of listeners. Its methods may be called
// concurrently.
type Portal struct {
	cfg    Config
	memory *session.Memory
	log    *slog.Logger
	ctx    context.Context // ends with Close
	cancel context.CancelCauseFunc
	conns  sync.WaitGroup

	mu        sync.Mutex
	open      map[net.Conn]struct{} // every connection
	loggingIn int                   // of these, not yet in full feature phase
	entries   map[uint16]*entry     // sessions by TSIH
	byName    map[sessionName]*entry
	nextTSIH  uint16
	draining  bool
	changed   chan struct{} // closed and replaced when an entry has gone
}

// New returns a portal that serves nothing yet. The error names the field of cfg and the way out.
func New(cfg Config) (*Portal, error) {
	if cfg.Offer == (login.Params{}) {
		cfg.Offer = login.DefaultOffer()
	}
	orInt := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	orInt(&cfg.MaxConnections, DefaultMaxConnections)
	orInt(&cfg.MaxBeforeLogin, DefaultMaxBeforeLogin)
	orInt(&cfg.Window, session.DefaultWindow)
	if cfg.LoginTimeout == 0 {
		cfg.LoginTimeout = DefaultLoginTimeout
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
	case cfg.MaxConnections < 1 || cfg.MaxBeforeLogin < 1:
		return nil, errors.New("portal: MaxConnections and MaxBeforeLogin must be at least 1")
	case cfg.LoginTimeout < 0 || cfg.Ping < 0 || cfg.PingTimeout < 0:
		return nil, errors.New("portal: a timeout is negative")
	case cfg.MemoryBytes < 1<<20:
		return nil, fmt.Errorf("portal: MemoryBytes is %d, use at least 1 MiB", cfg.MemoryBytes)
	}
	p := &Portal{
		cfg: cfg, memory: session.NewMemory(cfg.MemoryBytes), log: cfg.Logger,
		open: make(map[net.Conn]struct{}), entries: make(map[uint16]*entry), byName: make(map[sessionName]*entry),
		changed: make(chan struct{}),
	}
	p.ctx, p.cancel = context.WithCancelCause(context.Background())
	lc := p.loginConfig(nil, Group{Tag: 1, Port: 1}, nil)
	if err := lc.Validate(); err != nil {
		return nil, err
	}
	return p, nil
}

// Serve takes connections from ln until ctx ends or the portal is closed (then it returns nil), or ln fails. It closes ln.
// Sessions that began go on: Close or Drain ends them.
func (p *Portal) Serve(ctx context.Context, ln net.Listener) error {
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
		if why := p.register(conn); why != "" {
			p.log.Warn("connection refused", "remote", conn.RemoteAddr(), "reason", why)
			_ = conn.Close()
			continue
		}
		go p.serve(conn)
	}
}

// register counts a connection in, or says why not.
func (p *Portal) register(conn net.Conn) (why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.ctx.Err() != nil:
		return "the portal is closing"
	case len(p.open) >= p.cfg.MaxConnections:
		return "too many connections"
	case p.loggingIn >= p.cfg.MaxBeforeLogin:
		return "too many connections that have not logged in"
	}
	p.open[conn] = struct{}{}
	p.loggingIn++
	p.conns.Add(1)
	return ""
}

// serve runs one connection from its first byte to its last task.
func (p *Portal) serve(conn net.Conn) {
	defer p.conns.Done()
	var e *entry
	loggedIn := false
	defer func() {
		if r := recover(); r != nil {
			p.log.Error("a panic ended this connection only", "remote", conn.RemoteAddr(), "panic", r, "stack", string(debug.Stack()))
		}
		_ = conn.Close()
		p.mu.Lock()
		delete(p.open, conn)
		if !loggedIn {
			p.loggingIn--
		}
		p.mu.Unlock()
		if e != nil {
			p.end(e)
		}
	}()
	_ = conn.SetDeadline(time.Now().Add(p.cfg.LoginTimeout))
	group, err := p.groupOf(conn)
	if err != nil {
		p.logLogin(conn, err)
		return
	}
	hs, err := session.Accept(conn, p.loginConfig(conn, group, &e), uint32(p.cfg.Window))
	if err != nil {
		p.logLogin(conn, err)
		return
	}
	_ = conn.SetDeadline(time.Time{})
	p.mu.Lock()
	p.loggingIn--
	loggedIn = true
	p.mu.Unlock()

	log := p.log.With("initiator", hs.Params.Initiator, "target", hs.Params.Target, "remote", conn.RemoteAddr().String())
	s := session.New(hs, session.Config{
		Nexus: e.nexus, Executor: e.executor, Memory: p.memory, SendTargets: p.sendTargets(conn, group, &hs.Params),
		Window: p.cfg.Window, Ping: p.cfg.Ping, PingTimeout: p.cfg.PingTimeout, Logger: log,
	})
	if !e.begin(s, hs.Params) {
		return // ended from outside while the login was being answered
	}
	log.Debug("session began")
	err = s.Run(p.ctx)
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

func (p *Portal) groupOf(conn net.Conn) (Group, error) {
	local, err := netip.ParseAddrPort(conn.LocalAddr().String())
	if err != nil {
		return Group{}, fmt.Errorf("local address: %w", err)
	}
	g := p.cfg.GroupOf(local.Addr().Unmap().WithZone(""))
	if g.Tag == 0 || g.Port == 0 {
		return Group{}, fmt.Errorf("no portal group has the address %v", local.Addr())
	}
	return g, nil
}

func (p *Portal) logLogin(conn net.Conn, err error) {
	var refused *login.Refusal
	switch {
	case errors.As(err, &refused):
		p.log.Warn("login refused", "remote", conn.RemoteAddr(), "status", fmt.Sprintf("%04Xh", uint16(refused.Status)), "reason", refused.Reason)
	case errors.Is(err, io.EOF): // a port probe, or an initiator that thought better of it
		p.log.Debug("connection closed before login", "remote", conn.RemoteAddr())
	default:
		p.log.Info("login did not finish", "remote", conn.RemoteAddr(), "error", err)
	}
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
