// Package storetest holds what every medium of the blockstore must do: one suite (Run), and a plain in-memory model of a
// volume with the journal that replication would keep (Model), against which volumes are compared.
//
// It tests through the exported interface only, and knows nothing of how a medium stores what it stores.
package storetest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// Entry is one log entry.
type Entry struct {
	Index uint64
	Ops   []block.Op
}

// Model is a volume as one would write it without any care for memory or crashes, and its journal.
type Model struct {
	Geometry block.Geometry
	Journal  []Entry
	blocks   map[uint64][]byte // nil: zeros
	state    block.State
	next     uint64 // source of block contents, none of which is used twice
}

// NewModel returns an empty volume.
func NewModel(g block.Geometry) *Model {
	return &Model{Geometry: g, blocks: map[uint64][]byte{}}
}

// Blocks returns the number of blocks of the volume.
func (m *Model) Blocks() int { return int(m.Geometry.Capacity / block.SectorsPerBlock) }

// Last returns the index of the newest entry.
func (m *Model) Last() uint64 {
	if len(m.Journal) == 0 {
		return 0
	}
	return m.Journal[len(m.Journal)-1].Index
}

// State returns the state after the newest entry.
func (m *Model) State() block.State { return m.state }

// Block returns the contents of a block.
func (m *Model) Block(n uint64) []byte {
	if b := m.blocks[n]; b != nil {
		return b
	}
	return make([]byte, block.Size)
}

// Content returns a block that differs from every other, anywhere in it.
func (m *Model) Content() []byte {
	m.next++
	b := make([]byte, block.Size)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], m.next<<16|uint64(i))
	}
	return b
}

// Write returns an OpWrite of n new blocks.
func (m *Model) Write(first, n int) block.Op {
	op := block.Op{Kind: block.OpWrite, Range: blocks(first, n)}
	for range n {
		op.Data = append(op.Data, m.Content()...)
	}
	op.Sums = block.AppendSums(nil, op.Data)
	return op
}

// Zero returns an OpZero of n blocks.
func (m *Model) Zero(first, n int) block.Op {
	return block.Op{Kind: block.OpZero, Range: blocks(first, n)}
}

// Fill returns an OpFill of n blocks with one new block.
func (m *Model) Fill(first, n int) block.Op {
	data := m.Content()
	return block.Op{Kind: block.OpFill, Range: blocks(first, n), Data: data, Sums: block.AppendSums(nil, data)}
}

// SetState returns an OpState based on the given version.
func (m *Model) SetState(version uint64, blob string) block.Op {
	return block.Op{Kind: block.OpState, StateVersion: version, Data: []byte(blob)}
}

// Grow returns an OpGrow by n blocks; it stands alone in its entry.
func (m *Model) Grow(n int) block.Op {
	return block.Op{Kind: block.OpGrow, Range: blocks(0, m.Blocks()+n)}
}

func blocks(first, n int) block.Range {
	return block.BytesRange(int64(first)*block.Size, int64(n)*block.Size)
}

// Random returns a random entry of one to three ops.
func (m *Model) Random(rnd *rand.Rand) []block.Op {
	if rnd.IntN(24) == 0 && m.Blocks() < maxRandomBlocks {
		return []block.Op{m.Grow(rnd.IntN(2 * block.BlocksPerChunk))}
	}
	var ops []block.Op
	for range 1 + rnd.IntN(3) {
		first := rnd.IntN(m.Blocks())
		n := 1 + rnd.IntN(min(m.Blocks()-first, 8))
		switch rnd.IntN(8) {
		case 0:
			ops = append(ops, m.Zero(first, n))
		case 1, 2: // whole chunks
			first = first / block.BlocksPerChunk * block.BlocksPerChunk
			n = min(m.Blocks()-first, block.BlocksPerChunk*(1+rnd.IntN(2)))
			ops = append(ops, m.Zero(first, n))
		case 3:
			ops = append(ops, m.Fill(first, min(m.Blocks()-first, n*20)))
		case 4:
			ops = append(ops, m.SetState(m.state.Version-uint64(rnd.IntN(2)), fmt.Sprint("state ", m.next)))
		default:
			ops = append(ops, m.Write(first, n))
		}
	}
	return ops
}

// maxRandomBlocks keeps volumes that grow at random small enough to be compared over and over.
const maxRandomBlocks = 8 * block.BlocksPerChunk

// Commit adds an entry to the journal and applies it to the model.
func (m *Model) Commit(index uint64, ops []block.Op) {
	m.Journal = append(m.Journal, Entry{index, ops})
	for _, op := range ops {
		first, n := uint64(op.Range.Start/block.SectorsPerBlock), uint64(op.Range.Count/block.SectorsPerBlock)
		for i := range n {
			switch op.Kind {
			case block.OpWrite:
				m.blocks[first+i] = op.Data[i*block.Size : (i+1)*block.Size]
			case block.OpFill:
				m.blocks[first+i] = op.Data
			case block.OpZero:
				delete(m.blocks, first+i)
			}
		}
		if op.Kind == block.OpGrow {
			m.Geometry.Capacity = max(m.Geometry.Capacity, op.Range.Count)
		}
		if op.Kind == block.OpState && op.StateVersion == m.state.Version {
			m.state = block.State{Version: m.state.Version + 1, Blob: op.Data}
		}
	}
}

// Replay applies the journal after the volume's durable index, as replication does after a restart.
func (m *Model) Replay(v *blockstore.Volume) error {
	for _, e := range m.Journal {
		if e.Index <= v.Durable() {
			continue
		}
		if err := v.Apply(e.Index, e.Ops); err != nil {
			return fmt.Errorf("replay %d: %w", e.Index, err)
		}
	}
	return nil
}

// Compare returns an error unless the volume has the contents, state and index of the model.
func (m *Model) Compare(v *blockstore.Volume) error {
	if v.Applied() != m.Last() {
		return fmt.Errorf("applied %d, want %d", v.Applied(), m.Last())
	}
	if got := v.State(); got.Version != m.state.Version || !bytes.Equal(got.Blob, m.state.Blob) {
		return fmt.Errorf("state %d %q, want %d %q", got.Version, got.Blob, m.state.Version, m.state.Blob)
	}
	return m.CompareBlocks(v)
}

// CompareBlocks compares the contents alone.
func (m *Model) CompareBlocks(v *blockstore.Volume) error {
	if v.Geometry() != m.Geometry {
		return fmt.Errorf("geometry %v, want %v", v.Geometry(), m.Geometry)
	}
	buf := make([]byte, m.Geometry.Capacity.Bytes())
	if err := v.ReadAt(block.Range{Count: m.Geometry.Capacity}, buf); err != nil {
		return err
	}
	for n := range uint64(m.Blocks()) {
		if got := buf[n*block.Size : (n+1)*block.Size]; !bytes.Equal(got, m.Block(n)) {
			return fmt.Errorf("block %d begins with %x, want %x", n, got[:8], m.Block(n)[:8])
		}
	}
	return m.compareAllocated(v, block.Range{Count: m.Geometry.Capacity})
}

// compareAllocated follows Allocated from one change to the next through r, which may begin and end anywhere.
func (m *Model) compareAllocated(v *blockstore.Volume, r block.Range) error {
	for r.Count > 0 {
		first := uint64(r.Start / block.SectorsPerBlock)
		stored, end := m.blocks[first] != nil, first+1
		for int(end) < m.Blocks() && (m.blocks[end] != nil) == stored {
			end++
		}
		want := min(r.Count, block.Count(end*block.SectorsPerBlock)-block.Count(r.Start))
		allocated, n, err := v.Allocated(r)
		if err != nil || allocated != stored || n != want {
			return fmt.Errorf("from sector %d on: allocated %t for %d sectors (%w), want %t for %d", r.Start, allocated, n, err, stored, want)
		}
		r = block.Range{Start: r.Start + block.Sector(n), Count: r.Count - n}
	}
	return nil
}

// CompareOrCorrupt is for a volume whose log has not been replayed: every block must be one that the journal has put
// there once, or zeros, or be reported corrupt.
func (m *Model) CompareOrCorrupt(v *blockstore.Volume) error {
	ever := map[uint64][][]byte{}
	for _, e := range m.Journal {
		for _, op := range e.Ops {
			first, n := uint64(op.Range.Start/block.SectorsPerBlock), uint64(op.Range.Count/block.SectorsPerBlock)
			for i := range n {
				switch op.Kind {
				case block.OpWrite:
					ever[first+i] = append(ever[first+i], op.Data[i*block.Size:(i+1)*block.Size])
				case block.OpFill:
					ever[first+i] = append(ever[first+i], op.Data)
				}
			}
		}
	}
	buf, zeros := make([]byte, block.Size), make([]byte, block.Size)
	if v.Geometry().Capacity > m.Geometry.Capacity {
		return fmt.Errorf("geometry %v, at most %v was ever asked for", v.Geometry(), m.Geometry)
	}
	for n := range uint64(v.Geometry().Capacity / block.SectorsPerBlock) { // growth may be ahead of it in the log
		err := v.ReadAt(blocks(int(n), 1), buf)
		if corrupt := (*block.CorruptError)(nil); errors.As(err, &corrupt) {
			continue
		}
		if err != nil {
			return err
		}
		known := bytes.Equal(buf, zeros)
		for _, b := range ever[n] {
			known = known || bytes.Equal(buf, b)
		}
		if !known {
			return fmt.Errorf("block %d begins with %x, which no entry has written there", n, buf[:8])
		}
	}
	return nil
}
