package scsi_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"sanctuary/blockstore/block"
	"sanctuary/target/scsi"
	"sanctuary/target/scsi/scsitest"
)

// copySegment is a segment descriptor: of blocks (type 02h), or of bytes (type 0Ah) if bytes is not 0.
type copySegment struct {
	from, to       uint16
	blocks         uint16
	dc             bool
	fromLBA, toLBA uint64
	bytes          uint32
	fromOff, toOff uint16
}

func (s copySegment) encode() []byte {
	if s.bytes == 0 {
		b := make([]byte, 28)
		b[0], b[3] = 0x02, 0x18
		if s.dc {
			b[1] = 0x02
		}
		binary.BigEndian.PutUint16(b[4:], s.from)
		binary.BigEndian.PutUint16(b[6:], s.to)
		binary.BigEndian.PutUint16(b[10:], s.blocks)
		binary.BigEndian.PutUint64(b[12:], s.fromLBA)
		binary.BigEndian.PutUint64(b[20:], s.toLBA)
		return b
	}
	b := make([]byte, 32)
	b[0], b[3] = 0x0A, 0x1C
	binary.BigEndian.PutUint16(b[4:], s.from)
	binary.BigEndian.PutUint16(b[6:], s.to)
	binary.BigEndian.PutUint32(b[8:], s.bytes)
	binary.BigEndian.PutUint64(b[12:], s.fromLBA)
	binary.BigEndian.PutUint64(b[20:], s.toLBA)
	binary.BigEndian.PutUint16(b[28:], s.fromOff)
	binary.BigEndian.PutUint16(b[30:], s.toOff)
	return b
}

// identified is an identification CSCD descriptor for an NAA designator.
func identified(naa []byte, blockBytes int) []byte {
	b := make([]byte, 32)
	b[0], b[4], b[5], b[7] = 0xE4, 0x01, 0x03, byte(len(naa))
	copy(b[8:28], naa)
	b[29], b[30], b[31] = byte(blockBytes>>16), byte(blockBytes>>8), byte(blockBytes)
	return b
}

// copyListOf is a parameter list. flags is byte 1: STR, LIST ID USAGE, PRIORITY.
func copyListOf(id, flags byte, cscds [][]byte, segments ...copySegment) []byte {
	b := make([]byte, 16)
	b[0], b[1] = id, flags
	for _, c := range cscds {
		b = append(b, c...)
	}
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)-16))
	start := len(b)
	for _, s := range segments {
		b = append(b, s.encode()...)
	}
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-start))
	return b
}

func copyCDB(length int) [16]byte {
	c := cdb(0x83)
	binary.BigEndian.PutUint32(c[10:], uint32(length))
	return c
}

func (g *rig) copy(n *scsi.Nexus, list []byte) result {
	g.t.Helper()
	c := copyCDB(len(list))
	if n := g.dataOut(0, c); n != int64(len(list)) {
		g.t.Errorf("a list of %d bytes: solicits %d", len(list), n)
	}
	return g.run(n, c, 0, list)
}

var self = [][]byte{identified(testIdentity.NAA[:], 512)}

func TestExtendedCopyMovesBlocks(t *testing.T) {
	const n = 2048
	was := pattern(n*512, 3)
	for _, c := range []struct {
		name     string
		segments []copySegment
	}{
		{"apart", []copySegment{{blocks: 100, fromLBA: 10, toLBA: 1000}}},
		{"destination count", []copySegment{{blocks: 100, dc: true, fromLBA: 10, toLBA: 1000}}},
		{"nothing", []copySegment{{blocks: 0, fromLBA: 10, toLBA: 1000}}},
		{"nothing at the end", []copySegment{{blocks: 0, fromLBA: testSectors, toLBA: testSectors}}},
		{"onto itself", []copySegment{{blocks: 100, fromLBA: 10, toLBA: 10}}},
		{"overlapping, up", []copySegment{{blocks: 1500, fromLBA: 0, toLBA: 3}}},
		{"overlapping, down", []copySegment{{blocks: 1500, fromLBA: 5, toLBA: 2}}},
		{"overlapping, up by a piece", []copySegment{{blocks: 4095, fromLBA: 0, toLBA: 1}}},
		{"overlapping, down in pieces", []copySegment{{blocks: 4000, fromLBA: 96, toLBA: 0}}},
		{"in order", []copySegment{{blocks: 8, fromLBA: 0, toLBA: 8}, {blocks: 8, fromLBA: 8, toLBA: 16}, {blocks: 16, fromLBA: 0, toLBA: 4000}}},
		{"by byte", []copySegment{{bytes: 512 * 9, fromLBA: 7, toLBA: 3000}}},
		{"self by number", []copySegment{{from: 0xFFFF, to: 0xFFFF, blocks: 9, fromLBA: 7, toLBA: 3000}}},
		{"unallocated", []copySegment{{blocks: 1000, fromLBA: 3000, toLBA: 11}}},
		{"unallocated, overlapping", []copySegment{{blocks: 1900, fromLBA: 2100, toLBA: 1900}}},
		{"partly unallocated, up", []copySegment{{blocks: 3000, fromLBA: 1000, toLBA: 1096}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newRig(t, 512, nil)
			if err := g.mem.Write(t.Context(), block.Fence{}, block.Range{Count: n}, was); err != nil {
				t.Fatal(err)
			}
			want := make([]byte, testSectors*512)
			copy(want, was)
			for _, s := range c.segments {
				length := int(s.blocks)*512 + int(s.bytes)
				// As if each segment were read before it is written.
				part := bytes.Clone(want[s.fromLBA*512:][:length])
				copy(want[s.toLBA*512:], part)
			}
			g.want(g.copy(g.nexus, copyListOf(1, 0, self, c.segments...)), "good")
			if got := g.mem.Bytes(block.Range{Count: testSectors}); !bytes.Equal(got, want) {
				t.Errorf("first difference in sector %d", firstDifference(got, want)/512)
			}
		})
	}
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// pair is a rig with a second unit, LUN 1, whose logical blocks have 4096 bytes.
func newPair(t *testing.T, change func(*scsi.UnitConfig)) (*rig, *scsitest.Memory, []byte) {
	t.Helper()
	g := newRig(t, 512, nil)
	id := testIdentity
	id.NAA[15] = 0x77
	other := scsitest.NewMemory(block.Geometry{Capacity: testSectors, LogicalBlockBytes: 4096})
	cfg := scsi.UnitConfig{Identity: id, Backend: other, Access: func() scsi.Access { return *g.access.Load() }}
	if change != nil {
		change(&cfg)
	}
	unit, err := scsi.NewUnit(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.target.Add(1, unit); err != nil {
		t.Fatal(err)
	}
	for g.ready(0) != "good" || g.ready(1) != "good" {
	}
	return g, other, id.NAA[:]
}

// ready is the outcome of TEST UNIT READY.
func (g *rig) ready(lun uint16) string {
	task := g.task(g.nexus, cdb(0x00), 0, nil)
	task.LUN = scsi.EncodeLUN(lun)
	r := g.execute(context.Background(), task)
	return outcome(&r.Task)
}

func TestExtendedCopyBetweenUnitsOfDifferentBlocks(t *testing.T) {
	g, other, naa := newPair(t, nil)
	cscds := [][]byte{self[0], identified(naa, 4096)}
	data := pattern(64*512, 9)
	g.want(g.run(g.nexus, cdb(0x2A, 0, 0, 0, 0, 16, 0, 0, 64), 0, data), "good")
	at := func(sector, n int) []byte {
		return other.Bytes(block.Range{Start: block.Sector(sector), Count: block.Count(n)})
	}
	g.want(g.copy(g.nexus, copyListOf(1, 0, cscds, copySegment{from: 0, to: 1, blocks: 64, fromLBA: 16, toLBA: 3})), "good")
	if !bytes.Equal(at(24, 64), data) {
		t.Error("64 blocks of the source: wrong")
	}
	g.want(g.copy(g.nexus, copyListOf(1, 0, cscds, copySegment{from: 0, to: 1, blocks: 2, dc: true, fromLBA: 32, toLBA: 20})), "good")
	if !bytes.Equal(at(160, 16), data[16*512:32*512]) || !bytes.Equal(at(176, 8), make([]byte, 8*512)) {
		t.Error("2 blocks of the destination: wrong")
	}
	g.want(g.copy(g.nexus, copyListOf(1, 0, cscds, copySegment{from: 1, to: 0, bytes: 1024, fromLBA: 3, fromOff: 512, toLBA: 2000})), "good")
	if !bytes.Equal(g.mem.Bytes(block.Range{Start: 2000, Count: 2}), data[512:3*512]) {
		t.Error("by byte: wrong")
	}
	for _, c := range []struct {
		name string
		segs []copySegment
		want string
	}{
		{"part of a block", []copySegment{{from: 0, to: 1, blocks: 7, fromLBA: 16, toLBA: 3}}, "0A/26/0A"},
		{"part of a sector", []copySegment{{from: 0, to: 1, bytes: 100, fromLBA: 16, toLBA: 3}}, "0A/26/0E"},
		{"skip of part of a sector", []copySegment{{from: 1, to: 0, bytes: 512, fromOff: 100}}, "0A/26/0E"},
		{"skip of more than a block", []copySegment{{from: 0, to: 1, bytes: 512, fromOff: 512}}, "0A/00/00"},
		{"beyond the end behind a good one", []copySegment{{from: 0, to: 1, blocks: 8, fromLBA: 0, toLBA: 9}, {from: 0, to: 1, blocks: 16, fromLBA: 0, toLBA: testSectors/8 - 1}}, "0A/00/00"},
	} {
		g.want(g.copy(g.nexus, copyListOf(1, 0, cscds, c.segs...)), c.want)
	}
	if !bytes.Equal(at(72, 8), data[48*512:56*512]) {
		t.Error("a list with a bad segment changed something")
	}
}

func TestExtendedCopyRefusals(t *testing.T) {
	naa := testIdentity.NAA[:]
	one := copySegment{blocks: 8, toLBA: 64}
	mangle := func(at int, v byte) []byte {
		b := copyListOf(1, 0, self, one)
		b[at] = v
		return b
	}
	unknown := bytes.Clone(naa)
	unknown[15]++
	many := func(cscds, segments int) []byte {
		return copyListOf(1, 0, slices.Repeat(self, cscds), slices.Repeat([]copySegment{one}, segments)...)
	}
	for _, c := range []struct {
		name string
		list []byte
		want string
	}{
		{"no list", nil, "good"},
		{"half a header", make([]byte, 15), "05/1A/00"},
		{"header alone", make([]byte, 16), "good"},
		{"sources alone", copyListOf(1, 0, self), "good"},
		{"more behind the descriptors", append(copyListOf(1, 0, self, one), 1, 2, 3), "good"},
		{"reserved usage", copyListOf(1, 1<<3, self, one), "05/26/00"},
		{"no identifier, yet one", copyListOf(1, 3<<3, self, one), "05/26/00"},
		{"no identifier", copyListOf(0, 3<<3, self, one), "good"},
		{"to be discarded, priority 7, sequential", copyListOf(1, 0x20|2<<3|7, self, one), "good"},
		{"inline data", mangle(15, 1), "05/26/0B"},
		{"list of CSCDs without end", mangle(2, 0xFF), "05/1A/00"},
		{"list of segments without end", mangle(8, 0xFF), "05/1A/00"},
		{"a byte less of CSCDs", mangle(3, 31), "05/1A/00"},
		{"a byte less of segments", mangle(11, 27), "05/1A/00"},
		{"most descriptors", many(16, 16), "good"},
		{"too many CSCDs", many(17, 1), "05/26/06"},
		{"too many segments", many(1, 17), "05/26/08"},
		{"too many of all", many(17, 18), "05/1A/00"},
		{"port name", mangle(16, 0xE0), "05/26/07"},
		{"ip address of 64 bytes", mangle(16, 0xEA), "05/26/07"},
		{"stream to stream", mangle(48, 0x03), "05/26/09"},
		{"segment of another length", mangle(51, 0x1C), "05/26/00"},
		{"reserved kind of identifier", mangle(17, 0xC0), "good"}, // LU ID TYPE is obsolete
		{"null device", mangle(17, 0x20), "0A/0D/02"},
		{"tape", mangle(17, 0x01), "0A/0D/03"},
		{"designator of 21 bytes", mangle(23, 21), "05/26/00"},
		{"designator of a port", mangle(21, 0x13), "0A/0D/02"},
		{"designator in ASCII", mangle(20, 0x02), "0A/0D/02"},
		{"beginning of a designator", mangle(23, 8), "0A/0D/02"},
		{"other block length", mangle(46, 0x10), "0A/0D/02"},
		{"block length not said", mangle(46, 0), "good"},
		{"unknown designator", copyListOf(1, 0, [][]byte{identified(unknown, 512)}, one), "0A/0D/02"},
		{"unknown, but not used", copyListOf(1, 0, [][]byte{self[0], identified(unknown, 512)}, one), "good"},
		{"source without descriptor", copyListOf(1, 0, self, copySegment{from: 1, blocks: 8}), "0A/08/04"},
		{"destination without descriptor", copyListOf(1, 0, self, copySegment{to: 0x7FF, blocks: 8}), "0A/08/04"},
		{"source beyond the end", copyListOf(1, 0, self, copySegment{blocks: 2, fromLBA: testSectors - 1}), "0A/00/00"},
		{"destination beyond the end", copyListOf(1, 0, self, copySegment{blocks: 2, toLBA: testSectors - 1}), "0A/00/00"},
		{"none beyond the end", copyListOf(1, 0, self, copySegment{toLBA: testSectors + 1}), "0A/00/00"},
		{"largest LBA", copyListOf(1, 0, self, copySegment{blocks: 2, toLBA: 1<<64 - 1}), "0A/00/00"},
		{"overflow in bytes", copyListOf(1, 0, self, copySegment{blocks: 2, toLBA: 1 << 55}), "0A/00/00"},
		{"bytes beyond the limit", copyListOf(1, 0, self, copySegment{bytes: 256<<20 + 512}), "05/26/00"},
		{"bytes beyond the end", copyListOf(1, 0, self, copySegment{bytes: 512 * 2, fromLBA: testSectors - 1}), "0A/00/00"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newRig(t, 512, nil)
			if r := g.copy(g.nexus, c.list); outcome(&r.Task) != c.want {
				t.Errorf("%s, want %s", outcome(&r.Task), c.want)
			}
		})
	}
	g := newRig(t, 512, nil)
	g.want(g.run(g.nexus, copyCDB(17<<10), 0, make([]byte, 17<<10)), "05/1A/00")
	g.want(g.run(g.nexus, copyCDB(1<<31), 0, nil), "05/1A/00")
	g.want(g.run(g.nexus, copyCDB(76), 0, copyListOf(1, 0, self, one)[:75]), "05/0E/03")
	second := copyListOf(1, 0, self, one, copySegment{to: 9})
	r := g.copy(g.nexus, second)
	if want := unhex("70 00 0a 00000000 0a 00000001 0804 00 a00006"); !bytes.Equal(r.Sense, want) {
		t.Errorf("second segment: sense %x, want %x", r.Sense, want)
	}
}

func TestExtendedCopyStaysWithinTheTargetAndItsRights(t *testing.T) {
	g, _, naa := newPair(t, nil)
	cscds := [][]byte{self[0], identified(naa, 4096)}
	list := copyListOf(1, 0, cscds, copySegment{from: 0, to: 1, blocks: 8})

	// Ownership of the other unit moved away and back, and this nexus has not heard of it: an old duplicate would look like this.
	g.access.Store(access(3, scsi.ActiveOptimized, scsi.Standby))
	if got := g.ready(0); got != "06/2A/06" {
		t.Fatalf("unit attention: %s", got)
	}
	g.want(g.copy(g.nexus, list), "0A/0D/02")
	if got := g.ready(1); got != "06/2A/06" {
		t.Fatalf("unit attention: %s", got)
	}
	g.want(g.copy(g.nexus, list), "good")

	// A command that was long in coming.
	late := g.task(g.nexus, copyCDB(len(list)), 0, list)
	late.Accepted = time.Now().Add(-time.Second)
	g.want(g.execute(t.Context(), late), "0A/0D/02")

	// A nexus that has never used the other unit owes it a first command.
	n := g.attach(2)
	g.want(g.run(n, cdb(0x00), 0, nil), "06/29/00")
	g.want(g.copy(n, list), "0A/0D/02")

	if err := g.target.Remove(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	for g.ready(0) != "good" {
	}
	g.want(g.copy(g.nexus, list), "0A/0D/02")

	g, _, _ = newPair(t, func(c *scsi.UnitConfig) { c.WriteProtected = true })
	g.want(g.copy(g.nexus, list), "07/27/00")
	g.want(g.copy(g.nexus, copyListOf(1, 0, cscds, copySegment{from: 1, to: 0, blocks: 1})), "good")
}

func TestExtendedCopyKeepsThinThin(t *testing.T) {
	g := newRig(t, 512, nil)
	var moved []string
	g.want(g.run(g.nexus, cdb(0x2A, 0, 0, 0, 0, 0, 0, 0, 8), 0, pattern(4096, 1)), "good")
	g.want(g.run(g.nexus, cdb(0x2A, 0, 0, 0, 0x0C, 0, 0, 0, 8), 0, pattern(4096, 2)), "good") // destination, to be zeroed
	g.mem.Before(func(_ context.Context, op string, r block.Range) error {
		if op != "Allocated" {
			moved = append(moved, op+" "+r.String())
		}
		return nil
	})
	g.want(g.copy(g.nexus, copyListOf(1, 0, self, copySegment{blocks: 2048, toLBA: 2048})), "good")
	if want := []string{"Read 0+8", "Write 2048+8", "Unmap 2056+2040"}; !slices.Equal(moved, want) {
		t.Errorf("did %v, want %v", moved, want)
	}
	if got := g.lbaStatus(2048, 1024); !slices.Equal(got, []extent{{2048, 8, 0}, {2056, 2040, 1}}) {
		t.Errorf("afterwards: %v", got)
	}
}

func TestExtendedCopyWritesSmallHolesWithWhatIsAroundThem(t *testing.T) {
	g := newRig(t, 512, nil)
	data := pattern(4096, 1)
	for _, lba := range []byte{0, 16, 0x90} { // holes of 4 KiB and of 60 KiB
		g.want(g.run(g.nexus, cdb(0x2A, 0, 0, 0, 0, lba, 0, 0, 8), 0, data), "good")
	}
	var wrote []string
	g.mem.Before(func(_ context.Context, op string, r block.Range) error {
		if op == "Write" || op == "Unmap" {
			wrote = append(wrote, op+" "+r.String())
		}
		return nil
	})
	g.want(g.copy(g.nexus, copyListOf(1, 0, self, copySegment{blocks: 1024, toLBA: 2048})), "good")
	if want := []string{"Write 2048+152", "Unmap 2200+872"}; !slices.Equal(wrote, want) {
		t.Errorf("did %v, want %v", wrote, want)
	}
	if !bytes.Equal(g.mem.Bytes(block.Range{Count: 1024}), g.mem.Bytes(block.Range{Start: 2048, Count: 1024})) {
		t.Error("the copy differs")
	}
}

func TestExtendedCopyThatCannotGoOn(t *testing.T) {
	list := copyListOf(1, 0, self, copySegment{blocks: 1600, fromLBA: 0, toLBA: 2048})
	for _, c := range []struct {
		name  string
		err   error
		first bool // the error comes before anything is written
		want  string
	}{
		{"not the owner", block.ErrNotOwner, false, "0A/0D/01"},
		{"no quorum", block.ErrUnavailable, false, "0A/0D/01"},
		{"unknown", block.ErrUnknown, true, "0A/0D/01"},
		{"unknown later", block.ErrUnknown, false, "0A/0D/01"},
		{"fenced", block.ErrFenced, true, "busy"},
		{"fenced later", block.ErrFenced, false, "0A/0D/01"},
		{"no space", block.ErrNoSpace, true, "07/27/07"},
		{"no space later", block.ErrNoSpace, false, "07/27/07"},
		{"corrupt", &block.CorruptError{Range: block.Range{Start: 5, Count: 8}}, true, "0A/0D/01"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newRig(t, 512, nil)
			if err := g.mem.Write(t.Context(), block.Fence{}, block.Range{Count: 8}, pattern(4096, 1)); err != nil {
				t.Fatal(err)
			}
			if err := g.mem.Write(t.Context(), block.Fence{}, block.Range{Start: 1200, Count: 8}, pattern(4096, 1)); err != nil {
				t.Fatal(err)
			}
			writes := 0
			g.mem.Before(func(_ context.Context, op string, _ block.Range) error {
				switch {
				case op == "Read" && c.name == "corrupt":
					return c.err
				case op == "Write" || op == "Unmap":
					if writes++; c.first || writes > 1 {
						return c.err
					}
				}
				return nil
			})
			g.want(g.copy(g.nexus, list), c.want)
		})
	}
}

func TestExtendedCopyCanBeAborted(t *testing.T) {
	g := newRig(t, 512, nil)
	if err := g.mem.Write(t.Context(), block.Fence{}, block.Range{Count: testSectors / 2}, pattern(testSectors/2*512, 1)); err != nil {
		t.Fatal(err)
	}
	list := copyListOf(7, 0, self, slices.Repeat([]copySegment{{blocks: 64, toLBA: 3000}}, 16)...)
	task := g.task(g.nexus, copyCDB(len(list)), 0, list)
	writes := 0
	answer := make(chan scsi.FunctionResponse, 1)
	g.mem.Before(func(ctx context.Context, op string, _ block.Range) error {
		if op != "Write" {
			return nil
		}
		if writes++; writes == 3 {
			go func() { answer <- g.target.Manage(scsi.AbortTask, g.nexus, 0, task.Tag)(t.Context()) }()
			<-ctx.Done()
		}
		return nil
	})
	g.want(g.execute(t.Context(), task), "aborted")
	if got := <-answer; got != scsi.FunctionComplete || writes != 3 {
		t.Errorf("answer %d after %d writes", got, writes)
	}
}

func rcr(action, id byte, allocation int) [16]byte {
	c := cdb(0x84, action, id)
	binary.BigEndian.PutUint32(c[10:], uint32(allocation))
	return c
}

func TestCopyResults(t *testing.T) {
	g := newRig(t, 512, nil)
	status := func(id byte, want string) {
		t.Helper()
		r := g.run(g.nexus, rcr(0, id, 256), 256, nil)
		if want == "" {
			g.want(r, "05/24/00")
		} else if g.want(r, "good"); !bytes.Equal(r.data, unhex(want)) {
			t.Errorf("copy %d: %x, want %x", id, r.data, unhex(want))
		}
	}
	status(1, "")
	two := []copySegment{{blocks: 8, toLBA: 64}, {blocks: 4, toLBA: 128}}
	g.want(g.copy(g.nexus, copyListOf(1, 0, self, two...)), "good")
	other := g.attach(2)
	g.clear(other)
	g.want(g.run(other, rcr(0, 1, 256), 256, nil), "05/24/00") // of another nexus
	status(2, "")
	status(1, "00000008 01 0002 00 00001800")
	status(1, "") // told once

	g.want(g.copy(g.nexus, copyListOf(9, 0, self, copySegment{to: 5})), "0A/08/04")
	status(9, "00000008 02 0000 00 00000000")
	details := g.run(g.nexus, rcr(4, 9, 256), 256, nil)
	want := append(unhex("0000004a"+strings.Repeat("00", 52)+"02 00 0012"), unhex("70 00 0a 00000000 0a 00000000 0804 00 a00006")...)
	if g.want(details, "good"); !bytes.Equal(details.data, want) {
		t.Errorf("details %x, want %x", details.data, want)
	}
	g.want(g.run(g.nexus, rcr(4, 9, 256), 256, nil), "05/24/00")
	status(9, "")

	g.mem.Before(func(_ context.Context, op string, _ block.Range) error {
		if op == "Unmap" {
			return block.ErrNoSpace
		}
		return nil
	})
	g.want(g.copy(g.nexus, copyListOf(9, 0, self, two...)), "07/27/07")
	g.mem.Before(nil)
	if r := g.run(g.nexus, rcr(4, 9, 256), 256, nil); len(r.data) != 78 || r.data[62] != 0x07 || r.data[72] != 0x27 || r.data[73] != 0x07 {
		t.Errorf("details of a full pool: % x", r.data)
	}

	g.want(g.copy(g.nexus, copyListOf(0, 3<<3, self, two...)), "good") // without an identifier
	status(0, "")
	g.want(g.copy(g.nexus, copyListOf(250, 0, self, two...)), "good")
	for id := range byte(200) { // of others, they take none of ours
		g.want(g.copy(other, copyListOf(id, 0, self, two...)), "good")
	}
	status(250, "00000008 01 0002 00 00001800")
	for id := range byte(200) { // bounded: the oldest go
		g.want(g.copy(g.nexus, copyListOf(id, 0, self, two...)), "good")
	}
	status(167, "")
	status(168, "00000008 01 0002 00 00001800")
}

func TestCopyStatusWhileItRuns(t *testing.T) {
	g := newRig(t, 512, nil)
	list := copyListOf(3, 0, self, copySegment{blocks: 8, toLBA: 64}, copySegment{blocks: 8, toLBA: 128})
	calls := 0
	g.mem.Before(func(_ context.Context, op string, _ block.Range) error {
		if op != "Unmap" {
			return nil
		}
		if calls++; calls == 2 {
			r := g.run(g.nexus, rcr(0, 3, 256), 256, nil)
			if want := unhex("00000008 00 0001 00 00001000"); !bytes.Equal(r.data, want) {
				t.Errorf("status %x, want %x", r.data, want)
			}
			g.want(g.run(g.nexus, copyCDB(len(list)), 0, list), "05/00/16")
			return errors.New("enough")
		}
		return nil
	})
	g.want(g.copy(g.nexus, list), "0A/0D/01")
}

func TestOnlySoManyCopiesAtOnce(t *testing.T) {
	const most = 16
	g := newRig(t, 512, nil)
	if err := g.mem.Write(t.Context(), block.Fence{}, block.Range{Count: 8}, pattern(4096, 1)); err != nil {
		t.Fatal(err)
	}
	begun, goOn := make(chan struct{}, most), make(chan struct{})
	g.mem.Before(func(_ context.Context, op string, _ block.Range) error {
		if op == "Read" {
			begun <- struct{}{}
			<-goOn
		}
		return nil
	})
	var copies sync.WaitGroup
	for i := range most {
		copies.Go(func() {
			g.want(g.copy(g.nexus, copyListOf(byte(i), 0, self, copySegment{blocks: 8, toLBA: uint64(64 + 8*i)})), "good")
		})
	}
	for range most {
		<-begun
	}
	one := copySegment{blocks: 8, toLBA: 2048}
	g.want(g.copy(g.nexus, copyListOf(200, 0, self, one)), "status 28")
	g.want(g.copy(g.nexus, copyListOf(3, 0, self, one)), "05/00/16")
	g.want(g.run(g.nexus, rcr(0, 200, 12), 12, nil), "05/24/00") // as if it had never come
	close(goOn)
	copies.Wait()
	g.want(g.copy(g.nexus, copyListOf(200, 0, self, one)), "good")
}

// reserveWrites registers a key for the nexus and reserves the unit with type 1, write exclusive.
func (g *rig) reserveWrites(n *scsi.Nexus, lun uint16) { g.reserve(n, lun, 1) }

// reserveAll keeps others from reading as well.
func (g *rig) reserveAll(n *scsi.Nexus, lun uint16) { g.reserve(n, lun, 3) }

func (g *rig) reserve(n *scsi.Nexus, lun uint16, kind byte) {
	g.t.Helper()
	out := func(action, kind byte, key, next uint64) {
		list := make([]byte, 24)
		binary.BigEndian.PutUint64(list, key)
		binary.BigEndian.PutUint64(list[8:], next)
		task := g.task(n, cdb(0x5F, action, kind, 0, 0, 0, 0, 0, 24), 0, list)
		task.LUN = scsi.EncodeLUN(lun)
		g.want(g.execute(g.t.Context(), task), "good")
	}
	out(0, 0, 0, 77)
	out(1, kind, 77, 0)
}

func TestExtendedCopyHeedsReservationsOfBothUnits(t *testing.T) {
	g, _, naa := newPair(t, nil)
	cscds := [][]byte{self[0], identified(naa, 4096)}
	other := g.attach(2)
	for range 2 { // unit attentions
		g.run(other, cdb(0x00), 0, nil)
		task := g.task(other, cdb(0x00), 0, nil)
		task.LUN = scsi.EncodeLUN(1)
		g.execute(t.Context(), task)
	}
	g.reserveWrites(other, 1)
	g.want(g.copy(g.nexus, copyListOf(1, 0, cscds, copySegment{from: 1, to: 0, blocks: 1})), "good") // may be read
	g.want(g.copy(g.nexus, copyListOf(1, 0, cscds, copySegment{from: 0, to: 1, blocks: 8})), "status 18")
	g.want(g.copy(g.nexus, copyListOf(1, 0, cscds, copySegment{from: 1, to: 0, blocks: 1}, copySegment{from: 0, to: 1, blocks: 8})), "status 18")
}

// TestExtendedCopyIsAsIfEachSegmentWereReadFirst: random lists over random contents and holes, against plain copies.
func TestExtendedCopyIsAsIfEachSegmentWereReadFirst(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		g := newRig(t, 512, nil)
		for i := range rapid.IntRange(0, 12).Draw(rt, "written") {
			start := rapid.IntRange(0, testSectors-1).Draw(rt, "at")
			n := min(rapid.IntRange(1, 700).Draw(rt, "sectors"), testSectors-start)
			if err := g.mem.Write(t.Context(), block.Fence{}, block.Range{Start: block.Sector(start), Count: block.Count(n)}, pattern(n*512, byte(i))); err != nil {
				rt.Fatal(err)
			}
		}
		want := g.mem.Bytes(block.Range{Count: testSectors})
		var segments []copySegment
		for range rapid.IntRange(1, 6).Draw(rt, "segments") {
			n := rapid.IntRange(0, testSectors).Draw(rt, "blocks")
			s := copySegment{
				fromLBA: uint64(rapid.IntRange(0, testSectors-n).Draw(rt, "from")),
				toLBA:   uint64(rapid.IntRange(0, testSectors-n).Draw(rt, "to")),
			}
			if rapid.Bool().Draw(rt, "by byte") {
				s.bytes = uint32(n * 512)
			} else {
				s.blocks = uint16(n)
			}
			segments = append(segments, s)
			copy(want[s.toLBA*512:], bytes.Clone(want[s.fromLBA*512:][:n*512]))
		}
		r := g.copy(g.nexus, copyListOf(1, 0, self, segments...))
		if outcome(&r.Task) != "good" {
			rt.Fatalf("%s", outcome(&r.Task))
		}
		if got := g.mem.Bytes(block.Range{Count: testSectors}); !bytes.Equal(got, want) {
			rt.Fatalf("first difference in sector %d", firstDifference(got, want)/512)
		}
	})
}
