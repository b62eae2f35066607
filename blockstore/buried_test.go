package blockstore_test

import (
	"errors"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/blockstore/storetest"
	"sanctuary/blockstore/vfs/crashdev"
)

// buried is a closed pool with a volume of its own, and a clone whose origin, volume 1, has been deleted and is kept for it.
func buried(t *testing.T) (*simulated, *storetest.World) {
	t.Helper()
	machine := newSimulated(20*chunk, -1)
	w, err := runScript(machine, script{steps: []action{
		write(0, 0, 130), write(1, 0, 70), snapshot(0), checkpoint(0), checkpoint(1), clone(0, 0), write(2, 3, 3), checkpoint(2), remove(0),
	}})
	must(t, err)
	must(t, w.Pool.Close())
	machine.rotten = true
	return machine, w
}

// rot flips a bit in what a machine has on its medium.
func rot(machine *simulated, pages []page) {
	for _, p := range pages {
		machine.dev.FlipBit(p.off+100, 1)
	}
}

// inUse returns the pages of a kind that a volume has or had, as a machine has them now.
func inUse(t *testing.T, machine *simulated, kind byte, volume uint32) []page {
	t.Helper()
	return pagesOf(t, machine.dev.Clone(crashdev.NewPower(-1)), kind, volume)
}

// What rots of the map of a volume that is kept for its clones only is written anew as well, before it is missed.
func TestWhatRotsOfAMapThatIsKeptForClonesIsWrittenAnew(t *testing.T) {
	for kind, name := range map[byte]string{2: "root", 3: "directory", 4: "leaf"} {
		t.Run(name, func(t *testing.T) {
			machine, w := buried(t)
			pool, err := machine.Open()
			must(t, err)
			x := w.Members[len(w.Members)-1]
			v, err := pool.Open(x.Name)
			must(t, err)
			must(t, x.Model.CompareBlocks(v))
			rot(machine, inUse(t, machine, kind, 1))
			if damaged := checkMaps(t, []*blockstore.Volume{v}); damaged == 0 {
				t.Error("nothing was noticed")
			}
			if again := checkMaps(t, []*blockstore.Volume{v}); again != 0 {
				t.Errorf("%d damaged pages are left", again)
			}
			machine.Crash(1)
			pool, err = machine.Open()
			must(t, err)
			v, err = pool.Open(x.Name)
			must(t, err)
			if lost := v.Lost(); len(lost) > 0 {
				t.Errorf("%v is lost", lost)
			}
			must(t, x.Model.CompareBlocks(v))
			must(t, pool.Close())
		})
	}
}

// A volume that was kept for its clones, and whose root cannot be read in either copy, goes with them: nobody could ever delete it. What it had can be
// used again, and the clones are refused as lost for good, also where the root can be read again.
func TestLostVolumeThatWasKeptForItsClonesIsGone(t *testing.T) {
	machine, w := buried(t)
	pages := inUse(t, machine, 2, 1)
	rot(machine, pages)
	pool, err := machine.Open()
	must(t, err)
	corrupt := (*block.CorruptError)(nil)
	x := w.Members[len(w.Members)-1]
	refused := func() {
		t.Helper()
		if _, err := pool.Open(x.Name); !errors.As(err, &corrupt) {
			t.Errorf("the clone: %v", err)
		}
	}
	refused()
	must(t, pool.Close())
	machine.Crash(1)
	(&misread{machine: machine, pages: pages}).readAgain(t)
	pool, err = machine.Open()
	must(t, err)
	refused()
	must(t, pool.Delete(x.Name))
	if names, err := pool.Volumes(); err != nil || len(names) != 1 {
		t.Errorf("%v, %v", names, err)
	}
	if u := pool.Usage(); u.AllocatedBytes != 2*chunk {
		t.Errorf("%d bytes are taken, by a volume of two chunks", u.AllocatedBytes)
	}
	must(t, pool.Close())
	r, err := blockstore.Inspect(t.Context(), blockstore.InspectConfig{Device: machine.dev.Clone(crashdev.NewPower(-1)), Data: true})
	must(t, err)
	if !r.Sound() || len(r.Volumes) != 1 {
		t.Errorf("%d volumes, %+v", len(r.Volumes), r.Findings)
	}
}
