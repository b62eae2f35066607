package transport

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// refusedPause is how long to leave a node alone that has refused us (another cluster, name or version): only an operator
// can change that, so there is no hurry.
const refusedPause = time.Second

// peer keeps one node connected: it dials, serves the connection until it breaks, and dials again.
type peer struct {
	mux    *Mux
	node   string
	ctx    context.Context // ends with Disconnect or Close
	cancel context.CancelCauseFunc
	hint   chan struct{} // capacity 1: the node has dialled us, so it is worth dialling now

	// protocol is what the node spoke when it was connected last, 0 before that.
	protocol atomic.Uint32

	announced bool // what observers were told last; guarded by mux.notifyMu

	mu    sync.Mutex    // guards what follows
	live  *link         // nil while there is no connection
	why   error         // why there is none
	first chan struct{} // closed when the first attempt has ended
}

func newPeer(m *Mux, node string) *peer {
	p := &peer{mux: m, node: node, hint: make(chan struct{}, 1), first: make(chan struct{}), why: errors.New("not connected yet")}
	p.ctx, p.cancel = context.WithCancelCause(m.ctx)
	return p
}

func (p *peer) run() {
	defer p.cancel(ErrClosed)
	limits := &p.mux.cfg.Limits
	pause := limits.ReconnectMin
	first := true
	for p.ctx.Err() == nil {
		l, err := p.dial()
		if err == nil {
			p.mux.log.Info("peer connected", "peer", p.node)
			p.set(l, nil, &first)
			p.mux.notify(p, true, nil)
			err = l.serve()
			p.set(nil, err, &first)
			l.close(err)
			p.mux.log.Info("peer connection lost", "peer", p.node, "cause", err)
			p.mux.notify(p, false, err)
			pause = limits.ReconnectMin
		} else {
			p.mux.log.Debug("peer not reached", "peer", p.node, "cause", err)
			p.set(nil, err, &first)
		}
		wait := pause
		var refused *RemoteError
		if errors.As(err, &refused) {
			wait = max(wait, refusedPause)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
			pause = min(2*pause, limits.ReconnectMax)
		case <-p.hint:
			pause = limits.ReconnectMin
		case <-p.ctx.Done():
		}
		timer.Stop()
	}
	p.set(nil, context.Cause(p.ctx), &first)
}

func (p *peer) set(l *link, why error, first *bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.live, p.why = l, why
	if *first {
		*first = false
		close(p.first)
	}
}

// await gives the live connection. It waits only while the very first attempt is under way: afterwards a node that cannot be
// reached is ErrUnreachable at once, so that elections do not wait for the dead.
func (p *peer) await(ctx context.Context) (*link, error) {
	select {
	case <-p.first:
	case <-ctx.Done():
		return nil, ctxError(ctx)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live == nil {
		return nil, unreachable(p.node, p.why)
	}
	return p.live, nil
}

// unreachable wraps cause as ErrUnreachable, once.
func unreachable(node string, cause error) error {
	if errors.Is(cause, ErrUnreachable) || errors.Is(cause, ErrClosed) {
		return fmt.Errorf("%s: %w", node, cause)
	}
	return fmt.Errorf("%s: %w: %w", node, ErrUnreachable, cause)
}

// ctxError names the end of a context of ours: closed, cancelled by the caller, or out of time.
func ctxError(ctx context.Context) error {
	cause := context.Cause(ctx)
	if errors.Is(cause, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", ErrTimeout, cause)
	}
	return cause
}
