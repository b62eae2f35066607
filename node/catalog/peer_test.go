package catalog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/replication/transport"
)

// peerNode is a member over the transport that real nodes use.
type peerNode struct {
	cfg      Config
	listener string
	mux      *transport.Mux
	served   chan error
	cat      *Catalog
}

func (n *peerNode) start(t *testing.T, addresses map[string]string) {
	t.Helper()
	l, err := net.Listen("tcp", n.listener)
	if err != nil {
		t.Fatal(err)
	}
	n.mux, err = transport.New(transport.Config{
		Cluster: "lab", Node: n.cfg.Node, NodeID: n.cfg.NodeID,
		Resolve: func(node string) (string, bool) { a, ok := addresses[node]; return a, ok },
	})
	if err != nil {
		t.Fatal(err)
	}
	mux := n.mux
	n.served = make(chan error, 1)
	go func() { n.served <- mux.Serve(l) }()
	g, err := n.mux.Group(transport.GroupConfig{Group: "catalog", Epoch: 1, Self: raft.ServerID(n.cfg.Node), AllowSnapshot: true})
	if err != nil {
		t.Fatal(err)
	}
	n.cfg.Transport = g
	if n.cat, err = Open(n.cfg); err != nil {
		t.Fatal(err)
	}
}

func (n *peerNode) stop(t *testing.T) {
	t.Helper()
	if n.cat == nil {
		return
	}
	if err := errors.Join(n.cat.Close(), n.mux.Close()); err != nil {
		t.Error(err)
	}
	<-n.served
	n.cat = nil
}

func TestGroupOverThePeerTransport(t *testing.T) {
	names := []string{"a", "b", "w"}
	addresses := map[string]string{}
	nodes := map[string]*peerNode{}
	for i, n := range names {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addresses[n] = l.Addr().String()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		nodes[n] = &peerNode{listener: addresses[n], cfg: Config{
			Cluster: "lab", Node: n, NodeID: uid(i + 1), Dir: filepath.Join(t.TempDir(), n), Initial: names,
			Heartbeat: 200 * time.Millisecond, SnapshotEntries: 5,
		}}
	}
	defer func() {
		for _, n := range nodes {
			n.stop(t)
		}
	}()
	propose := func(c Change) Result {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			for _, n := range nodes {
				if n.cat == nil || !n.cat.IsLeader() {
					continue
				}
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				r, err := n.cat.Propose(ctx, c)
				cancel()
				if err == nil {
					return r
				}
				if !errors.Is(err, ErrNotLeader) && !errors.Is(err, ErrUnknown) {
					t.Fatal(err)
				}
			}
		}
		t.Fatalf("no leader took %s", c.kind())
		return Result{}
	}
	sees := func(name string, r Result) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if _, err := nodes[name].cat.WaitIndex(ctx, r.Index); err != nil {
			t.Fatalf("%s does not see change %d: %v", name, r.Index, err)
		}
	}
	for _, n := range names {
		nodes[n].start(t, addresses)
	}
	var r Result
	for _, n := range names {
		r = propose(&RegisterNode{Name: n, ID: nodes[n].cfg.NodeID, Kind: KindData})
	}
	for _, n := range names {
		sees(n, r)
	}
	// One is away while the others cut their logs: it comes back by a snapshot over the wire.
	nodes["w"].stop(t)
	for i := range 40 {
		r = propose(&SetSetting{Key: "k", Value: fmt.Sprint(i)})
	}
	for _, n := range []string{"a", "b"} {
		sees(n, r)
		if err := nodes[n].cat.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	nodes["w"].start(t, addresses)
	sees("w", r)
	// The leader goes without a word.
	for name, n := range nodes {
		if n.cat.IsLeader() {
			n.stop(t)
			r = propose(&SetSetting{Key: "k", Value: "after " + name})
			break
		}
	}
	for name, n := range nodes {
		if n.cat != nil {
			sees(name, r)
		}
	}
}
