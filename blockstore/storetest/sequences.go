package storetest

import (
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// maxMembers bounds the volumes of random runs.
const maxMembers = 4

// Step does one random thing to a random member: mostly an entry. lasts: the machine keeps its pool over Close.
func (w *World) Step(rnd Source, lasts bool) error {
	if len(w.Members) == 0 {
		return w.Create(geometry)
	}
	i := rnd.IntN(len(w.Members))
	x := w.Members[i]
	switch n := rnd.IntN(32); {
	case n < 3:
		return w.Checkpoint(i)
	case n < 7:
		return w.Reclaim(i, 1+rnd.IntN(8))
	case n < 9:
		return w.Reopen(i)
	case n < 10 && lasts:
		return w.ReopenPool()
	case n < 13 && len(x.Model.snapshots) > 0 && len(w.Members) < maxMembers:
		return w.Clone(i, rnd.IntN(len(x.Model.snapshots)))
	case n < 14:
		return w.Delete(i)
	case n < 16:
		return w.Overwrite(i, rnd.IntN(len(x.Model.snapshots)+1)-1, rnd.IntN(x.Model.Blocks()), 1+rnd.IntN(8))
	}
	done, err := w.Apply(i, x.Model.Random(rnd))
	if err != nil || done {
		return err
	}
	return MakeRoom(x.Volume)
}

// testRandom plays random sequences on volumes that share a pool too small for all of them.
func testRandom(t *testing.T, m Medium) {
	rapid.Check(t, func(rt *rapid.T) {
		check := func(err error) {
			if err != nil {
				rt.Fatal(err)
			}
		}
		w, err := NewWorld(m.New(t, 10*chunk))
		check(err)
		check(w.Create(geometry))
		check(w.Create(geometry))
		steps := func(rt *rapid.T) { check(w.Step(Drawn{rt}, m.Lasts)) }
		rt.Repeat(map[string]func(*rapid.T){
			"step": steps, "another": steps, "third": steps, "fourth": steps, "fifth": steps, "sixth": steps,
			"compare": func(*rapid.T) { check(w.CompareAll()) },
			"crash": func(rt *rapid.T) {
				if m.Lasts {
					check(w.Recover(rapid.Uint64().Draw(rt, "seed")))
				}
			},
			"settle": func(*rapid.T) { check(w.Settle()) },
		})
		check(w.CompareAll())
		check(w.End(rand.New(rand.NewPCG(1, 1))))
	})
}
