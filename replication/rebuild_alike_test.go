package replication

import (
	"bytes"
	"context"
	"encoding/binary"
	"sync/atomic"
	"testing"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/replication/journal"
)

// alike is tagged, but for the last four bytes: the CRC32C of what is before them. So all such blocks have one and the same checksum, as have those
// of many programs that keep their own checksum at the end of a block.
func alike(n int, version uint64) []byte {
	b := tagged(n, version)
	const body = block.Size - 4
	binary.LittleEndian.PutUint32(b[body:], block.Sum(b[:body]))
	return b
}

// A block whose new contents have the checksum of the old ones is another block all the same.
func TestRebuildTellsBlocksOfOneChecksumApart(t *testing.T) {
	if block.Sum(alike(1, 1)) != block.Sum(alike(1, 2)) {
		t.Fatal("the blocks of this test are to have one checksum")
	}
	older := []string{methodRebuildCount, methodRebuildHashes, methodRebuildGroups}
	for name, test := range map[string]struct {
		changed []int
		without []string
	}{
		"one block of each chunk": {everyBlock(5, 1000, block.BlocksPerChunk), nil},
		"several of a chunk":      {everyBlock(3, 1000, 3), nil},
		"from an older program":   {everyBlock(3, 1000, 3), older},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 120*time.Second)
			defer cancel()
			c := &cluster{limits: Limits{JournalKeepBytes: 1, CheckpointBytes: 256 << 10}, contents: alike, without: test.without}
			newClusterWith(t, c, blockstore.MediaFile, "a", "b", "w")
			c.writeAll(ctx, t, everyBlock(0, 1000, 1), 1)
			owner, away := c.awayFor(ctx, t, test.changed, 2)
			c.start(away, false)
			eventually(t, "both copies in sync", func() bool { return c.group(owner).Status().Health == HealthHealthy })
			compareCopies(t, c, "a", "b")
		})
	}
}

// A receiver of an older program keeps blocks of which it is told the checksum it has. So it is told that of none.
func TestReceiverOfAnOlderProgramFetchesEveryBlock(t *testing.T) {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "w")
	const n = 5
	if err := c.write(t.Context(), n, 1); err != nil {
		t.Fatal(err)
	}
	answer, err := c.nodes[c.owner()].host.serveRebuildInfo(t.Context(), "", append(make([]byte, 12), testLUN...))
	if err != nil || len(answer) != 4+chunkRecordBytes {
		t.Fatalf("%d bytes, %v", len(answer), err)
	}
	valid, sum := binary.LittleEndian.Uint64(answer[8:]), binary.LittleEndian.Uint32(answer[16+4*n:])
	if valid != 1<<n || sum == block.Sum(tagged(n, 1)) {
		t.Fatalf("valid %#x, checksum %#x", valid, sum)
	}
}

// A source whose disk is slow answers with what it has read by then, and the receiver goes on from there.
func TestSlowSourceAnswersInTime(t *testing.T) {
	const chunks, slow = 20, rebuildHashTime / 8
	var reads atomic.Int64
	c := &cluster{wrapStore: func(_ string, s Store) Store {
		return &importing{Store: s, check: func() {
			reads.Add(1)
			time.Sleep(slow)
		}}
	}}
	newClusterWith(t, c, blockstore.MediaFile, "a", "b", "w")
	c.writeAll(t.Context(), t, everyBlock(0, chunks*block.BlocksPerChunk, block.BlocksPerChunk), 1)
	host := c.nodes[c.owner()].host
	from := uint32(0)
	for answers := 1; ; answers++ {
		reads.Store(0)
		answer, err := host.serveRebuildHashes(t.Context(), "", (&rebuildAsk{from: from, until: endOfChunks}).encode(testLUN))
		if err != nil {
			t.Fatal(err)
		}
		if n := reads.Load(); n > int64(rebuildHashTime/slow)+1 {
			t.Fatalf("%d chunks, each of which takes %v, were read for one answer", n, slow)
		}
		next := binary.LittleEndian.Uint32(answer)
		if next == 0 {
			if answers < 2 {
				t.Fatal("one answer was enough")
			}
			return
		}
		if next <= from {
			t.Fatalf("asked for chunk %d and what follows, %d is next", from, next)
		}
		from = next
	}
}

// A fill that goes on from what an earlier one has copied brings what has changed since, whatever the checksums say.
func TestRepeatedFillTellsBlocksOfOneChecksumApart(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	c := &cluster{contents: alike}
	newClusterWith(t, c, blockstore.MediaFile, "a", "b", "w")
	pool, err := blockstore.OpenPool(blockstore.PoolConfig{Media: blockstore.MediaFile, Dir: t.TempDir() + "/pool", CapacityBytes: 128 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	vol, err := pool.Create("filled", c.geometry)
	if err != nil {
		t.Fatal(err)
	}
	defer vol.Close()
	l := journal.NewMemory()
	for version := uint64(1); version <= 3; version++ {
		blocks := everyBlock(int(version), 500, 3)
		c.writeAll(ctx, t, everyBlock(0, 500, 1), 2*version)
		c.writeAll(ctx, t, blocks, 2*version+1)
		cfg := Config{LUN: testLUN, Epoch: 1, Self: Member{ID: "b/9", Node: "b"}, Members: c.members, Geometry: c.geometry, Store: vol, Journal: l}
		if err := c.nodes["b"].host.Fill(ctx, cfg); err != nil {
			t.Fatal(err)
		}
		got, want := make([]byte, block.Size), make([]byte, block.Size)
		for n := range 500 {
			if err := vol.ReadAt(blockRange(n), got); err != nil {
				t.Fatal(err)
			}
			if err := c.nodes[c.owner()].vol.ReadAt(blockRange(n), want); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("block %d is of version %d, want %d", n, binary.LittleEndian.Uint64(got[8:]), binary.LittleEndian.Uint64(want[8:]))
			}
		}
	}
}

// A block that has rotted at the source, in a chunk that has changed, does not keep a copy away that has the block: its checksum is all there is to go by.
// One that has another block there waits until it has been written again.
func TestRebuildPassesABadBlockThatTheReceiverHas(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 120*time.Second)
	defer cancel()
	c := &cluster{limits: Limits{JournalKeepBytes: 1, CheckpointBytes: 256 << 10}}
	newClusterWith(t, c, blockstore.MediaFile, "a", "b", "w")
	c.writeAll(ctx, t, everyBlock(0, 2*block.BlocksPerChunk, 1), 1)
	changed := []int{3, 4, block.BlocksPerChunk + 3}
	owner, away := c.awayFor(ctx, t, changed, 2)
	c.rot(owner, 5)                      // beside one that has changed
	c.rot(owner, 50)                     // in another group
	c.rot(owner, block.BlocksPerChunk+3) // the other copy has what was there before
	g := c.group(owner)
	c.start(away, false)
	eventually(t, "all is compared", func() bool { return c.group(away).Status().Seen >= 2*block.ChunkSize })
	if g.Status().Health == HealthHealthy {
		t.Fatal("a block that nobody has was passed over")
	}
	if err := c.write(ctx, block.BlocksPerChunk+3, 3); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both copies in sync", func() bool { return g.Status().Health == HealthHealthy })
	for n, want := range map[int]uint64{3: 2, 4: 2, 5: 1, 50: 1, block.BlocksPerChunk + 2: 1, block.BlocksPerChunk + 3: 3} {
		eventually(t, "the copy is there", func() bool { return c.sound(away, n, want) })
	}
}
