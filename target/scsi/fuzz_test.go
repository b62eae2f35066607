package scsi_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/target/scsi"
	"sanctuary/target/scsi/scsitest"
)

// FuzzCDB runs any CDB with any lengths and data: no panic, no data beyond what was asked for, a status that makes sense.
func FuzzCDB(f *testing.F) {
	for op := range 256 {
		f.Add([]byte{byte(op), 0x10, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1}, uint64(0), uint32(512), uint32(512), []byte{0, 22, 0, 16, 0})
	}
	f.Add([]byte{0x42, 0, 0, 0, 0, 0, 0, 0, 24}, uint64(0), uint32(0), uint32(24), make([]byte, 24))
	f.Add([]byte{0xA3, 0x0C, 0x83, 0x9E, 0, 0x10, 0, 0, 0, 255}, uint64(0x4000<<48), uint32(9), uint32(0), []byte{})
	f.Fuzz(func(t *testing.T, cdbBytes []byte, lun uint64, in, out uint32, data []byte) {
		g := newRig(t, 512, func(c *scsi.UnitConfig) { c.HoldFor = time.Nanosecond })
		c := cdb(cdbBytes...)
		task := g.task(g.nexus, c, int(in%(64<<10)), nil)
		task.LUN, task.ExpectedOut = lun, int(out%(64<<10))
		want := g.dataOut(lun, c)
		if want < 0 || want > scsi.DefaultMaxTransfer {
			t.Fatalf("wants %d bytes of Data-Out", want)
		}
		task.DataOut = make([]byte, min(want, int64(task.ExpectedOut)))
		copy(task.DataOut, data)
		r := g.execute(t.Context(), task)
		switch r.Status {
		case scsi.StatusGood:
			if len(r.Sense) != 0 || r.TransferIn < 0 || int64(len(r.data)) != min(r.TransferIn, int64(r.ExpectedIn)) {
				t.Fatalf("%d bytes in, transfer %d, EDTL %d, sense % x", len(r.data), r.TransferIn, r.ExpectedIn, r.Sense)
			}
			if r.TransferOut < 0 || r.TransferOut > want {
				t.Fatalf("used %d bytes of Data-Out, announced %d", r.TransferOut, want)
			}
		case scsi.StatusCheckCondition:
			if len(r.Sense) != 18 || r.data != nil || r.TransferIn != 0 {
				t.Fatalf("sense % x with %d bytes of data", r.Sense, len(r.data))
			}
			if o := outcome(&r.Task); o == "0B/0C/0D" || o == "04/44/00" {
				t.Fatalf("%s although every byte asked for was there", o)
			}
		default:
			t.Fatalf("status %02X", r.Status)
		}
	})
}

// fuzzList runs a command with a parameter list of any content and length: no panic, an answer that makes sense, and with
// anything but GOOD no change.
func fuzzList(t *testing.T, g *rig, c [16]byte, list []byte) result {
	t.Helper()
	all := block.Range{Count: g.mem.Geometry().Capacity}
	was := g.mem.Bytes(all)
	r := g.run(g.nexus, c, 0, list)
	switch r.Status {
	case scsi.StatusGood:
	case scsi.StatusCheckCondition:
		if o := outcome(&r.Task); o == "0B/0C/0D" || o[:2] != "05" && o[:2] != "0A" && o[:2] != "07" {
			t.Fatalf("%s for % x", o, list)
		}
		if !bytes.Equal(g.mem.Bytes(all), was) {
			t.Fatalf("%s, and yet blocks were changed by % x", outcome(&r.Task), list)
		}
	default:
		t.Fatalf("status %02X", r.Status)
	}
	return r
}

// fuzzSectors is how large the unit is that lists are tried on: small, so that many are tried.
const fuzzSectors = 256

var fuzzData = pattern(fuzzSectors/2*512, 1)

// filled is a rig with a small unit and data in the first half of it.
func filled(t *testing.T) *rig {
	t.Helper()
	small := scsitest.NewMemory(block.Geometry{Capacity: fuzzSectors, LogicalBlockBytes: 512})
	g := newRig(t, 512, func(c *scsi.UnitConfig) { c.Backend = small })
	g.mem = small
	if err := g.mem.Write(t.Context(), block.Fence{}, block.Range{Count: fuzzSectors / 2}, fuzzData); err != nil {
		t.Fatal(err)
	}
	return g
}

func FuzzUnmapList(f *testing.F) {
	f.Add(unhex("0016 0010 00000000 0000000000000003 00000001 00000000"))
	f.Add(unhex("002e 0020 00000000 0000000000000003 00000001 00000000 000000000000000a 00000001 00000000"))
	f.Add(unhex("0016 0010 00000000 ffffffffffffffff ffffffff 00000000"))
	f.Add(unhex("ffff ffff 00000000"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, list []byte) {
		if len(list) > 0xFFFF {
			return
		}
		fuzzList(t, filled(t), cdb(0x42, 0, 0, 0, 0, 0, 0, byte(len(list)>>8), byte(len(list))), list)
	})
}

func FuzzWriteSame(f *testing.F) {
	for _, flags := range []byte{0, 1, 8, 9, 0x10} {
		f.Add(uint64(5), uint32(3), flags, bytes.Repeat([]byte{7}, 512))
		f.Add(uint64(5), uint32(1<<15), flags, make([]byte, 512))
	}
	f.Add(uint64(1<<64-1), uint32(1<<32-1), byte(0), []byte{})
	f.Fuzz(func(t *testing.T, lba uint64, blocks uint32, flags byte, data []byte) {
		c := cdb(0x93, flags)
		binary.BigEndian.PutUint64(c[2:], lba)
		binary.BigEndian.PutUint32(c[10:], blocks)
		g := filled(t)
		if r := fuzzList(t, g, c, data); r.Status == scsi.StatusGood {
			if blocks == 0 || uint64(blocks) > fuzzSectors || lba > fuzzSectors-uint64(blocks) || flags&^9 != 0 {
				t.Fatalf("%d blocks from %d with flags %02x: good", blocks, lba, flags)
			}
			want := make([]byte, 512)
			if flags&1 == 0 {
				copy(want, data)
			}
			got := g.mem.Bytes(block.Range{Start: block.Sector(lba), Count: block.Count(blocks)})
			if !bytes.Equal(got, bytes.Repeat(want, int(blocks))) {
				t.Fatal("something else was written")
			}
		}
	})
}

func FuzzModeSelect(f *testing.F) {
	f.Add(byte(0x15), byte(0x11), append(make([]byte, 4), unhex(controlBoth)...))
	f.Add(byte(0x55), byte(0x10), append(make([]byte, 8), unhex(controlSWP)...))
	f.Add(byte(0x55), byte(0x10), unhex("00000000 01000010 0000000000001000 00000000 00000200"+controlSWP))
	f.Add(byte(0x15), byte(0x10), unhex("00000008 00001000 00000200 5c02001c 000000000000000000000000 8001000000000400 0102000000000000"))
	f.Add(byte(0x15), byte(0x10), unhex("00000000 810a 00000000 0080 00000000"))
	f.Fuzz(func(t *testing.T, op, flags byte, list []byte) {
		var space atomic.Pointer[scsi.Space]
		g := newRig(t, 512, thin(&space))
		c := cdb(0x15, flags, 0, 0, byte(len(list)))
		if op&0x40 != 0 {
			c = cdb(0x55, flags, 0, 0, 0, 0, 0, byte(len(list)>>8), byte(len(list)))
			list = list[:min(len(list), 0xFFFF)]
		} else {
			list = list[:min(len(list), 0xFF)]
		}
		version := g.mem.State().Version
		fuzzList(t, g, c, list)
		// Whatever was set, the pages can be read, and sent back without changing anything.
		sense := g.run(g.nexus, cdb(0x1A, 8, 0x3F, 0xFF, 255), 255, nil)
		if sense.Status != scsi.StatusGood {
			t.Fatalf("MODE SENSE: status %02X", sense.Status)
		}
		after := g.mem.State().Version
		back := append(make([]byte, 4), sense.data[4:]...)
		if r := g.run(g.nexus, cdb(0x15, 0x10, 0, 0, byte(len(back))), 0, back); r.Status != scsi.StatusGood {
			t.Fatalf("what MODE SENSE returned is refused: % x", r.Sense)
		}
		if now := g.mem.State().Version; now != after || after > version+1 {
			t.Fatalf("state of versions %d, %d, %d", version, after, now)
		}
	})
}

func FuzzExtendedCopy(f *testing.F) {
	f.Add(copyListOf(1, 0, self, copySegment{blocks: 8, toLBA: 64}))
	f.Add(copyListOf(0, 3<<3, self, copySegment{blocks: 150, toLBA: 3}, copySegment{bytes: 4096, fromLBA: 9, toLBA: 200}))
	f.Add(copyListOf(1, 2<<3, slices.Repeat(self, 16), slices.Repeat([]copySegment{{blocks: 1, toLBA: 9}}, 16)...))
	f.Add(copyListOf(1, 0, self, copySegment{from: 0xFFFF, blocks: 65535, toLBA: 1<<64 - 1}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, list []byte) {
		if len(list) > 16<<10 {
			return
		}
		fuzzList(t, filled(t), copyCDB(len(list)), list)
	})
}
