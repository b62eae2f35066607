package blockstore

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/poolv1"
)

// unpackV1 unpacks a pool that version 1 of the format left behind: volume "a.1" of 1 GiB at entry 9, and "b.7" of 1 MiB in the middle of
// an import. A third one had been deleted.
func unpackV1(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	f, err := os.Open("testdata/pool-v1.tar.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for archive := tar.NewReader(z); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, h.Name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// v1Data is what was written into the pool.
func v1Data(n int, seed byte) []byte {
	b := make([]byte, n*block.Size)
	for i := range b {
		b[i] = byte(i/block.Size)*31 + seed + byte(i%251)
	}
	return b
}

func checkUpgraded(t *testing.T, dir string) {
	t.Helper()
	p, err := OpenPool(PoolConfig{Media: MediaFile, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	a, err := p.Open("a.1")
	if err != nil {
		t.Fatal(err)
	}
	if a.Applied() != 9 || a.Durable() != 9 || string(a.State().Blob) != "reservations" || a.State().Version != 1 || a.Geometry().Capacity.Bytes() != 1<<30 {
		t.Errorf("a.1: applied %d, durable %d, state %+v, %+v", a.Applied(), a.Durable(), a.State(), a.Geometry())
	}
	want := append(v1Data(64, 1), make([]byte, 64*block.Size)...)
	copy(want[10*block.Size:], v1Data(2, 3))
	got := make([]byte, len(want))
	if err := a.ReadAt(block.BytesRange(0, int64(len(got))), got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("a.1 does not hold what was written: %v", err)
	}
	got = got[:2*block.Size]
	if err := a.ReadAt(block.BytesRange(200000*block.Size, int64(len(got))), got); err != nil || !bytes.Equal(got, v1Data(2, 2)) {
		t.Errorf("the far end of a.1 does not hold what was written: %v", err)
	}
	var info ChunkInfo
	if err := a.ChunkInfo(0, &info); err != nil || info.Index != 9 {
		t.Errorf("chunk 0: %+v, %v", info, err)
	}
	b, err := p.Open("b.7")
	if err != nil {
		t.Fatal(err)
	}
	if !b.Inconsistent() || b.Geometry().LogicalBlockBytes != 4096 {
		t.Errorf("b.7: inconsistent %t, %+v", b.Inconsistent(), b.Geometry())
	}
	if bad, err := b.CheckChunk(0, &info); err != nil || bad != 0 || info.Valid != 1<<1|1<<5|1<<6|1<<7 {
		t.Errorf("b.7: bad %#x, %+v, %v", bad, info, err)
	}
	if ids, err := p.Volumes(); err != nil || len(ids) != 2 {
		t.Errorf("volumes %v, %v", ids, err)
	}
	if u := p.Usage(); u.CapacityBytes != 8*block.ChunkSize || u.AllocatedBytes != 3*block.ChunkSize {
		t.Errorf("usage %+v", u)
	}
	// It goes on as any other, into chunks that were free.
	data := v1Data(64, 7)
	for i := range int64(5) {
		op := block.Op{Kind: block.OpWrite, Range: block.BytesRange((1000+i)*block.ChunkSize, block.ChunkSize), Data: data, Sums: block.AppendSums(nil, data)}
		if err := a.Apply(uint64(20+i), []block.Op{op}); err != nil {
			t.Errorf("write after the upgrade: %v", err)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if p, err = OpenPool(PoolConfig{Media: MediaFile, Dir: dir, CapacityBytes: 20 * block.ChunkSize}); err != nil {
		t.Fatal(err)
	}
	if a, err = p.Open("a.1"); err != nil || a.Applied() != 24 {
		t.Fatalf("opened again: %v", err)
	}
	got = make([]byte, block.ChunkSize)
	if err := a.ReadAt(block.BytesRange(1004*block.ChunkSize, block.ChunkSize), got); err != nil || !bytes.Equal(got, data) {
		t.Errorf("after opening again and growing: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestPoolOfVersion1IsUpgraded(t *testing.T) {
	dir := unpackV1(t)
	checkUpgraded(t, dir)
	if _, err := os.Stat(filepath.Join(dir, poolv1.MetadataFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old metadata file is still there: %v", err)
	}
}

// TestUpgradeCanBeCutOffAnywhere begins it again with what is left after each of its writes; the last is that of the header.
func TestUpgradeCanBeCutOffAnywhere(t *testing.T) {
	whole := unpackV1(t)
	checkUpgraded(t, whole)
	after, err := os.ReadFile(filepath.Join(whole, dataFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, cut := range []string{"superblocks written", "half of the metadata written", "all but the old metadata's removal"} {
		dir := unpackV1(t)
		rewrite(t, dir, func(before []byte) {
			switch cut {
			case "superblocks written":
				copy(before[block.SectorSize:block.ChunkSize], after[block.SectorSize:block.ChunkSize])
			case "half of the metadata written":
				copy(before[block.SectorSize:block.ChunkSize/2], after[block.SectorSize:])
			}
		})
		if cut == "all but the old metadata's removal" {
			again := unpackV1(t)
			if err := upgradeFromV1(dir); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(filepath.Join(again, poolv1.MetadataFile), filepath.Join(dir, poolv1.MetadataFile)); err != nil {
				t.Fatal(err)
			}
		}
		checkUpgraded(t, dir)
	}
}

func TestDamagedPoolOfVersion1IsNotUpgraded(t *testing.T) {
	dir := unpackV1(t)
	path := filepath.Join(dir, poolv1.MetadataFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for page := 0; page < len(whole); page += 4096 {
		dir := unpackV1(t)
		b := bytes.Clone(whole)
		copy(b[page:], bytes.Repeat([]byte{0x5a}, 4096))
		if err := os.WriteFile(filepath.Join(dir, poolv1.MetadataFile), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := upgradeFromV1(dir); err != nil {
			refused++
			continue
		}
		// A page that does not matter, or bbolt has gone back to the transaction before: that is what version 1 would have opened.
		p, err := OpenPool(PoolConfig{Media: MediaFile, Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		a, err := p.Open("a.1")
		if err != nil || a.Applied() != 9 && a.Applied() != 5 {
			t.Errorf("page at %d damaged: %v", page, err)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if refused < 2 {
		t.Errorf("%d damaged files were refused", refused)
	}
	foreign := unpackV1(t)
	rewrite(t, foreign, func(b []byte) { b[20] ^= 1 })
	if err := upgradeFromV1(foreign); err == nil {
		t.Error("data of another pool: no error")
	}
}
