package replication

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// What GET LBA STATUS tells follows writes and UNMAPs, is the same on every copy, and only the owner tells it.
func TestAllocatedFollowsWritesAndUnmaps(t *testing.T) {
	c := newCluster(t, blockstore.MediaRAM, "a", "b", "w")
	owner := c.owner()
	g, ctx := c.group(owner), context.Background()
	whole := block.Range{Count: g.Geometry().Capacity}
	want := func(what string, r block.Range, allocated bool, n block.Count) {
		t.Helper()
		if got, count, err := g.Allocated(ctx, r); got != allocated || count != n || err != nil {
			t.Fatalf("%s: allocated %t for %d sectors (%v), want %t for %d", what, got, count, err, allocated, n)
		}
	}
	want("empty", whole, false, whole.Count)
	if err := g.Write(ctx, g.Fence(), block.Range{Start: 9, Count: 1}, bytes.Repeat([]byte{1}, 512)); err != nil {
		t.Fatal(err)
	}
	want("before the write", whole, false, 8)
	want("the block of the write", block.Range{Start: 10, Count: 100}, true, 6)
	// UNMAP of part of a block that was never written stores nothing; of the only part that was written, it frees the block.
	if err := g.Unmap(ctx, g.Fence(), []block.Range{{Start: 1, Count: 3}, {Start: 100, Count: 3}, {Start: 9, Count: 1}}); err != nil {
		t.Fatal(err)
	}
	want("after UNMAP", whole, false, whole.Count)
	eventually(t, "both copies at one index", func() bool {
		return c.nodes["a"].vol.Applied() == c.nodes["b"].vol.Applied()
	})
	for name, n := range c.nodes {
		if n.vol != nil && n.vol.Usage().StoredBytes != 0 {
			t.Errorf("%s stores %d bytes of zeros", name, n.vol.Usage().StoredBytes)
		}
	}
	other := map[string]string{"a": "b", "b": "a"}[owner]
	if _, _, err := c.group(other).Allocated(ctx, whole); !errors.Is(err, block.ErrNotOwner) {
		t.Errorf("who does not own it says: %v", err)
	}
}
