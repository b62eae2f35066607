package scsi

import (
	"context"
	"errors"

	"sanctuary/blockstore/block"
)

// What an initiator is told of a command of which it is not known, or not in time, whether it has been done.

// finish ends a request that has come to that outcome, and says whether it is to be told to nobody because the task was aborted. A COMPARE AND WRITE
// that was done is told all the same: who heard nothing of it would do it again, and find its own data there. To repeat any other write does no harm.
func (r *request) finish(err error) (aborted bool) {
	r.kept = err == nil && r.comparesAndWrites()
	ended := errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
	r.unsure = r.unsure || r.cmd != nil && r.cmd.once && (errors.Is(err, block.ErrUnknown) || r.doubt && ended)
	return r.end() && !r.kept
}

// open says whether a command that must not be done twice has ended and nobody knows whether it has been done. BUSY would be a promise that it has
// not (SAM-5 §5.3.1), upon which initiators repeat it by themselves and fail by their own deed: ATS with a miscompare, PREEMPT with RESERVATION
// CONFLICT, for the key is gone. ABORTED COMMAND leaves it open what has been done (SPC-4 r37 table 27), so whoever asked looks: at the block it
// compared with, at the keys. Linux gives CHECK CONDITION to passed-through commands back without a repetition, and since 6.5 does not repeat
// 0B/2E/02 in any.
func (r *request) open(err error) bool {
	if err == nil || r.cmd == nil || !r.cmd.once {
		return false
	}
	switch {
	case errors.Is(err, block.ErrUnknown), errors.Is(err, context.DeadlineExceeded):
		return true
	case errors.Is(err, context.Canceled): // a Backend has done nothing then, but of a change that is made there may be more to do
		return r.unsure || r.cmd.access == throughOwner && r.operation != 0
	}
	// The last attempt has done nothing; of those before it says nothing.
	return r.doubt && (errors.Is(err, block.ErrFenced) || errors.Is(err, statusError(StatusBusy)))
}

func (r *request) comparesAndWrites() bool { return r.cmd != nil && r.cmd.opcode == opCompareAndWrite }
