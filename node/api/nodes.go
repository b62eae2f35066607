package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

// Drain is what came of draining a node.
type Drain struct {
	Node string     `json:"node" doc:"The node that is to hold nothing"`
	LUNs []DrainLUN `json:"luns" nullable:"false" doc:"LUNs of which it held something, by name"`
}

// DrainLUN is one of them.
type DrainLUN struct {
	LUN   string `json:"lun" doc:"Name"`
	ID    string `json:"id" format:"uuid"`
	Error string `json:"error,omitempty" doc:"Why its replica stays; empty: it is on its way to another node"`
}

// Kept returns how many LUNs stay.
func (d Drain) Kept() (n int) {
	for _, l := range d.LUNs {
		if l.Error != "" {
			n++
		}
	}
	return n
}

type nodeRequest struct {
	Hop
	Node string `path:"node" minLength:"1" maxLength:"63" doc:"Name of the node"`
}

func (s *Server) registerNodes() {
	drain := changes("drain-node", http.MethodPost, "/v1/nodes/{node}/drain", "Move everything a node holds to other nodes", "cluster", http.StatusOK, s.toLeader)
	drain.Description = "Replicas and witnesses are moved as by change-replicas; the answer does not wait for it. What has no place elsewhere stays, and the answer says why. May be repeated."
	huma.Register(s.api, drain, s.drainNode)
	huma.Register(s.api, changes("remove-node", http.MethodDelete, "/v1/nodes/{node}", "Forget a node that holds nothing and does not run", "cluster",
		http.StatusNoContent, s.toLeader), s.removeNode)
}

func (s *Server) drainNode(ctx context.Context, in *nodeRequest) (*reply[Drain], error) {
	d, err := s.svc.DrainNode(ctx, in.Node)
	if err != nil {
		return nil, asProblem(err)
	}
	s.settle(ctx)
	d.LUNs = orEmpty(d.LUNs)
	return &reply[Drain]{d}, nil
}

func (s *Server) removeNode(ctx context.Context, in *nodeRequest) (*struct{}, error) {
	if err := s.svc.RemoveNode(ctx, in.Node); err != nil {
		return nil, asProblem(err)
	}
	s.settle(ctx)
	return nil, nil
}
