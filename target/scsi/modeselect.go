package scsi

import (
	"encoding/binary"
	"math/rand/v2"

	"sanctuary/blockstore/block"
)

// Flags in byte 1 of MODE SELECT.
const (
	modeSelectPF = 0x10 // the pages are those of SPC, not a vendor's
	modeSelectSP = 0x01 // save what is set
)

// modeList is the Data-Out of MODE SELECT.
func modeList(_ *Unit, cdb *[16]byte) int64 {
	if cdb[0] == 0x15 {
		return int64(cdb[4])
	}
	return int64(binary.BigEndian.Uint16(cdb[7:]))
}

// modeSelect is MODE SELECT (6) and (10) (SPC-4 r37 §6.11). The list takes effect as a whole or not at all.
//
// What is set is kept by the LUN's log and so the same on every node, whoever owns it. With SP=0 it holds until the next reset of the
// logical unit; with SP=1 it is what a reset returns to.
func modeSelect(r *request) error {
	want, save := modeList(r.unit, &r.CDB), r.CDB[1]&modeSelectSP != 0
	r.TransferOut = want
	switch {
	case want == 0 && !save:
		return nil
	case want == 0:
		return r.setModes(nil, true)
	case r.CDB[1]&modeSelectPF == 0:
		return senseInvalidField // there are no vendor specific pages
	case int64(r.ExpectedOut) < want:
		return senseBadTransfer
	case int64(len(r.DataOut)) < want:
		return senseShortData
	}
	pages, err := r.modePagesOf(r.DataOut[:want])
	if err != nil {
		return err
	}
	return r.setModes(pages, save)
}

// setModes puts a list of pages into the unit's state, tells the other nexuses, and returns when the LUN's log has it.
func (r *request) setModes(pages []byte, save bool) error {
	if r.operation == 0 {
		r.operation = rand.Uint64()
	}
	_, err := r.unit.change(r.ctx, r.Fence, r.operation, func(s *unitState) (bool, error) {
		before := s.mode
		if err := takePages(r.unit, &s.mode.current, pages); err != nil {
			return false, err
		}
		if save {
			s.mode.saved = s.mode.current // all pages, not only those in the list (SPC-4 r37 §6.11: SP)
		}
		if s.mode == before {
			return false, nil
		}
		if s.mode.current != before.current {
			s.raise(codeModeChanged, toAllBut, r.Nexus.units.id)
		}
		return true, nil
	})
	return err
}

// modePagesOf takes the pages out of a parameter list: behind the header and the block descriptor, which must not change anything.
func (r *request) modePagesOf(list []byte) ([]byte, error) {
	header, descriptor, long := 4, 0, false
	if r.CDB[0] == 0x55 {
		header = 8
	}
	if len(list) < header {
		return nil, senseListLength
	}
	medium := list[1]
	if header == 4 {
		descriptor = int(list[3])
	} else {
		medium, long, descriptor = list[2], list[4]&0x01 != 0, int(binary.BigEndian.Uint16(list[6:]))
	}
	size := 8
	if long {
		size = 16
	}
	switch {
	case medium != 0, descriptor != 0 && descriptor != size:
		return nil, senseInvalidList
	case len(list) < header+descriptor:
		return nil, senseListLength
	}
	if descriptor > 0 {
		if err := r.checkBlockDescriptor(list[header:][:descriptor], long); err != nil {
			return nil, err
		}
	}
	return list[header+descriptor:], nil
}

// checkBlockDescriptor refuses a block descriptor that asks for another capacity or block length. 0 blocks mean: as it is.
func (r *request) checkBlockDescriptor(d []byte, long bool) error {
	have := r.appendBlockDescriptor(nil, long)
	blocks, length := have[:4], 5 // the short form has one byte of density code before the length
	if long {
		blocks, length = have[:8], 12
	}
	if !block.AllZero(d[:len(blocks)]) && string(d[:len(blocks)]) != string(blocks) || string(d[length:]) != string(have[length:]) {
		return senseInvalidList
	}
	return nil
}

// takePages puts the fields of a list of pages into v. A field that cannot be changed must have its present value. v is of no use if that
// is refused.
func takePages(u *Unit, v *modeValues, pages []byte) error {
	for len(pages) > 0 {
		p, body, rest, err := splitPage(u, pages)
		if err != nil {
			return err
		}
		have := p.body(u, *v)
		if len(body) != len(have) {
			return senseInvalidList
		}
		for i := range have {
			mask := byte(0)
			if p.changeable != nil {
				mask = p.changeable[i]
			}
			if (body[i]^have[i])&^mask != 0 {
				return senseInvalidList
			}
		}
		if p.take != nil {
			p.take(u, v, body)
		}
		pages = rest
	}
	return nil
}

// splitPage returns the first page of a list, its body, and what follows. PS is reserved in MODE SELECT and ignored, because
// initiators send back what MODE SENSE gave them.
func splitPage(u *Unit, list []byte) (p *modePage, body, rest []byte, err error) {
	code, subpage, header := list[0]&0x3F, byte(0), 2
	if list[0]&0x40 != 0 {
		header = 4
	}
	if len(list) < header {
		return nil, nil, nil, senseListLength
	}
	length := int(list[1])
	if header == 4 {
		subpage, length = list[1], int(binary.BigEndian.Uint16(list[2:]))
	}
	pages := u.modePages()
	for i := range pages {
		if pages[i].code == code && pages[i].subpage == subpage && (subpage != 0) == (header == 4) {
			p = &pages[i]
		}
	}
	switch {
	case p == nil:
		return nil, nil, nil, senseInvalidList
	case len(list)-header < length:
		return nil, nil, nil, senseListLength
	}
	return p, list[header:][:length], list[header+length:], nil
}
