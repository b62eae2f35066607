package reserve

import (
	"encoding/binary"
)

// Keys is the answer to READ KEYS (SPC-4 r37 §6.15.2), uncut.
func (t *Table) Keys() []byte {
	b := t.header(8 * len(t.registrations))
	for _, r := range t.registrations {
		b = binary.BigEndian.AppendUint64(b, r.Key)
	}
	return b
}

// header is PRGENERATION and ADDITIONAL LENGTH, with room for what follows.
func (t *Table) header(length int) []byte {
	b := make([]byte, 0, 8+length)
	b = binary.BigEndian.AppendUint32(b, t.generation)
	return binary.BigEndian.AppendUint32(b, uint32(length))
}

// Reservation is the answer to READ RESERVATION (SPC-4 r37 §6.15.3), uncut. The key of a reservation of all registrants is 0.
func (t *Table) Reservation() []byte {
	if t.kind == None {
		return t.header(0)
	}
	b := t.header(16)
	key := uint64(0)
	if !t.kind.AllRegistrants() {
		key = t.registrations[t.find(t.holder)].Key
	}
	b = binary.BigEndian.AppendUint64(b, key)
	return append(b, 0, 0, 0, 0, 0, byte(t.kind), 0, 0)
}

// Capabilities is the answer to REPORT CAPABILITIES (SPC-4 r37 §6.15.4): compatible reservation handling, SPEC_I_PT,
// ALL_TG_PT, persistence through power loss, all six types. ALLOW COMMANDS 001b: TEST UNIT READY passes every reservation.
//
// PTPL_A tells what was asked for. Reservations are kept in either case: the standard has them released when the logical unit
// loses power if APTPL is 0, and a unit that lives on several nodes loses power when the last of them does, which none of
// them can tell from its own power cut. A reservation that stays too long keeps others out, until one of them preempts it or
// an operator purges it; one that is dropped too early lets two write.
func (t *Table) Capabilities() []byte {
	b := []byte{0, 8, 0x10 | 0x08 | 0x04 | 0x01, 0x80 | 0x10, 0xEA, 0x01, 0, 0}
	if t.persist {
		b[3] |= 0x01
	}
	return b
}

// FullStatus is the answer to READ FULL STATUS (SPC-4 r37 §6.15.5), uncut. A registration made with ALL_TG_PT=1 is reported
// once for every target port there was.
func (t *Table) FullStatus() []byte {
	b := t.header(0)
	for _, r := range t.registrations {
		b = binary.BigEndian.AppendUint64(b, r.Key)
		b = append(b, 0, 0, 0, 0)
		if t.Holds(r.Nexus) {
			b = append(b, 0x01, byte(t.kind)) // R_HOLDER, SCOPE 0 and TYPE
		} else {
			b = append(b, 0, 0)
		}
		b = append(b, 0, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, r.Nexus.Port)
		at := len(b)
		b = append(b, 0, 0, 0, 0)
		b = appendTransportID(b, Port{r.Nexus.Initiator, r.Nexus.ISID})
		binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	}
	binary.BigEndian.PutUint32(b[4:], uint32(len(b)-8))
	return b
}
