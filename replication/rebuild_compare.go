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
	blockstore.ChunkInfo
	stored uint64 // with what is bad
}

// fetchDifference makes chunks what the source has, from one on and before another, as far as one answer of the source goes, and
// returns where that ends. errOldSource: it does not know how.
func (g *Group) fetchDifference(ctx context.Context, source string, part rebuildPart, from, until uint32) (next uint32, copied int64, err error) {
	c := comparison{g: g, source: source, part: part, mine: map[uint32]*myChunk{}, worked: time.Now()}
	answer, err := g.ask(ctx, source, methodRebuildDigests, (&rebuildAsk{part, from, until}).encode(g.cfg.LUN))
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
		empty, m := binary.Uvarint(b)
		if n <= 0 || m <= 0 || skip > uint64(next-at) || empty > uint64(next-at)-skip || empty == 0 && len(b) < m+4*groupsPerChunk {
			return errors.New("malformed digests")
		}
		b, at = b[m:], at+uint32(skip)
		if empty > 0 {
			if err := c.zero(ctx, at, uint32(empty)); err != nil {
				return err
			}
			at += uint32(empty)
			c.g.rebuildSeen(int64(empty) * block.ChunkSize)
			continue
		}
		if err := c.compare(at, b[:4*groupsPerChunk]); err != nil {
			return err
		}
		b, at = b[4*groupsPerChunk:], at+1
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

// compare adds the groups of a chunk that differ to pending.
func (c *comparison) compare(chunk uint32, digests []byte) error {
	info := &myChunk{}
	bad, err := c.g.cfg.Store.CheckChunk(chunk, &info.ChunkInfo)
	if err != nil {
		return err
	}
	info.stored = info.Valid
	info.Valid &^= bad
	for n := range groupsPerChunk {
		have, sums := groupOf(info.Valid, n), info.Sums[n*groupBlocks:]
		// A block that is bad here is as good as missing, but the source may have none there either: then the digest is the same.
		if groupDigest(have, sums) == binary.LittleEndian.Uint32(digests[4*n:]) && groupOf(bad, n) == 0 {
			continue
		}
		w := wantedGroup{chunk: chunk, group: n, have: have}
		for i := range groupBlocks {
			w.sums[i] = uint16(sums[i])
		}
		c.pending = append(c.pending, w)
		c.mine[chunk] = info
	}
	return nil
}

// fetch asks for the blocks of pending groups until at most so many are left.
func (c *comparison) fetch(ctx context.Context, most int) error {
	for len(c.pending) > most {
		from := c.pending[0].chunk
		req := encodeGroups((&rebuildAsk{c.part, from, endOfChunks}).encode(c.g.cfg.LUN), from, c.pending)
		answer, err := c.g.ask(ctx, c.source, methodRebuildBlocks, req)
		if err != nil {
			return err
		}
		if len(answer) < 3 {
			return fmt.Errorf("answer of %d bytes to a rebuild request", len(answer))
		}
		n := int(binary.LittleEndian.Uint16(answer[1:]))
		if n == 0 || n > len(c.pending) {
			return fmt.Errorf("answer about %d groups of %d", n, len(c.pending))
		}
		again, err := c.store(ctx, c.pending[:n], answer[3:])
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
		digest      uint32
		sums        []byte
	}
	list, total := make([]answered, len(groups)), 0
	for i := range groups {
		if len(b) < 6 || len(b) < 6+4*bits.OnesCount8(b[1]) {
			return nil, errors.New("malformed answer about groups")
		}
		n := bits.OnesCount8(b[1])
		list[i] = answered{b[0], b[1], binary.LittleEndian.Uint32(b[2:]), b[6 : 6+4*n]}
		b, total = b[6+4*n:], total+n
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
		ours := mine.Sums[w.group*groupBlocks:][:groupBlocks]
		for left := a.sent; left != 0; {
			n := bits.TrailingZeros8(left)
			run := bits.TrailingZeros8(^(left >> n))
			left &^= uint8(1<<run-1) << n
			op := block.Op{Kind: block.OpWrite, Range: w.blockRange(n, run), Data: b[:run*block.Size], Sums: make([]uint32, run)}
			for k := range run {
				op.Sums[k] = binary.LittleEndian.Uint32(a.sums[4*k:])
				ours[n+k] = op.Sums[k]
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
		if groupDigest(a.valid, ours) != a.digest {
			if w.have == 0 {
				return nil, errors.New("the checksums of the blocks sent do not match their digest")
			}
			again = append(again, wantedGroup{chunk: w.chunk, group: w.group}) // two checksums were alike in 16 bits
		}
	}
	return again, c.g.importOps(ctx, ops)
}
