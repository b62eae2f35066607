package sim

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// shape is what a cluster looks like: one that the catalog allows (an even number of copies has a witness).
type shape struct {
	nodes string // w is a witness
	ram   bool   // data and logs of the data replicas are in memory
}

// copies returns how many replicas hold data.
func (s shape) copies() (n int) {
	for _, name := range strings.Fields(s.nodes) {
		if name != "w" {
			n++
		}
	}
	return n
}

func (s shape) hasWitness() bool { return strings.HasSuffix(s.nodes, " w") }

// voters returns how many replicas there are.
func (s shape) voters() int { return len(strings.Fields(s.nodes)) }

// shapes of up to three copies, as often as they occur among themselves.
var shapes = []shape{
	{nodes: "a b w"},
	{nodes: "a b w"},
	{nodes: "a b w"},
	{nodes: "a b w"},
	{nodes: "a b w"},
	{nodes: "a b w"},
	{nodes: "a b w", ram: true},
	{nodes: "a b w", ram: true},
	{nodes: "a b c"},
	{nodes: "a b c"},
	{nodes: "a b c", ram: true},
	{nodes: "a"},
}

// largeShapes: with them a majority is less than all but one, and those who are left may be behind in different places.
var largeShapes = []shape{
	{nodes: "a b c d w"},
	{nodes: "a b c d w"},
	{nodes: "a b c d e"},
	{nodes: "a b c d e"},
	{nodes: "a b c d w", ram: true},
	{nodes: "a b c d e", ram: true},
}

// largeOneIn: of so many seeds one has a large shape. SIM_LARGE overrides it: 1 makes every seed large, 0 none.
const largeOneIn = 8

// shapeOf returns the shape of a seed's cluster. schedule is the stream of everything that is done to it; whether the shape is large is drawn from one of its own,
// so that the seeds of small ones are the same with and without.
func shapeOf(seed uint64, schedule *rand.Rand, largeOneIn uint64) shape {
	small := shapes[schedule.IntN(len(shapes))]
	rng := rand.New(rand.NewPCG(seed, 3))
	if largeOneIn == 0 || rng.Uint64N(largeOneIn) > 0 {
		return small
	}
	return largeShapes[rng.IntN(len(largeShapes))]
}

func TestSeedsHaveEveryShape(t *testing.T) {
	t.Parallel()
	const seeds = 2000 // as many as CI runs
	found, large := map[shape]int{}, 0
	for seed := uint64(1); seed <= seeds; seed++ {
		with, without := rand.New(rand.NewPCG(seed, 1)), rand.New(rand.NewPCG(seed, 1))
		s, small := shapeOf(seed, with, largeOneIn), shapeOf(seed, without, 0)
		switch {
		case s.copies() > 3:
			large++
		case s != small:
			t.Errorf("seed %d is of %v, and of %v where there are no large ones", seed, s, small)
		}
		if with.Uint64() != without.Uint64() {
			t.Errorf("seed %d goes on otherwise after its shape was drawn", seed)
		}
		if s.copies() > 1 && s.hasWitness() != (s.copies()%2 == 0) {
			t.Errorf("seed %d is of %v, which the catalog does not allow", seed, s)
		}
		found[s]++
	}
	for _, s := range slices.Concat(shapes, largeShapes) {
		if found[s] < seeds/100 {
			t.Errorf("%v occurs %d times", s, found[s])
		}
	}
	if large < seeds/largeOneIn*3/4 || large > seeds/largeOneIn*5/4 {
		t.Errorf("%d of %d seeds are large, not about one in %d", large, seeds, largeOneIn)
	}
}
