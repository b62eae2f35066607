package replication

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// BenchmarkForegroundDuringARebuild measures 4 KiB writes of one writer without a rebuild, beside one that keeps to its share, and beside
// one that does not (BusyPercent 100). The rebuild never ends by itself: when it does, the copy is taken away again.
func BenchmarkForegroundDuringARebuild(b *testing.B) {
	for _, x := range []struct {
		name    string
		percent int
	}{{"none", 0}, {"20 percent", 20}, {"100 percent", 100}} {
		b.Run(x.name, func(b *testing.B) {
			const size = 512 << 20
			ctx := context.Background()
			c := &cluster{
				limits: Limits{JournalKeepBytes: 1 << 20, CheckpointBytes: 4 << 20}, pool: 3 * size, rebuild: RebuildConfig{BusyPercent: max(x.percent, 1)},
				geometry: block.Geometry{Capacity: block.CountOf(size), LogicalBlockBytes: 512},
			}
			newClusterWith(b, c, blockstore.MediaFile, "a", "b", "w")
			owner := c.owner()
			away := map[string]string{"a": "b", "b": "a"}[owner]
			g := c.group(owner)
			buf := make([]byte, 256<<10)
			for v := range 2 { // the second time without the copy, so that it has to be rebuilt
				for off := int64(0); off < size; off += int64(len(buf)) {
					for i := range buf {
						buf[i] = byte(off>>18) + byte(v)
					}
					if err := g.Write(ctx, g.Fence(), block.BytesRange(off, int64(len(buf))), buf); err != nil {
						b.Fatal(err)
					}
				}
				c.stop(away)
			}
			write := func(n int) {
				if err := g.Write(ctx, g.Fence(), blockRange(n), tagged(n, 1)); err != nil {
					b.Fatal(err)
				}
			}
			for began := time.Now(); time.Since(began) < time.Second; { // the node is in use
				write(1)
			}
			var copied atomic.Int64
			if x.percent > 0 {
				c.start(away, false)
				eventually(b, "the rebuild has begun", func() bool { write(1); return c.group(away).Status().Copied > 0 })
			}
			var took []time.Duration
			began := time.Now()
			for b.Loop() {
				at := time.Now()
				write(len(took) * 7 % (size / block.Size))
				took = append(took, time.Since(at))
				if x.percent > 0 {
					copied.Store(c.group(away).Status().Copied)
				}
			}
			passed := time.Since(began)
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
			b.ReportMetric(float64(len(took))/passed.Seconds(), "IOPS")
			b.ReportMetric(float64(copied.Load())/1e6/passed.Seconds(), "MB/s-rebuilt")
			b.ReportMetric(0, "ns/op")
		})
	}
}
