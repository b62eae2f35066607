package replication

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/replication/transport"
)

// A rebuilt replica has the source's snapshots, or it would differ at the next rollback. Snapshots of which both have the ID
// are the same: each was made by the same entry of the log, or imported whole. The receiver deletes what the source has not,
// and makes what it lacks, oldest first: its live volume becomes what the snapshot holds, and is kept as that; last comes the
// live volume itself. So of what several snapshots share, nothing travels twice.
//
// What is compared: chunks that entries after since may have changed (Store.Changed, which speaks of all of them, whenever
// they came). From the second state on less: the receiver's volume then is a snapshot both have, and only the blocks in which that
// one and the next differ can be others (Store.Diff). Comparing costs 34 bytes on the wire and a read of the receiver's
// blocks per chunk (rebuild_digest.go), and the source a walk through its map for every answer.
//
// Store.Diff compares two states of now. If the source is rolled back in the middle, it does not tell of what was copied before.
// So after an interruption the receiver is not taken to be like a snapshot any more, but to be as of the snapshot's index, or
// later (rebuildSpan.Since), which stays true.
//
// The copy of the live volume is fuzzy (rebuild.go), and replaying absolute writes mends that. Replaying an entry about
// snapshots over it does not: a snapshot would be made of blocks that are newer than it. So if one was applied at the source
// since the pin (rebuildPin.Reshaped), there is another round, from a new pin, which compares what has changed since the last.

// rebuildPart is one state of the source that is copied, and what the receiver's live volume is before that.
type rebuildPart struct {
	state block.SnapshotID // zero: the live volume
	like  block.SnapshotID // the receiver's is exactly that; zero: each of its chunks is what the source had at since, or later
	since uint64
}

const partBytes = 16 + 16 + 8

// rebuildSnapshot is a block.Snapshot on the wire.
type rebuildSnapshot struct {
	ID       string      `json:"id"` // hexadecimal
	Name     string      `json:"name"`
	Created  int64       `json:"created"`
	Index    uint64      `json:"index"`
	Capacity block.Count `json:"capacity"`
}

func snapshotsToWire(list []block.Snapshot) (out []rebuildSnapshot) {
	for _, s := range list {
		out = append(out, rebuildSnapshot{ID: s.ID.String(), Name: s.Name, Created: s.Created, Index: s.Index, Capacity: s.Capacity})
	}
	return out
}

func snapshotsFromWire(list []rebuildSnapshot) ([]block.Snapshot, error) {
	out := make([]block.Snapshot, len(list))
	for i, w := range list {
		id, err := block.ParseSnapshotID(w.ID)
		if err != nil {
			return nil, err
		}
		out[i] = block.Snapshot{SnapshotSpec: block.SnapshotSpec{ID: id, Name: w.Name, Created: w.Created}, Index: w.Index, Capacity: w.Capacity}
		if err := out[i].Validate(); err != nil {
			return nil, err
		}
		if i > 0 && out[i-1].Index >= w.Index {
			return nil, fmt.Errorf("snapshot %v is not newer than the one before it", id)
		}
	}
	return out, nil
}

func (g *Group) askPin(ctx context.Context, owner string) (pin rebuildPin, err error) {
	order, err := json.Marshal(rebuildOrder{LUN: g.cfg.LUN, ID: g.cfg.Self.ID, Snapshots: true})
	if err != nil {
		return pin, err
	}
	answer, err := g.ask(ctx, owner, methodRebuildPin, order)
	if err != nil {
		return pin, err
	}
	if err := json.Unmarshal(answer, &pin); err != nil {
		return pin, fmt.Errorf("answer of %s: %w", owner, err)
	}
	g.mu.Lock()
	g.rebuild.owner = owner // nobody else gives a pin
	g.mu.Unlock()
	return pin, nil
}

// movedOn says whether the source has deleted snapshots between two pins, or grown: either ends a copy from the first.
func movedOn(pin, next rebuildPin) bool {
	return next.Capacity > pin.Capacity || slices.ContainsFunc(pin.Snapshots, func(s rebuildSnapshot) bool {
		return !slices.Contains(next.Snapshots, s)
	})
}

// copyPinned makes snapshots and contents those the source had at the pin or has had since. The cursor says what the chunks of
// the volume are, and is moved on.
func (g *Group) copyPinned(ctx context.Context, owner string, pin rebuildPin, cursor *rebuildCursor) (copied int64, err error) {
	theirs, err := snapshotsFromWire(pin.Snapshots)
	if err != nil {
		return 0, fmt.Errorf("answer of %s: %w", owner, err)
	}
	missing, err := g.dropSnapshots(theirs)
	if err != nil {
		return 0, err
	}
	copying := rebuildCopy{g: g, source: owner, cursor: cursor}
	for _, s := range missing {
		copying.state, copying.since = s.ID, s.Index
		n, err := copying.run(ctx, s.Capacity)
		copied += n
		if err != nil {
			return copied, err
		}
		if have := g.cfg.Store.Geometry().Capacity; have > s.Capacity { // it has grown for an earlier round
			beyond := block.Range{Start: block.Sector(s.Capacity), Count: have - s.Capacity}
			if err := g.cfg.Store.Import([]block.Op{{Kind: block.OpZero, Range: beyond}}); err != nil {
				return copied, err
			}
		}
		if err := g.cfg.Store.ImportSnapshot(s); err != nil {
			return copied, err
		}
		copying.like = s.ID
	}
	copying.state, copying.since = block.SnapshotID{}, pin.Index
	n, err := copying.run(ctx, pin.Capacity)
	return copied + n, err
}

// dropSnapshots deletes the snapshots the source has not and returns those that are missing here. What is missing is always
// newer than what is there; should it not be, the newer ones are made again.
func (g *Group) dropSnapshots(theirs []block.Snapshot) (missing []block.Snapshot, err error) {
	next := 0
	for _, s := range g.cfg.Store.Snapshots() {
		i := slices.Index(theirs, s)
		if i >= 0 && i == next {
			next++
			continue
		}
		if err := g.cfg.Store.Import([]block.Op{block.DeleteSnapshotOp(s.ID)}); err != nil {
			return nil, err
		}
		g.dueReclaim()
	}
	return theirs[next:], nil
}

// rebuildCopy makes the volume what one state of the source holds after another.
type rebuildCopy struct {
	g      *Group
	source string
	cursor *rebuildCursor
	state  block.SnapshotID // what is copied; zero: the live volume
	like   block.SnapshotID // the volume is exactly that snapshot, where the cursor says so; zero: nobody vouches for it
	since  uint64           // as of when a chunk is that was copied
	saved  time.Time
}

// run copies one state. capacity is at least that state's, 0 if the source does not tell: those of older versions do not,
// and their LUNs do not grow.
func (c *rebuildCopy) run(ctx context.Context, capacity block.Count) (copied int64, err error) {
	g := c.g
	if capacity > 0 {
		if err := g.cfg.Store.Import([]block.Op{{Kind: block.OpGrow, Range: block.Range{Count: capacity}}}); err != nil {
			return 0, err
		}
	}
	if err := c.count(ctx); err != nil {
		return 0, err
	}
	chunks, step := chunksOf(g.cfg.Store, endOfChunks), uint32(max(g.cfg.Rebuild.StepBytes/block.ChunkSize, 1))
	for at := uint32(0); at < chunks; {
		part, until, done := c.partAt(at)
		if !done {
			next, n, err := g.fetchDifference(ctx, c.source, part, at, min(until, chunks, at+step))
			if errors.Is(err, errOldSource) {
				next, n, err = g.compareOld(ctx, c.source, part, at, min(until, chunks))
			}
			copied += n
			if err != nil {
				return copied, err
			}
			until = next
		}
		at = until
		c.cursor.passed(at, c.since, c.state)
		if time.Since(c.saved) >= g.cfg.Rebuild.SaveEvery {
			if err := g.saveRebuildCursor(ctx, c.cursor); err != nil && !errors.Is(err, block.ErrNoSpace) {
				return copied, err
			}
			c.saved = time.Now()
		}
	}
	c.cursor.passed(endOfChunks, c.since, c.state)
	return copied, nil
}

// partAt returns what is to be compared from a chunk on, and where that ends; done: nothing up to there.
func (c *rebuildCopy) partAt(chunk uint32) (part rebuildPart, until uint32, done bool) {
	span, live := c.cursor.at(chunk), c.state == (block.SnapshotID{})
	part = rebuildPart{state: c.state, since: span.Since}
	switch {
	case !live && span.State == c.state:
		return part, span.Until, true
	case c.like != (block.SnapshotID{}) && span.State == c.like:
		part.like = c.like
	case !live && c.since <= span.Since:
		part.since = 0 // a replica that has applied that entry has the snapshot; this one is not what it seems
	}
	return part, span.Until, false
}

// count asks how much there is to compare, for those who watch.
func (c *rebuildCopy) count(ctx context.Context) error {
	total, chunks := int64(0), chunksOf(c.g.cfg.Store, endOfChunks)
	for at := uint32(0); at < chunks; {
		part, until, done := c.partAt(at)
		until = min(until, chunks)
		if !done {
			answer, err := c.g.ask(ctx, c.source, methodRebuildCount, (&rebuildAsk{part, at, until}).encode(c.g.cfg.LUN))
			switch {
			case errors.Is(err, transport.ErrUnknownMethod):
				return nil // an older program
			case err != nil:
				return err
			case len(answer) != 8:
				return fmt.Errorf("answer of %d bytes to a rebuild request", len(answer))
			}
			total += int64(binary.LittleEndian.Uint64(answer))
		}
		at = until
	}
	c.g.rebuildAhead(total)
	return nil
}

// serveRebuildSnapshotInfo is serveRebuildInfo for a state that is a snapshot, or differs from one. The request is 16 bytes ID of
// the state, 16 bytes ID of the snapshot the receiver's volume is like (zero: none), and that of serveRebuildInfo.
func (h *Host) serveRebuildSnapshotInfo(_ context.Context, _ string, req []byte) ([]byte, error) {
	if len(req) < partBytes {
		return nil, errors.New("malformed request")
	}
	return h.rebuildInfo(rebuildPart{state: block.SnapshotID(req[:16]), like: block.SnapshotID(req[16:32])}, req[32:])
}

// serveRebuildSnapshotRead is serveRebuildRead for a snapshot: 16 bytes ID, and the request of that.
func (h *Host) serveRebuildSnapshotRead(ctx context.Context, _ string, req []byte) ([]byte, error) {
	if len(req) < 16 {
		return nil, errors.New("malformed request")
	}
	return h.rebuildRead(ctx, block.SnapshotID(req[:16]), req[16:])
}

// stateOf returns the live volume for the zero ID.
func (g *Group) stateOf(id block.SnapshotID) (blockstore.Reader, error) {
	if id == (block.SnapshotID{}) {
		return g.cfg.Store, nil
	}
	return g.cfg.Store.View(id)
}

// differing calls fn for the chunks, beginning with from and before chunks, in which a part's state may differ from the
// receiver's volume, in ascending order.
func (g *Group) differing(part rebuildPart, from, chunks uint32, fn func(chunk uint32) error) error {
	next := from // Diff tells blocks, of which there may be several in a chunk
	walk := func(r block.Range) error {
		last := uint32((r.Offset() + r.Bytes() - 1) / block.ChunkSize)
		for c := max(next, uint32(r.Offset()/block.ChunkSize)); c <= last && c < chunks; c++ {
			next = c + 1
			if err := fn(c); err != nil {
				return err
			}
		}
		return nil
	}
	if part.like != (block.SnapshotID{}) {
		return g.cfg.Store.Diff(part.like, part.state, walk)
	}
	return g.cfg.Store.Changed(part.since, walk)
}
