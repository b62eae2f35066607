package prove

import (
	"context"
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/node/api"
	"sanctuary/target/initiator"
)

const (
	bulkWriters = 128
	bulkBytes   = 256 << 10
	// rssGrowth is how much more memory than at rest the owner may take with 128 writes of 256 KiB outstanding, 32 MiB in
	// all, and a peer that takes nothing: each byte may be held once by its session, once by the group (accepted and not settled), once
	// as an encoded entry, by the journal's newest entries (32 MiB) and by the queue to the peer (32 MiB). That is 160 MiB; Go's
	// collector lets garbage grow to as much again before it runs, and 64 MiB are for what the runtime has yet to give back.
	rssGrowth = 384 << 20
)

// TestProveMemoryBounded stops the owner's peer with 128 writes of 256 KiB outstanding. The writes must go on without it
// once it is given up, in bounded memory, and when it runs again it must come to hold the same.
func TestProveMemoryBounded(t *testing.T) {
	prove(t)
	const size = 512 << 20
	cl := startCluster(t, clusterSpec{media: "file", sizeBytes: size})
	l := cl.healthy()
	b := newBulk(t, cl, l, 0, size)
	b.write(t, size/bulkBytes) // once everywhere, so that what grows below is not the map of the LUN
	atRest := cl.residentBytes(l.Owner)

	stop := make(chan struct{})
	var load sync.WaitGroup
	load.Go(func() { b.run(t, stop) })
	endLoad := sync.OnceFunc(func() { close(stop); load.Wait() })
	t.Cleanup(endLoad)
	wait(t, time.Second)
	stopped := time.Now()
	peer := other(l.Owner)
	cl.pause(peer)
	before := b.done.Load()
	peak := cl.residentBytes(l.Owner)
	var degraded time.Duration
	for time.Since(stopped) < 8*time.Second { // the product gives a peer up after about a second
		peak = max(peak, cl.residentBytes(l.Owner))
		if degraded == 0 && b.done.Load() > before+2*bulkWriters {
			degraded = time.Since(stopped)
		}
		wait(t, 20*time.Millisecond)
	}
	if degraded == 0 {
		t.Errorf("only %d writes were answered in 8 s without the peer", b.done.Load()-before)
	}
	written := b.done.Load() - before
	cl.signal(peer, syscall.SIGCONT)
	resumed := time.Now()
	for time.Since(resumed) < 3*time.Second { // the peer catches up while the load goes on
		peak = max(peak, cl.residentBytes(l.Owner))
		wait(t, 20*time.Millisecond)
	}
	endLoad()
	after := cl.healthy()
	t.Logf("%s stopped: writes go on without it after %v, %d MiB written meanwhile; in sync %v after it went on", peer,
		degraded.Round(time.Millisecond), written*bulkBytes>>20, time.Since(resumed).Round(time.Millisecond))
	if after.Owner != l.Owner {
		t.Errorf("the owner changed from %s to %s for a peer that stopped", l.Owner, after.Owner)
	}
	t.Logf("owner's memory: %d MiB at rest, at most %d MiB with %d writes of %d KiB outstanding and a stopped peer", atRest>>20, peak>>20, bulkWriters, bulkBytes>>10)
	if peak > atRest+rssGrowth {
		t.Errorf("the owner took %d MiB more than at rest, the bound is %d", (peak-atRest)>>20, int64(rssGrowth)>>20)
	}
	stalls(t, "stopped peers", []time.Duration{time.Duration(b.longest.Load())}, 10*time.Second) // 128 writers share what the machine can do
	for _, node := range []string{alpha, beta} {
		cl.healthy()
		cl.move(node)
		b.verify(t, cl, node)
	}
}

// bulk writes extents of 256 KiB, each writer its own, so that what an extent must hold is known without a checker.
type bulk struct {
	disk        *initiator.Disk
	first, last int64 // bytes of the LUN it uses
	done        atomic.Int64
	longest     atomic.Int64 // nanoseconds
	values      atomic.Uint64

	mu   sync.Mutex // guards what follows
	held map[int64][]value
}

// newBulk opens the LUN for writes from byte first to byte last.
func newBulk(t *testing.T, c *cluster, l api.LUN, first, last int64) *bulk {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	d, err := initiator.OpenMultipath(ctx, initiator.MultipathConfig{Paths: c.paths(l)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return &bulk{disk: d, first: first, last: last, held: map[int64][]value{}}
}

// write makes about n writes, spread evenly, and returns when all are acknowledged.
func (b *bulk) write(t *testing.T, n int) {
	t.Helper()
	b.writers(t, func(made int) bool { return made*bulkWriters < n })
}

// run keeps 128 writes outstanding until stop is closed.
func (b *bulk) run(t *testing.T, stop <-chan struct{}) {
	b.writers(t, func(int) bool {
		select {
		case <-stop:
			return false
		default:
			return true
		}
	})
}

// writers has each writer go through its own extents, every 128th, round and round while more says so.
func (b *bulk) writers(t *testing.T, more func(made int) bool) {
	var wg sync.WaitGroup
	extents := (b.last - b.first) / bulkBytes
	for w := range min(bulkWriters, extents) {
		wg.Go(func() {
			p := make([]byte, bulkBytes)
			at := w
			for made := 0; more(made) && b.one(t, b.first+at*bulkBytes, p); made++ {
				if at += bulkWriters; at >= extents {
					at = w
				}
			}
		})
	}
	wg.Wait()
}

// one writes one extent with a value of its own; false ends its writer. Only one writer may use an extent at a time.
func (b *bulk) one(t *testing.T, off int64, p []byte) bool {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	v := value(b.values.Add(1))
	stamp(p, v, off)
	b.mu.Lock()
	b.held[off] = append(b.held[off], v) // may be there from now on
	b.mu.Unlock()
	start := time.Now()
	if _, err := b.disk.WriteAt(ctx, p, off); err != nil {
		if t.Context().Err() == nil { // otherwise the test has ended, for another reason
			t.Errorf("write at %d: %v", off, err)
		}
		return false
	}
	b.mu.Lock()
	b.held[off] = []value{v}
	b.mu.Unlock()
	b.done.Add(1)
	took := int64(time.Since(start))
	for was := b.longest.Load(); took > was && !b.longest.CompareAndSwap(was, took); was = b.longest.Load() {
	}
	return true
}

// stamp fills an extent so that every block of it names the value and its own place. It is cheap on purpose: the load
// generator shares the machine with what it loads.
func stamp(p []byte, v value, off int64) {
	for i := 0; i < len(p); i += block.Size {
		binary.LittleEndian.PutUint64(p[i:], uint64(v))
		binary.LittleEndian.PutUint64(p[i+8:], uint64(off)+uint64(i))
		binary.LittleEndian.PutUint64(p[i+block.Size-8:], ^uint64(v))
	}
}

// verify reads everything back through one node.
func (b *bulk) verify(t *testing.T, c *cluster, node string) {
	t.Helper()
	s := dialDirect(t, c.portal(c.owner(), node))
	defer s.Close()
	p := make([]byte, bulkBytes)
	bad := 0
	for off, values := range b.held {
		if err := s.Read(t.Context(), uint64(off)/block.SectorSize, bulkBytes/block.SectorSize, p); err != nil {
			t.Fatalf("read %d through %s: %v", off, node, err)
		}
		for i := 0; i < bulkBytes && bad < 10; i += block.Size {
			v, at := value(binary.LittleEndian.Uint64(p[i:])), binary.LittleEndian.Uint64(p[i+8:])
			if !slices.Contains(values, v) || at != uint64(off)+uint64(i) || binary.LittleEndian.Uint64(p[i+block.Size-8:]) != ^uint64(v) {
				t.Errorf("through %s, byte %d: value %d of byte %d is there, acknowledged was %d", node, off+int64(i), v, at, values)
				bad++
			}
		}
	}
	t.Logf("%d extents read back through %s", len(b.held), node)
}
