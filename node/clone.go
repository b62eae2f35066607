package node

import (
	"fmt"

	"sanctuary/blockstore/block"
	"sanctuary/node/catalog"
	"sanctuary/node/pools"
	"sanctuary/node/reconcile"
)

// How the replicas of a clone come to be. The first ones are made from the snapshot, each on its own node from the replica of
// the origin there: the log made that snapshot at the same index on every node, so the copies are equal, and the clone's own
// log begins with that. One that replaces a lost one is empty when it joins, and rebuilt from the others: see bootstrapClone in package
// replication.

// cloned says whether a replica's storage is to be made from a snapshot of another LUN.
func cloned(l catalog.LUN, r catalog.Replica) bool {
	return l.Origin != nil && !r.Witness && r.State != catalog.ReplicaJoining
}

// Prepared implements reconcile.Runner.
func (s *replicas) Prepared(l catalog.LUN, r catalog.Replica) error {
	if !cloned(l, r) {
		return nil
	}
	_, err := s.source(l)
	return err
}

// source is what a clone's replica on this node is made from.
type source struct {
	pool     *pools.Pool
	volume   string // its name in the pool
	snapshot block.SnapshotID
}

func (s *replicas) source(l catalog.LUN) (source, error) {
	id, err := block.ParseSnapshotID(l.Origin.Snapshot)
	if err != nil {
		return source{}, err
	}
	run := s.get(l.Origin.LUN)
	switch {
	case run == nil || run.volume == nil:
		return source{}, fmt.Errorf("waiting for the snapshot: no copy of LUN %q runs on this node, %w", l.Origin.LUNName, reconcile.ErrNotYet)
	case run.volume.Inconsistent():
		return source{}, fmt.Errorf("waiting for the snapshot: the copy of LUN %q on this node is being rebuilt, %w", l.Origin.LUNName, reconcile.ErrNotYet)
	}
	for _, snap := range run.volume.Snapshots() {
		if snap.ID == id {
			return source{run.pool, volumeID(run.lun.ID, run.replica.ID), id}, nil
		}
	}
	return source{}, fmt.Errorf("waiting for the snapshot: the copy of LUN %q on this node does not have %q, %w", l.Origin.LUNName, l.Origin.SnapshotName, reconcile.ErrNotYet)
}
