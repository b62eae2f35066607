package prove

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"sanctuary/node/api"
	"sanctuary/target/initiator"
)

// gamma is a data node that holds nothing at first.
const gamma = "gamma"

// TestProveReplicasMoveWhileNodesDie moves a copy of a LUN that is used to the node that has none, and kills one of the nodes in the middle: the one that
// has it, the one that is to have it, the owner, the witness, whoever leads the catalog. The LUN must be served all the time but for a
// failover, the move must come to its end or be undone once the node is back, and no acknowledged write may be lost.
func TestProveReplicasMoveWhileNodesDie(t *testing.T) {
	rng := prove(t)
	cl := startCluster(t, clusterSpec{media: "file", sizeBytes: 256 << 20, more: []string{gamma}})
	l := cl.healthy()
	ballast(t, cl, l, 128<<20, 64<<20) // so that a move takes a while
	used := l
	used.SizeBytes = 128 << 20
	w := startLoad(t, cl, used, rng)
	var back []time.Duration
	for i := range count(t, "PROVE_MOVES", 8) {
		wait(t, 300*time.Millisecond)
		before := cl.healthy()
		from, to := before.Owner, ""
		var has []string
		for _, r := range before.Replicas {
			if r.Role == api.RoleData {
				has = append(has, r.Node)
			}
		}
		if rng.IntN(2) == 0 {
			from = has[1-slices.Index(has, from)]
		}
		for _, n := range []string{alpha, beta, gamma} {
			if !slices.Contains(has, n) {
				to = n
			}
		}
		cl.replicas(api.ReplicaChange{Add: []string{to}, Remove: []string{from}}, 0)
		wait(t, time.Duration(rng.IntN(1500))*time.Millisecond)
		victim := []string{from, to, before.Owner, witness, cl.leader()}[i%5]
		killed := time.Now()
		cl.kill(victim)
		back = append(back, w.answered(killed).Sub(killed))
		undo := i%4 == 3
		if undo {
			cl.replicas(api.ReplicaChange{Add: []string{from}, Remove: []string{to}}, 0)
		}
		wait(t, time.Duration(rng.IntN(2000))*time.Millisecond)
		cl.start(victim)
		after := cl.settled()
		end := []string{has[1-slices.Index(has, from)], to}
		if undo {
			end[1] = from
		}
		for _, r := range after.Replicas {
			if r.Role == api.RoleData && !slices.Contains(end, r.Node) || len(after.Replicas) != 3 {
				t.Fatalf("replicas are %+v, want copies on %v", after.Replicas, end)
			}
		}
		t.Logf("move %d from %s to %s, owner %s, %s killed, undone: %v; served %v after the kill, settled after %v", i, from, to, before.Owner, victim, undo,
			back[i].Round(time.Millisecond), time.Since(killed).Round(time.Millisecond))
		w.heat(rng)
	}
	w.finish(cl)
	stalls(t, "kills in the middle of a move", back, stallLimit(t))
}

// replicas asks for a change of the LUN's replicas, as long as nobody can take it.
func (c *cluster) replicas(ch api.ReplicaChange, wait time.Duration) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), healTimeout)
	defer cancel()
	c.until(ctx, fmt.Sprintf("replicas %+v", ch), func() error {
		_, err := c.api.ChangeReplicas(ctx, lunName, ch, wait)
		return err
	})
}

// settled waits until the LUN's replicas are those that are wanted, and all in sync.
func (c *cluster) settled() (l api.LUN) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), healTimeout)
	defer cancel()
	c.until(ctx, "replicas settled", func() (err error) {
		if l, err = c.api.LUN(ctx, lunName); err == nil && (!l.Settled() || l.Health != api.HealthHealthy || l.View.Source != api.SourceOwner) {
			err = fmt.Errorf("LUN is %s: %s %s; %+v", l.Health, l.Reason, l.View.Note, l.Replicas)
		}
		return err
	})
	return l
}

// leader returns the node that leads the catalog.
func (c *cluster) leader() (leader string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), healTimeout)
	defer cancel()
	c.until(ctx, "the catalog has a leader", func() error {
		s, err := c.api.Status(ctx)
		if leader = s.Catalog.Leader; err == nil && leader == "" {
			err = fmt.Errorf("none is known on node %s", s.Node)
		}
		return err
	})
	return leader
}

// ballast fills a part of the LUN that no client uses.
func ballast(t *testing.T, c *cluster, l api.LUN, at, size int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	d, err := initiator.OpenMultipath(ctx, initiator.MultipathConfig{Paths: c.paths(l)})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	p := make([]byte, 1<<20)
	for i := range p {
		p[i] = byte(i*7 + i>>8)
	}
	for off := at; off < at+size; off += int64(len(p)) {
		if _, err := d.WriteAt(ctx, p, off); err != nil {
			t.Fatal(err)
		}
	}
}

// TestProveReplicaSetsChangeWhileNodesDie goes round: the witness moves to the data node without a copy, that node gets a copy in the witness's place, and
// one of the three copies goes. A node is killed in the middle of each step.
func TestProveReplicaSetsChangeWhileNodesDie(t *testing.T) {
	rng := prove(t)
	cl := startCluster(t, clusterSpec{media: "file", sizeBytes: 256 << 20, more: []string{gamma}})
	l := cl.healthy()
	ballast(t, cl, l, 128<<20, 64<<20)
	used := l
	used.SizeBytes = 128 << 20
	w := startLoad(t, cl, used, rng)
	var back []time.Duration
	for i := range count(t, "PROVE_MOVES", 9) {
		wait(t, 300*time.Millisecond)
		before := cl.healthy()
		free := map[string]bool{alpha: true, beta: true, gamma: true}
		var copies []string
		votes := ""
		for _, r := range before.Replicas {
			if r.Role == api.RoleData {
				copies = append(copies, r.Node)
				delete(free, r.Node)
			} else {
				votes = r.Node
			}
		}
		third := ""
		for n := range free {
			third = n
		}
		var ch api.ReplicaChange
		var want int // copies
		switch {
		case len(copies) == 3:
			ch, want = api.ReplicaChange{Remove: []string{copies[rng.IntN(3)]}, Witness: witness}, 2
		case votes == witness:
			ch, want = api.ReplicaChange{Witness: third}, 2
		default:
			ch, want = api.ReplicaChange{Add: []string{third}}, 3
		}
		cl.replicas(ch, 0)
		wait(t, time.Duration(rng.IntN(1500))*time.Millisecond)
		victim := []string{alpha, beta, gamma, witness, before.Owner}[rng.IntN(5)]
		killed := time.Now()
		cl.kill(victim)
		back = append(back, w.answered(killed).Sub(killed))
		wait(t, time.Duration(rng.IntN(1000))*time.Millisecond)
		cl.start(victim)
		after, have := cl.settled(), 0
		for _, r := range after.Replicas {
			if r.Role == api.RoleData {
				have++
			}
		}
		if have != want || len(after.Replicas) != 3 {
			t.Fatalf("replicas are %+v after %+v", after.Replicas, ch)
		}
		t.Logf("step %d %+v, owner %s, %s killed; served %v after the kill, settled after %v", i, ch, before.Owner, victim,
			back[i].Round(time.Millisecond), time.Since(killed).Round(time.Millisecond))
		w.heat(rng)
	}
	w.finish(cl)
	stalls(t, "kills in the middle of a change", back, stallLimit(t))
}

// TestProveCopyInRAMAloneForAWhile takes one of two copies in RAM away, so that the other one is alone and its data no longer goes through a log, and gives
// it another again. Then a node is killed: the one that joins, in the middle of it; or either, when both copies hold everything.
func TestProveCopyInRAMAloneForAWhile(t *testing.T) {
	rng := prove(t)
	cl := startCluster(t, clusterSpec{media: "ram", sizeBytes: 128 << 20})
	w := startLoad(t, cl, cl.healthy(), rng)
	var back []time.Duration
	for i := range count(t, "PROVE_MOVES", 6) {
		before := cl.healthy()
		leaves := []string{alpha, beta}[rng.IntN(2)]
		cl.replicas(api.ReplicaChange{Remove: []string{leaves}}, 0)
		if l := cl.settled(); len(l.Replicas) != 1 {
			t.Fatalf("replicas are %+v, want one copy", l.Replicas)
		}
		wait(t, time.Second) // maintained every half second
		index, ios := cl.healthy().AppliedIndex, w.done()
		wait(t, 300*time.Millisecond+time.Duration(rng.IntN(700))*time.Millisecond)
		if entries, ios := int(cl.healthy().AppliedIndex-index), w.done()-ios; 5*entries > ios {
			t.Errorf("round %d: %d entries for %d I/Os of a copy that is alone, of which half are writes", i, entries, ios)
		}
		cl.replicas(api.ReplicaChange{Add: []string{leaves}}, 0)
		if i%2 == 1 {
			wait(t, time.Duration(rng.IntN(500))*time.Millisecond)
			cl.kill(leaves)
			wait(t, time.Duration(rng.IntN(1000))*time.Millisecond)
			cl.start(leaves)
		}
		if l := cl.settled(); len(l.Replicas) != 3 {
			t.Fatalf("replicas are %+v, want two copies and a witness", l.Replicas)
		}
		victim := []string{alpha, beta}[rng.IntN(2)]
		killed := time.Now()
		cl.kill(victim)
		back = append(back, w.answered(killed).Sub(killed))
		cl.start(victim)
		cl.settled()
		t.Logf("round %d, owner %s: %s left and joined, %s killed; served %v after the kill", i, before.Owner, leaves, victim, back[i].Round(time.Millisecond))
		w.heat(rng)
	}
	w.finish(cl)
	stalls(t, "kills of nodes with copies in RAM", back, stallLimit(t))
}
