package replication

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// notHeldUp asserts that no write waited for a replica that does not answer, and that no owner was elected. What it took beyond the
// others is noise, and logged.
func (l *load) notHeldUp(term uint64) {
	l.t.Helper()
	if took := time.Duration(l.longest.Load()); took > stalledRequest/2 {
		l.t.Errorf("a write took %v", took)
	}
	if s := l.g.Status(); s.Term != term || !s.Serving {
		l.t.Errorf("the LUN was owned in term %d, and now %+v", term, s)
	}
}

// The witness is not needed while both copies are in sync: nobody notices that it is lost, nor that it is back. Then it votes.
func TestWitnessLostWhileHealthyIsNotNoticed(t *testing.T) {
	c, owner, other, _ := pair(t, patientTiming())
	term := c.group(owner).Status().Term
	l := startLoad(t, c.group(owner))
	l.goesOn(100)
	c.stop("w")
	for from := time.Now(); time.Since(from) < 2*patientTiming().Heartbeat; { // longer than any timer of an owner
		l.goesOn(10)
	}
	c.start("w", false)
	tail := c.group(owner).Status().LastIndex
	eventually(t, "the witness has what was written without it", func() bool {
		last, err := c.group("w").cfg.Journal.LastIndex()
		return err == nil && last >= tail
	})
	l.goesOn(10)
	l.notHeldUp(term)
	l.end()
	t.Logf("%d writes, the longest took %v", l.acked.Load(), time.Duration(l.longest.Load()))
	c.stop(owner)
	l.check(c) // the other copy and the witness elect an owner
	if got := c.owner(); got != other {
		t.Fatalf("%s owns the LUN", got)
	}
}

// A degraded LUN needs the witness: writes wait without it, and are carried out when it is back, whoever returns first.
func TestWitnessLostWhileDegraded(t *testing.T) {
	for name, back := range map[string][]string{"witness first": {"w", "copy"}, "copy first": {"copy", "w"}} {
		t.Run(name, func(t *testing.T) {
			c, owner, other, _ := pair(t, patientTiming())
			l := startLoad(t, c.group(owner))
			l.goesOn(20)
			c.stop(other)
			l.goesOn(100)
			c.stop("w")
			l.waits(c, owner)
			for _, node := range back {
				if node == "copy" {
					node = other
				}
				c.start(node, false)
				l.goesOn(20) // the owner of before: nobody else has what was written without the other copy
			}
			c.healthy(owner)
			l.end()
			compareCopies(t, c, "a", "b")
			c.stop(owner)
			l.check(c)
		})
	}
}

// waits asserts that nothing is written any more, now that the owner knows that it is alone.
func (l *load) waits(c *cluster, owner string) {
	l.t.Helper()
	eventually(l.t, "the owner has stepped down", func() bool { return !c.group(owner).Status().Serving })
	before := l.acked.Load()
	for from := time.Now(); time.Since(from) < time.Second; time.Sleep(10 * time.Millisecond) {
		if c.group(owner).Status().Serving {
			l.t.Fatal("a LUN is served by one of three")
		}
	}
	if now := l.acked.Load(); now != before {
		l.t.Fatalf("%d writes were acknowledged by one of three", now-before)
	}
}

// Both are lost at once: what was acknowledged is on the copy in sync too, so either copy may be elected with the witness.
func TestCopyAndWitnessLostAtOnce(t *testing.T) {
	for name, first := range map[string]string{"witness first": "w", "copy first": "copy"} {
		t.Run(name, func(t *testing.T) {
			c, owner, other, _ := pair(t, patientTiming())
			l := startLoad(t, c.group(owner))
			l.goesOn(100)
			c.stop("w")
			c.stop(other)
			l.waits(c, owner)
			l.end()
			if first == "copy" {
				first = other
			}
			c.start(first, false)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if err := c.write(ctx, loadBlocks, 1); err != nil {
				t.Fatalf("with %s back: %v", first, err)
			}
			l.check(c)
			for _, node := range []string{other, "w"} {
				if node != first {
					c.start(node, false)
				}
			}
			c.healthy(c.owner())
			compareCopies(t, c, "a", "b")
			l.check(c)
		})
	}
}

// wipe loses a node's disk and brings it back as its next incarnation, which the catalog then asks for.
func (c *cluster) wipe(node string) (want []Member) {
	c.t.Helper()
	c.stop(node)
	if err := os.RemoveAll(filepath.Join(c.dir, node)); err != nil {
		c.t.Fatal(err)
	}
	want = c.rename(node, "2")
	if err := c.startJoining(node); err != nil {
		c.t.Fatal(err)
	}
	return want
}

// A witness that lost its disk is another one, under a new ID. Nobody waits while it joins, and then it carries the LUN.
func TestWitnessWipedWhileHealthyIsReplacedUnderLoad(t *testing.T) {
	c, owner, other, _ := pair(t, patientTiming())
	term := c.group(owner).Status().Term
	l := startLoad(t, c.group(owner))
	l.goesOn(100)
	want := c.wipe("w")
	eventually(t, "the new witness votes", func() bool {
		return c.settled(owner, want, 1)
	})
	c.healthy(owner)
	l.goesOn(20)
	l.notHeldUp(term)
	c.stop(other)
	l.goesOn(20) // with the new witness's vote
	c.start(other, false)
	c.healthy(owner)
	l.end()
	t.Logf("%d writes, the longest took %v", l.acked.Load(), time.Duration(l.longest.Load()))
	c.stop(owner)
	l.check(c) // and so is the next owner elected
}

// A witness that loses its disk while it carries a degraded LUN takes the majority with it: nothing is served, and the new one
// does not get a vote, until the other copy is back. Nothing is lost if the owner's disk is not.
func TestWitnessWipedWhileDegradedIsReplacedWhenTheCopyIsBack(t *testing.T) {
	c, owner, other, _ := pair(t, patientTiming())
	l := startLoad(t, c.group(owner))
	l.goesOn(20)
	c.stop(other)
	l.goesOn(100)
	want := c.wipe("w")
	l.waits(c, owner)
	if _, err := c.group(owner).SetMembers(t.Context(), want); err == nil {
		t.Fatal("one of three has changed the group's members")
	}
	c.start(other, false)
	eventually(t, "the new witness votes", func() bool {
		return c.settled(owner, want, 1)
	})
	c.healthy(owner)
	l.goesOn(20)
	l.end()
	compareCopies(t, c, "a", "b")
	_, servers, err := c.group(owner).configuration()
	if _, old := servers["w/1"]; err != nil || old || servers["w/2"].Suffrage != raft.Voter {
		t.Fatal(errors.Join(err, errors.New("the old witness is still a member")))
	}
	c.stop(owner)
	l.check(c)
}
