package replication

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// Kinds of metadata pages, as docs/FORMATS.md has them.
const (
	rootPage      = 2
	directoryPage = 3
	leafPage      = 4
)

// rotPages flips a bit in every page of metadata of a kind on one node's medium, behind the program's back.
func (c *cluster) rotPages(node string, kind byte) (n int) {
	c.t.Helper()
	raw, err := os.ReadFile(filepath.Join(c.dir, node, "pool", "data"))
	if err != nil {
		c.t.Fatal(err)
	}
	for off := 0; off+block.Size <= len(raw); off += block.Size {
		if string(raw[off:off+4]) == "SPAG" && raw[off+8] == kind && binary.LittleEndian.Uint16(raw[off+10:]) > 0 {
			c.flip(node, int64(off)+50)
			n++
		}
	}
	if n == 0 {
		c.t.Fatalf("%s has no page of kind %d", node, kind)
	}
	return n
}

// layered writes blocks in three versions, two of them in snapshots, and waits until both copies have them on their disks.
func (c *cluster) layered(blocks int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 45*time.Second)
	defer cancel()
	for n := range blocks {
		c.mustWrite(n*17, 1)
	}
	c.snap(ctx, 1)
	for n := range blocks / 2 {
		c.mustWrite(n*17, 2)
	}
	c.snap(ctx, 2)
	for n := range blocks / 3 {
		c.mustWrite(n*17, 3)
	}
	c.checkpointAll()
}

func (c *cluster) checkpointAll() {
	c.t.Helper()
	owner := c.owner()
	for name, n := range c.nodes {
		if n.vol == nil {
			continue
		}
		eventually(c.t, name+" has everything", func() bool { return n.vol.Applied() >= c.nodes[owner].vol.Applied() })
		if _, err := n.vol.Checkpoint(context.Background()); err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c *cluster) layeredReads(blocks int) {
	c.t.Helper()
	for n := range blocks {
		want := uint64(1)
		if n < blocks/2 {
			want = 2
		}
		if n < blocks/3 {
			want = 3
		}
		c.mustRead(n*17, want)
	}
}

// What rots of a map on the disk while the node runs is written anew by the scrub, so that a restart finds it.
func TestScrubWritesAnewWhatRotsOfTheMap(t *testing.T) {
	for name, kind := range map[string]byte{"roots, both copies": rootPage, "directories": directoryPage, "leaves": leafPage} {
		t.Run(name, func(t *testing.T) {
			c := scrubbed(t, time.Hour, 1<<40, "a", "b", "w")
			owner := c.owner()
			c.layered(60)
			c.rotPages(owner, kind)
			if err := c.group(owner).StartScrub(context.Background()); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is noticed, and a pass completed", func() bool {
				s := c.group(owner).ScrubStatus()
				return s.Repair.Pages > 0 && !s.Running
			})
			if s := c.group(owner).Status().Repair; s.Bad != 0 || s.Unrepaired != 0 || s.Last.IsZero() {
				t.Errorf("counted %+v", s)
			}
			c.stop(other(owner))
			c.stop(owner)
			c.start(owner, false) // alone with the witness: nobody can help
			if lost := c.nodes[owner].vol.LostChunks(1); len(lost) > 0 {
				t.Fatalf("lost after a restart: %v", lost)
			}
			c.layeredReads(60)
			c.start(other(owner), false)
			eventually(t, "both copies", func() bool { return c.group(c.owner()).Status().Health == HealthHealthy })
			compareSnapshots(t, c, "a", "b")
		})
	}
}

// What has rotted of a map while the node was down is lost for that copy, and fetched from the other as soon as it is back, without
// anybody reading it; the LUN is served meanwhile, and never wrong.
func TestWhatADamagedMapHasLostIsFetchedAtOnce(t *testing.T) {
	for name, kind := range map[string]byte{"directories": directoryPage, "leaves": leafPage} {
		t.Run(name, func(t *testing.T) {
			c := newClusterWith(t, &cluster{scrub: func(string) ScrubConfig { return ScrubConfig{Retry: time.Second} }}, blockstore.MediaFile, "a", "b", "w")
			damaged := c.owner()
			c.layered(60)
			free := c.nodes[damaged].vol.FreeBytes()
			c.stop(damaged)
			c.owner()
			c.rotPages(damaged, kind)
			c.start(damaged, false)
			if len(c.nodes[damaged].vol.LostChunks(1)) == 0 {
				t.Fatal("nothing was lost")
			}
			eventually(t, "it may own the LUN again", func() bool { return c.group(c.owner()).Status().Health == HealthHealthy })
			eventually(t, "it owns the LUN", func() bool {
				owner := c.owner()
				return owner == damaged || c.group(owner).Transfer(context.Background(), c.member(damaged).ID) == nil && c.owner() == damaged
			})
			c.layeredReads(60)
			eventually(t, "nothing is lost any more", func() bool { return len(c.nodes[damaged].vol.LostChunks(1)) == 0 })
			eventually(t, "nor reported", func() bool { s := c.group(damaged).Status().Repair; return s.Unrepaired == 0 && s.Repaired > 0 })
			compareCopies(t, c, "a", "b")
			compareSnapshots(t, c, "a", "b")
			if now := c.nodes[damaged].vol.FreeBytes(); now < free-8*block.ChunkSize {
				t.Errorf("what was fetched takes %d chunks more than what was lost", (free-now)/block.ChunkSize)
			}
		})
	}
}
