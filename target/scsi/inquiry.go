package scsi

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"sanctuary/blockstore/block"
)

// reply answers with data, of which the initiator takes at most allocation bytes (the ALLOCATION LENGTH of the CDB).
func (r *request) reply(data []byte, allocation int) error {
	data = data[:min(len(data), allocation)]
	r.TransferIn = int64(len(data))
	if n := min(len(data), r.ExpectedIn); n > 0 {
		r.DataIn = r.Buffers.Get(r.ctx, n)
		copy(r.DataIn, data)
	}
	return nil
}

// runWithoutUnit answers for a LUN that does not exist (SPC-4 r37 §6.6.2, §6.33, §6.39; everything else 05/25/00).
func (r *request) runWithoutUnit() error {
	if r.cmd == nil {
		return senseNoSuchUnit
	}
	if err := r.cmd.check(&r.CDB); err != nil {
		return err
	}
	switch r.cmd.opcode {
	case 0x12:
		if r.CDB[1]&1 == 0 && r.CDB[2] == 0 {
			return r.reply(standardInquiry(Identity{}, 0x7F), int(binary.BigEndian.Uint16(r.CDB[3:])))
		}
	case 0xA0:
		return reportLUNs(r)
	case 0x03:
		return r.reply(appendSense(nil, *senseNoSuchUnit, r.CDB[1]&0x01 != 0), int(r.CDB[4]))
	}
	return senseNoSuchUnit
}

// opTestUnitReady is the operation code of TEST UNIT READY.
const opTestUnitReady = 0x00

func testUnitReady(r *request) error {
	switch r.access.LocalState() {
	case ActiveOptimized, ActiveNonOptimized:
		return nil
	case Standby:
		return senseStandby
	case Transitioning:
		return senseTransition
	}
	return senseUnavailable
}

// requestSense says why the unit is not ready, which leaves unit attentions alone; else it returns and clears the next one. Nothing else is
// ever pending, as sense data travels with the status. DESC, not D_SENSE, chooses the format (SPC-4 r37 §6.39).
func requestSense(r *request) error {
	var s *Sense
	if !errors.As(testUnitReady(r), &s) {
		if s, _ = r.Nexus.units.attend(r.present(), r.LUN, r.set); s == nil {
			s = &Sense{Key: NoSense}
		}
	}
	return r.reply(appendSense(nil, *s, r.CDB[1]&0x01 != 0), int(r.CDB[4]))
}

// startStopUnit starts what is started. Stopping is refused: it would take the LUN from every other initiator.
func startStopUnit(r *request) error {
	if r.CDB[4]&1 == 0 {
		return senseInvalidField
	}
	return nil
}

// sendDiagnostic carries out the default self-test (SPC-4 r37 §6.42: SELFTEST=1, without a self-test code): it reads the first block. Other tests, and
// diagnostic pages, there are not; to ask for nothing is no error.
func sendDiagnostic(r *request) error {
	if r.CDB[1]&selfTest == 0 {
		return nil
	}
	return r.unit.cfg.Backend.Read(r.ctx, block.BytesRange(0, block.Size), make([]byte, block.Size))
}

func inquiry(r *request) error {
	allocation := int(binary.BigEndian.Uint16(r.CDB[3:]))
	if r.CDB[1]&1 == 0 {
		if r.CDB[2] != 0 {
			return senseInvalidField
		}
		b := standardInquiry(r.unit.cfg.Identity, 0)
		switch {
		case r.Nexus.SinglePath():
			// TPGS=00b: it is sent on to where the LUN is, and its port group changes with that. Linux remembers the first one, and fails
			// everything by itself when that one stands by.
			b[5] &^= 0x30
		case r.unit.cfg.SetPreferred != nil:
			b[5] |= 0x20 // TPGS=11b: explicit too
		}
		return r.reply(b, allocation)
	}
	i := slices.IndexFunc(vitalPages, func(p vitalPage) bool { return p.code == r.CDB[2] })
	if i < 0 {
		return senseInvalidField
	}
	page := append(make([]byte, 0, 256), 0, r.CDB[2], 0, 0)
	page = vitalPages[i].append(page, r)
	binary.BigEndian.PutUint16(page[2:], uint16(len(page)-4))
	return r.reply(page, allocation)
}

// standardInquiry is the standard INQUIRY data (SPC-4 r37 §6.6.2). peripheral is its first byte.
func standardInquiry(id Identity, peripheral byte) []byte {
	b := make([]byte, 96)
	b[0] = peripheral
	b[2] = 0x06         // VERSION: SPC-4
	b[3] = 0x10 | 0x02  // HISUP, response data format
	b[4] = byte(96 - 5) // ADDITIONAL LENGTH
	b[5] = 0x10 | 0x08  // TPGS=01b: implicit asymmetric access; 3PC
	b[6] = 0x10         // MULTIP
	b[7] = 0x02         // CMDQUE
	pad(b[8:16], id.Vendor)
	pad(b[16:32], id.Product)
	pad(b[32:36], id.Revision)
	for i, v := range []uint16{0x00A0, 0x0960, 0x0460, 0x04C0} { // SAM-5, iSCSI, SPC-4, SBC-3; no version claimed
		binary.BigEndian.PutUint16(b[58+2*i:], v)
	}
	return b
}

// pad fills dst with s and spaces.
func pad(dst []byte, s string) {
	for i := copy(dst, s); i < len(dst); i++ {
		dst[i] = ' '
	}
}

// vitalPage is a vital product data page; append adds what follows the four byte header.
type vitalPage struct {
	code   byte
	append func(dst []byte, r *request) []byte
}

// vitalPages is in ascending order, as page 00h lists them.
var vitalPages []vitalPage

func init() {
	vitalPages = []vitalPage{
		{0x00, func(dst []byte, _ *request) []byte {
			for _, p := range vitalPages {
				dst = append(dst, p.code)
			}
			return dst
		}},
		{0x80, func(dst []byte, r *request) []byte { return append(dst, r.unit.cfg.Identity.Serial...) }},
		{0x83, appendIdentification},
		{0x86, appendExtendedInquiry},
		{0x8F, appendThirdPartyCopy},
		{0xB0, appendBlockLimits},
		{0xB1, appendCharacteristics},
		{0xB2, appendProvisioning},
	}
}

// Designator types and associations of VPD page 83h (SPC-4 r37 §7.8.6).
const (
	codeBinary, codeASCII, codeUTF8                       = 0x1, 0x2, 0x3
	designatesUnit, designatesPort, designatesTarget      = 0x00, 0x90, 0xA0 // the latter two with PIV=1
	typeT10, typeNAA, typePort, typePortGroup, typeString = 0x1, 0x3, 0x4, 0x5, 0x8
	protocolISCSI                                         = 0x50
)

func appendIdentification(dst []byte, r *request) []byte {
	id := r.unit.cfg.Identity
	designator := func(codeSet, association, kind byte, value []byte) {
		if association != designatesUnit {
			codeSet |= protocolISCSI
		}
		dst = append(dst, codeSet, association|kind, 0, byte(len(value)))
		dst = append(dst, value...)
	}
	name := func(association byte, s string) {
		// SPC-4 §7.8.6.11: NUL terminated, padded with NUL to a multiple of four, at most 256 bytes.
		value := append([]byte(s), 0)
		for len(value)%4 != 0 {
			value = append(value, 0)
		}
		if len(value) <= 252 {
			designator(codeUTF8, association, typeString, value)
		}
	}
	designator(codeBinary, designatesUnit, typeNAA, r.unit.naa())
	t10 := make([]byte, 24, 24+len(id.Serial))
	pad(t10[:8], id.Vendor)
	pad(t10[8:], id.Product)
	designator(codeASCII, designatesUnit, typeT10, append(t10, id.Serial...))
	port := r.Nexus.Port
	if port == 0 {
		port = r.access.LocalPort
	}
	designator(codeBinary, designatesPort, typePort, []byte{0, 0, byte(port >> 8), byte(port)})
	designator(codeBinary, designatesPort, typePortGroup, []byte{0, 0, byte(r.access.Local >> 8), byte(r.access.Local)})
	name(designatesUnit, "naa."+hex.EncodeToString(r.unit.naa()))
	if target := r.target.cfg.Name; target != "" {
		// RFC 7143 §4.4.3: a target port is named after the portal group of the session, of which a node has one for each network.
		name(designatesPort, fmt.Sprintf("%s,t,0x%04x", target, port&^r.target.cfg.Ports))
		name(designatesTarget, target)
	}
	return dst
}

// appendExtendedInquiry is VPD page 86h: SIMPLE, ORDERED and HEAD OF QUEUE (package session keeps their order), no protection, no volatile cache, no grouping. LUICLR: a change of
// the LUNs is reported once per nexus, not by every LUN.
func appendExtendedInquiry(dst []byte, _ *request) []byte {
	var b [64]byte
	b[5] = 0x07 // HEADSUP, ORDSUP, SIMPSUP
	b[7] = 0x01 // LUICLR
	b[13] = maxSenseLength
	return append(dst, b[4:]...)
}

// appendBlockLimits is VPD page B0h (SBC-3 r36 §6.6.3), in logical blocks.
func appendBlockLimits(dst []byte, r *request) []byte {
	var b [64]byte
	size := r.geo.LogicalBlockBytes
	granularity := unmapGranularity(size)
	b[4] = 0x01 // WSNZ
	b[5] = byte(compareLimit(r.unit))
	binary.BigEndian.PutUint16(b[6:], uint16(block.Size/size)) // OPTIMAL TRANSFER LENGTH GRANULARITY
	binary.BigEndian.PutUint32(b[8:], uint32(r.unit.cfg.MaxTransferBytes/int64(size)))
	binary.BigEndian.PutUint32(b[12:], uint32(min(r.unit.cfg.MaxTransferBytes, optimalTransferBytes)/int64(size)))
	binary.BigEndian.PutUint32(b[20:], maxUnmapBlocks)
	binary.BigEndian.PutUint32(b[24:], maxUnmapDescriptors)
	binary.BigEndian.PutUint32(b[28:], granularity)
	binary.BigEndian.PutUint32(b[32:], 1<<31) // UGAVALID, alignment 0
	binary.BigEndian.PutUint64(b[36:], maxWriteSameBlocks)
	return append(dst, b[4:]...)
}

// optimalTransferBytes is the OPTIMAL TRANSFER LENGTH: beyond it a command gains nothing and delays others.
const optimalTransferBytes = 1 << 20

// appendCharacteristics is VPD page B1h: a non-rotating medium.
func appendCharacteristics(dst []byte, _ *request) []byte {
	var b [64]byte
	b[5] = 0x01 // MEDIUM ROTATION RATE 0001h
	return append(dst, b[4:]...)
}

// appendProvisioning is VPD page B2h: LBPU, LBPWS, LBPWS10, LBPRZ; thin; THRESHOLD EXPONENT if there are thresholds.
func appendProvisioning(dst []byte, r *request) []byte {
	exponent := byte(0)
	if r.unit.cfg.Space != nil {
		exponent = thresholdExponent(r.geo.LogicalBlockBytes)
	}
	return append(dst, exponent, 0x80|0x40|0x20|0x04, 0x02, 0)
}

// reportLUNs lists the LUNs (SPC-4 r37 §6.33). There are no well known logical units, so SELECT REPORT 01h lists none.
func reportLUNs(r *request) error {
	if r.CDB[2] > 0x02 {
		return senseInvalidField
	}
	list := make([]byte, 8, 64)
	if r.CDB[2] != 0x01 {
		for _, lun := range r.set.numbers() {
			list = appendLUN(list, lun)
		}
	}
	binary.BigEndian.PutUint32(list, uint32(len(list)-8))
	r.Nexus.units.inventoried(r.set.version)
	return r.reply(list, allocation32(r.CDB[6:]))
}

// allocation32 reads a 32-bit ALLOCATION LENGTH.
func allocation32(b []byte) int { return int(binary.BigEndian.Uint32(b)) }

// readCapacity10 says FFFFFFFFh when the last LBA has more bits: the initiator then asks READ CAPACITY (16).
func readCapacity10(r *request) error {
	var b [8]byte
	binary.BigEndian.PutUint32(b[:], uint32(min(r.capacity()-1, 0xFFFFFFFF)))
	binary.BigEndian.PutUint32(b[4:], uint32(r.geo.LogicalBlockBytes))
	return r.reply(b[:], len(b))
}

// readCapacity16 is SBC-3 r36 §5.20: physical blocks of 4 KiB, thin (LBPME), unmapped blocks read as zeros (LBPRZ).
func readCapacity16(r *request) error {
	var b [32]byte
	binary.BigEndian.PutUint64(b[:], r.capacity()-1)
	binary.BigEndian.PutUint32(b[8:], uint32(r.geo.LogicalBlockBytes))
	if r.geo.LogicalBlockBytes == block.SectorSize {
		b[13] = 3 // 2^3 logical blocks per physical block
	}
	b[14] = 0x80 | 0x40
	return r.reply(b[:], allocation32(r.CDB[10:]))
}
