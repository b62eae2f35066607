//go:build linux && loopdev

package blockstore_test

import (
	"errors"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/vfs"
	"sanctuary/blockstore/vfs/loopdev"
)

// A device is made unknown as a pool, and only a pool is.
func TestEraseTakesTheHeaderOfADevicePoolAndOfNothingElse(t *testing.T) {
	device, _ := loopdev.New(t, loopdev.Config{SizeBytes: 8 << 20})
	put := func(text string) {
		t.Helper()
		d, err := vfs.OpenDevice(vfs.DeviceConfig{Path: device})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(d.WriteAt([]byte(text), 0), d.Sync(), d.Close()); err != nil {
			t.Fatal(err)
		}
	}
	cfg := blockstore.PoolConfig{Media: blockstore.MediaDevice, Path: device}
	put("XFSB")
	if err := blockstore.ErasePool(cfg); !errors.Is(err, blockstore.ErrNoPool) {
		t.Errorf("a file system: %v", err)
	}
	if found, err := vfs.Probe(device); err != nil || len(found) != 1 {
		t.Errorf("%v, %v", found, err)
	}
	put("SANCPOOL")
	if err := blockstore.ErasePool(cfg); err != nil {
		t.Fatal(err)
	}
	if found, err := vfs.Probe(device); err != nil || len(found) != 0 {
		t.Errorf("%v, %v", found, err)
	}
}
