// Package pdu is the iSCSI wire format (RFC 7143 §11), for targets and initiators alike: the 48-byte basic header
// segment read and written in place, additional header segments, text keys, digests and padding.
//
// Invariant: nothing received is trusted before its length has been checked against a limit, and nothing is allocated in
// proportion to a length that was received. A Header is a plain array; using one allocates nothing.
// It does not know what a PDU means for a session: target/login and target/session do.
package pdu

import (
	"encoding/binary"
	"fmt"
)

// HeaderSize is the length of the basic header segment (BHS) in bytes.
const HeaderSize = 48

// NoTag is the reserved value of initiator and target task tags: "no task".
const NoTag uint32 = 0xFFFFFFFF

// Opcode says what a PDU is (RFC 7143 §11.2.1.2).
type Opcode uint8

// Opcodes an initiator sends.
const (
	OpNopOut        Opcode = 0x00
	OpSCSICommand   Opcode = 0x01
	OpTaskRequest   Opcode = 0x02
	OpLoginRequest  Opcode = 0x03
	OpTextRequest   Opcode = 0x04
	OpDataOut       Opcode = 0x05
	OpLogoutRequest Opcode = 0x06
	OpSNACK         Opcode = 0x10
)

// Opcodes a target sends.
const (
	OpNopIn          Opcode = 0x20
	OpSCSIResponse   Opcode = 0x21
	OpTaskResponse   Opcode = 0x22
	OpLoginResponse  Opcode = 0x23
	OpTextResponse   Opcode = 0x24
	OpDataIn         Opcode = 0x25
	OpLogoutResponse Opcode = 0x26
	OpR2T            Opcode = 0x31
	OpAsync          Opcode = 0x32
	OpReject         Opcode = 0x3F
)

var opcodeNames = map[Opcode]string{
	OpNopOut: "NOP-Out", OpSCSICommand: "SCSI Command", OpTaskRequest: "Task Management Request",
	OpLoginRequest: "Login Request", OpTextRequest: "Text Request", OpDataOut: "Data-Out",
	OpLogoutRequest: "Logout Request", OpSNACK: "SNACK",
	OpNopIn: "NOP-In", OpSCSIResponse: "SCSI Response", OpTaskResponse: "Task Management Response",
	OpLoginResponse: "Login Response", OpTextResponse: "Text Response", OpDataIn: "Data-In",
	OpLogoutResponse: "Logout Response", OpR2T: "R2T", OpAsync: "Asynchronous Message", OpReject: "Reject",
}

func (o Opcode) String() string {
	if s, ok := opcodeNames[o]; ok {
		return s
	}
	return fmt.Sprintf("opcode %02Xh", uint8(o))
}

// Flag bits of the second byte; which apply depends on the opcode.
const (
	FlagFinal     = 0x80 // F (T in login PDUs)
	FlagContinue  = 0x40 // C in login and text PDUs
	FlagRead      = 0x40 // R in SCSI Command
	FlagWrite     = 0x20 // W in SCSI Command
	FlagAck       = 0x40 // A in Data-In
	FlagOverflow  = 0x04 // O in Data-In and SCSI Response
	FlagUnderflow = 0x02 // U in Data-In and SCSI Response
	FlagStatus    = 0x01 // S in Data-In
)

// Header is a basic header segment (RFC 7143 §11.2.1) as it is on the wire, big endian:
//
//	 0      opcode (6 bits), bit 6 = immediate
//	 1      flags
//	 2      response, version or reason        3  status or version
//	 4      AHS length in 4-byte words         5  data segment length in bytes (3)
//	 8      LUN (8), or ISID (6) and TSIH (2)
//	16      initiator task tag
//	20      EDTL | target transfer tag | referenced task tag | CID
//	24      CmdSN | StatSN                    28  ExpStatSN | ExpCmdSN
//	32      MaxCmdSN | RefCmdSN | CDB (16)    36  DataSN | R2TSN | ExpDataSN | login status
//	40      buffer offset | logout times      44  residual | desired transfer length
//
// A getter whose field the opcode does not have returns whatever is there.
type Header [HeaderSize]byte

func (h *Header) u16(at int) uint16       { return binary.BigEndian.Uint16(h[at:]) }
func (h *Header) u32(at int) uint32       { return binary.BigEndian.Uint32(h[at:]) }
func (h *Header) put16(at int, v uint16)  { binary.BigEndian.PutUint16(h[at:], v) }
func (h *Header) put32(at int, v uint32)  { binary.BigEndian.PutUint32(h[at:], v) }
func (h *Header) start(o Opcode, f uint8) { *h = Header{0: byte(o), 1: f} }

// Opcode returns the opcode without the immediate bit.
func (h *Header) Opcode() Opcode { return Opcode(h[0] & 0x3F) }

// Immediate returns the I bit: the command does not take a CmdSN of its own.
func (h *Header) Immediate() bool { return h[0]&0x40 != 0 }

// SetImmediate sets the I bit.
func (h *Header) SetImmediate() { h[0] |= 0x40 }

// Flags returns the second byte.
func (h *Header) Flags() uint8 { return h[1] }

// Has says whether all the given flag bits are set.
func (h *Header) Has(flags uint8) bool { return h[1]&flags == flags }

// Final returns the F bit.
func (h *Header) Final() bool { return h[1]&FlagFinal != 0 }

// AHSLength returns the length of the additional header segments in bytes, a multiple of 4 up to 1020.
func (h *Header) AHSLength() int { return int(h[4]) * 4 }

// SetAHSLength sets the length of the additional header segments; n must be a multiple of 4 up to 1020.
func (h *Header) SetAHSLength(n int) { h[4] = byte(n / 4) }

// DataLength returns the length of the data segment in bytes without padding, at most 16 MiB - 1.
func (h *Header) DataLength() int { return int(h[5])<<16 | int(h[6])<<8 | int(h[7]) }

// SetDataLength sets the length of the data segment in bytes, 0..MaxDataLength. Writer does it by itself.
func (h *Header) SetDataLength(n int) { h[5], h[6], h[7] = byte(n>>16), byte(n>>8), byte(n) }

// MaxDataLength is the longest data segment the header can express, in bytes.
const MaxDataLength = 1<<24 - 1

// LUN returns the 8-byte logical unit number field.
func (h *Header) LUN() uint64 { return binary.BigEndian.Uint64(h[8:]) }

// SetLUN sets the 8-byte logical unit number field.
func (h *Header) SetLUN(lun uint64) { binary.BigEndian.PutUint64(h[8:], lun) }

// ISID returns the initiator session identifier of a login PDU.
func (h *Header) ISID() (isid [6]byte) { copy(isid[:], h[8:14]); return isid }

// TSIH returns the target session identifying handle of a login PDU; 0 asks for a new session.
func (h *Header) TSIH() uint16 { return h.u16(14) }

// Tag returns the initiator task tag.
func (h *Header) Tag() uint32 { return h.u32(16) }

// EDTL returns the expected data transfer length of a SCSI Command, in bytes.
func (h *Header) EDTL() uint32 { return h.u32(20) }

// TransferTag returns the target transfer tag of Data-Out, Data-In, R2T, NOP and text PDUs.
func (h *Header) TransferTag() uint32 { return h.u32(20) }

// ReferencedTag returns the tag of the task a Task Management Request is about.
func (h *Header) ReferencedTag() uint32 { return h.u32(20) }

// CID returns the connection identifier of a login or logout request.
func (h *Header) CID() uint16 { return h.u16(20) }

// CmdSN returns the command sequence number of a request.
func (h *Header) CmdSN() uint32 { return h.u32(24) }

// StatSN returns the status sequence number of a response.
func (h *Header) StatSN() uint32 { return h.u32(24) }

// ExpStatSN returns what a request acknowledges.
func (h *Header) ExpStatSN() uint32 { return h.u32(28) }

// ExpCmdSN returns the next CmdSN the target expects (responses).
func (h *Header) ExpCmdSN() uint32 { return h.u32(28) }

// MaxCmdSN returns the highest CmdSN the target accepts (responses).
func (h *Header) MaxCmdSN() uint32 { return h.u32(32) }

// SetSequence sets StatSN, ExpCmdSN and MaxCmdSN of a response.
func (h *Header) SetSequence(statSN, expCmdSN, maxCmdSN uint32) {
	h.put32(24, statSN)
	h.put32(28, expCmdSN)
	h.put32(32, maxCmdSN)
}

// RefCmdSN returns the CmdSN of the task an ABORT TASK is about.
func (h *Header) RefCmdSN() uint32 { return h.u32(32) }

// DataSN returns the number of a Data-In or Data-Out within its sequence, or the R2TSN of an R2T.
func (h *Header) DataSN() uint32 { return h.u32(36) }

// ExpDataSN returns how many Data-In and R2T PDUs a SCSI Response says were sent.
func (h *Header) ExpDataSN() uint32 { return h.u32(36) }

// BufferOffset returns where the data of a Data-In, Data-Out or R2T belongs, in bytes from the start of the transfer.
func (h *Header) BufferOffset() uint32 { return h.u32(40) }

// DesiredLength returns how many bytes an R2T asks for.
func (h *Header) DesiredLength() uint32 { return h.u32(44) }

// Residual returns the residual count of a SCSI Response or Data-In with status, in bytes.
func (h *Header) Residual() uint32 { return h.u32(44) }

// Attribute returns the task attribute of a SCSI Command: 0 untagged, 1 simple, 2 ordered, 3 head of queue, 4 ACA.
func (h *Header) Attribute() uint8 { return h[1] & 0x07 }

// CDB returns the first 16 bytes of the command descriptor block, in place.
func (h *Header) CDB() *[16]byte { return (*[16]byte)(h[32:48]) }

// Function returns the function of a Task Management Request.
func (h *Header) Function() uint8 { return h[1] & 0x7F }

// LogoutReason returns the reason code of a Logout Request.
func (h *Header) LogoutReason() uint8 { return h[1] & 0x7F }

// Response returns the response of a SCSI, Task Management or Logout Response, or the reason of a Reject.
func (h *Header) Response() uint8 { return h[2] }

// Status returns the SCSI status of a SCSI Response or Data-In with the S bit.
func (h *Header) Status() uint8 { return h[3] }

// Stages returns CSG and NSG of a login PDU.
func (h *Header) Stages() (current, next Stage) {
	return Stage(h[1] >> 2 & 3), Stage(h[1] & 3)
}

// Versions returns bytes 2 and 3 of a login PDU: maximum and minimum of a request, maximum and active of a response.
func (h *Header) Versions() (maximum, minimum uint8) { return h[2], h[3] }

// LoginStatus returns status class and detail of a Login Response as one number, for example 0x0203.
func (h *Header) LoginStatus() uint16 { return h.u16(36) }

// LogoutTimes returns Time2Wait and Time2Retain of a Logout Response, in seconds.
func (h *Header) LogoutTimes() (wait, retain uint16) { return h.u16(40), h.u16(42) }

// AsyncEvent returns the event code of an Asynchronous Message and its three parameters.
func (h *Header) AsyncEvent() (event uint8, parameters [3]uint16) {
	return h[36], [3]uint16{h.u16(38), h.u16(40), h.u16(42)}
}

// SerialLess compares sequence numbers modulo 2^32 (RFC 1982, as RFC 7143 §4.2.2.1 asks).
func SerialLess(a, b uint32) bool { return int32(a-b) < 0 }
