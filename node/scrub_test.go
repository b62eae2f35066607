package node

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/node/api"
	"sanctuary/node/catalog"
	"sanctuary/node/client"
)

// rot flips one bit on a node's medium, behind the program's back, in each page of metadata of the kinds given (docs/FORMATS.md), in the newest
// superblock's first copy, and in so many blocks that hold contents a guest has written. It returns how many of each it has damaged.
func (c *cluster) rot(node string, g *guest, blocks int, kinds ...byte) (data, pages int) {
	c.t.Helper()
	path := filepath.Join(c.cfgs[node].Pools.File.Dir, "data")
	raw, err := os.ReadFile(path)
	if err != nil {
		c.t.Fatal(err)
	}
	known := map[string]bool{}
	for n, v := range g.versions {
		if v != 0 {
			known[string(contents(n, v))] = true
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	flip := func(off int64) {
		if _, err := f.WriteAt([]byte{raw[off] ^ 4}, off); err != nil {
			c.t.Fatal(err)
		}
	}
	for off := 0; off+block.Size <= len(raw); off += block.Size {
		page := raw[off : off+block.Size]
		switch {
		case string(page[:4]) == "SPAG" && bytes.IndexByte(kinds, page[8]) >= 0:
			flip(int64(off) + 60)
			pages++
		case data < blocks && known[string(page)]:
			flip(int64(off) + 999)
			data++
		}
	}
	return data, pages
}

func scrubOf(t *testing.T, cl *client.Client, lun, node string) (out api.ReplicaScrub) {
	t.Helper()
	l, err := cl.LUN(t.Context(), lun)
	if err != nil {
		return out
	}
	for _, s := range l.Scrub {
		if strings.HasPrefix(s.Replica, node+"/") {
			out = s
		}
	}
	return out
}

// Bits flip on one node's disk, in data and in everything that describes it, while initiators use the LUN. The scrub that is started over the API finds and
// repairs them all, tells how far it is and what it has found, and no initiator reads anything wrong; nor after a restart.
func TestScrubRepairsOneNodesDiskWhileTheLUNIsUsed(t *testing.T) {
	const catalogue, root, directory, leaf = 1, 2, 3, 4
	c := newCluster(t)
	c.start("alpha", "beta", "witness")
	cl := c.client()
	l := c.create(cl, "vm1", "file")
	g := newGuest(t, l)
	still := g.disk.Capacity().Bytes() / block.Size / 2 // the blocks from here on are written once, and then only read
	for n := still; n < still+256; n += 16 {
		g.write(n, 16)
	}
	if _, err := cl.SetSettings(t.Context(), map[string]string{catalog.SettingScrubRate: "1024"}); err != nil {
		t.Fatal(err)
	}
	for _, node := range []string{"alpha", "beta"} {
		snapshotOf(t, cl, "vm1", "of-"+node) // what was freed is given back with a checkpoint: so the map is on the disk
		if err := cl.DeleteSnapshot(t.Context(), "vm1", "of-"+node); err != nil {
			t.Fatal(err)
		}
		until(t, "the map of "+node+" is on its disk, with everything that stays", func() bool {
			raw, err := os.ReadFile(filepath.Join(c.cfgs[node].Pools.File.Dir, "data"))
			return err == nil && bytes.Contains(raw, []byte("SPAG")) && bytes.Contains(raw, contents(still+255, g.versions[still+255]))
		})
		done := make(chan struct{})
		var load sync.WaitGroup
		var reads atomic.Int64
		load.Go(func() {
			for n := int64(0); ; n = (n + 7) % 512 {
				select {
				case <-done:
					return
				default:
					g.write(n, 1)
				}
			}
		})
		load.Go(func() {
			for n := int64(0); ; n = (n + 5) % 256 {
				select {
				case <-done:
					return
				default:
				}
				buf := make([]byte, block.Size)
				if _, err := g.disk.ReadAt(t.Context(), buf, (still+n)*block.Size); err != nil || !bytes.Equal(buf, contents(still+n, g.stays(still+n))) {
					t.Errorf("block %d: %v, right: %t", still+n, err, err == nil)
					return
				}
				reads.Add(1)
			}
		})
		began := time.Now()
		before := scrubOf(t, cl, "vm1", node)
		g.mu.Lock()
		data, pages := c.rot(node, g, 20, catalogue, root, directory, leaf)
		g.mu.Unlock()
		if data == 0 || pages == 0 {
			t.Fatalf("damaged %d blocks and %d pages", data, pages)
		}
		if _, err := cl.StartScrub(t.Context(), "vm1"); err != nil {
			t.Fatal(err)
		}
		until(t, "the pass of "+node+" is over", func() bool {
			s := scrubOf(t, cl, "vm1", node)
			return s.Completed != nil && s.Completed.After(began) && !s.Running
		})
		close(done)
		load.Wait()
		s := scrubOf(t, cl, "vm1", node)
		if s.Repaired == before.Repaired || s.Unrepaired != 0 || s.Pages == before.Pages || s.LastBad == nil || s.Bytes == 0 || s.Percent != 100 {
			t.Errorf("%s: %d blocks and %d pages were damaged: %+v", node, data, pages, s)
		}
		if reads.Load() == 0 {
			t.Error("nothing was read meanwhile")
		}
		g.verify()
	}
	st, err := cl.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	told := 0
	for _, a := range st.Alerts {
		if strings.Contains(a.What, "were repaired") && strings.Contains(a.Next, "Check the disk") {
			told++
		}
	}
	if told != 2 {
		t.Errorf("alerts %+v", st.Alerts)
	}
	g.disk.Close()
	for _, name := range []string{"alpha", "beta", "witness"} {
		c.stop(name)
	}
	c.sameOnDisk(1)
	c.start("alpha", "beta", "witness")
	cl = c.client()
	g.open(c.healthy(cl, "vm1"))
	g.verify()
	g.disk.Close()
	for _, node := range []string{"alpha", "beta"} {
		if s := scrubOf(t, cl, "vm1", node); s.Bad != 0 {
			t.Errorf("after a restart %s: %+v", node, s)
		}
	}
}

// stays returns the version of a block that nobody writes any more.
func (g *guest) stays(n int64) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.versions[n]
}

func TestScrubIsStartedAndPausedOnlyWhereThatMakesSense(t *testing.T) {
	c := newCluster(t)
	c.start("alpha", "beta", "witness")
	cl := c.client()
	c.create(cl, "vm1", "file")
	c.create(cl, "mem", "ram")
	want := func(err error, text string) {
		t.Helper()
		problem := new(api.Problem)
		if !errors.As(err, &problem) || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want it to say %q", err, text)
		}
	}
	paused := func(is bool) {
		t.Helper()
		until(t, "both copies know", func() bool {
			return scrubOf(t, cl, "vm1", "alpha").Paused == is && scrubOf(t, cl, "vm1", "beta").Paused == is
		})
	}
	_, err := cl.StartScrub(t.Context(), "mem")
	want(err, "RAM")
	_, err = cl.StartScrub(t.Context(), "nothing")
	want(err, "nothing")
	if _, err := cl.PauseScrub(t.Context(), "vm1", true); err != nil {
		t.Fatal(err)
	}
	paused(true)
	_, err = cl.StartScrub(t.Context(), "vm1")
	want(err, "paused")
	if _, err := cl.PauseScrub(t.Context(), "vm1", false); err != nil {
		t.Fatal(err)
	}
	paused(false)
	began := time.Now()
	if _, err := cl.StartScrub(t.Context(), "vm1"); err != nil {
		t.Fatal(err)
	}
	for _, node := range []string{"alpha", "beta"} {
		until(t, "a pass on "+node, func() bool { s := scrubOf(t, cl, "vm1", node); return s.Completed != nil && s.Completed.After(began) })
	}
	if _, err := cl.SetSettings(t.Context(), map[string]string{catalog.SettingScrubPaused: "*"}); err != nil {
		t.Fatal(err)
	}
	paused(true)
	_, err = cl.PauseScrub(t.Context(), "vm1", false)
	want(err, "setting")
}
