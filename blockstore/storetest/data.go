package storetest

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// testReadersSeeOldOrNew reads two blocks while they are overwritten, over and over. A mixture would not match its
// checksum or not be uniform.
func testReadersSeeOldOrNew(t *testing.T, m Medium) {
	v := create(t, open(t, m.New(t, 8*chunk)), "v")
	const versions = 400
	entry := func(version int) []block.Op {
		data := bytes.Repeat([]byte{byte(version), byte(version >> 8)}, block.Size)
		return []block.Op{{Kind: block.OpWrite, Range: blocks(63, 2), Data: data, Sums: block.AppendSums(nil, data)}}
	}
	must(t, v.Apply(1, entry(1)))
	var readers sync.WaitGroup
	done := make(chan struct{})
	for range 3 {
		readers.Go(func() {
			buf := make([]byte, 2*block.Size)
			for {
				before := v.Applied()
				if err := v.ReadAt(blocks(63, 2), buf); err != nil {
					t.Error(err)
					return
				}
				for half := range 2 {
					b := buf[half*block.Size : (half+1)*block.Size]
					version := uint64(b[0]) | uint64(b[1])<<8
					if !bytes.Equal(b, bytes.Repeat(b[:2], block.Size/2)) {
						t.Errorf("a mixture of %d and others", version)
						return
					}
					// No older than what was applied before the read began.
					if version < before {
						t.Errorf("version %d read after %d was applied", version, before)
						return
					}
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for version := 2; version <= versions; version++ {
		must(t, v.Apply(uint64(version), entry(version)))
		if version%100 == 0 {
			_, err := v.Checkpoint(t.Context())
			must(t, err)
		}
	}
	close(done)
	readers.Wait()
}

func testCorrupt(t *testing.T, m Medium) {
	machine := m.New(t, 8*chunk)
	p := open(t, machine)
	v, model := create(t, p, "v"), NewModel(geometry)
	step(t, v, model, model.Write(0, 4), model.Fill(64, 64))
	var info blockstore.ChunkInfo
	must(t, v.ChunkInfo(1, &info))
	for _, n := range []int{0, 7, 63} { // blocks of chunk 1
		off, _, _, err := v.Locate(block.SnapshotID{}, block.Sector(64+n)*8)
		must(t, err)
		off += 1234
		must(t, machine.FlipBit(off))
		for _, r := range []block.Range{
			blocks(64+n, 1),
			{Start: block.Sector(64+n) * 8, Count: 1},
			{Count: geometry.Capacity},
		} {
			buf := bytes.Repeat([]byte{0xee}, int(r.Bytes()))
			err := v.ReadAt(r, buf)
			var corrupt *block.CorruptError
			if !errors.As(err, &corrupt) || corrupt.Range != blocks(64+n, 1) {
				t.Fatalf("read of %v: got error %v, want corruption of block %d", r, err, 64+n)
			}
			if !bytes.Equal(buf, make([]byte, len(buf))) {
				t.Fatalf("read of %v returned data with the error", r)
			}
		}
		bad, err := v.CheckChunk(1, &info)
		if err != nil || bad != 1<<n {
			t.Fatalf("CheckChunk: %#x, %v, want bit %d", bad, err, n)
		}
		passed := uint64(0)
		bad, err = v.ReadChunk(1, ^uint64(1), &info, func(n int, _ []byte) { passed |= 1 << n })
		if err != nil || bad != 1<<n&^1 || passed != ^uint64(1)&^bad {
			t.Fatalf("ReadChunk: %#x bad, %#x passed on, %v, want bit %d", bad, passed, err, n)
		}
		must(t, v.ReadAt(blocks(65, 1), make([]byte, block.Size))) // its neighbours are served
		step(t, v, model, model.Write(64+n, 1))                    // and rewriting it heals it
		compare(t, v, model)
	}
	must(t, p.Failed())
}

func testFull(t *testing.T, m Medium) {
	p := open(t, m.New(t, 5*chunk))
	a, modelA := create(t, p, "a"), NewModel(geometry)
	b, modelB := create(t, p, "b"), NewModel(geometry)
	step(t, a, modelA, modelA.Write(0, 1), modelA.Write(64, 1), modelA.Write(128, 1))
	step(t, b, modelB, modelB.Write(0, 1), modelB.Write(64, 1))
	if got := p.Usage().FreeBytes(); got != 0 {
		t.Fatalf("%d bytes free, want none", got)
	}
	// The first op needs no space, the second does: neither may have happened.
	wantError(t, "write", b.Apply(2, []block.Op{modelB.Write(0, 1), modelB.SetState(0, "s"), modelB.Write(128, 1)}), block.ErrNoSpace)
	wantError(t, "fill", b.Apply(2, []block.Op{modelB.Fill(100, 100)}), block.ErrNoSpace)
	compare(t, b, modelB)
	step(t, b, modelB, modelB.Write(0, 128), modelB.Zero(5, 1)) // overwriting works
	step(t, a, modelA, modelA.Zero(0, 64))
	if !m.Lasts {
		step(t, b, modelB, modelB.Write(128, 1))
		compare(t, b, modelB)
		return
	}
	if got := p.Usage(); got.FreeBytes() != 0 || got.PendingFreeBytes != chunk {
		t.Fatalf("usage before the checkpoint: %+v", got)
	}
	wantError(t, "write before the checkpoint", b.Apply(3, []block.Op{modelB.Write(128, 1)}), block.ErrNoSpace)
	_, err := a.Checkpoint(t.Context())
	must(t, err)
	if got := p.Usage(); got.FreeBytes() != chunk || got.PendingFreeBytes != 0 {
		t.Fatalf("usage after the checkpoint: %+v", got)
	}
	step(t, b, modelB, modelB.Write(128, 1))
	compare(t, a, modelA)
	compare(t, b, modelB)
}

// testExactSpace: an entry whose ops share new chunks is not refused for counting them twice.
func testExactSpace(t *testing.T, m Medium) {
	v, model := create(t, open(t, m.New(t, 2*chunk)), "v"), NewModel(geometry)
	step(t, v, model, model.Write(0, 1), model.Write(1, 1), model.Zero(9, 1), model.Write(64, 1), model.Fill(65, 3), model.Zero(192, 64))
	compare(t, v, model)
	wantError(t, "one more", v.Apply(2, []block.Op{model.Write(128, 1)}), block.ErrNoSpace)
	step(t, v, model, model.Zero(1, 62), model.Write(1, 1), model.Write(70, 5))
	compare(t, v, model)
}

// testAllocatedIsBounded walks a thin volume of 16 TiB: in few calls where there is nothing, none of which does unbounded work.
func testAllocatedIsBounded(t *testing.T, m Medium) {
	const size = block.MaxVolumeBytes
	p := open(t, m.New(t, 8*chunk))
	v, err := p.Create("large", block.Geometry{Capacity: block.CountOf(size), LogicalBlockBytes: 512})
	must(t, err)
	model := NewModel(v.Geometry())
	at := []int64{size / 3 / block.Size, size/block.Size - 1}
	for _, n := range at {
		step(t, v, model, model.Write(int(n), 1))
	}
	var found []int64
	calls := 0
	for r := (block.Range{Count: block.CountOf(size)}); r.Count > 0; calls++ {
		allocated, n, err := v.Allocated(r)
		must(t, err)
		if n == 0 || n > r.Count || allocated && n != block.SectorsPerBlock {
			t.Fatalf("from sector %d on: allocated %t for %d of %d sectors", r.Start, allocated, n, r.Count)
		}
		if allocated {
			found = append(found, r.Offset()/block.Size)
		}
		r = block.Range{Start: r.Start + block.Sector(n), Count: r.Count - n}
	}
	if !slices.Equal(found, at) || calls < 10 || calls > 40 {
		t.Errorf("found blocks %v in %d calls, want %v in about 20", found, calls, at)
	}
}

func testAllocations(t *testing.T, m Medium) {
	v, model := create(t, open(t, m.New(t, 24*chunk)), "v"), NewModel(geometry)
	ops := []block.Op{model.Write(3, 1), model.Write(60, 8), model.Fill(128, 16), model.Zero(129, 1)}
	index := uint64(1)
	must(t, v.Apply(index, ops))
	buf := make([]byte, 9*block.Size)
	read := func(r block.Range) { must(t, v.ReadAt(r, buf[:r.Bytes()])) }
	if got := testing.AllocsPerRun(100, func() {
		index++
		must(t, v.Apply(index, ops[:3]))
		read(blocks(3, 1))
		read(blocks(60, 8))
		read(block.Range{Start: 60*8 + 1, Count: 30})
	}); got != 0 && !RaceEnabled && !m.Simulated {
		t.Errorf("%v allocations per entry and reads, want none", got)
	}

	// The same with more layers in the chunk than a volume usually has, of the live volume and of a snapshot.
	var oldest block.SnapshotID
	for i := range 12 {
		spec := NewSpec()
		if i == 0 {
			oldest = spec.ID
		}
		index++
		must(t, v.Apply(index, []block.Op{block.SnapshotOp(spec), ops[0], model.Write(i, 1), model.Zero(20+i, 1)}))
	}
	view, err := v.View(oldest)
	must(t, err)
	overwrite, several := ops[:1], []block.Op{ops[0], model.Write(2, 3)} // of what the newest epoch has, and of what it shares and has
	index++
	must(t, v.Apply(index, several))
	if got := testing.AllocsPerRun(100, func() {
		index++
		must(t, v.Apply(index, overwrite))
		index++
		must(t, v.Apply(index, several))
		read(blocks(3, 1))
		read(blocks(0, 9))
		must(t, view.ReadAt(blocks(3, 1), buf[:block.Size]))
	}); got != 0 && !RaceEnabled && !m.Simulated {
		t.Errorf("with snapshots: %v allocations per two entries and reads, want none", got)
	}
}

// testGrow makes a volume larger, over the border of a page of the map, while it is read, and crashes before and after the
// checkpoint that covers it.
func testGrow(t *testing.T, m Medium) {
	machine := m.New(t, 16*chunk)
	p := open(t, machine)
	v, model := create(t, p, "v"), NewModel(geometry)
	step(t, v, model, model.Write(0, 200))
	_, err := v.Checkpoint(t.Context())
	must(t, err)
	done := make(chan struct{})
	var readers sync.WaitGroup
	readers.Go(func() {
		for {
			n := int(v.Geometry().Capacity / block.SectorsPerBlock) // whatever it is, it can be read
			if err := v.ReadAt(blocks(n-1, 1), make([]byte, block.Size)); err != nil {
				t.Errorf("last block of %d: %v", n, err)
				return
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
	const page = 1024 * block.BlocksPerChunk
	for _, n := range []int{1, block.BlocksPerChunk, page, 3 * page} {
		step(t, v, model, model.Grow(n))
		step(t, v, model, model.Write(model.Blocks()-2, 2))
		if v.Geometry() != model.Geometry {
			t.Fatalf("geometry %v, want %v", v.Geometry(), model.Geometry)
		}
	}
	step(t, v, model, block.Op{Kind: block.OpGrow, Range: block.Range{Count: geometry.Capacity}}) // smaller: nothing
	close(done)
	readers.Wait()
	verify := func(v *blockstore.Volume) {
		t.Helper()
		if v.Geometry() != model.Geometry {
			t.Errorf("geometry %v, want %v", v.Geometry(), model.Geometry)
		}
		buf := make([]byte, block.Size)
		for _, n := range []int{0, 199, 200, model.Blocks() - 2, model.Blocks() - 1} {
			must(t, v.ReadAt(blocks(n, 1), buf))
			if !bytes.Equal(buf, model.Block(uint64(n))) {
				t.Errorf("block %d begins with %x", n, buf[:8])
			}
		}
	}
	verify(v)
	if !m.Lasts {
		return
	}
	for _, checkpointed := range []bool{false, true} {
		if checkpointed {
			_, err := v.Checkpoint(t.Context())
			must(t, err)
		}
		machine.Crash(1)
		p = open(t, machine)
		v, err = p.Open("v")
		must(t, err)
		if want := model.Geometry; checkpointed && v.Geometry() != want {
			t.Errorf("after the checkpoint and a crash: geometry %v, want %v", v.Geometry(), want)
		}
		must(t, model.Replay(v, nil))
		verify(v)
	}
}
