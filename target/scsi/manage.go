package scsi

import (
	"context"
	"errors"
	"iter"
	"maps"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/target/reserve"
)

// manageFor bounds how long a function that needs the owner is tried for, if the LUN has none. Initiators wait for longer, and
// what could not be carried out is refused, after which they end the session.
const manageFor = 5 * time.Second

// Manage implements Executor. FUNCTION COMPLETE means that no response will be sent for the tasks concerned and that none of
// them can take effect any more, on any node: a write that had reached the Backend was waited for, a command that another node
// carries out has ended there. If ctx ends first the answer is FUNCTION REJECTED, and the tasks are aborted all the same.
func (t *Target) Manage(f Function, nexus *Nexus, lun uint64, tag uint32) func(context.Context) FunctionResponse {
	set := t.units.Load()
	u := set.lookup(lun)
	if u == nil && f >= AbortTask && f <= LogicalUnitReset {
		return func(context.Context) FunctionResponse { return LUNDoesNotExist }
	}
	switch f {
	case AbortTask:
		return func(ctx context.Context) FunctionResponse { return t.abortTask(ctx, nexus, u, tag) }
	case AbortTaskSet:
		era := u.era.Add(1) - 1 // no other node has tasks of this nexus
		return func(ctx context.Context) FunctionResponse {
			running, _ := u.endTasks(func(n *Nexus) bool { return n == nexus }, ending{era: era}, nil)
			return response(await(ctx, running))
		}
	case ClearTaskSet, LogicalUnitReset:
		before := u.cut()
		return func(ctx context.Context) FunctionResponse {
			return response(u.manage(ctx, f, before, nexus.units.name))
		}
	case TargetWarmReset, TargetColdReset:
		// A cold reset also ends the sessions; the transport does that.
		before := map[*Unit]line{}
		for _, unit := range set.byLUN {
			if !unit.outOfReach() { // it has no tasks here, and the others are not to go without their reset
				before[unit] = unit.cut()
			}
		}
		return func(ctx context.Context) FunctionResponse {
			return response(onEach(maps.Keys(before), "the reset of a LUN", func(u *Unit) error {
				return u.manage(ctx, f, before[u], nexus.units.name)
			}))
		}
	case TaskReassign:
		return func(context.Context) FunctionResponse { return ReassignNotSupported }
	}
	return func(context.Context) FunctionResponse { return FunctionNotSupported }
}

func (t *Target) abortTask(ctx context.Context, nexus *Nexus, u *Unit, tag uint32) FunctionResponse {
	found := t.mark(func(n *Nexus, r *request) bool { return n == nexus && r.Tag == tag && r.unit == u }, fateAborted)
	err := await(ctx, found)
	// One that was done before it could be ended is answered, and before this function is.
	if err == nil && !slices.ContainsFunc(found, func(r *request) bool { return !r.kept }) {
		return TaskDoesNotExist
	}
	return response(err)
}

func response(err error) FunctionResponse {
	if err != nil {
		return FunctionRejected
	}
	return FunctionComplete
}

// recovered makes an error of a panic, where an initiator may bring one about and no connection of its is there to end with it.
func (u *Unit) recovered(what string, err *error) {
	if r := recover(); r != nil {
		u.cfg.Log.Error("a panic ended "+what+" only", "lun", u.cfg.Identity.Name, "panic", r, "stack", string(debug.Stack()))
		*err = errPanic
	}
}

// outOfReach says whether the unit can do nothing here, and ask nobody who could.
func (u *Unit) outOfReach() bool {
	access := u.cfg.Access()
	return u.cfg.AskOwner == nil && access.LocalState() == Unavailable
}

// onEach does something to units at the same time, and returns when it has been done to all. A panic is an error of its unit.
func onEach(units iter.Seq[*Unit], what string, do func(*Unit) error) (all error) {
	errs, n := make(chan error), 0
	for u := range units {
		n++
		go func() {
			var err error
			defer func() { errs <- err }()
			defer u.recovered(what, &err)
			err = do(u)
		}()
	}
	for range n {
		all = errors.Join(all, <-errs)
	}
	return all
}

// manage carries out a function that concerns the whole unit: on the owner, where all tasks are that move data, and then here.
func (u *Unit) manage(ctx context.Context, f Function, before line, from reserve.Nexus) error {
	operation := rand.Uint64()
	err := u.onOwner(ctx, manageFor, func(ctx context.Context) error {
		if u.outOfReach() {
			return errRefused
		}
		access := u.cfg.Access()
		if access.LocalState() == ActiveOptimized {
			return u.manageHere(ctx, f, operation, before, from)
		}
		p, err := u.ask(ctx, &ask{kind: askManage, operation: operation, nexus: from, fence: before.fence, function: f}, before.at)
		switch {
		case err != nil:
			return err
		case p.verdict == nothingDone, p.verdict == tooLate && time.Since(before.at) < askFor/2:
			return block.ErrUnavailable
		case p.verdict == unresolved:
			return errAskAgain
		case p.verdict != answered || p.response != FunctionComplete:
			return errRefused
		}
		u.catchUp(ctx, p.version)
		return nil
	})
	// What this node has accepted and not asked the owner for yet, which therefore did not know of it.
	running, of := u.endAll(f, before.era, from)
	for _, n := range of {
		if f == ClearTaskSet && !n.named(from) {
			n.units.mu.Lock()
			n.units.post(u, attendCleared)
			n.units.mu.Unlock()
		}
	}
	return errors.Join(err, await(ctx, running))
}

// endAll ends the tasks of all nexuses. With CLEAR TASK SET they hear of it if they had any, but for the one that asked.
func (u *Unit) endAll(f Function, era uint64, from reserve.Nexus) (running []*request, of []*Nexus) {
	if f != ClearTaskSet {
		return u.endTasks(func(*Nexus) bool { return true }, ending{era: era}, nil)
	}
	own, _ := u.endTasks(func(n *Nexus) bool { return n.named(from) }, ending{era: era}, nil)
	others, of := u.endTasks(func(n *Nexus) bool { return !n.named(from) }, ending{era: era, tell: attendCleared}, nil)
	return append(own, others...), of
}

var (
	errRefused = errors.New("the owner could not carry it out")
	errUnsure  = errors.New("a task may not have ended on the owner")
	errPanic   = errors.New("internal error")
)

// onOwner tries until it is done, refused, or limit has passed. What is tried must be the same however often it is done.
func (u *Unit) onOwner(ctx context.Context, limit time.Duration, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		for _, again := range []error{block.ErrUnavailable, block.ErrNotOwner, block.ErrUnknown, block.ErrClosed} {
			if errors.Is(err, again) {
				err = nil
				break
			}
		}
		if err != nil {
			return err
		}
		if !pause(ctx, accessPoll) {
			return block.ErrUnavailable
		}
	}
}

// manageHere carries out the function on the owner.
func (u *Unit) manageHere(ctx context.Context, f Function, operation uint64, before line, from reserve.Nexus) error {
	// At once: tasks that wait for a quorum would otherwise keep the function waiting that is to end them.
	running, of := u.endAll(f, before.era, from)
	var others []uint64
	for _, n := range of {
		others = append(others, n.units.id)
	}
	_, err := u.change(ctx, before.fence, operation, func(s *unitState) (bool, error) {
		switch f {
		case ClearTaskSet:
			// TAS=0: whose tasks were ended hears of it this way only.
			slices.Sort(others)
			s.raise(codeCleared, toOnly, slices.Compact(others)...)
			// Also if nobody had a task: the next owner refuses what was accepted before this entry of the log.
			return true, nil
		case LogicalUnitReset:
			// SAM-5 §6.3.3: every nexus is told, also the one that asked.
			s.raise(codeUnitReset, toAllBut)
		default:
			s.raise(codeTargetReset, toAllBut)
		}
		s.mode = s.mode.reset()
		s.reservations = s.reservations.Drop().Table
		return true, nil
	})
	return errors.Join(err, await(ctx, running))
}

// fate is what becomes of tasks that are found.
type fate uint8

const (
	fateOpen     fate = iota
	fateAnswered      // they end soon, with a status
	fateAborted       // they end soon, without one
)

// meet gives a running task its fate, and whoever waits for its end a channel. The caller holds the mutex of its nexus.
func (r *request) meet(f fate) {
	if f != fateOpen {
		r.aborted = r.aborted || f == fateAborted
		r.cancel()
	}
	if r.done == nil {
		r.done = make(chan struct{})
	}
}

// mark returns the running tasks that match, each with a done channel. match is called with the nexus' mutex held.
func (t *Target) mark(match func(*Nexus, *request) bool, f fate) []*request {
	var found []*request
	t.mu.Lock()
	defer t.mu.Unlock()
	for n := range t.nexuses {
		n.units.mu.Lock()
		for r := n.units.first; r != nil; r = r.next {
			if !match(n, r) {
				continue
			}
			r.meet(f)
			found = append(found, r)
		}
		n.units.mu.Unlock()
	}
	return found
}

// await waits until the tasks have ended or ctx has, and says whether all have ended for certain.
func await(ctx context.Context, tasks []*request) error {
	var err error
	for _, r := range tasks {
		select {
		case <-r.done:
			if r.unsure {
				err = errUnsure
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

// Reset does what LOGICAL UNIT RESET does, on whatever node owns the LUN: tasks end, and every nexus is told (29/03). For an
// operator who has changed the contents behind the initiators' backs.
func (u *Unit) Reset(ctx context.Context) error {
	return u.manage(ctx, LogicalUnitReset, u.cut(), reserve.Nexus{})
}
