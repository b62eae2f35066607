package main

import (
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"sanctuary/node/api"
)

// snapshotAnswers is what the scripted API says about snapshots and clones.
func snapshotAnswers() map[string]any {
	l := sampleLUN()
	at := time.Date(2026, 11, 2, 3, 0, 0, 0, time.UTC)
	golden := api.Snapshot{
		ID: "00112233445566778899aabbccddeeff", Name: "golden", Created: at, SizeBytes: 10 << 30, Clones: []string{"vm7"},
		Space: &api.Space{LogicalBytes: 10 << 30, StoredBytes: 3 << 30, ExclusiveBytes: 5<<20 + 4096, SharedBytes: 3<<30 - 5<<20 - 4096},
	}
	hourly := api.Snapshot{ID: "445566778899aabbccddeeff00112233", Name: "hourly-20261102T040000Z", Created: at.Add(time.Hour), SizeBytes: 10 << 30, Schedule: "hourly"}
	twice := api.Snapshot{ID: "8899aabbccddeeff0011223344556677", Name: "twice", Created: at.Add(2 * time.Hour), SizeBytes: 20 << 30}
	again := twice
	again.ID = "8899aabbccddeeff0011223344556678"
	slot := at.Add(time.Hour)
	schedules := []api.ScheduleView{
		{Schedule: api.Schedule{Prefix: "hourly", EverySeconds: 3600, Keep: 24}, Last: &slot, Next: slot.Add(time.Hour)},
		{Schedule: api.Schedule{Prefix: "weekly", EverySeconds: 7 * 86400, Keep: 4}, Next: at.Add(7 * 24 * time.Hour), Error: "the pool is full"},
	}
	list := api.SnapshotList{
		LUN: l.Name, ID: l.ID, Snapshots: []api.Snapshot{golden, hourly, twice, again}, Schedules: schedules,
		Space: &api.LUNSpace{Space: api.Space{LogicalBytes: 10 << 30, StoredBytes: 4 << 30, ExclusiveBytes: 1 << 30, SharedBytes: 3 << 30}, Snapshots: 4, SnapshotsBytes: 5<<20 + 4096, KeptBytes: 1 << 20},
	}
	clone := l
	clone.Name, clone.ID, clone.ReadOnly, clone.Space = "vm7", "00000000-0000-4000-8000-00000000000b", true, list.Space
	clone.Origin = &api.LUNOrigin{LUN: "vm1", LUNID: l.ID, Snapshot: golden.Name, SnapshotID: golden.ID, Exists: true, Waiting: 1}
	safety := golden
	safety.Name = "before-rollback-20261102T050000Z"
	return map[string]any{
		"GET /v1/luns/vm1/snapshots": list, "POST /v1/luns/vm1/snapshots": api.SnapshotSet{ID: golden.ID, Name: golden.Name, Created: at, LUNs: []string{"vm1"}},
		"DELETE /v1/luns/" + l.ID + "/snapshots/" + golden.ID: map[string]any{}, "DELETE /v1/luns/" + l.ID + "/snapshots/" + hourly.ID: map[string]any{},
		"POST /v1/luns/" + l.ID + "/rollback": api.Rollback{LUN: l.Name, To: golden, Safety: &safety},
		"GET /v1/luns/vm1/diff":               api.Diff{LUN: l.Name, From: golden.ID, SizeBytes: 10 << 30, Ranges: []api.DiffRange{{Offset: 0, Length: 4096}, {Offset: 1 << 20, Length: 262144}}},
		"POST /v1/luns/vm1/clones":            clone, "GET /v1/luns/vm7": clone,
		"GET /v1/luns/vm1/schedules": api.ScheduleList{LUN: l.Name, Schedules: schedules}, "PUT /v1/luns/vm1/schedules": l, "DELETE /v1/luns/vm1/schedules": l,
	}
}

func TestSnapshotsAreCompleted(t *testing.T) {
	answers := snapshotAnswers()
	answers["GET /v1/luns"] = api.LUNList{LUNs: []api.LUN{sampleLUN()}}
	server := httptest.NewServer(&scripted{answers: answers})
	defer server.Close()
	for line, want := range map[string]string{
		"lun snapshot list ":                     "vm1",
		"lun snapshot delete vm1 golden ":        "hourly-20261102T040000Z twice twice",
		"lun snapshot rollback vm1 ":             "golden hourly-20261102T040000Z twice twice",
		"lun snapshot rollback vm1 golden ":      "",
		"lun snapshot diff vm1 golden twice x ":  "",
		"lun clone vm1 ":                         "golden hourly-20261102T040000Z twice twice",
		"lun snapshot create vm1 golden --with ": "vm1",
	} {
		var out strings.Builder
		args := append([]string{"__complete"}, strings.Split(line, " ")...)
		if code := execute(t.Context(), args, environment{out: &out, err: &strings.Builder{}, in: strings.NewReader(""), getenv: func(string) string {
			return strings.TrimPrefix(server.URL, "http://")
		}}); code != exitOK {
			t.Errorf("%q: %d", line, code)
		}
		got := strings.Fields(out.String())
		if n := slices.IndexFunc(got, func(s string) bool { return strings.HasPrefix(s, ":") }); n >= 0 {
			got = got[:n]
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q: %q", line, out.String())
		}
	}
}

func TestIntervals(t *testing.T) {
	for text, want := range map[string]time.Duration{"1m": time.Minute, "90m": 90 * time.Minute, "1h": time.Hour, "7d": 7 * 24 * time.Hour, "2w": 14 * 24 * time.Hour, "366d": 366 * 24 * time.Hour} {
		if d, err := parseInterval(text); err != nil || d != want {
			t.Errorf("%s: %v, %v", text, d, err)
		}
	}
	for _, text := range []string{"", "h", "1", "0h", "-1h", "1.5h", "1y", "1h30m", "367d", "99999999999999999999h", "600000m"} {
		if d, err := parseInterval(text); err == nil {
			t.Errorf("%q: %v", text, d)
		}
	}
}

func TestRoughSizes(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 512: "512", 4096: "4KiB", 5<<20 + 4096: "5.0MiB", 1<<30 - 1: "1024MiB", 3<<40 + 1<<39: "3.5TiB", 150<<20 + 5: "150MiB"} {
		if got := roughSize(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
