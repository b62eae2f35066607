package catalog

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
)

// Two of three are gone for good: the third goes on alone, with all it had; the others, should they come back with their old disks, elect a leader among
// themselves and do not touch it; emptied and added again, they are members as ever.
func TestCatalogGoesOnFromOneMember(t *testing.T) {
	c := newCluster(t, "a", "b", "w")
	c.start("a", "b", "w")
	c.register("a", "b", "w")
	c.sees("b", c.mustPropose(mirrored(100, "vm1")))
	for _, n := range []string{"a", "b", "w"} {
		c.stop(n)
	}
	b := c.nodes["b"].cfg
	if _, _, err := Rescue(b.Dir, b.Cluster, b.Node, uid(77)); !errors.Is(err, ErrIdentity) {
		t.Fatalf("of another node: %v", err)
	}
	for range 2 { // repeated, as after a crash behind the last step
		others, _, err := Rescue(b.Dir, b.Cluster, b.Node, b.NodeID)
		if err != nil || !slices.Equal(others, []string{"a", "w"}) {
			t.Fatalf("%v, %v", others, err)
		}
	}
	c.start("b")
	r := c.mustPropose(&SetSetting{Key: "k", Value: "decided alone"})
	c.sees("b", r)
	if m := c.nodes["b"].cat.Model(); len(m.LUNs) != 1 || len(m.Nodes) != 3 {
		t.Fatalf("it has lost something: %+v", m)
	}

	c.start("a", "w")
	eventually(t, "the old members elect a leader", func() bool { return c.nodes["a"].cat.IsLeader() || c.nodes["w"].cat.IsLeader() })
	old := c.nodes["a"].cat
	if !old.IsLeader() {
		old = c.nodes["w"].cat
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for range 5 {
		if _, err := old.Propose(ctx, &SetSetting{Key: "k", Value: "the old world"}); err != nil {
			t.Fatal(err)
		}
	}
	if m := c.nodes["b"].cat.Model(); m.Settings["k"] != "decided alone" || !c.nodes["b"].cat.IsLeader() {
		t.Fatalf("the old members have overwritten it: %+v, leads: %v", m.Settings, c.nodes["b"].cat.IsLeader())
	}

	for i, n := range []string{"a", "w"} {
		c.stop(n)
		c.wipe(n, 50+i)
		c.nodes[n].cfg.Initial = nil
	}
	c.mustPropose(&DeleteLUN{ID: uid(100)}, &RemoveNode{Name: "a"}, &RemoveNode{Name: "w"})
	c.register("a", "w")
	c.start("a", "w")
	c.sees("a", c.mustPropose(&SetSetting{Key: "k", Value: "together again"}))
}
