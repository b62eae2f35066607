package initiator_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"sanctuary/blockstore/block"
	"sanctuary/target"
	"sanctuary/target/initiator"
	"sanctuary/target/login"
	"sanctuary/target/scsi"
	"sanctuary/target/scsi/scsitest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	targetName = "iqn.2024-01.test:lun"
	sectors    = 16384 // 8 MiB
)

// cluster is one LUN in memory behind several nodes, of which one owns it.
type cluster struct {
	t     testing.TB
	mem   *scsitest.Memory
	owner atomic.Int32 // index of the owner, -1: none
	cut   atomic.Int32 // index+1 of a node that hears of nobody and knows no owner, 0: none
	gen   atomic.Uint64
	nodes []*node
}

// node is a portal that can be killed and started again on the same address.
type node struct {
	cluster *cluster
	index   int
	address string
	target  *scsi.Target
	portal  *target.Portal
	stop    context.CancelFunc
	served  sync.WaitGroup

	credentials atomic.Pointer[login.Credentials] // what every initiator must prove; nil: nothing
	moved       atomic.Value                      // string: where every initiator is sent, empty for nowhere
	listed      atomic.Int64                      // further targets in answers to SendTargets
}

func newCluster(t testing.TB, n int) *cluster {
	t.Helper()
	c := &cluster{t: t, mem: scsitest.NewMemory(block.Geometry{Capacity: sectors, LogicalBlockBytes: 512})}
	var listeners []net.Listener
	for i := range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, ln)
		c.nodes = append(c.nodes, &node{cluster: c, index: i, address: ln.Addr().String()})
	}
	for i, ln := range listeners {
		c.nodes[i].serve([16]byte{0x60, 1}, ln)
	}
	t.Cleanup(func() {
		for _, nd := range c.nodes {
			nd.kill()
		}
	})
	return c
}

func (c *cluster) move(to int) {
	c.owner.Store(int32(to))
	c.gen.Add(1)
}

// guard is the Backend as one node sees it: only the owner's does anything.
type guard struct {
	*scsitest.Memory
	node *node
}

func (g guard) owned() bool { return int(g.node.cluster.owner.Load()) == g.node.index }

func (g guard) Write(ctx context.Context, f block.Fence, r block.Range, src []byte) error {
	if !g.owned() {
		return block.ErrNotOwner
	}
	return g.Memory.Write(ctx, f, r, src)
}

func (g guard) Read(ctx context.Context, r block.Range, dst []byte) error {
	if !g.owned() {
		return block.ErrNotOwner
	}
	return g.Memory.Read(ctx, r, dst)
}

func (n *node) access() scsi.Access {
	a := scsi.Access{Local: uint16(n.index + 1), LocalPort: uint16(n.index + 1), Generation: n.cluster.gen.Load()}
	for i := range n.cluster.nodes {
		state := scsi.Standby
		if int(n.cluster.owner.Load()) == i && int(n.cluster.cut.Load()) != n.index+1 {
			state = scsi.ActiveOptimized
		}
		a.Groups = append(a.Groups, scsi.PortGroup{ID: uint16(i + 1), State: state, Ports: []uint16{uint16(i + 1)}})
	}
	return a
}

// Credentials, List and Open make a node the Directory of its portal.
func (n *node) Credentials(string) (login.Credentials, bool) {
	if c := n.credentials.Load(); c != nil {
		return *c, true
	}
	return login.Credentials{}, true
}

func (n *node) List(string, uint16) []target.Listing {
	l := target.Listing{Name: targetName}
	for i, o := range n.cluster.nodes {
		l.Portals = append(l.Portals, target.PortalAddress{Address: o.address, GroupTag: uint16(i + 1)})
	}
	list := []target.Listing{l}
	for i := range n.listed.Load() {
		list = append(list, target.Listing{Name: fmt.Sprintf("iqn.2024-01.test:further-%04d", i), Portals: l.Portals})
	}
	return list
}

func (n *node) SinglePath(target.Opening) bool { return false }

func (n *node) Open(o target.Opening) (scsi.Executor, error) {
	if o.Target != targetName {
		return nil, target.ErrNoTarget
	}
	if to, _ := n.moved.Load().(string); to != "" {
		return nil, &login.Refusal{Status: login.MovedTemporarily, Address: to}
	}
	return n.target, nil
}

// start brings a node back on its address after kill.
func (n *node) start(naa [16]byte) {
	n.cluster.t.Helper()
	ln, err := net.Listen("tcp", n.address)
	if err != nil {
		n.cluster.t.Error(err)
		return
	}
	n.serve(naa, ln)
}

func (n *node) serve(naa [16]byte, ln net.Listener) {
	t := n.cluster.t
	t.Helper()
	unit, err := scsi.NewUnit(scsi.UnitConfig{
		Identity: scsi.Identity{Vendor: "SANCTURY", Product: "volume", Revision: "1", Serial: "1", NAA: naa},
		Backend:  guard{n.cluster.mem, n}, Access: n.access,
	})
	if err != nil {
		t.Fatal(err)
	}
	n.target = scsi.NewTarget(scsi.TargetConfig{Name: targetName})
	if err := n.target.Add(0, unit); err != nil {
		t.Fatal(err)
	}
	n.portal, err = target.New(target.Config{Directory: n, GroupOf: target.OneGroup(uint16(n.index + 1))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.stop = cancel
	n.served.Go(func() { _ = n.portal.Serve(ctx, ln) })
}

// kill closes the node's connections at once.
func (n *node) kill() {
	n.stop()
	_ = n.portal.Close()
	n.served.Wait()
}

func dial(t testing.TB, c *cluster, change func(*initiator.Config)) *initiator.Session {
	t.Helper()
	cfg := initiator.Config{Address: c.nodes[0].address, Target: targetName}
	if change != nil {
		change(&cfg)
	}
	s, err := initiator.Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// ready is dial with the unit attention of the login taken.
func ready(t testing.TB, c *cluster, change func(*initiator.Config)) *initiator.Session {
	t.Helper()
	s := dial(t, c, change)
	if err := s.TestUnitReady(t.Context()); err == nil || err.Error() != "check condition 6/29/00" {
		t.Fatalf("first command: %v", err)
	}
	return s
}

func pattern(n int, seed byte) []byte {
	b := bytes.Repeat([]byte{seed}, n)
	for i := range b {
		b[i] += byte(i>>9)*13 + byte(i)
	}
	return b
}

func ptr(c login.Credentials) *login.Credentials { return &c }
