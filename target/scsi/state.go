package scsi

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"sanctuary/blockstore/block"
	"sanctuary/target/reserve"
)

// unitState is what all nodes know of a unit beside its data: the blob that Backend.State returns. A value that is not modified
// once it has been published; SwapState replaces it as a whole.
type unitState struct {
	reservations reserve.Table
	mode         modeParameters
	seq          uint64   // number of the newest event
	events       []event  // the newest ones, oldest first; their numbers end with seq
	done         []uint64 // the newest changes by their operation, oldest first
}

// event is something that nexuses are owed a unit attention for. Nodes do not tell each other: every nexus looks, at its
// next command, for events it has not seen.
type event struct {
	code     uint16 // additional sense code and qualifier
	audience audience
	nexuses  []uint64 // nexusID of those meant, or of those not meant
}

type audience uint8

const (
	toAllBut audience = 0
	toOnly   audience = 1
)

// concerns says whether the nexus is meant.
func (e *event) concerns(id uint64) bool {
	return slices.Contains(e.nexuses, id) == (e.audience == toOnly)
}

// nexusID is a nexus' name in 64 bits, as events hold it. Two that are alike would share unit attentions, and nothing else.
func nexusID(n reserve.Nexus) uint64 {
	b := append([]byte(n.Initiator), 0)
	b = append(b, n.ISID[:]...)
	b = binary.BigEndian.AppendUint16(b, n.Port)
	sum := sha256.Sum256(b)
	return binary.BigEndian.Uint64(sum[:])
}

// Limits of the encoded state. Together they stay below block.MaxStateBytes.
const (
	// maxEventBytes bounds the events. Beyond it the oldest are forgotten, and a nexus that has not seen those is told 29/00,
	// which covers everything.
	maxEventBytes = 16 << 10
	// maxDone bounds the memory of operations done: one is asked for again within moments, by a node that lost the answer.
	maxDone = 128
)

// raise adds an event.
func (s *unitState) raise(code uint16, to audience, nexuses ...uint64) {
	if to == toOnly && len(nexuses) == 0 {
		return
	}
	if len(nexuses) > maxEventBytes/16 {
		// Rather one attention too many than one too few.
		to, nexuses = toAllBut, nil
	}
	s.seq++
	s.events = append(slices.Clone(s.events), event{code, to, slices.Clone(nexuses)})
	size := 0
	for i := len(s.events) - 1; i >= 0; i-- {
		if size += eventBytes + 8*len(s.events[i].nexuses); size > maxEventBytes {
			s.events = s.events[i+1:]
			break
		}
	}
}

// adopt takes over a change of the reservations and raises what it causes.
func (s *unitState) adopt(c reserve.Change) {
	s.reservations = c.Table
	for _, code := range []uint16{reserve.ReservationsPreempted, reserve.ReservationsReleased, reserve.RegistrationsPreempted} {
		var ids []uint64
		for _, a := range c.Attentions {
			if a.Code == code {
				ids = append(ids, nexusID(a.Nexus))
			}
		}
		s.raise(code, toOnly, ids...)
	}
}

// Encoded state, big endian:
//
//	1   version, 1
//	8   number of the newest event
//	2   number of events, each: 2 code, 1 audience, 1 zero, 2 number of nexuses, 8 each
//	2   number of operations done, 8 each
//	2   length of the mode parameters, then those
//	4   length of the reservations, then those
//
// An empty blob is the zero state.
const (
	stateVersion = 1
	eventBytes   = 2 + 1 + 1 + 2
)

func (s *unitState) encode() []byte {
	b := append(make([]byte, 0, 1024), stateVersion)
	b = binary.BigEndian.AppendUint64(b, s.seq)
	b = binary.BigEndian.AppendUint16(b, uint16(len(s.events)))
	for _, e := range s.events {
		b = binary.BigEndian.AppendUint16(b, e.code)
		b = append(b, byte(e.audience), 0)
		b = binary.BigEndian.AppendUint16(b, uint16(len(e.nexuses)))
		for _, id := range e.nexuses {
			b = binary.BigEndian.AppendUint64(b, id)
		}
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(s.done)))
	for _, op := range s.done {
		b = binary.BigEndian.AppendUint64(b, op)
	}
	b = binary.BigEndian.AppendUint16(b, modeParametersBytes)
	b = s.mode.appendTo(b)
	at := len(b)
	b = append(b, 0, 0, 0, 0)
	b = s.reservations.AppendTo(b)
	binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	return b
}

var errStateDamaged = errors.New("the unit's state is damaged")

// decodeState reads what encode made, and nothing else.
func decodeState(b []byte) (s unitState, err error) {
	switch {
	case len(b) == 0:
		return s, nil
	case len(b) > block.MaxStateBytes:
		return s, fmt.Errorf("%w: %d bytes", errStateDamaged, len(b))
	case b[0] != stateVersion:
		return s, fmt.Errorf("the unit's state has version %d, this program knows %d", b[0], stateVersion)
	}
	d := decoder{b: b[1:]}
	s.seq = d.u64()
	for n := d.u16(); n > 0 && !d.short; n-- {
		e := event{code: d.u16(), audience: audience(d.u8())}
		if zero := d.u8(); zero != 0 || e.audience > toOnly {
			return unitState{}, fmt.Errorf("%w: an event for audience %d", errStateDamaged, e.audience)
		}
		e.nexuses = d.list()
		s.events = append(s.events, e)
	}
	s.done = d.list()
	mode := d.take(int(d.u16()))
	table := d.take(int(d.u32()))
	if d.short || len(d.b) > 0 || uint64(len(s.events)) > s.seq {
		return unitState{}, fmt.Errorf("%w: %d bytes of the wrong length", errStateDamaged, len(b))
	}
	if s.mode, err = decodeModeParameters(mode); err != nil {
		return unitState{}, err
	}
	if s.reservations, err = reserve.Decode(table); err != nil {
		return unitState{}, err
	}
	return s, nil
}

// decoder reads b from the front. short is set once there is too little; what is read then is zero.
type decoder struct {
	b     []byte
	short bool
}

func (d *decoder) take(n int) []byte {
	if n < 0 || len(d.b) < n {
		d.short, d.b = true, nil
		return nil
	}
	taken := d.b[:n:n]
	d.b = d.b[n:]
	return taken
}

// number reads a big endian number of n bytes.
func (d *decoder) number(n int) (v uint64) {
	for _, b := range d.take(n) {
		v = v<<8 | uint64(b)
	}
	return v
}

func (d *decoder) u8() byte    { return byte(d.number(1)) }
func (d *decoder) u16() uint16 { return uint16(d.number(2)) }
func (d *decoder) u32() uint32 { return uint32(d.number(4)) }
func (d *decoder) u64() uint64 { return d.number(8) }

// list reads a count of 16 bits and as many numbers of 64.
func (d *decoder) list() []uint64 {
	n := int(d.u16())
	b := d.take(8 * n)
	var list []uint64
	for ; len(b) > 0; b = b[8:] {
		list = append(list, binary.BigEndian.Uint64(b))
	}
	return list
}
