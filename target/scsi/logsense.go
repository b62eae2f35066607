package scsi

import "encoding/binary"

// Log pages (SPC-4 r37 §7.3, SBC-3 r36 §6.4.4).
const (
	logSupported    = 0x00 // supported log pages; with subpage FFh and subpages
	logProvisioning = 0x0C // logical block provisioning
	allSubpages     = 0xFF
)

// logSense is LOG SENSE (SPC-4 r37 §6.8). Every parameter is a list parameter: all page controls mean its present value.
func logSense(r *request) error {
	code, subpage := r.CDB[2]&0x3F, r.CDB[3]
	pointer := binary.BigEndian.Uint16(r.CDB[5:])
	allocation := int(binary.BigEndian.Uint16(r.CDB[7:]))
	provisioning := r.unit.cfg.Space != nil
	page := append(make([]byte, 0, 32), code, 0, 0, 0)
	switch {
	case code == logSupported && subpage == 0 && pointer == 0:
		page = append(page, logSupported)
		if provisioning {
			page = append(page, logProvisioning)
		}
	case code == logSupported && subpage == allSubpages && pointer == 0:
		page[0], page[1] = page[0]|0x40, allSubpages // SPF
		page = append(page, logSupported, 0, logSupported, allSubpages)
		if provisioning {
			page = append(page, logProvisioning, 0)
		}
	case code == logProvisioning && subpage == 0 && provisioning && pointer <= uint16(thresholdKinds[spaceThresholds-1].resource):
		page[0] |= 0x80 // DS: nothing is saved
		page = r.appendSpace(page, pointer)
	default:
		return senseInvalidField
	}
	binary.BigEndian.PutUint16(page[2:], uint16(len(page)-4))
	return r.reply(page, allocation)
}

// appendSpace appends the LBA mapping resources from a parameter code on, in threshold sets.
func (r *request) appendSpace(dst []byte, from uint16) []byte {
	space := r.unit.cfg.Space()
	for _, k := range thresholdKinds {
		if uint16(k.resource) < from {
			continue
		}
		dst = append(dst, 0, k.resource, 0x03 /* binary format list parameter */, 8)
		dst = binary.BigEndian.AppendUint32(dst, thresholdSets(k.count(space)))
		dst = append(dst, k.scope, 0, 0, 0)
	}
	return dst
}
