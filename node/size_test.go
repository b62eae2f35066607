package node

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/node/api"
	"sanctuary/node/client"
)

// resized makes a LUN larger and returns it when its owner serves that size.
func (c *cluster) resized(cl *client.Client, name string, size int64) {
	c.t.Helper()
	if _, err := cl.ChangeLUN(c.t.Context(), name, api.LUNChange{SizeBytes: &size}); err != nil {
		c.t.Fatal(err)
	}
	until(c.t, name+" has its new size", func() bool {
		d := openDisk(c.t, c.healthy(cl, name))
		defer d.Close()
		return d.Capacity().Bytes() == size
	})
}

// ends writes the first and the last block of a LUN over iSCSI, unless version is 0, and reads both: they hold these versions.
func (c *cluster) ends(cl *client.Client, name string, size int64, write bool, first, last uint64) {
	c.t.Helper()
	d := openDisk(c.t, c.healthy(cl, name))
	defer d.Close()
	if got := d.Capacity().Bytes(); got != size {
		c.t.Fatalf("%s has %d bytes, not %d", name, got, size)
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	at := []struct {
		block   int64
		version uint64
	}{{0, first}, {size/block.Size - 1, last}}
	for _, x := range at {
		if !write {
			break
		}
		if _, err := d.WriteAt(ctx, contents(x.block, x.version), x.block*block.Size); err != nil {
			c.t.Fatalf("%s: write of block %d: %v", name, x.block, err)
		}
	}
	for _, x := range at {
		got := make([]byte, block.Size)
		if _, err := d.ReadAt(ctx, got, x.block*block.Size); err != nil || !bytes.Equal(got, contents(x.block, x.version)) {
			c.t.Fatalf("%s: block %d is not version %d: %q…, %v", name, x.block, x.version, got[:16], err)
		}
	}
	if _, err := d.ReadAt(ctx, make([]byte, block.Size), size); err == nil {
		c.t.Errorf("%s: there is something beyond its end", name)
	}
}

// The smallest and the largest LUN are used at both of their ends, made larger, and are the same after a restart of everything.
func TestSmallestAndLargestLUN(t *testing.T) {
	const smallest, largest = block.Size, block.MaxVolumeBytes
	c := newCluster(t)
	c.start("alpha", "beta", "witness")
	cl := c.client()
	create := func(name string, size int64) error {
		_, err := cl.CreateLUN(t.Context(), api.LUNSpec{Name: name, SizeBytes: size, Media: "file", Open: true}, 30*time.Second)
		return err
	}
	for size, want := range map[int64]string{0: "size_bytes", smallest - 512: "size_bytes", largest + block.Size: "size_bytes", largest: "MiB free"} {
		if err := create("no", size); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%d bytes: %v, want %q", size, err, want)
		}
	}
	for _, name := range []string{"small", "large"} {
		if err := create(name, smallest); err != nil {
			t.Fatal(err)
		}
	}
	c.ends(cl, "small", smallest, true, 1, 1)
	c.resized(cl, "small", 2*smallest)
	c.ends(cl, "small", 2*smallest, false, 1, 0)
	c.ends(cl, "small", 2*smallest, true, 2, 3)

	// A new LUN must fit into what is free; one that grows need not.
	c.ends(cl, "large", smallest, true, 1, 1)
	c.resized(cl, "large", largest)
	c.ends(cl, "large", largest, false, 1, 0)
	c.ends(cl, "large", largest, true, 2, 3)
	more := int64(largest + block.Size)
	if _, err := cl.ChangeLUN(t.Context(), "large", api.LUNChange{SizeBytes: &more}); err == nil {
		t.Error("it can be made larger than the largest")
	}
	for _, name := range []string{"alpha", "beta", "witness"} {
		c.stop(name)
	}
	c.start("alpha", "beta", "witness")
	cl = c.client()
	c.ends(cl, "small", 2*smallest, false, 2, 3)
	c.ends(cl, "large", largest, false, 2, 3)
}

// Who says so gets a LUN of the largest size in pools of 256 MiB, and its copies move to where there is room for what they take.
func TestLargestLUNIsMade(t *testing.T) {
	c := newClusterOf(t, "alpha", "beta", "gamma", "witness")
	c.start("alpha", "beta", "gamma", "witness")
	cl := c.client()
	spec := api.LUNSpec{Name: "large", SizeBytes: block.MaxVolumeBytes, Media: "file", Open: true}
	if _, err := cl.CreateLUN(t.Context(), spec, 30*time.Second); err == nil || !strings.Contains(err.Error(), "MiB free") {
		t.Errorf("unasked for: %v", err)
	}
	spec.Overcommit = true
	if _, err := cl.CreateLUN(t.Context(), spec, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	c.ends(cl, "large", block.MaxVolumeBytes, true, 1, 2)
	nodes := map[string]bool{"alpha": true, "beta": true, "gamma": true}
	var from string
	for _, r := range c.lun(cl, "large", api.LUN.Served).Replicas {
		if delete(nodes, r.Node); r.Role == api.RoleData && !r.IsOwner {
			from = r.Node
		}
	}
	for to := range nodes {
		if _, err := cl.ChangeReplicas(t.Context(), "large", api.ReplicaChange{Add: []string{to}, Remove: []string{from}}, 20*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	c.lun(cl, "large", func(l api.LUN) bool { return l.Health == api.HealthHealthy && l.Settled() })
	c.ends(cl, "large", block.MaxVolumeBytes, false, 1, 2)
}
