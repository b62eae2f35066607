package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sanctuary/node/api"
)

var update = flag.Bool("update", false, "write testdata instead of comparing with it")

func TestOpenAPIDescribesEveryOperation(t *testing.T) {
	s, err := api.New(api.Config{Service: &fakeNode{name: "alpha"}, Version: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	text, err := s.OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		OpenAPI    string                    `json:"openapi"`
		Paths      map[string]map[string]any `json:"paths"`
		Components struct {
			Schemas map[string]any `json:"schemas"`
		} `json:"components"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(doc.OpenAPI, "3.1") {
		t.Errorf("OpenAPI %q", doc.OpenAPI)
	}
	var lines []string
	for path, methods := range doc.Paths {
		for method, op := range methods {
			o := op.(map[string]any)
			var codes []string
			for code := range o["responses"].(map[string]any) {
				codes = append(codes, code)
			}
			slices.Sort(codes)
			lines = append(lines, fmt.Sprintf("%s %s %v %s", path, strings.ToUpper(method), o["operationId"], strings.Join(codes, ",")))
		}
	}
	for name := range doc.Components.Schemas {
		lines = append(lines, "schema "+name)
	}
	slices.Sort(lines)
	got := strings.Join(lines, "\n") + "\n"
	const golden = "testdata/openapi.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the API has changed; if that is meant, run the test with -update:\n%s\nwas:\n%s", got, want)
	}
}

func TestCreateWaitsUntilTheLUNIsServed(t *testing.T) {
	c := cluster(t, "alpha")
	f := c["alpha"]
	looked := make(chan struct{})
	f.onCreate = func(f *fakeNode, l api.LUN) {
		go func() {
			<-looked
			f.set(func() { f.luns[0].Owner, f.luns[0].Health = "alpha", api.HealthHealthy })
		}()
	}
	close(looked)
	a := call(t, http.MethodPost, f.url+"/v1/luns?wait=1m", newLUN)
	if l := decode[api.LUN](t, a); a.status != http.StatusCreated || !l.Served() {
		t.Errorf("status %d: %s", a.status, a.body)
	}
}

func TestCreateSaysWhatItIsWaitingFor(t *testing.T) {
	c := cluster(t, "alpha")
	a := call(t, http.MethodPost, c["alpha"].url+"/v1/luns?wait=5ms", newLUN)
	if l := decode[api.LUN](t, a); a.status != http.StatusAccepted || l.Reason == "" {
		t.Errorf("status %d: %s", a.status, a.body)
	}
}

func TestBadRequestsAreRefusedAndNameTheFieldAtFault(t *testing.T) {
	c := cluster(t, "alpha")
	url := c["alpha"].url
	for _, r := range []struct {
		name, method, path, body, field string
		status                          int
	}{
		{"name with a slash", "POST", "/v1/luns", `{"name":"a/b","size_bytes":4096}`, "body.name", 422},
		{"no name", "POST", "/v1/luns", `{"size_bytes":4096}`, "body", 422},
		{"odd size", "POST", "/v1/luns", `{"name":"a","size_bytes":4097}`, "body.size_bytes", 422},
		{"negative size", "POST", "/v1/luns", `{"name":"a","size_bytes":-4096}`, "body.size_bytes", 422},
		{"huge size", "POST", "/v1/luns", `{"name":"a","size_bytes":9223372036854775807}`, "body.size_bytes", 422},
		{"media", "POST", "/v1/luns", `{"name":"a","size_bytes":4096,"media":"tape"}`, "body.media", 422},
		{"unknown field", "POST", "/v1/luns", `{"name":"a","size_bytes":4096,"colour":"red"}`, "body.colour", 422},
		{"id", "POST", "/v1/luns", `{"name":"a","size_bytes":4096,"id":"../../etc"}`, "body.id", 422},
		{"not JSON", "POST", "/v1/luns", `{`, "", 400},
		{"no body", "POST", "/v1/luns", ``, "", 400},
		{"wait", "POST", "/v1/luns?wait=soon", newLUN, "", 422},
		{"negative wait", "POST", "/v1/luns?wait=-1s", newLUN, "", 422},
		{"endless wait", "POST", "/v1/luns?wait=24h", newLUN, "", 422},
		{"unknown parameter", "GET", "/v1/luns?page=2", ``, "query.page", 422},
		{"empty change", "POST", "/v1/internal/propose", `{"change":""}`, "", 422},
		{"no settings", "PUT", "/v1/settings", `{"settings":{}}`, "", 422},
		{"no LUN", "GET", "/v1/luns/nope", ``, "", 404},
		{"no path", "GET", "/v1/nope", ``, "", 404},
		{"no method", "PATCH", "/v1/luns", ``, "", 404},
		{"too large", "POST", "/v1/luns", `{"name":"` + strings.Repeat("a", 2<<20) + `"}`, "", 413},
	} {
		t.Run(r.name, func(t *testing.T) {
			a := call(t, r.method, url+r.path, r.body)
			p := a.problem(t)
			if a.status != r.status {
				t.Errorf("status %d, want %d: %s", a.status, r.status, a.body)
			}
			if r.field != "" && (len(p.Errors) == 0 || p.Errors[0].Location != r.field) {
				t.Errorf("fields at fault %s, want %s", a.body, r.field)
			}
		})
	}
	if got := c["alpha"].called(); len(got) != 0 {
		t.Errorf("did %q", got)
	}
}

func TestDeleteRefusesALUNThatIsUsedOrMayBe(t *testing.T) {
	c := cluster(t, "alpha", "beta")
	for _, f := range c {
		f.set(func() { f.luns = []api.LUN{lun("alpha", api.HealthHealthy, 4)} })
	}
	url := c["beta"].url + "/v1/luns/vm1"
	c["beta"].set(func() {
		c["beta"].sessions = []api.Session{{Node: "beta", Initiator: "iqn.host", Target: lun("", "", 0).IQN, Remote: "10.0.0.9:1"}}
	})
	a := call(t, http.MethodDelete, url, "")
	if p := a.problem(t); a.status != 409 || p.Code != api.CodeInUse || !strings.Contains(p.Detail, "iqn.host") {
		t.Errorf("session on another node: status %d, %+v", a.status, p)
	}
	c["beta"].set(func() { c["beta"].sessions = nil })
	c["alpha"].set(func() { c["alpha"].peers["beta"] = deadAddress(t) })
	a = call(t, http.MethodDelete, url, "")
	if p := a.problem(t); a.status != 409 || p.Code != api.CodeInUse || !strings.Contains(p.Detail, "beta") {
		t.Errorf("node that cannot be asked: status %d, %+v", a.status, p)
	}
	if got := c["alpha"].called(); len(got) != 0 {
		t.Fatalf("did %q", got)
	}
	if a := call(t, http.MethodDelete, url+"?force=true", ""); a.status != 204 {
		t.Errorf("forced: status %d: %s", a.status, a.body)
	}
	if got := c["alpha"].called(); !slices.Equal(got, []string{"delete " + lunID}) {
		t.Errorf("did %q: deletion goes by ID", got)
	}
}

func TestSessionsOfAllNodesAndWhoIsMissing(t *testing.T) {
	c := cluster(t, "alpha", "beta", "gamma")
	c["beta"].set(func() { c["beta"].sessions = []api.Session{{Node: "beta", Initiator: "iqn.x"}} })
	c["alpha"].set(func() { c["alpha"].peers["gamma"] = deadAddress(t) })
	l := decode[api.SessionList](t, call(t, http.MethodGet, c["alpha"].url+"/v1/sessions", ""))
	if len(l.Sessions) != 1 || l.Sessions[0].Node != "beta" || !slices.Equal(l.Unreachable, []string{"gamma"}) {
		t.Errorf("%+v", l)
	}
}

func TestSettingsAreChangedByTheLeader(t *testing.T) {
	c := cluster(t, "alpha", "beta")
	a := call(t, http.MethodPut, c["beta"].url+"/v1/settings", `{"settings":{"chap.algorithms":"sha-256"}}`)
	if s := decode[api.Settings](t, a); a.status != 200 || s.Settings["a"] != "1" || s.Settings["chap.algorithms"] != "sha-256" {
		t.Errorf("status %d: %s", a.status, a.body)
	}
}

func TestHealthAndReady(t *testing.T) {
	c := cluster(t, "alpha")
	f := c["alpha"]
	if a := call(t, http.MethodGet, f.url+"/v1/ready", ""); a.status != 200 {
		t.Errorf("ready: %d", a.status)
	}
	f.set(func() { f.ready = false })
	a := call(t, http.MethodGet, f.url+"/v1/ready", "")
	if p := a.problem(t); a.status != 503 || !strings.Contains(p.Detail, "2 LUNs are starting") {
		t.Errorf("not ready: %d %+v", a.status, p)
	}
	if a := call(t, http.MethodGet, f.url+"/v1/health", ""); a.status != 200 {
		t.Errorf("health: %d", a.status)
	}
}

func TestAnErrorNobodyClassifiedIsNotHiddenAndNoPromise(t *testing.T) {
	c := cluster(t, "alpha")
	f := c["alpha"]
	f.set(func() { f.fail = errors.New("disk on fire") })
	for _, path := range []string{"/v1/status", "/v1/nodes", "/v1/luns", "/v1/sessions", "/v1/settings"} {
		a := call(t, http.MethodGet, f.url+path, "")
		if p := a.problem(t); a.status != 500 || p.Code != api.CodeInternal || !strings.Contains(p.Detail, "disk on fire") || p.RetryAfterSeconds != 0 {
			t.Errorf("%s: %d %+v", path, a.status, p)
		}
	}
}

func TestWebPagesAndStrangersAreRefused(t *testing.T) {
	f := &fakeNode{name: "alpha", leader: "alpha"}
	url := serve(t, f, api.Config{})
	for name, header := range map[string][]string{
		"other origin":    {"Origin", "https://evil.example"},
		"other site":      {"Sec-Fetch-Site", "cross-site"},
		"rebound address": {"Host", "evil.example:80"},
	} {
		a := call(t, http.MethodPost, url+"/v1/luns", newLUN, header...)
		if p := a.problem(t); a.status != 403 || p.Code != api.CodeForbidden {
			t.Errorf("%s: %d %+v", name, a.status, p)
		}
	}
	if a := call(t, http.MethodGet, url+"/v1/health", "", "Host", "localhost:1"); a.status != 200 {
		t.Errorf("localhost: %d", a.status)
	}
	url = serve(t, f, api.Config{Authorize: func(r *http.Request) error {
		if r.Header.Get("Authorization") == "Bearer right" {
			return nil
		}
		return errors.New("no token")
	}})
	if a := call(t, http.MethodGet, url+"/v1/health", ""); a.status != 403 {
		t.Errorf("without token: %d", a.status)
	}
	if a := call(t, http.MethodGet, url+"/v1/health", "", "Authorization", "Bearer right"); a.status != 200 {
		t.Errorf("with token: %d", a.status)
	}
	if got := f.called(); len(got) != 0 {
		t.Errorf("did %q", got)
	}
}

func TestServeStopsInOrderAndLetsWaitingRequestsAnswer(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	created := make(chan struct{})
	f := &fakeNode{name: "alpha", leader: "alpha", onCreate: func(*fakeNode, api.LUN) { close(created) }}
	s, err := api.New(api.Config{Service: f, PollInterval: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	answered := make(chan answer, 1)
	go func() {
		answered <- call(t, http.MethodPost, "http://"+l.Addr().String()+"/v1/luns?wait=5m", newLUN)
	}()
	<-created
	stop()
	select {
	case a := <-answered:
		if a.status != http.StatusAccepted {
			t.Errorf("status %d: %s", a.status, a.body)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a waiting request held up the shutdown")
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestServeReportsAListenerThatBreaks(t *testing.T) {
	s, err := api.New(api.Config{Service: &fakeNode{name: "alpha"}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := s.Serve(t.Context(), l); err == nil {
		t.Error("no error")
	}
}

func TestEveryHealthHasItsAlert(t *testing.T) {
	for health, severity := range map[api.Health]string{
		api.HealthHealthy: "", api.HealthCreating: api.SeverityInfo, api.HealthCatchingUp: api.SeverityInfo,
		api.HealthDegraded: api.SeverityWarning, api.HealthUnavailable: api.SeverityCritical, api.HealthLost: api.SeverityCritical,
		"new": api.SeverityWarning,
	} {
		c := cluster(t, "alpha")
		f := c["alpha"]
		l := lun("alpha", health, 1)
		f.set(func() {
			f.luns = []api.LUN{l}
			f.nodes = append(f.nodes, api.Node{Name: "gone"})
			f.leader = ""
		})
		s := decode[api.Status](t, call(t, http.MethodGet, f.url+"/v1/status", ""))
		got := map[string]string{}
		for i, a := range s.Alerts {
			got[a.Subject] = a.Severity
			if a.What == "" || a.Data == "" || a.Next == "" {
				t.Errorf("%s: alert without what, data or next: %+v", health, a)
			}
			if i > 0 && s.Alerts[i-1].Severity > a.Severity && a.Severity == api.SeverityCritical {
				t.Errorf("%s: not the most severe first: %+v", health, s.Alerts)
			}
		}
		if got["lun/vm1"] != severity || got["node/gone"] != api.SeverityWarning || got["catalog"] != api.SeverityWarning {
			t.Errorf("%s: %v", health, got)
		}
	}
}

func TestLUNServed(t *testing.T) {
	for health, want := range map[api.Health]bool{
		api.HealthHealthy: true, api.HealthDegraded: true, api.HealthCatchingUp: true,
		api.HealthCreating: false, api.HealthUnavailable: false, api.HealthLost: false,
	} {
		if got := (api.LUN{Owner: "alpha", Health: health}).Served(); got != want {
			t.Errorf("%s with owner: %v", health, got)
		}
		if (api.LUN{Health: health}).Served() {
			t.Errorf("%s without owner is served", health)
		}
	}
}
