package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"sanctuary/node/api"
	"sanctuary/node/client"
)

// node answers with one handler after another; the last stays.
type node struct {
	*httptest.Server
	mu       sync.Mutex
	requests []string // method, path and body
}

func newNode(t *testing.T, answers ...http.HandlerFunc) *node {
	t.Helper()
	n := &node{}
	n.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("read request: %v", err)
		}
		n.mu.Lock()
		i := min(len(n.requests), len(answers)-1)
		n.requests = append(n.requests, r.Method+" "+r.URL.RequestURI()+" "+string(body))
		n.mu.Unlock()
		answers[i](w, r)
	}))
	t.Cleanup(n.Close)
	return n
}

func (n *node) addr() string { return strings.TrimPrefix(n.URL, "http://") }

func (n *node) seen() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.requests...)
}

func ok(v any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(v); err != nil {
			panic(err)
		}
	}
}

func refuse(p *api.Problem) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(p.Status)
		if err := json.NewEncoder(w).Encode(p); err != nil {
			panic(err)
		}
	}
}

// hangUp breaks the connection after the request has been read.
func hangUp(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

func dead(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func newClient(t *testing.T, addrs ...string) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{Addresses: addrs, Timeout: 5 * time.Second, RetryFor: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestAnotherNodeIsAskedAndStaysTheFirst(t *testing.T) {
	alive := newNode(t, ok(api.Status{Cluster: "x"}))
	down := newNode(t, hangUp)
	c := newClient(t, dead(t), down.addr(), alive.addr())
	for range 3 {
		s, err := c.Status(t.Context())
		if err != nil || s.Cluster != "x" {
			t.Fatalf("%+v, %v", s, err)
		}
	}
	if n := len(down.seen()); n != 1 && n != 2 { // net/http itself repeats a GET once on a reused connection
		t.Errorf("the node that breaks off was asked %d times", n)
	}
	if n := len(alive.seen()); n != 3 {
		t.Errorf("the one that answers was asked %d times", n)
	}
}

func TestNobodyAnswers(t *testing.T) {
	a, b := dead(t), dead(t)
	_, err := newClient(t, a, b).Status(t.Context())
	var u *client.UnreachableError
	if !errors.As(err, &u) || len(u.Attempts) != 2 || u.Attempts[0].Address != a || u.MaybeDone {
		t.Fatalf("%v", err)
	}
	if !strings.Contains(err.Error(), a) || !strings.Contains(err.Error(), b) {
		t.Errorf("%v does not name the addresses", err)
	}
}

func TestNotNowIsRepeated(t *testing.T) {
	n := newNode(t, refuse(api.NoLeader("electing")), ok(api.LUN{Name: "vm1"}))
	l, err := newClient(t, n.addr()).CreateLUN(t.Context(), api.LUNSpec{Name: "vm1", SizeBytes: 4096}, 0)
	if err != nil || l.Name != "vm1" {
		t.Fatalf("%+v, %v", l, err)
	}
	seen := n.seen()
	if len(seen) != 2 || seen[0] != seen[1] {
		t.Errorf("requests differ, so two LUNs could come of them: %q", seen)
	}
	if !strings.Contains(seen[0], `"id":"`) || !strings.Contains(seen[0], "wait=0s") {
		t.Errorf("no ID of the client's choice, or no wait: %s", seen[0])
	}
}

func TestNotNowIsReportedWhenTimeIsUp(t *testing.T) {
	n := newNode(t, refuse(api.NoLeader("electing")))
	c, err := client.New(client.Config{Addresses: []string{n.addr()}, RetryFor: -1})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.CreateLUN(t.Context(), api.LUNSpec{Name: "vm1"}, 0)
	var p *api.Problem
	if !errors.As(err, &p) || p.Code != api.CodeNoLeader || len(n.seen()) != 1 {
		t.Errorf("%v after %d requests", err, len(n.seen()))
	}
}

func TestARefusalIsFinal(t *testing.T) {
	n := newNode(t, refuse(api.Conflict("choose another", "there is a LUN vm1")))
	other := newNode(t, ok(api.LUN{}))
	_, err := newClient(t, n.addr(), other.addr()).CreateLUN(t.Context(), api.LUNSpec{Name: "vm1"}, 0)
	var p *api.Problem
	if !errors.As(err, &p) || p.Code != api.CodeConflict || p.Next != "choose another" {
		t.Errorf("%v", err)
	}
	if len(other.seen()) != 0 {
		t.Error("another node was asked after a refusal")
	}
}

func TestADeleteWhoseAnswerWasLostIsDone(t *testing.T) {
	const id = "00000000-0000-4000-8000-00000000000a"
	first := newNode(t, hangUp)
	second := newNode(t, refuse(api.NotFound("there is no such LUN")))
	if err := newClient(t, first.addr(), second.addr()).DeleteLUN(t.Context(), id, true); err != nil {
		t.Errorf("%v", err)
	}
	if seen := first.seen(); !strings.HasPrefix(seen[0], "DELETE /v1/luns/"+id+"?force=true") {
		t.Errorf("%q", seen)
	}
	// But one that was never there is not.
	err := newClient(t, second.addr()).DeleteLUN(t.Context(), id, false)
	var p *api.Problem
	if !errors.As(err, &p) || p.Code != api.CodeNotFound {
		t.Errorf("%v", err)
	}
}

func TestAChangeWhoseAnswerWasLostIsNotCalledUndone(t *testing.T) {
	n := newNode(t, hangUp)
	_, err := newClient(t, n.addr()).SetSettings(t.Context(), map[string]string{"a": "b"})
	var u *client.UnreachableError
	if !errors.As(err, &u) || !u.MaybeDone {
		t.Errorf("%v", err)
	}
}

func TestTheRequestEndsWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	n := newNode(t, func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})
	_, err := newClient(t, n.addr()).Status(ctx)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestSomethingElseAtTheAddressIsNamed(t *testing.T) {
	n := newNode(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>hello", http.StatusTeapot) })
	_, err := newClient(t, n.addr()).Status(t.Context())
	if err == nil || !strings.Contains(err.Error(), "does not look like this API") {
		t.Errorf("%v", err)
	}
}

func TestPassedOnRequestsSayByWhom(t *testing.T) {
	var got string
	n := newNode(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Get(api.HeaderForwardedBy)
		ok(api.ProposalResult{Result: []byte("r")})(w, r)
	})
	c, err := client.New(client.Config{Addresses: []string{n.addr()}, ForwardedBy: "beta"})
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Propose(t.Context(), []byte("c"))
	if err != nil || string(r) != "r" || got != "beta" {
		t.Errorf("%q, %v, by %q", r, err, got)
	}
}

func TestAddressesAreChecked(t *testing.T) {
	for _, addrs := range [][]string{nil, {"localhost"}, {":80"}, {"host:0"}, {"host:70000"}, {"host:http"}, {"a:1", "b"}} {
		if _, err := client.New(client.Config{Addresses: addrs}); err == nil {
			t.Errorf("%q accepted", addrs)
		}
	}
}
