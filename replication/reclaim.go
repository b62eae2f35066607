package replication

import (
	"errors"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/replication/command"
)

const (
	// reclaimChunks is how many chunks one call of Store.Reclaim looks at: some milliseconds.
	reclaimChunks = 4096
	// reclaimPause lies between two calls, for whoever waits for the same locks and the same disk.
	reclaimPause = 20 * time.Millisecond
	// reclaimEvery is when it is looked for what nobody here has heard of: a clone that was deleted no longer needs what its
	// origin, another LUN, has kept for it.
	reclaimEvery = 10 * time.Minute
)

// reclaim gives back what deleted snapshots have left behind, on every copy for itself: after a deletion, after a rebuild, and
// at the start, since a crash may have come in between. It runs beside Apply.
func (g *Group) reclaim() {
	g.dueReclaim()
	ticker := time.NewTicker(reclaimEvery)
	defer ticker.Stop()
	for {
		select {
		case <-g.ctx.Done():
			return
		case <-g.reclaimDue:
		case <-ticker.C:
		}
		if g.Err() == nil {
			g.reclaimOnce()
		}
	}
}

// reclaimOnce goes on until there is nothing left. What was freed can be used again after a checkpoint.
func (g *Group) reclaimOnce() {
	store := g.cfg.Store
	for again := true; again; {
		more, err := store.Reclaim(reclaimChunks)
		if err == nil && !more {
			_, err = store.Checkpoint(g.ctx)
			again = false
		}
		switch {
		case errors.Is(err, block.ErrFailed):
			g.fail(err)
			return
		case err != nil:
			if g.ctx.Err() == nil && !errors.Is(err, block.ErrClosed) {
				g.log.Warn("space of deleted snapshots is not given back yet", "error", err)
			}
			return // the next deletion, the ticker or a start looks again
		}
		select {
		case <-time.After(reclaimPause):
		case <-g.ctx.Done():
			return
		}
	}
}

func (g *Group) dueReclaim() {
	select {
	case g.reclaimDue <- struct{}{}:
	default:
	}
}

// noteReshape is called before operations on snapshots take effect, and reshapedBy after it. A rebuild whose copy was taken
// while such an entry was applied cannot be brought up to date by replaying it; see rebuild.go. Nothing goes past the log behind it; see alone.go.
func (g *Group) noteReshape(index uint64, e command.Entry) (snapshots bool) {
	for i := range e.Ops {
		if aboutSnapshots(&e.Ops[i]) {
			g.reshaped.Store(index)
			g.alone.interrupt()
			return true
		}
	}
	return false
}

func (g *Group) reshapedBy(e command.Entry) {
	for i := range e.Ops {
		switch e.Ops[i].Kind {
		case block.OpDeleteSnapshot:
			g.dueReclaim()
		case block.OpRollback:
			g.dueReclaim()
			g.cfg.OnRollback()
		}
	}
}
