package initiator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"sanctuary/target/scsi"
)

// PathConfig is one way to the LUN.
type PathConfig struct {
	Address string // host:port
	Target  string // iSCSI name
	LUN     uint16
}

// MultipathConfig describes a Disk. Zero means the default where one is named.
type MultipathConfig struct {
	Paths []PathConfig // at least one
	// Session holds what all sessions share; its Address, Target, LUN and ISID are ignored. Here LoginTimeout defaults to
	// 2 s, KeepAlive to 500 ms and SilentTimeout to 1 s.
	Session Config
	// RetryEvery is the pause between two searches for a usable path, default 20 ms.
	RetryEvery time.Duration
	// OnAttempt, if set, is called before and after every attempt of every operation. Concurrently; it must not block.
	OnAttempt func(Attempt)
	// OnPath, if set, is called at every path event. Concurrently; it must not block.
	OnPath func(PathEvent)
}

// PathEvent is something that happened to a path: the timeline of a failover.
type PathEvent struct {
	Time time.Time
	Path int // index in MultipathConfig.Paths
	What PathChange
	Err  error // why, for PathLost and PathRefused
}

// PathChange says what happened to a path.
type PathChange string

// Path changes.
const (
	PathActive   PathChange = "active"   // commands go this way now
	PathLost     PathChange = "lost"     // was active; its connection has been closed
	PathRefused  PathChange = "refused"  // a search found it unusable: no connection, standby, ...; only when the reason changes
	PathMismatch PathChange = "mismatch" // leads to another LUN, and is never used
)

// ErrMismatch: the paths lead to different LUNs.
var ErrMismatch = errors.New("paths lead to different LUNs")

// probeTimeout bounds the questions asked on a new session before it is used.
const probeTimeout = 2 * time.Second

// link is a session in use and its path.
type link struct {
	*Session
	path int
}

// paths finds a usable path and keeps one session, the only one commands are sent on.
type paths struct {
	cfg    MultipathConfig
	ctx    context.Context // ends with close
	cancel context.CancelFunc
	search sync.WaitGroup // searches
	// followers are goroutines of follow, started by searches only: wait for those first.
	followers sync.WaitGroup
	isids     [][6]byte // one per path, kept for ever: a new login ends what is left of the old session

	mu       sync.Mutex
	current  *link
	found    chan struct{} // closed when current is set; replaced when it is lost
	naa      []byte        // of the first path that answered
	refusals []string      // last reason per path
}

func newPaths(cfg MultipathConfig) *paths {
	p := &paths{cfg: cfg, found: make(chan struct{}), refusals: make([]string, len(cfg.Paths))}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	for range cfg.Paths {
		p.isids = append(p.isids, NewISID())
	}
	p.search.Add(1)
	go p.find()
	return p
}

func (p *paths) event(path int, what PathChange, err error) {
	if p.cfg.OnPath != nil {
		p.cfg.OnPath(PathEvent{Time: time.Now(), Path: path, What: what, Err: err})
	}
}

// use returns the session in use, once there is one.
func (p *paths) use(ctx context.Context) (*link, error) {
	for {
		p.mu.Lock()
		l, found := p.current, p.found
		p.mu.Unlock()
		if l != nil {
			return l, nil
		}
		select {
		case <-found:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-p.ctx.Done():
			return nil, errClosed
		}
	}
}

// follow gives l up when its session ends, also when nobody is sending anything.
func (p *paths) follow(l *link) {
	defer p.followers.Done()
	<-l.Done()
	p.drop(l, l.Err())
}

// drop gives l up: its connection is reset, every command on it has ended when drop returns, and then a search begins.
// Only the first call for a link does anything; the others wait for the close too.
func (p *paths) drop(l *link, cause error) {
	if errors.Is(cause, errNotSent) {
		<-l.Done() // what was sent before the target asked for a logout may end first; see Session.leave
	}
	l.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current != l {
		return
	}
	p.current, p.found = nil, make(chan struct{})
	p.event(l.path, PathLost, cause)
	if p.ctx.Err() == nil {
		p.search.Add(1)
		go p.find()
	}
}

// close ends everything.
func (p *paths) close() {
	p.mu.Lock()
	p.cancel() // under mu: no drop starts a search after this
	p.mu.Unlock()
	p.search.Wait()
	p.mu.Lock()
	l := p.current
	p.mu.Unlock()
	if l != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = l.Logout(ctx) // closes it in any case
	}
	p.followers.Wait()
}

// find searches until one path is usable. Every path is tried by itself, so that a silent one delays no other.
func (p *paths) find() {
	defer p.search.Done()
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	results := make(chan *link)
	for i := range p.cfg.Paths {
		go func() { results <- p.watch(ctx, i) }()
	}
	var usable *link
	for range p.cfg.Paths {
		switch l := <-results; {
		case l == nil:
		case usable != nil:
			l.Close()
		default:
			usable = l
			cancel() // the others end, and close what they have; none has carried a command that changes anything
			p.mu.Lock()
			p.current = l
			clear(p.refusals)
			close(p.found)
			p.mu.Unlock()
			p.event(l.path, PathActive, nil)
			p.followers.Add(1)
			go p.follow(l)
		}
	}
}

// watch logs in to one path and waits until it is usable. nil when ctx ends first. A path in standby keeps its session meanwhile.
func (p *paths) watch(ctx context.Context, path int) *link {
	var s *Session
	for ctx.Err() == nil {
		var err error
		if s == nil {
			s, err = p.dial(ctx, path)
		}
		if err == nil {
			if err = p.usable(ctx, s); err == nil {
				return &link{Session: s, path: path}
			}
			if !isNotReady(err) {
				s.Close()
				s = nil
			}
		}
		if ctx.Err() == nil {
			p.refused(path, err)
		}
		timer := time.NewTimer(p.cfg.RetryEvery)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
	if s != nil {
		s.Close()
	}
	return nil
}

// refused reports why a path cannot be used, once per reason.
func (p *paths) refused(path int, err error) {
	reason := reasonOf(err)
	p.mu.Lock()
	news := p.refusals[path] != reason
	p.refusals[path] = reason
	p.mu.Unlock()
	switch {
	case news && errors.Is(err, ErrMismatch):
		p.event(path, PathMismatch, err)
	case news:
		p.event(path, PathRefused, err)
	}
}

func (p *paths) dial(ctx context.Context, path int) (*Session, error) {
	cfg, to := p.cfg.Session, p.cfg.Paths[path]
	cfg.Address, cfg.Target, cfg.LUN, cfg.ISID = to.Address, to.Target, to.LUN, p.isids[path]
	return Dial(ctx, cfg)
}

func (p *paths) usable(ctx context.Context, s *Session) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	naa, err := s.NAA(ctx)
	if err != nil {
		return err
	}
	p.mu.Lock()
	if p.naa == nil {
		p.naa = naa
	}
	same := bytes.Equal(p.naa, naa)
	p.mu.Unlock()
	if !same {
		return fmt.Errorf("%w: NAA %x", ErrMismatch, naa)
	}
	for range maxAttentions {
		if err = s.TestUnitReady(ctx); !isAttention(err) {
			break
		}
	}
	return err
}

// reasonOf tells reasons apart without what differs from one try to the next, such as port numbers.
func reasonOf(err error) string {
	var (
		status  *StatusError
		refusal *LoginError
	)
	switch {
	case errors.As(err, &status):
		return status.Error()
	case errors.As(err, &refusal):
		return refusal.Error()
	case errors.Is(err, ErrMismatch):
		return ErrMismatch.Error()
	case errors.Is(err, ErrNotProved):
		return ErrNotProved.Error()
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, ErrSilent):
		return "no answer"
	}
	return "connection"
}

func isNotReady(err error) bool {
	var e *StatusError
	return errors.As(err, &e) && e.Key == scsi.NotReady
}

// maxAttentions is how many unit attentions in a row a path may report before it is given up.
const maxAttentions = 8

func isAttention(err error) bool {
	var e *StatusError
	return errors.As(err, &e) && e.Key == scsi.UnitAttention
}

// survey asks every path that answers for its NAA, and returns ErrMismatch if they differ.
func (p *paths) survey(ctx context.Context) error {
	var wg sync.WaitGroup
	names := make([][]byte, len(p.cfg.Paths))
	for i := range p.cfg.Paths {
		wg.Go(func() {
			// A path that does not answer now is compared when it is first used.
			if s, err := p.dial(ctx, i); err == nil {
				if naa, err := s.NAA(ctx); err == nil {
					names[i] = naa
				}
				s.Close()
			}
		})
	}
	wg.Wait()
	first := -1
	for i, naa := range names {
		switch {
		case naa == nil:
		case first < 0:
			first = i
		case !bytes.Equal(names[first], naa):
			return fmt.Errorf("%w: %s has NAA %x, %s has %x", ErrMismatch, p.cfg.Paths[first].Address, names[first], p.cfg.Paths[i].Address, naa)
		}
	}
	return nil
}
