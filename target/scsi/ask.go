package scsi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/target/reserve"
)

// askKind is what a unit on one node asks the unit on the owner.
type askKind uint8

const (
	askTicket  askKind = 1 // only for a ticket
	askCommand askKind = 2 // to carry out a command
	askCancel  askKind = 3 // to end the command of that operation, or never to begin it
	askManage  askKind = 4 // to carry out a task management function for the whole unit
	askPurge   askKind = 5 // to remove registrations or reservations for an operator, or for a session that is gone
	askArrive  askKind = 6 // to end what other sessions of an initiator port have begun, because it has logged in here
	askPiece   askKind = 7 // to carry out a command that is a piece of a copy, unless it ended with the unit's tasks
)

// ask is a request to the owner. What a kind has no use for is zero.
type ask struct {
	kind      askKind
	operation uint64 // of the command or change; random, so that it is done once however often it is asked for
	limit     uint32 // bytes of data the answer may hold
	nexus     reserve.Nexus
	session   uint64
	fence     block.Fence
	ticket    ticket
	elapsed   time.Duration // from when the command was accepted to when the ticket arrived, 0 if it was there before
	began     ticket        // of a piece: no later than when the copy it belongs to was accepted
	function  Function
	purge     Purge

	cdb         [16]byte
	expectedIn  uint32
	expectedOut uint32
	dataOut     []byte
}

// ticket is a moment of the owner's clock, by which it tells later how much time has passed. No clock is compared with another.
type ticket struct {
	process uint64 // random, chosen by the unit that issued it: a ticket of another process means nothing
	stamp   uint64 // nanoseconds since that unit was made
}

// Limits of what is asked at once, in bytes.
const (
	// maxAskData is the most Data-Out or Data-In of commands that are asked for in pieces.
	maxAskData = 1 << 20
	// maxAskOut is the most Data-Out of any: that of COMPARE AND WRITE, which cannot be done in pieces.
	maxAskOut = 2 * maxCompareBlocks * block.Size
	// maxAskBytes bounds an encoded ask, and an encoded reply.
	maxAskBytes = maxAskOut + 1024
)

// Encoded ask, big endian:
//
//	1   version, 1
//	1   kind
//	4   limit
//	8   operation
//	1   length of the initiator's name, then the name; 6 ISID; 2 target port; 8 session
//	8   term and 8 index of the fence
//	8   process and 8 stamp of the ticket; 8 elapsed, in nanoseconds
//	1   task management function
//	1   what to purge; 8 key; 1 length of a name, then the name
//	16  CDB
//	4   expected Data-In; 4 expected Data-Out; 4 length of Data-Out, then that
//	    only of kind 7: 8 process and 8 stamp of when the copy began
const askVersion = 1

func (a *ask) encode() []byte {
	b := append(make([]byte, 0, 512+len(a.dataOut)), askVersion, byte(a.kind))
	u32 := func(v uint32) { b = binary.BigEndian.AppendUint32(b, v) }
	u64 := func(v uint64) { b = binary.BigEndian.AppendUint64(b, v) }
	name := func(s string) { b = append(append(b, byte(len(s))), s...) }
	u32(a.limit)
	u64(a.operation)
	name(a.nexus.Initiator)
	b = append(b, a.nexus.ISID[:]...)
	b = binary.BigEndian.AppendUint16(b, a.nexus.Port)
	u64(a.session)
	u64(a.fence.Term)
	u64(a.fence.Index)
	u64(a.ticket.process)
	u64(a.ticket.stamp)
	u64(uint64(a.elapsed))
	b = append(b, byte(a.function), byte(a.purge.What))
	u64(a.purge.Key)
	name(a.purge.Initiator)
	b = append(b, a.cdb[:]...)
	u32(a.expectedIn)
	u32(a.expectedOut)
	u32(uint32(len(a.dataOut)))
	b = append(b, a.dataOut...)
	if a.kind == askPiece {
		u64(a.began.process)
		u64(a.began.stamp)
	}
	return b
}

var errAskDamaged = errors.New("a request between nodes cannot be read")

func decodeAsk(b []byte) (*ask, error) {
	if len(b) > maxAskBytes || len(b) < 2 {
		return nil, fmt.Errorf("%w: %d bytes", errAskDamaged, len(b))
	}
	if b[0] != askVersion {
		return nil, fmt.Errorf("request between nodes of version %d, this program knows %d: update both nodes", b[0], askVersion)
	}
	d := decoder{b: b[2:]}
	a := &ask{kind: askKind(b[1])}
	a.limit, a.operation = d.u32(), d.u64()
	a.nexus.Initiator = string(d.take(int(d.u8())))
	copy(a.nexus.ISID[:], d.take(6))
	a.nexus.Port, a.session = d.u16(), d.u64()
	a.fence = block.Fence{Term: d.u64(), Index: d.u64()}
	a.ticket = ticket{d.u64(), d.u64()}
	a.elapsed = time.Duration(d.u64())
	a.function = Function(d.u8())
	a.purge = Purge{What: PurgeKind(d.u8()), Key: d.u64()}
	a.purge.Initiator = string(d.take(int(d.u8())))
	copy(a.cdb[:], d.take(16))
	a.expectedIn, a.expectedOut = d.u32(), d.u32()
	a.dataOut = d.take(int(d.u32()))
	if a.kind == askPiece {
		a.began = ticket{d.u64(), d.u64()}
	}
	switch {
	case d.short || len(d.b) > 0:
		return nil, fmt.Errorf("%w: %d bytes of the wrong length", errAskDamaged, len(b))
	case a.kind < askTicket || a.kind > askPiece:
		return nil, fmt.Errorf("%w: kind %d", errAskDamaged, a.kind)
	case (a.kind == askCommand || a.kind == askArrive || a.kind == askPiece) && a.nexus.Initiator == "":
		return nil, fmt.Errorf("%w: a command of nobody", errAskDamaged)
	case a.limit > maxAskData || a.expectedIn > a.limit || a.elapsed < 0 || len(a.nexus.Initiator) > reserve.MaxNameBytes:
		return nil, fmt.Errorf("%w: %d of %d bytes after %v", errAskDamaged, a.expectedIn, a.limit, a.elapsed)
	case len(a.dataOut) > maxAskOut || int64(len(a.dataOut)) > int64(a.expectedOut):
		return nil, fmt.Errorf("%w: %d bytes of data where %d were announced", errAskDamaged, len(a.dataOut), a.expectedOut)
	}
	return a, nil
}

// AnswerBytes returns the most that the answer to a request of AskOwner can have, in bytes, from the request alone.
func AnswerBytes(request []byte) int {
	const at = 2
	if len(request) < at+4 {
		return 0
	}
	return int(min(binary.BigEndian.Uint32(request[at:]), maxAskData)) + replyOverhead
}

// verdict says what became of an ask.
type verdict uint8

const (
	answered    verdict = 0 // the rest of the reply holds the outcome
	nothingDone verdict = 1 // no owner, no quorum: it may be asked again
	tooLate     verdict = 2 // the command was accepted too long ago: nothing was done, and will not be
	endedEarly  verdict = 3 // the task was aborted here; it has ended
	unresolved  verdict = 4 // ownership was lost meanwhile: it took effect entirely, or never will
)

// functionOutcome answers askCancel: the command has ended as the rest of the reply says. Nodes that do not know it take it for
// TaskDoesNotExist.
const functionOutcome FunctionResponse = 0x80

// reply is the owner's answer.
type reply struct {
	verdict     verdict
	ticket      ticket
	version     uint64 // of the unit's state: the node that asked waits until it knows that one
	response    FunctionResponse
	status      Status
	sense       *Sense // with CHECK CONDITION
	transferIn  int64
	transferOut int64
	purged      uint32
	dataIn      []byte
}

// Encoded reply, big endian:
//
//	1   version, 1
//	1   verdict
//	8   process and 8 stamp of a ticket; 8 version of the state
//	1   task management response; 1 status
//	1   bit 0: sense, bit 1: with information; 1 key; 2 code; 8 information; 4 command-specific; 3 key-specific
//	8   bytes to transfer in, 8 out; 4 registrations purged
//	4   length of Data-In, then that
const replyOverhead = 1 + 1 + 24 + 2 + 19 + 20 + 4

func (p *reply) encode() []byte {
	b := append(make([]byte, 0, replyOverhead+len(p.dataIn)), askVersion, byte(p.verdict))
	u64 := func(v uint64) { b = binary.BigEndian.AppendUint64(b, v) }
	u64(p.ticket.process)
	u64(p.ticket.stamp)
	u64(p.version)
	b = append(b, byte(p.response), byte(p.status))
	s := Sense{}
	if p.sense != nil {
		s = *p.sense
	}
	b = append(b, bit(0, p.sense != nil)|bit(1, s.HasInfo), byte(s.Key))
	b = binary.BigEndian.AppendUint16(b, s.Code)
	u64(s.Info)
	b = binary.BigEndian.AppendUint32(b, s.Specific)
	b = append(b, s.KeySpecific[:]...)
	u64(uint64(p.transferIn))
	u64(uint64(p.transferOut))
	b = binary.BigEndian.AppendUint32(b, p.purged)
	b = binary.BigEndian.AppendUint32(b, uint32(len(p.dataIn)))
	return append(b, p.dataIn...)
}

func decodeReply(b []byte) (*reply, error) {
	if len(b) < replyOverhead || len(b) > maxAskBytes || b[0] != askVersion || verdict(b[1]) > unresolved {
		return nil, fmt.Errorf("%w: an answer of %d bytes", errAskDamaged, len(b))
	}
	d := decoder{b: b[2:]}
	p := &reply{verdict: verdict(b[1]), ticket: ticket{d.u64(), d.u64()}, version: d.u64()}
	p.response, p.status = FunctionResponse(d.u8()), Status(d.u8())
	flags := d.u8()
	s := Sense{Key: SenseKey(d.u8()), Code: d.u16(), Info: d.u64(), Specific: d.u32(), HasInfo: flags&2 != 0}
	copy(s.KeySpecific[:], d.take(3))
	if flags&1 != 0 {
		p.sense = &s
	}
	p.transferIn, p.transferOut, p.purged = int64(d.u64()), int64(d.u64()), d.u32()
	p.dataIn = d.take(int(d.u32()))
	if d.short || len(d.b) > 0 || p.transferIn < 0 || p.transferOut < 0 || (p.status == StatusCheckCondition) != (p.sense != nil) {
		return nil, fmt.Errorf("%w: an answer of the wrong length", errAskDamaged)
	}
	return p, nil
}
