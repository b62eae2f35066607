package target

import (
	"container/list"
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
	waiting   list.List // of *visitor, not logged in, by arrival: those who may have to make room
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

// visitor is a connection, as the door knows it.
type visitor struct {
	from    netip.Addr
	since   time.Time
	conn    net.Conn
	inside, // it has logged in
	sentAway bool // it has not, and another has its place
	waits *list.Element // of door.waiting; nil: it need not make room for others
}

// patience is what a connection has to prove itself before it makes room for another that finds no place: hosts do it in milliseconds. So
// connections that say nothing keep nobody out for long.
const patience = 2 * time.Second

// enter counts a connection in, or says why not.
func (d *door) enter(from netip.Addr, conn net.Conn) (v *visitor, why string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	p := d.addresses[from]
	if p == nil {
		p = &presence{}
	}
	switch {
	case d.open >= d.maxConnections:
		why = fmt.Sprintf("%d connections are open", d.open)
	case p.open >= d.maxPerAddress:
		why = fmt.Sprintf("%d connections of this address are open", p.open)
	case d.failures.of(from, now) >= failuresPerAddress:
		why = fmt.Sprintf("%d failed logins of this address within %v", failuresPerAddress, failureWindow)
	case p.loggingIn >= d.maxBeforeLoginPerAddress && !d.makeWay(now, func(o *visitor) bool { return o.from == from }):
		why = fmt.Sprintf("%d connections of this address have not logged in yet", p.loggingIn)
	case d.loggingIn >= d.maxBeforeLogin && !d.makeWay(now, func(*visitor) bool { return true }):
		why = fmt.Sprintf("%d connections have not logged in yet", d.loggingIn)
	}
	if why != "" {
		d.turned++
		return nil, why
	}
	d.addresses[from] = p
	p.open++
	p.loggingIn++
	d.open++
	d.loggingIn++
	v = &visitor{from: from, since: now, conn: conn}
	v.waits = d.waiting.PushBack(v)
	return v, ""
}

// makeWay closes the oldest connection among some that has been waited for long enough, and says whether there was one.
func (d *door) makeWay(now time.Time, among func(*visitor) bool) bool {
	for e := d.waiting.Front(); e != nil; e = e.Next() {
		v := e.Value.(*visitor)
		if now.Sub(v.since) < patience {
			return false
		}
		if among(v) {
			d.stop(v)
			v.sentAway = true
			d.loggingIn--
			d.addresses[v.from].loggingIn--
			d.turned++
			_ = v.conn.Close()
			return true
		}
	}
	return false
}

// stop takes a connection off the list of those that may have to make room.
func (d *door) stop(v *visitor) {
	if v.waits != nil {
		d.waiting.Remove(v.waits)
		v.waits = nil
	}
}

// settled is called when it is known what becomes of a login: it has proved itself, or is made to wait because it could not.
func (d *door) settled(v *visitor) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stop(v)
}

// loggedIn moves a connection from those that have proved nothing to the others.
func (d *door) loggedIn(v *visitor) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stop(v)
	if v.inside = true; !v.sentAway {
		d.loggingIn--
		d.addresses[v.from].loggingIn--
	}
}

// leave counts a connection out.
func (d *door) leave(v *visitor) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stop(v)
	p := d.addresses[v.from]
	d.open--
	p.open--
	if !v.inside && !v.sentAway {
		d.loggingIn--
		p.loggingIn--
	}
	if p.open == 0 {
		delete(d.addresses, v.from)
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
