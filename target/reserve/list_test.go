package reserve

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// list is a parameter list with the given flags in byte 20 and what follows the basic list.
func list(flags byte, more ...byte) []byte {
	b := make([]byte, 24)
	binary.BigEndian.PutUint64(b, 0x1122334455667788)
	binary.BigEndian.PutUint64(b[8:], 0x99AABBCCDDEEFF00)
	b[20] = flags
	return append(b, more...)
}

func lengthed(ids ...[]byte) []byte {
	all := slices.Concat(ids...)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(all))), all...)
}

func transportID(format byte, name string, pad int) []byte {
	b := append([]byte{format, 0, 0, 0}, name...)
	b = append(b, make([]byte, pad)...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)-4))
	return b
}

func TestParseOut(t *testing.T) {
	good := appendTransportID(nil, Port{alice.Initiator, alice.ISID})
	short := transportID(0x45, "iqn.a,i,0x1", 9)
	move := func(change func([]byte)) []byte {
		b := append(list(0)[:20], lengthed(good)...)
		b[17], b[18], b[19], b[20-0] = 0x03, 0x10, 0x01, b[20]
		if change != nil {
			change(b)
		}
		return b
	}
	for _, c := range []struct {
		name   string
		action byte
		list   []byte
		want   string
		ports  int
	}{
		{"register", 0, list(0x05), "good", 0},
		{"reserve", 1, list(0), "good", 0},
		{"short", 0, list(0)[:23], "1A00", 0},
		{"empty", 3, nil, "1A00", 0},
		{"long", 4, list(0, 0, 0, 0, 0), "1A00", 0},
		{"too long", 0, make([]byte, MaxListBytes+1), "1A00", 0},
		{"unknown action", 8, list(0), "2400", 0},
		{"specified with another action", 6, list(8, lengthed(good)...), "2600", 0},
		{"specified", 0, list(8, lengthed(good, short)...), "good", 2},
		{"specified, none", 0, list(8, 0, 0, 0, 0), "good", 0},
		{"specified, no length", 0, list(8), "1A00", 0},
		{"specified, list longer than said", 0, list(8, append(lengthed(good), 0)...), "1A00", 0},
		{"specified, list shorter than said", 0, list(8, lengthed(good)[:20]...), "1A00", 0},
		{"length overflow", 0, list(8, 0xFF, 0xFF, 0xFF, 0xFF), "1A00", 0},
		{"device, not port", 0, list(8, lengthed(transportID(0x05, "iqn.2024-01.test:alice", 2))...), "2600", 0},
		{"another protocol", 0, list(8, lengthed(transportID(0x46, "iqn.2024-01.test:alice,i,0x1", 4))...), "2600", 0},
		{"not padded", 0, list(8, lengthed(transportID(0x45, "iqn.2024-01.test:alice,i,0x1", 1))...), "2600", 0},
		{"not ended", 0, list(8, lengthed(transportID(0x45, "iqn.2024-01.test:alice,i,0x1", 0))...), "2600", 0},
		{"text behind the end", 0, list(8, lengthed(transportID(0x45, "iqn.2024-01.test:alic,i,0x1\x00x", 3))...), "2600", 0},
		{"no isid", 0, list(8, lengthed(transportID(0x45, "iqn.2024-01.test:alice", 2))...), "2600", 0},
		{"empty isid", 0, list(8, lengthed(transportID(0x45, "iqn.2024-01.test:al,i,0x", 4))...), "2600", 0},
		{"isid is no number", 0, list(8, lengthed(transportID(0x45, "iqn.2024-01.test:a,i,0xzz", 3))...), "2600", 0},
		{"isid too long", 0, list(8, lengthed(transportID(0x45, "iqn.2024-01.test,i,0x1234567890123", 2))...), "2600", 0},
		{"no name", 0, list(8, lengthed(transportID(0x45, ",i,0x800000000001", 3))...), "2600", 0},
		{"name too long", 0, list(8, lengthed(transportID(0x45, strings.Repeat("x", 224)+",i,0x1", 2))...), "2600", 0},
		{"control characters", 0, list(8, lengthed(transportID(0x45, "iqn.2024-01.test:\nlice,i,0x1", 4))...), "2600", 0},
		{"too short an id", 0, list(8, lengthed(transportID(0x45, "iqn.a,i,0x1", 5))...), "1A00", 0},
		{"length within beyond the list", 0, list(8, lengthed(append([]byte{0x45, 0, 0, 200}, make([]byte, 40)...))...), "1A00", 0},
		{"move", 7, move(nil), "good", 1},
		{"move, none", 7, list(0), "2600", 0},
		{"move, two", 7, append(list(0)[:20], lengthed(good, good)...), "2600", 0},
		{"move, cut", 7, move(nil)[:40], "1A00", 0},
	} {
		r, err := ParseOut(c.action, 0x05, c.list)
		if code(err) != c.want {
			t.Errorf("%s: %s, want %s", c.name, code(err), c.want)
			continue
		}
		if err != nil {
			continue
		}
		if r.Key != 0x1122334455667788 || r.ServiceKey != 0x99AABBCCDDEEFF00 || r.Type != 5 || r.Scope != 0 || len(r.Ports) != c.ports {
			t.Errorf("%s: %+v", c.name, r)
		}
	}
	name := "IQN.2024-01.test:A,i,0x12345,I,0X80aB"
	r, err := ParseOut(0, 0x15, list(0x0F, lengthed(transportID(0x45, name, 4-len(name)%4))...))
	if err != nil {
		t.Fatal(err)
	}
	if !r.AllPorts || !r.Persist || !r.Specified || r.Scope != 1 || r.Ports[0] != (Port{"iqn.2024-01.test:a,i,0x12345", [6]byte{4: 0x80, 5: 0xAB}}) {
		t.Errorf("%+v", r)
	}
	if r, _ := ParseOut(7, 0, move(nil)); !r.Unregister || !r.Persist || r.TargetPort != 0x1001 || r.Ports[0] != (Port{alice.Initiator, alice.ISID}) {
		t.Errorf("%+v", r)
	}
}

func TestReserveIn(t *testing.T) {
	table := registered(t, alice, bob)
	table.generation = 0x01020304
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	held := out(t, table, bob, Request{Action: ReserveAction, Key: 2, Type: ExclusiveAccessRegistrantsOnly}).Table
	everyone := out(t, table, bob, Request{Action: ReserveAction, Key: 2, Type: WriteExclusiveAllRegistrants}).Table
	var none Table
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"no keys":                        {none.Keys(), "00000000 00000000"},
		"keys":                           {table.Keys(), "01020304 00000010 0000000000000001 0000000000000002"},
		"no reservation":                 {table.Reservation(), "01020304 00000000"},
		"reservation":                    {held.Reservation(), "01020304 00000010 0000000000000002 00000000 00 06 0000"},
		"reservation of all registrants": {everyone.Reservation(), "01020304 00000010 0000000000000000 00000000 00 07 0000"},
		"capabilities":                   {table.Capabilities(), "0008 1D 90 EA01 0000"},
		"full status":                    {held.FullStatus(), hex.EncodeToString(fullStatus(held))},
	} {
		want := unhex(c.want)
		if !bytes.Equal(c.got, want) {
			t.Errorf("%s:\n% x, want\n% x", name, c.got, want)
		}
	}
	if b := everyone.FullStatus(); b[8+12] != 1 || b[8+13] != byte(WriteExclusiveAllRegistrants) {
		t.Error("with all registrants, each holds the reservation")
	}
}

func fullStatus(t Table) []byte {
	var all []byte
	for _, r := range t.registrations {
		name := fmt.Sprintf("%s,i,0x%012x\x00", r.Nexus.Initiator, r.Nexus.ISID)
		for len(name)%4 != 0 {
			name += "\x00"
		}
		d := binary.BigEndian.AppendUint64(nil, r.Key)
		d = append(d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
		if t.holder == r.Nexus {
			d[12], d[13] = 1, byte(t.kind)
		}
		d = binary.BigEndian.AppendUint16(d, r.Nexus.Port)
		d = binary.BigEndian.AppendUint32(d, uint32(4+len(name)))
		d = append(d, 0x45, 0)
		d = binary.BigEndian.AppendUint16(d, uint16(len(name)))
		all = append(append(all, d...), name...)
	}
	b := binary.BigEndian.AppendUint32(nil, t.generation)
	return append(binary.BigEndian.AppendUint32(b, uint32(len(all))), all...)
}

func TestTransportIDsAreReadAsWritten(t *testing.T) {
	for _, name := range []string{"a", "iqn.2024-01.test:alice", "eui.02004567a425678d", strings.Repeat("x", MaxNameBytes), "iqn.2024-01.test:x,i,0x1"} {
		p := Port{name, [6]byte{1, 2, 3, 4, 5, 6}}
		b := appendTransportID(nil, p)
		got, n, err := parseTransportID(b)
		if err != nil || got != p || n != len(b) || len(b)%4 != 0 {
			t.Errorf("%q: %+v, %d of %d bytes, %v", name, got, n, len(b), err)
		}
	}
}

func TestDecodeRefusesDamage(t *testing.T) {
	held := out(t, registered(t, alice, bob, carol), bob, Request{Action: ReserveAction, Key: 2, Type: WriteExclusive}).Table
	legacy, _ := Table{}.Reserve(alice, 1)
	for _, table := range []Table{{}, held, legacy.Table} {
		b := table.AppendTo(nil)
		if _, err := Decode(b); err != nil {
			t.Fatal(err)
		}
		for n := range b {
			if _, err := Decode(b[:n]); err == nil {
				t.Errorf("%d of %d bytes were accepted", n, len(b))
			}
		}
		if _, err := Decode(append(slices.Clone(b), 0)); err == nil {
			t.Error("a byte too many was accepted")
		}
		b[0] = 2
		if _, err := Decode(b); err == nil || errors.Is(err, errDamaged) {
			t.Error("another version:", err)
		}
	}
	if _, err := Decode(make([]byte, MaxBytes+1)); err == nil {
		t.Error("too long")
	}
}

// FuzzDecode: no panic, and what is accepted is encoded again byte for byte.
func FuzzDecode(f *testing.F) {
	var t testing.T
	held := out(&t, registered(&t, alice, bob, carol), bob, Request{Action: ReserveAction, Key: 2, Type: WriteExclusive}).Table
	legacy, _ := Table{}.Reserve(alice, 1)
	for _, table := range []Table{{}, held, legacy.Table} {
		f.Add(table.AppendTo(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := Decode(b)
		if err != nil {
			return
		}
		if again := table.AppendTo(nil); !bytes.Equal(again, b) {
			t.Fatalf("% x became % x", b, again)
		}
		table.FullStatus()
		table.Reservation()
		for _, n := range []Nexus{alice, bob, {}} {
			table.Allowed(n)
		}
	})
}

// FuzzReserveOut: any service action with any parameter list leaves a table that can be kept, or the one before.
func FuzzReserveOut(f *testing.F) {
	good := appendTransportID(nil, Port{dave.Initiator, dave.ISID})
	f.Add(byte(0), byte(0), list(9, lengthed(good)...))
	f.Add(byte(7), byte(1), append(list(0)[:20], lengthed(good)...))
	f.Add(byte(4), byte(0x13), list(0))
	f.Fuzz(func(t *testing.T, action, scopeType byte, b []byte) {
		r, err := ParseOut(action, scopeType, b)
		if err != nil {
			if code(err) == "conflict" || !errors.As(err, new(*Refusal)) {
				t.Fatal(err)
			}
			return
		}
		r.Key %= 4
		table := out(t, registered(t, alice, bob, carol), alice, Request{Action: ReserveAction, Key: 1, Type: WriteExclusive}).Table
		for _, from := range []Nexus{alice, bob, dave} {
			c, err := table.Out(from, r, all)
			if err != nil {
				continue
			}
			encoded := c.Table.AppendTo(nil)
			if _, err := Decode(encoded); err != nil || len(encoded) > MaxBytes {
				t.Fatalf("%+v: %d bytes, %v", r, len(encoded), err)
			}
			table = c.Table
		}
	})
}
