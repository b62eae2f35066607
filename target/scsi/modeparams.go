package scsi

import (
	"encoding/binary"
	"fmt"
)

// modeParameters are what MODE SELECT can change. There is one set for a logical unit, the same on every node and for every
// nexus (SPC-4 r37 §7.5.1: MLUS; §6.12): it is part of the unit's replicated state. The zero value holds the defaults, so that
// a unit whose parameters nobody ever changed has none stored.
type modeParameters struct {
	descriptorSense bool // D_SENSE of the control mode page: sense data in descriptor format
	writeProtected  bool // SWP of the control mode page: the medium is not changed
	// quietSpace is LBPERE of the read-write error recovery mode page, inverted: no threshold is reported.
	quietSpace bool
	thresholds [spaceThresholds]spaceThreshold // of the logical block provisioning mode page
}

// spaceThresholds is how many threshold descriptors the logical block provisioning mode page has, in the order of
// thresholdResources.
const spaceThresholds = 2

// spaceThreshold is a threshold descriptor of the logical block provisioning mode page.
type spaceThreshold struct {
	chosen  bool   // by MODE SELECT; else the values are UnitConfig.Space's
	enabled bool   // ENABLED
	count   uint32 // THRESHOLD COUNT, in threshold sets (VPD B2h)
}

// Encoded mode parameters:
//
//	byte 0     version, 1
//	byte 1     bit 0 D_SENSE, bit 1 SWP, bit 2 no threshold is reported; the others 0
//	byte 2     threshold of the available resource: bit 0 chosen, bit 1 enabled; the others 0
//	byte 3-6   its count, big endian
//	byte 7-11  threshold of the used resource, likewise
const (
	modeParametersVersion = 1
	modeParametersBytes   = 2 + 5*spaceThresholds
)

// appendTo appends the encoded parameters, always modeParametersBytes long.
func (p modeParameters) appendTo(dst []byte) []byte {
	dst = append(dst, modeParametersVersion, bit(0, p.descriptorSense)|bit(1, p.writeProtected)|bit(2, p.quietSpace))
	for _, t := range p.thresholds {
		dst = append(dst, bit(0, t.chosen)|bit(1, t.enabled))
		dst = binary.BigEndian.AppendUint32(dst, t.count)
	}
	return dst
}

// decodeModeParameters takes what appendTo made, nothing more or less. Whatever else is refused: a unit that is write
// protected must not become writable because somebody could not read that it was.
func decodeModeParameters(b []byte) (modeParameters, error) {
	var p modeParameters
	switch {
	case len(b) != modeParametersBytes:
		return p, fmt.Errorf("mode parameters of %d bytes, want %d", len(b), modeParametersBytes)
	case b[0] != modeParametersVersion:
		return p, fmt.Errorf("mode parameters of version %d, this program knows %d", b[0], modeParametersVersion)
	case b[1]&^0x07 != 0:
		return p, fmt.Errorf("mode parameters with unknown flags %02x", b[1])
	}
	p.descriptorSense, p.writeProtected, p.quietSpace = b[1]&1 != 0, b[1]&2 != 0, b[1]&4 != 0
	for i := range p.thresholds {
		t := b[2+5*i:]
		if t[0]&^0x03 != 0 {
			return modeParameters{}, fmt.Errorf("mode parameters: threshold %d with unknown flags %02x", i, t[0])
		}
		p.thresholds[i] = spaceThreshold{chosen: t[0]&1 != 0, enabled: t[0]&2 != 0, count: binary.BigEndian.Uint32(t[1:])}
	}
	return p, nil
}

// bit returns a byte with bit n set if on.
func bit(n uint, on bool) byte {
	if on {
		return 1 << n
	}
	return 0
}
