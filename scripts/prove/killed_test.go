package prove

import (
	"testing"
	"time"
)

// TestProveOwnerKilled kills the owner again and again under load: PROVE_KILLS times on a file LUN, a quarter of that on a
// RAM LUN, whose copies begin anew each time. Every kill waits until the LUN was in sync again: two copies are one
// failure's worth of safety.
func TestProveOwnerKilled(t *testing.T) {
	for _, c := range []struct {
		media string
		share int // of the kills
	}{{"file", 1}, {"ram", 4}} {
		t.Run(c.media, func(t *testing.T) {
			rng := prove(t)
			n := (kills(t) + c.share - 1) / c.share
			cl := startCluster(t, clusterSpec{media: c.media, sizeBytes: 256 << 20})
			l := cl.healthy()
			w := startLoad(t, cl, l, rng)
			var longest, takeover []time.Duration
			for i := range n {
				wait(t, time.Duration(200+rng.IntN(800))*time.Millisecond)
				if i%4 == 3 { // the owner the last kill has left is then one that has led, lost and regained the LUN
					cl.move(other(l.Owner))
					l = cl.owner()
				}
				killed := time.Now()
				cl.kill(l.Owner)
				back := w.answered(time.Now())
				takeover = append(takeover, back.Sub(killed))
				wait(t, time.Duration(rng.IntN(800))*time.Millisecond)
				cl.start(l.Owner)
				before := l
				l = cl.healthyBehind(before.Term)
				settled := w.answered(time.Now())
				longest = append(longest, w.longest(killed, settled))
				t.Logf("kill %d: %s; first I/O after %v, longest %v, in sync after %v", i, before.Owner, takeover[i].Round(time.Millisecond),
					longest[i].Round(time.Millisecond), time.Since(killed).Round(time.Millisecond))
				w.heat(rng)
			}
			w.finish(cl)
			stalls(t, "kills of the owner of a "+c.media+" LUN", longest, stallLimit(t))
		})
	}
}
