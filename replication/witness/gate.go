// Package witness holds what makes a vote without data safe: the gate that keeps the witness quiet while the copies are
// healthy (rule W), and the stripping of payloads on the way to it.
//
// Invariant: while a data replica is in sync, no entry is offered to the witness that this replica has not acknowledged.
// Without it owner and witness could commit what the other copy never got; the owner dies, the witness's longer log
// refuses its vote to the surviving copy, and nobody can be elected. The gate only delays messages, so Raft's own safety
// argument is untouched; what it decides is on which copies an acknowledged write exists.
//
// It has no goroutine, no clock and no network: package replication feeds it events and asks it for limits.
package witness

import (
	"math"
	"time"
)

// Level says how a data replica stands, as its owner sees it.
type Level int

// Levels. A replica starts InSync: until it is known to be lost, nothing may be committed without it.
const (
	InSync     Level = iota // every acknowledged write is on this replica
	Out                     // lost or too slow: entries are committed without it
	CatchingUp              // nearly there: the witness is held where it is until the replica has overtaken it
)

func (l Level) String() string {
	return [...]string{"in-sync", "out", "catching-up"}[l]
}

// Timing bounds the gate's patience. All values are positive.
type Timing struct {
	// LinkGrace is how long a broken connection may take to come back before the replica counts as lost.
	LinkGrace time.Duration
	// NoProgress is how long a connected replica may leave entries unacknowledged.
	NoProgress time.Duration
	// CatchUp is how long the witness is held back for a replica that is nearly there.
	CatchUp time.Duration
	// Window is the lag, in entries, at which a lost replica counts as nearly there.
	Window uint64
}

// Gate tracks the data replicas of one LUN for one term of its owner. Not concurrent-safe.
type Gate struct {
	timing  Timing
	peers   map[string]*peer
	offered uint64 // the highest index the witness may have
}

type peer struct {
	level Level
	acked uint64
	since time.Time // InSync: when it last had nothing outstanding or made progress; CatchingUp: when that began
	down  time.Time // when its connection broke; zero while it is up
}

// New returns the gate of a new term. tail is the last index of the owner's log: the witness may have all of it.
func New(timing Timing, tail uint64, now time.Time, replicas ...string) *Gate {
	g := &Gate{timing: timing, peers: map[string]*peer{}, offered: tail}
	for _, r := range replicas {
		g.peers[r] = &peer{since: now}
	}
	return g
}

// Acked notes that a replica has acknowledged everything up to index; tail is the owner's last index.
func (g *Gate) Acked(replica string, index, tail uint64, now time.Time) {
	p := g.peers[replica]
	if p == nil || index < p.acked {
		return
	}
	if p.level == InSync && (index > p.acked || index >= tail) {
		p.since = now
	}
	p.acked = index
	if p.level == Out && p.down.IsZero() && index+g.timing.Window >= tail {
		p.set(CatchingUp, now)
	}
	if p.level == CatchingUp && index >= g.offered {
		p.set(InSync, now)
	}
}

// Link notes that the connection to a replica broke or came back.
func (g *Gate) Link(replica string, up bool, now time.Time) {
	p := g.peers[replica]
	switch {
	case p == nil:
	case up:
		p.down = time.Time{}
	case p.down.IsZero():
		p.down = now
	}
}

// Tick applies the time limits; tail is the owner's last index. It must be called at least as often as LinkGrace.
func (g *Gate) Tick(tail uint64, now time.Time) {
	for _, p := range g.peers {
		if p.acked >= tail && p.level == InSync {
			p.since = now
		}
		switch {
		case p.level == Out:
		case !p.down.IsZero() && now.Sub(p.down) >= g.timing.LinkGrace:
			p.set(Out, now)
		case p.level == InSync && now.Sub(p.since) >= g.timing.NoProgress:
			p.set(Out, now)
		case p.level == CatchingUp && now.Sub(p.since) >= g.timing.CatchUp:
			p.set(Out, now)
		}
	}
}

// Keep forgets every replica that is not in the set: it has left the group.
func (g *Gate) Keep(replicas map[string]bool) {
	for r := range g.peers {
		if !replicas[r] {
			delete(g.peers, r)
		}
	}
}

// Add tracks a replica that has joined during the term: it counts as lost until it has caught up.
func (g *Gate) Add(replica string, now time.Time) {
	if g.peers[replica] == nil {
		g.peers[replica] = &peer{level: Out, since: now}
	}
}

// Limit returns the highest index that may be offered to the witness now.
func (g *Gate) Limit() uint64 {
	limit := uint64(math.MaxUint64)
	for _, p := range g.peers {
		switch p.level {
		case InSync:
			limit = min(limit, p.acked)
		case CatchingUp:
			limit = min(limit, max(p.acked, g.offered))
		case Out:
		}
	}
	return limit
}

// Offered notes that the witness is being sent everything up to index. The caller must not go beyond Limit.
func (g *Gate) Offered(index uint64) { g.offered = max(g.offered, index) }

// Level returns how a replica stands; one that is not tracked is Out.
func (g *Gate) Level(replica string) Level {
	if p := g.peers[replica]; p != nil {
		return p.level
	}
	return Out
}

func (p *peer) set(l Level, now time.Time) {
	p.level, p.since = l, now
}

// Degraded says whether some replica is not in sync: the witness's vote may be needed for the next commit.
func (g *Gate) Degraded() bool {
	for _, p := range g.peers {
		if p.level != InSync {
			return true
		}
	}
	return false
}

// Synced says whether every replica in sync has acknowledged index: the condition, beside the commit, for acknowledging a
// write. With two copies and a witness the commit implies it; with three copies a quorum is less than all.
func (g *Gate) Synced(index uint64) bool {
	for _, p := range g.peers {
		if p.level == InSync && p.acked < index {
			return false
		}
	}
	return true
}
