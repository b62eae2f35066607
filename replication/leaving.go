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
		_, present := servers[id]
		return !members[id].Leaving || !present
	})
	if len(leaving) == 0 {
		return nil
	}
	heir := raft.ServerID("")
	for _, id := range slices.Sorted(maps.Keys(members)) {
		m := members[id]
		if m.Leaving {
			continue
		}
		if !g.whole(m, servers[id]) {
			return fmt.Errorf("%s leaves when %s is in sync", leaving[0], id)
		}
		if !m.Witness && heir == "" {
			heir = id
		}
	}
	if members[g.cfg.Self.ID].Leaving {
		if err := g.Transfer(ctx, heir); err != nil {
			return fmt.Errorf("this owner leaves, and could not hand the LUN over: %w", err)
		}
		return fmt.Errorf("%w: the LUN has been handed to %s, because this owner leaves", block.ErrNotOwner, heir)
	}
	// The witnesses first: as long as a vote is missing, better that of one that holds nothing.
	slices.SortStableFunc(leaving, func(a, b raft.ServerID) int {
		switch {
		case members[a].Witness == members[b].Witness:
			return 0
		case members[a].Witness:
			return -1
		}
		return 1
	})
	for _, id := range leaving {
		if err := g.remove(ctx, inst, id, "it leaves, and all others hold everything"); err != nil {
			return err
		}
	}
	return nil
}

// Removed returns which of these are members of the group no more, if this node owns the LUN and every voter it reaches knows.
func (g *Group) Removed(ids []raft.ServerID) []raft.ServerID {
	_, servers, err := g.configuration()
	if err != nil || g.knowMembers(servers) != nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(ids), func(id raft.ServerID) bool { _, present := servers[id]; return present })
}
