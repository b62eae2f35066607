package replication

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// Copies that have applied the same entries hold the same. The owner has that looked at: it proposes an entry that changes
// nothing (OpCompare), and every replica notes, when it applies it, the checksums of the chunks it names. They are those of the
// same index on every replica, so whatever is written meanwhile, a difference is a fault: of a program, or of a machine that
// changed a block before its checksum was computed. Blocks are not read for it; that they match their checksums is what each
// replica's own scrub sees to. A block that is not stored counts as the zeros it reads as. Replicas that are not exact note nothing.
//
// A snapshot never changes, so it needs no entry: the owner asks, and each replica that is exact says what it has.

// capture is what this replica held in some chunks at an index, or holds in a snapshot.
type capture struct {
	index   uint64 // 0 of a snapshot
	r       block.Range
	first   chunkKey
	records []chunkRecord // none if the range is longer than scrubFineChunks:
	empty   bool          // then only whether anything was stored in it
}

// chunkRecord has the checksum of each block.
type chunkRecord struct {
	known bool
	sums  [block.BlocksPerChunk]uint32
}

// maxCaptures bounds what is kept for the owner to ask for, 16 KiB each.
const maxCaptures = 4

const (
	compareVersion         = 1
	compareDigests         = 0
	compareRecord          = 1
	compareSnapshot        = 2 // added to the kind. Only who has said that it knows it is asked
	compareRequestBytes    = 16
	compareSnapshotBytes   = 24 // more of one about a snapshot
	compareHeaderBytes     = 8
	digestBytes            = 16
	maxCompareRequestBytes = compareRequestBytes + compareSnapshotBytes + maxRepairLUNBytes
)

// withoutCompare takes OpCompare out of an entry: a volume need not know it.
func withoutCompare(ops []block.Op) (rest []block.Op, compare []block.Range) {
	is := func(op block.Op) bool { return op.Kind == block.OpCompare }
	if !slices.ContainsFunc(ops, is) {
		return ops, nil
	}
	for _, op := range ops {
		if is(op) {
			compare = append(compare, op.Range)
		} else {
			rest = append(rest, op)
		}
	}
	return rest, compare
}

// capture is called by the state machine when the volume is as of index and nothing later.
func (g *Group) capture(index uint64, ranges []block.Range) {
	inst := g.running()
	if len(ranges) == 0 || inst == nil || !inst.exact.Load() && g.tenure.Load() == nil {
		return
	}
	for _, r := range ranges {
		c := captureOf(g.cfg.Store, chunkKey{chunk: uint32(r.Offset() / block.ChunkSize)}, r)
		c.index = index
		g.scrub.mu.Lock()
		if len(g.scrub.captures) == maxCaptures {
			g.scrub.captures = slices.Delete(g.scrub.captures, 0, 1)
		}
		g.scrub.captures = append(g.scrub.captures, c)
		g.scrub.mu.Unlock()
	}
}

// captureOf notes what a state holds in a range.
func captureOf(state blockstore.Reader, first chunkKey, r block.Range) capture {
	c := capture{r: r, first: first}
	n := int((r.Bytes() + block.ChunkSize - 1) / block.ChunkSize)
	if n > scrubFineChunks {
		allocated, same, err := state.Allocated(r)
		c.empty = err == nil && !allocated && same == r.Count
		return c
	}
	c.records = make([]chunkRecord, n)
	for i := range c.records {
		c.records[i].note(state, first.chunk+uint32(i))
	}
	return c
}

// captureSnapshot notes what a snapshot here holds in n chunks, fewer at its end.
func (g *Group) captureSnapshot(first chunkKey, n uint32) (capture, error) {
	state, err := g.stateOf(first.snapshot)
	if err != nil {
		return capture{}, err
	}
	start, size := int64(first.chunk)*block.ChunkSize, state.Geometry().Capacity.Bytes()
	if start >= size || n == 0 || n > block.MaxCompareChunks {
		return capture{}, fmt.Errorf("comparison of %d chunks from %v: %w", n, first, block.ErrOutOfRange)
	}
	return captureOf(state, first, block.BytesRange(start, min(int64(n)*block.ChunkSize, size-start))), nil
}

// note notes a chunk. One of whose checksums some are not known says nothing: this replica's own scrub will repair it.
func (c *chunkRecord) note(state blockstore.Reader, chunk uint32) {
	var info blockstore.ChunkInfo
	if state.ChunkInfo(chunk, &info) != nil {
		return
	}
	for n := range c.sums {
		switch {
		case info.Valid>>n&1 == 0:
			c.sums[n] = zeroSum
		case info.Sums[n] == 0:
			return
		default:
			c.sums[n] = info.Sums[n]
		}
	}
	c.known = true
}

func (c *chunkRecord) digest() (out [digestBytes]byte) {
	if !c.known {
		return out
	}
	raw := make([]byte, 0, 4*len(c.sums))
	for _, s := range c.sums {
		raw = binary.LittleEndian.AppendUint32(raw, s)
	}
	sum := sha256.Sum256(raw)
	copy(out[:], sum[:])
	return out
}

func (g *Group) captured(match func(*capture) bool) (capture, bool) {
	g.scrub.mu.Lock()
	defer g.scrub.mu.Unlock()
	for i := len(g.scrub.captures) - 1; i >= 0; i-- {
		if match(&g.scrub.captures[i]) {
			return g.scrub.captures[i], true
		}
	}
	return capture{}, false
}

// compareChunks has n chunks compared, and returns how many of them were, and why not all.
func (g *Group) compareChunks(ctx context.Context, t *tenure, first chunkKey, n uint32) (done uint32, err error) {
	peers, err := g.comparable(first)
	if err != nil || len(peers) == 0 {
		return 0, err
	}
	state, err := g.stateOf(first.snapshot)
	if err != nil {
		return 0, err
	}
	for done < n {
		at, rest := first, n-done
		at.chunk += done
		if empty := min(unstored(state, at.chunk, at.chunk+rest), block.MaxCompareChunks); empty > scrubFineChunks {
			same, err := g.compareEmpty(ctx, t, peers, at, empty)
			if err != nil {
				return done, err
			}
			if same {
				done += empty
				continue
			}
		}
		rest = min(rest, scrubFineChunks)
		if err := g.compareFine(ctx, t, peers, at, rest, false); err != nil {
			return done, err
		}
		done += rest
	}
	return done, nil
}

// comparable returns the copies in sync. A replica of an older program would stop at an entry it does not know, also at one it
// gets from the log later: so there is none unless every data member has said that it knows it, by answering methodScrub. For a snapshot
// each must have said that it knows the question.
func (g *Group) comparable(first chunkKey) ([]Member, error) {
	inSync := map[string]bool{}
	for _, p := range g.Status().Peers {
		inSync[string(p.ID)] = p.InSync && !p.Self
	}
	var out []Member
	members := g.copies()
	g.scrub.mu.Lock()
	defer g.scrub.mu.Unlock()
	for _, m := range members {
		said, knows := g.scrub.peers[m.ID]
		if !knows {
			return nil, fmt.Errorf("copies are not compared: node %s has not said that it can", m.Node)
		}
		if !first.live() && !said.ComparesSnapshots {
			return nil, fmt.Errorf("snapshots are not compared: node %s runs an older program", m.Node)
		}
		if inSync[string(m.ID)] {
			out = append(out, m)
		}
	}
	if len(members) > 0 && len(out) == 0 {
		return nil, errors.New("copies are not compared: no other one is in sync")
	}
	return out, nil
}

// beginComparison returns what this replica has in the chunks: of the live ones, as of an entry that it proposes.
func (g *Group) beginComparison(ctx context.Context, t *tenure, first chunkKey, n uint32) (capture, error) {
	if !first.live() {
		return g.captureSnapshot(first, n)
	}
	start := int64(first.chunk) * block.ChunkSize
	r := block.BytesRange(start, min(int64(n)*block.ChunkSize, g.capacity().Bytes()-start))
	if _, err := g.writes.propose(ctx, t.term, []block.Op{{Kind: block.OpCompare, Range: r}}, true); err != nil {
		return capture{}, err
	}
	mine, ok := g.captured(func(c *capture) bool { return c.r == r })
	if !ok {
		return capture{}, errNotExact
	}
	return mine, nil
}

// compareEmpty says whether nothing is stored in the chunks anywhere, of more than one entry's worth.
func (g *Group) compareEmpty(ctx context.Context, t *tenure, peers []Member, first chunkKey, n uint32) (same bool, err error) {
	mine, err := g.beginComparison(ctx, t, first, n)
	if err != nil || !mine.empty {
		return false, err
	}
	for _, m := range peers {
		raw, err := g.askCompare(ctx, m, compareDigests, &mine, 0)
		if err != nil {
			return false, err
		}
		if len(raw) != compareHeaderBytes || raw[1]&1 == 0 {
			return false, fmt.Errorf("%s: answer of %d bytes to a comparison", m.Node, len(raw))
		}
		if raw[1]&2 == 0 {
			return false, nil
		}
	}
	g.countCompared(uint64(n))
	return true, nil
}

// compareFine compares chunks that are noted one by one. A copy that does not answer is left out. again: what differs has been looked
// at before.
func (g *Group) compareFine(ctx context.Context, t *tenure, peers []Member, first chunkKey, n uint32, again bool) error {
	mine, err := g.beginComparison(ctx, t, first, n)
	if err != nil {
		return err
	}
	differs := map[uint32][]Member{} // all copies that answered, for chunks in which one differs
	var answered []Member
	digests := map[string][]byte{}
	var failed error
	for _, m := range peers {
		raw, err := g.askCompare(ctx, m, compareDigests, &mine, 0)
		if err == nil && (len(raw) != compareHeaderBytes+digestBytes*len(mine.records) || raw[1] != 0) {
			err = fmt.Errorf("answer of %d bytes to a comparison", len(raw))
		}
		if err != nil {
			failed = fmt.Errorf("%s: %w", m.Node, err)
			continue
		}
		answered = append(answered, m)
		digests[m.Node] = raw[compareHeaderBytes:]
	}
	unknown := map[uint32]bool{} // chunks of which some copy does not know what it holds: its own scrub sees to that
	for i := range mine.records {
		own := mine.records[i].digest()
		unknown[uint32(i)] = own == [digestBytes]byte{}
		different := false
		var with []Member
		for _, m := range answered {
			theirs := [digestBytes]byte(digests[m.Node][i*digestBytes:])
			if theirs == ([digestBytes]byte{}) {
				unknown[uint32(i)] = true
				continue
			}
			with = append(with, m)
			different = different || theirs != own
		}
		if different && own != ([digestBytes]byte{}) {
			differs[uint32(i)] = with
		}
	}
	for i := range uint32(len(mine.records)) {
		if with, differ := differs[i]; !differ {
			if len(answered) == len(g.copies()) && !unknown[i] {
				g.scrub.settled(mine.first.plus(i))
			}
		} else if err := g.lookTwice(ctx, t, mine, i, with, again); err != nil {
			failed = err
		}
	}
	g.countCompared(uint64(n))
	return failed
}

func (g *Group) countCompared(chunks uint64) {
	g.scrub.mu.Lock()
	g.scrub.compared += chunks
	g.scrub.mu.Unlock()
}

// askCompare asks for the digests of a capture's chunks, or for the record of the i-th.
func (g *Group) askCompare(ctx context.Context, m Member, kind byte, mine *capture, i uint32) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, repairAnswerTimeout)
	defer cancel()
	q := compareRequest{kind: kind, first: mine.first.plus(i), index: mine.index, lun: g.cfg.LUN}
	switch {
	case q.first.live():
	case kind == compareRecord:
		q.chunks = 1
	default:
		q.chunks = uint32((mine.r.Bytes() + block.ChunkSize - 1) / block.ChunkSize)
	}
	raw, err := g.host.mux.Call(ctx, m.Node, methodCompare, q.encode())
	if err == nil && (len(raw) < compareHeaderBytes || raw[0] != compareVersion) {
		err = fmt.Errorf("malformed answer of %d bytes", len(raw))
	}
	return raw, err
}

// compareRequest is what a replica is asked. The bytes are in docs/FORMATS.md.
type compareRequest struct {
	kind   byte
	first  chunkKey // of a record: the chunk
	index  uint64   // where it was noted; of a snapshot it is not looked at
	chunks uint32   // of a snapshot; else those that were noted
	lun    string
}

func (q *compareRequest) encode() []byte {
	kind := q.kind
	if !q.first.live() {
		kind += compareSnapshot
	}
	b := binary.LittleEndian.AppendUint32([]byte{compareVersion, kind, 0, 0}, q.first.chunk)
	b = binary.LittleEndian.AppendUint64(b, q.index)
	if !q.first.live() {
		b = append(b, q.first.snapshot[:]...)
		b = binary.LittleEndian.AppendUint64(b, uint64(q.chunks))
	}
	return append(b, q.lun...)
}

func decodeCompareRequest(b []byte) (q compareRequest, err error) {
	if len(b) < compareRequestBytes || len(b) > maxCompareRequestBytes || b[0] != compareVersion || b[1] > compareRecord+compareSnapshot {
		return q, fmt.Errorf("malformed request of %d bytes", len(b))
	}
	q.kind, q.first.chunk, q.index = b[1], binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint64(b[8:])
	rest := b[compareRequestBytes:]
	if q.kind >= compareSnapshot {
		if len(rest) < compareSnapshotBytes {
			return q, fmt.Errorf("malformed request of %d bytes", len(b))
		}
		q.kind -= compareSnapshot
		q.first.snapshot = block.SnapshotID(rest)
		q.chunks = uint32(min(binary.LittleEndian.Uint64(rest[16:]), block.MaxCompareChunks+1)) // too many are refused
		rest = rest[compareSnapshotBytes:]
		if q.first.live() {
			return q, errors.New("malformed request: a snapshot without an ID")
		}
	}
	q.lun = string(rest)
	return q, nil
}

// serveCompare answers with what this replica has noted at an index, once it has applied that, or with what it has of a snapshot.
func (h *Host) serveCompare(ctx context.Context, _ string, req []byte) ([]byte, error) {
	q, err := decodeCompareRequest(req)
	if err != nil {
		return nil, err
	}
	g, err := h.group(q.lun)
	if err != nil {
		return nil, err
	}
	if g.cfg.Store == nil {
		return nil, errNoReplica
	}
	c, err := g.comparison(ctx, &q)
	if err != nil {
		return nil, err
	}
	out := make([]byte, compareHeaderBytes, compareHeaderBytes+digestBytes*len(c.records))
	out[0] = compareVersion
	if len(c.records) == 0 {
		out[1] = 1
		if c.empty {
			out[1] |= 2
		}
	}
	if q.kind == compareRecord {
		at := int64(q.first.chunk) - int64(c.first.chunk)
		if at < 0 || at >= int64(len(c.records)) || !c.records[at].known {
			return nil, fmt.Errorf("nothing was noted of %v", q.first)
		}
		for _, s := range c.records[at].sums {
			out = binary.LittleEndian.AppendUint32(out, s)
		}
		return out, nil
	}
	for i := range c.records {
		d := c.records[i].digest()
		out = append(out, d[:]...)
	}
	return out, nil
}

// comparison returns what a request is about.
func (g *Group) comparison(ctx context.Context, q *compareRequest) (capture, error) {
	if !q.first.live() {
		if !g.exact(ctx) {
			return capture{}, errNotExact
		}
		return g.captureSnapshot(q.first, q.chunks)
	}
	if err := g.awaitApplied(ctx, q.index); err != nil {
		return capture{}, err
	}
	c, ok := g.captured(func(c *capture) bool { return c.index == q.index })
	if !ok {
		return capture{}, fmt.Errorf("nothing was noted at entry %d", q.index)
	}
	return c, nil
}
