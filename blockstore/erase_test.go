package blockstore_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/vfs"
)

// Erasing takes the pool and leaves whatever else is there; one that is open is left too.
func TestEraseTakesThePoolAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	cfg := blockstore.PoolConfig{Media: blockstore.MediaFile, Dir: dir, CapacityBytes: 1 << 20}
	if err := blockstore.ErasePool(cfg); !errors.Is(err, blockstore.ErrNoPool) {
		t.Errorf("nothing there: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "photo"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	pool, err := blockstore.OpenPool(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := blockstore.ErasePool(cfg); !errors.Is(err, vfs.ErrLocked) {
		t.Errorf("open: %v", err)
	}
	if has, err := blockstore.HasPool(dir); !has || err != nil {
		t.Errorf("open: %v, %v", has, err)
	}
	if err := pool.Close(); err != nil {
		t.Fatal(err)
	}
	if err := blockstore.ErasePool(cfg); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if has, herr := blockstore.HasPool(dir); has || herr != nil || err != nil || len(left) != 1 || left[0].Name() != "photo" {
		t.Errorf("left %v, %v", left, err)
	}
}
