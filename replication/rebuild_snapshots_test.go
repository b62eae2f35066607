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

// importing lets a test act while a store is being rebuilt.
type importing struct {
	Store
	check    func()                     // before a chunk is compared
	snapshot func(block.Snapshot) error // before a snapshot is imported
	full     bool                       // no checkpoint succeeds
	imported atomic.Int64               // snapshots
}

func (s *importing) ReadChunk(chunk uint32, blocks uint64, info *blockstore.ChunkInfo, fn func(n int, data []byte)) (uint64, error) {
	if s.check != nil {
		s.check()
	}
	return s.Store.ReadChunk(chunk, blocks, info, fn)
}

func (s *importing) Checkpoint(ctx context.Context) (uint64, error) {
	if s.full {
		return s.Durable(), block.ErrNoSpace
	}
	return s.Store.Checkpoint(ctx)
}

func (s *importing) ImportSnapshot(snap block.Snapshot) error {
	if s.snapshot != nil {
		if err := s.snapshot(snap); err != nil {
			return err
		}
	}
	s.imported.Add(1)
	return s.Store.ImportSnapshot(snap)
}

const (
	rebuildBlocks  = 1000
	rebuildChanged = 40
)

// awayWithSnapshots makes snapshots 1 and 2, stops one copy, and lets the log and the snapshots move on without it: 2 is deleted, 3
// and 4 are made, and the LUN is rolled back to 3. What is written is a few blocks again and again.
func awayWithSnapshots(ctx context.Context, t *testing.T, c *cluster) (owner, away string) {
	t.Helper()
	c.limits = Limits{JournalKeepBytes: 1 << 20, CheckpointBytes: 256 << 10} // four times that while a rebuild holds it
	newClusterWith(t, c, blockstore.MediaFile, "a", "b", "w")
	write := func(blocks, stride int, v uint64) {
		t.Helper()
		c.writeAll(ctx, t, everyBlock(0, blocks*stride, stride), v)
	}
	owner = c.owner()
	away = map[string]string{"a": "b", "b": "a"}[owner]
	eventually(t, "both copies in sync", func() bool { return c.group(owner).Status().Health == HealthHealthy })
	write(rebuildBlocks, 1, 1)
	c.snap(ctx, 1)
	write(3, 11, 2)
	c.snap(ctx, 2)
	eventually(t, "the copy has it", func() bool { return len(c.group(away).Snapshots()) == 2 })
	c.stop(away)
	for round := range 5 {
		write(rebuildChanged, 7, uint64(3+round))
	}
	c.deleteSnapshot(ctx, 2)
	c.snap(ctx, 3)
	for round := range 5 {
		write(rebuildChanged, 5, uint64(10+round))
	}
	c.snap(ctx, 4)
	write(rebuildChanged, 3, 20)
	c.rollBack(ctx, 3)
	last, _ := c.group(owner).cfg.Journal.LastIndex()
	eventually(t, "the owner's log begins after all that", func() bool {
		write(rebuildChanged, 7, 21)
		first, _ := c.group(owner).cfg.Journal.FirstIndex()
		return first > last
	})
	return owner, away
}

// travelled is more than what differs in the states of awayWithSnapshots, and much less than one state.
const travelled = 4 * rebuildChanged * block.Size

func TestRebuildBringsSnapshots(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 120*time.Second)
	defer cancel()
	c := &cluster{}
	owner, away := awayWithSnapshots(ctx, t, c)
	c.start(away, false)
	eventually(t, "both copies in sync", func() bool { return c.group(owner).Status().Health == HealthHealthy })
	if got := c.group(away).Status().Copied; got == 0 || got > travelled {
		t.Errorf("%d bytes travelled", got)
	}
	compareSnapshots(t, c, "a", "b")
	c.moved(t, away)
	for _, want := range []byte{1, 3, 4} {
		c.rollBack(ctx, want)
		compareSnapshots(t, c, "a", "b")
	}
	if v := version(t, c.nodes[owner].vol, 5); v != 14 {
		t.Fatalf("block 5 is %d in snapshot 4", v)
	}
}

// The source goes on making, deleting and rolling back to snapshots at the worst moments of a rebuild.
func TestSnapshotsChangeDuringARebuild(t *testing.T) {
	for name, when := range map[string]int64{"while the first snapshot is copied": 0, "between two snapshots": 1, "while the live volume is copied": 2} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 120*time.Second)
			defer cancel()
			c := &cluster{}
			owner, away := awayWithSnapshots(ctx, t, c)
			var once sync.Once
			c.wrapStore = func(_ string, s Store) Store {
				w := &importing{Store: s}
				w.check = func() {
					if w.imported.Load() != when {
						return
					}
					once.Do(func() {
						g := c.group(owner)
						write := func(v uint64) (err error) {
							for n := range rebuildChanged { // what the receiver is about to fetch
								err = errors.Join(err, g.Write(ctx, g.Fence(), blockRange(7*n), tagged(7*n, v)))
							}
							return err
						}
						if err := errors.Join(
							g.CreateSnapshot(ctx, spec(5)), write(30),
							g.Rollback(ctx, spec(4).ID), g.DeleteSnapshot(ctx, spec(3).ID), write(31),
							g.CreateSnapshot(ctx, spec(6)), write(32),
							g.Rollback(ctx, spec(6).ID), g.DeleteSnapshot(ctx, spec(6).ID), write(33),
						); err != nil {
							t.Errorf("meanwhile: %v", err)
						}
					})
				}
				return w
			}
			c.start(away, false)
			eventually(t, "both copies in sync", func() bool { return c.group(owner).Status().Health == HealthHealthy })
			compareSnapshots(t, c, "a", "b")
			if n := len(c.group(away).Snapshots()); n != 3 {
				t.Fatalf("%d snapshots", n)
			}
			if v := version(t, view(t, c.group(away), 5), 7); v != 21 {
				t.Fatalf("block 7 is %d in a snapshot that was made before it was written again", v)
			}
			once.Do(func() { t.Error("nothing happened meanwhile") })
		})
	}
}

// What an interrupted rebuild has brought is not fetched again.
func TestInterruptedRebuildGoesOnAtItsSnapshot(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 120*time.Second)
	defer cancel()
	c := &cluster{}
	owner, away := awayWithSnapshots(ctx, t, c)
	var store *importing
	failed := false
	c.wrapStore = func(_ string, s Store) Store {
		store = &importing{Store: s}
		store.snapshot = func(s block.Snapshot) error {
			if s.ID == spec(4).ID && !failed {
				failed = true
				return errors.New("interrupted")
			}
			return nil
		}
		return store
	}
	c.start(away, false)
	eventually(t, "both copies in sync", func() bool { return c.group(owner).Status().Health == HealthHealthy })
	compareSnapshots(t, c, "a", "b")
	if !failed || store.imported.Load() != 2 {
		t.Fatalf("interrupted %v, %d snapshots imported", failed, store.imported.Load())
	}
	if got := c.group(away).Status().Copied; got == 0 || got > travelled {
		t.Errorf("%d bytes travelled", got)
	}
}
