package blockstore_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/blockstore/storetest"
	"sanctuary/blockstore/vfs"
	"sanctuary/blockstore/vfs/crashdev"
)

// inspectCrash returns an error unless Inspect finds nothing in what a crash has left.
func inspectCrash(dev vfs.Dev) error {
	r, err := blockstore.Inspect(context.Background(), blockstore.InspectConfig{Device: dev})
	if errors.Is(err, blockstore.ErrNoPool) {
		return nil // the crash was before there was one
	}
	return errors.Join(err, unsound(r))
}

// unsound returns nil if nothing was found.
func unsound(r *blockstore.Inspected) error {
	if r == nil || r.Sound() {
		return nil
	}
	return fmt.Errorf("inspection finds %d things in a sound pool, the first: %+v", len(r.Findings), r.Findings[0])
}

// rewritten is what the journals of a world's models say of a block.
func rewritten(w *storetest.World) func(volume string, after uint64, blocks block.Range) bool {
	return func(volume string, after uint64, blocks block.Range) bool {
		for _, x := range w.Members {
			for _, e := range x.Model.Journal {
				for _, op := range e.Ops {
					if x.Name == volume && e.Index > after && op.Range.Start <= blocks.Start && op.Range.End() >= blocks.End() {
						return true
					}
				}
			}
		}
		return false
	}
}

// TestInspectFindsNothingInSoundPools looks at pools while they are open, after every step, and with all data when they are closed.
func TestInspectFindsNothingInSoundPools(t *testing.T) {
	for name, s := range scripts {
		t.Run(name, func(t *testing.T) {
			machine := newSimulated(s.chunks*chunk, -1)
			w, err := storetest.NewWorld(machine)
			must(t, err)
			for _, step := range append([]action{create(), create()}, s.steps...) {
				must(t, step(w))
				must(t, inspectCrash(machine.dev))
			}
			must(t, w.CompareAll())
			usage, volumes := w.Pool.Usage(), map[string]blockstore.VolumeUsage{}
			for i := range w.Members {
				must(t, w.Checkpoint(i))
				volumes[w.Members[i].Name] = w.Members[i].Volume.Usage()
			}
			usage = w.Pool.Usage()
			must(t, w.Pool.Close())
			r, err := blockstore.Inspect(t.Context(), blockstore.InspectConfig{Device: machine.dev.Clone(machine.power), Data: true})
			must(t, err)
			must(t, unsound(r))
			if r.CheckedBytes == 0 || r.CapacityBytes != usage.CapacityBytes || r.UsedSlots*chunk != usage.AllocatedBytes-usage.PendingFreeBytes || r.FormatVersion != 2 {
				t.Errorf("%+v, the pool says %+v", r, usage)
			}
			seen := 0
			for _, v := range r.Volumes {
				x := -1
				for i := range w.Members {
					if w.Members[i].Name == v.Name {
						x, seen = i, seen+1
					}
				}
				if x < 0 {
					continue // kept for clones
				}
				m, u := w.Members[x].Model, volumes[v.Name]
				kept := 0
				for _, s := range v.Snapshots {
					if s.KeptForClones {
						kept++
					}
				}
				if v.Applied != m.Last() || v.SizeBytes != u.LogicalBytes || v.AllocatedBytes != u.AllocatedBytes || v.StoredBytes != u.StoredBytes || len(v.Snapshots)-kept != len(m.Snapshots()) {
					t.Errorf("%+v, it says %+v, applied %d, %d snapshots", v, u, m.Last(), len(m.Snapshots()))
				}
			}
			if seen != len(w.Members) {
				t.Errorf("%d volumes of %d", seen, len(w.Members))
			}
		})
	}
}

// TestInspectFindsNothingInRandomPools is the same for random histories, and after a crash: what does not match its checksum is written again by the log.
func TestInspectFindsNothingInRandomPools(t *testing.T) {
	runs := uint64(150)
	if testing.Short() || storetest.RaceEnabled {
		runs = 25
	}
	stale := 0
	for seed := range runs {
		rnd := rand.New(rand.NewPCG(seed, 21))
		s := script{chunks: 8}
		for range 5 + rnd.IntN(60) {
			s.steps = append(s.steps, func(w *storetest.World) error { return w.Step(rnd, true) })
		}
		machine := newSimulated(s.chunks*chunk, int64(3+rnd.IntN(250)))
		w, cut := play(t, machine, s)
		if cut || w.Pool.Close() != nil { // that, too, may be when the power fails
			machine.Crash(seed)
		}
		dev := machine.dev.Clone(crashdev.NewPower(-1))
		r, err := blockstore.Inspect(t.Context(), blockstore.InspectConfig{Device: dev, Data: true, Rewritten: rewritten(w)})
		if errors.Is(err, blockstore.ErrNoPool) {
			continue
		}
		must(t, err)
		if err := unsound(r); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		for _, note := range r.Notes {
			if strings.Contains(note, "the log writes them again") {
				stale++
			}
		}
	}
	if stale == 0 && !storetest.RaceEnabled && !testing.Short() {
		t.Error("no crash has left a block at odds with its checksum")
	}
}

// TestInspectFindsEveryFlippedByte flips a byte in everything that holds anything, in turn: what is in use is found, exactly that and where it is, and what is not in
// use is not.
func TestInspectFindsEveryFlippedByte(t *testing.T) {
	r := newRotten(t)
	clean, err := blockstore.Inspect(t.Context(), blockstore.InspectConfig{Device: r.machine.dev.Clone(r.machine.power), Data: true})
	must(t, err)
	must(t, unsound(clean))
	kinds := map[byte]string{1: "catalogue", 2: "root", 3: "directory", 4: "leaf"}
	found := map[string]int64{}
	page := make([]byte, block.Size)
	look := func(off, within int64, want ...string) {
		t.Helper()
		dev := r.machine.dev.Clone(crashdev.NewPower(-1))
		dev.FlipBit(off+within, 3)
		got, err := blockstore.Inspect(t.Context(), blockstore.InspectConfig{Device: dev, Data: true})
		must(t, err)
		if len(got.Findings) == 0 {
			found["nothing"]++
			return
		}
		f := got.Findings[0]
		known := false
		for _, k := range want {
			known = known || f.Kind == k
		}
		if len(got.Findings) != 1 || !known || f.Kind != "block" && f.Offset != off || f.What == "" || f.Data == "" || f.Next == "" {
			t.Errorf("byte %d flipped in a %v: found %+v", off+within, want, got.Findings)
		}
		if f.Kind == "block" && want[0] == "block" && f.Offset != off {
			t.Errorf("block at %d flipped, found at %d", off, f.Offset)
		}
		found[want[0]]++
	}
	rnd := rand.New(rand.NewPCG(5, 5))
	dev := r.machine.dev.Clone(r.machine.power)
	for _, off := range r.other {
		must(t, dev.ReadAt(page, off))
		switch {
		case off == 0:
			look(0, rnd.Int64N(48), "header")
		case string(page[:8]) == "SANCSUPR":
			look(off, rnd.Int64N(block.Size), "superblock")
		case string(page[:4]) == "SPAG":
			look(off, rnd.Int64N(block.Size), kinds[page[8]])
		default: // checksums: those of all blocks that lie there
			for at := int64(0); at < block.Size; at += 4 {
				if binary.LittleEndian.Uint32(page[at:]) != 0 {
					look(off, at+rnd.Int64N(4), "checksum", "block")
				}
			}
		}
	}
	for _, off := range r.data {
		look(off, rnd.Int64N(block.Size), "block")
	}
	t.Logf("%v", found)
	pages := found["catalogue"] + found["root"] + found["directory"] + found["leaf"]
	blocks := clean.CheckedBytes / block.Size
	if found["header"] != 1 || found["superblock"] != 4 || pages != clean.UsedPages || found["leaf"] == 0 || found["directory"] == 0 || found["root"] < 6 || found["catalogue"] != 2 {
		t.Errorf("found %v, %d pages are in use", found, clean.UsedPages)
	}
	if found["block"] != blocks || found["checksum"] != blocks {
		t.Errorf("found %v, %d blocks are in use", found, blocks)
	}
}

// TestInspectSaysWhatIsLostWithBothCopies damages both copies of what is there twice.
func TestInspectSaysWhatIsLostWithBothCopies(t *testing.T) {
	r := newRotten(t)
	offsets := map[string][]int64{}
	for _, off := range r.other {
		dev := r.machine.dev.Clone(crashdev.NewPower(-1))
		dev.FlipBit(off+300, 1)
		got, err := blockstore.Inspect(t.Context(), blockstore.InspectConfig{Device: dev})
		must(t, err)
		for _, f := range got.Findings {
			offsets[f.Kind+" "+f.Volume] = append(offsets[f.Kind+" "+f.Volume], f.Offset)
		}
	}
	for _, c := range []struct{ what, data string }{
		{"superblock ", "Nothing in this pool can be found"}, {"catalogue ", "all of them are lost on this node"}, {"root v02", "Volume v02 cannot be opened"},
	} {
		dev := r.machine.dev.Clone(crashdev.NewPower(-1))
		if len(offsets[c.what]) < 2 {
			t.Fatalf("%s is at %v", c.what, offsets[c.what])
		}
		for _, off := range offsets[c.what] {
			dev.FlipBit(off+300, 1)
		}
		got, err := blockstore.Inspect(t.Context(), blockstore.InspectConfig{Device: dev})
		must(t, err)
		if got.Sound() {
			t.Errorf("%s: nothing found", c.what)
		}
		for _, f := range got.Findings {
			if !strings.Contains(f.Data, c.data) {
				t.Errorf("%s: %+v", c.what, f)
			}
		}
	}
}

// TestInspectRefusesWhatIsNoPool: other things are not taken for a damaged pool.
func TestInspectRefusesWhatIsNoPool(t *testing.T) {
	for name, content := range map[string][]byte{"blank": make([]byte, 1<<20), "short": []byte("x"), "text": []byte(strings.Repeat("something else\n", 1<<16))} {
		path := filepath.Join(t.TempDir(), name)
		must(t, os.WriteFile(path, content, 0o600))
		if r, err := blockstore.Inspect(t.Context(), blockstore.InspectConfig{Path: path}); !errors.Is(err, blockstore.ErrNoPool) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	dev := newSimulated(4*chunk, -1)
	pool, err := dev.Open()
	must(t, err)
	must(t, pool.Close())
	must(t, dev.dev.Clone(dev.power).Sync())
	image := crashdev.New(dev.dev.Size(), dev.power)
	header := make([]byte, 512)
	must(t, dev.dev.Clone(dev.power).ReadAt(header, 0))
	header[8] = 9
	must(t, image.WriteAt(header, 0))
	if r, err := blockstore.Inspect(t.Context(), blockstore.InspectConfig{Device: image}); !errors.Is(err, blockstore.ErrVersion) {
		t.Errorf("version 9: %+v, %v", r, err)
	}
}

// livePool is a pool in a file that a goroutine goes on using.
type livePool struct {
	path string
	stop func()
}

func newLivePool(t *testing.T, step func(w *storetest.World, rnd *rand.Rand, n int) error) livePool {
	t.Helper()
	machine := &fileMachine{t: t, dir: scratch(t), capacityBytes: 64 * chunk}
	w, err := storetest.NewWorld(machine)
	must(t, err)
	must(t, w.Create(crashGeometry))
	must(t, w.Create(crashGeometry))
	done := make(chan struct{})
	var worker sync.WaitGroup
	worker.Go(func() {
		rnd := rand.New(rand.NewPCG(3, 3))
		for n := 0; ; n++ {
			select {
			case <-done:
				return
			default:
			}
			if err := step(w, rnd, n); err != nil {
				t.Errorf("step %d: %v", n, err)
				return
			}
		}
	})
	return livePool{path: filepath.Join(machine.dir, "data"), stop: sync.OnceFunc(func() {
		close(done)
		worker.Wait()
		if err := w.Pool.Close(); err != nil {
			t.Error(err)
		}
	})}
}

// TestInspectFindsNothingInARunningPool looks at a pool that is written and checkpointed all the time.
func TestInspectFindsNothingInARunningPool(t *testing.T) {
	live := newLivePool(t, func(w *storetest.World, rnd *rand.Rand, n int) error {
		if n%4 == 0 {
			return w.Checkpoint(n / 4 % 2)
		}
		if n%31 == 0 && len(w.Members[1].Model.Snapshots()) > 3 {
			_, err := w.Apply(1, []block.Op{block.DeleteSnapshotOp(w.Members[1].Model.Snapshots()[0].ID)})
			return errors.Join(err, w.Reclaim(1, 100))
		}
		if n%30 == 0 {
			return snapshot(1)(w)
		}
		return write(n%2, rnd.IntN(170), 1+rnd.IntN(20))(w)
	})
	defer live.stop()
	if pid, held := vfs.Holder(live.path); !held || pid != os.Getpid() {
		t.Errorf("the pool is held by %d, %t", pid, held)
	}
	walks := 0
	for range 40 {
		r, err := blockstore.Inspect(t.Context(), blockstore.InspectConfig{Path: live.path, Running: true, Data: true, Settle: time.Minute})
		must(t, err)
		must(t, unsound(r))
		walks += r.Walks
	}
	t.Logf("%d walks for 40 inspections", walks)
	live.stop()
	r, err := blockstore.Inspect(t.Context(), blockstore.InspectConfig{Path: live.path, Data: true})
	must(t, err)
	must(t, unsound(r))
	if _, held := vfs.Holder(live.path); held {
		t.Error("the pool is held after it was closed")
	}
}

// TestInspectFindsDamageInARunningPool: that others write does not excuse a block that nobody writes, nor a page of the map.
func TestInspectFindsDamageInARunningPool(t *testing.T) {
	ready := make(chan struct{})
	live := newLivePool(t, func(w *storetest.World, _ *rand.Rand, n int) error {
		switch {
		case n == 0:
			return errors.Join(write(0, 0, 192)(w), write(1, 0, 192)(w), w.Checkpoint(0), w.Checkpoint(1))
		case n == 1:
			close(ready)
			return nil
		case n%2 == 0:
			return w.Checkpoint(0)
		}
		time.Sleep(5 * time.Millisecond) // a load as any other
		return write(0, n%64, 1)(w)
	})
	defer live.stop()
	<-ready
	var page, data int64
	_, err := blockstore.Inspect(t.Context(), blockstore.InspectConfig{Path: live.path, Running: true, Volume: "v02", Chunk: func(c blockstore.InspectedChunk) {
		page = c.PageOffset
		if data == 0 && len(c.Layers) > 0 {
			data = c.Layers[0].Offset
		}
	}})
	must(t, err)
	for kind, off := range map[string]int64{"leaf": page, "block": data} {
		flipFile(t, live.path, off+99)
		r, err := blockstore.Inspect(t.Context(), blockstore.InspectConfig{Path: live.path, Running: true, Data: true})
		must(t, err)
		if len(r.Findings) != 1 || r.Findings[0].Kind != kind || r.Findings[0].Offset != off || r.Findings[0].Volume != "v02" {
			t.Errorf("%s at %d flipped in a running pool: %+v", kind, off, r.Findings)
		}
		flipFile(t, live.path, off+99)
	}
}

func flipFile(t *testing.T, path string, off int64) {
	t.Helper()
	m := &fileMachine{dir: filepath.Dir(path)}
	must(t, m.FlipBit(off))
}

// TestInspectCountsAnIdlePoolsBlocksWhenTheyHaveSettled: in a pool that is open and that nobody writes to, a block at odds with its checksum is damage after a while.
func TestInspectCountsAnIdlePoolsBlocksWhenTheyHaveSettled(t *testing.T) {
	machine := newSimulated(8*chunk, -1)
	w, err := runScript(machine, script{chunks: 8, steps: []action{write(0, 0, 64), checkpoint(0), write(0, 3, 2)}})
	must(t, err)
	look := func(running bool) *blockstore.Inspected {
		r, err := blockstore.Inspect(t.Context(), blockstore.InspectConfig{Device: machine.dev, Data: true, Running: running, Settle: 300 * time.Millisecond, Rewritten: rewritten(w)})
		must(t, err)
		return r
	}
	if r := look(false); !r.Sound() || len(r.Notes) != 1 {
		t.Errorf("written after the checkpoint, and in the log: %v, %+v", r.Notes, r.Findings)
	}
	if r := look(true); len(r.Findings) != 2 || r.Findings[0].Kind != "block" {
		t.Errorf("for longer than it can last: %+v", r.Findings)
	}
	must(t, w.Checkpoint(0))
	if r := look(true); !r.Sound() {
		t.Errorf("after the checkpoint: %+v", r.Findings)
	}
}

// TestInspectReadsNoFasterThanAsked also looks at what is told of the progress.
func TestInspectReadsNoFasterThanAsked(t *testing.T) {
	machine := newSimulated(8*chunk, -1)
	w, err := runScript(machine, script{chunks: 8, steps: []action{write(0, 0, 192)}})
	must(t, err)
	must(t, w.Pool.Close())
	start, told := time.Now(), int64(0)
	r, err := blockstore.Inspect(t.Context(), blockstore.InspectConfig{
		Device: machine.dev.Clone(machine.power), Data: true, BytesPerSecond: 2 << 20, Progress: func(done, total int64) { told = done * 1000 / total },
	})
	must(t, err)
	// Three chunks: the first is read at once, the third when the time for two has passed.
	if took := time.Since(start); took < 240*time.Millisecond || told != 1000 || r.CheckedBytes != 192*block.Size {
		t.Errorf("%d bytes in %v, told %d", r.CheckedBytes, took, told)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := blockstore.Inspect(ctx, blockstore.InspectConfig{Device: machine.dev.Clone(machine.power)}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// restless is a medium on which one block is written all the time.
type restless struct {
	vfs.Dev
	off int64
	n   atomic.Uint32
}

func (d *restless) ReadAt(p []byte, off int64) error {
	err := d.Dev.ReadAt(p, off)
	if at := d.off - off; at >= 0 && at < int64(len(p)) {
		binary.LittleEndian.PutUint32(p[at:], d.n.Add(1))
	}
	return err
}

// TestInspectLeavesBlocksAloneThatAreAlwaysWritten: two looks at them are enough to know that nothing can be known.
func TestInspectLeavesBlocksAloneThatAreAlwaysWritten(t *testing.T) {
	machine := newSimulated(8*chunk, -1)
	_, err := runScript(machine, script{chunks: 8, steps: []action{write(0, 0, 64), checkpoint(0)}})
	must(t, err)
	look := func(dev vfs.Dev, running bool, each func(c blockstore.InspectedChunk)) *blockstore.Inspected {
		r, err := blockstore.Inspect(t.Context(), blockstore.InspectConfig{Device: dev, Data: true, Running: running, Settle: 300 * time.Millisecond, Chunk: each})
		must(t, err)
		return r
	}
	dev := &restless{Dev: machine.dev}
	look(machine.dev, false, func(c blockstore.InspectedChunk) { dev.off = c.Layers[0].Offset + 5*block.Size })
	if r := look(dev, true, nil); !r.Sound() || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "1 blocks were being written") {
		t.Errorf("%v, %+v", r.Notes, r.Findings)
	}
	if r := look(dev, false, nil); len(r.Findings) != 1 || r.Findings[0].Offset != dev.off {
		t.Errorf("in a pool that nobody uses: %+v", r.Findings)
	}
}

// TestInspectSaysWhenItCannotKeepUp: what never stands still is not called damaged, nor sound.
func TestInspectSaysWhenItCannotKeepUp(t *testing.T) {
	machine := newSimulated(8*chunk, -1)
	_, err := runScript(machine, script{chunks: 8, steps: []action{write(0, 0, 64), checkpoint(0)}})
	must(t, err)
	dev := &restless{Dev: machine.dev, off: 96 << 10} // a superblock that is written all the time
	if r, err := blockstore.Inspect(t.Context(), blockstore.InspectConfig{Device: dev}); !errors.Is(err, vfs.ErrUnsteady) {
		t.Errorf("%+v, %v", r, err)
	}
}
