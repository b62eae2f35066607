package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sanctuary/node/api"
	"sanctuary/node/client"
	"sanctuary/node/config"
	"sanctuary/replication/transport/loopback"
	"sanctuary/target/initiator"
)

// cluster is nodes run in this process, on loopback, as cmd/sanctuary runs them.
type cluster struct {
	t    *testing.T
	cfgs map[string]config.Config
	runs map[string]*run
	now  func() time.Time // the nodes' wall clock
}

type run struct {
	stop context.CancelFunc
	done chan error
}

func newCluster(t *testing.T) *cluster { return newClusterOf(t, "alpha", "beta", "witness") }

// nothingRuns fails the test if a goroutine is left when the nodes have stopped. A probe of gossip's ends by itself, after seconds if its peer was gone already.
func nothingRuns(t *testing.T) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		if err = goleak.Find(); err == nil {
			return
		}
	}
	t.Error(err)
}

// newClusterOf is a cluster of nodes with these names. The one called witness is one.
func newClusterOf(t *testing.T, names ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, cfgs: map[string]config.Config{}, runs: map[string]*run{}, now: time.Now}
	var members []config.Member
	for _, name := range names {
		cfg := config.Default()
		if name == "witness" {
			cfg = config.DefaultWitness()
		}
		p, err := loopback.Addresses(4)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Cluster, cfg.Node, cfg.DataDir = "test", name, filepath.Join(t.TempDir(), name)
		cfg.Listen.Peer, cfg.Listen.Gossip, cfg.Listen.API = p[0], p[1], p[2]
		if cfg.Kind == config.KindData {
			cfg.Listen.ISCSI = []string{p[3]}
			cfg.Pools.File.Capacity, cfg.Pools.RAM.Capacity = 256<<20, 256<<20
		}
		members = append(members, config.Member{Name: name, Kind: cfg.Kind, Peer: p[0], Gossip: p[1]})
		c.cfgs[name] = cfg
	}
	for name, cfg := range c.cfgs {
		cfg.Members = members
		c.cfgs[name] = cfg.Complete()
	}
	t.Cleanup(func() {
		for name := range c.runs {
			c.stop(name)
		}
	})
	return c
}

func (c *cluster) start(names ...string) {
	c.t.Helper()
	for _, name := range names {
		cfg := c.cfgs[name]
		if err := cfg.Validate(); err != nil {
			c.t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		r := &run{stop: cancel, done: make(chan error, 1)}
		go func() { r.done <- runWith(ctx, cfg, "test", slog.New(slog.DiscardHandler), c.now) }()
		c.runs[name] = r
	}
}

// startAnew starts another machine under a node's name, which has nothing and joins the cluster through the others.
func (c *cluster) startAnew(name string, through ...string) {
	c.t.Helper()
	cfg := c.cfgs[name]
	cfg.DataDir, cfg.Members, cfg.Pools.File.Dir = filepath.Join(c.t.TempDir(), name), nil, ""
	for _, other := range through {
		cfg.Join.API = append(cfg.Join.API, c.cfgs[other].Listen.API)
	}
	c.cfgs[name] = cfg.Complete()
	c.start(name)
}

func (c *cluster) stop(name string) {
	c.t.Helper()
	r := c.runs[name]
	delete(c.runs, name)
	r.stop()
	select {
	case err := <-r.done:
		if err != nil {
			c.t.Errorf("%s stopped: %v", name, err)
		}
	case <-time.After(20 * time.Second):
		c.t.Fatalf("%s does not stop", name)
	}
}

func (c *cluster) client() *client.Client {
	c.t.Helper()
	var addresses []string
	for name := range c.runs {
		addresses = append(addresses, c.cfgs[name].Listen.API)
	}
	cl, err := client.New(client.Config{Addresses: addresses, RetryFor: 2 * time.Second})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(cl.Close)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		nodes, err := cl.Nodes(context.Background())
		if err == nil && len(nodes.Nodes) == len(c.cfgs) && cl.Ready(context.Background()) == nil {
			return cl
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("the cluster does not come up: %+v, %v", nodes, err)
		}
	}
}

// clientOf is a client of some nodes, whether or not all others are up.
func (c *cluster) clientOf(nodes ...string) *client.Client {
	c.t.Helper()
	var addresses []string
	for _, name := range nodes {
		addresses = append(addresses, c.cfgs[name].Listen.API)
	}
	cl, err := client.New(client.Config{Addresses: addresses, RetryFor: 2 * time.Second})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(cl.Close)
	return cl
}

func (c *cluster) lun(cl *client.Client, name string, ok func(api.LUN) bool) api.LUN {
	c.t.Helper()
	var l api.LUN
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if l, err = cl.LUN(context.Background(), name); err == nil && ok(l) {
			return l
		}
	}
	c.t.Fatalf("LUN %s: %+v, %v", name, l, err)
	return l
}

func openDisk(t *testing.T, l api.LUN) *initiator.Disk {
	t.Helper()
	var paths []initiator.PathConfig
	for _, p := range l.Portals {
		paths = append(paths, initiator.PathConfig{Address: p.Address, Target: l.IQN})
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	d, err := initiator.OpenMultipath(ctx, initiator.MultipathConfig{Paths: paths, Session: initiator.Config{InitiatorName: "iqn.2026-11.test:node"}})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// The whole of it: a LUN is made through one node, used through two, survives its owner and a restart of everything, and is
// gone when it is deleted. Nothing is left running.
func TestLUNFromEndToEnd(t *testing.T) {
	defer nothingRuns(t)
	for _, media := range []string{"file", "ram"} {
		t.Run(media, func(t *testing.T) {
			c := newCluster(t)
			c.start("alpha", "beta", "witness")
			cl := c.client()
			ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
			defer cancel()
			if _, err := cl.CreateLUN(ctx, api.LUNSpec{Name: "vm1", SizeBytes: 64 << 20, Media: media, Open: true}, 30*time.Second); err != nil {
				t.Fatal(err)
			}
			if _, err := cl.CreateLUN(ctx, api.LUNSpec{Name: "vm1", SizeBytes: 64 << 20, Media: media, Open: true}, 0); err == nil {
				t.Fatal("a second LUN of the same name was made")
			}
			l := c.lun(cl, "vm1", func(l api.LUN) bool { return l.Health == api.HealthHealthy && len(l.Portals) == 2 })
			d := openDisk(t, l)
			block := func(n int) []byte { return bytes.Repeat([]byte(fmt.Sprintf("%015d\n", n)), 256) }
			write := func(n, version int) {
				t.Helper()
				if _, err := d.WriteAt(ctx, block(version*1000+n), int64(n)*4096); err != nil {
					t.Fatal(err)
				}
			}
			check := func(n, version int) {
				t.Helper()
				got := make([]byte, 4096)
				if _, err := d.ReadAt(ctx, got, int64(n)*4096); err != nil || !bytes.Equal(got, block(version*1000+n)) {
					t.Fatalf("block %d: %q, %v", n, got[:16], err)
				}
			}
			for n := range 50 {
				write(n, 1)
			}
			first := l.Owner
			c.stop(first)
			for n := range 25 {
				write(n, 2)
			}
			other := map[string]string{"alpha": "beta", "beta": "alpha"}[first]
			c.lun(cl, "vm1", func(l api.LUN) bool { return l.Owner == other && l.Health == api.HealthDegraded })
			c.start(first)
			c.lun(cl, "vm1", func(l api.LUN) bool { return l.Health == api.HealthHealthy })
			if _, err := cl.MoveLUN(ctx, "vm1", first, 20*time.Second); err != nil {
				t.Fatal(err)
			}
			for n := range 50 {
				check(n, map[bool]int{true: 2, false: 1}[n < 25])
			}
			d.Close()

			for _, name := range []string{"alpha", "beta", "witness"} {
				c.stop(name)
			}
			c.start("witness", "beta", "alpha")
			cl = c.client()
			if media == "ram" {
				c.lun(cl, "vm1", func(l api.LUN) bool { return l.Health == api.HealthLost })
			} else {
				l = c.lun(cl, "vm1", func(l api.LUN) bool { return l.Health == api.HealthHealthy && len(l.Portals) == 2 })
				d = openDisk(t, l)
				for n := range 50 {
					check(n, map[bool]int{true: 2, false: 1}[n < 25])
				}
				d.Close()
			}
			if err := cl.DeleteLUN(ctx, l.ID, true); err != nil {
				t.Fatal(err)
			}
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
				left, _ := filepath.Glob(filepath.Join(c.cfgs["alpha"].DataDir, "luns", "*"))
				if len(left) == 0 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("the deleted LUN's storage is still there: %v", left)
				}
			}
		})
	}
}

func TestNodeRefusesWhatIsNotItsOwn(t *testing.T) {
	c := newCluster(t)
	c.start("alpha")
	cfg := c.cfgs["alpha"]
	deadline := time.Now().Add(10 * time.Second)
	for {
		if _, err := os.Stat(filepath.Join(cfg.DataDir, "node.json")); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no identity was written")
		}
		time.Sleep(5 * time.Millisecond)
	}
	runErr := func(cfg config.Config) error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		err := Run(ctx, cfg, "test", slog.New(slog.DiscardHandler))
		if err == nil {
			return errors.New("it ran")
		}
		return err
	}
	want := func(err error, text string) {
		t.Helper()
		if !strings.Contains(err.Error(), text) {
			t.Errorf("got %q, want it to say %q", err, text)
		}
	}
	want(runErr(cfg), "in use by another process")
	c.stop("alpha")
	renamed := cfg
	renamed.Node = "beta"
	want(runErr(renamed), `belongs to node "alpha"`)
	if err := os.RemoveAll(filepath.Join(cfg.DataDir, "catalog")); err != nil {
		t.Fatal(err)
	}
	want(runErr(cfg), "has lost its catalog")
	if err := os.WriteFile(filepath.Join(cfg.DataDir, "node.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	want(runErr(cfg), "is damaged")
}
