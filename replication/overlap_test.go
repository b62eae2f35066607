package replication

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs/crashdev"
)

// slowSync holds up the syncs of a journal while held is set.
type slowSync struct {
	held    atomic.Bool
	release chan struct{}
	waiting atomic.Int64
}

func newSlowSync(f *crashdev.Folder) *slowSync {
	s := &slowSync{release: make(chan struct{})}
	f.SetHook(func(_ string, k crashdev.Kind, _, _ int64) error {
		if k == crashdev.Sync && s.held.Load() {
			s.waiting.Add(1)
			<-s.release
		}
		return nil
	})
	return s
}

// crashable is a cluster whose journals can lose their power.
func crashable(t *testing.T, media blockstore.Media, nodes ...string) *cluster {
	return crashableWith(t, &cluster{}, media, nodes...)
}

func crashableWith(t *testing.T, c *cluster, media blockstore.Media, nodes ...string) *cluster {
	c.folders = map[string]*crashdev.Folder{}
	for _, n := range nodes {
		c.folders[n] = crashdev.NewFolder(crashdev.NewPower(-1))
	}
	return newClusterWith(t, c, media, nodes...)
}

// inSync waits until both copies, on a and b, are in sync, and returns the owner's node, the other one, and the owner.
func (c *cluster) inSync(t *testing.T) (owner, other string, g *Group) {
	t.Helper()
	owner = c.owner()
	g = c.group(owner)
	eventually(t, "healthy", func() bool { return g.Status().Health == HealthHealthy })
	return owner, map[string]string{"a": "b", "b": "a"}[owner], g
}

// Rule G: the owner's log is made durable while the entry is on its way, and nothing is committed before it is. The peer has the entry, durably, and has
// said so; while the owner's own disk has not answered, nobody may be told, and nothing be applied.
func TestNothingIsCommittedBeforeTheOwnersDiskHasAnswered(t *testing.T) {
	c := crashable(t, blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := c.write(ctx, 0, 1); err != nil {
		t.Fatal(err)
	}
	owner, other, g := c.inSync(t)
	slow := newSlowSync(c.folders[owner])
	slow.held.Store(true)
	before := g.running().raft.CommitIndex()
	done := make(chan error, 1)
	go func() { done <- g.Write(ctx, g.Fence(), blockRange(1), tagged(1, 1)) }()
	sent := g.cfg.Journal
	eventually(t, "the owner's disk is asked", func() bool { return slow.waiting.Load() > 0 })
	eventually(t, "the peer has it durably", func() bool {
		last, _ := sent.LastIndex()
		return c.group(other).cfg.Journal.Durable() >= last && last > before
	})
	// Its answer has been on its way for as long as other answers take many times over.
	for range 20 {
		if g.host.askTerm(ctx, g, c.member(other)) == 0 {
			t.Fatal("the peer does not answer")
		}
	}
	select {
	case err := <-done:
		t.Fatalf("the write was answered (%v) before it was on the owner's disk", err)
	case <-time.After(200 * time.Millisecond): // well below DiskStall, and the lease goes on
	}
	if now := g.running().raft.CommitIndex(); now != before {
		t.Fatalf("entry %d was committed before it was on the owner's disk", now)
	}
	slow.held.Store(false)
	close(slow.release)
	if err := <-done; err != nil && !errors.Is(err, block.ErrUnknown) && !errors.Is(err, block.ErrNotOwner) {
		t.Fatal(err)
	}
}

// The power of the owner fails while its own sync is under way, again and again: what was acknowledged is on both copies then.
func TestOwnersPowerCutDuringItsSync(t *testing.T) {
	c := crashable(t, blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for round := range 4 {
		owner := c.owner()
		g := c.group(owner)
		eventually(t, "healthy", func() bool { return g.Status().Health == HealthHealthy })
		acknowledged := map[int]uint64{}
		for n := range 8 {
			if err := c.write(ctx, n, uint64(round*10+1)); err != nil {
				t.Fatal(err)
			}
			acknowledged[n] = uint64(round*10 + 1)
		}
		slow := newSlowSync(c.folders[owner])
		slow.held.Store(true)
		answers := make(chan error, 8)
		for n := range 8 {
			go func() { answers <- g.Write(ctx, g.Fence(), blockRange(n), tagged(n, uint64(round*10+2))) }()
		}
		eventually(t, "the owner's disk is asked", func() bool { return slow.waiting.Load() > 0 })
		eventually(t, "the peer has something of it", func() bool {
			for _, other := range []string{"a", "b"} {
				if last, _ := g.cfg.Journal.LastIndex(); other != owner && c.group(other).cfg.Journal.Durable() < last {
					return false
				}
			}
			return true
		})
		crashed := c.folders[owner].CloneForCrash(uint64(round), crashdev.NewPower(-1))
		slow.held.Store(false)
		close(slow.release)
		c.stop(owner)
		c.folders[owner] = crashed
		for range 8 {
			<-answers // either way: the disk had been let go when it came
		}
		c.start(owner, false)
		for n, version := range acknowledged {
			got := make([]byte, block.Size)
			now := c.owner()
			eventually(t, fmt.Sprintf("block %d is read", n), func() bool { return c.group(c.owner()).Read(ctx, blockRange(n), got) == nil })
			if v, err := untag(n, got); err != nil || v != version && v != version+1 {
				t.Fatalf("round %d: block %d has version %d on %s, want %d or the next", round, n, v, now, version)
			}
		}
	}
}

// An owner that has become the only voter waits for its own disk, from the change of members on: nobody's answer is waited for that could be held back.
func TestOwnerThatIsAloneWaitsForItsDisk(t *testing.T) {
	disks := map[string]*heldDisk{"a": newHeldDisk(), "b": newHeldDisk()}
	c := newClusterWith(t, &cluster{timing: patientTiming(), folders: map[string]*crashdev.Folder{"a": disks["a"].folder, "b": disks["b"].folder}},
		blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	owner := c.owner()
	c.healthy(owner)
	g := c.group(owner)
	if err := c.write(ctx, 0, 1); err != nil { // stored while it was sent
		t.Fatal(err)
	}
	g.Follow([]Member{c.member(owner)}, View{Index: 5, Next: 10})
	eventually(t, "the owner is alone", func() bool {
		_, servers, err := g.configuration()
		return err == nil && len(servers) == 1
	})
	if err := c.write(ctx, 1, 1); err != nil {
		t.Fatal(err)
	}
	release := sync.OnceFunc(disks[owner].hold())
	defer release()
	before := g.running().raft.CommitIndex()
	done := make(chan error, 1)
	go func() { done <- g.Write(ctx, g.Fence(), blockRange(2), tagged(2, 1)) }()
	eventually(t, "a sync waits", func() bool { return disks[owner].waiting.Load() > 0 })
	for from := time.Now(); time.Since(from) < heldFor; time.Sleep(10 * time.Millisecond) {
		if now := g.running().raft.CommitIndex(); now != before {
			t.Fatalf("entry %d was committed before it was on the only disk that has it", now)
		}
	}
	release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
