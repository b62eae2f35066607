package replication

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// queue says how many wait, and whether anybody looks after them.
func (e *elections) queue() (waiting int, ticking bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.waiting), e.ticking
}

// electInTurn leaves room for so many elections on each node.
func (f *fleet) electInTurn(window float64) {
	for _, n := range f.nodes {
		n.host.elections.mu.Lock()
		n.host.elections.window = window
		n.host.elections.mu.Unlock()
	}
}

// grown checks that elections of real LUNs end well in the eyes of whoever counts them.
func (f *fleet) grown(window float64) {
	f.t.Helper()
	for name, n := range f.nodes {
		n.host.elections.mu.Lock()
		if n.host.elections.sweepLocked(time.Now()); n.host.elections.window <= window {
			f.t.Errorf("node %s has elected LUNs, and its window is still %v", name, window)
		}
		n.host.elections.mu.Unlock()
	}
}

// standing starts candidates, one after the other, and returns who is let through.
func standing(e *elections, groups []*Group) []*election {
	out := make([]*election, len(groups))
	for i, g := range groups {
		go func() { out[i], _ = e.admit(g, time.Minute, nil) }()
		synctest.Wait()
	}
	return out
}

func inRace(els []*election) (n int) {
	synctest.Wait()
	for _, el := range els {
		if el != nil {
			n++
		}
	}
	return n
}

// A node has no more than a window of elections under way; who came first is next.
func TestElectionsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, how := newElections(), map[*Group]int{}
		e.window, e.standing = 3, func(g *Group, _, _ time.Time) int { return how[g] }
		var groups []*Group
		for range 8 {
			groups = append(groups, &Group{})
		}
		els := standing(e, groups)
		if inRace(els) != 3 || els[2] == nil {
			t.Fatalf("%d of 8 were let through, want the first 3", inRace(els))
		}
		if again, err := e.admit(groups[1], time.Minute, nil); err != nil || again != els[1] {
			t.Errorf("the second voter of one that is under way: %v", err)
		}
		ends := func(i, as int) {
			e.mu.Lock()
			defer e.mu.Unlock()
			how[groups[i]] = as
		}
		ends(0, electionWon)
		time.Sleep(2 * electionSweep)
		if inRace(els) != 5 || els[4] == nil { // one ended, and the window is 4
			t.Errorf("after one has been won %d were let through, want 5", inRace(els))
		}
		ends(3, electionOver)
		time.Sleep(2 * electionSweep)
		if inRace(els) != 6 || els[5] == nil {
			t.Errorf("after one is over %d were let through, want 6", inRace(els))
		}
		e.answered(els[4], false) // nobody would vote for it
		time.Sleep(2 * electionSweep)
		if inRace(els) != 7 {
			t.Errorf("after one was refused %d were let through, want 7", inRace(els))
		}
		e.answered(els[5], true) // has a vote, and goes on
		e.over(groups[6])
		time.Sleep(2 * electionSweep)
		if inRace(els) != 8 {
			t.Errorf("%d were let through, want all", inRace(els))
		}
		if waiting, ticking := e.queue(); waiting != 0 || ticking {
			t.Errorf("%d wait, looked after: %v; want neither", waiting, ticking)
		}
	})
}

// The window is halved when LUNs are lost, once for those that are lost together, and never closes.
func TestElectionsYieldToLosses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newElections()
		e.standing = func(*Group, time.Time, time.Time) int { return electionUnder }
		var groups []*Group
		for range 100 {
			groups = append(groups, &Group{})
		}
		if n := inRace(standing(e, groups)); n != 100 {
			t.Fatalf("%d of 100 were let through", n)
		}
		calm := newElections()
		calm.lost()
		if calm.window != electionsAtFirst {
			t.Errorf("window %v after a loss with nothing under way", calm.window)
		}
		for range 50 {
			e.lost()
		}
		if e.window != 50 { // of what was under way, not of what would have been let through
			t.Errorf("window %v after LUNs were lost together, want 50", e.window)
		}
		for range 10 {
			time.Sleep(electionHalve)
			e.lost()
		}
		if e.window != electionsLeast {
			t.Errorf("window %v after many losses, want %d", e.window, electionsLeast)
		}
	})
}

// An election that has ended lets nobody through later, also if nobody has looked since.
func TestElectionsThatHaveEndedCountNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, how := newElections(), electionUnder
		e.standing = func(*Group, time.Time, time.Time) int { return how }
		g := &Group{}
		before, err := e.admit(g, time.Minute, nil)
		if err != nil {
			t.Fatal(err)
		}
		if same, err := e.admit(g, time.Minute, nil); err != nil || same != before {
			t.Errorf("its other voter: %v", err)
		}
		how = electionOver
		e.window = 0
		if _, err := e.admit(g, time.Second, nil); !errors.Is(err, errElectionsFull) {
			t.Errorf("let through by an election that is over: %v", err)
		}
		e.window = 1
		if _, err := e.admit(g, time.Second, nil); err != nil {
			t.Fatal(err)
		}
		how = electionWon
		if _, err := e.admit(g, time.Second, nil); err != nil || e.window != 2 {
			t.Errorf("found won when it stands again: %v, window %v, want 2", err, e.window)
		}
	})
}

// Whoever gives up leaves the queue, unless another request of his still waits.
func TestElectionsAreLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newElections()
		e.window, e.standing = 1, func(*Group, time.Time, time.Time) int { return electionUnder }
		first, second := &Group{}, &Group{}
		if _, err := e.admit(first, time.Second, nil); err != nil {
			t.Fatal(err)
		}
		closed, left := make(chan struct{}), make(chan error)
		go func() {
			_, err := e.admit(second, time.Minute, closed)
			left <- err
		}()
		if _, err := e.admit(second, time.Second, nil); !errors.Is(err, errElectionsFull) {
			t.Errorf("waited in vain: %v", err)
		}
		if waiting, _ := e.queue(); waiting != 1 {
			t.Errorf("%d wait, want one, of whom one request is left", waiting)
		}
		close(closed)
		if err := <-left; err == nil {
			t.Error("a replica that is closed was let through")
		}
		time.Sleep(2 * electionSweep)
		if waiting, ticking := e.queue(); waiting != 0 || ticking {
			t.Errorf("%d wait, looked after: %v; want neither", waiting, ticking)
		}
	})
}

// With room for one election at a time, all LUNs are served after all the same, and again after their owner's node has died.
func TestLUNsAreElectedInTurn(t *testing.T) {
	f := newFleet(t, 3)
	f.served() // so that all nodes reach each other: nobody waits to ask who cannot be reached
	f.electInTurn(1)
	f.open(3, 15)
	f.served()
	for i := range f.luns {
		f.write(i)
	}
	f.grown(1)
	f.electInTurn(1)
	f.stop("a")
	f.served()
	for i := range f.luns {
		f.write(i)
	}
}
