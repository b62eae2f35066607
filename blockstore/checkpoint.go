package blockstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/bits"

	"sanctuary/blockstore/block"
)

// capture is what one checkpoint writes: the volume between two entries.
type capture struct {
	record   appliedRecord
	geometry block.Geometry
	chunks   []capturedChunk
	freed    []uint32
}

type capturedChunk struct {
	chunk uint32
	entry mapEntry
	sums  chunkSums
}

// Checkpoint makes everything applied so far durable, and returns the index up to which that is. Apply goes on meanwhile,
// except while the changed map entries are copied in memory (about 0.1 µs each); what it applies meanwhile may or may not
// be covered. ctx can keep a checkpoint from beginning, not end it half way.
//
// block.ErrNoSpace (no room for metadata) changes nothing and may be tried again; block.ErrFailed is final.
func (v *Volume) Checkpoint(ctx context.Context) (applied uint64, err error) {
	v.checkpointMu.Lock()
	defer v.checkpointMu.Unlock()
	if err := ctx.Err(); err != nil {
		return v.Durable(), err
	}
	v.applyMu.Lock()
	if err := v.usable(); err != nil {
		v.applyMu.Unlock()
		return v.Durable(), err
	}
	if v.pool.volatile || v.clean() {
		v.applyMu.Unlock()
		return v.Durable(), nil
	}
	c := v.capture()
	v.applyMu.Unlock()

	if err := v.commit(c); err != nil {
		return v.Durable(), err
	}
	return c.record.applied, nil
}

// clean says that the durable checkpoint is the present state. It is called with applyMu held. A volatile volume has no
// checkpoints but the one of Close.
func (v *Volume) clean() bool {
	return !v.pool.volatile && len(v.dirtyPages) == 0 && len(v.freed) == 0 && v.applied.Load() == v.durable.Load()
}

// capture copies what has changed since the last capture and counts it as written. It is called with checkpointMu and
// applyMu held, so nobody else changes the map.
func (v *Volume) capture() *capture {
	c := &capture{
		record:   appliedRecord{applied: v.applied.Load(), floor: v.floor.Load(), inconsistent: v.inconsistent.Load(), state: *v.state.Load()},
		geometry: v.Geometry(),
		freed:    v.freed,
	}
	v.freed = nil
	for _, number := range v.dirtyPages {
		page, _ := v.m.find(number * pageChunks)
		for at := range uint32(pageChunks) {
			if page.dirty[at/64]>>(at%64)&1 == 0 {
				continue
			}
			k := capturedChunk{chunk: number*pageChunks + at, entry: mapEntry{page.slot[at], page.valid[at], page.index[at]}}
			if k.entry.slot != 0 {
				k.sums = *v.pool.sumsOf(k.entry.slot)
			}
			c.chunks = append(c.chunks, k)
		}
		page.dirty, page.listed = [pageChunks / 64]uint64{}, false
	}
	v.dirtyPages = v.dirtyPages[:0]
	return c
}

// release takes a capture back that could not be written.
func (v *Volume) release(c *capture) {
	for i := range c.chunks {
		page, _ := v.m.find(c.chunks[i].chunk)
		v.markDirty(page, c.chunks[i].chunk)
	}
	v.freed = append(v.freed, c.freed...)
}

// commit makes a capture durable. The order of its steps is argued in the package comment. It is called with checkpointMu
// held and without applyMu.
func (v *Volume) commit(c *capture) error {
	err := v.write(c)
	if err != nil {
		if errors.Is(err, block.ErrNoSpace) {
			v.applyMu.Lock()
			v.release(c)
			v.applyMu.Unlock()
		}
		return fmt.Errorf("checkpoint of volume %s: %w", v.id, err)
	}
	v.durable.Store(c.record.applied)
	return v.pool.giveBack(c.freed, int64(len(c.freed)))
}

// write is the part of commit that decides whether it has happened.
func (v *Volume) write(c *capture) error {
	if err := v.pool.dev.Sync(); err != nil {
		return v.pool.fail("sync of the medium", err)
	}
	return v.pool.update(func(tx MetadataTx) error { return v.put(tx, c) })
}

// put writes the records of a capture.
func (v *Volume) put(tx MetadataTx, c *capture) error {
	const mapBytes, sumsBytes = 28, 4*block.BlocksPerChunk + 4
	buf := make([]byte, 0, len(c.chunks)*(mapBytes+sumsBytes)) // one piece: the store keeps the slices until it commits
	room := func(n int) []byte {
		at := len(buf)
		buf = buf[:at+n]
		return buf[at : at : at+n]
	}
	for i := range c.chunks {
		k := &c.chunks[i]
		key := chunkKey(keyMap, v.number, k.chunk)
		if err := tx.Put(key, k.entry.encode(key, room(mapBytes))); err != nil {
			return err
		}
		key = chunkKey(keySums, v.number, k.chunk)
		if k.entry.slot == 0 {
			if err := tx.Delete(key); err != nil {
				return err
			}
			continue
		}
		if err := tx.Put(key, encodeSums(key, &k.sums, room(sumsBytes))); err != nil {
			return err
		}
	}
	// With the capacity it was applied under: the log's OpGrow is behind the applied index now.
	key := volumeKey(keyVolume, v.number)
	if header := encodeVolume(key, c.geometry); !bytes.Equal(header, tx.Get(key)) {
		if err := tx.Put(key, header); err != nil {
			return err
		}
	}
	key = volumeKey(keyApplied, v.number)
	return tx.Put(key, c.record.encode(key))
}

// loadVolume reads a volume as of its last checkpoint.
func (p *Pool) loadVolume(id string) (*Volume, error) {
	v := &Volume{pool: p, id: id}
	err := p.meta.View(func(tx MetadataTx) (err error) {
		if v.number, err = volumeNumber(tx, id); err != nil {
			return err
		}
		key := volumeKey(keyVolume, v.number)
		g, err := decodeVolume(key, tx.Get(key))
		if err != nil {
			return err
		}
		key = volumeKey(keyApplied, v.number)
		r, err := decodeApplied(key, tx.Get(key))
		if err != nil {
			return err
		}
		v.m, v.blockBytes = newChunkMap(g.Capacity), g.LogicalBlockBytes
		v.capacity.Store(uint64(g.Capacity))
		v.applied.Store(r.applied)
		v.durable.Store(r.applied)
		v.floor.Store(r.floor)
		v.inconsistent.Store(r.inconsistent)
		v.state.Store(&r.state)
		return v.loadMap(tx)
	})
	if err != nil {
		return nil, err
	}
	return v, nil
}

func (v *Volume) loadMap(tx MetadataTx) error {
	allocated, sums := 0, 0
	err := tx.Scan(volumeKey(keyMap, v.number), func(key, value []byte) error {
		chunk, err := decodeChunkKey(key, v.m.chunks.Load())
		if err != nil {
			return err
		}
		e, err := decodeMapEntry(key, value)
		if err != nil {
			return err
		}
		page, at := v.m.make(chunk)
		page.slot[at], page.valid[at], page.index[at] = e.slot, e.valid, e.index
		if e.slot != 0 {
			allocated++
			v.allocatedChunks.Add(1)
			v.storedBlocks.Add(int64(bits.OnesCount64(e.valid)))
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = tx.Scan(volumeKey(keySums, v.number), func(key, value []byte) error {
		chunk, err := decodeChunkKey(key, v.m.chunks.Load())
		if err != nil {
			return err
		}
		page, at := v.m.find(chunk)
		if page == nil || page.slot[at] == 0 {
			return damaged(fmt.Sprintf("checksums of chunk %d, which is not allocated", chunk))
		}
		sums++
		v.pool.ensureSlab(page.slot[at])
		return decodeSums(key, value, v.pool.sumsOf(page.slot[at]))
	})
	if err == nil && sums != allocated {
		err = damaged(fmt.Sprintf("%d chunks with checksums of %d", sums, allocated))
	}
	return err
}

// Close waits for calls under way, makes a last checkpoint unless the pool has failed, and returns its error. Everything
// returns block.ErrClosed afterwards; closing again does nothing. Pool.Open opens the volume again.
func (v *Volume) Close() error {
	v.checkpointMu.Lock()
	defer v.checkpointMu.Unlock()
	v.applyMu.Lock()
	if v.closed.Swap(true) {
		v.applyMu.Unlock()
		return nil
	}
	var c *capture
	if v.pool.Failed() == nil && !v.clean() {
		c = v.capture()
	}
	v.applyMu.Unlock()
	for i := range v.m.stripes { // readers that saw the volume open have finished
		v.m.stripes[i].wait()
	}
	var err error
	if c != nil {
		err = v.commit(c)
	}
	v.pool.forget(v.id)
	return err
}
