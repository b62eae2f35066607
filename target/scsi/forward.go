package scsi

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"sanctuary/blockstore/block"
)

// How a command that this node took in is carried out by the node that owns the LUN.
//
// A command over this path may be late: the initiator has given it up, has sent it again over another path and has gone on
// from there. It must not land then. Three things see to that. The owner's Backend refuses it if the LUN was owned elsewhere
// since it was accepted (its fence). The owner refuses it if it was accepted more than askFor ago. And a command that is given
// up here, for whatever reason, is answered (or counted as aborted) only when the owner has confirmed that it has ended there
// or never will begin.
//
// The age needs no clocks that agree. The asker holds a ticket, a moment of the owner's clock that lay before the ticket
// arrived. So the command's age is at most what has passed on the owner's clock since the ticket, plus what had passed on the
// asker's clock between accepting the command and the ticket's arrival.

const (
	// askFor is how old a command may be when the owner begins it. Initiators give a command up after seconds.
	askFor = time.Second
	// ticketFor is how old a ticket may be before another is asked for: older ones make commands look older than they are.
	ticketFor = askFor / 4
	// unsureFor bounds how long it is tried to find out what became of a command whose answer was lost.
	unsureFor = 5 * time.Second
	// catchUpFor bounds the wait for this node to learn the state that the owner's answer was based on, so that the initiator's
	// next command sees it. It is behind by one message of the log as a rule.
	catchUpFor = 250 * time.Millisecond
	// catchUpStep is how often it looks.
	catchUpStep = time.Millisecond
)

// heldTicket is a ticket and when it arrived here.
type heldTicket struct {
	ticket
	at time.Time
}

// errAskAgain: the owner may have carried out a change, which asking again under the same operation will tell. errTooLate: it
// has not, and will not.
var (
	errAskAgain = fmt.Errorf("the owner's answer was lost: %w", block.ErrUnavailable)
	errTooLate  = statusError(StatusBusy)
)

// forward asks the owner to carry out the command, in pieces if its data is long.
func (r *request) forward() error {
	if r.cmd.pieces {
		rng, err := r.transferSpan()
		if err != nil {
			return err
		}
		if rng.Bytes() > maxAskData {
			return r.forwardPieces(rng)
		}
	}
	p, err := r.askCommand(&r.CDB, r.ExpectedIn, r.ExpectedOut, r.DataOut)
	if err != nil {
		return err
	}
	r.TransferIn, r.TransferOut = p.transferIn, p.transferOut
	if len(p.dataIn) > 0 {
		r.DataIn = r.Buffers.Get(r.ctx, len(p.dataIn))
		copy(r.DataIn, p.dataIn)
	}
	return p.err()
}

// forwardPieces forwards a command on a range as several on its parts. Such commands promise nothing about the whole being
// done at once.
func (r *request) forwardPieces(rng block.Range) error {
	lba, _ := extent(&r.CDB)
	size := int64(r.geo.LogicalBlockBytes)
	var (
		out   []byte
		total int64
		err   error
	)
	switch want := r.cmd.wants(r.unit, &r.CDB); {
	case want == 0: // it reads
		n := min(rng.Bytes(), int64(r.ExpectedIn))
		if total = (n + size - 1) / size * size; total > 0 {
			r.DataIn = r.Buffers.Get(r.ctx, int(total))
		}
	case r.cmd.writes:
		out, err = r.clamp(want)
	default:
		out, err = r.exactly(want)
	}
	if err != nil {
		return err
	}
	total = max(total, int64(len(out)))
	for done := int64(0); done < total; {
		n := min(total-done, maxAskData)
		cdb := r.CDB
		setExtent(&cdb, lba+uint64(done/size), uint64(n/size))
		var p *reply
		if out == nil {
			p, err = r.askCommand(&cdb, int(n), 0, nil)
		} else {
			p, err = r.askCommand(&cdb, 0, int(n), out[done:done+n])
		}
		if err == nil {
			err = p.err()
		}
		var sense *Sense
		if errors.As(err, &sense) && sense.Key == Miscompare && sense.HasInfo {
			whole := *sense
			whole.Info += uint64(done) // counts from the start of the transfer
			err = &whole
		}
		if err != nil {
			if done > 0 && r.worthWaiting(err) {
				return statusError(StatusBusy) // a part has been done: the initiator begins again, not we
			}
			return err
		}
		if out == nil {
			if int64(len(p.dataIn)) != n {
				return fmt.Errorf("%w: %d bytes instead of %d", errAskDamaged, len(p.dataIn), n)
			}
			copy(r.DataIn[done:], p.dataIn)
		}
		done += n
	}
	if out == nil {
		r.TransferIn = rng.Bytes()
		if r.DataIn != nil {
			r.DataIn = r.DataIn[:min(len(r.DataIn), r.ExpectedIn)]
		}
	}
	return nil
}

// setExtent is the inverse of extent for CDBs of 10, 12 and 16 bytes.
func setExtent(cdb *[16]byte, lba, blocks uint64) {
	switch cdb[0] >> 5 {
	case 1, 2:
		binary.BigEndian.PutUint32(cdb[2:], uint32(lba))
		binary.BigEndian.PutUint16(cdb[7:], uint16(blocks))
	case 4:
		binary.BigEndian.PutUint64(cdb[2:], lba)
		binary.BigEndian.PutUint32(cdb[10:], uint32(blocks))
	case 5:
		binary.BigEndian.PutUint32(cdb[2:], uint32(lba))
		binary.BigEndian.PutUint32(cdb[6:], uint32(blocks))
	}
}

// err is the outcome of an answered command.
func (p *reply) err() error {
	switch {
	case p.sense != nil:
		return p.sense
	case p.status != StatusGood:
		return statusError(p.status)
	}
	return nil
}

// askCommand has the owner carry out one command and returns its reply. Errors that are worthWaiting say that it may be asked
// again: nothing was done, or (errAskAgain) it is a change that is made once however often it is asked for.
func (r *request) askCommand(cdb *[16]byte, expectedIn, expectedOut int, dataOut []byte) (*reply, error) {
	if len(dataOut) > maxAskOut {
		return nil, senseInvalidField // no command that is not done in pieces takes as much
	}
	operation := r.operation
	if r.cmd.access == throughOwner && operation == 0 {
		r.operation = rand.Uint64()
		operation = r.operation
	} else if operation == 0 {
		operation = rand.Uint64()
	}
	a := &ask{
		kind: askCommand, operation: operation, limit: uint32(min(max(expectedIn, 0), maxAskData)), nexus: r.name(),
		session: r.Nexus.units.session, fence: r.Fence, cdb: *cdb, dataOut: dataOut,
	}
	a.expectedIn, a.expectedOut = a.limit, uint32(expectedOut)
	if r.began != nil {
		a.kind, a.began = askPiece, *r.began
	}
	p, err := r.unit.ask(r.ctx, a, r.accepted)
	switch {
	case err != nil && (errors.Is(err, block.ErrUnavailable) || errors.Is(err, block.ErrNotOwner)):
		return nil, err
	case err != nil: // it may have been done
		if p, err = r.lost(a, err); err != nil {
			return nil, err
		}
	}
	switch p.verdict {
	case nothingDone:
		return nil, block.ErrUnavailable
	case tooLate:
		if time.Since(r.accepted) < askFor/2 {
			return nil, block.ErrUnavailable // by the ticket of another owner
		}
		return nil, errTooLate
	case endedEarly:
		return nil, statusError(StatusTaskAborted)
	case unresolved:
		if r.cmd.access == throughOwner {
			return nil, errAskAgain
		}
		return nil, block.ErrUnknown
	}
	r.unit.catchUp(r.ctx, p.version)
	return p, nil
}

// lost decides what to do about a command whose answer never came, or finds the answer out.
func (r *request) lost(a *ask, cause error) (*reply, error) {
	if r.cmd.access == throughOwner && r.ctx.Err() == nil {
		return nil, errAskAgain
	}
	p, ended, undone := r.unit.disown(r.ctx, a)
	if p != nil {
		return p, nil
	}
	r.unsure = r.unsure || !ended || !undone && r.comparesAndWrites()
	if !ended {
		r.unit.cfg.Log.Warn("a command was given up that the owner may still carry out", "lun", r.unit.cfg.Identity.Name,
			"command", r.cmd.name, "initiator", a.nexus.Initiator, "error", cause)
	}
	if err := r.ctx.Err(); err != nil {
		return nil, err
	}
	if undone {
		return nil, statusError(StatusBusy)
	}
	return nil, block.ErrUnknown
}

// disown returns once it is certain that the owner is not, and never will be, at work on what was asked: ended; and whether it is certain besides that it
// has done nothing. If the owner knows how it has ended, that is the outcome. It tries for unsureFor, also if ctx has ended.
func (u *Unit) disown(ctx context.Context, a *ask) (outcome *reply, ended, undone bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unsureFor)
	defer cancel()
	for {
		access := u.cfg.Access()
		if access.LocalState() == ActiveOptimized {
			// Whoever was asked does not own the LUN any more: the Backend's fence ends what it had begun.
			return nil, true, false
		}
		one, done := context.WithTimeout(ctx, unsureFor/5)
		b, err := u.cfg.AskOwner(one, (&ask{kind: askCancel, operation: a.operation, nexus: a.nexus, ticket: a.ticket, cdb: a.cdb}).encode())
		done()
		if err == nil {
			if p, err := decodeReply(b); err == nil && p.verdict == answered && p.response != FunctionRejected {
				if p.response == functionOutcome {
					return p, true, false
				}
				return nil, true, p.response == FunctionComplete
			}
		}
		if !pause(ctx, accessPoll) {
			return nil, false, false
		}
	}
}

// pause waits, and says whether ctx has not ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// ask sends a request to the owner, with a ticket that is fresh. accepted is when what it asks for was accepted here.
func (u *Unit) ask(ctx context.Context, a *ask, accepted time.Time) (*reply, error) {
	held := u.ticket.Load()
	if held == nil || time.Since(held.at) > ticketFor {
		p, err := u.exchange(ctx, &ask{kind: askTicket})
		if err != nil {
			return nil, fmt.Errorf("%w: no ticket: %w", block.ErrUnavailable, withoutUnknown(err))
		}
		if p.verdict != answered {
			return nil, block.ErrUnavailable
		}
		held = u.ticket.Load()
	}
	a.ticket, a.elapsed = held.ticket, max(0, held.at.Sub(accepted))
	return u.exchange(ctx, a)
}

// withoutUnknown keeps an error's text: a ticket that did not come does no harm.
func withoutUnknown(err error) error { return errors.New(err.Error()) }

// exchange sends a request and reads the answer, keeping the ticket that comes with it. What cannot be read counts as lost.
func (u *Unit) exchange(ctx context.Context, a *ask) (*reply, error) {
	if u.cfg.AskOwner == nil {
		return nil, block.ErrNotOwner
	}
	b, err := u.cfg.AskOwner(ctx, a.encode())
	if err != nil {
		return nil, err
	}
	p, err := decodeReply(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", block.ErrUnknown, err)
	}
	u.ticket.Store(&heldTicket{p.ticket, time.Now()})
	return p, nil
}

// hearOwner asks whether the owner is there, and learns the newest state of the unit.
func (u *Unit) hearOwner(ctx context.Context) error {
	p, err := u.exchange(ctx, &ask{kind: askTicket})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil || p.verdict != answered:
		return senseTransition
	}
	u.catchUp(ctx, p.version)
	return nil
}

// catchUp waits until this node knows a version of the unit's state, within limits.
func (u *Unit) catchUp(ctx context.Context, version uint64) {
	if u.cfg.Backend.State().Version >= version {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, catchUpFor)
	defer cancel()
	for u.cfg.Backend.State().Version < version && pause(ctx, catchUpStep) {
	}
}
