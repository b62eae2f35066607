package scsi

import (
	"context"
	"encoding/binary"
	"errors"
	"math"

	"sanctuary/blockstore/block"
)

// SenseKey is the first half of what sense data says (SPC-4 r37 §4.5.6).
type SenseKey uint8

// The sense keys used here.
const (
	NoSense        SenseKey = 0x0
	NotReady       SenseKey = 0x2
	MediumError    SenseKey = 0x3
	HardwareError  SenseKey = 0x4
	IllegalRequest SenseKey = 0x5
	UnitAttention  SenseKey = 0x6
	DataProtect    SenseKey = 0x7
	CopyAborted    SenseKey = 0xA
	AbortedCommand SenseKey = 0xB
	Miscompare     SenseKey = 0xE
)

// Sense is the meaning of sense data: a key and an additional sense code with its qualifier, ASC<<8 | ASCQ.
// As an error it ends a command with CHECK CONDITION.
type Sense struct {
	Key  SenseKey
	Code uint16
	// Info is the INFORMATION field, sent if HasInfo: the byte offset of a miscompare or the LBA of an error. What needs more than
	// 32 bits is left out of the fixed format.
	Info    uint64
	HasInfo bool
	// Specific is COMMAND-SPECIFIC INFORMATION; 0 is not sent.
	Specific uint32
	// KeySpecific is SENSE KEY SPECIFIC, sent if its first bit (SKSV) is set.
	KeySpecific [3]byte
}

func (s *Sense) Error() string {
	const hex = "0123456789ABCDEF"
	b := []byte("check condition 00/00/00")
	put := func(at int, v byte) { b[at], b[at+1] = hex[v>>4], hex[v&15] }
	put(16, byte(s.Key))
	put(19, byte(s.Code>>8))
	put(22, byte(s.Code))
	return string(b)
}

// senseLength is the length of fixed format sense data with nothing behind SENSE KEY SPECIFIC.
const senseLength = 18

// maxSenseLength is that of descriptor format sense data with every descriptor there is here.
const maxSenseLength = 8 + 12 + 12 + 8

// Response codes of sense data, current errors (SPC-4 r37 §4.5.1).
const (
	senseFixed       = 0x70
	senseDescriptors = 0x72
)

// appendSense appends sense data of a current error: in descriptor format (D_SENSE=1, DESC=1) or in fixed format.
func appendSense(dst []byte, s Sense, descriptors bool) []byte {
	if descriptors {
		return appendDescriptorSense(dst, s)
	}
	var b [senseLength]byte
	b[0] = senseFixed
	if s.HasInfo && s.Info <= math.MaxUint32 {
		b[0] |= 0x80 // VALID
		binary.BigEndian.PutUint32(b[3:], uint32(s.Info))
	}
	b[2] = byte(s.Key)
	b[7] = senseLength - 8
	binary.BigEndian.PutUint32(b[8:], s.Specific)
	binary.BigEndian.PutUint16(b[12:], s.Code)
	copy(b[15:], s.KeySpecific[:])
	return append(dst, b[:]...)
}

// appendDescriptorSense appends descriptor format sense data (SPC-4 r37 §4.5.2), with the descriptors for information (00h),
// command-specific information (01h) and sense key specific (02h).
func appendDescriptorSense(dst []byte, s Sense) []byte {
	start := len(dst)
	dst = append(dst, senseDescriptors, byte(s.Key), byte(s.Code>>8), byte(s.Code), 0, 0, 0, 0)
	if s.HasInfo {
		dst = append(dst, 0x00, 0x0A, 0x80, 0)
		dst = binary.BigEndian.AppendUint64(dst, s.Info)
	}
	if s.Specific != 0 {
		dst = append(dst, 0x01, 0x0A, 0, 0)
		dst = binary.BigEndian.AppendUint64(dst, uint64(s.Specific))
	}
	if s.KeySpecific[0]&0x80 != 0 {
		dst = append(dst, 0x02, 0x06, 0, 0)
		dst = append(dst, s.KeySpecific[:]...)
		dst = append(dst, 0)
	}
	dst[start+7] = byte(len(dst) - start - 8)
	return dst
}

// What commands are refused with. Shared: never modified.
var (
	senseInvalidOpcode  = &Sense{Key: IllegalRequest, Code: 0x2000}
	senseOutOfRange     = &Sense{Key: IllegalRequest, Code: 0x2100}
	senseInvalidField   = &Sense{Key: IllegalRequest, Code: 0x2400}
	senseNoSuchUnit     = &Sense{Key: IllegalRequest, Code: 0x2500}
	senseListLength     = &Sense{Key: IllegalRequest, Code: 0x1A00} // parameter list length error
	senseInvalidList    = &Sense{Key: IllegalRequest, Code: 0x2600} // invalid field in parameter list
	senseBadTransfer    = &Sense{Key: IllegalRequest, Code: 0x0E03} // invalid field in command information unit
	senseShortData      = &Sense{Key: AbortedCommand, Code: 0x0C0D} // write error, not enough unsolicited data
	senseWriteProtected = &Sense{Key: DataProtect, Code: 0x2700}
	senseNoSpace        = &Sense{Key: DataProtect, Code: 0x2707} // space allocation failed write protect: VMware pauses the guest
	senseTransition     = &Sense{Key: NotReady, Code: 0x040A}
	senseStandby        = &Sense{Key: NotReady, Code: 0x040B}
	senseUnavailable    = &Sense{Key: NotReady, Code: 0x040C}
	senseNeedsOperator  = &Sense{Key: NotReady, Code: 0x0403} // manual intervention required
	senseTargetFailure  = &Sense{Key: HardwareError, Code: 0x4400}
	// senseUnknown is COMMAND TIMEOUT DURING PROCESSING: it was begun, and what became of it is not known. See request.open.
	senseUnknown = &Sense{Key: AbortedCommand, Code: 0x2E02}
)

// badField is 05/24/00 that says where: the byte of the CDB, and the most significant bit of the field (SPC-4 r37 §4.5.2.4.2).
func badField(at, bit int) *Sense {
	return &Sense{Key: IllegalRequest, Code: senseInvalidField.Code, KeySpecific: [3]byte{0x80 | 0x40 /* C/D */ | 0x08 /* BPV */ | byte(bit), byte(at >> 8), byte(at)}}
}

// statusError ends a command with a status that carries no sense data.
type statusError Status

func (e statusError) Error() string {
	switch Status(e) {
	case StatusBusy:
		return "busy"
	case StatusTaskAborted:
		return "task aborted"
	}
	return "refused"
}

// outcomeOf turns the error a command ended with into a *Sense or a statusError; it is the only place where errors of
// the Backend become SCSI. aborted says that the task was aborted or its nexus is gone. perBlock is the number of
// sectors in a logical block.
//
// ErrUnknown (the write took effect, or never will) becomes BUSY. What is wanted is that every initiator sends the command again and none
// shows its guest an error. BUSY is retried by Linux (requeued, and when this node has meanwhile become standby the
// next answer is 02/04/0B and dm-multipath moves on), by QEMU's libiscsi driver (eight times, up to 32 s apart; of
// CHECK CONDITIONs it retries only unit attentions), by ESXi and by Windows. NOT READY 04/0A is an I/O error to QEMU,
// and ABORTED COMMAND ends QEMU's request with ECANCELED. It cannot become a BUSY loop, which ESXi dislikes: by the next attempt
// the Backend knows whether it owns the LUN. Commands that must not be repeated unseen have an outcome of their own: request.open.
func outcomeOf(err error, aborted bool, perBlock block.Count) error {
	if err == nil {
		return nil // before the variables, which are allocated
	}
	var (
		sense   *Sense
		status  statusError
		corrupt *block.CorruptError
	)
	switch {
	case aborted:
		return statusError(StatusTaskAborted)
	case errors.As(err, &sense):
		return sense
	case errors.As(err, &status):
		return status
	case errors.Is(err, block.ErrUnknown), errors.Is(err, block.ErrFenced):
		return statusError(StatusBusy)
	case errors.Is(err, block.ErrNotOwner):
		return senseStandby
	case errors.Is(err, block.ErrUnavailable), errors.Is(err, block.ErrClosed):
		return senseTransition
	case errors.Is(err, block.ErrLost):
		return senseNeedsOperator
	case errors.Is(err, block.ErrNoSpace):
		return senseNoSpace
	case errors.Is(err, block.ErrOutOfRange):
		return senseOutOfRange
	case errors.As(err, &corrupt):
		return corruptSense(corrupt, perBlock)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		// A deadline within the Backend ran out, or another unit took this one's place: the outcome is open.
		return statusError(StatusBusy)
	}
	// block.ErrFailed and whatever has no name: the replica is broken, another path may do better.
	return senseTargetFailure
}

// corruptSense names the first bad block.
func corruptSense(e *block.CorruptError, perBlock block.Count) *Sense {
	return &Sense{Key: MediumError, Code: 0x1100, Info: uint64(e.Range.Start) / uint64(perBlock), HasInfo: true}
}
