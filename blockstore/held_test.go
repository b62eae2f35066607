package blockstore_test

import (
	"fmt"
	"testing"

	"sanctuary/blockstore/block"
)

// Snapshots that are kept only for clones do not count: which there are differs from copy to copy, and an entry that makes a snapshot must do
// the same on all of them.
func TestSnapshotsKeptForClonesDoNotCount(t *testing.T) {
	_, pool, v, m := start(t)
	spec := func(n int) block.SnapshotSpec {
		return block.SnapshotSpec{ID: block.SnapshotID{1, byte(n), byte(n >> 8)}, Name: fmt.Sprintf("s%d", n), Created: 1}
	}
	const held = 3
	index := uint64(0)
	apply := func(op block.Op) {
		t.Helper()
		index++
		must(t, v.Apply(index, []block.Op{op}))
	}
	for n := range held {
		apply(m.Write(0, 1))
		apply(block.SnapshotOp(spec(n)))
		_, err := pool.Clone(fmt.Sprintf("clone%d", n), "a", spec(n).ID)
		must(t, err)
		apply(block.DeleteSnapshotOp(spec(n).ID))
	}
	for n := held; n < held+block.MaxSnapshots+1; n++ {
		apply(block.SnapshotOp(spec(n)))
	}
	if got := v.Snapshots(); len(got) != block.MaxSnapshots || got[len(got)-1].Name != spec(held+block.MaxSnapshots-1).Name {
		t.Errorf("%d snapshots, with %d kept for clones", len(got), held)
	}
	_, err := v.Checkpoint(ctx)
	must(t, err)
	must(t, v.Close())
	if v, err = pool.Open("a"); err != nil || len(v.Snapshots()) != block.MaxSnapshots {
		t.Errorf("opened again: %d, %v", len(v.Snapshots()), err)
	}
}
