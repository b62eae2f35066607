package session

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"sanctuary/target/pdu"
)

// hostilities are initiators that have logged in and mean ill. Each sends until it is cut off or told to stop, and never reads.
var hostilities = map[string]func(p *peer, send func(h *pdu.Header, data []byte) bool){
	"pings without end": func(p *peer, send func(*pdu.Header, []byte) bool) {
		var h pdu.Header
		for {
			(&pdu.NopOut{Immediate: true, Tag: 7, TransferTag: pdu.NoTag, CmdSN: p.cmdSN}).Put(&h)
			if !send(&h, make([]byte, 8192)) {
				return
			}
		}
	},
	"task management without end": func(p *peer, send func(*pdu.Header, []byte) bool) {
		var h pdu.Header
		for tag := uint32(0); ; tag++ {
			(&pdu.TaskRequest{Immediate: true, Function: uint8(tag % 9), Tag: tag, ReferencedTag: tag - 1, CmdSN: p.cmdSN, RefCmdSN: p.cmdSN}).Put(&h)
			if !send(&h, nil) {
				return
			}
		}
	},
	"immediate commands without end": func(p *peer, send func(*pdu.Header, []byte) bool) {
		var h pdu.Header
		for tag := uint32(0); ; tag++ {
			c := pdu.SCSICommand{Immediate: true, Final: true, Read: true, Tag: tag, CmdSN: p.cmdSN, EDTL: 1 << 20, CDB: [16]byte{0: 0x28, 7: 16}}
			c.Put(&h)
			if !send(&h, nil) {
				return
			}
		}
	},
	"text without end": func(p *peer, send func(*pdu.Header, []byte) bool) {
		var h pdu.Header
		for {
			(&pdu.TextRequest{Immediate: true, Continue: true, Tag: 9, TransferTag: pdu.NoTag, CmdSN: p.cmdSN}).Put(&h)
			if !send(&h, bytes.Repeat([]byte("a=b\x00"), 2000)) {
				return
			}
		}
	},
	"what no target takes": func(_ *peer, send func(*pdu.Header, []byte) bool) {
		for op := byte(0x07); ; op = op%0x3E + 1 {
			switch pdu.Opcode(op) {
			case pdu.OpSCSICommand, pdu.OpTaskRequest, pdu.OpLoginRequest, pdu.OpTextRequest, pdu.OpDataOut, pdu.OpLogoutRequest:
				continue
			}
			if !send(&pdu.Header{0: 0x40 | op, 1: 0x80, 19: 1}, make([]byte, 100)) {
				return
			}
		}
	},
	"writes whose data never comes": func(p *peer, send func(*pdu.Header, []byte) bool) {
		var h pdu.Header
		for range 32 {
			c := p.rw(true, 0, 4<<20, 4<<20)
			c.Put(&h)
			if !send(&h, make([]byte, 8192)) {
				return
			}
		}
	},
	"reads whose data nobody takes": func(p *peer, send func(*pdu.Header, []byte) bool) {
		var h pdu.Header
		for range 32 {
			c := p.rw(false, 0, 4<<20, 4<<20)
			c.Put(&h)
			if !send(&h, nil) {
				return
			}
		}
	},
	"data out of sequence": func(p *peer, send func(*pdu.Header, []byte) bool) {
		var h pdu.Header
		for range 32 {
			c := p.rw(true, 0, 8192, 8192)
			c.Final = false
			c.Put(&h)
			ok := send(&h, nil)
			(&pdu.DataOut{Final: true, Tag: c.Tag, TransferTag: pdu.NoTag, BufferOffset: 4096, DataSN: 3}).Put(&h)
			if !ok || !send(&h, make([]byte, 4096)) {
				return
			}
		}
	},
	"noise": func(_ *peer, send func(*pdu.Header, []byte) bool) {
		r := rand.New(rand.NewPCG(1, 2))
		for {
			var h pdu.Header
			for i := range 6 {
				binary.BigEndian.PutUint64(h[8*i:], r.Uint64())
			}
			if !send(&h, nil) {
				return
			}
		}
	},
}

// One initiator that behaves badly in every way does not keep another one from its disk, and holds a bounded amount of memory.
func TestHostileInitiatorsDisturbNobody(t *testing.T) {
	const budget = 8 << 20
	for name, attack := range hostilities {
		t.Run(name, func(t *testing.T) {
			good := connect(t, setup{keys: all(), memory: budget})
			bad := connect(t, setup{keys: all(), share: good.memory})
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				attack(bad, func(h *pdu.Header, data []byte) bool {
					return bad.w.Append(h, data) == nil && bad.w.Flush() == nil
				})
			}()
			most := int64(0)
			for i := range 30 {
				began := time.Now()
				want := pattern(20000, i)
				good.writeAll(i*32768, want[:16384], 4096)
				c := good.rw(false, i*32768, 16384, 16384)
				good.issue(c, nil)
				var got []byte
				for done := false; !done; {
					h, data := good.expect(pdu.OpDataIn)
					got, done = append(got, data...), h.Has(pdu.FlagStatus)
				}
				if !bytes.Equal(got, want[:16384]) {
					t.Fatal("what was read is not what was written")
				}
				if took := time.Since(began); took > 5*time.Second {
					t.Errorf("a write and a read took %v", took)
				}
				most = max(most, good.memory.Used())
			}
			// The budget, and per session one command of each kind beyond it.
			if limit := int64(budget + 2*(4<<20+4<<20+64<<10)); most > limit {
				t.Errorf("%d bytes lent, at most %d allowed", most, limit)
			}
			bad.conn.Close()
			<-ended
			select {
			case err := <-bad.ended:
				bad.ended <- err
			case <-time.After(10 * time.Second):
				t.Fatal("the session of the hostile initiator does not end")
			}
		})
	}
}

// Who stops in the middle of a PDU holds its memory: it is given up as who stops between two.
func TestWhoStopsInTheMiddleOfAPDUIsDropped(t *testing.T) {
	p := connect(t, setup{keys: all(), config: func(c *Config) { c.Ping, c.PingTimeout = 30*time.Millisecond, 150*time.Millisecond }})
	c := p.rw(true, 0, 4096, 4096)
	var h pdu.Header
	c.Put(&h)
	h.SetDataLength(4096)
	if _, err := p.conn.Write(append(h[:], make([]byte, 100)...)); err != nil {
		t.Fatal(err)
	}
	p.answerPings = false // it cannot
	for {
		h, _, err := p.read()
		if err != nil {
			break
		}
		if h.Opcode() != pdu.OpNopIn {
			t.Errorf("%v to who has not finished a PDU", h.Opcode())
		}
	}
	p.expectClosed(0, ErrSilent)
}
