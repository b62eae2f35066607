package blockstore_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/storetest"
	"sanctuary/blockstore/vfs"
	"sanctuary/blockstore/vfs/crashdev"
)

// page is 4 KiB of a medium: as they were, and as they are read for a while.
type page struct {
	off        int64
	right, bad []byte
}

// pagesOf finds the pages of a kind (docs/FORMATS.md) that a volume has or had.
func pagesOf(t *testing.T, dev *crashdev.Dev, kind byte, volume uint32) (found []page) {
	t.Helper()
	for off := int64(0); off+block.Size <= dev.Size(); off += block.Size {
		b := make([]byte, block.Size)
		must(t, dev.ReadAt(b, off))
		if string(b[:4]) == "SPAG" && b[8] == kind && binary.LittleEndian.Uint32(b[12:]) == volume {
			bad := bytes.Clone(b)
			bad[100] ^= 2
			found = append(found, page{off, b, bad})
		}
	}
	return found
}

// misread is a pool of two volumes. Pages of the first one could not be read when the pool was opened, and can be read again after a crash, as
// when one of two mirrored disks is wrong: unless they have been written over meanwhile.
type misread struct {
	machine *simulated
	world   *storetest.World
	pages   []page
}

func newMisread(t *testing.T, kind byte, events int64) *misread {
	t.Helper()
	m := &misread{machine: newSimulated(5*chunk, -1)}
	var err error
	m.world, err = runScript(m.machine, script{steps: []action{write(0, 0, 130), checkpoint(0)}})
	must(t, err)
	must(t, m.world.Pool.Close())
	m.machine.power, m.machine.rotten = crashdev.NewPower(events), true
	m.machine.dev = m.machine.dev.Clone(m.machine.power)
	look := m.machine.dev.Clone(crashdev.NewPower(-1))
	if m.pages = pagesOf(t, look, kind, 1); len(m.pages) == 0 {
		t.Fatalf("no pages of kind %d", kind)
	}
	for _, p := range m.pages {
		m.machine.dev.FlipBit(p.off+100, 1)
	}
	return m
}

// readAgain puts the pages right that nobody has written to.
func (m *misread) readAgain(t *testing.T) {
	t.Helper()
	b := make([]byte, block.Size)
	for _, p := range m.pages {
		must(t, m.machine.dev.ReadAt(b, p.off))
		if bytes.Equal(b, p.bad) {
			m.machine.dev.FlipBit(p.off+100, 1)
		}
	}
}

// use opens the pool and has the second volume take whatever is free.
func (m *misread) use() (err error) {
	w := m.world
	if w.Pool, err = m.machine.Open(); err != nil {
		return err
	}
	for i, x := range w.Members {
		corrupt := (*block.CorruptError)(nil)
		if x.Volume, err = w.Pool.Open(x.Name); err != nil && (i > 0 || !errors.As(err, &corrupt)) {
			return err
		}
	}
	for _, step := range []action{write(1, 0, 70), write(1, 128, 3), checkpoint(1), write(1, 60, 9), checkpoint(1)} {
		if err := step(w); err != nil {
			return err
		}
	}
	return nil
}

// check opens what the crash has left.
func (m *misread) check() error {
	pool, err := m.machine.Open()
	if err != nil {
		return err
	}
	a, b := m.world.Members[0], m.world.Members[1]
	corrupt := (*block.CorruptError)(nil)
	if v, err := pool.Open(a.Name); err == nil {
		err = a.Model.CompareRightOrCorrupt(v)
		if err != nil {
			return fmt.Errorf("the volume whose pages were misread: %w", err)
		}
	} else if !errors.As(err, &corrupt) {
		return err
	}
	v, err := pool.Open(b.Name)
	if err != nil {
		return err
	}
	if err := errors.Join(b.Model.CompareOrCorrupt(v), b.Model.Replay(v, nil), b.Model.Compare(v)); err != nil {
		return fmt.Errorf("the other volume: %w", err)
	}
	return pool.Close()
}

// What a page of the map spoke of that could not be read belongs to nobody else before its loss is durable. Else, if the page can be read after a
// crash, it would be believed though others have written there.
func TestWhatIsLostIsNotGivenAwayBeforeThatIsDurable(t *testing.T) {
	t.Parallel()
	for kind, name := range map[byte]string{2: "root", 3: "directory", 4: "leaf"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			events, cut := int64(0), true
			for ; cut; events++ {
				for seed := range uint64(4) {
					m := newMisread(t, kind, events)
					err := m.use()
					if cut = err != nil; cut && !m.machine.power.Lost() {
						t.Fatal(err)
					}
					m.machine.Crash(uint64(events) + seed)
					if seed != 3 { // then they stay damaged
						m.readAgain(t)
					}
					if err := m.check(); err != nil {
						t.Fatalf("power cut at event %d, seed %d: %v", events, seed, err)
					}
				}
			}
			t.Logf("%d events", events)
		})
	}
}

// Where there is no room for recording the loss nothing is given away at all, and everything else goes on.
func TestNothingIsGivenAwayWhileALossCannotBeRecorded(t *testing.T) {
	for kind, name := range map[byte]string{2: "root", 3: "directory", 4: "leaf"} {
		t.Run(name, func(t *testing.T) {
			m := newMisread(t, kind, -1)
			full := true
			m.machine.hook = func(k crashdev.Kind, _, _ int64) error {
				if full && k == crashdev.Allocate {
					return vfs.ErrNoSpace
				}
				return nil
			}
			pool, err := m.machine.Open()
			must(t, err)
			full = false
			x := m.world.Members[1]
			v, err := pool.Open(x.Name)
			must(t, err)
			op := x.Model.Write(0, 1)
			if err := v.Apply(1, []block.Op{op}); !errors.Is(err, block.ErrNoSpace) {
				t.Fatalf("a write that needs a chunk: %v", err)
			}
			if err := v.Promise(chunk); !errors.Is(err, block.ErrNoSpace) || v.FreeBytes() != 0 {
				t.Errorf("promised with %v, %d bytes free", err, v.FreeBytes())
			}
			if kind == 2 { // whatever becomes durable next records it
				other, err := pool.Create("other", crashGeometry)
				must(t, err)
				must(t, other.Close())
			} else {
				lost, err := pool.Open(m.world.Members[0].Name)
				must(t, err)
				_, err = lost.Checkpoint(ctx)
				must(t, err)
			}
			must(t, v.Apply(1, []block.Op{op}))
			must(t, pool.Close())
			m.machine.Crash(0) // nothing is unsynced
			m.readAgain(t)
			x.Model.Commit(1, []block.Op{op})
			must(t, m.check())
		})
	}
}
