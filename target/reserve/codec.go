package reserve

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// MaxBytes bounds an encoded Table: more than 600 registrations of hosts with ordinary names and four paths each.
const MaxBytes = 32 << 10

// Encoded table, big endian. Equal tables have equal encodings.
//
//	1   version, 1
//	1   bit 0 APTPL, bit 1 a reservation by RESERVE; the others 0
//	1   type of the persistent reservation, 0 for none
//	1   0
//	4   PRGENERATION
//	2   number of names, each: 1 length (1 to 223), then the name; in order of first use below, none twice
//	2   number of registrations, each 18 bytes: 2 name, 6 ISID, 2 target port, 8 key
//	2   index of the holder among the registrations, FFFFh if there is none or all hold it
//	18  only if bit 1: 2 name, 6 ISID, 2 target port, 8 session of the reservation by RESERVE
const (
	tableVersion  = 1
	nexusBytes    = 2 + 6 + 2
	noHolder      = 0xFFFF
	flagPersist   = 1
	flagLegacy    = 2
	fixedBytes    = 8 + 2 + 2 + 2
	recordBytes   = nexusBytes + 8
	maxTableCount = MaxBytes / recordBytes
)

// names returns the initiators' names in order of first use.
func (t *Table) names() (names []string, index map[string]int) {
	index = make(map[string]int, len(t.registrations)+1)
	add := func(name string) {
		if _, known := index[name]; !known {
			index[name] = len(names)
			names = append(names, name)
		}
	}
	for _, r := range t.registrations {
		add(r.Nexus.Initiator)
	}
	if t.legacy != nil {
		add(t.legacy.By.Initiator)
	}
	return names, index
}

// size returns the length of the encoded table.
func (t *Table) size() int {
	n := fixedBytes + recordBytes*len(t.registrations)
	if t.legacy != nil {
		n += recordBytes
	}
	names, _ := t.names()
	for _, name := range names {
		n += 1 + len(name)
	}
	return n
}

// AppendTo appends the encoded table.
func (t *Table) AppendTo(dst []byte) []byte {
	flags := byte(0)
	if t.persist {
		flags |= flagPersist
	}
	if t.legacy != nil {
		flags |= flagLegacy
	}
	dst = append(dst, tableVersion, flags, byte(t.kind), 0)
	dst = binary.BigEndian.AppendUint32(dst, t.generation)
	names, index := t.names()
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(names)))
	for _, name := range names {
		dst = append(dst, byte(len(name)))
		dst = append(dst, name...)
	}
	record := func(n Nexus, value uint64) {
		dst = binary.BigEndian.AppendUint16(dst, uint16(index[n.Initiator]))
		dst = append(dst, n.ISID[:]...)
		dst = binary.BigEndian.AppendUint16(dst, n.Port)
		dst = binary.BigEndian.AppendUint64(dst, value)
	}
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(t.registrations)))
	for _, r := range t.registrations {
		record(r.Nexus, r.Key)
	}
	holder := noHolder
	if t.kind != None && !t.kind.AllRegistrants() {
		holder = t.find(t.holder)
	}
	dst = binary.BigEndian.AppendUint16(dst, uint16(holder))
	if t.legacy != nil {
		record(t.legacy.By, t.legacy.Session)
	}
	return dst
}

var errDamaged = errors.New("reservation table is damaged")

// cursor reads b from the front; short is set once there is too little.
type cursor struct {
	b     []byte
	short bool
}

func (c *cursor) take(n int) []byte {
	if len(c.b) < n {
		c.short = true
		return make([]byte, n)
	}
	taken := c.b[:n]
	c.b = c.b[n:]
	return taken
}

func (c *cursor) u8() byte    { return c.take(1)[0] }
func (c *cursor) u16() int    { return int(binary.BigEndian.Uint16(c.take(2))) }
func (c *cursor) u32() uint32 { return binary.BigEndian.Uint32(c.take(4)) }
func (c *cursor) u64() uint64 { return binary.BigEndian.Uint64(c.take(8)) }

// Decode reads what AppendTo made, and nothing else: what it accepts, AppendTo makes again byte for byte. A table that cannot
// be read must never pass for one without reservations.
func Decode(b []byte) (Table, error) {
	var t Table
	if len(b) > MaxBytes {
		return t, fmt.Errorf("%w: %d bytes, at most %d", errDamaged, len(b), MaxBytes)
	}
	c := &cursor{b: b}
	if version := c.u8(); !c.short && version != tableVersion {
		return t, fmt.Errorf("reservation table of version %d, this program knows %d", version, tableVersion)
	}
	flags := c.u8()
	kind := Type(c.u8())
	if pad := c.u8(); pad != 0 || flags&^(flagPersist|flagLegacy) != 0 || kind != None && !kind.valid() {
		return t, fmt.Errorf("%w: flags %02x, type %d", errDamaged, flags, kind)
	}
	t.generation, t.persist, t.kind = c.u32(), flags&flagPersist != 0, kind
	names := c.names()
	if err := t.decodeRecords(c, names, flags); err != nil {
		return Table{}, err
	}
	if c.short || len(c.b) > 0 {
		return Table{}, fmt.Errorf("%w: %d bytes of the wrong length", errDamaged, len(b))
	}
	if again, _ := t.names(); !slices.Equal(again, names) {
		return Table{}, fmt.Errorf("%w: names not in order of use", errDamaged)
	}
	return t, nil
}

func (c *cursor) names() []string {
	var names []string
	for n := c.u16(); n > 0 && !c.short; n-- {
		names = append(names, string(c.take(int(c.u8()))))
	}
	return names
}

func (t *Table) decodeRecords(c *cursor, names []string, flags byte) error {
	var bad error
	record := func() (n Nexus, value uint64) {
		name := c.u16()
		if !c.short && (name >= len(names) || names[name] == "" || len(names[name]) > MaxNameBytes) {
			bad = fmt.Errorf("%w: name %d of %d", errDamaged, name, len(names))
			return n, 0
		}
		if !c.short {
			n.Initiator = names[name]
		}
		copy(n.ISID[:], c.take(6))
		n.Port = uint16(c.u16())
		return n, c.u64()
	}
	count := c.u16()
	if count > maxTableCount {
		return fmt.Errorf("%w: %d registrations", errDamaged, count)
	}
	for ; count > 0 && !c.short && bad == nil; count-- {
		n, key := record()
		if !c.short && (key == 0 || t.find(n) >= 0) {
			return fmt.Errorf("%w: registration of %v", errDamaged, n)
		}
		t.registrations = append(t.registrations, Registration{n, key})
	}
	holder := c.u16()
	held := t.kind != None && !t.kind.AllRegistrants()
	switch {
	case bad != nil || c.short:
		return bad
	case held && holder < len(t.registrations):
		t.holder = t.registrations[holder].Nexus
	case held || holder != noHolder || t.kind != None && len(t.registrations) == 0:
		return fmt.Errorf("%w: reservation of type %d held by %d", errDamaged, t.kind, holder)
	}
	if flags&flagLegacy != 0 {
		l := &Legacy{}
		l.By, l.Session = record()
		if t.legacy = l; len(t.registrations) > 0 {
			return fmt.Errorf("%w: reserved twice", errDamaged)
		}
	}
	return bad
}
