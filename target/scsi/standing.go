package scsi

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"sanctuary/blockstore/block"
)

// standing is a unit's state, decoded, at one version of the blob.
type standing struct {
	version uint64
	state   unitState
	// err says why the blob could not be read. Then nothing is known of reservations and write protection, and whatever
	// depends on them is refused: an unreadable state must never pass for an empty one.
	err error
}

// standing returns the unit's state as this node has it now. It decodes only when there is a newer one.
func (u *Unit) standing() *standing {
	st := u.cfg.Backend.State()
	for {
		have := u.known.Load()
		if have != nil && have.version >= st.Version {
			return have
		}
		next := &standing{version: st.Version}
		if next.state, next.err = decodeState(st.Blob); next.err != nil {
			u.cfg.Log.Error("a LUN's reservations and mode parameters cannot be read: commands that depend on them are refused, the data is untouched",
				"lun", u.cfg.Identity.Name, "version", st.Version, "error", next.err,
				"next", "start the version of this program that wrote them; restore the LUN to a snapshot only as a last resort")
		}
		if u.known.CompareAndSwap(have, next) {
			return next
		}
	}
}

// modes returns the current values of the mode parameters as this node knows them.
func (u *Unit) modes() modeValues { return u.standing().state.mode.current }

// staleTries bounds how often a change is tried again because another came first. Each try is one round of the LUN's log.
const staleTries = 64

// change replaces the unit's state by what decide makes of it, and returns when that is kept by the LUN's log. This node must
// own the LUN. decide may be called several times, each time with a copy of the state to modify, and says whether it changed
// anything; its error ends the change. Either answer is given only for a state that was current.
//
// operation is a random number that stands for what the initiator asked for: a change that was already made under it, by a node
// that could not say so any more, is not made again, and again is true.
func (u *Unit) change(ctx context.Context, fence block.Fence, operation uint64, decide func(*unitState) (bool, error)) (again bool, err error) {
	for range staleTries {
		now := u.standing()
		if now.err != nil {
			return false, senseTargetFailure
		}
		if slices.Contains(now.state.done, operation) {
			return true, u.cfg.Backend.Confirm(ctx)
		}
		next := now.state
		changed, decision := decide(&next)
		if decision != nil || !changed {
			if err := u.cfg.Backend.Confirm(ctx); err != nil {
				return false, err
			}
			return false, decision
		}
		next.done = append(slices.Clone(next.done), operation)
		next.done = next.done[max(0, len(next.done)-maxDone):]
		blob := next.encode()
		if _, err := decodeState(blob); err != nil {
			// The parts are checked and bounded so that this cannot be. If it is, only this command must suffer: what cannot be
			// read again would shut out everyone.
			u.cfg.Log.Error("a change of a LUN's reservations or mode parameters was refused because it could not be read again",
				"lun", u.cfg.Identity.Name, "error", err)
			return false, fmt.Errorf("state of %d bytes: %w", len(blob), err)
		}
		_, err := u.cfg.Backend.SwapState(ctx, fence, now.version, blob)
		switch {
		case errors.Is(err, block.ErrStale):
			continue
		case errors.Is(err, block.ErrUnknown):
			// It took effect, or never will; if this node still owns the LUN, it can tell.
			if u.cfg.Backend.Confirm(ctx) == nil && slices.Contains(u.standing().state.done, operation) {
				return false, nil
			}
		}
		return false, err
	}
	return false, statusError(StatusBusy) // nothing was done
}
