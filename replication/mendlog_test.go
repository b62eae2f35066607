package replication

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// spoil flips a bit in the payload of the entry that wrote a block, in the journal of a node.
func (c *cluster) spoil(node string, n int, version uint64) {
	c.t.Helper()
	files, _ := filepath.Glob(filepath.Join(c.dir, node, "journal", "*.journal"))
	slices.Sort(files)
	for _, path := range files {
		raw, err := os.ReadFile(path)
		if err != nil {
			c.t.Fatal(err)
		}
		if at := bytes.Index(raw, tagged(n, version)); at >= 0 {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt([]byte{raw[at+100] ^ 1}, int64(at+100))
				err = errors.Join(err, f.Close())
			}
			if err != nil {
				c.t.Fatal(err)
			}
			return
		}
	}
	c.t.Fatalf("the entry is in none of %v", files)
}

// wantBlocks waits until a node's copy has what was written.
func (c *cluster) wantBlocks(node string, writes int) {
	c.t.Helper()
	got := make([]byte, block.Size)
	for n := range writes {
		eventually(c.t, fmt.Sprintf("block %d on %s", n, node), func() bool {
			return c.nodes[node].vol.ReadAt(blockRange(n), got) == nil && bytes.Equal(got, tagged(n, 1))
		})
	}
}

// A damaged entry is fetched from the other copy; until then the replica takes no part. It must not end the process, which holds other LUNs.
func TestDamagedEntryIsFetchedFromAnotherCopy(t *testing.T) {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "w")
	const writes = 100
	for n := range writes {
		if err := c.write(context.Background(), n, 1); err != nil {
			t.Fatal(err)
		}
	}
	owner := c.owner()
	away := map[string]string{"a": "b", "b": "a"}[owner]
	eventually(t, "the copy has it", func() bool { return c.nodes[away].vol.Applied() >= writes })
	c.stop(away)
	c.spoil(away, 9, 1)
	c.start(away, false)
	if len(c.group(away).cfg.Journal.Damaged()) == 0 && c.group(away).abstains() != nil {
		t.Fatal("it knows of no damage and abstains")
	}
	eventually(t, "it is mended", func() bool { return len(c.group(away).cfg.Journal.Damaged()) == 0 && c.group(away).abstains() == nil })
	eventually(t, "in sync again", func() bool { return c.group(owner).Status().Health == HealthHealthy })
	c.wantBlocks(away, writes)
}

// After a blackout both copies come back with a damaged entry, each with another one. Each has what the other needs, and nobody is elected before.
func TestCopiesWithDamageInDifferentPlacesMendEachOther(t *testing.T) {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "w")
	const writes = 60
	for n := range writes {
		if err := c.write(context.Background(), n, 1); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "both copies have it", func() bool { return c.nodes["a"].vol.Applied() >= writes && c.nodes["b"].vol.Applied() >= writes })
	for _, n := range []string{"a", "b", "w"} {
		c.stop(n)
	}
	c.spoil("a", 20, 1)
	c.spoil("b", 30, 1)
	c.start("a", false)
	c.start("w", false)
	if s := c.group("a").Status(); s.Serving {
		t.Fatal("a replica with a damaged log serves")
	}
	if err := c.group("a").abstains(); err == nil {
		t.Fatal("a replica with a damaged log would vote")
	}
	c.start("b", false)
	owner := c.owner()
	eventually(t, "healthy", func() bool { return c.group(owner).Status().Health == HealthHealthy })
	for _, n := range []string{"a", "b"} {
		c.wantBlocks(n, writes)
	}
}

// An entry rots in the owner's own log while it serves, and the only other copy comes back empty: nobody has the entry, and the owner's volume
// has what it says. Its log is cut off behind it, and the other copy is rebuilt.
func TestEntryThatOnlyTheOwnersVolumeHasIsCutOff(t *testing.T) {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "w")
	const writes = 600 // more than its journal keeps in memory
	for n := range writes {
		if err := c.write(t.Context(), n, 1); err != nil {
			t.Fatal(err)
		}
	}
	owner := c.owner()
	c.spoil(owner, 9, 1)
	away := map[string]string{"a": "b", "b": "a"}[owner]
	want := c.wipe(away)
	eventually(t, "the copy that came back empty votes", func() bool { return c.settled(owner, want, 1) })
	if first, err := c.group(owner).cfg.Journal.FirstIndex(); err != nil || first < 10 {
		t.Errorf("the owner's log begins with entry %d, %v: the damage was not met, and this says nothing", first, err)
	}
	eventually(t, "the owner's log is whole", func() bool { return len(c.group(owner).cfg.Journal.Damaged()) == 0 && c.group(owner).abstains() == nil })
	c.wantBlocks(away, writes)
}

// What the owner's log does not have any more cannot be fetched: the replica goes back to its checkpoint and is brought up to date from there, and until then it does not vote.
func TestDamagedEntryThatNobodyHasAnyMore(t *testing.T) {
	c := &cluster{limits: Limits{JournalKeepBytes: 16 << 10}}
	c = newClusterWith(t, c, blockstore.MediaFile, "a", "b", "w")
	const writes = 100
	for n := range writes {
		if err := c.write(context.Background(), n, 1); err != nil {
			t.Fatal(err)
		}
	}
	owner := c.owner()
	away := map[string]string{"a": "b", "b": "a"}[owner]
	eventually(t, "the copy has it", func() bool { return c.nodes[away].vol.Applied() >= writes })
	c.stop(away)
	g := c.group(owner)
	eventually(t, "the owner's log is cut off", func() bool {
		g.dueCheckpoint()
		first, _ := g.cfg.Journal.FirstIndex()
		return first > writes/2
	})
	c.spoil(away, 9, 1)
	c.start(away, false)
	eventually(t, "in sync again", func() bool { return g.Status().Health == HealthHealthy })
	eventually(t, "it may vote again", func() bool { return c.group(away).abstains() == nil })
	c.wantBlocks(away, writes)
}
