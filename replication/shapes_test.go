package replication

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore"
)

// Four copies and a witness, and five copies: an acknowledged write is on all of them, any two may go, owners too, and nothing is lost.
func TestFourAndFiveCopies(t *testing.T) {
	for _, nodes := range []string{"a b c d w", "a b c d e"} {
		t.Run(nodes, func(t *testing.T) {
			c := newCluster(t, blockstore.MediaFile, strings.Fields(nodes)...)
			ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
			defer cancel()
			owner := c.owner()
			healthy := func() bool { return c.group(c.owner()).Status().Health == HealthHealthy }
			eventually(t, "all in sync", healthy)
			for n := range 50 {
				if err := c.group(owner).Write(ctx, c.group(owner).Fence(), blockRange(n), tagged(n, 1)); err != nil {
					t.Fatal(err)
				}
				last, _ := c.group(owner).cfg.Journal.LastIndex()
				for node, x := range c.nodes {
					if have, _ := x.group.cfg.Journal.LastIndex(); have < last && node != "w" {
						t.Fatalf("write %d was acknowledged with the journal of %s at %d of %d", n, node, have, last)
					}
				}
			}
			var lost []string
			for round := range uint64(2) {
				lost = append(lost, c.owner())
				c.stop(lost[round])
				for n := range 50 {
					if got, err := c.read(n); err != nil || got != round+1 {
						t.Fatalf("with %v lost block %d is of version %d, %v", lost, n, got, err)
					}
					if err := c.write(ctx, n, round+2); err != nil {
						t.Fatalf("with %v lost: %v", lost, err)
					}
				}
			}
			for _, n := range lost {
				c.start(n, false)
			}
			eventually(t, "all in sync again", healthy)
			for _, n := range []string{"b", "c", "d"} {
				compareCopies(t, c, "a", n)
			}
		})
	}
}

// An owner that is to leave stays as long as the copy that takes over does not hold everything, and nobody else goes either.
func TestOwnerStaysUntilTheNewCopyHoldsEverything(t *testing.T) {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for n := range 50 {
		if err := c.write(ctx, n, 1); err != nil {
			t.Fatal(err)
		}
	}
	owner := c.owner()
	eventually(t, "both copies in sync", func() bool { return c.group(owner).Status().Health == HealthHealthy })
	members := []Member{{ID: "c/9", Node: "c"}}
	for _, m := range c.members {
		m.Leaving = m.Node == owner
		members = append(members, m)
	}
	view := View{Index: 5, Next: 10}
	for _, n := range c.nodes {
		n.group.Follow(members, view)
	}
	g := c.group(owner)
	// Its node is not there yet: whatever is tried, nothing changes but that it is waited for.
	for range 5 {
		if g.maintained(ctx) == nil {
			t.Fatal("settled without the new copy")
		}
	}
	if s := g.Status(); !s.Serving {
		t.Fatalf("the owner gave the LUN up: %+v", s)
	}
	if _, servers, err := g.configuration(); err != nil || !vote(servers, "a/1", "b/1", "w/1") {
		t.Fatalf("members are %v, %v", servers, err)
	}
}

// vote says whether these vote.
func vote(servers map[raft.ServerID]raft.Server, ids ...raft.ServerID) bool {
	for _, id := range ids {
		if s, ok := servers[id]; !ok || s.Suffrage != raft.Voter {
			return false
		}
	}
	return true
}

// Of a copy whose node is dead and a witness that both leave, the copy goes first: with a vote that may never come the one that stays could not even store that it is alone.
func TestDeadCopyLeavesBeforeTheWitness(t *testing.T) {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := c.write(ctx, 1, 1); err != nil {
		t.Fatal(err)
	}
	owner := c.owner()
	c.healthy(owner)
	c.stop(other(owner))
	g := c.group(owner) // it may still count the other one as in sync
	members := slices.Clone(c.members)
	for i := range members {
		members[i].Leaving = members[i].Node != owner
	}
	g.Follow(members, View{Index: 5, Next: 10})
	eventually(t, "the owner is alone", func() bool {
		_, servers, err := g.configuration()
		return err == nil && len(servers) == 1
	})
	if err := c.write(ctx, 1, 2); err != nil {
		t.Fatal(err)
	}
}

// While a copy that stays is away, a new witness gets no vote: three of four would be needed, where it was two of three, and the old one could not go.
func TestNoVoteThatOnlyMakesOneMoreNecessary(t *testing.T) {
	c := newClusterWith(t, &cluster{addrs: addresses(t, "x")}, blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	if err := c.write(ctx, 1, 1); err != nil {
		t.Fatal(err)
	}
	owner := c.owner()
	c.healthy(owner)
	c.stop(other(owner))
	for i := range c.members {
		c.members[i].Leaving = c.members[i].Witness
	}
	g := c.group(owner)
	c.members = append(c.members, Member{ID: "x/9", Node: "x", Witness: true, Joining: true})
	if err := c.startJoining("x"); err != nil {
		t.Fatal(err)
	}
	c.follow(View{Index: 5, Next: 100})
	for told := 0; told < 5; time.Sleep(10 * time.Millisecond) {
		switch err := g.maintained(ctx); {
		case err == nil:
			t.Fatal("settled while a copy is away")
		case strings.Contains(err.Error(), "votes when"):
			told++
		}
		if _, servers, err := g.configuration(); err == nil && servers["x/9"].ID != "" && servers["x/9"].Suffrage == raft.Voter {
			t.Fatal("it votes")
		}
	}
	c.stop("x")
	if err := c.write(ctx, 1, 2); err != nil {
		t.Fatalf("without the new witness: %v", err)
	}
	c.start("x", false)
	c.start(other(owner), false)
	c.follow(View{Index: 6, Next: 100})
	eventually(t, "the new witness has taken the place of the old one", func() bool {
		for node, n := range c.nodes {
			if n.group.Status().Serving {
				_, _ = c.setMembers(node, c.members)
				_, servers, err := n.group.configuration()
				return err == nil && vote(servers, "a/1", "b/1", "x/9") && len(servers) == 3
			}
		}
		return false
	})
	if v, err := c.read(1); err != nil || v != 2 {
		t.Fatalf("version %d, %v", v, err)
	}
}
