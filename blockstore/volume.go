package blockstore

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"sanctuary/blockstore/block"
)

// Volume is one LUN's storage in a pool. Apply and Import are called by one goroutine in the order of the log; everything
// else, ApplyUnlogged too, may be called beside them and concurrently.
type Volume struct {
	pool   *Pool
	id     string
	number uint32
	m      *chunkMap

	blockBytes int           // LOGICAL BLOCK LENGTH
	capacity   atomic.Uint64 // block.Count; only grows
	origin     origin        // of a clone

	applied  atomic.Uint64
	unlogged atomic.Uint64 // changes without a log entry
	durable  atomic.Uint64
	floor    atomic.Uint64 // Changed below it reports everything
	state    atomic.Pointer[block.State]
	lineage  atomic.Pointer[lineage]
	ground   atomic.Pointer[ground] // the live state; changed with lineage

	inconsistent atomic.Bool
	deleted      bool // kept only for clones; guarded by Pool.mu
	closed       atomic.Bool

	allocatedChunks atomic.Int64
	stored          atomic.Int64 // blocks of the live state

	checkpointMu sync.Mutex // one checkpoint, BeginImport, EndImport or Close at a time; taken before applyMu
	onMedium     onMedium   // guarded by checkpointMu
	unread       bool       // guarded by checkpointMu: pages of the map could not be read, and the last durable checkpoint does not know it

	// applyMu is held while an entry is applied and while a checkpoint captures the state in memory, so a checkpoint never
	// contains half an entry. It is not held across a checkpoint's I/O. It guards what follows.
	applyMu     sync.Mutex
	dirty       bool // something else than a leaf has changed: lineage, flags, growth
	dirtyLeaves []uint32
	freed       []uint32 // slots to give back once a checkpoint has recorded it
	reserved    []uint32 // slots taken for the entry being applied
	pattern     []byte   // one chunk, for OpFill
	layers      []layer  // room for one chunk's
	reclaimAt   uint32   // where Reclaim goes on
	reclaimDone bool
	undurable   bool // a state was given up, or changed without an entry, and the last durable checkpoint does not know it
	committing  bool // the same of one that is being made durable
}

// origin is what a clone was made from.
type origin struct {
	volume, epoch uint32 // 0: not a clone
	ground        *ground
}

// ErrInconsistent: an import has begun and not ended; the contents are neither the old nor the new ones.
var ErrInconsistent = fmt.Errorf("the volume is in the middle of a rebuild: %w", block.ErrUnavailable)

// newVolume returns an empty volume.
func newVolume(p *Pool, number uint32, id string, g block.Geometry) *Volume {
	v := &Volume{pool: p, number: number, id: id, m: newChunkMap(g.Capacity), blockBytes: g.LogicalBlockBytes, reclaimDone: true}
	v.capacity.Store(uint64(g.Capacity))
	v.state.Store(&block.State{})
	v.setLineage(&lineage{epoch: 1, live: path{{1, 1}}})
	return v
}

// setLineage is called by whoever changes the volume, one at a time (applyMu).
func (v *Volume) setLineage(l *lineage) {
	v.lineage.Store(l)
	v.ground.Store(&ground{m: v.m, path: l.live, under: v.origin.ground})
}

// successor returns the volume as it is, to be opened again, without the marks of the one that was closed.
func (v *Volume) successor() *Volume {
	n := &Volume{pool: v.pool, id: v.id, number: v.number, m: v.m, blockBytes: v.blockBytes, origin: v.origin, deleted: v.deleted, onMedium: v.onMedium, unread: v.unread}
	n.capacity.Store(v.capacity.Load())
	n.applied.Store(v.applied.Load())
	n.durable.Store(v.durable.Load())
	n.floor.Store(v.floor.Load())
	n.state.Store(v.state.Load())
	n.inconsistent.Store(v.inconsistent.Load())
	n.allocatedChunks.Store(v.allocatedChunks.Load())
	n.stored.Store(v.stored.Load())
	n.setLineage(v.lineage.Load())
	// What the last checkpoint did not get to: one that found no room has written nothing.
	n.dirty, n.dirtyLeaves, n.freed, n.undurable = v.dirty, v.dirtyLeaves, v.freed, v.undurable
	return n
}

// ID returns the volume's name in the pool.
func (v *Volume) ID() string { return v.id }

// Geometry returns the size given to Create, or to the newest applied OpGrow.
func (v *Volume) Geometry() block.Geometry {
	return block.Geometry{Capacity: v.capacityNow(), LogicalBlockBytes: v.blockBytes}
}

func (v *Volume) capacityNow() block.Count { return block.Count(v.capacity.Load()) }

// Applied returns the index of the newest entry whose effect can be read.
func (v *Volume) Applied() uint64 { return v.applied.Load() }

// Durable returns the index of the newest entry in a durable checkpoint: a log must keep everything after it. On a
// volatile medium it is Applied.
func (v *Volume) Durable() uint64 {
	if v.pool.volatile {
		return v.applied.Load()
	}
	return v.durable.Load()
}

// Failed returns nil, or the error that has ended the volume's pool; errors.Is(err, block.ErrFailed).
func (v *Volume) Failed() error { return v.pool.Failed() }

// Inconsistent says that an import has begun and not ended, in this process or before it.
func (v *Volume) Inconsistent() bool { return v.inconsistent.Load() }

// State returns the volume's state after the newest applied entry. The blob must not be changed.
func (v *Volume) State() block.State { return *v.state.Load() }

// VolumeUsage is what a volume takes, in bytes.
type VolumeUsage struct {
	LogicalBytes   int64 // its size as an initiator sees it
	AllocatedBytes int64 // chunks it has in the pool, with those of its snapshots
	StoredBytes    int64 // blocks that hold data, in the live volume
}

// Usage returns what the volume takes.
func (v *Volume) Usage() VolumeUsage {
	return VolumeUsage{
		LogicalBytes:   v.capacityNow().Bytes(),
		AllocatedBytes: v.allocatedChunks.Load() * block.ChunkSize,
		StoredBytes:    v.stored.Load() * block.Size,
	}
}

// Apply changes the volume as the log entry index says, and makes it the newest applied one. An entry at or below Applied
// changes nothing. The data is on the medium, though not synced, when it returns; op.Data and op.Sums are not kept. Sums
// are stored as they are: whoever took the entry from the wire or the log has verified them.
//
// An OpState that is based on another version than State's changes nothing; the caller sees that in State.
//
// Errors that change nothing: a malformed op, ErrInconsistent, block.ErrClosed, and block.ErrNoSpace, for which freeing
// (an entry that zeroes whole chunks, then Checkpoint, which gives freed chunks back) makes room. block.ErrFailed is final.
func (v *Volume) Apply(index uint64, ops []block.Op) error {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	if err := v.usable(); err != nil {
		return err
	}
	if index == block.NoIndex {
		return fmt.Errorf("volume %s: apply of an entry without index", v.id)
	}
	if v.inconsistent.Load() {
		return fmt.Errorf("volume %s: apply %d: %w", v.id, index, ErrInconsistent)
	}
	if index <= v.applied.Load() {
		return nil
	}
	if err := v.change(index, ops); err != nil {
		return err
	}
	// Last: whoever sees the index sees the data.
	v.applied.Store(index)
	return nil
}

// ApplyUnlogged changes a volatile volume without a log entry: what it changes counts as part of the newest applied one. It is for the only copy there
// is, which nobody else has to follow. It may be called beside Apply, and is atomic like that. Errors: those of Apply, and one if the volume is not
// volatile, or nothing has been applied yet.
func (v *Volume) ApplyUnlogged(ops []block.Op) error {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	if err := v.usable(); err != nil {
		return err
	}
	index := v.applied.Load()
	switch {
	case !v.pool.volatile:
		return fmt.Errorf("volume %s: a change without a log entry: the volume outlives the process, and would do so without the change", v.id)
	case index == 0:
		return fmt.Errorf("volume %s: a change without a log entry, before the first entry", v.id)
	case v.inconsistent.Load():
		return fmt.Errorf("volume %s: a change without a log entry: %w", v.id, ErrInconsistent)
	}
	if err := v.change(index, ops); err != nil {
		return err
	}
	v.unlogged.Add(1)
	return nil
}

// Changes grows with whatever changes the volume.
func (v *Volume) Changes() uint64 { return v.applied.Load() + v.unlogged.Load() }

// Volatile says that nothing of the volume outlives the process: it is in RAM.
func (v *Volume) Volatile() bool { return v.pool.volatile }

// usable is called under a chunk's lock or under applyMu: Close waits for both after setting closed.
func (v *Volume) usable() error {
	if v.closed.Load() {
		return block.ErrClosed
	}
	return v.pool.Failed()
}

// change checks everything that can be refused, then does it. index 0 leaves the last-modified indexes as they are.
func (v *Volume) change(index uint64, ops []block.Op) error {
	for i := range ops {
		if err := ops[i].Check(v.capacityNow()); err != nil {
			return fmt.Errorf("volume %s: entry %d, op %d: %w", v.id, index, i, err)
		}
	}
	if err := v.reserve(ops); err != nil {
		return fmt.Errorf("volume %s: entry %d: %w", v.id, index, err)
	}
	for i := range ops {
		if err := v.run(index, &ops[i]); err != nil {
			return err // the medium has failed; what is reserved does not matter any more
		}
	}
	if len(v.reserved) > 0 { // an op turned out to need less than was foreseen
		v.pool.returnSlots(v.reserved)
		v.reserved = v.reserved[:0]
	}
	return nil
}

// reserve takes the slots that ops may need, so that nothing can run out of space half way.
func (v *Volume) reserve(ops []block.Op) error {
	if err := v.roomForPages(ops); err != nil {
		return err
	}
	slots := v.countSlots(ops)
	if slots == 0 {
		return nil
	}
	var err error
	v.reserved, err = v.pool.takeSlots(slots, v.reserved[:0])
	// They are used from the end: the lowest slot first, so neighbouring chunks get neighbouring slots.
	slices.Reverse(v.reserved)
	return err
}

func (v *Volume) run(index uint64, op *block.Op) error {
	switch op.Kind {
	case block.OpState:
		if old := v.state.Load(); old.Version == op.StateVersion {
			v.state.Store(&block.State{Version: old.Version + 1, Blob: append([]byte(nil), op.Data...)})
		}
		return nil
	case block.OpGrow:
		if op.Range.Count > v.capacityNow() {
			v.m.grow(op.Range.Count)
			v.capacity.Store(uint64(op.Range.Count)) // last: whoever sees the capacity finds its chunks
			v.dirty = true
		}
		return nil
	case block.OpSnapshot, block.OpDeleteSnapshot, block.OpRollback:
		v.runSnapshot(index, op)
		return nil
	}
	data, sums := op.Data, op.Sums
	if op.Kind == block.OpFill {
		data = v.repeat(op.Data, min(op.Range.Bytes(), block.ChunkSize))
	}
	for r := op.Range; r.Count > 0; {
		var s span
		s, r = next(r)
		var err error
		switch op.Kind {
		case block.OpWrite:
			err = v.store(index, s, data[:s.n*block.Size], sums[:s.n])
			data, sums = data[s.n*block.Size:], sums[s.n:]
		case block.OpFill:
			err = v.store(index, s, data[:s.n*block.Size], sums)
		case block.OpZero:
			err = v.zero(index, s)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// repeat returns n bytes of copies of one block. They are valid until the next call.
func (v *Volume) repeat(one []byte, n int64) []byte {
	if v.pattern == nil {
		v.pattern = make([]byte, block.ChunkSize)
	}
	for filled := copy(v.pattern, one); int64(filled) < n; filled *= 2 {
		copy(v.pattern[filled:n], v.pattern[:filled])
	}
	return v.pattern[:n]
}
