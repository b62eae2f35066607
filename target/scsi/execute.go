package scsi

import (
	"context"
	"errors"
	"time"

	"sanctuary/blockstore/block"
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

	// Guarded by Nexus.units.mu.
	next, prev *request
	cancel     context.CancelFunc
	aborted    bool          // no response must be sent any more
	done       chan struct{} // closed at the end; made by whoever waits
}

// Execute implements Executor.
func (t *Target) Execute(ctx context.Context, task *Task) {
	task.Status, task.Sense, task.DataIn, task.TransferIn, task.TransferOut = StatusGood, nil, nil, 0, 0
	r := &request{Task: task, target: t, set: t.units.Load(), cmd: find(&task.CDB)}
	r.unit = r.set.lookup(task.LUN)
	r.ctx, r.cancel = context.WithCancel(ctx)
	defer r.cancel()
	if !r.begin() {
		task.Status = StatusTaskAborted
		return
	}
	var err error
	if r.unit == nil {
		err = r.runWithoutUnit()
	} else {
		err = r.run()
	}
	aborted := r.end()
	perBlock := block.Count(1)
	if r.geo.LogicalBlockBytes != 0 {
		perBlock = r.perBlock()
	}
	r.conclude(outcomeOf(err, aborted || ctx.Err() != nil && err != nil, perBlock), aborted)
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
	if r.DataIn != nil {
		r.Buffers.Put(r.DataIn)
	}
	r.DataIn, r.TransferIn = nil, 0
}

// run checks and carries out a command for a unit that exists.
func (r *request) run() error {
	u := r.unit
	r.access = u.cfg.Access()
	r.geo = u.cfg.Backend.Geometry()
	// SPC-4 r37 §5.17: INQUIRY, REPORT LUNS and REQUEST SENSE are carried out although a unit attention is pending.
	if r.cmd == nil || !r.cmd.ignoresAttention {
		now := lunView{unit: u, generation: r.access.Generation, capacity: r.geo.Capacity, resets: u.resets.Load()}
		if s := r.Nexus.units.attend(now, r.set.version); s != nil {
			return s
		}
	}
	if r.cmd == nil {
		return senseInvalidOpcode
	}
	if err := r.cmd.check(&r.CDB); err != nil {
		return err
	}
	if r.cmd.writes && u.writeProtected() {
		return senseWriteProtected
	}
	return r.runHeld()
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
		r.access = r.unit.cfg.Access()
		err := r.accessible()
		if err == nil {
			r.TransferIn, r.TransferOut = 0, 0
			err = r.cmd.run(r)
		}
		if !r.worthWaiting(err) {
			if r.cmd.access == activeOnly {
				r.unit.ready() // or another node is known to be
			}
			return err
		}
		if r.DataIn != nil {
			r.Buffers.Put(r.DataIn)
			r.DataIn = nil
		}
		now := time.Now()
		if deadline.IsZero() {
			deadline = now.Add(r.unit.cfg.HoldFor)
			r.unit.unready(now)
		}
		if !now.Before(deadline) {
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
	if state == ActiveOptimized || r.cmd.access == anyState || r.cmd.access == standbyToo && state == Standby {
		return nil
	}
	switch state {
	case Standby:
		return senseStandby
	case Transitioning:
		return senseTransition
	}
	return senseUnavailable
}

// worthWaiting says whether the command did nothing for want of an owner or a quorum, and none is known elsewhere.
func (r *request) worthWaiting(err error) bool {
	if err == nil || r.cmd.access != activeOnly {
		return false
	}
	switch {
	case errors.Is(err, senseTransition), errors.Is(err, block.ErrUnavailable), errors.Is(err, block.ErrClosed):
		return true
	case errors.Is(err, senseStandby), errors.Is(err, block.ErrNotOwner):
		// Another node's group is active: the initiator is to go there at once.
		access := r.unit.cfg.Access()
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

// begin enters the request into its nexus' list of tasks; false if the nexus is gone or the task has been revoked. Manage
// looks through the list after the task was revoked, with the mutex that is held here: either it finds the request, or the
// request finds itself revoked. One for a LUN that does not exist is answered in any case: no function is carried out there.
func (r *request) begin() bool {
	n := &r.Nexus.units
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.attached || r.unit != nil && r.Revoked != nil && r.Revoked.Load() {
		return false
	}
	r.next = n.first
	if r.next != nil {
		r.next.prev = r
	}
	n.first = r
	return true
}

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
