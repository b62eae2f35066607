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
//   - What a quiet LUN skips is known to change nothing: it falls quiet only while every member that can be reached votes, has said
//     that its log ends where the owner's does and that it knows all of it to be committed, and is in sync if it is a copy. A member
//     whose node cannot be reached would hear nothing anyway, and one whose storage has failed is still sent all there is; it ends
//     the quiet by coming back, and cannot be elected meanwhile, for those who are quiet are a quorum and have promised.
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
	away  []string // nodes that cannot be reached, of other members
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
	// beats has one for each time this member's node has been heard, if it bears and there is no pipeline to tell Raft by; capacity 1.
	beats chan struct{}
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
	members, waiting := g.voters(inst)
	here, away := g.reachable(members)
	for _, m := range waiting {
		if g.reaches(m) {
			return fmt.Errorf("%s: it does not vote yet", m.ID)
		}
		if !g.host.mux.Up(m.Node) {
			away = append(away, m.Node)
		}
	}
	if err := g.inStep(inst, members, here, last); err != nil {
		return err
	}
	var l raft.Log
	if err := g.cfg.Journal.Head(last, &l); err != nil {
		return err
	}
	q := &quiet{token: rand.Uint64(), term: t.term, last: last, away: away, done: make(chan struct{})}
	for _, m := range here {
		v, err := g.host.askQuiet(ctx, m.Node, quietRequest{
			Version: 1, LUN: g.cfg.LUN, Epoch: g.cfg.Epoch, Owner: g.cfg.Self.ID, Member: m.ID,
			Token: q.token, Term: q.term, Last: last, LastTerm: l.Term,
		})
		if err != nil {
			q.forget()
			return fmt.Errorf("%s: %w", m.ID, err)
		}
		p := quietPeer{id: m.ID, vouch: v, bears: bears(len(q.peers), members)}
		if p.bears && m.Witness {
			p.beats = make(chan struct{}, 1)
		}
		q.peers = append(q.peers, p)
	}
	for _, p := range q.peers {
		p.vouch.add(q.token, g)
	}
	q.beat.Term, q.answer = q.term, raft.AppendEntriesResponse{Term: q.term, LastLog: last, Success: true}
	q.since = time.Now()
	g.quiet.Store(q)
	for _, p := range q.peers { // they have just agreed
		g.contact(p.vouch)
	}
	if g.storing.Load() != begun || g.tenure.Load() != t || g.anyUp(away) || inst.raft.State() != raft.Leader || inst.raft.CurrentTerm() != t.term || g.running() != inst {
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

// errNotReached is why members are not settled when nothing can be done about it for now: the group may fall quiet.
var errNotReached = errors.New("its node is not reached")

// bears says whether the i-th of the other members that can be reached is among those that make a quorum with this one.
func bears(i int, members []Member) bool { return i < (len(members)+1)/2 }

// reachable returns those of the members that can be reached, and the nodes that cannot.
func (g *Group) reachable(members []Member) (here []Member, away []string) {
	for _, m := range members {
		switch {
		case g.reaches(m):
			here = append(here, m)
		case !g.host.mux.Up(m.Node):
			away = append(away, m.Node)
		}
	}
	return here, away
}

// reaches says whether a member can be: there is a connection to its node, and it has not said that its storage has failed.
func (g *Group) reaches(m Member) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.reachesLocked(m)
}

func (g *Group) reachesLocked(m Member) bool { return g.out[m.ID].IsZero() && g.host.mux.Up(m.Node) }

// anyUp says whether one of the nodes can be reached.
func (g *Group) anyUp(nodes []string) bool { return slices.ContainsFunc(nodes, g.host.mux.Up) }

// forget takes the spell's name off the nodes.
func (q *quiet) forget() {
	for _, p := range q.peers {
		p.vouch.end(q.token)
	}
}

// voters returns the other members of the group, those that vote, copies first, and those that do not yet; nothing if the group has others still.
func (g *Group) voters(inst *instance) (out, waiting []Member) {
	f := inst.raft.GetConfiguration()
	if f.Error() != nil {
		return nil, nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	votes := map[raft.ServerID]bool{}
	for _, s := range f.Configuration().Servers {
		if _, known := g.members[s.ID]; !known {
			return nil, nil
		}
		votes[s.ID] = s.Suffrage == raft.Voter
	}
	for id, m := range g.members {
		switch {
		case id == g.cfg.Self.ID:
		case votes[id]:
			out = append(out, m)
		default:
			waiting = append(waiting, m)
		}
	}
	slices.SortFunc(out, func(a, b Member) int {
		switch {
		case a.Witness == b.Witness:
			return strings.Compare(string(a.ID), string(b.ID))
		case b.Witness:
			return -1
		}
		return 1
	})
	return out, waiting
}

// inStep returns nil if each of the members that can be reached, which must be here, has all of the log, as far as this owner has heard; else what
// is missing. A copy that cannot be reached must have been given up, and one that is to be rebuilt must be such a one.
func (g *Group) inStep(inst *instance, members, here []Member, last uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gate == nil || len(members) == 0 || len(g.parked) > 0 || g.rebuild.running {
		return fmt.Errorf("%d of %d other members vote, %d entries wait for a copy", len(members), len(g.members)-1, len(g.parked))
	}
	for id := range g.rebuild.orders {
		if g.reachesLocked(g.memberLocked(id)) {
			return fmt.Errorf("%s: it is to be rebuilt", id)
		}
	}
	if bears(len(here), members) {
		return fmt.Errorf("%d of %d other members can be reached: no quorum", len(here), len(members))
	}
	for _, m := range members {
		level := witness.InSync
		if !m.Witness {
			level = g.gate.Level(string(m.ID))
		}
		i := slices.IndexFunc(here, func(o Member) bool { return o.ID == m.ID })
		switch {
		case i < 0 && !m.Witness && level != witness.Out:
			return fmt.Errorf("%s: it cannot be reached and has not been given up yet", m.ID)
		case i < 0:
		case bears(i, members) && !m.Witness && inst.peers.pipe(m.ID) == nil:
			return fmt.Errorf("%s: there is no pipeline to it", m.ID)
		case g.match[m.ID] != last:
			return fmt.Errorf("%s: it has acknowledged entry %d of %d", m.ID, g.match[m.ID], last)
		case g.needs[m.ID] || level != witness.InSync:
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

// skipBeats waits while the group is quiet: its heartbeats are not sent. It returns true if the member's node has been heard instead.
func (p *peers) skipBeats(id raft.ServerID, term uint64) (heard bool) {
	q := p.g.quiet.Load()
	if q == nil || q.term != term {
		return false
	}
	if m := q.peer(id); m != nil {
		select {
		case <-m.beats: // nil, for ever, of one that Raft hears of by its pipeline, or need not
			return true
		case <-q.done:
		case <-p.closed:
		}
	}
	return false
}

// contact tells Raft that a member whose node has just answered a vouch has been heard.
func (g *Group) contact(v *voucher) {
	q, inst := g.quiet.Load(), g.running()
	if q == nil || inst == nil {
		return
	}
	for _, m := range q.peers {
		if !m.bears || m.vouch != v {
			continue
		}
		if m.beats != nil {
			select {
			case m.beats <- struct{}{}:
			default:
			}
		} else if pipe := inst.peers.pipe(m.id); pipe != nil {
			pipe.contact(q)
		}
	}
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

// linkBack ends a quiet that does without the members on a node which can be reached again.
func (g *Group) linkBack(node string) {
	if q := g.quiet.Load(); q != nil && slices.Contains(q.away, node) {
		g.wake()
	}
}

// heartbeatAnswered notes that a member's Raft runs: one that was out is back, as a process that knows nothing of that, and ends a quiet that does
// without it. Heartbeats go on to whoever is not quiet with the others.
func (g *Group) heartbeatAnswered(id raft.ServerID) {
	g.mu.Lock()
	back := !g.out[id].IsZero() && g.answersLocked(id, time.Now())
	g.mu.Unlock()
	if back {
		g.cfg.OnChange()
	}
	if q := g.quiet.Load(); q != nil && q.peer(id) == nil {
		g.wake()
	}
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
	if q := g.quiet.Load(); q != nil && (g.anyUp(q.away) || inst.raft.State() != raft.Leader || inst.raft.CurrentTerm() != q.term || inst.raft.LastIndex() != q.last) {
		g.wake()
	}
	if h := g.hushed.Load(); h != nil && (inst.raft.State() != raft.Follower || inst.raft.CurrentTerm() != h.term || h.by.stale(now)) {
		g.stir()
	}
	return g.stillness() != nil
}
