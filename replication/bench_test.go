package replication

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// BenchmarkWrite is a LUN on one data replica, or two and a witness, in one process, over loopback: everything below the target.
func BenchmarkWrite(b *testing.B) {
	for _, nodes := range [][]string{{"a"}, {"a", "b", "w"}} {
		for _, media := range []blockstore.Media{blockstore.MediaRAM, blockstore.MediaFile} {
			benchmarkWrite(b, media, nodes)
		}
	}
}

func benchmarkWrite(b *testing.B, media blockstore.Media, nodes []string) {
	{
		for _, w := range []struct{ bytes, depth int }{{4096, 1}, {4096, 32}, {1 << 20, 8}} {
			b.Run(fmt.Sprintf("%s/copies%d/%dK/depth%d", media, (len(nodes)+1)/2, w.bytes>>10, w.depth), func(b *testing.B) {
				c := &cluster{}
				if media == blockstore.MediaRAM {
					c.limits = Limits{JournalKeepBytes: 64 << 20, CheckpointBytes: 32 << 20}
				}
				c = newClusterWith(b, c, media, nodes...)
				g := c.group(c.owner())
				src := make([]byte, w.bytes)
				for i := range src {
					src[i] = byte(i)
				}
				b.SetBytes(int64(w.bytes))
				b.ResetTimer()
				var left atomic.Int64
				left.Store(int64(b.N))
				var wg sync.WaitGroup
				for range w.depth {
					wg.Go(func() {
						slots := int(c.geometry.Capacity.Bytes() / int64(w.bytes))
						for left.Add(-1) >= 0 {
							r := block.BytesRange(int64(rand.IntN(slots))*int64(w.bytes), int64(w.bytes))
							if err := g.Write(context.Background(), g.Fence(), r, src); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
			})
		}
	}
}
