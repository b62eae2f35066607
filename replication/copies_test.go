package replication

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/replication/journal"
)

// Three copies: an acknowledged write is on all three while they are in sync; any one may go; one alone serves nothing.
func TestThreeCopies(t *testing.T) {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "c")
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	owner := c.owner()
	eventually(t, "all in sync", func() bool { return c.group(owner).Status().Health == HealthHealthy })
	for n := range 200 {
		if err := c.group(owner).Write(ctx, c.group(owner).Fence(), blockRange(n), tagged(n, 1)); err != nil {
			t.Fatal(err)
		}
		// Durable on each: the entry is in every journal before the acknowledgement.
		last, _ := c.group(owner).cfg.Journal.LastIndex()
		for node, x := range c.nodes {
			if have, _ := x.group.cfg.Journal.LastIndex(); have < last {
				t.Fatalf("write %d was acknowledged with the journal of %s at %d of %d", n, node, have, last)
			}
		}
	}
	c.stop(owner)
	for n := range 100 {
		if err := c.write(ctx, n, 2); err != nil {
			t.Fatalf("with one of three lost: %v", err)
		}
	}
	second := c.owner()
	if s := c.group(second).Status(); s.Health != HealthDegraded {
		t.Fatalf("health %q with one of three lost", s.Health)
	}
	c.start(owner, false)
	eventually(t, "all in sync again", func() bool { return c.group(c.owner()).Status().Health == HealthHealthy })
	compareCopies(t, c, "a", "b")
	compareCopies(t, c, "b", "c")

	last := c.owner()
	for _, node := range []string{"a", "b", "c"} {
		if node != last {
			c.stop(node)
		}
	}
	short, stop := context.WithTimeout(ctx, time.Second)
	defer stop()
	eventually(t, "one of three serves nothing", func() bool {
		return c.group(last).Read(short, blockRange(1), make([]byte, block.Size)) != nil
	})
	for _, node := range []string{"a", "b", "c"} {
		if node != last {
			c.start(node, false)
		}
	}
	for n := range 200 {
		want := uint64(1)
		if n < 100 {
			want = 2
		}
		if got, err := c.read(n); err != nil || got != want {
			t.Fatalf("block %d: version %d (%v), want %d", n, got, err, want)
		}
	}
}

// What Raft had running for a copy before it was rebuilt may say late that the log does not reach back to it. A copy that has stored what
// the log holds stays in the group, all the more when the group could store nothing without it.
func TestCopyInSyncIsNotRemovedForWhatWasSaidLate(t *testing.T) {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "c")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	if err := c.write(ctx, 1, 1); err != nil {
		t.Fatal(err)
	}
	owner := c.owner()
	g := c.group(owner)
	eventually(t, "all in sync", func() bool { return g.Status().Health == HealthHealthy })
	var others []string
	for _, node := range []string{"a", "b", "c"} {
		if node != owner {
			others = append(others, node)
		}
	}
	kept, lost := c.member(others[0]), c.member(others[1])
	_, servers, err := g.configuration()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.carriedWithout(kept.ID, servers); err != nil {
		t.Errorf("while all are there: %v", err)
	}
	// An answer of that copy takes both back at once, so each is looked at in the same moment, and more than once.
	believed := func(since time.Time) bool {
		g.mu.Lock()
		delete(g.needs, kept.ID)
		delete(g.claimed, kept.ID)
		if !since.IsZero() {
			g.claimed[kept.ID] = since
		}
		g.mu.Unlock()
		g.needsRebuild(kept.ID)
		g.mu.Lock()
		defer g.mu.Unlock()
		out := g.needs[kept.ID]
		delete(g.needs, kept.ID)
		delete(g.claimed, kept.ID)
		return out
	}
	g.changing.Lock() // nothing comes of it
	for range 20 {
		if believed(time.Time{}) || believed(time.Now().Add(-g.cfg.Timing.Gate.NoProgress/2)) {
			t.Fatal("said for the first time of a copy that has what the log reaches back to, and believed")
		}
	}
	eventually(t, "what is said for long is believed", func() bool { return believed(time.Now().Add(-2 * g.cfg.Timing.Gate.NoProgress)) })
	g.changing.Unlock()
	c.stop(others[1])
	said := func() (first bool) {
		g.changing.Lock()
		defer g.changing.Unlock()
		req := &raft.InstallSnapshotRequest{Term: g.Status().Term}
		if err := g.running().peers.InstallSnapshot(kept.ID, raft.ServerAddress(kept.Node), req, &raft.InstallSnapshotResponse{}, bytes.NewReader(nil)); !errors.Is(err, errRebuild) {
			t.Fatal(err)
		}
		_ = g.settle(ctx)
		_, servers, err := g.configuration()
		if err != nil {
			t.Fatal(err)
		}
		return servers[kept.ID].Suffrage == raft.Voter && len(servers) == 3
	}
	if !said() {
		t.Fatal("a copy that has everything was removed, and nobody else is there")
	}
	if err := c.write(ctx, 2, 2); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is known that the other is away", func() bool { return g.carriedWithout(kept.ID, servers) != nil })
	if g.carriedWithout(lost.ID, servers) != nil {
		t.Error("two of three are there, so the third may go")
	}
}

// hangingJournal says that its disk has not answered for a long time.
type hangingJournal struct {
	journal.Log
	hangs atomic.Bool
}

func (j *hangingJournal) Stalled() time.Duration {
	if j.hangs.Load() {
		return time.Hour
	}
	return j.Log.Stalled()
}

// An owner whose disk hangs would keep the LUN and serve nothing: its heartbeats go on.
func TestDiskThatHangsGivesTheLUNAway(t *testing.T) {
	journals := map[string]*hangingJournal{}
	c := &cluster{wrap: func(node string, j journal.Log) journal.Log {
		journals[node] = &hangingJournal{Log: j}
		return journals[node]
	}}
	c = newClusterWith(t, c, blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := c.write(ctx, 1, 1); err != nil {
		t.Fatal(err)
	}
	owner := c.owner()
	other := map[string]string{"a": "b", "b": "a"}[owner]
	eventually(t, "both copies in sync", func() bool { return c.group(owner).Status().Health == HealthHealthy })
	journals[owner].hangs.Store(true)
	eventually(t, "the other node serves", func() bool { return c.group(other).Status().Serving })
	if err := c.group(owner).Err(); !errors.Is(err, block.ErrFailed) {
		t.Fatalf("the replica whose disk hangs says %v", err)
	}
	got := make([]byte, block.Size)
	if err := c.group(other).Read(ctx, blockRange(1), got); err != nil || !bytes.Equal(got, tagged(1, 1)) {
		t.Fatalf("the other node reads %v, %v", got[:16], err)
	}
}

// slowJournal takes its time for every write.
type slowJournal struct {
	journal.Log
	each atomic.Int64 // nanoseconds
}

func (j *slowJournal) StoreLogs(logs []*raft.Log) error {
	time.Sleep(time.Duration(j.each.Load())) // a slow disk, not a wait for something
	return j.Log.StoreLogs(logs)
}

// A copy with a slower disk comes back under a load that never pauses: the writers are slowed until it has caught up.
func TestSlowCopyCatchesUpUnderALoadThatNeverPauses(t *testing.T) {
	slow := &slowJournal{}
	c := &cluster{
		limits: Limits{JournalKeepBytes: 1 << 30},
		wrap: func(node string, j journal.Log) journal.Log {
			if node == "b" {
				slow.Log = j
				return slow
			}
			return j
		},
	}
	c = newClusterWith(t, c, blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if c.owner() == "b" {
		if err := c.group("b").Transfer(ctx, c.member("a").ID); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a serves", func() bool { return c.group("a").Status().Serving })
	}
	g := c.group("a")
	eventually(t, "both copies in sync", func() bool { return g.Status().Health == HealthHealthy })
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for v := uint64(1); ctx.Err() == nil; v++ {
				if err := g.Write(ctx, g.Fence(), blockRange(w), tagged(w, v)); err != nil && ctx.Err() == nil && !retryable(err) {
					t.Errorf("write: %v", err)
					return
				}
			}
		})
	}
	c.stop("b")
	from := g.Status().LastIndex
	eventually(t, "it has fallen behind", func() bool { return g.Status().LastIndex > from+3000 })
	slow.each.Store(int64(100 * time.Millisecond))
	c.start("b", false)
	eventually(t, "the owner hears of it", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return g.match["b/1"] > from })
	eventually(t, "it is in sync again", func() bool { return g.Status().Health == HealthHealthy })
	cancel()
	wg.Wait()
}
