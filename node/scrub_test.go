package node

import (
	"bytes"
	"encoding/binary"
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

// rot flips one bit on a node's medium, behind the program's back, in each page of metadata of the kinds given (docs/FORMATS.md), in so many blocks
// that hold contents a guest has written, and in the checksums of as many others that nobody writes any more. It returns how many it has damaged, and
// what the checksums were, by their places.
func (c *cluster) rot(node string, g *guest, blocks int, stays func(n int64) bool, kinds ...byte) (data, pages int, sums map[int64]uint32) {
	c.t.Helper()
	path := filepath.Join(c.cfgs[node].Pools.File.Dir, "data")
	raw, err := os.ReadFile(path)
	if err != nil {
		c.t.Fatal(err)
	}
	sums = map[int64]uint32{}
	known := map[string]bool{} // whether it stays
	for n, v := range g.versions {
		if v != 0 {
			known[string(contents(n, v))] = stays(n)
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
		stays, ours := known[string(page)]
		at, sum := sumOf(raw, off)
		switch {
		case string(page[:4]) == "SPAG" && bytes.IndexByte(kinds, page[8]) >= 0:
			flip(int64(off) + 60)
			pages++
		case ours && stays && len(sums) < blocks && sum == block.Sum(page):
			flip(at)
			sums[at] = sum
		case ours && data < blocks:
			flip(int64(off) + 999)
			data++
		}
	}
	return data, pages, sums
}

// sumOf returns where the checksum of the block at an offset lies in a new pool, which has one region, and what it is; zeros of what is no block of data.
func sumOf(raw []byte, off int) (at int64, sum uint32) {
	le := binary.LittleEndian
	region := raw[32<<10+72:] // where it lies is the same in every superblock, generation 2 among them
	data, sums, slots := int(le.Uint64(region)), int(le.Uint64(region[8:])), int(le.Uint32(region[24:]))
	if data == 0 || off < data || off >= data+slots*block.ChunkSize {
		return 0, 0
	}
	at = int64(sums + (off-data)/block.Size*4)
	return at, le.Uint32(raw[at:])
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
	// In so many chunks that a page of checksums is all theirs: in one that changes damage would be overwritten before it is looked for.
	at := func(n int64) int64 { return still + n/16*block.BlocksPerChunk + n%16 }
	for n := int64(0); n < 256; n += 16 {
		g.write(at(n), 16)
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
			return err == nil && bytes.Contains(raw, []byte("SPAG")) && bytes.Contains(raw, contents(at(255), g.versions[at(255)]))
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
				if _, err := g.disk.ReadAt(t.Context(), buf, at(n)*block.Size); err != nil || !bytes.Equal(buf, contents(at(n), g.stays(at(n)))) {
					t.Errorf("block %d: %v, right: %t", at(n), err, err == nil)
					return
				}
				reads.Add(1)
			}
		})
		began := time.Now()
		before := scrubOf(t, cl, "vm1", node)
		g.mu.Lock()
		data, pages, sums := c.rot(node, g, 20, func(n int64) bool { return n >= still }, catalogue, root, directory, leaf)
		g.mu.Unlock()
		if data == 0 || pages == 0 || len(sums) != 20 {
			t.Fatalf("damaged %d blocks, %d pages and %d checksums", data, pages, len(sums))
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
		raw, err := os.ReadFile(filepath.Join(c.cfgs[node].Pools.File.Dir, "data"))
		if err != nil {
			t.Fatal(err)
		}
		for off, sum := range sums {
			if got := binary.LittleEndian.Uint32(raw[off:]); got != sum {
				t.Errorf("%s: the checksum at byte %d is %08x on the disk, not %08x", node, off, got, sum)
			}
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
