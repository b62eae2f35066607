package scsi

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"sync"
	"sync/atomic"
)

const (
	// maxCopyRecords is how many copies a nexus can ask about; the oldest that has ended makes room. More than can run at once,
	// so that there is always one.
	maxCopyRecords = 2 * maxCopies
	// maxAllCopyRecords is how many there are of all nexuses.
	maxAllCopyRecords = 8 * maxCopyRecords
)

// copyLog is what can be asked about a unit's copies, by nexus and list identifier. It is kept where the copies are done, by the
// owner, and ends with its tenure.
type copyLog struct {
	mu      sync.Mutex
	records []*copyRecord // oldest first
}

// copyRecord is one EXTENDED COPY command.
type copyRecord struct {
	log      *copyLog // nil: nobody can ask about it
	nexus    uint64   // nexusUnits.id
	session  uint64   // and of which login
	id       byte
	segments atomic.Uint32 // processed
	bytes    atomic.Uint64 // written

	wrote bool // something may have been written; only for the command itself

	// Guarded by log.mu.
	ended  bool
	failed bool
	sense  []byte // of the failure, if it had any
}

// begin enters a command. A list identifier that is in use is refused; one whose copy has ended is used anew.
func (l *copyLog) begin(r *request, list *copyList) (*copyRecord, error) {
	record := &copyRecord{nexus: r.Nexus.units.id, session: r.Nexus.units.session, id: list.id}
	if list.usage == copyUnnamed {
		return record, nil
	}
	record.log = l
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := l.find(r.Nexus, list.id); i >= 0 {
		if !l.records[i].ended {
			return nil, senseCopyInProgress
		}
		l.records = slices.Delete(l.records, i, i+1)
	}
	mine := func(c *copyRecord) bool { return c.nexus == record.nexus && c.session == record.session }
	if !l.makeRoom(maxCopyRecords, mine) || !l.makeRoom(maxAllCopyRecords, func(*copyRecord) bool { return true }) {
		return nil, statusError(StatusTaskSetFull)
	}
	l.records = append(l.records, record)
	return record, nil
}

// makeRoom forgets the oldest ended record of a kind if there are most of them; false if none has ended. The caller holds mu.
func (l *copyLog) makeRoom(most int, kind func(*copyRecord) bool) bool {
	n, oldest := 0, -1
	for i, c := range l.records {
		if !kind(c) {
			continue
		}
		if n++; oldest < 0 && c.ended {
			oldest = i
		}
	}
	if n < most {
		return true
	}
	if oldest >= 0 {
		l.records = slices.Delete(l.records, oldest, oldest+1)
	}
	return oldest >= 0
}

// find returns the index of a record, -1 if there is none. The caller holds mu.
func (l *copyLog) find(n *Nexus, id byte) int {
	return slices.IndexFunc(l.records, func(c *copyRecord) bool {
		return c.nexus == n.units.id && c.session == n.units.session && c.id == id
	})
}

// forget takes the record out, as if the command had never come.
func (c *copyRecord) forget() {
	if c.log == nil {
		return
	}
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	c.log.records = slices.DeleteFunc(c.log.records, func(o *copyRecord) bool { return o == c })
}

// end notes how the command ended.
func (c *copyRecord) end(r *request, err error) {
	if c.log == nil {
		return
	}
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	c.ended, c.failed = true, err != nil
	var sense *Sense
	if errors.As(outcomeOf(err, err != nil && r.ctx.Err() != nil, r.perBlock()), &sense) {
		c.sense = appendSense(nil, *sense, r.unit.descriptorSense())
	}
}

// receiveCopyStatus is RECEIVE COPY RESULTS with service action COPY STATUS (SPC-4 r37 §6.24.2). A copy that has ended is
// forgotten when it was reported, unless there are details of a failure left to ask for.
func receiveCopyStatus(r *request) error {
	l := &r.unit.copied
	l.mu.Lock()
	defer l.mu.Unlock()
	i := l.find(r.Nexus, r.CDB[2])
	if i < 0 {
		return senseInvalidField
	}
	c := l.records[i]
	var b [12]byte
	binary.BigEndian.PutUint32(b[:], uint32(len(b)-4))
	switch {
	case c.failed:
		b[4] = 0x02
	case c.ended:
		b[4] = 0x01
	}
	binary.BigEndian.PutUint16(b[5:], uint16(c.segments.Load()))
	count := c.bytes.Load()
	if count > math.MaxUint32 {
		b[7], count = 0x01, count>>10 // in KiB
	}
	binary.BigEndian.PutUint32(b[8:], uint32(min(count, math.MaxUint32)))
	if c.ended && c.sense == nil {
		l.records = slices.Delete(l.records, i, i+1)
	}
	return r.reply(b[:], allocation32(r.CDB[10:]))
}

// failedSegmentDetails is RECEIVE COPY RESULTS with service action FAILED SEGMENT DETAILS (SPC-4 r37 §6.24.5): the sense data of
// a copy that failed, once.
func failedSegmentDetails(r *request) error {
	l := &r.unit.copied
	l.mu.Lock()
	defer l.mu.Unlock()
	i := l.find(r.Nexus, r.CDB[2])
	if i < 0 || l.records[i].sense == nil {
		return senseInvalidField
	}
	c := l.records[i]
	b := make([]byte, 60, 60+len(c.sense))
	b[56] = byte(StatusCheckCondition)
	binary.BigEndian.PutUint16(b[58:], uint16(len(c.sense)))
	b = append(b, c.sense...)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	l.records = slices.Delete(l.records, i, i+1)
	return r.reply(b, allocation32(r.CDB[10:]))
}

// copyOperatingParameters is RECEIVE COPY RESULTS with service action OPERATING PARAMETERS (SPC-4 r37 §6.24.4).
func copyOperatingParameters(r *request) error {
	b := make([]byte, 44, 48)
	b[4] = 0x01 // SNLID: a copy needs no list identifier
	binary.BigEndian.PutUint16(b[8:], maxCopyCSCDs)
	binary.BigEndian.PutUint16(b[10:], maxCopySegments)
	binary.BigEndian.PutUint32(b[12:], maxCopyListBytes)
	binary.BigEndian.PutUint32(b[16:], maxSegmentBytes)
	// No inline data, no held data, no stream devices.
	binary.BigEndian.PutUint16(b[34:], maxCopies)
	b[36], b[37] = maxCopies, copyGranularity
	b[43] = byte(len(copyDescriptors))
	b = append(b, copyDescriptors...)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return r.reply(b, allocation32(r.CDB[10:]))
}

// copyDescriptors are the type codes of the descriptors that are understood, in ascending order.
var copyDescriptors = []byte{segmentBlocks, segmentOffsets, cscdIdentified}

// appendThirdPartyCopy is VPD page 8Fh (SPC-4 r37 §7.8.17): third-party copy descriptors by ascending type.
func appendThirdPartyCopy(dst []byte, _ *request) []byte {
	descriptor := func(kind uint16, body []byte) {
		for len(body)%4 != 0 {
			body = append(body, 0)
		}
		dst = binary.BigEndian.AppendUint16(dst, kind)
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(body)))
		dst = append(dst, body...)
	}
	commands := []byte{0}
	for _, opcode := range []byte{opExtendedCopy, opReceiveCopyResults} {
		rows := table[byOpcode[opcode].from:byOpcode[opcode].to]
		commands = append(commands, opcode, byte(len(rows)))
		for _, c := range rows {
			commands = append(commands, byte(c.action))
		}
	}
	commands[0] = byte(len(commands) - 1)
	descriptor(0x0001, commands)
	parameters := make([]byte, 28)
	binary.BigEndian.PutUint16(parameters[4:], maxCopyCSCDs)
	binary.BigEndian.PutUint16(parameters[6:], maxCopySegments)
	binary.BigEndian.PutUint32(parameters[8:], maxCopyListBytes)
	descriptor(0x0004, parameters)
	descriptor(0x0008, append([]byte{byte(len(copyDescriptors))}, copyDescriptors...))
	descriptor(0x000C, []byte{0, 2, cscdSelf >> 8, cscdSelf & 0xFF})
	general := make([]byte, 32)
	binary.BigEndian.PutUint32(general, maxCopies)
	binary.BigEndian.PutUint32(general[4:], maxCopies)
	binary.BigEndian.PutUint32(general[8:], maxSegmentBytes)
	general[12] = copyGranularity
	descriptor(0x8001, general)
	return dst
}

// copySlots counts the copies that a unit carries out.
type copySlots struct{ used atomic.Int32 }

// enter takes a slot; false if maxCopies are in use.
func (s *copySlots) enter() bool {
	if s.used.Add(1) > maxCopies {
		s.used.Add(-1)
		return false
	}
	return true
}

func (s *copySlots) leave() { s.used.Add(-1) }
