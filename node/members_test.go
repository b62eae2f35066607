package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sanctuary/node/api"
	"sanctuary/node/client"
	"sanctuary/target/initiator"
	"sanctuary/target/scsi"
)

// load writes to a LUN without a pause, and remembers what was acknowledged.
type load struct {
	c      *cluster
	cl     *client.Client
	lun    string
	cancel context.CancelFunc
	done   chan struct{}

	mu     sync.Mutex
	acked  map[int]int // block -> newest version that was acknowledged
	writes int
	worst  time.Duration
}

const loadBlocks = 64

func loadBlock(n, version int) []byte {
	return bytes.Repeat([]byte(fmt.Sprintf("%07d %07d\n", n, version)), 256)
}

func (c *cluster) load(cl *client.Client, lun string) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{c: c, cl: cl, lun: lun, cancel: cancel, done: make(chan struct{}), acked: map[int]int{}}
	go l.run(ctx)
	c.t.Cleanup(func() { l.stop() })
	return l
}

// open opens the LUN over every data node, whether or not it has the LUN at present: an initiator that has discovered them all.
func (l *load) open(ctx context.Context) *initiator.Disk {
	for ctx.Err() == nil {
		view, err := l.cl.LUN(ctx, l.lun)
		var paths []initiator.PathConfig
		for _, cfg := range l.c.cfgs {
			for _, address := range cfg.Listen.ISCSI {
				paths = append(paths, initiator.PathConfig{Address: address, Target: view.IQN})
			}
		}
		if err == nil {
			attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
			d, err := initiator.OpenMultipath(attempt, initiator.MultipathConfig{Paths: paths, Session: initiator.Config{InitiatorName: "iqn.2026-11.test:load"}})
			cancel()
			if err == nil {
				return d
			}
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return nil
}

func (l *load) run(ctx context.Context) {
	defer close(l.done)
	d := l.open(ctx)
	for version := 1; ctx.Err() == nil && d != nil; version++ {
		for n := range loadBlocks {
			began := time.Now()
			for ctx.Err() == nil {
				attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
				_, err := d.WriteAt(attempt, loadBlock(n, version), int64(n)*4096)
				cancel()
				if err == nil {
					l.mu.Lock()
					l.acked[n], l.writes, l.worst = version, l.writes+1, max(l.worst, time.Since(began))
					l.mu.Unlock()
					break
				}
				d.Close()
				if d = l.open(ctx); d == nil {
					return
				}
			}
		}
	}
	if d != nil {
		d.Close()
	}
}

// stop ends the load and returns what was acknowledged.
func (l *load) stop() map[int]int {
	l.cancel()
	<-l.done
	return l.acked
}

// progress waits until so many more writes have been acknowledged: the LUN is being used.
func (l *load) progress(writes int) {
	l.c.t.Helper()
	l.mu.Lock()
	from := l.writes
	l.mu.Unlock()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		l.mu.Lock()
		now := l.writes
		l.mu.Unlock()
		if now >= from+writes {
			return
		}
		if time.Now().After(deadline) {
			view, err := l.cl.LUN(context.Background(), l.lun)
			l.c.t.Fatalf("%d writes in 30 s; LUN %+v, %v", now-from, view, err)
		}
	}
}

// holds compares a LUN with what was acknowledged: every block is whole, and of that version or a later one.
func (c *cluster) holds(cl *client.Client, lun string, acked map[int]int) {
	c.t.Helper()
	view := c.lun(cl, lun, func(l api.LUN) bool { return l.Served() })
	d := openDisk(c.t, view)
	defer d.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	got := make([]byte, 4096)
	for n, version := range acked {
		if _, err := d.ReadAt(ctx, got, int64(n)*4096); err != nil {
			c.t.Fatal(err)
		}
		var block, have int
		if _, err := fmt.Sscanf(string(got[:16]), "%d %d", &block, &have); err != nil || block != n || have < version || !bytes.Equal(got, loadBlock(n, have)) {
			c.t.Fatalf("block %d holds %q; version %d was acknowledged (%v)", n, got[:16], version, err)
		}
	}
}

// replicasOf writes a LUN's replicas as "alpha beta witness*", sorted.
func replicasOf(l api.LUN) string {
	var out []string
	for _, r := range l.Replicas {
		s := r.Node
		if r.Role == api.RoleWitness {
			s += "*"
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// change changes a LUN's replicas and waits until they are as want says, or as another of those that bars divide.
func (c *cluster) change(cl *client.Client, lun string, ch api.ReplicaChange, want string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	l, err := cl.ChangeReplicas(ctx, lun, ch, 60*time.Second)
	var p *api.Problem
	for errors.As(err, &p) && p.RetryAfterSeconds > 0 && ctx.Err() == nil { // the catalog elects a leader, on a busy machine
		l, err = cl.ChangeReplicas(ctx, lun, ch, 60*time.Second)
	}
	if err != nil || !slices.Contains(strings.Split(want, "|"), replicasOf(l)) || !l.Settled() {
		c.t.Fatalf("%+v: %s, want %s; %v; %+v", ch, replicasOf(l), want, err, l)
	}
	c.lun(cl, lun, func(l api.LUN) bool { return l.Health == api.HealthHealthy })
}

// reportsGroups moves a LUN to each of its copies in turn, and demands that every node with a copy reports the port groups of them all, the owner's as
// the active one, also where a copy was there before the others came.
func (c *cluster) reportsGroups(cl *client.Client, lun string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	l := c.lun(cl, lun, func(l api.LUN) bool { return l.Health == api.HealthHealthy })
	var nodes []string
	for _, r := range l.Replicas {
		if r.Role == "data" {
			nodes = append(nodes, r.Node)
		}
	}
	for _, owner := range nodes {
		until(c.t, "the LUN is at "+owner, func() bool {
			now, err := cl.LUN(ctx, lun)
			if err == nil && now.Owner != owner {
				_, err = cl.MoveLUN(ctx, lun, owner, 5*time.Second)
			}
			return err == nil && now.Owner == owner
		})
		for _, node := range nodes {
			s, err := initiator.Dial(ctx, initiator.Config{Address: c.cfgs[node].Listen.ISCSI[0], Target: l.IQN, InitiatorName: ourName})
			if err != nil {
				c.t.Fatal(err)
			}
			until(c.t, fmt.Sprintf("%s reports %d groups, that of %s active", node, len(nodes), owner), func() bool {
				groups, err := s.ReportTargetPortGroups(ctx)
				active := 0
				for _, g := range groups {
					if g.State == scsi.ActiveOptimized {
						active++
					}
				}
				return err == nil && len(groups) == len(nodes) && active == 1
			})
			s.Close()
		}
	}
}

// empty waits until nothing of any LUN is left on a node.
func (c *cluster) empty(node string) {
	c.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		left, _ := filepath.Glob(filepath.Join(c.cfgs[node].DataDir, "luns", "*", "*"))
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%s still has %v", node, left)
		}
	}
}

// A LUN's replicas move, grow and shrink while it is written to, through all shapes; nothing that was acknowledged is lost, and nothing is left
// where it has been.
func TestReplicasChangeUnderLoad(t *testing.T) {
	defer nothingRuns(t)
	for _, media := range []string{"file", "ram"} {
		t.Run(media, func(t *testing.T) {
			c := newClusterOf(t, "alpha", "beta", "gamma", "witness")
			c.start("alpha", "beta", "gamma", "witness")
			cl := c.client()
			ctx, cancel := context.WithTimeout(context.Background(), 180*time.Second)
			defer cancel()
			if _, err := cl.CreateLUN(ctx, api.LUNSpec{Name: "vm1", SizeBytes: 64 << 20, Media: media, Open: true, Nodes: []string{"alpha", "beta"}}, 30*time.Second); err != nil {
				t.Fatal(err)
			}
			c.lun(cl, "vm1", func(l api.LUN) bool { return l.Health == api.HealthHealthy })
			l := c.load(cl, "vm1")
			l.progress(200)
			for _, step := range []struct {
				change api.ReplicaChange
				want   string
			}{
				{api.ReplicaChange{Add: []string{"gamma"}, Remove: []string{"beta"}}, "alpha gamma witness*"}, // move
				{api.ReplicaChange{Add: []string{"beta"}}, "alpha beta gamma"},                                // two and a witness to three
				{api.ReplicaChange{Remove: []string{"alpha"}}, "beta gamma witness*"},                         // three to two and a witness; alpha owned it
				{api.ReplicaChange{Remove: []string{"beta"}}, "gamma"},
				// Where gossip says there is more room: one of the two may not have told yet that what it had is gone.
				{api.ReplicaChange{Add: []string{""}, Witness: "witness"}, "alpha gamma witness*|beta gamma witness*"},
			} {
				began := time.Now()
				c.change(cl, "vm1", step.change, step.want)
				t.Logf("%+v took %v", step.change, time.Since(began).Round(time.Millisecond))
				c.reportsGroups(cl, "vm1")
				l.progress(100)
			}
			acked := l.stop()
			t.Logf("%d writes, the longest took %v", l.writes, l.worst)
			c.holds(cl, "vm1", acked)
			after := replicasOf(c.lun(cl, "vm1", func(api.LUN) bool { return true }))
			for _, node := range []string{"alpha", "beta"} {
				if !strings.Contains(after, node) {
					c.empty(node)
				}
			}
		})
	}
}

// Three data nodes: the one that only votes gets a copy, and the other way round; and a copy goes to another pool of its node. All that under load.
func TestReplicaTakesTheWitnesssPlace(t *testing.T) {
	defer nothingRuns(t)
	for _, media := range []string{"file", "ram"} {
		t.Run(media, func(t *testing.T) {
			c := newClusterOf(t, "alpha", "beta", "gamma")
			c.start("alpha", "beta", "gamma")
			cl := c.client()
			ctx, cancel := context.WithTimeout(context.Background(), 180*time.Second)
			defer cancel()
			if _, err := cl.CreateLUN(ctx, api.LUNSpec{Name: "vm1", SizeBytes: 64 << 20, Media: media, Open: true, Nodes: []string{"alpha", "beta"}}, 30*time.Second); err != nil {
				t.Fatal(err)
			}
			c.lun(cl, "vm1", func(l api.LUN) bool { return l.Health == api.HealthHealthy })
			l := c.load(cl, "vm1")
			l.progress(200)
			c.change(cl, "vm1", api.ReplicaChange{Add: []string{"gamma"}}, "alpha beta gamma")
			l.progress(100)
			c.change(cl, "vm1", api.ReplicaChange{Remove: []string{"beta"}}, "alpha beta* gamma")
			l.progress(100)
			if media == "file" {
				spec := api.PoolSpec{Name: "second", Media: "file", Path: filepath.Join(t.TempDir(), "pool"), CapacityBytes: 256 << 20, Class: "ssd", Sparse: true}
				for _, node := range []string{"gamma", "alpha"} {
					spec.Path = filepath.Join(t.TempDir(), "pool")
					if _, err := cl.AddPool(ctx, node, spec); err != nil {
						t.Fatal(err)
					}
					owner := c.lun(cl, "vm1", api.LUN.Served).Owner
					c.change(cl, "vm1", api.ReplicaChange{Add: []string{node}, Remove: []string{node}, Pool: "second"}, "alpha beta* gamma")
					t.Logf("the copy on %s is in another pool; the owner was %s", node, owner)
					p, err := cl.Pool(ctx, node, "second")
					if err != nil || len(p.Replicas) != 1 {
						t.Fatalf("%+v, %v", p, err)
					}
					l.progress(100)
				}
			}
			acked := l.stop()
			t.Logf("%d writes, the longest took %v", l.writes, l.worst)
			c.holds(cl, "vm1", acked)
		})
	}
}

// A node is drained while its LUN is used, stopped and removed; a machine of its name with an empty disk may come after it. So may one whose node has died.
func TestNodeIsDrainedAndRemoved(t *testing.T) {
	t.Cleanup(func() { nothingRuns(t) }) // when the nodes have stopped
	c := newClusterOf(t, "alpha", "beta", "gamma", "witness")
	c.start("alpha", "beta", "gamma", "witness")
	cl := c.client()
	ctx, cancel := context.WithTimeout(context.Background(), 120*time.Second)
	defer cancel()
	if _, err := cl.CreateLUN(ctx, api.LUNSpec{Name: "vm1", SizeBytes: 64 << 20, Open: true, Nodes: []string{"beta", "alpha"}}, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	c.lun(cl, "vm1", func(l api.LUN) bool { return l.Health == api.HealthHealthy })
	l := c.load(cl, "vm1")
	l.progress(100)
	var p *api.Problem
	if err := cl.RemoveNode(ctx, "beta"); !errors.As(err, &p) || p.Status != 409 {
		t.Fatalf("a node that runs was removed: %v", err)
	}
	d, err := cl.DrainNode(ctx, "beta")
	if err != nil || len(d.LUNs) != 1 || d.Kept() != 0 {
		t.Fatalf("%+v, %v", d, err)
	}
	again, err := cl.DrainNode(ctx, "beta") // to see how far it is
	if err != nil {
		t.Fatal(err)
	}
	if now, err := cl.LUN(ctx, "vm1"); err != nil || strings.Contains(replicasOf(now), "beta") && len(again.LUNs) != 1 {
		t.Fatalf("replicas on %s, and what node beta holds is said to be %+v, %v", replicasOf(now), again, err)
	}
	moved := c.lun(cl, "vm1", func(l api.LUN) bool { return l.Settled() && l.Health == api.HealthHealthy })
	if replicasOf(moved) != "alpha gamma witness*" {
		t.Fatalf("replicas on %s", replicasOf(moved))
	}
	l.progress(100)
	c.empty("beta")
	c.stop("beta")
	cl = c.clientOf("alpha", "gamma", "witness")
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(100 * time.Millisecond) { // gossip has to find out that it is gone
		if err = cl.RemoveNode(ctx, "beta"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	s, err := cl.Status(ctx)
	if err != nil || len(s.Nodes) != 3 || s.Catalog.Voters != 3 {
		t.Fatalf("%+v, %v", s, err)
	}
	// Gamma dies for good: what it had is made anew, from the other copy, where there is a place.
	c.startAnew("beta", "alpha", "gamma")
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if s, err = cl.Status(ctx); err == nil && len(s.Nodes) == 4 && s.Catalog.Voters == 4 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the new beta does not come up: %+v, %v", s, err)
		}
	}
	c.stop("gamma")
	cl = c.clientOf("alpha", "beta", "witness")
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if d, err = cl.DrainNode(ctx, "gamma"); err == nil && d.Kept() == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v, %v", d, err)
		}
	}
	c.lun(cl, "vm1", func(l api.LUN) bool {
		return l.Settled() && l.Health == api.HealthHealthy && replicasOf(l) == "alpha beta witness*"
	})
	acked := l.stop()
	t.Logf("%d writes, the longest took %v", l.writes, l.worst)
	c.holds(cl, "vm1", acked)
}
