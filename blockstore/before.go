package blockstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"sanctuary/blockstore/block"
)

// An import overwrites a volume that was consistent with something newer, and is neither for as long as it takes. Should its
// source be lost meanwhile for good, what was there before would be the best there is. So BeginImport keeps it: as a snapshot
// like any other, which costs a new epoch and touches no chunk, but without a name or an ID by which anybody could find it.
// It is marked as one that was deleted: whatever lists, counts or compares snapshots passes over it, and so does a program that
// is older than this, which forgets it when it opens the pool.
//
// It ends in one step with the import, whichever way that goes: EndImport drops it, AbandonImport returns to it. What it alone
// refers to is then given back by Reclaim. Until then an import takes new space for every block it overwrites; whoever has no
// room for that calls ForgetBefore and does without.

// ErrNothingKept: there are no contents from before an import.
var ErrNothingKept = errors.New("nothing is kept from before the rebuild")

// keepBefore is called by BeginImport, with applyMu held. Of a volume to which no entry was applied there is nothing to keep.
func (v *Volume) keepBefore() {
	if v.applied.Load() == 0 {
		return
	}
	l := v.lineage.Load()
	kept := l.withSnapshot(block.Snapshot{
		SnapshotSpec: block.SnapshotSpec{Created: time.Now().UnixMilli()}, Index: v.applied.Load(), Capacity: v.capacityNow(),
	}, v.stored.Load())
	s := &kept.snapshots[len(kept.snapshots)-1]
	s.hidden, s.before = true, true
	v.setLineage(kept)
	v.dirty = true
}

// before returns the place of the contents from before an import, or -1.
func (l *lineage) before() int {
	return slices.IndexFunc(l.snapshots, func(s snapshot) bool { return s.before })
}

// withoutBefore returns the lineage without the contents from before an import.
func (l *lineage) withoutBefore() *lineage {
	if i := l.before(); i >= 0 {
		return l.without(i, false)
	}
	return l
}

// Before says what is kept from before the import that is under way: the index it is of and when the import began, which is
// Created. ok is false if there is no import, or nothing is kept.
func (v *Volume) Before() (s block.Snapshot, ok bool) {
	l := v.lineage.Load()
	i := l.before()
	if i < 0 || !v.inconsistent.Load() {
		return s, false
	}
	return l.snapshots[i].Snapshot, true
}

// ForgetBefore gives up what is kept from before an import, and frees what only that takes. Nothing is to be done if nothing is kept.
func (v *Volume) ForgetBefore(ctx context.Context) error {
	v.applyMu.Lock()
	l := v.lineage.Load()
	if now := l.withoutBefore(); now != l {
		v.setLineage(now)
		v.dirty = true
		v.reclaimLater()
	}
	v.applyMu.Unlock()
	for more := true; more; {
		if err := ctx.Err(); err != nil {
			return err
		}
		var err error
		if more, err = v.Reclaim(reclaimBatch); err != nil {
			return err
		}
	}
	_, err := v.Checkpoint(ctx)
	return err
}

// AbandonImport makes the volume again what it was when BeginImport was called, durably and in one step: after a crash it is
// either that or still inconsistent. Snapshots that were deleted for the import stay deleted, those that came with it go, and a
// capacity that has grown stays. ErrNothingKept, and the other errors of EndImport.
func (v *Volume) AbandonImport(ctx context.Context) error {
	v.checkpointMu.Lock()
	defer v.checkpointMu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	v.applyMu.Lock() // across the I/O, as in EndImport
	defer v.applyMu.Unlock()
	if err := v.importing(); err != nil {
		return err
	}
	was := v.lineage.Load()
	i := was.before()
	if i < 0 {
		return fmt.Errorf("volume %s: %w", v.id, ErrNothingKept)
	}
	now, before := was.rolledBack(i), was.snapshots[i]
	for n := len(now.snapshots) - 1; n >= i; n-- { // what came after it came with the import
		now = now.without(n, n > i && v.pool.held(v.number, now.snapshots[n].epoch))
	}
	floor := max(v.floor.Load(), v.applied.Load()) // any chunk may have changed
	if !v.pool.volatile {
		c := v.capture()
		c.record.lineage, c.record.floor, c.record.inconsistent = now, floor, false
		if err := v.write(c); err != nil {
			if errors.Is(err, block.ErrNoSpace) {
				v.release(c)
			}
			return fmt.Errorf("the import of volume %s is given up: %w", v.id, err)
		}
		v.durable.Store(v.applied.Load())
		v.committing = false
		if err := v.pool.giveBack(c.freed, true); err != nil {
			return err
		}
	}
	v.setLineage(now)
	v.stored.Store(before.stored)
	v.floor.Store(floor)
	v.reclaimAt, v.reclaimDone = 0, false
	v.inconsistent.Store(false)
	return nil
}
