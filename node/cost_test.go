package node

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"sanctuary/node/api"
	"sanctuary/target/pdu"
)

// wire is a session that sends commands made beforehand and looks only at how many bytes come back, so that whatever is
// allocated is the node's doing.
type wire struct {
	t     *testing.T
	conn  net.Conn
	cmdSN uint32
}

func newWire(t *testing.T, address, iqn string) *wire {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	w, r := pdu.NewWriter(conn), pdu.NewReader(conn, 4096, pdu.MaxDataLength)
	exchange := func(h *pdu.Header, text []byte) {
		t.Helper()
		if err := errors.Join(w.Append(h, text), w.Flush(), r.ReadHeader(h), r.Discard(h.DataLength())); err != nil {
			t.Fatal(err)
		}
	}
	var h pdu.Header
	(&pdu.LoginRequest{Transit: true, Current: pdu.StageOperational, Next: pdu.StageFullFeature, Tag: 1, CmdSN: 1}).Put(&h)
	exchange(&h, pdu.FormatText([]pdu.Pair{
		{Key: "InitiatorName", Value: "iqn.2024-01.test:wire"},
		{Key: "TargetName", Value: iqn},
		{Key: "InitialR2T", Value: "No"},
		{Key: "MaxRecvDataSegmentLength", Value: "262144"},
	}))
	if h.LoginStatus() != 0 {
		t.Fatalf("login status %04Xh", h.LoginStatus())
	}
	(&pdu.SCSICommand{Final: true, Tag: 9, CmdSN: 1}).Put(&h)
	exchange(&h, nil) // the unit attention of a new session
	return &wire{t: t, conn: conn, cmdSN: 2}
}

// batch makes depth commands of 4 KiB, one block after the other, and as much room as their answers take.
func batch(depth int, write bool) (commands, answers []byte) {
	for i := range depth {
		c := pdu.SCSICommand{Final: true, Read: !write, Write: write, Tag: uint32(100 + i), EDTL: 4096, CDB: [16]byte{0: 0x28, 8: 8}}
		var h pdu.Header
		if write {
			c.CDB[0] = 0x2A
		}
		binary.BigEndian.PutUint32(c.CDB[2:], uint32(i*8))
		c.Put(&h)
		answers = append(answers, make([]byte, pdu.HeaderSize)...)
		if write {
			h.SetDataLength(4096)
			commands = append(append(commands, h[:]...), make([]byte, 4096)...)
			commands[len(commands)-1] = byte(i) | 1 // not only zeros
		} else {
			commands = append(commands, h[:]...)
			answers = append(answers, make([]byte, 4096)...)
		}
	}
	return commands, answers
}

func (w *wire) run(commands, answers []byte, depth int) {
	w.t.Helper()
	each := len(commands) / depth
	for at := 0; at < len(commands); at += each {
		binary.BigEndian.PutUint32(commands[at+24:], w.cmdSN)
		w.cmdSN++
	}
	if _, err := w.conn.Write(commands); err != nil {
		w.t.Fatal(err)
	}
	if _, err := io.ReadFull(w.conn, answers); err != nil {
		w.t.Fatal(err)
	}
	if op := pdu.Opcode(answers[0]); op != pdu.OpDataIn && op != pdu.OpSCSIResponse || answers[3] != 0 {
		w.t.Fatalf("%v with status %02Xh", op, answers[3])
	}
}

// allocations of commands, one batch after the other, by everything this process runs.
func (w *wire) allocations(n, depth int, write bool) float64 {
	commands, answers := batch(depth, write)
	for range 2000 / depth { // until pools and maps have their size
		w.run(commands, answers, depth)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n / depth {
		w.run(commands, answers, depth)
	}
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs-before.Mallocs) / float64(n)
}

// A read of 4 KiB allocates nothing from the socket down to the store and its checksums, under a lease, and back.
func TestReadsAllocateNothing(t *testing.T) {
	c := newCluster(t)
	cfg := c.cfgs["alpha"]
	cfg.Members = cfg.Members[:1]
	clear(c.cfgs)
	c.cfgs["alpha"] = cfg
	c.start("alpha")
	cl := c.client()
	for _, media := range []string{"ram", "file"} {
		l, err := cl.CreateLUN(context.Background(), api.LUNSpec{Name: media, SizeBytes: 64 << 20, Media: media, Copies: 1, Open: true}, 30*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		l = c.lun(cl, media, func(l api.LUN) bool { return l.Owner != "" })
		w := newWire(t, cfg.Listen.ISCSI[0], l.IQN)
		t.Logf("%s: %.1f allocations for a write", media, w.allocations(4000, 32, true))
		for _, depth := range []int{1, 32} {
			// Raft, gossip and the API go on beside it: a few hundred allocations a second.
			if n := w.allocations(20_000, depth, false); n > 0.2 {
				t.Errorf("%s, depth %d: %.2f allocations for a read", media, depth, n)
			} else {
				t.Logf("%s, depth %d: %.3f allocations for a read", media, depth, n)
			}
		}
	}
}
