package scsi_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"strings"
	"sync/atomic"
	"testing"

	"sanctuary/blockstore/block"
	"sanctuary/target/scsi"
	"sanctuary/target/scsi/scsitest"
)

const giB = 1 << 30

// thin is a unit of which can be said how much room there is.
func thin(space *atomic.Pointer[scsi.Space]) func(*scsi.UnitConfig) {
	space.Store(&scsi.Space{Used: 3 << 20, Available: 10 * giB, WarnBelow: giB})
	return func(c *scsi.UnitConfig) { c.Space = func() scsi.Space { return *space.Load() } }
}

// page asks for one mode page. control is the PC field.
func (g *rig) page(n *scsi.Nexus, control, code, subpage byte) []byte {
	g.t.Helper()
	r := g.run(n, cdb(0x1A, 8, control<<6|code, subpage, 255), 255, nil)
	g.want(r, "good")
	return r.data[4:]
}

// selectPages is MODE SELECT (6) of pages with PF=1.
func (g *rig) selectPages(n *scsi.Nexus, flags byte, pages ...string) result {
	list := append(make([]byte, 4), unhex(strings.Join(pages, ""))...)
	return g.run(n, cdb(0x15, 0x10|flags, 0, 0, byte(len(list))), 0, list)
}

const (
	controlDefault = "0a0a 0010 0000000000000000"
	controlDSense  = "0a0a 0410 0000000000000000"
	controlSWP     = "0a0a 0010 0800000000000000"
	controlBoth    = "0a0a 0410 0800000000000000"
)

func TestModeSenseOfEveryPage(t *testing.T) {
	var space atomic.Pointer[scsi.Space]
	g := newRig(t, 512, thin(&space))
	recovery := "810a 00000000 0080 00000000"
	disconnect := "020e" + strings.Repeat("00", 14)
	caching := "0812" + strings.Repeat("00", 18)
	control := "8a0a 0010 0000000000000000"
	extension := "4a01001c 01" + strings.Repeat("00", 27)
	exceptions := "1c0a 08000000000000000000"
	provisioning := "dc02001c 000000000000000000000000 8001000000000400 0102000000000000"
	for _, c := range []struct {
		control, code, subpage byte
		want                   string // "": refused
	}{
		{0, 0x3F, 0x00, recovery + disconnect + caching + control + exceptions},
		{0, 0x3F, 0xFF, recovery + disconnect + caching + control + extension + exceptions + provisioning},
		{2, 0x3F, 0xFF, recovery + disconnect + caching + control + extension + exceptions + provisioning},
		{3, 0x3F, 0xFF, recovery + disconnect + caching + control + extension + exceptions + provisioning},
		{1, 0x3F, 0xFF, "810a 00000000 0080 00000000" + disconnect + caching + "8a0a 0400 0800000000000000" +
			"4a01001c" + strings.Repeat("00", 28) + "1c0a" + strings.Repeat("00", 10) +
			"dc02001c 000000000000000000000000 80000000ffffffff 80000000ffffffff"},
		{0, 0x0A, 0x00, control},
		{0, 0x0A, 0x01, extension},
		{0, 0x0A, 0xFF, control + extension},
		{0, 0x1C, 0x00, exceptions},
		{0, 0x1C, 0x02, provisioning},
		{0, 0x08, 0xFF, caching},
		{0, 0x3F, 0x01, ""},
		{0, 0x08, 0x01, ""},
		{0, 0x05, 0x00, ""},
		{0, 0x05, 0xFF, ""},
		{0, 0x00, 0x00, ""},
	} {
		r := g.run(g.nexus, cdb(0x1A, 8, c.control<<6|c.code, c.subpage, 255), 255, nil)
		if c.want == "" {
			g.want(r, "05/24/00")
			continue
		}
		want := unhex(c.want)
		if g.want(r, "good"); !bytes.Equal(r.data[4:], want) {
			t.Errorf("PC %d, page %02x/%02x:\ngot  %x\nwant %x", c.control, c.code, c.subpage, r.data[4:], want)
		}
	}
}

func TestModeSelectChangesWhatCanBeChanged(t *testing.T) {
	g := newRig(t, 512, nil)
	other := g.attach(2)
	g.clear(other)
	read := cdb(0x28, 0, 0, 0, 0x10, 0, 0, 0, 1) // beyond the end
	write := cdb(0x2A, 0, 0, 0, 0, 0, 0, 0, 1)

	g.want(g.selectPages(g.nexus, 0, controlDSense), "good")
	if r := g.run(g.nexus, read, 512, nil); !bytes.Equal(r.Sense, unhex("72 05 2100 000000 0c 000a8000 0000000000001000")) {
		t.Errorf("D_SENSE=1: sense % x", r.Sense)
	}
	// Who did not do it is told, once, and in the new format.
	if r := g.run(other, cdb(0x00), 0, nil); !bytes.Equal(r.Sense, unhex("72 06 2a01 000000 00")) {
		t.Errorf("unit attention: sense % x", r.Sense)
	}
	g.want(g.run(other, cdb(0x00), 0, nil), "good")
	g.want(g.run(g.nexus, write, 0, pattern(512, 1)), "good")
	r := g.run(g.nexus, cdb(0x2F, 2, 0, 0, 0, 0, 0, 0, 1), 0, pattern(512, 2))
	if want := unhex("72 0e 1d00 000000 0c 000a8000 0000000000000000"); !bytes.Equal(r.Sense, want) {
		t.Errorf("miscompare: sense % x, want % x", r.Sense, want)
	}
	r = g.run(g.nexus, cdb(0x03, 0, 0, 0, 255), 255, nil)
	if want := unhex("70 00 00 00000000 0a 00000000 0000 00 000000"); !bytes.Equal(r.data, want) {
		t.Errorf("REQUEST SENSE with DESC=0: % x", r.data)
	}

	g.want(g.selectPages(g.nexus, 0, controlBoth), "good")
	g.want(g.selectPages(g.nexus, 0, controlSWP), "good")
	g.want(g.run(g.nexus, write, 0, pattern(512, 1)), "07/27/00")
	if n := g.dataOut(0, write); n != 0 {
		t.Errorf("solicits %d bytes for a protected unit", n)
	}
	g.want(g.run(g.nexus, read, 512, nil), "05/21/00")
	if r := g.run(g.nexus, cdb(0x1A, 8, 0x0A, 0, 255), 255, nil); r.data[2] != 0x90 || !bytes.Equal(r.data[4:], unhex("8a0a 0010 0800000000000000")) {
		t.Errorf("SWP=1: % x", r.data)
	}
	g.want(g.run(other, cdb(0x00), 0, nil), "06/2A/01") // one, for two changes
	g.want(g.run(other, write, 0, pattern(512, 1)), "07/27/00")
	g.want(g.copy(g.nexus, copyListOf(1, 0, self, copySegment{blocks: 8, toLBA: 64})), "07/27/00")

	// Not saved: a reset brings the defaults back.
	if got := g.target.Manage(scsi.LogicalUnitReset, g.nexus, 0, 0)(t.Context()); got != scsi.FunctionComplete {
		t.Fatalf("reset: %d", got)
	}
	g.want(g.run(g.nexus, cdb(0x00), 0, nil), "06/29/03")
	g.want(g.run(g.nexus, write, 0, pattern(512, 1)), "good")
	g.want(g.run(other, cdb(0x00), 0, nil), "06/29/03")

	// Saved: it stays.
	g.want(g.selectPages(g.nexus, 0, controlSWP), "good")
	g.want(g.run(g.nexus, cdb(0x15, 1), 0, nil), "good") // nothing is changed, everything is saved
	g.want(g.selectPages(g.nexus, 0, controlDSense), "good")
	if got := g.page(g.nexus, 3, 0x0A, 0); !bytes.Equal(got, unhex("8a0a 0010 0800000000000000")) {
		t.Errorf("saved: % x", got)
	}
	g.target.Manage(scsi.LogicalUnitReset, g.nexus, 0, 0)(t.Context())
	g.want(g.run(g.nexus, cdb(0x00), 0, nil), "06/29/03")
	if got := g.page(g.nexus, 0, 0x0A, 0); !bytes.Equal(got, unhex("8a0a 0010 0800000000000000")) {
		t.Errorf("current after a reset: % x", got)
	}
	g.want(g.selectPages(g.nexus, 1, controlDefault), "good")
}

func TestModeSelectThatChangesNothingTellsNobody(t *testing.T) {
	var space atomic.Pointer[scsi.Space]
	g := newRig(t, 512, thin(&space))
	other := g.attach(2)
	g.clear(other)
	version := g.mem.State().Version
	all := g.page(g.nexus, 0, 0x3F, 0xFF)
	list := append(make([]byte, 8), all...)
	c := cdb(0x55, 0x11)
	binary.BigEndian.PutUint16(c[7:], uint16(len(list)))
	g.want(g.run(g.nexus, c, 0, list), "good") // what MODE SENSE returns can be sent back, PS and all
	g.want(g.run(other, cdb(0x00), 0, nil), "good")
	if got := g.mem.State().Version; got != version {
		t.Errorf("state of version %d, was %d", got, version)
	}
}

func TestModeSelectRefusals(t *testing.T) {
	g := newRig(t, 512, nil)
	head4, head8 := "00000000", "0000000000000000"
	for _, c := range []struct {
		name  string
		op    byte
		flags byte
		list  string
		want  string
	}{
		{"no list", 0x15, 0x10, "", "good"},
		{"no list, 10", 0x55, 0x10, "", "good"},
		{"no list and not PF", 0x15, 0x00, "", "good"},
		{"header alone", 0x15, 0x10, head4, "good"},
		{"header alone, 10", 0x55, 0x10, head8, "good"},
		{"part of the header", 0x15, 0x10, "000000", "05/1A/00"},
		{"part of the header, 10", 0x55, 0x10, "00000000000000", "05/1A/00"},
		{"not PF", 0x15, 0x00, head4, "05/24/00"},
		{"revert to defaults", 0x15, 0x12, head4, "05/24/00"},
		{"medium type", 0x15, 0x10, "00010000", "05/26/00"},
		{"block descriptor as it is", 0x15, 0x10, "00000008 00001000 00000200", "good"},
		{"block descriptor of no blocks", 0x15, 0x10, "00000008 00000000 00000200", "good"},
		{"other capacity", 0x15, 0x10, "00000008 00000800 00000200", "05/26/00"},
		{"other block length", 0x15, 0x10, "00000008 00001000 00001000", "05/26/00"},
		{"part of the block descriptor", 0x15, 0x10, "00000008 00001000", "05/1A/00"},
		{"block descriptor of 7", 0x15, 0x10, "00000007 00001000 000002", "05/26/00"},
		{"two block descriptors", 0x15, 0x10, "00000010 00001000 00000200 00001000 00000200", "05/26/00"},
		{"long block descriptor", 0x55, 0x10, "00000000 01000010 0000000000001000 00000000 00000200", "good"},
		{"long block descriptor, other length", 0x55, 0x10, "00000000 01000010 0000000000001000 00000000 00001000", "05/26/00"},
		{"long block descriptor, not said to be", 0x55, 0x10, "00000000 00000010 0000000000001000 00000000 00000200", "05/26/00"},
		{"page header cut", 0x15, 0x10, head4 + "0a", "05/1A/00"},
		{"subpage header cut", 0x15, 0x10, head4 + "4a0100", "05/1A/00"},
		{"page cut", 0x15, 0x10, head4 + "0a0a 001000000000000000", "05/1A/00"},
		{"page too short", 0x15, 0x10, head4 + "0a09 001000000000000000", "05/26/00"},
		{"page too long", 0x15, 0x10, head4 + "0a0b 0010000000000000000000", "05/26/00"},
		{"unknown page", 0x15, 0x10, head4 + "0504 00000000", "05/26/00"},
		{"vendor page", 0x15, 0x10, head4 + "0000", "05/26/00"},
		{"all pages", 0x15, 0x10, head4 + "3f00", "05/26/00"},
		{"control in the format of a subpage", 0x15, 0x10, head4 + "4a00000a 00100000000000000000", "05/26/00"},
		{"thresholds of a unit without", 0x15, 0x10, head4 + "5c02001c 000000000000000000000000 8001000000000400 0102000000000000", "05/26/00"},
		{"LBPERE of a unit without", 0x15, 0x10, head4 + "010a 00000000 0080 00000000", "05/26/00"},
		{"TST", 0x15, 0x10, head4 + "0a0a 2010 0000000000000000", "05/26/00"},
		{"QUEUE ALGORITHM MODIFIER", 0x15, 0x10, head4 + "0a0a 0000 0000000000000000", "05/26/00"},
		{"TAS", 0x15, 0x10, head4 + "0a0a 0010 0040000000000000", "05/26/00"},
		{"caching as it is", 0x15, 0x10, head4 + "0812" + strings.Repeat("00", 18), "good"},
		{"WCE", 0x15, 0x10, head4 + "0812 04" + strings.Repeat("00", 17), "05/26/00"},
		{"a good page and a bad one", 0x15, 0x10, head4 + controlSWP + "0812 04" + strings.Repeat("00", 17), "05/26/00"},
		{"a good page and half a header", 0x15, 0x10, head4 + controlSWP + "08", "05/1A/00"},
		{"PS set", 0x15, 0x10, head4 + "8a0a 0010 0000000000000000", "good"},
		{"twice, the last holds", 0x15, 0x10, head4 + controlSWP + controlDefault, "good"},
	} {
		t.Run(c.name, func(t *testing.T) {
			list := unhex(c.list)
			b := cdb(c.op, c.flags)
			if c.op == 0x15 {
				b[4] = byte(len(list))
			} else {
				b[8] = byte(len(list))
			}
			if r := g.run(g.nexus, b, 0, list); outcome(&r.Task) != c.want {
				t.Errorf("%s, want %s", outcome(&r.Task), c.want)
			}
			if got := g.page(g.nexus, 0, 0x0A, 0); !bytes.Equal(got, unhex("8a0a 0010 0000000000000000")) {
				t.Errorf("left the control page as %x", got)
			}
		})
	}
	g.want(g.run(g.nexus, cdb(0x15, 0x10, 0, 0, 16), 0, make([]byte, 12)), "05/0E/03")
}

func TestSoftThresholdIsReportedOncePerCrossing(t *testing.T) {
	var space atomic.Pointer[scsi.Space]
	g := newRig(t, 512, thin(&space))
	other := g.attach(2)
	g.clear(other)
	set := func(used, available int64) {
		space.Store(&scsi.Space{Used: used, Available: available, WarnBelow: giB})
		g.unit.ForgetLook()
	}
	told := func(want string) {
		t.Helper()
		for _, n := range []*scsi.Nexus{g.nexus, other} {
			g.want(g.run(n, cdb(0x00), 0, nil), want)
			g.want(g.run(n, cdb(0x00), 0, nil), "good")
		}
	}
	set(0, giB+1<<20)
	told("good")
	set(0, giB)
	// INFORMATION is the place of the threshold's descriptor in the mode page: 16 of what is available, 24 of what is used.
	if r := g.run(g.attach(3), cdb(0x00), 0, nil); outcome(&r.Task) != "06/29/00" {
		t.Error("a nexus that has seen nothing is told of a crossing")
	}
	sense := g.run(g.nexus, cdb(0x03, 0, 0, 0, 18), 18, nil).data
	if !bytes.Equal(sense, unhex("f0 00 06 00000010 0a 00000000 3807 00 000000")) {
		t.Errorf("sense % x", sense)
	}
	g.want(g.run(other, cdb(0x00), 0, nil), "06/38/07")
	told("good")
	set(0, giB/2) // further down: known
	told("good")
	set(0, giB+1<<20) // trembles
	told("good")
	set(0, giB)
	told("good")
	set(0, giB+1<<20+1) // freed, and used up again
	told("good")
	set(0, 0)
	told("06/38/07")

	// The initiator chooses its own: 2 MiB used.
	g.want(g.selectPages(g.nexus, 0, "5c02001c 000000000000000000000000 0001000000000400 8102000000000002"), "good")
	g.want(g.run(other, cdb(0x00), 0, nil), "06/2A/01")
	set(1<<20, 0)
	told("good")
	set(2<<20, 0)
	if r := g.run(g.nexus, cdb(0x00), 0, nil); !bytes.Equal(r.Sense, unhex("f0 00 06 00000018 0a 00000000 3807 00 000000")) {
		t.Errorf("sense % x", r.Sense)
	}
	g.want(g.run(other, cdb(0x00), 0, nil), "06/38/07")
	told("good")
	// And wants to hear nothing.
	g.want(g.selectPages(g.nexus, 0, "010a 00000000 0000 00000000"), "good")
	g.want(g.run(other, cdb(0x00), 0, nil), "06/2A/01")
	set(0, 0)
	told("good")
	set(3<<20, 0)
	told("good")
}

func TestThresholdReachedBeforeAnyoneLooked(t *testing.T) {
	g := newRig(t, 512, func(c *scsi.UnitConfig) {
		c.Space = func() scsi.Space { return scsi.Space{WarnBelow: giB} }
	})
	g.unit.ForgetLook()
	g.want(g.run(g.nexus, cdb(0x00), 0, nil), "good")
}

func TestLogSense(t *testing.T) {
	var space atomic.Pointer[scsi.Space]
	for _, c := range []struct {
		name string
		cdb  [16]byte
		thin string
		fat  string
	}{
		{"pages", cdb(0x4D, 0, 0x40), "0000 0002 000c", "0000 0001 00"},
		{"pages and subpages", cdb(0x4D, 0, 0x40, 0xFF), "40ff 0006 0000 00ff 0c00", "40ff 0004 0000 00ff"},
		{"space", cdb(0x4D, 0, 0x4C), "8c00 0018 0001 03 08 00002800 02000000 0002 03 08 00000003 01000000", ""},
		{"space, thresholds", cdb(0x4D, 0, 0x0C), "8c00 0018 0001 03 08 00002800 02000000 0002 03 08 00000003 01000000", ""},
		{"space used", cdb(0x4D, 0, 0x4C, 0, 0, 0, 2), "8c00 000c 0002 03 08 00000003 01000000", ""},
		{"nothing more", cdb(0x4D, 0, 0x4C, 0, 0, 0, 3), "", ""},
		{"subpage", cdb(0x4D, 0, 0x4C, 1), "", ""},
		{"other page", cdb(0x4D, 0, 0x42), "", ""},
		{"pages from a parameter on", cdb(0x4D, 0, 0x40, 0, 0, 0, 1), "", ""},
		{"save", cdb(0x4D, 1, 0x4C), "", ""},
		{"changed ones only", cdb(0x4D, 2, 0x4C), "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, v := range []struct {
				want   string
				change func(*scsi.UnitConfig)
			}{{c.thin, thin(&space)}, {c.fat, nil}} {
				g := newRig(t, 512, v.change)
				full := c.cdb
				full[8] = 255
				r := g.run(g.nexus, full, 255, nil)
				if v.want == "" {
					g.want(r, "05/24/00")
					continue
				}
				if g.want(r, "good"); !bytes.Equal(r.data, unhex(v.want)) {
					t.Errorf("got %x, want %x", r.data, unhex(v.want))
				}
				full[8] = 5
				if cut := g.run(g.nexus, full, 255, nil); !bytes.Equal(cut.data, r.data[:5]) || cut.TransferIn != 5 {
					t.Errorf("5 bytes: %x", cut.data)
				}
			}
		})
	}
	for logical, exponent := range map[int]byte{512: 11, 4096: 8} {
		g := newRig(t, logical, thin(&space))
		if r := g.run(g.nexus, cdb(0x12, 1, 0xB2, 0, 255), 255, nil); !bytes.Equal(r.data, []byte{0, 0xB2, 0, 4, exponent, 0xE4, 2, 0}) {
			t.Errorf("blocks of %d: VPD B2 %x", logical, r.data)
		}
	}
}

func TestSenseOfLargeAddresses(t *testing.T) {
	g := newRig(t, 512, nil)
	at := block.Sector(5 << 32)
	b := &faulty{Memory: g.mem, err: &block.CorruptError{Range: block.Range{Start: at, Count: 8}}}
	cfg := scsi.UnitConfig{Identity: testIdentity, Backend: b, Access: func() scsi.Access { return *g.access.Load() }}
	u, err := scsi.NewUnit(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.target.Remove(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if err := g.target.Add(0, u); err != nil {
		t.Fatal(err)
	}
	for g.ready(0) != "good" {
	}
	read := cdb(0x28, 0, 0, 0, 0, 0, 0, 0, 1)
	if r := g.run(g.nexus, read, 512, nil); !bytes.Equal(r.Sense, unhex("70 00 03 00000000 0a 00000000 1100 00 000000")) {
		t.Errorf("fixed: % x", r.Sense)
	}
	g.want(g.selectPages(g.nexus, 0, controlDSense), "good")
	if r := g.run(g.nexus, read, 512, nil); !bytes.Equal(r.Sense, unhex("72 03 1100 000000 0c 000a8000 0000000500000000")) {
		t.Errorf("descriptors: % x", r.Sense)
	}
}

// faulty is a backend whose reads fail.
type faulty struct {
	*scsitest.Memory
	err error
}

func (f *faulty) Read(context.Context, block.Range, []byte) error { return f.err }

func TestRequestSenseSaysWhyTheUnitIsNotReady(t *testing.T) {
	g := newRig(t, 512, nil)
	fresh := g.attach(2)
	for state, want := range map[scsi.AccessState]string{
		scsi.ActiveOptimized:    "70 00 00 00000000 0a 00000000 0000 00 000000",
		scsi.ActiveNonOptimized: "70 00 00 00000000 0a 00000000 0000 00 000000",
		scsi.Standby:            "70 00 02 00000000 0a 00000000 040b 00 000000",
		scsi.Unavailable:        "70 00 02 00000000 0a 00000000 040c 00 000000",
		scsi.Transitioning:      "70 00 02 00000000 0a 00000000 040a 00 000000",
	} {
		g.access.Store(access(1, state, scsi.Standby))
		r := g.run(g.nexus, cdb(0x03, 0, 0, 0, 18), 18, nil)
		if g.want(r, "good"); !bytes.Equal(r.data, unhex(want)) {
			t.Errorf("state %d: % x", state, r.data)
		}
		if state != scsi.ActiveOptimized && state != scsi.ActiveNonOptimized {
			// A unit attention waits until the unit is ready.
			if r := g.run(fresh, cdb(0x03, 0, 0, 0, 18), 18, nil); !bytes.Equal(r.data, unhex(want)) {
				t.Errorf("state %d, with a unit attention: % x", state, r.data)
			}
		}
	}
	g.access.Store(access(1, scsi.ActiveOptimized, scsi.Standby))
	for _, want := range []string{"70 00 06 00000000 0a 00000000 2900 00 000000", "70 00 00 00000000 0a 00000000 0000 00 000000"} {
		if r := g.run(fresh, cdb(0x03, 0, 0, 0, 18), 18, nil); !bytes.Equal(r.data, unhex(want)) {
			t.Errorf("% x, want %s", r.data, want)
		}
	}
}
