package replication

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/replication/journal"
)

// filled is the storage of a replica that does not run, and is to take the place of another on its node.
type filled struct {
	t    *testing.T
	c    *cluster
	node string
	pool *blockstore.Pool
	vol  *blockstore.Volume
	log  journal.Log
	wrap func(s Store) Store // nil: as it is
}

func newFilled(t *testing.T, c *cluster) *filled {
	t.Helper()
	f := &filled{t: t, c: c, node: "b", log: journal.NewMemory()}
	var err error
	if f.pool, err = blockstore.OpenPool(blockstore.PoolConfig{Media: blockstore.MediaFile, Dir: t.TempDir() + "/pool", CapacityBytes: 128 << 20}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.pool.Close() })
	if f.vol, err = f.pool.Create("filled", c.geometry); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.vol.Close() })
	return f
}

// fill brings it up to date, or as far as ctx lets it.
func (f *filled) fill(ctx context.Context) error {
	store := Store(f.vol)
	if f.wrap != nil {
		store = f.wrap(store)
	}
	return f.c.nodes[f.node].host.Fill(ctx, Config{
		LUN: testLUN, Epoch: 1, Self: Member{ID: raft.ServerID(f.node + "/9"), Node: f.node}, Members: f.c.members, Geometry: f.c.geometry, Store: store, Journal: f.log,
	})
}

// reopen closes the volume and opens it again: only what was made durable is there.
func (f *filled) reopen() {
	f.t.Helper()
	if err := f.vol.Close(); err != nil {
		f.t.Fatal(err)
	}
	vol, err := f.pool.Open("filled")
	if err != nil {
		f.t.Fatal(err)
	}
	f.vol = vol
}

// A fill that is done again, because nobody heard that it was done or it was interrupted, brings what has changed since.
func TestFillMayBeRepeated(t *testing.T) {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	f := newFilled(t, c)
	for round := range uint64(5) {
		for n := range 100 {
			if err := c.write(ctx, n*40, 10*round+1); err != nil {
				t.Fatal(err)
			}
		}
		stop := make(chan struct{})
		done := make(chan struct{})
		go func() { // it goes on changing
			defer close(done)
			for v := 10*round + 2; ; v = min(v+1, 10*round+9) {
				for n := range 50 {
					select {
					case <-stop:
						return
					default:
					}
					_ = c.write(ctx, n*40, v)
				}
			}
		}()
		err := f.fill(ctx)
		close(stop)
		<-done
		if err != nil {
			t.Fatal(err)
		}
		for n := 50; n < 100; n++ { // those that did not change meanwhile
			got := make([]byte, block.Size)
			if err := f.vol.ReadAt(blockRange(n*40), got); err != nil || !bytes.Equal(got, tagged(n*40, 10*round+1)) {
				v, uerr := untag(n*40, got)
				t.Fatalf("round %d, block %d: version %d (%v), %v", round, n, v, uerr, err)
			}
		}
		f.reopen()
	}
}

// A fill that was interrupted has copied a part, which has changed by the time it goes on, from another owner.
func TestInterruptedFillGoesOn(t *testing.T) {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithTimeout(context.Background(), 120*time.Second)
	defer cancel()
	f := newFilled(t, c)
	const blocks = 6000
	big := make([]byte, 64*block.Size)
	for n := 0; n < blocks; n += 64 {
		for i := range 64 {
			copy(big[i*block.Size:], tagged(n+i, 1))
		}
		g := c.group(c.owner())
		if err := g.Write(ctx, g.Fence(), block.BytesRange(int64(n)*block.Size, int64(len(big))), big); err != nil {
			t.Fatal(err)
		}
	}
	for round := range uint64(6) {
		version := round + 2
		short, stop := context.WithTimeout(ctx, time.Duration(10+15*round)*time.Millisecond)
		t.Logf("round %d: %v", round, f.fill(short))
		stop()
		for n := 0; n < blocks; n += 37 {
			if err := c.write(ctx, n, version); err != nil {
				t.Fatal(err)
			}
		}
		if round%2 == 1 {
			owner := c.owner()
			other := map[string]string{"a": "b", "b": "a"}[owner]
			eventually(t, "in sync", func() bool { return c.group(owner).Status().Health == HealthHealthy })
			if err := c.group(owner).Transfer(ctx, c.member(other).ID); err != nil {
				t.Fatal(err)
			}
			eventually(t, "moved", func() bool { return c.group(other).Status().Serving })
		}
		if round == 3 {
			f.reopen()
		}
		if err := f.fill(ctx); err != nil {
			t.Fatal(err)
		}
		f.reopen() // as a node does before the replica is started
		got, want := make([]byte, block.Size), make([]byte, block.Size)
		bad := 0
		for n := range blocks {
			if err := f.vol.ReadAt(blockRange(n), got); err != nil {
				t.Fatal(err)
			}
			if err := c.nodes[c.owner()].vol.ReadAt(blockRange(n), want); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				v, _ := untag(n, got)
				w, _ := untag(n, want)
				if bad++; bad < 5 {
					t.Errorf("round %d, block %d: version %d, want %d", round, n, v, w)
				}
			}
		}
		if bad > 0 {
			t.Fatalf("%d blocks differ", bad)
		}
	}
}
