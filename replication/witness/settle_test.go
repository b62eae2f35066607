package witness

import (
	"math/bits"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var settling = Timing{
	LinkGrace: 100 * time.Millisecond, NoProgress: time.Second, CatchUp: time.Second, Window: 16,
	Settle: time.Second, SettleMax: 32 * time.Second,
}

// slowPeer is a copy under a load that never pauses, looked at as often as the owner does.
type slowPeer struct {
	g     *Gate
	tail  uint64
	ms    int
	falls int
}

const tickMillis = 50

func newSlowPeer() *slowPeer {
	return &slowPeer{g: New(settling, 100, at(0), "b"), tail: 100}
}

// run lets so many milliseconds pass in which the copy acknowledges everything at once, or nothing. until ends it early.
func (s *slowPeer) run(millis int, answers bool, until func() bool) {
	for end := s.ms + millis; s.ms < end && (until == nil || !until()); {
		s.ms += tickMillis
		s.tail++
		s.g.Offered(min(s.g.Limit(), s.tail))
		before := s.g.Level("b")
		s.g.Tick(s.tail, at(s.ms))
		if answers {
			s.g.Acked("b", s.tail, s.tail, at(s.ms))
		}
		if before != Out && s.g.Level("b") == Out {
			s.falls++
		}
	}
}

func (s *slowPeer) is(l Level) func() bool { return func() bool { return s.g.Level("b") == l } }

// bound is the most falls in the time that has passed, as Timing promises.
func (s *slowPeer) bound() int {
	doublings := bits.Len(uint(settling.SettleMax/settling.Settle)) - 1
	return 2 + doublings + int(time.Duration(s.ms)*time.Millisecond/settling.SettleMax)
}

func TestCopyThatFellOnceIsLetInAtOnce(t *testing.T) {
	s := newSlowPeer()
	s.run(10_000, false, s.is(Out))
	s.run(tickMillis, true, nil)
	if got := s.g.Level("b"); got != InSync {
		t.Fatalf("after its first fall, caught up, it is %v", got)
	}
}

// A copy that stalls whenever it is needed costs the writers a pause each time: they become rare.
func TestCopyThatAlwaysStallsWhenItIsNeededFallsEverMoreRarely(t *testing.T) {
	s := newSlowPeer()
	var waits []int
	for s.ms < 600_000 {
		s.run(600_000, false, s.is(Out))
		from := s.ms
		s.run(600_000, true, s.is(InSync))
		waits = append(waits, (s.ms-from)/1000)
	}
	if s.falls > s.bound() {
		t.Errorf("%d falls in %d s, at most %d may be", s.falls, s.ms/1000, s.bound())
	}
	want := []int{0, 1, 2, 4, 8, 16, 32, 32}
	if len(waits) < len(want) {
		t.Fatalf("it returned after %v s", waits)
	}
	for i, w := range want {
		if waits[i] != w {
			t.Fatalf("it returned after %v s, want %v and so on", waits, want)
		}
	}
}

// Whatever a copy does, the LUN does not flap faster than Timing says.
func TestNoCopyFlapsFasterThanSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newSlowPeer()
		for range rapid.IntRange(1, 60).Draw(t, "spells") {
			switch rapid.IntRange(0, 4).Draw(t, "spell") {
			case 0:
				s.run(rapid.IntRange(50, 70_000).Draw(t, "keeps up, ms"), true, nil)
			case 1:
				s.run(rapid.IntRange(50, 3000).Draw(t, "stalls, ms"), false, nil)
			case 2: // the worst it can do
				s.run(200_000, true, s.is(InSync))
				s.run(200_000, false, s.is(Out))
			case 3: // its connection breaks
				s.g.Link("b", false, at(s.ms))
				s.run(rapid.IntRange(50, 500).Draw(t, "cut off, ms"), false, nil)
				s.g.Link("b", true, at(s.ms))
			case 4: // it is nearly there, and stays so
				s.run(200_000, true, s.is(InSync))
				s.g.Acked("b", s.tail-1, s.tail, at(s.ms))
				s.run(1000, false, nil)
			}
			if s.falls > s.bound() {
				t.Fatalf("%d falls in %d ms, at most %d may be", s.falls, s.ms, s.bound())
			}
		}
	})
}

// A copy that has been in sync for long has paid for its falls.
func TestFallsAreForgottenInSync(t *testing.T) {
	s := newSlowPeer()
	for range 5 {
		s.run(600_000, true, s.is(InSync))
		s.run(600_000, false, s.is(Out))
	}
	s.run(600_000, true, s.is(InSync))
	s.run(4*int(settling.SettleMax/time.Millisecond), true, nil)
	s.run(600_000, false, s.is(Out))
	if got := s.g.Settle("b"); got != settling.Settle {
		t.Fatalf("5 falls, 4 of them paid for, and one more: it must keep up for %v", got)
	}
}

// A stall, a broken connection or a lag begins the time anew.
func TestKeepingUpMustBeWithoutABreak(t *testing.T) {
	for name, breaks := range map[string]func(s *slowPeer){
		"stall":      func(s *slowPeer) { s.run(1100, false, nil) },
		"connection": func(s *slowPeer) { s.g.Link("b", false, at(s.ms)); s.g.Link("b", true, at(s.ms)) },
		"stall under a light load": func(s *slowPeer) {
			s.tail++
			for end := s.ms + 1100; s.ms < end; s.ms += tickMillis {
				s.g.Tick(s.tail, at(s.ms))
			}
		},
		"lag": func(s *slowPeer) { s.tail += 100; s.run(tickMillis, false, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSlowPeer()
			for range 4 { // 4 s
				s.run(600_000, true, s.is(InSync))
				s.run(600_000, false, s.is(Out))
			}
			s.run(3500, true, nil)
			breaks(s)
			s.run(3500, true, nil)
			if got := s.g.Level("b"); got != Out {
				t.Fatalf("%v after 3.5 s, a break, and 3.5 s", got)
			}
			s.run(1000, true, nil)
			if got := s.g.Level("b"); got != InSync {
				t.Fatalf("%v after 4.5 s without a break", got)
			}
		})
	}
}

// A copy that is slower than the load but answers is waited for: the load goes at its pace, and it never falls.
func TestCopyThatIsSlowerButAnswersStaysInSync(t *testing.T) {
	g := New(settling, 100, at(0), "b")
	acked := uint64(100)
	for ms := tickMillis; ms < 600_000; ms += tickMillis {
		g.Tick(acked+32, at(ms)) // as many entries under way as there may be
		if ms%900 == 0 {
			acked++
			g.Acked("b", acked, acked+32, at(ms))
		}
		if g.Level("b") != InSync {
			t.Fatalf("%v after %d ms", g.Level("b"), ms)
		}
	}
}
