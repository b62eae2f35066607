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

	"sanctuary/target/login"
	"sanctuary/target/pdu"
	"sanctuary/target/scsi"
)

// oracle is an Executor that knows what every byte of every write must be: its place and its task say so.
type oracle struct{ t *testing.T }

func oracleByte(tag uint32, at int) byte { return byte(at) ^ byte(at>>8) ^ byte(tag*31) }

// oracleLimit is the most a command may transfer, in bytes: the way there is what is looked at, not the amount.
const oracleLimit = 128 << 10

func (o *oracle) Accept(t *scsi.Task) int64 {
	n := int64(binary.BigEndian.Uint32(t.CDB[6:]))
	if t.CDB[0] != 0x2A || n > oracleLimit {
		return 0
	}
	return n
}

func (o *oracle) Execute(ctx context.Context, task *scsi.Task) {
	task.Status = scsi.StatusGood
	n := int64(binary.BigEndian.Uint32(task.CDB[6:]))
	op := task.CDB[0]
	if n > oracleLimit {
		op = 0xFF
	}
	switch op {
	case 0x28:
		task.TransferIn = n
		if size := int(min(n, int64(task.ExpectedIn))); size > 0 {
			task.DataIn = task.Buffers.Get(ctx, size)
		}
	case 0x2A:
		task.TransferOut = n
		if int64(len(task.DataOut)) != min(n, int64(task.ExpectedOut)) {
			o.t.Errorf("%d bytes of Data-Out, %d were wanted and %d announced", len(task.DataOut), n, task.ExpectedOut)
		}
		if task.CDB[15] == 0xAA { // its sender kept to the oracle's bytes
			for i, b := range task.DataOut {
				if b != oracleByte(task.Tag, i) {
					o.t.Fatalf("task %d: byte %d of %d is not what belongs there", task.Tag, i, len(task.DataOut))
				}
			}
		}
	default:
		task.Status, task.Sense = scsi.StatusCheckCondition, []byte{0x70, 0, 5, 17: 0}
	}
}

func (o *oracle) Manage(scsi.Function, *scsi.Nexus, uint64, uint32) func(context.Context) scsi.FunctionResponse {
	return func(context.Context) scsi.FunctionResponse { return scsi.TaskDoesNotExist }
}
func (o *oracle) Attach(*scsi.Nexus) {}

func (o *oracle) Reinstate(context.Context, *scsi.Nexus) error { return nil }
func (o *oracle) Detach(*scsi.Nexus)                           {}

// overhear checks what a target sends: whole PDUs, and residuals that fit.
func overhear(t *testing.T, conn net.Conn, edtl map[uint32]uint32, digests bool) {
	r := pdu.NewReader(conn, 4096, pdu.MaxDataLength)
	r.HeaderDigest, r.DataDigest = digests, digests
	for {
		var h pdu.Header
		if err := r.ReadHeader(&h); err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("the target sent what is no PDU: %v", err)
			}
			break
		}
		if err := r.Discard(h.DataLength()); err != nil {
			break
		}
		if h.Opcode() != pdu.OpSCSIResponse && (h.Opcode() != pdu.OpDataIn || !h.Has(pdu.FlagStatus)) {
			continue
		}
		over, under := h.Has(pdu.FlagOverflow), h.Has(pdu.FlagUnderflow)
		if over && under || !over && !under && h.Residual() != 0 {
			t.Errorf("flags %02Xh with a residual of %d", h.Flags(), h.Residual())
		}
		if announced, ok := edtl[h.Tag()]; ok && under && h.Residual() > announced {
			t.Errorf("residual %d of %d announced bytes", h.Residual(), announced)
		}
	}
	_, _ = io.Copy(io.Discard, conn)
}

// throw runs a session, logged in with the given parameters, against bytes; then everything must be back and gone.
func throw(t *testing.T, p login.Params, bytes []byte, edtl map[uint32]uint32) {
	before := runtime.NumGoroutine()
	client, server := net.Pipe()
	live := &liveReader{r: server}
	hs := &Handshake{
		Params: p, conn: server, live: live, reader: pdu.NewReader(live, readBuffer, loginSegment), writer: pdu.NewWriter(server),
		statSN: 1, cmdSN: 1,
	}
	memory := NewMemory(4 << 20)
	s := New(hs, Config{
		Nexus: &scsi.Nexus{}, Executor: &oracle{t: t}, Memory: memory, Window: 16,
		SendTargets: func(string) []pdu.Pair { return []pdu.Pair{{Key: "TargetName", Value: "iqn.x:y"}} },
	})
	ended, heard := make(chan error, 1), make(chan struct{})
	go func() { ended <- s.Run(context.Background()) }()
	go func() {
		defer close(heard)
		overhear(t, client, edtl, p.HeaderDigest)
	}()
	_ = client.SetWriteDeadline(time.Now().Add(5 * time.Second))
	_, _ = client.Write(bytes)
	if p.Discovery || len(bytes)%2 == 0 { // let it answer sometimes, cut it off at other times
		time.Sleep(50 * time.Microsecond)
	}
	client.Close()
	select {
	case err := <-ended:
		if errors.Is(err, ErrPanic) {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		buf := make([]byte, 1<<20)
		t.Fatalf("the session does not end\n%s", buf[:runtime.Stack(buf, true)])
	}
	<-heard
	if used := memory.Used(); used != 0 {
		t.Errorf("%d bytes of buffers were not given back", used)
	}
	for i := 0; runtime.NumGoroutine() > before; i++ { // those that have said they are done may need a moment to be gone
		if i == 200 {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(time.Millisecond)
	}
}

func fuzzParams(bits uint8) login.Params {
	p := login.DefaultOffer()
	p.FirstBurst, p.MaxBurst, p.MaxSendData, p.MaxRecvData = 1024, 4096, 512, 2048
	p.MaxOutstandingR2T = 2
	p.InitialR2T, p.ImmediateData = bits&1 != 0, bits&2 == 0
	p.HeaderDigest, p.DataDigest = bits&4 != 0, bits&4 != 0
	p.Discovery = bits&8 != 0
	return p
}

// script builds the bytes of PDUs.
type script struct {
	collector
	w *pdu.Writer
}

func newScript(digests bool) *script {
	s := &script{}
	s.w = pdu.NewWriter(&s.collector)
	s.w.HeaderDigest, s.w.DataDigest = digests, digests
	return s
}

func (s *script) put(h *pdu.Header, data []byte) {
	if err := errors.Join(s.w.Append(h, data), s.w.Flush()); err != nil {
		panic(err)
	}
}

// FuzzWire sends any bytes after the login.
func FuzzWire(f *testing.F) {
	seed := func(bits uint8, puts ...func(h *pdu.Header) []byte) {
		s := newScript(bits&4 != 0)
		for _, put := range puts {
			var h pdu.Header
			data := put(&h)
			s.put(&h, data)
		}
		f.Add(bits, s.bytes)
	}
	read := func(h *pdu.Header) []byte {
		(&pdu.SCSICommand{Final: true, Read: true, Tag: 1, CmdSN: 1, EDTL: 512, CDB: [16]byte{0: 0x28, 8: 2}}).Put(h)
		return nil
	}
	write := func(h *pdu.Header) []byte {
		(&pdu.SCSICommand{Final: true, Write: true, Tag: 2, CmdSN: 1, EDTL: 64, CDB: [16]byte{0: 0x2A, 9: 64}}).Put(h)
		return make([]byte, 16)
	}
	data := func(h *pdu.Header) []byte {
		(&pdu.DataOut{Final: true, Tag: 2, BufferOffset: 16}).Put(h)
		return make([]byte, 48)
	}
	abort := func(h *pdu.Header) []byte {
		(&pdu.TaskRequest{Immediate: true, Function: 1, Tag: 3, ReferencedTag: 2, CmdSN: 2, RefCmdSN: 1}).Put(h)
		return nil
	}
	ping := func(h *pdu.Header) []byte {
		(&pdu.NopOut{Immediate: true, Tag: 4, TransferTag: pdu.NoTag, CmdSN: 1}).Put(h)
		return []byte("ping")
	}
	text := func(h *pdu.Header) []byte {
		(&pdu.TextRequest{Final: true, Tag: 5, TransferTag: pdu.NoTag, CmdSN: 1}).Put(h)
		return []byte("SendTargets=All\x00")
	}
	logout := func(h *pdu.Header) []byte {
		(&pdu.LogoutRequest{Reason: pdu.LogoutSession, Tag: 6, CmdSN: 2}).Put(h)
		return nil
	}
	seed(0, read, logout)
	seed(4, read)
	seed(0, write, data)
	seed(4, write, data)
	seed(0, write, abort, data)
	seed(2, ping, ping)
	seed(8, text, logout)
	f.Add(uint8(0), append([]byte{0x01, 0xE0, 0, 0, 255}, make([]byte, 60)...))
	for _, op := range []byte{0x03, 0x10, 0x1C, 0x20, 0x3F, 0x45} {
		f.Add(uint8(0), append([]byte{op, 0x80}, make([]byte, 46)...))
	}
	f.Fuzz(func(t *testing.T, bits uint8, bytes []byte) {
		if len(bytes) > 64<<10 {
			t.Skip()
		}
		throw(t, fuzzParams(bits), bytes, nil)
	})
}

// FuzzDataOut sends writes and their data in any sequence: 6 bytes of input are one PDU. Whatever is executed has every byte in
// its place.
func FuzzDataOut(f *testing.F) {
	f.Add(uint8(0), []byte{0, 0, 8, 0, 2, 0})
	f.Add(uint8(0), []byte{0, 0, 16, 0, 2, 0, 2, 0, 4, 2, 1, 0x80})
	f.Add(uint8(4), []byte{0, 0, 64, 0, 2, 0, 2, 0, 8, 2, 0, 0, 2, 0, 8, 10, 1, 0x80, 2, 1, 8, 18, 0, 0, 2, 1, 8, 26, 1, 0x80})
	f.Add(uint8(0), []byte{0, 0, 8, 0, 1, 0, 1, 0, 2, 1, 0, 0, 1, 0, 1, 3, 1, 0x80})
	f.Add(uint8(0), []byte{0, 0, 4, 0, 0, 0x80, 1, 0, 2, 2, 0, 0, 1, 0, 2, 0, 1, 0x80}) // offsets changed places
	f.Add(uint8(1), []byte{0, 1, 16, 0, 0, 0, 3, 1, 0, 0, 0, 0, 2, 0, 8, 0, 0, 0x80})
	f.Fuzz(func(t *testing.T, bits uint8, ops []byte) {
		if len(ops) > 6*64 {
			t.Skip()
		}
		p := fuzzParams(bits &^ 8)
		s := newScript(p.HeaderDigest)
		edtl := make(map[uint32]uint32)
		cmdSN := uint32(1)
		fill := func(tag uint32, at, n int) []byte {
			b := make([]byte, n)
			for i := range b {
				b[i] = oracleByte(tag, at+i)
			}
			return b
		}
		const unit = 256
		for ; len(ops) >= 6; ops = ops[6:] {
			tag, flags := 10+uint32(ops[1]%4), ops[5]
			var h pdu.Header
			switch ops[0] % 4 {
			case 0: // length, difference of EDTL, immediate data
				n := int(ops[2]) * unit
				c := pdu.SCSICommand{Final: flags&0x80 == 0, Write: true, Tag: tag, CmdSN: cmdSN, EDTL: uint32(max(0, n+int(int8(ops[3]))*4))}
				c.CDB = [16]byte{0: 0x2A, 15: 0xAA}
				binary.BigEndian.PutUint32(c.CDB[6:], uint32(n))
				c.Put(&h)
				edtl[tag] = max(edtl[tag], c.EDTL)
				cmdSN++
				s.put(&h, fill(tag, 0, int(ops[4])*unit))
			case 1: // unsolicited: length, offset, DataSN
				(&pdu.DataOut{Final: flags&0x80 != 0, Tag: tag, TransferTag: pdu.NoTag, BufferOffset: uint32(ops[3]) * unit, DataSN: uint32(ops[4])}).Put(&h)
				s.put(&h, fill(tag, int(ops[3])*unit, int(ops[2])*unit))
			case 2: // solicited: length, offset, DataSN; the target counts its transfer tags from 0
				(&pdu.DataOut{Final: flags&0x80 != 0, Tag: tag, TransferTag: uint32(flags & 7), BufferOffset: uint32(ops[3]) * unit, DataSN: uint32(ops[4])}).Put(&h)
				s.put(&h, fill(tag, int(ops[3])*unit, int(ops[2])*unit))
			case 3:
				(&pdu.TaskRequest{Immediate: true, Function: ops[2] % 9, Tag: 50 + uint32(ops[3]%4), ReferencedTag: tag, CmdSN: cmdSN, RefCmdSN: cmdSN - uint32(ops[4])}).Put(&h)
				s.put(&h, nil)
			}
		}
		throw(t, p, s.bytes, edtl)
	})
}

// FuzzTextRequest sends text exchanges: the first byte of each is its flags and tag, the second its transfer tag and length.
func FuzzTextRequest(f *testing.F) {
	f.Add(false, []byte("\x80\x0fSendTargets=All\x00"))
	f.Add(true, []byte("\x40\x08SendTarg\x80\x18ets=All\x00MaxRecvDataSegmentLength=512\x00"))
	f.Add(false, []byte("\x80\xffX-com.example=1\x00HeaderDigest=None\x00"))
	f.Add(true, []byte("\xc0\x04abcd\x00\x00\x80\x00"))
	f.Fuzz(func(t *testing.T, discovery bool, in []byte) {
		if len(in) > 8<<10 {
			t.Skip()
		}
		bits := uint8(0)
		if discovery {
			bits = 8
		}
		s := newScript(false)
		for cmdSN := uint32(1); len(in) >= 2; cmdSN++ {
			r := pdu.TextRequest{Final: in[0]&0x80 != 0, Continue: in[0]&0x40 != 0, Tag: uint32(in[0] & 3), TransferTag: pdu.NoTag, CmdSN: cmdSN}
			if in[0]&4 != 0 {
				r.TransferTag = uint32(in[0] >> 3 & 7)
			}
			n := min(int(in[1]), len(in)-2)
			var h pdu.Header
			r.Put(&h)
			s.put(&h, in[2:2+n])
			in = in[2+n:]
		}
		throw(t, fuzzParams(bits), s.bytes, nil)
	})
}
