package witness

import (
	"testing"
	"time"
)

// With three copies there is no witness that is offered anything: two of them go on without the third. It is in sync again when it has what they acknowledged without it,
// not when it has nearly that; and what comes meanwhile waits for it.
func TestCopyIsInSyncOnlyWithWhatWasAcknowledgedWithoutIt(t *testing.T) {
	timing := Timing{LinkGrace: 100 * time.Millisecond, NoProgress: time.Second, CatchUp: time.Second, Window: 256}
	now := time.Unix(0, 0)
	g := New(timing, 10, now, "b", "c")
	g.Acked("b", 10, 10, now)
	g.Acked("c", 10, 10, now)
	g.Link("b", false, now)
	now = now.Add(200 * time.Millisecond)
	g.Tick(110, now)
	g.Acked("c", 110, 110, now)
	if g.Level("b") != Out || !g.Synced(110) {
		t.Fatalf("b is %v; 110 acknowledged: %v", g.Level("b"), g.Synced(110))
	}
	g.Link("b", true, now)
	g.Acked("b", 50, 110, now)
	g.Acked("b", 51, 110, now)
	if g.Level("b") != CatchingUp {
		t.Fatalf("b, which lacks 52 to 110, is %v", g.Level("b"))
	}
	g.Acked("c", 111, 111, now)
	if g.Synced(111) {
		t.Fatal("111 is acknowledged without b, which is about to be in sync")
	}
	g.Acked("b", 109, 111, now)
	if g.Level("b") == InSync {
		t.Fatal("b is in sync, and lacks 110")
	}
	g.Acked("b", 110, 111, now)
	if g.Level("b") != InSync || g.Synced(111) {
		t.Fatalf("b is %v; 111 acknowledged: %v", g.Level("b"), g.Synced(111))
	}
}
