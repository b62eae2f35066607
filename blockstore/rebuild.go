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
// After an import, a rollback or in a clone, the indexes of chunks are not known to be those of the log, so a since before
// the import's or rollback's index reports the entire volume: comparing is then slower, and still right.
//
// Errors: fn's own, which ends the walk; ErrInconsistent; block.ErrClosed; block.ErrFailed.
func (v *Volume) Changed(since uint64, fn func(r block.Range) error) error {
	if v.inconsistent.Load() {
		return fmt.Errorf("volume %s: %w", v.id, ErrInconsistent)
	}
	everything := since < v.floor.Load()
	chunks := v.m.chunks.Load()
	for chunk := uint32(0); chunk < chunks; {
		l, at := v.m.find(chunk)
		if l == nil {
			n := min(leafChunks-at, chunks-chunk)
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
	l, at := v.m.find(chunk)
	return l.index[at], nil
}

func (v *Volume) chunkRange(chunk, n uint32) block.Range {
	start := int64(chunk) * block.ChunkSize
	return block.BytesRange(start, min(int64(n)*block.ChunkSize, v.capacityNow().Bytes()-start))
}

// Chunks returns the number of chunks of the volume; the last one may be cut off by its end.
func (v *Volume) Chunks() uint32 { return v.m.chunks.Load() }

// BeginImport marks the volume as inconsistent, durably: from now on until EndImport, over any crash, it refuses Apply and
// ReadAt. Beginning again (to go on after a crash) is not an error. What was applied before is checkpointed with the mark.
// Snapshots can be read all the time. What the volume holds now is kept until the import ends, see Before.
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
	if v.inconsistent.Swap(true) {
		v.applyMu.Unlock()
		return nil
	}
	was := v.lineage.Load()
	v.keepBefore()
	if v.pool.volatile {
		v.applyMu.Unlock()
		return nil
	}
	c := v.capture()
	v.applyMu.Unlock()
	if err := v.commit(c); err != nil {
		if errors.Is(err, block.ErrNoSpace) {
			v.applyMu.Lock()
			v.setLineage(was)
			v.applyMu.Unlock()
			v.inconsistent.Store(false) // nothing was imported yet
		}
		return err
	}
	return nil
}

// Import changes blocks as Apply does, but leaves the applied index alone: between BeginImport and EndImport only, by one
// goroutine. OpState is refused, since the state comes with EndImport, and so is OpSnapshot, for which there is ImportSnapshot.
// Checkpoint may be called meanwhile, to give freed chunks back. Errors as for Apply.
func (v *Volume) Import(ops []block.Op) error {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	if err := v.importing(); err != nil {
		return err
	}
	for i := range ops {
		if ops[i].Kind.Blob() && ops[i].Kind != block.OpDeleteSnapshot {
			return fmt.Errorf("volume %s: an import carries no operations of kind %d", v.id, ops[i].Kind)
		}
	}
	// What is free and has been promised is for writes of LUNs in use: they have been told that there is room.
	need := v.Needs(ops)
	if err := v.pool.promise(need, false); err != nil {
		return fmt.Errorf("volume %s: import: %w", v.id, err)
	}
	defer func() { _ = v.pool.promise(-need, false) }() // giving back is not refused
	return v.change(0, ops)
}

// ImportSnapshot makes what has been imported so far a snapshot: between BeginImport and EndImport only. It has the index and the
// capacity it had where it comes from, which must not be more than the volume's. If the volume has a snapshot of that ID nothing
// is changed.
func (v *Volume) ImportSnapshot(s block.Snapshot) error {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	if err := v.importing(); err != nil {
		return err
	}
	if err := s.Validate(); err != nil {
		return fmt.Errorf("volume %s: %w", v.id, err)
	}
	if s.Capacity > v.capacityNow() {
		return fmt.Errorf("volume %s: snapshot %s is of %d sectors, the volume of %d", v.id, s.Name, s.Capacity, v.capacityNow())
	}
	if l := v.lineage.Load(); l.find(s.ID) < 0 && l.visible() < block.MaxSnapshots {
		v.setLineage(l.withSnapshot(s, v.stored.Load()))
		v.dirty = true
	}
	return nil
}

// importing is called with applyMu held.
func (v *Volume) importing() error {
	if err := v.usable(); err != nil {
		return err
	}
	if !v.inconsistent.Load() {
		return fmt.Errorf("volume %s: import without BeginImport", v.id)
	}
	return nil
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
	was := v.lineage.Load()
	now := was.withoutBefore()
	if !v.pool.volatile {
		c := v.capture()
		c.record.lineage = now
		c.record.applied, c.record.floor, c.record.state, c.record.inconsistent = index, index, state, false
		if err := v.write(c); err != nil {
			if errors.Is(err, block.ErrNoSpace) {
				v.release(c)
			}
			return fmt.Errorf("end of the import of volume %s: %w", v.id, err)
		}
		v.durable.Store(index)
		v.committing = false
		if err := v.pool.giveBack(c.freed, true); err != nil {
			return err
		}
	}
	if now != was {
		v.setLineage(now)
		v.reclaimAt, v.reclaimDone = 0, false // that it is gone is durable
	}
	v.floor.Store(index)
	v.state.Store(&state)
	v.applied.Store(index)
	v.inconsistent.Store(false)
	return nil
}
