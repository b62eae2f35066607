package scsi

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/target/reserve"
)

// Operation codes of reservations.
const (
	opReserve6  = 0x16
	opRelease6  = 0x17
	opReserve10 = 0x56
	opRelease10 = 0x57
)

// drainFor bounds the wait for commands that were let in before a reservation that shuts them out. None waits for longer
// than a move of ownership takes; one that does is an EXTENDED COPY, which looks at reservations between its pieces.
const drainFor = 2 * time.Second

// persistentReserveIn is PERSISTENT RESERVE IN (SPC-4 r37 §6.15).
func persistentReserveIn(r *request) error {
	now := r.unit.standing()
	if now.err != nil {
		return senseTargetFailure
	}
	t := &now.state.reservations
	var data []byte
	switch r.CDB[1] & 0x1F {
	case 0x00:
		data = t.Keys()
	case 0x01:
		data = t.Reservation()
	case 0x02:
		data = t.Capabilities()
	default:
		data = t.FullStatus()
	}
	if err := r.unit.cfg.Backend.Confirm(r.ctx); err != nil {
		return err
	}
	return r.reply(data, int(binary.BigEndian.Uint16(r.CDB[7:])))
}

// reserveOutList is the Data-Out of PERSISTENT RESERVE OUT; none if it is longer than any list that is read.
func reserveOutList(_ *Unit, cdb *[16]byte) int64 {
	n := int64(binary.BigEndian.Uint32(cdb[5:]))
	if n > reserve.MaxListBytes {
		return 0
	}
	return n
}

// persistentReserveOut is PERSISTENT RESERVE OUT (SPC-4 r37 §6.16). GOOD means that the change is in the LUN's log.
func persistentReserveOut(r *request) error {
	want := int64(binary.BigEndian.Uint32(r.CDB[5:]))
	r.TransferOut = reserveOutList(r.unit, &r.CDB)
	switch {
	case want > reserve.MaxListBytes:
		return senseListLength
	case int64(r.ExpectedOut) < want:
		return senseBadTransfer
	case int64(len(r.DataOut)) < want:
		return senseShortData
	}
	req, err := reserve.ParseOut(r.CDB[1]&0x1F, r.CDB[2], r.DataOut[:want])
	if err != nil {
		return refusal(err)
	}
	return r.changeReservations(func(t reserve.Table) (reserve.Change, error) { return t.Out(r.name(), req, r.access.ports()) })
}

// ports returns the relative identifiers of all target ports.
func (a *Access) ports() []uint16 {
	var all []uint16
	for _, g := range a.Groups {
		all = append(all, g.Ports...)
	}
	return all
}

// reserveLegacy is RESERVE (6) and (10), releaseLegacy RELEASE (6) and (10), for the whole unit (SPC-2 r20 §7.21, §7.16). Extents
// and third parties are refused by their bits in the CDB.
func reserveLegacy(r *request) error {
	return r.changeReservations(func(t reserve.Table) (reserve.Change, error) {
		return t.Reserve(r.name(), r.Nexus.units.session)
	})
}

func releaseLegacy(r *request) error {
	return r.changeReservations(func(t reserve.Table) (reserve.Change, error) { return t.Release(r.name()) })
}

// changeReservations makes a change and returns once it is kept, and once what it shuts out has ended.
func (r *request) changeReservations(decide func(reserve.Table) (reserve.Change, error)) error {
	if r.operation == 0 {
		r.operation = rand.Uint64()
	}
	var made reserve.Change
	change := func() (bool, error) {
		return r.unit.change(r.ctx, r.Fence, r.operation, func(s *unitState) (bool, error) {
			c, err := decide(s.reservations)
			if err != nil {
				return false, refusal(err)
			}
			made = c
			s.adopt(c)
			return c.Changed, nil
		})
	}
	again, err := change()
	if err == statusError(StatusReservationConflict) && r.unit.releaseOrphan(r.ctx, r.Fence, r.unit.standing()) {
		again, err = change()
	}
	if err != nil {
		return err
	}
	if again { // what the change made necessary may not have ended when the answer was lost
		err = r.unit.awaitAborted(r.ctx, r)
	} else {
		err = r.unit.abortNexuses(r.ctx, made.Abort, r)
	}
	if err != nil {
		return unsettled(err)
	}
	// Also if nothing has changed: the command that changed it may have been cancelled while it waited.
	now := r.unit.standing()
	r.unit.drain(r.ctx, &now.state.reservations, r)
	return r.ctx.Err()
}

// unsettled makes an unknown outcome of errUnsure, so that the change is asked for again. Then every task has ended, and the owner
// confirms that it is the owner (Unit.change): what tasks have proposed is in its log by then, before whatever the initiator does next, or
// never will be.
func unsettled(err error) error {
	if errors.Is(err, errUnsure) {
		return fmt.Errorf("%w: %w", block.ErrUnknown, err)
	}
	return err
}

// awaitAborted waits for the tasks of the unit that are aborted already, but for one.
func (u *Unit) awaitAborted(ctx context.Context, but *request) error {
	var all []*request
	for _, t := range u.targets() {
		all = append(all, t.mark(func(_ *Nexus, r *request) bool { return r != but && r.unit == u && r.aborted }, fateOpen)...)
	}
	return await(ctx, all)
}

// refusal turns what package reserve refuses with into what the initiator gets.
func refusal(err error) error {
	var refused *reserve.Refusal
	switch {
	case errors.Is(err, reserve.ErrConflict):
		return statusError(StatusReservationConflict)
	case errors.As(err, &refused):
		return &Sense{Key: IllegalRequest, Code: refused.Code}
	}
	return err
}

// abortNexuses ends the tasks of nexuses, but for one, and waits until they have ended. Whose data is still coming is ended too.
func (u *Unit) abortNexuses(ctx context.Context, nexuses []reserve.Nexus, but *request) error {
	if len(nexuses) == 0 {
		return nil
	}
	running, _ := u.endTasks(func(n *Nexus) bool { return slices.Contains(nexuses, n.units.name) }, ending{era: u.cut().era}, but)
	return await(ctx, running)
}

// drain waits, within drainFor, for the tasks on this node that began before the reservations became what they are, and that
// these do not allow. They are not aborted (SPC-4 r37 §5.13.5 lets them end); but what has been answered GOOD before may rely
// on it that they do not change the medium any more.
func (u *Unit) drain(ctx context.Context, t *reserve.Table, but *request) {
	ctx, cancel := context.WithTimeout(ctx, drainFor)
	defer cancel()
	var tasks []*request
	for _, target := range u.targets() {
		tasks = append(tasks, target.mark(func(n *Nexus, r *request) bool {
			return r != but && (r.unit == u || r.reaches(u)) && r.cmd != nil && r.cmd.access == activeOnly && !t.Allowed(n.units.name).Allow(r.cmd.class)
		}, fateOpen)...)
	}
	_ = await(ctx, tasks)
}

// PurgeKind says what an operator removes.
type PurgeKind uint8

// The kinds of Purge.
const (
	PurgeAll       PurgeKind = 1 // every registration and reservation, as CLEAR does
	PurgeKey       PurgeKind = 2 // the registrations with Purge.Key, as PREEMPT does
	PurgeInitiator PurgeKind = 3 // the registrations and the RESERVE of Purge.Initiator
	purgeSession   PurgeKind = 4 // the RESERVE of a session that has ended
	purgeSilent    PurgeKind = 5 // that of a session whose node does not answer: it may still be there, and is told
)

// Purge chooses registrations to remove, for instance of a host that is gone for good. Those who lose something get the unit
// attentions that CLEAR or PREEMPT would cause.
type Purge struct {
	What      PurgeKind
	Key       uint64
	Initiator string // iSCSI name
}

// PurgeReservations removes registrations and reservations, on whatever node owns the LUN, and returns how many it removed.
// Errors: block.ErrUnavailable and its like if there is no owner.
func (u *Unit) PurgeReservations(ctx context.Context, p Purge) (int, error) {
	if p.What < PurgeAll || p.What > PurgeInitiator {
		return 0, fmt.Errorf("purge of kind %d", p.What)
	}
	return u.purge(ctx, manageFor, p, reserve.Nexus{}, 0)
}

// purge does it on the owner, or asks the owner.
func (u *Unit) purge(ctx context.Context, limit time.Duration, p Purge, of reserve.Nexus, session uint64) (n int, err error) {
	accepted, operation := time.Now(), rand.Uint64()
	err = u.onOwner(ctx, limit, func(ctx context.Context) error {
		access := u.cfg.Access()
		if access.LocalState() == ActiveOptimized {
			removed, err := u.purgeHere(ctx, operation, u.cfg.Backend.Fence(), p, of, session)
			n = max(n, removed) // none if it had been done the first time
			return err
		}
		a := &ask{kind: askPurge, operation: operation, fence: u.cfg.Backend.Fence(), purge: p, nexus: of, session: session}
		r, err := u.ask(ctx, a, accepted)
		switch {
		case err != nil:
			return err
		case r.verdict == unresolved:
			return errAskAgain
		case r.verdict != answered:
			return block.ErrUnavailable
		case r.err() != nil:
			return r.err()
		}
		n = max(n, int(r.purged))
		u.catchUp(ctx, r.version)
		return nil
	})
	return n, err
}

// purgeHere removes what is chosen; this node owns the LUN. Tasks of those who lose a registration are aborted.
func (u *Unit) purgeHere(ctx context.Context, operation uint64, fence block.Fence, p Purge, of reserve.Nexus, session uint64) (int, error) {
	var made reserve.Change
	removed := 0
	_, err := u.change(ctx, fence, operation, func(s *unitState) (bool, error) {
		before := s.reservations
		switch p.What {
		case PurgeAll:
			made = before.ClearAll()
		case PurgeKey:
			made = before.Purge(func(r reserve.Registration) bool { return r.Key == p.Key }, false)
		case PurgeInitiator:
			l := before.Legacy()
			made = before.Purge(func(r reserve.Registration) bool { return r.Nexus.Initiator == p.Initiator }, l != nil && l.By.Initiator == p.Initiator)
		case purgeSession, purgeSilent:
			made = reserve.Change{Table: before}
			if l := before.Legacy(); l != nil && l.By == of && l.Session == session {
				made = before.Drop()
				if p.What == purgeSilent {
					made.Attentions = []reserve.Attention{{Nexus: of, Code: reserve.ReservationsReleased}}
				}
			}
		default:
			return false, fmt.Errorf("purge of kind %d", p.What)
		}
		removed = len(before.Registrations()) - len(made.Table.Registrations())
		if before.Legacy() != nil && made.Table.Legacy() == nil {
			removed++
		}
		s.adopt(made)
		return made.Changed, nil
	})
	if err != nil {
		return 0, err
	}
	return removed, unsettled(u.abortNexuses(ctx, made.Abort, nil))
}

// Reservations is a unit's reservations at one moment.
type Reservations struct {
	Table reserve.Table
	// Version counts the changes of the unit's state.
	Version uint64
}

// Reservations returns the reservations as this node knows them: on the owner the newest. An error says why they cannot be read.
func (u *Unit) Reservations() (Reservations, error) {
	now := u.standing()
	return Reservations{Table: now.state.reservations, Version: now.version}, now.err
}
