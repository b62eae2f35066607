package replication

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"sanctuary/blockstore/block"
)

// A crash-consistent set: snapshots of several LUNs that together are one state the hosts could have left behind in a crash.
// Whoever makes one freezes every LUN of the set, then makes every snapshot, then thaws every LUN; if any of these fails, it
// deletes the snapshots and there is no set.
//
// Why that is a consistent cut. Let all thaws return nil. Then there is a moment t, after the last Freeze returned and before
// the first snapshot was asked for, at which all LUNs were frozen, and each stayed so until its snapshot was made:
//
//   - Freeze takes the lock on the entire LUN, so at t no command is under way on this owner: what it has accepted is in the log
//     (or, of a copy that keeps none, in its volume) and acknowledged, or will never be proposed. While the lock is held only CreateSnapshot proposes anything.
//   - No other node has served the LUN meanwhile, not even one this owner has yet to hear of: the freeze ends with the tenure,
//     and thaw confirms, like a read, that a quorum was still in this term. Terms do not come back.
//   - What an earlier owner accepted is in the log this tenure began with, or will change nothing (rule F).
//
// So a write in a snapshot was issued before t. Let a writer have issued it after the acknowledgement of another write, to any
// LUN of the set: that was acknowledged before t, hence in the log of its LUN's owner before the entry of the snapshot, which was
// proposed after t in the same log or one that continues it. It is in. Clocks play no part: t lies between answers that one
// caller has received and requests it then sends, wherever the owners are.
//
// If an owner is lost, pauses for too long, or takes too long, its thaw returns an error: the cut is not certain.

// MaxFreeze bounds a freeze: initiators wait for as long, and give up after 30 s or so.
const MaxFreeze = 10 * time.Second

// ErrFreezeOver: the freeze had ended by itself, because its time was up or the node has lost the LUN; writes may have been
// acknowledged before the last snapshot was made.
var ErrFreezeOver = errors.New("the freeze of the LUN ended before it was thawed: the snapshots may not belong together")

// freeze is one call of Freeze.
type freeze struct {
	t       *tenure
	release func() // takes the freeze off; more than once does nothing

	mu   sync.Mutex
	over bool // it has been released
}

// Freeze holds back every change of the LUN's data: from its return until thaw none is acknowledged, and none is under way. Commands
// wait, reads do not; CreateSnapshot passes. It ends by itself after d, at most MaxFreeze, and with this node's tenure. thaw ends
// it and returns nil if it held until then, ErrFreezeOver if that is not certain; it must be called, and calling it again
// returns ErrFreezeOver. ctx ends the wait for what is under way, not the freeze.
func (g *Group) Freeze(ctx context.Context, d time.Duration) (thaw func() error, err error) {
	if d <= 0 || d > MaxFreeze {
		return nil, fmt.Errorf("freeze for %v: between 0 and %v", d, MaxFreeze)
	}
	t, err := g.owned()
	if err != nil {
		return nil, err
	}
	lock, err := g.locks.lock(ctx, allData, growLock)
	if err != nil {
		return nil, err
	}
	f := &freeze{t: t}
	f.release = func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if !f.over {
			f.over = true
			g.frozen.CompareAndSwap(f, nil)
			g.locks.unlock(lock)
		}
	}
	g.frozen.Store(f)
	timer := time.AfterFunc(d, f.release)
	if g.tenure.Load() != t { // it ended before endTenure could see the freeze
		timer.Stop()
		f.release()
		return nil, block.ErrNotOwner
	}
	return func() error {
		defer f.release()
		defer timer.Stop()
		if err := g.confirm(g.ctx, t); err != nil {
			return fmt.Errorf("%w: %w", ErrFreezeOver, err)
		}
		f.mu.Lock() // after confirm, which may take its time
		defer f.mu.Unlock()
		if f.over {
			return ErrFreezeOver
		}
		return nil
	}, nil
}

// frozenIn says whether the LUN is frozen in this tenure.
func (g *Group) frozenIn(t *tenure) bool {
	f := g.frozen.Load()
	return f != nil && f.t == t
}

// endFreeze is called when a tenure has ended: nothing this node holds back is the LUN's any more.
func (g *Group) endFreeze() {
	if f := g.frozen.Load(); f != nil && f.t != g.tenure.Load() {
		f.release()
	}
}
