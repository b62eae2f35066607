package target

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Limits on what addresses may do before they have proved anything. They are per address, not per network: the hosts of
// a storage network with IPv6 share one /64.
const (
	// failuresPerLogin: wrong proofs of one initiator name at one target, from one address and within failureWindow,
	// after which such a login is refused unseen. A host with one wrong secret among its records only locks that one.
	failuresPerLogin = 5
	// failuresPerAddress: wrong proofs from one address within failureWindow, after which its connections are closed
	// unheard.
	failuresPerAddress = 30
	failureWindow      = time.Minute
	// failuresKept bounds each table of failures; beyond it the oldest is forgotten.
	failuresKept = 4096

	// linesPerAddress: refusals of one address that are logged within linesWindow; the next line after it says how many
	// were not.
	linesPerAddress = 20
	linesWindow     = 10 * time.Second
)

// tally counts events by key within windows, for a bounded number of keys. Not safe for concurrent use.
type tally[K comparable] struct {
	window time.Duration
	kept   int
	counts map[K]*count
}

type count struct {
	n     int
	since time.Time // of the first event; a window later the count is void
}

func newTally[K comparable](window time.Duration, kept int) *tally[K] {
	return &tally[K]{window: window, kept: kept, counts: make(map[K]*count)}
}

// add counts one event and returns how many there are in its window.
func (t *tally[K]) add(k K, now time.Time) int {
	c := t.counts[k]
	if c == nil {
		if len(t.counts) >= t.kept {
			t.makeRoom(now)
		}
		c = &count{since: now}
		t.counts[k] = c
	} else if now.Sub(c.since) >= t.window {
		*c = count{since: now}
	}
	c.n++
	return c.n
}

// of returns how many events there were in the window, without adding one.
func (t *tally[K]) of(k K, now time.Time) int {
	c := t.counts[k]
	if c == nil || now.Sub(c.since) >= t.window {
		return 0
	}
	return c.n
}

// makeRoom forgets what is void, or else the oldest.
func (t *tally[K]) makeRoom(now time.Time) {
	var (
		oldest K
		since  time.Time
	)
	for k, c := range t.counts {
		switch {
		case now.Sub(c.since) >= t.window:
			delete(t.counts, k)
		case since.IsZero() || c.since.Before(since):
			oldest, since = k, c.since
		}
	}
	if len(t.counts) >= t.kept {
		delete(t.counts, oldest)
	}
}

// attempt is what a login is known by when it fails: who wanted what from where.
type attempt struct {
	address           netip.Addr
	initiator, target string
}

// door counts connections in and out, and remembers who failed. All methods may be called concurrently.
type door struct {
	maxConnections, maxPerAddress, maxBeforeLogin, maxBeforeLoginPerAddress int

	// mu guards everything below. Held for a few instructions, and for one walk through a full table.
	mu        sync.Mutex
	open      int // connections
	loggingIn int // of these, not yet in full feature phase
	addresses map[netip.Addr]*presence
	logins    *tally[attempt]
	failures  *tally[netip.Addr]
	lines     *tally[netip.Addr]
	unsaid    map[netip.Addr]int // lines not logged; a subset of lines' keys
	turned    uint64             // connections refused
	throttled uint64             // logins refused unseen
}

// presence is what an address has open now. An address with nothing open has none.
type presence struct{ open, loggingIn int }

func newDoor(cfg *Config) *door {
	return &door{
		maxConnections: cfg.MaxConnections, maxPerAddress: cfg.MaxPerAddress,
		maxBeforeLogin: cfg.MaxBeforeLogin, maxBeforeLoginPerAddress: cfg.MaxBeforeLoginPerAddress,
		addresses: make(map[netip.Addr]*presence),
		logins:    newTally[attempt](failureWindow, failuresKept),
		failures:  newTally[netip.Addr](failureWindow, failuresKept),
		lines:     newTally[netip.Addr](linesWindow, failuresKept),
		unsaid:    make(map[netip.Addr]int),
	}
}

// enter counts a connection in, or says why not.
func (d *door) enter(from netip.Addr) (why string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.addresses[from]
	if p == nil {
		p = &presence{}
	}
	switch {
	case d.open >= d.maxConnections:
		why = fmt.Sprintf("%d connections are open", d.open)
	case p.open >= d.maxPerAddress:
		why = fmt.Sprintf("%d connections of this address are open", p.open)
	case d.loggingIn >= d.maxBeforeLogin:
		why = fmt.Sprintf("%d connections have not logged in yet", d.loggingIn)
	case p.loggingIn >= d.maxBeforeLoginPerAddress:
		why = fmt.Sprintf("%d connections of this address have not logged in yet", p.loggingIn)
	case d.failures.of(from, time.Now()) >= failuresPerAddress:
		why = fmt.Sprintf("%d failed logins of this address within %v", failuresPerAddress, failureWindow)
	}
	if why != "" {
		d.turned++
		return why
	}
	d.addresses[from] = p
	p.open++
	p.loggingIn++
	d.open++
	d.loggingIn++
	return ""
}

// loggedIn moves a connection from those that have proved nothing to the others.
func (d *door) loggedIn(from netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.loggingIn--
	d.addresses[from].loggingIn--
}

// leave counts a connection out; in says whether it had logged in.
func (d *door) leave(from netip.Addr, in bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.addresses[from]
	d.open--
	p.open--
	if !in {
		d.loggingIn--
		p.loggingIn--
	}
	if p.open == 0 {
		delete(d.addresses, from)
	}
}

// mayTry says whether a login may try to prove itself, after those that failed before.
func (d *door) mayTry(a attempt) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.logins.of(a, time.Now()) < failuresPerLogin {
		return true
	}
	d.throttled++
	return false
}

// failed remembers a wrong proof.
func (d *door) failed(a attempt) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	d.logins.add(a, now)
	d.failures.add(a.address, now)
}

// mayLog says whether a refusal of this address should be logged, and how many before it were not.
func (d *door) mayLog(from netip.Addr) (ok bool, unsaid int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lines.add(from, time.Now()) > linesPerAddress {
		if len(d.unsaid) < failuresKept {
			d.unsaid[from]++
		}
		return false, 0
	}
	unsaid = d.unsaid[from]
	delete(d.unsaid, from)
	return true, unsaid
}

// refusals returns how many connections and logins have been refused unheard.
func (d *door) refusals() (turned, throttled uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.turned, d.throttled
}

// addressOf returns the other side's address as the tables know it: IPv4 in one form, without zone.
func addressOf(a net.Addr) (netip.Addr, error) {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}, fmt.Errorf("address of a connection: %w", err)
	}
	return ap.Addr().Unmap().WithZone(""), nil
}
