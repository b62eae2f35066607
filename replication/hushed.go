package replication

import (
	"errors"
	"time"

	"github.com/hashicorp/raft"
)

// The follower's half of quiet.go.

// hushed is one spell of quiet, on a follower.
type hushed struct {
	token uint64
	term  uint64
	owner raft.ServerID
	by    *vouchee
	done  chan struct{} // closed when it ends
	// termNow is Raft's term.
	termNow func() uint64

	fed    time.Time                 // when Raft last got a heartbeat made here; guarded by by.mu
	beat   raft.AppendEntriesRequest // which Raft only reads
	answer chan raft.RPCResponse     // capacity 1
	asked  bool                      // an answer is outstanding
}

type quietRequest struct {
	Version  int           `json:"version"` // 1
	LUN      string        `json:"lun"`
	Epoch    uint64        `json:"epoch"`
	Owner    raft.ServerID `json:"owner"`
	Member   raft.ServerID `json:"member"`
	Token    uint64        `json:"token"`
	Term     uint64        `json:"term"`
	Last     uint64        `json:"last"`
	LastTerm uint64        `json:"last_term"`
}

var errNotInStep = errors.New("this replica is not in step with the owner")

// hush lets this follower fall quiet, if its log ends where the owner's does and all of that is committed and applied.
func (g *Group) hush(q quietRequest, by *vouchee) error {
	inst := g.running()
	switch {
	case !g.cfg.Timing.allowsQuiet():
		return errNotInStep
	case inst == nil || q.Epoch != g.cfg.Epoch || q.Member != g.cfg.Self.ID:
		return errNoReplica
	case g.Err() != nil || g.abstains() != nil || inst.raft.State() != raft.Follower || inst.raft.CurrentTerm() != q.Term || inst.raft.LastIndex() != q.Last ||
		inst.raft.CommitIndex() != q.Last || inst.raft.AppliedIndex() != q.Last:
		return errNotInStep
	}
	if _, leader := inst.raft.LeaderWithID(); leader != q.Owner {
		return errNotInStep
	}
	var l raft.Log
	if err := g.cfg.Journal.Head(q.Last, &l); err != nil || l.Term != q.LastTerm {
		return errNotInStep
	}
	g.stir() // of an earlier spell
	h := &hushed{
		token: q.Token, term: q.Term, owner: q.Owner, by: by, done: make(chan struct{}), termNow: inst.raft.CurrentTerm, answer: make(chan raft.RPCResponse, 1),
	}
	// As Raft makes its own.
	h.beat = raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(q.Owner), Addr: []byte(nodeOf(q.Owner))},
		Term:      q.Term,
	}
	if !by.agree(g, h) {
		return errNotInStep
	}
	if g.running() != inst { // halted meanwhile, before there was anything to end
		g.stir()
		return errNoReplica
	}
	return nil
}

// stir ends the quiet on a follower, if any. What was promised stays.
func (g *Group) stir() {
	if h := g.hushed.Load(); h != nil {
		h.by.mu.Lock()
		defer h.by.mu.Unlock()
		g.stirLocked(h)
	}
}

// stirLocked ends h; the caller holds h.by.mu, so that no vouch is answered between the promise and its end.
func (g *Group) stirLocked(h *hushed) {
	if g.hushed.Load() != h {
		return
	}
	g.promise.give(h.owner, h.term, h.by.at)
	delete(h.by.groups, h.token)
	g.hushed.Store(nil)
	close(h.done)
}

// feed gives Raft the heartbeat that its owner has not sent. The caller holds h.by.mu.
func (g *Group) feed(h *hushed, now time.Time) {
	inst := g.running()
	if inst == nil || inst.raft.CurrentTerm() != h.term {
		g.stirLocked(h)
		return
	}
	every := feedEvery
	if g.cfg.Self.Witness { // it never stands; this is only for it not to forget the owner
		every = g.cfg.Timing.Heartbeat / 2
	}
	if now.Sub(h.fed) < every-vouchEvery/2 {
		return
	}
	if h.asked {
		select {
		case <-h.answer: // says what the next look at the term does
			h.asked = false
		default:
			return // Raft is busy: at the next vouch
		}
	}
	if f, ok := inst.peers.inner.(interface{ Feed(raft.RPC) bool }); ok && f.Feed(raft.RPC{Command: &h.beat, RespChan: h.answer}) {
		h.fed, h.asked = now, true
	}
}

// forbids says whether voting for candidate now would break the promise, which a quiet LUN's replica gives with every vouch.
func (g *Group) forbids(candidate raft.ServerID, now time.Time) bool {
	if h := g.hushed.Load(); h != nil && candidate != h.owner && now.Before(h.by.until(g.cfg.Timing.Promise)) {
		return true
	}
	return g.promise.forbids(candidate, now)
}
