package witness

import (
	"math"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"
)

var timing = Timing{LinkGrace: 100 * time.Millisecond, NoProgress: time.Second, CatchUp: 500 * time.Millisecond, Window: 16}

func at(ms int) time.Time { return time.Unix(1000, 0).Add(time.Duration(ms) * time.Millisecond) }

func TestWitnessHearsNothingTheCopyHasNotAcknowledged(t *testing.T) {
	g := New(timing, 100, at(0), "b")
	if got := g.Limit(); got != 0 {
		t.Fatalf("before the first answer the witness may have %d", got)
	}
	g.Acked("b", 120, 130, at(1))
	if got := g.Limit(); got != 120 {
		t.Fatalf("limit %d, the copy has 120", got)
	}
}

// What the witness is told may wait only as long as nobody waits for its vote.
func TestWitnessIsNeededWhileACopyIsNotThere(t *testing.T) {
	g := New(timing, 100, at(0), "b")
	g.Acked("b", 100, 100, at(1))
	if g.Degraded() {
		t.Error("with its copy in sync")
	}
	g.Keep(nil) // it is being rebuilt
	if !g.Degraded() {
		t.Error("not while the owner has nobody else")
	}
	g.Add("b", at(2))
	if !g.Degraded() {
		t.Error("not while the copy is behind")
	}
}

func TestLostCopyOpensTheGateOnlyAfterItsGrace(t *testing.T) {
	g := New(timing, 100, at(0), "b")
	g.Acked("b", 100, 100, at(1))
	g.Link("b", false, at(10))
	g.Tick(105, at(60))
	if g.Level("b") != InSync || g.Limit() != 100 {
		t.Fatalf("within the grace: %v, limit %d", g.Level("b"), g.Limit())
	}
	g.Link("b", true, at(80))
	g.Tick(105, at(200))
	if g.Level("b") != InSync {
		t.Fatal("a connection that came back in time cost the copy its place")
	}
	g.Link("b", false, at(300))
	g.Tick(105, at(401))
	if g.Level("b") != Out || g.Limit() != math.MaxUint64 {
		t.Fatalf("after the grace: %v, limit %d", g.Level("b"), g.Limit())
	}
}

func TestSilentCopyIsGivenUpOnlyWithEntriesOutstanding(t *testing.T) {
	g := New(timing, 100, at(0), "b")
	g.Acked("b", 100, 100, at(1))
	g.Tick(100, at(60_000))
	if g.Level("b") != InSync {
		t.Fatal("an idle copy was given up")
	}
	g.Tick(101, at(60_500))
	g.Tick(101, at(61_001))
	if g.Level("b") != Out {
		t.Fatal("a copy that acknowledges nothing was kept")
	}
}

func TestCopyReturnsByOvertakingTheWitness(t *testing.T) {
	g := New(timing, 100, at(0), "b")
	g.Link("b", false, at(0))
	g.Tick(100, at(200))
	g.Offered(500)
	g.Link("b", true, at(300))
	g.Acked("b", 300, 500, at(301))
	if g.Level("b") != Out {
		t.Fatalf("200 entries behind: %v", g.Level("b"))
	}
	g.Acked("b", 490, 500, at(310))
	if g.Level("b") != CatchingUp || g.Limit() != 500 {
		t.Fatalf("nearly there: %v, limit %d: the witness must be held where it is", g.Level("b"), g.Limit())
	}
	g.Acked("b", 500, 510, at(320))
	if g.Level("b") != InSync || g.Limit() != 500 {
		t.Fatalf("overtaken: %v, limit %d", g.Level("b"), g.Limit())
	}
}

func TestCatchingUpDoesNotHoldTheWitnessForEver(t *testing.T) {
	g := New(timing, 100, at(0), "b")
	g.Link("b", false, at(0))
	g.Tick(100, at(200))
	g.Offered(500)
	g.Link("b", true, at(300))
	g.Acked("b", 490, 500, at(310))
	g.Tick(510, at(811))
	if g.Level("b") != Out {
		t.Fatalf("stuck in %v", g.Level("b"))
	}
}

// The invariant, under any sequence of events: the witness is never offered what a replica in sync has not acknowledged.
func TestGateInvariant(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tail, now := uint64(rapid.IntRange(0, 50).Draw(t, "tail")), 0
		g := New(timing, tail, at(0), "b", "c")
		acked := map[string]uint64{}
		var offered uint64
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			now += rapid.IntRange(0, 400).Draw(t, "ms")
			p := rapid.SampledFrom([]string{"b", "c"}).Draw(t, "peer")
			before := map[string]Level{"b": g.Level("b"), "c": g.Level("c")}
			switch rapid.IntRange(0, 4).Draw(t, "event") {
			case 0:
				tail += uint64(rapid.IntRange(0, 40).Draw(t, "new"))
			case 1:
				acked[p] = rapid.Uint64Range(acked[p], max(acked[p], tail)).Draw(t, "ack")
				g.Acked(p, acked[p], tail, at(now))
			case 2:
				g.Link(p, rapid.Bool().Draw(t, "up"), at(now))
			case 3:
				g.Tick(tail, at(now))
			case 4:
				if l := min(g.Limit(), tail); l > offered {
					for q, a := range acked {
						if g.Level(q) == InSync && l > a {
							t.Fatalf("offered %d to the witness while %s, in sync, has %d", l, q, a)
						}
					}
					offered = l
					g.Offered(l)
				}
			}
			for q, b := range before {
				if b != InSync && g.Level(q) == InSync && acked[q] < offered {
					t.Fatalf("%s is in sync at %d, the witness has %d", q, acked[q], offered)
				}
			}
		}
	})
}

func TestAcknowledgementWaitsForEveryReplicaInSync(t *testing.T) {
	g := New(timing, 100, at(0), "b", "c")
	g.Acked("b", 101, 101, at(1))
	if g.Synced(101) {
		t.Fatal("c has not acknowledged 101")
	}
	g.Acked("c", 101, 101, at(2))
	if !g.Synced(101) {
		t.Fatal("both have it")
	}
	g.Link("c", false, at(3))
	g.Tick(102, at(200))
	g.Acked("b", 102, 102, at(201))
	if !g.Synced(102) {
		t.Fatal("a lost replica is waited for")
	}
}

func TestStripLeavesWhatVotesRestOn(t *testing.T) {
	in := []*raft.Log{
		{Index: 1, Term: 2, Type: raft.LogCommand, Data: []byte("payload"), Extensions: []byte("x")},
		{Index: 2, Term: 2, Type: raft.LogConfiguration, Data: []byte("servers")},
	}
	out := Strip(in)
	if out[0].Data != nil || out[0].Extensions != nil || out[0].Index != 1 || out[0].Term != 2 {
		t.Errorf("command became %+v", out[0])
	}
	if string(out[1].Data) != "servers" {
		t.Errorf("configuration became %+v", out[1])
	}
	if string(in[0].Data) != "payload" {
		t.Error("the original lost its payload")
	}
}

// A copy that turns out to be far behind when a term begins was out before it. It is not waited for until it has taken all of the log, which may
// be gigabytes; and that is no fall of this term. One that is behind by what is on its way, or hears of it late, is in sync.
func TestCopyThatWasOutBeforeTheTermIsNotWaitedFor(t *testing.T) {
	timing := settling
	timing.Window = 256
	for name, test := range map[string]struct {
		acks []uint64
		want Level
	}{
		"far behind":      {[]uint64{20_064}, Out},
		"at the window":   {[]uint64{100_000 - 256}, InSync},
		"beyond":          {[]uint64{100_000 - 257}, Out},
		"there":           {[]uint64{100_000, 100_020}, InSync},
		"takes it all":    {[]uint64{20_064, 99_000, 99_999, 100_500}, InSync},
		"not heard of it": {nil, InSync},
	} {
		t.Run(name, func(t *testing.T) {
			g := New(timing, 100_000, at(0), "b")
			for i, acked := range test.acks {
				g.Acked("b", acked, 100_500, at(10*(i+1)))
			}
			if got := g.Level("b"); got != test.want {
				t.Errorf("%v, want %v", got, test.want)
			}
			if g.Level("b") == Out && g.Limit() != math.MaxUint64 {
				t.Errorf("the witness is held back at %d", g.Limit())
			}
			if wait := g.Settle("b"); wait != 0 {
				t.Errorf("must keep up for %v", wait)
			}
		})
	}
}
