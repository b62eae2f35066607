package transport

import (
	"context"
	"slices"
	"sync"
)

// budget hands out bytes, first come first served.
type budget struct {
	mu      sync.Mutex
	free    int64
	waiting []*budgetWaiter
}

type budgetWaiter struct {
	bytes int64
	ready chan struct{}
}

func newBudget(bytes int64) *budget { return &budget{free: bytes} }

// take waits for n bytes, which must not exceed the whole budget, or for ctx to end.
func (b *budget) take(ctx context.Context, n int64) error {
	b.mu.Lock()
	if len(b.waiting) == 0 && b.free >= n {
		b.free -= n
		b.mu.Unlock()
		return nil
	}
	w := &budgetWaiter{bytes: n, ready: make(chan struct{})}
	b.waiting = append(b.waiting, w)
	b.mu.Unlock()
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-w.ready: // both happened
		b.giveLocked(n)
	default:
		b.waiting = slices.DeleteFunc(b.waiting, func(o *budgetWaiter) bool { return o == w })
		b.giveLocked(0) // the next one may fit where this one did not
	}
	return context.Cause(ctx)
}

func (b *budget) give(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.giveLocked(n)
}

func (b *budget) giveLocked(n int64) {
	b.free += n
	for len(b.waiting) > 0 && b.waiting[0].bytes <= b.free {
		b.free -= b.waiting[0].bytes
		close(b.waiting[0].ready)
		b.waiting = b.waiting[1:]
	}
}

// slots counts things of which there may be limit at a time; it never waits.
type slots struct {
	mu    sync.Mutex
	used  int
	limit int
}

func (s *slots) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used >= s.limit {
		return false
	}
	s.used++
	return true
}

func (s *slots) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used--
}

// callSlots counts running handlers by caller.
type callSlots struct {
	mu   sync.Mutex
	used map[callSlot]int
}

type callSlot struct {
	node string
	bulk bool
}

func (c *callSlots) enter(s callSlot, limit int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.used[s] >= limit {
		return false
	}
	c.used[s]++
	return true
}

func (c *callSlots) leave(s callSlot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.used[s]--; c.used[s] == 0 {
		delete(c.used, s)
	}
}
