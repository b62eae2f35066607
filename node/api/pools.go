package api

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"slices"

	"github.com/danielgtaylor/huma/v2"
)

// States of a pool.
const (
	PoolOK     = "ok"
	PoolFailed = "failed" // its replicas are out of service
)

// Pool is what LUNs are kept on at one node.
type Pool struct {
	Node           string        `json:"node" doc:"Node that has it"`
	Name           string        `json:"name" doc:"Unique on that node"`
	ID             string        `json:"id,omitempty" doc:"UUID; absent for the pools of the node's configuration"`
	Media          string        `json:"media" enum:"file,device,ram" doc:"What it is on: files in a directory, a raw block device, memory"`
	Path           string        `json:"path,omitempty" doc:"Directory or device on that node"`
	Class          string        `json:"class" enum:"ram,ssd,hdd" doc:"What LUNs ask for"`
	ClassBecause   string        `json:"class_because,omitempty" doc:"How the class is known"`
	CapacityBytes  int64         `json:"capacity_bytes" doc:"What LUNs may allocate"`
	AllocatedBytes int64         `json:"allocated_bytes"`
	FreeBytes      int64         `json:"free_bytes"`
	Sparse         bool          `json:"sparse,omitempty" doc:"Files that take space on their file system when it is needed, which may have less than what is free here. Otherwise all of it is reserved there"`
	State          string        `json:"state" enum:"ok,failed" doc:"failed: it cannot be used, and its replicas are out of service"`
	Reason         string        `json:"reason,omitempty" doc:"Why it failed"`
	Configured     bool          `json:"configured" doc:"It is of the node's configuration file, and cannot be removed here"`
	Replicas       []PoolReplica `json:"replicas" nullable:"false" doc:"What is in it"`
}

// PoolReplica is a replica in a pool.
type PoolReplica struct {
	LUN     string `json:"lun" doc:"Name of the LUN"`
	LUNID   string `json:"lun_id" doc:"UUID of the LUN"`
	Replica string `json:"replica" doc:"ID of the replica"`
}

// PoolList is what GET /v1/pools answers.
type PoolList struct {
	Pools       []Pool   `json:"pools" nullable:"false"`
	Unreachable []string `json:"unreachable,omitempty" doc:"Nodes that did not answer: their pools are missing here"`
}

// PoolSpec asks for a pool.
type PoolSpec struct {
	ID            string `json:"id,omitempty" format:"uuid" doc:"UUID chosen by the client, so that a repeated request makes one pool, not two; chosen by the node if empty"`
	Name          string `json:"name,omitempty" maxLength:"63" doc:"Lower-case letters, digits and hyphens; empty: chosen, from the class" example:"ssd1"`
	Media         string `json:"media" enum:"file,device,ram"`
	Path          string `json:"path,omitempty" maxLength:"4096" doc:"Directory (file) or block device (device), absolute" example:"/dev/disk/by-id/nvme-X"`
	CapacityBytes int64  `json:"capacity_bytes,omitempty" minimum:"0" maximum:"1125899906580480" doc:"What LUNs may allocate, at least 64 MiB; a device is used as a whole"`
	Class         string `json:"class,omitempty" enum:"ram,ssd,hdd" doc:"Empty: what the system says of the disk"`
	Sparse        bool   `json:"sparse,omitempty" doc:"Files take space on their file system when it is needed, instead of all of it at once"`
	Force         bool   `json:"force,omitempty" doc:"Take it although it holds something, which is lost"`
}

// PoolRemoval says how a pool is removed.
type PoolRemoval struct {
	Wipe bool `query:"wipe" doc:"Delete its files, or its header on the device. Otherwise they stay"`
	Lost bool `query:"lost" doc:"Its disk is lost: give up the replicas in it, which are then made anew in other pools. Only while the pool is failed since the node's start"`
}

// NodeRequest is part of a request about one node.
type NodeRequest struct {
	Hop
	Node string `path:"node" doc:"Name of the node" minLength:"1" maxLength:"63"`
}

// PoolRequest is part of a request about one pool.
type PoolRequest struct {
	NodeRequest
	Pool string `path:"pool" doc:"Name of the pool" minLength:"1" maxLength:"63"`
}

type (
	addPoolRequest struct {
		NodeRequest
		Body PoolSpec
	}
	removePoolRequest struct {
		PoolRequest
		PoolRemoval
	}
)

func (s *Server) registerPools() {
	huma.Register(s.api, reads("list-pools", "/v1/pools", "Pools of all nodes", "pools"), s.listPools)
	get := reads("get-pool", "/v1/nodes/{node}/pools/{pool}", "One pool, and what is in it", "pools")
	get.Middlewares = huma.Middlewares{s.toNode}
	huma.Register(s.api, get, s.getPool)
	add := changes("add-pool", http.MethodPost, "/v1/nodes/{node}/pools", "Make a pool on a directory, a block device or in memory", "pools", http.StatusCreated, s.toNode)
	add.Description = "The node remembers it. What is in use is refused, and what holds anything unless force is set."
	huma.Register(s.api, add, s.addPool)
	remove := changes("remove-pool", http.MethodDelete, "/v1/nodes/{node}/pools/{pool}", "Remove a pool that nothing is in", "pools", http.StatusNoContent, s.toNode)
	remove.Description = "Refused while replicas are in it, unless it is lost."
	huma.Register(s.api, remove, s.removePool)
}

func (s *Server) addPool(ctx context.Context, in *addPoolRequest) (*reply[Pool], error) {
	p, err := s.svc.AddPool(ctx, in.Body)
	if err != nil {
		return nil, asProblem(err)
	}
	return &reply[Pool]{p}, nil
}

func (s *Server) removePool(ctx context.Context, in *removePoolRequest) (*struct{}, error) {
	if err := s.svc.RemovePool(ctx, in.Pool, in.PoolRemoval); err != nil {
		return nil, asProblem(err)
	}
	return nil, nil
}

func (s *Server) getPool(ctx context.Context, in *PoolRequest) (*reply[Pool], error) {
	own, err := s.svc.Pools(ctx)
	if err != nil {
		return nil, asProblem(err)
	}
	i := slices.IndexFunc(own, func(p Pool) bool { return p.Name == in.Pool })
	if i < 0 {
		return nil, NotFound("node %s has no pool %q", in.Node, in.Pool)
	}
	return &reply[Pool]{own[i]}, nil
}

func (s *Server) listPools(ctx context.Context, in *request) (*reply[PoolList], error) {
	list, err := s.pools(ctx, in.localOnly())
	if err != nil {
		return nil, asProblem(err)
	}
	return &reply[PoolList]{list}, nil
}

// pools returns the pools of every data node, and the nodes that did not answer.
func (s *Server) pools(ctx context.Context, localOnly bool) (PoolList, error) {
	own, err := s.svc.Pools(ctx)
	if err != nil {
		return PoolList{}, err
	}
	list := PoolList{Pools: slices.Clone(orEmpty(own))}
	if localOnly {
		return list, nil
	}
	list.Unreachable, err = askDataNodes(ctx, s, "/v1/pools", func(theirs PoolList) { list.Pools = append(list.Pools, theirs.Pools...) })
	if err != nil {
		return PoolList{}, err
	}
	slices.SortFunc(list.Pools, func(a, b Pool) int { return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Name, b.Name)) })
	return list, nil
}

// PoolPath is the path of a node's pools, or of one of them.
func PoolPath(node string, pool ...string) string {
	path := "/v1/nodes/" + url.PathEscape(node) + "/pools"
	for _, p := range pool {
		path += "/" + url.PathEscape(p)
	}
	return path
}
