package blockstore_test

import (
	"errors"
	"syscall"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/blockstore/storetest"
	"sanctuary/blockstore/vfs/crashdev"
)

// openAll opens the pool and compares everything in it, after which all checksums are cached.
func (r *rotten) openAll(t *testing.T, machine *simulated) (volumes []*blockstore.Volume) {
	t.Helper()
	pool, err := machine.Open()
	must(t, err)
	for _, x := range r.world.Members {
		v, err := pool.Open(x.Name)
		must(t, err)
		must(t, x.Model.CompareBlocks(v))
		must(t, x.Model.CompareSnapshots(v))
		volumes = append(volumes, v)
	}
	return volumes
}

func checkMaps(t *testing.T, volumes []*blockstore.Volume) (damaged int) {
	t.Helper()
	for _, v := range volumes {
		for c := (blockstore.MapCheck{}); int64(c.Next)*block.ChunkSize < v.Geometry().Capacity.Bytes(); damaged += c.Damaged {
			var err error
			c, err = v.CheckMap(c.Next)
			must(t, err)
		}
	}
	return damaged
}

// Whatever rots besides data while the pool is open is written anew before it is missed: after the check a power cut finds everything.
func TestWhatRotsBesidesDataIsWrittenAnew(t *testing.T) {
	r := newRotten(t)
	every, found := 1, 0
	if storetest.RaceEnabled {
		every = 3
	}
	for i, off := range r.other {
		if i%every != 0 {
			continue
		}
		machine := *r.machine
		machine.dev = machine.dev.Clone(crashdev.NewPower(-1))
		volumes := r.openAll(t, &machine)
		at := off + int64(i*97%block.Size)
		machine.dev.FlipBit(at, uint(i%8))
		machine.rotten = true
		damaged := checkMaps(t, volumes)
		found += damaged
		if again := checkMaps(t, volumes); again != 0 || damaged > 1 {
			t.Errorf("byte %d: %d damaged pages, and then %d", at, damaged, again)
		}
		machine.Crash(uint64(i))
		for _, v := range r.openAll(t, &machine) { // everything is right
			if lost := v.Lost(); len(lost) > 0 {
				t.Errorf("byte %d, %d damaged pages: %v is lost", at, damaged, lost)
			}
		}
	}
	if found == 0 {
		t.Error("no flipped bit was noticed")
	}
	t.Logf("%d of %d flipped bits were in what is used", found, len(r.other)/every)
}

// What there are two of has two again as soon as it is opened.
func TestWhatRotsOfWhatIsKeptTwiceIsTwoAgainAfterAStart(t *testing.T) {
	r := newRotten(t)
	every, reported := 1, 0
	if storetest.RaceEnabled {
		every = 3
	}
	for i, off := range r.other {
		if i%every != 0 {
			continue
		}
		machine := *r.machine
		machine.dev = machine.dev.Clone(crashdev.NewPower(-1))
		machine.dev.FlipBit(off+int64(i*97%block.Size), uint(i%8))
		pool, err := machine.Open()
		must(t, err)
		reported += pool.Rotted()
		var volumes []*blockstore.Volume
		for _, x := range r.world.Members {
			v, err := pool.Open(x.Name)
			must(t, err)
			_, err = v.Checkpoint(ctx)
			must(t, err)
			volumes = append(volumes, v)
		}
		if n := checkMaps(t, volumes); n != 0 {
			t.Errorf("page at %d: %d damaged pages are left after a start and a checkpoint", off, n)
		}
	}
	if whole := 2 + 2 + 2*len(r.world.Members) + 1; reported > whole || reported == 0 { // superblock, catalogue, roots, header
		t.Errorf("%d damaged pages were reported at starts, of the %d there are two of", reported, whole)
	}
}

// A start reports each copy of what there are two of, if it has rotted, and nothing that a power cut explains.
func TestStartReportsWhatHasRotted(t *testing.T) {
	r := newRotten(t)
	opened := func(machine *simulated) int {
		t.Helper()
		pool, err := machine.Open()
		must(t, err)
		n := pool.Rotted()
		must(t, pool.Close())
		return n
	}
	machine := *r.machine
	if n := opened(&machine); n != 0 {
		t.Errorf("%d of a pool that is whole", n)
	}
	for _, copies := range [][]int64{{0}, {32 << 10, 96 << 10}, {160 << 10, 224 << 10}} { // of both generations, since one counts
		machine := *r.machine
		machine.rotten = true
		machine.dev = machine.dev.Clone(crashdev.NewPower(-1))
		for _, off := range copies {
			machine.dev.FlipBit(off+45, 3)
		}
		if n := opened(&machine); n != 1 {
			t.Errorf("%v: %d are reported", copies, n)
		}
		if n := opened(&machine); n != 0 {
			t.Errorf("%v: %d at the next start", copies, n)
		}
	}
	for events := range int64(200) { // the power is cut at every moment of some checkpoints
		machine := newSimulated(30*chunk, events)
		_, err := runScript(machine, script{chunks: 30, steps: []action{write(0, 0, 130), checkpoint(0), write(0, 3, 3), checkpoint(0), write(0, 4, 3), checkpoint(0)}})
		for seed := range uint64(4) {
			cut := *machine
			cut.Crash(seed)
			if n := opened(&cut); n != 0 {
				t.Fatalf("%d after a power cut at event %d, seed %d", n, events, seed)
			}
		}
		if err == nil {
			break
		}
	}
}

func TestMediumErrorWhileTheMapIsCheckedIsFinal(t *testing.T) {
	machine, pool, v, m := start(t)
	step(t, v, m, m.Write(0, 70))
	_, err := v.Checkpoint(ctx)
	must(t, err)
	var calls int
	machine.dev.SetHook(failing(crashdev.Read, syscall.EIO, &calls))
	if _, err := v.CheckMap(0); !errors.Is(err, block.ErrFailed) || !errors.Is(err, syscall.EIO) {
		t.Fatalf("got %v", err)
	}
	machine.dev.SetHook(nil)
	if err := v.ReadAt(block.Range{Count: 8}, make([]byte, 4096)); !errors.Is(err, block.ErrFailed) {
		t.Errorf("a read after it: %v", err)
	}
	if err := pool.Failed(); !errors.Is(err, block.ErrFailed) {
		t.Error(err)
	}
}
