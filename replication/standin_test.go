package replication

import (
	"context"
	"sync"
	"testing"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// The disks of both followers take their time over a sync, much longer than an owner waits for a word of them. Their processes live and the network
// does, so the owner keeps what it has: it goes on answering reads, and what was written is answered when the disks are back.
func TestOwnerOutlastsItsPeersSlowDisks(t *testing.T) {
	c := crashable(t, blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := c.write(ctx, 0, 1); err != nil {
		t.Fatal(err)
	}
	_, other, g := c.inSync(t)
	term := g.termLed()
	disks := []*slowSync{newSlowSync(c.folders[other]), newSlowSync(c.folders["w"])}
	release := sync.OnceFunc(func() {
		for _, s := range disks {
			s.held.Store(false)
			close(s.release)
		}
	})
	t.Cleanup(release)
	for _, s := range disks {
		s.held.Store(true)
	}
	done := make(chan error, 1)
	go func() { done <- g.Write(ctx, g.Fence(), blockRange(1), tagged(1, 1)) }()
	eventually(t, "both disks are asked", func() bool { return disks[0].waiting.Load() > 0 && disks[1].waiting.Load() > 0 })
	got := make([]byte, block.Size)
	for since := time.Now(); time.Since(since) < 4*DefaultTiming().LeaderLease; time.Sleep(10 * time.Millisecond) {
		if err := g.Read(ctx, blockRange(0), got); err != nil {
			t.Fatalf("%v after the disks began to take their time, a read: %v", time.Since(since), err)
		}
	}
	if now := g.termLed(); now != term {
		t.Errorf("the owner led in term %d, now in %d", term, now)
	}
	select {
	case err := <-done:
		t.Errorf("the write was answered (%v) though nobody else has it", err)
	default:
	}
	release()
	if err := <-done; err != nil {
		t.Errorf("the write: %v", err)
	}
	compareCopies(t, c, "a", "b")
}
