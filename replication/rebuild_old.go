package replication

import (
	"context"
	"encoding/binary"
	"fmt"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// How a source is asked that runs a program from before rebuild_hash.go: it tells which blocks are stored in every chunk that may differ, and their
// checksums, which say nothing about whether a block is the same. So all of these chunks are fetched. A replica in RAM whose node is upgraded first depends on that.

// compareOld is fetchDifference for such a source.
func (g *Group) compareOld(ctx context.Context, owner string, part rebuildPart, from, until uint32) (next uint32, copied int64, err error) {
	method, req := methodRebuildInfo, []byte(nil)
	if part.state != (block.SnapshotID{}) || part.like != (block.SnapshotID{}) {
		method, req = methodRebuildSnapshotInfo, append(append(req, part.state[:]...), part.like[:]...)
	}
	req = binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint64(req, part.since), from)
	answer, err := g.ask(ctx, owner, method, append(req, g.cfg.LUN...))
	if err != nil {
		return 0, 0, err
	}
	if len(answer) < 4 || (len(answer)-4)%chunkRecordBytes != 0 {
		return 0, 0, fmt.Errorf("answer of %d bytes to a rebuild request", len(answer))
	}
	records := answer[4:]
	if next = binary.LittleEndian.Uint32(answer); next == 0 || next > until {
		next = until
	}
	for n := 0; n < len(records); n += chunkRecordBytes { // it does not know where to stop
		if binary.LittleEndian.Uint32(records[n:]) >= until {
			records = records[:n]
		}
	}
	copied, err = g.copyChunks(ctx, owner, part.state, records)
	return next, copied, err
}

// copyChunks makes chunks what the owner has stored of a state.
func (g *Group) copyChunks(ctx context.Context, owner string, state block.SnapshotID, records []byte) (copied int64, err error) {
	var fetch []block.Sector
	var zeros []block.Op
	flush := func() error {
		if len(fetch) == 0 {
			return nil
		}
		ops, err := g.fetch(ctx, owner, state, fetch)
		if err != nil {
			return err
		}
		for _, op := range ops {
			copied += int64(len(op.Data))
		}
		g.rebuildCopied(int64(len(fetch)) * block.Size)
		fetch = fetch[:0]
		return g.importOps(ctx, ops)
	}
	var mine blockstore.ChunkInfo
	for ; len(records) > 0; records = records[chunkRecordBytes:] {
		chunk := binary.LittleEndian.Uint32(records)
		valid := binary.LittleEndian.Uint64(records[4:])
		if err := g.cfg.Store.ChunkInfo(chunk, &mine); err != nil {
			return copied, err
		}
		g.rebuildSeen(block.ChunkSize)
		for n := range block.BlocksPerChunk {
			at := block.Sector(uint64(chunk)*block.BlocksPerChunk+uint64(n)) * block.SectorsPerBlock
			theirs, ours := valid>>n&1 == 1, mine.Valid>>n&1 == 1
			switch {
			case theirs:
				fetch = append(fetch, at)
				if len(fetch)*block.Size >= rebuildReadBytes {
					if err := flush(); err != nil {
						return copied, err
					}
				}
			case !theirs && ours:
				zeros = append(zeros, block.Op{Kind: block.OpZero, Range: block.Range{Start: at, Count: block.SectorsPerBlock}})
			}
		}
		if len(zeros) >= 1024 || len(records) == chunkRecordBytes {
			if err := g.importOps(ctx, zeros); err != nil {
				return copied, err
			}
			zeros = nil
		}
	}
	return copied, flush()
}

// fetch reads blocks from the owner. The answer carries each block's checksum, verified here before anything is stored.
func (g *Group) fetch(ctx context.Context, owner string, state block.SnapshotID, blocks []block.Sector) ([]block.Op, error) {
	method, req := methodRebuildRead, []byte(nil)
	if state != (block.SnapshotID{}) {
		method, req = methodRebuildSnapshotRead, append(req, state[:]...)
	}
	req = binary.LittleEndian.AppendUint32(req, uint32(len(blocks)))
	for _, at := range blocks {
		req = binary.LittleEndian.AppendUint64(req, uint64(at))
	}
	answer, err := g.ask(ctx, owner, method, append(req, g.cfg.LUN...))
	if err != nil {
		return nil, err
	}
	if len(answer) != len(blocks)*(4+block.Size) {
		return nil, fmt.Errorf("%d bytes for %d blocks", len(answer), len(blocks))
	}
	sums, data := answer[:4*len(blocks)], answer[4*len(blocks):]
	ops := make([]block.Op, len(blocks))
	for i, at := range blocks {
		ops[i] = block.Op{
			Kind: block.OpWrite, Range: block.Range{Start: at, Count: block.SectorsPerBlock},
			Data: data[i*block.Size : (i+1)*block.Size], Sums: []uint32{binary.LittleEndian.Uint32(sums[4*i:])},
		}
		if err := ops[i].Verify(); err != nil {
			return nil, err
		}
	}
	return ops, nil
}
