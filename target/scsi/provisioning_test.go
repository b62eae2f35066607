package scsi_test

import (
	"context"
	"encoding/binary"
	"slices"
	"testing"

	"sanctuary/blockstore/block"
	"sanctuary/target/scsi"
	"sanctuary/target/scsi/scsitest"
)

// extent is an LBA status descriptor.
type extent struct {
	lba    uint64
	blocks uint32
	status byte
}

// lbaStatus asks for the status from lba on and takes the answer apart.
func (g *rig) lbaStatus(lba uint64, allocation int) []extent {
	g.t.Helper()
	c := cdb(0x9E, 0x12)
	binary.BigEndian.PutUint64(c[2:], lba)
	binary.BigEndian.PutUint32(c[10:], uint32(allocation))
	r := g.run(g.nexus, c, allocation, nil)
	g.want(r, "good")
	if len(r.data) < 8 || len(r.data) < min(allocation, int(binary.BigEndian.Uint32(r.data))+4) {
		g.t.Fatalf("LBA status of %d bytes: % x", len(r.data), r.data)
	}
	var list []extent
	for d := r.data[8:]; len(d) >= 16; d = d[16:] {
		list = append(list, extent{binary.BigEndian.Uint64(d), binary.BigEndian.Uint32(d[8:]), d[12]})
	}
	return list
}

func TestLBAStatusFollowsWritesAndUnmaps(t *testing.T) {
	for _, logical := range []int{512, 4096} {
		g := newRig(t, logical, nil)
		per := uint64(4096 / logical) // blocks of the LUN in one of the store
		all := uint32(testSectors * 512 / logical)
		at := func(lba uint64) byte { return byte(lba) }
		block1 := make([]byte, logical)
		for _, b := range []uint64{2, 3, 7} {
			g.want(g.run(g.nexus, cdb(0x2A, 0, 0, 0, 0, at(b*per), 0, 0, 1), 0, block1), "good") // zeros are stored as well
		}
		want := []extent{
			{0, uint32(2 * per), 1},
			{2 * per, uint32(2 * per), 0},
			{4 * per, uint32(3 * per), 1},
			{7 * per, uint32(per), 0},
			{8 * per, all - uint32(8*per), 1},
		}
		if got := g.lbaStatus(0, 1024); !slices.Equal(got, want) {
			t.Errorf("logical blocks of %d: %v, want %v", logical, got, want)
		}
		// Cut off by the allocation length, and from the middle of an extent.
		if got := g.lbaStatus(0, 24); !slices.Equal(got, want[:1]) {
			t.Errorf("24 bytes: %v, want %v", got, want[:1])
		}
		if got := g.lbaStatus(3*per+per-1, 24); !slices.Equal(got, []extent{{3*per + per - 1, 1, 0}}) {
			t.Errorf("last block of an extent: %v", got)
		}
		list := unhex("0016 0010 00000000 00000000000000 00 000000 00 00000000")
		list[15], list[19] = at(2*per), byte(per)
		g.want(g.run(g.nexus, cdb(0x42, 0, 0, 0, 0, 0, 0, 0, 24), 0, list), "good")
		want = append([]extent{{0, uint32(3 * per), 1}, {3 * per, uint32(per), 0}}, want[2:]...)
		if got := g.lbaStatus(0, 1024); !slices.Equal(got, want) {
			t.Errorf("after UNMAP: %v, want %v", got, want)
		}
	}
}

// striped is a huge unit of which Allocated tells one step at a time.
type striped struct {
	*scsitest.Memory
	geo   block.Geometry
	step  func(calls int) (allocated bool, n block.Count)
	calls int
}

func (s *striped) Geometry() block.Geometry { return s.geo }

func (s *striped) Allocated(_ context.Context, r block.Range) (bool, block.Count, error) {
	allocated, n := s.step(s.calls)
	s.calls++
	return allocated, min(n, r.Count), nil
}

func TestLBAStatusIsBoundedAndExact(t *testing.T) {
	const half = 8 << 40 / 512 // sectors: more than a descriptor can count
	for _, c := range []struct {
		name string
		step func(calls int) (bool, block.Count)
		n    int    // descriptors
		sum  uint64 // blocks they cover
	}{
		{"fragmented", func(i int) (bool, block.Count) { return i%2 == 0, 8 }, 32, 32 * 8},
		{"in pieces", func(int) (bool, block.Count) { return true, 1 << 21 }, 1, 32 << 21},
		{"beyond 32 bits at once", func(int) (bool, block.Count) { return false, half }, 9, 2 * half},
		{"beyond 32 bits in pieces", func(int) (bool, block.Count) { return false, 1 << 31 }, 16, 2 * half},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &striped{step: c.step, geo: block.Geometry{Capacity: 2 * half, LogicalBlockBytes: 512}}
			g := newRig(t, 512, func(cfg *scsi.UnitConfig) { b.Memory, cfg.Backend = cfg.Backend.(*scsitest.Memory), b })
			list := g.lbaStatus(0, 4096)
			next := uint64(0)
			for _, e := range list {
				if e.lba != next || e.blocks == 0 {
					t.Errorf("descriptor %+v, want one at %d", e, next)
				}
				next += uint64(e.blocks)
			}
			if len(list) != c.n || next != c.sum || b.calls > 32 {
				t.Errorf("%d descriptors for %d blocks by %d calls, want %d for %d", len(list), next, b.calls, c.n, c.sum)
			}
		})
	}
}
