package session

import (
	"slices"

	"sanctuary/target/pdu"
	"sanctuary/target/scsi"
)

// start hands a complete command to a worker, unless it has to wait for older ones; mu is held.
func (s *Session) start(c *command) {
	if !s.hold(c) {
		s.enable(c)
	}
}

// enable hands a command to a worker; mu is held.
//
// ready never fills up, because it holds as many commands as the window and the limit on immediate ones let in, and
// there are as many workers as commands if need be: a command never waits for another one's backend.
func (s *Session) enable(c *command) {
	c.phase = started
	s.ready <- c
	if s.idle > 0 {
		s.idle--
		return
	}
	s.running++
	s.workers.Add(1)
	go s.work()
}

// work executes commands until the session ends. A worker that has nothing to do stays: the next burst needs it again.
func (s *Session) work() {
	defer s.workers.Done()
	for c := range s.ready {
		if s.carryOut(c) {
			s.finish(c, false)
		}
		s.mu.Lock()
		// Counted as idle from here on; start counts it out when it has queued the next command for it.
		s.idle++
		s.mu.Unlock()
	}
}

// managed is the answer to a task management function.
func managed(c *command) item {
	it := item{numbered: true, end: c.end}
	(&pdu.TaskResponse{Response: uint8(c.answer), Tag: c.tag}).Put(&it.header)
	return it
}

// taskRequest carries out a task management function (RFC 7143 §11.5). Commands that are not yet with the Executor are
// dropped here; the Executor ends the others.
func (s *Session) taskRequest(h *pdu.Header) error {
	f := scsi.Function(h.Function())
	lun, referenced := h.LUN(), h.ReferencedTag()
	refCmdSN, cmdSN := h.RefCmdSN(), h.CmdSN()
	c := &command{tag: h.Tag(), immediate: h.Immediate(), phase: started}
	if err := s.reader.Discard(h.DataLength()); err != nil {
		return err
	}
	if c.tag == pdu.NoTag {
		return protocolError("task management with the reserved task tag")
	}
	var match func(*command) bool
	switch f {
	case scsi.AbortTask:
		match = func(o *command) bool { return o.tag == referenced }
	case scsi.AbortTaskSet, scsi.ClearTaskSet, scsi.LogicalUnitReset:
		match = func(o *command) bool { return o.task.LUN == lun }
	case scsi.TargetWarmReset, scsi.TargetColdReset:
		match = func(*command) bool { return true }
	default:
		match = func(*command) bool { return false }
	}
	// On this goroutine: what it accepts from here on comes after the function.
	manage := s.cfg.Executor.Manage(f, s.cfg.Nexus, lun, referenced)
	s.mu.Lock()
	dropped := s.takeUnstarted(func(o *command) bool { return match(o) && (f != scsi.AbortTask || o.task.LUN == lun) })
	var earlier []*command
	for _, o := range s.tasks {
		if o.manage != nil || o.phase < started || !match(o) {
			continue
		}
		earlier = append(earlier, o)
		o.shared = true
		if o.task.LUN == lun || f >= scsi.TargetWarmReset {
			// A worker may not have told the Executor of it yet. It must not begin after the function was carried out.
			o.revoked.Store(true)
		}
	}
	known := len(earlier) > 0 || len(dropped) > 0
	gone := len(dropped) > 0 || f == scsi.AbortTask && !known && s.skip(refCmdSN, cmdSN)
	c.manage = func() scsi.FunctionResponse {
		if f == scsi.AbortTask && len(earlier) == 0 {
			if gone {
				return scsi.FunctionComplete
			}
			return scsi.TaskDoesNotExist
		}
		r := manage(s.ctx)
		s.await(earlier)
		if f == scsi.TargetColdReset && r == scsi.FunctionComplete {
			c.end = ErrColdReset
			if s.cfg.ColdReset != nil {
				s.cfg.ColdReset()
			}
		}
		if f == scsi.AbortTask && r == scsi.TaskDoesNotExist && earlier[0].silent {
			return scsi.FunctionComplete // it was revoked before the Executor had begun it
		}
		return r
	}
	s.tasks[c.tag] = c
	s.longest = max(s.longest, len(s.tasks))
	if c.immediate {
		s.immediate++
	}
	s.start(c)
	s.mu.Unlock()
	s.release(dropped)
	return nil
}

// await returns when none of the given commands is at work any more. One may have ended without the Executor's Manage
// knowing it; the answer must not overtake its status.
func (s *Session) await(earlier []*command) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range earlier {
		for s.tasks[c.tag] == c {
			s.changed.Wait()
		}
	}
}

// takeUnstarted removes the commands the session still has in its own hands and that match; mu is held. The caller
// releases them after it has let go of mu.
func (s *Session) takeUnstarted(match func(*command) bool) []*command {
	var taken []*command
	for tag, c := range s.tasks {
		if c.phase >= started || !match(c) {
			continue
		}
		c.phase = aborted
		delete(s.tasks, tag)
		taken = append(taken, c)
	}
	s.held = slices.DeleteFunc(s.held, func(c *command) bool { return c.phase == aborted })
	for _, c := range taken {
		s.leave(c)
	}
	for tag, t := range s.transfers {
		if t.c.phase == aborted {
			delete(s.transfers, tag)
			if len(s.orphans) >= maxOrphans { // an initiator that never answers R2Ts of what it aborted
				clear(s.orphans)
			}
			s.orphans[tag] = struct{}{}
		}
	}
	if len(taken) > 0 {
		s.changed.Broadcast()
	}
	return taken
}

// leave accounts for a command that has left s.tasks; mu is held.
func (s *Session) leave(c *command) {
	if c.immediate {
		s.immediate--
	}
	if c.attribute >= attributeOrdered {
		s.barriers--
	}
	s.rouse()
	s.retire(c.immediate)
}

func (s *Session) release(taken []*command) {
	for _, c := range taken {
		s.memory.put(c.bufferKind, c.buffer)
		c.buffer = nil
	}
}
