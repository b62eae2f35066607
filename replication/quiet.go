package replication

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/replication/witness"
)

// A LUN that nobody writes to falls quiet: its replicas stop sending each other heartbeats, and one message between two nodes
// (vouch.go) stands for those of all quiet LUNs that the one owns and the other has a replica of. Without that a thousand idle
// LUNs cost more than a core. What is argued in lease.go and by Raft must hold as before:
//
//   - Raft. The owner's Raft goes on asking for its heartbeats to be sent, and the follower's goes on receiving them; they are
//     answered here and made there, as long as the two nodes hear each other. A heartbeat made on the follower is one that its
//     owner could have sent in that term, perhaps long ago: Raft bears late and repeated messages, and one of an old term it
//     refuses. So the worst a wrong one does is to hold up an election, and only while the owner's node is heard.
//   - Rule L. A vouch is answered only after the answering node counts as having promised, for every LUN that is quiet there; the
//     owner counts from when it sent it. A node that has forgotten a quiet LUN says so in that very answer, and then the
//     owner counts nothing for this LUN. The details are at voucher and vouchee; TestVouchedLeaseEndsBeforeAnyMajorityIsFree.
//   - Elections. When the owner's node falls silent nothing is made any more, and the timers, and what shortens them (PeerLink),
//     run as they do for a LUN that is in use. So a quiet LUN is taken over as fast as any other.
//   - What a quiet LUN skips is known to change nothing: it falls quiet only while all members vote, every copy is in sync, and
//     each has said that its log ends where the owner's does and that it knows all of it to be committed.
//
// The first entry that the owner's Raft stores wakes it, before it is on disk, and goes out at once: there is nothing to be agreed
// on first. Reads do not wake it. Followers hear of its waking afterwards; until then they count both real heartbeats and vouches.

const (
	// quietAfter is how long nothing must have been written; what an election stores does not count.
	quietAfter = 3 * time.Second
	// quietTick is how often a quiet group looks at what is not told to it: its medium, its journal.
	quietTick = time.Second
	// holdFor is how long a group in use does not tell its members what they know.
	holdFor = time.Second
	// feedEvery is how often a follower's Raft gets a heartbeat that was not sent, and the owner's an answer to one. Not less often than
	// real ones come: how soon a follower stands for election once its timers are shortened depends on how old the last one is; and well
	// below Timing.LeaderLease, after which an owner steps down.
	feedEvery = 200 * time.Millisecond
)

// allowsQuiet: with patience shorter than that, vouches would come too seldom.
func (t Timing) allowsQuiet() bool {
	return min(t.LeaderLease, t.Promise) >= 4*vouchEvery && t.Heartbeat >= 8*vouchEvery
}

// quiet is one spell of quiet, on the owner.
type quiet struct {
	token uint64 // names it between the nodes
	term  uint64
	last  uint64 // where every log ends
	peers []quietPeer
	// since is when the vouchers had it: of one sent before, the answer may not say that the LUN is missing there.
	since time.Time
	done  chan struct{} // closed when it ends

	beat   raft.AppendEntriesRequest // what Raft is told was sent
	answer raft.AppendEntriesResponse
}

type quietPeer struct {
	id    raft.ServerID
	vouch *voucher
	// bears says that this member's answers are what keeps Raft here from stepping down; it needs a quorum's.
	bears bool
}

// sent is when the newest vouch that counts for this LUN had been sent to a member's node; zero if there is none.
func (q *quiet) sent(id raft.ServerID) time.Time {
	if p := q.peer(id); p != nil {
		if at := p.vouch.answered(); at.After(q.since) {
			return at
		}
	}
	return time.Time{}
}

func (q *quiet) peer(id raft.ServerID) *quietPeer {
	for i := range q.peers {
		if q.peers[i].id == id {
			return &q.peers[i]
		}
	}
	return nil
}

// rouse has entries stored. Whatever Raft stores ends the group's quiet first.
func (g *Group) rouse(store func() error) error {
	// Counted before looking: whoever falls quiet shows it first and then looks whether this has moved.
	g.storing.Add(1)
	g.wake()
	g.endLull()
	err := store()
	g.stored.Add(1)
	return err
}

// idleness is what the owner's maintain remembers between two looks.
type idleness struct{ term, last uint64 }

// rest lets the group fall quiet if nothing has been written for quietAfter, nothing stored since the last look, and everyone is in step; else it returns
// why not. It asks every member; one that does not agree is asked again at the next look. What an election stores is no use: after a standstill that has cost many LUNs their
// owners at once, all of them awake for quietAfter could be more than the machine has to give, and cost them their owners again.
func (g *Group) rest(ctx context.Context, idle *idleness) error {
	if g.quiet.Load() != nil {
		return nil
	}
	if g.cfg.Self.Witness || !g.cfg.Timing.allowsQuiet() {
		return errNeverQuiet
	}
	begun := g.storing.Load()
	inst, t := g.running(), g.tenure.Load()
	if inst == nil || t == nil {
		return errUsed
	}
	last, err := g.cfg.Journal.LastIndex()
	if err != nil || last != idle.last || t.term != idle.term || g.stored.Load() != begun {
		*idle = idleness{term: t.term, last: last}
		return errors.Join(errUsed, err)
	}
	if time.Since(g.opened)-time.Duration(g.usedAt.Load()) < quietAfter || !g.writes.idle() {
		return errUsed
	}
	if end, commit, applied := inst.raft.LastIndex(), inst.raft.CommitIndex(), inst.raft.AppliedIndex(); end != last || commit != last || applied != last {
		return fmt.Errorf("the journal ends at entry %d, Raft's log at %d, committed are %d and applied %d", last, end, commit, applied)
	}
	members := g.voters(inst)
	if err := g.inStep(inst, members, last); err != nil {
		return err
	}
	var l raft.Log
	if err := g.cfg.Journal.Head(last, &l); err != nil {
		return err
	}
	q := &quiet{token: rand.Uint64(), term: t.term, last: last, done: make(chan struct{})}
	for _, m := range members {
		v, err := g.host.askQuiet(ctx, m.Node, quietRequest{
			Version: 1, LUN: g.cfg.LUN, Epoch: g.cfg.Epoch, Owner: g.cfg.Self.ID, Member: m.ID,
			Token: q.token, Term: q.term, Last: last, LastTerm: l.Term,
		})
		if err != nil {
			q.forget()
			return fmt.Errorf("%s: %w", m.ID, err)
		}
		q.peers = append(q.peers, quietPeer{id: m.ID, vouch: v, bears: bears(len(q.peers), members)})
	}
	for _, p := range q.peers {
		p.vouch.add(q.token, g)
	}
	q.beat.Term, q.answer = q.term, raft.AppendEntriesResponse{Term: q.term, LastLog: last, Success: true}
	q.since = time.Now()
	g.quiet.Store(q)
	if g.storing.Load() != begun || g.tenure.Load() != t || inst.raft.State() != raft.Leader || inst.raft.CurrentTerm() != t.term || g.running() != inst {
		g.wake()
		return errUsed
	}
	return nil
}

// noteAwake notes why the group is not quiet; nil: it is.
func (g *Group) noteAwake(why error) {
	g.awake.Store(&why)
	if why != nil && !errors.Is(why, errUsed) {
		g.log.Debug("not quiet", "reason", why)
	}
}

// Why a group is not quiet.
var (
	errNeverQuiet = errors.New("it never falls quiet, by its timing or as a witness")
	errUsed       = errors.New("it was used a moment ago, or its owner has changed")
)

// bears says whether the i-th of the other members is among those that make a quorum with this one.
func bears(i int, members []Member) bool { return i < (len(members)+1)/2 }

// forget takes the spell's name off the nodes.
func (q *quiet) forget() {
	for _, p := range q.peers {
		p.vouch.end(q.token)
	}
}

// voters returns the other members of the group if all of them vote, are known, and are all there is.
func (g *Group) voters(inst *instance) []Member {
	f := inst.raft.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []Member
	for _, s := range f.Configuration().Servers {
		m, known := g.members[s.ID]
		switch {
		case !known || s.Suffrage != raft.Voter:
			return nil
		case s.ID != g.cfg.Self.ID:
			out = append(out, m)
		}
	}
	if len(out)+1 != len(g.members) {
		return nil
	}
	slices.SortFunc(out, func(a, b Member) int { // copies first
		switch {
		case a.Witness == b.Witness:
			return strings.Compare(string(a.ID), string(b.ID))
		case b.Witness:
			return -1
		}
		return 1
	})
	return out
}

// inStep returns nil if the members are all there are, and each has all of the log, as far as this owner has heard; else what is missing.
func (g *Group) inStep(inst *instance, members []Member, last uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gate == nil || len(members) == 0 || len(g.parked) > 0 || len(g.rebuild.orders) > 0 || g.rebuild.running {
		return fmt.Errorf("%d of %d other members vote, %d entries wait for a copy, %d copies are to be rebuilt", len(members), len(g.members)-1, len(g.parked), len(g.rebuild.orders))
	}
	for i, m := range members {
		switch {
		case bears(i, members) && inst.peers.pipe(m.ID) == nil:
			return fmt.Errorf("%s: there is no pipeline to it", m.ID)
		case g.match[m.ID] != last:
			return fmt.Errorf("%s: it has acknowledged entry %d of %d", m.ID, g.match[m.ID], last)
		case g.needs[m.ID] || !m.Witness && g.gate.Level(string(m.ID)) != witness.InSync:
			return fmt.Errorf("%s: it is not in sync", m.ID)
		}
	}
	return nil
}

// wake ends the quiet, if any: on the owner. It does not wait.
func (g *Group) wake() {
	q := g.quiet.Load()
	if q == nil {
		return
	}
	// Read before the quiet ends: what is noted afterwards may be from an answer that says this LUN is no longer quiet there.
	var buf [8]time.Time
	sent := buf[:0]
	for _, p := range q.peers {
		sent = append(sent, q.sent(p.id))
	}
	if !g.quiet.CompareAndSwap(q, nil) {
		return
	}
	for i, p := range q.peers {
		g.lease.renew(p.id, q.term, sent[i])
	}
	q.forget()
	close(q.done)
	g.endLull()
}

// leased says whether the owner's lease of the term is valid at the moment now, by heartbeats or by vouches.
func (g *Group) leased(term uint64, now time.Time) bool {
	q := g.quiet.Load()
	if q == nil || q.term != term {
		return g.lease.valid(term, now)
	}
	// In this order: an answer is noted only after the LUNs it does not count for have been woken.
	return g.lease.vouched(term, now, q) && g.quiet.Load() == q || g.lease.valid(term, now)
}

// skipBeats waits while the group is quiet: its heartbeats are not sent.
func (p *peers) skipBeats(id raft.ServerID, term uint64) {
	if q := p.g.quiet.Load(); q != nil && q.term == term && q.peer(id) != nil {
		select {
		case <-q.done:
		case <-p.closed:
		}
	}
}

// contact tells Raft that a member whose node has just answered a vouch has been heard.
func (g *Group) contact(v *voucher) {
	q, inst := g.quiet.Load(), g.running()
	if q == nil || inst == nil {
		return
	}
	for _, m := range q.peers {
		if m.bears && m.vouch == v {
			if pipe := inst.peers.pipe(m.id); pipe != nil {
				pipe.contact(q)
			}
		}
	}
}

// withhold keeps a request that would tell a member only what it knows until there is something to tell, and then answers it in the
// member's place. Raft sends such requests every Timing.Commit; of a group that is not quiet one a second goes out. false: it has to be
// sent.
func (p *peers) withhold(id raft.ServerID, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) bool {
	g := p.g
	if len(req.Entries) > 0 || req.PrevLogEntry != req.LeaderCommitIndex || !g.told(id, req) {
		return false
	}
	l := g.lull.Load()
	if l == nil {
		l = &lull{done: make(chan struct{})}
		if !g.lull.CompareAndSwap(nil, l) {
			return false
		}
	}
	// Looked at after the lull is seen by whoever stores an entry.
	if last, err := g.cfg.Journal.LastIndex(); err != nil || last != req.PrevLogEntry || g.storing.Load() != g.stored.Load() {
		return false
	}
	var pause <-chan time.Time
	if q := g.quiet.Load(); q == nil || q.last != req.PrevLogEntry {
		timer := time.NewTimer(holdFor)
		defer timer.Stop()
		pause = timer.C
	}
	select {
	case <-l.done:
	case <-p.closed:
	case <-pause:
		return false
	}
	*resp = raft.AppendEntriesResponse{RPCHeader: req.RPCHeader, Term: req.Term, LastLog: req.PrevLogEntry, Success: true}
	return true
}

// lull is the time in which nothing is stored.
type lull struct{ done chan struct{} }

// endLull lets go of what is held.
func (g *Group) endLull() {
	if l := g.lull.Load(); l != nil && g.lull.CompareAndSwap(l, nil) {
		close(l.done)
	}
}

// told says whether a member has answered all that req would tell it, in this term.
func (g *Group) told(id raft.ServerID, req *raft.AppendEntriesRequest) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.gate != nil && g.gateTerm == req.Term && g.match[id] == req.PrevLogEntry && g.heardCommit[id] == req.LeaderCommitIndex
}

// holding is a pipeline that holds what a quiet group need not send.
type holding struct {
	raft.AppendPipeline
	p  *peers
	id raft.ServerID
}

// pipe returns the pipeline to a member, nil if there is none.
func (p *peers) pipe(id raft.ServerID) *holding {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pipes[id]
}

func (h *holding) Close() error {
	h.p.mu.Lock()
	if h.p.pipes[h.id] == h {
		delete(h.p.pipes, h.id)
	}
	h.p.mu.Unlock()
	err := h.AppendPipeline.Close()
	if a, ok := h.AppendPipeline.(interface{ Answer(raft.AppendFuture) }); ok {
		a.Answer(&quiet{}) // no success: see raftLog
	}
	return err
}

// contact gives Raft an answer to a heartbeat that was not sent. Answers on a pipeline are what it takes as contact without a timer of
// its own.
func (h *holding) contact(q *quiet) {
	if a, ok := h.AppendPipeline.(interface{ Answer(raft.AppendFuture) }); ok {
		a.Answer(q)
	}
}

// A quiet is its own answered heartbeat: it implements raft.AppendFuture.
func (q *quiet) Error() error                          { return nil }
func (q *quiet) Start() time.Time                      { return q.since }
func (q *quiet) Request() *raft.AppendEntriesRequest   { return &q.beat }
func (q *quiet) Response() *raft.AppendEntriesResponse { return &q.answer }

func (h *holding) AppendEntries(req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if h.p.withhold(h.id, req, resp) {
		return nil, nil // Raft takes its answers from Consumer and does not look at this one
	}
	return h.AppendPipeline.AppendEntries(req, resp)
}

// stillness returns a channel that is closed when the group is no longer quiet, or nil if it is not.
func (g *Group) stillness() <-chan struct{} {
	if q := g.quiet.Load(); q != nil {
		return q.done
	}
	if h := g.hushed.Load(); h != nil {
		return h.done
	}
	return nil
}

// linkLost ends a quiet that rests on a node which cannot be reached.
func (g *Group) linkLost(node string) {
	g.endLull()
	if q := g.quiet.Load(); q != nil {
		for _, p := range q.peers {
			if p.vouch.node == node {
				g.wake()
			}
		}
	}
	if h := g.hushed.Load(); h != nil && nodeOf(h.owner) == node {
		g.stir()
	}
}

// checkQuiet ends a quiet that has lost its ground unnoticed, and says whether the group is quiet.
func (g *Group) checkQuiet(inst *instance, now time.Time) bool {
	if q := g.quiet.Load(); q != nil && (inst.raft.State() != raft.Leader || inst.raft.CurrentTerm() != q.term || inst.raft.LastIndex() != q.last) {
		g.wake()
	}
	if h := g.hushed.Load(); h != nil && (inst.raft.State() != raft.Follower || inst.raft.CurrentTerm() != h.term || h.by.stale(now)) {
		g.stir()
	}
	return g.stillness() != nil
}
