package replication

import (
	"context"
	"testing"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

const cloned = 300 // blocks with contents

// cloneOfASnapshot makes the volume of a clone, as node does on each node that holds the origin.
func cloneOfASnapshot(_ string, p *blockstore.Pool) (*blockstore.Volume, error) {
	origin, err := p.Create("origin", block.Geometry{Capacity: block.CountOf(64 << 20), LogicalBlockBytes: 512})
	if err != nil {
		return nil, err
	}
	defer origin.Close()
	for n := range cloned {
		data := tagged(3*n, 7)
		op := block.Op{Kind: block.OpWrite, Range: blockRange(3 * n), Data: data, Sums: block.AppendSums(nil, data)}
		if err := origin.Apply(uint64(n)+1, []block.Op{op}); err != nil {
			return nil, err
		}
	}
	if err := origin.Apply(cloned+1, []block.Op{block.SnapshotOp(spec(1))}); err != nil {
		return nil, err
	}
	return p.Clone(testLUN, "origin", spec(1).ID)
}

// A clone's replicas begin with contents no log holds. A replica that comes without them is given them, though the log goes
// back to the LUN's beginning.
func TestReplicaOfACloneWithoutItsContentsIsRebuilt(t *testing.T) {
	for _, media := range []blockstore.Media{blockstore.MediaFile, blockstore.MediaRAM} {
		t.Run(string(media), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
			defer cancel()
			c := newClusterWith(t, &cluster{create: cloneOfASnapshot, joining: "c"}, media, "a", "b", "c")
			check := func(r blockstore.Reader) {
				t.Helper()
				for n := range cloned {
					want := uint64(7)
					if 3*n < 100 {
						want = 8
					}
					if v := version(t, r, 3*n); v != want {
						t.Fatalf("block %d is %d, not %d", 3*n, v, want)
					}
				}
			}
			for n := range 100 {
				if err := c.write(ctx, n, 8); err != nil {
					t.Fatal(err)
				}
			}
			copied := int64(0) // on a busy machine it may be rebuilt once more, with nothing left to be copied
			eventually(t, "all three in sync", func() bool {
				copied = max(copied, c.group("c").Status().Copied)
				return c.group(c.owner()).Status().Health == HealthHealthy
			})
			if copied < (cloned-34)*block.Size {
				t.Errorf("%d bytes were copied", copied)
			}
			compareCopies(t, c, "a", "b")
			compareCopies(t, c, "b", "c")
			check(c.nodes["c"].vol)
			c.snap(ctx, 2)
			compareSnapshots(t, c, "b", "c")
			if media == blockstore.MediaRAM {
				return
			}
			for _, n := range []string{"a", "b", "c"} {
				c.stop(n)
			}
			c.joining = ""
			for _, n := range []string{"a", "b", "c"} {
				c.start(n, false)
			}
			if err := c.write(ctx, 1, 9); err != nil {
				t.Fatal(err)
			}
			check(c.nodes["c"].vol)
		})
	}
}
