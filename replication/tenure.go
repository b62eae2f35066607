package replication

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
	"sanctuary/replication/witness"
)

// tenure is one term in which this node owns the LUN and has applied everything before it. Every command is accepted
// under one and carries its term as the fence.
type tenure struct {
	term   uint64
	before block.Fence // the last entry of the log that this node was elected with
	since  time.Time
	handed bool // by the owner before, not won after its loss
	ended  chan struct{}
}

// followLeadership turns Raft's notices into tenures. It must never block for long: Raft waits for it.
func (g *Group) followLeadership(ctx context.Context, inst *instance) {
	for {
		select {
		case <-ctx.Done():
			return
		case leads := <-inst.notify:
			if !leads {
				if !g.lease.given() {
					g.host.elections.lost()
				}
				g.host.elections.over(g)
			}
			g.endTenure()
			if leads {
				g.beginTerm(ctx, inst)
			}
			g.cfg.OnChange()
		}
	}
}

// beginTerm prepares to own the LUN. Nothing is served before an entry of the new term is committed and everything before
// it applied: only then does this node hold every write that was ever acknowledged.
func (g *Group) beginTerm(ctx context.Context, inst *instance) {
	term, now := inst.raft.CurrentTerm(), time.Now()
	voters, copies := g.configured(inst)
	g.lease.begin(term, voters)
	g.mu.Lock()
	g.gate, g.gateTerm = witness.New(g.cfg.Timing.Gate, inst.raft.LastIndex(), now, copies...), term
	for _, c := range copies {
		if down := g.down[g.memberLocked(raft.ServerID(c)).Node]; !down.IsZero() {
			g.gate.Link(c, false, down)
		}
		if out := g.out[raft.ServerID(c)]; !out.IsZero() {
			g.gate.Link(c, false, out)
		}
	}
	g.gate.Tick(inst.raft.LastIndex(), now)
	clear(g.match)
	clear(g.heard)
	clear(g.heardCommit)
	clear(g.needs)
	clear(g.claimed)
	clear(g.rebuild.orders)
	g.begun = inst.raft.LastIndex()
	g.changed = g.begun
	g.mu.Unlock()
	g.log.Info("elected owner; applying what came before", "term", term)
	g.goFunc(func() {
		started := time.Now()
		newest := make(chan uint64, 1)
		go func() { newest <- g.newestEpoch(ctx) }() // ends within epochWait
		if err := g.barrier(ctx, inst); err != nil {
			if ctx.Err() == nil {
				g.log.Info("lost the LUN before serving it", "term", term, "error", err)
			}
			return
		}
		// The barrier was committed under this node's leadership. If the term has not moved, it was this term's.
		if inst.raft.CurrentTerm() != term || inst.raft.State() != raft.Leader {
			return
		}
		if epoch := <-newest; epoch > g.cfg.Epoch {
			g.supersede(epoch)
			return
		}
		before := g.inherited(inst, term)
		g.mu.Lock()
		current := g.inst == inst && g.gateTerm == term && g.gate != nil
		if current {
			g.room.drop(g, time.Now()) // what it was set aside for has been applied
			g.space.forget()
			g.tenure.Store(&tenure{term: term, before: before, since: time.Now(), handed: g.offered.Load() == term-1, ended: make(chan struct{})})
		}
		g.mu.Unlock()
		if current {
			g.log.Info("serving the LUN", "term", term, "after", time.Since(started))
			g.cfg.OnChange()
		}
	})
}

// inherited returns the last entry of the log this node was elected with. Where the log does not say, because it begins
// behind that entry, it is taken to be as new as it can be: then less is accepted than could be, never more.
func (g *Group) inherited(inst *instance, term uint64) block.Fence {
	for i := inst.raft.LastIndex(); i > 0; i-- {
		var l raft.Log
		if g.cfg.Journal.Head(i, &l) != nil {
			return block.Fence{Term: term - 1, Index: i}
		}
		if l.Term < term {
			return block.Fence{Term: l.Term, Index: i}
		}
	}
	return block.Fence{}
}

// endTenure stops serving at once. What is under way is answered as its fate becomes known.
func (g *Group) endTenure() {
	g.wake()
	g.endLull()
	g.mu.Lock()
	t := g.tenure.Swap(nil)
	g.gate, g.gateTerm = nil, 0
	g.moveGateLocked()
	g.moveLinksLocked()
	g.mu.Unlock()
	g.alone.interrupt()
	g.lease.end()
	if t != nil {
		close(t.ended)
		g.log.Info("no longer serving the LUN", "term", t.term)
	}
	g.releaseParked()
	g.writes.endTerm()
	g.endFreeze()
}

// configured returns the voters of Raft's latest configuration and those of them that hold data, without this one.
func (g *Group) configured(inst *instance) (voters []raft.ServerID, copies []string) {
	f := inst.raft.GetConfiguration()
	if f.Error() != nil {
		return nil, nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range f.Configuration().Servers {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters = append(voters, s.ID)
		if s.ID != g.cfg.Self.ID && !g.memberLocked(s.ID).Witness {
			copies = append(copies, string(s.ID))
		}
	}
	return voters, copies
}

// tick is the group's clock: it applies the gate's time limits, ends a kick, and settles outcomes that were unknown.
func (g *Group) tick() {
	every := min(50*time.Millisecond, g.cfg.Timing.Gate.LinkGrace/2+time.Millisecond)
	timer := time.NewTimer(every)
	defer timer.Stop()
	for {
		roused := g.stillness() // before the timer is set, so that it is not slow for a group that is in use
		if roused != nil {
			timer.Reset(quietTick)
		} else {
			timer.Reset(every)
		}
		select {
		case <-g.ctx.Done():
			return
		case <-roused:
		case now := <-timer.C:
			g.tickOnce(now)
		}
	}
}

func (g *Group) tickOnce(now time.Time) {
	if g.cfg.Store != nil {
		if err := g.cfg.Store.Failed(); err != nil { // whoever met it: another LUN in this pool, perhaps
			g.fail(err)
			return
		}
	}
	if g.cfg.Store != nil {
		g.room.drop(g, now.Add(-roomKept))
	}
	inst := g.running()
	if inst == nil {
		g.watchSource(now)
		return
	}
	if err := g.cfg.Journal.Failed(); err != nil {
		g.fail(err)
		return
	}
	if stall := g.cfg.Journal.Stalled(); stall > g.cfg.Timing.DiskStall {
		// An owner whose disk hangs goes on sending heartbeats and would keep the LUN, serving nothing (hashicorp/raft #503).
		g.fail(fmt.Errorf("%w: the journal's disk has not answered for %v", block.ErrFailed, stall.Round(time.Second)))
		return
	}
	if g.cfg.Journal.Tight() && now.Sub(g.shortened) >= shortEvery {
		g.shortened = now
		g.dueCheckpoint()
	}
	g.reached(inst.raft.LastIndex())
	if g.checkQuiet(inst, now) {
		return
	}
	g.mu.Lock()
	changed := false
	if g.gate != nil {
		if changed = g.gate.Tick(inst.raft.LastIndex(), now); changed {
			g.moveGateLocked()
			g.log.Warn("a replica's standing has changed", "replicas", g.levelsLocked())
		}
	}
	if _, leader := inst.raft.LeaderWithID(); !g.out[leader].IsZero() && inst.raft.LastContact().After(g.out[leader].Add(sayOutWithin)) {
		changed = g.answersLocked(leader, now) || changed
	}
	pace, paced := g.paceLocked(inst.raft.LastIndex(), now)
	kicked, again, jitter := g.kicked, g.kickedAgain, g.kickJitter
	g.mu.Unlock()
	if paced {
		g.writes.setPace(pace)
	}
	if changed {
		g.releaseParked()
		g.cfg.OnChange()
	}
	if !kicked.IsZero() && !again && now.Sub(kicked) >= g.kickTimeout()+jitter {
		g.setHeartbeat(inst, g.kickTimeout(), kicked)
	}
	// What the old owner had sent before it died may still be counted as contact for a moment.
	if !kicked.IsZero() && (inst.raft.LastContact().After(kicked.Add(g.cfg.Timing.Kick)) || inst.raft.State() == raft.Leader) {
		g.setHeartbeat(inst, g.cfg.Timing.Heartbeat, time.Time{}) // there is an owner again
	}
	if g.writes.open() {
		g.settleOpen(inst)
	}
}

// maintain settles members without being asked: a replica that was away for too long is rebuilt and votes again though
// nothing has changed in the catalog.
func (g *Group) maintain() {
	ticker := time.NewTicker(maintainEvery)
	defer ticker.Stop()
	var idle idleness
	for {
		select {
		case <-g.ctx.Done():
			return
		case <-ticker.C:
		}
		if roused := g.stillness(); roused != nil { // there is nothing to settle
			ticker.Stop()
			select {
			case <-g.ctx.Done():
				return
			case <-roused:
			}
			ticker.Reset(maintainEvery)
			continue
		}
		g.noteTime(false)
		if g.tenure.Load() == nil || !g.changing.TryLock() {
			continue
		}
		ctx, cancel := context.WithTimeout(g.ctx, 10*time.Second)
		err := g.settle(ctx)
		if err != nil {
			g.log.Debug("members are not settled yet", "error", err)
		}
		g.changing.Unlock()
		g.askRoom(ctx)
		if err == nil || errors.Is(err, errNotReached) { // nothing can be done about it now
			err = g.rest(ctx, &idle)
		}
		g.noteAwake(err)
		cancel()
	}
}

const maintainEvery = 500 * time.Millisecond

// paceLocked slows the writers while a copy that is reachable and answers is behind and does not come nearer: otherwise
// a load that never pauses would keep the LUN without its redundancy for ever, and run away from the log. The pause between
// entries doubles while the lag grows and shrinks while it does; it is gone when the copy is nearly there. It returns the
// pause and whether it has changed.
func (g *Group) paceLocked(tail uint64, now time.Time) (time.Duration, bool) {
	before, lag := g.pace, uint64(0)
	if g.gate != nil {
		for id, m := range g.members {
			match := g.match[id]
			answers := now.Sub(g.heard[id]) < g.cfg.Timing.Gate.NoProgress // one that has failed is not waited for
			if !m.Witness && answers && match > 0 && g.gate.Level(string(id)) != witness.InSync {
				lag = max(lag, tail-min(tail, match))
			}
		}
	}
	switch {
	case lag <= g.cfg.Timing.Gate.Window/2:
		g.pace = 0
	case lag >= g.paceLag:
		g.pace = min(max(2*g.pace, minPace), maxPace)
	default:
		g.pace = max(g.pace*9/10, minPace)
	}
	g.paceLag = lag
	return g.pace, g.pace != before
}

// A pause of maxPace between entries of up to 256 KiB leaves the writers 5 MB/s.
const (
	minPace = 250 * time.Microsecond
	maxPace = 50 * time.Millisecond
)

func (g *Group) levelsLocked() string {
	out := ""
	for _, id := range slices.Sorted(maps.Keys(g.members)) {
		m := g.members[id]
		if g.gate != nil && !m.Witness && id != g.cfg.Self.ID {
			out += fmt.Sprintf("%s %v ", id, g.gate.Level(string(id)))
			if d := g.gate.Settle(string(id)); d > 0 && g.gate.Level(string(id)) == witness.Out {
				out += fmt.Sprintf("(falls too often: must keep up for %v) ", d)
			}
		}
	}
	return out
}

// settleOpen looks whether an entry of a later term has been applied here.
func (g *Group) settleOpen(inst *instance) {
	var l raft.Log
	commit := inst.raft.CommitIndex()
	if commit == 0 || g.cfg.Journal.Head(commit, &l) != nil {
		return
	}
	// The state machine does not see no-ops: look at the last command it must have applied by then.
	if last, err := g.lastCommand(commit); err == nil && g.settledIndex.Load() >= last {
		g.writes.seal(l.Term)
	}
}

// PeerLink tells the group that the connection to a node broke or came back. If it was the owner's, this replica's and the
// witness's election timers are shortened: the survivors act at once, within rule L, since Kick is no shorter than the
// voters' promise.
func (g *Group) PeerLink(node string, up bool) {
	now := time.Now()
	inst := g.running()
	if up {
		g.linkBack(node)
	} else {
		g.linkLost(node)
	}
	g.mu.Lock()
	g.moveLinksLocked()
	if up {
		delete(g.down, node)
	} else {
		g.down[node] = now
	}
	if g.gate != nil {
		for id, m := range g.members {
			if m.Node == node && !m.Witness {
				g.gate.Link(string(id), up, now)
			}
		}
	}
	out := len(g.out)
	maps.DeleteFunc(g.out, func(id raft.ServerID, _ time.Time) bool { return up && nodeOf(id) == node })
	back := len(g.out) < out
	g.mu.Unlock()
	if back {
		g.cfg.OnChange()
	}
	if err := g.Err(); err != nil && up && !errors.Is(err, ErrSuperseded) {
		g.sayOutTo(node) // it has just forgotten that, or has never heard of it
	}
	if inst == nil || up {
		return
	}
	if leader, _ := inst.raft.LeaderWithID(); leader == raft.ServerAddress(node) {
		g.log.Info("the connection to the owner broke", "node", node)
		g.setHeartbeat(inst, g.kickTimeout()+kickStep, now)
	}
}

// kickStep is by how much the second kick is shorter than the first. Raft looks at its timer at once whenever it is
// shortened, but has drawn a random time of up to twice as long meanwhile: the first kick makes it look soon, the second,
// when the time has passed, now.
const kickStep = 5 * time.Millisecond

func (g *Group) kickTimeout() time.Duration {
	if g.cfg.Self.Witness {
		return witnessKick
	}
	return g.cfg.Timing.Kick
}

func (g *Group) setHeartbeat(inst *instance, d time.Duration, kicked time.Time) {
	g.reloading.Lock()
	defer g.reloading.Unlock()
	rc := inst.raft.ReloadableConfig()
	rc.HeartbeatTimeout, rc.ElectionTimeout = d, d
	if err := inst.raft.ReloadConfig(rc); err != nil {
		g.log.Error("election timers not changed", "error", err)
		return
	}
	g.mu.Lock()
	g.kickedAgain = !kicked.IsZero() && kicked == g.kicked
	g.kicked = kicked
	g.mu.Unlock()
}
