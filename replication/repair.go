package replication

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// A block that does not match its checksum is read from a peer, written again here, counted and reported. What must never
// happen is that the peer's block is of another moment of the log than the one it replaces, so:
//
// The interval rule. A replica that is exact (exact.go) and has applied up to A, with the newest change of a chunk made by entry
// E, holds in that chunk what the log says at every index from E to A. Two replicas whose intervals share an index hold the
// same. The requester asks for a peer that has applied at least what it has itself, so that its own interval begins no later than the
// peer's ends, also if it does not know any more where it begins (a map page is damaged). The peer answers with its interval
// [Pe, Pa] and blocks that were read while it stood still. The requester waits until it has applied Pe, and has Store.Repair
// refuse if its chunk has been changed after Pa by then. So the two share an index when the blocks are written. If the chunk
// is changed too often for that, it is tried again.
//
// The lock rule, for the owner, whose initiators wait. While it holds the range lock on the blocks, nothing it proposes in its
// tenure changes them, and what an earlier owner proposed has been applied before the tenure began or never takes effect
// (rule F). So a peer that has applied as much as the owner had when it got the lock has the right blocks at any later index,
// whatever happens in the rest of the chunk, unless another has become the owner. That no other had when the answer was
// given, is what confirm says after it (rule L).
//
// Snapshots never change: any exact replica that has the snapshot holds the same.
//
// In all cases the data is checked against the checksum the peer sent, and against the one this replica has. If those differ, either
// the checksum here is what is damaged, or one of the two holds something the log does not say. It is the former if what lies
// here on the medium is what the peer has; or else if a second peer has the same as the first. Otherwise nobody can tell, and
// the error stays what it was, as it does if nobody has the block.

// Mendable is what repairs ask of a Store; see blockstore.Volume for the promises.
type Mendable interface {
	Snapshots() []block.Snapshot
	View(id block.SnapshotID) (*blockstore.View, error)
	Repair(snapshot block.SnapshotID, chunk uint32, blocks uint64, data []byte, asOf uint64) (done uint64, err error)
	// Overwrite is Repair of what matches its checksums and is wrong all the same.
	Overwrite(snapshot block.SnapshotID, chunk uint32, blocks uint64, data []byte, asOf uint64) (done uint64, err error)
	// CheckMap writes anew what is damaged of the map on the medium; LostChunks says what was lost of it at the start.
	CheckMap(chunk uint32) (blockstore.MapCheck, error)
	LostChunks(limit int) []blockstore.LostChunk
	MediumSums(snapshot block.SnapshotID, chunk uint32, blocks uint64) ([block.BlocksPerChunk]uint32, error)
}

const (
	// repairWithin bounds a repair an initiator waits for.
	repairWithin = 5 * time.Second
	// repairRounds is how often every peer is asked while the chunk changes under the repair.
	repairRounds = 40
	repairPause  = 25 * time.Millisecond
)

var (
	errNoPeer  = errors.New("no other copy can be asked")
	errMoved   = errors.New("the chunk changes while it is repaired")
	errPeerBad = errors.New("the peer's copy of it is bad too")
	errDiffers = errors.New("the peer has something else than this replica's checksum says")
)

// repairRule is under which rule a repair is made.
type repairRule struct {
	held  *tenure // not nil: the lock rule; the caller holds the range lock on all the blocks, in this tenure
	from  string  // only this node is asked; empty: whoever can answer
	force bool    // the blocks here match their checksums and are wrong all the same
	// heard has what peers said that this replica's checksum does not agree with, by block, and who.
	heard map[int]map[uint32]string
}

// readAt is Store.ReadAt for the owner, in tenure t: what does not match its checksum is repaired first. held is the range the
// caller has locked, empty if it has locked none.
func (g *Group) readAt(ctx context.Context, t *tenure, held, r block.Range, dst []byte) error {
	for left := r.Bytes()/block.Size + 2; ; left-- { // each round repairs a block, or ends with an error
		err := g.cfg.Store.ReadAt(r, dst)
		if err == nil {
			return nil // before anything is made on the heap
		}
		corrupt := (*block.CorruptError)(nil)
		if !errors.As(err, &corrupt) || corrupt.Range.Count == 0 || left == 0 {
			return g.outIfFailed(err)
		}
		if merr := g.mendRead(ctx, t, held, corrupt.Range); merr != nil {
			return fmt.Errorf("%w; not repaired: %w", err, merr)
		}
	}
}

// readState fills dst, on an owner that has locked nothing, with what the live volume or a snapshot holds.
func (g *Group) readState(ctx context.Context, id block.SnapshotID, r block.Range, dst []byte) error {
	if id != (block.SnapshotID{}) {
		return g.readSnapshot(ctx, id, r, dst)
	}
	t, err := g.owned()
	if err != nil {
		return err
	}
	return g.readAt(ctx, t, block.Range{}, r, dst)
}

// readSnapshot fills dst with blocks of a snapshot; what does not match its checksum is repaired first.
func (g *Group) readSnapshot(ctx context.Context, id block.SnapshotID, r block.Range, dst []byte) error {
	for left := r.Bytes()/block.Size + 2; ; left-- {
		view, err := g.cfg.Store.View(id)
		if err != nil {
			return err
		}
		err = view.ReadAt(r, dst)
		corrupt := (*block.CorruptError)(nil)
		if !errors.As(err, &corrupt) || corrupt.Range.Count == 0 || left == 0 {
			return g.outIfFailed(err)
		}
		key := chunkKey{snapshot: id, chunk: uint32(corrupt.Range.Offset() / block.ChunkSize)}
		within, cancel := context.WithTimeout(ctx, repairWithin)
		bad, merr := g.badBlocks(key)
		if merr == nil {
			var still uint64
			if still, merr = g.mend(within, key, bad, repairRule{}); still&key.blocksOf(corrupt.Range) == 0 {
				merr = nil
			}
		}
		cancel()
		if merr != nil {
			return fmt.Errorf("%w; not repaired: %w", err, merr)
		}
	}
}

// mendRead repairs the bad blocks of the chunk in which a read has met one; what is not locked yet it locks. Each call ends with
// at least that block repaired, or with an error.
func (g *Group) mendRead(ctx context.Context, t *tenure, held, bad block.Range) error {
	key := chunkKey{chunk: uint32(bad.Offset() / block.ChunkSize)}
	ctx, cancel := context.WithTimeout(ctx, repairWithin)
	defer cancel()
	if held.Count == 0 {
		lock, err := g.locks.lock(ctx, key.chunkRange())
		if err != nil {
			return err
		}
		defer g.locks.unlock(lock)
		held = key.chunkRange()
	}
	found, err := g.badBlocks(key)
	if err != nil {
		return err
	}
	left, err := g.mend(ctx, key, found&key.blocksOf(held), repairRule{held: t})
	if left&key.blocksOf(bad) == 0 {
		return nil // others of this chunk are not what was asked for
	}
	return err
}

// badBlocks reads a chunk and returns what does not match its checksum. A chunk of which nothing is known is bad as a whole.
func (g *Group) badBlocks(key chunkKey) (uint64, error) {
	r, err := g.stateOf(key.snapshot)
	if err != nil {
		return 0, err
	}
	whole := block.Range{Count: r.Geometry().Capacity}
	var info blockstore.ChunkInfo
	bad, err := r.CheckChunk(key.chunk, &info)
	if corrupt := (*block.CorruptError)(nil); errors.As(err, &corrupt) {
		return key.blocksOf(whole), nil
	}
	return bad & key.blocksOf(whole), err
}

// mend repairs bad blocks of a chunk and keeps count of them. It returns those that are still bad, and why.
func (g *Group) mend(ctx context.Context, key chunkKey, bad uint64, rule repairRule) (left uint64, err error) {
	if bad == 0 {
		return 0, nil
	}
	if g.repairs.found(key, bad) {
		g.log.Warn("blocks do not match their checksums; asking the other copies for them", "where", key.String(), "blocks", fmt.Sprintf("%016x", bad))
	}
	left, err = g.repairChunk(ctx, key, bad, rule)
	g.repairs.repaired(key, bad&^left)
	if left != bad {
		g.log.Info("blocks have been repaired from another copy", "where", key.String(), "blocks", fmt.Sprintf("%016x", bad&^left))
	}
	if left != 0 {
		g.log.Error("blocks do not match their checksums and could not be repaired", "where", key.String(), "blocks", fmt.Sprintf("%016x", left), "error", err)
		g.cfg.OnChange()
	}
	return left, err
}

// repairChunk asks one copy after another until all blocks are repaired. Only a chunk that changes meanwhile, or a copy
// that is behind for the moment, is asked about again.
func (g *Group) repairChunk(ctx context.Context, key chunkKey, left uint64, rule repairRule) (uint64, error) {
	last := errNoPeer
	rule.heard = map[int]map[uint32]string{}
	for range repairRounds {
		again := false
		for _, m := range g.repairSources(rule.from) {
			done, err := g.repairFrom(ctx, m, key, left, rule)
			if left &^= done; left == 0 {
				return 0, nil
			}
			if err != nil {
				last = fmt.Errorf("%s: %w", m.Node, err)
			}
			again = again || errors.Is(err, errMoved)
		}
		if !again {
			break
		}
		select {
		case <-time.After(repairPause):
		case <-ctx.Done():
			return left, errors.Join(last, ctx.Err())
		}
	}
	return left, last
}

// repairSources returns whom to ask: the owner first, then copies in sync, then the others that can be reached.
func (g *Group) repairSources(only string) []Member {
	rank := map[string]int{}
	s := g.Status()
	for _, p := range s.Peers {
		if p.InSync {
			rank[p.Node] = 1
		}
	}
	rank[s.Owner.Node] = 2
	g.mu.Lock()
	var out []Member
	for _, m := range g.members {
		if m.Witness || m.Node == g.cfg.Self.Node || only != "" && m.Node != only {
			continue
		}
		out = append(out, m)
	}
	g.mu.Unlock()
	out = slices.DeleteFunc(out, func(m Member) bool { return !g.host.mux.Up(m.Node) })
	slices.SortFunc(out, func(a, b Member) int {
		if d := rank[b.Node] - rank[a.Node]; d != 0 {
			return d
		}
		return int(incarnation(a.ID)) - int(incarnation(b.ID))
	})
	return out
}

// repairFrom repairs what one peer has, and returns which blocks that were.
func (g *Group) repairFrom(ctx context.Context, m Member, key chunkKey, blocks uint64, rule repairRule) (done uint64, err error) {
	answer, err := g.askBlocks(ctx, m, repairRequest{key: key, blocks: blocks, atLeast: g.cfg.Store.Applied()})
	if err != nil {
		return 0, err
	}
	got := answer.given & blocks
	if got == 0 {
		return 0, errPeerBad
	}
	if key.live() && rule.held == nil {
		return g.repairShared(ctx, key, got, answer, rule)
	}
	if !rule.force {
		local, err := g.chunkInfo(key)
		if err != nil {
			return 0, err
		}
		if got, err = g.believed(key, answer, got, &local, rule); got == 0 {
			return 0, errors.Join(errDiffers, err)
		}
	}
	if key.live() {
		return g.repairHeld(ctx, key, got, answer, rule)
	}
	return g.replace(key, got, answer, block.NoIndex, rule)
}

// replace puts an answer's blocks in the place of those here.
func (g *Group) replace(key chunkKey, blocks uint64, answer *repairAnswer, asOf uint64, rule repairRule) (done uint64, err error) {
	if rule.force {
		return g.cfg.Store.Overwrite(key.snapshot, key.chunk, blocks, answer.data(blocks), asOf)
	}
	return g.cfg.Store.Repair(key.snapshot, key.chunk, blocks, answer.data(blocks), asOf)
}

// chunkInfo is what the map here says; nothing, if that is what is bad.
func (g *Group) chunkInfo(key chunkKey) (info blockstore.ChunkInfo, err error) {
	r, err := g.stateOf(key.snapshot)
	if err != nil {
		return info, err
	}
	err = r.ChunkInfo(key.chunk, &info)
	if corrupt := (*block.CorruptError)(nil); errors.As(err, &corrupt) {
		return blockstore.ChunkInfo{Index: g.cfg.Store.Applied()}, nil // as new as it can be
	}
	return info, err
}

// repairHeld is the lock rule. Other blocks of the chunk may change all the time: that is no reason to ask again.
func (g *Group) repairHeld(ctx context.Context, key chunkKey, blocks uint64, answer *repairAnswer, rule repairRule) (done uint64, err error) {
	if err := g.confirm(ctx, rule.held); err != nil {
		return 0, err
	}
	for {
		done, err := g.replace(key, blocks, answer, g.cfg.Store.Applied(), rule)
		if !errors.Is(err, blockstore.ErrChanged) {
			return done, err
		}
		if ctx.Err() != nil {
			return 0, errors.Join(err, ctx.Err())
		}
	}
}

// repairShared is the interval rule. If the chunk has changed here after the answer, but a block's own checksum is intact and is
// that of the answer, the block has not: then it only has to be got in between two changes.
func (g *Group) repairShared(ctx context.Context, key chunkKey, blocks uint64, answer *repairAnswer, rule repairRule) (done uint64, err error) {
	if err := g.awaitApplied(ctx, answer.index); err != nil {
		return 0, fmt.Errorf("%w: %w", errMoved, err)
	}
	for range repairRounds {
		local, err := g.chunkInfo(key)
		if err != nil {
			return 0, err
		}
		got, asOf, refusal := blocks, answer.applied, errDiffers
		switch {
		case local.Index > answer.applied && rule.force:
			return 0, errMoved
		case local.Index > answer.applied:
			got, asOf, refusal = answer.proven(blocks, &local), local.Index, errMoved
		case !rule.force:
			if got, err = g.believed(key, answer, blocks, &local, rule); err != nil {
				return 0, err
			}
		}
		if got == 0 {
			return 0, refusal
		}
		done, err := g.replace(key, got, answer, asOf, rule)
		if !errors.Is(err, blockstore.ErrChanged) {
			return done, err
		}
	}
	return 0, errMoved
}

// awaitApplied waits until this replica has applied an index, for as long as a peer that is in sync may lag.
func (g *Group) awaitApplied(ctx context.Context, index uint64) error {
	ctx, cancel := context.WithTimeout(ctx, repairLag)
	defer cancel()
	for g.cfg.Store.Applied() < index {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("applied %d of %d: %w", g.cfg.Store.Applied(), index, ctx.Err())
		case <-g.ctx.Done():
			return block.ErrClosed
		}
	}
	return nil
}

// repairLag is how long a replica may take to apply what another has.
const repairLag = 2 * time.Second

// believed returns which of an answer's blocks may replace those here: see the beginning of this file.
func (g *Group) believed(key chunkKey, a *repairAnswer, blocks uint64, local *blockstore.ChunkInfo, rule repairRule) (uint64, error) {
	out := a.agreeing(blocks, local)
	if out == blocks {
		return out, nil
	}
	medium, err := g.cfg.Store.MediumSums(key.snapshot, key.chunk, blocks&^out)
	if err != nil {
		return 0, err
	}
	for rest := blocks &^ out; rest != 0; rest &= rest - 1 {
		n := bits.TrailingZeros64(rest)
		said := rule.heard[n]
		if said == nil {
			said = map[uint32]string{}
			rule.heard[n] = said
		}
		first, before := said[a.sums[n]]
		if medium[n] == a.sums[n] && medium[n] != 0 || before && first != a.node {
			out |= 1 << n
		} else {
			said[a.sums[n]] = a.node
		}
	}
	return out, nil
}

// agreeing returns which of the blocks have the checksum this replica knows, or of which it knows none.
func (a *repairAnswer) agreeing(blocks uint64, local *blockstore.ChunkInfo) (out uint64) {
	for rest := blocks; rest != 0; rest &= rest - 1 {
		n := bits.TrailingZeros64(rest)
		if known := local.Valid>>n&1 == 1 && local.Sums[n] != 0; !known || local.Sums[n] == a.sums[n] {
			out |= 1 << n
		}
	}
	return out
}

// proven is agreeing without those of which nothing is known.
func (a *repairAnswer) proven(blocks uint64, local *blockstore.ChunkInfo) (out uint64) {
	for rest := a.agreeing(blocks, local); rest != 0; rest &= rest - 1 {
		if n := bits.TrailingZeros64(rest); local.Valid>>n&1 == 1 && local.Sums[n] != 0 {
			out |= 1 << n
		}
	}
	return out
}
