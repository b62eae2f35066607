package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// Compare returns an error unless the volume has the contents, snapshots, state and index of the model, and says so in
// every way it has of saying it.
func (m *Model) Compare(v *blockstore.Volume) error {
	if v.Applied() != m.Last() {
		return fmt.Errorf("applied %d, want %d", v.Applied(), m.Last())
	}
	if got := v.State(); got.Version != m.state.Version || !bytes.Equal(got.Blob, m.state.Blob) {
		return fmt.Errorf("state %d %q, want %d %q", got.Version, got.Blob, m.state.Version, m.state.Blob)
	}
	if err := m.CompareBlocks(v); err != nil {
		return err
	}
	if err := m.CompareSnapshots(v); err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(m.Last(), uint64(len(m.blocks))))
	if err := m.compareDiffs(v, rnd); err != nil {
		return err
	}
	if err := m.compareChanged(v, rnd.Uint64N(m.Last()+1)); err != nil {
		return err
	}
	return m.CompareSpace(v, false)
}

// CompareBlocks compares the live contents alone.
func (m *Model) CompareBlocks(v *blockstore.Volume) error {
	return compareReader(v, m.Geometry, m.blocks)
}

// CompareSnapshots compares the snapshots' list and contents.
func (m *Model) CompareSnapshots(v *blockstore.Volume) error {
	if got, want := v.Snapshots(), m.Snapshots(); !slices.Equal(got, want) {
		return fmt.Errorf("snapshots %+v, want %+v", got, want)
	}
	for i, s := range m.snapshots {
		w, err := v.View(s.ID)
		if err != nil {
			return fmt.Errorf("view of snapshot %d: %w", i, err)
		}
		if err := compareView(w, s, m.Geometry.LogicalBlockBytes); err != nil {
			return fmt.Errorf("snapshot %d of %d, of entry %d: %w", i, len(m.snapshots), s.Index, err)
		}
	}
	return nil
}

func compareView(w *blockstore.View, s *frozen, logicalBlockBytes int) error {
	if w.Snapshot() != s.Snapshot {
		return fmt.Errorf("view is of %+v, want %+v", w.Snapshot(), s.Snapshot)
	}
	return compareReader(w, block.Geometry{Capacity: s.Capacity, LogicalBlockBytes: logicalBlockBytes}, s.blocks)
}

// readBuffers are for reading everything, which thousands of crashes do over and over. It is no sync.Pool, for that drops things at
// random under the race detector, where making them anew costs more than reading.
var readBuffers = make(chan []byte, 8)

// readBuffer returns n bytes, which may hold anything. They can be given back to readBuffers.
func readBuffer(n int) []byte {
	var b []byte
	select {
	case b = <-readBuffers:
	default:
	}
	return slices.Grow(b[:0], n)[:n]
}

func compareReader(r blockstore.Reader, g block.Geometry, want contents) error {
	if r.Geometry() != g {
		return fmt.Errorf("geometry %v, want %v", r.Geometry(), g)
	}
	buf := readBuffer(int(g.Capacity.Bytes()))
	defer func() {
		select {
		case readBuffers <- buf:
		default:
		}
	}()
	if err := r.ReadAt(block.Range{Count: g.Capacity}, buf); err != nil {
		return err
	}
	for n := range uint64(g.Capacity / block.SectorsPerBlock) {
		if got := buf[n*block.Size : (n+1)*block.Size]; !bytes.Equal(got, want.block(n)) {
			return fmt.Errorf("block %d begins with %x, want %x", n, got[:8], want.block(n)[:8])
		}
	}
	if err := compareAllocated(r, g, want, block.Range{Count: g.Capacity}); err != nil {
		return err
	}
	return compareChunks(r, g, want)
}

// compareChunks compares what rebuilds and scrubs are told.
func compareChunks(r blockstore.Reader, g block.Geometry, want contents) error {
	size := int(g.Capacity / block.SectorsPerBlock)
	var info blockstore.ChunkInfo
	for c := 0; c*block.BlocksPerChunk < size; c++ {
		if err := r.ChunkInfo(uint32(c), &info); err != nil {
			return fmt.Errorf("chunk info %d: %w", c, err)
		}
		if c == size%7 { // one of them also with its data: that has been read already
			if bad, err := r.CheckChunk(uint32(c), &info); err != nil || bad != 0 {
				return fmt.Errorf("check of chunk %d: bad blocks %#x, %w", c, bad, err)
			}
			if err := compareRead(r, uint32(c), want); err != nil {
				return err
			}
		}
		for n := range block.BlocksPerChunk {
			b, ok := want[uint64(c*block.BlocksPerChunk+n)]
			sum := uint32(0)
			if ok {
				sum = block.Sum(b.data)
			}
			if info.Valid>>n&1 == 1 != ok || info.Sums[n] != sum {
				return fmt.Errorf("chunk %d, block %d: valid %#x, checksum %#x, want %t, %#x", c, n, info.Valid, info.Sums[n], ok, sum)
			}
		}
	}
	if err := r.ChunkInfo(uint32((size+block.BlocksPerChunk-1)/block.BlocksPerChunk), &info); !errors.Is(err, block.ErrOutOfRange) {
		return fmt.Errorf("chunk beyond the end: %w", err)
	}
	return nil
}

// compareRead compares what is passed on of every third block of a chunk, and that it is of those that are stored.
func compareRead(r blockstore.Reader, chunk uint32, want contents) (wrong error) {
	const some = 0x9249249249249249
	passed := uint64(0)
	var info blockstore.ChunkInfo
	bad, err := r.ReadChunk(chunk, some, &info, func(n int, data []byte) {
		at := uint64(chunk)*block.BlocksPerChunk + uint64(n)
		if passed>>n != 0 || !bytes.Equal(data, want.block(at)) {
			wrong = fmt.Errorf("block %d is passed on after %#x, and begins with %x, want %x", at, passed, data[:8], want.block(at)[:8])
		}
		passed |= 1 << n
	})
	if err != nil || bad != 0 || passed != info.Valid&some {
		return fmt.Errorf("blocks %#x of chunk %d are passed on of %#x, bad %#x, %w", passed, chunk, info.Valid, bad, err)
	}
	return wrong
}

// compareAllocated follows Allocated from one change to the next through r, which may begin and end anywhere.
func compareAllocated(v blockstore.Reader, g block.Geometry, want contents, r block.Range) error {
	size := uint64(g.Capacity / block.SectorsPerBlock)
	for r.Count > 0 {
		first := uint64(r.Start / block.SectorsPerBlock)
		_, stored := want[first]
		end := first + 1
		for ; end < size; end++ {
			if _, other := want[end]; other != stored {
				break
			}
		}
		count := min(r.Count, block.Count(end*block.SectorsPerBlock)-block.Count(r.Start))
		allocated, n, err := v.Allocated(r)
		if err != nil || allocated != stored || n != count {
			return fmt.Errorf("from sector %d on: allocated %t for %d sectors (%w), want %t for %d", r.Start, allocated, n, err, stored, count)
		}
		r = block.Range{Start: r.Start + block.Sector(n), Count: r.Count - n}
	}
	return nil
}

// reported collects the blocks of ranges, which must be whole, ascending and within the capacity.
func reported(capacity block.Count, walk func(fn func(block.Range) error) error) (map[uint64]bool, error) {
	got := map[uint64]bool{}
	last := block.Sector(0)
	err := walk(func(r block.Range) error {
		if !r.Aligned() || r.Count == 0 || r.Start < last || r.Check(capacity) != nil {
			return fmt.Errorf("range %v after sector %d, of %d", r, last, capacity)
		}
		last = r.End()
		for s := r.Start; s < r.End(); s += block.SectorsPerBlock {
			got[uint64(s/block.SectorsPerBlock)] = true
		}
		return nil
	})
	return got, err
}

// compareDiffs compares the differences between neighbours in time, against nothing, and between some others.
func (m *Model) compareDiffs(v *blockstore.Volume, rnd *rand.Rand) error {
	live := &frozen{blocks: m.blocks, Snapshot: block.Snapshot{Capacity: m.Geometry.Capacity}}
	states := append([]*frozen{{}}, m.snapshots...)
	states = append(states, live)
	for i := 1; i < len(states); i++ {
		if err := m.compareDiff(v, states[i-1], states[i]); err != nil {
			return err
		}
	}
	for range 3 { // also backwards in time, and of a state against itself
		if err := m.compareDiff(v, states[rnd.IntN(len(states)-1)], states[1+rnd.IntN(len(states)-1)]); err != nil {
			return err
		}
	}
	id := NewSpec().ID
	nothing := func(block.Range) error { return errors.New("called") }
	for _, err := range []error{v.Diff(id, block.SnapshotID{}, nothing), v.Diff(block.SnapshotID{}, id, nothing)} {
		if !errors.Is(err, block.ErrNoSnapshot) {
			return fmt.Errorf("difference to a snapshot that is not there: %w", err)
		}
	}
	return nil
}

func (m *Model) compareDiff(v *blockstore.Volume, from, to *frozen) error {
	capacity := max(from.Capacity, to.Capacity)
	got, err := reported(capacity, func(fn func(block.Range) error) error { return v.Diff(from.ID, to.ID, fn) })
	if err != nil {
		return fmt.Errorf("difference from entry %d to %d: %w", from.Index, to.Index, err)
	}
	for n := range uint64(capacity / block.SectorsPerBlock) {
		a, b := from.blocks[n], to.blocks[n]
		differs := !bytes.Equal(from.blocks.block(n), to.blocks.block(n))
		if differs && !got[n] || got[n] && a.stamp == b.stamp && !m.scattered {
			return fmt.Errorf("difference from the snapshot of entry %d to that of %d: block %d: reported %t, written anew %t, differs %t",
				from.Index, to.Index, n, got[n], a.stamp != b.stamp, differs)
		}
	}
	return nil
}

// compareChanged: whatever differs from what it was at index since has been reported as changed since.
func (m *Model) compareChanged(v *blockstore.Volume, since uint64) error {
	then := m.At(since)
	got, err := reported(m.Geometry.Capacity, func(fn func(block.Range) error) error { return v.Changed(since, fn) })
	if err != nil {
		return fmt.Errorf("changed since %d: %w", since, err)
	}
	for n := range uint64(m.Blocks()) {
		if then.blocks[n].stamp != m.blocks[n].stamp && !got[n] {
			return fmt.Errorf("block %d is another than at %d, and is not reported as changed", n, since)
		}
	}
	return nil
}

// CompareSpace compares what Space says. exact: nothing waits for Reclaim, in the volume or those it shares blocks with.
func (m *Model) CompareSpace(v *blockstore.Volume, exact bool) error {
	got, err := v.Space(context.Background())
	if err != nil {
		return fmt.Errorf("space: %w", err)
	}
	if len(got.Snapshots) != len(m.snapshots) {
		return fmt.Errorf("space of %d snapshots, want %d", len(got.Snapshots), len(m.snapshots))
	}
	if got.KeptBytes < 0 || exact && len(m.family.kept) == 0 && got.KeptBytes != 0 {
		return fmt.Errorf("%d bytes are kept for deleted snapshots, want none", got.KeptBytes)
	}
	users, withKept := m.family.users()
	check := func(s blockstore.StateSpace, of block.Snapshot, capacity block.Count, blocks contents, cloned bool) error {
		var least, most int64
		for n, b := range blocks {
			if users[use{n, b.stamp}] == 1 {
				most += block.Size
			}
			if withKept[use{n, b.stamp}] == 1 {
				least += block.Size
			}
		}
		if cloned {
			least, most = 0, 0 // deleting it frees nothing, whatever the clones have written over
		}
		if s.Snapshot != of || s.LogicalBytes != capacity.Bytes() || s.StoredBytes != int64(len(blocks))*block.Size {
			return fmt.Errorf("space %+v, want %d bytes, of which %d blocks stored, of %+v", s, capacity.Bytes(), len(blocks), of)
		}
		if s.ExclusiveBytes > most && !m.scattered || s.ExclusiveBytes < 0 || exact && s.ExclusiveBytes < least {
			return fmt.Errorf("%d bytes are its own, want %d to %d, of %+v", s.ExclusiveBytes, least, most, of)
		}
		return nil
	}
	for i, s := range m.snapshots {
		if err := check(got.Snapshots[i], s.Snapshot, s.Capacity, s.blocks, s.clones > 0); err != nil {
			return fmt.Errorf("snapshot %d: %w", i, err)
		}
	}
	return check(got.Live, block.Snapshot{}, m.Geometry.Capacity, m.blocks, false)
}

type use struct{ block, stamp uint64 }

// users counts the states that have a block, without and with those deleted that clones may need.
func (f *family) users() (users, withKept map[use]int) {
	users, withKept = map[use]int{}, map[use]int{}
	count := func(blocks contents, kept bool) {
		for n, b := range blocks {
			withKept[use{n, b.stamp}]++
			if !kept {
				users[use{n, b.stamp}]++
			}
		}
	}
	for _, m := range f.members {
		count(m.blocks, false)
		for _, s := range m.snapshots {
			count(s.blocks, false)
		}
	}
	for _, s := range f.kept {
		count(s.blocks, true)
	}
	return users, withKept
}

// CompareOrCorrupt is for a volume whose log has not been replayed. Its size, state and snapshots are those of its index,
// and the snapshots' contents too: nothing has been written over what a checkpoint has made durable of them. Every block of
// the live contents must be one that the journal has put there once, or zeros, or be reported corrupt.
func (m *Model) CompareOrCorrupt(v *blockstore.Volume) error {
	then := m.At(v.Durable())
	if v.Geometry() != then.Geometry {
		return fmt.Errorf("geometry %v, want that of entry %d, %v", v.Geometry(), v.Durable(), then.Geometry)
	}
	if got := v.State(); got.Version != then.state.Version || !bytes.Equal(got.Blob, then.state.Blob) {
		return fmt.Errorf("state %d %q, want that of entry %d, %d %q", got.Version, got.Blob, v.Durable(), then.state.Version, then.state.Blob)
	}
	if err := then.CompareSnapshots(v); err != nil {
		return fmt.Errorf("as of %d: %w", v.Durable(), err)
	}
	return m.CompareEver(v, then.Geometry.Capacity)
}

// CompareEver returns an error if a block reads as something that was never there; being reported corrupt is no error.
func (m *Model) CompareEver(r blockstore.Reader, capacity block.Count) error {
	ever := map[uint64][][]byte{}
	for n, b := range m.base.blocks {
		ever[n] = append(ever[n], b.data)
	}
	for _, s := range m.base.snapshots { // a rollback brings them back
		for n, b := range s.blocks {
			ever[n] = append(ever[n], b.data)
		}
	}
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
	return eachBlockOrCorrupt(r, capacity, func(n uint64, got []byte) bool {
		return bytes.Equal(got, zeros[:]) || slices.ContainsFunc(ever[n], func(b []byte) bool { return bytes.Equal(got, b) })
	})
}

// CompareRightOrCorrupt is for a medium that has rotted: every block is right or reported corrupt.
func (m *Model) CompareRightOrCorrupt(v *blockstore.Volume) error {
	if got, want := v.Snapshots(), m.Snapshots(); !slices.Equal(got, want) {
		return fmt.Errorf("snapshots %+v, want %+v", got, want)
	}
	right := func(blocks contents) func(uint64, []byte) bool {
		return func(n uint64, got []byte) bool { return bytes.Equal(got, blocks.block(n)) }
	}
	for _, s := range m.snapshots {
		w, err := v.View(s.ID)
		if err != nil {
			return err
		}
		if err := eachBlockOrCorrupt(w, s.Capacity, right(s.blocks)); err != nil {
			return fmt.Errorf("snapshot of entry %d: %w", s.Index, err)
		}
	}
	return eachBlockOrCorrupt(v, m.Geometry.Capacity, right(m.blocks))
}

func eachBlockOrCorrupt(r blockstore.Reader, capacity block.Count, good func(n uint64, got []byte) bool) error {
	buf := make([]byte, block.Size)
	for n := range uint64(capacity / block.SectorsPerBlock) {
		err := r.ReadAt(blocks(int(n), 1), buf)
		if corrupt := (*block.CorruptError)(nil); errors.As(err, &corrupt) {
			if corrupt.Range.Count > 0 && !corrupt.Range.Overlaps(blocks(int(n), 1)) {
				return fmt.Errorf("read of block %d reports corruption of %v", n, corrupt.Range)
			}
			continue
		}
		if err != nil {
			return err
		}
		if !good(n, buf) {
			return fmt.Errorf("block %d begins with %x, which is wrong", n, buf[:8])
		}
	}
	return nil
}
