package prove

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestProveAnySequence kills, stops, resumes and starts nodes in any order and number, without waiting for anything: copies
// are lost while they catch up, owners while they take over, all nodes at once. I/O may wait as long as nobody can serve it;
// what was acknowledged must be there, whatever the sequence was. The LUN is on files: of one in memory nothing would be left.
func TestProveAnySequence(t *testing.T) {
	rng := prove(t)
	cl := startCluster(t, clusterSpec{media: "file", sizeBytes: 256 << 20, keepBytes: 16 << 20})
	w := startLoad(t, cl, cl.healthy(), rng)
	var waits []time.Duration
	for round := range count(t, "PROVE_ROUNDS", max(2, kills(t)/5)) {
		s := newSequence(cl, rng)
		for range 6 + rng.IntN(8) {
			s.step()
			wait(t, time.Duration(rng.IntN(1200))*time.Millisecond)
		}
		waits = append(waits, s.end(round, w))
	}
	w.finish(cl)
	stalls(t, "sequences, until I/O went on when all nodes ran again", waits, 10*time.Second)
}

// sequence is what is done to the nodes of a cluster in which all run.
type sequence struct {
	c    *cluster
	rng  *rand.Rand
	is   map[string]string // node -> "running", "stopped" or "dead"
	done []string
}

func newSequence(c *cluster, rng *rand.Rand) *sequence {
	s := &sequence{c: c, rng: rng, is: map[string]string{}}
	for _, n := range c.nodes {
		s.is[n] = "running"
	}
	return s
}

// end has all nodes run again, waits until the LUN is whole, and returns how long that took until the first I/O.
func (s *sequence) end(round int, w *load) time.Duration {
	s.c.t.Helper()
	s.heal()
	healed := time.Now()
	back := w.answered(healed).Sub(healed)
	s.c.healthy()
	s.c.t.Logf("round %d: %s; first I/O %v after all was whole again, in sync after %v", round, strings.Join(s.done, " | "),
		back.Round(time.Millisecond), time.Since(healed).Round(time.Millisecond))
	wait(s.c.t, 300*time.Millisecond)
	w.heat(s.rng)
	return back
}

// step does one thing to one node. The data nodes have it worse than the witness.
func (s *sequence) step() {
	victims := append(slices.Clone(s.c.copies), s.c.nodes...)
	node := victims[s.rng.IntN(len(victims))]
	switch is := s.is[node]; {
	case is == "dead":
		s.start(node)
	case is == "stopped" && s.rng.IntN(3) > 0:
		s.resume(node)
	case is == "running" && s.rng.IntN(3) == 0:
		s.c.pause(node)
		s.note(node, "stopped")
	default:
		s.c.kill(node)
		s.note(node, "dead")
	}
}

func (s *sequence) note(node, is string) {
	s.is[node] = is
	s.done = append(s.done, fmt.Sprintf("%s %s", node, is))
}

func (s *sequence) start(node string) {
	s.c.start(node)
	s.note(node, "running")
}

func (s *sequence) resume(node string) {
	s.c.signal(node, syscall.SIGCONT)
	s.note(node, "running")
}

// heal makes all nodes run, in any order.
func (s *sequence) heal() {
	nodes := slices.Clone(s.c.nodes)
	s.rng.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	for _, n := range nodes {
		switch s.is[n] {
		case "dead":
			s.start(n)
		case "stopped":
			s.resume(n)
		}
	}
}
