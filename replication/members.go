package replication

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
)

// serveTerm answers a readIndex of the owner.
func (h *Host) serveTerm(_ context.Context, _ string, req []byte) ([]byte, error) {
	g, err := h.namedGroup(req)
	if err != nil {
		return nil, err
	}
	inst := g.running()
	if inst == nil {
		return nil, errNoReplica
	}
	return binary.LittleEndian.AppendUint64(nil, inst.raft.CurrentTerm()), nil
}

// namedGroup returns the group of a request that says LUN "\n" replica: another incarnation on the same node does not answer for it.
func (h *Host) namedGroup(req []byte) (*Group, error) {
	lun, id, ok := bytes.Cut(req, []byte("\n"))
	if !ok {
		return nil, errors.New("malformed request")
	}
	g, err := h.group(string(lun))
	if err != nil {
		return nil, err
	}
	if string(id) != string(g.cfg.Self.ID) {
		return nil, errNoReplica
	}
	return g, nil
}

// Standing is how far joining members have come.
type Standing struct {
	// CaughtUp are copies that vote as soon as the catalog says that they are Filled. Until it does, it may take the LUN for lost when the copies
	// that it knows to hold data are gone, and this one may by then be the owner.
	CaughtUp []raft.ServerID
	// Whole are those that vote and hold everything they should.
	Whole []raft.ServerID
}

// caughtUpEntries is the lag at which a learner may vote.
const caughtUpEntries = 64

// SetMembers brings the Raft group to what the catalog asks for, one change at a time; it does nothing unless this node
// owns the LUN. It returns how far the joining ones have come, and an error if something is left to do; calling
// it again goes on. A server that a member has replaced is removed: its identity must not come back.
func (g *Group) SetMembers(ctx context.Context, want []Member) (now Standing, err error) {
	g.changing.Lock()
	defer g.changing.Unlock()
	if !g.follows() {
		g.Learn(want)
	}
	left := g.settle(ctx)
	inst, servers, err := g.configuration()
	if err != nil {
		return now, err
	}
	for _, m := range want {
		s, ok := servers[m.ID]
		if ok && m.barred() && s.Suffrage != raft.Voter && g.lag(inst, m.ID) <= caughtUpEntries {
			now.CaughtUp = append(now.CaughtUp, m.ID)
		}
	}
	if err := g.knowMembers(servers); err != nil {
		return now, err
	}
	for _, m := range want {
		if s, ok := servers[m.ID]; ok && m.Joining && g.whole(m, s) {
			now.Whole = append(now.Whole, m.ID)
		}
	}
	return now, left
}

// barred says whether a member must not vote yet, whatever it holds: see Standing. A witness holds nothing that could be lost.
func (m Member) barred() bool { return m.Joining && !m.Filled && !m.Witness }

// whole says whether a member votes and holds everything it should: the witness its log, a copy every acknowledged write.
func (g *Group) whole(m Member, s raft.Server) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return s.Suffrage == raft.Voter && (m.Witness || m.ID == g.cfg.Self.ID || g.inSyncLocked(m.ID) == nil)
}

// knowMembers returns an error while a voter that answers has yet to store the newest change of members. Nothing else is changed
// until then, and nobody is told that it is done: a voter refuses its vote to whom it does not know to be one, so if the owner
// died now, a copy that has just been promoted could not be elected by a witness that has not heard of it. One that does not answer, since
// it is gone, hangs or must be rebuilt, is not waited for: perhaps it is what the change is about.
func (g *Group) knowMembers(servers map[raft.ServerID]raft.Server) error {
	patience := g.cfg.Timing.Gate.NoProgress
	t := g.tenure.Load()
	young := t != nil && time.Since(t.since) < patience
	g.mu.Lock()
	defer g.mu.Unlock()
	for id, s := range servers {
		if s.Suffrage != raft.Voter || id == g.cfg.Self.ID || g.match[id] >= g.changed || g.needs[id] || gone(g.members, g.view, id) {
			continue
		}
		if time.Since(g.heard[id]) < patience || young && g.host.mux.Up(string(s.Address)) {
			return fmt.Errorf("%s has yet to hear of the newest change of members", id)
		}
	}
	return nil
}

// changeMembers waits for a change of members and notes where in the log it is.
func (g *Group) changeMembers(ctx context.Context, inst *instance, f raft.IndexFuture) error {
	err := g.waitFor(ctx, f)
	g.mu.Lock()
	g.changed = inst.raft.LastIndex() // behind it, if it was not waited for to the end
	if err != nil {
		g.mu.Unlock()
		return err
	}
	g.changed = f.Index()
	g.mu.Unlock()
	g.refreshVoters(inst)
	// Most know of it in a moment. Those that do not are waited for before the next change.
	ctx, cancel := context.WithTimeout(ctx, knowWait)
	defer cancel()
	poll := time.NewTicker(knowPoll)
	defer poll.Stop()
	for {
		if _, servers, err := g.configuration(); err != nil || g.knowMembers(servers) == nil {
			return err
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return nil
		}
	}
}

const (
	knowWait = time.Second
	knowPoll = 5 * time.Millisecond
)

// configuration returns the Raft this node leads and serves with, and its servers.
func (g *Group) configuration() (*instance, map[raft.ServerID]raft.Server, error) {
	inst := g.running()
	if inst == nil || g.tenure.Load() == nil {
		return nil, nil, block.ErrNotOwner
	}
	f := inst.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, nil, err
	}
	servers := map[raft.ServerID]raft.Server{}
	for _, s := range f.Configuration().Servers {
		servers[s.ID] = s
	}
	return inst, servers, nil
}

// settle moves every member towards a vote, removes servers that are gone, and at last those that leave. A member
// that cannot be served from the log leaves the group until it has been rebuilt: Raft finds out where a server stands only
// when it is added. settle returns an error while something is left to do. The caller holds changing.
func (g *Group) settle(ctx context.Context) error {
	inst, servers, err := g.configuration()
	if err != nil {
		return err
	}
	g.refreshVoters(inst)       // a change that was given up on may have been made after all
	if !g.cfg.Journal.Takes() { // Raft's goroutine would wait for it
		return errNoRoom
	}
	g.mu.Lock()
	members, view := maps.Clone(g.members), g.view
	g.rebuild.keepOrders(members)
	g.mu.Unlock()
	if err := g.knowMembers(servers); err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(servers)) {
		if !gone(members, view, id) {
			continue
		}
		if id == g.cfg.Self.ID {
			return fmt.Errorf("the catalog has replaced this owner, %s: move the LUN first", id)
		}
		if err := g.remove(ctx, inst, id, "it has been replaced or removed"); err != nil {
			return err
		}
	}
	var left error
	for _, id := range dataFirst(members) {
		if id == g.cfg.Self.ID || members[id].Leaving || present(servers, givesWay(members, members[id])) {
			continue
		}
		// What the one before has brought about.
		if _, servers, err = g.configuration(); err != nil {
			return err
		}
		s, present := servers[id]
		if !present && newerThan(servers, id) {
			continue // the catalog this was read from is old
		}
		if err := g.settleMember(ctx, inst, members[id], s, servers); err != nil && (left == nil || errors.Is(left, errNotReached)) {
			left = err
		}
	}
	if left != nil {
		return left
	}
	if err := g.removeLeaving(ctx, inst, members); err != nil {
		return err
	}
	return g.beginAlone(ctx)
}

func (g *Group) settleMember(ctx context.Context, inst *instance, m Member, s raft.Server, servers map[raft.ServerID]raft.Server) error {
	_, present := servers[m.ID]
	g.mu.Lock()
	needs, ordered := g.needs[m.ID], g.rebuild.orders[m.ID] != ""
	g.mu.Unlock()
	switch {
	case (needs || ordered) && !g.reaches(m): // nothing is kept for a replica that may never return
		return fmt.Errorf("%s must be rebuilt, and %w", m.ID, errNotReached)
	case present && needs && !m.Witness:
		if err := g.carriedWithout(m.ID, servers); err != nil {
			return fmt.Errorf("%s must be rebuilt: %w", m.ID, err)
		}
		if err := g.remove(ctx, inst, m.ID, "it is behind the log and must be rebuilt"); err != nil {
			return err
		}
		// A learner that has been rebuilt can fall behind the log again before it votes. Its order has been carried out:
		// repeated, it would only be answered "done", and the learner added and removed for ever.
		g.mu.Lock()
		delete(g.rebuild.orders, m.ID)
		g.mu.Unlock()
		return g.orderRebuild(ctx, m)
	case !present && ordered:
		if err := g.orderRebuild(ctx, m); err != nil {
			return err
		}
		fallthrough
	case !present:
		g.host.mux.Connect(m.Node)
		if err := g.endAlone(ctx, inst); err != nil {
			return fmt.Errorf("add %s: the log is not cut off behind what it does not hold: %w", m.ID, err)
		}
		g.log.Info("adding a learner to the group", "peer", string(m.ID))
		if err := g.changeMembers(ctx, inst, inst.raft.AddNonvoter(m.ID, raft.ServerAddress(m.Node), 0, 0)); err != nil {
			return fmt.Errorf("add %s: %w", m.ID, err)
		}
		return fmt.Errorf("%s has yet to catch up", m.ID)
	case s.Suffrage == raft.Voter:
		if ordered { // its vote was given up on and has come about after all
			g.endRebuild(m.ID)
		}
		return nil
	}
	if !g.reaches(m) {
		return fmt.Errorf("%s does not vote yet, and %w", m.ID, errNotReached)
	}
	if lag := g.lag(inst, m.ID); lag > caughtUpEntries {
		return fmt.Errorf("%s is %d entries behind", m.ID, lag)
	}
	if m.barred() {
		return fmt.Errorf("%s has caught up; it votes when the catalog knows that it holds data", m.ID)
	}
	if err := g.inPairs(inst, m, servers); err != nil {
		return err
	}
	if err := g.helps(m, servers); err != nil {
		return err
	}
	g.log.Info("a learner has caught up and may vote", "peer", string(m.ID))
	if err := g.changeMembers(ctx, inst, inst.raft.AddVoter(m.ID, s.Address, 0, 0)); err != nil {
		return fmt.Errorf("promote %s: %w", m.ID, err)
	}
	g.refreshVoters(inst)
	g.endRebuild(m.ID)
	return nil
}

// needsRebuild notes that Raft finds a member further behind than the log reaches. Not every word of it is of now: what Raft has running for a
// member goes on for a moment when the member has been removed, been rebuilt and come back (a wait after a failure is not cut short), and would
// then have a copy removed that holds everything. So if the member has stored what the log reaches back to, it takes as long as
// a copy is otherwise waited for, and no answer meanwhile.
func (g *Group) needsRebuild(id raft.ServerID) {
	first, err := g.cfg.Journal.FirstIndex()
	now := time.Now()
	g.mu.Lock()
	if since, ok := g.claimed[id]; err == nil && g.match[id] > 0 && g.match[id]+1 >= first && (!ok || now.Sub(since) < g.cfg.Timing.Gate.NoProgress) {
		if !ok {
			g.claimed[id] = now
		}
		g.mu.Unlock()
		return
	}
	known := g.needs[id]
	g.needs[id] = true
	g.mu.Unlock()
	if !known {
		g.log.Warn("a replica is further behind than the log reaches; it will be rebuilt", "peer", string(id))
		g.cfg.OnChange()
	}
}

func (g *Group) remove(ctx context.Context, inst *instance, id raft.ServerID, why string) error {
	g.log.Info("removing a replica from the group", "peer", string(id), "why", why)
	if err := g.changeMembers(ctx, inst, inst.raft.RemoveServer(id, 0, 0)); err != nil {
		return fmt.Errorf("remove %s: %w", id, err)
	}
	g.refreshVoters(inst)
	g.mu.Lock()
	delete(g.needs, id)
	delete(g.claimed, id)
	delete(g.match, id)
	g.mu.Unlock()
	return nil
}

// lag returns how many entries a member is behind, the whole log if it has acknowledged nothing yet in this term.
func (g *Group) lag(inst *instance, id raft.ServerID) uint64 {
	last := inst.raft.LastIndex()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.match[id] == 0 {
		return max(last, caughtUpEntries+1)
	}
	return last - min(last, g.match[id])
}

// refreshVoters tells lease and gate of a changed configuration.
func (g *Group) refreshVoters(inst *instance) {
	voters, copies := g.configured(inst)
	if voters == nil {
		return
	}
	g.lease.setVoters(voters)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gate == nil {
		return
	}
	keep := map[string]bool{}
	for _, c := range copies {
		keep[c] = true
		g.gate.Add(c, time.Now())
	}
	g.gate.Keep(keep)
	g.moveGateLocked()
	go g.releaseParked() // a replica that has left is not waited for
}
