package replication

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// halfRebuilt is a copy whose source has died for good in the middle of the rebuild, after blocks of version 1 had been
// overwritten with version 2. The copy is stuck until resume is called.
//
// last is the log's end before there was version 2. Usually the copy has nothing beyond that before it is rebuilt; but of what comes next the owner may have
// had a request ready when it lost the copy, which it sends when it finds it again (peers.awaitLink), though the log has been cut off meanwhile.
func halfRebuilt(ctx context.Context, t *testing.T, c *cluster) (owner, away string, last uint64, resume func()) {
	t.Helper()
	c.limits = Limits{JournalKeepBytes: 1 << 20, CheckpointBytes: 256 << 10}
	c.rebuild = RebuildConfig{StepBytes: block.ChunkSize, SaveEvery: 1}
	newClusterWith(t, c, blockstore.MediaFile, "a", "b", "w")
	blocks := everyBlock(0, 64*block.BlocksPerChunk, 16)
	c.writeAll(ctx, t, blocks, 1)
	last, _ = c.group(c.owner()).cfg.Journal.LastIndex()
	owner, away = c.awayFor(ctx, t, blocks, 2)
	var compared atomic.Int64
	at, held := make(chan struct{}), make(chan struct{})
	resume = sync.OnceFunc(func() { close(held) })
	t.Cleanup(resume)
	c.wrapStore = func(_ string, s Store) Store {
		return &importing{Store: s, check: func() {
			if compared.Add(1) == 32 {
				close(at)
				<-held
			}
		}}
	}
	c.start(away, false)
	<-at
	c.wrapStore = nil
	c.stop(owner)
	return owner, away, last, resume
}

// heard makes a rebuild's source one that has answered at a moment.
func heard(g *Group, at time.Time) {
	g.mu.Lock()
	g.rebuild.heard = at
	g.mu.Unlock()
}

// silent makes it one that has not answered for long.
func silent(g *Group) { heard(g, time.Now().Add(-time.Hour)) }

// The source dies for good in the middle of a rebuild. The copy can be made again what it was before: old, but whole.
func TestCopyFallsBackToWhatItWasBeforeARebuild(t *testing.T) {
	for name, restarted := range map[string]bool{"in the same process": false, "after a restart": true} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 120*time.Second)
			defer cancel()
			began := time.Now()
			c := &cluster{}
			owner, away, last, resume := halfRebuilt(ctx, t, c)
			g := c.group(away)
			heard(g, time.Now())
			if s := g.Status(); s.Owner.Node != owner || s.IsOwner || s.Serving {
				t.Errorf("while it is rebuilt from %s: %+v", owner, s)
			}
			if _, err := g.FallBack(ctx); !errors.Is(err, ErrSourceAnswers) {
				t.Fatalf("while the source answers: %v", err)
			}
			heard(g, time.Now().Add(-2*ownerHeard))
			if s := g.Status(); s.Owner.Node != "" {
				t.Errorf("it has not answered for a while, and is called the owner: %+v", s.Owner)
			}
			resume()
			if restarted {
				c.stop(away)
				c.start(away, false)
				g = c.group(away)
			}
			vol := c.nodes[away].vol
			if err := vol.ReadAt(blockRange(0), make([]byte, block.Size)); !errors.Is(err, blockstore.ErrInconsistent) {
				t.Fatalf("a half-rebuilt copy is read: %v", err)
			}
			b, ok := g.Before()
			if !ok || b.Index == 0 || b.Index != vol.Applied() || b.Began.Before(began.Truncate(time.Millisecond)) || b.AsOf.After(b.Began) {
				t.Fatalf("kept %v, %+v", ok, b)
			}
			silent(g)
			got, err := g.FallBack(ctx)
			if err != nil || got.Index != b.Index {
				t.Fatalf("%+v, %v", got, err)
			}
			for n := 0; n < 64*block.BlocksPerChunk; n += 16 {
				if v := version(t, vol, n); v != 1 && (v != 2 || b.Index <= last) {
					t.Fatalf("block %d is of version %d at entry %d; version 2 begins behind entry %d", n, v, b.Index, last)
				}
			}
			if s := g.Status(); s.Rebuilding || s.Serving || g.Err() != nil {
				t.Fatalf("%+v", s)
			}
			if _, err := g.FallBack(ctx); !errors.Is(err, blockstore.ErrNothingKept) {
				t.Fatalf("again: %v", err)
			}
			// Its word counts for nothing: the witness knows of more. And if the source returns after all, nothing is lost.
			c.start(owner, false)
			eventually(t, "the owner serves again", func() bool { return c.group(owner).Status().Serving })
			eventually(t, "both copies in sync", func() bool { return c.group(owner).Status().Health == HealthHealthy })
			compareCopies(t, c, "a", "b")
			if v := version(t, vol, 16); v != 2 {
				t.Fatalf("block 16 is of version %d", v)
			}
			if _, ok := g.Before(); ok {
				t.Error("what was before is kept beyond the rebuild")
			}
		})
	}
}

// Where a pool has no room for both, the copy that is being made wins.
func TestRebuildInAFullPoolGivesUpWhatWasBefore(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 120*time.Second)
	defer cancel()
	c := &cluster{limits: Limits{JournalKeepBytes: 1 << 20, CheckpointBytes: 256 << 10}, pool: 64 << 20}
	newClusterWith(t, c, blockstore.MediaFile, "a", "b", "w")
	blocks := everyBlock(0, 200*block.BlocksPerChunk, 32) // 50 MiB of chunks
	c.writeAll(ctx, t, blocks, 1)
	owner, away := c.awayFor(ctx, t, blocks, 2)
	c.start(away, false)
	eventually(t, "both copies in sync", func() bool { return c.group(owner).Status().Health == HealthHealthy })
	compareCopies(t, c, "a", "b")
	if used := c.nodes[away].pool.Usage(); used.AllocatedBytes > 55<<20 {
		t.Errorf("%d bytes of the pool are taken", used.AllocatedBytes)
	}
}
