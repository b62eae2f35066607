package replication

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/replication/journal"
)

// slowLog is a journal that takes its time for each write.
type slowLog struct {
	journal.Log
	wait *atomic.Int64 // nanoseconds
}

func (l slowLog) StoreLogs(logs []*raft.Log) error {
	time.Sleep(time.Duration(l.wait.Load()))
	return l.Log.StoreLogs(logs)
}

func (l slowLog) AwaitDurable(index uint64, quit <-chan struct{}) error {
	time.Sleep(time.Duration(l.wait.Load()))
	return l.Log.AwaitDurable(index, quit)
}

// When journals are slow, of the owner, of the copy or of both, writers are held back: a LUN takes in no more than
// Limits.InflightBytes, and memory does not grow with how much is asked for.
func TestSlowJournalHoldsWritersBack(t *testing.T) {
	const writers, each, inflight = 256, 256 << 10, 8 << 20 // 64 MiB are asked for at a time
	for name, slow := range map[string][]string{"the owner's": {"o"}, "the copy's": {"p"}, "both": {"o", "p"}} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			waits := map[string]*atomic.Int64{"a": {}, "b": {}, "w": {}}
			c := &cluster{
				limits: Limits{InflightBytes: inflight},
				wrap:   func(node string, l journal.Log) journal.Log { return slowLog{l, waits[node]} },
			}
			newClusterWith(t, c, blockstore.MediaFile, "a", "b", "w")
			owner := c.owner()
			g := c.group(owner)
			eventually(t, "both copies in sync", func() bool { return g.Status().Health == HealthHealthy })
			p := tagged(0, 1)
			buf := make([]byte, each)
			for i := 0; i < each; i += len(p) {
				copy(buf[i:], p)
			}
			if err := g.Write(ctx, g.Fence(), block.BytesRange(0, each), buf); err != nil {
				t.Fatal(err)
			}
			heap := func() int64 {
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return int64(m.HeapAlloc)
			}
			atRest := heap()
			for _, who := range slow {
				waits[map[string]string{"o": owner, "p": map[string]string{"a": "b", "b": "a"}[owner]}[who]].Store(int64(30 * time.Millisecond))
			}
			var load sync.WaitGroup
			var done atomic.Int64
			under, stop := context.WithCancel(ctx)
			for n := range writers {
				load.Go(func() {
					for under.Err() == nil {
						if g.Write(under, g.Fence(), block.BytesRange(int64(n%200)*each, each), buf) == nil {
							done.Add(1)
						}
					}
				})
			}
			peak, most := int64(0), 0
			for began := time.Now(); time.Since(began) < 2*time.Second; {
				peak = max(peak, heap()-atRest)
				g.writes.mu.Lock()
				held := 0
				for _, q := range g.writes.queue {
					held += q.bytes
				}
				for _, e := range g.writes.inflight {
					held += e.bytes
				}
				g.writes.mu.Unlock()
				most = max(most, held)
			}
			for _, w := range waits {
				w.Store(0)
			}
			stop()
			load.Wait()
			t.Logf("%d writes of %d KiB in 2 s; %d KiB accepted at most, %d MiB more of heap than at rest, on all three nodes", done.Load(), each>>10, most>>10, peak>>20)
			if done.Load() == 0 || most < inflight/2 {
				t.Error("the load was none")
			}
			if most > inflight+each {
				t.Errorf("%d bytes are accepted and not settled, the bound is %d", most, int64(inflight))
			}
			// Each accepted byte once as an entry, once at the copy; what is not durable; 8 MiB under way to a peer; and as much again that the collector has yet to see.
			if bound := int64(10 * inflight); peak > bound {
				t.Errorf("the heap grew by %d MiB, the bound is %d", peak>>20, bound>>20)
			}
		})
	}
}
