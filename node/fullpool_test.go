package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/node/api"
	"sanctuary/node/client"
	"sanctuary/node/config"
	"sanctuary/target/initiator"
	"sanctuary/target/scsi"
)

// guest is an initiator that knows what its disk must hold: for each block the version that was acknowledged last.
type guest struct {
	t    *testing.T
	name string
	disk *initiator.Disk

	mu       sync.Mutex
	versions map[int64]uint64 // by block of 4 KiB; 0: zeros
	next     uint64
	denied   map[int64]bool // where the last write was refused
	resumed  int            // writes that were accepted where one had been refused
	refused  int            // 07h/27h/07h
	warned   int            // 06h/38h/07h
	early    bool
}

func newGuest(t *testing.T, l api.LUN) *guest {
	t.Helper()
	g := &guest{t: t, name: l.Name, versions: map[int64]uint64{}, denied: map[int64]bool{}}
	g.open(l)
	return g
}

func (g *guest) open(l api.LUN) {
	g.t.Helper()
	var paths []initiator.PathConfig
	for _, p := range l.Portals {
		paths = append(paths, initiator.PathConfig{Address: p.Address, Target: l.IQN})
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var err error
	g.disk, err = initiator.OpenMultipath(ctx, initiator.MultipathConfig{
		Paths: paths, Session: initiator.Config{InitiatorName: "iqn.2026-11.test:" + g.name}, OnAttempt: g.attempt,
	})
	if err != nil {
		g.t.Fatal(err)
	}
}

func (g *guest) attempt(a initiator.Attempt) {
	status := new(initiator.StatusError)
	if a.End.IsZero() || !errors.As(a.Err, &status) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case status.Key == scsi.UnitAttention && status.Code == 0x3807:
		g.warned++
	case status.Key == scsi.DataProtect && status.Code == 0x2707:
		g.refused++
		g.early = g.early || g.warned == 0
	}
}

func contents(n int64, version uint64) []byte {
	b := make([]byte, block.Size)
	for i := 0; version != 0 && i < len(b); i += 16 {
		binary.BigEndian.PutUint64(b[i:], uint64(n))
		binary.BigEndian.PutUint64(b[i+8:], version)
	}
	return b
}

// write writes blocks and says whether there was room. Nothing else but want of room may go wrong.
func (g *guest) write(first, count int64) bool {
	g.t.Helper()
	g.mu.Lock()
	g.next++
	version := g.next
	g.mu.Unlock()
	var data []byte
	for n := first; n < first+count; n++ {
		data = append(data, contents(n, version)...)
	}
	_, err := g.disk.WriteAt(g.t.Context(), data, first*block.Size)
	status := new(initiator.StatusError)
	if errors.As(err, &status) && status.Key == scsi.DataProtect && status.Code == 0x2707 {
		g.mu.Lock()
		g.denied[first] = true
		g.mu.Unlock()
		return false
	}
	if err != nil {
		g.t.Errorf("%s: write of %d blocks at %d: %v", g.name, count, first, err)
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for n := first; n < first+count; n++ {
		g.versions[n] = version
	}
	if g.denied[first] {
		delete(g.denied, first)
		g.resumed++
	}
	return true
}

// written returns the blocks that hold something.
func (g *guest) written() []int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := slices.Sorted(maps.Keys(g.versions))
	return slices.DeleteFunc(out, func(n int64) bool { return g.versions[n] == 0 })
}

func (g *guest) unmap(first, count int64) {
	g.t.Helper()
	if _, err := g.disk.Unmap(g.t.Context(), first*block.Size, count*block.Size); err != nil {
		g.t.Fatalf("%s: unmap: %v", g.name, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for n := first; n < first+count; n++ {
		g.versions[n] = 0
	}
}

// verify reads everything.
func (g *guest) verify() {
	g.t.Helper()
	const step = 64
	buf := make([]byte, step*block.Size)
	for first := int64(0); first < g.disk.Capacity().Bytes()/block.Size; first += step {
		if _, err := g.disk.ReadAt(g.t.Context(), buf, first*block.Size); err != nil {
			g.t.Fatalf("%s: read at block %d: %v", g.name, first, err)
		}
		for n := first; n < first+step; n++ {
			if got := buf[(n-first)*block.Size:][:block.Size]; !bytes.Equal(got, contents(n, g.versions[n])) {
				g.t.Fatalf("%s: block %d holds version %d, %d was acknowledged", g.name, n, binary.BigEndian.Uint64(got[8:]), g.versions[n])
			}
		}
	}
}

// load writes in order in the lower half, at random in the upper one, and over what is there, until until says so.
func (g *guest) load(wg *sync.WaitGroup, enough func() bool) {
	half := g.disk.Capacity().Bytes() / block.Size / 2
	wg.Go(func() {
		for n := int64(0); !enough(); n = (n + 16) % half {
			g.write(n, 16)
		}
	})
	wg.Go(func() {
		for !enough() {
			g.write(half+rand.Int64N(half), 1)
		}
	})
}

// fill takes what is left, chunk by chunk.
func fill(guests []*guest) {
	for _, g := range guests {
		for n := int64(0); n < g.disk.Capacity().Bytes()/block.Size; n += block.BlocksPerChunk {
			g.write(n, 1)
		}
	}
}

func poolFree(t *testing.T, cl *client.Client, node string) int64 {
	t.Helper()
	p, err := cl.Pool(t.Context(), node, "file")
	if err != nil {
		t.Fatal(err)
	}
	return p.FreeBytes
}

// roomAlerts is what the cluster says about room in pools, and anything else that is critical.
func roomAlerts(t *testing.T, cl *client.Client) string {
	t.Helper()
	st, err := cl.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, x := range st.Alerts {
		if what, _, about := strings.Cut(x.What, " full:"); about || x.Severity == api.SeverityCritical {
			out = append(out, x.Severity+": "+what)
		}
	}
	return strings.Join(out, "; ")
}

// sameOnDisk compares everything both nodes have of their volumes, the nodes being stopped.
func (c *cluster) sameOnDisk(volumes int) {
	c.t.Helper()
	var pools []*blockstore.Pool
	for _, node := range []string{"alpha", "beta"} {
		p, err := blockstore.OpenPool(blockstore.PoolConfig{Media: blockstore.MediaFile, Dir: c.cfgs[node].Pools.File.Dir})
		if err != nil {
			c.t.Fatal(err)
		}
		defer p.Close()
		pools = append(pools, p)
	}
	names, err := pools[0].Volumes()
	others, err2 := pools[1].Volumes()
	if err := errors.Join(err, err2); err != nil || len(names) != volumes || len(others) != volumes {
		c.t.Fatalf("%v on one node, %v on the other, %v", names, others, err)
	}
	for i, name := range names { // in the order of the LUNs' IDs; what follows is the replica's incarnation
		if lun, _, _ := strings.Cut(name, "."); !strings.HasPrefix(others[i], lun) {
			c.t.Fatalf("%v on one node, %v on the other", names, others)
		}
		a, err := pools[0].Open(name)
		b, err2 := pools[1].Open(others[i])
		if err := errors.Join(err, err2); err != nil {
			c.t.Fatal(err)
		}
		if a.Applied() != b.Applied() || !slices.Equal(a.Snapshots(), b.Snapshots()) {
			c.t.Fatalf("volume %s: entry %d and %d, snapshots %v and %v", name, a.Applied(), b.Applied(), a.Snapshots(), b.Snapshots())
		}
		readers := [][2]blockstore.Reader{{a, b}}
		for _, s := range a.Snapshots() {
			va, err := a.View(s.ID)
			vb, err2 := b.View(s.ID)
			if err := errors.Join(err, err2); err != nil {
				c.t.Fatal(err)
			}
			readers = append(readers, [2]blockstore.Reader{va, vb})
		}
		for i, r := range readers {
			whole := block.Range{Count: r[0].Geometry().Capacity}
			da, db := make([]byte, whole.Bytes()), make([]byte, whole.Bytes())
			if err := errors.Join(r[0].ReadAt(whole, da), r[1].ReadAt(whole, db)); err != nil || !bytes.Equal(da, db) {
				c.t.Fatalf("volume %s, state %d: not the same on both nodes, %v", name, i, err)
			}
		}
	}
}

// Two LUNs fill the smaller of two pools to its last chunk. What needs space is refused and everything else goes on; each way of freeing space lets
// writes go on; nothing that was acknowledged is lost, also by a restart of both nodes while the pool is full, and no copy goes out.
func TestFullPoolUnderLoadOfInitiators(t *testing.T) {
	c := newCluster(t)
	for node, capacity := range map[string]int64{"alpha": 64 << 20, "beta": 80 << 20} {
		cfg := c.cfgs[node]
		cfg.Pools.File.Capacity = config.Size(capacity)
		c.cfgs[node] = cfg
	}
	c.start("alpha", "beta", "witness")
	where := func(node string) string {
		return "Pool file of node " + node + " (" + c.cfgs[node].Pools.File.Dir + ") is"
	}
	nearly, fully := "warning: "+where("alpha")+" nearly", "critical: "+where("alpha") // beta's has a fifth left
	cl := c.client()
	ctx := t.Context()
	make1 := func(name string, size int64, owner string) api.LUN {
		t.Helper()
		if _, err := cl.CreateLUN(ctx, api.LUNSpec{Name: name, SizeBytes: size, Media: "file", Open: true, Preferred: owner}, 30*time.Second); err != nil {
			t.Fatal(err)
		}
		return c.healthy(cl, name)
	}
	vm3 := newGuest(t, make1("vm3", 8<<20, "alpha"))
	fill([]*guest{vm3}) // 8 MiB
	a, b := newGuest(t, make1("vm1", 48<<20, "alpha")), newGuest(t, make1("vm2", 48<<20, "beta"))
	both := []*guest{a, b}
	for n := int64(0); n < 32; n++ { // 8 MiB that a snapshot holds
		a.write(n*block.BlocksPerChunk, 1)
	}
	snap := snapshotOf(t, cl, "vm1", "before")

	// Up to the threshold, a tenth of the pool; then nothing new until every initiator has been told.
	var load sync.WaitGroup
	stop := make(chan struct{})
	below := func(bytes int64) func() bool {
		return func() bool {
			select {
			case <-stop:
				return true
			default:
				return poolFree(t, cl, "alpha") <= bytes
			}
		}
	}
	if got := roomAlerts(t, cl); got != "" {
		t.Errorf("with room left: %s", got)
	}
	for _, g := range both {
		g.load(&load, below(6<<20))
	}
	load.Wait()
	if got := roomAlerts(t, cl); got != nearly {
		t.Errorf("with a tenth left: %q, want %q", got, nearly)
	}
	for _, g := range both {
		until(t, "the initiator of "+g.name+" is warned", func() bool {
			g.write(g.written()[0], 1)
			return g.warned > 0 || t.Failed()
		})
	}
	if a.refused+b.refused > 0 {
		t.Errorf("refused before the pool was full: %d, %d", a.refused, b.refused)
	}

	// To the last chunk.
	for _, g := range both {
		g.load(&load, func() bool { g.mu.Lock(); defer g.mu.Unlock(); return g.refused > 20 || t.Failed() })
	}
	load.Wait()
	for _, g := range both {
		if g.warned != 1 {
			t.Errorf("%s was warned %d times on one nexus", g.name, g.warned)
		}
	}
	until(t, "the last chunk is taken", func() bool { fill(both); return poolFree(t, cl, "alpha") == 0 || t.Failed() })
	told := func(what, want string, more ...*guest) {
		t.Helper()
		last := ""
		until(t, what, func() bool {
			got := roomAlerts(t, cl)
			if got == want || t.Failed() {
				return true
			}
			if got != last {
				t.Logf("not yet that %s: %q", what, got)
			}
			last = got
			fill(more)
			return false
		})
	}
	full := func() {
		t.Helper()
		if a.write(a.disk.Capacity().Bytes()/block.Size-1, 1) && b.write(b.disk.Capacity().Bytes()/block.Size-1, 1) {
			until(t, "it is full", func() bool { fill(both); return poolFree(t, cl, "alpha") == 0 })
		}
		for _, n := range b.written()[:50] { // no snapshot holds them
			if !b.write(n, 1) {
				t.Fatalf("an overwrite of block %d of vm2 was refused", n)
			}
		}
		for _, g := range both {
			c.healthy(cl, g.name)
			g.verify()
		}
		told("the pool is called full, and no copy is out", fully, both...) // what is freed a little later is taken, too
	}
	full()
	resume := func(how string) {
		t.Helper()
		before := a.resumed + b.resumed
		until(t, "writes go on after "+how, func() bool { fill(both); return a.resumed+b.resumed > before || t.Failed() })
		until(t, "it is full again", func() bool { fill(both); return poolFree(t, cl, "alpha") == 0 || t.Failed() })
		full()
	}
	b.unmap(0, 6*block.BlocksPerChunk)
	told("the pool is nearly full after UNMAP", nearly)
	resume("UNMAP")

	// Both nodes go away and come back while it is full.
	for _, g := range append(both, vm3) {
		g.disk.Close()
	}
	for _, name := range []string{"alpha", "beta"} {
		c.stop(name)
	}
	c.sameOnDisk(3)
	c.start("alpha", "beta")
	cl = c.client()
	for _, g := range append(both, vm3) {
		g.open(c.healthy(cl, g.name))
	}
	full()
	if err := cl.DeleteSnapshot(ctx, "vm1", snap.ID); err != nil {
		t.Fatal(err)
	}
	resume("the deletion of a snapshot")
	vm3.verify()
	vm3.disk.Close()
	l, err := cl.LUN(ctx, "vm3")
	if err == nil {
		err = cl.DeleteLUN(ctx, l.ID, true)
	}
	if err != nil {
		t.Fatal(err)
	}
	told("nobody is warned after the deletion of a LUN", "")
	resume("the deletion of a LUN")
	for _, g := range both {
		if g.early {
			t.Errorf("%s was refused before it was warned", g.name)
		}
		if g.warned > 3 { // once, and once more when the deletion of vm3 had brought it above the threshold
			t.Errorf("%s was warned %d times", g.name, g.warned)
		}
		t.Logf("%s: %d blocks, refused %d times, warned %d times", g.name, len(g.written()), g.refused, g.warned)
		g.disk.Close()
	}
	for _, name := range []string{"alpha", "beta", "witness"} {
		c.stop(name)
	}
	c.sameOnDisk(2)
}
