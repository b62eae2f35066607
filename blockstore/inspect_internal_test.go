package blockstore

import (
	"bytes"
	"context"
	"math/bits"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/poolv1"
	"sanctuary/blockstore/vfs/crashdev"
)

// senselessPool is a pool with an origin, its clone, and a volume of its own. What a test does to it goes to the medium as if the software had written it.
type senselessPool struct {
	p                    *Pool
	origin, clone, alone *Volume
	t                    *testing.T
}

func (s *senselessPool) check(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *senselessPool) apply(v *Volume, op block.Op) {
	s.t.Helper()
	s.check(v.Apply(v.Applied()+1, []block.Op{op}))
}

func fill(start, n int64) block.Op {
	data := make([]byte, n*block.Size)
	for i := range data {
		data[i] = byte(start) + byte(i/block.Size) + 1
	}
	return block.Op{Kind: block.OpWrite, Range: block.BytesRange(start*block.Size, n*block.Size), Data: data, Sums: block.AppendSums(nil, data)}
}

// commit writes the first leaf and the root of a volume.
func (s *senselessPool) commit(v *Volume) {
	s.t.Helper()
	l, _ := v.m.find(0)
	v.markDirty(l, 0)
	v.dirty = true
	_, err := v.Checkpoint(context.Background())
	s.check(err)
}

// TestInspectFindsWhatMakesNoSense: every page is whole, and what they say together is not possible.
func TestInspectFindsWhatMakesNoSense(t *testing.T) {
	leafOf := func(v *Volume) *leaf { l, _ := v.m.find(0); return l }
	for _, c := range []struct {
		name, kind, what string
		findings         int
		spoil            func(s *senselessPool)
	}{
		{"nothing", "", "", 0, func(s *senselessPool) { s.commit(s.alone) }},
		{"slot in two volumes", "slot", "used twice: by chunk 0 of volume origin and by chunk 1 of volume alone", 1, func(s *senselessPool) {
			leafOf(s.alone).slot[1] = leafOf(s.origin).slot[0]
			s.commit(s.alone)
		}},
		{"slot beyond the end", "leaf", "slot 40 of 16", 1, func(s *senselessPool) { leafOf(s.alone).slot[0] = 40; s.commit(s.alone) }},
		{"blocks in one place", "leaf", "in the same place of slot", 1, func(s *senselessPool) {
			l := leafOf(s.alone)
			l.setLayers(0, []layer{{bits: 3, epoch: 1, slot: l.slot[0]}, {bits: 2, epoch: 0, slot: l.slot[0]}})
			s.commit(s.alone)
		}},
		{"layer of the future", "leaf", "epoch 7, the newest is 1", 1, func(s *senselessPool) { leafOf(s.alone).epoch[0] = 7; s.commit(s.alone) }},
		{"entry of the future", "leaf", "entry 99 changed it", 1, func(s *senselessPool) { leafOf(s.alone).index[0] = 99; s.commit(s.alone) }},
		{"chunk beyond the end", "leaf", "chunk 4: it is beyond the end", 1, func(s *senselessPool) { leafOf(s.alone).index[4] = 1; s.commit(s.alone) }},
		{"lost at an earlier start", "lost", "64 blocks are marked as lost", 1, func(s *senselessPool) {
			leafOf(s.alone).setLayers(2, []layer{{bits: ^uint64(0), slot: lostSlot}})
			s.commit(s.alone)
		}},
		{"live path", "lineage", "its epoch 5", 1, func(s *senselessPool) {
			s.alone.setLineage(&lineage{epoch: 5, live: path{{1, 1}}})
			s.commit(s.alone)
		}},
		{"snapshot's path", "lineage", "has the path", 1, func(s *senselessPool) {
			l := *s.origin.lineage.Load()
			l.snapshots = append([]snapshot(nil), l.snapshots...)
			l.snapshots[0].path = path{{2, 1}}
			s.origin.setLineage(&l)
			s.commit(s.origin)
		}},
		{"two snapshots of one ID", "lineage", "two snapshots have the ID", 1, func(s *senselessPool) {
			l := s.alone.lineage.Load().withSnapshot(block.Snapshot{}, 0).withSnapshot(block.Snapshot{}, 0)
			s.alone.setLineage(l)
			s.commit(s.alone)
		}},
		{"snapshot of the future", "lineage", "entry 77 made snapshot", 1, func(s *senselessPool) {
			s.alone.setLineage(s.alone.lineage.Load().withSnapshot(block.Snapshot{Index: 77}, 0))
			s.commit(s.alone)
		}},
		{"clone of nothing", "clone", "it is a clone of epoch 1 of volume 1", 1, func(s *senselessPool) {
			s.origin.setLineage(s.origin.lineage.Load().without(0, false))
			s.commit(s.origin)
		}},
		{"name", "volume", `the catalogue calls it "other", its root "alone"`, 1, func(s *senselessPool) {
			s.check(s.p.publishAlone(func(c *catalogueState, _ *pageWriter) error {
				c.entries[s.alone.number] = catalogueEntry{"other", c.entries[s.alone.number].root}
				return nil
			}))
		}},
		{"number", "volume", "volume number 3, the next to be given away is 3", 1, func(s *senselessPool) {
			s.check(s.p.publishAlone(func(c *catalogueState, _ *pageWriter) error { c.super.nextVolume = 3; return nil }))
		}},
		{"one page as both copies", "page", "used twice, the second time by the root of volume 3", 1, func(s *senselessPool) {
			s.check(s.p.publishAlone(func(c *catalogueState, _ *pageWriter) error {
				e := c.entries[s.alone.number]
				e.root[1] = e.root[0]
				c.entries[s.alone.number] = e
				return nil
			}))
		}},
		{"copies that differ", "root", "the two copies are both whole and differ", 1, func(s *senselessPool) {
			s.check(s.p.publishAlone(func(c *catalogueState, w *pageWriter) (err error) {
				e, r := c.entries[s.alone.number], s.alone.capture().record
				r.floor = 1
				e.root[1], _, err = w.put(object{kind: kindVolume, volume: s.alone.number}, r.encode())
				c.entries[s.alone.number] = e
				return err
			}))
		}},
		{"root of another volume", "root", "", 2, func(s *senselessPool) {
			s.check(s.p.publishAlone(func(c *catalogueState, _ *pageWriter) error {
				c.entries[s.alone.number] = catalogueEntry{"alone", c.entries[s.clone.number].root}
				return nil
			}))
		}},
		{"regions in one place", "superblock", "two parts of the pool lie in the same place", 1, func(s *senselessPool) {
			s.check(s.p.publishAlone(func(c *catalogueState, _ *pageWriter) error {
				r := c.super.regions[0]
				r.sums += pageBytes * int64(r.pageCount)
				c.super.regions = []region{r}
				return nil
			}))
		}},
		{"medium cut off", "medium", "it has been cut off", 1, func(s *senselessPool) {
			s.check(s.p.publishAlone(func(c *catalogueState, _ *pageWriter) error {
				r := c.super.regions[0]
				c.super.regions = append(c.super.regions, planRegion(r.end(), 1))
				c.super.capacityBytes += block.ChunkSize
				return nil
			}))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dev := crashdev.New(MediumBytes(16*block.ChunkSize), crashdev.NewPower(-1))
			p, err := OpenPool(PoolConfig{Device: dev, CapacityBytes: 16 * block.ChunkSize})
			s := &senselessPool{p: p, t: t}
			s.check(err)
			g := block.Geometry{Capacity: block.CountOf(4 * block.ChunkSize), LogicalBlockBytes: 512}
			s.origin, err = p.Create("origin", g)
			s.check(err)
			s.apply(s.origin, fill(0, 3))
			id := block.SnapshotID{9}
			s.apply(s.origin, block.SnapshotOp(block.SnapshotSpec{ID: id, Name: "s"}))
			s.clone, err = p.Clone("clone", "origin", id)
			s.check(err)
			s.alone, err = p.Create("alone", g)
			s.check(err)
			s.apply(s.alone, fill(0, 1))
			s.apply(s.alone, fill(64, 1))
			s.commit(s.alone)
			c.spoil(s)
			r, err := Inspect(t.Context(), InspectConfig{Device: dev, Path: "medium"})
			s.check(err)
			if len(r.Findings) != c.findings {
				t.Fatalf("%d findings: %+v", len(r.Findings), r.Findings)
			}
			for _, f := range r.Findings {
				if f.Kind != c.kind || !strings.Contains(f.What, c.what) || f.Data == "" || f.Next == "" || f.Path != "medium" {
					t.Errorf("found %+v, want a %s: %s", f, c.kind, c.what)
				}
			}
		})
	}
}

// TestInspectReadsPoolsOfVersion1 looks at one as it was left, with bytes flipped, and after the upgrade; the last but one step of which may be all that was done.
func TestInspectReadsPoolsOfVersion1(t *testing.T) {
	first := int64(0) // offset of a block
	look := func(dir string) *Inspected {
		t.Helper()
		r, err := Inspect(t.Context(), InspectConfig{Path: dir, Data: true, Chunk: func(c InspectedChunk) {
			for _, y := range c.Layers {
				first = y.Offset + int64(bits.TrailingZeros64(y.Blocks))*block.Size
			}
		}, Volume: "a.1"})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	flip := func(path string, off int64) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err == nil {
			b[off] ^= 16
			err = os.WriteFile(path, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := unpackV1(t)
	before := map[string][]byte{}
	for _, name := range []string{dataFile, poolv1.MetadataFile} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		before[name] = b
	}
	for _, path := range []string{dir, filepath.Join(dir, dataFile)} {
		r := look(path)
		if !r.Sound() || r.FormatVersion != 1 || len(r.Volumes) != 2 || r.Volumes[0].Name != "a.1" || r.Volumes[0].Applied != 9 || r.Volumes[0].SizeBytes != 1<<30 ||
			!r.Volumes[1].Rebuilding || r.UsedSlots != 3 || r.CapacityBytes != 8*block.ChunkSize || r.CheckedBytes != r.Volumes[0].StoredBytes+r.Volumes[1].StoredBytes {
			t.Errorf("%+v", r)
		}
	}
	for name, was := range before {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(b, was) {
			t.Errorf("%s was changed: %v", name, err)
		}
	}
	data, meta := filepath.Join(dir, dataFile), filepath.Join(dir, poolv1.MetadataFile)
	record := int64(bytes.LastIndex(before[poolv1.MetadataFile], []byte("reservations"))) // the others are of earlier transactions
	for _, c := range []struct {
		path, kind string
		off        int64
	}{{data, "header", 20}, {data, "block", first + 5}, {meta, "record", record}} {
		flip(c.path, c.off)
		if r := look(dir); len(r.Findings) != 1 || r.Findings[0].Kind != c.kind || r.Findings[0].Path != c.path {
			t.Errorf("byte %d of %s flipped: %+v", c.off, c.path, r.Findings)
		}
		flip(c.path, c.off)
	}
	if err := upgradeFromV1(dir); err != nil {
		t.Fatal(err)
	}
	if r := look(dir); !r.Sound() || r.FormatVersion != 2 || len(r.Volumes) != 2 || r.Volumes[0].Applied != 9 || len(r.Notes) != 0 {
		t.Errorf("upgraded: %+v", r)
	}
	if err := os.WriteFile(meta, before[poolv1.MetadataFile], 0o600); err != nil {
		t.Fatal(err)
	}
	if r := look(dir); !r.Sound() || r.FormatVersion != 2 || len(r.Notes) != 1 {
		t.Errorf("upgraded but for the last step: %+v", r)
	}
}

// TestInspectWritesNothing: what it looks at refuses to be written to, through everything the walk is made of.
func TestInspectWritesNothing(t *testing.T) {
	dev := crashdev.New(MediumBytes(4*block.ChunkSize), crashdev.NewPower(-1))
	p, err := OpenPool(PoolConfig{Device: dev, CapacityBytes: 4 * block.ChunkSize})
	if err != nil {
		t.Fatal(err)
	}
	dev.SetHook(func(k crashdev.Kind, off, n int64) error {
		if k != crashdev.Read {
			t.Errorf("%v of %d bytes at %d", k, n, off)
		}
		return nil
	})
	if r, err := Inspect(t.Context(), InspectConfig{Device: dev, Data: true}); err != nil || !r.Sound() {
		t.Errorf("%+v, %v", r, err)
	}
	if w := (readOnly{dev}); w.WriteAt(make([]byte, 1), 0) == nil || w.Sync() == nil || w.Discard(0, 1) == nil {
		t.Error("a medium that is looked at can be written to")
	}
	dev.SetHook(nil)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}
