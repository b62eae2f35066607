package storetest

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// Medium is a kind of medium to be tested.
type Medium struct {
	// Lasts: what was checkpointed is there after Close and after Crash.
	Lasts bool
	// Simulated: the medium itself allocates memory, so that of the volume cannot be counted.
	Simulated bool
	// New returns a machine with an empty pool of the given capacity.
	New func(t testing.TB, capacityBytes int64) Machine
}

// Machine is what a pool lies on.
type Machine interface {
	// Open opens the pool.
	Open() (*blockstore.Pool, error)
	// Crash gives up the pool that is open, without closing it. The next Open finds what a crash has left. seed chooses.
	Crash(seed uint64)
	// FlipBit inverts a bit of the medium, behind the back of the pool.
	FlipBit(off int64) error
}

// Run runs the suite.
func Run(t *testing.T, m Medium) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Medium)
	}{
		{"RandomSequencesMatchTheModel", testRandom},
		{"BadInputIsRefusedAndChangesNothing", testBadInput},
		{"OldEntriesChangeNothing", testOldEntries},
		{"ChangesPastTheLog", testUnlogged},
		{"UnalignedReads", testUnaligned},
		{"ReadersSeeOldOrNew", testReadersSeeOldOrNew},
		{"EverythingBesideApply", testConcurrent},
		{"FlippedBitIsReportedNeverReturned", testCorrupt},
		{"FullPoolChangesNothing", testFull},
		{"ExactSpaceIsEnough", testExactSpace},
		{"ChangedReportsWrittenAndFreedChunks", testChanged},
		{"ChunkInfoTellsWhatDiffers", testChunkInfo},
		{"ImportIsAllOrNothing", testImport},
		{"AllocatedIsBounded", testAllocatedIsBounded},
		{"GrowsUnderReaders", testGrow},
		{"Catalogue", testCatalogue},
		{"SteadyStateAllocatesNothing", testAllocations},
		{"ClosedRefusesEverything", testClosed},
		{"SnapshotOfEmptyVolume", testSnapshotOfEmpty},
		{"SnapshotKeepsWhatIsChangedAfterIt", testSnapshotKeeps},
		{"FirstWriteAfterSnapshotTakesOneChunk", testFirstWriteAfterSnapshot},
		{"BadSnapshotInputIsRefused", testSnapshotBadInput},
		{"AskingTwiceMakesOneSnapshot", testRepeatedSnapshot},
		{"SnapshotsAreLimited", testSnapshotLimit},
		{"ViewsEndWithTheirSnapshot", testViewsEnd},
		{"RollbackToOldAndNew", testRollback},
		{"ManySnapshotsLeaveNothingBehind", testManySnapshots},
		{"CloneErrors", testCloneErrors},
		{"CloneIsIndependentAndDurable", testClone},
		{"CloneOutlivesItsOrigin", testCloneOutlives},
		{"ClonesOfClones", testClonesOfClones},
		{"FullPoolWithSnapshots", testFullWithSnapshots},
		{"ReclaimComesToAnEnd", testReclaimRuns},
		{"SpaceCanBeCancelled", testSpaceCancelled},
		{"ClosedRefusesSnapshots", testSnapshotsClosed},
		{"OverwriteChangesOneState", testOverwrite},
		{"ImportKeepsSnapshots", testImportSnapshots},
		{"ImportCanBeAbandoned", testAbandonImport},
		{"ImportForgetsWhatWasBefore", testForgetBefore},
		{"EverythingBesideSnapshots", testConcurrentSnapshots},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, m) })
	}
}

const chunk = block.ChunkSize

// geometry of four chunks and a bit: the last chunk is cut off.
var geometry = block.Geometry{Capacity: block.CountOf(4*chunk + 3*block.Size), LogicalBlockBytes: 512}

func open(t testing.TB, m Machine) *blockstore.Pool {
	t.Helper()
	p, err := m.Open()
	must(t, err)
	t.Cleanup(func() {
		if err := p.Close(); err != nil && p.Failed() == nil {
			t.Errorf("close of the pool: %v", err)
		}
	})
	return p
}

func create(t testing.TB, p *blockstore.Pool, id string) *blockstore.Volume {
	t.Helper()
	v, err := p.Create(id, geometry)
	must(t, err)
	return v
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantError(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("%s: got error %v, want %v", what, err, want)
	}
}

// step applies an entry to both.
func step(t testing.TB, v *blockstore.Volume, m *Model, ops ...block.Op) {
	t.Helper()
	index := m.Last() + 1
	must(t, v.Apply(index, ops))
	m.Commit(index, ops)
}

func compare(t testing.TB, v *blockstore.Volume, m *Model) {
	t.Helper()
	must(t, m.Compare(v))
}

func testBadInput(t *testing.T, m Medium) {
	p := open(t, m.New(t, 8*chunk))
	v, model := create(t, p, "v"), NewModel(geometry)
	step(t, v, model, model.Write(0, 4), model.SetState(0, "x"))
	good := model.Write(0, 1)
	beyond := model.Write(model.Blocks()-1, 2)
	misaligned := good
	misaligned.Range.Start = 1
	short := good
	short.Data = short.Data[:block.Size-1]
	noSums := good
	noSums.Sums = nil
	fill := model.Fill(0, 2)
	fill.Data = nil
	huge := block.Op{Kind: block.OpZero, Range: block.Range{Start: ^block.Sector(7), Count: 16}}
	for name, bad := range map[string]block.Op{
		"beyond the end": beyond, "misaligned": misaligned, "short": short, "no sums": noSums, "fill": fill, "huge": huge,
		"unknown kind": {Kind: 99}, "no kind": {}, "growth from elsewhere": {Kind: block.OpGrow, Range: block.Range{Start: 8, Count: 1 << 20}},
		"growth beyond 16 TiB": {Kind: block.OpGrow, Range: block.Range{Count: block.MaxVolumeBytes/block.SectorSize + 8}},
		"large state":          {Kind: block.OpState, Data: make([]byte, block.MaxStateBytes+1)},
	} {
		if err := v.Apply(2, []block.Op{good, bad}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := v.Apply(block.NoIndex, nil); err == nil {
		t.Error("apply without index: no error")
	}
	wantError(t, "read beyond the end", v.ReadAt(block.Range{Start: block.Sector(geometry.Capacity), Count: 1}, make([]byte, 512)), block.ErrOutOfRange)
	if err := v.ReadAt(block.Range{Count: 2}, make([]byte, 512)); err == nil {
		t.Error("read into a short buffer: no error")
	}
	_, _, err := v.Allocated(block.Range{Start: block.Sector(geometry.Capacity) - 1, Count: 2})
	wantError(t, "allocated beyond the end", err, block.ErrOutOfRange)
	if _, _, err := v.Allocated(block.Range{Start: 8}); err == nil {
		t.Error("allocated in an empty range: no error")
	}
	wantError(t, "chunk beyond the end", v.ChunkInfo(v.Chunks(), new(blockstore.ChunkInfo)), block.ErrOutOfRange)
	if _, err := p.Create("bad", block.Geometry{Capacity: 7, LogicalBlockBytes: 512}); err == nil {
		t.Error("volume of 7 sectors: no error")
	}
	compare(t, v, model)
}

func testOldEntries(t *testing.T, m Medium) {
	v, model := create(t, open(t, m.New(t, 8*chunk)), "v"), NewModel(geometry)
	for range 3 {
		step(t, v, model, model.Write(0, 3), model.SetState(model.State().Version, "s"))
	}
	for _, e := range model.Journal {
		must(t, v.Apply(e.Index, e.Ops))
		compare(t, v, model) // after each: the last one would put things right
	}
	must(t, v.Apply(10, nil)) // gaps are entries of other kinds
	if v.Applied() != 10 {
		t.Errorf("applied %d, want 10", v.Applied())
	}
}

// testUnlogged: what is changed without an entry counts as part of the newest one; nothing that lasts is changed like that.
func testUnlogged(t *testing.T, m Medium) {
	v, model := create(t, open(t, m.New(t, 5*chunk)), "v"), NewModel(geometry)
	if v.Volatile() == m.Lasts {
		t.Fatalf("volatile is %v", v.Volatile())
	}
	op := []block.Op{model.Write(0, 1)}
	if v.ApplyUnlogged(op) == nil {
		t.Error("changed before the first entry")
	}
	compare(t, v, model)
	step(t, v, model, model.Write(64, 1))
	step(t, v, model, model.Write(128, 1))
	err := v.ApplyUnlogged(op)
	if m.Lasts {
		if err == nil {
			t.Error("changed what lasts")
		}
		compare(t, v, model)
		return
	}
	must(t, err)
	model.Commit(2, op)
	compare(t, v, model)
	if got := changed(t, v, 1); !slices.Equal(got, []int{0, 2}) {
		t.Errorf("changed since entry 1: chunks %v", got)
	}
	if got := changed(t, v, 2); len(got) > 0 {
		t.Errorf("changed since entry 2: chunks %v", got)
	}
	must(t, v.Apply(2, []block.Op{model.Write(0, 1)})) // an old one
	compare(t, v, model)
	step(t, v, model, model.Write(192, 1), model.Zero(0, 1), model.Snapshot())
	op = []block.Op{model.Write(192, 1)} // the snapshot keeps what was there
	must(t, v.ApplyUnlogged(op))
	model.Commit(3, op)
	compare(t, v, model)
	wantError(t, "more than there is room for", v.ApplyUnlogged([]block.Op{model.Write(192, 1), model.Write(0, 1), model.Write(64, 1)}), block.ErrNoSpace)
	compare(t, v, model)
}

func testUnaligned(t *testing.T, m Medium) {
	v, model := create(t, open(t, m.New(t, 8*chunk)), "v"), NewModel(geometry)
	// Blocks that are stored, zero, stored; over the border of a chunk; the next chunk not allocated.
	step(t, v, model, model.Write(60, 2), model.Write(63, 3), model.Fill(70, 2), model.Write(192, 1))
	all := make([]byte, geometry.Capacity.Bytes())
	must(t, v.ReadAt(block.Range{Count: geometry.Capacity}, all))
	for start := block.Sector(58 * 8); start < 74*8; start += 3 {
		for count := block.Count(1); count < 100; count += 7 {
			r := block.Range{Start: start, Count: count}
			got := bytes.Repeat([]byte{0xee}, int(r.Bytes()))
			must(t, v.ReadAt(r, got))
			if !bytes.Equal(got, all[r.Offset():r.Offset()+r.Bytes()]) {
				t.Fatalf("read of %v differs from the whole", r)
			}
			must(t, compareAllocated(v, geometry, model.blocks, r))
		}
	}
	compare(t, v, model)
}

func testCatalogue(t *testing.T, m Medium) {
	machine := m.New(t, 8*chunk)
	p := open(t, machine)
	v, model := create(t, p, "a"), NewModel(geometry)
	_, err := p.Create("a", geometry)
	wantError(t, "create again", err, blockstore.ErrExists)
	_, err = p.Open("a")
	wantError(t, "open again", err, blockstore.ErrInUse)
	wantError(t, "delete while open", p.Delete("a"), blockstore.ErrInUse)
	_, err = p.Open("b")
	wantError(t, "open what is not there", err, blockstore.ErrNotFound)
	wantError(t, "delete what is not there", p.Delete("b"), blockstore.ErrNotFound)
	if _, err := p.Create("", geometry); err == nil {
		t.Error("volume without a name: no error")
	}
	other, otherModel := create(t, p, "b"), NewModel(geometry)
	step(t, v, model, model.Write(0, 100))
	step(t, other, otherModel, otherModel.Write(50, 100))
	compare(t, v, model)
	compare(t, other, otherModel)

	must(t, v.Close())
	if m.Lasts {
		must(t, p.Close())
		p = open(t, machine)
		other, err = p.Open("b")
		must(t, err)
	}
	if ids, err := p.Volumes(); err != nil || len(ids) != 2 || ids[0] != "a" || ids[1] != "b" {
		t.Fatalf("volumes %v, %v", ids, err)
	}
	v, err = p.Open("a")
	must(t, err)
	if v.Geometry() != geometry {
		t.Errorf("geometry %v", v.Geometry())
	}
	compare(t, v, model)
	if got := v.Usage(); got.AllocatedBytes != 2*chunk || got.StoredBytes != 100*block.Size || got.LogicalBytes != geometry.Capacity.Bytes() {
		t.Errorf("usage %+v", got)
	}
	must(t, v.Close())
	must(t, p.Delete("a"))
	if got := p.Usage(); got.AllocatedBytes != 3*chunk || got.PendingFreeBytes != 0 || got.CapacityBytes != 8*chunk {
		t.Errorf("pool usage after delete %+v", got)
	}
	v = create(t, p, "a")
	compare(t, v, NewModel(geometry)) // nothing shines through
	compare(t, other, otherModel)
}

func testClosed(t *testing.T, m Medium) {
	p := open(t, m.New(t, 8*chunk))
	v, model := create(t, p, "v"), NewModel(geometry)
	step(t, v, model, model.Write(0, 1))
	must(t, v.Close())
	must(t, v.Close())
	wantError(t, "apply", v.Apply(2, nil), block.ErrClosed)
	wantError(t, "apply past the log", v.ApplyUnlogged(nil), block.ErrClosed)
	wantError(t, "read", v.ReadAt(block.Range{Count: 1}, make([]byte, 512)), block.ErrClosed)
	_, err := v.Checkpoint(t.Context())
	wantError(t, "checkpoint", err, block.ErrClosed)
	_, _, err = v.Allocated(block.Range{Count: 1})
	wantError(t, "allocated", err, block.ErrClosed)
	wantError(t, "import", v.BeginImport(t.Context()), block.ErrClosed)
	wantError(t, "chunk info", v.ChunkInfo(0, new(blockstore.ChunkInfo)), block.ErrClosed)
	wantError(t, "changed", v.Changed(0, func(block.Range) error { return nil }), block.ErrClosed)
	must(t, p.Close())
	must(t, p.Close())
	_, err = p.Open("v")
	wantError(t, "open in a closed pool", err, block.ErrClosed)
	_, err = p.Create("w", geometry)
	wantError(t, "create in a closed pool", err, block.ErrClosed)
}
