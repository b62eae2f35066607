package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/node/api"
	"sanctuary/node/catalog"
	"sanctuary/node/client"
	"sanctuary/replication"
	"sanctuary/replication/command"
)

// recovery waits until a LUN may be recovered by force, and returns what that would mean.
func (c *cluster) recovery(cl *client.Client, lun string) api.Recovery {
	c.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		r, err := cl.Recovery(c.t.Context(), lun, "")
		if err == nil && r.Refused == "" {
			return r
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("it stays refused: %+v, %v", r, err)
		}
	}
}

// recover recovers a LUN by force, again where that is not granted or not done in time, if it means what is expected.
func (c *cluster) recover(cl *client.Client, lun string, expected func(r api.Recovery) bool) {
	c.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; {
		r := c.recovery(cl, lun)
		if !expected(r) {
			c.t.Fatalf("what it would mean: %+v", r)
		}
		_, err := cl.Recover(c.t.Context(), lun, api.RecoverSpec{AcceptLoss: true, History: r.History}, 20*time.Second)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%+v, %v", r, err)
		}
	}
}

// A LUN whose owner is gone, with a witness that has seen more than the copy that is left: it cannot help itself, an operator gets it back
// with what the copy holds, and the old owner, when it returns, becomes a healthy copy of the new history.
func TestRecoveryByForce(t *testing.T) {
	t.Cleanup(func() { nothingRuns(t) }) // when the nodes have stopped
	c := newClusterOf(t, "alpha", "beta", "gamma", "witness")
	c.start("alpha", "beta", "gamma", "witness")
	cl := c.client()
	ctx, cancel := context.WithTimeout(context.Background(), 180*time.Second)
	defer cancel()
	if _, err := cl.CreateLUN(ctx, api.LUNSpec{Name: "vm1", SizeBytes: 64 << 20, Open: true, Nodes: []string{"alpha", "beta"}}, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	l := c.lun(cl, "vm1", func(l api.LUN) bool { return l.Health == api.HealthHealthy && l.Owner == "alpha" })
	block := func(text string) []byte { return bytes.Repeat([]byte(fmt.Sprintf("%-16s", text)), 256) }
	write := func(n int, text string) {
		t.Helper()
		d := openDisk(t, c.lun(cl, "vm1", api.LUN.Served))
		defer d.Close()
		if _, err := d.WriteAt(ctx, block(text), int64(n)*4096); err != nil {
			t.Fatal(err)
		}
	}
	check := func(n int, text string) {
		t.Helper()
		d := openDisk(t, c.lun(cl, "vm1", api.LUN.Served))
		defer d.Close()
		got := make([]byte, 4096)
		if _, err := d.ReadAt(ctx, got, int64(n)*4096); err != nil || !bytes.Equal(got, block(text)) {
			t.Fatalf("block %d: %q, want %q (%v)", n, got[:16], text, err)
		}
	}
	refused := func(why string) {
		t.Helper()
		r, err := cl.Recovery(ctx, "vm1", "")
		if err != nil || !strings.Contains(r.Refused, why) {
			t.Fatalf("%+v, %v: want it refused, since %q", r, err, why)
		}
		var p *api.Problem
		if _, err := cl.Recover(ctx, "vm1", api.RecoverSpec{AcceptLoss: true, History: r.History}, 0); !errors.As(err, &p) || p.Status != 409 {
			t.Fatalf("it was recovered although %q: %v", why, err)
		}
	}
	write(1, "kept")
	refused("it is served, by node alpha")
	c.stop("beta")
	c.lun(cl, "vm1", func(l api.LUN) bool { return l.Health == api.HealthDegraded })
	for n := range 5 {
		write(n, "lost")
	}
	c.stop("alpha")
	c.start("beta")
	cl = c.clientOf("beta", "gamma", "witness")

	r := c.recovery(cl, "vm1")
	if r.Node != "beta" || r.Done || r.History != 1 || r.Lost.Entries < 5 || r.Lost.BytesAtMost < 5*4096 || !strings.HasPrefix(r.Lost.ProvenBy, "witness/") || r.Lost.Seconds <= 0 {
		t.Errorf("what would be lost: %+v", r)
	}
	for _, x := range r.Replicas {
		if x.Node == "alpha" && (x.Reached || x.LastHeard == nil && x.NotHeardSince == nil) {
			t.Errorf("what is said of the one that is gone: %+v", x)
		}
	}
	var p *api.Problem
	for _, spec := range []api.RecoverSpec{{History: 1}, {History: 2, AcceptLoss: true}, {History: 1, AcceptLoss: true, Node: "gamma"}} {
		if _, err := cl.Recover(ctx, "vm1", spec, 0); !errors.As(err, &p) || p.Status/100 != 4 {
			t.Fatalf("%+v was granted: %v", spec, err)
		}
	}
	spec := api.RecoverSpec{AcceptLoss: true, History: 1, By: "kk", Why: "alpha burnt down"}
	if r, err := cl.Recover(ctx, "vm1", spec, 30*time.Second); err != nil || !r.Done || r.History != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	l = c.lun(cl, "vm1", func(l api.LUN) bool { return l.Served() && l.Owner == "beta" })
	if len(l.Recoveries) != 1 || l.History != 2 || l.Recoveries[0].By != "kk" || l.Recoveries[0].Why != "alpha burnt down" || !strings.Contains(l.Recoveries[0].Lost, "log entries") {
		t.Errorf("the record: %+v", l.Recoveries)
	}
	if r, err := cl.Recover(ctx, "vm1", spec, 0); err != nil || !r.Done {
		t.Errorf("the same request again: %+v, %v", r, err)
	}
	check(1, "kept")
	write(2, "new")

	c.start("alpha")
	l = c.lun(cl, "vm1", func(l api.LUN) bool { return l.Health == api.HealthHealthy && l.Settled() })
	if replicasOf(l) != "alpha beta witness*" || l.History != 2 {
		t.Errorf("%+v", l)
	}
	if _, err := cl.MoveLUN(ctx, "vm1", "alpha", 20*time.Second); err != nil {
		t.Fatal(err)
	}
	check(1, "kept")
	check(2, "new")
	check(0, strings.Repeat("\x00", 16))
	for _, n := range []string{"alpha", "beta", "witness"} {
		c.stop(n)
	}
	c.start("witness", "beta", "alpha") // and it is so after a restart
	c.lun(cl, "vm1", func(l api.LUN) bool { return l.Health == api.HealthHealthy && l.History == 2 })
	check(2, "new")
}

func TestAssessment(t *testing.T) {
	pos := func(term, index uint64) replication.Position { return replication.Position{Term: term, Index: index} }
	voters := []string{"a/1", "b/2", "w/3"}
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	copyAt := func(p replication.Position, change ...func(*replication.Survey)) *replication.Survey {
		s := &replication.Survey{Epoch: 1, Voters: voters, Last: p, LastAt: at.Add(time.Duration(p.Index) * time.Second), Runs: []replication.Position{pos(p.Term, 1)}}
		for _, f := range change {
			f(s)
		}
		return s
	}
	damaged := func(s *replication.Survey) { s.Damaged = 1 }
	damagedAt := func(at ...uint64) func(*replication.Survey) {
		return func(s *replication.Survey) {
			s.Damaged, s.DamagedAt, s.Sound = len(at), at, replication.Position{Term: s.Last.Term, Index: at[0] - 1}
		}
	}
	forgot := func(reach uint64) func(*replication.Survey) { return func(s *replication.Survey) { s.Reach = reach } }
	volume := func(at uint64) func(*replication.Survey) {
		return func(s *replication.Survey) { s.Sound = replication.Position{Term: s.Last.Term, Index: at} }
	}
	empty := func(s *replication.Survey) { s.Empty, s.Runs = true, []replication.Position{s.Last} }
	of5 := func(s *replication.Survey) { s.Voters = append(slices.Clone(voters), "x/4", "y/5") }
	gone := errors.New("unreachable")
	for name, test := range map[string]struct {
		a, b, w *replication.Survey // nil: its node does not answer
		node    string
		change  func(found []surveyed)
		from    string
		refused string
		entries uint64
		unknown int
	}{
		"only copy, all others silent":   {b: copyAt(pos(2, 9)), from: "b/2", unknown: 2},
		"witness ahead":                  {b: copyAt(pos(2, 9)), w: copyAt(pos(2, 14)), from: "b/2", entries: 5, unknown: 1},
		"witness behind: it would elect": {b: copyAt(pos(2, 9)), w: copyAt(pos(2, 9)), from: "b/2", refused: "help itself", unknown: 1},
		"both copies: they would elect":  {a: copyAt(pos(2, 9)), b: copyAt(pos(2, 8)), from: "a/1", refused: "help itself", unknown: 1},
		"the better copy is broken": {
			a: copyAt(pos(2, 12), func(s *replication.Survey) { s.Failed = "EIO" }), b: copyAt(pos(2, 9)), w: copyAt(pos(2, 14)), from: "b/2", entries: 5,
		},
		"a worse copy is named": {
			a: copyAt(pos(2, 12), of5), b: copyAt(pos(2, 9), of5), w: copyAt(pos(2, 14), of5), node: "b", from: "b/2", entries: 5, refused: "on node a holds more",
		},
		"damaged, and nobody has what it lacks":                {b: copyAt(pos(2, 9), damaged), w: copyAt(pos(2, 9)), refused: "no copy", unknown: 1},
		"damaged, and named":                                   {b: copyAt(pos(2, 9), damaged), node: "b", refused: "log are damaged", unknown: 2},
		"damaged, beside a whole copy":                         {a: copyAt(pos(2, 9), damaged), b: copyAt(pos(2, 9)), from: "b/2", refused: "help itself", unknown: 1},
		"damaged, beside one that ends before":                 {a: copyAt(pos(2, 12), damaged), b: copyAt(pos(2, 9)), from: "b/2", entries: 3, unknown: 1},
		"cut off, nobody has what it lacks":                    {b: copyAt(pos(2, 9), damagedAt(7)), w: copyAt(pos(2, 9)), from: "b/2", entries: 3, unknown: 1},
		"cut off, the witness has seen more":                   {b: copyAt(pos(2, 9), damagedAt(7)), w: copyAt(pos(2, 12)), from: "b/2", entries: 6, unknown: 1},
		"cut off, the volume has what is damaged":              {b: copyAt(pos(2, 9), damagedAt(7), volume(9)), from: "b/2", unknown: 2},
		"cut off, beside a whole copy":                         {a: copyAt(pos(2, 9), damagedAt(7)), b: copyAt(pos(2, 9)), from: "b/2", refused: "help itself", unknown: 1},
		"cut off, beside one that has it":                      {a: copyAt(pos(2, 9), damagedAt(7)), b: copyAt(pos(2, 8)), node: "a", refused: "help itself", unknown: 1},
		"cut off, beside one that has it and does not vote":    {a: copyAt(pos(2, 9), damagedAt(7)), b: copyAt(pos(2, 8), forgot(12)), node: "a", refused: "log are damaged", unknown: 1},
		"cut off, beside one whose log is empty behind it":     {a: copyAt(pos(2, 9), damagedAt(9)), b: copyAt(pos(2, 9), empty), from: "b/2", unknown: 1},
		"cut off, beside one that ends before":                 {a: copyAt(pos(2, 9), damagedAt(9)), b: copyAt(pos(2, 7)), from: "a/1", entries: 1, unknown: 1},
		"cut off, beside one that holds more":                  {a: copyAt(pos(2, 9), damagedAt(4, 8)), b: copyAt(pos(2, 7)), from: "b/2", entries: 2, unknown: 1},
		"cut off, beside one that holds as much":               {a: copyAt(pos(2, 9), damagedAt(8)), b: copyAt(pos(2, 7)), from: "b/2", entries: 2, unknown: 1},
		"both damaged, each has what the other is":             {a: copyAt(pos(2, 9), damagedAt(7)), b: copyAt(pos(2, 9), damagedAt(4)), refused: "help itself", unknown: 1},
		"both damaged in one place":                            {a: copyAt(pos(2, 9), damagedAt(4, 7)), b: copyAt(pos(2, 9), damagedAt(7)), from: "b/2", entries: 3, unknown: 1},
		"its log given up, and alone":                          {b: copyAt(pos(2, 9), forgot(12)), from: "b/2", entries: 3, unknown: 2},
		"its log given up, its volume has more":                {b: copyAt(pos(2, 9), forgot(12), volume(11)), from: "b/2", entries: 1, unknown: 2},
		"its log given up, it elects nobody":                   {b: copyAt(pos(2, 9), forgot(12)), w: copyAt(pos(2, 9)), from: "b/2", entries: 3, unknown: 1},
		"its log given up, it votes for nobody":                {a: copyAt(pos(2, 9)), b: copyAt(pos(2, 5), forgot(12)), from: "a/1", entries: 3, unknown: 1},
		"its log given up, and another can do without it":      {a: copyAt(pos(2, 9)), b: copyAt(pos(2, 5), forgot(12)), w: copyAt(pos(2, 9)), from: "a/1", entries: 3, refused: "help itself"},
		"its volume has what the witness has":                  {b: copyAt(pos(2, 9), forgot(11), volume(11)), w: copyAt(pos(2, 14)), from: "b/2", entries: 3, unknown: 1},
		"its volume has more than the log of another copy has": {a: copyAt(pos(2, 10)), b: copyAt(pos(2, 5), forgot(12), volume(12)), node: "a", from: "a/1", entries: 2, refused: "on node b holds more", unknown: 1},
		"being rebuilt":                                        {b: copyAt(pos(2, 9), func(s *replication.Survey) { s.Inconsistent = true }), refused: "no copy", unknown: 2},
		"being rebuilt, and named": {
			b: copyAt(pos(2, 9), func(s *replication.Survey) { s.Inconsistent = true }), node: "b", refused: "in the middle of being rebuilt", unknown: 2,
		},
		"served":             {b: copyAt(pos(2, 9), func(s *replication.Survey) { s.Serving = true }), from: "b/2", refused: "served, by node b", unknown: 2},
		"an older history":   {a: copyAt(pos(9, 99), func(s *replication.Survey) { s.Epoch = 0 }), b: copyAt(pos(2, 9)), from: "b/2", unknown: 1},
		"nothing there":      {refused: "no copy", unknown: 3},
		"no such node":       {b: copyAt(pos(2, 9)), node: "c", refused: "node c has no replica", unknown: 2},
		"the witness, named": {b: copyAt(pos(2, 9)), w: copyAt(pos(2, 12)), node: "w", refused: "holds no data", unknown: 1},
		"alive and silent": {b: copyAt(pos(2, 9)), from: "b/2", refused: "node a is alive", unknown: 2, change: func(found []surveyed) {
			found[0].alive = true
		}},
		"still starting": {b: copyAt(pos(2, 9)), from: "b/2", refused: "still being started", unknown: 2, change: func(found []surveyed) {
			found[0].err, found[0].Stored = nil, true
		}},
		"will not start": {b: copyAt(pos(2, 9)), from: "b/2", unknown: 2, change: func(found []surveyed) {
			found[0].err, found[0].Stored, found[0].Why = nil, true, "the pool is failed"
		}},
		"parted long ago": {
			b: copyAt(pos(2, 9), func(s *replication.Survey) { s.Runs = []replication.Position{pos(2, 5), pos(1, 1)} }),
			w: copyAt(pos(3, 14), func(s *replication.Survey) { s.Runs = []replication.Position{pos(3, 7), pos(2, 5), pos(1, 1)} }), from: "b/2", entries: 8, unknown: 1,
		},
	} {
		l := catalog.LUN{Name: "vm1", Epoch: 1, Replicas: []catalog.Replica{
			{ID: "a/1", Node: "a", State: catalog.ReplicaActive}, {ID: "b/2", Node: "b", State: catalog.ReplicaActive}, {ID: "w/3", Node: "w", Witness: true, State: catalog.ReplicaActive},
		}}
		var found []surveyed
		for i, s := range []*replication.Survey{test.a, test.b, test.w} {
			f := surveyed{Replica: l.Replicas[i]}
			if f.Survey = s; s == nil {
				f.err = gone
			} else {
				s.Replica, s.Witness = raft.ServerID(f.ID), f.Witness
			}
			found = append(found, f)
		}
		if test.change != nil {
			test.change(found)
		}
		r := assess(l, found, test.node)
		if r.From != test.from || (r.Refused == "") != (test.refused == "") || !strings.Contains(r.Refused, test.refused) {
			t.Errorf("%s: from %q, refused %q", name, r.From, r.Refused)
		}
		if r.From != "" && (r.Lost.Entries != test.entries || len(r.Lost.Unknown) != test.unknown) {
			t.Errorf("%s: %+v", name, r.Lost)
		}
		if name == "cut off, nobody has what it lacks" && (r.Lost.LostFrom != 7 || r.Lost.LostTo != 9 || r.Lost.ProvenBy != "w/3" || !strings.Contains(r.Lost.String(), "entries 7 to 9 are lost")) {
			t.Errorf("%s: %+v, %s", name, r.Lost, r.Lost)
		}
		if test.entries == 5 && (r.Lost.Seconds != 5 || r.Lost.BytesAtMost != 5*command.MaxEntryBytes) {
			t.Errorf("%s: %+v", name, r.Lost)
		}
	}
}

// Three nodes, of which two burn down: the catalog has no majority any more, nor has the LUN. Both go on from the node that is left, and two new
// machines of the old names make it a healthy cluster again.
func TestTwoOfThreeNodesAreLost(t *testing.T) {
	t.Cleanup(func() { nothingRuns(t) }) // when the nodes have stopped
	c := newCluster(t)
	c.start("alpha", "beta", "witness")
	cl := c.client()
	ctx, cancel := context.WithTimeout(context.Background(), 180*time.Second)
	defer cancel()
	if _, err := cl.CreateLUN(ctx, api.LUNSpec{Name: "vm1", SizeBytes: 64 << 20, Open: true}, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	c.lun(cl, "vm1", func(l api.LUN) bool { return l.Health == api.HealthHealthy })
	text := bytes.Repeat([]byte("kept through it "), 256)
	d := openDisk(t, c.lun(cl, "vm1", api.LUN.Served))
	if _, err := d.WriteAt(ctx, text, 4096); err != nil {
		t.Fatal(err)
	}
	d.Close()
	beta := c.cfgs["beta"]
	if _, _, err := Rescue(beta.DataDir); err == nil {
		t.Fatal("the catalog of a node that runs was rescued")
	}
	for _, n := range []string{"alpha", "witness", "beta"} {
		c.stop(n)
	}
	if name, others, err := Rescue(beta.DataDir); err != nil || name != "beta" || len(others) != 2 {
		t.Fatalf("%s, %v, %v", name, others, err)
	}
	c.start("beta")
	cl = c.clientOf("beta")
	retry := func(what string, try func() error) {
		t.Helper()
		for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(100 * time.Millisecond) {
			err := try()
			if err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %v", what, err)
			}
		}
	}
	c.recover(cl, "vm1", func(api.Recovery) bool { return true })
	c.lun(cl, "vm1", api.LUN.Served)
	retry("one copy for the time being", func() error {
		l, err := cl.ChangeReplicas(ctx, "vm1", api.ReplicaChange{Remove: []string{"alpha"}}, 10*time.Second)
		if err == nil && (!l.Settled() || replicasOf(l) != "beta") {
			err = fmt.Errorf("%+v", l.Replicas)
		}
		return err
	})
	for _, n := range []string{"alpha", "witness"} {
		retry("remove "+n, func() error { return cl.RemoveNode(ctx, n) })
		c.startAnew(n, "beta")
	}
	retry("three nodes", func() error {
		s, err := cl.Status(ctx)
		if err == nil && (len(s.Nodes) != 3 || s.Catalog.Voters != 3) {
			err = fmt.Errorf("%d nodes, %d voters", len(s.Nodes), s.Catalog.Voters)
		}
		return err
	})
	retry("two copies and a witness", func() error {
		l, err := cl.ChangeReplicas(ctx, "vm1", api.ReplicaChange{Add: []string{"alpha"}}, 10*time.Second)
		if err == nil && (!l.Settled() || replicasOf(l) != "alpha beta witness*") {
			err = fmt.Errorf("%+v", l.Replicas)
		}
		return err
	})
	c.stop("beta") // what there is now stands on its own
	cl = c.clientOf("alpha", "witness")
	d = openDisk(t, c.lun(cl, "vm1", func(l api.LUN) bool { return l.Served() && l.Owner == "alpha" }))
	defer d.Close()
	got := make([]byte, len(text))
	if _, err := d.ReadAt(ctx, got, 4096); err != nil || !bytes.Equal(got, text) {
		t.Fatalf("%q, %v", got[:16], err)
	}
}

// A LUN in RAM of which one copy is left, with nobody who proves that it lacks anything: nothing is lost.
func TestRecoveryByForceInMemory(t *testing.T) {
	t.Cleanup(func() { nothingRuns(t) }) // when the nodes have stopped
	c := newClusterOf(t, "alpha", "beta", "gamma", "delta", "witness")
	c.start("alpha", "beta", "gamma", "delta", "witness")
	cl := c.client()
	ctx, cancel := context.WithTimeout(context.Background(), 180*time.Second)
	defer cancel()
	if _, err := cl.CreateLUN(ctx, api.LUNSpec{Name: "vm1", SizeBytes: 64 << 20, Media: "ram", Open: true, Nodes: []string{"alpha", "beta"}}, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	c.lun(cl, "vm1", func(l api.LUN) bool { return l.Health == api.HealthHealthy })
	text := bytes.Repeat([]byte("still in memory "), 256)
	check := func() {
		t.Helper()
		d := openDisk(t, c.lun(cl, "vm1", api.LUN.Served))
		defer d.Close()
		got := make([]byte, len(text))
		if _, err := d.ReadAt(ctx, got, 4096); err != nil || !bytes.Equal(got, text) {
			t.Fatalf("%q, %v", got[:16], err)
		}
	}
	d := openDisk(t, c.lun(cl, "vm1", api.LUN.Served))
	if _, err := d.WriteAt(ctx, text, 4096); err != nil {
		t.Fatal(err)
	}
	d.Close()
	c.stop("witness")
	c.stop("alpha")
	cl = c.clientOf("beta", "gamma", "delta")
	c.recover(cl, "vm1", func(r api.Recovery) bool {
		return r.Node == "beta" && r.Lost.ProvenBy == "" && len(r.Lost.Unknown) == 2
	})
	check()
	c.start("alpha", "witness")
	c.lun(cl, "vm1", func(l api.LUN) bool { return l.Health == api.HealthHealthy && l.Settled() && l.History == 2 })
	if _, err := cl.MoveLUN(ctx, "vm1", "alpha", 20*time.Second); err != nil {
		t.Fatal(err)
	}
	check()
}
