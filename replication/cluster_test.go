package replication

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
	"sanctuary/blockstore/vfs/crashdev"
	"sanctuary/replication/journal"
	"sanctuary/replication/transport"
	"sanctuary/replication/transport/loopback"
)

// cluster is a LUN's replicas as separate hosts in this process, over real connections on loopback.
type cluster struct {
	t        testing.TB
	dir      string
	media    blockstore.Media
	addrs    map[string]string // the caller may set those of nodes that are to be started later
	members  []Member
	nodes    map[string]*testNode
	limits   Limits
	timing   Timing // zero: the default
	pool     int64  // bytes each node can hold; 0: 128 MiB
	joining  string
	folders  map[string]*crashdev.Folder                  // of the journals; nil: directories
	segment  int64                                        // bytes of their segments; 0: 1 MiB
	wrap     func(node string, l journal.Log) journal.Log // nil: as it is
	epochs   map[string]uint64                            // history, by node; absent: 1
	recovers string                                       // the node whose copy begins a new history when it is started next
	geometry block.Geometry
	scrub    func(node string) ScrubConfig      // nil: no scrub
	rebuild  RebuildConfig                      // File is set for every node on files
	resolve  func(from, to string) string       // nil: addrs
	without  []string                           // methods an older program does not know
	contents func(n int, version uint64) []byte // what write puts into a block; nil: tagged

	wrapDev   func(node string, d vfs.Dev) vfs.Dev                              // nil: as it is
	wrapStore func(node string, s Store) Store                                  // nil: as it is
	create    func(node string, p *blockstore.Pool) (*blockstore.Volume, error) // makes the volume; nil: an empty one
}

type testNode struct {
	journal *journal.Journal // nil: in memory
	mux     *transport.Mux
	host    *Host
	pool    *blockstore.Pool
	vol     *blockstore.Volume
	group   *Group
	done    chan struct{}

	rollbacks atomic.Int64 // calls of OnRollback
}

const testLUN = "6f1d"

func newCluster(t testing.TB, media blockstore.Media, nodes ...string) *cluster {
	t.Helper()
	return newClusterWith(t, &cluster{}, media, nodes...)
}

// newClusterWith starts the cluster c, whose limits the caller has set.
func newClusterWith(t testing.TB, c *cluster, media blockstore.Media, nodes ...string) *cluster {
	t.Helper()
	c.t, c.dir, c.media, c.nodes = t, t.TempDir(), media, map[string]*testNode{}
	if c.addrs == nil {
		c.addrs = map[string]string{}
	}
	if c.geometry == (block.Geometry{}) {
		c.geometry = block.Geometry{Capacity: block.CountOf(64 << 20), LogicalBlockBytes: 512}
	}
	addrs, err := loopback.Addresses(len(nodes))
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range nodes {
		c.addrs[n] = addrs[i]
		c.members = append(c.members, Member{ID: raft.ServerID(n + "/1"), Node: n, Witness: n == "w"})
	}
	for _, n := range nodes {
		c.start(n, true)
	}
	t.Cleanup(func() {
		for n := range c.nodes {
			c.stop(n)
		}
	})
	return c
}

func (c *cluster) member(node string) Member {
	for _, m := range c.members {
		if m.Node == node {
			return m
		}
	}
	c.t.Fatalf("no member on %s", node)
	return Member{}
}

func (c *cluster) start(node string, first bool) {
	c.t.Helper()
	if err := c.tryStart(node, first); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) journalFolder(node string) vfs.Folder {
	c.t.Helper()
	if f := c.folders[node]; f != nil {
		return f
	}
	folder, err := vfs.OpenDir(filepath.Join(c.dir, node, "journal"))
	if err != nil {
		c.t.Fatal(err)
	}
	return folder
}

// startJoining starts a node's new incarnation, which has nothing.
func (c *cluster) startJoining(node string) error {
	c.joining = node
	defer func() { c.joining = "" }()
	return c.tryStart(node, false)
}

// tryStart returns the error of opening the group; everything else is fatal.
func (c *cluster) tryStart(node string, first bool) error {
	c.t.Helper()
	t := c.t
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("SANCTUARY_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo})).With("node", node)
	}
	n := &testNode{done: make(chan struct{})}
	var err error
	n.mux, err = transport.New(transport.Config{
		Cluster: "test", Node: node, NodeID: node + "-id", Logger: log,
		Resolve: func(peer string) (string, bool) {
			if c.resolve != nil {
				return c.resolve(node, peer), true
			}
			a, ok := c.addrs[peer]
			return a, ok
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", c.addrs[node])
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(n.done)
		_ = n.mux.Serve(l)
	}()
	if n.host, err = newHost(n.mux, c.without); err != nil {
		t.Fatal(err)
	}
	self := c.member(node)
	cfg := Config{
		LUN: testLUN, Epoch: max(1, c.epochs[node]), Self: self, Members: c.members, Geometry: c.geometry,
		Logger: log, Limits: c.limits, Timing: c.timing, OnRollback: func() { n.rollbacks.Add(1) },
	}
	if first && c.joining != node {
		cfg.First, cfg.Bootstrap = true, c.members
	}
	if c.joining == node || c.media == blockstore.MediaRAM && !self.Witness {
		cfg.First = true // a new incarnation
	}
	dir := filepath.Join(c.dir, node)
	cfg.Rebuild = c.rebuild
	if c.media != blockstore.MediaRAM && !self.Witness {
		cfg.Rebuild.File = filepath.Join(dir, "rebuild.json")
	}
	if self.Witness || c.media != blockstore.MediaRAM {
		if n.journal, err = journal.Open(c.journalFolder(node), journal.Options{SegmentBytes: max(c.segment, 1<<20), CacheBytes: 1 << 20}); err != nil {
			t.Fatal(err)
		}
		if cfg.Journal, err = n.journal.Log("replica"); err != nil {
			t.Fatal(err)
		}
	} else {
		cfg.Journal = journal.NewMemory()
	}
	if c.wrap != nil {
		cfg.Journal = c.wrap(node, cfg.Journal)
	}
	if !self.Witness {
		pc := blockstore.PoolConfig{Media: c.media, CapacityBytes: c.pool}
		if c.pool == 0 {
			pc.CapacityBytes = 128 << 20
		}
		if c.media != blockstore.MediaRAM {
			pc.Dir = filepath.Join(dir, "pool")
		}
		if c.wrapDev != nil {
			if err := os.MkdirAll(pc.Dir, 0o700); err != nil {
				t.Fatal(err)
			}
			d, err := vfs.OpenFile(vfs.FileConfig{Path: filepath.Join(pc.Dir, "data"), SizeBytes: blockstore.MediumBytes(pc.CapacityBytes)})
			if err != nil {
				t.Fatal(err)
			}
			pc.Device = c.wrapDev(node, d)
		}
		if n.pool, err = blockstore.OpenPool(pc); err != nil {
			t.Fatal(err)
		}
		if n.vol, err = n.pool.Open(testLUN); err != nil {
			create := c.create
			if create == nil || c.joining == node {
				create = func(_ string, p *blockstore.Pool) (*blockstore.Volume, error) { return p.Create(testLUN, c.geometry) }
			}
			if n.vol, err = create(node, n.pool); err != nil {
				t.Fatal(err)
			}
		}
		cfg.Store = n.vol
		if c.scrub != nil {
			cfg.Scrub = c.scrub(node)
		}
		if c.wrapStore != nil {
			cfg.Store = c.wrapStore(node, n.vol)
		}
	}
	if c.recovers == node {
		if _, err := Recover(cfg.Journal, cfg.Store, Recovery{LUN: cfg.LUN, Epoch: cfg.Epoch, Self: self}); err != nil {
			t.Fatal(err)
		}
		c.recovers = ""
	}
	if n.group, err = n.host.Open(cfg); err != nil {
		n.mux.Close()
		<-n.done
		if n.pool != nil {
			n.pool.Close()
		}
		if n.journal != nil {
			n.journal.Close()
		}
		return err
	}
	c.nodes[node] = n
	return nil
}

// stop ends a node as a crash would for its peers: connections break, nothing is handed over.
func (c *cluster) stop(node string) {
	n := c.nodes[node]
	if n == nil {
		return
	}
	delete(c.nodes, node)
	n.mux.Close()
	<-n.done
	if err := n.group.Close(); err != nil {
		c.t.Errorf("close %s: %v", node, err)
	}
	if n.pool != nil {
		n.vol.Close()
		n.pool.Close()
	}
	if n.journal != nil {
		if err := n.journal.Close(); err != nil {
			c.t.Errorf("close the journal of %s: %v", node, err)
		}
	}
}

// owner waits for the node that serves the LUN.
func (c *cluster) owner() string {
	c.t.Helper()
	var last string
	deadline := time.Now().Add(45 * time.Second)
	for time.Now().Before(deadline) {
		last = ""
		for name, n := range c.nodes {
			s := n.group.Status()
			last += fmt.Sprintf("\n%s: %+v", name, s)
			if s.Serving {
				return name
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	c.t.Fatalf("nobody serves the LUN:%s", last)
	return ""
}

func (c *cluster) group(node string) *Group { return c.nodes[node].group }

// write stores one tagged block through whoever owns the LUN, trying again as an initiator would.
func (c *cluster) write(ctx context.Context, n int, version uint64) error {
	contents := c.contents
	if contents == nil {
		contents = tagged
	}
	for {
		for _, node := range c.nodes {
			err := node.group.Write(ctx, node.group.Fence(), blockRange(n), contents(n, version))
			if err == nil {
				return nil
			}
			if !retryable(err) {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (c *cluster) read(n int) (uint64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 45*time.Second)
	defer cancel()
	buf := make([]byte, block.Size)
	for {
		for _, node := range c.nodes {
			err := node.group.Read(ctx, blockRange(n), buf)
			if err == nil {
				return untag(n, buf)
			}
			if !retryable(err) {
				return 0, err
			}
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func retryable(err error) bool {
	return errors.Is(err, block.ErrNotOwner) || errors.Is(err, block.ErrUnavailable) || errors.Is(err, block.ErrUnknown) || errors.Is(err, block.ErrClosed)
}

func blockRange(n int) block.Range { return block.BytesRange(int64(n)*block.Size, block.Size) }

func tagged(n int, version uint64) []byte {
	tag := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, uint64(n)), version)
	return bytes.Repeat(tag, block.Size/len(tag))
}

func untag(n int, b []byte) (uint64, error) {
	version := binary.LittleEndian.Uint64(b[8:])
	if version == 0 {
		if !bytes.Equal(b, make([]byte, len(b))) {
			return 0, fmt.Errorf("block %d is neither empty nor whole", n)
		}
		return 0, nil
	}
	if !bytes.Equal(b, tagged(n, version)) {
		return 0, fmt.Errorf("block %d holds a mix", n)
	}
	return version, nil
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(45 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
