package blockstore_test

import (
	"math/rand/v2"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

const benchBytes = 256 << 20

func benchVolume(b *testing.B, cfg blockstore.PoolConfig) *blockstore.Volume {
	b.Helper()
	cfg.CapacityBytes = benchBytes
	p, err := blockstore.OpenPool(cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := p.Close(); err != nil {
			b.Error(err)
		}
	})
	v, err := p.Create("v", block.Geometry{Capacity: block.CountOf(benchBytes), LogicalBlockBytes: 512})
	if err != nil {
		b.Fatal(err)
	}
	op := writeOp(benchBytes / 64)
	for i := range 64 {
		op.Range.Start = block.Sector(uint64(i) * uint64(op.Range.Count))
		if err := v.Apply(uint64(i+1), []block.Op{op}); err != nil {
			b.Fatal(err)
		}
	}
	return v
}

func writeOp(n int) block.Op {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i * 7)
	}
	return block.Op{Kind: block.OpWrite, Range: block.BytesRange(0, int64(n)), Data: data, Sums: block.AppendSums(nil, data)}
}

func media(b *testing.B, run func(*testing.B, *blockstore.Volume)) {
	for name, cfg := range map[string]blockstore.PoolConfig{
		"ram":  {Media: blockstore.MediaRAM},
		"file": {Media: blockstore.MediaFile},
	} {
		b.Run(name, func(b *testing.B) {
			if cfg.Media == blockstore.MediaFile {
				cfg.Dir = b.TempDir() // of its own, also when -count repeats it
			}
			run(b, benchVolume(b, cfg))
		})
	}
}

func BenchmarkRead4K(b *testing.B) {
	media(b, func(b *testing.B, v *blockstore.Volume) {
		buf := make([]byte, block.Size)
		rnd := rand.New(rand.NewPCG(1, 2))
		b.SetBytes(block.Size)
		b.ReportAllocs()
		for b.Loop() {
			if err := v.ReadAt(block.BytesRange(rnd.Int64N(benchBytes/block.Size)*block.Size, block.Size), buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkApply(b *testing.B) {
	for _, n := range []int{block.Size, 1 << 20} {
		b.Run(map[int]string{block.Size: "4K", 1 << 20: "1M"}[n], func(b *testing.B) {
			media(b, func(b *testing.B, v *blockstore.Volume) {
				ops := []block.Op{writeOp(n)}
				rnd := rand.New(rand.NewPCG(1, 2))
				index := v.Applied()
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					index++
					ops[0].Range.Start = block.Sector(rnd.Int64N(int64(benchBytes/n))) * block.Sector(n/block.SectorSize)
					if err := v.Apply(index, ops); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

// BenchmarkCheckpoint writes 4 KiB to each of 256 chunks between two checkpoints.
func BenchmarkCheckpoint(b *testing.B) {
	media(b, func(b *testing.B, v *blockstore.Volume) {
		ops := []block.Op{writeOp(block.Size)}
		index := v.Applied()
		b.ReportAllocs()
		for b.Loop() {
			for i := range 256 {
				index++
				ops[0].Range.Start = block.Sector(i*chunk/block.SectorSize + int(index%64)*8)
				if err := v.Apply(index, ops); err != nil {
					b.Fatal(err)
				}
			}
			if _, err := v.Checkpoint(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
