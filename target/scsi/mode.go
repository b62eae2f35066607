package scsi

import (
	"encoding/binary"
	"slices"
)

// modePage is a mode page with its current and default values, which are the same: none can be changed.
type modePage struct {
	code byte
	body []byte // behind the two byte header
}

// modePages is in ascending order, as page 3Fh returns them (SPC-4 r37 §7.5, SBC-3 r36 §6.5).
var modePages = []modePage{
	{0x01, make([]byte, 0x0A)},            // read-write error recovery
	{0x02, make([]byte, 0x0E)},            // disconnect-reconnect
	{0x08, make([]byte, 0x12)},            // caching: WCE=0, what is acknowledged is durable
	{0x0A, []byte{0, 0x10, 9: 0}},         // control: D_SENSE=0, QUEUE ALGORITHM MODIFIER 1 (unrestricted reordering), TAS=0
	{0x1C, []byte{0x08 /*DEXCPT*/, 9: 0}}, // informational exceptions: none are reported
}

func modeSense6(r *request) error { return r.modeSense(4, int(r.CDB[4]), false) }
func modeSense10(r *request) error {
	return r.modeSense(8, int(binary.BigEndian.Uint16(r.CDB[7:])), r.CDB[1]&0x10 != 0)
}

// modeSense returns a header of headerLen bytes (4 or 8), a block descriptor unless DBD=1, and pages.
func (r *request) modeSense(headerLen, allocation int, longLBA bool) error {
	control, code, subpage := r.CDB[2]>>6, r.CDB[2]&0x3F, r.CDB[3]
	switch {
	case control == 3:
		return senseSavedPages
	case subpage != 0 && subpage != 0xFF:
		return senseInvalidField
	}
	b := make([]byte, headerLen, 128)
	if r.CDB[1]&0x08 == 0 {
		b = r.appendBlockDescriptor(b, longLBA)
	}
	descriptorLen := len(b) - headerLen
	found := code == 0x3F
	for _, p := range modePages {
		if code != 0x3F && code != p.code {
			continue
		}
		found = true
		b = append(b, p.code, byte(len(p.body)))
		if control == 1 { // changeable values: none
			b = append(b, make([]byte, len(p.body))...)
		} else {
			b = append(b, p.body...)
		}
	}
	if !found {
		return senseInvalidField
	}
	device := byte(0x10) // DPOFUA
	if r.unit.cfg.WriteProtected {
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
		return senseInvalidField
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

// implicitTransitionSeconds is how long an initiator should wait for a transition to end.
const implicitTransitionSeconds = 10

// reportTargetPortGroups is SPC-4 r37 §6.37, with the extended header if asked for.
func reportTargetPortGroups(r *request) error {
	b := make([]byte, 4, 64)
	if r.CDB[1]>>5 == 1 {
		b = append(b, 0x10, implicitTransitionSeconds, 0, 0)
	}
	for _, g := range r.access.Groups {
		ports := g.Ports[:min(len(g.Ports), 255)]
		// Supported: transitioning, unavailable, standby, active/optimized.
		b = append(b, byte(g.State)&0x0F, 0x80|0x08|0x04|0x01, byte(g.ID>>8), byte(g.ID), 0, 0x02 /* changed implicitly */, 0, byte(len(ports)))
		for _, p := range ports {
			b = append(b, 0, 0, byte(p>>8), byte(p))
		}
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return r.reply(b, allocation32(r.CDB[6:]))
}
