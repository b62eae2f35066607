package session

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/target/login"
	"sanctuary/target/pdu"
	"sanctuary/target/scsi"
	"sanctuary/target/scsi/scsitest"
)

// flat is memory without a hook or a clock: what is measured is the way to it. Everything else is Memory's.
type flat struct {
	*scsitest.Memory
	data []byte
}

func (f *flat) Read(_ context.Context, r block.Range, dst []byte) error {
	copy(dst, f.data[r.Offset():])
	return nil
}

func (f *flat) Write(_ context.Context, _ block.Fence, r block.Range, src []byte) error {
	copy(f.data[r.Offset():], src)
	return nil
}

// generator sends commands that were made beforehand and looks only at how many bytes come back, so that whatever is
// allocated is the target's doing.
type generator struct {
	conn     net.Conn
	commands []byte // one batch: PDUs of commandBytes each
	each     int
	answers  []byte // as long as the answers to one batch
	cmdSN    uint32
}

const costDisk = 16 << 20

// generate logs in to a target with one LUN in memory. Each batch is depth commands of 4 KiB.
func generate(tb testing.TB, depth int, write, digests bool) *generator {
	tb.Helper()
	memory := scsitest.NewMemory(block.Geometry{Capacity: block.CountOf(costDisk), LogicalBlockBytes: 512})
	unit, err := scsi.NewUnit(scsi.UnitConfig{
		Identity: scsi.Identity{Vendor: "V", Product: "P", Revision: "1", Serial: "S", NAA: [16]byte{0x60}, Name: "cost"},
		Backend:  &flat{memory, make([]byte, costDisk)},
		Access:   access,
	})
	if err != nil {
		tb.Fatal(err)
	}
	target := scsi.NewTarget(scsi.TargetConfig{Name: "iqn.test:t"})
	if err := target.Add(0, unit); err != nil {
		tb.Fatal(err)
	}
	nexus := &scsi.Nexus{Initiator: "iqn.test:i", Port: 1}
	target.Attach(nexus)

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	server, err := ln.Accept()
	if err != nil {
		tb.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		defer target.Detach(nexus)
		hs, err := Accept(server, login.Config{
			Offer: login.DefaultOffer(), GroupTag: 1, Admit: func(*login.Params) error { return nil },
			Establish: func(*login.Params) (uint16, error) { return 7, nil },
		}, DefaultWindow)
		if err == nil {
			err = New(hs, Config{Nexus: nexus, Executor: target, Memory: NewMemory(64 << 20)}).Run(context.Background())
		}
		server.Close()
		ended <- err
	}()
	tb.Cleanup(func() {
		conn.Close()
		<-ended
	})
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	keys := []pdu.Pair{
		{Key: "InitiatorName", Value: "iqn.test:i"},
		{Key: "TargetName", Value: "iqn.test:t"},
		{Key: "SessionType", Value: "Normal"},
		{Key: "InitialR2T", Value: "No"},
		{Key: "ImmediateData", Value: "Yes"},
		{Key: "MaxRecvDataSegmentLength", Value: "262144"},
	}
	if digests {
		keys = append(keys, pdu.Pair{Key: "HeaderDigest", Value: "CRC32C"}, pdu.Pair{Key: "DataDigest", Value: "CRC32C"})
	}
	w, r := pdu.NewWriter(conn), pdu.NewReader(conn, 4096, pdu.MaxDataLength)
	var h pdu.Header
	(&pdu.LoginRequest{Transit: true, Current: pdu.StageOperational, Next: pdu.StageFullFeature, Tag: 1, CmdSN: 1}).Put(&h)
	if err := errors.Join(w.Append(&h, pdu.FormatText(keys)), w.Flush(), r.ReadHeader(&h)); err != nil || h.LoginStatus() != 0 {
		tb.Fatalf("login: %v, status %04Xh", err, h.LoginStatus())
	}
	if err := r.Discard(h.DataLength()); err != nil || r.Buffered() != 0 {
		tb.Fatal("login response: ", err)
	}
	g := &generator{conn: conn, cmdSN: 1}
	answer := pdu.HeaderSize
	if !write {
		answer += 4096
	}
	if digests {
		answer += 4
		if !write {
			answer += 4
		}
	}
	// The first command is answered with the unit attention of a new nexus.
	(&pdu.SCSICommand{Final: true, Tag: 9, CmdSN: g.cmdSN, CDB: [16]byte{}}).Put(&h)
	w.HeaderDigest, w.DataDigest, r.HeaderDigest, r.DataDigest = digests, digests, digests, digests
	if err := errors.Join(w.Append(&h, nil), w.Flush(), r.ReadHeader(&h), r.Discard(h.DataLength())); err != nil {
		tb.Fatal(err)
	}
	g.cmdSN++
	collected := &collector{}
	cw := pdu.NewWriter(collected)
	cw.HeaderDigest, cw.DataDigest = digests, digests
	for i := range depth {
		c := pdu.SCSICommand{Final: true, Read: !write, Write: write, Tag: uint32(100 + i), EDTL: 4096, CDB: [16]byte{0: 0x28, 8: 8}}
		var data []byte
		if write {
			c.CDB[0], data = 0x2A, make([]byte, 4096)
		}
		binary.BigEndian.PutUint32(c.CDB[2:], uint32(i*8))
		c.Put(&h)
		if err := errors.Join(cw.Append(&h, data), cw.Flush()); err != nil {
			tb.Fatal(err)
		}
	}
	g.commands, g.each = collected.bytes, len(collected.bytes)/depth
	g.answers = make([]byte, depth*answer)
	return g
}

type collector struct{ bytes []byte }

func (c *collector) Write(b []byte) (int, error) {
	c.bytes = append(c.bytes, b...)
	return len(b), nil
}

var costAccess = []scsi.PortGroup{{ID: 1, State: scsi.ActiveOptimized, Ports: []uint16{1}}}

func access() scsi.Access {
	return scsi.Access{Local: 1, LocalPort: 1, Generation: 1, Groups: costAccess}
}

// batch runs one batch to its end.
func (g *generator) batch(tb testing.TB, digests bool) {
	for at := 0; at < len(g.commands); at += g.each {
		binary.BigEndian.PutUint32(g.commands[at+24:], g.cmdSN)
		g.cmdSN++
		if digests {
			d := pdu.Digest(g.commands[at : at+pdu.HeaderSize])
			copy(g.commands[at+pdu.HeaderSize:], d[:])
		}
	}
	if _, err := g.conn.Write(g.commands); err != nil {
		tb.Fatal(err)
	}
	if _, err := io.ReadFull(g.conn, g.answers); err != nil {
		tb.Fatal(err)
	}
	if op := pdu.Opcode(g.answers[0]); op != pdu.OpDataIn && op != pdu.OpSCSIResponse || g.answers[3] != 0 {
		tb.Fatalf("%v with status %02Xh", op, g.answers[3])
	}
}

// A command of 4 KiB allocates nothing anywhere from the socket to the backend and back, nor starts a goroutine. What the real
// backend adds is measured in package node.
func TestCommandsAllocateNothing(t *testing.T) {
	for _, o := range []struct {
		depth          int
		write, digests bool
	}{{1, false, false}, {1, false, true}, {32, false, false}, {32, false, true}, {1, true, false}, {32, true, false}, {32, true, true}} {
		g := generate(t, o.depth, o.write, o.digests)
		for range 2000 / o.depth { // until pools and maps have their size
			g.batch(t, o.digests)
		}
		const commands = 20_000
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range commands / o.depth {
			g.batch(t, o.digests)
		}
		runtime.ReadMemStats(&after)
		// A takeover of the reader, or a timer, may allocate now and then; a command does not.
		if n := after.Mallocs - before.Mallocs; n > commands/50 {
			t.Errorf("%+v: %d allocations for %d commands", o, n, commands)
		}
	}
}

func BenchmarkSession(b *testing.B) {
	for _, o := range []struct {
		name           string
		depth          int
		write, digests bool
	}{
		{"read/qd1", 1, false, false},
		{"read/qd32", 32, false, false},
		{"read/qd32/digests", 32, false, true},
		{"write/qd1", 1, true, false},
		{"write/qd32", 32, true, false},
		{"write/qd32/digests", 32, true, true},
	} {
		b.Run(o.name, func(b *testing.B) {
			g := generate(b, o.depth, o.write, o.digests)
			_ = g.conn.SetDeadline(time.Now().Add(time.Hour))
			b.SetBytes(4096)
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i += o.depth {
				g.batch(b, o.digests)
			}
		})
	}
}
