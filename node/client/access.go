package client

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"

	"sanctuary/node/api"
)

// Hosts returns all hosts.
func (c *Client) Hosts(ctx context.Context) (l api.HostList, err error) {
	err = c.get(ctx, "/v1/hosts", &l)
	return l, err
}

func hostPath(name string) string { return "/v1/hosts/" + url.PathEscape(name) }

// Host returns a host by name. An unknown one is a *api.Problem with CodeNotFound.
func (c *Client) Host(ctx context.Context, name string) (h api.Host, err error) {
	err = c.get(ctx, hostPath(name), &h)
	return h, err
}

// SetHost creates or replaces a host; secrets left empty stay as they are. create: not if there is another one of that name.
func (c *Client) SetHost(ctx context.Context, name string, spec api.HostSpec, create bool) (h api.Host, err error) {
	r := call{method: http.MethodPut, path: hostPath(name), body: spec}
	if create {
		r.query = url.Values{"create": {"true"}}
	}
	_, err = c.do(ctx, r, &h)
	return h, err
}

// DeleteHost deletes a host. force: although LUNs are granted to it.
func (c *Client) DeleteHost(ctx context.Context, name string, force bool) error {
	r := call{method: http.MethodDelete, path: hostPath(name)}
	if force {
		r.query = url.Values{"force": {"true"}}
	}
	return ended(c.do(ctx, r, nil))
}

// ended turns "there is no such thing" into success where an attempt whose answer was lost may have made it so.
func ended(maybeDone bool, err error) error {
	var p *api.Problem
	if maybeDone && errors.As(err, &p) && p.Code == api.CodeNotFound {
		return nil
	}
	return err
}

// GrantLUN lets a host use a LUN, under that number if it is not nil.
func (c *Client) GrantLUN(ctx context.Context, ref, host string, number *uint16) (l api.LUN, err error) {
	_, err = c.do(ctx, call{
		method: http.MethodPut, path: lunPath(ref) + "/hosts/" + url.PathEscape(host), body: api.LUNGrantSpec{Number: number},
	}, &l)
	return l, err
}

// RevokeLUN takes a LUN from a host.
func (c *Client) RevokeLUN(ctx context.Context, ref, host string) (l api.LUN, err error) {
	_, err = c.do(ctx, call{method: http.MethodDelete, path: lunPath(ref) + "/hosts/" + url.PathEscape(host)}, &l)
	return l, err
}

// OpenLUN says whether initiators without a grant may use a LUN.
func (c *Client) OpenLUN(ctx context.Context, ref string, access api.LUNOpen) (l api.LUN, err error) {
	_, err = c.do(ctx, call{method: http.MethodPut, path: lunPath(ref) + "/access", body: access}, &l)
	return l, err
}

// ChangeLUN changes the attributes that are given.
func (c *Client) ChangeLUN(ctx context.Context, ref string, change api.LUNChange) (l api.LUN, err error) {
	_, err = c.do(ctx, call{method: http.MethodPatch, path: lunPath(ref), body: change}, &l)
	return l, err
}

// Targets returns all iSCSI targets with the sessions of all nodes.
func (c *Client) Targets(ctx context.Context) (l api.TargetList, err error) {
	err = c.get(ctx, "/v1/targets", &l)
	return l, err
}

// CloseSession ends a session, given by its ID, if it is that initiator's.
func (c *Client) CloseSession(ctx context.Context, id, initiator string) error {
	return ended(c.do(ctx, call{
		method: http.MethodDelete, path: "/v1/sessions/" + url.PathEscape(id), query: url.Values{"initiator": {initiator}},
	}, nil))
}

// Reservations returns the persistent reservations of a LUN.
func (c *Client) Reservations(ctx context.Context, ref string) (r api.Reservations, err error) {
	err = c.get(ctx, lunPath(ref)+"/reservations", &r)
	return r, err
}

// PurgeReservations removes registrations: exactly one of the fields of what is set.
func (c *Client) PurgeReservations(ctx context.Context, ref string, what api.ReservationPurge) (p api.Purged, err error) {
	q := url.Values{}
	if what.Key != nil {
		q.Set("key", strconv.FormatUint(*what.Key, 16))
	}
	if what.Initiator != "" {
		q.Set("initiator", what.Initiator)
	}
	if what.All {
		q.Set("all", "true")
	}
	_, err = c.do(ctx, call{method: http.MethodDelete, path: lunPath(ref) + "/reservations", query: q}, &p)
	return p, err
}
