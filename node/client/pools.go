package client

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"sanctuary/node/api"
)

// poolWait is how long making a pool may take beyond other requests: its file system may have to reserve all of it.
const poolWait = 2 * time.Minute

// Pools returns the pools of all nodes.
func (c *Client) Pools(ctx context.Context) (l api.PoolList, err error) {
	err = c.get(ctx, "/v1/pools", &l)
	return l, err
}

// Pool returns a pool of a node, with what is in it.
func (c *Client) Pool(ctx context.Context, node, name string) (p api.Pool, err error) {
	err = c.get(ctx, api.PoolPath(node, name), &p)
	return p, err
}

// AddPool makes a pool on a node. It chooses an ID if the spec has none, so that a repeated attempt makes one pool.
func (c *Client) AddPool(ctx context.Context, node string, spec api.PoolSpec) (p api.Pool, err error) {
	if spec.ID == "" {
		spec.ID = newUUID()
	}
	_, err = c.do(ctx, call{method: http.MethodPost, path: api.PoolPath(node), body: spec, wait: poolWait}, &p)
	return p, err
}

// RemovePool removes a pool that nothing is in.
func (c *Client) RemovePool(ctx context.Context, node, name string, how api.PoolRemoval) error {
	r := call{method: http.MethodDelete, path: api.PoolPath(node, name), query: url.Values{}, wait: poolWait}
	if how.Wipe {
		r.query.Set("wipe", "true")
	}
	if how.Lost {
		r.query.Set("lost", "true")
	}
	return ended(c.do(ctx, r, nil))
}
