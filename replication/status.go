package replication

import (
	"maps"
	"sort"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/replication/witness"
)

// Health is a LUN's state in one word, as its owner or a follower sees it.
type Health string

// Healths, from best to worst.
const (
	HealthHealthy     Health = "healthy"     // every copy is in sync
	HealthCatchingUp  Health = "catching-up" // served; a copy is being brought up to date
	HealthDegraded    Health = "degraded"    // served; a copy is missing
	HealthUnavailable Health = "unavailable" // nobody serves it at present
	HealthFailed      Health = "failed"      // this replica's storage has failed
)

// PeerStatus is how the owner sees a member.
type PeerStatus struct {
	Member
	Voter   bool
	Self    bool
	InSync  bool   // holds every acknowledged write (always true for the owner itself, never for a witness)
	Level   string // witness.Level of a data replica, "witness", "owner", "learner" or "absent" from the group
	Match   uint64 // newest index it has acknowledged in this term
	Lag     uint64 // entries behind the owner
	Rebuild bool   // it has to be, or is being, rebuilt by difference
	// Progress is how far that is, as last heard.
	Progress RebuildProgress
}

// Status is a snapshot of a group.
type Status struct {
	Health     Health
	Owner      Member // zero if unknown
	IsOwner    bool   // this node leads; Serving says whether it has finished taking over
	Serving    bool
	Since      time.Time // when it began to serve; zero unless Serving
	Handed     bool      // the owner before has handed it over
	Quiet      bool      // at the owner: nobody writes, so no heartbeats of this LUN are sent (see quiet.go)
	Awake      error     // at the owner: why it was not Quiet when that was looked at last
	Term       uint64
	Applied    uint64 // this replica's volume
	Commit     uint64
	LastIndex  uint64
	Rebuilding bool // this replica is being rebuilt
	RebuildProgress
	Full   bool // this replica waits for room in its pool
	Failed error
	Repair RepairStatus
	Peers  []PeerStatus // only at the owner
}

// ownerHeard is how long a copy that is being rebuilt, and takes no part in Raft, believes that its source owns the LUN.
const ownerHeard = 5 * time.Second

// sourceLocked returns the copy that this one is being rebuilt from, if it has been heard of lately: it owns the LUN. It is called with mu
// held.
func (g *Group) sourceLocked(now time.Time) Member {
	if !g.rebuild.running || now.Sub(g.rebuild.heard) >= ownerHeard {
		return Member{}
	}
	for id, m := range g.members {
		if m.Node == g.rebuild.owner && !m.Witness && g.out[id].IsZero() {
			return m
		}
	}
	return Member{}
}

// watchSource tells when sourceLocked has changed.
func (g *Group) watchSource(now time.Time) {
	g.mu.Lock()
	source := g.sourceLocked(now).ID
	changed := source != g.rebuild.told
	g.rebuild.told = source
	g.mu.Unlock()
	if changed {
		g.cfg.OnChange()
	}
}

// Serving is Status's, for those who ask often.
func (g *Group) Serving() bool {
	return g.Err() == nil && g.running() != nil && g.tenure.Load() != nil
}

// Status returns a snapshot of the group. It does not block on Raft.
func (g *Group) Status() Status {
	s := Status{Health: HealthUnavailable, Failed: g.Err(), Full: g.full.Load()}
	if g.cfg.Store != nil {
		s.Applied = g.cfg.Store.Applied()
	}
	s.Repair = g.repairs.status()
	inst := g.running()
	t := g.tenure.Load()
	g.mu.Lock()
	defer g.mu.Unlock()
	s.Rebuilding, s.RebuildProgress = g.rebuild.running, g.rebuild.done
	if s.Failed != nil {
		s.Health = HealthFailed
		return s
	}
	if inst == nil {
		s.Owner = g.sourceLocked(time.Now())
		return s
	}
	s.Term, s.Commit, s.LastIndex = inst.raft.CurrentTerm(), inst.raft.CommitIndex(), inst.raft.LastIndex()
	_, leader := inst.raft.LeaderWithID()
	if leader != "" && g.out[leader].IsZero() {
		s.Owner = g.members[leader]
		s.Health = HealthHealthy // as far as a follower knows
	}
	s.IsOwner, s.Serving = leader == g.cfg.Self.ID && inst.raft.State() == raft.Leader, t != nil
	if t != nil {
		s.Since, s.Handed, s.Quiet = t.since, t.handed, g.quiet.Load() != nil
		if why := g.awake.Load(); why != nil && !s.Quiet {
			s.Awake = *why
		}
	}
	if !s.IsOwner {
		return s
	}
	if t == nil || g.gate == nil {
		s.Health = HealthUnavailable
		return s
	}
	f := inst.raft.GetConfiguration()
	if f.Error() != nil {
		return s
	}
	absent := maps.Clone(g.members)
	servers := map[raft.ServerID]raft.Server{}
	for _, srv := range f.Configuration().Servers {
		servers[srv.ID] = srv
	}
	for _, srv := range f.Configuration().Servers {
		m, known := g.members[srv.ID]
		if !known {
			m = Member{ID: srv.ID, Node: string(srv.Address)}
		}
		p := PeerStatus{Member: m, Voter: srv.Suffrage == raft.Voter, Self: srv.ID == g.cfg.Self.ID, Match: g.match[srv.ID], Rebuild: g.needs[srv.ID], Progress: g.rebuild.progress[srv.ID]}
		switch {
		case p.Self:
			p.Level, p.InSync, p.Match = "owner", true, s.LastIndex
		case m.Witness:
			p.Level = "witness"
		case !p.Voter:
			p.Level = "learner"
			if s.Health == HealthHealthy {
				s.Health = HealthCatchingUp
			}
		default:
			level := g.gate.Level(string(srv.ID))
			p.Level, p.InSync = level.String(), g.inSyncLocked(srv.ID) == nil
			switch level {
			case witness.Out:
				s.Health = HealthDegraded
			case witness.CatchingUp:
				if s.Health == HealthHealthy {
					s.Health = HealthCatchingUp
				}
			case witness.InSync:
				if !p.InSync && s.Health == HealthHealthy {
					s.Health = HealthCatchingUp // not heard yet
				}
			}
		}
		if p.Voter && !p.Self && p.Match < g.changed && s.Health == HealthHealthy && time.Since(g.heard[srv.ID]) < g.cfg.Timing.Gate.NoProgress {
			s.Health = HealthCatchingUp // see Group.knowMembers
		}
		p.Lag = s.LastIndex - min(s.LastIndex, p.Match)
		s.Peers = append(s.Peers, p)
		delete(absent, srv.ID)
	}
	for id, m := range absent { // out of the group while it is being rebuilt, or not yet added
		s.Peers = append(s.Peers, PeerStatus{Member: m, Level: "absent", Lag: s.LastIndex, Rebuild: g.rebuild.orders[id] != "", Progress: g.rebuild.progress[id]})
		switch {
		case m.Leaving, present(servers, givesWay(g.members, m)): // nobody counts on it any more, or yet
		case m.Witness || g.rebuild.orders[id] == "":
			s.Health = HealthDegraded
		case s.Health == HealthHealthy:
			s.Health = HealthCatchingUp
		}
	}
	sort.Slice(s.Peers, func(i, j int) bool { return s.Peers[i].ID < s.Peers[j].ID })
	return s
}
