package replication

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
	"sanctuary/replication/transport"
	"sanctuary/replication/witness"
)

// waitFor waits for a Raft future, which may never be answered after a shutdown.
func (g *Group) waitFor(ctx context.Context, f raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-g.ctx.Done():
		return block.ErrClosed
	}
}

// Transfer hands the LUN to another data replica: the lease ends, then that one is asked to stand, which voters allow it although they have
// promised their votes. If it comes to nothing this node goes on, and without a lease every read would have to ask a majority for the rest of the term: a round trip
// each. But the request may still be on its way, for however long, or have arrived and wait. It says where the log ended when it was sent (transferEnd), at i, and
// nobody stands by it whose log goes on behind i (incoming, peers.RequestVote). Behind a transfer that has failed comes a barrier, at i+1 or later: once that is committed
// whoever has it does not stand by the request any more, and whoever has not is elected by nobody, since a majority has it. So the lease may
// come back then, whatever became of the request, and of the node it was sent to. A node of an older program does not look at i: with one of those the lease stays away.
func (g *Group) Transfer(ctx context.Context, to raft.ServerID) error {
	inst, t := g.running(), g.tenure.Load()
	m := g.member(to)
	switch {
	case inst == nil || t == nil:
		return block.ErrNotOwner
	case m.ID == "":
		return fmt.Errorf("%s is not a replica of this LUN", to)
	case m.Witness:
		return fmt.Errorf("%s is the witness: it holds no data and cannot own a LUN", to)
	case to == g.cfg.Self.ID:
		return nil
	}
	if err := g.inSync(to); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 4*g.cfg.Timing.Heartbeat)
	defer cancel()
	if err := g.writes.pause(ctx); err != nil {
		g.writes.resume()
		return fmt.Errorf("writes under way did not end in time; the LUN stays here: %w", err)
	}
	if err := g.inSync(to); err != nil { // it may have been lost while the last writes ended
		g.writes.resume()
		return err
	}
	err := g.waitFor(ctx, inst.raft.LeadershipTransferToServer(to, raft.ServerAddress(m.Node)))
	if err == nil {
		g.writes.resume()
		return nil
	}
	// The library says that it has given up before it has: until the other node has answered, or cannot any more, proposals are dropped.
	g.goFunc(func() {
		defer g.writes.resume()
		revocations := g.lease.revocations() // before the barrier: with another transfer behind that it is not this one's
		if err := g.barrier(g.ctx, inst); err != nil {
			g.log.Info("lost the LUN after a transfer that failed", "error", err)
		} else if g.host.protocol(m.Node) >= transport.ProtocolTransfers {
			g.lease.restore(t.term, revocations)
		}
	})
	return err
}

// inSync returns an error unless the copy is in sync.
func (g *Group) inSync(id raft.ServerID) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.inSyncLocked(id)
}

// inSyncLocked returns an error unless the copy is in sync, and so holds every write that was acknowledged. That it counts as in sync when a term
// begins (rule W) says what must wait for it, not what it has: it must have been heard to have what was there by then.
func (g *Group) inSyncLocked(id raft.ServerID) error {
	level := witness.Out
	if g.gate != nil {
		level = g.gate.Level(string(id))
	}
	switch {
	case level != witness.InSync:
		return fmt.Errorf("%s is %v: the LUN moves only to a copy in sync", id, level)
	case g.match[id] < g.begun:
		return fmt.Errorf("%s has not been heard since this node owns the LUN: it moves only to a copy in sync", id)
	}
	return nil
}

// barrier returns when everything before it has been applied, as Raft's own does, which while a transfer of the leadership is under way, one of
// an earlier term even, refuses: such a transfer is waited for. The error is Raft's.
func (g *Group) barrier(ctx context.Context, inst *instance) error {
	for {
		err := g.waitFor(ctx, inst.raft.Barrier(0))
		if !errors.Is(err, raft.ErrLeadershipTransferInProgress) {
			return err
		}
		if err := g.pause(ctx, transferRetry); err != nil {
			return err
		}
	}
}

// transferRetry is how often Raft is asked whether a transfer is still under way.
const transferRetry = 10 * time.Millisecond
