package replication

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"time"

	"sanctuary/blockstore/block"
)

// Who is right. If more than half of the copies that answer hold the same in a block, they are: one of three that differs is the
// one that went wrong. Otherwise the owner's is kept: it is what initiators have been reading, and what they have built on; to
// change it under them would be the worse harm. The others read the block from one that is right, under the rules of repair.go,
// which do not care why a block is replaced: if it has been overwritten since the comparison, all have that, and get it again.
// While a copy does not answer nothing is decided, since it might be the one that makes the majority: the difference is
// reported, and looked at again until it is settled.

// judge says, for each copy, which blocks are wrong, and for each of the blocks, which copy to take it from. The first copy is
// the owner's.
func judge(copies []*chunkRecord) (wrong []uint64, source [block.BlocksPerChunk]int) {
	wrong = make([]uint64, len(copies))
	for n := range block.BlocksPerChunk {
		for i, c := range copies {
			votes := 0
			for _, o := range copies {
				if o.sums[n] == c.sums[n] {
					votes++
				}
			}
			if 2*votes > len(copies) {
				source[n] = i
				break
			}
		}
		for i, c := range copies {
			if c.sums[n] != copies[source[n]].sums[n] {
				wrong[i] |= 1 << n
			}
		}
	}
	return wrong, source
}

// settleChunk finds out in which blocks copies differ, reports it, and has the wrong ones rewritten. A difference may also come from
// a checksum that is damaged, which is none of the contents: so the first time every copy looks at its chunk, repairs
// what is bad, and all are compared once more.
func (g *Group) settleChunk(ctx context.Context, t *tenure, mine capture, i uint32, with []Member) error {
	members := []Member{g.cfg.Self}
	records := []*chunkRecord{&mine.records[i]}
	for _, m := range with {
		raw, err := g.askCompare(ctx, m, compareRecord, &mine, i)
		if err != nil {
			return fmt.Errorf("%s: %w", m.Node, err)
		}
		if len(raw) != compareHeaderBytes+4*block.BlocksPerChunk {
			return fmt.Errorf("%s: answer of %d bytes to a comparison", m.Node, len(raw))
		}
		rec := &chunkRecord{known: true}
		for n := range rec.sums {
			rec.sums[n] = binary.LittleEndian.Uint32(raw[compareHeaderBytes+4*n:])
		}
		members, records = append(members, m), append(records, rec)
	}
	wrong, source := judge(records)
	key := mine.first.plus(i)
	if !slices.ContainsFunc(wrong, func(mask uint64) bool { return mask != 0 }) {
		if len(with) == len(g.copies()) { // it was a snapshot's, and has been repaired since
			g.scrub.settled(key)
		}
		return nil
	}
	found := Divergence{At: time.Now(), Snapshot: key.snapshotName(), Chunk: key.chunk, Repaired: true}
	all := uint64(0)
	for c, mask := range wrong {
		all |= mask
		if mask != 0 {
			found.Replicas = append(found.Replicas, string(members[c].ID))
		} else {
			found.Kept = append(found.Kept, string(members[c].ID))
		}
	}
	for rest := all; rest != 0; rest &= rest - 1 {
		found.Blocks = append(found.Blocks, uint32(bits.TrailingZeros64(rest)))
	}
	g.log.Error("copies of the LUN differ although they have applied the same entries", "where", key.String(), "blocks", fmt.Sprint(found.Blocks),
		"wrong", strings.Join(found.Replicas, ","), "entry", mine.index)
	if len(with) < len(g.copies()) {
		found.Repaired, found.Error = false, "not every copy has answered: which one is wrong is not decided"
	} else {
		for c, mask := range wrong {
			for from := range members {
				if err := g.overwrite(ctx, t, members[c], members[from], key, takenFrom(mask, &source, from)); err != nil {
					found.Repaired, found.Error = false, err.Error()
					g.log.Error("a copy that differs was not overwritten", "where", key.String(), "replica", string(members[c].ID), "error", err)
				}
			}
		}
	}
	g.scrub.found(found)
	g.cfg.OnChange()
	return nil
}

// lookTwice is settleChunk for what was found to differ; again: for the second time.
func (g *Group) lookTwice(ctx context.Context, t *tenure, mine capture, i uint32, with []Member, again bool) error {
	if again {
		return g.settleChunk(ctx, t, mine, i, with)
	}
	key := mine.first.plus(i)
	if _, err := g.scrubChunk(ctx, key); err != nil {
		return err
	}
	for _, m := range with {
		if err := g.order(ctx, repairOrder{ID: string(m.ID)}, key, m); err != nil {
			return err
		}
	}
	return g.compareFine(ctx, t, with, key, 1, true)
}

// takenFrom returns those of the blocks whose source is the given copy.
func takenFrom(blocks uint64, source *[block.BlocksPerChunk]int, copyAt int) (out uint64) {
	for n, from := range source {
		if from == copyAt {
			out |= blocks & (1 << n)
		}
	}
	return out
}

// found notes a finding; one that is still open of the same chunk is replaced.
func (s *scrub) found(d Divergence) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.findings = slices.DeleteFunc(s.findings, func(o Divergence) bool {
		if o.Chunk == d.Chunk && o.Snapshot == d.Snapshot && !o.Repaired {
			s.diverged -= uint64(len(o.Blocks))
			return true
		}
		return false
	})
	s.diverged += uint64(len(d.Blocks))
	if d.Repaired {
		s.mended += uint64(len(d.Blocks))
	}
	s.findings = append(s.findings, d)
	if len(s.findings) > maxFindings {
		s.findings = slices.Delete(s.findings, 0, len(s.findings)-maxFindings)
	}
}

// settled notes that all copies of a chunk hold the same.
func (s *scrub) settled(key chunkKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, d := range s.findings {
		if d.key() == key && !d.Repaired {
			s.findings[i].Repaired, s.findings[i].Error = true, ""
			s.mended += uint64(len(d.Blocks))
		}
	}
}

// gone forgets what was found in a snapshot that has been deleted, and is not settled.
func (s *scrub) gone(key chunkKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.findings = slices.DeleteFunc(s.findings, func(d Divergence) bool { return d.key() == key && !d.Repaired })
}

// unsettled returns the chunks whose copies may still differ.
func (s *scrub) unsettled() (out []chunkKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.findings {
		if !d.Repaired {
			out = append(out, d.key())
		}
	}
	return out
}

// compareAgain looks again at what is not settled.
func (g *Group) compareAgain(ctx context.Context) {
	t := g.tenure.Load()
	if t == nil {
		return
	}
	for _, key := range g.scrub.unsettled() {
		_, err := g.compareChunks(ctx, t, key, 1)
		switch {
		case errors.Is(err, block.ErrNoSnapshot):
			g.scrub.gone(key)
		case err != nil:
			g.log.Debug("copies that differ were not compared again", "where", key.String(), "error", err)
		}
	}
}

// repairOrder tells a replica that blocks of it are wrong, and who has the right ones.
type repairOrder struct {
	Version int    `json:"version"` // 1
	LUN     string `json:"lun"`
	ID      string `json:"id"`   // the replica that is wrong
	From    string `json:"from"` // node
	Chunk   uint32 `json:"chunk"`
	Blocks  uint64 `json:"blocks"` // a bit each; 0: look whether the chunk matches its checksums, and repair what does not
	// Snapshot the chunk is of; absent: of the live contents. Only who has answered about a snapshot is sent one.
	Snapshot string `json:"snapshot,omitempty"`
}

type repairOrderAnswer struct {
	Left  uint64 `json:"left"`
	Error string `json:"error,omitempty"`
}

// overwrite has blocks of one copy replaced by another's.
func (g *Group) overwrite(ctx context.Context, t *tenure, wrong, right Member, key chunkKey, blocks uint64) error {
	if blocks == 0 {
		return nil
	}
	if wrong.ID != g.cfg.Self.ID {
		return g.order(ctx, repairOrder{ID: string(wrong.ID), From: right.Node, Blocks: blocks}, key, wrong)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*repairWithin)
	defer cancel()
	rule := repairRule{from: right.Node, force: true}
	if key.live() {
		lock, err := g.locks.lock(ctx, key.chunkRange())
		if err != nil {
			return err
		}
		defer g.locks.unlock(lock)
		rule.held = t
	}
	_, err := g.repairChunk(ctx, key, blocks, rule)
	return err
}

func (g *Group) order(ctx context.Context, o repairOrder, key chunkKey, to Member) error {
	ctx, cancel := context.WithTimeout(ctx, 2*repairWithin)
	defer cancel()
	o.Version, o.LUN, o.Chunk, o.Snapshot = 1, g.cfg.LUN, key.chunk, key.snapshotName()
	req, err := json.Marshal(o)
	if err != nil {
		return err
	}
	raw, err := g.host.mux.Call(ctx, to.Node, methodRepairOrder, req)
	if err != nil {
		return err
	}
	var answer repairOrderAnswer
	if err := json.Unmarshal(raw, &answer); err != nil {
		return err
	}
	if answer.Left != 0 {
		return fmt.Errorf("%s: %s", to.Node, answer.Error)
	}
	return nil
}

// serveRepairOrder carries out an order of this replica's present owner.
func (h *Host) serveRepairOrder(ctx context.Context, from string, raw []byte) ([]byte, error) {
	var o repairOrder
	if err := json.Unmarshal(raw, &o); err != nil {
		return nil, fmt.Errorf("malformed order: %w", err)
	}
	g, err := h.group(o.LUN)
	if err != nil {
		return nil, err
	}
	if g.cfg.Store == nil || string(g.cfg.Self.ID) != o.ID {
		return nil, errNoReplica
	}
	if owner := g.Status().Owner.Node; owner != from || owner == g.cfg.Self.Node {
		return nil, block.ErrNotOwner
	}
	if !g.exact(ctx) {
		return nil, errNotExact
	}
	key := chunkKey{chunk: o.Chunk}
	if o.Snapshot != "" {
		if key.snapshot, err = block.ParseSnapshotID(o.Snapshot); err != nil {
			return nil, fmt.Errorf("malformed order: %w", err)
		}
	}
	if o.Blocks == 0 {
		_, err := g.scrubChunk(ctx, key)
		var answer repairOrderAnswer
		if err != nil { // what is bad is reported here, and not different
			answer.Error = err.Error()
		}
		return json.Marshal(answer)
	}
	left, err := g.repairChunk(ctx, key, o.Blocks, repairRule{from: o.From, force: true})
	answer := repairOrderAnswer{Left: left}
	if err != nil {
		answer.Error = err.Error()
	}
	g.log.Warn("blocks that differed from the other copies' were overwritten, as the owner said", "where", key.String(),
		"blocks", fmt.Sprintf("%016x", o.Blocks&^left), "from", o.From)
	return json.Marshal(answer)
}

// Divergence is a finding of the comparison: copies that held different blocks, each under a checksum that matched.
type Divergence struct {
	At       time.Time `json:"at"`
	Snapshot string    `json:"snapshot,omitempty"` // ID; empty: of the live contents
	Chunk    uint32    `json:"chunk"`
	Blocks   []uint32  `json:"blocks"`   // within the chunk
	Replicas []string  `json:"replicas"` // those that were overwritten, or should have been
	Kept     []string  `json:"kept"`     // those whose contents were taken for right
	Repaired bool      `json:"repaired"`
	Error    string    `json:"error,omitempty"`
}

func (d Divergence) key() chunkKey {
	id, _ := block.ParseSnapshotID(d.Snapshot) // its own; zero for none
	return chunkKey{id, d.Chunk}
}

func (d Divergence) String() string {
	return fmt.Sprintf("chunk %d, blocks %v, on %v", d.Chunk, d.Blocks, d.Replicas)
}
