package blockstore

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"sanctuary/blockstore/block"
)

// Volume is one LUN's storage in a pool. Apply and Import are called by one goroutine in the order of the log; everything
// else may be called beside them and concurrently.
type Volume struct {
	pool   *Pool
	id     string
	number uint32
	m      *chunkMap

	blockBytes int           // LOGICAL BLOCK LENGTH
	capacity   atomic.Uint64 // block.Count; only grows

	applied atomic.Uint64
	durable atomic.Uint64
	floor   atomic.Uint64 // Changed below it reports everything
	state   atomic.Pointer[block.State]

	inconsistent atomic.Bool
	closed       atomic.Bool

	allocatedChunks atomic.Int64
	storedBlocks    atomic.Int64

	checkpointMu sync.Mutex // one checkpoint, BeginImport, EndImport or Close at a time; taken before applyMu

	// applyMu is held while an entry is applied and while a checkpoint captures the state in memory, so a checkpoint never
	// contains half an entry. It is not held across a checkpoint's I/O. It guards what follows.
	applyMu    sync.Mutex
	dirtyPages []uint32
	freed      []uint32 // slots to give back once a checkpoint has recorded it
	reserved   []uint32 // slots taken for the entry being applied
	pattern    []byte   // one chunk, for OpFill
}

// ErrInconsistent: an import has begun and not ended; the contents are neither the old nor the new ones.
var ErrInconsistent = fmt.Errorf("the volume is in the middle of a rebuild: %w", block.ErrUnavailable)

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

// Inconsistent says that an import has begun and not ended, in this process or before it.
func (v *Volume) Inconsistent() bool { return v.inconsistent.Load() }

// State returns the volume's state after the newest applied entry. The blob must not be changed.
func (v *Volume) State() block.State { return *v.state.Load() }

// VolumeUsage is what a volume takes, in bytes.
type VolumeUsage struct {
	LogicalBytes   int64 // its size as an initiator sees it
	AllocatedBytes int64 // chunks it has in the pool
	StoredBytes    int64 // blocks in them that hold data
}

// Usage returns what the volume takes.
func (v *Volume) Usage() VolumeUsage {
	return VolumeUsage{
		LogicalBytes:   v.capacityNow().Bytes(),
		AllocatedBytes: v.allocatedChunks.Load() * block.ChunkSize,
		StoredBytes:    v.storedBlocks.Load() * block.Size,
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

// usable is called under a chunk's lock or under applyMu: Close waits for both after setting closed.
func (v *Volume) usable() error {
	if v.closed.Load() {
		return block.ErrClosed
	}
	if f := v.pool.failure.Load(); f != nil {
		return *f
	}
	return nil
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
	if len(v.reserved) > 0 {
		return v.pool.fail("count of new chunks", fmt.Errorf("entry %d of volume %s left %d", index, v.id, len(v.reserved)))
	}
	return nil
}

// reserve takes exactly the slots that ops need, so that nothing can run out of space half way.
func (v *Volume) reserve(ops []block.Op) error {
	n, exact := v.newChunksAtMost(ops)
	if n > 0 && !exact {
		n = v.newChunks(ops)
	}
	if n == 0 {
		return nil
	}
	var err error
	v.reserved, err = v.pool.takeSlots(n, v.reserved[:0])
	// They are used from the end: the lowest slot first, so neighbouring chunks get neighbouring slots.
	slices.Reverse(v.reserved)
	return err
}

// newChunksAtMost counts quickly, allocating nothing. The figure is not exact if several ops may need the same chunk, or
// if an op may free one that a later op needs.
func (v *Volume) newChunksAtMost(ops []block.Op) (n int, exact bool) {
	zeroed := false
	for i := range ops {
		switch op := &ops[i]; op.Kind {
		case block.OpZero:
			zeroed = true
		case block.OpWrite, block.OpFill:
			for r := op.Range; r.Count > 0; {
				var s span
				s, r = next(r)
				if page, at := v.m.find(s.chunk); zeroed || page == nil || page.slot[at] == 0 {
					n++
				}
			}
		}
	}
	return n, !zeroed && (n <= 1 || len(ops) == 1)
}

// newChunks counts exactly, by playing the ops through on a copy of the bitmaps.
func (v *Volume) newChunks(ops []block.Op) (n int) {
	valid := map[uint32]uint64{}
	for i := range ops {
		if ops[i].Kind == block.OpState || ops[i].Kind == block.OpGrow {
			continue
		}
		for r := ops[i].Range; r.Count > 0; {
			var s span
			s, r = next(r)
			bits, seen := valid[s.chunk]
			if !seen {
				if page, at := v.m.find(s.chunk); page != nil {
					bits = page.valid[at]
				}
				if bits == 0 && ops[i].Kind == block.OpZero {
					continue // a large UNMAP of thin space must not fill memory
				}
			}
			if ops[i].Kind == block.OpZero {
				bits &^= s.mask()
			} else {
				if bits == 0 {
					n++
				}
				bits |= s.mask()
			}
			valid[s.chunk] = bits
		}
	}
	return n
}

func (v *Volume) run(index uint64, op *block.Op) error {
	if op.Kind == block.OpState {
		if old := v.state.Load(); old.Version == op.StateVersion {
			v.state.Store(&block.State{Version: old.Version + 1, Blob: append([]byte(nil), op.Data...)})
		}
		return nil
	}
	if op.Kind == block.OpGrow {
		if op.Range.Count > v.capacityNow() {
			v.m.grow(op.Range.Count)
			v.capacity.Store(uint64(op.Range.Count)) // last: whoever sees the capacity finds its chunks
		}
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
