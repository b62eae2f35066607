package api_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"sanctuary/node/api"
)

// snapCluster is two nodes that agree that beta owns vm1.
func snapCluster(t *testing.T) map[string]*fakeNode {
	c := cluster(t, "alpha", "beta")
	for _, f := range c {
		f.set(func() { f.luns = []api.LUN{lun("beta", api.HealthHealthy, 4)} })
	}
	return c
}

func TestSnapshotsAreTheOwnersBusiness(t *testing.T) {
	c := snapCluster(t)
	url := c["alpha"].url + "/v1/luns/vm1"
	for _, r := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/snapshots", "", 200},
		{"GET", "/snapshots?space=false", "", 200},
		{"POST", "/snapshots", `{"id":"` + snapID + `","name":"monday"}`, 201},
		{"DELETE", "/snapshots/mon%20day", "", 204},
		{"POST", "/rollback", `{"snapshot":"monday","no_safety":true}`, 200},
		{"GET", "/diff?from=monday&to=tuesday&start=4096&limit=7", "", 200},
		{"POST", "/clones?wait=0s", `{"name":"vm2","id":"` + lunID[:35] + `b","snapshot":"monday","read_only":true}`, 201},
		{"GET", "/schedules", "", 200},
	} {
		if a := call(t, r.method, url+r.path, r.body); a.status != r.status {
			t.Errorf("%s %s: status %d: %s", r.method, r.path, a.status, a.body)
		}
	}
	want := []string{
		"snapshots vm1 space=true", "snapshots vm1 space=false", "snapshot " + snapID + " monday of [{vm1 " + lunID + " beta}]", "delete snapshot mon day of vm1",
		"roll back " + lunID + " to monday no-safety=true", "diff vm1 {From:monday To:tuesday Start:4096 Limit:7}", "clone monday of vm1 as vm2 read-only=true",
		"snapshots vm1 space=false",
	}
	if got := c["beta"].called(); !slices.Equal(got, want) || len(c["alpha"].called()) != 0 {
		t.Errorf("beta %q\nalpha %q", got, c["alpha"].called())
	}
	l := decode[api.SnapshotList](t, call(t, "GET", url+"/snapshots", ""))
	if len(l.Snapshots) != 1 || l.Space == nil || l.Space.SharedBytes != 5 || l.Schedules == nil {
		t.Errorf("%+v", l)
	}
	for _, f := range c {
		f.set(func() { f.luns[0].Owner = "" })
	}
	if p := call(t, "POST", url+"/snapshots", `{}`).problem(t); p.Code != api.CodeNoOwner {
		t.Errorf("%+v", p)
	}
}

func TestSnapshotOfSeveralLUNsNamesTheirOwners(t *testing.T) {
	c := snapCluster(t)
	other := lun("alpha", api.HealthHealthy, 4)
	other.Name, other.ID = "vm2", lunID[:35]+"b"
	for _, f := range c {
		f.set(func() { f.luns = append(f.luns, other) })
	}
	url := c["alpha"].url + "/v1/luns/vm1/snapshots"
	if a := call(t, "POST", url, `{"id":"`+snapID+`","with":["vm2"]}`); a.status != 201 {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if got, want := c["beta"].called(), "snapshot "+snapID+"  of [{vm1 "+lunID+" beta} {vm2 "+other.ID+" alpha}]"; len(got) != 1 || got[0] != want {
		t.Errorf("%q, want %q", got, want)
	}
	if p := call(t, "POST", url, `{"with":["vm1"]}`).problem(t); p.Code != api.CodeInvalid {
		t.Errorf("%+v", p)
	}
	if p := call(t, "POST", url, `{"with":["vm9"]}`).problem(t); p.Code != api.CodeNotFound {
		t.Errorf("%+v", p)
	}
	for _, body := range []string{`{"name":"a b"}`, `{"name":"-a"}`, `{"name":"` + strings.Repeat("a", 65) + `"}`, `{"id":"00"}`, `{"colour":"red"}`} {
		if a := call(t, "POST", url, body); a.status != 422 {
			t.Errorf("%s: status %d: %s", body, a.status, a.body)
		}
	}
	if got := len(c["beta"].called()); got != 1 {
		t.Errorf("%d calls", got)
	}
}

// A LUN is not pulled away under who uses it, or may.
func TestRollbackIsRefusedWhileTheLUNIsUsed(t *testing.T) {
	for name, use := range map[string]func(*fakeNode){
		"a session elsewhere": func(f *fakeNode) {
			if f.name == "alpha" {
				f.sessions = []api.Session{{Node: "alpha", Initiator: "iqn.i:a", Target: "iqn.2026-11.local.sanctuary:vm1"}}
			}
		},
		"a registration": func(f *fakeNode) {
			f.reserved = api.Reservations{Registrations: []api.Registration{{Initiator: "iqn.i:a"}}}
		},
		"a reservation": func(f *fakeNode) { f.reserved = api.Reservations{Reserved: &api.ReservedBy{Initiator: "iqn.i:a"}} },
	} {
		c := snapCluster(t)
		for _, f := range c {
			f.set(func() { use(f) })
		}
		url := c["alpha"].url + "/v1/luns/vm1/rollback"
		p := call(t, "POST", url, `{"snapshot":"monday"}`).problem(t)
		if p.Code != api.CodeInUse || !strings.Contains(p.Detail, "iqn.i:a") || p.Data != "Nothing was rolled back." || !strings.Contains(p.Next, "--force") {
			t.Errorf("%s: %+v", name, p)
		}
		if got := c["beta"].called(); len(got) != 0 {
			t.Errorf("%s: %q", name, got)
		}
		if a := call(t, "POST", url, `{"snapshot":"monday","force":true}`); a.status != 200 || len(c["beta"].called()) != 1 {
			t.Errorf("%s: status %d: %s", name, a.status, a.body)
		}
	}
}

func TestSchedulesAreChangedByTheLeader(t *testing.T) {
	c := snapCluster(t)
	url := c["beta"].url + "/v1/luns/vm1/schedules"
	for _, body := range []string{
		`{"every_seconds":3600,"keep":24}`, `{"every_seconds":86400,"keep":7}`, `{"every_seconds":604800,"keep":4}`, `{"every_seconds":172800,"keep":1}`,
		`{"every_seconds":90,"keep":1}`, `{"prefix":"mine","every_seconds":3600,"keep":24}`,
	} {
		if a := call(t, http.MethodPut, url, body); a.status != 200 {
			t.Errorf("%s: status %d: %s", body, a.status, a.body)
		}
	}
	if l := decode[api.LUN](t, call(t, http.MethodPut, url, `{"every_seconds":3600,"keep":2}`)); len(l.Schedules) != 1 || l.Schedules[0].Keep != 2 {
		t.Errorf("the answer does not show it: %+v", l.Schedules)
	}
	for _, body := range []string{`{"every_seconds":59,"keep":1}`, `{"every_seconds":3600,"keep":0}`, `{"every_seconds":3600,"keep":257}`, `{"keep":1}`} {
		if a := call(t, http.MethodPut, url, body); a.status != 422 {
			t.Errorf("%s: status %d: %s", body, a.status, a.body)
		}
	}
	for _, q := range []string{"", "?prefix=hourly"} {
		if a := call(t, http.MethodDelete, url+q, ""); a.status != 200 {
			t.Errorf("status %d: %s", a.status, a.body)
		}
	}
	want := []string{
		"schedule vm1 {Prefix:hourly EverySeconds:3600 Keep:24}", "schedule vm1 {Prefix:daily EverySeconds:86400 Keep:7}", "schedule vm1 {Prefix:weekly EverySeconds:604800 Keep:4}",
		"schedule vm1 {Prefix:every-2d EverySeconds:172800 Keep:1}", "schedule vm1 {Prefix:every-90s EverySeconds:90 Keep:1}", "schedule vm1 {Prefix:mine EverySeconds:3600 Keep:24}",
		"schedule vm1 {Prefix:hourly EverySeconds:3600 Keep:2}", `no schedule vm1 ""`, `no schedule vm1 "hourly"`,
	}
	if got := c["alpha"].called(); !slices.Equal(got, want) {
		t.Errorf("%s", strings.Join(got, "\n"))
	}
}
