package session

import (
	"context"
	"sync/atomic"
	"time"

	"sanctuary/target/pdu"
	"sanctuary/target/scsi"
)

// phase says who has a command. Changed with Session.mu held.
type phase uint8

const (
	collecting phase = iota // the reader: unsolicited data is coming
	parked                  // waits for memory for the rest of its data
	soliciting              // R2Ts are out
	dormant                 // complete, and waits for older commands; see order.go
	started                 // a worker has it, or it is queued for one; it cannot be taken back by the session
	aborted                 // dropped by the session; nobody will answer it
)

// command is one SCSI command, or a task management function, from its PDU to its answer.
type command struct {
	tag       uint32
	immediate bool
	attribute uint8  // task attribute
	order     uint64 // counts the commands of the session, from 1 on; 0: no SCSI command
	phase     phase
	dormant   int64 // sinceEpoch of when it became so
	task      scsi.Task

	edtl int // bytes the initiator announced, 0 unless it announced a write
	want int // bytes of Data-Out the command uses: at most edtl

	buffer     []byte // holds Data-Out; of kind bufferKind
	bufferKind kind
	got        int    // bytes of unsolicited data received, also those beyond want
	dataSN     uint32 // of the next unsolicited Data-Out

	asked    int    // bytes solicited or received up to here: the next R2T's offset
	arrived  int    // bytes of data in place, 0..want
	r2tSN    uint32 // of the next R2T; in the end, how many were sent
	inFlight int    // R2Ts not yet answered

	spoiled bool     // its data came out of sequence; the reader's own
	refused *refusal // answer without executing, once the data has been read

	revoked atomic.Bool // a task management function wants it gone, if the Executor has not begun it
	silent  bool        // it ended aborted, with no answer; set with Session.mu held

	shared bool // others may hold on to it beyond its answer: it is not used again

	manage func() scsi.FunctionResponse // not nil: a task management function
	answer scsi.FunctionResponse
	end    error // not nil: the session ends after the answer
}

// refusal is a status the session gives by itself.
type refusal struct {
	status scsi.Status
	sense  []byte
}

// transfer is one R2T and the data that answers it.
type transfer struct {
	c      *command
	offset int
	length int
	got    int
	dataSN uint32
}

// scsiCommand takes in a SCSI Command and its immediate data.
func (s *Session) scsiCommand(h *pdu.Header) error {
	read, write := h.Has(pdu.FlagRead), h.Has(pdu.FlagWrite)
	length := h.DataLength()
	edtl := int(h.EDTL())
	firstBurst := min(s.params.FirstBurst, edtl)
	switch {
	case read && write:
		s.reject(pdu.RejectNotSupported) // bidirectional commands
		s.retire(h.Immediate())
		return s.reader.Discard(length)
	case h.Tag() == pdu.NoTag:
		return protocolError("SCSI Command with the reserved task tag")
	case !write && (length > 0 || !h.Final()):
		return protocolError("data with a command that is no write")
	case length > 0 && !s.params.ImmediateData:
		return protocolError("immediate data, though it was negotiated away")
	case !h.Final() && s.params.InitialR2T:
		return protocolError("unsolicited data, though it was negotiated away")
	case write && length > firstBurst:
		return protocolError("immediate data of %d bytes, at most %d", length, firstBurst)
	case !h.Final() && length == firstBurst && edtl > 0:
		return protocolError("unsolicited data beyond the first burst of %d bytes", firstBurst)
	}
	if s.cfg.Watch.since(s.stops, s.live.last.Load()) {
		return ErrStoodStill
	}
	s.stats.commands.Add(1)
	s.stats.lastCommand.Store(s.live.last.Load()) // when its bytes came; the clock costs more
	c := s.blank()
	c.tag, c.immediate = h.Tag(), h.Immediate()
	c.task = scsi.Task{Nexus: s.cfg.Nexus, Tag: h.Tag(), LUN: h.LUN(), CDB: *h.CDB(), Buffers: s.memory, Revoked: &c.revoked}
	if read {
		c.task.ExpectedIn = edtl
	}
	if _, long := pdu.FindAHS(s.reader.AHS(), pdu.AHSExtendedCDB); long {
		c.refused = checkCondition(0x05, 0x20, 0x00) // INVALID COMMAND OPERATION CODE: none of ours is longer than 16 bytes
	}
	if c.attribute = h.Attribute(); c.attribute > attributeHeadOfQueue {
		c.attribute = 0
		c.refused = checkCondition(0x05, 0x49, 0x00) // INVALID MESSAGE ERROR: there is no ACA here (SAM-5 §8.9), and no more attributes
	}
	c.task.Accepted = epoch.Add(time.Duration(s.live.last.Load()))
	dataOut := s.cfg.Executor.Accept(&c.task)
	if write {
		c.edtl, c.task.ExpectedOut = edtl, edtl
		if c.refused == nil {
			switch want := min(dataOut, int64(edtl)); {
			case want > maxTransfer:
				c.refused = checkCondition(0x05, 0x24, 0x00) // INVALID FIELD IN CDB
			case want > 0:
				c.want = int(want)
			}
		}
	}
	more := write && !h.Final()
	unasked := length
	if more {
		unasked = firstBurst
	}
	s.allocate(c, min(unasked, c.want))
	s.mu.Lock()
	s.tasks[c.tag] = c
	s.longest = max(s.longest, len(s.tasks))
	if c.immediate {
		s.immediate++
	}
	s.newest++
	c.order = s.newest
	if c.attribute >= attributeOrdered {
		s.barriers++
	}
	s.mu.Unlock()
	if err := s.receive(c, length, 0); err != nil {
		return err
	}
	c.got = length
	if more {
		s.fed.Store(s.live.last.Load())
		return nil
	}
	s.unsolicitedDone(c)
	return nil
}

// checkCondition is a status with sense data in fixed format, current (SPC-4 §4.5.3).
func checkCondition(key, asc, ascq byte) *refusal {
	return &refusal{scsi.StatusCheckCondition, []byte{0: 0x70, 2: key, 7: 10, 12: asc, 13: ascq, 17: 0}}
}

// allocate gets memory for the data that comes unasked, and if it is there at once, for all of it.
func (s *Session) allocate(c *command, unasked int) {
	if c.want > unasked {
		if b := s.memory.tryGet(solicited, c.want); b != nil {
			c.buffer, c.bufferKind = b, solicited
			return
		}
	}
	if unasked == 0 {
		return
	}
	c.bufferKind = unsolicited
	if c.buffer = s.memory.tryGet(unsolicited, unasked); c.buffer != nil {
		return
	}
	if s.needReader() {
		// Waiting here would keep out the very data that others of our commands hold their memory for. The data is
		// read and dropped, nothing has been done, and the initiator tries again.
		c.refused, c.want = &refusal{status: scsi.StatusTaskSetFull}, 0
		s.stats.crowded.Add(1)
		return
	}
	c.buffer = s.memory.get(context.Background(), unsolicited, unasked)
}

// needReader says whether a command of this session holds memory and cannot go on unless the reader does.
func (s *Session) needReader() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.tasks {
		if c.phase < started && (c.want > 0 || c.buffer != nil) {
			return true
		}
	}
	return false
}

// receive reads a data segment of n bytes that belongs at offset of c's transfer; what lies beyond c.want is dropped.
func (s *Session) receive(c *command, n, offset int) error {
	if n == 0 {
		return nil
	}
	s.stats.bytesIn.Add(uint64(n))
	switch useful := min(n, c.want-offset); {
	case useful == n:
		return s.reader.ReadData(c.buffer[offset : offset+n])
	case useful <= 0:
		return s.reader.Discard(n)
	default:
		if s.scratch == nil {
			s.scratch = make([]byte, s.params.MaxRecvData)
		}
		if err := s.reader.ReadData(s.scratch[:n]); err != nil {
			return err
		}
		copy(c.buffer[offset:], s.scratch[:useful])
		return nil
	}
}

// unsolicitedDone is called when everything that comes unasked has come.
func (s *Session) unsolicitedDone(c *command) {
	c.arrived = min(c.got, c.want)
	c.asked = c.arrived
	switch {
	case c.arrived == c.want:
		s.mu.Lock()
		if s.suits(c) {
			c.phase, s.inline.next = started, c
		} else {
			s.start(c)
		}
		s.mu.Unlock()
	case c.bufferKind == solicited && c.buffer != nil:
		s.mu.Lock()
		c.phase = soliciting
		s.solicit(c)
		s.mu.Unlock()
	default:
		s.mu.Lock()
		c.phase, c.shared = parked, true
		s.rouse()
		s.mu.Unlock()
		s.memory.getLater(solicited, c.want, func(b []byte) { s.unpark(c, b) })
	}
}

// unpark gives a parked command the memory for all of its data. Called from whatever goroutine made room.
func (s *Session) unpark(c *command, b []byte) {
	old, oldKind := b, solicited
	s.mu.Lock()
	if c.phase == parked {
		copy(b, c.buffer[:min(c.arrived, len(c.buffer))])
		old, oldKind = c.buffer, c.bufferKind
		c.buffer, c.bufferKind = b, solicited
		c.phase = soliciting
		s.solicit(c)
	}
	s.mu.Unlock()
	s.memory.put(oldKind, old)
}

// solicit sends as many R2Ts as may be outstanding; mu is held.
func (s *Session) solicit(c *command) {
	for c.asked < c.want && c.inFlight < s.params.MaxOutstandingR2T {
		n := min(c.want-c.asked, s.params.MaxBurst)
		tag := s.nextTag
		if s.nextTag++; s.nextTag == pdu.NoTag {
			s.nextTag = 0
		}
		s.transfers[tag] = s.blankTransfer(c, c.asked, n)
		var h pdu.Header
		(&pdu.R2T{
			LUN: c.task.LUN, Tag: c.tag, TransferTag: tag, SN: c.r2tSN,
			BufferOffset: uint32(c.asked), DesiredLength: uint32(n),
		}).Put(&h)
		c.asked += n
		c.r2tSN++
		c.inFlight++
		s.stats.r2ts.Add(1)
		s.fed.Store(sinceEpoch())
		s.out.post(item{header: h})
	}
}

// spoiledBy rejects the Data-Out in s.header if it is out of sequence, and condemns its command: the rest of its data is
// dropped, and when that has come the command ends in CHECK CONDITION (RFC 7143 §11.17.1). It is never executed.
func (s *Session) spoiledBy(c *command, outOfSequence bool) bool {
	if !outOfSequence {
		return false
	}
	if !s.warned { // once: nobody is to fill the log
		s.warned = true
		s.log.Warn("data of a write out of sequence: the command is failed", "task", c.tag, "number", s.header.DataSN(), "offset", s.header.BufferOffset())
	}
	s.mu.Lock()
	c.spoiled, c.want = true, 0
	// ABORTED COMMAND, WRITE ERROR - NOT ENOUGH UNSOLICITED DATA (§11.4.7.2): initiators repeat the command.
	c.refused = checkCondition(0x0B, 0x0C, 0x0D)
	s.mu.Unlock()
	s.reject(pdu.RejectProtocol)
	return true
}

// dataOut takes in a Data-Out. One that is out of sequence fails its command; one that belongs nowhere, or does not keep
// to what was asked for, ends the connection. Either way the command never ends in GOOD.
func (s *Session) dataOut(h *pdu.Header) error {
	if h.TransferTag() == pdu.NoTag {
		return s.unsolicitedDataOut(h)
	}
	tag, n := h.TransferTag(), h.DataLength()
	s.mu.Lock()
	t, ok := s.transfers[tag]
	_, orphan := s.orphans[tag]
	if orphan && h.Final() {
		delete(s.orphans, tag)
	}
	s.mu.Unlock()
	switch {
	case orphan:
		return s.reader.Discard(n)
	case !ok:
		return protocolError("Data-Out for transfer tag %d, which was not given", tag)
	case h.Tag() != t.c.tag:
		return protocolError("Data-Out for transfer tag %d of task %d names task %d", tag, t.c.tag, h.Tag())
	case t.c.spoiled || s.spoiledBy(t.c, h.DataSN() != t.dataSN || int64(h.BufferOffset()) != int64(t.offset+t.got)):
		if h.Final() {
			s.mu.Lock()
			c := t.c
			s.answered(tag, t)
			if c.inFlight--; c.inFlight == 0 {
				s.start(c)
			}
			s.mu.Unlock()
		}
		return s.reader.Discard(n)
	case n > t.length-t.got:
		return protocolError("%d bytes for task %d, %d were left of the R2T", n, t.c.tag, t.length-t.got)
	case h.Final() != (t.got+n == t.length):
		return protocolError("F bit of task %d after %d bytes of an R2T of %d", t.c.tag, t.got+n, t.length)
	}
	if err := s.receive(t.c, n, t.offset+t.got); err != nil {
		return err
	}
	s.fed.Store(s.live.last.Load())
	t.got += n
	t.dataSN++
	if t.got < t.length {
		return nil
	}
	c := t.c
	s.mu.Lock()
	defer s.mu.Unlock()
	c.inFlight--
	c.arrived += t.length
	s.answered(tag, t)
	if c.arrived == c.want {
		s.start(c)
		return nil
	}
	s.solicit(c)
	return nil
}

func (s *Session) unsolicitedDataOut(h *pdu.Header) error {
	n := h.DataLength()
	s.mu.Lock()
	c, ok := s.tasks[h.Tag()]
	expecting := ok && c.phase == collecting
	s.mu.Unlock()
	if !ok {
		// Of a command that was outside the window, rejected or aborted meanwhile.
		s.stats.ignored.Add(1)
		return s.reader.Discard(n)
	}
	limit := min(s.params.FirstBurst, c.edtl)
	switch {
	case !expecting:
		return protocolError("unsolicited data for task %d after its end", c.tag)
	case c.spoiled || s.spoiledBy(c, h.DataSN() != c.dataSN || int64(h.BufferOffset()) != int64(c.got)):
		if h.Final() {
			s.unsolicitedDone(c)
		}
		return s.reader.Discard(n)
	case n > limit-c.got:
		return protocolError("unsolicited data of task %d beyond the first burst of %d bytes", c.tag, limit)
	case c.got+n == limit && !h.Final():
		return protocolError("no F bit at the end of the first burst of task %d", c.tag)
	}
	if err := s.receive(c, n, c.got); err != nil {
		return err
	}
	s.fed.Store(s.live.last.Load())
	c.got += n
	c.dataSN++
	if h.Final() {
		s.unsolicitedDone(c)
	}
	return nil
}
