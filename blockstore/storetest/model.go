// Package storetest holds what every medium of the blockstore must do: one suite (Run), a plain in-memory model of a
// volume with the journal that replication would keep (Model), against which volumes are compared, and a pool with
// several volumes and what they should be (World), for random runs and for crashes.
//
// It tests through the exported interface only, and knows nothing of how a medium stores what it stores.
package storetest

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// Entry is one log entry.
type Entry struct {
	Index uint64
	Ops   []block.Op

	stamp uint64 // of its first op; see stored
}

// stored is a block that was written. stamp tells one write from every other, also of the same contents: two states that
// have the same stamp for a block share it.
type stored struct {
	data  []byte
	stamp uint64
}

// contents are the blocks that do not read as zeros.
type contents map[uint64]stored

var zeros [block.Size]byte

func (c contents) block(n uint64) []byte {
	if b, ok := c[n]; ok {
		return b.data
	}
	return zeros[:]
}

// frozen is a snapshot.
type frozen struct {
	block.Snapshot
	blocks contents
	owner  *Model
	clones int // that were made of it and live, or were deleted and are needed by clones of their own
}

// Model is a volume as one would write it without any care for memory or crashes, and its journal.
type Model struct {
	Geometry block.Geometry
	Journal  []Entry

	version
	base   version // before the first entry: empty, what a clone began with, or what was imported
	origin *frozen // of a clone
	family *family
	// scattered: states that hold the same block need not share it (World.Overwrite).
	scattered bool
}

// version is all that entries change.
type version struct {
	capacity  block.Count // of base only
	blocks    contents
	snapshots []*frozen
	state     block.State
}

// family is the volumes that may share blocks: one and its clones, and theirs.
type family struct {
	members []*Model
	kept    []*frozen // deleted, but made clones of that live
	buried  []*Model  // deleted, but some of their snapshots are kept
}

// NewModel returns an empty volume.
func NewModel(g block.Geometry) *Model {
	m := &Model{Geometry: g, version: version{blocks: contents{}}, base: version{capacity: g.Capacity}, family: &family{}}
	m.family.members = []*Model{m}
	return m
}

// NewClone returns the model of a clone of one of the volume's snapshots.
func (m *Model) NewClone(id block.SnapshotID) *Model {
	s := m.find(id)
	s.clones++
	g := block.Geometry{Capacity: s.Capacity, LogicalBlockBytes: m.Geometry.LogicalBlockBytes}
	c := &Model{
		Geometry: g, version: version{blocks: maps.Clone(s.blocks)}, base: version{capacity: g.Capacity, blocks: s.blocks},
		origin: s, family: m.family,
	}
	m.family.members = append(m.family.members, c)
	return c
}

// Delete says that the volume has been deleted: what it shares with others may have become theirs alone.
func (m *Model) Delete() {
	f := m.family
	f.members = slices.DeleteFunc(f.members, func(o *Model) bool { return o == m })
	for _, s := range m.snapshots {
		f.keep(s)
	}
	f.buried = append(f.buried, m)
	f.settle()
}

// settle forgets deleted volumes that no clone needs any more, and what they needed themselves.
func (f *family) settle() {
	for again := true; again; {
		again = false
		for _, m := range f.buried {
			if slices.ContainsFunc(f.kept, func(s *frozen) bool { return s.owner == m }) {
				continue
			}
			f.buried = slices.DeleteFunc(f.buried, func(o *Model) bool { return o == m })
			if m.origin != nil {
				m.origin.clones--
				f.kept = slices.DeleteFunc(f.kept, func(s *frozen) bool { return s.clones == 0 })
			}
			again = true
			break
		}
	}
}

func (f *family) keep(s *frozen) {
	if s.clones > 0 {
		f.kept = append(f.kept, s)
	}
}

// find returns a snapshot, or nil.
func (m *Model) find(id block.SnapshotID) *frozen {
	for _, s := range m.snapshots {
		if s.ID == id {
			return s
		}
	}
	return nil
}

// Snapshots returns the snapshots, oldest first.
func (m *Model) Snapshots() []block.Snapshot {
	var all []block.Snapshot
	for _, s := range m.snapshots {
		all = append(all, s.Snapshot)
	}
	return all
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
func (m *Model) Block(n uint64) []byte { return m.blocks.block(n) }

// drawn counts block contents, snapshots and writes: no two are alike, in whichever volume.
var drawn atomic.Uint64

// Content returns n blocks that differ from every other, anywhere in them.
func (m *Model) Content(n int) []byte {
	b := make([]byte, n*block.Size) // at once: the race detector makes every large piece of memory dear
	for at := 0; at < len(b); at += block.Size {
		next := drawn.Add(1)
		for i := 0; i < block.Size; i += 8 {
			binary.LittleEndian.PutUint64(b[at+i:], next<<16|uint64(i))
		}
	}
	return b
}

// Write returns an OpWrite of n new blocks.
func (m *Model) Write(first, n int) block.Op {
	data := m.Content(n)
	return block.Op{Kind: block.OpWrite, Range: blocks(first, n), Data: data, Sums: block.AppendSums(nil, data)}
}

// Zero returns an OpZero of n blocks.
func (m *Model) Zero(first, n int) block.Op {
	return block.Op{Kind: block.OpZero, Range: blocks(first, n)}
}

// Fill returns an OpFill of n blocks with one new block.
func (m *Model) Fill(first, n int) block.Op {
	data := m.Content(1)
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

// Snapshot returns an OpSnapshot of a new one.
func (m *Model) Snapshot() block.Op { return block.SnapshotOp(NewSpec()) }

// NewSpec returns a snapshot that nobody has asked for yet.
func NewSpec() block.SnapshotSpec {
	next := drawn.Add(1)
	s := block.SnapshotSpec{Name: fmt.Sprint("snapshot ", next), Created: int64(next) * 1000}
	binary.BigEndian.PutUint64(s.ID[:], next*0x9e3779b97f4a7c15) // in no order
	s.ID[15] = 1
	return s
}

func blocks(first, n int) block.Range {
	return block.BytesRange(int64(first)*block.Size, int64(n)*block.Size)
}

// Commit adds an entry to the journal and applies it to the model.
func (m *Model) Commit(index uint64, ops []block.Op) {
	e := Entry{index, ops, drawn.Add(uint64(len(ops))) - uint64(len(ops)) + 1}
	m.Journal = append(m.Journal, e)
	m.run(e)
}

func (m *Model) run(e Entry) {
	for at, op := range e.Ops {
		first, n := uint64(op.Range.Start/block.SectorsPerBlock), uint64(op.Range.Count/block.SectorsPerBlock)
		stamp := e.stamp + uint64(at)
		switch op.Kind {
		case block.OpWrite:
			for i := range n {
				m.blocks[first+i] = stored{op.Data[i*block.Size : (i+1)*block.Size], stamp}
			}
		case block.OpFill:
			for i := range n {
				m.blocks[first+i] = stored{op.Data, stamp}
			}
		case block.OpZero:
			if n > uint64(len(m.blocks)) { // a large UNMAP of thin space
				maps.DeleteFunc(m.blocks, func(at uint64, _ stored) bool { return at >= first && at < first+n })
				continue
			}
			for i := range n {
				delete(m.blocks, first+i)
			}
		case block.OpGrow:
			m.Geometry.Capacity = max(m.Geometry.Capacity, op.Range.Count)
		case block.OpState:
			if op.StateVersion == m.state.Version {
				m.state = block.State{Version: m.state.Version + 1, Blob: op.Data}
			}
		default:
			m.runSnapshot(e.Index, op)
		}
	}
}

func (m *Model) runSnapshot(index uint64, op block.Op) {
	if op.Kind == block.OpSnapshot {
		spec, err := op.Snapshot()
		if err != nil {
			panic(err)
		}
		m.Freeze(block.Snapshot{SnapshotSpec: spec, Index: index, Capacity: m.Geometry.Capacity})
		return
	}
	id, err := op.SnapshotID()
	if err != nil {
		panic(err)
	}
	s := m.find(id)
	if s == nil {
		return
	}
	if op.Kind == block.OpRollback {
		m.blocks = maps.Clone(s.blocks)
		return
	}
	m.snapshots = slices.DeleteFunc(m.snapshots, func(o *frozen) bool { return o == s })
	if m.family != nil {
		m.family.keep(s)
	}
}

// Freeze makes the contents a snapshot, unless there is one with this ID or there are too many.
func (m *Model) Freeze(s block.Snapshot) {
	if m.find(s.ID) == nil && len(m.snapshots) < block.MaxSnapshots {
		m.snapshots = append(m.snapshots, &frozen{Snapshot: s, blocks: maps.Clone(m.blocks), owner: m})
	}
}

// Import changes the contents outside the log, as an import does.
func (m *Model) Import(ops []block.Op) {
	m.run(Entry{Ops: ops, stamp: drawn.Add(uint64(len(ops)+1)) - uint64(len(ops))})
}

// EndImport says that what was imported are the contents as of an index.
func (m *Model) EndImport(index uint64, state block.State) {
	m.state = state
	m.base = version{m.Geometry.Capacity, maps.Clone(m.blocks), slices.Clone(m.snapshots), state}
	m.Journal = []Entry{{Index: index}}
}

// At returns the volume as of an index. It belongs to no family.
func (m *Model) At(index uint64) *Model {
	then := &Model{Geometry: m.Geometry, version: m.base}
	then.Geometry.Capacity = m.base.capacity
	then.blocks = contents{}
	maps.Copy(then.blocks, m.base.blocks)
	then.snapshots = slices.Clone(m.base.snapshots)
	for _, e := range m.Journal {
		if e.Index > index {
			break
		}
		then.Journal = append(then.Journal, e)
		then.run(e)
	}
	return then
}

// Replay applies the journal after the volume's durable index, as replication does after a restart. What an entry needs is
// there again: at the latest when what deleted snapshots have left behind has been freed, as it had been the first time. room
// frees that in all volumes of the pool; nil: in this one.
func (m *Model) Replay(v *blockstore.Volume, room func() error) error {
	if room == nil {
		room = func() error { return MakeRoom(v) }
	}
	from := v.Durable()
	for _, e := range m.Journal {
		if e.Index <= from {
			continue
		}
		if err := applyMakingRoom(v, e, room); err != nil {
			return fmt.Errorf("replay %d: %w", e.Index, err)
		}
	}
	return nil
}
