package blockstore

import (
	"context"
	"fmt"
	"math/bits"

	"sanctuary/blockstore/block"
)

// Snapshots returns the volume's snapshots after the newest applied entry, oldest first, without those that were deleted and
// are kept because clones need them.
func (v *Volume) Snapshots() []block.Snapshot {
	l := v.lineage.Load()
	out := make([]block.Snapshot, 0, len(l.snapshots))
	for i := range l.snapshots {
		if !l.snapshots[i].hidden {
			out = append(out, l.snapshots[i].Snapshot)
		}
	}
	return out
}

// runSnapshot carries out an operation on snapshots. None of them touches a chunk, and none changes anything where it does not apply.
func (v *Volume) runSnapshot(index uint64, op *block.Op) {
	was := v.lineage.Load()
	now := v.turn(was, op, index, v.stored.Load())
	if now == was {
		return
	}
	if op.Kind == block.OpRollback {
		id, _ := op.SnapshotID()
		v.stored.Store(was.snapshots[was.find(id)].stored)
		v.floor.Store(max(v.floor.Load(), index)) // any chunk may have changed
	}
	v.setLineage(now)
	if op.Kind != block.OpSnapshot {
		v.reclaimLater()
	}
	v.dirty = true
}

// turn returns the lineage after an operation on snapshots, or the same one if it changes nothing.
func (v *Volume) turn(l *lineage, op *block.Op, index uint64, stored int64) *lineage {
	if op.Kind == block.OpSnapshot {
		spec, err := op.Snapshot()
		if err != nil || l.find(spec.ID) >= 0 || l.visible() >= block.MaxSnapshots {
			return l
		}
		return l.withSnapshot(block.Snapshot{SnapshotSpec: spec, Index: index, Capacity: v.capacityNow()}, stored)
	}
	id, err := op.SnapshotID()
	i := l.find(id)
	switch {
	case err != nil || i < 0:
		return l
	case op.Kind == block.OpDeleteSnapshot:
		return l.without(i, v.pool.held(v.number, l.snapshots[i].epoch))
	case op.Kind == block.OpRollback:
		return l.rolledBack(i)
	}
	return l
}

// View is a snapshot of a volume. Its methods are those of Volume, with the same errors and block.ErrNoSnapshot.
type View struct{ s state }

// View returns a snapshot to read from. It goes on working until the snapshot is deleted, and returns block.ErrNoSnapshot
// from then on.
func (v *Volume) View(id block.SnapshotID) (*View, error) {
	if err := v.usable(); err != nil {
		return nil, err
	}
	l := v.lineage.Load()
	i := l.find(id)
	if i < 0 {
		return nil, fmt.Errorf("volume %s, snapshot %s: %w", v.id, id, block.ErrNoSnapshot)
	}
	return &View{v.stateOf(l, i)}, nil
}

func (v *Volume) stateOf(l *lineage, i int) state {
	s := &l.snapshots[i]
	return state{v: v, g: &ground{m: v.m, path: s.path, under: v.origin.ground}, capacity: s.Capacity, snapshot: s, lineage: l}
}

// Snapshot says which one it is.
func (w *View) Snapshot() block.Snapshot { return w.s.snapshot.Snapshot }

// Geometry returns the volume's size at the time of the snapshot.
func (w *View) Geometry() block.Geometry {
	return block.Geometry{Capacity: w.s.capacity, LogicalBlockBytes: w.s.v.blockBytes}
}

// ReadAt is Volume.ReadAt.
func (w *View) ReadAt(r block.Range, dst []byte) error { return w.s.readAt(r, dst) }

// Allocated is Volume.Allocated.
func (w *View) Allocated(r block.Range) (allocated bool, n block.Count, err error) {
	return w.s.allocated(r)
}

// ChunkInfo is Volume.ChunkInfo.
func (w *View) ChunkInfo(chunk uint32, info *ChunkInfo) error {
	_, err := w.s.info(chunk, info, 0, nil)
	return err
}

// CheckChunk is Volume.CheckChunk.
func (w *View) CheckChunk(chunk uint32, info *ChunkInfo) (bad uint64, err error) {
	return w.s.info(chunk, info, ^uint64(0), nil)
}

// ReadChunk is Volume.ReadChunk.
func (w *View) ReadChunk(chunk uint32, blocks uint64, info *ChunkInfo, fn func(n int, data []byte)) (bad uint64, err error) {
	return w.s.info(chunk, info, blocks, fn)
}

// Diff calls fn, in ascending order, for the ranges of whole blocks in which two states of the volume may differ. The zero
// ID as from means an empty volume, as to the live one. Blocks that were written with the same contents count as different.
// What Apply changes while Diff runs may be reported or not.
func (v *Volume) Diff(from, to block.SnapshotID, fn func(r block.Range) error) error {
	if err := v.usable(); err != nil {
		return err
	}
	old := state{v: v} // empty
	if from != (block.SnapshotID{}) {
		var err error
		if old, err = v.stateAt(from); err != nil {
			return err
		}
	}
	now, err := v.stateAt(to)
	if err != nil {
		return err
	}
	var run block.Range
	flush := func() error {
		if run.Count == 0 {
			return nil
		}
		r := run
		run = block.Range{}
		return fn(r)
	}
	chunks := chunksFor(max(old.capacity, now.capacity))
	for chunk := uint32(0); chunk < chunks; {
		if !now.g.maps(chunk) {
			chunk = (chunk/leafChunks + 1) * leafChunks
			continue
		}
		differ, err := v.differing(&old, &now, chunk)
		if err != nil {
			return err
		}
		for differ != 0 {
			first, n := runOf(differ)
			differ &^= blockMask(first, n)
			r := blockRange(chunk, first, n)
			if run.Count > 0 && run.End() == r.Start {
				run.Count += r.Count
				continue
			}
			if err := flush(); err != nil {
				return err
			}
			run = r
		}
		chunk++
	}
	return flush()
}

// stateAt returns a snapshot, or for the zero ID the live state.
func (v *Volume) stateAt(id block.SnapshotID) (state, error) {
	if id == (block.SnapshotID{}) {
		return v.live(), nil
	}
	w, err := v.View(id)
	if err != nil {
		return state{}, err
	}
	return w.s, nil
}

// differing returns the blocks of a chunk that two states have in different places.
func (v *Volume) differing(old, now *state, chunk uint32) (uint64, error) {
	g := now.lock(chunk)
	defer g.runlock(chunk)
	if err := now.usable(); err != nil {
		return 0, err
	}
	var was, is slotMap
	stored := g.resolve(chunk, ^uint64(0), &is)
	if old.g == nil {
		return stored, nil
	}
	if err := old.usable(); err != nil {
		return 0, err
	}
	before := old.g.resolve(chunk, ^uint64(0), &was) // over the same maps, which are locked
	differ := stored ^ before
	for both := stored & before; both != 0; both &= both - 1 {
		n := bits.TrailingZeros64(both)
		if was[n] != is[n] || is[n] == lostSlot {
			differ |= 1 << n
		}
	}
	return differ, nil
}

// Space says what the live volume and each of its snapshots take.
type Space struct {
	Live      StateSpace
	Snapshots []StateSpace // in the order of Snapshots
	// KeptBytes is what deleted snapshots still take, until Reclaim has got to it or because clones need them.
	KeptBytes int64
}

// StateSpace is what one state of a volume refers to, in bytes of whole blocks.
type StateSpace struct {
	Snapshot       block.Snapshot // zero for the live volume
	LogicalBytes   int64          // its size as an initiator sees it
	StoredBytes    int64          // blocks that hold data
	ExclusiveBytes int64          // of those, what no other state and no clone refers to: what deleting it would free
}

// Space walks the map: about a second for a TiB with few snapshots, more with many. It can be cancelled.
func (v *Volume) Space(ctx context.Context) (Space, error) {
	if err := v.usable(); err != nil {
		return Space{}, err
	}
	l := v.lineage.Load()
	states := []state{v.live()}
	for i := range l.snapshots {
		if !l.snapshots[i].hidden {
			states = append(states, v.stateOf(l, i))
		}
	}
	reported := len(states)
	for i := range l.snapshots {
		if v.pool.held(v.number, l.snapshots[i].epoch) { // the clones are users, too
			states = append(states, v.stateOf(l, i))
		}
	}
	stored, exclusive := make([]int64, len(states)), make([]int64, len(states))
	kept := int64(0)
	for chunk, chunks := uint32(0), v.m.chunks.Load(); chunk < chunks; {
		if err := ctx.Err(); err != nil {
			return Space{}, err
		}
		if !states[0].g.maps(chunk) {
			chunk = (chunk/leafChunks + 1) * leafChunks
			continue
		}
		if err := v.countChunk(chunk, states, reported, stored, exclusive, &kept); err != nil {
			return Space{}, err
		}
		chunk++
	}
	out := Space{KeptBytes: kept * block.Size}
	for i, s := range states[:reported] {
		space := StateSpace{LogicalBytes: s.capacity.Bytes(), StoredBytes: stored[i] * block.Size, ExclusiveBytes: exclusive[i] * block.Size}
		if i == 0 {
			out.Live = space
			continue
		}
		space.Snapshot = s.snapshot.Snapshot
		out.Snapshots = append(out.Snapshots, space)
	}
	return out, nil
}

// countChunk adds what one chunk has. A place belongs exclusively to a state if no other one finds it.
func (v *Volume) countChunk(chunk uint32, states []state, reported int, stored, exclusive []int64, kept *int64) error {
	g := states[0].lock(chunk)
	defer g.runlock(chunk)
	if err := v.usable(); err != nil {
		return err
	}
	var room [8]layer
	var list []layer
	if l, at := v.m.find(chunk); l != nil {
		list = l.layers(at, room[:0])
	}
	once, twice := make([]uint64, len(list)), make([]uint64, len(list))
	known := make([]uint64, len(list)) // found by a state that is reported
	found := func(i int, each func(n int, bitmap uint64)) (below uint64) {
		p := states[i].g.path
		if i == 0 {
			p = g.path
		}
		want := ^uint64(0)
		for n, y := range list {
			if got := y.bits & want; got != 0 && p.sees(y.epoch) {
				want &^= got
				if y.slot != noSlot {
					each(n, got)
				}
			}
		}
		return want
	}
	for i := range states {
		below := found(i, func(n int, bitmap uint64) {
			stored[i] += int64(bits.OnesCount64(bitmap))
			twice[n] |= once[n] & bitmap
			once[n] |= bitmap
			if i < reported {
				known[n] |= bitmap
			}
		})
		if v.origin.ground != nil {
			stored[i] += int64(bits.OnesCount64(v.origin.ground.storedBlocks(chunk, below)))
		}
	}
	for i := range states {
		found(i, func(n int, bitmap uint64) { exclusive[i] += int64(bits.OnesCount64(bitmap & once[n] &^ twice[n])) })
	}
	for n, y := range list {
		if y.slot != noSlot {
			*kept += int64(bits.OnesCount64(y.bits &^ known[n]))
		}
	}
	return nil
}
