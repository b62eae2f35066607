package replication

import (
	"context"
	"testing"
	"time"

	"sanctuary/blockstore/block"
)

// mustSnapshot has the owner's live contents made a snapshot.
func mustSnapshot(t *testing.T, g *Group, id block.SnapshotID) {
	t.Helper()
	held, err := g.owned()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.proposeSurely(context.Background(), held, []block.Op{block.SnapshotOp(block.SnapshotSpec{ID: id, Name: "s"})}); err != nil {
		t.Fatal(err)
	}
}

func TestBadBlockOfASnapshotIsRepaired(t *testing.T) {
	c := scrubbed(t, time.Millisecond, 1<<40, "a", "b", "w")
	owner := c.owner()
	g := c.group(owner)
	c.mustWrite(3, 1)
	id := block.SnapshotID{1, 2, 3}
	mustSnapshot(t, g, id)
	c.mustWrite(3, 2)
	eventually(t, "the other copy has it", func() bool { return c.sound(other(owner), 3, 2) })
	sound := func(node string) bool {
		v, err := c.nodes[node].vol.View(id)
		buf := make([]byte, block.Size)
		if err != nil || v.ReadAt(blockRange(3), buf) != nil {
			return false
		}
		version, err := untag(3, buf)
		return err == nil && version == 1
	}
	for _, node := range []string{owner, other(owner)} {
		c.rotOf(node, id, 3)
		eventually(t, "the scrub repairs the snapshot's block", func() bool { return sound(node) })
	}
	c.rotOf(owner, id, 3)
	buf := make([]byte, block.Size)
	if err := g.readSnapshot(context.Background(), id, blockRange(3), buf); err != nil {
		t.Errorf("read of a bad block of a snapshot: %v", err)
	} else if v, err := untag(3, buf); err != nil || v != 1 {
		t.Errorf("read version %d of the snapshot, %v", v, err)
	}
	c.mustRead(3, 2)
}
