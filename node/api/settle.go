package api

import (
	"context"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// settleTime bounds how long a change waits for other nodes to know of it. They do within a heartbeat of the catalog; one
// that does not in this time is ill, and must not hold up an operator.
const settleTime = 2 * time.Second

func (s *Server) registerCatalog() {
	huma.Register(s.api, reads("get-catalog", "/v1/catalog", "The catalog's Raft group, as this node sees it", "cluster"), s.getCatalog)
}

func (s *Server) getCatalog(context.Context, *request) (*reply[Catalog], error) {
	return &reply[Catalog]{s.svc.Catalog()}, nil
}

// settle waits until every node that is alive has what this node, the catalog's leader, has just changed: what an operator
// takes away is gone when the command returns, and what was allowed works on every path. A node that does not answer is not
// waited for: one that is cut off owns no LUN for longer than its lease, and hears of the change before it does again.
func (s *Server) settle(ctx context.Context) {
	nodes, err := s.svc.Nodes(ctx)
	if err != nil {
		return
	}
	index := s.svc.Catalog().Index
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	var wg sync.WaitGroup
	for _, n := range nodes {
		if n.Alive && n.Name != s.svc.Name() {
			wg.Go(func() { s.settleOn(ctx, n.Name, index) })
		}
	}
	wg.Wait()
}

// settleOn waits until a node's catalog has come to index, it does not answer, ctx ends or this server stops.
func (s *Server) settleOn(ctx context.Context, node string, index uint64) {
	for pause := s.cfg.PollInterval / 10; ; pause = min(2*pause, s.cfg.PollInterval) {
		var c Catalog
		if err := s.ask(ctx, node, "/v1/catalog", &c); err != nil || c.Index >= index {
			return
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		case <-s.draining:
			return
		}
	}
}
