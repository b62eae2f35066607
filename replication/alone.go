package replication

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
)

// A copy in RAM that is the only member of its group keeps no log of the data written to it: the log would be lost with it, and there is nobody to send
// it to. The owner changes the volume where the command runs, without Raft. Everything else (terms, members, reservations, snapshots, sizes) goes
// through the log as ever.
//
// That log does not make the volume any more, so nobody else may be made from it, or be brought up to date by it:
//
//   - It begins with an entry of its own. What is changed from then on counts as changed by that entry or a later one (ApplyUnlogged), of which nobody
//     else has been told: whoever is brought up to date from something older is sent it (Rebuildable.Changed). Of the entries of snapshots receivers are told,
//     so such an entry interrupts it (noteReshape), and it begins again, with another entry of its own.
//   - It ends before anybody is told where a copy may begin (serveRebuildPin), or is added to the group (settleMember). From then on all data is in the
//     log; a checkpoint is made, and the log is cut off behind it. Who has less is further behind than the log reaches, and is rebuilt.
//   - From before the first such change until it has been cut off, the log says so (keyUnlogged): a group may be closed, and another opened over the same volume.
//
// It begins only while the catalog knows of no other member, either, and nobody has been told where to begin in the last minute (pinned).
//
// Rules F and L ask for nothing more: the only voter is its own quorum, and changes happen in the tenure that the command was accepted in, or not here. Its end
// waits for those that are under way (endTenure).
type alone struct {
	mu   sync.RWMutex // held for reading while something is changed without the log
	term uint64       // the tenure in which that is done; 0: everything goes through the log

	turning sync.Mutex // held while it begins or ends; taken before mu
}

// interrupt has everything go through the log, until it begins again. It waits for what is under way past the log.
func (a *alone) interrupt() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.term = 0
}

// keyUnlogged is 1, in the log's stable store, while the volume may hold what the log does not.
const keyUnlogged = "unlogged"

// applyAlone makes ops take effect without the log. done is false if they have to go through it.
func (g *Group) applyAlone(t *tenure, ops []block.Op) (done bool, err error) {
	if done, err = g.alone.apply(g, t, ops); err != nil {
		return done, g.outIfFailed(err) // it ends the tenure, which waits for whoever holds mu
	}
	return done, nil
}

func (a *alone) apply(g *Group, t *tenure, ops []block.Op) (done bool, err error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.term != t.term || g.tenure.Load() != t {
		return false, nil
	}
	if err := g.cfg.Store.ApplyUnlogged(ops); err != nil {
		return true, err
	}
	g.noteStored(time.Now())
	g.activity.Add(1)
	return true, nil
}

// beginAlone has data go past the log, if this copy is in RAM and nobody else is there. The caller holds changing.
func (g *Group) beginAlone(ctx context.Context) error {
	t := g.tenure.Load()
	if t == nil || !g.cfg.Store.Volatile() || !g.isAlone() {
		return nil
	}
	g.alone.turning.Lock()
	defer g.alone.turning.Unlock()
	g.alone.mu.RLock()
	begun := g.alone.term == t.term
	g.alone.mu.RUnlock()
	if begun {
		return nil
	}
	// The entry of its own. It changes nothing.
	if err := g.proposeSurely(ctx, t, []block.Op{{Kind: block.OpGrow, Range: block.Range{Count: g.capacity()}}}); err != nil {
		return err
	}
	own := g.cfg.Store.Applied()
	if err := g.cfg.Journal.SetUint64([]byte(keyUnlogged), 1); err != nil {
		return err
	}
	alone := g.isAlone()
	g.alone.mu.Lock()
	defer g.alone.mu.Unlock()
	if alone && !g.pinned() && g.reshaped.Load() < own { // else own may be a snapshot's entry; the next time, then
		g.alone.term = t.term
	}
	return nil
}

// isAlone says whether nobody else has anything of the LUN, or is about to.
func (g *Group) isAlone() bool {
	_, servers, err := g.configuration()
	if err != nil || len(servers) != 1 || g.pinned() {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	_, self := g.members[g.cfg.Self.ID]
	return self && len(g.members) == 1
}

// endAlone has data go through the log from now on, and cuts the log off behind what it does not hold, if there is anything. Nobody may begin with it before
// this has returned nil. It can be repeated.
func (g *Group) endAlone(ctx context.Context, inst *instance) error {
	g.alone.turning.Lock()
	defer g.alone.turning.Unlock()
	g.alone.interrupt()
	if unlogged, err := g.cfg.Journal.GetUint64([]byte(keyUnlogged)); err != nil || unlogged == 0 {
		return err
	}
	behind := g.cfg.Store.Applied() // what the log does not hold counts as changed by this entry, or an older one
	if err := g.barrier(ctx, inst); err != nil {
		return err
	}
	if err := g.snapshot(ctx, inst); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return err
	}
	upTo := g.checkpointed()
	if upTo < behind {
		return fmt.Errorf("the checkpoint is of entry %d, not of %d", upTo, behind)
	}
	// Another entry, which stays: of a log without any, Raft would not know where it ends.
	if err := g.barrier(ctx, inst); err != nil {
		return err
	}
	if err := g.cfg.Journal.DeleteRange(0, upTo); err != nil {
		return err
	}
	return g.cfg.Journal.SetUint64([]byte(keyUnlogged), 0)
}
