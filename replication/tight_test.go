package replication

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
	"sanctuary/blockstore/vfs/crashdev"
)

// The file systems of all journals are full, each with two segments in use, and far more is written than those hold, though the logs are to be kept
// for much longer. Nobody frees anything: the logs are cut off behind checkpoints, and the LUN goes on with its owner and its copies.
func TestWritesGoOnWhenTheJournalsFileSystemIsFull(t *testing.T) {
	for name, nodes := range map[string][]string{"two copies and a witness": {"a", "b", "w"}, "a single copy": {"a"}} {
		t.Run(name, func(t *testing.T) { writesOnAFullFileSystem(t, nodes...) })
	}
}

func writesOnAFullFileSystem(t *testing.T, nodes ...string) {
	const segment, more = 12 << 20, 24 * 1024 // bytes, more than the first one's 8 MiB; blocks: 96 MiB
	c := crashableWith(t, &cluster{segment: segment}, blockstore.MediaFile, nodes...)
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	owner := c.owner()
	g := c.group(owner)
	c.writeAll(ctx, t, everyBlock(0, 5*segment/4/block.Size, 1), 1)
	eventually(t, "healthy", func() bool { return len(nodes) == 1 || g.Status().Health == HealthHealthy })
	term := g.termLed()
	var refused atomic.Int64
	for _, f := range c.folders {
		f.SetHook(func(_ string, k crashdev.Kind, _, _ int64) error {
			if k == crashdev.Allocate {
				refused.Add(1)
				return vfs.ErrNoSpace
			}
			return nil
		})
	}
	for round := range uint64(more / 4096) {
		c.writeAll(ctx, t, everyBlock(0, 4096, 1), round+1)
	}
	if refused.Load() == 0 {
		t.Fatal("nobody has asked for room")
	}
	if now := g.termLed(); now != term {
		t.Errorf("the owner led in term %d, now in %d", term, now)
	}
	if len(nodes) > 1 {
		compareCopies(t, c, "a", "b")
	}
	for node, n := range c.nodes {
		if s := n.journal.Stats(); s.Bytes > 4*segment {
			t.Errorf("%s: %+v", node, s)
		}
	}
}
