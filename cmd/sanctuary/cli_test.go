package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sanctuary/node/api"
)

var update = flag.Bool("update", false, "write testdata instead of comparing with it")

// scripted is an API that answers from a table and remembers what it was asked.
type scripted struct {
	answers map[string]any // "METHOD /path" → answer, or *api.Problem
	asked   []string
}

func (s *scripted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(err)
	}
	s.asked = append(s.asked, strings.TrimSpace(r.Method+" "+r.URL.RequestURI()+" "+string(body)))
	answer, ok := s.answers[r.Method+" "+r.URL.Path]
	if !ok {
		answer = api.NotFound("there is no %s", r.URL.Path)
	}
	if p, bad := answer.(*api.Problem); bad {
		w.WriteHeader(p.Status)
	}
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		panic(err)
	}
}

func sampleStatus() api.Status {
	degraded := sampleLUN()
	degraded.Name, degraded.ID, degraded.Health, degraded.Reason, degraded.Owner = "vm2", "b", api.HealthDegraded, "beta does not answer", "beta"
	degraded.Replicas[1].InSync = false
	degraded.View.Note = "node beta did not answer within 500ms. This is what node alpha knows"
	return api.Status{
		Cluster: "lab", Node: "alpha", AsOf: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC), Catalog: api.Catalog{Leader: "alpha", Term: 2, Index: 7, Voters: 3},
		Nodes: []api.Node{
			{Name: "alpha", Kind: "data", Alive: true, Self: true, CatalogLeader: true, APIAddress: "10.0.0.1:7442", ISCSIAddresses: []string{"10.0.0.1:3260"}, Version: "v1", LUNsOwned: 1},
			{Name: "beta", Kind: "data", APIAddress: "10.0.0.2:7442", ISCSIAddresses: []string{"10.0.0.2:3260"}},
			{Name: "witness", Kind: "witness", Alive: true, APIAddress: "10.0.0.3:7442", Version: "v1"},
		},
		LUNs: []api.LUN{sampleLUN(), degraded},
		Alerts: []api.Alert{{
			Severity: "warning", Subject: "node/beta", What: "node beta does not answer", Data: "No acknowledged write is lost by that alone.", Next: "Start it again.",
		}},
	}
}

// TestCommandLines runs each command line against a scripted API and compares everything it does (what it asks, prints
// and returns) with a file.
func TestCommandLines(t *testing.T) {
	unserved := sampleLUN()
	unserved.Owner, unserved.Health, unserved.Reason = "", api.HealthCreating, "waiting for node beta"
	st := sampleStatus()
	standard := map[string]any{
		"GET /v1/status": st, "GET /v1/nodes": api.NodeList{Nodes: st.Nodes}, "GET /v1/luns": api.LUNList{LUNs: st.LUNs},
		"GET /v1/luns/vm1": sampleLUN(), "POST /v1/luns": sampleLUN(), "POST /v1/luns/vm1/move": sampleLUN(),
		"DELETE /v1/luns/" + sampleLUN().ID: map[string]any{},
	}
	for _, tc := range []struct {
		name, line, input string
		answers           map[string]any
	}{
		{name: "status", line: "status"},
		{name: "status-json", line: "status -o json"},
		{name: "status-quiet", line: "status", answers: map[string]any{"GET /v1/status": api.Status{Cluster: "lab", Node: "a", LUNs: []api.LUN{}, Nodes: []api.Node{}, Alerts: []api.Alert{}}}},
		{name: "node-list", line: "node list"},
		{name: "node-list-json", line: "node list -o json"},
		{name: "lun-list", line: "lun list"},
		{name: "lun-list-json", line: "lun list --output json"},
		{name: "lun-show", line: "lun show vm1"},
		{name: "lun-show-json", line: "lun show vm1 -o json"},
		{name: "lun-show-unknown", line: "lun show nope"},
		{name: "lun-show-nothing", line: "lun show"},
		{name: "lun-create-good", line: "lun create vm1 --size 10GiB --media ram --copies 2 --node alpha --node beta --prefer alpha --block 4096 --wait 5s"},
		{name: "lun-create-no-size", line: "lun create vm1"},
		{name: "lun-create-bad-size", line: "lun create vm1 --size 10GB"},
		{name: "lun-create-bad-wait", line: "lun create vm1 --size 1GiB --wait 1h"},
		{name: "lun-create-two-names", line: "lun create vm1 vm2 --size 1GiB"},
		{name: "lun-create-not-served", line: "lun create vm1 --size 1GiB", answers: map[string]any{"POST /v1/luns": unserved}},
		{name: "lun-create-not-served-no-wait", line: "lun create vm1 --size 1GiB --wait 0 -o json", answers: map[string]any{"POST /v1/luns": unserved}},
		{name: "lun-create-exists", line: "lun create vm1 --size 1GiB", answers: map[string]any{"POST /v1/luns": api.Conflict("Choose another name.", "there is a LUN vm1")}},
		{name: "lun-move", line: "lun move vm1 --to beta"},
		{name: "lun-move-nowhere", line: "lun move vm1"},
		{name: "lun-delete", line: "lun delete vm1", input: "vm1\n"},
		{name: "lun-delete-wrong-name", line: "lun delete vm1", input: "vm2\n"},
		{name: "lun-delete-nobody-there", line: "lun delete vm1"},
		{name: "lun-delete-yes", line: "lun delete vm1 --yes --force -o json"},
		{name: "unknown-command", line: "stats"},
		{name: "unknown-subcommand", line: "lun craete"},
		{name: "unknown-flag", line: "status --colour"},
		{name: "bad-output", line: "status -o yaml"},
		{name: "bad-address", line: "status --api nonsense"},
		{name: "demo-two", line: "demo --nodes 2"},
		{name: "drill-without-copy", line: "demo --drill --nodes 1 --media ram"},
		{name: "run-bad-member", line: "run --node a --members a"},
		{name: "witness-with-disk", line: "witness --file-capacity 1GiB"},
		{name: "help", line: "help"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &scripted{answers: map[string]any{}}
			for k, v := range standard {
				s.answers[k] = v
			}
			for k, v := range tc.answers {
				s.answers[k] = v
			}
			server := httptest.NewServer(s)
			defer server.Close()
			var out, errOut bytes.Buffer
			code := execute(t.Context(), strings.Fields(tc.line), environment{
				out: &out, err: &errOut, in: strings.NewReader(tc.input),
				getenv: func(name string) string {
					return map[string]string{"SANCTUARY_API": strings.TrimPrefix(server.URL, "http://")}[name]
				},
			})
			var got strings.Builder
			line(&got, "$ sanctuary %s", tc.line)
			for _, a := range s.asked {
				line(&got, "> %s", withoutID(a))
			}
			got.WriteString(out.String())
			for _, l := range strings.SplitAfter(errOut.String(), "\n") {
				if l != "" {
					got.WriteString("! " + l)
				}
			}
			line(&got, "exit status %d", code)
			compare(t, filepath.Join("testdata", "cli", tc.name+".txt"), got.String())
		})
	}
}

// withoutID blanks the ID a client chooses at random.
func withoutID(s string) string {
	before, after, found := strings.Cut(s, `"id":"`)
	if !found {
		return s
	}
	return before + `"id":"…` + after[strings.Index(after, `"`):]
}

func compare(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("if this is meant, run the test with -update; got:\n%s\nwant:\n%s", got, want)
	}
}

func TestTheConfigurationIsFileThenFlags(t *testing.T) {
	dir := t.TempDir()
	p, err := newPlan(dir, demoOptions{nodes: 3, media: "file", sizeBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.write(dir); err != nil {
		t.Fatal(err)
	}
	run := func(env string, args ...string) (int, string) {
		var out, errOut bytes.Buffer
		code := execute(t.Context(), args, environment{out: &out, err: &errOut, in: strings.NewReader(""), getenv: func(name string) string {
			return map[string]string{"SANCTUARY_CONFIG": env}[name]
		}})
		return code, out.String() + errOut.String()
	}
	if code, out := run(p.Nodes[0].Config, "run", "--check", "--log-level", "debug", "--data-dir", "/srv/x"); code != exitOK ||
		!strings.Contains(out, "level = 'debug'") || !strings.Contains(out, "data_dir = '/srv/x'") || !strings.Contains(out, "node = 'alpha'") {
		t.Errorf("%d: %s", code, out)
	}
	if code, out := run("", "run", "--check", "--config", p.Nodes[2].Config); code != exitUsage || !strings.Contains(out, "sanctuary witness") {
		t.Errorf("a witness's file given to run: %d: %s", code, out)
	}
	if code, out := run("", "run"); code != exitUsage || !strings.Contains(out, "nothing was started") || !strings.Contains(out, "node: ") || !strings.Contains(out, "members: ") {
		t.Errorf("nothing given: %d: %s", code, out)
	}
	if code, out := run("", "run", "--check", "-o", "json", "--node", "a", "--data-dir", "/srv/a", "--listen-peer", "127.0.0.1:1", "--listen-gossip", "127.0.0.1:2",
		"--listen-iscsi", "127.0.0.1:3", "--ram-capacity", "1GiB", "--members", "a,data,127.0.0.1:1,127.0.0.1:2"); code != exitOK ||
		!strings.Contains(out, `"capacity": 1073741824`) || !strings.Contains(out, `"data_dir": "/srv/a"`) {
		t.Errorf("flags only: %d: %s", code, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "x.toml"), []byte("colour = 'red'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out := run("", "run", "--check", "--config", filepath.Join(dir, "x.toml")); code != exitUsage || !strings.Contains(out, "colour") {
		t.Errorf("unknown setting: %d: %s", code, out)
	}
	if code, _ := run("", "run", "--check", "--config", filepath.Join(dir, "none.toml")); code != exitUsage {
		t.Errorf("no file: %d", code)
	}
}
