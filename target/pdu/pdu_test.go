package pdu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestBuiltHeadersReadBack(t *testing.T) {
	var h Header
	(&SCSICommand{
		Immediate: true, Final: true, Read: true, Attribute: 3, LUN: 0x0001 << 48, Tag: 7, EDTL: 4096, CmdSN: 9,
		ExpStatSN: 11, CDB: [16]byte{0x28, 15: 0xEE},
	}).Put(&h)
	if h.Opcode() != OpSCSICommand || !h.Immediate() || !h.Final() || !h.Has(FlagRead) || h.Has(FlagWrite) ||
		h.Attribute() != 3 || h.LUN() != 1<<48 || h.Tag() != 7 || h.EDTL() != 4096 || h.CmdSN() != 9 ||
		h.ExpStatSN() != 11 || h.CDB()[0] != 0x28 || h.CDB()[15] != 0xEE {
		t.Errorf("SCSI Command does not read back: % x", h)
	}
	(&LoginRequest{
		Transit: true, Current: StageOperational, Next: StageFullFeature, ISID: [6]byte{1, 2, 3, 4, 5, 6}, TSIH: 0x0708,
		CID: 3, Tag: 4, CmdSN: 5, ExpStatSN: 6,
	}).Put(&h)
	current, next := h.Stages()
	if current != StageOperational || next != StageFullFeature || h.ISID() != [6]byte{1, 2, 3, 4, 5, 6} ||
		h.TSIH() != 0x0708 || h.CID() != 3 || h.CmdSN() != 5 || !h.Final() || h.Has(FlagContinue) {
		t.Errorf("Login Request does not read back: % x", h)
	}
	(&DataIn{Final: true, WithStatus: true, Underflow: true, Tag: 1, DataSN: 2, BufferOffset: 3, Residual: 4}).Put(&h)
	h.SetSequence(5, 6, 7)
	if !h.Has(FlagFinal|FlagStatus|FlagUnderflow) || h.Has(FlagOverflow) || h.DataSN() != 2 || h.BufferOffset() != 3 ||
		h.Residual() != 4 || h.StatSN() != 5 || h.ExpCmdSN() != 6 || h.MaxCmdSN() != 7 || h.TransferTag() != NoTag {
		t.Errorf("Data-In does not read back: % x", h)
	}
	(&LoginResponse{Status: 0x0203, Tag: 9}).Put(&h)
	if h.LoginStatus() != 0x0203 || h[36] != 2 || h[37] != 3 {
		t.Errorf("Login Response status does not read back: % x", h)
	}
	(&Async{Event: AsyncLogoutRequest, Parameters: [3]uint16{1, 2, 3}}).Put(&h)
	if e, p := h.AsyncEvent(); e != 1 || p != [3]uint16{1, 2, 3} || h.Tag() != NoTag {
		t.Errorf("Asynchronous Message does not read back: % x", h)
	}
}

// The vectors of RFC 3720 appendix B.4.
func TestDigestMatchesTheStandardsVectors(t *testing.T) {
	up, down := make([]byte, 32), make([]byte, 32)
	for i := range up {
		up[i], down[i] = byte(i), byte(31-i)
	}
	for _, c := range []struct {
		data []byte
		want [4]byte
	}{
		{make([]byte, 32), [4]byte{0xaa, 0x36, 0x91, 0x8a}},
		{bytes.Repeat([]byte{0xFF}, 32), [4]byte{0x43, 0xab, 0xa8, 0x62}},
		{up, [4]byte{0x4e, 0x79, 0xdd, 0x46}},
		{down, [4]byte{0x5c, 0xdb, 0x3f, 0x11}},
	} {
		if got := Digest(c.data); got != c.want {
			t.Errorf("digest of % x: % x, want % x", c.data, got, c.want)
		}
	}
}

func TestStreamCarriesPDUsOfEveryLengthWithEveryDigest(t *testing.T) {
	lengths := []int{0, 1, 2, 3, 4, 5, 47, 512, inlineBytes, inlineBytes + 1, 4096, 70000}
	for mode := range 4 {
		var wire bytes.Buffer
		w := NewWriter(&wire)
		w.HeaderDigest, w.DataDigest = mode&1 != 0, mode&2 != 0
		for i, n := range lengths {
			var h Header
			(&DataOut{Tag: uint32(i)}).Put(&h)
			var ahs []byte
			if i%3 == 0 {
				ahs = []byte{0, 2, AHSExtendedCDB, 0, byte(i), 0, 0, 0}
			}
			if err := w.AppendAHS(&h, ahs, bytes.Repeat([]byte{byte(i + 1)}, n)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		r := NewReader(&wire, 4096, 1<<20)
		r.HeaderDigest, r.DataDigest = w.HeaderDigest, w.DataDigest
		for i, n := range lengths {
			var h Header
			if err := r.ReadHeader(&h); err != nil {
				t.Fatalf("mode %d, length %d: %v", mode, n, err)
			}
			cdb, has := FindAHS(r.AHS(), AHSExtendedCDB)
			if has != (i%3 == 0) || has && (len(cdb) != 1 || cdb[0] != byte(i)) {
				t.Fatalf("mode %d, length %d: additional header % x, %v", mode, n, cdb, has)
			}
			if int(h.Tag()) != i || h.DataLength() != n {
				t.Fatalf("mode %d: PDU %d with %d bytes, want %d with %d", mode, h.Tag(), h.DataLength(), i, n)
			}
			if i%4 == 3 {
				if err := r.Discard(n); err != nil {
					t.Fatal(err)
				}
				continue
			}
			data := make([]byte, n)
			if err := r.ReadData(data); err != nil {
				t.Fatalf("mode %d, length %d: %v", mode, n, err)
			}
			if !bytes.Equal(data, bytes.Repeat([]byte{byte(i + 1)}, n)) {
				t.Fatalf("mode %d, length %d: data changed", mode, n)
			}
		}
		var h Header
		if err := r.ReadHeader(&h); err != io.EOF {
			t.Errorf("mode %d: %v at the end, want io.EOF", mode, err)
		}
	}
}

func TestWriterFlushesByItselfWhenItsArenaIsFull(t *testing.T) {
	var wire bytes.Buffer
	w := NewWriter(&wire)
	var h Header
	for i := range 5000 {
		(&NopIn{Tag: uint32(i)}).Put(&h)
		if err := w.Append(&h, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	r := NewReader(&wire, 4096, 0)
	for i := range 5000 {
		if err := r.ReadHeader(&h); err != nil || h.Tag() != uint32(i) {
			t.Fatalf("PDU %d: tag %d, %v", i, h.Tag(), err)
		}
	}
}

func TestEveryFlippedBitIsNoticedByTheDigests(t *testing.T) {
	var wire bytes.Buffer
	w := NewWriter(&wire)
	w.HeaderDigest, w.DataDigest = true, true
	var h Header
	(&DataOut{Tag: 1}).Put(&h)
	if err := errors.Join(w.Append(&h, []byte("some data")), w.Flush()); err != nil {
		t.Fatal(err)
	}
	for i := range wire.Len() * 8 {
		damaged := bytes.Clone(wire.Bytes())
		damaged[i/8] ^= 1 << (i % 8)
		r := NewReader(bytes.NewReader(damaged), 4096, 1<<10)
		r.HeaderDigest, r.DataDigest = true, true
		err := r.ReadHeader(&h)
		if err == nil {
			err = r.ReadData(make([]byte, h.DataLength()))
		}
		if err == nil {
			t.Errorf("bit %d of byte %d was flipped and nobody noticed", i%8, i/8)
		}
	}
}

func TestReaderRefusesWhatIsTooLongOrTorn(t *testing.T) {
	whole := func(ahs []byte, n int) []byte {
		var h Header
		(&NopOut{}).Put(&h)
		h.SetAHSLength(len(ahs))
		h.SetDataLength(n)
		return append(append(h[:], ahs...), make([]byte, n+Padding(n))...)
	}
	for _, c := range []struct {
		name string
		wire []byte
		want error
	}{
		{"half a header", whole(nil, 0)[:20], io.ErrUnexpectedEOF},
		{"nothing after the header", whole(nil, 10)[:HeaderSize], io.ErrUnexpectedEOF},
		{"half the data", whole(nil, 10)[:HeaderSize+5], io.ErrUnexpectedEOF},
		{"no padding", whole(nil, 10)[:HeaderSize+10], io.ErrUnexpectedEOF},
		{"half the additional header", whole([]byte{0, 1, 2, 0}, 0)[:HeaderSize+2], io.ErrUnexpectedEOF},
		{"too much data", whole(nil, 101), ErrTooLong},
		{"additional header longer than announced", whole([]byte{0, 20, 1, 0}, 0), ErrFormat},
		{"longest additional header", whole([]byte{0xFF, 0xFF, 1, 0}, 0), ErrFormat},
		{"exactly the limit", whole(nil, 100), nil},
	} {
		r := NewReader(bytes.NewReader(c.wire), 64, 100)
		var h Header
		err := r.ReadHeader(&h)
		if err == nil {
			err = r.ReadData(make([]byte, h.DataLength()))
		}
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

func TestParseText(t *testing.T) {
	for _, c := range []struct {
		in   string
		want []Pair // nil: refused
	}{
		{"", []Pair{}},
		{"A=b\x00", []Pair{{"A", "b"}}},
		{"A=b", []Pair{{"A", "b"}}},
		{"A=b\x00C=\x00\x00\x00", []Pair{{"A", "b"}, {"C", ""}}},
		{"A=b=c\x00", []Pair{{"A", "b=c"}}},
		{"X-com.example.key=1\x00", []Pair{{"X-com.example.key", "1"}}},
		{"nonsense\x00", nil},
		{"=x\x00", nil},
		{"A b=x\x00", nil},
		{"A=\x01\x00", nil},
		{strings.Repeat("k", 64) + "=x\x00", nil},
		{"K=" + strings.Repeat("v", MaxValueBytes+1), nil},
		{strings.Repeat("K=v\x00", MaxKeys+1), nil},
	} {
		got, err := ParseText([]byte(c.in))
		if c.want == nil {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("%.40q: %v, %v; want ErrFormat", c.in, got, err)
			}
			continue
		}
		if err != nil || len(got) != len(c.want) {
			t.Errorf("%.40q: %v, %v; want %v", c.in, got, err, c.want)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%.40q: %v, want %v", c.in, got, c.want)
			}
		}
	}
}

func TestParseSenseIsBoundedByItsSegment(t *testing.T) {
	if got, err := ParseSense(AppendSense(nil, []byte{0x70, 1, 2})); err != nil || !bytes.Equal(got, []byte{0x70, 1, 2}) {
		t.Errorf("% x, %v", got, err)
	}
	for _, bad := range [][]byte{{0}, {0, 1}, {0xFF, 0xFF, 1}} {
		if _, err := ParseSense(bad); !errors.Is(err, ErrFormat) {
			t.Errorf("% x: %v", bad, err)
		}
	}
}

func TestSerialArithmeticWraps(t *testing.T) {
	if !SerialLess(0xFFFFFFFF, 0) || SerialLess(0, 0xFFFFFFFF) || SerialLess(5, 5) || !SerialLess(4, 5) {
		t.Error("serial number comparison does not wrap")
	}
}

func TestHotPathAllocatesNothing(t *testing.T) {
	data := make([]byte, 4096)
	w := NewWriter(io.Discard)
	var h Header
	if n := testing.AllocsPerRun(100, func() {
		(&DataIn{Tag: 1, Final: true}).Put(&h)
		if err := errors.Join(w.Append(&h, data), w.Flush()); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("writing a Data-In allocates %v times", n)
	}
	(&DataOut{Tag: 1}).Put(&h)
	h.SetDataLength(len(data))
	source := bytes.NewReader(append(h[:], data...))
	r := NewReader(source, 16<<10, 1<<20)
	if n := testing.AllocsPerRun(100, func() {
		source.Seek(0, io.SeekStart) //nolint:errcheck // a bytes.Reader seeks to its start without fail
		if err := r.ReadHeader(&h); err != nil {
			t.Fatal(err)
		}
		if err := r.ReadData(data); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("reading a Data-Out allocates %v times", n)
	}
}

func FuzzReader(f *testing.F) {
	var h Header
	(&SCSICommand{Final: true}).Put(&h)
	f.Add(h[:], false, false)
	h.SetAHSLength(8)
	f.Add(append(h[:], 0, 5, 1, 0, 1, 2, 3, 4), true, true)
	f.Fuzz(func(t *testing.T, wire []byte, header, data bool) {
		r := NewReader(bytes.NewReader(wire), 64, 4096)
		r.HeaderDigest, r.DataDigest = header, data
		for {
			var h Header
			if r.ReadHeader(&h) != nil {
				return
			}
			_ = h.Opcode().String()
			if cdb, ok := FindAHS(r.AHS(), AHSExtendedCDB); ok && len(cdb) > MaxAHS {
				t.Fatal("extended CDB longer than its segment")
			}
			if h.DataLength() > 4096 {
				t.Fatal("data segment beyond the limit was let through")
			}
			if r.ReadData(make([]byte, h.DataLength())) != nil {
				return
			}
		}
	})
}

func FuzzText(f *testing.F) {
	f.Add([]byte("InitiatorName=iqn.a\x00SessionType=Normal\x00"))
	f.Add(binary.BigEndian.AppendUint32(nil, 0x413D0000))
	f.Fuzz(func(t *testing.T, data []byte) {
		pairs, err := ParseText(data)
		if err != nil {
			return
		}
		again, err := ParseText(FormatText(pairs))
		if err != nil || len(again) != len(pairs) {
			t.Fatalf("%q does not survive formatting: %v", pairs, err)
		}
		for i := range pairs {
			if pairs[i] != again[i] {
				t.Fatalf("%q became %q", pairs[i], again[i])
			}
		}
	})
}

// FuzzAHS holds CheckAHS and FindAHS to a plain reading of RFC 7143 §11.2.2: length (2), type (1), reserved (1), content, padding.
func FuzzAHS(f *testing.F) {
	f.Add([]byte{0, 17, AHSExtendedCDB, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, uint8(AHSExtendedCDB))
	f.Add([]byte{0, 5, AHSBidiReadEDTL, 0, 0, 0, 2, 0, 0, 1, 1, 0}, uint8(1))
	f.Add([]byte{0, 0, 9, 0}, uint8(9))
	f.Add([]byte{255, 255, 1, 0}, uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, kind uint8) {
		type segment struct {
			kind    uint8
			content []byte
		}
		var want []segment
		sound := true
		for rest := b; len(rest) > 0; {
			if len(rest) < 4 {
				sound = false
				break
			}
			length := int(rest[0])<<8 | int(rest[1])
			whole := (3 + length + 3) / 4 * 4
			if length == 0 { // not even the reserved byte
				whole = 4
			}
			if whole > len(rest) {
				sound = false
				break
			}
			s := segment{kind: rest[2]}
			if length > 0 {
				s.content = rest[4 : 3+length]
			}
			want = append(want, s)
			rest = rest[whole:]
		}
		if err := CheckAHS(b); (err == nil) != sound {
			t.Fatalf("%x: %v, want sound %v", b, err, sound)
		}
		got, found := FindAHS(b, kind)
		if !sound {
			return // anything but a panic
		}
		for _, s := range want {
			if s.kind == kind {
				if !found || !bytes.Equal(got, s.content) {
					t.Fatalf("%x: found %v %x, want %x", b, found, got, s.content)
				}
				return
			}
		}
		if found {
			t.Fatalf("%x: found a segment of type %d", b, kind)
		}
	})
}
