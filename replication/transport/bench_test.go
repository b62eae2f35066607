package transport

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// BenchmarkPipeline is the transport alone: one group, one follower that accepts at once, one entry a request.
func BenchmarkPipeline(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10, 1 << 20} {
		for _, inflight := range []int{1, 4, 16} {
			b.Run(fmt.Sprintf("%dKiB/inflight-%d", size>>10, inflight), func(b *testing.B) {
				p := newPair(b, func(c *GroupConfig) { c.MaxInflightRequests, c.MaxInflightBytes = inflight, 64<<20 })
				p.net.set("b", p.b.addr) // without the tap
				p.serve(b)
				pipe, err := p.from.AppendEntriesPipeline("server-b", "b")
				if err != nil {
					b.Fatal(err)
				}
				data := make([]byte, size)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				b.ResetTimer()
				var wg sync.WaitGroup
				wg.Go(func() {
					for range b.N {
						if f := <-pipe.Consumer(); f.Error() != nil {
							b.Error(f.Error())
							return
						}
					}
				})
				for i := range b.N {
					if _, err := pipe.AppendEntries(request(uint64(i+1), data), new(raft.AppendEntriesResponse)); err != nil {
						b.Fatal(err)
					}
				}
				wg.Wait()
				b.StopTimer()
				_ = pipe.Close()
			})
		}
	}
}

// BenchmarkRaft is three nodes on in-memory stores, so that only the transport differs from run to run.
func BenchmarkRaft(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10} {
		for _, writers := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("%dKiB/writers-%d", size>>10, writers), func(b *testing.B) {
				c := newTrio(b, 1, func(r *replica) {
					r.config = func(cfg *raft.Config) {
						cfg.MaxAppendEntries, cfg.BatchApplyCh = 64, true
						cfg.HeartbeatTimeout, cfg.ElectionTimeout, cfg.LeaderLeaseTimeout = 5*time.Second, 5*time.Second, 5*time.Second
					}
				})
				rs := c.groups[0]
				apply(b, rs, []byte("first"))
				l := leader(rs)
				data := make([]byte, size)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				b.ResetTimer()
				var wg sync.WaitGroup
				for w := range writers {
					wg.Go(func() {
						for i := w; i < b.N; i += writers {
							if err := l.raft.Apply(data, 10*time.Second).Error(); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.StopTimer()
			})
		}
	}
}

func BenchmarkHeartbeat(b *testing.B) {
	p := newPair(b, nil)
	p.net.set("b", p.b.addr)
	p.serve(b)
	b.ReportAllocs()
	for b.Loop() {
		if err := p.from.AppendEntries("server-b", "b", &raft.AppendEntriesRequest{Term: 2}, new(raft.AppendEntriesResponse)); err != nil {
			b.Fatal(err)
		}
	}
}
