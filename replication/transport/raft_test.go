package transport

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// countFSM remembers the newest index and how many bytes it has seen.
type countFSM struct {
	index, bytes atomic.Uint64
}

func (f *countFSM) Apply(l *raft.Log) any {
	f.index.Store(l.Index)
	f.bytes.Add(uint64(len(l.Data)))
	return nil
}

func (f *countFSM) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("no snapshots here") }
func (f *countFSM) Restore(r io.ReadCloser) error       { return r.Close() }

// replica is one member of a test group; its stores outlive restarts.
type replica struct {
	node   string
	group  string
	store  *raft.InmemStore
	logs   raft.LogStore
	fsm    *countFSM
	trans  *GroupTransport
	raft   *raft.Raft
	config func(*raft.Config)
}

func serverID(node string) raft.ServerID { return raft.ServerID("server-on-" + node) }

func newReplica(node, group string) *replica {
	s := raft.NewInmemStore()
	return &replica{node: node, group: group, store: s, logs: s}
}

func (r *replica) start(t testing.TB, m *Mux, members []string) {
	t.Helper()
	trans, err := m.Group(GroupConfig{Group: r.group, Epoch: 1, Self: serverID(r.node)})
	if err != nil {
		t.Fatal(err)
	}
	r.trans, r.fsm = trans, &countFSM{}
	cfg := raft.DefaultConfig()
	cfg.LocalID = serverID(r.node)
	cfg.HeartbeatTimeout, cfg.ElectionTimeout = 500*time.Millisecond, 500*time.Millisecond
	cfg.LeaderLeaseTimeout, cfg.CommitTimeout = 250*time.Millisecond, 10*time.Millisecond
	cfg.SnapshotInterval = time.Hour
	cfg.ShutdownOnRemove = false
	cfg.Logger = hclog.NewNullLogger()
	if r.config != nil {
		r.config(cfg)
	}
	snaps := raft.NewDiscardSnapshotStore()
	if has, err := raft.HasExistingState(r.logs, r.store, snaps); err != nil {
		t.Fatal(err)
	} else if !has {
		var c raft.Configuration
		for _, n := range members {
			c.Servers = append(c.Servers, raft.Server{ID: serverID(n), Address: raft.ServerAddress(n)})
		}
		if err := raft.BootstrapCluster(cfg, r.logs, r.store, snaps, trans, c); err != nil {
			t.Fatal(err)
		}
	}
	if r.raft, err = raft.NewRaft(cfg, r.fsm, r.logs, r.store, snaps, trans); err != nil {
		t.Fatal(err)
	}
}

func (r *replica) stop(t testing.TB) {
	t.Helper()
	if r.raft == nil {
		return
	}
	_ = r.trans.Close()
	if err := r.raft.Shutdown().Error(); err != nil {
		t.Errorf("shut down %s on %s: %v", r.group, r.node, err)
	}
	r.raft = nil
}

// trio is three nodes with a replica of each group on every one.
type trio struct {
	net     *network
	nodes   []*testNode
	members []string
	groups  [][]*replica // by group, then node
}

func newTrio(t testing.TB, groups int, change func(r *replica)) *trio {
	c := &trio{net: newNetwork(), members: []string{nodeName(0), nodeName(1), nodeName(2)}}
	for _, name := range c.members {
		c.nodes = append(c.nodes, c.net.start(t, name, ""))
	}
	for g := range groups {
		var rs []*replica
		for i, name := range c.members {
			r := newReplica(name, fmt.Sprintf("group-%d", g))
			if change != nil {
				change(r)
			}
			rs = append(rs, r)
			r.start(t, c.nodes[i].Mux, c.members)
		}
		c.groups = append(c.groups, rs)
	}
	t.Cleanup(func() {
		for _, rs := range c.groups {
			for _, r := range rs {
				r.stop(t)
			}
		}
	})
	return c
}

func leader(rs []*replica) *replica {
	for _, r := range rs {
		if r.raft != nil && r.raft.State() == raft.Leader {
			return r
		}
	}
	return nil
}

// apply commits data through whoever leads, trying again until it is committed.
func apply(t testing.TB, rs []*replica, data []byte) uint64 {
	t.Helper()
	var index uint64
	eventually(t, "commit in "+rs[0].group, func() bool {
		l := leader(rs)
		if l == nil {
			return false
		}
		f := l.raft.Apply(data, 5*time.Second)
		if f.Error() != nil {
			return false
		}
		index = f.Index()
		return true
	})
	return index
}

func caughtUp(t testing.TB, rs []*replica, index uint64) {
	t.Helper()
	for _, r := range rs {
		if r.raft != nil {
			eventually(t, fmt.Sprintf("%s on %s applies %d", r.group, r.node, index), func() bool { return r.fsm.index.Load() >= index })
		}
	}
}

func TestManyGroupsElectReplicateAndSurviveAKilledNode(t *testing.T) {
	c := newTrio(t, 20, nil)
	load := func(n int) {
		var wg sync.WaitGroup
		for _, rs := range c.groups {
			wg.Go(func() {
				var last uint64
				for range n {
					last = apply(t, rs, make([]byte, 5000))
				}
				caughtUp(t, rs, last)
			})
		}
		wg.Wait()
	}
	load(10)
	addr := c.nodes[0].addr
	for _, rs := range c.groups {
		rs[0].stop(t)
	}
	c.nodes[0].stop(t)
	load(10)
	c.nodes[0] = c.net.start(t, c.members[0], addr)
	for _, rs := range c.groups {
		rs[0].start(t, c.nodes[0].Mux, c.members)
	}
	load(10)
}

func TestPipelineUnderLoadDeliversEveryByte(t *testing.T) {
	c := newTrio(t, 1, func(r *replica) {
		r.config = func(cfg *raft.Config) { // a starved machine must not cost the leader its office here
			cfg.HeartbeatTimeout, cfg.ElectionTimeout, cfg.LeaderLeaseTimeout = 2*time.Second, 2*time.Second, 2*time.Second
		}
	})
	rs := c.groups[0]
	apply(t, rs, []byte("first"))
	l := leader(rs)
	sizes := rand.New(rand.NewPCG(1, 2))
	var last raft.ApplyFuture
	sent := uint64(len("first"))
	for range 300 {
		data := make([]byte, sizes.IntN(400<<10))
		sent += uint64(len(data))
		last = l.raft.Apply(data, 10*time.Second)
	}
	if err := last.Error(); err != nil {
		t.Fatal(err)
	}
	caughtUp(t, rs, last.Index())
	for _, r := range rs {
		if got := r.fsm.bytes.Load(); got != sent {
			t.Errorf("%s applied %d bytes, want %d", r.node, got, sent)
		}
	}
}

// flakyStore fails StoreLogs now and then, as a disk with short errors does.
type flakyStore struct {
	raft.LogStore
	failing atomic.Bool
	n       atomic.Uint64
}

func (f *flakyStore) StoreLogs(logs []*raft.Log) error {
	if f.failing.Load() && f.n.Add(1)%7 == 0 {
		return errors.New("injected: no such luck")
	}
	return f.LogStore.StoreLogs(logs)
}
func (f *flakyStore) StoreLog(l *raft.Log) error { return f.StoreLogs([]*raft.Log{l}) }

// TestFollowerErrorsUnderLoadDoNotWedgeThePipeline: with the stock transport a follower whose disk failed for a moment
// never got another entry while heartbeats went on (hashicorp/raft #612).
func TestFollowerErrorsUnderLoadDoNotWedgeThePipeline(t *testing.T) {
	var stores []*flakyStore
	c := newTrio(t, 1, func(r *replica) {
		f := &flakyStore{LogStore: r.store}
		r.logs = f
		stores = append(stores, f)
	})
	rs := c.groups[0]
	apply(t, rs, []byte("first"))
	l := leader(rs)
	for round := range 5 {
		for i, r := range rs {
			stores[i].failing.Store(r != l)
		}
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for range 40 {
					_ = l.raft.Apply(make([]byte, 4096), 5*time.Second).Error() // may lose its leader: that is the load, not the test
				}
			})
		}
		wg.Wait()
		for _, s := range stores {
			s.failing.Store(false)
		}
		index := apply(t, rs, fmt.Appendf(nil, "round %d", round))
		caughtUp(t, rs, index)
		l = leader(rs)
		eventually(t, "a leader", func() bool { l = leader(rs); return l != nil })
	}
}

// On a link of long delay a pipeline moves what may be under way in every round trip, not a few requests.
func TestPipelineFillsALongLink(t *testing.T) {
	const round, window, size, count = 200 * time.Millisecond, 4 << 20, 512 << 10, 80
	p := newPair(t, func(c *GroupConfig) { c.MaxInflightBytes = window })
	p.tap.delay.Store(int64(round / 2))
	p.tap.cut() // what was connected before is as fast as it was
	p.serve(t)
	pipe, err := p.from.AppendEntriesPipeline("server-b", "b")
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	data := make([]byte, size)
	began := time.Now()
	go func() {
		for i := range count {
			if _, err := pipe.AppendEntries(request(uint64(i+1), data), new(raft.AppendEntriesResponse)); err != nil {
				t.Errorf("request %d: %v", i, err)
				return
			}
		}
	}()
	for range count {
		select {
		case f := <-pipe.Consumer():
			if f.Error() != nil {
				t.Fatal(f.Error())
			}
		case <-time.After(30 * time.Second):
			t.Fatal("no answer")
		}
	}
	took := time.Since(began)
	// In whole windows, and one round trip for the first; twice that is for the machine. Four requests at a time would take 20.
	windows := float64(count*size)/window + 1
	t.Logf("%.1f MB/s, %.1f round trips of %v", float64(count*size)/1e6/took.Seconds(), took.Seconds()/round.Seconds(), round)
	if got := took.Seconds() / round.Seconds(); got > 1.6*windows {
		t.Errorf("%.1f round trips for %.0f windows", got, windows)
	}
}
