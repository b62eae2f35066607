package replication

import (
	"testing"
	"time"
	"unsafe"

	"github.com/hashicorp/raft"
)

// wallSet returns the moment t as time.Now would have given it had the wall clock been set forward by d, or back, before. Only the wall reading differs.
func wallSet(t *testing.T, at time.Time, d time.Duration) time.Time {
	t.Helper()
	// As package time has it: a flag for the monotonic reading, 33 bits of seconds since 1885, 30 of nanoseconds; the monotonic reading is the next word.
	wall := (*uint64)(unsafe.Pointer(&at))
	was := at
	*wall += uint64(int64(d/time.Second) << 30)
	if at.Sub(was) != 0 || at.Round(0).Sub(was.Round(0)) != d {
		t.Fatalf("%v set by %v is %v", was, d, at)
	}
	return at
}

// Rule L does not hear of the wall clock: set between a heartbeat and whatever looks at its lease or promise, forward or back, it neither lengthens them nor ends them.
func TestLeasesDoNotGoByTheWallClock(t *testing.T) {
	const hold = 400 * time.Millisecond
	const day = 24 * time.Hour
	voters := []raft.ServerID{"a", "b", "c"}
	for _, sentBy := range []time.Duration{-day, -time.Second, 0, time.Second, day} {
		for _, seenBy := range []time.Duration{-day, -time.Second, 0, time.Second, day} {
			start := time.Now()
			owner := newLease("a", hold)
			owner.begin(3, voters)
			owner.renew("b", 3, wallSet(t, start, sentBy))
			voter := &promise{duration: hold}
			voter.give("a", 3, wallSet(t, start, sentBy))
			for after, want := range map[time.Duration]struct{ lease, promise bool }{
				0: {true, true}, hold*9/10 - 1: {true, true}, hold * 9 / 10: {false, true}, hold - 1: {false, true}, hold: {false, false}, time.Hour: {false, false},
			} {
				now := wallSet(t, start.Add(after), seenBy)
				if got := owner.valid(3, now); got != want.lease {
					t.Errorf("sent %v, seen %v off: after %v the lease is valid: %v", sentBy, seenBy, after, got)
				}
				if got := voter.forbids("b", now); got != want.promise {
					t.Errorf("answered %v, seen %v off: after %v the promise forbids a vote: %v", sentBy, seenBy, after, got)
				}
			}
			// An answer that comes late is older than the one before it, whatever the clock says.
			owner.renew("c", 3, wallSet(t, start.Add(-hold), day))
			owner.renew("b", 3, wallSet(t, start.Add(-time.Hour), day))
			if !owner.valid(3, wallSet(t, start.Add(hold/2), seenBy)) || owner.valid(3, wallSet(t, start.Add(hold), seenBy)) {
				t.Errorf("sent %v, seen %v off: a late answer has changed the lease", sentBy, seenBy)
			}
		}
	}
}
