package replication

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// A rebuild brings a replica up to date that the owner's log no longer reaches: it was away for too long, or it is a new
// incarnation without data. It happens with Raft stopped on the receiver, never inside Raft's Restore, which would block
// votes and appends for as long as the copy takes.
//
//	owner     notices that its log is too short (InstallSnapshot), takes the replica out of the group, tells it to rebuild
//	receiver  stops its Raft, marks its volume inconsistent, asks the owner to keep its log from index N on (pin)
//	receiver  fetches digests of the chunks changed since what it has, then only the blocks that differ
//	receiver  makes all that durable as index N, in one step with clearing the mark; begins a new log behind N
//	receiver  starts Raft again, under the same term and vote
//	owner     adds it as a learner, sends N+1.., and gives the vote back
//
// The copy is fuzzy: a block may be newer than N. That is harmless, because entries hold absolute writes: replaying N+1..
// writes the same again. (Entries about snapshots do not: see rebuild_snapshots.go, also for how snapshots come along.) A crash at any
// point leaves the mark, and the rebuild goes on where it was (rebuild_cursor.go), with whoever owns the LUN then. What the
// volume held before is kept until the end (rebuild_before.go). How the two compare: rebuild_digest.go; how fast: rebuild_pace.go.

// Rebuildable is what a rebuild asks of a Store; see blockstore.Volume for the promises.
type Rebuildable interface {
	Inconsistent() bool
	Changed(since uint64, fn func(r block.Range) error) error
	ChunkInfo(chunk uint32, info *blockstore.ChunkInfo) error
	CheckChunk(chunk uint32, info *blockstore.ChunkInfo) (bad uint64, err error)
	ReadChunk(chunk uint32, blocks uint64, info *blockstore.ChunkInfo, fn func(n int, data []byte)) (bad uint64, err error)
	BeginImport(ctx context.Context) error
	Import(ops []block.Op) error
	// ImportSnapshot keeps the present contents as a snapshot that another replica has; between BeginImport and EndImport.
	ImportSnapshot(s block.Snapshot) error
	EndImport(ctx context.Context, index uint64, state block.State) error
	// Before is what is kept of the time before BeginImport; AbandonImport returns to it, ForgetBefore gives it up.
	Before() (block.Snapshot, bool)
	AbandonImport(ctx context.Context) error
	ForgetBefore(ctx context.Context) error
}

// rebuildState is guarded by Group.mu.
type rebuildState struct {
	running bool
	order   string          // receiver: the order it carries out or carried out last
	done    RebuildProgress // receiver
	rated   time.Time       // receiver: when done.PerSecond was last computed, and what had been seen then
	ratedAt int64
	heard   time.Time     // receiver: when a source answered last
	owner   string        // receiver: the node that said last that it owns the LUN
	told    raft.ServerID // receiver: which Status has named as the owner, at the last tick
	stop    func()        // receiver: ends the rebuild that runs and waits for that

	orders   map[raft.ServerID]string          // owner: what was ordered and has not ended with a vote
	progress map[raft.ServerID]RebuildProgress // owner: what the receivers said last
	pinUntil map[raft.ServerID]time.Time       // owner: the log stays for these
}

// keepOrders forgets, at the owner, what was ordered of those who are no members any more: replaced before they carried it out. The caller
// holds Group.mu.
func (r *rebuildState) keepOrders(members map[raft.ServerID]Member) {
	for id := range r.orders {
		if _, member := members[id]; !member {
			r.voidOrder(id)
		}
	}
}

// voidOrder forgets, at the owner, what was ordered of a receiver. The caller holds Group.mu.
func (r *rebuildState) voidOrder(id raft.ServerID) {
	delete(r.orders, id)
	delete(r.progress, id)
	delete(r.pinUntil, id)
}

const (
	pinTime           = time.Minute // renewed by every request of the receiver
	rebuildChunks     = 4096        // chunks whose checksums travel in one answer: 1.1 MiB
	rebuildReadBytes  = 2 << 20     // blocks in one answer
	rebuildRetryDelay = time.Second
	rebuildRoundPause = 50 * time.Millisecond
	chunkRecordBytes  = 4 + 8 + 4*block.BlocksPerChunk
)

// rebuildOrder is what the owner tells a receiver, and what the receiver asks with.
type rebuildOrder struct {
	LUN   string        `json:"lun"`
	ID    raft.ServerID `json:"id"`    // the receiver
	Owner string        `json:"owner"` // node
	Order string        `json:"order"` // random: the same order again asks how far it is
	// Snapshots: whoever asks knows snapshots. One that does not would end without them, and is refused where there are any.
	Snapshots bool `json:"snapshots,omitempty"`
}

// rebuildAnswer is what the receiver says to an order.
type rebuildAnswer struct {
	Done bool `json:"done"`
	RebuildProgress
}

// rebuildPin is where the copy begins, as the owner says.
type rebuildPin struct {
	Index              uint64      `json:"index"`
	Term               uint64      `json:"term"`
	Configuration      []byte      `json:"configuration"` // Raft's encoding
	ConfigurationIndex uint64      `json:"configuration_index"`
	State              block.State `json:"state"`
	// Capacity is at least what the volume had at Index. One that has grown since is no harm: growing again does nothing.
	Capacity block.Count `json:"capacity"`
	// Snapshots are those the volume had at Index or has been given since; oldest first.
	Snapshots []rebuildSnapshot `json:"snapshots,omitempty"`
	// Reshaped is the newest entry about snapshots the owner has applied, or begun to; at least what it had applied when it was
	// started, since it remembers none from before.
	Reshaped uint64 `json:"reshaped,omitempty"`
}

// orderedGroup finds the group an order is for; asOwner: the order is addressed to the owner, not to the receiver.
func (h *Host) orderedGroup(req []byte, asOwner bool) (*Group, rebuildOrder, error) {
	var o rebuildOrder
	if err := json.Unmarshal(req, &o); err != nil {
		return nil, o, fmt.Errorf("malformed rebuild order: %w", err)
	}
	g, err := h.group(o.LUN)
	switch {
	case err != nil:
		return nil, o, err
	case asOwner && g.tenure.Load() == nil:
		return nil, o, block.ErrNotOwner
	case !asOwner && (g.cfg.Self.ID != o.ID || g.cfg.Store == nil):
		return nil, o, errNoReplica
	}
	return g, o, nil
}

func (h *Host) serveRebuild(_ context.Context, _ string, req []byte) ([]byte, error) {
	g, o, err := h.orderedGroup(req, false)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	r := &g.rebuild
	answer := rebuildAnswer{Done: !r.running && r.order == o.Order && g.inst != nil, RebuildProgress: r.done}
	start := !r.running && r.order != o.Order
	if r.running && r.order == "" {
		r.order = o.Order // one that was interrupted goes on by itself after a start; this is what it does
	}
	if start {
		r.running, r.order, r.done = true, o.Order, RebuildProgress{}
	}
	g.mu.Unlock()
	if start {
		g.startRebuild(o.Owner)
	}
	return json.Marshal(answer)
}

// startRebuild runs a rebuild on a goroutine of its own. The caller has set running.
func (g *Group) startRebuild(owner string) {
	ctx, cancel := context.WithCancel(g.ctx)
	done := make(chan struct{})
	g.mu.Lock()
	g.rebuild.rated, g.rebuild.ratedAt, g.rebuild.heard, g.rebuild.owner = time.Now(), 0, time.Now(), ""
	g.rebuild.stop = func() {
		cancel()
		select {
		case <-done:
		case <-g.ctx.Done():
		}
	}
	g.mu.Unlock()
	g.goFunc(func() {
		defer close(done)
		defer cancel()
		g.rebuildFrom(ctx, owner)
	})
}

// rebuildFrom runs a rebuild to its end, trying again while the volume is in between. The owner may change meanwhile, so
// every data member is asked in turn.
func (g *Group) rebuildFrom(ctx context.Context, owner string) {
	defer func() {
		g.mu.Lock()
		g.rebuild.running = false
		g.mu.Unlock()
		g.cfg.OnChange()
	}()
	g.halt()
	var cursor *rebuildCursor
	if g.cfg.Store.Inconsistent() {
		cursor = g.loadRebuildCursor()
	}
	for {
		started := time.Now()
		copied, err := g.rebuildOnce(ctx, owner, &cursor)
		if err == nil {
			g.dropRebuildCursor()
			g.log.Info("rebuilt", "from", owner, "bytes", copied, "took", time.Since(started))
		} else {
			g.log.Warn("rebuild interrupted; trying again", "from", owner, "error", err)
		}
		if g.Err() != nil {
			return
		}
		if err != nil && cursor != nil && g.cfg.Store.Inconsistent() {
			if err := g.saveRebuildCursor(context.WithoutCancel(ctx), cursor); err != nil && ctx.Err() == nil {
				g.log.Warn("how far the rebuild is was not written down", "error", err)
			}
		}
		if ctx.Err() != nil {
			return
		}
		if !g.cfg.Store.Inconsistent() { // rebuilt, or not yet begun: then the owner orders it again
			if err != nil {
				g.mu.Lock()
				g.rebuild.order = ""
				g.mu.Unlock()
			}
			if err := g.start(); err != nil {
				g.fail(fmt.Errorf("start after a rebuild: %w", err))
			}
			return
		}
		if g.pause(ctx, rebuildRetryDelay) != nil {
			return
		}
		owner = g.nextSource(owner)
	}
}

// nextSource returns another data member's node to ask, in a fixed order.
func (g *Group) nextSource(after string) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	best, first := "", ""
	for _, m := range g.members {
		if m.Witness || m.Node == g.cfg.Self.Node {
			continue
		}
		if first == "" || m.Node < first {
			first = m.Node
		}
		if m.Node > after && (best == "" || m.Node < best) {
			best = m.Node
		}
	}
	if best != "" {
		return best
	}
	return first
}

func (g *Group) rebuildOnce(ctx context.Context, owner string, cursor **rebuildCursor) (copied int64, err error) {
	store := g.cfg.Store
	pin, err := g.askPin(ctx, owner)
	if err != nil {
		return 0, err
	}
	if !store.Inconsistent() {
		if store.Applied() > pin.Index {
			return 0, fmt.Errorf("the owner's log begins at %d, this replica has applied %d", pin.Index, store.Applied())
		}
		*cursor = g.newRebuildCursor(store.Applied())
		// First the file, then the mark: a file that is older than the mark would be one of another rebuild.
		if err := g.saveRebuildCursor(ctx, *cursor); err != nil {
			return 0, err
		}
		if err := store.BeginImport(ctx); err != nil {
			return 0, err
		}
	}
	for {
		n, err := g.copyPinned(ctx, owner, pin, *cursor)
		copied += n
		next, lost := g.askPin(ctx, owner)
		switch {
		case err != nil && (lost != nil || !movedOn(pin, next)):
			return copied, err
		case lost != nil:
			return copied, lost
		case err == nil && next.Reshaped <= pin.Index:
			if err := store.EndImport(ctx, pin.Index, pin.State); err != nil {
				return copied, err
			}
			g.reshaped.Store(pin.Index) // for those who took this replica for a source before
			g.dueReclaim()
			return copied, g.beginLogAt(pin)
		}
		pin = next
		if err := g.pause(ctx, rebuildRoundPause); err != nil {
			return copied, err
		}
	}
}

// beginLogAt makes the log start behind the copy. Whichever of the two steps a crash leaves undone, Raft starts: an old log
// before the snapshot is obsolete, and the volume skips entries it already has.
func (g *Group) beginLogAt(pin rebuildPin) error {
	sink, err := g.cfg.Journal.Snapshots().Create(1, pin.Index, pin.Term, raft.DecodeConfiguration(pin.Configuration), pin.ConfigurationIndex, nil)
	if err != nil {
		return err
	}
	if _, err := sink.Write(g.encodeMark(pin.Index)); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	if err := sink.Close(); err != nil {
		return err
	}
	return g.cfg.Journal.Reset()
}

// importOps imports operations, in smaller pieces if there is no room for all at once: what a store foresees for many is more
// than they take, and what they free can be used after a checkpoint. If not even that does, what was kept from before the
// rebuild has to go: a copy that is whole is worth more than one that can be returned to.
func (g *Group) importOps(ctx context.Context, ops []block.Op) error {
	store := g.cfg.Store
	err := store.Import(ops)
	if !errors.Is(err, block.ErrNoSpace) || len(ops) == 0 {
		return err
	}
	if _, err := store.Checkpoint(ctx); err != nil {
		return err
	}
	if len(ops) > 1 {
		if err := g.importOps(ctx, ops[:len(ops)/2]); err != nil {
			return err
		}
		return g.importOps(ctx, ops[len(ops)/2:])
	}
	before, kept := store.Before()
	if !kept {
		return store.Import(ops)
	}
	g.log.Warn("the pool has no room for a rebuild beside what the copy held before: that is given up", "entry", before.Index)
	if err := store.ForgetBefore(ctx); err != nil {
		return err
	}
	return store.Import(ops)
}

// ask calls a method of the source.
func (g *Group) ask(ctx context.Context, node, method string, req []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var answer []byte
	var err error
	if node == g.cfg.Self.Node { // Fill: the owner is the replica beside this one
		answer, err = g.host.handlers[method](ctx, node, req)
	} else {
		answer, err = g.host.mux.CallBulk(ctx, node, method, req)
	}
	if err == nil {
		g.mu.Lock()
		g.rebuild.heard = time.Now()
		g.mu.Unlock()
	}
	return answer, err
}
