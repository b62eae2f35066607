package prove

import (
	"slices"
	"testing"
	"time"
)

// TestProveBlackout kills all processes at once, as a power cut does to the programs on all machines, and starts them again
// in every order. The LUN must come back by itself, and with it everything that was acknowledged.
func TestProveBlackout(t *testing.T) {
	rng := prove(t)
	cl := startCluster(t, clusterSpec{media: "file", sizeBytes: 256 << 20})
	w := startLoad(t, cl, cl.healthy(), rng)
	var back []time.Duration
	for i, order := range orders(allNodes) {
		wait(t, 500*time.Millisecond)
		before := cl.healthy()
		cl.kill(shuffled(rng.Perm(len(allNodes)))...)
		for n, node := range order {
			if n > 0 { // long enough for the first to have looked for the others, and to have elected what it can
				wait(t, time.Duration(100+rng.IntN(1500))*time.Millisecond)
			}
			cl.start(node)
		}
		started := time.Now()
		served := w.answered(started)
		back = append(back, served.Sub(started))
		after := cl.healthyBehind(before.Term)
		t.Logf("blackout %d, back in the order %v: served %v after the last was started, in sync after %v, owner %s (before: %s)", i, order,
			back[i].Round(time.Millisecond), time.Since(started).Round(time.Millisecond), after.Owner, before.Owner)
		w.heat(rng)
	}
	w.finish(cl)
	stalls(t, "returns from a blackout", back, 10*time.Second)
}

// TestProveDataNodesKilled takes both copies at once and leaves the witness, in whose log nothing may be that they lack.
func TestProveDataNodesKilled(t *testing.T) {
	rng := prove(t)
	cl := startCluster(t, clusterSpec{media: "file", sizeBytes: 256 << 20})
	w := startLoad(t, cl, cl.healthy(), rng)
	for i := range 4 {
		wait(t, 500*time.Millisecond)
		before := cl.healthy()
		first := before.Owner
		if i%2 == 1 {
			first = other(first)
		}
		cl.kill(before.Owner, other(before.Owner))
		cl.start(first)
		if i >= 2 { // one copy and the witness are a quorum: the other copy is not waited for
			served := time.Now()
			w.answered(served)
			t.Logf("round %d: served by %s alone after %v", i, first, time.Since(served).Round(time.Millisecond))
		}
		cl.start(other(first))
		w.answered(time.Now())
		cl.healthy()
		w.heat(rng)
	}
	w.finish(cl)
}

// TestProveWitnessLost kills the witness while both copies are healthy: nobody may notice.
func TestProveWitnessLost(t *testing.T) {
	rng := prove(t)
	cl := startCluster(t, clusterSpec{media: "file", sizeBytes: 256 << 20})
	w := startLoad(t, cl, cl.healthy(), rng)
	var longest []time.Duration
	for range 3 {
		before := cl.healthy()
		wait(t, 500*time.Millisecond)
		killed := time.Now()
		cl.kill(witness)
		wait(t, 3*time.Second) // of I/O without it
		cl.start(witness)
		after := cl.healthy()
		if after.Owner != before.Owner || after.Term != before.Term {
			t.Errorf("the owner changed from %s (term %d) to %s (term %d)", before.Owner, before.Term, after.Owner, after.Term)
		}
		longest = append(longest, w.longest(killed, w.answered(time.Now())))
		w.heat(rng)
	}
	w.finish(cl)
	// An election would take longer than this; a busy machine's scheduling does not.
	stalls(t, "losses of the witness", longest, 500*time.Millisecond)
}

// orders returns every order of names.
func orders(names []string) [][]string {
	if len(names) == 0 {
		return [][]string{nil}
	}
	var out [][]string
	for i, first := range names {
		for _, rest := range orders(slices.Delete(slices.Clone(names), i, i+1)) {
			out = append(out, append([]string{first}, rest...))
		}
	}
	return out
}

func shuffled(at []int) []string {
	out := make([]string, len(at))
	for i, n := range at {
		out[i] = allNodes[n]
	}
	return out
}

func TestOrdersAreAll(t *testing.T) {
	t.Parallel()
	all := orders(allNodes)
	seen := map[string]bool{}
	for _, o := range all {
		key := ""
		for _, n := range o {
			key += n + " "
		}
		seen[key] = true
	}
	if len(all) != 6 || len(seen) != 6 {
		t.Errorf("orders of three: %v", all)
	}
}
