package replication

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/replication/mutant"
)

// What peers ask of this replica, seen before its Raft is asked, and what that answers, seen before they are (rules G and L). What it asks of them is in peers.go.

// incoming sees every request before Raft does.
func (g *Group) incoming(from raft.ServerID, _ string, cmd any) (resp any, err error, handled bool) {
	inst := g.running()
	if inst == nil {
		return nil, errors.New("this replica is being rebuilt or has failed"), true
	}
	header := g.header()
	fromWitness := g.hearing(from).Witness
	switch c := cmd.(type) {
	case *raft.AppendEntriesRequest:
		if fromWitness {
			return nil, errWitnessSilent, true
		}
		if g.mending.damaged.Load() && !isHeartbeat(c) {
			return nil, errDamagedLog, true
		}
		// Before Raft sees it, so that a vote already on its way to Raft finds the promise made (see raftAnswered).
		if h := g.hushed.Load(); h != nil && (from != h.owner || c.Term > h.term) {
			g.stir()
		}
		if c.Term >= inst.raft.CurrentTerm() {
			g.promise.give(from, c.Term, time.Now())
		}
		if err := g.awaitRoom(inst, c); err != nil {
			return nil, err, true
		}
		if err := g.awaitBacklog(inst, c); err != nil {
			return nil, err, true
		}
	case *raft.RequestVoteRequest:
		if fromWitness {
			return nil, errWitnessSilent, true
		}
		if err := g.abstains(); err != nil {
			return nil, err, true
		}
		if !c.LeadershipTransfer && g.forbids(from, time.Now()) {
			return &raft.RequestVoteResponse{RPCHeader: header, Term: inst.raft.CurrentTerm()}, nil, true
		}
		c.ID = candidate(inst.raft, from)
	case *raft.RequestPreVoteRequest:
		if fromWitness {
			return nil, errWitnessSilent, true
		}
		if err := g.abstains(); err != nil {
			return nil, err, true
		}
		if g.forbids(from, time.Now()) {
			return &raft.RequestPreVoteResponse{RPCHeader: header, Term: inst.raft.CurrentTerm()}, nil, true
		}
		g.awaitSilence(inst, from)
		c.ID = candidate(inst.raft, from)
	case *raft.TimeoutNowRequest:
		if g.cfg.Self.Witness || fromWitness {
			return nil, errWitnessSilent, true
		}
		if want := transferTerm(inst.raft.CurrentTerm()); string(c.Addr) != string(want) || !g.promise.madeTo(from) {
			return nil, fmt.Errorf("a transfer of %q is not of this term", c.Addr), true
		}
		end := endOfTransfer(c.ID)
		if inst.raft.LastIndex() > end {
			return nil, errTransferOver, true
		}
		g.offeredEnd.Store(end)
		g.offered.Store(inst.raft.CurrentTerm())
	case *raft.InstallSnapshotRequest:
		if !g.cfg.Self.Witness {
			return nil, errRebuild, true
		}
		if c.LastLogIndex <= inst.raft.AppliedIndex() { // late: Raft itself would go back to it
			return nil, fmt.Errorf("snapshot of index %d is older than what this witness has", c.LastLogIndex), true
		}
	}
	return nil, nil, false
}

// awaitSilence keeps a pre-vote from a witness's Raft while that still believes in an owner whom nothing is promised any more, for he has not been
// heard for so long: the candidate has noticed his silence first, by up to the interval of a ping. Refused, it would ask again a random time later, as long as an
// election timeout or two, and so long the LUN would have no owner. Data replicas do not wait: they stand themselves as soon as they notice.
func (g *Group) awaitSilence(inst *instance, from raft.ServerID) {
	if !g.cfg.Self.Witness {
		return
	}
	heard := inst.raft.LastContact()
	for end := time.Now().Add(g.cfg.Timing.Heartbeat / 2); time.Now().Before(end); {
		_, leader := inst.raft.LeaderWithID()
		if leader == "" || leader == from || inst.raft.LastContact() != heard || time.Since(heard) < g.cfg.Timing.Kick {
			return
		}
		select {
		case <-time.After(silencePoll):
		case <-inst.ctx.Done():
			return
		}
	}
}

// silencePoll is how often awaitSilence looks: Raft tells nobody when it forgets an owner.
const silencePoll = 10 * time.Millisecond

// header is what Raft puts into its own answers.
func (g *Group) header() raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(g.cfg.Self.ID), Addr: []byte(g.cfg.Self.Node)}
}

// candidate returns the ID under which Raft hears of somebody who stands for election: his own, if he votes as far as this replica knows, else that of somebody
// who does. The library refuses whoever it does not know as a voter; but he may have become one behind the end of this replica's log, and if nobody else
// who was told is left, the LUN would wait for ever. Raft itself does not ask for that: whoever was removed without noticing lacks the entry
// that says so, which a majority has, and is refused for his log, before anybody's term has changed (the library's pre-vote).
func candidate(r *raft.Raft, from raft.ServerID) []byte {
	id := from
	for _, s := range r.GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter {
			if s.ID == from {
				return []byte(from)
			}
			id = s.ID
		}
	}
	return []byte(id)
}

// raftAnswered sees what Raft answers before it is sent: the voter's promise is made here, so it begins before its
// receiver can count on it.
func (g *Group) raftAnswered(from raft.ServerID, cmd, resp any, err error) {
	if err != nil {
		return
	}
	switch req := cmd.(type) {
	case *raft.AppendEntriesRequest:
		r, ok := resp.(*raft.AppendEntriesResponse)
		if ok && r.Success && !isHeartbeat(req) && !mutant.Ack && !g.hold(req) {
			r.Success = false
		}
		if ok && r.Success && r.Term == req.Term {
			g.promise.give(from, req.Term, time.Now())
		}
	case *raft.RequestVoteRequest:
		// The vote may have waited for Raft while a promise was made to another. It is on disk, and not counting it is safe.
		if r, ok := resp.(*raft.RequestVoteResponse); ok && !req.LeadershipTransfer && g.forbids(from, time.Now()) {
			r.Granted = false
		}
	}
}

// standIn answers a heartbeat in place of Raft, whose goroutine is busy with entries of the same owner: their sync takes its time. The owner need not step
// down for that. What the answer says is that this replica follows the owner in this term and has promised its vote (rule L), and nothing of entries. The
// promise is given before the term is looked at, and a voter looks at its promise after its term has changed (raftAnswered, mayStand): one of the two sees the other.
func (g *Group) standIn(from raft.ServerID, req *raft.AppendEntriesRequest) *raft.AppendEntriesResponse {
	inst := g.running()
	if inst == nil || !g.promise.give(from, req.Term, time.Now()) || inst.raft.CurrentTerm() != req.Term {
		return nil
	}
	return &raft.AppendEntriesResponse{RPCHeader: g.header(), Term: req.Term, LastLog: inst.raft.LastIndex(), Success: true}
}

func transferTerm(term uint64) []byte { return fmt.Appendf(nil, "term:%d", term) }

// transferEnd is where the log of an owner ends that asks another node to stand; it is told in the place of the sender's ID, at which Raft does not look.
func transferEnd(index uint64) []byte { return fmt.Appendf(nil, "end:%d", index) }

// endOfTransfer is the opposite. An owner of an older program does not say, and relies on nothing.
func endOfTransfer(id []byte) uint64 {
	var index uint64
	if n, err := fmt.Sscanf(string(id), "end:%d", &index); n != 1 || err != nil {
		return math.MaxUint64
	}
	return index
}
