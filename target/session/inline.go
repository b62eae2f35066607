package session

import (
	"sync/atomic"
	"time"

	"sanctuary/target/scsi"
)

// A short command is executed by the reader itself: on memory it takes less time than waking a worker. Three rules keep
// that from being heard by anybody:
//
//   - Only commands that bring or take little data, and only while commands of their kind have been quick lately. A disk
//     that must be waited for, a LUN that is replicated, or a table that is held elsewhere soon leaves its commands to the
//     workers, which run side by side. A write besides only when nothing else is at work: together they share a log entry.
//   - If one takes long after all, another goroutine takes the reader's place within 2 * patience, so that pings, task
//     management and the commands for other LUNs are heard. The goroutine whose place was taken finishes its command as a
//     worker does.
//   - Answers of commands that arrived together are held back and leave together, but never while the reader waits for the
//     initiator or for memory.
const (
	inlineBytes = 64 << 10              // most data of a command the reader executes
	quickTime   = 40 * time.Microsecond // mean time beyond which commands of a kind go to the workers
	slowTime    = time.Millisecond      // what one command counts for at most in the mean
	probeEvery  = 256                   // one in so many slow commands is executed by the reader, to see whether they are still slow
	patience    = 5 * time.Millisecond  // twice seen at the same command: the reader is replaced
	watchIdle   = 50                    // looks without a new command after which the watch sleeps
	maxHeld     = 256 << 10             // bytes of Data-In held back
)

// pace is how long commands of one kind take. The reader's own.
type pace struct {
	mean time.Duration
	slow int // commands left to the workers since the last probe
}

// quick says whether the next command of the kind should be executed by the reader.
func (p *pace) quick() bool {
	if p.mean <= quickTime {
		return true
	}
	p.slow++
	if p.slow < probeEvery {
		return false
	}
	p.slow = 0
	return true
}

func (p *pace) note(took time.Duration) {
	p.mean += (min(took, slowTime) - p.mean) / 8
	if p.mean > 2*quickTime && p.slow == 0 && took <= quickTime {
		p.slow = probeEvery - 8 // a probe was quick: look again soon
	}
}

// inliner is the reader's part in executing commands.
type inliner struct {
	next        *command // set by dispatch: to be executed once the PDU has been read
	read, write pace
	heldBytes   int

	turn uint64 // of the newest command executed by a reader
	// away is the turn the reader is at, 0 while it reads. Whoever changes it from a turn to 0 is the reader from then on.
	away atomic.Uint64

	watching atomic.Bool
	timer    *time.Timer
	seen     uint64 // the watch's own: turn at its last look
	newest   atomic.Uint64
	idle     int
}

// suits says whether the reader should execute c, which is complete; mu is held.
func (s *Session) suits(c *command) bool {
	switch {
	case c.refused != nil || c.manage != nil || s.barriers > 0: // it may be dormant
		return false
	case c.want == 0 && c.task.ExpectedIn > 0 && c.task.ExpectedIn <= inlineBytes:
		return s.inline.read.quick()
	case c.want > 0 && c.want <= inlineBytes:
		return len(s.tasks) == 1 && s.reader.Buffered() == 0 && s.inline.write.quick()
	}
	return false
}

// executeInline executes c in the place of a worker. It returns false if somebody else has become the reader meanwhile: then
// nothing that belongs to the reader may be touched any more.
func (s *Session) executeInline(c *command) (stillReader bool) {
	in := &s.inline
	kind := &in.read
	if c.want > 0 {
		kind = &in.write
	}
	hold := false
	if n := c.task.ExpectedIn; s.reader.Buffered() > 0 && in.heldBytes+n <= maxHeld {
		hold = true
		in.heldBytes += n
	} else {
		in.heldBytes = 0
	}
	in.turn++
	turn := in.turn
	if !in.watching.Load() {
		in.watching.Store(true)
		in.timer.Reset(patience)
	}
	in.newest.Store(turn)
	in.away.Store(turn) // from here on nothing of the reader's, until it is known that this still is the reader
	start := sinceEpoch()
	done := s.carryOut(c)
	took := time.Duration(sinceEpoch() - start)
	if done {
		s.finish(c, hold)
	}
	if in.away.CompareAndSwap(turn, 0) {
		kind.note(took)
		return true
	}
	s.out.wake() // the new reader knows nothing of what this one has held back
	return false
}

// watch replaces a reader that has been at one command for too long.
func (s *Session) watch() {
	in := &s.inline
	turn := in.away.Load()
	switch newest := in.newest.Load(); {
	case turn != 0 && turn == in.seen:
		// The old reader is a worker from now on.
		s.workers.Add(1)
		if in.away.CompareAndSwap(turn, 0) {
			s.stats.relieved.Add(1)
			go s.relieve()
		} else {
			s.workers.Done()
		}
		in.seen = 0
	case newest == in.seen:
		in.idle++
	default:
		in.seen, in.idle = newest, 0
	}
	if in.idle < watchIdle {
		in.timer.Reset(patience)
		return
	}
	in.idle = 0
	in.watching.Store(false)
	if in.away.Load() != 0 && in.watching.CompareAndSwap(false, true) {
		in.timer.Reset(patience)
	}
}

// relieve is a reader that takes the place of another.
func (s *Session) relieve() {
	in := &s.inline
	in.read.mean, in.write.mean = max(in.read.mean, 4*quickTime), max(in.write.mean, 4*quickTime)
	in.heldBytes = 0
	s.readOn()
}

// carryOut runs a command to its end, without answering it. It returns false after a panic.
func (s *Session) carryOut(c *command) (done bool) {
	defer func() {
		if !done { // the command has no answer, but others must not wait for it
			s.memory.put(c.bufferKind, c.buffer)
			s.mu.Lock()
			delete(s.tasks, c.tag)
			s.leave(c)
			s.changed.Broadcast()
			s.mu.Unlock()
		}
	}()
	defer s.recoverPanic("worker")
	switch {
	case c.manage != nil:
		c.answer = c.manage()
	case c.refused != nil:
		c.task.Status, c.task.Sense = c.refused.status, c.refused.sense
	default:
		c.task.DataOut = c.buffer[:c.want]
		s.cfg.Executor.Execute(s.ctx, &c.task)
		c.task.DataOut = nil
	}
	if c.buffer != nil {
		s.memory.put(c.bufferKind, c.buffer)
		c.buffer = nil
	}
	return true
}

// finish sends a command's answer, or holds it back for the reader to send with others. The answer is queued before the
// command is seen to have left, so that a task management function that waited for it is answered after it.
func (s *Session) finish(c *command, hold bool) {
	silent := c.manage == nil && c.task.Status == scsi.StatusTaskAborted
	if silent && c.task.DataIn != nil {
		s.memory.put(dataIn, c.task.DataIn)
		c.task.DataIn = nil
	}
	defer s.recoverPanic("worker")
	s.mu.Lock()
	delete(s.tasks, c.tag)
	s.leave(c)
	c.silent = silent
	taken := false
	switch {
	case silent:
		s.stats.aborted.Add(1)
	case c.manage != nil:
		s.out.post(managed(c))
	case hold:
		s.out.hold(item{command: c})
	case len(s.tasks) == 0:
		taken = s.out.takeOver(item{command: c})
	default:
		s.out.post(item{command: c})
	}
	s.changed.Broadcast()
	s.finishLogout()
	s.mu.Unlock()
	if taken {
		s.out.sendTaken()
	}
}

// sendHeld is called before the reader waits for the initiator.
func (s *Session) sendHeld() {
	if s.inline.heldBytes > 0 {
		s.inline.heldBytes = 0
		s.out.wake()
	}
}
