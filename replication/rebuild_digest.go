package replication

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// What a rebuild sends besides blocks must be little also where a single block of a chunk has changed, and the checksums of
// a chunk are 256 bytes, a sixteenth of that block. So there are two steps:
//
//	1  source    per chunk that may differ: a digest, 32 bits, of each of its 8 groups of 8 blocks
//	2  receiver  per group whose digest differs here: which blocks it has, and the low 16 bits of their checksums
//	   source    the blocks that differ in that; which blocks there are; and the digest of the group as it is now
//
// That is 66 bytes and a few for a changed block, 1.6 %. 16 bits may be the same by chance. So the receiver computes the digest of
// what it has now, of whole checksums, and where it is not the source's asks again, as one that has none of the group. What
// counts in the end is what counted before: the 32 bits of every checksum, and of every digest.
//
// A digest is of which blocks are stored and of their checksums; SHA-256, because CRC32C of CRC32C is linear, and changes that
// look alike in two blocks might cancel.

const (
	groupBlocks        = 8
	groupsPerChunk     = block.BlocksPerChunk / groupBlocks
	rebuildWireVersion = 1
	// rebuildDigestBytes is where an answer with digests ends at the latest: at about 2 GiB of chunks that may differ, 64 MiB while
	// somebody uses the source.
	rebuildDigestBytes     = 256 << 10
	rebuildBusyDigestBytes = 8 << 10
	// rebuildBusyReadBytes is what is read for one answer while somebody uses the source.
	rebuildBusyReadBytes = 256 << 10
	// maxRebuildGroups is how many groups one request may name; the source answers as many as fit.
	maxRebuildGroups = 512
)

// groupDigest is the digest of a group of a chunk's blocks.
func groupDigest(valid uint8, sums []uint32) uint32 {
	var b [1 + 4*groupBlocks]byte
	b[0] = valid
	for n := range groupBlocks {
		if valid>>n&1 == 1 {
			binary.LittleEndian.PutUint32(b[1+4*n:], sums[n])
		}
	}
	d := sha256.Sum256(b[:])
	return binary.LittleEndian.Uint32(d[:])
}

func groupOf(valid uint64, group int) uint8 { return uint8(valid >> (groupBlocks * group)) }

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

// serveRebuildDigests answers the first step: u32 the chunk to go on from (0: that was all), u8 whether somebody uses the
// node; then for each run of chunks a varint, how many to skip (beginning at the one asked for, then behind the last run), and
// a varint: n chunks that hold nothing, or 0 for one chunk, with 8 × u32 digests.
func (h *Host) serveRebuildDigests(ctx context.Context, _ string, req []byte) ([]byte, error) {
	g, a, state, _, err := h.asked(req)
	if err != nil {
		return nil, err
	}
	busy := h.use.busy()
	limit := rebuildDigestBytes
	if busy {
		limit = rebuildBusyDigestBytes
	}
	out := append(make([]byte, 4, 8<<10), flagOf(busy))
	next := a.from // behind the last run
	var empty, first uint32
	flush := func() {
		if empty > 0 {
			out = binary.AppendUvarint(binary.AppendUvarint(out, uint64(first-next)), uint64(empty))
			next, empty = first+empty, 0
		}
	}
	var info blockstore.ChunkInfo
	err = g.differing(a.rebuildPart, a.from, chunksOf(state, a.until), func(c uint32) error {
		if len(out) >= limit {
			binary.LittleEndian.PutUint32(out, c)
			return errEnough
		}
		if err := state.ChunkInfo(c, &info); err != nil {
			return err
		}
		if info.Valid == 0 && empty > 0 && first+empty == c {
			empty++
			return nil
		}
		flush()
		if info.Valid == 0 {
			first, empty = c, 1
			return nil
		}
		out = append(binary.AppendUvarint(out, uint64(c-next)), 0)
		next = c + 1
		for n := range groupsPerChunk {
			out = binary.LittleEndian.AppendUint32(out, groupDigest(groupOf(info.Valid, n), info.Sums[n*groupBlocks:]))
		}
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

// serveRebuildBlocks answers the second step. The request goes on with, per chunk in ascending order, a varint, how many to
// skip (as in the first step, beginning at the chunk *from*), u8 which groups; per group u8 which blocks the receiver has, and u16
// for each. The answer: u8 whether somebody uses the node, u16 how many groups it is about; per group u8 which blocks are stored,
// u8 which are sent, u32 digest, u32 checksum of each sent; then the data of all that are sent.
func (h *Host) serveRebuildBlocks(ctx context.Context, _ string, req []byte) ([]byte, error) {
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
	head := append(make([]byte, 0, 16+len(wanted)*24), flagOf(busy), 0, 0)
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
	var info blockstore.ChunkInfo
	if err := state.ChunkInfo(w.chunk, &info); err != nil {
		return nil, nil, err
	}
	valid, sums := groupOf(info.Valid, w.group), info.Sums[w.group*groupBlocks:][:groupBlocks]
	send := uint8(0)
	for n := range groupBlocks {
		if valid>>n&1 == 1 && (w.have>>n&1 == 0 || w.sums[n] != uint16(sums[n])) {
			send |= 1 << n
		}
	}
	for left := send; left != 0; { // run by run
		n := bits.TrailingZeros8(left)
		run := bits.TrailingZeros8(^(left >> n))
		left &^= uint8(1<<run-1) << n
		at := len(data)
		data = append(data, make([]byte, run*block.Size)...)
		r := w.blockRange(n, run)
		if err := g.readState(ctx, id, r, data[at:]); err != nil { // a bad block is repaired from a third copy, if there is one
			return nil, nil, err
		}
		for i := range run { // it may have been written again meanwhile
			sums[n+i] = block.Sum(data[at+i*block.Size:][:block.Size])
		}
	}
	head = append(head, valid, send)
	head = binary.LittleEndian.AppendUint32(head, groupDigest(valid, sums))
	for left := send; left != 0; left &= left - 1 {
		head = binary.LittleEndian.AppendUint32(head, sums[bits.TrailingZeros8(left)])
	}
	return head, data, nil
}

// wantedGroup is a group of blocks that differs at the receiver, or may.
type wantedGroup struct {
	chunk uint32
	group int
	have  uint8
	sums  [groupBlocks]uint16 // of those it has
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
