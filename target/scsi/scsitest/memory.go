// Package scsitest is a scsi.Backend in plain memory, for tests of what lies above it.
//
// Invariant: it does exactly what the comments of scsi.Backend promise, in the simplest way: one mutex, one byte slice.
// It replicates nothing and keeps nothing.
package scsitest

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"

	"sanctuary/blockstore/block"
	"sanctuary/target/scsi"
)

// Hook is called around an operation, without a lock. op is the method's name.
type Hook func(ctx context.Context, op string, r block.Range) error

// Memory is a Backend in memory.
type Memory struct {
	before, after atomic.Pointer[Hook]

	mu    sync.Mutex
	geo   block.Geometry
	data  []byte
	state block.State
}

var _ scsi.Backend = (*Memory)(nil)

// NewMemory returns a zeroed Memory.
func NewMemory(g block.Geometry) *Memory {
	return &Memory{geo: g, data: make([]byte, g.Capacity.Bytes())}
}

// Grow makes the LUN larger; capacity must not be smaller than it was.
func (m *Memory) Grow(capacity block.Count) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.geo.Capacity = capacity
	m.data = append(m.data, make([]byte, capacity.Bytes()-int64(len(m.data)))...)
}

// Bytes returns a copy of a range.
func (m *Memory) Bytes(r block.Range) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.at(r))
}

// Before sets what is called ahead of every operation from now on, nil for nothing; its error ends the operation with nothing done.
func (m *Memory) Before(h Hook) { m.before.Store(&h) }

// After sets what is called behind every operation that was done, nil for nothing; its error becomes the operation's.
func (m *Memory) After(h Hook) { m.after.Store(&h) }

func (m *Memory) at(r block.Range) []byte { return m.data[r.Offset() : r.Offset()+r.Bytes()] }

// do runs one operation between its hooks.
func (m *Memory) do(ctx context.Context, op string, r block.Range, f func() error) error {
	if h := m.before.Load(); h != nil && *h != nil {
		if err := (*h)(ctx, op, r); err != nil {
			return err
		}
	}
	m.mu.Lock()
	err := r.Check(m.geo.Capacity)
	if err == nil {
		err = f()
	}
	m.mu.Unlock()
	if h := m.after.Load(); err == nil && h != nil && *h != nil {
		err = (*h)(ctx, op, r)
	}
	return err
}

// Geometry implements scsi.Backend.
func (m *Memory) Geometry() block.Geometry {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.geo
}

// Read implements scsi.Backend.
func (m *Memory) Read(ctx context.Context, r block.Range, dst []byte) error {
	return m.do(ctx, "Read", r, func() error { copy(dst, m.at(r)); return nil })
}

// Write implements scsi.Backend.
func (m *Memory) Write(ctx context.Context, r block.Range, src []byte) error {
	return m.do(ctx, "Write", r, func() error { copy(m.at(r), src); return nil })
}

// CompareAndWrite implements scsi.Backend.
func (m *Memory) CompareAndWrite(ctx context.Context, r block.Range, want, src []byte) (int, error) {
	mismatch := -1
	err := m.do(ctx, "CompareAndWrite", r, func() error {
		have := m.at(r)
		for i := range have {
			if have[i] != want[i] {
				mismatch = i
				return nil
			}
		}
		copy(have, src)
		return nil
	})
	return mismatch, err
}

// WriteSame implements scsi.Backend.
func (m *Memory) WriteSame(ctx context.Context, r block.Range, pattern []byte) error {
	return m.do(ctx, "WriteSame", r, func() error {
		dst := m.at(r)
		if pattern == nil {
			clear(dst)
		}
		for len(dst) > 0 && pattern != nil {
			dst = dst[copy(dst, pattern):]
		}
		return nil
	})
}

// Unmap implements scsi.Backend.
func (m *Memory) Unmap(ctx context.Context, rs []block.Range) error {
	for _, r := range rs {
		if err := m.do(ctx, "Unmap", r, func() error { clear(m.at(r)); return nil }); err != nil {
			return err
		}
	}
	return nil
}

// Flush implements scsi.Backend.
func (m *Memory) Flush(ctx context.Context) error {
	return m.do(ctx, "Flush", block.Range{}, func() error { return nil })
}

// State implements scsi.Backend.
func (m *Memory) State(context.Context) (block.State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return block.State{Version: m.state.Version, Blob: bytes.Clone(m.state.Blob)}, nil
}

// SwapState implements scsi.Backend.
func (m *Memory) SwapState(_ context.Context, old uint64, next []byte) (block.State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state.Version != old {
		return block.State{}, block.ErrStale
	}
	m.state = block.State{Version: old + 1, Blob: bytes.Clone(next)}
	return block.State{Version: m.state.Version, Blob: bytes.Clone(next)}, nil
}
