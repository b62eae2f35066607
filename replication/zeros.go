package replication

import "sanctuary/blockstore/block"

// Zero detection: blocks that an initiator writes as zeros are proposed as block.OpZero, which a copy of any program understands, since
// UNMAP is nothing else. It reads back the same (LBPRZ=1); SBC-4 calls what happens to the blocks an autonomous LBA transition. Only WRITE
// is looked at: COMPARE AND WRITE and what else reads before it writes stores what it says.

// maxZeroRuns bounds the runs of zeros that are taken out of one write, and with them its operations: each cuts the data once more, and has a
// row of its own in the entry. Of more the longest are taken, the others stored.
const maxZeroRuns = 16

// zeroRun is a run of blocks that are all zeros, counted in blocks from the beginning of a write.
type zeroRun struct{ start, end int }

func (r zeroRun) blocks() int { return r.end - r.start }

// findZeros notes the longest runs of zeros in data, in order, and returns how many there are.
func findZeros(data []byte, runs *[maxZeroRuns]zeroRun) (n int) {
	for i, blocks := 0, len(data)/block.Size; i < blocks; i++ {
		if !block.AllZero(data[i*block.Size : (i+1)*block.Size]) {
			continue
		}
		r := zeroRun{start: i}
		for i++; i < blocks && block.AllZero(data[i*block.Size:(i+1)*block.Size]); i++ {
		}
		r.end = i // which is no zero: the loop goes on behind it
		if n == len(runs) {
			short := 0
			for k := range runs {
				if runs[k].blocks() < runs[short].blocks() {
					short = k
				}
			}
			if runs[short].blocks() >= r.blocks() {
				continue
			}
			copy(runs[short:], runs[short+1:])
			n--
		}
		runs[n] = r
		n++
	}
	return n
}

// DetectZeros says whether blocks that are written as zeros are to be stored as unmapped ones. Off at first. It holds for the writes that
// begin from then on, and matters on the owner; every copy is told, since any may be the next.
func (g *Group) DetectZeros(on bool) { g.detectZeros.Store(on) }

// writeOps are the operations of a write of whole blocks. They go into one entry where the write alone would have: what is taken out of it is
// larger than the rows that come in its place.
func (g *Group) writeOps(r block.Range, data []byte) []block.Op {
	if g.detectZeros.Load() {
		var runs [maxZeroRuns]zeroRun
		if n := findZeros(data, &runs); n > 0 {
			return cutZeros(r, data, runs[:n])
		}
	}
	return []block.Op{dataOp(r, data)}
}

// cutZeros takes runs out of a write. The data comes first: where the zeros came before it, they could free the chunk that the data has room in,
// and an overwrite would need a new one, which a full pool does not have.
func cutZeros(r block.Range, data []byte, runs []zeroRun) []block.Op {
	ops := make([]block.Op, 0, 2*len(runs)+1)
	part := func(start, end int) block.Range {
		off := r.Offset() + int64(start)*block.Size
		return block.BytesRange(off, int64(end-start)*block.Size)
	}
	last := 0
	for _, z := range append(runs[:len(runs):len(runs)], zeroRun{start: len(data) / block.Size}) {
		if z.start > last {
			ops = append(ops, dataOp(part(last, z.start), data[last*block.Size:z.start*block.Size]))
		}
		last = z.end
	}
	for _, z := range runs {
		ops = append(ops, block.Op{Kind: block.OpZero, Range: part(z.start, z.end)})
	}
	return ops
}

// dataOp stores whole blocks.
func dataOp(r block.Range, data []byte) block.Op {
	return block.Op{
		Kind: block.OpWrite, Range: r, Data: data,
		Sums: block.AppendSums(make([]uint32, 0, len(data)/block.Size), data),
	}
}
