package replication

import (
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Elections of many LUNs at once.
//
// When a node dies that owned many LUNs, after a standstill of the machine or when all power returns, hundreds of LUNs want an owner in the same
// second. Until each has one and has fallen quiet again, all of them send heartbeats, and that may be more than the machine has to give: then
// heartbeats come late, new owners lose their LUNs before they have served anything, and it all begins again. Everybody works, and nobody gets
// anywhere, for as long as it takes: a congestion collapse. The cure is that of TCP (RFC 5681): a node has no more than a window of
// elections under way. It grows with each that ends well and is halved when a LUN is lost. The others wait without asking
// anybody, which costs nothing, and each that ends well makes room for the next.
//
// An election is under way from the moment a replica asks for pre-votes until its LUN is quiet or has been served for a while, or another replica
// owns it, or nobody would vote for it. Waiting is safe: a replica that does not stand breaks no rule. One that is told to stand, because
// the LUN is handed to it, asks for no pre-votes and does not wait.
type elections struct {
	mu      sync.Mutex
	window  float64
	under   map[*Group]*election
	waiting []*election // who came first is first
	ticking bool
	halved  time.Time

	standing func(g *Group, since, now time.Time) int // of an election that has been under way since then
}

// election is one that waits or is under way.
type election struct {
	group    *Group
	admitted chan struct{}
	since    time.Time // it is under way
	asking   int       // voters that are asked, or are to be
	granted  bool      // one of them would vote for it
}

const (
	electionsAtFirst = 256
	electionsLeast   = 8
	electionsMost    = 4096
	// electionSettled is how long a LUN has to be served to count as safe: longer than a lease lasts that nobody renews.
	electionSettled = 500 * time.Millisecond
	// electionHalve is how often the window is halved at most: what is lost together was lost for one reason.
	electionHalve = 500 * time.Millisecond
	// electionSweep is how often those under way are looked at while others wait.
	electionSweep = 20 * time.Millisecond
)

var errElectionsFull = errors.New("too many LUNs of this node are electing an owner: this one waits its turn")

func newElections() *elections {
	return &elections{window: electionsAtFirst, under: map[*Group]*election{}, standing: (*Group).standing}
}

// admit waits, at most for the given time, until g may ask a voter for its pre-vote; answered follows. A time that is longer than Raft takes to ask
// again keeps the place in the queue.
func (e *elections) admit(g *Group, most time.Duration, closed <-chan struct{}) (*election, error) {
	e.mu.Lock()
	el := e.enterLocked(g)
	el.asking++
	e.mu.Unlock()
	timer := time.NewTimer(most)
	defer timer.Stop()
	err := errElectionsFull
	select {
	case <-el.admitted:
		return el, nil
	case <-closed:
		err = raft.ErrTransportShutdown
	case <-timer.C:
	}
	e.answered(el, false)
	return nil, err
}

// enterLocked returns the election of g, which waits if others do or the window is full.
func (e *elections) enterLocked(g *Group) *election {
	now := time.Now()
	if el := e.under[g]; el != nil && !e.endedLocked(g, el, now) {
		return el
	}
	for _, el := range e.waiting {
		if el.group == g {
			return el
		}
	}
	el := &election{group: g, admitted: make(chan struct{})}
	e.waiting = append(e.waiting, el)
	if !e.ticking {
		e.advanceLocked(now)
	}
	return el
}

// advanceLocked admits who waits as far as there is room, and sees to it that the others are looked at again.
func (e *elections) advanceLocked(now time.Time) {
	if len(e.under)+len(e.waiting) > int(e.window) {
		e.sweepLocked(now)
	}
	n := min(len(e.waiting), max(0, int(e.window)-len(e.under)))
	for _, el := range e.waiting[:n] {
		el.since, e.under[el.group] = now, el
		close(el.admitted)
	}
	e.waiting = slices.Delete(e.waiting, 0, n)
	if e.ticking = len(e.waiting) > 0; e.ticking {
		time.AfterFunc(electionSweep, func() {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.advanceLocked(time.Now())
		})
	}
}

// answered notes what came of a pre-vote that was asked for, or was to be. If nobody would vote for the group its election is over.
func (e *elections) answered(el *election, granted bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	el.asking--
	if el.granted = el.granted || granted; el.granted || el.asking > 0 {
		return
	}
	e.waiting = slices.DeleteFunc(e.waiting, func(other *election) bool { return other == el })
	if e.under[el.group] == el {
		delete(e.under, el.group)
	}
}

// sweepLocked takes out what is no longer under way.
func (e *elections) sweepLocked(now time.Time) {
	for g, el := range e.under {
		e.endedLocked(g, el, now)
	}
}

// endedLocked says whether the election is no longer under way, takes it out then, and widens the window if it ended well.
func (e *elections) endedLocked(g *Group, el *election, now time.Time) bool {
	standing := e.standing(g, el.since, now)
	switch standing {
	case electionUnder:
		return false
	case electionWon:
		e.window = min(e.window+1, electionsMost)
	}
	delete(e.under, g)
	return true
}

// lost notes that a LUN has been lost that this node was elected for, and has not handed on.
func (e *elections) lost() {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	if now.Sub(e.halved) < electionHalve {
		return
	}
	e.sweepLocked(now)
	if n := float64(len(e.under)); n >= electionsLeast { // with fewer under way they are not why it was lost
		e.window, e.halved = max(electionsLeast, min(e.window, n)/2), now
	}
}

// over notes that g is not elected any more.
func (e *elections) over(g *Group) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.under, g)
}

// How an election stands.
const (
	electionUnder = iota
	electionWon   // the LUN is served, and will be
	electionOver  // another replica owns it, or nobody does
)

// standing says how the election of g stands, which has been under way since then.
func (g *Group) standing(since, now time.Time) int {
	inst := g.running()
	if inst == nil {
		return electionOver
	}
	if t := g.tenure.Load(); t != nil {
		if g.quiet.Load() != nil || now.Sub(t.since) >= electionSettled {
			return electionWon
		}
		return electionUnder
	}
	most := 2 * g.cfg.Timing.Heartbeat // then it queues again, behind those that may have more luck
	switch inst.raft.State() {
	case raft.Leader:
		most *= 2 // it may be kept from serving for ever, by a full pool
	case raft.Follower:
		if _, leader := inst.raft.LeaderWithID(); leader != "" && inst.raft.LastContact().After(since) {
			return electionOver
		}
	}
	if now.Sub(since) >= most {
		return electionOver
	}
	return electionUnder
}
