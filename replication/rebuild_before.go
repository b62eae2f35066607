package replication

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore"
)

// What a replica held before a rebuild overwrote it stays until the rebuild has ended: the store keeps it, as a snapshot
// nobody sees (blockstore's before.go), and its log stays as it was. If every source is lost for good, that is a consistent
// copy, of an older moment, where there would be a mixture. Returning to it is never done by itself, since nobody but an
// operator can know that a source will not come back; and it decides nothing: the replica is then one that has been away since
// that moment. If another copy returns after all, it is rebuilt. To serve from it takes a forced recovery.

// RebuildBefore is what is kept from before a rebuild.
type RebuildBefore struct {
	Index uint64    // it is the LUN as of this entry
	AsOf  time.Time // when the owner of then took that entry; zero: not known any more
	Began time.Time // the rebuild; it is older than that
}

// ErrSourceAnswers: the rebuild goes on, or could; its source has been heard of lately.
var ErrSourceAnswers = errors.New("the rebuild's source answers")

// sourceSilence is how long no source may have answered before its copy may be given up.
const sourceSilence = 10 * time.Second

// Before says what FallBack would return to; ok is false if this replica is not in a rebuild, or nothing is kept.
func (g *Group) Before() (b RebuildBefore, ok bool) {
	if g.cfg.Store == nil {
		return b, false
	}
	s, ok := g.cfg.Store.Before()
	if !ok {
		return b, false
	}
	b = RebuildBefore{Index: s.Index, Began: time.UnixMilli(s.Created)}
	var l raft.Log
	if g.cfg.Journal.GetLog(s.Index, &l) == nil {
		b.AsOf = l.AppendedAt
	}
	return b, true
}

// FallBack gives the rebuild up and makes this replica what it was before it: an older, consistent copy. It is refused while a
// source answers (ErrSourceAnswers), and if nothing is kept (blockstore.ErrNothingKept).
func (g *Group) FallBack(ctx context.Context) (RebuildBefore, error) {
	b, ok := g.Before()
	if !ok {
		return b, fmt.Errorf("LUN %s: %w", g.cfg.LUN, blockstore.ErrNothingKept)
	}
	g.mu.Lock()
	stop, silent := g.rebuild.stop, time.Since(g.rebuild.heard)
	g.mu.Unlock()
	if silent < sourceSilence {
		return b, fmt.Errorf("LUN %s: %w: %v ago; wait for the rebuild, or until its source has been silent for %v", g.cfg.LUN, ErrSourceAnswers, silent.Round(time.Second), sourceSilence)
	}
	if stop != nil {
		stop()
	}
	if _, ok := g.Before(); !ok || g.ctx.Err() != nil {
		return b, fmt.Errorf("LUN %s: the rebuild has ended, or this replica is closing", g.cfg.LUN)
	}
	if err := g.cfg.Store.AbandonImport(ctx); err != nil {
		g.mu.Lock()
		g.rebuild.running = true
		g.mu.Unlock()
		g.startRebuild(g.nextSource(""))
		return b, err
	}
	g.dropRebuildCursor()
	g.mu.Lock()
	g.rebuild.order = ""
	g.mu.Unlock()
	g.log.Warn("the rebuild was given up: this copy is again what it was before", "entry", b.Index, "as of", b.AsOf)
	g.dueReclaim()
	if err := g.start(); err != nil {
		g.fail(fmt.Errorf("start after a rebuild was given up: %w", err))
		return b, err
	}
	g.cfg.OnChange()
	return b, nil
}
