package node

import (
	"context"

	"sanctuary/node/api"
	"sanctuary/node/catalog"
	"sanctuary/node/placement"
)

// ChangeReplicas implements api.Service.
func (s service) ChangeReplicas(ctx context.Context, ref string, change api.ReplicaChange) (api.LUN, error) {
	model, err := s.n.catalog.Barrier(ctx)
	if err != nil {
		return api.LUN{}, problem(err)
	}
	l, err := find(model, ref)
	if err != nil {
		return api.LUN{}, err
	}
	places, err := placement.Apply(model, s.reachable(), l, placement.Change{Add: change.Add, Remove: change.Remove, Pool: change.Pool, Witness: change.Witness})
	if err != nil {
		return api.LUN{}, api.Invalid("Change the request, or add what is missing.", "%v", err)
	}
	wanted := &catalog.SetReplicas{LUN: l.ID, Replicas: places}
	for _, r := range l.Replicas {
		wanted.Was = append(wanted.Was, r.ID)
	}
	result, err := s.n.catalog.Propose(ctx, wanted)
	if err != nil {
		return api.LUN{}, problem(err)
	}
	return s.lun(s.n.catalog.Model(), *result.LUN), nil
}

// recoveriesView is a LUN's record of forced recoveries, as the API shows it.
func recoveriesView(l catalog.LUN) (out []api.RecoveryRecord) {
	for _, r := range l.Recoveries {
		out = append(out, api.RecoveryRecord{History: r.Epoch, Replica: r.Replica, At: r.Time().UTC(), Through: r.Through, By: r.By, Why: r.Why, Lost: r.Lost})
	}
	return out
}
