//go:build linux && loopdev

package blockstore_test

import (
	"errors"
	"flag"
	"os"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/storetest"
	"sanctuary/blockstore/vfs/loopdev"
)

// TestDeviceMedium runs the suite on a block device, which the kernel writes to through a page cache of its own. Its file is in memory, as in
// TestFileMedium and for the same reason.
func TestDeviceMedium(t *testing.T) {
	if dir := "/dev/shm"; writable(dir) {
		t.Setenv("TMPDIR", dir)
	}
	fewerSequences(t)
	machines := map[testing.TB]*deviceMachine{}
	storetest.Run(t, storetest.Medium{Lasts: true, New: func(t testing.TB, capacityBytes int64) storetest.Machine {
		t.Helper()
		m := machines[t]
		if m == nil {
			device, _ := loopdev.New(t, loopdev.Config{SizeBytes: blockstore.MediumBytes(capacityBytes)})
			m = &deviceMachine{t: t, path: device}
			machines[t] = m
		}
		if err := m.blank(capacityBytes); err != nil {
			t.Fatal(err)
		}
		return m
	}})
}

// fewerSequences has rapid play half of the sequences it plays by default: each sync goes through the kernel's loop driver.
func fewerSequences(t *testing.T) {
	f := flag.Lookup("rapid.checks")
	if was := f.Value.String(); was == f.DefValue {
		must(t, f.Value.Set("50"))
		t.Cleanup(func() { must(t, f.Value.Set(was)) })
	}
}

func writable(dir string) bool {
	f, err := os.CreateTemp(dir, "")
	if err != nil {
		return false
	}
	return errors.Join(f.Close(), os.Remove(f.Name())) == nil
}

// deviceMachine is a block device, used again by every sequence of one test. It crashes by going on with what the device held, as when a
// process is killed: what the cache had not written is there.
type deviceMachine struct {
	t             testing.TB
	path          string
	capacityBytes int64
	pool          *blockstore.Pool
}

// blank closes what a sequence that failed has left open, and takes away what makes the device a pool. Force then wipes what else the next
// sequence would find, and leaves a pool alone.
func (m *deviceMachine) blank(capacityBytes int64) error {
	m.capacityBytes = capacityBytes
	if m.pool == nil {
		return nil
	}
	err := m.pool.Close()
	m.pool = nil
	return errors.Join(err, blockstore.ErasePool(blockstore.PoolConfig{Media: blockstore.MediaDevice, Path: m.path}))
}

func (m *deviceMachine) Open() (*blockstore.Pool, error) {
	pool, err := blockstore.OpenPool(blockstore.PoolConfig{Media: blockstore.MediaDevice, Path: m.path, Force: true, CapacityBytes: m.capacityBytes})
	if err == nil {
		m.pool = pool
	}
	return pool, err
}

func (m *deviceMachine) Crash(uint64) {
	held, err := os.ReadFile(m.path)
	if err != nil {
		m.t.Fatal(err)
	}
	if err := m.pool.Close(); err != nil && m.pool.Failed() == nil {
		m.t.Fatal(err)
	}
	err = m.change(func(f *os.File) error {
		_, err := f.WriteAt(held, 0)
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *deviceMachine) FlipBit(off int64) error {
	return m.change(func(f *os.File) error {
		b := make([]byte, 1)
		_, err := f.ReadAt(b, off)
		b[0] ^= 4
		_, werr := f.WriteAt(b, off)
		return errors.Join(err, werr)
	})
}

// change writes to the device beside the pool, through the same cache.
func (m *deviceMachine) change(fn func(f *os.File) error) error {
	f, err := os.OpenFile(m.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(fn(f), f.Close())
}
