package scsi

import "encoding/binary"

// accessNeed says in which asymmetric access states a command is carried out.
type accessNeed uint8

const (
	activeOnly accessNeed = iota // moves data: Active/Optimized, and held while there is no owner
	standbyToo                   // describes the unit, and also answered in Standby
	anyState                     // answered in every state
)

// command is one row of the table that dispatch, checking, Accept and REPORT SUPPORTED OPERATION CODES all follow.
type command struct {
	name   string
	opcode byte
	action int // service action, noAction if the opcode has none
	length int // of the CDB, in bytes
	// usage has a bit set for every bit of the CDB that is honoured (SPC-4 r37 §6.35.3: CDB USAGE DATA). A CDB with another bit set is
	// refused with 05/24/00. The control byte is never used: NACA is not supported, LINK is obsolete.
	usage            [16]byte
	access           accessNeed
	ignoresAttention bool // carried out although a unit attention is pending, which stays
	writes           bool // changes the medium
	// dataOut returns the bytes of Data-Out the CDB asks for; nil if the command takes none.
	dataOut func(u *Unit, cdb *[16]byte) int64
	// run carries the command out. nil is GOOD; see outcomeOf for errors. It may run several times for one task, if before that
	// it returned an error that says that nothing was done.
	run func(r *request) error
}

const noAction = -1

// Usage of the fields many commands share.
const (
	ff      = 0xFF
	dpoFua  = 0x18 // DPO and FUA: every write is durable when acknowledged, and nothing is cached between initiators
	dpo     = 0x10
	group   = 0x00 // GROUP NUMBER: grouping is not supported (VPD 86h GROUP_SUP=0)
	immed   = 0x02
	bytchk1 = 0x02 // BYTCHK 00b and 01b; 10b and 11b have the bit above set
)

// table is sorted by opcode and service action.
var table []command

// byOpcode holds the indexes in table of an opcode's first row and of the row after its last.
var byOpcode [256]struct{ from, to uint8 }

func init() {
	// Not a composite literal of the variable: REPORT SUPPORTED OPERATION CODES refers to the table it stands in.
	table = []command{
		{name: "TEST UNIT READY", opcode: 0x00, action: noAction, length: 6, usage: [16]byte{ff}, access: anyState, run: testUnitReady},
		{name: "REQUEST SENSE", opcode: 0x03, action: noAction, length: 6, usage: [16]byte{ff, 0x01, 0, 0, ff}, access: anyState, ignoresAttention: true, run: requestSense},
		{name: "READ (6)", opcode: 0x08, action: noAction, length: 6, usage: [16]byte{ff, 0x1F, ff, ff, ff}, run: read},
		{name: "WRITE (6)", opcode: 0x0A, action: noAction, length: 6, usage: [16]byte{ff, 0x1F, ff, ff, ff}, writes: true, dataOut: wholeTransfer, run: write},
		{name: "INQUIRY", opcode: 0x12, action: noAction, length: 6, usage: [16]byte{ff, 0x01, ff, ff, ff}, access: anyState, ignoresAttention: true, run: inquiry},
		{name: "MODE SENSE (6)", opcode: 0x1A, action: noAction, length: 6, usage: [16]byte{ff, 0x08, ff, ff, ff}, access: standbyToo, run: modeSense6},
		{name: "START STOP UNIT", opcode: 0x1B, action: noAction, length: 6, usage: [16]byte{ff, 0x01, 0, 0, 0x01}, run: startStopUnit},
		{name: "READ CAPACITY (10)", opcode: 0x25, action: noAction, length: 10, usage: [16]byte{ff}, access: anyState, run: readCapacity10},
		{name: "READ (10)", opcode: 0x28, action: noAction, length: 10, usage: usage10(dpoFua), run: read},
		{name: "WRITE (10)", opcode: 0x2A, action: noAction, length: 10, usage: usage10(dpoFua), writes: true, dataOut: wholeTransfer, run: write},
		{name: "WRITE AND VERIFY (10)", opcode: 0x2E, action: noAction, length: 10, usage: usage10(dpo | bytchk1), writes: true, dataOut: wholeTransfer, run: writeAndVerify},
		{name: "VERIFY (10)", opcode: 0x2F, action: noAction, length: 10, usage: usage10(dpo | bytchk1), dataOut: verifyTransfer, run: verify},
		{name: "SYNCHRONIZE CACHE (10)", opcode: 0x35, action: noAction, length: 10, usage: usage10(immed), run: synchronizeCache},
		{name: "WRITE SAME (10)", opcode: 0x41, action: noAction, length: 10, usage: usage10(wsUnmap), writes: true, dataOut: oneBlock, run: writeSame},
		{name: "UNMAP", opcode: 0x42, action: noAction, length: 10, usage: [16]byte{ff, 0, 0, 0, 0, 0, group, ff, ff}, writes: true, dataOut: unmapList, run: unmap},
		{name: "MODE SENSE (10)", opcode: 0x5A, action: noAction, length: 10, usage: [16]byte{ff, 0x18, ff, ff, 0, 0, 0, ff, ff}, access: standbyToo, run: modeSense10},
		{name: "READ (16)", opcode: 0x88, action: noAction, length: 16, usage: usage16(dpoFua), run: read},
		{name: "COMPARE AND WRITE", opcode: 0x89, action: noAction, length: 16, usage: [16]byte{ff, dpoFua, ff, ff, ff, ff, ff, ff, ff, ff, 0, 0, 0, ff, group}, writes: true, dataOut: twiceTransfer, run: compareAndWrite},
		{name: "WRITE (16)", opcode: 0x8A, action: noAction, length: 16, usage: usage16(dpoFua), writes: true, dataOut: wholeTransfer, run: write},
		{name: "WRITE AND VERIFY (16)", opcode: 0x8E, action: noAction, length: 16, usage: usage16(dpo | bytchk1), writes: true, dataOut: wholeTransfer, run: writeAndVerify},
		{name: "VERIFY (16)", opcode: 0x8F, action: noAction, length: 16, usage: usage16(dpo | bytchk1), dataOut: verifyTransfer, run: verify},
		{name: "SYNCHRONIZE CACHE (16)", opcode: 0x91, action: noAction, length: 16, usage: usage16(immed), run: synchronizeCache},
		{name: "WRITE SAME (16)", opcode: 0x93, action: noAction, length: 16, usage: usage16(wsUnmap | wsNoData), writes: true, dataOut: oneBlock, run: writeSame},
		{name: "READ CAPACITY (16)", opcode: 0x9E, action: 0x10, length: 16, usage: [16]byte{ff, 0x1F, 0, 0, 0, 0, 0, 0, 0, 0, ff, ff, ff, ff}, access: anyState, run: readCapacity16},
		{name: "GET LBA STATUS", opcode: 0x9E, action: 0x12, length: 16, usage: [16]byte{ff, 0x1F, ff, ff, ff, ff, ff, ff, ff, ff, ff, ff, ff, ff}, run: getLBAStatus},
		{name: "REPORT LUNS", opcode: 0xA0, action: noAction, length: 12, usage: [16]byte{ff, 0, ff, 0, 0, 0, ff, ff, ff, ff}, access: anyState, ignoresAttention: true, run: reportLUNs},
		{name: "REPORT TARGET PORT GROUPS", opcode: 0xA3, action: 0x0A, length: 12, usage: [16]byte{ff, 0x3F, 0, 0, 0, 0, ff, ff, ff, ff}, access: anyState, run: reportTargetPortGroups},
		{name: "REPORT SUPPORTED OPERATION CODES", opcode: 0xA3, action: 0x0C, length: 12, usage: [16]byte{ff, 0x1F, 0x87, ff, ff, ff, ff, ff, ff, ff}, access: standbyToo, run: reportSupportedOpcodes},
		{name: "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS", opcode: 0xA3, action: 0x0D, length: 12, usage: [16]byte{ff, 0x1F, 0x80, 0, 0, 0, ff, ff, ff, ff}, access: standbyToo, run: reportTaskManagement},
		{name: "READ (12)", opcode: 0xA8, action: noAction, length: 12, usage: usage12(dpoFua), run: read},
		{name: "WRITE (12)", opcode: 0xAA, action: noAction, length: 12, usage: usage12(dpoFua), writes: true, dataOut: wholeTransfer, run: write},
		{name: "WRITE AND VERIFY (12)", opcode: 0xAE, action: noAction, length: 12, usage: usage12(dpo | bytchk1), writes: true, dataOut: wholeTransfer, run: writeAndVerify},
		{name: "VERIFY (12)", opcode: 0xAF, action: noAction, length: 12, usage: usage12(dpo | bytchk1), dataOut: verifyTransfer, run: verify},
	}
	for i := range table {
		at := &byOpcode[table[i].opcode]
		if at.to == 0 {
			at.from = uint8(i)
		}
		at.to = uint8(i + 1)
	}
}

func usage10(flags byte) [16]byte { return [16]byte{ff, flags, ff, ff, ff, ff, group, ff, ff} }
func usage12(flags byte) [16]byte { return [16]byte{ff, flags, ff, ff, ff, ff, ff, ff, ff, ff, group} }

func usage16(flags byte) [16]byte {
	return [16]byte{ff, flags, ff, ff, ff, ff, ff, ff, ff, ff, ff, ff, ff, ff, group}
}

// find returns the row for a CDB, nil if the operation code or service action is not supported.
func find(cdb *[16]byte) *command {
	at := byOpcode[cdb[0]]
	for i := at.from; i < at.to; i++ {
		if c := &table[i]; c.action == noAction || c.action == int(cdb[1]&0x1F) {
			return c
		}
	}
	return nil
}

// check refuses a CDB with a bit set that is not honoured.
func (c *command) check(cdb *[16]byte) error {
	for i := 1; i < c.length; i++ {
		if cdb[i]&^c.usage[i] != 0 {
			return senseInvalidField
		}
	}
	return nil
}

// extent returns the LBA and number of logical blocks in a CDB with the layout of READ and WRITE, by its length.
func extent(cdb *[16]byte) (lba, blocks uint64) {
	switch cdb[0] >> 5 { // the group code gives the length (SPC-4 r37 §4.2.5.1)
	case 0:
		lba = uint64(cdb[1]&0x1F)<<16 | uint64(cdb[2])<<8 | uint64(cdb[3])
		if blocks = uint64(cdb[4]); blocks == 0 {
			blocks = 256
		}
	case 1, 2:
		lba, blocks = uint64(binary.BigEndian.Uint32(cdb[2:])), uint64(binary.BigEndian.Uint16(cdb[7:]))
	case 4:
		lba, blocks = binary.BigEndian.Uint64(cdb[2:]), uint64(binary.BigEndian.Uint32(cdb[10:]))
	case 5:
		lba, blocks = uint64(binary.BigEndian.Uint32(cdb[2:])), uint64(binary.BigEndian.Uint32(cdb[6:]))
	}
	return lba, blocks
}
