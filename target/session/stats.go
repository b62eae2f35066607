package session

import "sync/atomic"

type counters struct {
	commands, bytesIn, bytesOut, r2ts, rejects, ignored, crowded, aborted, relieved, pdusIn, pdusOut atomic.Uint64
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
}

// Stats returns the counters of this moment.
func (s *Session) Stats() Stats {
	c := &s.stats
	return Stats{
		c.commands.Load(), c.bytesIn.Load(), c.bytesOut.Load(), c.r2ts.Load(), c.rejects.Load(), c.ignored.Load(),
		c.crowded.Load(), c.aborted.Load(), c.pdusIn.Load(), c.pdusOut.Load(),
	}
}
