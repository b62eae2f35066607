//go:build linux && loopdev

package blockstore_test

import (
	"os"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/blockstore/storetest"
	"sanctuary/blockstore/vfs"
	"sanctuary/blockstore/vfs/loopdev"
)

// A device is looked at while its pool is open, which keeps it claimed, and afterwards; looking keeps nobody from opening it.
func TestInspectLooksAtADeviceInUse(t *testing.T) {
	device, _ := loopdev.New(t, loopdev.Config{SizeBytes: 8 << 20})
	cfg := blockstore.PoolConfig{Media: blockstore.MediaDevice, Path: device}
	pool, err := blockstore.OpenPool(cfg)
	must(t, err)
	v, err := pool.Create("v", crashGeometry)
	must(t, err)
	m := storetest.NewModel(crashGeometry)
	must(t, v.Apply(1, []block.Op{m.Write(3, 20)}))
	must(t, v.Close())
	if pid, held := vfs.Holder(device); !held || pid != os.Getpid() {
		t.Errorf("held by %d, %t", pid, held)
	}
	look, err := vfs.OpenReadOnly(device)
	must(t, err)
	defer look.Close()
	for range 2 {
		r, err := blockstore.Inspect(t.Context(), blockstore.InspectConfig{Path: device, Data: true})
		must(t, err)
		if !r.Sound() || r.MediumBytes != 8<<20 || r.CheckedBytes != 20*block.Size || len(r.Volumes) != 1 {
			t.Errorf("%+v", r)
		}
		must(t, pool.Close())
	}
	pool, err = blockstore.OpenPool(cfg)
	must(t, err)
	must(t, pool.Close())
}
