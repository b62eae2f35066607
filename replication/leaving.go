package replication

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
)

// How members leave: last, and one at a time. Until then they vote and are written to like any other, so that at no moment fewer copies
// could own the LUN than before.

// removeLeaving removes the members that leave, one at a time, once all that stay vote and hold everything. An owner that leaves itself hands the LUN
// over; the next one goes on.
func (g *Group) removeLeaving(ctx context.Context, inst *instance, members map[raft.ServerID]Member) error {
	_, servers, err := g.configuration()
	if err != nil {
		return err
	}
	leaving := slices.DeleteFunc(slices.Sorted(maps.Keys(members)), func(id raft.ServerID) bool {
		return !members[id].Leaving || !present(servers, id)
	})
	if len(leaving) == 0 {
		return nil
	}
	heir, swap := raft.ServerID(""), raft.ServerID("")
	for _, id := range slices.Sorted(maps.Keys(members)) {
		m := members[id]
		old := givesWay(members, m)
		switch {
		case m.Leaving:
		case g.whole(m, servers[id]):
			if !m.Witness && heir == "" {
				heir = id
			}
		case !present(servers, old):
			return fmt.Errorf("%s leaves when %s is in sync", leaving[0], id)
		case !m.Filled:
			return fmt.Errorf("%s leaves when %s, on the same node, has been filled", old, id)
		default:
			swap = old
		}
	}
	if members[g.cfg.Self.ID].Leaving {
		if heir == "" {
			return fmt.Errorf("this owner leaves, and no other copy that stays is in sync")
		}
		if err := g.Transfer(ctx, heir); err != nil {
			return fmt.Errorf("this owner leaves, and could not hand the LUN over: %w", err)
		}
		return fmt.Errorf("%w: the LUN has been handed to %s, because this owner leaves", block.ErrNotOwner, heir)
	}
	if swap != "" { // one at a time: its successor joins next, with little left to be told
		if err := g.carriedWithout(swap, servers); err != nil {
			return err
		}
		if err := g.remove(ctx, inst, swap, "another takes its place on its node"); err != nil {
			return err
		}
		return fmt.Errorf("what takes the place of %s has yet to join", swap)
	}
	// The copies first: where two votes are left, each of them is needed, and one that goes, perhaps because its node is ill, had better not be one of them.
	slices.SortStableFunc(leaving, func(a, b raft.ServerID) int {
		switch {
		case members[a].Witness == members[b].Witness:
			return 0
		case members[b].Witness:
			return -1
		}
		return 1
	})
	for len(leaving) > 0 { // what the vote of another is needed for waits, until that has come back or left itself
		next := slices.IndexFunc(leaving, func(id raft.ServerID) bool { return g.carriedWithout(id, servers) == nil })
		if next < 0 {
			return g.carriedWithout(leaving[0], servers)
		}
		id := leaving[next]
		if err := g.remove(ctx, inst, id, "it leaves, and all others hold everything"); err != nil {
			return err
		}
		delete(servers, id)
		leaving = slices.Delete(leaving, next, next+1)
	}
	return nil
}

// Removed returns which of these are members of the group no more, if this node owns the LUN and every voter it reaches knows.
func (g *Group) Removed(ids []raft.ServerID) []raft.ServerID {
	_, servers, err := g.configuration()
	if err != nil || g.knowMembers(servers) != nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(ids), func(id raft.ServerID) bool { return present(servers, id) })
}
