package node

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sanctuary/blockstore/vfs"
	"sanctuary/node/api"
	"sanctuary/node/client"
	"sanctuary/replication/journal"
)

// newClassedCluster is a cluster, started, whose pools from the configuration are of class ssd, whatever they lie on.
func newClassedCluster(t *testing.T) *cluster {
	t.Helper()
	c := newCluster(t)
	for _, name := range []string{"alpha", "beta"} {
		cfg := c.cfgs[name]
		cfg.Pools.File.Class = "ssd"
		c.cfgs[name] = cfg
	}
	c.start("alpha", "beta", "witness")
	return c
}

// unmount leaves what a file system that is not mounted does: its mount point, which is empty. It returns where the pool is.
func unmount(t *testing.T, dir string) (away string) {
	t.Helper()
	away = dir + ".away"
	if err := os.Rename(dir, away); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return away
}

// addPools adds a pool of files of class hdd to both data nodes and returns their directories.
func addPools(t *testing.T, c *cluster, cl *client.Client, name string) map[string]string {
	t.Helper()
	dirs := map[string]string{}
	for _, node := range []string{"alpha", "beta"} {
		dirs[node] = filepath.Join(t.TempDir(), "pool")
		p, err := cl.AddPool(t.Context(), node, api.PoolSpec{Name: name, Media: "file", Path: dirs[node], CapacityBytes: 128 << 20, Class: "hdd"})
		if err != nil {
			t.Fatal(err)
		}
		if p.Node != node || p.Name != name || p.FreeBytes != 128<<20 || p.State != api.PoolOK {
			t.Fatalf("%+v", p)
		}
	}
	return dirs
}

// createIn creates a LUN of a class, as soon as gossip has told the catalog's leader of the pools.
func createIn(t *testing.T, cl *client.Client, name, class string) {
	t.Helper()
	until(t, "there is room for the LUN", func() bool {
		_, err := cl.CreateLUN(t.Context(), api.LUNSpec{Name: name, SizeBytes: 16 << 20, Class: class, Open: true}, 20*time.Second)
		if err != nil && !strings.Contains(err.Error(), "no room in a pool of class "+class) {
			t.Fatal(err)
		}
		return err == nil
	})
}

// holds says whether the pool of that name holds exactly the replicas of these LUNs.
func holds(t *testing.T, cl *client.Client, node, pool string, luns ...string) {
	t.Helper()
	p, err := cl.Pool(t.Context(), node, pool)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range p.Replicas {
		got = append(got, r.LUN)
	}
	if strings.Join(got, " ") != strings.Join(luns, " ") {
		t.Errorf("pool %s of %s holds %q, want %q", pool, node, got, luns)
	}
}

// A pool that is added while the node runs takes the LUNs that ask for its class, and they are there after a restart of everything.
func TestPoolAddedToARunningNodeServesItsClassAndLasts(t *testing.T) {
	c := newClassedCluster(t)
	cl := c.client()
	if _, err := cl.CreateLUN(t.Context(), api.LUNSpec{Name: "early", SizeBytes: 16 << 20, Class: "hdd"}, 0); err == nil {
		t.Fatal("a LUN was placed without a pool of its class")
	}
	dirs := addPools(t, c, cl, "slow")
	createIn(t, cl, "archive", "hdd")
	createIn(t, cl, "fast", "ssd")
	createIn(t, cl, "scratch", "ram")
	if _, err := cl.CreateLUN(t.Context(), api.LUNSpec{Name: "x", SizeBytes: 16 << 20, Class: "hdd", Media: "ram"}, 0); err == nil {
		t.Fatal("class hdd on media ram was accepted")
	}
	l := c.lun(cl, "archive", func(l api.LUN) bool { return l.Health == api.HealthHealthy && len(l.Portals) == 2 })
	if l.Class != "hdd" || l.Media != "file" {
		t.Errorf("class %q, media %q", l.Class, l.Media)
	}
	for _, node := range []string{"alpha", "beta"} {
		holds(t, cl, node, "slow", "archive")
		holds(t, cl, node, "file", "fast")
		holds(t, cl, node, "ram", "scratch")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	want := bytes.Repeat([]byte("kept"), 1024)
	d := openDisk(t, l)
	if _, err := d.WriteAt(ctx, want, 4096); err != nil {
		t.Fatal(err)
	}
	d.Close()
	list, err := cl.Pools(ctx)
	if err != nil || len(list.Pools) != 6 || len(list.Unreachable) != 0 {
		t.Fatalf("%+v, %v", list, err)
	}
	if err := cl.RemovePool(ctx, "alpha", "slow", api.PoolRemoval{}); err == nil || !strings.Contains(err.Error(), "of LUN archive") {
		t.Errorf("a pool was removed with what is in it: %v", err)
	}
	if err := cl.RemovePool(ctx, "alpha", "slow", api.PoolRemoval{Lost: true}); err == nil || !strings.Contains(err.Error(), "not lost") {
		t.Errorf("a pool that works was given up: %v", err)
	}

	for _, name := range []string{"alpha", "beta", "witness"} {
		c.stop(name)
	}
	c.start("witness", "beta", "alpha")
	cl = c.client()
	l = c.lun(cl, "archive", func(l api.LUN) bool { return l.Health == api.HealthHealthy && len(l.Portals) == 2 })
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
		err := cl.RemovePool(ctx, "alpha", "slow", api.PoolRemoval{Wipe: true})
		if err != nil && !strings.Contains(err.Error(), "holds 1 replicas") {
			t.Fatal(err)
		}
		return err == nil
	})
	if left, err := os.ReadDir(dirs["alpha"]); err != nil || len(left) != 0 {
		t.Errorf("wiped, and there is still %v (%v)", left, err)
	}
}

// A pool whose disk is not there at a start does not keep the node from starting: its replicas are out and kept, the rest is served.
// Given up, its replicas are made anew in another pool of the class.
func TestPoolThatIsMissingAtAStartIsOutByItselfAndCanBeGivenUp(t *testing.T) {
	c := newClassedCluster(t)
	cl := c.client()
	dirs := addPools(t, c, cl, "slow")
	createIn(t, cl, "archive", "hdd")
	createIn(t, cl, "fast", "ssd")
	for _, name := range []string{"archive", "fast"} {
		c.lun(cl, name, func(l api.LUN) bool { return l.Health == api.HealthHealthy })
	}
	c.stop("beta")
	away := unmount(t, dirs["beta"])
	c.start("beta")
	cl = c.client()
	c.lun(cl, "fast", func(l api.LUN) bool { return l.Health == api.HealthHealthy })
	c.lun(cl, "archive", func(l api.LUN) bool { return l.Health == api.HealthDegraded })
	p, err := cl.Pool(t.Context(), "beta", "slow")
	if err != nil || p.State != api.PoolFailed || !strings.Contains(p.Reason, "not mounted") || len(p.Replicas) != 1 {
		t.Fatalf("%+v, %v", p, err)
	}
	lost := p.Replicas[0].Replica
	if left, err := os.ReadDir(dirs["beta"]); err != nil || len(left) != 0 {
		t.Errorf("something was made where the pool is not: %v, %v", left, err)
	}
	beta, err := client.New(client.Config{Addresses: []string{c.cfgs["beta"].Listen.API}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(beta.Close)
	status, err := beta.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	alerted := false
	for _, a := range status.Alerts {
		alerted = alerted || a.Severity == api.SeverityCritical && strings.Contains(a.What, "Pool slow of node beta")
	}
	if !alerted {
		t.Errorf("no alert of it: %+v", status.Alerts)
	}

	// The disk will not come back: another pool of the class takes over.
	if _, err := cl.AddPool(t.Context(), "beta", api.PoolSpec{Media: "file", Path: filepath.Join(t.TempDir(), "new"), CapacityBytes: 128 << 20, Class: "hdd"}); err != nil {
		t.Fatal(err)
	}
	if err := cl.RemovePool(t.Context(), "beta", "slow", api.PoolRemoval{}); err == nil {
		t.Error("removed with a replica in it")
	}
	if err := cl.RemovePool(t.Context(), "beta", "slow", api.PoolRemoval{Lost: true}); err != nil {
		t.Fatal(err)
	}
	c.lun(cl, "archive", func(l api.LUN) bool { return l.Health == api.HealthHealthy })
	p, err = cl.Pool(t.Context(), "beta", "hdd1")
	if err != nil || len(p.Replicas) != 1 || p.Replicas[0].Replica == lost {
		t.Errorf("the new copy: %+v, %v; the lost one was %s", p, err, lost)
	}
	if _, err := os.Stat(filepath.Join(away, "pool.json")); err != nil {
		t.Errorf("what was given up was touched: %v", err)
	}
	archive, err := cl.LUN(t.Context(), "archive")
	if err != nil {
		t.Fatal(err)
	}
	c.stop("beta")
	folder, err := vfs.OpenDir(filepath.Join(c.cfgs["beta"].DataDir, journalDir))
	if err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(folder, journal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if j.Usable(volumeID(archive.ID, lost)) || !j.Usable(volumeID(archive.ID, p.Replicas[0].Replica)) {
		t.Error("the journal has kept the log of the lost copy, or lost that of the new one")
	}
}

// What older programs wrote about a replica says which pool it is in, and what they can read is written as they know it.
func TestReplicaFileNamesThePool(t *testing.T) {
	for text, want := range map[string]string{
		`{"version":1,"lun":"l","replica":"a/1","media":"file","witness":false,"started":true}`:                "file",
		`{"version":1,"lun":"l","replica":"a/1","media":"ram","witness":false,"started":true}`:                 "ram",
		`{"version":1,"lun":"l","replica":"a/1","media":"file","witness":true,"started":true}`:                 "",
		`{"version":2,"lun":"l","replica":"a/1","media":"file","witness":false,"started":true,"pool":"slow1"}`: "slow1",
		`{"version":3,"lun":"l","replica":"a/1","media":"file","witness":false,"started":true,"history":2}`:    "file",
	} {
		path := filepath.Join(t.TempDir(), "replica.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := readReplicaFile(path)
		if err != nil || f.pool() != want {
			t.Errorf("%s: pool %q, %v; want %q", text, f.pool(), err, want)
		}
	}
	path := filepath.Join(t.TempDir(), "replica.json")
	if err := os.WriteFile(path, []byte(`{"version":4}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readReplicaFile(path); err == nil {
		t.Error("a newer file was read")
	}
}

// A copy of the superblock that has rotted is no loss, and is told: by an alert of whichever node is asked.
func TestWhatHasRottedOfAPoolIsAnAlert(t *testing.T) {
	c := newClassedCluster(t)
	createIn(t, c.client(), "vm1", "ssd")
	c.stop("beta")
	f, err := os.OpenFile(filepath.Join(c.cfgs["beta"].Pools.File.Dir, "data"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{32 << 10, 96 << 10} { // the first copy, of either generation (docs/FORMATS.md)
		if _, err := f.WriteAt([]byte{0xff}, off+45); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	c.start("beta")
	until(t, "the alert", func() bool {
		s, err := c.clientOf("alpha").Status(t.Context())
		if err != nil {
			return false
		}
		for _, a := range s.Alerts {
			if a.Severity == api.SeverityWarning && a.Subject == "node/beta" && strings.HasPrefix(a.What, "1 page(s) of the metadata of pool file") && a.Data != "" && a.Next != "" {
				return true
			}
		}
		return false
	})
}
