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
	"sanctuary/replication/transport"
)

// comparison is the receiver's side of the two steps in rebuild_digest.go, for one run of chunks of one state.
type comparison struct {
	g      *Group
	source string
	part   rebuildPart

	pending []wantedGroup
	mine    map[uint32]*myChunk // of the chunks in pending; at most those of one answer
	copied  int64

	busy   bool      // somebody uses the source
	worked time.Time // since when it has not rested
}

// myChunk is a chunk as the receiver has it: what is bad counts as missing.
type myChunk struct {
	contents
	stored uint64 // with what is bad
	left   int    // groups that are pending
	want   uint64 // the digest of the whole chunk, as the first step said
	again  bool   // all of its groups are gone through
}

// fetchDifference makes chunks what the source has, from one on and before another, as far as one answer of the source goes, and
// returns where that ends. errOldSource: it does not know how.
func (g *Group) fetchDifference(ctx context.Context, source string, part rebuildPart, from, until uint32) (next uint32, copied int64, err error) {
	c := comparison{g: g, source: source, part: part, mine: map[uint32]*myChunk{}, worked: time.Now()}
	answer, err := g.ask(ctx, source, methodRebuildHashes, (&rebuildAsk{part, from, until}).encode(g.cfg.LUN))
	switch {
	case errors.Is(err, transport.ErrUnknownMethod):
		return 0, 0, errOldSource
	case err != nil:
		return 0, 0, err
	case len(answer) < 5:
		return 0, 0, fmt.Errorf("answer of %d bytes to a rebuild request", len(answer))
	}
	c.busy = answer[4] != 0
	next = binary.LittleEndian.Uint32(answer)
	if next == 0 {
		next = until
	}
	if err := c.take(ctx, from, next, answer[5:]); err != nil {
		return 0, c.copied, err
	}
	err = c.fetch(ctx, 0)
	return next, c.copied, err
}

var errOldSource = errors.New("the source runs an older program")

// take goes through the digests of an answer.
func (c *comparison) take(ctx context.Context, from, next uint32, b []byte) error {
	at := from
	for len(b) > 0 {
		skip, n := binary.Uvarint(b)
		b = b[max(n, 0):]
		kind, m := binary.Uvarint(b)
		b = b[max(m, 0):]
		if n <= 0 || m <= 0 || skip > uint64(next-at) {
			return errors.New("malformed digests")
		}
		at += uint32(skip)
		if kind > digestsOfBad {
			empty := kind - digestsOfBad
			if empty > uint64(next-at) {
				return errors.New("malformed digests")
			}
			if err := c.zero(ctx, at, uint32(empty)); err != nil {
				return err
			}
			at += uint32(empty)
			c.g.rebuildSeen(int64(empty) * block.ChunkSize)
			continue
		}
		var bad uint64
		if kind == digestsOfBad && len(b) >= 8 {
			bad, b = binary.LittleEndian.Uint64(b), b[8:]
		}
		if at == next || len(b) < chunkDigestBytes {
			return errors.New("malformed digests")
		}
		if err := c.compare(at, bad, b[:chunkDigestBytes]); err != nil {
			return err
		}
		b, at = b[chunkDigestBytes:], at+1
		c.g.rebuildSeen(block.ChunkSize)
		if err := c.fetch(ctx, maxRebuildGroups-groupsPerChunk); err != nil {
			return err
		}
		if err := c.rest(ctx); err != nil {
			return err
		}
	}
	return nil
}

// zero makes chunks empty that are at the source.
func (c *comparison) zero(ctx context.Context, first, n uint32) error {
	var info blockstore.ChunkInfo
	var ops []block.Op
	for chunk := first; chunk < first+n; chunk++ {
		if err := c.g.cfg.Store.ChunkInfo(chunk, &info); err != nil {
			return err
		}
		if info.Valid != 0 {
			ops = append(ops, zeroOps(chunk, 0, info.Valid)...)
		}
		if len(ops) >= 1024 || chunk == first+n-1 {
			if err := c.g.importOps(ctx, ops); err != nil {
				return err
			}
			ops = nil
		}
	}
	return nil
}

// zeroOps returns operations that zero blocks of a chunk, run by run; bit 0 of the bitmap is block first.
func zeroOps(chunk uint32, first int, bitmap uint64) (ops []block.Op) {
	for bitmap != 0 {
		n := bits.TrailingZeros64(bitmap)
		run := bits.TrailingZeros64(^(bitmap >> n))
		bitmap &^= (1<<run - 1) << n
		off := int64(chunk)*block.ChunkSize + int64(first+n)*block.Size
		ops = append(ops, block.Op{Kind: block.OpZero, Range: block.BytesRange(off, int64(run)*block.Size)})
	}
	return ops
}

// compare adds the groups of a chunk that differ to pending. Of what is bad at the source there are only checksums to compare.
func (c *comparison) compare(chunk uint32, bad uint64, digests []byte) error {
	mine := &myChunk{want: binary.LittleEndian.Uint64(digests[4*groupsPerChunk:])}
	if err := mine.read(c.g.cfg.Store, chunk, ^uint64(0), nil); err != nil {
		return err
	}
	mine.stored = mine.valid
	mine.valid &^= mine.bad
	mine.vouch(bad & mine.valid)
	if mine.bad == 0 && mine.digest() == mine.want {
		return nil
	}
	c.mine[chunk] = mine
	for n := range groupsPerChunk {
		// A block that is bad here is as good as missing, but the source may have none there either: then the digest is the same.
		if uint32(groupDigest(groupOf(mine.valid, n), mine.group(n))) != binary.LittleEndian.Uint32(digests[4*n:]) || groupOf(mine.bad, n) != 0 {
			c.pending = append(c.pending, c.wanted(chunk, n))
		}
	}
	if mine.left == 0 { // two digests are alike in 32 bits
		c.pending = c.wantAll(c.pending, chunk)
	}
	return nil
}

// wanted returns a group that is asked for, with what there is of it.
func (c *comparison) wanted(chunk uint32, group int) wantedGroup {
	mine := c.mine[chunk]
	w := wantedGroup{chunk: chunk, group: group, have: groupOf(mine.valid, group)}
	for n, h := range mine.group(group) {
		w.sums[n] = uint16(h)
	}
	mine.left++
	return w
}

// wantAll appends all groups of a chunk.
func (c *comparison) wantAll(to []wantedGroup, chunk uint32) []wantedGroup {
	c.mine[chunk].again = true
	for n := range groupsPerChunk {
		to = append(to, c.wanted(chunk, n))
	}
	return to
}

// fetch asks for the blocks of pending groups until at most so many are left.
func (c *comparison) fetch(ctx context.Context, most int) error {
	for len(c.pending) > most {
		from := c.pending[0].chunk
		asked := c.pending[:min(len(c.pending), maxRebuildGroups)]
		req := encodeGroups((&rebuildAsk{c.part, from, endOfChunks}).encode(c.g.cfg.LUN), from, asked)
		answer, err := c.g.ask(ctx, c.source, methodRebuildGroups, req)
		if err != nil {
			return err
		}
		if len(answer) < 3 {
			return fmt.Errorf("answer of %d bytes to a rebuild request", len(answer))
		}
		n := int(binary.LittleEndian.Uint16(answer[1:]))
		if n == 0 || n > len(asked) {
			return fmt.Errorf("answer about %d groups of %d", n, len(asked))
		}
		again, err := c.store(ctx, asked[:n], answer[3:])
		if err != nil {
			return err
		}
		c.pending = append(again, c.pending[n:]...)
		c.busy = answer[0] != 0
		if err := c.rest(ctx); err != nil {
			return err
		}
	}
	return nil
}

// store imports what has been answered about groups, and returns those that are to be asked for again, as a whole.
func (c *comparison) store(ctx context.Context, groups []wantedGroup, b []byte) (again []wantedGroup, err error) {
	type answered struct {
		valid, sent uint8
		digest      uint64
		sums        []byte
	}
	list, total := make([]answered, len(groups)), 0
	for i := range groups {
		if len(b) < 10 || len(b) < 10+4*bits.OnesCount8(b[1]) {
			return nil, errors.New("malformed answer about groups")
		}
		n := bits.OnesCount8(b[1])
		list[i] = answered{b[0], b[1], binary.LittleEndian.Uint64(b[2:]), b[10 : 10+4*n]}
		b, total = b[10+4*n:], total+n
	}
	if len(b) != total*block.Size {
		return nil, fmt.Errorf("%d bytes for %d blocks", len(b), total)
	}
	var ops []block.Op
	for i := range groups {
		w, a := &groups[i], &list[i]
		if a.sent&^a.valid != 0 {
			return nil, errors.New("blocks are sent that are not stored")
		}
		mine := c.mine[w.chunk]
		ours := mine.group(w.group)
		for left := a.sent; left != 0; {
			n := bits.TrailingZeros8(left)
			run := bits.TrailingZeros8(^(left >> n))
			left &^= uint8(1<<run-1) << n
			op := block.Op{Kind: block.OpWrite, Range: w.blockRange(n, run), Data: b[:run*block.Size], Sums: make([]uint32, run)}
			for k := range run {
				op.Sums[k] = binary.LittleEndian.Uint32(a.sums[4*k:])
				ours[n+k] = hashOf(op.Data[k*block.Size : (k+1)*block.Size])
			}
			if err := op.Verify(); err != nil {
				return nil, err
			}
			a.sums, b = a.sums[4*run:], b[run*block.Size:]
			ops = append(ops, op)
			c.copied += int64(len(op.Data))
			c.g.rebuildCopied(int64(len(op.Data)))
		}
		if a.valid&^a.sent&^w.have != 0 {
			return nil, errors.New("a block is neither here nor sent")
		}
		ops = append(ops, zeroOps(w.chunk, w.group*groupBlocks, uint64(groupOf(mine.stored, w.group)&^a.valid))...)
		now := uint64(a.valid) << (w.group * groupBlocks)
		mine.valid, mine.stored = mine.valid&^groupMask(w.group)|now, mine.stored&^groupMask(w.group)|now
		mine.left--
		switch {
		case groupDigest(a.valid, ours) != a.digest:
			if w.have == 0 {
				return nil, errors.New("the blocks sent do not match their digest")
			}
			mine.left++
			again = append(again, wantedGroup{chunk: w.chunk, group: w.group}) // two hashes were alike in 16 bits
		case mine.left == 0 && !mine.again && mine.digest() != mine.want:
			again = c.wantAll(again, w.chunk) // two digests were alike in 32 bits, or the chunk has been written meanwhile
		}
	}
	return again, c.g.importOps(ctx, ops)
}
