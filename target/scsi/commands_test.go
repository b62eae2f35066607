package scsi_test

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"sanctuary/blockstore/block"
	"sanctuary/target/reserve"
	"sanctuary/target/scsi"
)

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		panic(err)
	}
	return b
}

// descriptions are the commands that describe the unit, with all they can return.
var descriptions = []struct {
	name       string
	cdb        [16]byte
	allocation [2]int // offset and length of ALLOCATION LENGTH, nil if fixed
	want       string // hex; empty: only checked for consistency
}{
	{"standard inquiry", cdb(0x12), [2]int{3, 2}, `
		00 00 06 12 5b 18 10 02 53414e4354555259 766f6c756d6520202020202020202020 31202020
		0000000000000000000000000000000000000000 00 00 00a0 0960 0460 04c0 00000000000000000000000000000000000000000000000000000000 0000`},
	{"vpd 00", cdb(0x12, 1, 0x00), [2]int{3, 2}, "00 00 0008 00 80 83 86 8f b0 b1 b2"},
	{"vpd 80", cdb(0x12, 1, 0x80), [2]int{3, 2}, "00 80 0010 30313233343536373839616263646566"},
	{"vpd 83", cdb(0x12, 1, 0x83), [2]int{3, 2}, `00 83 00bc
		01 03 00 10 600102030405060708090a0b0c0d0e0f
		02 01 00 28 53414e4354555259 766f6c756d6520202020202020202020 30313233343536373839616263646566
		51 94 00 04 0000 0001
		51 95 00 04 0000 0001
		03 08 00 28 6e61612e3630303130323033303430353036303730383039306130623063306430653066 00000000
		53 98 00 20 69716e2e323032342d30312e746573743a6c756e 2c742c307830303031 000000
		53 a8 00 18 69716e2e323032342d30312e746573743a6c756e 00000000`},
	{"vpd 86", cdb(0x12, 1, 0x86), [2]int{3, 2}, "00 86 003c 00 07 00 01 0000000000 28" + strings.Repeat("00", 50)},
	{"vpd b0", cdb(0x12, 1, 0xB0), [2]int{3, 2}, `00 b0 003c 01 ff 0008 00008000 00000800 00000000 00100000 00000100 00000008 80000000
		0000000000008000` + strings.Repeat("00", 20)},
	{"vpd b1", cdb(0x12, 1, 0xB1), [2]int{3, 2}, "00 b1 003c 00 01" + strings.Repeat("00", 58)},
	{"vpd b2", cdb(0x12, 1, 0xB2), [2]int{3, 2}, "00 b2 0004 00 e4 02 00"},
	{"request sense", cdb(0x03), [2]int{4, 1}, "70 00 00 00000000 0a 00000000 0000 00 000000"},
	{"request sense, descriptors", cdb(0x03, 1), [2]int{4, 1}, "72 00 0000 000000 00"},
	{"vpd 8f", cdb(0x12, 1, 0x8F), [2]int{3, 2}, `00 8f 0064
		0001 000c 08 83 01 00 84 03 00 03 04 000000
		0004 001c 00000000 0010 0010 00000400 00000000 000000000000000000000000
		0008 0004 03 02 0a e4
		000c 0004 0002 ffff
		8001 0020 00000010 00000010 10000000 09 00 000000000000000000000000000000000000`},
	{"copy operating parameters", cdb(0x84, 3), [2]int{10, 4}, `0000002b 01 000000 0010 0010 00000400 10000000 00000000
		00000000 00000000 0000 0010 10 09 00 00 000000 03 02 0a e4`},
	{"report luns", cdb(0xA0), [2]int{6, 4}, "00000008 00000000 0000000000000000"},
	{"report luns, well known", cdb(0xA0, 0, 1), [2]int{6, 4}, "00000000 00000000"},
	{"read capacity 10", cdb(0x25), [2]int{}, "00000fff 00000200"},
	{"read capacity 16", cdb(0x9E, 0x10), [2]int{10, 4}, "0000000000000fff 00000200 00 03 c000" + strings.Repeat("00", 16)},
	{"mode sense 6, caching", cdb(0x1A, 0, 0x08), [2]int{4, 1}, "1f 00 10 08 00001000 00000200 08 12" + strings.Repeat("00", 18)},
	{"mode sense 6, control", cdb(0x1A, 8, 0x0A), [2]int{4, 1}, "0f 00 10 00 8a 0a 00 10 0000000000000000"},
	{"mode sense 6, control changeable", cdb(0x1A, 8, 0x4A), [2]int{4, 1}, "0f 00 10 00 8a 0a 04 00 0800000000000000"},
	{"mode sense 6, all", cdb(0x1A, 8, 0x3F), [2]int{4, 1}, "4b 00 10 00 010a" + strings.Repeat("00", 10) + "020e" + strings.Repeat("00", 14) +
		"0812" + strings.Repeat("00", 18) + "8a0a 0010 0000000000000000 1c0a 08 000000000000000000"},
	{"mode sense 10, long LBA", cdb(0x5A, 0x10, 0x0A), [2]int{7, 2}, "0022 00 10 01 00 0010 0000000000001000 00000000 00000200 8a0a 0010 0000000000000000"},
	{"target port groups", cdb(0xA3, 0x0A), [2]int{6, 4}, "00000018 00 8d 0001 00 02 00 01 00000001 02 8d 0002 00 02 00 01 00000203"},
	{"target port groups, extended", cdb(0xA3, 0x2A), [2]int{6, 4}, "0000001c 10 0a 0000 00 8d 0001 00 02 00 01 00000001 02 8d 0002 00 02 00 01 00000203"},
	{"task management", cdb(0xA3, 0x0D), [2]int{6, 4}, "d8000000"},
	{"task management, extended", cdb(0xA3, 0x0D, 0x80), [2]int{6, 4}, "d800000c 00000000 00000000 00000000"},
	{"lba status of an empty unit", cdb(0x9E, 0x12), [2]int{10, 4}, "00000014 00000000 0000000000000000 00001000 01000000"},
	{"lba status of the last block", cdb(0x9E, 0x12, 0, 0, 0, 0, 0, 0, 0x0F, 0xFF), [2]int{10, 4}, "00000014 00000000 0000000000000fff 00000001 01000000"},
	{"opcode get lba status", cdb(0xA3, 0x0C, 3, 0x9E, 0, 0x12), [2]int{6, 4}, "00 03 0010 9e 12 ffffffffffffffff ffffffff 0000"},
	{"opcodes", cdb(0xA3, 0x0C), [2]int{6, 4}, ""},
	{"opcodes with timeouts", cdb(0xA3, 0x0C, 0x80), [2]int{6, 4}, ""},
	{"opcode read 10", cdb(0xA3, 0x0C, 1, 0x28), [2]int{6, 4}, "00 03 000a 28 18 ffffffff 1f ffff 00"},
	{"opcode read capacity 16", cdb(0xA3, 0x0C, 0x82, 0x9E, 0, 0x10), [2]int{6, 4}, "00 83 0010 9e 10 0000000000000000 ffffffff 0000 000a 00000000000000000000"},
	{"opcode format unit", cdb(0xA3, 0x0C, 1, 0x04), [2]int{6, 4}, "00 01 0000"},
	{"opcode service action 11", cdb(0xA3, 0x0C, 3, 0x9E, 0, 0x11), [2]int{6, 4}, "00 01 0000"},
}

func TestDescriptionsAreExactAtEveryAllocationLength(t *testing.T) {
	g := newRig(t, 512, nil)
	for _, c := range descriptions {
		t.Run(c.name, func(t *testing.T) {
			full := g.run(g.nexus, withAllocation(c.cdb, c.allocation, c.allocation[1] > 1, 0xFF), 1<<16, nil)
			g.want(full, "good")
			if want := unhex(c.want); c.want != "" && !bytes.Equal(full.data, want) {
				t.Fatalf("got  %x\nwant %x", full.data, want)
			}
			if c.allocation[1] == 0 {
				return
			}
			for n := range 256 {
				for _, edtl := range []int{n, 8, 1 << 12} {
					r := g.run(g.nexus, withAllocation(c.cdb, c.allocation, false, byte(n)), edtl, nil)
					take := min(n, len(full.data))
					if r.Status != scsi.StatusGood || r.TransferIn != int64(take) || !bytes.Equal(r.data, full.data[:min(take, edtl)]) {
						t.Fatalf("allocation %d, EDTL %d: %s, transfer %d, %x", n, edtl, outcome(&r.Task), r.TransferIn, r.data)
					}
				}
			}
		})
	}
}

// SPC-4 r37 table 65: what is only told passes every persistent reservation of another nexus, what writes or reads does not.
func TestWhatPassesExclusiveAccessOfAnother(t *testing.T) {
	g := newRig(t, 512, nil)
	holder := g.attach(2)
	g.clear(holder)
	register, list := prout(reserve.Register, 0, 0, 1)
	g.want(g.run(holder, register, 0, list), "good")
	hold, list := prout(reserve.ReserveAction, reserve.ExclusiveAccess, 1, 0)
	g.want(g.run(holder, hold, 0, list), "good")
	for want, cdbs := range map[string][][16]byte{
		"good": {
			tur, cdb(0x03, 0, 0, 0, 18), cdb(0x12, 0, 0, 0, 96), cdb(0x1B, 0, 0, 0, 1), cdb(0x25), cdb(0x4D, 0, 0x40, 0, 0, 0, 0, 0, 64),
			cdb(0x5E, 0, 0, 0, 0, 0, 0, 0, 64), cdb(0x84, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64), cdb(0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32),
			cdb(0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 64), cdb(0xA3, 0x0A, 0, 0, 0, 0, 0, 0, 0, 64),
		},
		"05/24/00": {cdb(0x84, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64), cdb(0x84, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64)}, // no such copy
		"status 18": {
			read10(0, 1), cdb(0x1A, 0, 0x3F, 0, 255), cdb(0x1D, 4), cdb(0x2F, 0, 0, 0, 0, 0, 0, 0, 1), cdb(0x34, 0, 0, 0, 0, 0, 0, 0, 1), cdb(0x35),
			cdb(0x9E, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32), cdb(0xA3, 0x0C, 0, 0, 0, 0, 0, 0, 0, 64), cdb(0xA3, 0x0D, 0, 0, 0, 0, 0, 0, 0, 64),
		},
	} {
		for _, c := range cdbs {
			g.want(g.run(g.nexus, c, 512, nil), want)
		}
	}
}

func TestSenseNamesTheFirstLBAThatIsNotThere(t *testing.T) {
	g := newRig(t, 512, nil)
	for _, c := range []struct {
		cdb  [16]byte
		out  []byte
		info string
	}{
		{read10(testSectors-1, 2), nil, "00001000"},
		{read10(testSectors+5, 1), nil, "00001005"},
		{read10(testSectors+5, 0), nil, "00001005"},
		{cdb(0x9E, 0x12, 0, 0, 0, 0, 0, 0, 0x10, 0x07, 0, 0, 0, 32), nil, "00001007"},
		{cdb(0x42, 0, 0, 0, 0, 0, 0, 0, 24), unhex("0016 0010 00000000 0000000000000ffe 00000008 00000000"), "00001000"},
	} {
		r := g.run(g.nexus, c.cdb, max(0, 1024-1024*len(c.out)), c.out)
		if want := unhex("f0 00 05 " + c.info + " 0a 00000000 2100 00 000000"); !bytes.Equal(r.Sense, want) {
			t.Errorf("CDB % x: sense % x, want % x", c.cdb, r.Sense, want)
		}
	}
}

// A node has a portal group, and so a target port, for each network; the port group of VPD page 83h is the node's whatever the portal.
func TestTargetPortIsNamedAfterThePortalOfTheSession(t *testing.T) {
	g := newRig(t, 512, nil)
	host := scsi.NewTarget(scsi.TargetConfig{Name: "iqn.2024-01.test:host", Ports: 0x0800})
	if err := host.Add(7, g.unit); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		target *scsi.Target
		name   string
		port   string
	}{
		{g.target, "iqn.2024-01.test:lun", "2001"},
		{host, "iqn.2024-01.test:host", "2801"},
	} {
		n := &scsi.Nexus{Initiator: "iqn.2024-01.test:other", Port: 0x2001}
		c.target.Attach(n)
		task := g.task(n, cdb(0x12, 1, 0x83, 0, 255), 255, nil)
		if c.target == host {
			task.LUN = scsi.EncodeLUN(7)
		}
		c.target.Execute(t.Context(), task)
		got := bytes.Clone(task.DataIn)
		g.buffers.Put(task.DataIn)
		for _, want := range [][]byte{
			unhex("51 94 00 04 0000" + c.port), // relative target port
			unhex("51 95 00 04 0000 0001"),     // target port group
			[]byte(c.name + ",t,0x2001\x00"),
		} {
			if !bytes.Contains(got, want) {
				t.Errorf("port %s of %s: %q is not in %q", c.port, c.name, want, got)
			}
		}
	}
}

// withAllocation sets the low byte of the ALLOCATION LENGTH, and the one above too if wide.
func withAllocation(c [16]byte, at [2]int, wide bool, n byte) [16]byte {
	if at[1] > 0 {
		c[at[0]+at[1]-1] = n
	}
	if wide {
		c[at[0]+at[1]-2] = n
	}
	return c
}

func TestRefusals(t *testing.T) {
	g := newRig(t, 512, nil)
	b512, b1024 := pattern(512, 1), pattern(1024, 1)
	for _, c := range []struct {
		name string
		cdb  [16]byte
		in   int
		out  []byte
		want string
	}{
		{"format unit", cdb(0x04), 0, nil, "05/20/00"},
		{"extended copy of nothing", cdb(0x83), 0, nil, "good"},
		{"extended copy lid4", cdb(0x83, 1), 0, nil, "05/24/00"},
		{"receive copy data", cdb(0x84, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64), 64, nil, "05/24/00"},
		{"prefetch with a group", cdb(0x34, 0, 0, 0, 0, 0, 3, 0, 1), 0, nil, "good"},
		{"prefetch with a reserved bit beside the group", cdb(0x34, 0, 0, 0, 0, 0, 0x20, 0, 1), 0, nil, "05/24/00"},
		{"copy status of an unknown copy", cdb(0x84, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64), 64, nil, "05/24/00"},
		{"copy failure of an unknown copy", cdb(0x84, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64), 64, nil, "05/24/00"},
		{"prefetch last", cdb(0x34, 0, 0, 0, 0x0F, 0xFF, 0, 0, 1), 0, nil, "good"},
		{"prefetch to the end", cdb(0x34, 2, 0, 0, 0x0F, 0xFF, 0, 0, 0), 0, nil, "good"},
		{"prefetch beyond", cdb(0x34, 0, 0, 0, 0x0F, 0xFF, 0, 0, 2), 0, nil, "05/21/00"},
		{"prefetch none beyond", cdb(0x34, 0, 0, 0, 0x10, 1, 0, 0, 0), 0, nil, "05/21/00"},
		{"prefetch 16 overflow", cdb(0x90, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 2), 0, nil, "05/21/00"},
		{"prefetch 16", cdb(0x90, 2, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 2), 0, nil, "good"},
		{"orwrite protect", cdb(0x8B, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1), 0, b512, "05/24/00"},
		{"orwrite beyond", cdb(0x8B, 0, 0, 0, 0, 0, 0, 0, 0x0F, 0xFF, 0, 0, 0, 2), 0, b1024, "05/21/00"},
		{"orwrite overflow", cdb(0x8B, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 2), 0, b1024, "05/21/00"},
		{"orwrite nothing", cdb(0x8B), 0, nil, "good"},
		{"orwrite part of a block", cdb(0x8B, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1), 0, b512[:100], "05/0E/03"},
		{"lba status beyond the end", cdb(0x9E, 0x12, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 24), 24, nil, "05/21/00"},
		{"lba status of the largest lba", cdb(0x9E, 0x12, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 24), 24, nil, "05/21/00"},
		{"lba status by report type", cdb(0x9E, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24, 1), 24, nil, "05/24/00"},
		{"set target port groups", cdb(0xA4, 0x0A), 0, nil, "05/20/00"},
		{"write atomic", cdb(0x9C), 0, nil, "05/20/00"},
		{"naca", cdb(0x28, 0, 0, 0, 0, 0, 0, 0, 1, 4), 512, nil, "05/24/00"},
		{"inquiry page without evpd", cdb(0x12, 0, 0x80, 0, 0xFF), 512, nil, "05/24/00"},
		{"inquiry unknown page", cdb(0x12, 1, 0x85, 0, 0xFF), 512, nil, "05/24/00"},
		{"inquiry cmddt", cdb(0x12, 2, 0, 0, 0xFF), 512, nil, "05/24/00"},
		{"mode sense saved", cdb(0x1A, 0, 0xFF, 0, 0xFF), 512, nil, "good"},
		{"mode sense unknown page", cdb(0x1A, 0, 0x05, 0, 0xFF), 512, nil, "05/24/00"},
		{"mode sense unknown subpage", cdb(0x1A, 0, 0x0A, 2, 0xFF), 512, nil, "05/24/00"},
		{"stop", cdb(0x1B, 0, 0, 0, 0), 0, nil, "05/24/00"},
		{"eject", cdb(0x1B, 0, 0, 0, 2), 0, nil, "05/24/00"},
		{"start", cdb(0x1B, 0, 0, 0, 1), 0, nil, "good"},
		{"self-test", cdb(0x1D, 4), 0, nil, "good"},
		{"self-test, may go offline", cdb(0x1D, 7), 0, nil, "good"},
		{"self-test in the background", cdb(0x1D, 0x20), 0, nil, "05/24/00"},
		{"self-test with a list", cdb(0x1D, 4, 0, 0, 8), 0, nil, "05/24/00"},
		{"diagnostic page", cdb(0x1D, 0x10, 0, 0, 8), 0, nil, "05/24/00"},
		{"no self-test", cdb(0x1D), 0, nil, "good"},
		{"rsoc option 1 of a service action", cdb(0xA3, 0x0C, 1, 0x9E, 0, 0, 0, 0, 0xFF), 512, nil, "05/24/00"},
		{"rsoc option 2 without", cdb(0xA3, 0x0C, 2, 0x28, 0, 0, 0, 0, 0xFF), 512, nil, "05/24/00"},
		{"rsoc option 4", cdb(0xA3, 0x0C, 4, 0x28, 0, 0, 0, 0, 0xFF), 512, nil, "05/24/00"},
		{"rtpg format 2", cdb(0xA3, 0x4A, 0, 0, 0, 0, 0, 0, 0xFF), 512, nil, "05/24/00"},
		{"report luns administrative", cdb(0xA0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0xFF), 512, nil, "05/24/00"},
		{"read protect", cdb(0x28, 0x20, 0, 0, 0, 0, 0, 0, 1), 512, nil, "05/24/00"},
		{"read dpo fua", cdb(0x28, 0x18, 0, 0, 0, 0, 0, 0, 1), 512, nil, "good"},
		{"write protect", cdb(0x8A, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1), 0, b512, "05/24/00"},
		{"read last", cdb(0x28, 0, 0, 0, 0x0F, 0xFF, 0, 0, 1), 512, nil, "good"},
		{"read beyond", cdb(0x28, 0, 0, 0, 0x0F, 0xFF, 0, 0, 2), 1024, nil, "05/21/00"},
		{"read none at the end", cdb(0x28, 0, 0, 0, 0x10, 0, 0, 0, 0), 0, nil, "good"},
		{"read none beyond the end", cdb(0x28, 0, 0, 0, 0x10, 1, 0, 0, 0), 0, nil, "05/21/00"},
		{"read overflow", cdb(0x88, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 2), 1024, nil, "05/21/00"},
		{"read overflow in bytes", cdb(0x88, 0, 0x00, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1), 512, nil, "05/21/00"},
		{"read 2^32-1", cdb(0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF), 512, nil, "05/21/00"},
		{"write beyond", cdb(0x2A, 0, 0, 0, 0x0F, 0xFF, 0, 0, 2), 0, b1024, "05/21/00"},
		{"write same none", cdb(0x41), 0, b512, "05/24/00"},
		{"write same none at the end", cdb(0x41, 0, 0, 0, 0x10, 0, 0, 0, 0), 0, b512, "05/24/00"},
		{"write same none beyond the end", cdb(0x41, 0, 0, 0, 0x10, 1, 0, 0, 0), 0, b512, "05/21/00"},
		{"write same anchor", cdb(0x41, 0x10, 0, 0, 0, 0, 0, 0, 1), 0, b512, "05/24/00"},
		{"write same 10 ndob", cdb(0x41, 0x01, 0, 0, 0, 0, 0, 0, 1), 0, nil, "05/24/00"},
		{"write same beyond", cdb(0x93, 0, 0, 0, 0, 0, 0, 0, 0x0F, 0xFF, 0, 0, 0, 2), 0, b512, "05/21/00"},
		{"write same of two blocks", cdb(0x41, 0, 0, 0, 0, 0, 0, 0, 1), 0, b1024, "05/24/00"},
		{"write same of no data", cdb(0x41, 0, 0, 0, 0, 0, 0, 0, 1), 0, nil, "05/24/00"},
		{"compare and write short", cdb(0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1), 0, b512, "05/24/00"},
		{"compare and write of 256", cdb(0x89), 0, make([]byte, 2*256*512), "05/24/00"},
		{"compare and write beyond", cdb(0x89, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 1), 0, b1024, "05/21/00"},
		{"compare and write of nothing", cdb(0x89), 0, nil, "good"},
		{"verify byte check 3", cdb(0x2F, 0x06, 0, 0, 0, 0, 0, 0, 1), 0, b512, "05/24/00"},
		{"verify short", cdb(0x2F, 0x02, 0, 0, 0, 0, 0, 0, 2), 0, b512, "05/24/00"},
		{"synchronize beyond", cdb(0x35, 0, 0, 0, 0x10, 1, 0, 0, 0), 0, nil, "05/21/00"},
		{"synchronize all", cdb(0x91, 2), 0, nil, "good"},
		{"unmap nothing", cdb(0x42), 0, nil, "good"},
		{"unmap anchor", cdb(0x42, 1), 0, nil, "05/24/00"},
		{"unmap short list", cdb(0x42, 0, 0, 0, 0, 0, 0, 0, 7), 0, make([]byte, 7), "05/1A/00"},
		{"unmap list longer than sent", cdb(0x42, 0, 0, 0, 0, 0, 0, 0, 8), 0, unhex("0016 0010 00000000"), "good"},
		{"unmap no descriptors", cdb(0x42, 0, 0, 0, 0, 0, 0, 0, 8), 0, make([]byte, 8), "good"},
		{"unmap beyond", cdb(0x42, 0, 0, 0, 0, 0, 0, 0, 24), 0, unhex("0016 0010 00000000 ffffffffffffffff 00000001 00000000"), "05/21/00"},
		{"unmap too many", cdb(0x42, 0, 0, 0, 0, 0, 0, 0x10, 0x18), 0, append(unhex("1016 1010 00000000"), make([]byte, 257*16)...), "05/26/00"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := g.run(g.nexus, c.cdb, c.in, c.out)
			if got := outcome(&r.Task); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
			if r.Status != scsi.StatusGood && (r.data != nil || r.TransferIn != 0) {
				t.Errorf("refused with %d bytes of data", len(r.data))
			}
			if n := g.dataOut(0, c.cdb); r.Status == scsi.StatusGood && n > int64(len(c.out)) {
				t.Errorf("wanted %d bytes of Data-Out and was content with %d", n, len(c.out))
			}
		})
	}
	if !bytes.Equal(g.mem.Bytes(block.Range{Count: testSectors}), make([]byte, testSectors*512)) {
		t.Error("a refused command changed the medium")
	}
}

func TestTransferLimitIsEnforcedAsReported(t *testing.T) {
	g := newRig(t, 512, func(c *scsi.UnitConfig) { c.MaxTransferBytes = 64 << 10 })
	limits := g.run(g.nexus, cdb(0x12, 1, 0xB0, 0, 0xFF), 255, nil).data
	if limits[10] != 0 || limits[11] != 128 || limits[5] != 64 {
		t.Fatalf("block limits % x", limits[:16])
	}
	g.want(g.run(g.nexus, cdb(0x28, 0, 0, 0, 0, 0, 0, 0, 128), 64<<10, nil), "good")
	g.want(g.run(g.nexus, cdb(0x28, 0, 0, 0, 0, 0, 0, 0, 129), 65<<10, nil), "05/24/00")
	g.want(g.run(g.nexus, cdb(0x2A, 0, 0, 0, 0, 0, 0, 0, 129), 0, make([]byte, 129*512)), "05/24/00")
	g.want(g.run(g.nexus, cdb(0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 65), 0, make([]byte, 65*1024)), "05/24/00")
	g.mem.Grow(40000)
	g.want(g.run(g.nexus, cdb(0x00), 0, nil), "06/2A/09")
	g.want(g.run(g.nexus, cdb(0x93, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0), 0, nil), "good")
	g.want(g.run(g.nexus, cdb(0x93, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 1), 0, nil), "05/24/00")
	over := cdb(0x2A, 0, 0, 0, 0, 0, 0, 0, 129)
	if n := g.dataOut(0, over); n != 0 {
		t.Errorf("solicits %d bytes for a command it will refuse", n)
	}
}

func TestDataCommands(t *testing.T) {
	for _, logical := range []int{512, 4096} {
		g := newRig(t, logical, nil)
		per := block.Count(logical / 512)
		at := func(lba, n int) []byte {
			return g.mem.Bytes(block.Range{Start: block.Sector(lba * int(per)), Count: block.Count(n) * per})
		}
		for i, c := range []struct{ write, read [16]byte }{
			{cdb(0x0A, 0, 0, 3, 2), cdb(0x08, 0, 0, 3, 2)},
			{cdb(0x2A, 0, 0, 0, 0, 3, 0, 0, 2), cdb(0x28, 0, 0, 0, 0, 3, 0, 0, 2)},
			{cdb(0xAA, 0x08, 0, 0, 0, 3, 0, 0, 0, 2), cdb(0xA8, 0, 0, 0, 0, 3, 0, 0, 0, 2)},
			{cdb(0x8A, 0x10, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 2), cdb(0x88, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 2)},
			{cdb(0x2E, 0x02, 0, 0, 0, 3, 0, 0, 2), cdb(0x28, 0, 0, 0, 0, 3, 0, 0, 2)},
			{cdb(0xAE, 0, 0, 0, 0, 3, 0, 0, 0, 2), cdb(0x28, 0, 0, 0, 0, 3, 0, 0, 2)},
			{cdb(0x8E, 0x02, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 2), cdb(0x28, 0, 0, 0, 0, 3, 0, 0, 2)},
		} {
			data := pattern(2*logical, byte(i+1))
			if n := g.dataOut(0, c.write); n != int64(len(data)) {
				t.Errorf("% x wants %d bytes", c.write, n)
			}
			g.want(g.run(g.nexus, c.write, 0, data), "good")
			if !bytes.Equal(at(3, 2), data) {
				t.Errorf("% x did not store its data", c.write)
			}
			r := g.run(g.nexus, c.read, 2*logical, nil)
			g.want(r, "good")
			if !bytes.Equal(r.data, data) || r.TransferIn != int64(len(data)) {
				t.Errorf("% x read other data", c.read)
			}
		}
		was := at(3, 2)
		for _, v := range [][16]byte{cdb(0x2F, 0x12, 0, 0, 0, 3, 0, 0, 2), cdb(0xAF, 2, 0, 0, 0, 3, 0, 0, 0, 2), cdb(0x8F, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 2)} {
			g.want(g.run(g.nexus, v, 0, was), "good")
			bad := bytes.Clone(was)
			bad[logical+7] ^= 1
			r := g.run(g.nexus, v, 0, bad)
			g.want(r, "0E/1D/00")
			if got := int(r.Sense[5])<<8 | int(r.Sense[6]); r.Sense[0] != 0xF0 || got != logical+7 {
				t.Errorf("miscompare at %d, want %d", got, logical+7)
			}
			v[1] &^= 2
			g.want(g.run(g.nexus, v, 0, nil), "good")
		}
		next := pattern(2*logical, 99)
		caw := cdb(0x89, 0x18, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 2)
		g.want(g.run(g.nexus, caw, 0, append(bytes.Clone(was), next...)), "good")
		r := g.run(g.nexus, caw, 0, append(bytes.Clone(was), was...))
		g.want(r, "0E/1D/00")
		if !bytes.Equal(at(3, 2), next) || r.Sense[0] != 0xF0 || int(r.Sense[6]) != 0 {
			t.Errorf("after a miscompare: sense % x", r.Sense)
		}

		g.want(g.run(g.nexus, cdb(0x41, 0, 0, 0, 0, 8, 0, 0, 3), 0, next[:logical]), "good")
		if !bytes.Equal(at(8, 3), bytes.Repeat(next[:logical], 3)) {
			t.Error("WRITE SAME did not repeat its block")
		}
		g.want(g.run(g.nexus, cdb(0x41, 8, 0, 0, 0, 8, 0, 0, 1), 0, was[:logical]), "good") // UNMAP=1 with data: written
		if !bytes.Equal(at(8, 1), was[:logical]) {
			t.Error("WRITE SAME with UNMAP=1 must write data that is not zero")
		}
		g.want(g.run(g.nexus, cdb(0x41, 8, 0, 0, 0, 8, 0, 0, 1), 0, make([]byte, logical)), "good")
		g.want(g.run(g.nexus, cdb(0x93, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1), 0, nil), "good") // NDOB
		if !bytes.Equal(at(8, 2), make([]byte, 2*logical)) || bytes.Equal(at(10, 1), make([]byte, logical)) {
			t.Error("WRITE SAME of zeros went wrong")
		}
		or := bytes.Clone(next)
		for i := range or {
			or[i] |= was[i]
		}
		g.want(g.run(g.nexus, cdb(0x8B, 0x18, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 2), 0, was), "good")
		if !bytes.Equal(at(3, 2), or) {
			t.Error("ORWRITE: wrong")
		}
		g.want(g.run(g.nexus, cdb(0x8B, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 2), 0, next), "good")
		if !bytes.Equal(at(3, 2), or) {
			t.Error("ORWRITE of what is there already: wrong")
		}
		g.want(g.run(g.nexus, cdb(0x2A, 0, 0, 0, 0, 3, 0, 0, 2), 0, next), "good")
		list := unhex("002e 0020 00000000 0000000000000003 00000001 00000000 000000000000000a 00000001 00000000")
		g.want(g.run(g.nexus, cdb(0x42, 0, 0, 0, 0, 0, 0, 0, byte(len(list))), 0, list), "good")
		if !bytes.Equal(at(3, 1), make([]byte, logical)) || !bytes.Equal(at(4, 1), next[logical:]) || !bytes.Equal(at(10, 1), make([]byte, logical)) {
			t.Error("UNMAP cleared the wrong blocks")
		}
		// A descriptor that the parameter list length cuts off is ignored.
		g.want(g.run(g.nexus, cdb(0x2A, 0, 0, 0, 0, 3, 0, 0, 2), 0, next), "good")
		list = unhex("002e 0020 00000000 0000000000000003 00000001 00000000 0000000000000004 00000001 00000000")[:39]
		g.want(g.run(g.nexus, cdb(0x42, 0, 0, 0, 0, 0, 0, 0, byte(len(list))), 0, list), "good")
		if !bytes.Equal(at(3, 1), make([]byte, logical)) || !bytes.Equal(at(4, 1), next[logical:]) {
			t.Error("UNMAP with a descriptor cut off cleared the wrong blocks")
		}
	}
}

func TestResiduals(t *testing.T) {
	g := newRig(t, 512, nil)
	data := pattern(1024, 5)
	g.want(g.run(g.nexus, cdb(0x2A, 0, 0, 0, 0, 0, 0, 0, 2), 0, data), "good")
	for edtl, got := range map[int]int{0: 0, 200: 200, 512: 512, 1024: 1024, 10000: 1024} {
		r := g.run(g.nexus, cdb(0x28, 0, 0, 0, 0, 0, 0, 0, 2), edtl, nil)
		if g.want(r, "good"); r.TransferIn != 1024 || !bytes.Equal(r.data, data[:got]) {
			t.Errorf("READ with EDTL %d: transfer %d, %d bytes", edtl, r.TransferIn, len(r.data))
		}
	}
	for _, c := range []struct {
		edtl    int
		want    string
		written int
	}{{0, "good", 0}, {512, "good", 512}, {1024, "good", 1024}, {2048, "good", 1024}, {200, "05/0E/03", 0}, {700, "05/0E/03", 0}} {
		g.want(g.run(g.nexus, cdb(0x41, 0, 0, 0, 0, 0, 0, 0, 4), 0, bytes.Repeat([]byte{'a'}, 512)), "good")
		r := g.run(g.nexus, cdb(0x2A, 0, 0, 0, 0, 0, 0, 0, 2), 0, bytes.Repeat([]byte{'b'}, c.edtl))
		g.want(r, c.want)
		want := append(bytes.Repeat([]byte{'b'}, c.written), bytes.Repeat([]byte{'a'}, 2048-c.written)...)
		if r.TransferOut != 1024 || !bytes.Equal(g.mem.Bytes(block.Range{Count: 4}), want) {
			t.Errorf("WRITE with EDTL %d: transfer %d, or the wrong blocks", c.edtl, r.TransferOut)
		}
	}
	short := g.task(g.nexus, cdb(0x2A, 0, 0, 0, 0, 0, 0, 0, 2), 0, data[:512])
	short.ExpectedOut = 1024 // announced, but not all of it came
	g.want(g.execute(t.Context(), short), "0B/0C/0D")
}

func TestWriteProtectedUnitRefusesEveryChange(t *testing.T) {
	g := newRig(t, 512, func(c *scsi.UnitConfig) { c.WriteProtected = true })
	for _, op := range []byte{0x8B, 0x0A, 0x2A, 0x2E, 0x41, 0x42, 0x89, 0x8A, 0x8E, 0x93, 0xAA, 0xAE} {
		c := cdb(op)
		g.want(g.run(g.nexus, c, 0, nil), "07/27/00")
		if n := g.dataOut(0, c); n != 0 {
			t.Errorf("%02X solicits %d bytes", op, n)
		}
	}
	if r := g.run(g.nexus, cdb(0x1A, 0, 0x3F, 0, 0xFF), 255, nil); r.data[2] != 0x90 {
		t.Errorf("device specific parameter %02x: want WP and DPOFUA", r.data[2])
	}
	g.want(g.run(g.nexus, cdb(0x28, 0, 0, 0, 0, 0, 0, 0, 1), 512, nil), "good")
}

func TestRefusalsSayWhichField(t *testing.T) {
	g := newRig(t, 512, nil)
	for _, c := range []struct {
		cdb  [16]byte
		want string // SENSE KEY SPECIFIC: SKSV, C/D, BPV and bit; byte
	}{
		{cdb(0x28, 0x20, 0, 0, 0, 0, 0, 0, 1), "cd0001"},             // RDPROTECT
		{cdb(0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0x04), "ca0009"},          // NACA
		{cdb(0xA3, 0x0C, 4, 0x28, 0, 0, 0, 0, 0xFF), "ca0002"},       // REPORTING OPTIONS
		{cdb(0xA3, 0x0C, 1, 0x9E, 0, 0x10, 0, 0, 0, 0xFF), "ca0002"}, // that are not for an operation code with service actions
		{cdb(0x9E, 0x11), "cc0001"},                                  // SERVICE ACTION
	} {
		if r := g.run(g.nexus, c.cdb, 0, nil); outcome(&r.Task) != "05/24/00" || !bytes.Equal(r.Sense[15:], unhex(c.want)) {
			t.Errorf("% x: %s, sense % x, want %s", c.cdb, outcome(&r.Task), r.Sense, c.want)
		}
	}
}
