package scsi

import (
	"context"
)

// Manage implements Executor. FUNCTION COMPLETE means that no response will be sent for the tasks concerned and that none of
// them can take effect any more: a write that had reached the Backend was waited for. If ctx ends first the answer is
// FUNCTION REJECTED, and the tasks are aborted all the same.
func (t *Target) Manage(ctx context.Context, f Function, nexus *Nexus, lun uint64, tag uint32) FunctionResponse {
	set := t.units.Load()
	u := set.lookup(lun)
	if u == nil && f >= AbortTask && f <= LogicalUnitReset {
		return LUNDoesNotExist
	}
	switch f {
	case AbortTask:
		found := false
		err := t.abort(ctx, func(n *Nexus, r *request) bool {
			match := n == nexus && r.Tag == tag && r.unit == u
			found = found || match
			return match
		})
		switch {
		case !found:
			return TaskDoesNotExist
		case err != nil:
			return FunctionRejected
		}
		return FunctionComplete
	case AbortTaskSet:
		return response(t.abort(ctx, func(n *Nexus, r *request) bool { return n == nexus && r.unit == u }))
	case ClearTaskSet:
		return response(t.abort(ctx, func(n *Nexus, r *request) bool {
			if r.unit != u {
				return false
			}
			if n != nexus {
				n.units.post(u, attendCleared) // TAS=0: they hear of it this way only
			}
			return true
		}))
	case LogicalUnitReset:
		return t.reset(ctx, u)
	case TargetWarmReset, TargetColdReset:
		// A cold reset also ends the sessions; the transport does that.
		units := make([]*Unit, 0, len(set.byLUN))
		for _, unit := range set.byLUN {
			units = append(units, unit)
		}
		return t.reset(ctx, units...)
	}
	return FunctionNotSupported
}

// reset aborts every task of the units and owes every nexus unit attention 29/03, also the one that asked (SAM-5 §6.3.3).
func (t *Target) reset(ctx context.Context, units ...*Unit) FunctionResponse {
	for _, u := range units {
		u.resets.Add(1)
	}
	return response(t.abort(ctx, func(_ *Nexus, r *request) bool {
		for _, u := range units {
			if r.unit == u {
				return true
			}
		}
		return false
	}))
}

func response(err error) FunctionResponse {
	if err != nil {
		return FunctionRejected
	}
	return FunctionComplete
}

// abort marks the running tasks that match, cancels them and waits until all have ended or ctx has. match is called with
// the nexus' mutex held.
func (t *Target) abort(ctx context.Context, match func(*Nexus, *request) bool) error {
	var waits []<-chan struct{}
	t.mu.Lock()
	for n := range t.nexuses {
		n.units.mu.Lock()
		for r := n.units.first; r != nil; r = r.next {
			if !match(n, r) {
				continue
			}
			r.aborted = true
			r.cancel()
			if r.done == nil {
				r.done = make(chan struct{})
			}
			waits = append(waits, r.done)
		}
		n.units.mu.Unlock()
	}
	t.mu.Unlock()
	for _, done := range waits {
		select {
		case <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
