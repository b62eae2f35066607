package replication

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// rename gives a node's replica a new incarnation and returns what the catalog would ask for.
func (c *cluster) rename(node, incarnation string) []Member {
	var want []Member
	for i, m := range c.members {
		if m.Node == node {
			c.members[i].ID = raft.ServerID(node + "/" + incarnation)
		}
		want = append(want, joining(c.members[i], m.Node == node))
	}
	return want
}

func joining(m Member, is bool) Member {
	m.Joining = is
	return m
}

// setMembers asks an owner for members as a node does, and notes in want who has caught up, as the catalog would.
func (c *cluster) setMembers(owner string, want []Member) (Standing, error) {
	now, err := c.group(owner).SetMembers(c.t.Context(), want)
	for i, m := range want {
		want[i].Filled = m.Filled || slices.Contains(now.CaughtUp, m.ID)
	}
	return now, err
}

// settled says whether an owner has the members that are wanted, and so many that joined are whole.
func (c *cluster) settled(owner string, want []Member, whole int) bool {
	now, err := c.setMembers(owner, want)
	return err == nil && len(now.Whole) == whole
}

// maintained does what maintain does to the members.
func (g *Group) maintained(ctx context.Context) error {
	g.changing.Lock()
	defer g.changing.Unlock()
	return g.settle(ctx)
}

// A witness is replaced while one node owns the LUN; the next owner, which was not told, must neither take the new one for
// a data replica nor remove it.
func TestNewOwnerKeepsAReplacedWitness(t *testing.T) {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := c.write(ctx, 1, 1); err != nil {
		t.Fatal(err)
	}
	owner := c.owner()
	other := map[string]string{"a": "b", "b": "a"}[owner]
	want := c.wipe("w")
	eventually(t, "the new witness votes", func() bool {
		return c.settled(owner, want, 1)
	})
	eventually(t, "it is in sync", func() bool { return c.group(owner).Status().Health == HealthHealthy })
	if err := c.group(owner).Transfer(ctx, c.member(other).ID); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other node serves", func() bool { return c.group(other).Status().Serving })
	g := c.group(other)
	if _, copies := g.configured(g.running()); len(copies) != 1 {
		t.Fatalf("the new owner counts %v as copies", copies)
	}
	eventually(t, "everybody knows the members", func() bool {
		_, servers, err := g.configuration()
		return err == nil && g.knowMembers(servers) == nil
	})
	for range 3 {
		if err := g.maintained(ctx); err != nil {
			t.Fatalf("the new owner is not content: %v", err)
		}
	}
	if _, servers, err := g.configuration(); err != nil || servers["w/2"].Suffrage != raft.Voter || len(servers) != 3 {
		t.Fatalf("members are %v (%v)", servers, err)
	}
	c.stop(owner)
	if err := c.write(ctx, 1, 2); err != nil {
		t.Fatalf("with one node lost: %v", err)
	}
}

// A copy that has caught up does not vote before the catalog knows that it may hold the data, whoever settles the members.
func TestLearnerVotesWhenTheCatalogKnowsThatItHoldsData(t *testing.T) {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := c.write(ctx, 1, 1); err != nil {
		t.Fatal(err)
	}
	owner := c.owner()
	other := map[string]string{"a": "b", "b": "a"}[owner]
	want := c.wipe(other)
	id, g := c.member(other).ID, c.group(owner)
	eventually(t, "the new copy has caught up", func() bool {
		now, err := g.SetMembers(ctx, want)
		if err == nil || len(now.Whole) != 0 {
			t.Fatalf("settled without the catalog's knowledge: %+v, %v", now, err)
		}
		return slices.Contains(now.CaughtUp, id)
	})
	err := g.maintained(ctx)
	if _, servers, cerr := g.configuration(); err == nil || cerr != nil || servers[id].Suffrage != raft.Nonvoter {
		t.Fatalf("%v is a voter; %v, %v", servers[id], err, cerr)
	}
	eventually(t, "it votes", func() bool { return c.settled(owner, want, 1) })
	c.healthy(owner)
	compareCopies(t, c, "a", "b")
}

// A catalog that lags behind must not undo what a newer one has brought about.
func TestOldMemberListChangesNothing(t *testing.T) {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	owner := c.owner()
	old := slices.Clone(c.members)
	want := c.wipe("w")
	eventually(t, "the new witness votes", func() bool {
		return c.settled(owner, want, 1)
	})
	if _, err := c.group(owner).SetMembers(ctx, old); err != nil {
		t.Fatal(err)
	}
	if _, servers, err := c.group(owner).configuration(); err != nil || len(servers) != 3 || servers["w/2"].Suffrage != raft.Voter {
		t.Fatalf("members are %v (%v)", servers, err)
	}
}

// An owner that was itself rebuilt, and has seen no write since, must be able to rebuild another.
func TestIdleOwnerThatWasRebuiltServesARebuild(t *testing.T) {
	c := &cluster{limits: Limits{JournalKeepBytes: 1, CheckpointBytes: 256 << 10}}
	c = newClusterWith(t, c, blockstore.MediaRAM, "a", "b", "w")
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for n := range 500 {
		if err := c.write(ctx, n, 1); err != nil {
			t.Fatal(err)
		}
	}
	for i, away := range []string{"a", "b"} {
		other := map[string]string{"a": "b", "b": "a"}[away]
		if c.owner() == away {
			if err := c.group(away).Transfer(ctx, c.member(other).ID); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the LUN has moved", func() bool { return c.group(other).Status().Serving })
		}
		c.stop(away)
		eventually(t, "the log is cut", func() bool {
			first, _ := c.group(other).cfg.Journal.FirstIndex()
			return first > 100
		})
		want := c.rename(away, string(rune('2'+i)))
		c.start(away, false)
		eventually(t, "the new incarnation votes", func() bool {
			return c.settled(other, want, 1)
		})
		eventually(t, "both copies in sync", func() bool { return c.group(other).Status().Health == HealthHealthy })
	}
	compareCopies(t, c, "a", "b")
}

// A request to stand for election that belongs to an earlier term, or to another owner, is refused: the owner of this term
// has not given up its lease.
func TestLateTransferIsRefused(t *testing.T) {
	c := newCluster(t, blockstore.MediaRAM, "a", "b", "w")
	if err := c.write(context.Background(), 1, 1); err != nil {
		t.Fatal(err)
	}
	owner := c.owner()
	other := map[string]string{"a": "b", "b": "a"}[owner]
	inst, term := c.group(owner).running(), c.group(owner).Status().Term
	for _, addr := range [][]byte{nil, transferTerm(term - 1)} {
		req := &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3, Addr: addr}}
		if err := inst.peers.inner.TimeoutNow(c.member(other).ID, raft.ServerAddress(other), req, &raft.TimeoutNowResponse{}); err == nil {
			t.Errorf("a transfer of %q was obeyed in term %d", addr, term)
		}
	}
	if s := c.group(owner).Status(); !s.Serving || s.Term != term {
		t.Fatalf("the LUN has moved: %+v", s)
	}
}

// A voter whose log is gone has forgotten what it voted for and acknowledged.
func TestLostJournalIsNotStartedAgain(t *testing.T) {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "w")
	for n := range 100 {
		if err := c.write(context.Background(), n, 1); err != nil {
			t.Fatal(err)
		}
	}
	away := map[string]string{"a": "b", "b": "a"}[c.owner()]
	eventually(t, "the copy has something", func() bool { return c.nodes[away].vol.Applied() >= 100 })
	c.stop(away)
	if err := os.RemoveAll(filepath.Join(c.dir, away, "journal")); err != nil {
		t.Fatal(err)
	}
	for _, first := range []bool{false, true} {
		if err := c.tryStart(away, first); !errors.Is(err, ErrLogLost) {
			t.Fatalf("first=%v: %v", first, err)
		}
	}
}

// What no replica can apply is refused before it is proposed: applying it would take every copy out.
func TestMalformedOperationIsNotProposed(t *testing.T) {
	c := newCluster(t, blockstore.MediaRAM, "a", "b", "w")
	g := c.group(c.owner())
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := g.Unmap(ctx, g.Fence(), []block.Range{{Start: block.Sector(c.geometry.Capacity) - 8, Count: 16}}); !errors.Is(err, block.ErrOutOfRange) {
		t.Fatalf("unmap beyond the end: %v", err)
	}
	if err := g.WriteSame(ctx, g.Fence(), block.Range{Start: 8}, []byte{1, 2}); err != nil {
		t.Fatalf("write same of nothing: %v", err)
	}
	if err := c.write(ctx, 1, 1); err != nil {
		t.Fatal(err)
	}
	for node, n := range c.nodes {
		if err := n.group.Err(); err != nil {
			t.Errorf("%s is out: %v", node, err)
		}
	}
}

// A copy may have got its vote while the witness was away: the witness, which knows it as a learner, votes for it all the same.
func TestVoterIsElectedByAWitnessThatMissedItsPromotion(t *testing.T) {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	if err := c.write(ctx, 1, 1); err != nil {
		t.Fatal(err)
	}
	owner := c.owner()
	other := map[string]string{"a": "b", "b": "a"}[owner]
	c.stop(other)
	if err := os.RemoveAll(filepath.Join(c.dir, other)); err != nil {
		t.Fatal(err)
	}
	want := c.rename(other, "2")
	suffrage := func() raft.ServerSuffrage {
		_, _ = c.setMembers(owner, want)
		if _, servers, err := c.group(owner).configuration(); err == nil && len(servers) == 3 {
			if s, ok := servers[c.member(other).ID]; ok {
				return s.Suffrage
			}
		}
		return raft.Staging
	}
	eventually(t, "it is a learner", func() bool { return suffrage() == raft.Nonvoter })
	if err := c.write(ctx, 1, 2); err != nil { // everybody knows
		t.Fatal(err)
	}
	eventually(t, "the witness knows of the learner", func() bool {
		servers := c.group("w").running().raft.GetConfiguration().Configuration().Servers
		return slices.ContainsFunc(servers, func(s raft.Server) bool { return s.ID == c.member(other).ID })
	})
	c.stop("w")
	if err := c.startJoining(other); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it votes and is in sync", func() bool {
		return suffrage() == raft.Voter && c.write(ctx, 1, 3) == nil
	})
	c.stop(owner)
	c.start("w", false)
	if err := c.write(ctx, 1, 4); err != nil {
		t.Fatalf("with the witness, which does not know that %s votes: %v", other, err)
	}
}
