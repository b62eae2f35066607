package replication

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// flip changes a bit of one node's medium, behind the program's back.
func (c *cluster) flip(node string, at int64) {
	c.t.Helper()
	f, err := os.OpenFile(filepath.Join(c.dir, node, "pool", "data"), os.O_RDWR, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		c.t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b[:], at); err != nil {
		c.t.Fatal(err)
	}
}

// rot damages a stored block on one node.
func (c *cluster) rot(node string, n int) { c.rotOf(node, block.SnapshotID{}, n) }

func (c *cluster) rotOf(node string, id block.SnapshotID, n int) {
	c.t.Helper()
	data, _, stored, err := c.nodes[node].vol.Locate(id, block.Sector(n)*block.SectorsPerBlock)
	if err != nil || !stored {
		c.t.Fatalf("block %d is not stored on %s: %v", n, node, err)
	}
	c.flip(node, data+1000)
}

// rotSum damages the checksum of a stored block on one node. The program has its page of checksums in memory: so the node is
// stopped for it.
func (c *cluster) rotSum(node string, n int) {
	c.t.Helper()
	_, sum, stored, err := c.nodes[node].vol.Locate(block.SnapshotID{}, block.Sector(n)*block.SectorsPerBlock)
	if err != nil || !stored {
		c.t.Fatalf("block %d is not stored on %s: %v", n, node, err)
	}
	c.stop(node)
	c.flip(node, sum)
	c.start(node, false)
}

// sound says whether a block on one node's medium holds a version.
func (c *cluster) sound(node string, n int, version uint64) bool {
	buf := make([]byte, block.Size)
	if c.nodes[node].vol.ReadAt(blockRange(n), buf) != nil {
		return false
	}
	v, err := untag(n, buf)
	return err == nil && v == version
}

func (c *cluster) mustWrite(n int, version uint64) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 45*time.Second)
	defer cancel()
	if err := c.write(ctx, n, version); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) mustRead(n int, version uint64) {
	c.t.Helper()
	if v, err := c.read(n); err != nil || v != version {
		c.t.Fatalf("block %d: version %d, %v; want %d", n, v, err, version)
	}
}

func other(node string) string {
	if node == "a" {
		return "b"
	}
	return "a"
}

func TestBadBlockIsRepairedFromAPeerBeforeItIsRead(t *testing.T) {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "w")
	owner := c.owner()
	for n := range 8 {
		c.mustWrite(n, uint64(100+n))
	}
	c.rot(owner, 2)
	c.rot(owner, 5)
	c.mustRead(2, 102)
	if !c.sound(owner, 2, 102) || !c.sound(owner, 5, 105) {
		t.Error("the blocks are not repaired on the owner's medium, the one that was read and the other of its chunk")
	}
	if s := c.group(owner).Status().Repair; s.Bad != 2 || s.Repaired != 2 || s.Unrepaired != 0 || s.Last.IsZero() {
		t.Errorf("counted %+v", s)
	}

	// What a command changes only in part is read as well.
	g, ctx := c.group(owner), context.Background()
	part := block.Range{Start: 3*block.SectorsPerBlock + 1, Count: 1}
	c.rot(owner, 3)
	if err := g.Write(ctx, g.Fence(), part, make([]byte, block.SectorSize)); err != nil {
		t.Fatal(err)
	}
	want := tagged(3, 103)
	clear(want[block.SectorSize : 2*block.SectorSize])
	got := make([]byte, block.Size)
	if err := g.Read(ctx, blockRange(3), got); err != nil || string(got) != string(want) {
		t.Errorf("after a write to a part of a bad block: %v, right: %t", err, string(got) == string(want))
	}
	c.rot(owner, 4)
	if at, err := g.CompareAndWrite(ctx, g.Fence(), blockRange(4), tagged(4, 104), tagged(4, 204)); at != -1 || err != nil {
		t.Errorf("compare and write of a bad block: %d, %v", at, err)
	}
	c.mustRead(4, 204)
	c.rot(owner, 6)
	if err := g.Modify(ctx, g.Fence(), blockRange(6), func(_ int64, have []byte) { copy(have, tagged(6, 206)) }); err != nil {
		t.Error(err)
	}
	c.mustRead(6, 206)
	c.rot(owner, 7)
	if err := g.WriteSame(ctx, g.Fence(), block.Range{Start: 7 * block.SectorsPerBlock, Count: 1}, make([]byte, block.SectorSize)); err != nil {
		t.Error(err)
	}
	want = tagged(7, 107)
	clear(want[:block.SectorSize])
	if err := g.Read(ctx, blockRange(7), got); err != nil || string(got) != string(want) {
		t.Errorf("after zeros to a part of a bad block: %v, right: %t", err, string(got) == string(want))
	}
}

func TestBlockThatIsBadOnEveryCopyIsAnErrorUntilItIsOverwritten(t *testing.T) {
	scrub := func(string) ScrubConfig { return ScrubConfig{Retry: 20 * time.Millisecond} }
	c := newClusterWith(t, &cluster{scrub: scrub}, blockstore.MediaFile, "a", "b", "w")
	owner := c.owner()
	c.mustWrite(1, 7)
	eventually(t, "the other copy has it", func() bool { return c.sound(other(owner), 1, 7) })
	c.rot("a", 1)
	c.rot("b", 1)
	buf := make([]byte, block.Size)
	err := c.group(owner).Read(context.Background(), blockRange(1), buf)
	if corrupt := (*block.CorruptError)(nil); !errors.As(err, &corrupt) {
		t.Fatalf("read of a block that is bad on both copies: %v", err)
	}
	if s := c.group(owner).Status().Repair; s.Bad != 1 || s.Repaired != 0 || s.Unrepaired != 1 {
		t.Errorf("counted %+v", s)
	}
	c.mustWrite(1, 8)
	c.mustRead(1, 8)
	eventually(t, "it is not reported any more", func() bool { return c.group(owner).Status().Repair.Unrepaired == 0 })
}

func TestBlockIsRepairedOnceThePeerIsBack(t *testing.T) {
	scrub := func(string) ScrubConfig { return ScrubConfig{Retry: 20 * time.Millisecond} }
	c := newClusterWith(t, &cluster{scrub: scrub}, blockstore.MediaFile, "a", "b", "w")
	owner := c.owner()
	c.mustWrite(1, 7)
	c.stop(other(owner))
	c.rot(owner, 1)
	eventually(t, "the loss of the other copy is noticed", func() bool {
		return c.group(owner).Read(context.Background(), blockRange(0), make([]byte, block.Size)) == nil
	})
	if err := c.group(owner).Read(context.Background(), blockRange(1), make([]byte, block.Size)); err == nil {
		t.Fatal("a bad block was read with nobody to repair it from")
	}
	c.start(other(owner), false)
	eventually(t, "the block is repaired without being read", func() bool { return c.sound(owner, 1, 7) })
	eventually(t, "and so reported", func() bool {
		s := c.group(owner).Status().Repair
		return s.Unrepaired == 0 && s.Repaired == 1
	})
}

// heldStore applies nothing while it is held, and has lost all checksums of what it holds: nothing but the rules of repair.go
// says then what is right.
type heldStore struct {
	Store
	gate sync.RWMutex
}

func (h *heldStore) ChunkInfo(chunk uint32, info *blockstore.ChunkInfo) error {
	err := h.Store.ChunkInfo(chunk, info)
	info.Sums = [block.BlocksPerChunk]uint32{}
	return err
}

func (h *heldStore) Apply(index uint64, ops []block.Op) error {
	h.gate.RLock()
	defer h.gate.RUnlock()
	return h.Store.Apply(index, ops)
}

func TestPeerThatIsBehindIsNotBelieved(t *testing.T) {
	held := map[string]*heldStore{}
	c := &cluster{}
	c.wrapStore = func(node string, v Store) Store {
		held[node] = &heldStore{Store: v}
		return held[node]
	}
	newClusterWith(t, c, blockstore.MediaFile, "a", "b", "w")
	owner := c.owner()
	c.mustWrite(1, 1)
	c.mustWrite(2, 1)
	eventually(t, "the other copy has it", func() bool { return c.sound(other(owner), 2, 1) })
	eventually(t, "the other copy is exact", c.exact)
	peer := held[other(owner)]
	peer.gate.Lock()
	c.mustWrite(1, 2) // acknowledged: it is in the peer's journal, and not applied there
	c.rot(owner, 1)
	released := make(chan struct{})
	go func() {
		defer close(released)
		time.Sleep(300 * time.Millisecond)
		peer.gate.Unlock()
	}()
	c.mustRead(1, 2)
	<-released
}
