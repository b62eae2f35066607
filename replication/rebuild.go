package replication

import (
	"context"
	"encoding/binary"
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
//	receiver  fetches the checksums of chunks changed since what it has, then only the blocks that differ
//	receiver  makes all that durable as index N, in one step with clearing the mark; begins a new log behind N
//	receiver  starts Raft again, under the same term and vote
//	owner     adds it as a learner, sends N+1.., and gives the vote back
//
// The copy is fuzzy: a block may be newer than N. That is harmless, because entries hold absolute writes: replaying N+1..
// writes the same again. (Entries about snapshots do not: see rebuild_snapshots.go, also for how snapshots come along.) A crash at any point leaves the mark, and the rebuild begins anew, comparing what it already has.

// Rebuildable is what a rebuild asks of a Store; see blockstore.Volume for the promises.
type Rebuildable interface {
	Inconsistent() bool
	Changed(since uint64, fn func(r block.Range) error) error
	ChunkInfo(chunk uint32, info *blockstore.ChunkInfo) error
	CheckChunk(chunk uint32, info *blockstore.ChunkInfo) (bad uint64, err error)
	BeginImport(ctx context.Context) error
	Import(ops []block.Op) error
	// ImportSnapshot keeps the present contents as a snapshot that another replica has; between BeginImport and EndImport.
	ImportSnapshot(s block.Snapshot) error
	EndImport(ctx context.Context, index uint64, state block.State) error
}

// rebuildState is guarded by Group.mu.
type rebuildState struct {
	running  bool
	order    string                      // receiver: the order it carries out or carried out last
	copied   int64                       // receiver: bytes fetched so far
	orders   map[raft.ServerID]string    // owner: what was ordered and has not ended with a vote
	pinUntil map[raft.ServerID]time.Time // owner: the log stays for these
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
	Done   bool  `json:"done"`
	Copied int64 `json:"copied"` // bytes fetched so far
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
	answer := rebuildAnswer{Done: !r.running && r.order == o.Order && g.inst != nil, Copied: r.copied}
	start := !r.running && r.order != o.Order
	if start {
		r.running, r.order, r.copied = true, o.Order, 0
	}
	g.mu.Unlock()
	if start {
		g.goFunc(func() { g.rebuildFrom(o.Owner) })
	}
	return json.Marshal(answer)
}

// rebuildFrom runs a rebuild to its end, trying again while the volume is in between. The owner may change meanwhile, so
// every data member is asked in turn.
func (g *Group) rebuildFrom(owner string) {
	defer func() {
		g.mu.Lock()
		g.rebuild.running = false
		g.mu.Unlock()
		g.cfg.OnChange()
	}()
	g.halt()
	for {
		started := time.Now()
		copied, err := g.rebuildOnce(owner)
		if err == nil {
			g.log.Info("rebuilt", "from", owner, "bytes", copied, "took", time.Since(started))
		} else {
			g.log.Warn("rebuild interrupted; trying again", "from", owner, "error", err)
		}
		if g.Err() != nil || g.ctx.Err() != nil {
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
		select {
		case <-time.After(rebuildRetryDelay):
		case <-g.ctx.Done():
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

func (g *Group) rebuildOnce(owner string) (copied int64, err error) {
	store := g.cfg.Store
	pin, err := g.askPin(owner)
	if err != nil {
		return 0, err
	}
	since := uint64(0)
	if !store.Inconsistent() {
		since = store.Applied()
	}
	if since > pin.Index {
		return 0, fmt.Errorf("the owner's log begins at %d, this replica has applied %d", pin.Index, since)
	}
	if err := store.BeginImport(g.ctx); err != nil {
		return 0, err
	}
	for {
		n, err := g.copyPinned(owner, pin, since)
		copied += n
		next, lost := g.askPin(owner)
		switch {
		case err != nil && (lost != nil || !movedOn(pin, next)):
			return copied, err
		case lost != nil:
			return copied, lost
		case err == nil && next.Reshaped <= pin.Index:
			if err := store.EndImport(g.ctx, pin.Index, pin.State); err != nil {
				return copied, err
			}
			g.reshaped.Store(pin.Index) // for those who took this replica for a source before
			g.dueReclaim()
			return copied, g.beginLogAt(pin)
		case err == nil:
			since = pin.Index
		}
		pin = next
		select {
		case <-time.After(rebuildRoundPause):
		case <-g.ctx.Done():
			return copied, block.ErrClosed
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

// copyChunks compares chunks with the owner's checksums of a state and fetches the blocks that differ.
func (g *Group) copyChunks(owner string, state block.SnapshotID, records []byte) (copied int64, err error) {
	var fetch []block.Sector
	var zeros []block.Op
	flush := func() error {
		if len(fetch) == 0 {
			return nil
		}
		ops, err := g.fetch(owner, state, fetch)
		if err != nil {
			return err
		}
		for _, op := range ops {
			copied += int64(len(op.Data))
		}
		g.mu.Lock()
		g.rebuild.copied += int64(len(fetch)) * block.Size
		g.mu.Unlock()
		fetch = fetch[:0]
		return g.importOps(ops)
	}
	var mine blockstore.ChunkInfo
	for ; len(records) > 0; records = records[chunkRecordBytes:] {
		chunk := binary.LittleEndian.Uint32(records)
		valid := binary.LittleEndian.Uint64(records[4:])
		bad, err := g.cfg.Store.CheckChunk(chunk, &mine)
		if err != nil {
			return copied, err
		}
		for n := range block.BlocksPerChunk {
			sum := binary.LittleEndian.Uint32(records[12+4*n:])
			at := block.Sector(uint64(chunk)*block.BlocksPerChunk+uint64(n)) * block.SectorsPerBlock
			theirs, ours := valid>>n&1 == 1, mine.Valid>>n&1 == 1
			switch {
			case theirs && (!ours || bad>>n&1 == 1 || mine.Sums[n] != sum):
				fetch = append(fetch, at)
				if len(fetch)*block.Size >= rebuildReadBytes {
					if err := flush(); err != nil {
						return copied, err
					}
				}
			case !theirs && ours:
				zeros = append(zeros, block.Op{Kind: block.OpZero, Range: block.Range{Start: at, Count: block.SectorsPerBlock}})
			}
		}
		if len(zeros) >= 1024 || len(records) == chunkRecordBytes {
			if err := g.importOps(zeros); err != nil {
				return copied, err
			}
			zeros = nil
		}
	}
	return copied, flush()
}

// importOps imports operations, in smaller pieces if there is no room for all at once: what a store foresees for many is more
// than they take, and what they free can be used after a checkpoint.
func (g *Group) importOps(ops []block.Op) error {
	err := g.cfg.Store.Import(ops)
	if !errors.Is(err, block.ErrNoSpace) || len(ops) < 2 {
		return err
	}
	if _, err := g.cfg.Store.Checkpoint(g.ctx); err != nil {
		return err
	}
	if err := g.importOps(ops[:len(ops)/2]); err != nil {
		return err
	}
	return g.importOps(ops[len(ops)/2:])
}

// fetch reads blocks from the owner. The answer carries each block's checksum, verified here before anything is stored.
func (g *Group) fetch(owner string, state block.SnapshotID, blocks []block.Sector) ([]block.Op, error) {
	method, req := methodRebuildRead, []byte(nil)
	if state != (block.SnapshotID{}) {
		method, req = methodRebuildSnapshotRead, append(req, state[:]...)
	}
	req = binary.LittleEndian.AppendUint32(req, uint32(len(blocks)))
	for _, at := range blocks {
		req = binary.LittleEndian.AppendUint64(req, uint64(at))
	}
	answer, err := g.ask(owner, method, append(req, g.cfg.LUN...))
	if err != nil {
		return nil, err
	}
	if len(answer) != len(blocks)*(4+block.Size) {
		return nil, fmt.Errorf("%d bytes for %d blocks", len(answer), len(blocks))
	}
	sums, data := answer[:4*len(blocks)], answer[4*len(blocks):]
	ops := make([]block.Op, len(blocks))
	for i, at := range blocks {
		ops[i] = block.Op{
			Kind: block.OpWrite, Range: block.Range{Start: at, Count: block.SectorsPerBlock},
			Data: data[i*block.Size : (i+1)*block.Size], Sums: []uint32{binary.LittleEndian.Uint32(sums[4*i:])},
		}
		if err := ops[i].Verify(); err != nil {
			return nil, err
		}
	}
	return ops, nil
}

func (g *Group) ask(node, method string, req []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(g.ctx, 30*time.Second)
	defer cancel()
	if node == g.cfg.Self.Node { // Fill: the owner is the replica beside this one
		return g.host.handlers[method](ctx, node, req)
	}
	return g.host.mux.CallBulk(ctx, node, method, req)
}
