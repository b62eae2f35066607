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

	"sanctuary/replication/mutant"
)

// Level says how a data replica stands, as its owner sees it.
type Level int

// Levels. A replica starts InSync: until it is known to be lost, nothing may be committed without it.
const (
	InSync     Level = iota // every acknowledged write is on this replica
	Out                     // lost, too slow, or too often so of late: entries are committed without it
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
	// Settle is for how long a replica must have kept up before it is let in again after its second fall; it doubles with every
	// further fall, up to SettleMax. After the first it need not wait. SettleMax spent in sync takes one fall off its account.
	//
	// A fall costs the writers NoProgress, and a replica that falls again and again must not cost them that at its own pace.
	// So in any time t it falls at most 2 + log2(SettleMax/Settle) + t/SettleMax times: a fall that finds the account full comes
	// SettleMax out of sync after the one before, and one that does not has been paid for by SettleMax in sync, but for the
	// first few.
	Settle, SettleMax time.Duration
}

// Gate tracks the data replicas of one LUN for one term of its owner. Not concurrent-safe.
type Gate struct {
	timing  Timing
	peers   map[string]*peer
	begun   uint64 // last index of the owner's log when the term began
	offered uint64 // the highest index the witness may have
}

type peer struct {
	level   Level
	acked   uint64    // in this term; 0: nothing yet
	entered time.Time // when level began
	since   time.Time // when it last had nothing outstanding or made progress
	down    time.Time // when its connection broke; zero while it is up
	near    time.Time // Out: since when it has kept up without a break; zero if it does not
	goal    uint64    // CatchingUp: what may have been acknowledged without it ends here at the latest
	falls   int       // its account of falls; see Timing.Settle
}

// New returns the gate of a new term. tail is the last index of the owner's log: the witness may have all of it.
func New(timing Timing, tail uint64, now time.Time, replicas ...string) *Gate {
	g := &Gate{timing: timing, peers: map[string]*peer{}, begun: tail, offered: tail}
	for _, r := range replicas {
		g.peers[r] = &peer{entered: now, since: now}
	}
	return g
}

// Acked notes that a replica has acknowledged everything up to index; tail is the owner's last index.
func (g *Gate) Acked(replica string, index, tail uint64, now time.Time) {
	p := g.peers[replica]
	if p == nil || index < p.acked {
		return
	}
	if index > p.acked || index >= tail {
		p.since = now
	}
	if p.acked == 0 && p.level == InSync && index+g.timing.Window < g.begun {
		// It was out before this term, and may be for long: were it waited for, nobody could write meanwhile. What was on its way to a replica
		// in sync is far less. It has not fallen now.
		p.set(Out, now)
	}
	p.acked = index
	if p.level == Out && g.keepsUp(p, tail, now) {
		if p.near.IsZero() {
			p.near = now
		}
		if now.Sub(p.near) >= g.timing.settle(p.falls) {
			p.set(CatchingUp, now)
			p.goal = tail // what comes after waits for it (Synced)
		}
	}
	if p.level == CatchingUp && index >= max(g.offered, p.goal) {
		p.set(InSync, now)
	}
}

// keepsUp says of a lost replica whether it is there, nearly has what the owner has, and goes on taking it.
func (g *Gate) keepsUp(p *peer, tail uint64, now time.Time) bool {
	return p.down.IsZero() && p.acked+g.timing.Window >= tail && now.Sub(p.since) < g.timing.NoProgress
}

// Link notes that the connection to a replica broke or came back.
func (g *Gate) Link(replica string, up bool, now time.Time) {
	p := g.peers[replica]
	switch {
	case p == nil:
	case up:
		p.down = time.Time{}
	case p.down.IsZero():
		p.down, p.near = now, time.Time{}
	}
}

// Tick applies the time limits and says whether a replica has been given up; tail is the owner's last index. It must be called at least
// as often as LinkGrace.
func (g *Gate) Tick(tail uint64, now time.Time) (fell bool) {
	for _, p := range g.peers {
		if p.acked >= tail {
			p.since = now
		}
		switch {
		case p.level == Out:
			if !g.keepsUp(p, tail, now) {
				p.near = time.Time{}
			}
		case !p.down.IsZero() && now.Sub(p.down) >= g.timing.LinkGrace,
			p.level == InSync && now.Sub(p.since) >= g.timing.NoProgress,
			p.level == CatchingUp && now.Sub(p.entered) >= g.timing.CatchUp:
			g.fall(p, now)
			fell = true
		}
	}
	return fell
}

// fall gives a replica up, and enters that in its account.
func (g *Gate) fall(p *peer, now time.Time) {
	if p.level == InSync && g.timing.SettleMax > 0 {
		p.falls -= min(p.falls, int(now.Sub(p.entered)/g.timing.SettleMax))
	}
	if p.falls < 2 || g.timing.settle(p.falls) < g.timing.SettleMax {
		p.falls++
	}
	p.set(Out, now)
}

// settle returns for how long a replica with so many falls must keep up before it is let in.
func (t Timing) settle(falls int) time.Duration {
	d := time.Duration(0)
	for i := 2; i <= falls && d < t.SettleMax; i++ {
		d = min(max(t.Settle, 2*d), t.SettleMax)
	}
	return d
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
		g.peers[replica] = &peer{level: Out, entered: now, since: now}
	}
}

// Limit returns the highest index that may be offered to the witness now.
func (g *Gate) Limit() uint64 {
	limit := uint64(math.MaxUint64)
	if mutant.W {
		return limit
	}
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

// Settle returns for how long a replica that is out has to keep up before it is let in.
func (g *Gate) Settle(replica string) time.Duration {
	if p := g.peers[replica]; p != nil {
		return g.timing.settle(p.falls)
	}
	return 0
}

func (p *peer) set(l Level, now time.Time) {
	p.level, p.entered, p.since, p.near = l, now, now, time.Time{}
}

// Degraded says whether the witness's vote may be needed for the next commit: some replica is not in sync, or there is none beside the owner, since
// one that is being rebuilt is no member meanwhile.
func (g *Gate) Degraded() bool {
	if len(g.peers) == 0 {
		return true
	}
	for _, p := range g.peers {
		if p.level != InSync {
			return true
		}
	}
	return false
}

// Synced says whether every replica that is in sync, or about to be, has acknowledged index: the condition, beside the commit, for acknowledging a
// write. With two copies and a witness the commit implies it; with three copies a quorum is less than all.
func (g *Gate) Synced(index uint64) bool {
	for _, p := range g.peers {
		if p.level != Out && p.acked < index {
			return false
		}
	}
	return true
}
