package replication

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

// What a replica knows of the LUN's members. It is the catalog's word, of whatever age; members.go makes it true.

// Learn takes over what the catalog says about members, on every replica: whoever becomes the owner next must know who is a
// witness and who has been replaced. Of one node's replica only the newest incarnation counts, and the
// catalog this was read from may be old: a newer one that is known already stays.
func (g *Group) Learn(members []Member) {
	g.mu.Lock()
	defer g.mu.Unlock()
	changed := false
	for _, m := range members {
		known := false
		for id, k := range g.members {
			switch {
			case k.Node != m.Node:
			case incarnation(id) > incarnation(m.ID):
				known = true
			case id != m.ID:
				delete(g.members, id)
			}
		}
		if !known && g.members[m.ID] != m {
			g.members[m.ID], changed = m, true
		}
	}
	g.jitterLocked()
	if changed {
		g.wake()
	}
}

// Follow takes over the whole list of members of a catalog: who is not in it is a member no more, unless the list is older than one that is
// known already, or than the server.
func (g *Group) Follow(members []Member, view View) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if view.Index < g.view.Index {
		return
	}
	g.view = view
	next := make(map[raft.ServerID]Member, len(members))
	for _, m := range members {
		next[m.ID] = m
	}
	for id, m := range g.members {
		if _, ok := next[id]; !ok && (incarnation(id) >= view.Next || id == g.cfg.Self.ID) {
			next[id] = m
		}
	}
	changed := !maps.Equal(g.members, next)
	g.members = next
	maps.DeleteFunc(g.out, func(id raft.ServerID, _ time.Time) bool { _, known := next[id]; return !known })
	g.jitterLocked()
	if changed {
		g.wake()
	}
}

// follows says whether the members are known from a whole list.
func (g *Group) follows() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.view.Index > 0
}

// givesWay returns the member on the same node that leaves for this one, "" if none does.
func givesWay(members map[raft.ServerID]Member, to Member) raft.ServerID {
	for id, m := range members {
		if m.Leaving && !to.Leaving && m.Node == to.Node && id != to.ID {
			return id
		}
	}
	return ""
}

func present(servers map[raft.ServerID]raft.Server, id raft.ServerID) bool {
	_, ok := servers[id]
	return ok
}

// jitterLocked keeps several survivors of an owner from standing at the same moment.
func (g *Group) jitterLocked() {
	copies := 0
	for _, m := range g.members {
		if !m.Witness {
			copies++
		}
	}
	switch {
	case copies <= 2:
		g.kickJitter = 0
	case g.kickJitter == 0:
		g.kickJitter = rand.N(g.cfg.Timing.Kick / 2)
	}
}

// gone says whether a server is no member any more: replaced by a newer incarnation, or removed, as the newest list says.
func gone(members map[raft.ServerID]Member, view View, id raft.ServerID) bool {
	_, member := members[id]
	return !member && (replaced(members, id) || view.Next > 0 && incarnation(id) < view.Next)
}

// nodeOf returns the node of "<node>/<incarnation>".
func nodeOf(id raft.ServerID) string {
	node, _, _ := strings.Cut(string(id), "/")
	return node
}

// incarnation returns the number of "<node>/<incarnation>", 0 if there is none.
func incarnation(id raft.ServerID) uint64 {
	_, n, _ := strings.Cut(string(id), "/")
	i, err := strconv.ParseUint(n, 10, 64)
	if err != nil {
		return 0
	}
	return i
}

// memberLocked returns what is known about a server; of one that is no member (yet, or any more) its node's replica tells
// whether it is the witness. Zero if the node has none.
func (g *Group) memberLocked(id raft.ServerID) Member {
	if m, ok := g.members[id]; ok {
		return m
	}
	node := nodeOf(id)
	for _, m := range g.members {
		if m.Node == node {
			return Member{ID: id, Node: node, Witness: m.Witness}
		}
	}
	return Member{}
}

// replaced says whether a server is an earlier incarnation of a member.
func replaced(members map[raft.ServerID]Member, id raft.ServerID) bool {
	node := nodeOf(id)
	for _, m := range members {
		if m.Node == node {
			return incarnation(m.ID) > incarnation(id)
		}
	}
	return false
}

// newerThan says whether the group has a later incarnation of a member.
func newerThan(servers map[raft.ServerID]raft.Server, id raft.ServerID) bool {
	node := nodeOf(id)
	for have := range servers {
		if nodeOf(have) == node && incarnation(have) > incarnation(id) {
			return true
		}
	}
	return false
}

// dataFirst returns the members, data replicas first: a witness is of use only when there are two of them.
func dataFirst(members map[raft.ServerID]Member) []raft.ServerID {
	ids := slices.Sorted(maps.Keys(members))
	slices.SortStableFunc(ids, func(a, b raft.ServerID) int {
		switch {
		case members[a].Witness == members[b].Witness:
			return 0
		case members[b].Witness:
			return -1
		}
		return 1
	})
	return ids
}
