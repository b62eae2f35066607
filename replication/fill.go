package replication

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// Two members of a group cannot run on one node. Where a replica is to take the place of another on the same node (a copy that of the witness, or a copy
// in another pool), the other votes and takes writes until the new one holds everything but the last moments: it is filled without being a
// member, as a rebuild fills one, and then joins with what it has while the other goes.

// Fill brings the storage of a replica that does not run up to what the owner holds: cfg.Store and cfg.Journal, which stay the caller's. It tries the
// nodes of all copies in turn until one of them is the owner's, or ctx ends. It goes on where it was interrupted, as far as what is there already is
// not fetched again. The replica joins afterwards: what it lacks by then it is sent, or rebuilt, as ever.
func (h *Host) Fill(ctx context.Context, cfg Config) error {
	if cfg.Store == nil {
		return errors.New("a witness has nothing to be filled with")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Rebuild.setDefaults()
	g := &Group{
		cfg: cfg, host: h, log: cfg.Logger.With("lun", cfg.LUN, "replica", string(cfg.Self.ID)), members: map[raft.ServerID]Member{}, reclaimDue: make(chan struct{}, 1),
	}
	g.ctx, g.cancel = context.WithCancel(ctx)
	defer g.cancel()
	var sources []string
	for _, m := range cfg.Members {
		if !m.Witness && m.ID != cfg.Self.ID && !slices.Contains(sources, m.Node) {
			sources = append(sources, m.Node)
		}
	}
	if len(sources) == 0 {
		return errors.New("there is no copy to fill this one from")
	}
	var cursor *rebuildCursor
	if cfg.Store.Inconsistent() { // one that was interrupted goes on
		cursor = g.loadRebuildCursor()
	}
	for i := 0; ; i++ {
		from := sources[i%len(sources)]
		began := time.Now()
		copied, err := g.rebuildOnce(g.ctx, from, &cursor)
		if err == nil {
			g.log.Info("filled, to take the place of another replica on this node", "from", from, "bytes", copied, "took", time.Since(began))
			return nil
		}
		if failed := cfg.Store.Failed(); failed != nil {
			return failed
		}
		g.log.Debug("not filled yet", "from", from, "error", err)
		select {
		case <-time.After(fillRetry):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// fillRetry is the pause before the next node is asked.
const fillRetry = 200 * time.Millisecond
