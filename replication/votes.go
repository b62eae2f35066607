package replication

import (
	"fmt"
	"maps"
	"time"

	"github.com/hashicorp/raft"
)

// Who gets a vote, and who may give one up: a group must never be left with voters of whom those that answer are no majority, since it could not store the
// change that would mend that, and had better not need more of them than before.

// carriedWithout returns an error while a member cannot leave the group, for good or to be rebuilt: those that answer of the other voters are no
// majority of them, so that nothing could be stored any more, not even that it has left.
func (g *Group) carriedWithout(id raft.ServerID, servers map[raft.ServerID]raft.Server) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	voters, answer := 0, 0
	for other, s := range servers {
		if other == id || s.Suffrage != raft.Voter {
			continue
		}
		voters++
		if g.answeringLocked(other) {
			answer++
		}
	}
	if 2*answer <= voters {
		return fmt.Errorf("%s leaves when another member is back: without it those that answer are no majority", id)
	}
	return nil
}

// answeringLocked says whether a member has answered lately, and nothing is known that would keep it from doing so again.
func (g *Group) answeringLocked(id raft.ServerID) bool {
	if id == g.cfg.Self.ID {
		return true
	}
	patience := g.cfg.Timing.Gate.NoProgress + holdFor // one that knows everything is asked once in holdFor
	broken := !g.out[id].IsZero() || !g.down[g.memberLocked(id).Node].IsZero()
	return !broken && !g.needs[id] && !gone(g.members, g.view, id) && time.Since(g.heard[id]) < patience
}

// helps returns an error while the vote of a witness would only be one more that is needed: where the voters are an odd number, and a copy that stays does not answer. The
// majority would grow by one, as those that answer do, and nobody leaves before that copy is in sync. The vote of a copy makes as many necessary, but what is acknowledged is on one
// disk more.
func (g *Group) helps(m Member, servers map[raft.ServerID]raft.Server) error {
	if !m.Witness {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	voters, away := 0, raft.ServerID("")
	for id, s := range servers {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		if x := g.members[id]; !x.Witness && !x.Leaving && !gone(g.members, g.view, id) && !g.answeringLocked(id) {
			away = id
		}
	}
	if voters%2 == 0 || away == "" {
		return nil
	}
	return fmt.Errorf("%s votes when %s is back: until then its vote would only be one more that is needed", m.ID, away)
}

// readyToVote says whether a learner could get its vote now.
func (g *Group) readyToVote(inst *instance, m Member) bool {
	return !m.Leaving && g.reaches(m) && !m.barred() && g.lag(inst, m.ID) <= caughtUpEntries
}

// inPairs returns an error while a member that has caught up should wait for another before it votes: with two voters
// either one's loss stops the LUN, so a LUN of one goes on to three in one go if it can. The witness comes last, since the vote of one
// without data is of use only beside two copies; but first where copies are in RAM, as soon as one of them could vote, too: what does not come back from the
// death of its process had better not be one of two votes.
func (g *Group) inPairs(inst *instance, m Member, servers map[raft.ServerID]raft.Server) error {
	g.mu.Lock()
	members := maps.Clone(g.members)
	g.mu.Unlock()
	voters, copies := 0, 0
	for id, s := range servers {
		if s.Suffrage == raft.Voter {
			voters++
			if !members[id].Witness {
				copies++
			}
		}
	}
	if voters != 1 {
		return nil
	}
	inRAM := g.cfg.Store.Volatile()
	for id, other := range members {
		if s, present := servers[id]; inRAM && m.Witness && !other.Witness && present && s.Suffrage != raft.Voter && g.readyToVote(inst, other) {
			return nil
		}
	}
	for id, other := range members {
		s, present := servers[id]
		switch {
		case id == m.ID || other.Leaving || s.Suffrage == raft.Voter && present:
		case inRAM && !m.Witness && other.Witness && present && g.reaches(other):
			return fmt.Errorf("%s votes when %s does, which is not in RAM", m.ID, id)
		case m.Witness && copies < 2 && !other.Witness:
			return fmt.Errorf("%s votes when a second copy does: %s has yet to", m.ID, id)
		case !m.Witness && present && g.host.mux.Up(other.Node) && g.lag(inst, id) > caughtUpEntries:
			return fmt.Errorf("%s votes together with %s, which is still behind", m.ID, id)
		}
	}
	return nil
}
