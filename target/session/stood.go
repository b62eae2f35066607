package session

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
)

// ErrStoodStill: this process did not run for a while (it was stopped, or its machine paused). What lay in the connection
// then may be an old command whose initiator has long gone on over another path; accepted now it would look new.
var ErrStoodStill = errors.New("this node stood still, and what it was sent meanwhile may be out of date")

const (
	watchTick = 250 * time.Millisecond
	// stoodStill is how long the process must not have run. No initiator gives a silent path up sooner: Linux takes 5 s as we
	// advise it, ESXi and Windows longer; a connection that is closed, not silent, is noticed as such.
	stoodStill = 2 * time.Second
)

// Watch notices that the process stood still. One serves all sessions; nil notices nothing.
type Watch struct {
	last  atomic.Int64  // sinceEpoch of the last tick
	stops atomic.Uint64 // how often it stood still; raised before last is
}

// NewWatch returns a watch; Run must be called.
func NewWatch() *Watch {
	w := &Watch{}
	w.last.Store(sinceEpoch())
	return w
}

// Run ticks until ctx ends.
func (w *Watch) Run(ctx context.Context) {
	ticker := time.NewTicker(watchTick)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			w.tick(sinceEpoch())
		case <-ctx.Done():
			return
		}
	}
}

func (w *Watch) tick(now int64) {
	if time.Duration(now-w.last.Load()) > stoodStill {
		w.stops.Add(1)
	}
	w.last.Store(now)
}

// count returns how often the process has stood still until now.
func (w *Watch) count() uint64 {
	if w == nil {
		return 0
	}
	return w.stops.Load()
}

// since says whether the process has stood still since count returned before, looking at time now: also if the watch itself
// has not run again yet.
func (w *Watch) since(before uint64, now int64) bool {
	// last before stops: a tick in between raises stops first.
	return w != nil && (time.Duration(now-w.last.Load()) > stoodStill || w.stops.Load() != before)
}
