// Package node is one process of the cluster: it puts catalog, gossip, replicas, portals and API together and owns every
// goroutine they need.
//
// Order matters. Up: identity, pools, peer transport, catalog, gossip, API, registration, replicas, portals; each may rely
// on what came before. Down: the reverse, so that initiators are let go before the replicas they use are stopped. A
// process that is killed skips all of it and loses nothing: see docs/GUARANTEES.md.
//
// It decides nothing by itself: what there should be is in the catalog, who may write is decided by Raft.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore"
	"sanctuary/node/api"
	"sanctuary/node/catalog"
	"sanctuary/node/config"
	"sanctuary/node/membership"
	"sanctuary/node/pools"
	"sanctuary/node/reconcile"
	"sanctuary/replication"
	"sanctuary/replication/journal"
	"sanctuary/replication/transport"
	"sanctuary/target"
)

// Node is one running node. Created by Run.
type Node struct {
	cfg     config.Config
	version string
	log     *slog.Logger
	id      identity

	pools       *pools.Set
	journal     *journal.Journal // of all LUNs whose replicas here last
	mux         *transport.Mux
	host        *replication.Host
	catalog     *catalog.Catalog
	gossip      atomic.Pointer[membership.Membership] // set once; others look peers up before that
	replicas    *replicas
	reconciler  *reconcile.Reconciler
	hostTargets hostTargets
	schedules   *schedules
	barriers    barriers
	clock       func() time.Time              // the wall clock: for names and due times, for nothing that concerns data
	portal      atomic.Pointer[target.Portal] // nil until this node has its port group, and on a witness

	failed   chan error    // the first thing that ends the node; capacity 1
	rechecks chan struct{} // see recheck; capacity 1

	mu     sync.Mutex
	ready  bool
	reason string // what it waits for while not ready
}

// catalogGroup is the catalog's name among the Raft groups; LUN groups are named by UUIDs.
const catalogGroup = "catalog"

// Run runs a node until ctx ends, which is not an error, or until it cannot go on. cfg is complete and valid.
func Run(ctx context.Context, cfg config.Config, version string, log *slog.Logger) error {
	return runWith(ctx, cfg, version, log, time.Now)
}

// runWith is Run with a wall clock.
func runWith(ctx context.Context, cfg config.Config, version string, log *slog.Logger, clock func() time.Time) (err error) {
	n := &Node{cfg: cfg, version: version, log: log, clock: clock, failed: make(chan error, 1), rechecks: make(chan struct{}, 1)}
	n.waitFor("starting")
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var down []func() error
	defer func() {
		for i := len(down) - 1; i >= 0; i-- {
			err = errors.Join(err, down[i]())
		}
	}()
	var wg, transports sync.WaitGroup // the peer transport serves until it is closed, after everything else
	serve := func(what string, f func() error) {
		wg.Go(func() {
			if err := f(); err != nil && ctx.Err() == nil {
				n.fail(fmt.Errorf("%s: %w", what, err))
			}
		})
	}

	unlock, err := n.openIdentity()
	if err != nil {
		return err
	}
	down = append(down, unlock)
	if n.pools, err = pools.Open(n.poolConfig()); err != nil {
		return err
	}
	down = append(down, n.pools.Close)
	if n.journal, err = n.openJournal(); err != nil {
		return err
	}
	down = append(down, n.journal.Close)

	peerListener, err := net.Listen("tcp", cfg.Listen.Peer)
	if err != nil {
		return fmt.Errorf("listen.peer: %w", err)
	}
	n.mux, err = transport.New(transport.Config{
		Cluster: cfg.Cluster, Node: cfg.Node, NodeID: n.id.ID, Resolve: n.resolvePeer, Compression: n.compression, Logger: log,
	})
	if err != nil {
		return errors.Join(err, peerListener.Close())
	}
	down = append(down, func() error { err := n.mux.Close(); transports.Wait(); return err })
	transports.Go(func() {
		if err := n.mux.Serve(peerListener); err != nil {
			n.fail(fmt.Errorf("peer transport: %w", err))
		}
	})
	if n.host, err = replication.NewHost(n.mux); err != nil {
		return err
	}
	if err := n.mux.Handle(methodPropose, n.servePropose); err != nil {
		return err
	}
	if err := n.openCatalog(); err != nil {
		return err
	}
	down = append(down, n.catalog.Close)
	n.replicas, n.schedules = newReplicas(n), newSchedules(n)
	n.reconciler = reconcile.New(reconcile.Config{
		Node: cfg.Node, Catalog: n.catalog, Proposer: proposer{n}, Runner: n.replicas, Logger: log,
	})
	down = append(down, n.replicas.close)
	for method, handler := range map[string]transport.Handler{methodAsk: n.serveAsk, methodHolder: n.serveHolder, methodTakes: n.serveTakes, methodMove: n.serveMove, methodSnapshot: n.serveSnapshot, methodSurvey: n.serveSurvey} {
		if err := n.mux.Handle(method, handler); err != nil {
			return err
		}
	}
	if err := n.openGossip(ctx); err != nil {
		return err
	}
	down = append(down, n.members().Close)

	apiListener, err := net.Listen("tcp", cfg.Listen.API)
	if err != nil {
		return fmt.Errorf("listen.api: %w", err)
	}
	server, err := api.New(api.Config{Service: service{n}, Logger: log, Version: version})
	if err != nil {
		return errors.Join(err, apiListener.Close())
	}
	down = append(down, func() error { cancel(); wg.Wait(); return nil })
	serve("api", func() error { return server.Serve(ctx, apiListener) })
	serve("node", func() error { return n.takePart(ctx, serve) })

	log.Info("node started", "id", n.id.ID, "kind", cfg.Kind, "peer", cfg.Advertise.Peer, "api", cfg.Advertise.API, "data", cfg.DataDir)
	select {
	case <-ctx.Done():
		log.Info("node stopping")
		return nil
	case err := <-n.failed:
		log.Error("node cannot go on", "error", err)
		return err
	}
}

// takePart registers this node, then serves: the portals need the port group that the catalog gives out.
func (n *Node) takePart(ctx context.Context, serve func(string, func() error)) error {
	self, err := n.register(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	serve("reconciler", func() error { return n.reconciler.Run(ctx) })
	serve("members", func() error { return n.replicas.follow(ctx) })
	serve("schedules", func() error { return n.schedules.run(ctx) })
	if n.cfg.Kind == config.KindData {
		if !n.replicasTried(ctx) {
			return nil
		}
		stop, err := n.openPortal(ctx, self, serve)
		if err != nil {
			return err
		}
		defer stop()
	}
	n.mu.Lock()
	n.ready, n.reason = true, ""
	n.mu.Unlock()
	n.tellPeers(ctx, self)
	if p := n.portal.Load(); p != nil {
		return n.leave(p)
	}
	return nil
}

// startWait bounds how long the portals wait for replicas that are being started: one disk that hangs does not keep the LUNs on others.
const startWait = 30 * time.Second

// replicasTried waits until the replicas found here run, or could not be started: a portal that opens before that would tell hosts that
// LUNs are gone which are only not there yet, and some give up what is gone for good. false: ctx has ended.
func (n *Node) replicasTried(ctx context.Context) bool {
	n.waitFor("its replicas are being started")
	timer := time.NewTimer(startWait)
	defer timer.Stop()
	select {
	case <-n.reconciler.Tried():
	case <-timer.C:
		n.log.Warn("not every replica here has been started yet; those that have are served", "waited", startWait)
	case <-ctx.Done():
		return false
	}
	return true
}

func (n *Node) fail(err error) {
	select {
	case n.failed <- err:
	default:
	}
}

func (n *Node) isReady() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ready
}

func (n *Node) waitFor(what string) {
	n.mu.Lock()
	n.reason = what
	n.mu.Unlock()
}

// poolConfig is the pools of the configuration; pools.json has the others.
func (n *Node) poolConfig() pools.Config {
	c := pools.Config{Dir: n.cfg.DataDir, Cluster: n.cfg.Cluster, Node: n.cfg.Node, Logger: n.log.With("component", "pools")}
	if f := n.cfg.Pools.File; f.Capacity > 0 {
		c.Configured = append(c.Configured, pools.Spec{
			Name: pools.NameFile, Media: blockstore.MediaFile, Path: f.Dir, CapacityBytes: int64(f.Capacity), Class: catalog.Class(f.Class),
		})
	}
	if r := n.cfg.Pools.RAM; r.Capacity > 0 {
		c.Configured = append(c.Configured, pools.Spec{Name: pools.NameRAM, Media: blockstore.MediaRAM, CapacityBytes: int64(r.Capacity)})
	}
	return c
}

func (n *Node) openCatalog() error {
	tr, err := n.mux.Group(transport.GroupConfig{Group: catalogGroup, Epoch: 1, Self: raft.ServerID(n.cfg.Node), AllowSnapshot: true})
	if err != nil {
		return err
	}
	initial := make([]string, 0, len(n.cfg.Members))
	for _, m := range n.cfg.Members {
		initial = append(initial, m.Name)
	}
	t := n.cfg.Timing
	n.catalog, err = catalog.Open(catalog.Config{
		Cluster: n.cfg.Cluster, Node: n.cfg.Node, NodeID: n.id.ID, Dir: filepath.Join(n.cfg.DataDir, "catalog"),
		Initial: initial, Transport: tr, Heartbeat: t.Heartbeat.Std(), Election: t.Election.Std(), Lease: t.Lease.Std(),
		Logger: n.log.With("component", "catalog"), OnFailure: n.fail,
	})
	for _, m := range n.cfg.Members {
		if m.Name != n.cfg.Node {
			n.mux.Connect(m.Name)
		}
	}
	return err
}

// register makes this node known to the catalog, and goes on trying until that is done: the cluster may not have come up yet.
func (n *Node) register(ctx context.Context) (catalog.Node, error) {
	change := n.registration()
	joins := len(n.cfg.Members) == 0
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
		result, err := proposer{n}.Propose(attempt, change)
		cancel()
		var refusal *catalog.Refusal
		switch {
		case err == nil && result.Node != nil && (change.Ready || !joins):
			n.log.Info("registered", "port group", result.Node.PortGroup)
			n.waitFor("its copy of the catalog to catch up")
			_, err := n.catalog.WaitIndex(ctx, result.Index) // by which its portals were grouped
			return *result.Node, err
		case err == nil:
			if _, ok := n.catalog.Model().Nodes[n.cfg.Node]; ok {
				change.Ready = true // its own catalog has caught up: it may vote
				continue
			}
			n.waitFor("its copy of the catalog to catch up")
		case errors.As(err, &refusal):
			return catalog.Node{}, fmt.Errorf("the cluster does not take this node: %w", err)
		case ctx.Err() != nil:
			return catalog.Node{}, ctx.Err()
		default:
			n.waitFor("the catalog: " + err.Error())
			n.log.Debug("not registered yet", "error", err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return catalog.Node{}, ctx.Err()
		}
	}
}
