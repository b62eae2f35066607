package blockstore

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sanctuary/blockstore/block"
)

// TestMapOfALargePool makes the map of a volume with every chunk allocated (the data themselves are not there), and measures what is
// resident and how long opening the pool takes, from the page cache and from the medium. SANCTUARY_SCALE_GIB sets the size; 1024 is what docs/BENCHMARKS.md reports.
func TestMapOfALargePool(t *testing.T) {
	gib := int64(16)
	if text := os.Getenv("SANCTUARY_SCALE_GIB"); text != "" {
		gib = 0
		for _, c := range text {
			gib = 10*gib + int64(c-'0')
		}
	}
	capacity := gib << 30
	cfg := PoolConfig{Media: MediaFile, Dir: t.TempDir(), CapacityBytes: capacity}
	p, err := OpenPool(cfg)
	if err != nil {
		t.Fatal(err)
	}
	v, err := p.Create("v", block.Geometry{Capacity: block.CountOf(capacity), LogicalBlockBytes: 512})
	if err != nil {
		t.Fatal(err)
	}
	before := heap()
	v.applyMu.Lock()
	chunks := chunksFor(v.capacityNow())
	for chunk := range chunks {
		if !p.slots.mark(chunk + 1) {
			t.Fatal("slot taken")
		}
		l, at := v.leafOf(chunk)
		l.slot[at], l.epoch[at], l.valid[at] = chunk+1, 1, ^uint64(0)
		v.touch(l, chunk, uint64(chunk)+1, false)
	}
	for n := range leavesFor(chunks) {
		l, _ := v.m.find(uint32(n) * leafChunks)
		v.resize(l)
	}
	v.allocatedChunks.Store(int64(chunks))
	v.stored.Store(int64(chunks) * block.BlocksPerChunk)
	v.applied.Store(uint64(chunks))
	v.applyMu.Unlock()
	resident := heap() - before
	start := time.Now()
	if _, err := v.Checkpoint(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d GiB allocated: the map takes %.1f MB (%.1f MB per TiB); written in %v", gib, float64(resident)/1e6, float64(resident)/1e6*1024/float64(gib), time.Since(start).Round(time.Millisecond))
	if perTiB := float64(resident) / 1e6 * 1024 / float64(gib); perTiB > 110 {
		t.Errorf("%.1f MB per TiB, at most 110 are promised", perTiB)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{"the page cache", "the medium"} {
		if from == "the medium" {
			forgetPages(t, cfg.Dir)
		}
		runtime.GC()
		start = time.Now()
		if p, err = OpenPool(cfg); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Open("v"); err != nil {
			t.Fatal(err)
		}
		took := time.Since(start)
		t.Logf("opened from %s in %v (%.2f s per TiB)", from, took.Round(time.Millisecond), took.Seconds()*1024/float64(gib))
		if took > 2*time.Second {
			t.Errorf("opened from %s in %v, in 2 s at most is promised for a TiB", from, took)
		}
		if u := p.Usage(); u.AllocatedBytes != capacity {
			t.Errorf("%+v", u)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	p, v = nil, nil
	before, peak := heap(), int64(0)
	start = time.Now()
	r, err := Inspect(context.Background(), InspectConfig{Path: cfg.Dir, Chunk: func(c InspectedChunk) {
		if c.Chunk == chunks-1 {
			peak = heap() - before
		}
	}})
	if err != nil || !r.Sound() || r.UsedSlots != int64(chunks) {
		t.Fatalf("%+v, %v", r, err)
	}
	t.Logf("inspected, with a list of all chunks, in %v; it takes %.1f MB (%.1f MB per TiB)", time.Since(start).Round(time.Millisecond), float64(peak)/1e6, float64(peak)/1e6*1024/float64(gib))
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// forgetPages has the kernel drop what it keeps in memory of the files in a directory.
func forgetPages(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, path := range files {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			t.Fatal(err)
		}
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
}
