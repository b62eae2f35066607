package api_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"sanctuary/node/api"
)

// Requests about a pool are done by the node that has it, whoever is asked; the list is of all nodes, and says who is missing.
func TestPoolsAreTheirNodesBusiness(t *testing.T) {
	nodes := cluster(t, "alpha", "beta", "gamma")
	alpha, beta := nodes["alpha"], nodes["beta"]
	beta.set(func() {
		beta.pools = []api.Pool{{Node: "beta", Name: "hdd1", State: api.PoolOK, Class: "hdd", Media: "file"}}
	})
	a := call(t, "POST", alpha.url+"/v1/nodes/beta/pools", `{"name":"ssd1","media":"device","path":"/dev/x","force":true}`)
	if p := decode[api.Pool](t, a); a.status != http.StatusCreated || p.Node != "beta" || p.Name != "ssd1" {
		t.Errorf("%d %+v", a.status, p)
	}
	a = call(t, "GET", alpha.url+"/v1/nodes/beta/pools/ssd1", "")
	if p := decode[api.Pool](t, a); a.status != http.StatusOK || p.Path != "/dev/x" {
		t.Errorf("%d %+v", a.status, p)
	}
	if a = call(t, "DELETE", alpha.url+"/v1/nodes/beta/pools/ssd1?wipe=true", ""); a.status != http.StatusNoContent {
		t.Errorf("%d %s", a.status, a.body)
	}
	want := []string{"add pool ssd1 on device /dev/x, force=true", "remove pool ssd1, wipe=true lost=false"}
	if got := beta.called(); !slices.Equal(got, want) || len(alpha.called()) != 0 {
		t.Errorf("beta did %q, alpha %q", got, alpha.called())
	}
	nodes["gamma"].set(func() { nodes["gamma"].fail = api.Unavailable("not now") })
	list := decode[api.PoolList](t, call(t, "GET", alpha.url+"/v1/pools", ""))
	if len(list.Pools) != 2 || list.Pools[0].Name != "hdd1" || !slices.Equal(list.Unreachable, []string{"gamma"}) {
		t.Errorf("%+v", list)
	}
	for path, want := range map[string]int{
		"/v1/nodes/beta/pools/none": http.StatusNotFound, "/v1/nodes/nobody/pools/x": http.StatusNotFound, "/v1/nodes/delta/pools/x": http.StatusServiceUnavailable,
	} {
		alpha.set(func() {
			alpha.nodes = append(slices.Clone(beta.nodes), api.Node{Name: "delta", Kind: "data"})
		})
		if a := call(t, "GET", alpha.url+path, ""); a.status != want || a.problem(t).Detail == "" {
			t.Errorf("%s: %d %s, want %d", path, a.status, a.body, want)
		}
	}
	if a := call(t, "POST", alpha.url+"/v1/nodes/alpha/pools", `{"media":"tape"}`); a.status != http.StatusUnprocessableEntity || !strings.Contains(string(a.body), "media") {
		t.Errorf("%d %s", a.status, a.body)
	}
}
