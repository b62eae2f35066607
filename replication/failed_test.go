package replication

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
	"sanctuary/replication/journal"
)

// failingDev is a medium of which one kind of operation fails once, with EIO, and which is well again after that.
type failingDev struct {
	vfs.Dev
	next  atomic.Pointer[string] // the kind that fails
	fired atomic.Bool
	after atomic.Int64 // operations since
}

func (d *failingDev) ask(kind string) error {
	if d.fired.Load() {
		d.after.Add(1)
		return nil
	}
	if k := d.next.Load(); k != nil && *k == kind && d.next.CompareAndSwap(k, nil) {
		d.fired.Store(true)
		return fmt.Errorf("%s: %w", kind, syscall.EIO)
	}
	return nil
}

func (d *failingDev) ReadAt(p []byte, off int64) error {
	return errors.Join(d.ask("read"), d.Dev.ReadAt(p, off))
}

func (d *failingDev) WriteAt(p []byte, off int64) error {
	return errors.Join(d.ask("write"), d.Dev.WriteAt(p, off))
}

func (d *failingDev) Sync() error { return errors.Join(d.ask("sync"), d.Dev.Sync()) }

// An error of the disk takes the replica out at once, whoever meets it, and for good: nothing is tried again, also if it would succeed.
// The LUN goes on with the other copy, and no command of an initiator fails for it.
func TestErrorOfTheDiskTakesOneReplicaOutAndNothingElse(t *testing.T) {
	read := func(c *cluster, _ string) { c.mustRead(3, 1) }
	write := func(c *cluster, _ string) { c.mustWrite(4, 2) }
	checkpoint := func(c *cluster, node string) {
		c.mustWrite(5, 2)
		c.group(node).dueCheckpoint()
	}
	scrub := func(c *cluster, node string) { c.group(node).requestPass() }
	neighbour := func(c *cluster, node string) { // another LUN in the pool meets it, and this one is idle
		v, err := c.nodes[node].pool.Create("other", c.geometry)
		if err != nil {
			c.t.Fatal(err)
		}
		data := tagged(1, 1)
		if err := v.Apply(1, []block.Op{{Kind: block.OpWrite, Range: blockRange(1), Data: data, Sums: block.AppendSums(nil, data)}}); err != nil {
			c.t.Fatal(err)
		}
		if err := v.ReadAt(blockRange(1), data); !errors.Is(err, block.ErrFailed) {
			c.t.Fatalf("read of the other LUN: %v", err)
		}
	}
	for _, tc := range []struct {
		name, kind string
		at         func(owner string) string
		meet       func(c *cluster, node string)
	}{
		{"an initiator's read", "read", func(o string) string { return o }, read},
		{"a write at the owner", "write", func(o string) string { return o }, write},
		{"a write at the other copy", "write", other, write},
		{"fsync at the owner", "sync", func(o string) string { return o }, checkpoint},
		{"fsync at the other copy", "sync", other, checkpoint},
		{"the scrub", "read", other, scrub},
		{"another LUN", "read", func(o string) string { return o }, neighbour},
	} {
		t.Run(tc.name, func(t *testing.T) {
			devs := map[string]*failingDev{}
			c := &cluster{}
			c.wrapDev = func(node string, d vfs.Dev) vfs.Dev {
				devs[node] = &failingDev{Dev: d}
				return devs[node]
			}
			c.scrub = func(string) ScrubConfig {
				return ScrubConfig{Settings: func() ScrubSettings { return ScrubSettings{BytesPerSecond: 1 << 40} }}
			}
			newClusterWith(t, c, blockstore.MediaFile, "a", "b", "w")
			owner := c.owner()
			for n := range 8 {
				c.mustWrite(n, 1)
			}
			node := tc.at(owner)
			healthy := other(node)
			eventually(t, "both copies have it, and their first scrubs are over", func() bool {
				return c.sound(node, 7, 1) && c.sound(healthy, 7, 1) && !c.group(node).ScrubStatus().Completed.IsZero()
			})
			devs[node].next.Store(&tc.kind)
			tc.meet(c, node)
			met := time.Now()
			eventually(t, "the replica is out", func() bool { return c.group(node).Err() != nil })
			out := time.Now()
			if took := time.Since(met); took > 10*time.Second {
				t.Errorf("it was out after %v: whatever comes by in time, such as a checkpoint, has found out", took)
			}
			if err := c.group(node).Err(); !errors.Is(err, syscall.EIO) || c.group(node).Status().Health != HealthFailed {
				t.Errorf("out for %v, %+v", err, c.group(node).Status())
			}
			c.mustWrite(9, 3)
			if took := time.Since(out); took > DefaultTiming().Gate.NoProgress/2 {
				t.Errorf("a write took %v: nobody was told that the replica is out", took)
			}
			c.mustRead(9, 3)
			c.mustRead(3, 1)
			if now := c.owner(); now != healthy {
				t.Errorf("%s owns the LUN", now)
			}
			eventually(t, "the loss is seen", func() bool { return c.group(healthy).Status().Health == HealthDegraded })
			if err := c.group(node).Read(context.Background(), blockRange(3), make([]byte, block.Size)); err == nil {
				t.Error("the failed replica answers")
			}
			if n := devs[node].after.Load(); n != 0 {
				t.Errorf("the disk was asked %d times after it had failed", n)
			}
			eventually(t, "the LUN is quiet without it", func() bool {
				q := c.group(healthy).quiet.Load()
				return q != nil && len(q.peers) == 1 && q.peer(c.member(node).ID) == nil && len(q.away) == 0
			})
			// The process starts again with a disk that is well: the copy catches up.
			c.stop(node)
			c.start(node, false)
			eventually(t, "two copies", func() bool { return c.group(c.owner()).Status().Health == HealthHealthy })
			compareCopies(t, c, "a", "b")
		})
	}
}

// unreadableLog cannot be read any more when it is told so.
type unreadableLog struct {
	journal.Log
	broken *atomic.Bool
}

func (l unreadableLog) GetLog(index uint64, out *raft.Log) error {
	if l.broken.Load() {
		return fmt.Errorf("%w: read entry %d: input/output error", block.ErrFailed, index)
	}
	return l.Log.GetLog(index, out)
}

// TestReplicaWhoseLogCannotBeReadStops: the library's goroutine that finds out ends at once, and must not leave behind one that Raft waits for.
func TestReplicaWhoseLogCannotBeReadStops(t *testing.T) {
	broken := map[string]*atomic.Bool{"a": {}, "b": {}, "w": {}}
	c := &cluster{wrap: func(node string, l journal.Log) journal.Log { return unreadableLog{l, broken[node]} }}
	c = newClusterWith(t, c, blockstore.MediaRAM, "a", "b", "w")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for n := range 20 { // until it is sent in a pipeline
		if err := c.write(ctx, n, 1); err != nil {
			t.Fatal(err)
		}
	}
	owner := c.owner()
	broken[owner].Store(true)
	if err := c.write(ctx, 1, 2); err != nil {
		t.Fatalf("without the replica whose log cannot be read: %v", err)
	}
	eventually(t, "that replica is out", func() bool { return c.group(owner).Err() != nil })
	start := time.Now()
	c.stop(owner)
	if took := time.Since(start); took > shutdownWait/2 {
		t.Errorf("it took %v to stop", took)
	}
}
