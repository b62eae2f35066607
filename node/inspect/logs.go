package inspect

import (
	"context"

	"sanctuary/blockstore/block"
	"sanctuary/replication/journal"
)

// logs says which blocks the journals write again when a node starts that was not stopped in order.
type logs struct {
	ctx      context.Context
	journals map[string]string // directory, by volume
	volume   string            // the one that was read last
	chunks   map[uint32]uint64 // its blocks, by chunk
	long     []block.Range     // those of entries that change a great deal at once
}

// longBytes is from where on a range is kept as such.
const longBytes = 16 << 20

// rewritten says whether an entry after the given one writes all of some blocks of one chunk. It reads the journal of one volume at a time, since it is asked about one
// after the other; what it cannot read does not count, and was found. A log that was not looked at may write any block.
func (l *logs) rewritten(volume string, after uint64, blocks block.Range) bool {
	path, ok := l.journals[volume]
	if !ok || path == "" {
		return ok
	}
	if l.volume != volume {
		l.volume, l.chunks, l.long = volume, map[uint32]uint64{}, nil
		_, err := journal.Inspect(l.ctx, journal.InspectConfig{Dir: path, Group: volume, Entry: func(e journal.InspectedEntry) {
			// An entry that was accepted in another term than it was committed in changes nothing.
			if e.Index <= after || e.Command == nil || e.Command.Fence != e.Term {
				return
			}
			for _, op := range e.Command.Ops {
				if op.Kind == block.OpWrite || op.Kind == block.OpFill || op.Kind == block.OpZero {
					l.add(op.Range)
				}
			}
		}})
		if err != nil {
			return false
		}
	}
	for _, r := range l.long {
		if r.Start <= blocks.Start && r.End() >= blocks.End() {
			return true
		}
	}
	chunk, mask := chunkOf(blocks)
	return l.chunks[chunk]&mask == mask
}

// add notes a range of whole blocks.
func (l *logs) add(r block.Range) {
	if r.Bytes() >= longBytes {
		l.long = append(l.long, r)
		return
	}
	for r.Count > 0 {
		within := r.Offset() % block.ChunkSize
		part := block.BytesRange(r.Offset(), min(r.Bytes(), block.ChunkSize-within))
		chunk, mask := chunkOf(part)
		l.chunks[chunk] |= mask
		r = block.Range{Start: part.End(), Count: r.Count - part.Count}
	}
}

// chunkOf returns the chunk of a range that lies in one, and its blocks.
func chunkOf(r block.Range) (chunk uint32, mask uint64) {
	first, n := r.Offset()%block.ChunkSize/block.Size, r.Bytes()/block.Size
	return uint32(r.Offset() / block.ChunkSize), ^uint64(0) >> (block.BlocksPerChunk - n) << first
}
