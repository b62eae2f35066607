package replication

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
	"sanctuary/replication/command"
	"sanctuary/replication/mutant"
)

// machine is the group's state machine as Raft sees it: it applies committed entries, in order, on one goroutine.
//
// Rule F. An entry takes effect only if the term stamped on it when its commands were accepted (its fence) is the term it
// was committed in. Raft may hand a proposal made under one term to the log under a later one, when this node has lost
// the leadership and won it again meanwhile; by then another node may have acknowledged newer writes to the same blocks.
// Such an entry changes nothing, on any replica, because every replica compares the same two numbers.
type machine struct {
	g       *Group
	ctx     context.Context // ends when Raft is to stop
	stopped bool            // an entry was left unapplied for that: nothing after it may be applied
}

// Apply implements raft.FSM.
func (m *machine) Apply(l *raft.Log) any { return m.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM.
func (m *machine) ApplyBatch(logs []*raft.Log) []any {
	results := make([]any, len(logs))
	if m.g.cfg.Store == nil {
		m.g.countApplied(int64(len(logs)) * witnessEntryBytes)
		return results // a witness
	}
	size := int64(0)
	defer func() { m.g.countApplied(size) }()
	for i, l := range logs {
		if l.Type != raft.LogCommand {
			continue
		}
		size += int64(len(l.Data))
		if m.stopped || m.g.Err() != nil {
			results[i] = block.ErrFailed
			continue
		}
		if err := m.apply(l); err != nil {
			m.g.fail(fmt.Errorf("apply entry %d of term %d: %w", l.Index, l.Term, err))
			results[i] = block.ErrFailed
		}
		m.g.backlog.apply(l.Index)
	}
	return results
}

func (m *machine) apply(l *raft.Log) error {
	store := m.g.cfg.Store
	e, err := command.Decode(l.Data)
	if err != nil {
		return err
	}
	if err := e.Verify(m.g.capacity(), m.g.writes.proposed(e.Proposal)); err != nil {
		return err
	}
	if e.Fence != l.Term && !mutant.F {
		if err := store.Apply(l.Index, nil); err != nil {
			return err
		}
		m.g.writes.settled(e.Proposal, block.ErrNotOwner)
		m.g.settledIndex.Store(l.Index)
		return nil
	}
	reshapes := m.g.noteReshape(l.Index, e)
	ops, compare := withoutCompare(e.Ops)
	replayed := store.Applied() >= l.Index
	needs := int64(0)
	if m.g.tenure.Load() == nil && !replayed {
		needs = store.Needs(ops)
	}
	if err := m.applyWithRoom(l.Index, ops); err != nil || m.stopped {
		return err
	}
	m.g.room.use(m.g, needs)
	m.g.activity.Add(1)
	if !replayed { // else the volume is ahead of this entry
		m.g.capture(l.Index, compare)
	}
	if reshapes {
		m.g.reshapedBy(e)
	}
	m.g.acknowledge(e.Proposal, l.Index)
	m.g.settledIndex.Store(l.Index)
	return nil
}

// applyWithRoom waits for room if the pool is full. The owner refuses what does not fit before it proposes it (space.go), so
// this is for a pool that others have filled meanwhile: the entry is committed and in the journal, nothing is lost by
// waiting, and applying goes on where it stopped once there is room. Failing instead would turn a full disk into a lost copy.
func (m *machine) applyWithRoom(index uint64, ops []block.Op) error {
	for {
		err := m.g.cfg.Store.Apply(index, ops)
		if !errors.Is(err, block.ErrNoSpace) {
			if m.g.full.Swap(false) {
				m.g.log.Info("there is room in the pool again")
				m.g.cfg.OnChange()
			}
			return err
		}
		if !m.g.full.Swap(true) {
			m.g.log.Error("the pool is full: this copy falls behind, and keeps what it is sent in its journal, until there is room. "+
				"Delete or unmap data in the pool, or give it more capacity", "error", err)
			m.g.cfg.OnChange()
		}
		// Chunks that were freed can be used again after a checkpoint.
		if _, err := m.g.cfg.Store.Checkpoint(m.ctx); err != nil && m.ctx.Err() == nil && !errors.Is(err, block.ErrNoSpace) {
			return err
		}
		select {
		case <-time.After(roomRetry):
		case <-m.ctx.Done():
			m.stopped = true
			return nil
		}
	}
}

const roomRetry = 200 * time.Millisecond

// mark is the body of a group's snapshot: what a start checks its volume against.
type mark struct {
	Version int    `json:"version"`
	LUN     string `json:"lun"`
	Epoch   uint64 `json:"epoch"`
	Applied uint64 `json:"applied"` // the volume was durable up to this index when the snapshot was taken
}

const markVersion = 1

func decodeMark(body []byte) (mark, error) {
	var k mark
	if err := json.Unmarshal(body, &k); err != nil {
		return k, fmt.Errorf("snapshot body: %w", err)
	}
	if k.Version != markVersion {
		return k, fmt.Errorf("snapshot body of version %d, this program reads version %d", k.Version, markVersion)
	}
	return k, nil
}

// MarkedIndex returns up to where a volume was durable when a snapshot with this body was taken.
func MarkedIndex(body []byte) (uint64, error) {
	k, err := decodeMark(body)
	return k.Applied, err
}

func (g *Group) encodeMark(applied uint64) []byte { return encodeMark(g.cfg.LUN, g.cfg.Epoch, applied) }

func encodeMark(lun string, epoch, applied uint64) []byte {
	body, err := json.Marshal(mark{Version: markVersion, LUN: lun, Epoch: epoch, Applied: applied})
	if err != nil {
		panic(err) // plain numbers and a string
	}
	return body
}

// Snapshot implements raft.FSM: everything applied so far becomes durable when the snapshot is persisted.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	if err := m.g.Err(); err != nil {
		return nil, err
	}
	if m.stopped { // Raft counts as applied what was left out
		return nil, block.ErrClosed
	}
	s := &checkpoint{g: m.g}
	if m.g.cfg.Store != nil {
		s.applied = m.g.cfg.Store.Applied()
	}
	return s, nil
}

// Restore implements raft.FSM. Block data never travels in a snapshot, so a data replica refuses; a witness has nothing to
// restore.
func (m *machine) Restore(r io.ReadCloser) error {
	if m.g.cfg.Store != nil {
		return fmt.Errorf("a data replica is never restored from a Raft snapshot")
	}
	return r.Close()
}

// checkpoint makes the volume durable and leaves a mark of it in the snapshot. Raft truncates the log only after Persist.
type checkpoint struct {
	g       *Group
	applied uint64
}

// Persist implements raft.FSMSnapshot.
func (c *checkpoint) Persist(sink raft.SnapshotSink) error {
	applied := uint64(0)
	if c.g.cfg.Store != nil {
		var err error
		if applied, err = c.g.cfg.Store.Checkpoint(context.WithoutCancel(c.g.ctx)); err != nil {
			_ = sink.Cancel()
			if !errors.Is(err, block.ErrNoSpace) { // else nothing has changed; the log stays, and the next one may succeed
				c.g.fail(fmt.Errorf("checkpoint: %w", err))
			}
			return err
		}
		if applied < c.applied {
			_ = sink.Cancel()
			return fmt.Errorf("checkpoint reached index %d of %d", applied, c.applied)
		}
	}
	if _, err := sink.Write(c.g.encodeMark(applied)); err != nil {
		_ = sink.Cancel()
		return err
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (c *checkpoint) Release() {}
