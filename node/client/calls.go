package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"sanctuary/node/api"
)

func (c *Client) get(ctx context.Context, path string, out any) error {
	_, err := c.do(ctx, call{method: http.MethodGet, path: path}, out)
	return err
}

// Health returns the state of the process that answers.
func (c *Client) Health(ctx context.Context) (h api.NodeHealth, err error) {
	err = c.get(ctx, "/v1/health", &h)
	return h, err
}

// Ready returns nil when the node that answers has started what it should, and the reason (a *api.Problem) when not.
func (c *Client) Ready(ctx context.Context) error { return c.get(ctx, "/v1/ready", nil) }

// Status returns the whole cluster.
func (c *Client) Status(ctx context.Context) (s api.Status, err error) {
	err = c.get(ctx, "/v1/status", &s)
	return s, err
}

// Nodes returns the members.
func (c *Client) Nodes(ctx context.Context) (l api.NodeList, err error) {
	err = c.get(ctx, "/v1/nodes", &l)
	return l, err
}

// Sessions returns the iSCSI sessions of all nodes.
func (c *Client) Sessions(ctx context.Context) (l api.SessionList, err error) {
	err = c.get(ctx, "/v1/sessions", &l)
	return l, err
}

// Settings returns the cluster's settings.
func (c *Client) Settings(ctx context.Context) (s api.Settings, err error) {
	err = c.get(ctx, "/v1/settings", &s)
	return s, err
}

// SetSettings changes the settings given and returns all.
func (c *Client) SetSettings(ctx context.Context, change map[string]string) (s api.Settings, err error) {
	_, err = c.do(ctx, call{method: http.MethodPut, path: "/v1/settings", body: api.Settings{Settings: change}}, &s)
	return s, err
}

// LUNs returns all LUNs.
func (c *Client) LUNs(ctx context.Context) (l api.LUNList, err error) {
	err = c.get(ctx, "/v1/luns", &l)
	return l, err
}

func lunPath(ref string) string { return "/v1/luns/" + url.PathEscape(ref) }

// LUN returns a LUN by name or ID. An unknown one is a *api.Problem with CodeNotFound.
func (c *Client) LUN(ctx context.Context, ref string) (l api.LUN, err error) {
	err = c.get(ctx, lunPath(ref), &l)
	return l, err
}

func waiting(d time.Duration) url.Values { return url.Values{"wait": {d.String()}} }

// CreateLUN creates a LUN and waits up to wait (0 to 5 minutes) until it is served: look at LUN.Served. It chooses an ID
// if the spec has none, so that a repeated attempt makes one LUN.
func (c *Client) CreateLUN(ctx context.Context, spec api.LUNSpec, wait time.Duration) (l api.LUN, err error) {
	if spec.ID == "" {
		spec.ID = newUUID()
	}
	_, err = c.do(ctx, call{
		method: http.MethodPost, path: "/v1/luns", query: waiting(wait), body: spec, wait: wait,
	}, &l)
	return l, err
}

// newUUID returns a random UUID (RFC 9562 version 4).
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// DeleteLUN deletes a LUN and its data on every node. It takes an ID, as LUN returns it: a name may be given to a new LUN
// between two attempts, an ID never is. force: although initiators use it, or may.
func (c *Client) DeleteLUN(ctx context.Context, id string, force bool) error {
	r := call{method: http.MethodDelete, path: lunPath(id)}
	if force {
		r.query = url.Values{"force": {"true"}}
	}
	maybeDone, err := c.do(ctx, r, nil)
	var p *api.Problem
	if maybeDone && errors.As(err, &p) && p.Code == api.CodeNotFound {
		return nil // an attempt whose answer was lost has done it
	}
	return err
}

// MoveLUN makes node the owner and waits up to wait for it.
func (c *Client) MoveLUN(ctx context.Context, ref, node string, wait time.Duration) (l api.LUN, err error) {
	_, err = c.do(ctx, call{
		method: http.MethodPost, path: lunPath(ref) + "/move", query: waiting(wait), body: api.LUNMove{Node: node}, wait: wait,
	}, &l)
	return l, err
}

// StartScrub begins a pass of the scrub on every copy of a LUN.
func (c *Client) StartScrub(ctx context.Context, ref string) (l api.LUN, err error) {
	_, err = c.do(ctx, call{method: http.MethodPost, path: lunPath(ref) + "/scrub"}, &l)
	return l, err
}

// PauseScrub pauses or resumes the scrub of a LUN.
func (c *Client) PauseScrub(ctx context.Context, ref string, paused bool) (l api.LUN, err error) {
	_, err = c.do(ctx, call{method: http.MethodPut, path: lunPath(ref) + "/scrub", body: api.ScrubPause{Paused: paused}}, &l)
	return l, err
}

// Propose passes an encoded change of the catalog on to its leader and returns the encoded result. It may be sent more than
// once: every change of the catalog is made so that doing it twice is doing it once.
func (c *Client) Propose(ctx context.Context, change []byte) ([]byte, error) {
	var out api.ProposalResult
	_, err := c.do(ctx, call{method: http.MethodPost, path: "/v1/internal/propose", body: api.Proposal{Change: change}}, &out)
	return out.Result, err
}
