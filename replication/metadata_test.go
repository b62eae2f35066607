package replication

import (
	"context"
	"errors"
	"testing"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

const (
	thinLeaves = 100
	thinStep   = 32 << 20 // what one page of the map describes
	thinPool   = 64 << 20 // 256 pages of metadata, of which half may be used
)

// cloneOfThinData makes a clone of a LUN whose data is spread so thinly that each block has a page of the map for itself: zeros over any of it take
// a page, too, and no chunk.
func cloneOfThinData(_ string, p *blockstore.Pool) (*blockstore.Volume, error) {
	g := block.Geometry{Capacity: block.CountOf(thinLeaves * thinStep), LogicalBlockBytes: 512}
	origin, err := p.Create("origin", g)
	if err != nil {
		return nil, err
	}
	defer origin.Close()
	for n := range thinLeaves {
		r := block.BytesRange(int64(n)*thinStep, block.Size)
		data := tagged(n, 7)
		if err := origin.Apply(uint64(n)+1, []block.Op{{Kind: block.OpWrite, Range: r, Data: data, Sums: block.AppendSums(nil, data)}}); err != nil {
			return nil, err
		}
	}
	if err := origin.Apply(thinLeaves+1, []block.Op{block.SnapshotOp(spec(1))}); err != nil {
		return nil, err
	}
	return p.Clone(testLUN, "origin", spec(1).ID)
}

// What makes the map larger without taking a chunk is refused before it is proposed when the pool has no room for that, its own or another copy's:
// no copy meets an entry that it cannot apply. Everything else goes on.
func TestZerosAndSnapshotsThatMetadataHaveNoRoomForAreRefused(t *testing.T) {
	for _, peers := range []bool{false, true} { // whose pool it is
		pools := map[bool]string{false: "own", true: "another copy's"}
		t.Run(pools[peers], func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			geometry := block.Geometry{Capacity: block.CountOf(thinLeaves * thinStep), LogicalBlockBytes: 512}
			c := newClusterWith(t, &cluster{pool: thinPool, geometry: geometry, create: cloneOfThinData}, blockstore.MediaFile, "a", "b", "w")
			owner := c.owner()
			g := c.group(owner)
			eventually(t, "both copies in sync", func() bool { return g.Status().Health == HealthHealthy })
			if peers { // 10 pages less than here
				v, err := c.nodes[other(owner)].pool.Create("hog", geometry)
				if err != nil {
					t.Fatal(err)
				}
				defer v.Close()
				for n := range 10 {
					data := tagged(n, 1)
					op := block.Op{Kind: block.OpWrite, Range: block.BytesRange(int64(n)*thinStep, block.Size), Data: data, Sums: block.AppendSums(nil, data)}
					if err := v.Apply(uint64(n)+1, []block.Op{op}); err != nil {
						t.Fatal(err)
					}
				}
			}
			unmap := func(from, leaves int) error {
				return g.Unmap(ctx, g.Fence(), []block.Range{block.BytesRange(int64(from)*thinStep, int64(leaves)*thinStep)})
			}
			if err := unmap(0, thinLeaves); !errors.Is(err, block.ErrNoSpace) {
				t.Fatalf("zeros that take %d pages: %v", thinLeaves, err)
			}
			unmapped := 0
			for ; unmapped < thinLeaves; unmapped++ {
				if err := unmap(unmapped, 1); errors.Is(err, block.ErrNoSpace) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
			}
			if most := map[bool]int{false: 20, true: 9}[peers]; unmapped < 5 || unmapped > most {
				t.Errorf("room for %d pages", unmapped)
			}
			if err := g.CreateSnapshot(ctx, spec(2)); !errors.Is(err, block.ErrNoSpace) {
				t.Errorf("a snapshot: %v", err)
			}
			if err := unmap(0, unmapped); err != nil {
				t.Errorf("zeros over zeros: %v", err)
			}
			for node, n := range c.nodes {
				if err := n.group.Err(); err != nil || n.group.full.Load() {
					t.Errorf("%s: %v, waits for room: %v", node, err, n.group.full.Load())
				}
			}
			if s := g.Status(); s.Health != HealthHealthy {
				t.Errorf("%+v", s)
			}
			for _, node := range []string{"a", "b"} {
				v := c.nodes[node].vol
				eventually(t, "applied", func() bool { return v.Applied() == c.nodes[owner].vol.Applied() })
				for n := range thinLeaves {
					want := uint64(7)
					if n < unmapped {
						want = 0
					}
					got := make([]byte, block.Size)
					if err := v.ReadAt(block.BytesRange(int64(n)*thinStep, block.Size), got); err != nil || string(got) != string(tagged(n, want)) && want != 0 || want == 0 && got[0] != 0 {
						t.Fatalf("%s: block %d: %v", node, n, err)
					}
				}
			}
		})
	}
}
