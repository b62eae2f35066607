package reconcile

import (
	"context"
	"errors"

	"sanctuary/node/catalog"
)

// Settled is what Reconfigure has found done, by IDs of replicas.
type Settled struct {
	CaughtUp []string // joining copies that will be voters when the catalog knows that they hold data
	Promoted []string // joining ones that are voters, in sync, with what they replace removed
	Removed  []string // leaving ones that are members no more
}

// reconfigure has the owner's group made what the catalog says, and tells the catalog what that has brought about.
func (r *Reconciler) reconfigure(ctx context.Context, l catalog.LUN) error {
	settled, err := r.cfg.Runner.Reconfigure(ctx, l)
	if len(settled.CaughtUp) > 0 {
		for _, id := range settled.CaughtUp {
			result, perr := r.propose(ctx, &catalog.ReplicaFilled{LUN: l.ID, Replica: id})
			if perr != nil {
				return errors.Join(err, perr)
			}
			l = *result.LUN
		}
		settled, err = r.cfg.Runner.Reconfigure(ctx, l) // they may vote now
	}
	for _, id := range settled.Promoted {
		if _, perr := r.propose(ctx, &catalog.ReplicaPromoted{LUN: l.ID, Replica: id}); perr != nil {
			return errors.Join(err, perr)
		}
		r.log.Info("a replica holds the data", "lun", l.Name, "replica", id)
	}
	for _, id := range settled.Removed {
		if _, perr := r.propose(ctx, &catalog.ReplicaRemoved{LUN: l.ID, Replica: id}); perr != nil {
			return errors.Join(err, perr)
		}
		r.log.Info("a replica has left the LUN", "lun", l.Name, "replica", id)
	}
	return err
}
