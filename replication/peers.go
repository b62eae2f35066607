package replication

import (
	"errors"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
	"sanctuary/replication/mutant"
	"sanctuary/replication/witness"
)

// peers is the transport as Raft sees it. It adds to the bare one what rules L and W ask of messages between replicas:
// leases are renewed and promises kept here, and the witness hears what its gate allows. It only delays, shortens or
// refuses messages, which Raft must bear from any network.
type peers struct {
	inner  Transport
	g      *Group
	closed chan struct{}
	// starting, if not nil, is called when Raft has read its log and is about to run.
	starting func()
	once     sync.Once

	mu    sync.Mutex // guards pipes; held for nothing else
	pipes map[raft.ServerID]*holding
}

// Transport is what the group needs of replication/transport, as *transport.GroupTransport gives it.
type Transport interface {
	raft.Transport
	raft.WithPreVote
	raft.WithClose
}

func newPeers(g *Group, inner Transport) *peers {
	return &peers{inner: inner, g: g, closed: make(chan struct{}), pipes: map[raft.ServerID]*holding{}}
}

// What a replica's transport refuses. The texts must never hold "unexpected command": Raft takes such a refusal of a
// pre-vote for consent.
var (
	errWitnessSilent = errors.New("a witness never stands for election nor leads")
	errPromised      = errors.New("this replica has promised its vote to the owner it last heard")
	errRebuild       = errors.New("the log no longer reaches back to this replica: it must be rebuilt")
	errTransferOver  = errors.New("this replica's log goes on behind the transfer it was asked to stand for: that has failed")
	errNotForWitness = errors.New("a witness was named where a data replica is needed")
)

// witnessBatch is how many entries, or how long, a quiet witness is let wait: it is of no use to a healthy LUN.
const (
	witnessBatch = 64
	witnessDelay = 10 * time.Millisecond
	witnessWait  = 50 * time.Millisecond
)

func (p *peers) Consumer() <-chan raft.RPC     { return p.inner.Consumer() }
func (p *peers) LocalAddr() raft.ServerAddress { return p.inner.LocalAddr() }

// SetHeartbeatHandler is the last thing that raft.NewRaft does before it starts its goroutines. The handler is not called: it would change term and state off
// Raft's goroutine (hashicorp/raft#695).
func (p *peers) SetHeartbeatHandler(func(raft.RPC)) {
	if p.starting != nil {
		p.starting()
	}
}

// Close ends the waits here and closes the transport below.
func (p *peers) Close() error {
	p.once.Do(func() { close(p.closed) })
	return p.inner.Close()
}

func (p *peers) EncodePeer(id raft.ServerID, a raft.ServerAddress) []byte {
	return p.inner.EncodePeer(id, a)
}
func (p *peers) DecodePeer(b []byte) raft.ServerAddress { return p.inner.DecodePeer(b) }

// isHeartbeat tells Raft's own heartbeats, by Raft's own criterion.
func isHeartbeat(r *raft.AppendEntriesRequest) bool {
	return len(r.Entries) == 0 && r.PrevLogEntry == 0 && r.PrevLogTerm == 0 && r.LeaderCommitIndex == 0
}

// AppendEntries implements raft.Transport.
func (p *peers) AppendEntries(id raft.ServerID, target raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if p.g.cfg.Self.Witness {
		return errWitnessSilent
	}
	if isHeartbeat(req) {
		if p.skipBeats(id, req.Term) {
			*resp = raft.AppendEntriesResponse{RPCHeader: req.RPCHeader, Term: req.Term, Success: true}
			return nil
		}
		p.awaitLink(target, req.Term)
		sent := time.Now()
		err := p.inner.AppendEntries(id, target, req, resp)
		if err == nil && resp.Success && resp.Term == req.Term {
			p.g.lease.renew(id, req.Term, sent)
			p.g.heartbeatAnswered(id)
		}
		p.g.noteRefused(err)
		return err
	}
	if p.withhold(id, req, resp) {
		return nil
	}
	p.awaitLink(target, req.Term)
	out := req
	if p.g.member(id).Witness {
		out = p.forWitness(req)
	}
	err := p.inner.AppendEntries(id, target, out, resp)
	req.Entries = req.Entries[:len(out.Entries)] // the transport, too, may have shortened it
	p.g.replied(id, req, resp, err)
	return err
}

// linkWait bounds the wait for a node that is down.
const linkWait = 10 * time.Second

// awaitLink waits while a node cannot be reached, for a bounded time. Raft doubles its pause with every failure, up to 10 s:
// a node that was away for a minute would not be heard of for so long after its return. Waiting here instead, there are few
// failures, and its return is noticed at once.
func (p *peers) awaitLink(node raft.ServerAddress, term uint64) {
	if p.g.host.mux.Up(string(node)) {
		return
	}
	p.g.host.mux.Connect(string(node)) // of a member that an earlier owner has added nobody may have spoken here yet
	timer := time.NewTimer(linkWait)
	defer timer.Stop()
	for {
		moved := p.g.linkMoves() // before looking
		if p.g.host.mux.Up(string(node)) || p.g.termLed() != term {
			return
		}
		select {
		case <-moved:
		case <-timer.C:
			return
		case <-p.closed:
			return
		}
	}
}

// linkMoves returns a channel that is closed when a connection has come or gone, or this node no longer leads.
func (g *Group) linkMoves() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.linkMove
}

// moveLinksLocked wakes who waits for such a change.
func (g *Group) moveLinksLocked() {
	close(g.linkMove)
	g.linkMove = make(chan struct{})
}

// forWitness shortens req, in place, to what the witness may have now, and returns it without payloads. In place, because
// Raft counts as matched whatever req says when the answer is a success.
func (p *peers) forWitness(req *raft.AppendEntriesRequest) *raft.AppendEntriesRequest {
	if n := len(req.Entries); n > 0 {
		limit := uint64(0)
		if p.g.cfg.Journal.AwaitDurable(req.Entries[0].Index, p.closed) == nil {
			limit = p.g.awaitGate(req.Term, req.Entries[0].Index, req.Entries[n-1].Index)
		}
		for n > 0 && req.Entries[n-1].Index > limit {
			n--
		}
		req.Entries = req.Entries[:n]
	}
	out := *req
	out.Entries = witness.Strip(req.Entries)
	return &out
}

// AppendEntriesPipeline implements raft.Transport. A witness gets none: its requests are shortened, which a pipeline's
// bookkeeping cannot follow, and one request at a time, of up to maxAppendEntries bare entries, is fast enough.
func (p *peers) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	if p.g.cfg.Self.Witness || p.g.member(id).Witness {
		return nil, raft.ErrPipelineReplicationNotSupported
	}
	pipe, err := p.inner.AppendEntriesPipeline(id, target) // its answers come to replied as transport.GroupConfig.Replied
	if err != nil {
		return nil, err
	}
	h := &holding{pipe, p, id}
	p.mu.Lock()
	p.pipes[id] = h
	p.mu.Unlock()
	return h, nil
}

// RequestVote implements raft.Transport.
func (p *peers) RequestVote(id raft.ServerID, target raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if err := p.mayStand(req.LeadershipTransfer); err != nil {
		return err
	}
	if req.LeadershipTransfer && req.LastLogIndex > p.g.offeredEnd.Load() {
		return errTransferOver
	}
	err := p.inner.RequestVote(id, target, req, resp)
	p.g.noteRefused(err)
	return err
}

// RequestPreVote implements raft.WithPreVote.
func (p *peers) RequestPreVote(id raft.ServerID, target raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if err := p.mayStand(false); err != nil {
		return err
	}
	if !p.g.host.mux.Up(string(target)) { // fails at once, and costs nothing
		return p.inner.RequestPreVote(id, target, req, resp)
	}
	el, err := p.g.host.elections.admit(p.g, 3*p.g.cfg.Timing.Heartbeat, p.closed)
	if err != nil {
		return err
	}
	if err = p.mayStand(false); err == nil { // there may be an owner by now
		err = p.inner.RequestPreVote(id, target, req, resp)
	}
	p.g.host.elections.answered(el, err == nil && resp.Granted)
	p.g.noteRefused(err)
	return err
}

// mayStand: a witness never stands, a data replica not while its promise lasts. An owner that transfers its leadership has
// given up its lease first, so nobody relies on the promise then.
func (p *peers) mayStand(transfer bool) error {
	switch {
	case p.g.cfg.Self.Witness:
		return errWitnessSilent
	case !transfer && p.g.forbids(p.g.cfg.Self.ID, time.Now()):
		return errPromised
	}
	return p.g.abstains()
}

// InstallSnapshot implements raft.Transport. Only a witness takes one: its snapshots are a few words. A data replica is
// rebuilt with its Raft stopped (rebuild.go), never inside Raft's Restore.
func (p *peers) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, req *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if p.g.cfg.Self.Witness {
		return errWitnessSilent
	}
	if !p.g.member(id).Witness {
		p.g.needsRebuild(id)
		return errRebuild
	}
	return p.inner.InstallSnapshot(id, target, req, resp, data)
}

// TimeoutNow implements raft.Transport. The lease ends before the other node is told to stand.
func (p *peers) TimeoutNow(id raft.ServerID, target raft.ServerAddress, req *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	if p.g.member(id).Witness {
		return errNotForWitness
	}
	inst := p.g.running()
	if inst == nil {
		return block.ErrClosed
	}
	p.g.lease.revoke()
	out := *req
	out.ID = transferEnd(inst.raft.LastIndex()) // nothing is stored while Raft transfers
	// The request has no term of its own, and a late one must not depose a later term's owner, whose lease is not revoked.
	// Raft does not look at the sender's address.
	out.Addr = transferTerm(p.g.termLed())
	return p.inner.TimeoutNow(id, target, &out, resp)
}

// termLed returns the term this node leads in, 0 if it does not.
func (g *Group) termLed() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.gateTerm
}

// parked is an entry that is committed and applied but not yet on every replica in sync.
type parked struct{ index, proposal uint64 }

// replied sees an answer before Raft does: it holds a success back until it may be counted (rule G, openlog.go).
func (g *Group) replied(id raft.ServerID, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse, err error) {
	if err == nil && resp.Success && !mutant.G && !g.hold(req) {
		resp.Success = false
	}
	g.answered(id, req, resp, err)
}

// answered notes a replica's answer to entries this owner sent.
func (g *Group) answered(id raft.ServerID, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse, err error) {
	g.noteAnswer(id, req, resp, err)
	g.noteRefused(err)
	g.releaseParked()
}

func (g *Group) noteAnswer(id raft.ServerID, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gate == nil || g.gateTerm != req.Term || g.inst == nil {
		return
	}
	now, isWitness := time.Now(), g.memberLocked(id).Witness
	if err != nil {
		if !isWitness { // unreachable, or reachable and refusing: either way nothing is stored there
			g.gate.Link(string(id), false, now)
		}
		return
	}
	if !resp.Success || resp.Term != req.Term {
		return
	}
	index := req.PrevLogEntry
	if n := len(req.Entries); n > 0 {
		index = req.Entries[n-1].Index
	}
	g.match[id] = max(g.match[id], index)
	g.heard[id], g.contacts[id] = now, now
	g.heardCommit[id] = max(g.heardCommit[id], req.LeaderCommitIndex)
	delete(g.needs, id)
	delete(g.claimed, id)
	back := g.answersLocked(id, now)
	if isWitness {
		return
	}
	before := g.gate.Level(string(id))
	if back {
		g.gate.Link(string(id), true, now)
	}
	g.gate.Acked(string(id), g.match[id], g.inst.raft.LastIndex(), now)
	if after := g.gate.Level(string(id)); after != before {
		g.log.Info("a replica's standing has changed", "peer", string(id), "from", before, "to", after)
		g.moveGateLocked()
		g.cfg.OnChange()
	}
}

func (g *Group) moveGateLocked() {
	close(g.gateMove)
	g.gateMove = make(chan struct{})
}

// awaitGate returns the highest index the witness may have: what the gate allows, and is on this owner's own disk. The witness alone with an
// entry that the power took from the owner's disk would refuse its vote to every copy that is left. It waits a little for the first entry to be allowed, so that
// Raft's sender does not spin, and for a batch to gather while the witness is of no use (it looks again every witnessDelay
// and is not woken by every acknowledgement); never long enough to hold up a leader that has to stop.
func (g *Group) awaitGate(term, first, last uint64) uint64 {
	for started := time.Now(); ; {
		g.mu.Lock()
		if g.gate == nil || g.gateTerm != term {
			g.mu.Unlock()
			return 0
		}
		limit, degraded, moved := min(g.gate.Limit(), g.cfg.Journal.Durable()), g.gate.Degraded(), g.gateMove
		waited := time.Since(started)
		enough := limit >= first && (degraded || limit >= first+witnessBatch-1 || waited >= witnessDelay)
		if enough || waited >= witnessWait {
			g.gate.Offered(min(limit, last))
			g.mu.Unlock()
			return limit
		}
		g.mu.Unlock()
		select {
		case <-moved: // a replica was lost or is back
		case <-time.After(witnessDelay):
		case <-g.ctx.Done():
			return 0
		}
	}
}

func (g *Group) member(id raft.ServerID) Member {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.memberLocked(id)
}
