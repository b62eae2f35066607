package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

// ReplicaChange says how a LUN's replicas are to change. A witness is added or removed as the number of copies demands: an even number has
// one, an odd number none.
type ReplicaChange struct {
	Add     []string `json:"add,omitempty" maxItems:"5" doc:"Data nodes that are to have a copy; an empty string: one that suits"`
	Remove  []string `json:"remove,omitempty" maxItems:"6" doc:"Nodes that are to have no copy, or not the witness, any more"`
	Pool    string   `json:"pool,omitempty" maxLength:"63" doc:"Pool for the copies that are added; empty: the one with the most room"`
	Witness string   `json:"witness,omitempty" maxLength:"63" doc:"Node that is to be the witness, where there is one; empty: the one there is, or one that suits"`
}

type replicaRequest struct {
	LUNRequest
	WaitQuery
	Body ReplicaChange
}

type revertRequest struct {
	LUNRequest
	Node string `path:"node" doc:"Node whose copy it is" minLength:"1" maxLength:"63"`
}

func (s *Server) registerReplicas() {
	change := changes("change-replicas", http.MethodPost, "/v1/luns/{lun}/replicas", "Add, remove or move copies of a LUN while it is used", "luns", http.StatusOK, s.toLeader)
	change.Description = "New copies are filled first; those that go stay in use until then. The answer is the LUN when all is done, or when the wait is over: " +
		"replicas that are joining or leaving say so. Asking for the old set again undoes what has not been done."
	huma.Register(s.api, change, s.changeReplicas)
	revert := changes("revert-replica", http.MethodPost, "/v1/luns/{lun}/replicas/{node}/revert", "Make a copy again what it held before its rebuild", "luns", http.StatusOK, s.toNode)
	revert.Description = "For when what it was rebuilt from is gone for good: refused while that answers. The copy is then an older, consistent one. It is rebuilt " +
		"if another returns; to serve from it takes a forced recovery."
	huma.Register(s.api, revert, s.revertReplica)
}

func (s *Server) revertReplica(ctx context.Context, in *revertRequest) (*reply[RebuildBefore], error) {
	b, err := s.svc.RevertReplica(ctx, in.LUN)
	if err != nil {
		return nil, asProblem(err)
	}
	return &reply[RebuildBefore]{b}, nil
}

func (s *Server) changeReplicas(ctx context.Context, in *replicaRequest) (*reply[LUN], error) {
	wait, err := in.duration(defaultWait)
	if err != nil {
		return nil, err
	}
	if len(in.Body.Add)+len(in.Body.Remove) == 0 && in.Body.Witness == "" {
		return nil, Invalid("Name a node to add or to remove.", "no change of the replicas")
	}
	l, err := s.svc.ChangeReplicas(ctx, in.LUN, in.Body)
	if err != nil {
		return nil, asProblem(err)
	}
	s.settle(ctx)
	if l, err = s.await(ctx, l.ID, wait, LUN.Settled); err != nil {
		return nil, asProblem(err)
	}
	return &reply[LUN]{l}, nil
}

// Settled says whether the replicas are those that are wanted, and hold what they should.
func (l LUN) Settled() bool {
	for _, r := range l.Replicas {
		if r.Leaving || r.State == "joining" {
			return false
		}
	}
	return true
}
