package node

import (
	"context"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"sanctuary/blockstore/block"
	"sanctuary/node/api"
	"sanctuary/node/catalog"
	"sanctuary/node/placement"
)

// CloneLUN implements api.SnapshotService.
func (s service) CloneLUN(ctx context.Context, ref string, spec api.CloneSpec) (api.LUN, error) {
	run, err := s.owned(ref)
	if err != nil {
		return api.LUN{}, err
	}
	if spec.ID == "" {
		spec.ID = catalog.NewID()
	}
	from, err := s.cloneSource(ctx, run, spec)
	if err != nil {
		return api.LUN{}, err
	}
	origin := s.n.catalog.Model().LUNs[run.lun.ID]
	change := &catalog.CreateLUN{
		ID: spec.ID, Name: spec.Name, Media: origin.Media, Class: origin.Class, Preferred: s.n.cfg.Node,
		Geometry: block.Geometry{Capacity: from.Capacity, LogicalBlockBytes: origin.Geometry.LogicalBlockBytes},
		Access:   &catalog.NewAccess{Open: spec.Open, SinglePath: spec.SinglePath, Hosts: spec.Hosts},
		Replicas: placement.Beside(origin),
		Origin:   &catalog.NewOrigin{LUN: origin.ID, Snapshot: from.ID.String(), SnapshotName: from.Name, ReadOnly: spec.ReadOnly},

		ZeroDetection: origin.ZeroDetection && !spec.ReadOnly,
	}
	attempt, cancel := context.WithTimeout(ctx, catalogWait)
	defer cancel()
	result, err := proposer(s).Propose(attempt, change)
	if err != nil {
		return api.LUN{}, problem(err)
	}
	// This node need not lead the catalog, and is about to be asked for the new LUN.
	model, err := s.n.catalog.WaitIndex(ctx, result.Index)
	if err != nil {
		return api.LUN{}, api.OutcomeUnknown("the new LUN is recorded, but node %q has not heard of it yet: %v", s.n.cfg.Node, err)
	}
	return s.lun(model, *result.LUN), nil
}

// cloneSource returns the snapshot to clone, which is taken now if none is named. Its ID is then that of the clone, so that a
// repeated request takes one.
func (s service) cloneSource(ctx context.Context, run *running, spec api.CloneSpec) (block.Snapshot, error) {
	if spec.Snapshot != "" {
		return pick(run, run.group.Snapshots(), spec.Snapshot)
	}
	id, err := uuid.Parse(spec.ID)
	if err != nil {
		return block.Snapshot{}, api.Invalid("Leave it out.", "ID %q of the new LUN: %v", spec.ID, err)
	}
	now := s.n.clock()
	take := block.SnapshotSpec{ID: block.SnapshotID(id), Name: fmt.Sprintf("for-%.40s-%s", spec.Name, now.UTC().Format(nameTime)), Created: now.UnixMilli()}
	if err := run.take(ctx, take); err != nil {
		return block.Snapshot{}, err
	}
	have := run.group.Snapshots()
	i := slices.IndexFunc(have, func(x block.Snapshot) bool { return x.ID == take.ID })
	if i < 0 {
		return block.Snapshot{}, api.NoOwner("LUN %q: the snapshot that has just been taken is gone", run.lun.Name)
	}
	return have[i], nil
}

// lunOrigin is where a clone comes from, as the API shows it.
func lunOrigin(m *catalog.Model, l catalog.LUN) *api.LUNOrigin {
	o := l.Origin
	if o == nil {
		return nil
	}
	out := &api.LUNOrigin{LUN: o.LUNName, LUNID: o.LUN, Snapshot: o.SnapshotName, SnapshotID: o.Snapshot, Waiting: len(o.Waiting)}
	if now, ok := m.LUNs[o.LUN]; ok {
		out.LUN, out.Exists = now.Name, true
	}
	return out
}
