package node

import (
	"context"
	"fmt"

	"github.com/hashicorp/raft"

	"sanctuary/node/catalog"
	"sanctuary/node/reconcile"
	"sanctuary/replication"
	"sanctuary/replication/journal"
)

// What the catalog says of a LUN's members, brought to its group here; and how a copy begins a new history.

// viewOf says how new the members of a LUN are that were read from m. A LUN that m does not have like that is of an unknown age.
func viewOf(m *catalog.Model, l catalog.LUN) replication.View {
	if have, ok := m.LUNs[l.ID]; !ok || have.Epoch != l.Epoch {
		return replication.View{}
	}
	return replication.View{Index: m.Index, Next: m.NextInc}
}

// History implements reconcile.Runner.
func (s *replicas) History(lun string) uint64 {
	if run := s.get(lun); run != nil {
		return run.lun.Epoch
	}
	return 0
}

// Reconfigure implements reconcile.Runner.
func (s *replicas) Reconfigure(ctx context.Context, l catalog.LUN) (done reconcile.Settled, err error) {
	run := s.get(l.ID)
	if run == nil {
		return done, fmt.Errorf("no replica of LUN %s runs here", l.Name)
	}
	m := s.n.catalog.Model()
	if now, ok := m.LUNs[l.ID]; ok {
		l = now // the newest there is: what is not wanted any more must not be brought about
		run.group.Follow(members(l.Replicas), viewOf(m, l))
	}
	var leaving []raft.ServerID
	for _, r := range l.Replicas {
		if r.Leaving {
			leaving = append(leaving, raft.ServerID(r.ID))
		}
	}
	now, err := run.group.SetMembers(ctx, members(l.Replicas))
	done.CaughtUp, done.Promoted, done.Removed = texts(now.CaughtUp), texts(now.Whole), texts(run.group.Removed(leaving))
	if err != nil { // it waits for replicas to be reached, or rebuilt, or told: all that comes by itself
		err = fmt.Errorf("%w: %w", reconcile.ErrNotYet, err)
	}
	return done, err
}

func texts(ids []raft.ServerID) (out []string) {
	for _, id := range ids {
		out = append(out, string(id))
	}
	return out
}

// beginHistory makes a copy whose journal is of an older history than the LUN the beginning of the present one, if it is the one that was chosen.
// It may be interrupted, and is done again until whoever calls has noted durably that it is done.
func (s *replicas) beginHistory(l catalog.LUN, r catalog.Replica, have uint64, j journal.Log, store replication.Store) error {
	switch rec, ok := l.RecoveredBy(); {
	case have > l.Epoch:
		return fmt.Errorf("replica %s is of history %d of LUN %s and the catalog here knows %d: it is behind, %w", r.ID, have, l.Name, l.Epoch, reconcile.ErrNotYet)
	case !ok || rec.Replica != r.ID:
		return fmt.Errorf("replica %s is of history %d of LUN %s, which has been recovered without it", r.ID, have, l.Name)
	default:
		s.n.log.Warn("a LUN goes on from this copy alone, as an operator has decided", "lun", l.Name, "replica", r.ID, "history", l.Epoch, "by", rec.By, "lost", rec.Lost)
		cut, err := replication.Recover(j, store, replication.Recovery{LUN: l.ID, Epoch: l.Epoch, Self: member(r), Known: rec.Term})
		if cut > 0 {
			s.n.log.Warn("the log of this copy is damaged and has been cut off: that entry and all behind it are lost", "lun", l.Name, "replica", r.ID, "entry", cut)
		}
		return err
	}
}

// recoverInMemory is beginHistory for a replica in RAM.
func (s *replicas) recoverInMemory(l catalog.LUN, r catalog.Replica, m *memoryReplica) error {
	if m.history == l.Epoch {
		return nil
	}
	if err := s.beginHistory(l, r, m.history, m.journal, m.volume); err != nil { // the journal is as good as before, though its group has closed it
		return err
	}
	m.history = l.Epoch
	return nil
}

// store returns the volume as package replication takes it: nil of a witness.
func (r *running) store() replication.Store {
	if r.volume == nil {
		return nil
	}
	return r.volume
}
