package scsi

import (
	"encoding/binary"
	"fmt"
)

// modeParameters are what MODE SELECT can change. There is one set for a logical unit, the same on every node and for every
// nexus: it is part of the unit's replicated state. The zero value holds the defaults, so that a unit whose parameters nobody
// ever changed needs none stored.
type modeParameters struct {
	current modeValues
	saved   modeValues // by MODE SELECT with SP=1; they become current at a reset
}

// reset returns the parameters after a logical unit reset: what was not saved is forgotten (SPC-4 r37 §7.5.1, SAM-5 §6.3.3).
func (p modeParameters) reset() modeParameters {
	return modeParameters{current: p.saved, saved: p.saved}
}

// modeValues are the values of all fields that can be changed, at their default if zero.
type modeValues struct {
	descriptorSense bool // D_SENSE of the control mode page: sense data in descriptor format
	writeProtected  bool // SWP of the control mode page: the medium is not changed
	// quietSpace is LBPERE of the read-write error recovery mode page, inverted: no threshold is reported.
	quietSpace bool
	thresholds [spaceThresholds]spaceThreshold // of the logical block provisioning mode page
}

// spaceThresholds is how many threshold descriptors the logical block provisioning mode page has, in the order of
// thresholdKinds.
const spaceThresholds = 2

// spaceThreshold is a threshold descriptor of the logical block provisioning mode page.
type spaceThreshold struct {
	chosen  bool   // by MODE SELECT; else the default holds, and the others are zero
	enabled bool   // ENABLED
	count   uint32 // THRESHOLD COUNT, in threshold sets (VPD B2h)
}

// Encoded mode parameters: the current values, then the saved ones, each
//
//	byte 0     bit 0 D_SENSE, bit 1 SWP, bit 2 no threshold is reported; the others 0
//	byte 1     threshold of the available resource: bit 0 chosen, bit 1 enabled; the others 0
//	byte 2-5   its count, big endian
//	byte 6-10  threshold of the used resource, likewise
//
// Before them stands one byte, the version: 1.
const (
	modeParametersVersion = 1
	modeValuesBytes       = 1 + 5*spaceThresholds
	modeParametersBytes   = 1 + 2*modeValuesBytes
)

// appendTo appends the encoded parameters, always modeParametersBytes long.
func (p modeParameters) appendTo(dst []byte) []byte {
	return p.saved.appendTo(p.current.appendTo(append(dst, modeParametersVersion)))
}

func (v modeValues) appendTo(dst []byte) []byte {
	dst = append(dst, bit(0, v.descriptorSense)|bit(1, v.writeProtected)|bit(2, v.quietSpace))
	for _, t := range v.thresholds {
		dst = append(dst, bit(0, t.chosen)|bit(1, t.enabled))
		dst = binary.BigEndian.AppendUint32(dst, t.count)
	}
	return dst
}

// decodeModeParameters takes what appendTo made, nothing more or less. Whatever else is refused: a unit that is write
// protected must not become writable because somebody could not read that it was.
func decodeModeParameters(b []byte) (p modeParameters, err error) {
	switch {
	case len(b) != modeParametersBytes:
		return p, fmt.Errorf("mode parameters of %d bytes, want %d", len(b), modeParametersBytes)
	case b[0] != modeParametersVersion:
		return p, fmt.Errorf("mode parameters of version %d, this program knows %d", b[0], modeParametersVersion)
	}
	var current, saved modeValues
	if current, err = decodeModeValues(b[1:]); err != nil {
		return p, fmt.Errorf("current %w", err)
	}
	if saved, err = decodeModeValues(b[1+modeValuesBytes:]); err != nil {
		return p, fmt.Errorf("saved %w", err)
	}
	return modeParameters{current: current, saved: saved}, nil
}

// decodeModeValues reads the first modeValuesBytes of b.
func decodeModeValues(b []byte) (v modeValues, err error) {
	if b[0]&^0x07 != 0 {
		return v, fmt.Errorf("mode parameters with unknown flags %02x", b[0])
	}
	v.descriptorSense, v.writeProtected, v.quietSpace = b[0]&1 != 0, b[0]&2 != 0, b[0]&4 != 0
	for i := range v.thresholds {
		t := b[1+5*i:]
		if t[0]&^0x03 != 0 {
			return modeValues{}, fmt.Errorf("mode parameters: threshold %d with unknown flags %02x", i, t[0])
		}
		v.thresholds[i] = spaceThreshold{chosen: t[0]&1 != 0, enabled: t[0]&2 != 0, count: binary.BigEndian.Uint32(t[1:])}
	}
	return v, nil
}

// bit returns a byte with bit n set if on.
func bit(n uint, on bool) byte {
	if on {
		return 1 << n
	}
	return 0
}

// descriptorSense says whether sense data of the unit is in descriptor format.
func (u *Unit) descriptorSense() bool { return u.modes().descriptorSense }

// writeProtected says whether nothing may change the medium: the LUN is read-only, or an initiator has set SWP.
func (u *Unit) writeProtected() bool { return u.cfg.WriteProtected || u.modes().writeProtected }
