package scsi

import (
	"encoding/binary"
	"math/bits"

	"sanctuary/target/reserve"
)

// accessNeed says in which asymmetric access states a command is carried out.
type accessNeed uint8

const (
	activeOnly   accessNeed = iota // moves data: Active/Optimized, and held while there is no owner
	standbyToo                     // describes the unit, and also answered in Standby
	anyState                       // answered in every state
	throughOwner                   // answered in every state by the owner: any other node asks it
)

// needsOwner says whether the command is carried out by the node that owns the LUN, and waits while there is none.
func (a accessNeed) needsOwner() bool { return a == activeOnly || a == throughOwner }

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
	// once: done a second time it ends otherwise than the first. No status that initiators take for "nothing was done" must be given
	// while that is not known (request.open).
	once bool
	// class is what reservations of others make of the command; the zero class is the strictest.
	class reserve.Class
	// pieces: the CDB has the layout of extent, and a node that asks the owner may ask for its parts one after another.
	pieces bool
	// dataOut returns the bytes of Data-Out the CDB asks for; nil if the command takes none.
	dataOut func(u *Unit, cdb *[16]byte) int64
	// run carries the command out. nil is GOOD; see outcomeOf for errors. It may run several times for one task, if before that
	// it returned an error that says that nothing was done.
	run func(r *request) error
}

const noAction = -1

// reserveOutUsage is the usage of PERSISTENT RESERVE OUT. SCOPE and TYPE are in every CDB, honoured or ignored as the service
// action has it (SPC-4 r37 table 208).
var reserveOutUsage = [16]byte{ff, 0x1F, ff, 0, 0, ff, ff, ff, ff}

// wants returns the bytes of Data-Out the CDB asks for.
func (c *command) wants(u *Unit, cdb *[16]byte) int64 {
	if c.dataOut == nil {
		return 0
	}
	return c.dataOut(u, cdb)
}

// Operation codes of third-party copy, with their service actions listed in VPD page 8Fh, and of what a copy asks another owner for.
const (
	opExtendedCopy       = 0x83
	opReceiveCopyResults = 0x84

	opUnmap           = 0x42
	opRead16          = 0x88
	opCompareAndWrite = 0x89
	opWrite16         = 0x8A
	opServiceIn16     = 0x9E
	actionLBAStatus   = 0x12
)

// Usage of the fields many commands share.
const (
	ff     = 0xFF
	dpoFua = 0x18 // DPO and FUA: every write is durable when acknowledged, and nothing is cached between initiators
	dpo    = 0x10
	group  = 0x1F // GROUP NUMBER: taken, and nothing is counted by it (VPD 86h GROUP_SUP=0)
	immed  = 0x02
	// SEND DIAGNOSTIC: SELFTEST, and leave to go offline meanwhile (DEVOFFL, UNITOFFL), of which no use is made.
	selfTest, mayGoOffline = 0x04, 0x03

	bytchk1 = 0x02 // BYTCHK 00b and 01b; 10b and 11b have the bit above set
)

// table is sorted by opcode and service action.
var table []command

// byOpcode holds the indexes in table of an opcode's first row and of the row after its last.
var byOpcode [256]struct{ from, to uint8 }

func init() {
	// Not a composite literal of the variable: REPORT SUPPORTED OPERATION CODES refers to the table it stands in.
	table = []command{
		{name: "TEST UNIT READY", opcode: 0x00, action: noAction, length: 6, usage: [16]byte{ff}, access: anyState, class: reserve.Asks, run: testUnitReady},
		{name: "REQUEST SENSE", opcode: 0x03, action: noAction, length: 6, usage: [16]byte{ff, 0x01, 0, 0, ff}, access: anyState, ignoresAttention: true, class: reserve.Describes, run: requestSense},
		{name: "READ (6)", opcode: 0x08, action: noAction, length: 6, usage: [16]byte{ff, 0x1F, ff, ff, ff}, class: reserve.Reads, run: read},
		{name: "WRITE (6)", opcode: 0x0A, action: noAction, length: 6, usage: [16]byte{ff, 0x1F, ff, ff, ff}, writes: true, dataOut: wholeTransfer, run: write},
		{name: "INQUIRY", opcode: 0x12, action: noAction, length: 6, usage: [16]byte{ff, 0x01, ff, ff, ff}, access: anyState, ignoresAttention: true, class: reserve.Describes, run: inquiry},
		{name: "MODE SELECT (6)", opcode: 0x15, action: noAction, length: 6, usage: [16]byte{ff, modeSelectPF | modeSelectSP, 0, 0, ff}, access: throughOwner, dataOut: modeList, run: modeSelect},
		{name: "RESERVE (6)", opcode: opReserve6, action: noAction, length: 6, usage: [16]byte{ff}, access: throughOwner, class: reserve.ReservesLegacy, run: reserveLegacy},
		{name: "RELEASE (6)", opcode: opRelease6, action: noAction, length: 6, usage: [16]byte{ff}, access: throughOwner, class: reserve.ReservesLegacy, run: releaseLegacy},
		{name: "MODE SENSE (6)", opcode: 0x1A, action: noAction, length: 6, usage: [16]byte{ff, 0x08, ff, ff, ff}, access: standbyToo, class: reserve.Reads, run: modeSense6},
		{name: "START STOP UNIT", opcode: 0x1B, action: noAction, length: 6, usage: [16]byte{ff, 0x01, 0, 0, 0x01}, class: reserve.Asks, run: startStopUnit},
		{name: "SEND DIAGNOSTIC", opcode: 0x1D, action: noAction, length: 6, usage: [16]byte{ff, selfTest | mayGoOffline}, run: sendDiagnostic},
		{name: "READ CAPACITY (10)", opcode: 0x25, action: noAction, length: 10, usage: [16]byte{ff}, access: anyState, class: reserve.Describes, run: readCapacity10},
		{name: "READ (10)", opcode: 0x28, action: noAction, length: 10, usage: usage10(dpoFua), class: reserve.Reads, pieces: true, run: read},
		{name: "WRITE (10)", opcode: 0x2A, action: noAction, length: 10, usage: usage10(dpoFua), writes: true, dataOut: wholeTransfer, pieces: true, run: write},
		{name: "WRITE AND VERIFY (10)", opcode: 0x2E, action: noAction, length: 10, usage: usage10(dpo | bytchk1), writes: true, dataOut: wholeTransfer, pieces: true, run: writeAndVerify},
		{name: "VERIFY (10)", opcode: 0x2F, action: noAction, length: 10, usage: usage10(dpo | bytchk1), dataOut: verifyTransfer, class: reserve.Reads, pieces: true, run: verify},
		{name: "PRE-FETCH (10)", opcode: 0x34, action: noAction, length: 10, usage: usage10(immed), class: reserve.Reads, run: preFetch},
		{name: "SYNCHRONIZE CACHE (10)", opcode: 0x35, action: noAction, length: 10, usage: usage10(immed), run: synchronizeCache},
		{name: "WRITE SAME (10)", opcode: 0x41, action: noAction, length: 10, usage: usage10(wsUnmap), writes: true, dataOut: oneBlock, run: writeSame},
		{name: "UNMAP", opcode: opUnmap, action: noAction, length: 10, usage: [16]byte{ff, 0, 0, 0, 0, 0, group, ff, ff}, writes: true, dataOut: unmapList, run: unmap},
		{name: "LOG SENSE", opcode: 0x4D, action: noAction, length: 10, usage: [16]byte{ff, 0, ff, ff, 0, ff, ff, ff, ff}, access: standbyToo, class: reserve.Asks, run: logSense},
		{name: "MODE SELECT (10)", opcode: 0x55, action: noAction, length: 10, usage: [16]byte{ff, modeSelectPF | modeSelectSP, 0, 0, 0, 0, 0, ff, ff}, access: throughOwner, dataOut: modeList, run: modeSelect},
		{name: "RESERVE (10)", opcode: opReserve10, action: noAction, length: 10, usage: [16]byte{ff}, access: throughOwner, class: reserve.ReservesLegacy, run: reserveLegacy},
		{name: "RELEASE (10)", opcode: opRelease10, action: noAction, length: 10, usage: [16]byte{ff}, access: throughOwner, class: reserve.ReservesLegacy, run: releaseLegacy},
		{name: "MODE SENSE (10)", opcode: 0x5A, action: noAction, length: 10, usage: [16]byte{ff, 0x18, ff, ff, 0, 0, 0, ff, ff}, access: standbyToo, class: reserve.Reads, run: modeSense10},
		{name: "PERSISTENT RESERVE IN, READ KEYS", opcode: 0x5E, action: 0x00, length: 10, usage: [16]byte{ff, 0x1F, 0, 0, 0, 0, 0, ff, ff}, access: throughOwner, class: reserve.Reserves, run: persistentReserveIn},
		{name: "PERSISTENT RESERVE IN, READ RESERVATION", opcode: 0x5E, action: 0x01, length: 10, usage: [16]byte{ff, 0x1F, 0, 0, 0, 0, 0, ff, ff}, access: throughOwner, class: reserve.Reserves, run: persistentReserveIn},
		{name: "PERSISTENT RESERVE IN, REPORT CAPABILITIES", opcode: 0x5E, action: 0x02, length: 10, usage: [16]byte{ff, 0x1F, 0, 0, 0, 0, 0, ff, ff}, access: throughOwner, class: reserve.Reserves, run: persistentReserveIn},
		{name: "PERSISTENT RESERVE IN, READ FULL STATUS", opcode: 0x5E, action: 0x03, length: 10, usage: [16]byte{ff, 0x1F, 0, 0, 0, 0, 0, ff, ff}, access: throughOwner, class: reserve.Reserves, run: persistentReserveIn},
		{name: "PERSISTENT RESERVE OUT, REGISTER", opcode: 0x5F, action: 0x00, length: 10, usage: reserveOutUsage, access: throughOwner, once: true, class: reserve.Reserves, dataOut: reserveOutList, run: persistentReserveOut},
		{name: "PERSISTENT RESERVE OUT, RESERVE", opcode: 0x5F, action: 0x01, length: 10, usage: reserveOutUsage, access: throughOwner, once: true, class: reserve.Reserves, dataOut: reserveOutList, run: persistentReserveOut},
		{name: "PERSISTENT RESERVE OUT, RELEASE", opcode: 0x5F, action: 0x02, length: 10, usage: reserveOutUsage, access: throughOwner, once: true, class: reserve.Reserves, dataOut: reserveOutList, run: persistentReserveOut},
		{name: "PERSISTENT RESERVE OUT, CLEAR", opcode: 0x5F, action: 0x03, length: 10, usage: reserveOutUsage, access: throughOwner, once: true, class: reserve.Reserves, dataOut: reserveOutList, run: persistentReserveOut},
		{name: "PERSISTENT RESERVE OUT, PREEMPT", opcode: 0x5F, action: 0x04, length: 10, usage: reserveOutUsage, access: throughOwner, once: true, class: reserve.Reserves, dataOut: reserveOutList, run: persistentReserveOut},
		{name: "PERSISTENT RESERVE OUT, PREEMPT AND ABORT", opcode: 0x5F, action: 0x05, length: 10, usage: reserveOutUsage, access: throughOwner, once: true, class: reserve.Reserves, dataOut: reserveOutList, run: persistentReserveOut},
		{name: "PERSISTENT RESERVE OUT, REGISTER AND IGNORE EXISTING KEY", opcode: 0x5F, action: 0x06, length: 10, usage: reserveOutUsage, access: throughOwner, once: true, class: reserve.Reserves, dataOut: reserveOutList, run: persistentReserveOut},
		{name: "PERSISTENT RESERVE OUT, REGISTER AND MOVE", opcode: 0x5F, action: 0x07, length: 10, usage: reserveOutUsage, access: throughOwner, once: true, class: reserve.Reserves, dataOut: reserveOutList, run: persistentReserveOut},
		{name: "EXTENDED COPY (LID1)", opcode: opExtendedCopy, action: 0x00, length: 16, usage: [16]byte{ff, 0x1F, 0, 0, 0, 0, 0, 0, 0, 0, ff, ff, ff, ff}, dataOut: copyParameterList, run: extendedCopy},
		{name: "RECEIVE COPY STATUS (LID1)", opcode: opReceiveCopyResults, action: 0x00, length: 16, usage: receiveCopyUsage(), access: throughOwner, class: reserve.Asks, run: receiveCopyStatus},
		{name: "RECEIVE COPY OPERATING PARAMETERS", opcode: opReceiveCopyResults, action: 0x03, length: 16, usage: receiveCopyUsage(), access: standbyToo, class: reserve.Asks, run: copyOperatingParameters},
		{name: "RECEIVE COPY FAILURE DETAILS (LID1)", opcode: opReceiveCopyResults, action: 0x04, length: 16, usage: receiveCopyUsage(), access: throughOwner, class: reserve.Asks, run: failedSegmentDetails},
		{name: "READ (16)", opcode: opRead16, action: noAction, length: 16, usage: usage16(dpoFua), class: reserve.Reads, pieces: true, run: read},
		{name: "COMPARE AND WRITE", opcode: opCompareAndWrite, action: noAction, length: 16, usage: [16]byte{ff, dpoFua, ff, ff, ff, ff, ff, ff, ff, ff, 0, 0, 0, ff, group}, writes: true, once: true, dataOut: twiceTransfer, run: compareAndWrite},
		{name: "WRITE (16)", opcode: opWrite16, action: noAction, length: 16, usage: usage16(dpoFua), writes: true, dataOut: wholeTransfer, pieces: true, run: write},
		{name: "ORWRITE (16)", opcode: 0x8B, action: noAction, length: 16, usage: usage16(dpoFua), writes: true, dataOut: wholeTransfer, pieces: true, run: orWrite},
		{name: "WRITE AND VERIFY (16)", opcode: 0x8E, action: noAction, length: 16, usage: usage16(dpo | bytchk1), writes: true, dataOut: wholeTransfer, pieces: true, run: writeAndVerify},
		{name: "VERIFY (16)", opcode: 0x8F, action: noAction, length: 16, usage: usage16(dpo | bytchk1), dataOut: verifyTransfer, class: reserve.Reads, pieces: true, run: verify},
		{name: "PRE-FETCH (16)", opcode: 0x90, action: noAction, length: 16, usage: usage16(immed), class: reserve.Reads, run: preFetch},
		{name: "SYNCHRONIZE CACHE (16)", opcode: 0x91, action: noAction, length: 16, usage: usage16(immed), run: synchronizeCache},
		{name: "WRITE SAME (16)", opcode: 0x93, action: noAction, length: 16, usage: usage16(wsUnmap | wsNoData), writes: true, dataOut: oneBlock, run: writeSame},
		{name: "READ CAPACITY (16)", opcode: opServiceIn16, action: 0x10, length: 16, usage: [16]byte{ff, 0x1F, 0, 0, 0, 0, 0, 0, 0, 0, ff, ff, ff, ff}, access: anyState, class: reserve.Describes, run: readCapacity16},
		{name: "GET LBA STATUS", opcode: opServiceIn16, action: actionLBAStatus, length: 16, usage: [16]byte{ff, 0x1F, ff, ff, ff, ff, ff, ff, ff, ff, ff, ff, ff, ff}, class: reserve.Reads, run: getLBAStatus},
		{name: "REPORT LUNS", opcode: 0xA0, action: noAction, length: 12, usage: [16]byte{ff, 0, ff, 0, 0, 0, ff, ff, ff, ff}, access: anyState, ignoresAttention: true, class: reserve.Describes, run: reportLUNs},
		{name: "REPORT TARGET PORT GROUPS", opcode: 0xA3, action: 0x0A, length: 12, usage: [16]byte{ff, 0x3F, 0, 0, 0, 0, ff, ff, ff, ff}, access: anyState, class: reserve.Describes, run: reportTargetPortGroups},
		{name: "REPORT SUPPORTED OPERATION CODES", opcode: 0xA3, action: 0x0C, length: 12, usage: [16]byte{ff, 0x1F, 0x87, ff, ff, ff, ff, ff, ff, ff}, access: standbyToo, class: reserve.Reads, run: reportSupportedOpcodes},
		{name: "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS", opcode: 0xA3, action: 0x0D, length: 12, usage: [16]byte{ff, 0x1F, 0x80, 0, 0, 0, ff, ff, ff, ff}, access: standbyToo, class: reserve.Reads, run: reportTaskManagement},
		{name: "SET TARGET PORT GROUPS", opcode: 0xA4, action: 0x0A, length: 12, usage: [16]byte{ff, 0x1F, 0, 0, 0, 0, ff, ff, ff, ff}, access: anyState, dataOut: portGroupList, run: setTargetPortGroups},
		{name: "READ (12)", opcode: 0xA8, action: noAction, length: 12, usage: usage12(dpoFua), class: reserve.Reads, pieces: true, run: read},
		{name: "WRITE (12)", opcode: 0xAA, action: noAction, length: 12, usage: usage12(dpoFua), writes: true, dataOut: wholeTransfer, pieces: true, run: write},
		{name: "WRITE AND VERIFY (12)", opcode: 0xAE, action: noAction, length: 12, usage: usage12(dpo | bytchk1), writes: true, dataOut: wholeTransfer, pieces: true, run: writeAndVerify},
		{name: "VERIFY (12)", opcode: 0xAF, action: noAction, length: 12, usage: usage12(dpo | bytchk1), dataOut: verifyTransfer, class: reserve.Reads, pieces: true, run: verify},
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

// receiveCopyUsage is the usage of RECEIVE COPY RESULTS. OPERATING PARAMETERS takes any LIST IDENTIFIER and ignores it (SPC-3).
func receiveCopyUsage() [16]byte {
	return [16]byte{ff, 0x1F, ff, 0, 0, 0, 0, 0, 0, 0, ff, ff, ff, ff}
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
		if wrong := cdb[i] &^ c.usage[i]; wrong != 0 {
			return badField(i, bits.Len8(wrong)-1)
		}
	}
	return nil
}

// unsupported is the answer to a CDB that find does not find: it is the service action that is wrong if the operation code has any.
func unsupported(cdb *[16]byte) error {
	if at := byOpcode[cdb[0]]; at.from < at.to {
		return badField(1, 4)
	}
	return senseInvalidOpcode
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
