package witness

import (
	"hash/maphash"
	"slices"
	"strings"
	"testing"
)

// finding is a story that ends where something that must hold does not.
type finding struct {
	what  string
	story []string
}

func (f *finding) String() string { return f.what + "\n" + strings.Join(f.story, "\n") }

type visited struct {
	parent int32
	step   step
}

// explore visits every state that can be reached from start in depth steps, breadth first, so that the first finding is a
// shortest one. It returns nil if everything held, how many states there are, and how deep it went.
func (m *model) explore(start state, depth int) (found *finding, states, d int) {
	type place struct {
		s  state
		at int32
	}
	seed := maphash.MakeSeed()
	seen := map[uint64]struct{}{}
	trail := []visited{{parent: -1}}
	frontier, next := []place{{start, 0}}, []place(nil)
	var current place
	defer func() {
		if r := recover(); r != nil {
			b, ours := r.(broken)
			if !ours {
				panic(r)
			}
			found, states = &finding{what: string(b), story: []string{m.doing.String()}}, len(trail)
			for at := current.at; at > 0; at = trail[at].parent {
				found.story = slices.Insert(found.story, 0, trail[at].step.String())
			}
		}
	}()
	m.holds(&start)
	for ; d < depth && len(frontier) > 0; d++ {
		next = next[:0]
		for _, current = range frontier {
			m.steps(&current.s, func(a step, t *state) {
				key := maphash.Comparable(seed, *t)
				mirror := t.mirrored()
				key += maphash.Comparable(seed, mirror) // the same for both
				if _, known := seen[key]; known {
					return
				}
				seen[key] = struct{}{}
				m.holds(t)
				trail = append(trail, visited{current.at, a})
				next = append(next, place{*t, int32(len(trail) - 1)})
			})
		}
		frontier, next = next, frontier
	}
	return nil, len(trail), d
}

// everything is how deep to go where there is no bound: what is left of the bounds ends it.
const everything = 1000

// Every state that two copies and a witness can come to, within bounds of terms, of messages under way and of writes,
// whatever the number of steps.
func TestExploreEveryState(t *testing.T) {
	t.Parallel()
	for name, m := range map[string]model{
		"three terms, one write": {terms: 3, wire: 1, writes: 1},
		"two writes":             {terms: 2, wire: 2, writes: 2},
		"three messages":         {terms: 2, wire: 3, writes: 1},
		"entry by entry":         {terms: 2, wire: 2, writes: 1, pieces: true},
		"far behind":             {terms: 2, wire: 1, writes: 2, pieces: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			depth := everything
			if raceDetector {
				depth = 16
			}
			found, states, depth := m.explore(state{}, depth)
			if found != nil {
				t.Fatal(found)
			}
			t.Logf("%d states, the farthest %d steps away", states, depth)
			if !raceDetector && states < 200_000 {
				t.Errorf("only %d states: the model does nothing", states)
			}
		})
	}
}

// From a LUN that is healthy, and from one whose other copy is out, further than all bounds above, but only so many steps.
func TestExploreFromHealthyAndDegraded(t *testing.T) {
	t.Parallel()
	for name, story := range map[string][]string{"healthy": healthy, "degraded": degraded} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := model{terms: modelTerms, wire: modelWire, writes: 3}
			depth := 13
			if raceDetector {
				depth = 9
			}
			found, states, _ := m.explore(m.after(t, story...), depth)
			if found != nil {
				t.Fatal(found)
			}
			t.Logf("%d states", states)
		})
	}
}

// Each rule, or a part of one, is taken away, and must be missed.
func TestExploreMissesEveryRule(t *testing.T) {
	t.Parallel()
	twoOwners := slices.Concat(healthy, []string{ // A has an entry alone; B owned the LUN without it; A owns it again
		"A writes", "B stands", "B asks W for a vote", "delivered B->W", "delivered W->B", "B has it on disk", "A restarts", "A stands", "A stands",
		"A asks W for a vote", "delivered A->W", "delivered W->A", "A has it on disk", "A takes the connection for broken", "A lets time pass",
	})
	for name, c := range map[string]struct {
		without rules
		from    []string
		want    string // how what is found begins
	}{
		"the gate":                         {rules{noGate: true}, healthy, "B is in sync and the witness would not vote for it"},
		"in sync only behind the witness":  {rules{earlySync: true}, degraded, "B is in sync and the witness would not vote for it"},
		"offered when it is sent":          {rules{offeredLate: true}, degraded, "B is in sync and the witness would not vote for it"},
		"acknowledged only when committed": {rules{ackEarly: true}, healthy, "write 2 was acknowledged and is not on the owner's disk"},
		"shortened in place":               {rules{wholeMatched: true}, healthy, "write 3 was acknowledged with 1 on disk"},
		"durable votes":                    {rules{forgetVote: true}, nil, "term 1 has two owners"},
		"comparison of logs":               {rules{anyLog: true}, healthy, "the owner of term 2 lacks entry 2"},
		"commit by the own term":           {rules{commitOldTerms: true}, twoOwners, "the owner of term 4 lacks entry 2"},
		"cut only where logs differ":       {rules{overwriteMatched: true}, healthy, "B holds all that may have been acknowledged and the witness would not vote for it"},
		"the witness stays":                {rules{witnessStands: true}, nil, "the witness owns the LUN"},
		"answers held":                     {rules{answersNotHeld: true}, healthy, "write 2 was acknowledged and is not on the owner's disk"},
		"far behind is out":                {rules{behindInSync: true}, ownsAgain, "B is in sync and lacks an acknowledged write"},
		"the owner's disk first":           {rules{witnessAhead: true}, healthy, "A is in sync and the witness would not vote for it"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := model{terms: modelTerms, wire: 3, writes: 2, pieces: c.without.commitOldTerms || c.without.behindInSync}
			story := m.after(t, c.from...)
			m.rules = c.without
			found, states, _ := m.explore(story, 12)
			if found == nil {
				t.Fatalf("it is not missed in %d states", states)
			}
			t.Logf("%d states: %v", states, found)
			if !strings.HasPrefix(found.what, c.want) {
				t.Errorf("it is missed otherwise than by %q:\n%v", c.want, found)
			}
		})
	}
}

// The copy that another owner's gate had given up is not waited for by the next one: what it acknowledges first is far behind.
func TestExploreComesToACopyThatWasFarBehind(t *testing.T) {
	t.Parallel()
	m := model{terms: 2, wire: 1, writes: 2, pieces: true}
	s := m.after(t, slices.Concat(ownsAgain, []string{
		"A sends to the copy", "delivered A->B", "delivered B->A", "A sends to the copy", "delivered A->B", "delivered B->A",
	})...)
	if g := s.nodes[0].gate; Level(g.level) != Out || g.acked != 1 {
		t.Fatalf("%+v", g)
	}
}

// That a copy which holds every acknowledged write can always be elected with the witness is more than any rule can give: once the
// owner has given it up and offered the witness a write, nobody but the owner knows whether that was acknowledged.
func TestExploreWhatNoRuleCanGive(t *testing.T) {
	t.Parallel()
	m := model{terms: 2, wire: 2, writes: 2, strict: true}
	found, _, _ := m.explore(m.after(t, healthy...), 12)
	if found == nil {
		t.Fatal("it was given: say so in docs/ARCHITECTURE.md")
	}
	if !strings.Contains(found.String(), "A lets time pass") {
		t.Errorf("it is missed though the copy was never given up:\n%v", found)
	}
}

// after returns the state that a story leads to, from nothing. Each part names one step, the first that begins so.
func (m *model) after(t *testing.T, story ...string) (s state) {
	t.Helper()
	for _, want := range story {
		found := false
		m.steps(&s, func(a step, next *state) {
			if !found && strings.HasPrefix(a.String(), want) {
				found, s = true, *next
			}
		})
		if !found {
			var can []string
			m.steps(&s, func(a step, _ *state) { can = append(can, a.String()) })
			t.Fatalf("no step %q; there are\n%s", want, strings.Join(can, "\n"))
		}
	}
	return s
}

var (
	elected = []string{
		"A stands", "A asks B for a vote", "delivered A->B", "delivered B->A", "A has it on disk",
		"A sends to the copy", "delivered A->B", "delivered B->A",
	}
	// A and the witness have two writes; A loses the LUN and owns it again. B has nothing.
	ownsAgain = slices.Concat(
		[]string{"A stands", "A asks W for a vote", "delivered A->W", "delivered W->A", "A has it on disk", "A takes the connection for broken", "A lets time pass"},
		[]string{"A sends to the witness", "delivered A->W", "delivered W->A"},
		[]string{"A writes", "A has it on disk", "A sends to the witness", "delivered A->W", "delivered W->A"},
		[]string{"A writes", "A has it on disk", "A sends to the witness", "delivered A->W", "delivered W->A"},
		[]string{"A restarts", "A stands", "A asks W for a vote", "delivered A->W", "delivered W->A"},
	)
	healthy  = slices.Concat(elected, []string{"A sends to the witness", "delivered A->W", "delivered W->A"})
	degraded = slices.Concat(healthy, []string{
		"A takes the connection for broken", "A lets time pass",
		"A writes", "A has it on disk", "A sends to the witness", "delivered A->W", "delivered W->A",
	})
)
