package blockstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
)

func openMetadataStores(t *testing.T) map[string]Metadata {
	t.Helper()
	path := filepath.Join(t.TempDir(), "meta.db")
	if err := createBolt(path, func(MetadataTx) error { return nil }); err != nil {
		t.Fatal(err)
	}
	bolt, err := openBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]Metadata{"bbolt": bolt, "memory": NewMemoryMetadata()}
}

// TestMetadataStoresAgree is what the crash tests rest on: they use the memory store in the place of bbolt.
func TestMetadataStoresAgree(t *testing.T) {
	for name, m := range openMetadataStores(t) {
		t.Run(name, func(t *testing.T) {
			put := func(pairs ...string) error {
				return m.Update(func(tx MetadataTx) error {
					for i := 0; i < len(pairs); i += 2 {
						if err := tx.Put([]byte(pairs[i]), []byte(pairs[i+1])); err != nil {
							return err
						}
					}
					return nil
				})
			}
			dump := func(prefix string) (got string) {
				err := m.View(func(tx MetadataTx) error {
					return tx.Scan([]byte(prefix), func(k, v []byte) error {
						got += fmt.Sprintf("%s=%s ", k, v)
						return nil
					})
				})
				if err != nil {
					t.Fatal(err)
				}
				return got
			}
			if err := put("b2", "x", "a1", "y", "b1", "z", "c", ""); err != nil {
				t.Fatal(err)
			}
			if got := dump("b"); got != "b1=z b2=x " {
				t.Errorf("scan of b: %q", got)
			}
			refuse := errors.New("refuse")
			err := m.Update(func(tx MetadataTx) error {
				if err := errors.Join(tx.Put([]byte("b1"), []byte("other")), tx.Put([]byte("new"), nil), tx.Delete([]byte("a1")), tx.Delete([]byte("none"))); err != nil {
					return err
				}
				if got := tx.Get([]byte("b1")); string(got) != "other" {
					t.Errorf("a transaction does not see its own change: %q", got)
				}
				return refuse
			})
			if !errors.Is(err, refuse) {
				t.Errorf("got error %v", err)
			}
			if got := dump(""); got != "a1=y b1=z b2=x c= " {
				t.Errorf("after a refused transaction: %q", got)
			}
			err = m.View(func(tx MetadataTx) error {
				if tx.Get([]byte("none")) != nil {
					t.Error("Get of what is not there is not nil")
				}
				return tx.Put([]byte("a1"), nil)
			})
			if err == nil {
				t.Error("Put in a View: no error")
			}
			if got := dump(""); got != "a1=y b1=z b2=x c= " {
				t.Errorf("after a View: %q", got)
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSlotsAreTakenFromTheFrontAndOnlyOnce(t *testing.T) {
	for _, count := range []uint32{2, 64, 65, 130} {
		s := newSlots(count)
		all, err := s.take(int(count)-1, nil)
		if err != nil || all[0] != 1 || all[len(all)-1] != count-1 {
			t.Fatalf("%d slots: took %v, %v", count, all, err)
		}
		if _, err := s.take(1, nil); !errors.Is(err, block.ErrNoSpace) {
			t.Fatalf("took more than there are: %v", err)
		}
		for _, slot := range []uint64{0, 1, uint64(count), uint64(count) + 1} {
			if s.mark(slot) {
				t.Errorf("%d slots: slot %d could be marked", count, slot)
			}
		}
		s.release(all[len(all)-1])
		s.release(all[0])
		if again, err := s.take(1, nil); err != nil || again[0] != 1 {
			t.Errorf("took %v, %v, want the lowest", again, err)
		}
	}
}

// TestEveryFlippedBitOfMetadataIsNoticed: opening either fails with a clear error, or nothing is wrong.
func TestEveryFlippedBitOfMetadataIsNoticed(t *testing.T) {
	m := NewMemoryMetadata()
	arena := func() vfs.Dev {
		dev, err := vfs.NewArena(5 * block.ChunkSize)
		if err != nil {
			t.Fatal(err)
		}
		return dev
	}
	p, err := OpenPool(PoolConfig{Device: arena(), Metadata: m, CapacityBytes: 4 * block.ChunkSize})
	if err != nil {
		t.Fatal(err)
	}
	g := block.Geometry{Capacity: block.CountOf(2 * block.ChunkSize), LogicalBlockBytes: 512}
	v, err := p.Create("v", g)
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte{7}, 2*block.Size)
	ops := []block.Op{
		{Kind: block.OpWrite, Range: block.Range{Start: 8, Count: 16}, Data: data, Sums: block.AppendSums(nil, data)},
		{Kind: block.OpState, Data: []byte("state")},
	}
	if err := v.Apply(1, ops); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	header := encodeMediumHeader(p.header.uuid)
	for key, value := range m.records {
		if key[0] == keyName {
			continue // judged by what it leads to
		}
		for bit := range len(value) * 8 {
			damagedStore := m.Clone()
			b := bytes.Clone(value)
			b[bit/8] ^= 1 << (bit % 8)
			damagedStore.records[key] = b
			dev := arena()
			if err := dev.WriteAt(header, 0); err != nil {
				t.Fatal(err)
			}
			pool, err := OpenPool(PoolConfig{Device: dev, Metadata: damagedStore})
			if err == nil {
				_, err = pool.Open("v")
				if closeErr := pool.Close(); closeErr != nil {
					t.Fatal(closeErr)
				}
			}
			if corrupt := (*block.CorruptError)(nil); !errors.As(err, &corrupt) {
				t.Fatalf("bit %d of record %q: got error %v, want a CorruptError", bit, key, err)
			}
		}
	}
}

func TestUnknownVersionsAreRefused(t *testing.T) {
	later := func(sealed []byte, key []byte) []byte {
		b := bytes.Clone(sealed[:len(sealed)-4])
		b[0] = 2
		return seal(key, b)
	}
	if _, err := decodePoolHeader(later(poolHeader{capacityBytes: 1 << 20}.encode(), poolKey)); !errors.Is(err, ErrVersion) {
		t.Errorf("pool: %v", err)
	}
	key := volumeKey(keyVolume, 1)
	if _, err := decodeVolume(key, later(encodeVolume(key, block.Geometry{Capacity: 8, LogicalBlockBytes: 512}), key)); !errors.Is(err, ErrVersion) {
		t.Errorf("volume: %v", err)
	}
	for name, damage := range map[string]func(h []byte){
		"another version":  func(h []byte) { h[8] = 2 },
		"another pool":     func(h []byte) { h[20] ^= 1 },
		"another software": func(h []byte) { copy(h, "LABELONE") },
	} {
		dir := t.TempDir()
		p := openTestPool(t, dir)
		header := encodeMediumHeader(p.header.uuid)
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		damage(header)
		f, err := os.OpenFile(filepath.Join(dir, dataFile), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt(header, 0)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		_, err = OpenPool(PoolConfig{Media: MediaFile, Dir: dir})
		if err == nil || errors.Is(err, ErrVersion) != (name == "another version") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func openTestPool(t *testing.T, dir string) *Pool {
	t.Helper()
	p, err := OpenPool(PoolConfig{Media: MediaFile, Dir: dir, CapacityBytes: 4 * block.ChunkSize})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestFilePoolIsGuarded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "pool")
	p := openTestPool(t, dir)
	if _, err := OpenPool(PoolConfig{Media: MediaFile, Dir: dir}); !errors.Is(err, vfs.ErrLocked) {
		t.Errorf("opening twice: %v", err)
	}
	if _, err := p.Create("v", block.Geometry{Capacity: 8, LogicalBlockBytes: 512}); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenPool(PoolConfig{Media: MediaFile, Dir: dir, CapacityBytes: block.ChunkSize}); err == nil || !strings.Contains(err.Error(), "shrink") {
		t.Errorf("shrinking: %v", err)
	}
	p, err := OpenPool(PoolConfig{Media: MediaFile, Dir: dir, CapacityBytes: 9*block.ChunkSize + 5, Preallocate: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := p.Usage().CapacityBytes; got != 9*block.ChunkSize {
		t.Errorf("capacity after growing %d", got)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	// A data file of zeros under metadata with volumes is someone's mistake, not a new pool.
	if err := os.Truncate(filepath.Join(dir, dataFile), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenPool(PoolConfig{Media: MediaFile, Dir: dir}); err == nil {
		t.Error("data file emptied: no error")
	}
	if err := os.Remove(filepath.Join(dir, metaFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenPool(PoolConfig{Media: MediaFile, Dir: dir, CapacityBytes: 1 << 20}); err == nil || !strings.Contains(err.Error(), metaFile) {
		t.Errorf("metadata removed: %v", err)
	}
	if _, err := OpenPool(PoolConfig{Media: MediaFile, Dir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "CapacityBytes") {
		t.Errorf("new pool without size: %v", err)
	}
}

// TestDamagedBoltFileIsAnError overwrites pages of bbolt: no panic may get out.
func TestDamagedBoltFileIsAnError(t *testing.T) {
	dir := t.TempDir()
	p := openTestPool(t, dir)
	v, err := p.Create("v", block.Geometry{Capacity: block.CountOf(block.ChunkSize), LogicalBlockBytes: 512})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Checkpoint(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, metaFile))
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for page := 0; page < len(whole); page += 4096 {
		for _, junk := range []byte{0, 0xff, 0x5a} {
			b := bytes.Clone(whole)
			copy(b[page:], bytes.Repeat([]byte{junk}, 4096))
			if err := os.WriteFile(filepath.Join(dir, metaFile), b, 0o600); err != nil {
				t.Fatal(err)
			}
			p, err := OpenPool(PoolConfig{Media: MediaFile, Dir: dir})
			if err != nil {
				if errors.Is(err, vfs.ErrLocked) {
					t.Fatalf("page at %d filled with %#x: the previous attempt has left a lock behind", page, junk)
				}
				refused++
				continue
			}
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if refused < 3 {
		t.Errorf("%d of the damaged files were refused", refused)
	}
}

func TestConfigNamesTheField(t *testing.T) {
	for want, c := range map[string]PoolConfig{
		"Media":         {Media: "tape"},
		"Dir":           {Media: MediaFile},
		"CapacityBytes": {Media: MediaRAM},
		"capacity":      {Media: MediaRAM, CapacityBytes: 1},
		"Device":        {Metadata: NewMemoryMetadata()},
	} {
		if _, err := OpenPool(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got error %v, want one about %s", c, err, want)
		}
	}
	p, err := OpenPool(PoolConfig{Media: MediaRAM, CapacityBytes: 1 << 20})
	if err != nil || p.Usage().CapacityBytes != 1<<20 {
		t.Fatalf("RAM pool: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}
