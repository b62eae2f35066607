package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"sanctuary/blockstore/block"
)

// exact says whether this replica's blocks are those of the log at the index it has applied. After a crash the medium may hold
// newer blocks than the map knows, until the log has been replayed; after a rebuild, blocks newer than the index the copy
// is said to be of. Both end when it has applied whatever was committed at some moment after it was started: what it had
// applied before a crash, and what its source had applied while it was copied, was committed before. The owner, once it serves, knows
// of all that; so it is asked once in every life of Raft.
func (g *Group) exact(ctx context.Context) bool {
	inst := g.running()
	if inst == nil || g.cfg.Store == nil || g.cfg.Store.Inconsistent() {
		return false
	}
	if inst.exact.Load() {
		return true
	}
	if g.tenure.Load() == nil {
		leader, _ := inst.raft.LeaderWithID()
		if leader == "" {
			return false
		}
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		answer, err := g.host.mux.Call(ctx, string(leader), methodCommitted, []byte(g.cfg.LUN))
		if err != nil || len(answer) != 8 || g.cfg.Store.Applied() < binary.LittleEndian.Uint64(answer) {
			return false
		}
	}
	if g.running() != inst { // what was asked about has ended
		return false
	}
	inst.exact.Store(true)
	return true
}

// serveCommitted tells the newest command that is committed, as u64. Only an owner that serves knows.
func (h *Host) serveCommitted(_ context.Context, _ string, req []byte) ([]byte, error) {
	g, err := h.group(string(req))
	if err != nil {
		return nil, err
	}
	inst := g.running()
	if inst == nil || g.cfg.Store == nil || g.tenure.Load() == nil {
		return nil, block.ErrNotOwner
	}
	last, err := g.lastCommand(inst.raft.CommitIndex())
	if err != nil {
		return nil, err
	}
	// The log may begin behind it.
	return binary.LittleEndian.AppendUint64(nil, max(last, g.cfg.Store.Applied())), nil
}

var errNotExact = errors.New("this copy is still being brought up to date")
