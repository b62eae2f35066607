package client

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"sanctuary/node/api"
)

// ChangeReplicas adds and removes copies of a LUN and waits up to wait until that has come about: look at LUN.Settled.
func (c *Client) ChangeReplicas(ctx context.Context, ref string, change api.ReplicaChange, wait time.Duration) (l api.LUN, err error) {
	_, err = c.do(ctx, call{
		method: http.MethodPost, path: lunPath(ref) + "/replicas", query: waiting(wait), body: change, wait: wait,
	}, &l)
	return l, err
}

// RevertReplica makes a node's copy of a LUN again what it held before its rebuild, which it returns.
func (c *Client) RevertReplica(ctx context.Context, ref, node string) (b api.RebuildBefore, err error) {
	_, err = c.do(ctx, call{method: http.MethodPost, path: lunPath(ref) + "/replicas/" + url.PathEscape(node) + "/revert"}, &b)
	return b, err
}

// Recovery returns what a forced recovery of a LUN would mean; node: whose copy it would go on from, empty for the best.
func (c *Client) Recovery(ctx context.Context, ref, node string) (r api.Recovery, err error) {
	look := call{method: http.MethodGet, path: lunPath(ref) + "/recovery"}
	if node != "" {
		look.query = url.Values{"node": {node}}
	}
	_, err = c.do(ctx, look, &r)
	return r, err
}

// Recover has a LUN go on from one copy, by force, and waits up to wait until it is served. It may be repeated: spec.History, from Recovery, tells
// a request that has been granted from a new one.
func (c *Client) Recover(ctx context.Context, ref string, spec api.RecoverSpec, wait time.Duration) (r api.Recovery, err error) {
	_, err = c.do(ctx, call{
		method: http.MethodPost, path: lunPath(ref) + "/recovery", query: waiting(wait), body: spec, wait: wait,
	}, &r)
	return r, err
}

// DrainNode has everything a node holds moved to other nodes. It does not wait for that.
func (c *Client) DrainNode(ctx context.Context, node string) (d api.Drain, err error) {
	_, err = c.do(ctx, call{method: http.MethodPost, path: "/v1/nodes/" + url.PathEscape(node) + "/drain"}, &d)
	return d, err
}

// RemoveNode forgets a node that holds nothing and does not run.
func (c *Client) RemoveNode(ctx context.Context, node string) error {
	_, err := c.do(ctx, call{method: http.MethodDelete, path: "/v1/nodes/" + url.PathEscape(node)}, nil)
	return err
}
