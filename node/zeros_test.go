package node

import (
	"bytes"
	"testing"
	"time"

	"sanctuary/node/api"
	"sanctuary/target/initiator"
)

// Zeros that an initiator writes to a LUN with zero detection take no space on any copy; it is switched on and off while the LUN is used, by
// a node that need not own it, and clones have what their origin has.
func TestZerosWrittenByInitiatorsTakeNoSpace(t *testing.T) {
	c := newCluster(t)
	c.start("alpha", "beta", "witness")
	cl := c.client()
	if _, err := cl.CreateLUN(t.Context(), api.LUNSpec{Name: "vm1", SizeBytes: 16 << 20, Media: "file", Open: true, ZeroDetection: true}, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	l := c.healthy(cl, "vm1")
	if !l.ZeroDetection {
		t.Fatalf("%+v", l)
	}
	d := openDisk(t, l)
	defer d.Close()
	write := func(d *initiator.Disk, off int64, data []byte) {
		t.Helper()
		if _, err := d.WriteAt(t.Context(), data, off); err != nil {
			t.Fatal(err)
		}
	}
	holds := func(stored, allocated int64) {
		t.Helper()
		c.lun(cl, "vm1", func(l api.LUN) bool { // counted in the background
			return l.Allocated == allocated && l.Space != nil && l.Space.StoredBytes == stored
		})
	}
	pools := func(what string, allocated int64) {
		t.Helper()
		until(t, "both pools hold "+what, func() bool {
			p, err := cl.Pools(t.Context())
			n := 0
			for _, pool := range p.Pools {
				if pool.Media == "file" && pool.AllocatedBytes == allocated {
					n++
				}
			}
			return err == nil && n == 2
		})
	}
	const chunk = 256 << 10
	zeros := make([]byte, 4*chunk)
	write(d, 0, zeros)
	holds(0, 0)
	pools("zeros", 0)
	mixed := append(bytes.Repeat([]byte{7}, 8192), zeros[:chunk-8192]...)
	write(d, chunk, mixed)
	holds(8192, chunk)
	pools("data and zeros", chunk)
	got := make([]byte, len(zeros))
	if _, err := d.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, bytes.Join([][]byte{zeros[:chunk], mixed, zeros[:2*chunk]}, nil)) {
		t.Fatalf("reads something else: %v", err)
	}
	write(d, chunk, zeros)
	holds(0, 0)

	clone, err := cl.CloneLUN(t.Context(), "vm1", api.CloneSpec{Name: "vm2", Open: true}, 30*time.Second)
	if err != nil || !clone.ZeroDetection {
		t.Fatalf("%+v, %v", clone, err)
	}
	off := false
	changed, err := cl.ChangeLUN(t.Context(), "vm1", api.LUNChange{ZeroDetection: &off})
	if err != nil || changed.ZeroDetection {
		t.Fatalf("%+v, %v", changed, err)
	}
	until(t, "zeros are stored again", func() bool { // its owner hears of it from the catalog
		write(d, 0, zeros[:2*chunk])
		l, err := cl.LUN(t.Context(), "vm1")
		return err == nil && l.Allocated == 2*chunk
	})
}
