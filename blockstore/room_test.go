package blockstore

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs/crashdev"
)

// roomyVolume is a volume of 64 GiB in a pool of 64 MiB, on a simulated medium.
func roomyVolume(t *testing.T) (*Volume, PoolConfig) {
	t.Helper()
	const capacity = 64 << 20
	cfg := PoolConfig{Media: MediaRAM, CapacityBytes: capacity, Device: crashdev.New(MediumBytes(capacity), crashdev.NewPower(-1))}
	p, err := OpenPool(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	v, err := p.Create("v", block.Geometry{Capacity: block.CountOf(64 << 30), LogicalBlockBytes: 512})
	if err != nil {
		t.Fatal(err)
	}
	return v, cfg
}

func oneBlockAt(off int64) []block.Op {
	data := make([]byte, block.Size)
	data[0] = 1
	return []block.Op{{Kind: block.OpWrite, Range: block.BytesRange(off, block.Size), Data: data, Sums: block.AppendSums(nil, data)}}
}

// Writes that are spread so thinly that each takes a page of metadata, too, are refused before they are on their way to any copy. What has been
// promised is always carried out, and so is everything that takes no chunk.
func TestRoomForMetadataIsPromisedToo(t *testing.T) {
	v, _ := roomyVolume(t)
	index := uint64(0)
	apply := func(ops ...block.Op) {
		t.Helper()
		index++
		if err := v.Apply(index, ops); err != nil {
			t.Fatalf("entry %d: %v", index, err)
		}
	}
	written := int64(0)
	for {
		ops := oneBlockAt(written * 32 << 20)
		need := v.Needs(ops)
		if need != block.ChunkSize {
			t.Fatalf("block %d needs %d bytes", written, need)
		}
		err := v.Promise(need)
		if errors.Is(err, block.ErrNoSpace) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		apply(ops...)
		if err := v.Promise(-need); err != nil {
			t.Fatal(err)
		}
		if written++; written > 256 {
			t.Fatal("more than there are chunks")
		}
	}
	if free := v.FreeBytes(); written < 64 || free < 32<<20 {
		t.Errorf("refused after %d blocks, with %d bytes free", written, free)
	}
	apply(oneBlockAt(0)...)
	// A rebuild may go on to where the copy is that it is made from, which snapshots have brought further.
	rebuilt, err := v.pool.Create("rebuilt", block.Geometry{Capacity: block.CountOf(64 << 20), LogicalBlockBytes: 512})
	if err != nil {
		t.Fatal(err)
	}
	if err := rebuilt.BeginImport(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := rebuilt.Import(oneBlockAt(0)); err != nil {
		t.Errorf("a rebuild: %v", err)
	}
	for n := range 20 {
		apply(block.SnapshotOp(block.SnapshotSpec{ID: block.SnapshotID{byte(n + 1)}, Name: "s"}))
	}
	for n := range written {
		apply(block.Op{Kind: block.OpZero, Range: block.BytesRange(n*32<<20, block.ChunkSize)})
	}
	if _, err := v.Checkpoint(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// A rebuild takes nothing of what writes have been promised.
func TestImportLeavesWhatIsPromised(t *testing.T) {
	v, _ := roomyVolume(t)
	o, err := v.pool.Create("o", block.Geometry{Capacity: block.CountOf(64 << 20), LogicalBlockBytes: 512})
	if err != nil {
		t.Fatal(err)
	}
	index := uint64(0)
	allocate := func() {
		t.Helper()
		if err := o.Apply(index+1, oneBlockAt(int64(index)*block.ChunkSize)); err != nil {
			t.Fatalf("chunk %d: %v", index, err)
		}
		index++
	}
	for o.FreeBytes() > 54*block.ChunkSize {
		allocate()
	}
	if err := o.Promise(50 * block.ChunkSize); err != nil {
		t.Fatal(err)
	}
	if err := v.BeginImport(t.Context()); err != nil {
		t.Fatal(err)
	}
	imported := int64(0)
	for ; ; imported++ {
		if err = v.Import(oneBlockAt(imported * block.ChunkSize)); err != nil {
			break
		}
	}
	if !errors.Is(err, block.ErrNoSpace) || imported != 4 {
		t.Errorf("%d chunks imported, then %v", imported, err)
	}
	for range 50 {
		allocate()
	}
}

// What makes the map larger without taking a chunk (zeros over what a clone's origin or a snapshot holds, snapshots) is foreseen, too: whatever has
// been promised is carried out, in any order, and refused is only what would go beyond the bounds.
func TestMetadataWithoutAChunkIsPromisedToo(t *testing.T) {
	const leaves, step = 50, 32 << 20
	for seed := range uint64(20) {
		origin, _ := roomyVolume(t)
		p := origin.pool
		for n := range int64(leaves) {
			if err := origin.Apply(uint64(n)+1, oneBlockAt(n*step)); err != nil {
				t.Fatal(err)
			}
		}
		if err := origin.Apply(leaves+1, []block.Op{block.SnapshotOp(block.SnapshotSpec{ID: block.SnapshotID{1}, Name: "s"})}); err != nil {
			t.Fatal(err)
		}
		var clones [2]*Volume
		for i, name := range []string{"c", "d"} {
			var err error
			if clones[i], err = p.Clone(name, "v", block.SnapshotID{1}); err != nil {
				t.Fatal(err)
			}
		}
		rnd := rand.New(rand.NewPCG(seed, 1))
		type promised struct {
			v           *Volume
			ops         []block.Op
			need, pages int64
		}
		var onTheirWay []promised
		refused, grew := 0, 0
		apply := func() {
			t.Helper()
			rnd.Shuffle(len(onTheirWay), func(i, j int) { onTheirWay[i], onTheirWay[j] = onTheirWay[j], onTheirWay[i] })
			for _, e := range onTheirWay {
				before := p.pages.demand.Load()
				if err := e.v.Apply(e.v.Applied()+1, e.ops); err != nil {
					t.Fatalf("seed %d, kind %d, for which %d bytes and %d pages were promised: %v", seed, e.ops[0].Kind, e.need, e.pages, err)
				}
				if e.need == 0 && p.pages.demand.Load() > before {
					grew++
				}
				if err := errors.Join(e.v.Promise(-e.need), e.v.PromiseMetadata(-e.pages)); err != nil {
					t.Fatal(err)
				}
			}
			onTheirWay = onTheirWay[:0]
		}
		for n := range 400 {
			v, at := clones[rnd.IntN(2)], rnd.Int64N(leaves)*step
			ops := []block.Op{{Kind: block.OpZero, Range: block.BytesRange(at, (1+rnd.Int64N(6))*step)}}
			switch rnd.IntN(10) {
			case 0:
				ops = []block.Op{block.SnapshotOp(block.SnapshotSpec{ID: block.SnapshotID{2, byte(n), byte(n >> 8)}, Name: "s"})}
			case 1, 2, 3:
				ops = oneBlockAt(at + rnd.Int64N(64)*block.Size)
			}
			e := promised{v, ops, v.Needs(ops), v.NeedsMetadata(ops, true)}
			if v.NeedsMetadata(ops, false) < e.pages {
				t.Fatalf("kind %d: at first sight less than the %d pages in truth", ops[0].Kind, e.pages)
			}
			err := v.Promise(e.need)
			if err == nil {
				if err = v.PromiseMetadata(e.pages); err != nil {
					_ = v.Promise(-e.need)
				}
			}
			switch {
			case errors.Is(err, block.ErrNoSpace):
				refused++
			case err != nil:
				t.Fatal(err)
			default:
				onTheirWay = append(onTheirWay, e)
			}
			if len(onTheirWay) > rnd.IntN(12) {
				apply()
			}
		}
		apply()
		if room := clones[0].MetadataRoom(); refused == 0 || grew == 0 || room > 4 {
			t.Errorf("seed %d: %d refused, %d times the map took a page without a chunk, room for %d pages is left", seed, refused, grew, room)
		}
		for _, v := range clones {
			if _, err := v.Checkpoint(context.Background()); err != nil {
				t.Error(err)
			}
		}
	}
}
