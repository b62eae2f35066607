package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sanctuary/node/api"
)

// fakeNode is a Service whose beliefs a test sets, so that nodes can disagree as real ones do.
type fakeNode struct {
	name string
	url  string

	mu       sync.Mutex
	leader   string
	peers    map[string]string // name → host:port
	luns     []api.LUN
	logins   uint64
	sessions []api.Session
	alerts   []api.Alert
	settings map[string]string
	nodes    []api.Node
	ready    bool
	fail     error // of every call that can fail
	calls    []string
	requests int // HTTP requests that arrived, forwarded ones included
	onCreate func(*fakeNode, api.LUN)
	onMove   func(*fakeNode, string, string)
	hosts    []api.Host
	reserved api.Reservations
	pools    []api.Pool
	behind   uint64 // changes of the catalog it has yet to hear of; one less each time it is asked
}

var _ api.Service = (*fakeNode)(nil)

func (f *fakeNode) note(call string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, call)
}

func (f *fakeNode) called() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

func (f *fakeNode) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeNode) Name() string { return f.name }

func (f *fakeNode) APIAddress(node string) (string, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, ok := f.peers[node]
	return a, ok
}

func (f *fakeNode) Health() api.NodeHealth {
	f.mu.Lock()
	defer f.mu.Unlock()
	return api.NodeHealth{Node: f.name, Ready: f.ready, Reason: "2 LUNs are starting"}
}
func (f *fakeNode) Cluster() string { return "test" }

func (f *fakeNode) Catalog() api.Catalog {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer func() { f.behind = max(f.behind, 1) - 1 }()
	return api.Catalog{Leader: f.leader, Term: 3, Index: 9 - f.behind, Voters: 3}
}

func (f *fakeNode) Nodes(context.Context) ([]api.Node, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.nodes, f.fail
}

func (f *fakeNode) LUNs(context.Context) ([]api.LUN, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.luns), f.fail
}

func (f *fakeNode) LUN(_ context.Context, ref string) (api.LUN, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.luns {
		if l.Name == ref || l.ID == ref {
			return l, f.fail
		}
	}
	return api.LUN{}, api.NotFound("there is no LUN %q", ref)
}

func (f *fakeNode) Sessions(context.Context) ([]api.Session, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sessions, f.fail
}

func (f *fakeNode) Logins() (api.Logins, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return api.Logins{Node: f.name, Succeeded: f.logins}, f.logins > 0
}

func (f *fakeNode) Settings(context.Context) (map[string]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.settings), f.fail
}

func (f *fakeNode) Alerts(context.Context) ([]api.Alert, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.alerts), f.fail
}

func (f *fakeNode) CreateLUN(_ context.Context, spec api.LUNSpec) (api.LUN, error) {
	f.note("create " + spec.Name)
	l := api.LUN{Name: spec.Name, ID: spec.ID, SizeBytes: spec.SizeBytes, BlockBytes: spec.BlockBytes, Media: spec.Media, Health: api.HealthCreating}
	if l.ID == "" {
		l.ID = "00000000-0000-4000-8000-000000000001"
	}
	f.set(func() { f.luns = append(f.luns, l) })
	if f.onCreate != nil {
		f.onCreate(f, l)
	}
	return l, f.fail
}

func (f *fakeNode) DeleteLUN(_ context.Context, ref string) error {
	f.note("delete " + ref)
	return f.fail
}

func (f *fakeNode) SetSettings(_ context.Context, change map[string]string) error {
	f.note("settings")
	f.set(func() { maps.Copy(f.settings, change) })
	return f.fail
}

func (f *fakeNode) Propose(_ context.Context, change []byte) ([]byte, error) {
	f.note("propose " + string(change))
	return []byte("done " + string(change)), f.fail
}

func (f *fakeNode) StartScrub(_ context.Context, ref string) error {
	f.note("scrub " + ref)
	return f.fail
}

func (f *fakeNode) PauseScrub(_ context.Context, ref string, paused bool) error {
	f.note(fmt.Sprintf("scrub %s paused %t", ref, paused))
	return f.fail
}

func (f *fakeNode) MoveLUN(_ context.Context, ref, node string) error {
	f.note("move " + ref + " to " + node)
	if f.onMove != nil {
		f.onMove(f, ref, node)
	}
	return f.fail
}

func (f *fakeNode) Recovery(_ context.Context, ref, node string) (api.Recovery, error) {
	f.note("assess " + ref + " " + node)
	return api.Recovery{LUN: ref, ID: lunID, History: 1, From: "beta/2", Replicas: []api.RecoveryReplica{}, Lost: api.RecoveryLoss{Unknown: []string{"alpha/1"}}}, f.fail
}

func (f *fakeNode) RecoverLUN(_ context.Context, ref string, spec api.RecoverSpec) (api.Recovery, error) {
	f.note(fmt.Sprintf("recover %s in history %d, by %s", ref, spec.History, spec.By))
	return api.Recovery{LUN: ref, ID: lunID, History: 2, From: "beta/2", Done: true, Replicas: []api.RecoveryReplica{}}, f.fail
}

func (f *fakeNode) RevertReplica(_ context.Context, ref string) (api.RebuildBefore, error) {
	f.note("revert " + ref)
	return api.RebuildBefore{Index: 7}, f.fail
}

func (f *fakeNode) ChangeReplicas(_ context.Context, ref string, c api.ReplicaChange) (api.LUN, error) {
	f.note(fmt.Sprintf("replicas %s +%v -%v pool=%s witness=%s", ref, c.Add, c.Remove, c.Pool, c.Witness))
	return f.luns[0], f.fail
}

func (f *fakeNode) DrainNode(_ context.Context, node string) (api.Drain, error) {
	f.note("drain " + node)
	return api.Drain{Node: node}, f.fail
}

func (f *fakeNode) RemoveNode(_ context.Context, node string) error {
	f.note("remove node " + node)
	return f.fail
}

func (f *fakeNode) Hosts(context.Context) ([]api.Host, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.hosts), f.fail
}

func (f *fakeNode) Reservations(context.Context, string) (api.Reservations, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reserved, f.fail
}

func (f *fakeNode) Pools(context.Context) ([]api.Pool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.pools), f.fail
}

func (f *fakeNode) AddPool(_ context.Context, spec api.PoolSpec) (api.Pool, error) {
	f.note(fmt.Sprintf("add pool %s on %s %s, force=%v", spec.Name, spec.Media, spec.Path, spec.Force))
	p := api.Pool{Node: f.name, Name: spec.Name, ID: spec.ID, Media: spec.Media, Path: spec.Path, Class: "ssd", State: api.PoolOK, Replicas: []api.PoolReplica{}}
	f.set(func() { f.pools = append(f.pools, p) })
	return p, f.fail
}

func (f *fakeNode) RemovePool(_ context.Context, name string, how api.PoolRemoval) error {
	f.note(fmt.Sprintf("remove pool %s, wipe=%v lost=%v", name, how.Wipe, how.Lost))
	return f.fail
}

func (f *fakeNode) CloseSession(_ context.Context, handle string) error {
	f.note("close " + handle)
	return f.fail
}

func (f *fakeNode) SetHost(_ context.Context, name string, spec api.HostSpec, create bool) error {
	f.note(fmt.Sprintf("host %s %v create=%v", name, spec.Initiators, create))
	h := api.Host{Name: name, Initiators: spec.Initiators, SinglePath: spec.SinglePath, LUNs: []api.HostLUN{}}
	if spec.CHAP != nil {
		f.note("secret " + spec.CHAP.Secret)
		h.CHAP = &api.HostCHAP{User: spec.CHAP.User, MutualUser: spec.CHAP.MutualUser}
	}
	f.set(func() { f.hosts = append(f.hosts, h) })
	return f.fail
}

func (f *fakeNode) RemoveHost(_ context.Context, name string, force bool) error {
	f.note(fmt.Sprintf("remove host %s force=%v", name, force))
	return f.fail
}

func (f *fakeNode) GrantLUN(_ context.Context, ref, host string, number *uint16) error {
	n := "any"
	if number != nil {
		n = fmt.Sprint(*number)
	}
	f.note("grant " + ref + " to " + host + " as " + n)
	return f.fail
}

func (f *fakeNode) RevokeLUN(_ context.Context, ref, host string) error {
	f.note("revoke " + ref + " from " + host)
	return f.fail
}

func (f *fakeNode) OpenLUN(_ context.Context, ref string, a api.LUNOpen) error {
	f.note(fmt.Sprintf("open %s %v %v", ref, a.Open, a.SinglePath))
	f.set(func() { f.luns[0].Access.Open = a.Open })
	return f.fail
}

func (f *fakeNode) ChangeLUN(_ context.Context, ref string, c api.LUNChange) error {
	for name, on := range map[string]*bool{"paths": c.NonOptimizedPaths, "zeros": c.ZeroDetection} {
		if on != nil {
			f.note(fmt.Sprintf("change %s %s %v", ref, name, *on))
		}
	}
	return f.fail
}

func (f *fakeNode) PurgeReservations(_ context.Context, ref string, what api.ReservationPurge) (int, error) {
	key := ""
	if what.Key != nil {
		key = fmt.Sprintf("%x", *what.Key)
	}
	f.note(fmt.Sprintf("purge %s key=%s initiator=%s all=%v", ref, key, what.Initiator, what.All))
	return 1, f.fail
}

// cluster starts a server for each name; the first is everybody's leader.
func cluster(t *testing.T, names ...string) map[string]*fakeNode {
	t.Helper()
	nodes := map[string]*fakeNode{}
	peers := map[string]string{}
	var list []api.Node
	for _, name := range names {
		f := &fakeNode{name: name, leader: names[0], settings: map[string]string{"a": "1"}, ready: true, peers: map[string]string{}}
		f.url = serve(t, f, api.Config{})
		peers[name] = strings.TrimPrefix(f.url, "http://")
		list = append(list, api.Node{Name: name, Kind: "data", Alive: true})
		nodes[name] = f
	}
	for _, f := range nodes {
		f.set(func() { f.peers, f.nodes = maps.Clone(peers), list })
	}
	return nodes
}

// serve starts a server for f and returns its URL.
func serve(t *testing.T, f *fakeNode, cfg api.Config) string {
	t.Helper()
	cfg.Service, cfg.Logger = f, slog.New(slog.NewTextHandler(io.Discard, nil))
	if cfg.PollInterval == 0 {
		cfg.PollInterval = time.Millisecond
	}
	s, err := api.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.set(func() { f.requests++ })
		s.Handler().ServeHTTP(w, r)
	}))
	t.Cleanup(ts.Close)
	return ts.URL
}

type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) problem(t *testing.T) api.Problem {
	t.Helper()
	var p api.Problem
	if err := json.Unmarshal(a.body, &p); err != nil {
		t.Fatalf("status %d, not a problem: %s", a.status, a.body)
	}
	if got := a.header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("content type %q of %s", got, a.body)
	}
	if p.Status != a.status || p.Type != "/problems/"+string(p.Code) || p.Title == "" || p.Detail == "" {
		t.Errorf("incomplete problem for status %d: %+v", a.status, p)
	}
	return p
}

func decode[T any](t *testing.T, a answer) (v T) {
	t.Helper()
	if err := json.Unmarshal(a.body, &v); err != nil {
		t.Fatalf("status %d: %v in %s", a.status, err, a.body)
	}
	return v
}

func call(t *testing.T, method, url, body string, header ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewBufferString(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, b}
}

// deadAddress returns an address nobody listens on.
func deadAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

const lunID = "00000000-0000-4000-8000-00000000000a"

// lun returns a LUN on alpha and beta.
func lun(owner string, health api.Health, term uint64) api.LUN {
	return api.LUN{
		Name: "vm1", ID: lunID, IQN: "iqn.2026-11.local.sanctuary:vm1", Owner: owner, Health: health, Term: term,
		Replicas: []api.Replica{{ID: "alpha/1", Node: "alpha", Role: api.RoleData}, {ID: "beta/2", Node: "beta", Role: api.RoleData}},
		Portals:  []api.Portal{{Node: "alpha", State: api.PortalStandby}, {Node: "beta", State: api.PortalActive}},
	}
}
