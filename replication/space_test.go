package replication

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

const chunkBlocks = block.BlocksPerChunk

// A full pool pauses who needs new space and nobody else; freeing space resumes it; nothing else changes.
func TestFullPoolRefusesNewSpaceAndNothingElse(t *testing.T) {
	c := newClusterWith(t, &cluster{pool: 8 << 20}, blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	g := c.group(c.owner())
	n := 0
	for ; ; n++ { // one block in a chunk of its own each time
		err := g.Write(ctx, g.Fence(), blockRange(n*chunkBlocks), tagged(n*chunkBlocks, 1))
		if errors.Is(err, block.ErrNoSpace) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if n != 8<<20/block.ChunkSize {
		t.Fatalf("%d chunks were written to a pool of %d", n, 8<<20/block.ChunkSize)
	}
	if err := g.Write(ctx, g.Fence(), blockRange(5*chunkBlocks+7), tagged(5*chunkBlocks+7, 1)); err != nil {
		t.Fatalf("a write into an allocated chunk: %v", err)
	}
	if err := g.Write(ctx, g.Fence(), blockRange(0), tagged(0, 2)); err != nil {
		t.Fatalf("an overwrite: %v", err)
	}
	if at, err := g.CompareAndWrite(ctx, g.Fence(), blockRange((n+1)*chunkBlocks), make([]byte, block.Size), tagged(0, 1)); !errors.Is(err, block.ErrNoSpace) {
		t.Fatalf("compare and write: %d, %v", at, err)
	}
	if s := g.Status(); s.Health != HealthHealthy || s.Full {
		t.Fatalf("a refused write left %+v", s)
	}
	if err := g.Unmap(ctx, g.Fence(), []block.Range{block.BytesRange(block.ChunkSize, 2*block.ChunkSize)}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "freed space can be used", func() bool {
		return g.Write(ctx, g.Fence(), blockRange(n*chunkBlocks), tagged(n*chunkBlocks, 1)) == nil
	})
	if v, err := c.read(0); err != nil || v != 2 {
		t.Fatalf("block 0: %d, %v", v, err)
	}
	compareCopies(t, c, "a", "b")
}

// Writes at the same time to one new chunk are each promised a whole one, and need one between them: a pool is not full before its last chunk is used.
func TestPoolIsNotFullForWhatIsOnlyPromised(t *testing.T) {
	const chunks = 40
	for range 3 {
		c := newClusterWith(t, &cluster{pool: chunks * block.ChunkSize}, blockstore.MediaFile, "a", "b", "w")
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		g := c.group(c.owner())
		eventually(t, "both copies in sync", func() bool { return g.Status().Health == HealthHealthy })
		var all errgroup.Group
		for n := range chunks {
			for _, at := range []int{0, 9, 21, 40} {
				all.Go(func() error {
					n := n*chunkBlocks + at
					return g.Write(ctx, g.Fence(), blockRange(n), tagged(n, 1))
				})
			}
		}
		if err := all.Wait(); err != nil {
			t.Fatal(err)
		}
		if err := g.Write(ctx, g.Fence(), blockRange(chunks*chunkBlocks), tagged(chunks*chunkBlocks, 1)); !errors.Is(err, block.ErrNoSpace) {
			t.Fatalf("one chunk more than the pool has: %v", err)
		}
		c.stop("a")
		c.stop("b")
		c.stop("w")
	}
}

// A snapshot makes overwrites need new space: those are refused when there is none, and everything that frees some passes.
func TestFullPoolWithASnapshotRefusesOverwritesOfWhatItHolds(t *testing.T) {
	const chunks, used = 32, 20
	c := newClusterWith(t, &cluster{pool: chunks * block.ChunkSize}, blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	owner := c.owner()
	g := c.group(owner)
	eventually(t, "both copies in sync", func() bool { return g.Status().Health == HealthHealthy })
	write := func(chunk int, v uint64) error {
		return g.Write(ctx, g.Fence(), blockRange(chunk*chunkBlocks), tagged(chunk*chunkBlocks, v))
	}
	for n := range used {
		if err := write(n, 1); err != nil {
			t.Fatal(err)
		}
	}
	c.snap(ctx, 1)
	for n := range chunks - used {
		if err := write(n, 2); err != nil {
			t.Fatalf("overwrite of chunk %d: %v", n, err)
		}
	}
	if err := write(used-1, 2); !errors.Is(err, block.ErrNoSpace) {
		t.Fatalf("an overwrite of what the snapshot holds, with a full pool: %v", err)
	}
	if err := write(0, 3); err != nil {
		t.Fatalf("an overwrite of what the snapshot does not hold: %v", err)
	}
	if err := g.Unmap(ctx, g.Fence(), []block.Range{block.BytesRange(block.ChunkSize, block.ChunkSize)}); err != nil {
		t.Fatalf("unmap: %v", err)
	}
	if err := g.Rollback(ctx, spec(1).ID); err != nil {
		t.Fatalf("roll back: %v", err)
	}
	eventually(t, "what was written since is free", func() bool { return write(used-1, 4) == nil })
	for n := range chunks - used - 1 {
		eventually(t, "and the rest of it", func() bool { return write(n, 4) == nil })
	}
	if err := write(used-2, 4); !errors.Is(err, block.ErrNoSpace) {
		t.Fatalf("full again: %v", err)
	}
	if err := g.DeleteSnapshot(ctx, spec(1).ID); err != nil {
		t.Fatalf("delete: %v", err)
	}
	eventually(t, "nothing shares the chunk any more", func() bool { return write(used-2, 5) == nil })
	eventually(t, "what the snapshot alone held is free on both copies", func() bool {
		return c.nodes["a"].vol.FreeBytes() == (chunks-used)*block.ChunkSize && c.nodes["b"].vol.FreeBytes() == (chunks-used)*block.ChunkSize
	})
	compareSnapshots(t, c, "a", "b")
	for node, n := range c.nodes {
		if err := n.group.Err(); err != nil || n.group.full.Load() {
			t.Errorf("%s: %v", node, err)
		}
	}
}

// A peer's pool that others fill must neither take its copy out nor lose a write.
func TestFullPoolOfAPeerIsHarmless(t *testing.T) {
	c := newClusterWith(t, &cluster{pool: 8 << 20}, blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	owner := c.owner()
	other := map[string]string{"a": "b", "b": "a"}[owner]
	if err := c.write(ctx, 0, 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the copy has it", func() bool { return c.nodes[other].vol.Applied() == c.nodes[owner].vol.Applied() })
	hog, err := c.nodes[other].pool.Create("hog", c.geometry)
	if err != nil {
		t.Fatal(err)
	}
	filled := uint64(0)
	for ; ; filled++ {
		data := tagged(1, 1)
		err := hog.Apply(filled+1, []block.Op{{
			Kind: block.OpWrite, Range: blockRange(int(filled) * chunkBlocks), Data: data, Sums: block.AppendSums(nil, data),
		}})
		if errors.Is(err, block.ErrNoSpace) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// At once, before the owner has asked: the copy takes it into its journal and waits.
	err = c.group(owner).Write(ctx, c.group(owner).Fence(), blockRange(3*chunkBlocks), tagged(3*chunkBlocks, 1))
	if err != nil && !errors.Is(err, block.ErrNoSpace) {
		t.Fatal(err)
	}
	acknowledged := err == nil
	next := 9
	eventually(t, "the owner has asked", func() bool {
		s := &c.group(owner).space
		s.mu.Lock()
		defer s.mu.Unlock()
		p, ok := s.peers[c.member(other).ID]
		return ok && p.left.bytes < block.ChunkSize && p.free < block.ChunkSize
	})
	if err := c.group(owner).Write(ctx, c.group(owner).Fence(), blockRange(next*chunkBlocks), tagged(next*chunkBlocks, 1)); !errors.Is(err, block.ErrNoSpace) {
		t.Fatalf("a write the peer has no room for: %v", err)
	}
	if err := c.write(ctx, 0, 2); err != nil {
		t.Fatalf("an overwrite: %v", err)
	}
	if err := c.group(other).Err(); err != nil {
		t.Fatalf("the copy is out: %v", err)
	}
	if err := hog.Apply(filled+1, []block.Op{{Kind: block.OpZero, Range: block.Range{Count: c.geometry.Capacity}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := hog.Checkpoint(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "writes go on", func() bool {
		return c.group(owner).Write(ctx, c.group(owner).Fence(), blockRange(next*chunkBlocks), tagged(next*chunkBlocks, 1)) == nil
	})
	compareCopies(t, c, "a", "b")
	if acknowledged {
		c.stop(owner)
		if v, err := c.read(3 * chunkBlocks); err != nil || v != 1 {
			t.Fatalf("the write that was acknowledged while the peer was full: %d, %v", v, err)
		}
	}
	if err := hog.Close(); err != nil {
		t.Fatal(err)
	}
}
