package session

import (
	"context"
	"math/bits"
	"slices"
	"sync"
)

// Memory is the data buffers of all sessions of a portal, under one budget.
//
// Three kinds of demand compete: unsolicited data (which arrives whether we like it or not), solicited data (which we
// ask for with R2T, so we can wait) and Data-In (taken by commands that are already running). Two rules keep every
// session alive whatever the others hold:
//
//   - The first buffer of each kind in a session is granted even beyond the budget, so a session can always finish one
//     command of each kind. Memory is therefore at most the budget plus, per session, one command's Data-Out, one
//     command's Data-In and one first burst.
//   - Solicited data and Data-In leave a quarter of the budget to unsolicited data, and a session gets at most a
//     quarter of the budget of each: whoever stops reading or answering cannot starve the rest.
//
// Safe for concurrent use.
type Memory struct {
	budget int64

	mu      sync.Mutex
	used    int64 // bytes lent out
	idle    int64 // bytes kept for reuse
	free    [classes][][]byte
	waiting []*waiter // first come, first served
}

// Buffers come in powers of two from 4 KiB, which the Go allocator aligns to at least 4 KiB.
const (
	leastClass = 12
	classes    = 14 // 4 KiB .. 32 MiB
)

// NewMemory returns a Memory of budget bytes, at least 1 MiB.
func NewMemory(budget int64) *Memory { return &Memory{budget: max(budget, 1<<20)} }

// Used returns the bytes lent out at this moment.
func (m *Memory) Used() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used
}

// kind is what a buffer is for.
type kind uint8

const (
	unsolicited kind = iota
	solicited
	dataIn
	kinds
)

// account is one session's part of a Memory. It implements scsi.Buffers for Data-In.
type account struct {
	m      *Memory
	short  func()       // unless nil, called before get waits: whoever can give something back does it now
	bytes  [kinds]int64 // guarded by m.mu
	closed bool         // guarded by m.mu: everything is granted, because the session only wants to end
}

type waiter struct {
	a     *account
	k     kind
	n     int
	grant func([]byte) // called without m.mu, by whoever made room
}

func classOf(n int) int { return max(bits.Len(uint(max(n, 1)-1)), leastClass) - leastClass }

func sizeOf(n int) int64 {
	if c := classOf(n); c < classes {
		return 1 << (c + leastClass)
	}
	return int64(n)
}

// room says whether n bytes may be lent; m.mu is held.
func (a *account) room(k kind, n int) bool {
	size := sizeOf(n)
	switch {
	case a.closed || a.bytes[k] == 0:
		return true
	case k == unsolicited:
		return a.m.used+size <= a.m.budget
	}
	return a.bytes[k]+size <= a.m.budget/4 && a.m.used+size <= a.m.budget/4*3
}

// lend takes n bytes out of the pool; m.mu is held.
func (a *account) lend(k kind, n int) []byte {
	size := sizeOf(n)
	a.bytes[k] += size
	a.m.used += size
	c := classOf(n)
	if c < classes {
		if f := a.m.free[c]; len(f) > 0 {
			b := f[len(f)-1]
			f[len(f)-1] = nil
			a.m.free[c] = f[:len(f)-1]
			a.m.idle -= size
			return b[:n]
		}
	}
	return make([]byte, n, size)
}

// tryGet returns n bytes of undefined content, or nil if there is no room or others have been waiting for it.
func (a *account) tryGet(k kind, n int) []byte {
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	if !a.room(k, n) || k != unsolicited && a.bytes[k] > 0 && len(a.m.waiting) > 0 {
		return nil
	}
	return a.lend(k, n)
}

// getLater calls grant, from any goroutine and perhaps before it returns, once there is room. It returns who waits, nil if nobody has to.
func (a *account) getLater(k kind, n int, grant func([]byte)) *waiter {
	a.m.mu.Lock()
	if a.room(k, n) {
		b := a.lend(k, n)
		a.m.mu.Unlock()
		grant(b)
		return nil
	}
	w := &waiter{a, k, n, grant}
	a.m.waiting = append(a.m.waiting, w)
	a.m.mu.Unlock()
	return w
}

// hurry grants at once, beyond the budget, what w still waits for: its task is aborted, and gives it back soon.
func (m *Memory) hurry(w *waiter) {
	m.mu.Lock()
	i := slices.Index(m.waiting, w)
	if i < 0 { // it has been served
		m.mu.Unlock()
		return
	}
	m.waiting = slices.Delete(m.waiting, i, i+1)
	b := w.a.lend(w.k, w.n)
	m.mu.Unlock()
	w.grant(b)
}

// get waits for n bytes. It ends also when ctx does, or the account is closed.
func (a *account) get(ctx context.Context, k kind, n int) []byte {
	if b := a.tryGet(k, n); b != nil {
		return b
	}
	if a.short != nil {
		a.short()
	}
	ready := make(chan []byte, 1)
	if w := a.getLater(k, n, func(b []byte) { ready <- b }); w != nil {
		select {
		case b := <-ready:
			return b
		case <-ctx.Done():
			a.m.hurry(w)
		}
	}
	return <-ready
}

// put takes a buffer back and serves those who wait. It must not be called with a session's mutex held.
func (a *account) put(k kind, b []byte) {
	if cap(b) == 0 {
		return
	}
	poison(b)
	m := a.m
	size := int64(cap(b))
	m.mu.Lock()
	a.bytes[k] -= size
	m.used -= size
	if c := classOf(cap(b)); c < classes && m.idle+size <= m.budget/4 {
		m.free[c] = append(m.free[c], b)
		m.idle += size
	}
	m.serve()
}

// close grants everything the account waits for from now on, so that its session can end.
func (a *account) close() {
	a.m.mu.Lock()
	a.closed = true
	a.m.serve()
}

// serve lends to those who wait and can be served, then unlocks m.mu and tells them.
func (m *Memory) serve() {
	type granted struct {
		w *waiter
		b []byte
	}
	var served []granted
	kept := m.waiting[:0]
	for _, w := range m.waiting {
		if w.a.room(w.k, w.n) {
			served = append(served, granted{w, w.a.lend(w.k, w.n)})
			continue
		}
		kept = append(kept, w)
	}
	clear(m.waiting[len(kept):])
	m.waiting = kept
	m.mu.Unlock()
	for _, g := range served {
		g.w.grant(g.b)
	}
}

// Get and Put make the account the scsi.Buffers of its session's tasks.
func (a *account) Get(ctx context.Context, n int) []byte { return a.get(ctx, dataIn, n) }

// Put takes back what Get returned.
func (a *account) Put(b []byte) { a.put(dataIn, b) }
