package session

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sanctuary/target/login"
	"sanctuary/target/pdu"
	"sanctuary/target/scsi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// disk is an Executor with a few commands of its own, for 512-byte blocks:
// 28h/2Ah read and write CDB[2:6] = offset in bytes, CDB[6:10] = length in bytes; 00h does nothing; 01h ends in CHECK
// CONDITION; 02h panics. A command whose CDB[15] is 1 waits for the gate or for being aborted, with 2
// only for the gate, and Manage does not know it; with 3 the same, and then it looks whether it was revoked.
type disk struct {
	mu      sync.Mutex
	data    []byte
	ran     int
	running map[uint32]chan struct{} // by tag: closed to abort
	gate    chan struct{}            // commands that wait go on when it is closed
	entered chan uint32              // tags of commands that wait
	around  func(*scsi.Task) func()  // unless nil: called when one begins, and what it returns when it has ended
}

func newDisk() *disk {
	return &disk{
		data: make([]byte, 8<<20), running: make(map[uint32]chan struct{}), gate: make(chan struct{}),
		entered: make(chan uint32, 1024),
	}
}

func span(cdb *[16]byte) (off, n int) {
	return int(binary.BigEndian.Uint32(cdb[2:])), int(binary.BigEndian.Uint32(cdb[6:]))
}

func (d *disk) Accept(t *scsi.Task) int64 {
	if t.CDB[0] != 0x2A {
		return 0
	}
	_, n := span(&t.CDB)
	return int64(n)
}

func (d *disk) Execute(ctx context.Context, t *scsi.Task) {
	d.mu.Lock()
	around := d.around
	d.mu.Unlock()
	if around != nil {
		defer around(t)()
	}
	if t.CDB[15] == 2 || t.CDB[15] == 3 {
		d.entered <- t.Tag
		<-d.gate
		if t.CDB[15] == 3 && t.Revoked.Load() {
			t.Status = scsi.StatusTaskAborted
			return
		}
	}
	if t.CDB[15] == 1 {
		abort := make(chan struct{})
		d.mu.Lock()
		d.running[t.Tag] = abort
		d.mu.Unlock()
		d.entered <- t.Tag
		defer func() {
			d.mu.Lock()
			delete(d.running, t.Tag)
			d.mu.Unlock()
		}()
		select {
		case <-d.gate:
		case <-abort:
			t.Status = scsi.StatusTaskAborted
			return
		case <-ctx.Done():
			t.Status = scsi.StatusTaskAborted
			return
		}
	}
	off, n := span(&t.CDB)
	switch t.CDB[0] {
	case 0x00:
	case 0x01:
		t.Status, t.Sense = scsi.StatusCheckCondition, []byte{0x70, 0, 5, 17: 0}
	case 0x02:
		panic("a command that panics")
	case 0x28:
		t.TransferIn = int64(n)
		b := t.Buffers.Get(ctx, min(n, t.ExpectedIn))
		d.mu.Lock()
		copy(b, d.data[off:])
		d.mu.Unlock()
		t.DataIn = b
	case 0x2A:
		t.TransferOut = int64(n)
		d.mu.Lock()
		copy(d.data[off:], t.DataOut)
		d.mu.Unlock()
	}
	d.mu.Lock()
	d.ran++
	d.mu.Unlock()
}

func (d *disk) Manage(f scsi.Function, _ *scsi.Nexus, lun uint64, tag uint32) func(context.Context) scsi.FunctionResponse {
	return func(context.Context) scsi.FunctionResponse { return d.manage(f, lun, tag) }
}

func (d *disk) manage(f scsi.Function, lun uint64, tag uint32) scsi.FunctionResponse {
	if lun != 0 {
		return scsi.LUNDoesNotExist
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if f == scsi.AbortTask {
		abort, ok := d.running[tag]
		if !ok {
			return scsi.TaskDoesNotExist
		}
		close(abort)
		delete(d.running, tag)
		return scsi.FunctionComplete
	}
	for tag, abort := range d.running {
		close(abort)
		delete(d.running, tag)
	}
	return scsi.FunctionComplete
}

func (d *disk) Attach(*scsi.Nexus) {}

func (d *disk) Reinstate(context.Context, *scsi.Nexus) error { return nil }
func (d *disk) Detach(*scsi.Nexus)                           {}

func (d *disk) contents(off, n int) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.data[off : off+n])
}

func (d *disk) store(off int, b []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.data[off:], b)
}

func (d *disk) executed() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ran
}

// peer is the initiator's side of a session under test: it sends what the script says, right or wrong.
type peer struct {
	*testing.T
	conn   net.Conn
	r      *pdu.Reader
	w      *pdu.Writer
	disk   *disk
	memory *Memory
	params login.Params
	s      *Session
	ended  chan error

	cmdSN, statSN, tag uint32
	answerPings        bool
}

type setup struct {
	keys      []pdu.Pair // beyond the names
	offer     func(*login.Params)
	config    func(*Config)
	memory    int64
	share     *Memory // instead of memory: that of another session
	discovery bool
}

// connect logs a peer in and runs the session until the test ends.
func connect(t *testing.T, o setup) *peer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if o.memory == 0 {
		o.memory = 64 << 20
	}
	p := &peer{T: t, disk: newDisk(), memory: NewMemory(o.memory), ended: make(chan error, 1), cmdSN: 0xFFFFFFF0, tag: 100, answerPings: true}
	if o.share != nil {
		p.memory = o.share
	}
	if p.conn, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = p.conn.SetDeadline(time.Now().Add(20 * time.Second)) // a test that hangs fails
	offer := login.DefaultOffer()
	if o.offer != nil {
		o.offer(&offer)
	}
	accepted := make(chan error, 1)
	go func() {
		hs, err := Accept(server, login.Config{
			Offer: offer, GroupTag: 1, Admit: func(*login.Params) error { return nil },
			Establish: func(*login.Params) (uint16, error) { return 7, nil },
		}, 32)
		accepted <- err
		if err != nil {
			server.Close()
			return
		}
		cfg := Config{
			Nexus: &scsi.Nexus{}, Executor: p.disk, Memory: p.memory, Window: 32,
			SendTargets: func(value string) []pdu.Pair {
				return []pdu.Pair{{Key: "TargetName", Value: "iqn.x:" + value}, {Key: "TargetAddress", Value: "127.0.0.1:3260,1"}}
			},
		}
		if o.config != nil {
			o.config(&cfg)
		}
		p.s = New(hs, cfg)
		accepted <- nil
		p.ended <- p.s.Run(context.Background())
	}()
	p.r, p.w = pdu.NewReader(p.conn, 4096, pdu.MaxDataLength), pdu.NewWriter(p.conn)
	kind := pdu.Pair{Key: "SessionType", Value: "Normal"}
	if o.discovery {
		kind.Value = "Discovery"
	}
	keys := append([]pdu.Pair{{Key: "InitiatorName", Value: "iqn.test:i"}, {Key: "TargetName", Value: "iqn.test:t"}, kind}, o.keys...)
	var h pdu.Header
	(&pdu.LoginRequest{Transit: true, Current: pdu.StageOperational, Next: pdu.StageFullFeature, Tag: 1, CmdSN: p.cmdSN, ExpStatSN: 5}).Put(&h)
	p.send(&h, pdu.FormatText(keys))
	if err := errors.Join(<-accepted, <-accepted); err != nil {
		t.Fatal(err)
	}
	if _, text := p.expect(pdu.OpLoginResponse); len(text) == 0 {
		t.Fatal("login response without keys")
	}
	p.params = p.s.params
	p.r.HeaderDigest, p.r.DataDigest = p.params.HeaderDigest, p.params.DataDigest
	p.w.HeaderDigest, p.w.DataDigest = p.params.HeaderDigest, p.params.DataDigest
	p.statSN = 6
	t.Cleanup(func() {
		p.conn.Close()
		select {
		case <-p.ended:
		case <-time.After(20 * time.Second):
			t.Error("the session did not end")
		}
		if used := p.memory.Used(); used != 0 && o.share == nil {
			t.Errorf("%d bytes of buffers were not given back", used)
		}
	})
	return p
}

// all negotiates everything to what the target offers.
func all() []pdu.Pair {
	return []pdu.Pair{
		{Key: "InitialR2T", Value: "No"},
		{Key: "ImmediateData", Value: "Yes"},
		{Key: "MaxBurstLength", Value: "16384"},
		{Key: "FirstBurstLength", Value: "8192"},
		{Key: "MaxOutstandingR2T", Value: "2"},
		{Key: "MaxRecvDataSegmentLength", Value: "4096"},
	}
}

func (p *peer) send(h *pdu.Header, data []byte) {
	p.Helper()
	if err := errors.Join(p.w.Append(h, data), p.w.Flush()); err != nil {
		p.Fatal(err)
	}
}

// read returns the next PDU; pings are answered if answerPings.
func (p *peer) read() (pdu.Header, []byte, error) {
	for {
		var h pdu.Header
		if err := p.r.ReadHeader(&h); err != nil {
			return h, nil, err
		}
		data := make([]byte, h.DataLength())
		if err := p.r.ReadData(data); err != nil {
			return h, nil, err
		}
		if h.Opcode() == pdu.OpNopIn && h.Tag() == pdu.NoTag && p.answerPings {
			var out pdu.Header
			(&pdu.NopOut{Immediate: true, Tag: pdu.NoTag, TransferTag: h.TransferTag(), CmdSN: p.cmdSN}).Put(&out)
			p.send(&out, nil)
			continue
		}
		return h, data, nil
	}
}

// expect fails unless the next PDU has this opcode; it checks the status numbering on the way.
func (p *peer) expect(op pdu.Opcode) (pdu.Header, []byte) {
	p.Helper()
	h, data, err := p.read()
	if err != nil {
		p.Fatalf("waiting for a %v: %v", op, err)
	}
	if h.Opcode() != op {
		p.Fatalf("%v (% x), want a %v", h.Opcode(), h, op)
	}
	if p.statSN != 0 && (op != pdu.OpDataIn || h.Has(pdu.FlagStatus)) {
		if h.StatSN() != p.statSN {
			p.Fatalf("%v with StatSN %d, want %d", op, h.StatSN(), p.statSN)
		}
		if op != pdu.OpR2T && (op != pdu.OpNopIn || h.Tag() != pdu.NoTag) {
			p.statSN++
		}
	}
	return h, data
}

// expectClosed fails unless the target ends the connection, after a Reject of the given reason if it is not 0.
func (p *peer) expectClosed(reason pdu.RejectReason, want error) {
	p.Helper()
	if reason != 0 {
		h, data := p.expect(pdu.OpReject)
		if pdu.RejectReason(h.Response()) != reason || len(data) != pdu.HeaderSize {
			p.Errorf("Reject with reason %02Xh and %d bytes, want %02Xh and the header", h.Response(), len(data), uint8(reason))
		}
	}
	if h, _, err := p.read(); err == nil {
		p.Errorf("%v where the connection should have ended", h.Opcode())
	}
	p.conn.Close()
	select {
	case err := <-p.ended:
		if !errors.Is(err, want) {
			p.Errorf("the session ended with %v, want %v", err, want)
		}
		p.ended <- err
	case <-time.After(10 * time.Second):
		p.Fatal("the session did not end")
	}
}

// rw returns a command of the disk; write says which. It takes the next tag and CmdSN.
func (p *peer) rw(write bool, off, n, edtl int) pdu.SCSICommand {
	c := p.command(0x28)
	c.Read, c.Write, c.EDTL = !write, write, uint32(edtl)
	if write {
		c.CDB[0] = 0x2A
	}
	binary.BigEndian.PutUint32(c.CDB[2:], uint32(off))
	binary.BigEndian.PutUint32(c.CDB[6:], uint32(n))
	return c
}

func (p *peer) command(op byte) pdu.SCSICommand {
	c := pdu.SCSICommand{Final: true, Tag: p.tag, CmdSN: p.cmdSN, CDB: [16]byte{op}}
	p.tag++
	p.cmdSN++
	return c
}

func (p *peer) issue(c pdu.SCSICommand, data []byte) {
	p.Helper()
	var h pdu.Header
	c.Put(&h)
	p.send(&h, data)
}

func (p *peer) dataOut(d pdu.DataOut, data []byte) {
	p.Helper()
	var h pdu.Header
	d.Put(&h)
	p.send(&h, data)
}

// expectStatus fails unless the next PDU is the SCSI Response of that task with that status.
func (p *peer) expectStatus(tag uint32, status scsi.Status) pdu.Header {
	p.Helper()
	h, _ := p.expect(pdu.OpSCSIResponse)
	if h.Tag() != tag || h.Status() != uint8(status) {
		p.Fatalf("status %02Xh of task %d, want %02Xh of %d", h.Status(), h.Tag(), uint8(status), tag)
	}
	return h
}

// alive fails unless the session still answers.
func (p *peer) alive() {
	p.Helper()
	c := p.command(0)
	p.issue(c, nil)
	p.expectStatus(c.Tag, scsi.StatusGood)
}

func pattern(n, seed int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8 + seed)
	}
	return b
}
