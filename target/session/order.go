package session

import (
	"slices"
	"time"

	"sanctuary/target/scsi"
)

// The order of commands by their task attributes (SAM-5 §8.6). One that is ORDERED begins when every older command for its LUN has ended, one
// that is SIMPLE when every older one that is ORDERED has; both wait for all that are HEAD OF QUEUE, older or younger, which begin at once. Until then a
// complete command is dormant.
//
// Older means that it arrived before in this session, which is all that an initiator can tell: what it knows to have been executed for another
// has ended, and what has not may as well have arrived a moment later. So no count is kept per LUN, and a session with nothing but SIMPLE commands
// pays for one comparison.
//
// What is dormant keeps its data in memory that an older command may be waiting for. It is answered TASK SET FULL then; nothing has been
// done, and the initiator sends it again. One that has been dormant for so long that its initiator may have gone on over another path, and written
// there what must not be overwritten, is BUSY for the same reason.

// Task attributes with an order; see pdu.Header.Attribute. Untagged is SIMPLE (SAM-5 §8.6.1).
const (
	attributeOrdered     = 2
	attributeHeadOfQueue = 3
)

// never is the number of a command that does not exist: no command is younger.
const never = ^uint64(0)

// oldest holds the numbers of the oldest commands for a LUN: of any, of those with an order, of those that wait for memory. One that is HEAD OF QUEUE
// counts as older than all.
type oldest struct{ any, barrier, parked uint64 }

// oldest looks through the commands of the session; mu is held.
func (s *Session) oldest(lun uint64) oldest {
	o := oldest{never, never, never}
	for _, c := range s.tasks {
		if c.task.LUN != lun || c.manage != nil || c.refused != nil {
			continue
		}
		order := c.order
		if c.attribute == attributeHeadOfQueue {
			order = 0
		}
		o.any = min(o.any, order)
		if c.attribute >= attributeOrdered {
			o.barrier = min(o.barrier, order)
		}
		if c.phase == parked {
			o.parked = min(o.parked, order)
		}
	}
	return o
}

// holds says whether c is dormant among them. If it must not be, for the sake of one that waits for memory, it is refused.
func (o oldest) holds(c *command) bool {
	switch {
	case c.attribute == attributeHeadOfQueue, c.attribute == attributeOrdered && o.any >= c.order, c.attribute < attributeOrdered && o.barrier >= c.order:
		return false
	case c.buffer != nil && o.parked < c.order:
		c.refused = &refusal{status: scsi.StatusTaskSetFull}
		return false
	}
	return true
}

// hold keeps a complete command that is dormant, and says whether it is; mu is held.
func (s *Session) hold(c *command) bool {
	if s.barriers == 0 || c.manage != nil || c.refused != nil {
		return false
	}
	if !s.oldest(c.task.LUN).holds(c) {
		if c.refused != nil {
			s.stats.crowded.Add(1)
		}
		return false
	}
	c.phase, c.dormant = dormant, sinceEpoch()
	s.held = append(s.held, c)
	return true
}

// rouse hands what is not dormant any more to workers, the oldest first; mu is held. To be called when a command has ended, or begins to wait
// for memory.
func (s *Session) rouse() {
	if len(s.held) == 0 {
		return
	}
	luns := map[uint64]oldest{}
	var roused []*command
	s.held = slices.DeleteFunc(s.held, func(c *command) bool {
		o, known := luns[c.task.LUN]
		if !known {
			o = s.oldest(c.task.LUN)
			luns[c.task.LUN] = o
		}
		if o.holds(c) {
			return false
		}
		roused = append(roused, c)
		return true
	})
	now := sinceEpoch()
	for _, c := range roused {
		switch {
		case c.refused != nil:
			s.stats.crowded.Add(1)
		case time.Duration(now-c.dormant) > stoodStill:
			c.refused = &refusal{status: scsi.StatusBusy}
		}
		s.enable(c)
	}
}
