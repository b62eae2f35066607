package session

import (
	"bytes"
	"testing"

	"sanctuary/target/login"
	"sanctuary/target/pdu"
	"sanctuary/target/scsi"
)

func TestReadIsCutIntoSegmentsAndBurstsWithStatusInTheLast(t *testing.T) {
	p := connect(t, setup{keys: all()})
	want := pattern(40000, 1)
	p.disk.store(512, want)
	c := p.rw(false, 512, 40000, 40000)
	p.issue(c, nil)
	var got []byte
	for sn := uint32(0); ; sn++ {
		h, data := p.expect(pdu.OpDataIn)
		if h.DataSN() != sn || int(h.BufferOffset()) != len(got) || len(data) > 4096 {
			t.Fatalf("Data-In %d at %d of %d bytes, want %d at %d of at most 4096", h.DataSN(), h.BufferOffset(), len(data), sn, len(got))
		}
		got = append(got, data...)
		end := len(got) == 40000
		if h.Final() != (end || len(got)%16384 == 0) || h.Has(pdu.FlagStatus) != end {
			t.Fatalf("after %d bytes: flags %02Xh", len(got), h.Flags())
		}
		if end {
			if h.Status() != 0 || h.Residual() != 0 || h.Has(pdu.FlagOverflow) || h.Has(pdu.FlagUnderflow) {
				t.Errorf("status %02Xh, residual %d, flags %02Xh", h.Status(), h.Residual(), h.Flags())
			}
			break
		}
	}
	if !bytes.Equal(got, want) {
		t.Error("data differs")
	}
	p.alive()
}

func TestResiduals(t *testing.T) {
	p := connect(t, setup{keys: all()})
	for _, c := range []struct {
		name                string
		write               bool
		length, edtl        int
		overflow, underflow bool
		residual            uint32
	}{
		{"exact read", false, 1024, 1024, false, false, 0},
		{"read of more than expected", false, 2048, 512, true, false, 1536},
		{"read of less than expected", false, 512, 2048, false, true, 1536},
		{"read though nothing is expected", false, 512, 0, true, false, 512},
		{"exact write", true, 1024, 1024, false, false, 0},
		{"write of more than announced", true, 2048, 512, true, false, 1536},
		{"write of less than announced", true, 512, 2048, false, true, 1536},
	} {
		p.disk.store(512, []byte{0xAA})
		cmd := p.rw(c.write, 0, c.length, c.edtl)
		var data []byte
		if c.write {
			data = bytes.Repeat([]byte{9}, c.edtl)
		}
		p.issue(cmd, data)
		op := pdu.OpSCSIResponse
		if !c.write && c.edtl > 0 {
			op = pdu.OpDataIn
		}
		h, got := p.expect(op)
		if op == pdu.OpDataIn && len(got) != min(c.length, c.edtl) {
			t.Errorf("%s: %d bytes", c.name, len(got))
		}
		if h.Has(pdu.FlagOverflow) != c.overflow || h.Has(pdu.FlagUnderflow) != c.underflow || h.Residual() != c.residual {
			t.Errorf("%s: flags %02Xh, residual %d", c.name, h.Flags(), h.Residual())
		}
		if c.write && p.disk.contents(512, 1)[0] != 0xAA && min(c.length, c.edtl) <= 512 {
			t.Errorf("%s: wrote beyond what both agreed on", c.name)
		}
	}
}

func TestCheckConditionCarriesSenseAndFullResidual(t *testing.T) {
	p := connect(t, setup{keys: all()})
	c := p.command(0x01)
	c.Read, c.EDTL = true, 100
	p.issue(c, nil)
	h, data := p.expect(pdu.OpSCSIResponse)
	sense, err := pdu.ParseSense(data)
	if err != nil || len(sense) != 18 || sense[0] != 0x70 || h.Status() != 2 || !h.Has(pdu.FlagUnderflow) || h.Residual() != 100 {
		t.Errorf("status %02Xh, sense % x (%v), flags %02Xh, residual %d", h.Status(), sense, err, h.Flags(), h.Residual())
	}
}

// writeAll does a write of want by every means negotiated: immediate data, unsolicited Data-Out, R2T.
func (p *peer) writeAll(off int, want []byte, immediate int) {
	p.Helper()
	first := 0
	if p.params.ImmediateData || !p.params.InitialR2T {
		first = min(len(want), p.params.FirstBurst)
	}
	immediate = min(immediate, first)
	if p.params.InitialR2T {
		first = immediate
	}
	c := p.rw(true, off, len(want), len(want))
	c.Final = immediate == first
	p.issue(c, want[:immediate])
	for at, sn := immediate, uint32(0); at < first; sn++ {
		n := min(3000, first-at)
		p.dataOut(pdu.DataOut{Tag: c.Tag, TransferTag: pdu.NoTag, DataSN: sn, BufferOffset: uint32(at), Final: at+n == first}, want[at:at+n])
		at += n
	}
	for asked, sn := first, uint32(0); asked < len(want); sn++ {
		h, _ := p.expect(pdu.OpR2T)
		if h.Tag() != c.Tag || h.DataSN() != sn || int(h.BufferOffset()) != asked || int(h.DesiredLength()) > p.params.MaxBurst {
			p.Fatalf("R2T %d at %d for %d, want %d at %d", h.DataSN(), h.BufferOffset(), h.DesiredLength(), sn, asked)
		}
		end := asked + int(h.DesiredLength())
		for at, dsn := asked, uint32(0); at < end; dsn++ {
			n := min(5000, end-at)
			p.dataOut(pdu.DataOut{Tag: c.Tag, TransferTag: h.TransferTag(), DataSN: dsn, BufferOffset: uint32(at), Final: at+n == end}, want[at:at+n])
			at += n
		}
		asked = end
	}
	p.expectStatus(c.Tag, scsi.StatusGood)
	if !bytes.Equal(p.disk.contents(off, len(want)), want) {
		p.Errorf("write of %d bytes with %d immediate: what was stored differs", len(want), immediate)
	}
}

func TestWritesArriveWholeByEveryMeans(t *testing.T) {
	for _, digests := range []string{"None", "CRC32C"} {
		for _, initialR2T := range []string{"Yes", "No"} {
			for _, immediate := range []string{"Yes", "No"} {
				keys := all()
				keys[0].Value, keys[1].Value = initialR2T, immediate
				keys = append(keys, pdu.Pair{Key: "HeaderDigest", Value: digests}, pdu.Pair{Key: "DataDigest", Value: digests})
				p := connect(t, setup{keys: keys})
				for i, n := range []int{1, 511, 512, 4096, 8191, 8192, 8193, 16384, 24576, 24577, 200000} {
					for _, im := range []int{0, 1, 512, 8192} {
						if im > 0 && immediate == "No" {
							continue
						}
						p.writeAll(i*512, pattern(n, i+im), im)
					}
				}
			}
		}
	}
}

func TestNoMoreR2TsAreOutstandingThanNegotiated(t *testing.T) {
	keys := all()
	keys[0].Value = "Yes"
	p := connect(t, setup{keys: keys})
	c := p.rw(true, 0, 5*16384, 5*16384)
	p.issue(c, nil)
	a, _ := p.expect(pdu.OpR2T)
	p.expect(pdu.OpR2T)
	// A ping is answered in order: had there been a third R2T it would have come first.
	p.ping(nil)
	for i := range 4 {
		n := min(4096, 16384-i*4096)
		p.dataOut(pdu.DataOut{Tag: c.Tag, TransferTag: a.TransferTag(), DataSN: uint32(i), BufferOffset: uint32(i * 4096), Final: i == 3}, make([]byte, n))
	}
	if h, _ := p.expect(pdu.OpR2T); h.BufferOffset() != 2*16384 || h.DataSN() != 2 {
		t.Errorf("third R2T: number %d at %d", h.DataSN(), h.BufferOffset())
	}
}

func TestDataBeyondWhatTheCommandUsesIsTakenAndDropped(t *testing.T) {
	p := connect(t, setup{keys: all()})
	// The CDB wants 700 bytes, the initiator announces 20000 and sends a first burst of 8192.
	c := p.rw(true, 0, 700, 20000)
	c.Final = false
	data := pattern(8192, 5)
	p.issue(c, data[:500])
	p.dataOut(pdu.DataOut{Tag: c.Tag, TransferTag: pdu.NoTag, BufferOffset: 500}, data[500:3000])
	p.dataOut(pdu.DataOut{Tag: c.Tag, TransferTag: pdu.NoTag, DataSN: 1, BufferOffset: 3000, Final: true}, data[3000:])
	h := p.expectStatus(c.Tag, scsi.StatusGood)
	if !h.Has(pdu.FlagUnderflow) || h.Residual() != 20000-700 {
		t.Errorf("flags %02Xh, residual %d", h.Flags(), h.Residual())
	}
	if got := p.disk.contents(0, 701); !bytes.Equal(got[:700], data[:700]) || got[700] != 0 {
		t.Error("not exactly the 700 bytes were stored")
	}
	p.alive()
}

func TestWrongDataOutNeverEndsInGood(t *testing.T) {
	type out struct {
		d pdu.DataOut
		n int
	}
	for _, c := range []struct {
		name      string
		solicited bool
		immediate int
		final     bool // F of the command
		outs      []out
	}{
		{name: "beyond the first burst", outs: []out{{pdu.DataOut{}, 8193}}},
		{name: "no F at the first burst's end", outs: []out{{pdu.DataOut{}, 8192}}},
		{name: "more after F", final: true, immediate: 100, outs: []out{{pdu.DataOut{BufferOffset: 100}, 100}}},
		{name: "immediate beyond the first burst", final: true, immediate: 8193},
		{name: "solicited: transfer tag never given", solicited: true, outs: []out{{pdu.DataOut{TransferTag: 77}, 100}}},
		{name: "solicited: more than asked", solicited: true, outs: []out{{pdu.DataOut{BufferOffset: 8192}, 16385}}},
		{name: "solicited: F too early", solicited: true, outs: []out{{pdu.DataOut{BufferOffset: 8192, Final: true}, 100}}},
		{name: "solicited: no F", solicited: true, outs: []out{{pdu.DataOut{BufferOffset: 8192}, 16384}}},
		{name: "solicited: another task's tag", solicited: true, outs: []out{{pdu.DataOut{BufferOffset: 8192, Tag: 5}, 100}}},
		{name: "solicited: unsolicited instead", solicited: true, outs: []out{{pdu.DataOut{BufferOffset: 8192, TransferTag: pdu.NoTag}, 100}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := connect(t, setup{keys: all()})
			cmd := p.rw(true, 0, 40960, 40960)
			cmd.Final = c.final
			if c.solicited {
				cmd.Final, c.immediate = true, 8192
			}
			p.issue(cmd, make([]byte, c.immediate))
			transfer := pdu.NoTag
			if c.solicited {
				h, _ := p.expect(pdu.OpR2T)
				p.expect(pdu.OpR2T)
				transfer = h.TransferTag()
			}
			for _, o := range c.outs {
				if o.d.Tag == 0 {
					o.d.Tag = cmd.Tag
				}
				if o.d.TransferTag == 0 {
					o.d.TransferTag = transfer
				}
				p.dataOut(o.d, make([]byte, o.n))
			}
			if c.name == "more after F" { // the R2Ts for the rest are on their way
				p.expect(pdu.OpR2T)
				p.expect(pdu.OpR2T)
			}
			p.expectClosed(pdu.RejectProtocol, ErrProtocol)
			if p.disk.executed() != 0 {
				t.Error("the command was executed")
			}
		})
	}
}

func TestDataOutOfSequenceFailsItsCommand(t *testing.T) {
	type out struct {
		sn, offset uint32
		n          int
		final      bool
	}
	for _, c := range []struct {
		name      string
		solicited bool
		outs      []out
	}{
		{name: "DataSN begins at 1", outs: []out{{1, 0, 8192, true}}},
		{name: "DataSN repeated", outs: []out{{0, 0, 4096, false}, {0, 4096, 4096, true}}},
		{name: "DataSN 27", outs: []out{{27, 0, 8192, true}}},
		{name: "DataSN -1", outs: []out{{0xFFFFFFFF, 0, 8192, true}}},
		{name: "reversed", outs: []out{{1, 4096, 4096, false}, {0, 0, 4096, true}}},
		{name: "offset skips", outs: []out{{0, 0, 100, false}, {1, 101, 100, true}}},
		{name: "offset back", outs: []out{{0, 0, 100, false}, {1, 99, 100, false}, {2, 199, 100, true}}},
		{name: "offset huge", outs: []out{{0, 0xFFFFFFFF, 100, true}}},
		{name: "solicited DataSN begins at 1", solicited: true, outs: []out{{1, 8192, 16384, true}}},
		{name: "solicited offset 0", solicited: true, outs: []out{{0, 0, 8192, false}, {1, 8192, 8192, true}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := connect(t, setup{keys: all()})
			cmd := p.rw(true, 0, 8192+2*16384, 8192+2*16384)
			var second pdu.Header
			transfer := pdu.NoTag
			if c.solicited {
				p.issue(cmd, make([]byte, 8192))
				first, _ := p.expect(pdu.OpR2T)
				second, _ = p.expect(pdu.OpR2T)
				transfer = first.TransferTag()
			} else {
				cmd.Final = false
				p.issue(cmd, nil)
			}
			for _, o := range c.outs {
				p.dataOut(pdu.DataOut{Tag: cmd.Tag, TransferTag: transfer, DataSN: o.sn, BufferOffset: o.offset, Final: o.final}, make([]byte, o.n))
			}
			if h, data := p.expect(pdu.OpReject); pdu.RejectReason(h.Response()) != pdu.RejectProtocol || data[0] != byte(pdu.OpDataOut) {
				t.Errorf("reason %02Xh, rejected % x", h.Response(), data)
			}
			if c.solicited { // no status before the data still asked for has come
				p.ping(nil)
				p.dataOut(pdu.DataOut{Tag: cmd.Tag, TransferTag: second.TransferTag(), BufferOffset: second.BufferOffset(), Final: true}, make([]byte, 16384))
			}
			p.expectStatus(cmd.Tag, scsi.StatusCheckCondition)
			if p.disk.executed() != 0 {
				t.Error("the command was executed")
			}
			p.alive()
		})
	}
}

func TestUnsolicitedDataThatWasNegotiatedAwayIsRefused(t *testing.T) {
	for name, try := range map[string]func(p *peer){
		"immediate": func(p *peer) { p.issue(p.rw(true, 0, 100, 100), make([]byte, 100)) },
		"Data-Out": func(p *peer) {
			c := p.rw(true, 0, 100, 100)
			c.Final = false
			p.issue(c, nil)
		},
		"with a read":      func(p *peer) { p.issue(p.rw(false, 0, 100, 100), make([]byte, 100)) },
		"after a read":     func(p *peer) { c := p.rw(false, 0, 100, 100); c.Final = false; p.issue(c, nil) },
		"for nobody's R2T": func(p *peer) { p.dataOut(pdu.DataOut{Tag: 1, TransferTag: 3}, nil) },
	} {
		keys := all()
		keys[0].Value, keys[1].Value = "Yes", "No"
		p := connect(t, setup{keys: keys})
		try(p)
		p.expectClosed(pdu.RejectProtocol, ErrProtocol)
		if p.disk.executed() != 0 {
			t.Errorf("%s: executed", name)
		}
	}
}

func TestDamageOnTheWireEndsTheConnection(t *testing.T) {
	for _, c := range []struct {
		name   string
		at     int
		reject pdu.RejectReason
		want   error
	}{{"header", 20, 0, pdu.ErrHeaderDigest}, {"data", pdu.HeaderSize + 4 + 10, pdu.RejectDataDigest, pdu.ErrDataDigest}} {
		p := connect(t, setup{keys: append(all(), pdu.Pair{Key: "HeaderDigest", Value: "CRC32C"}, pdu.Pair{Key: "DataDigest", Value: "CRC32C"})})
		var wire bytes.Buffer
		w := pdu.NewWriter(&wire)
		w.HeaderDigest, w.DataDigest = true, true
		var h pdu.Header
		cmd := p.rw(true, 0, 512, 512)
		cmd.Put(&h)
		if err := w.Append(&h, make([]byte, 512)); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		wire.Bytes()[c.at] ^= 4
		if _, err := p.conn.Write(wire.Bytes()); err != nil {
			t.Fatal(err)
		}
		p.expectClosed(c.reject, c.want)
		if p.disk.executed() != 0 {
			t.Errorf("damaged %s: executed", c.name)
		}
	}
}

func TestOversizedSegmentsAndTornPDUsEndTheConnection(t *testing.T) {
	p := connect(t, setup{keys: all(), offer: func(o *login.Params) { o.MaxRecvData = 8192 }})
	var h pdu.Header
	cmd := p.rw(true, 0, 512, 512)
	cmd.Put(&h)
	h.SetDataLength(8193)
	if _, err := p.conn.Write(h[:]); err != nil {
		t.Fatal(err)
	}
	p.expectClosed(pdu.RejectProtocol, pdu.ErrTooLong)

	p = connect(t, setup{keys: all()})
	h.SetDataLength(0)
	h.SetAHSLength(4)
	if _, err := p.conn.Write(append(h[:], 0xFF, 0xFF, 1, 0)); err != nil {
		t.Fatal(err)
	}
	p.expectClosed(pdu.RejectProtocol, pdu.ErrFormat)

	p = connect(t, setup{keys: all()})
	if _, err := p.conn.Write(h[:30]); err != nil {
		t.Fatal(err)
	}
	p.conn.Close() // cleanup sees that the session ends and nothing is kept
}

func TestLongCDBIsRefusedWithSense(t *testing.T) {
	p := connect(t, setup{keys: all()})
	c := p.command(0x7F)
	var h pdu.Header
	c.Put(&h)
	ahs := append([]byte{0, 17, pdu.AHSExtendedCDB, 0}, make([]byte, 16)...)
	if err := p.w.AppendAHS(&h, ahs, nil); err != nil {
		t.Fatal(err)
	}
	if err := p.w.Flush(); err != nil {
		t.Fatal(err)
	}
	_, data := p.expect(pdu.OpSCSIResponse)
	if sense, err := pdu.ParseSense(data); err != nil || sense[2] != 5 || sense[12] != 0x20 {
		t.Errorf("sense % x, %v", sense, err)
	}
	p.alive()
}

func TestTaskAttributesThatDoNotExistAreRefused(t *testing.T) {
	p := connect(t, setup{keys: all()})
	for attribute := range uint8(8) {
		c := p.rw(false, 0, 512, 512)
		c.Attribute = attribute
		p.issue(c, nil)
		if attribute <= 3 {
			p.expect(pdu.OpDataIn)
			continue
		}
		_, data := p.expect(pdu.OpSCSIResponse)
		if sense, err := pdu.ParseSense(data); err != nil || sense[2] != 5 || sense[12] != 0x49 {
			t.Errorf("attribute %d: sense % x, %v", attribute, sense, err)
		}
	}
	p.alive()
}

// What stands for an R2T is used again, so that a long write costs no garbage either.
func TestTransfersAreUsedAgain(t *testing.T) {
	p := connect(t, setup{keys: all()})
	data := pattern(64<<10, 3)
	for range 10 {
		c := p.rw(true, 0, len(data), len(data))
		p.issue(c, nil)
		for answered := false; !answered; {
			h, _, err := p.read()
			switch {
			case err != nil:
				t.Fatal(err)
			case h.Opcode() == pdu.OpR2T:
				at, n := h.BufferOffset(), h.DesiredLength()
				p.dataOut(pdu.DataOut{Final: true, Tag: c.Tag, TransferTag: h.TransferTag(), BufferOffset: at}, data[at:at+n])
			case h.Status() != 0:
				t.Fatalf("status %02Xh", h.Status())
			default:
				answered = true
			}
		}
	}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if n := len(p.s.unused); n < 1 || n > 2 {
		t.Errorf("%d transfers were made, 2 are outstanding at most", n)
	}
	if got := p.disk.contents(0, len(data)); !bytes.Equal(got, data) {
		t.Error("the data is not what was sent")
	}
}
