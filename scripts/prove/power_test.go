package prove

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"sanctuary/node/api"
	"sanctuary/scripts/prove/cutdisk"
)

// disk is what a node's data directory lies on.
type disk struct {
	*cutdisk.Disk
	dir     string
	unmount func() error
}

// mountDisks gives every node a disk of its own.
func (c *cluster) mountDisks() {
	c.t.Helper()
	c.disks = map[string]*disk{}
	for _, n := range allNodes {
		d := &disk{Disk: cutdisk.New(), dir: c.configs[n].DataDir}
		if err := os.MkdirAll(d.dir, 0o700); err != nil {
			c.t.Fatal(err)
		}
		c.disks[n] = d
		d.mount(c.t)
	}
}

func (d *disk) mount(t *testing.T) {
	t.Helper()
	var err error
	if d.unmount, err = d.Mount(d.dir); err != nil {
		t.Fatalf("%v: a campaign of power cuts needs root and /dev/fuse", err)
	}
}

// unmountDisks ends the disks, once no node runs any more. After a failure a copy of what was on them stays.
func (c *cluster) unmountDisks() {
	for n, d := range c.disks {
		if c.t.Failed() {
			if out, err := exec.Command("cp", "-a", "--sparse=always", d.dir, d.dir+".disk").CombinedOutput(); err != nil {
				c.t.Logf("copy of the disk of %s: %v: %s", n, err, out)
			}
		}
		if err := d.unmount(); err != nil {
			c.t.Error(err)
		}
	}
}

// cut takes the power from nodes, all at the same moment, and returns what their disks have lost.
func (c *cluster) cut(rng *rand.Rand, nodes ...string) (losses []string) {
	c.t.Helper()
	for _, n := range nodes {
		c.disks[n].PowerOff()
	}
	c.kill(nodes...)
	for _, n := range nodes {
		d := c.disks[n]
		if err := d.unmount(); err != nil {
			c.t.Fatal(err)
		}
		l := d.PowerOn(rng)
		d.mount(c.t)
		losses = append(losses, fmt.Sprintf("%s lost %d of %d unsynced writes and %d of %d names", n, l.Lost, l.Changes, l.Gone, l.Names))
	}
	return losses
}

// TestProvePowerCut cuts the power of machines under load, of all at once or of some, again and again. A node finds on its disk what it
// has synced, and of the rest any sectors (cutdisk). Nothing that was acknowledged may be missing, no node may refuse its own disk, and
// the LUN comes back by itself, whichever order they return in. Snapshots come and go meanwhile, and nodes stop in order: metadata is on
// its way at the cuts, too.
func TestProvePowerCut(t *testing.T) {
	rng := prove(t)
	cl := startCluster(t, clusterSpec{media: "file", sizeBytes: 128 << 20, keepBytes: 16 << 20, power: true})
	w := startLoad(t, cl, cl.healthy(), rng)
	var back []time.Duration
	for i := range count(t, "PROVE_CUTS", kills(t)) {
		wait(t, time.Duration(100+rng.IntN(900))*time.Millisecond)
		switch rng.IntN(3) {
		case 0:
			cl.shapeSnapshots(rng, i)
		case 1: // a checkpoint, and then little log
			n := allNodes[rng.IntN(len(allNodes))]
			cl.stop(n)
			cl.start(n)
			cl.healthy()
			wait(t, time.Duration(rng.IntN(300))*time.Millisecond)
		}
		var nodes []string
		switch l := cl.healthy(); rng.IntN(5) {
		case 0:
			nodes = []string{l.Owner}
		case 1:
			nodes = []string{other(l.Owner), witness}
		case 2:
			nodes = []string{alpha, beta}
		default:
			nodes = allNodes
		}
		losses := cl.cut(rng, nodes...)
		for _, n := range rng.Perm(len(nodes)) {
			cl.start(nodes[n])
			wait(t, time.Duration(rng.IntN(600))*time.Millisecond)
		}
		started := time.Now()
		served := w.answered(started)
		back = append(back, served.Sub(started))
		cl.healthy()
		t.Logf("cut %d: %q; served after %v, in sync after %v", i, losses, back[i].Round(time.Millisecond), time.Since(started).Round(time.Millisecond))
		w.heat(rng)
	}
	w.finish(cl)
	stalls(t, "returns from a power cut", back, 10*time.Second)
}

// shapeSnapshots makes a snapshot, or deletes one.
func (c *cluster) shapeSnapshots(rng *rand.Rand, n int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), healTimeout)
	defer cancel()
	c.until(ctx, "a snapshot made or deleted", func() error {
		l, err := c.api.Snapshots(ctx, lunName, false)
		if err != nil {
			return err
		}
		if len(l.Snapshots) > 3 {
			return c.api.DeleteSnapshot(ctx, lunName, l.Snapshots[rng.IntN(len(l.Snapshots))].ID)
		}
		_, err = c.api.CreateSnapshot(ctx, lunName, api.SnapshotSpec{Name: fmt.Sprintf("cut-%d", n)})
		return err
	})
}
