package replication

import (
	"fmt"

	"sanctuary/blockstore/block"
)

// chunkKey is a chunk of the live volume (no snapshot) or of a snapshot.
type chunkKey struct {
	snapshot block.SnapshotID
	chunk    uint32
}

// plus is n chunks further on.
func (k chunkKey) plus(n uint32) chunkKey { return chunkKey{k.snapshot, k.chunk + n} }

func (k chunkKey) live() bool { return k.snapshot == block.SnapshotID{} }

// snapshotName is the snapshot's ID, "" of the live volume.
func (k chunkKey) snapshotName() string {
	if k.live() {
		return ""
	}
	return k.snapshot.String()
}

// chunkRange is the chunk's place in the volume; the last one may end behind the volume.
func (k chunkKey) chunkRange() block.Range {
	return block.BytesRange(int64(k.chunk)*block.ChunkSize, block.ChunkSize)
}

func (k chunkKey) block(n int) block.Range {
	return block.BytesRange(int64(k.chunk)*block.ChunkSize+int64(n)*block.Size, block.Size)
}

func (k chunkKey) String() string {
	if k.live() {
		return fmt.Sprintf("chunk %d", k.chunk)
	}
	return fmt.Sprintf("chunk %d of snapshot %v", k.chunk, k.snapshot)
}

// blocksOf returns which blocks of a chunk a range touches.
func (k chunkKey) blocksOf(r block.Range) (mask uint64) {
	for n := range block.BlocksPerChunk {
		if k.block(n).Overlaps(r) {
			mask |= 1 << n
		}
	}
	return mask
}
