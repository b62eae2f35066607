package pdu

// Stage is a login stage (RFC 7143 §11.12.3).
type Stage uint8

// Login stages.
const (
	StageSecurity    Stage = 0
	StageOperational Stage = 1
	StageFullFeature Stage = 3
)

// RejectReason says why a PDU was rejected (RFC 7143 §11.17.1).
type RejectReason uint8

// Reject reasons.
const (
	RejectDataDigest     RejectReason = 0x02
	RejectSNACK          RejectReason = 0x03
	RejectProtocol       RejectReason = 0x04
	RejectNotSupported   RejectReason = 0x05
	RejectImmediate      RejectReason = 0x06 // too many immediate commands
	RejectTaskInProgress RejectReason = 0x07
	RejectInvalidAck     RejectReason = 0x08
	RejectInvalidField   RejectReason = 0x09
	RejectLongOperation  RejectReason = 0x0A
	RejectReset          RejectReason = 0x0B
	RejectWaitForLogout  RejectReason = 0x0C
)

// Logout request reasons (RFC 7143 §11.14.1).
const (
	LogoutSession    uint8 = 0
	LogoutConnection uint8 = 1
	LogoutRecovery   uint8 = 2
)

// Logout responses (RFC 7143 §11.15.1).
const (
	LogoutDone        uint8 = 0
	LogoutNoCID       uint8 = 1
	LogoutNoRecovery  uint8 = 2
	LogoutCleanupFail uint8 = 3
)

// Asynchronous events (RFC 7143 §11.9.1).
const (
	AsyncSCSI           uint8 = 0
	AsyncLogoutRequest  uint8 = 1 // the target asks for a logout within parameter 3 seconds
	AsyncDropConnection uint8 = 2
	AsyncDropSession    uint8 = 3
	AsyncRenegotiate    uint8 = 4
)

// The structs below are what one PDU of each kind says. Put writes the whole header in place (AHS and data length zero;
// Writer.Append sets the data length); the getters of Header read it back. They live on the stack.

// SCSICommand is a SCSI Command (RFC 7143 §11.3).
type SCSICommand struct {
	Immediate, Final, Read, Write bool
	Attribute                     uint8 // 0 untagged, 1 simple, 2 ordered, 3 head of queue
	LUN                           uint64
	Tag, EDTL, CmdSN, ExpStatSN   uint32
	CDB                           [16]byte
}

// Put writes the header.
func (c *SCSICommand) Put(h *Header) {
	h.start(OpSCSICommand, bit(c.Final, FlagFinal)|bit(c.Read, FlagRead)|bit(c.Write, FlagWrite)|c.Attribute&7)
	h[0] |= bit(c.Immediate, 0x40)
	h.SetLUN(c.LUN)
	h.put32(16, c.Tag)
	h.put32(20, c.EDTL)
	h.put32(24, c.CmdSN)
	h.put32(28, c.ExpStatSN)
	copy(h[32:], c.CDB[:])
}

// DataOut is a SCSI Data-Out (RFC 7143 §11.7). TransferTag is NoTag for unsolicited data.
type DataOut struct {
	Final                                             bool
	LUN                                               uint64
	Tag, TransferTag, ExpStatSN, DataSN, BufferOffset uint32
}

// Put writes the header.
func (d *DataOut) Put(h *Header) {
	h.start(OpDataOut, bit(d.Final, FlagFinal))
	h.SetLUN(d.LUN)
	h.put32(16, d.Tag)
	h.put32(20, d.TransferTag)
	h.put32(28, d.ExpStatSN)
	h.put32(36, d.DataSN)
	h.put32(40, d.BufferOffset)
}

// NopOut is a NOP-Out (RFC 7143 §11.18). Tag NoTag wants no answer; TransferTag answers a NOP-In.
type NopOut struct {
	Immediate                          bool
	LUN                                uint64
	Tag, TransferTag, CmdSN, ExpStatSN uint32
}

// Put writes the header.
func (n *NopOut) Put(h *Header) {
	h.start(OpNopOut, FlagFinal)
	h[0] |= bit(n.Immediate, 0x40)
	h.SetLUN(n.LUN)
	h.put32(16, n.Tag)
	h.put32(20, n.TransferTag)
	h.put32(24, n.CmdSN)
	h.put32(28, n.ExpStatSN)
}

// TaskRequest is a Task Management Function Request (RFC 7143 §11.5).
type TaskRequest struct {
	Immediate                                      bool
	Function                                       uint8
	LUN                                            uint64
	Tag, ReferencedTag, CmdSN, ExpStatSN, RefCmdSN uint32
}

// Put writes the header.
func (t *TaskRequest) Put(h *Header) {
	h.start(OpTaskRequest, FlagFinal|t.Function&0x7F)
	h[0] |= bit(t.Immediate, 0x40)
	h.SetLUN(t.LUN)
	h.put32(16, t.Tag)
	h.put32(20, t.ReferencedTag)
	h.put32(24, t.CmdSN)
	h.put32(28, t.ExpStatSN)
	h.put32(32, t.RefCmdSN)
}

// LoginRequest is a Login Request (RFC 7143 §11.12); always immediate.
type LoginRequest struct {
	Transit, Continue      bool
	Current, Next          Stage
	VersionMax, VersionMin uint8
	ISID                   [6]byte
	TSIH, CID              uint16
	Tag, CmdSN, ExpStatSN  uint32
}

// Put writes the header.
func (l *LoginRequest) Put(h *Header) {
	h.start(OpLoginRequest, bit(l.Transit, FlagFinal)|bit(l.Continue, FlagContinue)|byte(l.Current&3)<<2|byte(l.Next&3))
	h.SetImmediate()
	h[2], h[3] = l.VersionMax, l.VersionMin
	copy(h[8:], l.ISID[:])
	h.put16(14, l.TSIH)
	h.put32(16, l.Tag)
	h.put16(20, l.CID)
	h.put32(24, l.CmdSN)
	h.put32(28, l.ExpStatSN)
}

// TextRequest is a Text Request (RFC 7143 §11.10).
type TextRequest struct {
	Immediate, Final, Continue         bool
	LUN                                uint64
	Tag, TransferTag, CmdSN, ExpStatSN uint32
}

// Put writes the header.
func (t *TextRequest) Put(h *Header) {
	h.start(OpTextRequest, bit(t.Final, FlagFinal)|bit(t.Continue, FlagContinue))
	h[0] |= bit(t.Immediate, 0x40)
	h.SetLUN(t.LUN)
	h.put32(16, t.Tag)
	h.put32(20, t.TransferTag)
	h.put32(24, t.CmdSN)
	h.put32(28, t.ExpStatSN)
}

// LogoutRequest is a Logout Request (RFC 7143 §11.14).
type LogoutRequest struct {
	Immediate             bool
	Reason                uint8
	CID                   uint16
	Tag, CmdSN, ExpStatSN uint32
}

// Put writes the header.
func (l *LogoutRequest) Put(h *Header) {
	h.start(OpLogoutRequest, FlagFinal|l.Reason&0x7F)
	h[0] |= bit(l.Immediate, 0x40)
	h.put32(16, l.Tag)
	h.put16(20, l.CID)
	h.put32(24, l.CmdSN)
	h.put32(28, l.ExpStatSN)
}

// The PDUs below are a target's. StatSN, ExpCmdSN and MaxCmdSN are set apart, with Header.SetSequence, because only the
// connection's writer knows them.

// SCSIResponse is a SCSI Response (RFC 7143 §11.4) with "command completed at target". Sense goes into the data segment,
// after its own 2-byte length (AppendSense).
type SCSIResponse struct {
	Status              uint8
	Overflow, Underflow bool
	Tag, ExpDataSN      uint32
	Residual            uint32
}

// Put writes the header.
func (r *SCSIResponse) Put(h *Header) {
	h.start(OpSCSIResponse, FlagFinal|bit(r.Overflow, FlagOverflow)|bit(r.Underflow, FlagUnderflow))
	h[3] = r.Status
	h.put32(16, r.Tag)
	h.put32(36, r.ExpDataSN)
	h.put32(44, r.Residual)
}

// DataIn is a SCSI Data-In (RFC 7143 §11.7). Status, residual and their flags count only if WithStatus.
type DataIn struct {
	Final, WithStatus, Overflow, Underflow bool
	Status                                 uint8
	Tag, DataSN, BufferOffset, Residual    uint32
}

// Put writes the header.
func (d *DataIn) Put(h *Header) {
	h.start(OpDataIn, bit(d.Final, FlagFinal))
	if d.WithStatus {
		h[1] |= FlagStatus | bit(d.Overflow, FlagOverflow) | bit(d.Underflow, FlagUnderflow)
		h[3] = d.Status
		h.put32(44, d.Residual)
	}
	h.put32(16, d.Tag)
	h.put32(20, NoTag)
	h.put32(36, d.DataSN)
	h.put32(40, d.BufferOffset)
}

// R2T is a Ready To Transfer (RFC 7143 §11.8). Its StatSN field carries the next StatSN without advancing it.
type R2T struct {
	LUN                                               uint64
	Tag, TransferTag, SN, BufferOffset, DesiredLength uint32
}

// Put writes the header.
func (r *R2T) Put(h *Header) {
	h.start(OpR2T, FlagFinal)
	h.SetLUN(r.LUN)
	h.put32(16, r.Tag)
	h.put32(20, r.TransferTag)
	h.put32(36, r.SN)
	h.put32(40, r.BufferOffset)
	h.put32(44, r.DesiredLength)
}

// NopIn is a NOP-In (RFC 7143 §11.19). Tag NoTag with a TransferTag is the target's own ping.
type NopIn struct {
	LUN              uint64
	Tag, TransferTag uint32
}

// Put writes the header.
func (n *NopIn) Put(h *Header) {
	h.start(OpNopIn, FlagFinal)
	h.SetLUN(n.LUN)
	h.put32(16, n.Tag)
	h.put32(20, n.TransferTag)
}

// TaskResponse is a Task Management Function Response (RFC 7143 §11.6).
type TaskResponse struct {
	Response uint8
	Tag      uint32
}

// Put writes the header.
func (t *TaskResponse) Put(h *Header) {
	h.start(OpTaskResponse, FlagFinal)
	h[2] = t.Response
	h.put32(16, t.Tag)
}

// LoginResponse is a Login Response (RFC 7143 §11.13).
type LoginResponse struct {
	Transit, Continue         bool
	Current, Next             Stage
	VersionMax, VersionActive uint8
	ISID                      [6]byte
	TSIH                      uint16
	Tag                       uint32
	Status                    uint16 // class and detail, for example 0x0203
}

// Put writes the header.
func (l *LoginResponse) Put(h *Header) {
	h.start(OpLoginResponse, bit(l.Transit, FlagFinal)|bit(l.Continue, FlagContinue)|byte(l.Current&3)<<2|byte(l.Next&3))
	h[2], h[3] = l.VersionMax, l.VersionActive
	copy(h[8:], l.ISID[:])
	h.put16(14, l.TSIH)
	h.put32(16, l.Tag)
	h.put16(36, l.Status)
}

// TextResponse is a Text Response (RFC 7143 §11.11).
type TextResponse struct {
	Final, Continue  bool
	LUN              uint64
	Tag, TransferTag uint32
}

// Put writes the header.
func (t *TextResponse) Put(h *Header) {
	h.start(OpTextResponse, bit(t.Final, FlagFinal)|bit(t.Continue, FlagContinue))
	h.SetLUN(t.LUN)
	h.put32(16, t.Tag)
	h.put32(20, t.TransferTag)
}

// LogoutResponse is a Logout Response (RFC 7143 §11.15). Times are in seconds.
type LogoutResponse struct {
	Response               uint8
	Tag                    uint32
	Time2Wait, Time2Retain uint16
}

// Put writes the header.
func (l *LogoutResponse) Put(h *Header) {
	h.start(OpLogoutResponse, FlagFinal)
	h[2] = l.Response
	h.put32(16, l.Tag)
	h.put16(40, l.Time2Wait)
	h.put16(42, l.Time2Retain)
}

// Reject is a Reject (RFC 7143 §11.17). The header of the rejected PDU is its data segment.
type Reject struct {
	Reason RejectReason
}

// Put writes the header.
func (r *Reject) Put(h *Header) {
	h.start(OpReject, FlagFinal)
	h[2] = byte(r.Reason)
	h.put32(16, NoTag)
}

// Async is an Asynchronous Message (RFC 7143 §11.9).
type Async struct {
	Event      uint8
	LUN        uint64
	Parameters [3]uint16
}

// Put writes the header.
func (a *Async) Put(h *Header) {
	h.start(OpAsync, FlagFinal)
	h.SetLUN(a.LUN)
	h.put32(16, NoTag)
	h[36] = a.Event
	for i, p := range a.Parameters {
		h.put16(38+2*i, p)
	}
}

func bit(set bool, mask byte) byte {
	if set {
		return mask
	}
	return 0
}
