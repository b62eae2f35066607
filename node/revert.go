package node

import (
	"context"
	"errors"

	"sanctuary/blockstore"
	"sanctuary/node/api"
	"sanctuary/replication"
)

// RevertReplica implements api.Service.
func (s service) RevertReplica(ctx context.Context, ref string) (api.RebuildBefore, error) {
	model, err := s.model()
	if err != nil {
		return api.RebuildBefore{}, err
	}
	l, err := find(model, ref)
	if err != nil {
		return api.RebuildBefore{}, err
	}
	refused := func(why string) error {
		return api.Conflict("How far the rebuild is: sanctuary lun show "+l.Name+".", "the copy of LUN %q on node %s stays as it is: %s", l.Name, s.n.cfg.Node, why)
	}
	run := s.n.replicas.get(l.ID)
	if run == nil {
		return api.RebuildBefore{}, refused("no replica of it runs there")
	}
	b, err := run.group.FallBack(ctx)
	switch {
	case errors.Is(err, replication.ErrSourceAnswers):
		return api.RebuildBefore{}, refused("the copy that it is rebuilt from has answered in the last seconds: wait for the rebuild, or until that copy is gone")
	case errors.Is(err, blockstore.ErrNothingKept):
		return api.RebuildBefore{}, refused("it is not being rebuilt, or nothing is kept of what it held before (there was no room for it, or it held nothing)")
	case err != nil:
		return api.RebuildBefore{}, api.OutcomeUnknown("the rebuild of LUN %q on node %s was not given up, or not to the end: %v", l.Name, s.n.cfg.Node, err)
	}
	s.n.log.Warn("an operator has had a copy made again what it was before its rebuild", "lun", l.Name, "entry", b.Index)
	return beforeView(b), nil
}
