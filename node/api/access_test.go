package api_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"sanctuary/node/api"
)

const secret = "never-to-be-seen"

func TestHostsAreChangedByTheLeader(t *testing.T) {
	c := cluster(t, "alpha", "beta")
	body := `{"initiators":["iqn.1998-01.com.vmware:esx1"],"chap":{"user":"esx","secret":"` + secret + `"}}`
	a := call(t, http.MethodPut, c["beta"].url+"/v1/hosts/esx?create=true", body)
	if h := decode[api.Host](t, a); a.status != 200 || h.Name != "esx" || h.CHAP == nil || h.CHAP.User != "esx" {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if a := call(t, http.MethodDelete, c["beta"].url+"/v1/hosts/esx?force=true", ""); a.status != http.StatusNoContent {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if a := call(t, http.MethodDelete, c["beta"].url+"/v1/hosts/none", ""); a.problem(t).Code != api.CodeNotFound {
		t.Errorf("%s", a.body)
	}
	want := []string{"host esx [iqn.1998-01.com.vmware:esx1] create=true", "secret " + secret, "remove host esx force=true"}
	if got := c["alpha"].called(); !slices.Equal(got, want) || len(c["beta"].called()) != 0 {
		t.Errorf("alpha %q, beta %q", got, c["beta"].called())
	}
}

// A schema's error repeats the value it complains about, and that of an unknown field the whole body.
func TestSecretsAreInNoAnswer(t *testing.T) {
	c := cluster(t, "alpha")
	url := c["alpha"].url
	for name, body := range map[string]string{
		"right":                 `{"chap":{"user":"u","secret":"` + secret + `","mutual_user":"m","mutual_secret":"` + secret + `x"}}`,
		"unknown field":         `{"chap":{"user":"u","secret":"` + secret + `","colour":"red"}}`,
		"unknown field above":   `{"chap":{"user":"u","secret":"` + secret + `"},"colour":"red"}`,
		"user missing":          `{"chap":{"secret":"` + secret + `"}}`,
		"secret in a list":      `{"chap":{"user":"u","secret":["` + secret + `"]}}`,
		"secret for a user":     `{"chap":{"user":{"secret":"` + secret + `"},"secret":"x"}}`,
		"secret instead of all": `{"chap":"` + secret + `"}`,
		"secret for the body":   `"` + secret + `"`,
		"not JSON":              `{"chap":{"user":"u","secret":"` + secret + `"}`,
		"trailing text":         `{"chap":{"user":"u","secret":"` + secret + `"}} {`,
	} {
		a := call(t, http.MethodPut, url+"/v1/hosts/h", body)
		if strings.Contains(string(a.body), secret) {
			t.Errorf("%s: status %d shows the secret: %s", name, a.status, a.body)
		}
		if name != "right" && a.status < 400 {
			t.Errorf("%s: status %d", name, a.status)
		}
	}
	for _, path := range []string{"/v1/hosts", "/v1/hosts/h", "/v1/targets", "/v1/sessions"} {
		if a := call(t, http.MethodGet, url+path, ""); a.status != 200 || strings.Contains(string(a.body), secret) {
			t.Errorf("GET %s: status %d: %s", path, a.status, a.body)
		}
	}
}

func TestAccessOfALUN(t *testing.T) {
	c := cluster(t, "alpha", "beta")
	for _, f := range c {
		f.set(func() { f.luns = []api.LUN{lun("alpha", api.HealthHealthy, 4)} })
	}
	url := c["beta"].url + "/v1/luns/vm1"
	for _, r := range []struct{ method, path, body string }{
		{"PUT", "/hosts/esx", `{}`},
		{"PUT", "/hosts/esx", `{"number":7}`},
		{"DELETE", "/hosts/esx", ""},
		{"PUT", "/access", `{"open":true,"single_path":true}`},
		{"PATCH", "", `{"non_optimized_paths":true}`},
		{"PATCH", "", `{"zero_detection":true}`},
	} {
		if a := call(t, r.method, url+r.path, r.body); a.status != 200 {
			t.Errorf("%s %s: status %d: %s", r.method, r.path, a.status, a.body)
		}
	}
	want := []string{"grant vm1 to esx as any", "grant vm1 to esx as 7", "revoke vm1 from esx", "open vm1 true true", "change vm1 paths true", "change vm1 zeros true"}
	if got := c["alpha"].called(); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	for _, r := range []struct{ method, path, body string }{
		{"PUT", "/hosts/esx", `{"number":255}`}, {"PUT", "/hosts/esx", `{"number":-1}`}, {"PATCH", "", `{}`}, {"PUT", "/access", `{}`},
	} {
		if a := call(t, r.method, url+r.path, r.body); a.status != 422 {
			t.Errorf("%s %s %s: status %d: %s", r.method, r.path, r.body, a.status, a.body)
		}
	}
	// The owner has not heard of the change yet: the answer shows it all the same.
	c["beta"].set(func() { c["beta"].luns[0].Owner = "beta" })
	c["alpha"].set(func() { c["alpha"].luns[0].Owner = "beta" })
	if l := decode[api.LUN](t, call(t, "PUT", url+"/access", `{"open":true}`)); !l.Access.Open || l.View.Node != "beta" {
		t.Errorf("%+v", l)
	}
}

func TestTargetsHaveTheSessionsOfAllNodes(t *testing.T) {
	c := cluster(t, "alpha", "beta")
	l := lun("alpha", api.HealthHealthy, 4)
	l.NAA = "6002534e000000000000000000000001"
	l.Portals = []api.Portal{{Node: "alpha", Address: "10.0.0.1:3260"}, {Node: "beta", Address: "[fd00::2]:3260"}}
	l.Access.Hosts = []api.LUNGrant{{Host: "esx", Number: 3}}
	host := api.Host{
		Name: "esx", Target: "iqn.t:host.test.esx", Initiators: []string{"iqn.i:a"},
		LUNs: []api.HostLUN{{Number: 3, LUN: l.Name, ID: l.ID}},
	}
	for _, f := range c {
		f.set(func() {
			f.luns, f.hosts = []api.LUN{l}, []api.Host{host}
			f.nodes = []api.Node{
				{Name: "alpha", Kind: "data", PortGroup: 1, Portals: []api.NodePortal{{Address: "10.0.0.1:3260", Group: 1, Tag: 4097}}},
				{Name: "beta", Kind: "data", PortGroup: 2},
			}
		})
	}
	c["beta"].set(func() {
		c["beta"].sessions = []api.Session{
			{ID: "beta.1", Node: "beta", Initiator: "iqn.i:a", Target: l.IQN},
			{ID: "beta.2", Node: "beta", Initiator: "iqn.i:A", Target: host.Target},
			{ID: "beta.3", Node: "beta", Initiator: "iqn.i:b"},
			{ID: "beta.4", Node: "beta", Initiator: "iqn.i:c", Target: "iqn.t:gone"},
		}
	})
	c["alpha"].set(func() { c["alpha"].logins = 3 })
	c["beta"].set(func() { c["beta"].logins = 4 })
	list := decode[api.TargetList](t, call(t, http.MethodGet, c["alpha"].url+"/v1/targets", ""))
	if want := []api.Logins{{Node: "alpha", Succeeded: 3}, {Node: "beta", Succeeded: 4}}; !slices.Equal(list.Logins, want) {
		t.Errorf("logins %+v", list.Logins)
	}
	if len(list.Targets) != 3 || len(list.Discovery) != 1 || list.Discovery[0].ID != "beta.3" {
		t.Fatalf("%+v", list)
	}
	own, of, gone := list.Targets[0], list.Targets[1], list.Targets[2]
	if own.Name != l.IQN || own.Kind != api.TargetOfLUN || !slices.Equal(own.Hosts, []string{"esx"}) || len(own.Sessions) != 1 || own.Sessions[0].Host != "esx" {
		t.Errorf("the LUN's own: %+v", own)
	}
	portals := []api.TargetPortal{{Node: "alpha", Address: "10.0.0.1:3260", Group: 1, Tag: 4097}, {Node: "beta", Address: "[fd00::2]:3260", Tag: 2}}
	if !slices.Equal(own.Portals, portals) || !slices.Equal(of.Portals, portals) {
		t.Errorf("portals %+v and %+v", own.Portals, of.Portals)
	}
	if of.Kind != api.TargetOfHost || of.Host != "esx" || len(of.LUNs) != 1 || of.LUNs[0].Number != 3 || of.LUNs[0].NAA != l.NAA || len(of.Sessions) != 1 || of.Sessions[0].Host != "esx" {
		t.Errorf("the host's: %+v", of)
	}
	if gone.Name != "iqn.t:gone" || len(gone.Sessions) != 1 {
		t.Errorf("deleted: %+v", gone)
	}
}

func TestClosingASessionGoesToItsNodeAndMeansTheRightOne(t *testing.T) {
	c := cluster(t, "alpha", "beta")
	c["beta"].set(func() { c["beta"].sessions = []api.Session{{ID: "beta.17", Node: "beta", Initiator: "iqn.i:a"}} })
	url := c["alpha"].url + "/v1/sessions/"
	if a := call(t, http.MethodDelete, url+"beta.17?initiator=iqn.i:b", ""); a.problem(t).Code != api.CodeConflict {
		t.Errorf("%s", a.body)
	}
	for _, id := range []string{"beta.18", "gamma.17", "beta"} {
		if a := call(t, http.MethodDelete, url+id, ""); a.problem(t).Code != api.CodeNotFound {
			t.Errorf("%s: %s", id, a.body)
		}
	}
	if a := call(t, http.MethodDelete, url+"beta.17?initiator=iqn.i:A", ""); a.status != http.StatusNoContent {
		t.Errorf("%d: %s", a.status, a.body)
	}
	if got := c["beta"].called(); !slices.Equal(got, []string{"close 17"}) || len(c["alpha"].called()) != 0 {
		t.Errorf("beta %q, alpha %q", got, c["alpha"].called())
	}
}

func TestReservationsAreTheOwnersAndSayWhoIsGone(t *testing.T) {
	c := cluster(t, "alpha", "beta")
	for _, f := range c {
		f.set(func() {
			f.luns = []api.LUN{lun("beta", api.HealthHealthy, 4)}
			f.hosts = []api.Host{{Name: "win", Initiators: []string{"iqn.i:a"}}}
			f.nodes = []api.Node{
				{Name: "alpha", Kind: "data", PortGroup: 1},
				{Name: "beta", Kind: "data", PortGroup: 2, Portals: []api.NodePortal{{Address: "10.0.0.2:3260", Group: 1, Tag: 4098}}},
			}
		})
	}
	c["alpha"].set(func() {
		c["alpha"].reserved = api.Reservations{Generation: 1}
		c["alpha"].sessions = []api.Session{{Node: "alpha", Initiator: "iqn.i:a", ISID: "400000000001", PortalGroup: 1, Port: 1}}
	})
	c["beta"].set(func() {
		c["beta"].reserved = api.Reservations{Generation: 9, Type: "Write Exclusive", Registrations: []api.Registration{
			{Key: "0000000000000001", Initiator: "iqn.i:a", ISID: "400000000001", Port: 1, Holder: true},
			{Key: "0000000000000002", Initiator: "iqn.i:a", ISID: "400000000001", Port: 4098},
			{Key: "0000000000000003", Initiator: "iqn.i:b", ISID: "400000000001", Port: 77},
		}}
	})
	r := decode[api.Reservations](t, call(t, http.MethodGet, c["alpha"].url+"/v1/luns/vm1/reservations", ""))
	if r.Generation != 9 || r.LUN != "vm1" || r.View.Source != api.SourceOwner || r.View.Node != "beta" || len(r.Registrations) != 3 {
		t.Fatalf("%+v", r)
	}
	want := []api.Registration{
		{Key: "0000000000000001", Initiator: "iqn.i:a", ISID: "400000000001", Port: 1, Holder: true, Node: "alpha", LoggedIn: true, Host: "win"},
		{Key: "0000000000000002", Initiator: "iqn.i:a", ISID: "400000000001", Port: 4098, Node: "beta", Host: "win"},
		{Key: "0000000000000003", Initiator: "iqn.i:b", ISID: "400000000001", Port: 77},
	}
	if !slices.Equal(r.Registrations, want) {
		t.Errorf("%+v", r.Registrations)
	}
	// A silent owner: this node's own knowledge, marked as such.
	c["alpha"].set(func() { c["alpha"].peers["beta"] = deadAddress(t) })
	r = decode[api.Reservations](t, call(t, http.MethodGet, c["alpha"].url+"/v1/luns/vm1/reservations", ""))
	if r.Generation != 1 || r.View.Source != api.SourceNode || r.View.Note == "" || !slices.Equal(r.Unreachable, []string{"beta"}) {
		t.Errorf("%+v", r)
	}
}

func TestPurgeGoesToTheOwnerAndSaysExactlyWhat(t *testing.T) {
	c := cluster(t, "alpha", "beta")
	for _, f := range c {
		f.set(func() { f.luns = []api.LUN{lun("beta", api.HealthHealthy, 4)} })
	}
	url := c["alpha"].url + "/v1/luns/vm1/reservations"
	for _, q := range []string{"", "?key=1&all=true", "?key=0", "?key=xyz", "?key=10000000000000000", "?key=-1", "?all=false"} {
		if a := call(t, http.MethodDelete, url+q, ""); a.status != 422 {
			t.Errorf("%q: status %d: %s", q, a.status, a.body)
		}
	}
	for _, q := range []string{"?key=0xAB", "?initiator=iqn.i:A", "?all=true"} {
		a := call(t, http.MethodDelete, url+q, "")
		if p := decode[api.Purged](t, a); a.status != 200 || p.Removed != 1 || p.Left.LUN != "vm1" {
			t.Errorf("%q: status %d: %s", q, a.status, a.body)
		}
	}
	want := []string{
		"purge vm1 key=ab initiator= all=false", "purge vm1 key= initiator=iqn.i:a all=false", "purge vm1 key= initiator= all=true",
	}
	if got := c["beta"].called(); !slices.Equal(got, want) || len(c["alpha"].called()) != 0 {
		t.Errorf("beta %q, alpha %q", got, c["alpha"].called())
	}
}

func TestSettingsThatMakeNoSenseAreRefused(t *testing.T) {
	c := cluster(t, "alpha")
	for body, word := range map[string]string{
		`{"settings":{"colour":"red"}}`:                           "portal_groups",
		`{"settings":{"portal_groups":"10.0.0.1"}}`:               "10.0.0.0/24",
		`{"settings":{"chap.algorithms":"md4"}}`:                  "sha3-256",
		`{"settings":{"chap.algorithms":"md5","colour":"red"}}`:   "colour",
		`{"settings":{"portal_groups":"10.0.0.0/8,10.1.0.0/16"}}`: "overlaps",
	} {
		if a := call(t, http.MethodPut, c["alpha"].url+"/v1/settings", body); a.status != 422 || !strings.Contains(string(a.body), word) {
			t.Errorf("%s: status %d: %s", body, a.status, a.body)
		}
	}
	if got := c["alpha"].called(); len(got) != 0 {
		t.Errorf("%q", got)
	}
}

// What an operator takes away must be gone everywhere when the answer comes.
func TestChangesAreKnownEverywhereWhenTheyAreAnswered(t *testing.T) {
	c := cluster(t, "alpha", "beta", "gamma")
	for _, f := range c {
		f.set(func() { f.luns = []api.LUN{lun("alpha", api.HealthHealthy, 4)} })
	}
	c["alpha"].set(func() { c["alpha"].peers["gamma"] = deadAddress(t) }) // is not waited for
	for _, r := range []struct{ method, path, body string }{
		{"DELETE", "/v1/luns/vm1/hosts/esx", ""},
		{"PUT", "/v1/hosts/esx", `{}`},
		{"DELETE", "/v1/hosts/esx", ""},
		{"PUT", "/v1/luns/vm1/access", `{"open":false}`},
		{"PUT", "/v1/settings", `{"settings":{"chap.algorithms":"sha-256"}}`},
	} {
		c["beta"].set(func() { c["beta"].behind = 5 })
		if a := call(t, r.method, c["alpha"].url+r.path, r.body); a.status/100 != 2 {
			t.Errorf("%s %s: status %d: %s", r.method, r.path, a.status, a.body)
		}
		left := uint64(0)
		c["beta"].set(func() { left = c["beta"].behind })
		if left != 0 {
			t.Errorf("%s %s: answered while beta was %d changes behind", r.method, r.path, left)
		}
	}
}

func TestALUNInUseThroughAHostsTargetIsNotDeleted(t *testing.T) {
	c := cluster(t, "alpha", "beta")
	for _, f := range c {
		f.set(func() {
			f.luns = []api.LUN{lun("alpha", api.HealthHealthy, 4)}
			f.hosts = []api.Host{
				{Name: "esx", Target: "iqn.t:host.esx", LUNs: []api.HostLUN{{LUN: "vm1", ID: lunID}}},
				{Name: "other", Target: "iqn.t:host.other", LUNs: []api.HostLUN{{LUN: "vm2", ID: "x"}}},
			}
		})
	}
	url := c["alpha"].url + "/v1/luns/vm1"
	c["beta"].set(func() {
		c["beta"].sessions = []api.Session{{Node: "beta", Initiator: "iqn.i:a", Target: "iqn.t:host.esx"}}
	})
	if p := call(t, http.MethodDelete, url, "").problem(t); p.Code != api.CodeInUse || !strings.Contains(p.Detail, "iqn.i:a") {
		t.Errorf("%+v", p)
	}
	c["beta"].set(func() { c["beta"].sessions[0].Target = "iqn.t:host.other" })
	if a := call(t, http.MethodDelete, url, ""); a.status != http.StatusNoContent {
		t.Errorf("%d %s", a.status, a.body)
	}
}
