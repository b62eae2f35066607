package session

import (
	"sync/atomic"
	"time"
)

// counters are raised by the goroutine that has the command or PDU anyway, and read at any time.
type counters struct {
	commands, bytesIn, bytesOut, r2ts, rejects, ignored, crowded, aborted, relieved, pings, digestErrors, pdusIn, pdusOut atomic.Uint64

	lastCommand atomic.Int64 // nanoseconds since epoch; 0: none yet
}

// Stats is what a session has done so far.
type Stats struct {
	Commands uint64 `json:"commands"`  // SCSI commands taken in
	BytesIn  uint64 `json:"bytes_in"`  // Data-Out received
	BytesOut uint64 `json:"bytes_out"` // Data-In sent
	R2Ts     uint64 `json:"r2ts"`      // Ready To Transfer sent
	Rejects  uint64 `json:"rejects"`   // PDUs rejected
	Ignored  uint64 `json:"ignored"`   // PDUs outside the window, or data of tasks that are no more
	Crowded  uint64 `json:"crowded"`   // commands answered with TASK SET FULL for want of memory
	Aborted  uint64 `json:"aborted"`   // commands aborted while they ran
	PDUsIn   uint64 `json:"pdus_in"`
	PDUsOut  uint64 `json:"pdus_out"`

	Outstanding  int    `json:"outstanding"`   // commands and task management functions not yet answered, now
	LongestQueue int    `json:"longest_queue"` // most of them there ever were
	DigestErrors uint64 `json:"digest_errors"` // PDUs damaged on the way; each ends the connection
	Pings        uint64 `json:"pings"`         // sent to an initiator that had been silent
	Relieved     uint64 `json:"relieved"`      // times the reader was kept by a slow command and replaced
	// SinceCommand is how long ago the last SCSI command came, in seconds; -1 if none has.
	SinceCommand float64 `json:"since_command_seconds"`
}

// Stats returns the counters of this moment.
func (s *Session) Stats() Stats {
	s.mu.Lock()
	outstanding, longest := len(s.tasks), s.longest
	s.mu.Unlock()
	c := &s.stats
	since := -1.0
	if last := c.lastCommand.Load(); last != 0 {
		since = max(0, time.Duration(sinceEpoch()-last).Seconds())
	}
	return Stats{
		Commands: c.commands.Load(), BytesIn: c.bytesIn.Load(), BytesOut: c.bytesOut.Load(), R2Ts: c.r2ts.Load(),
		Rejects: c.rejects.Load(), Ignored: c.ignored.Load(), Crowded: c.crowded.Load(), Aborted: c.aborted.Load(),
		PDUsIn: c.pdusIn.Load(), PDUsOut: c.pdusOut.Load(), Outstanding: outstanding, LongestQueue: longest,
		DigestErrors: c.digestErrors.Load(), Pings: c.pings.Load(), Relieved: c.relieved.Load(), SinceCommand: since,
	}
}
