//go:build linux && loopdev

package node

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"sanctuary/blockstore/vfs"
	"sanctuary/blockstore/vfs/loopdev"
	"sanctuary/node/api"
)

// A LUN on raw block devices is served, is there after a restart, and the devices are free again when it is gone.
func TestPoolOnABlockDevice(t *testing.T) {
	c := newCluster(t)
	c.start("alpha", "beta", "witness")
	cl := c.client()
	devices := map[string]string{}
	for _, node := range []string{"alpha", "beta"} {
		devices[node], _ = loopdev.New(t, loopdev.Config{SizeBytes: 256 << 20, SectorBytes: map[string]int{"alpha": 512, "beta": 4096}[node]})
		p, err := cl.AddPool(t.Context(), node, api.PoolSpec{Name: "raw", Media: "device", Path: devices[node], Class: "hdd"})
		if err != nil || p.FreeBytes < 200<<20 {
			t.Fatalf("%+v, %v", p, err)
		}
		if _, err := cl.AddPool(t.Context(), node, api.PoolSpec{Media: "device", Path: devices[node]}); err == nil || !strings.Contains(err.Error(), `pool "raw"`) {
			t.Errorf("the same device twice: %v", err)
		}
		if _, err := vfs.OpenDevice(vfs.DeviceConfig{Path: devices[node]}); err == nil {
			t.Error("the device could be had by somebody else")
		}
	}
	createIn(t, cl, "raw", "hdd")
	l := c.lun(cl, "raw", func(l api.LUN) bool { return l.Health == api.HealthHealthy && len(l.Portals) == 2 })
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	want := bytes.Repeat([]byte("kept"), 1024)
	d := openDisk(t, l)
	if _, err := d.WriteAt(ctx, want, 4096); err != nil {
		t.Fatal(err)
	}
	d.Close()
	for _, name := range []string{"alpha", "beta", "witness"} {
		c.stop(name)
	}
	c.start("witness", "beta", "alpha")
	cl = c.client()
	l = c.lun(cl, "raw", func(l api.LUN) bool { return l.Health == api.HealthHealthy && len(l.Portals) == 2 })
	d = openDisk(t, l)
	got := make([]byte, len(want))
	if _, err := d.ReadAt(ctx, got, 4096); err != nil || !bytes.Equal(got, want) {
		t.Errorf("after the restart: %q, %v", got[:8], err)
	}
	d.Close()
	if err := cl.DeleteLUN(ctx, l.ID, true); err != nil {
		t.Fatal(err)
	}
	until(t, "the pool can be removed", func() bool {
		return cl.RemovePool(ctx, "alpha", "raw", api.PoolRemoval{Wipe: true}) == nil
	})
	found, err := vfs.Probe(devices["alpha"])
	if _, ours := found.Pool(); ours || err != nil {
		t.Errorf("wiped, and there is still %v (%v)", found, err)
	}
}
