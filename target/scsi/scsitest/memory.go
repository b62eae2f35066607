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
	holes []bool // by block: unmapped as a whole and not written since
	state block.State
}

var _ scsi.Backend = (*Memory)(nil)

// NewMemory returns a zeroed Memory.
func NewMemory(g block.Geometry) *Memory {
	m := &Memory{geo: block.Geometry{LogicalBlockBytes: g.LogicalBlockBytes}}
	m.Grow(g.Capacity)
	return m
}

// Grow makes the LUN larger; capacity must not be smaller than it was.
func (m *Memory) Grow(capacity block.Count) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.geo.Capacity = capacity
	m.data = append(m.data, make([]byte, capacity.Bytes()-int64(len(m.data)))...)
	for len(m.holes) < len(m.data)/block.Size {
		m.holes = append(m.holes, true)
	}
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

// mapped notes that every block that r touches has storage.
func (m *Memory) mapped(r block.Range) {
	w := r.Widen()
	clear(m.holes[w.Start/block.SectorsPerBlock : w.End()/block.SectorsPerBlock])
}

// unmap zeroes a range; only whole blocks lose their storage.
func (m *Memory) unmap(r block.Range) {
	clear(m.at(r))
	for b := (r.Start + block.SectorsPerBlock - 1) / block.SectorsPerBlock; b < r.End()/block.SectorsPerBlock; b++ {
		m.holes[b] = true
	}
}

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

// Fence implements scsi.Backend: there is one node.
func (m *Memory) Fence() block.Fence { return block.Fence{Term: 1} }

// Read implements scsi.Backend.
func (m *Memory) Read(ctx context.Context, r block.Range, dst []byte) error {
	return m.do(ctx, "Read", r, func() error { copy(dst, m.at(r)); return nil })
}

// Write implements scsi.Backend.
func (m *Memory) Write(ctx context.Context, _ block.Fence, r block.Range, src []byte) error {
	return m.do(ctx, "Write", r, func() error { copy(m.at(r), src); m.mapped(r); return nil })
}

// CompareAndWrite implements scsi.Backend.
func (m *Memory) CompareAndWrite(ctx context.Context, _ block.Fence, r block.Range, want, src []byte) (int, error) {
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
		m.mapped(r)
		return nil
	})
	return mismatch, err
}

// Modify implements scsi.Backend.
func (m *Memory) Modify(ctx context.Context, _ block.Fence, r block.Range, change func(int64, []byte)) error {
	return m.do(ctx, "Modify", r, func() error { change(0, m.at(r)); m.mapped(r); return nil })
}

// WriteSame implements scsi.Backend.
func (m *Memory) WriteSame(ctx context.Context, _ block.Fence, r block.Range, pattern []byte) error {
	return m.do(ctx, "WriteSame", r, func() error {
		if pattern == nil {
			m.unmap(r)
			return nil
		}
		for dst := m.at(r); len(dst) > 0; {
			dst = dst[copy(dst, pattern):]
		}
		m.mapped(r)
		return nil
	})
}

// Unmap implements scsi.Backend.
func (m *Memory) Unmap(ctx context.Context, _ block.Fence, rs []block.Range) error {
	for _, r := range rs {
		if err := m.do(ctx, "Unmap", r, func() error { m.unmap(r); return nil }); err != nil {
			return err
		}
	}
	return nil
}

// Allocated implements scsi.Backend.
func (m *Memory) Allocated(ctx context.Context, r block.Range) (allocated bool, n block.Count, err error) {
	err = m.do(ctx, "Allocated", r, func() error {
		hole := m.holes[r.Start/block.SectorsPerBlock]
		end := r.Start/block.SectorsPerBlock + 1
		for int(end) < len(m.holes) && m.holes[end] == hole {
			end++
		}
		allocated, n = !hole, min(r.Count, block.Count(end*block.SectorsPerBlock-r.Start))
		return nil
	})
	return allocated, n, err
}

// Flush implements scsi.Backend.
func (m *Memory) Flush(ctx context.Context) error {
	return m.do(ctx, "Flush", block.Range{}, func() error { return nil })
}

// State implements scsi.Backend.
func (m *Memory) State() block.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state // SwapState replaces the blob, and never changes it
}

// Confirm implements scsi.Backend.
func (m *Memory) Confirm(ctx context.Context) error {
	return m.do(ctx, "Confirm", block.Range{}, func() error { return nil })
}

// SwapState implements scsi.Backend.
func (m *Memory) SwapState(ctx context.Context, _ block.Fence, old uint64, next []byte) (state block.State, err error) {
	err = m.do(ctx, "SwapState", block.Range{}, func() error {
		if m.state.Version != old {
			state = m.state
			return block.ErrStale
		}
		m.state = block.State{Version: old + 1, Blob: bytes.Clone(next)}
		state = m.state
		return nil
	})
	return state, err
}
