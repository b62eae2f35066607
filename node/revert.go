package node

import (
	"context"
	"encoding/json"
	"errors"

	"sanctuary/blockstore"
	"sanctuary/node/api"
	"sanctuary/node/catalog"
	"sanctuary/replication"
)

// methodRevert: LUN ID → a reverted as JSON.
const methodRevert = "lun.revert"

// reverted is what became of a request to give a rebuild up.
type reverted struct {
	Before  api.RebuildBefore `json:"before"`
	Refused string            `json:"refused,omitempty"`
}

func (n *Node) serveRevert(ctx context.Context, _ string, req []byte) ([]byte, error) {
	out, err := n.replicas.revert(ctx, string(req))
	if err != nil {
		return nil, err
	}
	return json.Marshal(out)
}

// revert gives the rebuild of the replica here up.
func (s *replicas) revert(ctx context.Context, lun string) (out reverted, err error) {
	run := s.get(lun)
	if run == nil {
		return reverted{Refused: "no replica of it runs there"}, nil
	}
	b, err := run.group.FallBack(ctx)
	switch {
	case errors.Is(err, replication.ErrSourceAnswers):
		return reverted{Refused: "the copy that it is rebuilt from has answered in the last seconds: wait for the rebuild, or until that copy is gone"}, nil
	case errors.Is(err, blockstore.ErrNothingKept):
		return reverted{Refused: "it is not being rebuilt, or nothing is kept of what it held before (there was no room for it, or it held nothing)"}, nil
	case err != nil:
		return out, err
	}
	return reverted{Before: beforeView(b)}, nil
}

// RevertReplica implements api.Service.
func (s service) RevertReplica(ctx context.Context, ref, node string) (api.RebuildBefore, error) {
	model, err := s.model()
	if err != nil {
		return api.RebuildBefore{}, err
	}
	l, err := find(model, ref)
	if err != nil {
		return api.RebuildBefore{}, err
	}
	out, err := s.askRevert(ctx, l, node)
	switch {
	case err != nil:
		return out.Before, api.OutcomeUnknown("node %s has not said that it has given the rebuild of LUN %q up: %v", node, l.Name, err)
	case out.Refused != "":
		return out.Before, api.Conflict("How far the rebuild is: sanctuary lun show "+l.Name+".", "the copy of LUN %q on node %s stays as it is: %s", l.Name, node, out.Refused)
	}
	s.n.log.Warn("an operator has a copy made again what it was before its rebuild", "lun", l.Name, "node", node, "entry", out.Before.Index)
	return out.Before, nil
}

func (s service) askRevert(ctx context.Context, l catalog.LUN, node string) (out reverted, err error) {
	if node == s.n.cfg.Node {
		return s.n.replicas.revert(ctx, l.ID)
	}
	answer, err := s.n.mux.Call(ctx, node, methodRevert, []byte(l.ID))
	if err == nil {
		err = json.Unmarshal(answer, &out)
	}
	return out, err
}
