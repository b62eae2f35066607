package scsi

import (
	"context"
	"errors"
	"slices"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/target/reserve"
)

// request is a Task while it runs.
type request struct {
	*Task
	ctx    context.Context // ends when the task is aborted; lives as long as Execute
	target *Target
	set    *unitSet
	unit   *Unit // nil: the LUN does not exist
	cmd    *command
	access Access
	geo    block.Geometry

	// known is the state allowed was derived from; nil until then.
	known   *standing
	allowed reserve.Classes

	accepted  time.Time // when the command arrived
	era       uint64    // of the unit, in which it did
	operation uint64    // stands for what the command changes, wherever it is carried out (Unit.change); 0 until needed
	remote    bool      // another node asked for it: it has told the unit attentions, and does the waiting
	began     *ticket   // of a piece of a copy that another node is asked for, see copyUnit.begin
	// unsure: the owner may still be at it, for all that is known here; or what it has decided may yet take effect. Set before done is closed.
	unsure bool
	// doubt: it was asked for, and may have been done; it is asked for again, under the same operation, to find out.
	doubt bool
	// kept: it has been done, and its initiator hears so also if it was aborted meanwhile. Set before done is closed.
	kept bool

	// Guarded by Nexus.units.mu.
	next, prev *request
	others     []*Unit      // that an EXTENDED COPY reaches beside unit
	own        *taskContext // what ctx is, in Execute
	cancel     context.CancelFunc
	aborted    bool          // no response must be sent any more
	done       chan struct{} // closed at the end; made by whoever waits
}

// Execute implements Executor.
func (t *Target) Execute(ctx context.Context, task *Task) {
	task.Status, task.Sense, task.DataIn, task.TransferIn, task.TransferOut = StatusGood, nil, nil, 0, 0
	nexus := &task.Nexus.units
	r := nexus.request(ctx)
	r.Task, r.target, r.set, r.cmd, r.accepted = task, t, t.units.Load(), find(&task.CDB), task.Accepted
	r.unit = r.set.lookup(task.LUN)
	if r.accepted.IsZero() {
		r.accepted = time.Now()
	}
	if r.era = task.arrived.era; r.unit != nil && task.arrived.unit == nil {
		r.era = r.unit.era.Load()
	}
	begun, finished := false, false
	defer func() {
		if finished {
			nexus.keep(r)
			return
		}
		r.cancel()
		if begun { // after a panic: whoever ends the tasks of the session must not wait for this one for ever
			r.end()
		}
		r.giveBack()
	}()
	task.Status = r.begin()
	if begun = task.Status == StatusGood; !begun {
		return
	}
	var err error
	if r.unit == nil {
		err = r.runWithoutUnit()
	} else {
		err = r.run()
	}
	aborted := r.finish(err)
	begun = false
	if r.open(err) {
		err = senseUnknown
	}
	outcome := outcomeOf(err, aborted || ctx.Err() != nil && err != nil, r.blockSectors())
	if task.Nexus.SinglePath() && r.servedElsewhere(outcome) {
		outcome = statusError(StatusBusy)
	}
	r.conclude(outcome, aborted)
	nexus.stats.count(task, outcome)
	finished = true
}

// servedElsewhere says whether the outcome is that this node cannot serve the LUN now, and that another may, or will.
func (r *request) servedElsewhere(outcome error) bool {
	switch outcome {
	case error(senseStandby), error(senseTransition):
		return true
	case error(senseUnavailable):
		return len(r.unit.cfg.Access().Groups) > 1
	}
	return false
}

// blockSectors is perBlock, also before the geometry is known.
func (r *request) blockSectors() block.Count {
	if r.geo.LogicalBlockBytes == 0 {
		return 1
	}
	return r.perBlock()
}

// conclude writes the outcome into the Task. Data that goes with no GOOD is given back.
func (r *request) conclude(outcome error, aborted bool) {
	if outcome == nil && !aborted {
		return
	}
	var (
		sense  *Sense
		status statusError
	)
	switch {
	case aborted:
		r.Status = StatusTaskAborted
	case errors.As(outcome, &sense):
		r.Status = StatusCheckCondition
		r.Sense = appendSense(nil, *sense, r.unit != nil && r.unit.descriptorSense())
	case errors.As(outcome, &status):
		r.Status = Status(status)
	}
	r.giveBack()
	r.TransferIn = 0
}

// giveBack returns the Data-In buffer, if there is one.
func (r *request) giveBack() {
	if r.DataIn != nil {
		r.Buffers.Put(r.DataIn)
		r.DataIn = nil
	}
}

// present is the unit as it is now, for a nexus to compare with what it has been told.
func (r *request) present() lunView {
	return lunView{
		unit: r.unit, generation: r.access.Generation, capacity: r.geo.Capacity, known: r.unit.standing(),
		crossings: r.unit.space.look(r.unit),
	}
}

// name is the nexus the command came through.
func (r *request) name() reserve.Nexus {
	n := r.Nexus.units.name
	if n.Port == 0 {
		n.Port = r.access.LocalPort
	}
	return n
}

// run checks and carries out a command for a unit that exists.
func (r *request) run() error {
	u := r.unit
	r.access = u.cfg.Access()
	r.geo = u.cfg.Backend.Geometry()
	if r.cmd != nil && r.cmd.opcode == opTestUnitReady && !r.remote && r.access.LocalState() == ActiveNonOptimized {
		// Ready means that the owner would answer. It also tells how far this node is behind, so that a unit attention it owes
		// is not missed by an initiator that looks for it.
		if err := u.hearOwner(r.ctx); err != nil {
			return err
		}
		r.access = u.cfg.Access()
	}
	// SPC-4 r37 §5.17: INQUIRY, REPORT LUNS and REQUEST SENSE are carried out although a unit attention is pending.
	if !r.remote && (r.cmd == nil || !r.cmd.ignoresAttention) {
		now := r.present()
		s, allowed := r.Nexus.units.attend(now, r.LUN, r.set)
		if s != nil {
			return s
		}
		r.known, r.allowed = now.known, allowed
	}
	if r.cmd == nil {
		return unsupported(&r.CDB)
	}
	if err := r.cmd.check(&r.CDB); err != nil {
		return err
	}
	if r.cmd.writes && u.writeProtected() {
		return senseWriteProtected
	}
	if r.remote {
		return r.attempt()
	}
	return r.runHeld()
}

// permitted refuses a command that the unit's reservations, as this node knows them, do not allow.
func (r *request) permitted() error {
	if r.cmd.class == reserve.Describes {
		return nil
	}
	now := r.unit.standing()
	if now.err != nil {
		return senseTargetFailure
	}
	if now != r.known {
		r.known, r.allowed = now, now.state.reservations.Allowed(r.name())
	}
	if r.allowed.Allow(r.cmd.class) {
		return nil
	}
	if r.unit.releaseOrphan(r.ctx, r.Fence, now) {
		return r.permitted()
	}
	return statusError(StatusReservationConflict)
}

// mayUse is permitted for another unit that a command reaches (EXTENDED COPY).
func (r *request) mayUse(u *Unit, class reserve.Class) error {
	now := u.standing()
	switch {
	case now.err != nil:
		return senseTargetFailure
	case !now.state.reservations.Allowed(r.name()).Allow(class):
		return statusError(StatusReservationConflict)
	case class == reserve.Changes && u.writeProtected():
		return senseWriteProtected
	}
	return nil
}

// attempt carries the command out once, here or by asking the owner. What the reservations allow is looked at every time, and
// by the owner if it is asked, because it knows the newest.
func (r *request) attempt() error {
	r.access = r.unit.cfg.Access()
	if err := r.accessible(); err != nil {
		return err
	}
	r.TransferIn, r.TransferOut = 0, 0
	if r.forwards() {
		return r.forward()
	}
	if err := r.permitted(); err != nil {
		return err
	}
	return r.cmd.run(r)
}

// runHeld runs the command when the LUN's access state allows it, and again as long as the Backend says that it
// has done nothing because there is no owner or no quorum, until UnitConfig.HoldFor has passed.
func (r *request) runHeld() error {
	var deadline time.Time
	for {
		var changed <-chan struct{}
		if r.unit.cfg.AccessChanged != nil {
			// Before Access is read: a change in between closes this channel.
			changed = r.unit.cfg.AccessChanged()
		}
		err := r.attempt()
		if errors.Is(err, block.ErrUnknown) && r.cmd.access == throughOwner && r.operation != 0 && r.ctx.Err() == nil {
			err = errAskAgain // the log of whoever owns the LUN knows whether it has that operation
		}
		if !r.worthWaiting(err) {
			if r.cmd.access.needsOwner() {
				r.unit.ready() // or another node is known to be
			}
			return err
		}
		r.giveBack()
		now := time.Now()
		if deadline.IsZero() {
			deadline = now.Add(r.unit.cfg.HoldFor)
			r.unit.unready(now)
		}
		if r.doubt = r.doubt || errors.Is(err, errAskAgain); r.doubt {
			// It may have been done. To find out is worth more patience than to do it.
			deadline = now.Add(max(0, min(unsureFor-now.Sub(r.accepted), r.unit.cfg.HoldFor)))
		}
		if !now.Before(deadline) {
			if r.doubt && r.cmd.once {
				return block.ErrUnknown
			}
			// Not "standby", even if this node is: nobody is known to be active, it would send the initiator in circles.
			return r.unit.notReady(now)
		}
		if err := r.wait(changed, deadline.Sub(now)); err != nil {
			return err
		}
	}
}

// accessible says whether the access state lets the command run (SPC-4 r37 §5.15.2.4; more generous where SCST is: what
// only describes the unit is answered in every state, so that a host started during a failover finds its disks).
func (r *request) accessible() error {
	state := r.access.LocalState()
	switch {
	case state == ActiveOptimized, r.cmd.access == anyState, r.cmd.access == standbyToo && (state == Standby || state == ActiveNonOptimized):
		return nil
	case r.remote:
		return block.ErrNotOwner // whoever asked looks for the owner again
	case r.cmd.access == throughOwner && r.unit.cfg.AskOwner != nil, r.cmd.access == activeOnly && state == ActiveNonOptimized && r.unit.cfg.AskOwner != nil:
		if !r.access.owned() {
			return senseTransition
		}
		return nil
	}
	switch state {
	case Standby, ActiveNonOptimized:
		return senseStandby
	case Transitioning:
		return senseTransition
	}
	return senseUnavailable
}

// owned says whether any node is known to own the LUN.
func (a *Access) owned() bool {
	for _, g := range a.Groups {
		if g.State == ActiveOptimized {
			return true
		}
	}
	return false
}

// forwards says whether the command is for the owner, and this node is not it.
func (r *request) forwards() bool {
	return r.cmd.access.needsOwner() && !r.remote && r.access.LocalState() != ActiveOptimized
}

// worthWaiting says whether the command did nothing for want of an owner or a quorum, and none is known elsewhere.
func (r *request) worthWaiting(err error) bool {
	// One that logs in with a single path takes TEST UNIT READY for the last word: it is held for it as what moves data is.
	if err == nil || !r.cmd.access.needsOwner() && !(r.cmd.opcode == opTestUnitReady && r.Nexus.SinglePath()) {
		return false
	}
	switch {
	case errors.Is(err, senseTransition), errors.Is(err, block.ErrUnavailable), errors.Is(err, block.ErrClosed):
		return true
	case errors.Is(err, senseStandby), errors.Is(err, block.ErrNotOwner):
		access := r.unit.cfg.Access()
		if r.unit.cfg.AskOwner != nil && (r.cmd.access == throughOwner || access.LocalState() == ActiveNonOptimized) {
			return true // the owner will be asked
		}
		// Another node's group is active: the initiator is to go there at once.
		for _, g := range access.Groups {
			if g.ID != access.Local && g.State == ActiveOptimized {
				return false
			}
		}
		// Standby without an active group anywhere, or the owner has just been deposed and Access lags behind.
		return true
	}
	return false
}

// wait returns nil when it is worth looking again: at the next change of Access, but at the latest after accessPoll,
// because a quorum can come back without any change of the access state.
func (r *request) wait(changed <-chan struct{}, limit time.Duration) error {
	timer := time.NewTimer(min(limit, accessPoll))
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	case <-r.ctx.Done():
		return r.ctx.Err()
	}
	return nil
}

// begin enters the request into its nexus' list of tasks, or returns another status than GOOD: the nexus is gone, or the task was
// ended or revoked before it began, or its LUN is no longer what it was. Manage looks through the list after the task was revoked,
// with the mutex that is held here: either it finds the request, or the request finds itself revoked. So does Remove after it has
// changed the LUNs. A command for a LUN that does not exist is answered in any case: no function is carried out there.
func (r *request) begin() Status {
	n := &r.Nexus.units
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.attached || r.unit != nil && r.Revoked != nil && r.Revoked.Load() {
		return StatusTaskAborted
	}
	if r.unit != nil {
		if set := r.target.units.Load(); set != r.set {
			if now := set.lookup(r.LUN); now != r.unit {
				return r.unit.handedOver(now)
			}
		}
		if meant := r.arrived.unit; meant != nil && meant != r.unit {
			return meant.handedOver(r.unit)
		}
		if status, ended := n.endedBefore(r.unit, r.era); ended {
			return status
		}
	}
	r.next = n.first
	if r.next != nil {
		r.next.prev = r
	}
	n.first = r
	return StatusGood
}

// handedOver is what becomes of a command for u that has not begun before its number came to stand for another unit, nil for nothing: BUSY if that is the
// same LUN, so its initiator sends it again.
func (u *Unit) handedOver(to *Unit) Status {
	if u.sameAs(to) {
		return StatusBusy
	}
	return StatusTaskAborted
}

// reaches says whether the request is an EXTENDED COPY sent to another unit that reads or writes u. The caller holds the mutex of
// its nexus.
func (r *request) reaches(u *Unit) bool { return r.unit != u && slices.Contains(r.others, u) }

// end takes the request out of the list and says whether it was aborted: from here on no task management function finds it.
func (r *request) end() bool {
	n := &r.Nexus.units
	n.mu.Lock()
	defer n.mu.Unlock()
	if r.prev != nil {
		r.prev.next = r.next
	} else {
		n.first = r.next
	}
	if r.next != nil {
		r.next.prev = r.prev
	}
	r.next, r.prev = nil, nil
	if r.done != nil {
		close(r.done)
	}
	return r.aborted
}
