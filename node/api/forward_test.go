package api_test

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"sanctuary/node/api"
)

const newLUN = `{"name":"vm1","size_bytes":1048576}`

func TestAChangeIsMadeByTheLeaderWhereverItArrives(t *testing.T) {
	c := cluster(t, "alpha", "beta")
	for _, via := range []string{"alpha", "beta"} {
		c["alpha"].set(func() { c["alpha"].calls = nil })
		a := call(t, http.MethodPost, c[via].url+"/v1/luns?wait=0s", newLUN)
		if a.status != http.StatusAccepted {
			t.Fatalf("via %s: status %d: %s", via, a.status, a.body)
		}
		if got := c["alpha"].called(); !slices.Equal(got, []string{"create vm1"}) {
			t.Errorf("via %s: the leader did %q", via, got)
		}
		if l := decode[api.LUN](t, a); l.SizeBytes != 1048576 || l.BlockBytes != 512 {
			t.Errorf("via %s: body or defaults lost on the way: %+v", via, l)
		}
	}
	if got := c["beta"].called(); len(got) != 0 {
		t.Errorf("a node that does not lead did %q", got)
	}
}

func TestTwoNodesThatBelieveEachOtherToLeadDoNotLoop(t *testing.T) {
	c := cluster(t, "alpha", "beta")
	c["alpha"].set(func() { c["alpha"].leader = "beta" })
	a := call(t, http.MethodPost, c["alpha"].url+"/v1/luns", newLUN)
	p := a.problem(t)
	if a.status != http.StatusServiceUnavailable || p.Code != api.CodeNoLeader || a.header.Get("Retry-After") == "" || p.RetryAfterSeconds == 0 {
		t.Errorf("status %d, Retry-After %q, %+v", a.status, a.header.Get("Retry-After"), p)
	}
	if c["alpha"].requests != 1 || c["beta"].requests != 1 {
		t.Errorf("%d requests at alpha, %d at beta; want one each", c["alpha"].requests, c["beta"].requests)
	}
	if len(c["alpha"].called())+len(c["beta"].called()) != 0 {
		t.Error("somebody did it")
	}
}

func TestWithoutALeaderNothingIsChanged(t *testing.T) {
	c := cluster(t, "alpha")
	c["alpha"].set(func() { c["alpha"].leader = "" })
	for _, r := range [][2]string{{"POST", "/v1/luns"}, {"DELETE", "/v1/luns/vm1"}, {"PUT", "/v1/settings"}, {"POST", "/v1/internal/propose"}} {
		a := call(t, r[0], c["alpha"].url+r[1], "{}")
		if p := a.problem(t); a.status != 503 || p.Code != api.CodeNoLeader || a.header.Get("Retry-After") != "1" {
			t.Errorf("%v: status %d, %+v", r, a.status, p)
		}
	}
	if got := c["alpha"].called(); len(got) != 0 {
		t.Errorf("did %q", got)
	}
}

func TestALeaderThatCannotBeReachedIsToldFromOneThatBreaksOff(t *testing.T) {
	c := cluster(t, "alpha", "beta")
	b := c["beta"]
	b.set(func() { b.peers["alpha"] = deadAddress(t) })
	a := call(t, http.MethodPost, b.url+"/v1/luns", newLUN)
	if p := a.problem(t); a.status != 503 || p.Code != api.CodeNoLeader {
		t.Errorf("refused connection: status %d, %+v; nothing can have changed, so it may be repeated", a.status, p)
	}

	b.set(func() { delete(b.peers, "alpha") })
	if a := call(t, http.MethodPost, b.url+"/v1/luns", newLUN); a.status != 503 {
		t.Errorf("unknown address: status %d", a.status)
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // takes the request and hangs up
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 64<<10)
			if _, err := conn.Read(buf); err != nil {
				t.Logf("read: %v", err)
			}
			conn.Close()
		}
	}()
	defer func() { l.Close(); <-done }()
	b.set(func() { b.peers["alpha"] = l.Addr().String() })
	a = call(t, http.MethodPost, b.url+"/v1/luns", newLUN)
	if p := a.problem(t); a.status != http.StatusGatewayTimeout || p.Code != api.CodeUnknown || p.RetryAfterSeconds != 0 {
		t.Errorf("broken connection: status %d, %+v; the outcome is not known", a.status, p)
	}
}

func TestProposalsReachTheLeaderAndItsAnswerComesBack(t *testing.T) {
	c := cluster(t, "alpha", "beta")
	a := call(t, http.MethodPost, c["beta"].url+"/v1/internal/propose", `{"change":"YWJj"}`)
	if r := decode[api.ProposalResult](t, a); string(r.Result) != "done abc" {
		t.Errorf("status %d, result %q", a.status, r.Result)
	}
}

func TestAMoveIsMadeByTheOwner(t *testing.T) {
	c := cluster(t, "alpha", "beta", "gamma")
	for name, f := range c {
		l := lun("beta", api.HealthHealthy, 4)
		if name == "gamma" {
			l.Owner = "" // it knows nothing of the group, and has to ask
		}
		f.set(func() { f.luns = []api.LUN{l} })
	}
	c["beta"].onMove = func(_ *fakeNode, _, node string) {
		for _, f := range c {
			f.set(func() { f.luns = []api.LUN{lun(node, api.HealthHealthy, 5)} })
		}
	}
	a := call(t, http.MethodPost, c["gamma"].url+"/v1/luns/vm1/move", `{"node":"alpha"}`)
	if l := decode[api.LUN](t, a); a.status != 200 || l.Owner != "alpha" || l.View.Source != api.SourceOwner {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if got := c["beta"].called(); !slices.Equal(got, []string{fmt.Sprintf("move %s to alpha", lunID)}) {
		t.Errorf("the owner did %q", got)
	}
	if len(c["alpha"].called())+len(c["gamma"].called()) != 0 {
		t.Error("somebody else moved it")
	}
}

func TestAMoveThatDoesNotHappenSaysSo(t *testing.T) {
	c := cluster(t, "alpha", "beta")
	for _, f := range c {
		f.set(func() { f.luns = []api.LUN{lun("beta", api.HealthHealthy, 4)} })
	}
	a := call(t, http.MethodPost, c["beta"].url+"/v1/luns/vm1/move?wait=5ms", `{"node":"alpha"}`)
	if p := a.problem(t); a.status != 503 || p.Code != api.CodeUnavailable {
		t.Errorf("status %d, %+v", a.status, p)
	}
	for _, f := range c {
		f.set(func() { f.luns = []api.LUN{lun("", api.HealthUnavailable, 4)} })
	}
	a = call(t, http.MethodPost, c["beta"].url+"/v1/luns/vm1/move", `{"node":"alpha"}`)
	if p := a.problem(t); a.status != 503 || p.Code != api.CodeNoOwner {
		t.Errorf("no owner: status %d, %+v", a.status, p)
	}
}

func TestAReadIsCompletedByTheOwner(t *testing.T) {
	c := cluster(t, "alpha", "beta")
	c["alpha"].set(func() { c["alpha"].luns = []api.LUN{lun("beta", api.HealthDegraded, 4)} })
	c["beta"].set(func() { c["beta"].luns = []api.LUN{lun("beta", api.HealthHealthy, 4)} })
	l := decode[api.LUN](t, call(t, http.MethodGet, c["alpha"].url+"/v1/luns/vm1", ""))
	if l.Health != api.HealthHealthy || l.View.Node != "beta" || l.View.Source != api.SourceOwner || l.View.Note != "" {
		t.Errorf("%+v", l)
	}
	// Asked as one node asks another, alpha answers for itself and asks nobody.
	before := c["beta"].requests
	l = decode[api.LUN](t, call(t, http.MethodGet, c["alpha"].url+"/v1/luns/vm1", "", api.HeaderForwardedBy, "gamma"))
	if l.Health != api.HealthDegraded || l.View.Node != "alpha" || l.View.Source != api.SourceNode || c["beta"].requests != before {
		t.Errorf("%+v, %d more requests at beta", l.View, c["beta"].requests-before)
	}
}

func TestAnOldOwnersWordDoesNotCountAgainstANewerTerm(t *testing.T) {
	c := cluster(t, "alpha", "beta")
	// alpha has heard of term 5 in which beta owns it; nobody but a deposed beta in term 4 says it is the owner.
	c["alpha"].set(func() { c["alpha"].luns = []api.LUN{lun("beta", api.HealthUnavailable, 5)} })
	c["beta"].set(func() { c["beta"].luns = []api.LUN{lun("beta", api.HealthHealthy, 4)} })
	l := decode[api.LUN](t, call(t, http.MethodGet, c["alpha"].url+"/v1/luns/vm1", ""))
	if l.Term != 5 || l.Served() {
		t.Errorf("took term %d, health %s", l.Term, l.Health)
	}
}

// A LUN is served when its owner says so: one that has been elected, and has yet to apply what came before, is known as the owner elsewhere already.
func TestWhoIsElectedDoesNotServeYet(t *testing.T) {
	c := cluster(t, "alpha", "beta")
	c["alpha"].set(func() { c["alpha"].luns = []api.LUN{lun("beta", api.HealthHealthy, 5)} })
	c["beta"].set(func() { c["beta"].luns = []api.LUN{lun("", api.HealthUnavailable, 5)} })
	if l := decode[api.LUN](t, call(t, http.MethodGet, c["alpha"].url+"/v1/luns/vm1", "")); l.Served() || l.View.Node != "beta" {
		t.Errorf("served %v, by the word of %s", l.Served(), l.View.Node)
	}
	c["beta"].set(func() { c["beta"].luns[0].Term = 4 }) // it has not heard that it has won, or alpha of the next term: nobody denies anything
	if l := decode[api.LUN](t, call(t, http.MethodGet, c["alpha"].url+"/v1/luns/vm1", "")); l.Term != 5 {
		t.Errorf("an older term counts: %+v", l)
	}
}

func TestASilentOwnerIsNamedAndSoon(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts in the kernel, never answers
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	f := &fakeNode{name: "alpha", leader: "alpha", luns: []api.LUN{lun("beta", api.HealthHealthy, 4)}, peers: map[string]string{"beta": silent.Addr().String()}}
	url := serve(t, f, api.Config{AskTimeout: 50 * time.Millisecond})
	start := time.Now()
	l := decode[api.LUN](t, call(t, http.MethodGet, url+"/v1/luns/vm1", ""))
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	want := "node beta did not answer within 50ms. This is what node alpha knows"
	if l.View.Source != api.SourceNode || l.View.Note != want {
		t.Errorf("note %q, want %q", l.View.Note, want)
	}
	for _, p := range l.Portals {
		if p.Node == "beta" && p.State != api.PortalUnreachable {
			t.Errorf("the silent owner's portal is called %s", p.State)
		}
	}
	s := decode[api.Status](t, call(t, http.MethodGet, url+"/v1/status", ""))
	if len(s.Alerts) != 1 || s.Alerts[0].Subject != "lun/vm1" {
		t.Errorf("alerts %+v: the doubt must be visible at a glance", s.Alerts)
	}
}

// Whichever node is asked, a disk that has failed on another one is told, once.
func TestAlertsOfAllNodesAreTold(t *testing.T) {
	c := cluster(t, "alpha", "beta", "gamma")
	disk := api.Alert{Severity: api.SeverityCritical, Subject: "lun/vm1", What: "The replica on node beta is out", Data: "d", Next: "n"}
	same := api.Alert{Severity: api.SeverityWarning, Subject: "lun/vm1", What: "known to all", Data: "d", Next: "n"}
	nodes := []api.Node{{Name: "alpha", Kind: "data", Alive: true}, {Name: "beta", Kind: "data", Alive: true}, {Name: "gamma", Kind: "witness", Alive: true}}
	for _, f := range c {
		f.set(func() { f.nodes, f.luns, f.alerts = nodes, nil, []api.Alert{same} })
	}
	c["beta"].set(func() { c["beta"].alerts = append(c["beta"].alerts, disk) })
	c["gamma"].set(func() {
		c["gamma"].alerts = []api.Alert{{Severity: api.SeverityCritical, Subject: "node/gamma", What: "witness", Data: "d", Next: "n"}}
	})
	for _, path := range []string{"/v1/status", "/v1/alerts"} {
		l := decode[api.AlertList](t, call(t, http.MethodGet, c["alpha"].url+path, ""))
		if len(l.Alerts) != 3 || l.Alerts[0] != disk || l.Alerts[1].Subject != "node/gamma" || l.Alerts[2] != same {
			t.Errorf("%s: %+v", path, l.Alerts)
		}
	}
	c["beta"].set(func() { c["beta"].fail = api.Unavailable("not now") })
	if l := decode[api.AlertList](t, call(t, http.MethodGet, c["alpha"].url+"/v1/alerts", "")); len(l.Alerts) != 3 || l.Alerts[2].Subject != "node/beta" {
		t.Errorf("while one does not answer: %+v", l.Alerts)
	}
}

func TestAListAsksEachOwnerOnce(t *testing.T) {
	c := cluster(t, "alpha", "beta")
	var there, here []api.LUN
	for i := range 5 {
		l := lun("beta", api.HealthHealthy, 4)
		l.ID, l.Name = fmt.Sprintf("00000000-0000-4000-8000-00000000001%d", i), fmt.Sprintf("vm%d", i)
		there = append(there, l)
		l.Health = api.HealthUnavailable
		here = append(here, l)
	}
	c["beta"].set(func() { c["beta"].luns = there })
	c["alpha"].set(func() { c["alpha"].luns = here })
	s := decode[api.Status](t, call(t, http.MethodGet, c["alpha"].url+"/v1/status", ""))
	if len(s.LUNs) != 5 || c["beta"].requests != 2 { // about its LUNs, and for its alerts
		t.Fatalf("%d LUNs with %d questions", len(s.LUNs), c["beta"].requests)
	}
	for i, l := range s.LUNs {
		if l.Health != api.HealthHealthy || l.Name != here[i].Name {
			t.Errorf("LUN %d is %s, %s", i, l.Name, l.Health)
		}
	}
	if i := slices.IndexFunc(s.Nodes, func(n api.Node) bool { return n.Name == "beta" }); s.Nodes[i].LUNsOwned != 5 || s.Nodes[i].Self || s.Nodes[i].CatalogLeader {
		t.Errorf("beta: %+v", s.Nodes[i])
	}
}
