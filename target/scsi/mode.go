package scsi

import (
	"encoding/binary"
	"slices"
)

// modePage is a mode page, or a subpage of one.
type modePage struct {
	code, subpage byte
	// body returns what follows the header of two bytes, of four for a subpage. It may be changed by the caller.
	body func(u *Unit, v modeValues) []byte
	// changeable has a bit set for every bit of the body that MODE SELECT can change; nil: none.
	changeable []byte
	// take puts the changeable fields of a body into v; nil if there are none.
	take func(u *Unit, v *modeValues, body []byte)
}

// fixedPage returns the body of a page in which nothing can be changed.
func fixedPage(body []byte) func(*Unit, modeValues) []byte {
	return func(*Unit, modeValues) []byte { return slices.Clone(body) }
}

// modePages is in ascending order, as page 3Fh returns them (SPC-4 r37 §7.5, SBC-3 r36 §6.5).
var modePages = []modePage{
	{code: 0x01, body: recoveryPage, changeable: []byte{5: 0x80, 9: 0}, take: takeRecoveryPage}, // read-write error recovery
	{code: 0x02, body: fixedPage(make([]byte, 0x0E))},                                           // disconnect-reconnect
	{code: 0x08, body: fixedPage(make([]byte, 0x12))},                                           // caching: WCE=0, what is acknowledged is durable
	{code: 0x0A, body: controlPage, changeable: []byte{0x04, 2: 0x08, 9: 0}, take: takeControlPage},
	{code: 0x0A, subpage: 0x01, body: fixedPage([]byte{0x01 /*IALUAE: access changes by itself*/, 27: 0})}, // control extension
	{code: 0x1C, body: fixedPage([]byte{0x08 /*DEXCPT*/, 9: 0})},                                           // informational exceptions: none are reported
	{code: 0x1C, subpage: 0x02, body: provisioningPage, changeable: provisioningMask, take: takeProvisioningPage},
}

// recoveryPage: LBPERE says whether thresholds of the logical block provisioning page are reported. Everything is read and
// written as well as can be whatever the rest may say.
func recoveryPage(_ *Unit, v modeValues) []byte {
	return []byte{5: bit(7, !v.quietSpace), 9: 0}
}

func takeRecoveryPage(_ *Unit, v *modeValues, body []byte) { v.quietSpace = body[5]&0x80 == 0 }

// controlPage: QUEUE ALGORITHM MODIFIER 1 (SIMPLE commands run side by side, in any order), TAS=0, one task set for all nexuses.
func controlPage(_ *Unit, v modeValues) []byte {
	return []byte{bit(2, v.descriptorSense), 0x10, bit(3, v.writeProtected), 9: 0}
}

func takeControlPage(_ *Unit, v *modeValues, body []byte) {
	v.descriptorSense, v.writeProtected = body[0]&0x04 != 0, body[2]&0x08 != 0
}

// appendPage appends the page with its header. PS=1: whatever can be changed can be saved.
func (p *modePage) appendPage(dst, body []byte) []byte {
	saveable := bit(7, p.changeable != nil)
	if p.subpage == 0 {
		dst = append(dst, saveable|p.code, byte(len(body)))
	} else {
		dst = append(dst, saveable|0x40|p.code, p.subpage, byte(len(body)>>8), byte(len(body)))
	}
	return append(dst, body...)
}

// modePagesNoSpace is modePages for a unit without UnitConfig.Space: nothing about thresholds.
var modePagesNoSpace = append([]modePage{{code: 0x01, body: fixedPage(make([]byte, 0x0A))}}, modePages[1:len(modePages)-1]...)

// modePages returns the pages that the unit has, in ascending order.
func (u *Unit) modePages() []modePage {
	if u.cfg.Space == nil {
		return modePagesNoSpace
	}
	return modePages
}

func modeSense6(r *request) error { return r.modeSense(4, int(r.CDB[4]), false) }
func modeSense10(r *request) error {
	return r.modeSense(8, int(binary.BigEndian.Uint16(r.CDB[7:])), r.CDB[1]&0x10 != 0)
}

// Page control of MODE SENSE.
const (
	currentValues = iota
	changeableValues
	defaultValues
	savedValues
)

// modeSense returns a header of headerLen bytes (4 or 8), a block descriptor unless DBD=1, and pages.
func (r *request) modeSense(headerLen, allocation int, longLBA bool) error {
	control, code, subpage := r.CDB[2]>>6, r.CDB[2]&0x3F, r.CDB[3]
	known := r.unit.standing()
	if known.err != nil {
		return senseTargetFailure
	}
	values := modeValues{} // the defaults
	switch control {
	case currentValues:
		values = known.state.mode.current
	case savedValues:
		values = known.state.mode.saved
	}
	b := make([]byte, headerLen, 256)
	if r.CDB[1]&0x08 == 0 {
		b = r.appendBlockDescriptor(b, longLBA)
	}
	descriptorLen := len(b) - headerLen
	pages := r.unit.modePages()
	found := false
	for i := range pages {
		p := &pages[i]
		if code != 0x3F && code != p.code || subpage != 0xFF && subpage != p.subpage {
			continue
		}
		if code == 0x3F && subpage != 0 && subpage != 0xFF {
			continue // all pages go with subpage 00h or FFh only
		}
		found = true
		body := p.body(r.unit, values)
		if control == changeableValues {
			clear(body)
			copy(body, p.changeable)
		}
		b = p.appendPage(b, body)
	}
	if !found {
		return senseInvalidField
	}
	device := byte(0x10) // DPOFUA
	if r.unit.writeProtected() {
		device |= 0x80
	}
	if headerLen == 4 {
		b[0], b[2], b[3] = byte(len(b)-1), device, byte(descriptorLen)
	} else {
		binary.BigEndian.PutUint16(b, uint16(len(b)-2))
		b[3] = device
		if longLBA && descriptorLen > 0 {
			b[4] = 0x01
		}
		binary.BigEndian.PutUint16(b[6:], uint16(descriptorLen))
	}
	return r.reply(b, allocation)
}

func (r *request) appendBlockDescriptor(b []byte, long bool) []byte {
	if long {
		b = binary.BigEndian.AppendUint64(b, r.capacity())
		b = append(b, 0, 0, 0, 0)
		return binary.BigEndian.AppendUint32(b, uint32(r.geo.LogicalBlockBytes))
	}
	b = binary.BigEndian.AppendUint32(b, uint32(min(r.capacity(), 0xFFFFFFFF)))
	return binary.BigEndian.AppendUint32(b, uint32(r.geo.LogicalBlockBytes))
}

// reportSupportedOpcodes is SPC-4 r37 §6.35, answered from the table that dispatches.
func reportSupportedOpcodes(r *request) error {
	timeouts, options, opcode := r.CDB[2]&0x80 != 0, r.CDB[2]&0x07, r.CDB[3]
	action := int(binary.BigEndian.Uint16(r.CDB[4:]))
	allocation := allocation32(r.CDB[6:])
	if options == 0 {
		return r.reply(allCommands(timeouts), allocation)
	}
	at := byOpcode[opcode]
	rows := table[at.from:at.to]
	withActions := len(rows) > 0 && rows[0].action != noAction
	switch {
	case options > 3, options == 1 && withActions, options == 2 && len(rows) > 0 && !withActions:
		return badField(2, 2)
	}
	i := slices.IndexFunc(rows, func(c command) bool {
		return c.action == action || c.action == noAction && (options == 1 || action == 0)
	})
	if i < 0 {
		return r.reply([]byte{0, 0x01, 0, 0}, allocation) // SUPPORT: not supported
	}
	c := &rows[i]
	b := append(make([]byte, 0, 32), 0, 0x03, 0, byte(c.length)) // SUPPORT: in conformance with a standard
	b = append(b, c.usage[:c.length]...)
	b[4] = c.opcode
	if c.action != noAction {
		b[5] = b[5]&^0x1F | byte(c.action)
	}
	if timeouts {
		b[1] |= 0x80
		b = appendTimeouts(b)
	}
	return r.reply(b, allocation)
}

func allCommands(timeouts bool) []byte {
	b := make([]byte, 4, 4+20*len(table))
	for i := range table {
		c := &table[i]
		action, flags := 0, byte(0)
		if c.action != noAction {
			action, flags = c.action, 0x01 // SERVACTV
		}
		if timeouts {
			flags |= 0x02 // CTDP
		}
		b = append(b, c.opcode, 0, byte(action>>8), byte(action), 0, flags, 0, byte(c.length))
		if timeouts {
			b = appendTimeouts(b)
		}
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

// appendTimeouts appends a command timeouts descriptor with no times: none are recommended.
func appendTimeouts(b []byte) []byte { return append(b, 0, 0x0A, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) }

// reportTaskManagement is SPC-4 r37 §6.36: ABORT TASK, ABORT TASK SET, CLEAR TASK SET and LOGICAL UNIT RESET.
func reportTaskManagement(r *request) error {
	var b [16]byte
	b[0] = 0x80 | 0x40 | 0x10 | 0x08
	if r.CDB[2]&0x80 == 0 {
		return r.reply(b[:4], allocation32(r.CDB[6:]))
	}
	b[3] = 0x0C // REPD: without the timeouts that follow
	return r.reply(b[:], allocation32(r.CDB[6:]))
}
