package client

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"sanctuary/node/api"
)

// walkWait is how long a walk over a LUN's map may take beyond an ordinary answer: about a second for a TiB.
const walkWait = 30 * time.Second

func snapshotPath(ref, snap string) string {
	return lunPath(ref) + "/snapshots/" + url.PathEscape(snap)
}

// Snapshots returns the snapshots of a LUN; with space also what they take, which may take seconds.
func (c *Client) Snapshots(ctx context.Context, ref string, space bool) (l api.SnapshotList, err error) {
	r := call{method: http.MethodGet, path: lunPath(ref) + "/snapshots", query: url.Values{"space": {strconv.FormatBool(space)}}}
	if space {
		r.wait = walkWait
	}
	_, err = c.do(ctx, r, &l)
	return l, err
}

// CreateSnapshot takes a snapshot of a LUN, and at the same moment of those in spec.With. It chooses an ID if the spec has none,
// so that a repeated attempt takes one.
func (c *Client) CreateSnapshot(ctx context.Context, ref string, spec api.SnapshotSpec) (s api.SnapshotSet, err error) {
	if spec.ID == "" {
		var b [16]byte
		_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process instead
		spec.ID = hex.EncodeToString(b[:])
	}
	_, err = c.do(ctx, call{method: http.MethodPost, path: lunPath(ref) + "/snapshots", body: spec, wait: 15 * time.Second}, &s)
	return s, err
}

// DeleteSnapshot deletes a snapshot. It takes IDs, as Snapshots returns them: names may be given to others between two attempts.
func (c *Client) DeleteSnapshot(ctx context.Context, lun, snapshot string) error {
	return ended(c.do(ctx, call{method: http.MethodDelete, path: snapshotPath(lun, snapshot)}, nil))
}

// RollBack makes a LUN what it was when a snapshot was taken. It is sent once: repeated after it has been done, it would take
// back what was written in between.
func (c *Client) RollBack(ctx context.Context, ref string, spec api.RollbackSpec) (r api.Rollback, err error) {
	_, err = c.do(ctx, call{method: http.MethodPost, path: lunPath(ref) + "/rollback", body: spec, wait: walkWait, once: true}, &r)
	return r, err
}

// Diff calls fn for the ranges, ascending, in which two states of a LUN may differ: snapshots, or empty from for an empty disk and
// empty to for the LUN as it is. It returns the last answer without its ranges.
func (c *Client) Diff(ctx context.Context, ref, from, to string, fn func(api.DiffRange) error) (d api.Diff, err error) {
	q := url.Values{}
	if from != "" {
		q.Set("from", from)
	}
	if to != "" {
		q.Set("to", to)
	}
	for {
		d = api.Diff{}
		if _, err := c.do(ctx, call{method: http.MethodGet, path: lunPath(ref) + "/diff", query: q, wait: walkWait}, &d); err != nil {
			return d, err
		}
		for _, r := range d.Ranges {
			if err := fn(r); err != nil {
				return d, err
			}
		}
		d.Ranges = nil
		if d.Next == 0 {
			return d, nil
		}
		q.Set("start", strconv.FormatInt(d.Next, 10))
	}
}

// CloneLUN makes a LUN that begins as a snapshot of ref, and waits up to wait until it is served. It chooses an ID if the spec
// has none, so that a repeated attempt makes one LUN.
func (c *Client) CloneLUN(ctx context.Context, ref string, spec api.CloneSpec, wait time.Duration) (l api.LUN, err error) {
	if spec.ID == "" {
		spec.ID = newUUID()
	}
	_, err = c.do(ctx, call{method: http.MethodPost, path: lunPath(ref) + "/clones", query: waiting(wait), body: spec, wait: wait}, &l)
	return l, err
}

// Schedules returns the schedules of a LUN's snapshots.
func (c *Client) Schedules(ctx context.Context, ref string) (l api.ScheduleList, err error) {
	err = c.get(ctx, lunPath(ref)+"/schedules", &l)
	return l, err
}

// SetSchedule creates or replaces the schedule with that prefix.
func (c *Client) SetSchedule(ctx context.Context, ref string, schedule api.Schedule) (l api.LUN, err error) {
	_, err = c.do(ctx, call{method: http.MethodPut, path: lunPath(ref) + "/schedules", body: schedule}, &l)
	return l, err
}

// RemoveSchedule removes a schedule, or all of the LUN if prefix is empty. Their snapshots stay.
func (c *Client) RemoveSchedule(ctx context.Context, ref, prefix string) (l api.LUN, err error) {
	r := call{method: http.MethodDelete, path: lunPath(ref) + "/schedules"}
	if prefix != "" {
		r.query = url.Values{"prefix": {prefix}}
	}
	maybeDone, err := c.do(ctx, r, &l)
	return l, ended(maybeDone, err)
}
