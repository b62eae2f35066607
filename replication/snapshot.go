package replication

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/replication/transport"
)

// Snapshots are made, deleted and rolled back to by log entries, so every copy has the same ones with the same contents. Each
// of these methods is the owner's. An operation names its snapshot by ID: whoever got block.ErrUnknown, or no answer, asks again
// with the same ID, and it is done once.

var (
	// allData is every range a command can have, however large the LUN grows. The locks after it are ranges no data has;
	// stateLock is another.
	allData = block.Range{Count: block.MaxVolumeBytes / block.SectorSize}
	// growLock is held while the LUN grows.
	growLock = block.Range{Start: stateLock.Start + 1, Count: 1}
	// snapshotLock lets operations on snapshots run one after another. Whoever waits for allData does not hold it: a frozen
	// LUN, which holds that, must not wait for them when it makes its snapshot.
	snapshotLock = block.Range{Start: stateLock.Start + 2, Count: 1}
)

// ErrTooManySnapshots: the LUN has as many snapshots as it can have; delete some.
var ErrTooManySnapshots = fmt.Errorf("a LUN has at most %d snapshots: delete some", block.MaxSnapshots)

// ErrOldMember: a member's program does not know snapshots, or may not.
var ErrOldMember = errors.New("a copy may run a version that knows no snapshots: a log entry about them would stop it")

// Snapshots returns the LUN's snapshots as this replica has applied them, oldest first.
func (g *Group) Snapshots() []block.Snapshot {
	if g.cfg.Store == nil {
		return nil
	}
	return g.cfg.Store.Snapshots()
}

// View returns a snapshot as this replica has it, to look at: what does not match its checksum is an error. What is served of a snapshot is
// read by readSnapshot, which repairs. block.ErrNoSnapshot: it has none of that ID (yet).
func (g *Group) View(id block.SnapshotID) (*blockstore.View, error) {
	if g.cfg.Store == nil {
		return nil, errNoReplica
	}
	return g.cfg.Store.View(id)
}

// Diff is blockstore.Volume.Diff on this replica.
func (g *Group) Diff(from, to block.SnapshotID, fn func(r block.Range) error) error {
	if g.cfg.Store == nil {
		return errNoReplica
	}
	return g.cfg.Store.Diff(from, to, fn)
}

// Space says what the LUN and its snapshots take on this replica. It may take seconds.
func (g *Group) Space(ctx context.Context) (blockstore.Space, error) {
	if g.cfg.Store == nil {
		return blockstore.Space{}, errNoReplica
	}
	return g.cfg.Store.Space(ctx)
}

// CreateSnapshot keeps the present contents: everything that was acknowledged before the call, and of what is under way
// meanwhile each command entirely or not at all. It waits until what is under way has ended, and new commands wait for it; or, if
// the LUN is frozen (Freeze), nothing is under way, and it does not wait. One with this ID that is there already is enough.
//
// Errors: block.ErrNotOwner and the like; ErrTooManySnapshots, ErrOldMember; block.ErrUnknown.
func (g *Group) CreateSnapshot(ctx context.Context, s block.SnapshotSpec) error {
	if err := s.Validate(); err != nil {
		return err
	}
	return g.changeSnapshots(ctx, block.SnapshotOp(s), func(have []block.Snapshot) (done bool, err error) {
		switch {
		case indexOf(have, s.ID) >= 0:
			return true, nil
		case len(have) >= block.MaxSnapshots:
			return false, ErrTooManySnapshots
		case len(have) == 0: // else that has been looked at when the first one was made
			return false, g.everyCopyKnowsSnapshots()
		}
		return false, nil
	})
}

// DeleteSnapshot deletes a snapshot. What it alone refers to is given back in the background (reclaim). One that is not there
// is block.ErrNoSnapshot, also when it was this call, asked again, that has deleted it.
func (g *Group) DeleteSnapshot(ctx context.Context, id block.SnapshotID) error {
	return g.changeSnapshots(ctx, block.DeleteSnapshotOp(id), mustHave(id))
}

// Rollback makes the contents those of a snapshot. Everything written since is lost, but for what other snapshots hold.
//
// It changes blocks behind the initiators' backs: their caches and mounted file systems do not know. The caller has seen to it
// that nobody uses the LUN, or has been told to go on all the same; the nexuses hear of it through Config.OnRollback.
func (g *Group) Rollback(ctx context.Context, id block.SnapshotID) error {
	return g.changeSnapshots(ctx, block.RollbackOp(id), mustHave(id))
}

func mustHave(id block.SnapshotID) func([]block.Snapshot) (bool, error) {
	return func(have []block.Snapshot) (bool, error) {
		if indexOf(have, id) < 0 {
			return false, block.ErrNoSnapshot
		}
		return false, nil
	}
}

func indexOf(have []block.Snapshot, id block.SnapshotID) int {
	return slices.IndexFunc(have, func(s block.Snapshot) bool { return s.ID == id })
}

// changeSnapshots proposes an operation on snapshots unless look, which is given those there are, says that it is done or
// must not be. An operation that would do nothing is never proposed: the limit is looked at by the owner alone.
func (g *Group) changeSnapshots(ctx context.Context, op block.Op, look func([]block.Snapshot) (done bool, err error)) error {
	t, err := g.owned()
	if err != nil {
		return err
	}
	if op.Kind != block.OpDeleteSnapshot && (op.Kind != block.OpSnapshot || !g.frozenIn(t)) {
		lock, err := g.locks.lock(ctx, allData, growLock)
		if err != nil {
			return err
		}
		defer g.locks.unlock(lock)
	}
	lock, err := g.locks.lock(ctx, snapshotLock)
	if err != nil {
		return err
	}
	defer g.locks.unlock(lock)
	if done, err := look(g.cfg.Store.Snapshots()); done || err != nil {
		// As in Read: what was looked at counts only if this node owned the LUN afterwards (rule L).
		if lost := g.confirm(ctx, t); lost != nil {
			return lost
		}
		return err
	}
	release, err := g.takeRoom(ctx, []block.Op{op})
	if err != nil {
		return err
	}
	defer release()
	return g.proposeSurely(ctx, t, []block.Op{op})
}

// everyCopyKnowsSnapshots returns nil once it is certain that no member meets a log entry it cannot read. A witness does not
// read entries. What a node spoke last is remembered while this process lives: one that is away is not in the way, unless this
// process has never been connected to it. Going back to an older program after that is not supported.
func (g *Group) everyCopyKnowsSnapshots() error {
	g.mu.Lock()
	members := maps.Clone(g.members)
	g.mu.Unlock()
	for id, m := range members {
		if m.Witness || m.Node == g.cfg.Self.Node {
			continue
		}
		switch v := g.host.protocol(m.Node); {
		case v == 0:
			return fmt.Errorf("%w: %s has not been reached since this node was started", ErrOldMember, id)
		case v < transport.ProtocolSnapshots:
			return fmt.Errorf("%w: upgrade %s first", ErrOldMember, m.Node)
		}
	}
	return nil
}

// aboutSnapshots says whether an operation changes which snapshots there are, or the contents by one.
func aboutSnapshots(op *block.Op) bool { return op.Kind.Blob() && op.Kind != block.OpState }
