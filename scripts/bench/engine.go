package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// engine is a volume of the blockstore in this process, with nothing above it, as replication uses it: one goroutine applies
// entries, which come with their checksums, and makes a checkpoint from time to time; any number read.
type engine struct {
	config blockstore.PoolConfig
	bytes  int64 // of the volume
	pool   *blockstore.Pool
	volume *blockstore.Volume
	index  uint64

	data []byte   // of the entry that is applied
	sums []uint32 // room for its checksums
	view block.SnapshotID
}

const (
	engineVolume = "bench"
	mib          = 1 << 20
	// checkpointBytes is after how many bytes replication makes a checkpoint of a volume that lasts.
	checkpointBytes = 256 * mib
)

// newEngine makes a pool and a volume in it, which is written full.
func newEngine(ctx context.Context, config blockstore.PoolConfig, bytes int64) (*engine, error) {
	e := &engine{config: config, bytes: bytes, data: make([]byte, mib)}
	for i := range e.data {
		e.data[i] = byte(rand.Uint32())
	}
	var err error
	if e.pool, err = blockstore.OpenPool(config); err != nil {
		return nil, err
	}
	e.volume, err = e.pool.Create(engineVolume, block.Geometry{Capacity: block.CountOf(bytes), LogicalBlockBytes: 4096})
	if err == nil {
		_, err = e.writeAll(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, e.pool.Close())
	}
	return e, nil
}

func (e *engine) close() error { return e.pool.Close() }

// reopen closes the pool, does something to its medium, and opens it again: its checksums are in no cache then.
func (e *engine) reopen(meanwhile func() error) error {
	err := errors.Join(e.pool.Close(), meanwhile())
	pool, openErr := blockstore.OpenPool(e.config)
	if openErr != nil {
		return errors.Join(err, openErr) // closing what is closed does nothing
	}
	e.pool = pool
	if e.volume, openErr = pool.Open(engineVolume); openErr != nil {
		return errors.Join(err, openErr)
	}
	return err
}

// write applies one entry, with the checksums computed here, as the node does where a write was accepted.
func (e *engine) write(off int64, data []byte) error {
	e.sums = block.AppendSums(e.sums[:0], data)
	return e.apply(block.Op{Kind: block.OpWrite, Range: block.BytesRange(off, int64(len(data))), Data: data, Sums: e.sums})
}

func (e *engine) apply(op block.Op) error {
	e.index++
	return e.volume.Apply(e.index, []block.Op{op})
}

func (e *engine) checkpoint(ctx context.Context) error {
	_, err := e.volume.Checkpoint(ctx)
	return err
}

// tally is what counts of a load, added up.
type tally struct {
	took         []time.Duration
	elapsed, cpu time.Duration
}

// add does n things and then makes them durable, which counts.
func (m *tally) add(ctx context.Context, e *engine, n int64, do func(i int64) error) error {
	cpu, start := cpuUsed(), time.Now()
	for i := range n {
		began := time.Now()
		if err := errors.Join(do(i), ctx.Err()); err != nil {
			return err
		}
		m.took = append(m.took, time.Since(began))
	}
	err := e.checkpoint(ctx)
	m.elapsed += time.Since(start)
	m.cpu += cpuUsed() - cpu
	return err
}

// report reports it as fio does.
func (m *tally) report(j job, size int64) output {
	out := (&generator{job: j, size: size}).report(m.took, m.elapsed)
	out.cpu = m.cpu
	return out
}

// writeAll writes the volume from its beginning to its end, and makes that durable. Checkpoints are made beside it, as replication
// does, one at a time.
func (e *engine) writeAll(ctx context.Context) (output, error) {
	var beside chan error // nil: no checkpoint is under way
	var m tally
	err := m.add(ctx, e, e.bytes/mib, func(i int64) error {
		if err := e.write(i*mib, e.data); err != nil {
			return err
		}
		if (i+1)%(checkpointBytes/mib) != 0 {
			return nil
		}
		var err error
		if beside != nil {
			err = <-beside
		}
		beside = make(chan error, 1)
		go func() { beside <- e.checkpoint(ctx) }()
		return err
	})
	if beside != nil {
		err = errors.Join(err, <-beside)
	}
	return m.report(job{pattern: "write"}, mib), err
}

// overwriteRounds is how often random blocks are written to in a run: there is no more than one first write to a chunk after a snapshot.
const overwriteRounds = 4

// overwrite writes to random blocks, half as many as there are chunks, and makes that durable; so often.
func (e *engine) overwrite(ctx context.Context) (output, error) {
	return e.overwriteEach(ctx, func() (func() error, error) { return func() error { return nil }, e.checkpoint(ctx) })
}

// overwriteAfterSnapshot is overwrite where a snapshot has just been made, which nearly all chunks then still share. The snapshot goes after each
// round. Neither counts.
func (e *engine) overwriteAfterSnapshot(ctx context.Context) (output, error) {
	return e.overwriteEach(ctx, func() (func() error, error) {
		id, err := e.snapshot()
		return func() error { return e.forget(ctx, id) }, errors.Join(err, e.checkpoint(ctx))
	})
}

func (e *engine) overwriteEach(ctx context.Context, before func() (after func() error, err error)) (output, error) {
	var m tally
	for range overwriteRounds {
		after, err := before()
		if err != nil {
			return output{}, err
		}
		err = m.add(ctx, e, e.bytes/block.ChunkSize/2, func(int64) error {
			return e.write(rand.Int64N(e.bytes/block.Size)*block.Size, e.data[:block.Size])
		})
		if err := errors.Join(err, after()); err != nil {
			return output{}, err
		}
	}
	return m.report(job{pattern: "randwrite"}, block.Size), nil
}

func (e *engine) snapshot() (id block.SnapshotID, err error) {
	for i := range id {
		id[i] = byte(rand.Uint32())
	}
	return id, e.apply(block.SnapshotOp(block.SnapshotSpec{ID: id, Name: fmt.Sprint("snapshot ", e.index)}))
}

// forget deletes a snapshot and frees what only it had.
func (e *engine) forget(ctx context.Context, id block.SnapshotID) error {
	if err := e.apply(block.DeleteSnapshotOp(id)); err != nil {
		return err
	}
	for more := true; more; {
		if err := e.checkpoint(ctx); err != nil {
			return err
		}
		var err error
		if more, err = e.volume.Reclaim(4096); err != nil {
			return err
		}
	}
	return e.checkpoint(ctx)
}

// snapshots is how many there are when the last is read.
const snapshots = 200

// pile makes snapshots, and before each of them writes to random blocks: as many as there are chunks in a 32nd of the volume.
func (e *engine) pile(ctx context.Context) error {
	for range snapshots {
		for range e.bytes / block.ChunkSize / 32 {
			if err := e.write(rand.Int64N(e.bytes/block.Size)*block.Size, e.data[:block.Size]); err != nil {
				return err
			}
		}
		var err error
		if e.view, err = e.snapshot(); err != nil {
			return err
		}
	}
	return e.checkpoint(ctx)
}

// read reads 4 KiB blocks at random, 32 at a time, for so long.
func (e *engine) read(ctx context.Context, r blockstore.Reader, d time.Duration) (output, error) {
	g := &generator{
		job: job{pattern: "randread", depth: storeDepth}, size: block.Size, places: e.bytes / block.Size,
		do: func(_ context.Context, place int64, buffer []byte) error {
			return r.ReadAt(block.BytesRange(place*block.Size, block.Size), buffer)
		},
	}
	return g.run(ctx, d)
}

// readAll reads the volume from its beginning to its end, so that it is in the page cache as far as that has room.
func (e *engine) readAll(ctx context.Context) (output, error) {
	var m tally
	err := m.add(ctx, e, e.bytes/mib, func(i int64) error {
		return e.volume.ReadAt(block.BytesRange(i*mib, mib), e.data)
	})
	return m.report(job{pattern: "read"}, mib), err
}

// begins returns where on the medium the volume's first block lies, if all others follow it in order: as long as it was only written in
// order, and never after a snapshot.
func (e *engine) begins() (int64, error) {
	var first int64
	for n := range e.bytes / block.Size {
		at, _, _, err := e.volume.Locate(block.SnapshotID{}, block.Sector(n)*block.SectorsPerBlock)
		if err != nil {
			return 0, err
		}
		if n == 0 {
			first = at
		}
		if at == 0 || at != first+n*block.Size {
			return 0, fmt.Errorf("the volume does not lie on its medium in order: its first block at %d, block %d at %d", first, n, at)
		}
	}
	return first, nil
}
