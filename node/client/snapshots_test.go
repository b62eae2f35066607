package client_test

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"sanctuary/node/api"
	"sanctuary/node/client"
)

const snapID = "00112233445566778899aabbccddeeff"

func TestRequestsAboutSnapshots(t *testing.T) {
	n := newNode(t, ok(map[string]any{}))
	c, ctx := clientOf(t, n), t.Context()
	none := func(api.DiffRange) error { return nil }
	for _, call := range []func() error{
		func() error { _, err := c.Snapshots(ctx, "vm1", true); return err },
		func() error {
			_, err := c.CreateSnapshot(ctx, "vm1", api.SnapshotSpec{ID: snapID, Name: "monday", With: []string{"vm2"}})
			return err
		},
		func() error { return c.DeleteSnapshot(ctx, "vm1", "a/b") },
		func() error {
			_, err := c.RollBack(ctx, "vm1", api.RollbackSpec{Snapshot: snapID, Force: true})
			return err
		},
		func() error { _, err := c.Diff(ctx, "vm1", "", "monday", none); return err },
		func() error {
			_, err := c.CloneLUN(ctx, "vm1", api.CloneSpec{ID: "x", Name: "vm2", ReadOnly: true}, time.Second)
			return err
		},
		func() error { _, err := c.Schedules(ctx, "vm1"); return err },
		func() error { _, err := c.SetSchedule(ctx, "vm1", api.Schedule{EverySeconds: 60, Keep: 1}); return err },
		func() error { _, err := c.RemoveSchedule(ctx, "vm1", ""); return err },
		func() error { _, err := c.RemoveSchedule(ctx, "vm1", "hourly"); return err },
	} {
		if err := call(); err != nil {
			t.Error(err)
		}
	}
	want := []string{
		"GET /v1/luns/vm1/snapshots?space=true", `POST /v1/luns/vm1/snapshots {"id":"` + snapID + `","name":"monday","with":["vm2"]}`, "DELETE /v1/luns/vm1/snapshots/a%2Fb",
		`POST /v1/luns/vm1/rollback {"snapshot":"` + snapID + `","force":true}`, "GET /v1/luns/vm1/diff?to=monday", `POST /v1/luns/vm1/clones?wait=1s {"name":"vm2","id":"x","read_only":true}`,
		"GET /v1/luns/vm1/schedules", `PUT /v1/luns/vm1/schedules {"every_seconds":60,"keep":1}`, "DELETE /v1/luns/vm1/schedules", "DELETE /v1/luns/vm1/schedules?prefix=hourly",
	}
	var got []string
	for _, r := range n.seen() {
		got = append(got, strings.TrimSpace(r))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A repeated attempt takes the same snapshot, not a second one.
func TestIDOfASnapshotIsChosenOnce(t *testing.T) {
	lost, answers := newNode(t, hangUp), newNode(t, ok(map[string]any{}))
	if _, err := clientOf(t, lost, answers).CreateSnapshot(t.Context(), "vm1", api.SnapshotSpec{}); err != nil {
		t.Fatal(err)
	}
	a, b := lost.seen(), answers.seen()
	if len(a) != 1 || len(b) != 1 || a[0] != b[0] || !strings.Contains(a[0], `"id":"`) {
		t.Errorf("%q, then %q", a, b)
	}
}

// A rollback that may have been done is not done again; one that certainly has not been is.
func TestRollbackIsNotRepeated(t *testing.T) {
	spec := api.RollbackSpec{Snapshot: snapID}
	second := newNode(t, ok(map[string]any{}))
	_, err := clientOf(t, newNode(t, hangUp), second).RollBack(t.Context(), "vm1", spec)
	var unreachable *client.UnreachableError
	if !errors.As(err, &unreachable) || !unreachable.MaybeDone || len(second.seen()) != 0 {
		t.Errorf("%v, asked again: %q", err, second.seen())
	}
	_, err = clientOf(t, newNode(t, refuse(api.OutcomeUnknown("broke"))), second).RollBack(t.Context(), "vm1", spec)
	var p *api.Problem
	if !errors.As(err, &p) || p.Code != api.CodeUnknown || len(second.seen()) != 0 {
		t.Errorf("%v, asked again: %q", err, second.seen())
	}
	if _, err := clientOf(t, newNode(t, refuse(api.NoOwner("not here"))), second).RollBack(t.Context(), "vm1", spec); err != nil || len(second.seen()) != 1 {
		t.Errorf("%v, asked %q", err, second.seen())
	}
}

func TestLongDiffComesInParts(t *testing.T) {
	part := 0
	n := newNode(t, func(w http.ResponseWriter, r *http.Request) {
		d := api.Diff{LUN: "vm1", SizeBytes: 1 << 20, Ranges: []api.DiffRange{{Offset: int64(part) * 8192, Length: 4096}}}
		if part++; part < 3 {
			d.Next = int64(part) * 8192
		}
		ok(d)(w, r)
	})
	var got []int64
	d, err := clientOf(t, n).Diff(t.Context(), "vm1", "a", "b", func(r api.DiffRange) error { got = append(got, r.Offset); return nil })
	if err != nil || !slices.Equal(got, []int64{0, 8192, 16384}) || d.SizeBytes != 1<<20 {
		t.Errorf("%v %v %+v", err, got, d)
	}
	if asked := strings.Join(n.seen(), " "); !strings.Contains(asked, "start=8192") || !strings.Contains(asked, "start=16384") || !strings.Contains(asked, "from=a&start=16384&to=b") {
		t.Errorf("%s", asked)
	}
	stop := errors.New("enough")
	part = 0
	if _, err := clientOf(t, n).Diff(t.Context(), "vm1", "a", "b", func(api.DiffRange) error { return stop }); !errors.Is(err, stop) {
		t.Error(err)
	}
}
