package prove

import (
	"syscall"
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

// TestProveOwnerKilledWhilePeerStalls stops the other copy for less time than it takes to give it up, and kills the owner
// while it is stopped. Owner and witness are a quorum, but what they alone have must not have been acknowledged (rule W):
// the copy that stalled must be able to take over without the dead owner, and have everything.
func TestProveOwnerKilledWhilePeerStalls(t *testing.T) {
	rng := prove(t)
	cl := startCluster(t, clusterSpec{media: "file", sizeBytes: 256 << 20})
	l := cl.healthy()
	w := startLoad(t, cl, l, rng)
	var longest []time.Duration
	for i := range max(4, kills(t)/5) {
		wait(t, time.Duration(200+rng.IntN(400))*time.Millisecond)
		peer := other(l.Owner)
		stalled := time.Now()
		cl.pause(peer)
		wait(t, time.Duration(50+rng.IntN(400))*time.Millisecond) // out_of_sync is 1 s
		cl.kill(l.Owner)
		cl.signal(peer, syscall.SIGCONT)
		resumed := time.Now()
		back := w.answered(resumed) // the owner stays dead until then
		cl.start(l.Owner)
		before := l
		l = cl.healthyBehind(before.Term)
		longest = append(longest, w.longest(stalled, w.answered(time.Now())))
		t.Logf("kill %d: %s, %v after %s was stopped; first I/O %v after that one went on, longest %v", i, before.Owner,
			resumed.Sub(stalled).Round(time.Millisecond), peer, back.Sub(resumed).Round(time.Millisecond), longest[i].Round(time.Millisecond))
		w.heat(rng)
	}
	w.finish(cl)
	stalls(t, "kills of the owner while its peer was stopped", longest, stallLimit(t))
}
