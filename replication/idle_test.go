package replication

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/replication/journal"
	"sanctuary/replication/transport"
)

// fleet is many small LUNs on three nodes of this process, over loopback: each on two of them, with the third as its witness, and
// each node with a third of every role.
type fleet struct {
	t     testing.TB
	nodes map[string]*fleetNode
	luns  int
}

type fleetNode struct {
	log    *slog.Logger
	mux    *transport.Mux
	host   *Host
	pool   *blockstore.Pool
	groups []*Group // by LUN
	vols   []*blockstore.Volume
	done   chan struct{}
}

var fleetNames = []string{"a", "b", "c"}

func fleetMembers(lun int) []Member {
	var out []Member
	for i := range fleetNames {
		n := fleetNames[(lun+i)%len(fleetNames)]
		out = append(out, Member{ID: raft.ServerID(n + "/1"), Node: n, Witness: i == 2})
	}
	return out
}

func newFleet(t testing.TB, luns int) *fleet {
	t.Helper()
	f := &fleet{t: t, nodes: map[string]*fleetNode{}}
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("SANCTUARY_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	listeners, addrs := map[string]net.Listener{}, map[string]string{}
	for _, n := range fleetNames {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners[n], addrs[n] = l, l.Addr().String()
	}
	for _, name := range fleetNames {
		n := &fleetNode{done: make(chan struct{}), log: log.With("node", name)}
		f.nodes[name] = n
		var err error
		n.mux, err = transport.New(transport.Config{
			Cluster: "test", Node: name, NodeID: name + "-id", Logger: n.log,
			Resolve: func(peer string) (string, bool) { a, ok := addrs[peer]; return a, ok },
		})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer close(n.done)
			_ = n.mux.Serve(listeners[name])
		}()
		if n.host, err = NewHost(n.mux); err != nil {
			t.Fatal(err)
		}
		if n.pool, err = blockstore.OpenPool(blockstore.PoolConfig{Media: blockstore.MediaRAM, CapacityBytes: 16 << 30}); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(f.close)
	f.open(0, luns)
	return f
}

// open makes LUNs, from one number up to another.
func (f *fleet) open(from, to int) {
	t, geometry := f.t, block.Geometry{Capacity: block.CountOf(1 << 20), LogicalBlockBytes: 512}
	for i := from; i < to; i++ {
		for _, m := range fleetMembers(i) {
			n := f.nodes[m.Node]
			cfg := Config{
				LUN: fmt.Sprintf("00000000-0000-4000-8000-%012d", i), Epoch: 1, Self: m, Members: fleetMembers(i), Bootstrap: fleetMembers(i), First: true,
				Geometry: geometry, Journal: journal.NewMemory(), Logger: n.log,
			}
			if !m.Witness {
				v, err := n.pool.Create(cfg.LUN, geometry)
				if err != nil {
					t.Fatal(err)
				}
				n.vols = append(n.vols, v)
				cfg.Store = v
			}
			g, err := n.host.Open(cfg)
			if err != nil {
				t.Fatal(err)
			}
			n.groups = append(n.groups, g)
		}
	}
	f.luns = to
}

// stop ends a node as a crash would.
func (f *fleet) stop(name string) {
	n := f.nodes[name]
	if n == nil {
		return
	}
	delete(f.nodes, name)
	n.mux.Close()
	<-n.done
	var wg sync.WaitGroup
	for _, g := range n.groups {
		if g != nil {
			wg.Go(func() { _ = g.Close() })
		}
	}
	wg.Wait()
	for _, v := range n.vols {
		v.Close()
	}
	n.pool.Close()
}

func (f *fleet) close() {
	for _, n := range fleetNames {
		f.stop(n)
	}
}

// owner returns who serves a LUN, or nil.
func (f *fleet) owner(lun int) *Group {
	for _, n := range f.nodes {
		if g := n.groups[lun]; g != nil && g.tenure.Load() != nil {
			return g
		}
	}
	return nil
}

// served waits until every LUN is, and tells how long that took.
func (f *fleet) served() time.Duration {
	f.t.Helper()
	began := time.Now()
	for i := range f.luns {
		eventually(f.t, fmt.Sprintf("LUN %d is served", i), func() bool { return f.owner(i) != nil })
	}
	return time.Since(began)
}

// quiet waits until all LUNs are, and tells how long that took.
func (f *fleet) quiet() time.Duration {
	f.t.Helper()
	began := time.Now()
	for time.Since(began) < 5*time.Minute {
		n := 0
		for i := range f.luns {
			if g := f.owner(i); g != nil && g.quiet.Load() != nil {
				n++
			}
		}
		if n == f.luns {
			return time.Since(began)
		}
		time.Sleep(20 * time.Millisecond)
	}
	f.t.Fatal("LUNs that nobody uses do not fall quiet")
	return 0
}

// write stores a block through whoever owns the LUN, trying again as an initiator would, and tells how long that took.
func (f *fleet) write(lun int) time.Duration {
	f.t.Helper()
	began := time.Now()
	for ctx := context.Background(); ; {
		err := error(block.ErrUnavailable)
		if g := f.owner(lun); g != nil {
			err = g.Write(ctx, g.Fence(), blockRange(0), tagged(lun, 1))
		}
		switch {
		case err == nil:
			return time.Since(began)
		case !retryable(err) || time.Since(began) > 45*time.Second:
			f.t.Fatalf("LUN %d: %v", lun, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// idleCost is what a process uses while nothing happens.
type idleCost struct {
	CPU        float64 // of one core
	Heap       uint64  // bytes
	Goroutines int
	Mallocs    float64 // a second
}

func measureIdle(d time.Duration) idleCost {
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	cpu, began := processTime(), time.Now()
	time.Sleep(d)
	passed := time.Since(began).Seconds()
	used := (processTime() - cpu).Seconds()
	runtime.ReadMemStats(&after)
	runtime.GC()
	var live runtime.MemStats
	runtime.ReadMemStats(&live)
	return idleCost{
		CPU: used / passed, Heap: live.HeapInuse + live.StackInuse, Goroutines: runtime.NumGoroutine(),
		Mallocs: float64(after.Mallocs-before.Mallocs) / passed,
	}
}

func processTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// idleFleet is IDLE_LUNS that nobody uses, 1000 unless said, on three nodes in one process.
func idleFleet(b *testing.B) *fleet {
	luns := 1000
	if s := os.Getenv("IDLE_LUNS"); s != "" {
		var err error
		if luns, err = strconv.Atoi(s); err != nil {
			b.Fatal(err)
		}
	}
	f := newFleet(b, 0)
	for f.luns < luns { // three nodes' elections at once would be more than one machine has to give
		from := f.luns
		f.open(from, min(from+100, luns))
		for i := from; i < f.luns; i++ {
			f.write(i)
		}
		f.quiet()
	}
	time.Sleep(3 * time.Second)
	return f
}

// BenchmarkStandstill is what a standstill of the whole process costs LUNs that nobody uses: all of their owners at once. How soon each is served again, and all are
// quiet.
func BenchmarkStandstill(b *testing.B) {
	f := idleFleet(b)
	for _, pause := range []string{"0.4", "1", "2"} {
		b.Run(pause+"s", func(b *testing.B) {
			var served, quiet time.Duration
			for range b.N {
				if err := exec.Command("sh", "-c", fmt.Sprintf("kill -STOP %d; sleep %s; kill -CONT %d", os.Getpid(), pause, os.Getpid())).Run(); err != nil {
					b.Fatal(err)
				}
				time.Sleep(50 * time.Millisecond) // for leases that are over to be seen to be
				served += f.served()
				quiet += f.quiet()
			}
			b.ReportMetric(served.Seconds()/float64(b.N), "s/served")
			b.ReportMetric((served+quiet).Seconds()/float64(b.N), "s/quiet")
		})
	}
}

// BenchmarkIdle is what LUNs cost that nobody uses, three nodes' worth in one process.
func BenchmarkIdle(b *testing.B) {
	f := idleFleet(b)
	b.ResetTimer()
	var c idleCost
	for range b.N {
		c = measureIdle(10 * time.Second)
	}
	nodes := float64(len(fleetNames))
	b.ReportMetric(100*c.CPU/nodes, "%core/node")
	b.ReportMetric(float64(c.Heap)/nodes/(1<<20), "MiB/node")
	b.ReportMetric(float64(c.Goroutines)/nodes/float64(f.luns), "goroutines/replica")
	b.ReportMetric(c.Mallocs/nodes, "mallocs/s/node")
}
