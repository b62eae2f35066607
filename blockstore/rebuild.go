package blockstore

import (
	"context"
	"errors"
	"fmt"

	"sanctuary/blockstore/block"
)

// Changed calls fn for what entries after since may have changed, in ascending order: whole chunks (cut off at the end of
// the volume; neighbours that were never written may come as one longer range), also those that were freed. It is what a
// replica that has everything up to since has to compare. What Apply changes while Changed runs may be reported or not.
//
// After an import, the indexes of chunks that the import did not need to write are not known to be those of the source, so
// a since before the import's index reports the entire volume: comparing is then slower, and still right.
//
// Errors: fn's own, which ends the walk; ErrInconsistent; block.ErrClosed; block.ErrFailed.
func (v *Volume) Changed(since uint64, fn func(r block.Range) error) error {
	if v.inconsistent.Load() {
		return fmt.Errorf("volume %s: %w", v.id, ErrInconsistent)
	}
	everything := since < v.floor.Load()
	chunks := v.m.chunks.Load()
	for chunk := uint32(0); chunk < chunks; {
		page, at := v.m.find(chunk)
		if page == nil {
			n := min(pageChunks-at, chunks-chunk)
			if everything {
				if err := fn(v.chunkRange(chunk, n)); err != nil {
					return err
				}
			}
			chunk += n
			continue
		}
		index, err := v.lastIndex(chunk)
		if err != nil {
			return err
		}
		if everything || index > since {
			if err := fn(v.chunkRange(chunk, 1)); err != nil {
				return err
			}
		}
		chunk++
	}
	return nil
}

func (v *Volume) lastIndex(chunk uint32) (uint64, error) {
	lock := v.m.lockOf(chunk)
	lock.RLock()
	defer lock.RUnlock()
	if err := v.usable(); err != nil {
		return 0, err
	}
	page, at := v.m.find(chunk)
	return page.index[at], nil
}

func (v *Volume) chunkRange(chunk, n uint32) block.Range {
	start := int64(chunk) * block.ChunkSize
	return block.BytesRange(start, min(int64(n)*block.ChunkSize, v.capacityNow().Bytes()-start))
}

// Chunks returns the number of chunks of the volume; the last one may be cut off by its end.
func (v *Volume) Chunks() uint32 { return v.m.chunks.Load() }

// ChunkInfo is what the map knows about a chunk.
type ChunkInfo struct {
	Slot  uint64 // where it lies: at byte Slot × 256 KiB of the medium; 0: nowhere, all zeros
	Index uint64 // the entry that changed it last; 0: never
	Valid uint64 // bit n: block n is stored; otherwise it reads as zeros
	Sums  [block.BlocksPerChunk]uint32
}

// ChunkInfo fills info with what the map knows about a chunk; Sums of blocks that are not valid are 0. Unlike ReadAt it
// works during an import. The medium may hold something else: after a crash, until the log is replayed, and when it has
// rotted; CheckChunk tells.
func (v *Volume) ChunkInfo(chunk uint32, info *ChunkInfo) error {
	if chunk >= v.m.chunks.Load() {
		return fmt.Errorf("chunk %d: %w", chunk, block.ErrOutOfRange)
	}
	lock := v.m.lockOf(chunk)
	lock.RLock()
	defer lock.RUnlock()
	if err := v.usable(); err != nil {
		return err
	}
	v.infoLocked(chunk, info)
	return nil
}

func (v *Volume) infoLocked(chunk uint32, info *ChunkInfo) {
	*info = ChunkInfo{}
	page, at := v.m.find(chunk)
	if page == nil {
		return
	}
	info.Slot, info.Valid, info.Index = page.slot[at], page.valid[at], page.index[at]
	if info.Slot == 0 {
		return
	}
	for n, sum := range v.pool.sumsOf(info.Slot) {
		if info.Valid>>n&1 == 1 {
			info.Sums[n] = sum
		}
	}
}

// CheckChunk is ChunkInfo that also reads every valid block and returns those that do not match their checksum, as a
// bitmap. The receiver of a rebuild that cannot replay its log to the end must treat them as different from the source's.
// The chunk cannot be written meanwhile.
func (v *Volume) CheckChunk(chunk uint32, info *ChunkInfo) (bad uint64, err error) {
	if chunk >= v.m.chunks.Load() {
		return 0, fmt.Errorf("chunk %d: %w", chunk, block.ErrOutOfRange)
	}
	buf := oneBlock.Get().(*[block.Size]byte)
	defer oneBlock.Put(buf)
	lock := v.m.lockOf(chunk)
	lock.RLock()
	defer lock.RUnlock()
	if err := v.usable(); err != nil {
		return 0, err
	}
	v.infoLocked(chunk, info)
	for n := range block.BlocksPerChunk {
		if info.Valid>>n&1 == 0 {
			continue
		}
		err := v.readBlocks(chunk, info.Slot, n, buf[:])
		if corrupt := (*block.CorruptError)(nil); errors.As(err, &corrupt) {
			bad |= 1 << n
		} else if err != nil {
			return 0, err
		}
	}
	return bad, nil
}

// BeginImport marks the volume as inconsistent, durably: from now on until EndImport, over any crash, it refuses Apply and
// ReadAt. Beginning again (to go on after a crash) is not an error. What was applied before is checkpointed with the mark.
func (v *Volume) BeginImport(ctx context.Context) error {
	v.checkpointMu.Lock()
	defer v.checkpointMu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	v.applyMu.Lock()
	if err := v.usable(); err != nil {
		v.applyMu.Unlock()
		return err
	}
	if v.inconsistent.Swap(true) || v.pool.volatile {
		v.applyMu.Unlock()
		return nil
	}
	c := v.capture()
	v.applyMu.Unlock()
	if err := v.commit(c); err != nil {
		if errors.Is(err, block.ErrNoSpace) {
			v.inconsistent.Store(false) // nothing was imported yet
		}
		return err
	}
	return nil
}

// ErrChanged: the chunk has been changed by a later entry.
var ErrChanged = fmt.Errorf("the chunk has been changed by a later entry")

// Import changes blocks as Apply does, but leaves the applied index alone: between BeginImport and EndImport only, by one
// goroutine. OpState is refused, since the state comes with EndImport. Checkpoint may be called meanwhile, to give freed
// chunks back. Errors as for Apply.
func (v *Volume) Import(ops []block.Op) error {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	if err := v.usable(); err != nil {
		return err
	}
	if !v.inconsistent.Load() {
		return fmt.Errorf("volume %s: Import without BeginImport", v.id)
	}
	for i := range ops {
		if ops[i].Kind == block.OpState {
			return fmt.Errorf("volume %s: an import of blocks carries no state", v.id)
		}
	}
	return v.change(0, ops)
}

// EndImport makes what was imported durable, with index as the applied index and state as the volume's state, and the
// volume consistent again: all in one step, so that after a crash it is either that or still inconsistent. The index must
// not be below Applied. The caller vouches that the contents are those of the log at index.
func (v *Volume) EndImport(ctx context.Context, index uint64, state block.State) error {
	v.checkpointMu.Lock()
	defer v.checkpointMu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	// Held across the I/O, unlike in Checkpoint: nothing can be applied until this is done.
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	if err := v.usable(); err != nil {
		return err
	}
	switch {
	case !v.inconsistent.Load():
		return fmt.Errorf("volume %s: EndImport without BeginImport", v.id)
	case index < v.applied.Load() || index == block.NoIndex:
		return fmt.Errorf("volume %s: an import as of entry %d cannot follow entry %d", v.id, index, v.applied.Load())
	case len(state.Blob) > block.MaxStateBytes:
		return fmt.Errorf("state of %d bytes, at most %d", len(state.Blob), block.MaxStateBytes)
	}
	state.Blob = append([]byte(nil), state.Blob...)
	if !v.pool.volatile {
		c := v.capture()
		c.record = appliedRecord{applied: index, floor: index, state: state}
		if err := v.write(c); err != nil {
			if errors.Is(err, block.ErrNoSpace) {
				v.release(c)
			}
			return fmt.Errorf("end of the import of volume %s: %w", v.id, err)
		}
		v.durable.Store(index)
		if err := v.pool.giveBack(c.freed, int64(len(c.freed))); err != nil {
			return err
		}
	}
	v.floor.Store(index)
	v.state.Store(&state)
	v.applied.Store(index)
	v.inconsistent.Store(false)
	return nil
}
