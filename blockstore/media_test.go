package blockstore_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/blockstore/storetest"
	"sanctuary/blockstore/vfs"
	"sanctuary/blockstore/vfs/crashdev"
)

const chunk = block.ChunkSize

func TestFileMedium(t *testing.T) {
	storetest.Run(t, storetest.Medium{Lasts: true, New: func(t testing.TB, capacityBytes int64) storetest.Machine {
		return &fileMachine{t: t, dir: scratch(t), capacityBytes: capacityBytes}
	}})
}

func TestRAMMedium(t *testing.T) {
	storetest.Run(t, storetest.Medium{New: func(t testing.TB, capacityBytes int64) storetest.Machine {
		return &ramMachine{capacityBytes: capacityBytes}
	}})
}

func TestSimulatedMedium(t *testing.T) {
	storetest.Run(t, storetest.Medium{Lasts: true, Simulated: true, New: func(_ testing.TB, capacityBytes int64) storetest.Machine {
		return newSimulated(capacityBytes, -1)
	}})
}

// scratch is a directory in memory if there is one: the suite syncs a great deal, and these tests lose no power.
func scratch(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "blockstore-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fileMachine crashes by going on with a copy of the files, as they are when a process is killed.
type fileMachine struct {
	t             testing.TB
	dir           string
	capacityBytes int64
	pool          *blockstore.Pool
}

func (m *fileMachine) Open() (pool *blockstore.Pool, err error) {
	m.pool, err = blockstore.OpenPool(blockstore.PoolConfig{Media: blockstore.MediaFile, Dir: m.dir, CapacityBytes: m.capacityBytes})
	return m.pool, err
}

func (m *fileMachine) Crash(uint64) {
	next := scratch(m.t)
	if err := os.CopyFS(next, os.DirFS(m.dir)); err != nil {
		m.t.Fatal(err)
	}
	if err := m.pool.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.dir = next
}

func (m *fileMachine) FlipBit(off int64) error {
	f, err := os.OpenFile(filepath.Join(m.dir, "data"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	b := make([]byte, 1)
	_, err = f.ReadAt(b, off)
	b[0] ^= 4
	_, werr := f.WriteAt(b, off)
	return errors.Join(err, werr, f.Close())
}

type ramMachine struct {
	capacityBytes int64
	arena         *vfs.Arena
}

func (m *ramMachine) Open() (_ *blockstore.Pool, err error) {
	if m.arena, err = vfs.NewArena(blockstore.MediumBytes(m.capacityBytes)); err != nil {
		return nil, err
	}
	return blockstore.OpenPool(blockstore.PoolConfig{Media: blockstore.MediaRAM, CapacityBytes: m.capacityBytes, Device: m.arena})
}

func (m *ramMachine) Crash(uint64) { panic("nothing is left of memory") }

func (m *ramMachine) FlipBit(off int64) error {
	b := make([]byte, 1)
	if err := m.arena.ReadAt(b, off); err != nil {
		return err
	}
	b[0] ^= 4
	return m.arena.WriteAt(b, off)
}

// simulated is a machine with a crashable device.
type simulated struct {
	capacityBytes int64
	power         *crashdev.Power
	dev           *crashdev.Dev
	hook          func(k crashdev.Kind, off, n int64) error // for every device it opens
	unsound       error                                     // what Inspect had against the last crash image
	rotten        bool                                      // bits were flipped on purpose: an inspection would find them
}

// newSimulated returns a machine whose power fails during the event after the given number; negative: never.
func newSimulated(capacityBytes, events int64) *simulated {
	power := crashdev.NewPower(events)
	return &simulated{capacityBytes: capacityBytes, power: power, dev: crashdev.New(blockstore.MediumBytes(capacityBytes), power)}
}

func (m *simulated) Open() (*blockstore.Pool, error) {
	if m.unsound != nil {
		return nil, m.unsound
	}
	m.dev = m.dev.Clone(m.power) // the last one may have been closed
	m.dev.SetHook(m.hook)
	return blockstore.OpenPool(blockstore.PoolConfig{Device: m.dev, CapacityBytes: m.capacityBytes})
}

func (m *simulated) Crash(seed uint64) {
	m.power, m.hook = crashdev.NewPower(-1), nil
	m.dev = m.dev.CloneForCrash(seed, m.power)
	if !m.rotten {
		m.unsound = inspectCrash(m.dev) // whatever was cut off is no damage
	}
}

func (m *simulated) FlipBit(off int64) error {
	m.dev.FlipBit(off, 2)
	m.rotten = true
	return nil
}
