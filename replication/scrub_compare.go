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

// capture is what this replica held in some chunks at an index.
type capture struct {
	index   uint64
	r       block.Range
	first   uint32        // chunk
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
	compareVersion      = 1
	compareDigests      = 0
	compareRecord       = 1
	compareRequestBytes = 16
	compareHeaderBytes  = 8
	digestBytes         = 16
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
		c := capture{index: index, r: r, first: uint32(r.Offset() / block.ChunkSize)}
		n := int((r.Bytes() + block.ChunkSize - 1) / block.ChunkSize)
		if n > scrubFineChunks {
			allocated, same, err := g.cfg.Store.Allocated(r)
			c.empty = err == nil && !allocated && same == r.Count
		} else {
			c.records = make([]chunkRecord, n)
			for i := range c.records {
				g.record(c.first+uint32(i), &c.records[i])
			}
		}
		g.scrub.mu.Lock()
		if len(g.scrub.captures) == maxCaptures {
			g.scrub.captures = slices.Delete(g.scrub.captures, 0, 1)
		}
		g.scrub.captures = append(g.scrub.captures, c)
		g.scrub.mu.Unlock()
	}
}

// record notes a chunk. One of whose checksums some are not known says nothing: this replica's own scrub will repair it.
func (g *Group) record(chunk uint32, out *chunkRecord) {
	var info blockstore.ChunkInfo
	if g.cfg.Store.ChunkInfo(chunk, &info) != nil {
		return
	}
	for n := range out.sums {
		switch {
		case info.Valid>>n&1 == 0:
			out.sums[n] = zeroSum
		case info.Sums[n] == 0:
			return
		default:
			out.sums[n] = info.Sums[n]
		}
	}
	out.known = true
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
func (g *Group) compareChunks(ctx context.Context, t *tenure, first, n uint32) (done uint32, err error) {
	peers, err := g.comparable()
	if err != nil || len(peers) == 0 {
		return 0, err
	}
	for done < n {
		at, rest := first+done, n-done
		if empty := min(unstored(g.cfg.Store, at, at+rest), block.MaxCompareChunks); empty > scrubFineChunks {
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
// gets from the log later: so there is none unless every data member has said that it knows it, by answering methodScrub.
func (g *Group) comparable() ([]Member, error) {
	inSync := map[string]bool{}
	for _, p := range g.Status().Peers {
		inSync[string(p.ID)] = p.InSync && !p.Self
	}
	var out []Member
	members := g.copies()
	g.scrub.mu.Lock()
	defer g.scrub.mu.Unlock()
	for _, m := range members {
		if _, knows := g.scrub.peers[m.ID]; !knows {
			return nil, fmt.Errorf("copies are not compared: node %s has not said that it can", m.Node)
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

// proposeCompare proposes a comparison and returns what this replica has noted.
func (g *Group) proposeCompare(ctx context.Context, t *tenure, first, n uint32) (capture, error) {
	start := int64(first) * block.ChunkSize
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
func (g *Group) compareEmpty(ctx context.Context, t *tenure, peers []Member, first, n uint32) (same bool, err error) {
	mine, err := g.proposeCompare(ctx, t, first, n)
	if err != nil || !mine.empty {
		return false, err
	}
	for _, m := range peers {
		raw, err := g.askCompare(ctx, m, compareDigests, mine.index, 0)
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
func (g *Group) compareFine(ctx context.Context, t *tenure, peers []Member, first, n uint32, again bool) error {
	mine, err := g.proposeCompare(ctx, t, first, n)
	if err != nil {
		return err
	}
	differs := map[uint32][]Member{} // all copies that answered, for chunks in which one differs
	var answered []Member
	digests := map[string][]byte{}
	var failed error
	for _, m := range peers {
		raw, err := g.askCompare(ctx, m, compareDigests, mine.index, 0)
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
	for i := range mine.records {
		own := mine.records[i].digest()
		if own == ([digestBytes]byte{}) {
			continue
		}
		different := false
		var with []Member
		for _, m := range answered {
			theirs := [digestBytes]byte(digests[m.Node][i*digestBytes:])
			if theirs == ([digestBytes]byte{}) {
				continue
			}
			with = append(with, m)
			different = different || theirs != own
		}
		if different {
			differs[uint32(i)] = with
		}
	}
	for i := range uint32(len(mine.records)) {
		if with, differ := differs[i]; !differ {
			if failed == nil {
				g.scrub.settled(first + i)
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

func (g *Group) askCompare(ctx context.Context, m Member, kind byte, index uint64, chunk uint32) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, repairAnswerTimeout)
	defer cancel()
	req := binary.LittleEndian.AppendUint32([]byte{compareVersion, kind, 0, 0}, chunk)
	raw, err := g.host.mux.Call(ctx, m.Node, methodCompare, append(binary.LittleEndian.AppendUint64(req, index), g.cfg.LUN...))
	if err == nil && (len(raw) < compareHeaderBytes || raw[0] != compareVersion) {
		err = fmt.Errorf("malformed answer of %d bytes", len(raw))
	}
	return raw, err
}

// serveCompare answers with what this replica has noted at an index, once it has applied that.
func (h *Host) serveCompare(ctx context.Context, _ string, req []byte) ([]byte, error) {
	if len(req) < compareRequestBytes || req[0] != compareVersion {
		return nil, fmt.Errorf("malformed request of %d bytes", len(req))
	}
	chunk, index := binary.LittleEndian.Uint32(req[4:]), binary.LittleEndian.Uint64(req[8:])
	g, err := h.group(string(req[compareRequestBytes:]))
	if err != nil {
		return nil, err
	}
	if g.cfg.Store == nil {
		return nil, errNoReplica
	}
	if err := g.awaitApplied(ctx, index); err != nil {
		return nil, err
	}
	c, ok := g.captured(func(c *capture) bool { return c.index == index })
	if !ok {
		return nil, fmt.Errorf("nothing was noted at entry %d", index)
	}
	out := make([]byte, compareHeaderBytes, compareHeaderBytes+digestBytes*len(c.records))
	out[0] = compareVersion
	if len(c.records) == 0 {
		out[1] = 1
		if c.empty {
			out[1] |= 2
		}
	}
	if req[1] == compareRecord {
		if chunk < c.first || chunk-c.first >= uint32(len(c.records)) || !c.records[chunk-c.first].known {
			return nil, fmt.Errorf("nothing was noted of chunk %d", chunk)
		}
		for _, s := range c.records[chunk-c.first].sums {
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
