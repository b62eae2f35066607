package replication

import (
	"crypto/sha256"
	"encoding/binary"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// Whether a block is the same on two copies a rebuild tells by a hash of its contents. Its checksum would not do. That two blocks have one CRC32C is no
// matter of chance alone: a program that keeps its own CRC32C at the end of what it writes makes blocks that all have the same one, whatever is in
// them; and of a TiB of blocks that have all changed some twentieth of the time one would be taken for unchanged by chance. A checksum tells whether a
// block is what was written; it does not tell which of the things that were written it is.
//
// A hash is the first 64 bits of the SHA-256. So both sides read what they compare, in chunks that entries since the pin before may have changed.

// contents is what a chunk holds.
type contents struct {
	valid  uint64 // which blocks are stored
	bad    uint64 // of those, which cannot be read: their hash is of their checksum, which is all that is known of them
	hashes [block.BlocksPerChunk]uint64
	info   blockstore.ChunkInfo
}

// read fills c with what some blocks of a chunk hold, and passes the good ones on. Of the others it only says whether they are stored.
func (c *contents) read(r chunkReader, chunk uint32, blocks uint64, fn func(n int, data []byte)) (err error) {
	c.bad, err = r.ReadChunk(chunk, blocks, &c.info, func(n int, data []byte) {
		c.hashes[n] = hashOf(data)
		if fn != nil {
			fn(n, data)
		}
	})
	c.valid = c.info.Valid
	c.vouch(c.bad)
	return err
}

// chunkReader is a Store, or a snapshot in it.
type chunkReader interface {
	ReadChunk(chunk uint32, blocks uint64, info *blockstore.ChunkInfo, fn func(n int, data []byte)) (bad uint64, err error)
}

// vouch makes the hash of blocks one of their checksum: for what the source cannot read. Where the receiver has a block of that checksum, it may keep it;
// nobody has anything better, unless a third copy repairs the source's.
func (c *contents) vouch(blocks uint64) {
	for n := range block.BlocksPerChunk {
		if blocks>>n&1 == 1 {
			c.hashes[n] = hashOf(binary.LittleEndian.AppendUint32(nil, c.info.Sums[n]))
		}
	}
}

func hashOf(data []byte) uint64 {
	d := sha256.Sum256(data)
	return binary.LittleEndian.Uint64(d[:])
}

// groupDigest is the digest of a group of a chunk's blocks, of which the first step sends the low 32 bits.
func groupDigest(valid uint8, hashes []uint64) uint64 {
	var b [1 + 8*groupBlocks]byte
	b[0] = valid
	for n := range groupBlocks {
		if valid>>n&1 == 1 {
			binary.LittleEndian.PutUint64(b[1+8*n:], hashes[n])
		}
	}
	return hashOf(b[:])
}

// digest is that of the whole chunk.
func (c *contents) digest() uint64 {
	b := make([]byte, 0, 8*groupsPerChunk)
	for n := range groupsPerChunk {
		b = binary.LittleEndian.AppendUint64(b, groupDigest(groupOf(c.valid, n), c.group(n)))
	}
	return hashOf(b)
}

// group returns the hashes of a group's blocks.
func (c *contents) group(n int) []uint64 { return c.hashes[n*groupBlocks:][:groupBlocks] }

// groupOf returns the bits of a group in a chunk's bitmap, and groupMask all of them.
func groupOf(bitmap uint64, group int) uint8 { return uint8(bitmap >> (groupBlocks * group)) }

func groupMask(group int) uint64 { return (1<<groupBlocks - 1) << (groupBlocks * group) }
