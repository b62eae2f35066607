package blockstore_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/blockstore/storetest"
	"sanctuary/blockstore/vfs"
	"sanctuary/blockstore/vfs/crashdev"
)

var ctx = context.Background()

const crashPoolBytes = 5 * chunk

// start opens a pool with one volume on a simulated machine.
func start(t *testing.T) (*simulated, *blockstore.Pool, *blockstore.Volume, *storetest.Model) {
	t.Helper()
	machine := newSimulated(crashPoolBytes, -1)
	pool, err := machine.Open()
	if err != nil {
		t.Fatal(err)
	}
	v, err := pool.Create("a", crashGeometry)
	if err != nil {
		t.Fatal(err)
	}
	return machine, pool, v, storetest.NewModel(crashGeometry)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func step(t *testing.T, v *blockstore.Volume, m *storetest.Model, ops ...block.Op) {
	t.Helper()
	index := m.Last() + 1
	must(t, v.Apply(index, ops))
	m.Commit(index, ops)
}

// failing is a hook that fails operations of one kind and counts them.
func failing(kind crashdev.Kind, err error, calls *int) func(crashdev.Kind, int64, int64) error {
	return func(k crashdev.Kind, _, _ int64) error {
		if k != kind {
			return nil
		}
		*calls++
		return err
	}
}

func TestMediumErrorIsFinal(t *testing.T) {
	for name, c := range map[string]struct {
		kind crashdev.Kind
		do   func(v *blockstore.Volume, m *storetest.Model) error
	}{
		"sync":  {crashdev.Sync, func(v *blockstore.Volume, _ *storetest.Model) error { _, err := v.Checkpoint(ctx); return err }},
		"write": {crashdev.Write, func(v *blockstore.Volume, m *storetest.Model) error { return v.Apply(3, []block.Op{m.Write(0, 2)}) }},
		"read": {crashdev.Read, func(v *blockstore.Volume, _ *storetest.Model) error {
			return v.ReadAt(block.Range{Count: 8}, make([]byte, 4096))
		}},
		"allocate": {crashdev.Allocate, func(v *blockstore.Volume, m *storetest.Model) error {
			return v.Apply(3, []block.Op{m.Write(128, 2)})
		}},
		"discard": {crashdev.Discard, func(v *blockstore.Volume, m *storetest.Model) error {
			_, err := v.Checkpoint(ctx)
			return err
		}},
		"sync at the end of an import": {crashdev.Sync, func(v *blockstore.Volume, _ *storetest.Model) error { return v.BeginImport(ctx) }},
	} {
		t.Run(name, func(t *testing.T) {
			machine, pool, v, m := start(t)
			step(t, v, m, m.Write(0, 70))
			before, err := v.Checkpoint(ctx)
			must(t, err)
			step(t, v, m, m.Write(1, 2), m.Zero(64, 64))
			var calls int
			machine.dev.SetHook(failing(c.kind, syscall.EIO, &calls))
			err = c.do(v, m)
			if !errors.Is(err, block.ErrFailed) || !errors.Is(err, syscall.EIO) {
				t.Fatalf("got error %v, want ErrFailed for EIO", err)
			}
			// The medium is well again, but nobody may rely on it or even ask it.
			calls = 0
			machine.dev.SetHook(func(crashdev.Kind, int64, int64) error { calls++; return nil })
			_, checkpointErr := v.Checkpoint(ctx)
			_, createErr := pool.Create("b", crashGeometry)
			_, openErr := pool.Open("b")
			for what, err := range map[string]error{
				"apply": v.Apply(9, []block.Op{m.Write(0, 1)}), "read": v.ReadAt(block.Range{Count: 1}, make([]byte, 512)),
				"checkpoint": checkpointErr, "import": v.BeginImport(ctx), "create": createErr, "open": openErr,
				"delete": pool.Delete("b"), "chunk info": v.ChunkInfo(0, new(blockstore.ChunkInfo)), "pool": pool.Failed(),
			} {
				if !errors.Is(err, block.ErrFailed) {
					t.Errorf("%s after the failure: %v", what, err)
				}
			}
			if name != "discard" && v.Durable() != before {
				t.Errorf("durable %d after the failure, was %d", v.Durable(), before)
			}
			must(t, v.Close())
			must(t, pool.Close())
			if calls != 0 {
				t.Errorf("the medium was asked %d times after it had failed", calls)
			}
			for seed := range uint64(8) { // what it lost, the journal has
				machine := *machine
				machine.Crash(seed)
				pool, err := machine.Open()
				must(t, err)
				v, err := pool.Open("a")
				must(t, err)
				must(t, m.Replay(v, nil))
				must(t, m.Compare(v))
			}
		})
	}
}

func TestFullFileSystemChangesNothing(t *testing.T) {
	machine, pool, v, m := start(t)
	step(t, v, m, m.Write(0, 2))
	free := pool.Usage()
	var calls int
	machine.dev.SetHook(failing(crashdev.Allocate, vfs.ErrNoSpace, &calls))
	err := v.Apply(2, []block.Op{m.Write(0, 1), m.Write(64, 100)})
	if !errors.Is(err, block.ErrNoSpace) || calls != 1 {
		t.Fatalf("got error %v after %d calls", err, calls)
	}
	must(t, m.Compare(v))
	step(t, v, m, m.Write(0, 1)) // overwriting needs nothing
	if got := pool.Usage(); got != free {
		t.Errorf("usage %+v, was %+v", got, free)
	}
	machine.dev.SetHook(nil)
	step(t, v, m, m.Write(64, 100))
	must(t, m.Compare(v))
}

// TestApplyGoesOnDuringCheckpoint applies from within the sync of a checkpoint, which would deadlock if Apply waited.
func TestApplyGoesOnDuringCheckpoint(t *testing.T) {
	machine, _, v, m := start(t)
	step(t, v, m, m.Write(0, 3), m.SetState(0, "old"))
	inSync, applied := make(chan struct{}), make(chan struct{})
	var once sync.Once
	machine.dev.SetHook(func(k crashdev.Kind, _, _ int64) error {
		if k == crashdev.Sync {
			once.Do(func() { close(inSync); <-applied })
		}
		return nil
	})
	done := make(chan error)
	go func() {
		index, err := v.Checkpoint(ctx)
		if err == nil && index != 1 {
			err = errors.New("the checkpoint claims what came after it began")
		}
		done <- err
	}()
	<-inSync
	step(t, v, m, m.Write(1, 100), m.SetState(1, "new"))
	must(t, m.Compare(v))
	close(applied)
	must(t, <-done)
	if v.Durable() != 1 {
		t.Errorf("durable %d, want 1", v.Durable())
	}
	machine.Crash(1)
	pool, err := machine.Open()
	must(t, err)
	v, err = pool.Open("a")
	must(t, err)
	if v.Applied() != 1 || string(v.State().Blob) != "old" {
		t.Errorf("after the crash applied %d with state %q", v.Applied(), v.State().Blob)
	}
	must(t, m.Replay(v, nil))
	must(t, m.Compare(v))
}

// TestHolesArePunchedAfterTheCheckpoint: not one freed byte may be touched before the checkpoint that records it is durable,
// which takes a sync of what it refers to and one of itself.
func TestHolesArePunchedAfterTheCheckpoint(t *testing.T) {
	machine, pool, v, m := start(t)
	step(t, v, m, m.Write(0, 130))
	_, err := v.Checkpoint(ctx)
	must(t, err)
	syncs, punched := 0, int64(0)
	machine.dev.SetHook(func(k crashdev.Kind, off, n int64) error {
		switch k {
		case crashdev.Sync:
			syncs++
		case crashdev.Discard:
			punched += n
			if syncs < 2 {
				t.Errorf("discard of %d bytes at %d after %d syncs", n, off, syncs)
			}
		}
		return nil
	})
	step(t, v, m, m.Zero(0, 128))
	if got := pool.Usage(); got.PendingFreeBytes != 2*chunk || punched != 0 {
		t.Errorf("usage before the checkpoint %+v, %d bytes discarded", got, punched)
	}
	_, err = v.Checkpoint(ctx)
	must(t, err)
	if punched < 2*chunk {
		t.Errorf("%d bytes were discarded, want two chunks", punched)
	}
	must(t, m.Compare(v))
}

// halfway is a device that lets others run in the middle of a write.
type halfway struct {
	vfs.Dev
	between func()
}

func (d *halfway) WriteAt(p []byte, off int64) error {
	if d.between == nil {
		return d.Dev.WriteAt(p, off)
	}
	half := len(p) / 2
	if err := d.Dev.WriteAt(p[:half], off); err != nil {
		return err
	}
	d.between()
	return d.Dev.WriteAt(p[half:], off+int64(half))
}

// TestReadNeverSeesHalfABlock reads a block of which half is written. The read has to wait for the other half; one that
// did not would be done well within the time it is given, and report corruption.
func TestReadNeverSeesHalfABlock(t *testing.T) {
	arena, err := vfs.NewArena(blockstore.MediumBytes(crashPoolBytes))
	must(t, err)
	dev := &halfway{Dev: arena}
	pool, err := blockstore.OpenPool(blockstore.PoolConfig{Device: dev, CapacityBytes: crashPoolBytes})
	must(t, err)
	v, err := pool.Create("a", crashGeometry)
	must(t, err)
	m := storetest.NewModel(crashGeometry)
	step(t, v, m, m.Write(0, 1))
	op := m.Write(0, 1)
	got, read := make([]byte, block.Size), make(chan error, 1)
	dev.between = func() {
		go func() { read <- v.ReadAt(op.Range, got) }()
		select {
		case err := <-read:
			t.Errorf("the read did not wait for the write: %v", err)
			read <- err
		case <-time.After(50 * time.Millisecond):
		}
	}
	step(t, v, m, op)
	must(t, <-read)
	if !slices.Equal(got, op.Data) {
		t.Error("the read that waited has not seen the write")
	}
	dev.between = nil
	must(t, pool.Close())
}

// TestCloseThatCannotCheckpointForgetsNothing: the file system is full when a volume is closed. What was applied is there when
// it is opened again, though not durable, as long as the pool stays open; and a crash takes back no more than that.
func TestCloseThatCannotCheckpointForgetsNothing(t *testing.T) {
	machine, pool, v, m := start(t)
	// The largest state there can be, so that a second one takes metadata pages that have not been used before.
	step(t, v, m, m.Write(0, 70), m.SetState(0, strings.Repeat("a", block.MaxStateBytes)))
	before, err := v.Checkpoint(ctx)
	must(t, err)
	step(t, v, m, m.Snapshot(), m.Write(3, 2), m.SetState(1, strings.Repeat("b", block.MaxStateBytes)), m.Write(128, 5))
	var calls int
	machine.dev.SetHook(failing(crashdev.Allocate, vfs.ErrNoSpace, &calls))
	err = v.Close()
	machine.dev.SetHook(nil)
	if !errors.Is(err, block.ErrNoSpace) || calls == 0 {
		t.Fatalf("close: %v after %d calls, want no space", err, calls)
	}
	v, err = pool.Open("a")
	must(t, err)
	if v.Durable() != before {
		t.Errorf("durable %d, want %d", v.Durable(), before)
	}
	must(t, m.Compare(v))
	crashed := *machine
	crashed.Crash(3)
	other, err := crashed.Open()
	must(t, err)
	w, err := other.Open("a")
	must(t, err)
	must(t, m.CompareOrCorrupt(w))
	must(t, m.Replay(w, nil))
	must(t, m.Compare(w))
	must(t, other.Close())
	must(t, pool.Close())
	pool, err = machine.Open()
	must(t, err)
	v, err = pool.Open("a")
	must(t, err)
	must(t, m.Compare(v))
	must(t, pool.Close())
}
