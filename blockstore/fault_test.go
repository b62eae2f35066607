package blockstore_test

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/blockstore/storetest"
	"sanctuary/blockstore/vfs"
	"sanctuary/blockstore/vfs/crashdev"
)

// fault fails one operation of a kind, the nth, with an error. The medium is well again after it.
type fault struct {
	kind  crashdev.Kind
	nth   int
	err   error
	fired bool
	after int // operations since
}

func (f *fault) hook(k crashdev.Kind, _, _ int64) error {
	if f.fired {
		f.after++
	}
	if k != f.kind {
		return nil
	}
	f.nth--
	if f.nth != -1 {
		return nil
	}
	f.fired = true
	return f.err
}

// TestEveryFaultIsFinal fails every operation of scripted runs once: whoever has asked gets it, everything else does from
// then on, the medium is not asked again, and the journal heals what is lost.
func TestEveryFaultIsFinal(t *testing.T) {
	t.Parallel()
	every := map[crashdev.Kind]int{crashdev.Read: 23, crashdev.Write: 2, crashdev.Sync: 1, crashdev.Discard: 1, crashdev.Allocate: 3}
	for name, s := range scripts {
		for kind, every := range every {
			if storetest.RaceEnabled || testing.Short() {
				every *= 10
			}
			t.Run(fmt.Sprint(name, " ", kind), func(t *testing.T) {
				t.Parallel()
				runs := 0
				for nth := 0; ; nth += every {
					f := &fault{kind: kind, nth: nth, err: syscall.EIO}
					machine := newSimulated(s.chunks*chunk, -1)
					machine.hook = f.hook
					w, err := runScript(machine, s)
					if !f.fired {
						if err != nil {
							t.Fatal(err)
						}
						break
					}
					if err := final(w, f, err); err != nil {
						t.Fatalf("%v number %d: %v", kind, nth, err)
					}
					if err := recovered(w, uint64(nth)); err != nil {
						t.Fatalf("%v number %d: %v", kind, nth, err)
					}
					runs++
				}
				if runs == 0 {
					t.Errorf("no %v in this script", kind)
				}
			})
		}
	}
}

// final checks what a pool does after a fault with which the script has ended.
func final(w *storetest.World, f *fault, err error) error {
	if !errors.Is(err, syscall.EIO) {
		return fmt.Errorf("the script ended with %w, want EIO", err)
	}
	if w.Pool == nil {
		return nil // it could not be opened
	}
	if !errors.Is(err, block.ErrFailed) || !errors.Is(w.Pool.Failed(), block.ErrFailed) {
		return fmt.Errorf("the script ended with %w, the pool says %w; want ErrFailed", err, w.Pool.Failed())
	}
	f.after = 0
	got := map[string]error{}
	for _, x := range w.Members {
		v := x.Volume
		if v == nil {
			continue
		}
		before := v.Durable()
		got["apply"] = v.Apply(x.Model.Last()+9, []block.Op{x.Model.Write(0, 1)})
		got["apply of nothing"] = v.Apply(x.Model.Last()+10, nil)
		got["read"] = v.ReadAt(block.Range{Count: 1}, make([]byte, 512))
		_, got["checkpoint"] = v.Checkpoint(ctx)
		_, _, got["allocated"] = v.Allocated(block.Range{Count: 8})
		_, got["reclaim"] = v.Reclaim(1)
		_, got["space"] = v.Space(ctx)
		got["diff"] = v.Diff(block.SnapshotID{}, block.SnapshotID{}, func(block.Range) error { return errors.New("called") })
		got["chunk info"] = v.ChunkInfo(0, new(blockstore.ChunkInfo))
		got["import"] = v.BeginImport(ctx)
		for _, s := range x.Model.Snapshots() {
			if view, err := v.View(s.ID); err == nil {
				got["view"] = view.ReadAt(block.Range{Count: 1}, make([]byte, 512))
			}
			_, got["clone"] = w.Pool.Clone("c", x.Name, s.ID)
		}
		if v.Durable() != before {
			return fmt.Errorf("durable %d after the failure, was %d", v.Durable(), before)
		}
	}
	if errors.Is(err, block.ErrClosed) {
		return fmt.Errorf("closed: %w", err)
	}
	_, got["create"] = w.Pool.Create("new", crashGeometry)
	_, got["open"] = w.Pool.Open("new")
	got["delete"] = w.Pool.Delete("new")
	for what, err := range got {
		// Closing ends with the failure too, and a closed pool says that it is closed.
		if !errors.Is(err, block.ErrFailed) && !errors.Is(err, block.ErrClosed) {
			return fmt.Errorf("%s after the failure: %w", what, err)
		}
	}
	if f.after != 0 {
		return fmt.Errorf("the medium was asked %d times after it had failed", f.after)
	}
	return nil
}

// TestFullFileSystemAtEveryAllocation: the file system of a thin medium has no room, once. Nothing has been changed then,
// and everything goes on.
func TestFullFileSystemAtEveryAllocation(t *testing.T) {
	t.Parallel()
	for name, s := range scripts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for nth := 0; ; nth++ {
				f := &fault{kind: crashdev.Allocate, nth: nth, err: vfs.ErrNoSpace}
				machine := newSimulated(s.chunks*chunk, -1)
				machine.hook = f.hook
				s.thin = true
				w, err := runScript(machine, s)
				if w.Pool == nil && errors.Is(err, vfs.ErrNoSpace) {
					continue // there was no room for making the pool
				}
				if err == nil {
					err = recovered(w, uint64(nth))
				}
				if err != nil {
					t.Fatalf("allocation %d: %v", nth, err)
				}
				if !f.fired {
					break
				}
			}
		})
	}
}
