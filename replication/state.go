package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
	"sanctuary/replication/command"
)

// The blob beside the data: small, changed seldom, and read on every node.

// stateLock is a range no data has: SwapState commands run one after another.
var stateLock = block.Range{Start: block.MaxVolumeBytes / block.SectorSize, Count: 1}

// State returns the blob replicated beside the data, as this replica has applied it.
func (g *Group) State() block.State { return g.cfg.Store.State() }

// SwapState replaces the blob if its version is still old; block.ErrStale otherwise. Like CompareAndWrite it waits until
// the outcome is certain (proposeSurely). Then it waits for the other copies to have it, see spread.
func (g *Group) SwapState(ctx context.Context, f block.Fence, old uint64, next []byte) (block.State, error) {
	if len(next) > block.MaxStateBytes {
		return block.State{}, fmt.Errorf("state of %d bytes, at most %d", len(next), block.MaxStateBytes)
	}
	t, err := g.accepted(f)
	if err != nil {
		return block.State{}, err
	}
	lock, err := g.locks.lock(ctx, stateLock)
	if err != nil {
		return block.State{}, err
	}
	defer g.locks.unlock(lock)
	if s := g.cfg.Store.State(); s.Version != old {
		if err := g.confirm(ctx, t); err != nil {
			return block.State{}, err
		}
		return s, block.ErrStale
	}
	op := block.Op{Kind: block.OpState, Data: next, StateVersion: old}
	if err := g.proposeSurely(ctx, t, []block.Op{op}); err != nil {
		return block.State{}, err
	}
	g.spread(ctx, t, old+1)
	return block.State{Version: old + 1, Blob: next}, nil
}

// spreadWait bounds how long a change of the state waits for the other copies.
const spreadWait = 250 * time.Millisecond

// spread waits until the copies in sync have applied a version of the state, within spreadWait: an initiator that has made a
// change through one node, and then asks another, expects to find it there. Safety does not depend on it: what decides
// about commands is the owner's state.
func (g *Group) spread(ctx context.Context, t *tenure, version uint64) {
	inst := g.running()
	if inst == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, spreadWait)
	defer cancel()
	// Followers learn that an entry is committed with the next one, or after Timing.Commit: here is the next one.
	if empty, err := command.Encode(t.term, 0, nil); err == nil {
		inst.raft.ApplyLog(raft.Log{Data: empty}, 0)
	}
	request := binary.LittleEndian.AppendUint64(append([]byte(g.cfg.LUN), '\n'), version)
	var waits sync.WaitGroup
	for _, p := range g.Status().Peers {
		if !p.Self && !p.Witness && p.InSync {
			waits.Go(func() { _, _ = g.host.mux.Call(ctx, p.Node, methodState, request) }) // one that does not answer is told by the log
		}
	}
	waits.Wait()
}

// serveState answers once the replica here has applied a version of the state.
func (h *Host) serveState(ctx context.Context, _ string, req []byte) ([]byte, error) {
	lun, version, ok := strings.Cut(string(req), "\n")
	if !ok || len(version) != 8 {
		return nil, fmt.Errorf("malformed request of %d bytes", len(req))
	}
	g, err := h.group(lun)
	if err != nil {
		return nil, err
	}
	if g.cfg.Store == nil {
		return nil, errNoReplica
	}
	want := binary.LittleEndian.Uint64([]byte(version))
	for g.State().Version < want {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nil, nil
}

// sureFor is how long proposeSurely goes on when nobody waits for the command any more but whoever has aborted it, and is to be told whether it was
// done: the next owner is elected by then, or has another reason not to be there soon.
const sureFor = 3 * time.Second

// proposeSurely proposes operations as one entry. Should the LUN be lost meanwhile it waits, as long as ctx and the group live, and for sureFor
// beyond ctx, until it is certain what became of them; block.ErrUnknown if that takes longer.
func (g *Group) proposeSurely(ctx context.Context, t *tenure, ops []block.Op) error {
	w, err := g.writes.propose(ctx, t.term, ops, true)
	if !errors.Is(err, block.ErrUnknown) {
		return err
	}
	aborted, over := ctx.Done(), (<-chan time.Time)(nil)
	for {
		select {
		case err := <-w.late:
			return err
		case <-aborted:
			aborted, over = nil, time.After(sureFor)
		case <-over:
			return err
		case <-g.ctx.Done():
			return err
		}
	}
}
