package replication

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// tightStore has room for chunks, and for the metadata of few.
type tightStore struct {
	Store
	promised, most int64
}

func (s *tightStore) FreeBytes() int64 { return 1<<30 - s.promised }

func (s *tightStore) Promise(n int64) error {
	if n > 0 && s.promised+n > s.most {
		return block.ErrNoSpace
	}
	s.promised += n
	return nil
}

func (s *tightStore) MetadataRoom() int64 { return 0 }

// A question that asks for more than there is room for takes nothing back of what was granted: the owner may have given it to writes meanwhile.
func TestRoomIsNotTakenBackByAskingForMore(t *testing.T) {
	const c = block.ChunkSize
	g := &Group{cfg: Config{Store: &tightStore{most: 20 * c}}}
	for i, step := range []struct{ inFlight, need, more, granted int64 }{
		{0, 0, 16, 16},
		{2, 0, 30, 16}, // not 2
		{2, 1, 30, 16},
		{10, 8, 30, 18}, // what waits, without more in advance
		{10, 12, 0, 18}, // no room for all of it
		{4, 0, 8, 12},   // less was asked for
	} {
		if got := g.room.grant(g, roomRequest{InFlight: step.inFlight * c, Need: step.need * c, Extra: step.more * c}); got.Granted != step.granted*c {
			t.Errorf("step %d: granted %d chunks, want %d", i, got.Granted/c, step.granted)
		}
	}
}

// Room in a pool is given away once, whoever asks for it; what is not used goes back, down to the last chunk.
func TestRoomOfAPoolIsGivenOnce(t *testing.T) {
	const chunks = 64
	pool, err := blockstore.OpenPool(blockstore.PoolConfig{Media: blockstore.MediaRAM, CapacityBytes: chunks * block.ChunkSize})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	var groups [2]*Group
	for i, name := range []string{"a", "b"} {
		v, err := pool.Create(name, block.Geometry{Capacity: block.CountOf(64 << 20), LogicalBlockBytes: 512})
		if err != nil {
			t.Fatal(err)
		}
		groups[i] = &Group{cfg: Config{Store: v}}
	}
	a, b := groups[0], groups[1]
	for i, step := range []struct {
		g                    *Group
		inFlight, need, more int64
		granted, free        int64
	}{
		{a, 0, 0, 1 << 20, 32, 64}, // half of what is free, at most
		{b, 0, 0, 1 << 20, 16, 32},
		{a, 3, 0, 0, 3, 48}, // not used: but for what is in flight it goes back
		{b, 0, 1 << 20, 0, 61, 61},
		{a, 3, 1, 5, 3, 3}, // nothing is left
		{b, 0, 60, 0, 60, 61},
		{a, 3, 1, 5, 4, 4}, // the last chunk
		{a, 3, 2, 0, 4, 4},
	} {
		const c = block.ChunkSize
		got := step.g.room.grant(step.g, roomRequest{InFlight: step.inFlight * c, Need: step.need * c, Extra: step.more * c})
		if got.Granted != step.granted*c || got.Free != step.free*c {
			t.Errorf("step %d: granted %d of %d chunks, want %d of %d", i, got.Granted/c, got.Free/c, step.granted, step.free)
		}
	}
	a.room.use(a, 2*block.ChunkSize)
	a.room.use(a, 5*block.ChunkSize) // more than was set aside
	b.room.drop(b, time.Now().Add(-time.Hour))
	if free := a.cfg.Store.FreeBytes(); free != 4*block.ChunkSize {
		t.Errorf("%d chunks are free", free/block.ChunkSize)
	}
	b.room.drop(b, time.Now().Add(time.Hour))
	if free := a.cfg.Store.FreeBytes(); free != chunks*block.ChunkSize {
		t.Errorf("%d chunks are free when nothing is set aside", free/block.ChunkSize)
	}
}

// A copy that is slow to apply what it has been sent is not a full one: the write waits for it.
func TestSlowCopyIsNotTakenForAFullOne(t *testing.T) {
	held := map[string]*heldStore{}
	var mu sync.Mutex
	c := &cluster{}
	c.wrapStore = func(node string, v Store) Store {
		mu.Lock()
		defer mu.Unlock()
		held[node] = &heldStore{Store: v}
		return held[node]
	}
	newClusterWith(t, c, blockstore.MediaFile, "a", "b", "w")
	owner := c.owner()
	g := c.group(owner)
	eventually(t, "both copies in sync", func() bool { return g.Status().Health == HealthHealthy })
	c.mustWrite(0, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 45*time.Second)
	defer cancel()
	peer := held[other(owner)]
	peer.gate.Lock()
	released := make(chan struct{})
	go func() {
		defer close(released)
		time.Sleep(3 * maintainEvery)
		peer.gate.Unlock()
	}()
	for n := range 3 * leastRoom / block.ChunkSize {
		if err := g.Write(ctx, g.Fence(), blockRange(n*chunkBlocks), tagged(n*chunkBlocks, 2)); errors.Is(err, block.ErrNoSpace) {
			t.Fatalf("write %d, with nearly nothing in the pools: %v", n, err)
		} else if err != nil && !retryable(err) {
			t.Fatal(err)
		}
	}
	<-released
}
