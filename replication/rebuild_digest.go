package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// What a rebuild sends besides blocks must be little also where a single block of a chunk has changed, and hashes of all of them (rebuild_hash.go)
// would be an eighth of that block. So there are two steps:
//
//	1  source    per chunk that may differ: a digest, 32 bits, of each of its 8 groups of 8 blocks, and one of all of it, 64 bits
//	2  receiver  per group whose digest differs here: which blocks it has, and the low 16 bits of their hashes
//	   source    the blocks that differ in that; which blocks there are; and the digest of the group as it is now, 64 bits
//
// That is 76 bytes and a few for a changed block, 1.9 %. 16 bits may be the same by chance. So the receiver computes the digest of what it has now,
// and where it is not the source's asks again, as one that has none of the group. 32 bits may be the same by chance as well: so where the whole chunk
// then is not what the first step said, the receiver goes through all groups of it once, whether they seemed to differ or not. (That, too, happens to chunks that
// have been written meanwhile, and costs little.) What counts in the end is 64 bits, of the chunk or of each of its groups.

const (
	groupBlocks        = 8
	groupsPerChunk     = block.BlocksPerChunk / groupBlocks
	rebuildWireVersion = 1
	// rebuildDigestBytes is where an answer with digests ends at the latest, rebuildHashBytes what is read for it, rebuildBusyHashBytes while somebody
	// uses the source: one chunk after another, so that a command finds one of them ahead of it. A disk for which that is too much gets rebuildHashTime: the
	// receiver waits for 30 s (Group.ask).
	rebuildDigestBytes   = 256 << 10
	rebuildHashBytes     = 64 << 20
	rebuildBusyHashBytes = 4 << 20
	rebuildHashTime      = 2 * time.Second
	chunkDigestBytes     = 4*groupsPerChunk + 8
	// rebuildBusyReadBytes is what is read for one answer while somebody uses the source.
	rebuildBusyReadBytes = 256 << 10
	// maxRebuildGroups is how many groups one request may name; the source answers as many as fit.
	maxRebuildGroups = 512
)

// rebuildAsk is what both steps are asked with: u8 version, u8 length of the LUN, LUN, 16 bytes ID of the state (zeros: the
// live volume), 16 bytes ID of the snapshot the receiver is like (zeros: none), u64 since. The first step and counting go on with
// u32 first chunk, u32 the first one behind.
type rebuildAsk struct {
	rebuildPart
	from, until uint32
}

func (a *rebuildAsk) encode(lun string) []byte {
	b := append([]byte{rebuildWireVersion, byte(len(lun))}, lun...)
	b = append(append(b, a.state[:]...), a.like[:]...)
	b = binary.LittleEndian.AppendUint64(b, a.since)
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, a.from), a.until)
}

// asked decodes a request, and finds the group, which must own the LUN, and the state of it that is meant.
func (h *Host) asked(req []byte) (g *Group, a rebuildAsk, state blockstore.Reader, rest []byte, err error) {
	if len(req) < 2 || len(req) < 2+int(req[1])+16+16+8+8 {
		return nil, a, nil, nil, errors.New("malformed request")
	}
	if req[0] != rebuildWireVersion {
		return nil, a, nil, nil, fmt.Errorf("rebuild request of version %d, this program knows version %d", req[0], rebuildWireVersion)
	}
	named := 2 + int(req[1])
	lun, b := string(req[2:named]), req[named:]
	a.state, a.like, a.since = block.SnapshotID(b[:16]), block.SnapshotID(b[16:32]), binary.LittleEndian.Uint64(b[32:])
	a.from, a.until = binary.LittleEndian.Uint32(b[40:]), binary.LittleEndian.Uint32(b[44:])
	if g, err = h.servingGroup(lun); err == nil {
		state, err = g.stateOf(a.state)
	}
	return g, a, state, b[48:], err
}

// chunksOf returns the chunks of a state, at most until.
func chunksOf(state blockstore.Reader, until uint32) uint32 {
	return min(until, uint32((state.Geometry().Capacity.Bytes()+block.ChunkSize-1)/block.ChunkSize))
}

// serveRebuildCount answers with how many bytes of chunks may differ: u64.
func (h *Host) serveRebuildCount(_ context.Context, _ string, req []byte) ([]byte, error) {
	g, a, state, _, err := h.asked(req)
	if err != nil {
		return nil, err
	}
	n := uint64(0)
	err = g.differing(a.rebuildPart, a.from, chunksOf(state, a.until), func(uint32) error { n++; return nil })
	return binary.LittleEndian.AppendUint64(nil, n*block.ChunkSize), err
}

// What stands in the first step's answer for a run of chunks; more than that: so many less digestsOfAll hold nothing.
const (
	digestsOfOne = 0 // one chunk: 8 × u32 digests, u64 digest of all
	digestsOfBad = 1 // the same, but u64 before them which blocks cannot be read: their checksums are hashed
)

// serveRebuildHashes answers the first step: u32 the chunk to go on from (0: that was all), u8 whether somebody uses the
// node; then for each run of chunks a varint, how many to skip (beginning at the one asked for, then behind the last run), and
// a varint: digestsOfOne or digestsOfBad, or 1 more than the number of chunks that hold nothing.
func (h *Host) serveRebuildHashes(ctx context.Context, _ string, req []byte) ([]byte, error) {
	g, a, state, _, err := h.asked(req)
	if err != nil {
		return nil, err
	}
	busy := h.use.busy()
	limit := rebuildHashBytes
	if busy {
		limit = rebuildBusyHashBytes
	}
	out := append(make([]byte, 4, 8<<10), flagOf(busy))
	next := a.from // behind the last run
	var empty, first uint32
	flush := func() {
		if empty > 0 {
			out = binary.AppendUvarint(binary.AppendUvarint(out, uint64(first-next)), uint64(empty)+digestsOfBad)
			next, empty = first+empty, 0
		}
	}
	var c contents
	until := time.Now().Add(rebuildHashTime)
	err = g.differing(a.rebuildPart, a.from, chunksOf(state, a.until), func(chunk uint32) error {
		if len(out) >= rebuildDigestBytes || limit <= 0 || chunk > a.from && time.Now().After(until) {
			binary.LittleEndian.PutUint32(out, chunk)
			return errEnough
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := c.read(state, chunk, ^uint64(0), nil); err != nil {
			return err
		}
		limit -= bits.OnesCount64(c.valid) * block.Size
		if c.valid == 0 && empty > 0 && first+empty == chunk {
			empty++
			return nil
		}
		flush()
		if c.valid == 0 {
			first, empty = chunk, 1
			return nil
		}
		out = binary.AppendUvarint(out, uint64(chunk-next))
		if c.bad == 0 {
			out = append(out, digestsOfOne)
		} else {
			out = binary.LittleEndian.AppendUint64(append(out, digestsOfBad), c.bad)
		}
		next = chunk + 1
		for n := range groupsPerChunk {
			out = binary.LittleEndian.AppendUint32(out, uint32(groupDigest(groupOf(c.valid, n), c.group(n))))
		}
		out = binary.LittleEndian.AppendUint64(out, c.digest())
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return nil, err
	}
	flush()
	return out, h.rebuilds.limit(ctx, g, len(out))
}

func flagOf(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// serveRebuildGroups answers the second step. The request goes on with, per chunk in ascending order, a varint, how many to
// skip (as in the first step, beginning at the chunk *from*), u8 which groups; per group u8 which blocks the receiver has, and u16
// for each. The answer: u8 whether somebody uses the node, u16 how many groups it is about; per group u8 which blocks are stored,
// u8 which are sent, u64 digest, u32 checksum of each sent; then the data of all that are sent.
func (h *Host) serveRebuildGroups(ctx context.Context, _ string, req []byte) ([]byte, error) {
	g, a, state, rest, err := h.asked(req)
	if err != nil {
		return nil, err
	}
	wanted, err := decodeGroups(a.from, rest)
	if err != nil {
		return nil, err
	}
	busy := h.use.busy()
	limit := rebuildReadBytes
	if busy {
		limit = rebuildBusyReadBytes
	}
	head := append(make([]byte, 0, 16+len(wanted)*28), flagOf(busy), 0, 0)
	var data []byte
	n := 0
	for ; n < len(wanted) && len(data)+groupBlocks*block.Size <= limit; n++ {
		if head, data, err = g.groupBlocks(ctx, &wanted[n], a.state, state, head, data); err != nil {
			return nil, err
		}
	}
	binary.LittleEndian.PutUint16(head[1:], uint16(n))
	out := append(head, data...)
	return out, h.rebuilds.limit(ctx, g, len(out))
}

// groupBlocks appends what is answered about one group.
func (g *Group) groupBlocks(ctx context.Context, w *wantedGroup, id block.SnapshotID, state blockstore.Reader, head, data []byte) ([]byte, []byte, error) {
	var c contents
	all, first := make([]byte, groupBlocks*block.Size), w.group*groupBlocks
	err := c.read(state, w.chunk, groupMask(w.group), func(n int, one []byte) { copy(all[(n-first)*block.Size:], one) })
	if err != nil {
		return nil, nil, err
	}
	valid, bad, send := groupOf(c.valid, w.group), groupOf(c.bad, w.group), uint8(0)
	for n := range groupBlocks {
		if valid>>n&1 == 0 || w.have>>n&1 == 1 && w.sums[n] == uint16(c.hashes[first+n]) {
			continue
		}
		one := all[n*block.Size:][:block.Size]
		if bad>>n&1 == 1 { // it is repaired from a third copy, if there is one
			if err := g.readState(ctx, id, w.blockRange(n, 1), one); err != nil {
				return nil, nil, err
			}
			c.hashes[first+n], c.info.Sums[first+n] = hashOf(one), block.Sum(one)
		}
		send |= 1 << n
		data = append(data, one...)
	}
	head = append(head, valid, send)
	head = binary.LittleEndian.AppendUint64(head, groupDigest(valid, c.group(w.group)))
	for left := send; left != 0; left &= left - 1 {
		head = binary.LittleEndian.AppendUint32(head, c.info.Sums[first+bits.TrailingZeros8(left)])
	}
	return head, data, nil
}

// wantedGroup is a group of blocks that differs at the receiver, or may.
type wantedGroup struct {
	chunk uint32
	group int
	have  uint8
	sums  [groupBlocks]uint16 // the low bits of the hashes of those it has
}

// blockRange is where n blocks of the group lie, from one on.
func (w *wantedGroup) blockRange(first, n int) block.Range {
	return block.BytesRange(int64(w.chunk)*block.ChunkSize+int64(w.group*groupBlocks+first)*block.Size, int64(n)*block.Size)
}

// encodeGroups appends groups, which are in ascending order, chunks not before from.
func encodeGroups(b []byte, from uint32, groups []wantedGroup) []byte {
	for i := 0; i < len(groups); {
		chunk, mask, end := groups[i].chunk, uint8(0), i
		for ; end < len(groups) && groups[end].chunk == chunk; end++ {
			mask |= 1 << groups[end].group
		}
		b = append(binary.AppendUvarint(b, uint64(chunk-from)), mask)
		from = chunk + 1
		for ; i < end; i++ {
			b = append(b, groups[i].have)
			for left := groups[i].have; left != 0; left &= left - 1 {
				b = binary.LittleEndian.AppendUint16(b, groups[i].sums[bits.TrailingZeros8(left)])
			}
		}
	}
	return b
}

func decodeGroups(from uint32, b []byte) (groups []wantedGroup, err error) {
	malformed := errors.New("malformed list of groups")
	for len(b) > 0 {
		skip, n := binary.Uvarint(b)
		if n <= 0 || skip > uint64(endOfChunks-from) || len(b) < n+1 {
			return nil, malformed
		}
		chunk, mask := from+uint32(skip), b[n]
		b, from = b[n+1:], chunk+1
		for ; mask != 0; mask &= mask - 1 {
			w := wantedGroup{chunk: chunk, group: bits.TrailingZeros8(mask)}
			if len(b) == 0 || len(b) < 1+2*bits.OnesCount8(b[0]) || len(groups) == maxRebuildGroups {
				return nil, malformed
			}
			w.have, b = b[0], b[1:]
			for left := w.have; left != 0; left &= left - 1 {
				w.sums[bits.TrailingZeros8(left)], b = binary.LittleEndian.Uint16(b), b[2:]
			}
			groups = append(groups, w)
		}
	}
	return groups, nil
}
