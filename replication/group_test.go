package replication

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

func TestWritesReachEveryCopy(t *testing.T) {
	for _, media := range []blockstore.Media{blockstore.MediaRAM, blockstore.MediaFile} {
		t.Run(string(media), func(t *testing.T) {
			c := newCluster(t, media, "a", "b", "w")
			g := c.group(c.owner())
			ctx := context.Background()
			odd := make([]byte, 700*block.SectorSize)
			for i := range odd {
				odd[i] = byte(i*7 + i/512)
			}
			for _, r := range []block.Range{{Start: 3, Count: 1}, {Start: 13, Count: 6}, {Start: 14, Count: 700}, {Start: 2048, Count: 8}} {
				if err := g.Write(ctx, g.Fence(), r, odd[:r.Bytes()]); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, r.Bytes())
				if err := g.Read(ctx, r, got); err != nil || !bytes.Equal(got, odd[:r.Bytes()]) {
					t.Fatalf("%v reads back wrong (%v)", r, err)
				}
			}
			if err := g.WriteSame(ctx, g.Fence(), block.Range{Start: 4097, Count: 30}, bytes.Repeat([]byte{9}, 512)); err != nil {
				t.Fatal(err)
			}
			if err := g.Unmap(ctx, g.Fence(), []block.Range{{Start: 20, Count: 100}, {Start: 4099, Count: 2}}); err != nil {
				t.Fatal(err)
			}
			if at, err := g.CompareAndWrite(ctx, g.Fence(), block.Range{Start: 2048, Count: 1}, odd[:512], odd[512:1024]); at != -1 || err != nil {
				t.Fatalf("compare and write: %d, %v", at, err)
			}
			if at, err := g.CompareAndWrite(ctx, g.Fence(), block.Range{Start: 2048, Count: 1}, odd[:512], odd[512:1024]); at != 0 || err != nil {
				t.Fatalf("second compare and write: %d, %v", at, err)
			}
			if s, err := g.SwapState(ctx, g.Fence(), 0, []byte("keys")); err != nil || s.Version != 1 {
				t.Fatalf("state: %+v, %v", s, err)
			}
			for node := range map[string]bool{"a": true, "b": true} { // at once: initiators ask whichever node they like
				if s := c.group(node).State(); s.Version != 1 || string(s.Blob) != "keys" {
					t.Fatalf("state on %s: %+v", node, s)
				}
			}
			if s, err := g.SwapState(ctx, g.Fence(), 0, []byte("other")); err != block.ErrStale || string(s.Blob) != "keys" {
				t.Fatalf("stale state: %+v, %v", s, err)
			}
			eventually(t, "both copies at one index", func() bool {
				return c.nodes["a"].vol.Applied() == c.nodes["b"].vol.Applied()
			})
			va, vb := make([]byte, 4<<20), make([]byte, 4<<20)
			r := block.BytesRange(0, 4<<20)
			if err := c.nodes["a"].vol.ReadAt(r, va); err != nil {
				t.Fatal(err)
			}
			if err := c.nodes["b"].vol.ReadAt(r, vb); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(va, vb) {
				t.Fatal("the copies differ at one index")
			}
			if !bytes.Equal(va[20*512:120*512], make([]byte, 100*512)) || va[4097*512] != 9 || va[4099*512] != 0 || va[4101*512] != 9 {
				t.Fatal("UNMAP or WRITE SAME left something else")
			}
		})
	}
}

// Owner killed under load, again and again: whatever was acknowledged is there, and the survivors always find an owner
// (rule W: without the gate they do not).
func TestNothingAcknowledgedIsLostWhenOwnersDie(t *testing.T) {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "w")
	const blocks, writers, kills = 64, 8, 4
	var mu sync.Mutex // guards c.nodes against writers, and acked
	acked := make([]uint64, blocks)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(w)))
			for v := uint64(1); ctx.Err() == nil; v++ {
				n := rng.IntN(blocks/writers)*writers + w
				for ctx.Err() == nil {
					mu.Lock()
					groups := []*Group{}
					for _, node := range c.nodes {
						groups = append(groups, node.group)
					}
					mu.Unlock()
					ok := false
					for _, g := range groups {
						if err := g.Write(ctx, g.Fence(), blockRange(n), tagged(n, v)); err == nil {
							ok = true
							break
						}
					}
					if ok {
						mu.Lock()
						acked[n] = v
						mu.Unlock()
						break
					}
					select {
					case <-time.After(time.Millisecond):
					case <-ctx.Done():
					}
				}
			}
		})
	}
	count := func() (n uint64) {
		mu.Lock()
		defer mu.Unlock()
		for _, v := range acked {
			n += v
		}
		return n
	}
	for range kills {
		before := count()
		eventually(t, "writes go on", func() bool { return count() > before+200 })
		mu.Lock()
		victim := c.owner()
		n := c.nodes[victim]
		mu.Unlock()
		started := time.Now()
		n.mux.Close() // its peers and its writers lose it at once
		mu.Lock()
		c.stop(victim)
		mu.Unlock()
		now := count()
		eventually(t, "the survivor serves", func() bool { return count() > now+10 })
		t.Logf("owner %s killed; writes again after %v", victim, time.Since(started))
		mu.Lock()
		c.start(victim, false)
		mu.Unlock()
		eventually(t, "both copies in sync", func() bool {
			mu.Lock()
			defer mu.Unlock()
			for _, node := range c.nodes {
				if s := node.group.Status(); s.Serving {
					return s.Health == HealthHealthy
				}
			}
			return false
		})
	}
	cancel()
	wg.Wait()
	for n, want := range acked {
		got, err := c.read(n)
		if err != nil || got < want {
			t.Errorf("block %d: acknowledged %d, read %d (%v)", n, want, got, err)
		}
	}
}

// Everything stops at once and returns in every order: the LUN is back by itself.
func TestBlackoutHealsInEveryOrder(t *testing.T) {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "w")
	version := uint64(0)
	for _, order := range [][]string{{"a", "b", "w"}, {"a", "w", "b"}, {"b", "a", "w"}, {"b", "w", "a"}, {"w", "a", "b"}, {"w", "b", "a"}} {
		version++
		for n := range 20 {
			ctx, cancel := context.WithTimeout(context.Background(), 45*time.Second)
			if err := c.write(ctx, n, version); err != nil {
				t.Fatalf("order %v: write: %v", order, err)
			}
			cancel()
		}
		for _, n := range order {
			c.stop(n)
		}
		for _, n := range order {
			c.start(n, false)
		}
		for n := range 20 {
			if got, err := c.read(n); err != nil || got != version {
				t.Fatalf("order %v: block %d is %d, %v; acknowledged %d", order, n, got, err, version)
			}
		}
	}
}

// The witness is asked for nothing while both copies are healthy, and carries the LUN when one is gone.
func TestWitnessCarriesADegradedLUN(t *testing.T) {
	c := newCluster(t, blockstore.MediaRAM, "a", "b", "w")
	owner := c.owner()
	other := map[string]string{"a": "b", "b": "a"}[owner]
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := c.write(ctx, 1, 1); err != nil {
		t.Fatal(err)
	}
	c.stop(other)
	if err := c.write(ctx, 1, 2); err != nil {
		t.Fatalf("with the witness's vote: %v", err)
	}
	if s := c.group(owner).Status(); s.Health != HealthDegraded {
		t.Fatalf("health %q without %s", s.Health, other)
	}
	c.stop("w")
	short, cancel2 := context.WithTimeout(ctx, time.Second)
	defer cancel2()
	buf := make([]byte, block.Size)
	eventually(t, "a minority serves nothing", func() bool {
		return c.group(owner).Read(short, blockRange(1), buf) != nil
	})
	c.start("w", false)
	if err := c.write(ctx, 1, 3); err != nil {
		t.Fatalf("with the witness back: %v", err)
	}
}

func TestTransferMovesTheLUNWithoutLoss(t *testing.T) {
	c := newCluster(t, blockstore.MediaRAM, "a", "b", "w")
	for range 3 {
		owner := c.owner()
		other := map[string]string{"a": "b", "b": "a"}[owner]
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		if err := c.write(ctx, 5, 1); err != nil {
			t.Fatal(err)
		}
		if err := c.group(owner).Transfer(ctx, c.member("w").ID); err == nil {
			t.Fatal("the LUN was moved to the witness")
		}
		if err := c.group(owner).Transfer(ctx, c.member(other).ID); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the other node serves", func() bool { return c.group(other).Status().Serving })
		if v, err := c.read(5); err != nil || v != 1 {
			t.Fatalf("read %d, %v", v, err)
		}
		cancel()
	}
}

// A LUN grows while it is used; a copy that was away meanwhile learns of it from the log or from a rebuild.
func TestGrowthReachesEveryCopy(t *testing.T) {
	c := &cluster{limits: Limits{JournalKeepBytes: 1, CheckpointBytes: 256 << 10}}
	c = newClusterWith(t, c, blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	if err := c.write(ctx, 0, 1); err != nil {
		t.Fatal(err)
	}
	before := c.geometry.Capacity
	grow := func(to block.Count) {
		t.Helper()
		if err := c.group(c.owner()).Grow(ctx, to); err != nil {
			t.Fatal(err)
		}
		if err := c.write(ctx, int(to/block.SectorsPerBlock)-1, 1); err != nil {
			t.Fatal(err)
		}
	}
	same := func(to block.Count) {
		t.Helper()
		eventually(t, "both copies have grown and are in sync", func() bool {
			return c.group("a").Geometry().Capacity == to && c.group("b").Geometry().Capacity == to &&
				c.group(c.owner()).Status().Health == HealthHealthy
		})
	}
	g := c.group(c.owner())
	if err := g.Write(ctx, g.Fence(), block.Range{Start: block.Sector(before), Count: 8}, tagged(0, 1)); !errors.Is(err, block.ErrOutOfRange) {
		t.Fatalf("a write beyond the end: %v", err)
	}
	grow(2 * before)
	same(2 * before)
	if err := g.Grow(ctx, before); err != nil || g.Geometry().Capacity != 2*before {
		t.Fatalf("growing to less: %v, and has %d", err, g.Geometry().Capacity)
	}
	if err := g.Grow(ctx, block.MaxVolumeBytes); err == nil {
		t.Fatal("more than 16 TiB")
	}
	away := map[string]string{"a": "b", "b": "a"}[c.owner()]
	c.stop(away)
	grow(3 * before)
	owner := c.owner()
	eventually(t, "the log begins after the growth", func() bool {
		if err := c.write(ctx, 1, 2); err != nil {
			t.Fatal(err)
		}
		first, _ := c.group(owner).cfg.Journal.FirstIndex()
		return first > 500
	})
	c.start(away, false)
	same(3 * before)
	compareCopies(t, c, "a", "b")
}
