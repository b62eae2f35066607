package blockstore

import (
	"encoding/binary"
	"math/bits"
	"slices"

	"sanctuary/blockstore/block"
)

// epochs is a range of epochs, both ends included.
type epochs struct{ first, last uint32 }

// path says which epochs a state of a volume is made of, in ascending order. It is one range as long as the volume has never
// been rolled back; a rollback leaves out the epochs between the snapshot and itself.
type path []epochs

// sees says whether what was written in an epoch is part of the state. Epoch 0 is older than every snapshot.
func (p path) sees(epoch uint32) bool {
	for i := len(p) - 1; i >= 0; i-- {
		if epoch >= p[i].first {
			return epoch <= p[i].last
		}
	}
	return epoch == 0
}

// with returns the path with one more epoch, newer than all of it. p is not changed.
func (p path) with(epoch uint32) path {
	if n := len(p); n > 0 && p[n-1].last+1 == epoch {
		out := slices.Clone(p)
		out[n-1].last = epoch
		return out
	}
	return append(slices.Clone(p), epochs{epoch, epoch})
}

func (p path) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, uint16(len(p)))
	for _, e := range p {
		b = binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, e.first), e.last)
	}
	return b
}

func decodePath(d *decoder) path {
	var p path
	for range d.u16() {
		p = append(p, epochs{d.u32(), d.u32()})
	}
	return p
}

// snapshot is a block.Snapshot and where its blocks are found.
type snapshot struct {
	block.Snapshot
	epoch  uint32 // the newest of its path
	path   path
	stored int64 // blocks
	hidden bool  // deleted, and kept because clones need it; or before
	before bool  // the contents from before an import (before.go)
}

// lineage is what a volume knows of its own past. It is never changed, only replaced.
type lineage struct {
	epoch     uint32 // of the live state: what is written now. The newest there is
	live      path
	snapshots []snapshot // in the order of their epochs
}

// find returns the place of a snapshot that has not been deleted, or -1.
func (l *lineage) find(id block.SnapshotID) int {
	return slices.IndexFunc(l.snapshots, func(s snapshot) bool { return !s.hidden && s.ID == id })
}

// has says whether a snapshot is still there, and not another one of the same ID.
func (l *lineage) has(s *snapshot) bool {
	i := l.find(s.ID)
	return i >= 0 && l.snapshots[i].epoch == s.epoch
}

// visible counts the snapshots that have not been deleted.
func (l *lineage) visible() (n int) {
	for i := range l.snapshots {
		if !l.snapshots[i].hidden {
			n++
		}
	}
	return n
}

// withSnapshot returns the lineage with the live state as a snapshot, and a new epoch for what comes.
func (l *lineage) withSnapshot(s block.Snapshot, stored int64) *lineage {
	return &lineage{
		epoch:     l.epoch + 1,
		live:      l.live.with(l.epoch + 1),
		snapshots: append(slices.Clone(l.snapshots), snapshot{Snapshot: s, epoch: l.epoch, path: l.live, stored: stored}),
	}
}

// without returns the lineage without snapshot i; kept: it is only hidden.
func (l *lineage) without(i int, kept bool) *lineage {
	out := &lineage{epoch: l.epoch, live: l.live, snapshots: slices.Clone(l.snapshots)}
	if kept {
		out.snapshots[i].hidden = true
	} else {
		out.snapshots = slices.Delete(out.snapshots, i, i+1)
	}
	return out
}

// rolledBack returns the lineage with the contents of snapshot i as the live state.
func (l *lineage) rolledBack(i int) *lineage {
	return &lineage{epoch: l.epoch + 1, live: l.snapshots[i].path.with(l.epoch + 1), snapshots: l.snapshots}
}

// paths returns the path of every state that must stay readable, with that of the live one first.
func (l *lineage) paths() []path {
	out := make([]path, 0, 1+len(l.snapshots))
	if l.live != nil {
		out = append(out, l.live)
	}
	for i := range l.snapshots {
		out = append(out, l.snapshots[i].path)
	}
	return out
}

// ground is a state of a volume as a reader sees it: the chunks of a map that its path sees, and below them, for a clone, those
// of the snapshot it was made from. It is never changed.
type ground struct {
	m     *chunkMap
	path  path
	under *ground
}

// rlock locks a chunk for reading, on every level from the top down; no level is ever locked after one below it.
func (g *ground) rlock(chunk uint32) {
	for ; g != nil; g = g.under {
		g.m.lockOf(chunk).RLock()
	}
}

func (g *ground) runlock(chunk uint32) {
	for ; g != nil; g = g.under {
		g.m.lockOf(chunk).RUnlock()
	}
}

// slotMap says for each block of a chunk in which slot it lies. Only the blocks that resolve has returned are meaningful.
type slotMap [block.BlocksPerChunk]uint32

// resolve finds the wanted blocks of a chunk: it returns which of them are stored, and where. The others read as zeros. The
// chunk is locked by the caller.
func (g *ground) resolve(chunk uint32, want uint64, slots *slotMap) (stored uint64) {
	for ; g != nil && want != 0; g = g.under {
		l, at := g.m.find(chunk)
		if l == nil {
			continue
		}
		extra := l.extras(at)
		slot, epoch := l.slot[at], l.epoch[at]
		first := 0
		for ; first < len(extra) && (slot == noSlot || extra[first].epoch > epoch); first++ {
			stored, want = g.take(&extra[first], stored, want, slots)
		}
		if slot != noSlot && g.path.sees(epoch) {
			if got := l.valid[at] & want; got != 0 {
				slots.put(got, slot)
				stored |= got
				want &^= got
			}
		}
		for ; first < len(extra) && want != 0; first++ {
			stored, want = g.take(&extra[first], stored, want, slots)
		}
	}
	return stored
}

func (g *ground) take(y *layer, stored, want uint64, slots *slotMap) (uint64, uint64) {
	got := y.bits & want
	if got == 0 || !g.path.sees(y.epoch) {
		return stored, want
	}
	if y.slot != noSlot {
		slots.put(got, y.slot)
		stored |= got
	}
	return stored, want &^ got
}

func (s *slotMap) put(bitmap uint64, slot uint32) {
	for ; bitmap != 0; bitmap &= bitmap - 1 {
		s[bits.TrailingZeros64(bitmap)] = slot
	}
}

// resolveOne is resolve where one slot, or none, has all wanted blocks that are stored: nearly always. ok is false otherwise.
func (g *ground) resolveOne(chunk uint32, want uint64) (slot uint32, stored uint64, ok bool) {
	if g.under != nil {
		return 0, 0, false
	}
	l, at := g.m.find(chunk)
	switch {
	case l == nil:
		return 0, 0, true
	case l.hasMore(at) || l.slot[at] != noSlot && !g.path.sees(l.epoch[at]):
		return 0, 0, false
	}
	return l.slot[at], l.valid[at] & want, true
}

// storedBlocks returns which blocks of a chunk are stored.
func (g *ground) storedBlocks(chunk uint32, want uint64) uint64 {
	if _, stored, ok := g.resolveOne(chunk, want); ok {
		return stored
	}
	var slots slotMap
	return g.resolve(chunk, want, &slots)
}

// maps says whether any level has a leaf for a chunk.
func (g *ground) maps(chunk uint32) bool {
	for ; g != nil; g = g.under {
		if l, _ := g.m.find(chunk); l != nil {
			return true
		}
	}
	return false
}
