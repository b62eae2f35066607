package scsi_test

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/target/reserve"
	"sanctuary/target/scsi"
	"sanctuary/target/scsi/scsitest"
)

// login attaches a session of an initiator port, without its unit attention, and returns it and a channel that is closed when the
// login may be answered.
func (p *nodePair) login(node int, name string, isid byte) (*scsi.Nexus, <-chan struct{}) {
	n := &scsi.Nexus{Initiator: "iqn.2024-01.test:" + name, ISID: [6]byte{0x80, isid}, Port: uint16(node + 1)}
	p.targets[node].Attach(n)
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		if err := p.targets[node].Reinstate(context.Background(), n); err != nil {
			p.t.Errorf("login: %v", err)
		}
	}()
	return n, answered
}

func (p *nodePair) loggedIn(node int, name string, isid byte) *scsi.Nexus {
	n, answered := p.login(node, name, isid)
	<-answered
	p.want(p.run(node, n, tur, 0, nil), "06/29/00")
	return n
}

// The same initiator port logs in at another node: what its old session had begun has ended before the login is answered, wherever
// either session is. The old session itself goes on, and others are left alone.
func TestLoginElsewhereEndsWhatTheOldSessionHasBegun(t *testing.T) {
	for _, first := range []int{0, 1} { // the owner is node 0
		second := 1 - first
		synctest.Test(t, func(t *testing.T) {
			p := newNodes(t, scsi.ActiveNonOptimized, nil)
			old, other := p.loggedIn(first, "host", 1), p.loggedIn(first, "host", 2)
			write := func(n *scsi.Nexus, lba byte) *scsi.Task {
				return p.task(first, n, write10(uint32(lba), 1), 0, pattern(512, lba+1))
			}
			p.takes(2 * time.Second)
			results := make(chan result, 1)
			running := write(old, 0)
			go func() { results <- p.execute(context.Background(), first, running) }()
			coming, others := write(old, 1), write(other, 2)
			time.Sleep(100 * time.Millisecond)
			p.takes(0)
			_, answered := p.login(second, "host", 1)
			synctest.Wait()
			select {
			case <-answered:
				t.Error("answered while a write of the old session could still land")
			default:
			}
			<-answered
			at := p.cluster.Bytes(block.Range{Count: 2})
			if got := <-results; outcome(&got.Task) != "good" && outcome(&got.Task) != "busy" {
				t.Errorf("the running write: %s", outcome(&got.Task))
			}
			p.want(p.execute(t.Context(), first, coming), "busy")
			if !bytes.Equal(at, p.cluster.Bytes(block.Range{Count: 2})) {
				t.Error("something of the old session landed after the answer")
			}
			if first == 0 {
				p.want(p.execute(t.Context(), first, others), "good")
			}
			p.want(p.run(first, other, write10(2, 1), 0, pattern(512, 3)), "good")
			p.want(p.run(first, old, write10(3, 1), 0, pattern(512, 4)), "good")
		})
	}
}

// What the old session's node has asked the owner for and is still on its way does nothing when it arrives.
func TestLoginElsewhereRefusesWhatIsOnItsWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newNodes(t, scsi.ActiveNonOptimized, nil)
		old := p.loggedIn(1, "host", 1)
		p.want(p.run(1, old, write10(5, 1), 0, make([]byte, 512)), "good")
		p.links[1].Fault = func() scsitest.Fault { return scsitest.Fault{Delay: 200 * time.Millisecond} }
		task := p.task(1, old, write10(0, 1), 0, pattern(512, 1))
		done := make(chan result, 1)
		go func() { done <- p.execute(context.Background(), 1, task) }()
		time.Sleep(50 * time.Millisecond)
		fresh := p.loggedIn(0, "host", 1)
		p.want(p.run(0, fresh, write10(0, 1), 0, pattern(512, 2)), "good")
		p.want(<-done, "busy")
		if !bytes.Equal(p.cluster.Bytes(block.Range{Count: 1}), pattern(512, 2)) {
			t.Error("the old session's write landed behind the new one's")
		}
		p.links[1].Fault = nil
		p.want(p.run(1, old, write10(0, 1), 0, pattern(512, 3)), "good") // it goes on
	})
}

// What another node has taken in, and would carry out once it owns the LUN itself, is fenced by the login: the owner need not reach that node.
func TestLoginElsewhereFencesWhatAnotherNodeHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newNodes(t, scsi.ActiveNonOptimized, nil)
		old, other := p.loggedIn(1, "host", 1), p.loggedIn(1, "host", 2)
		coming := p.task(1, old, write10(0, 1), 0, pattern(512, 1)) // its data is not there yet
		fresh := p.loggedIn(0, "host", 1)
		later := p.task(1, other, write10(1, 1), 0, pattern(512, 2))
		seen := p.run(0, fresh, read10(0, 1), 512, nil)
		p.want(seen, "good")
		p.cluster.Move(1)
		p.want(p.run(1, old, tur, 0, nil), "06/2A/06")
		p.want(p.run(1, other, tur, 0, nil), "06/2A/06")
		p.want(p.execute(t.Context(), 1, coming), "busy")
		if !bytes.Equal(p.cluster.Bytes(block.Range{Count: 1}), seen.data) {
			t.Error("a write of the old session landed behind a read of the new one")
		}
		p.want(p.execute(t.Context(), 1, later), "good") // accepted after the login
	})
}

// The entry is there when the login is answered, whichever node it came to, and once: commands cost none.
func TestLoginIsInTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newNodes(t, scsi.ActiveNonOptimized, nil)
		for node := range 2 {
			before := p.cluster.State()
			n, answered := p.login(node, "host", 1)
			<-answered
			if after := p.cluster.State(); after.Version != before.Version+1 || !bytes.Equal(after.Blob, before.Blob) {
				t.Errorf("login at node %d: state %d, then %d", node, before.Version, after.Version)
			}
			p.want(p.run(node, n, tur, 0, nil), "06/29/00")
			p.want(p.run(node, n, read10(0, 1), 512, nil), "good")
			if after := p.cluster.State(); after.Version != before.Version+1 {
				t.Errorf("commands at node %d make entries: state %d", node, after.Version)
			}
		}
		// Without an owner nobody waits.
		p.cluster.Move(-1)
		began := time.Now()
		_, answered := p.login(0, "host", 2)
		if <-answered; time.Since(began) != 0 {
			t.Errorf("a login without an owner took %v", time.Since(began))
		}
	})
}

// An owner that was not told of a login ends the old session's tasks before the new one's first command.
func TestOwnerFindsOutAboutALogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newNodes(t, scsi.ActiveNonOptimized, nil)
		old := p.loggedIn(0, "host", 1)
		coming := p.task(0, old, write10(0, 1), 0, pattern(512, 1))
		p.links[1].Fault = func() scsitest.Fault { return scsitest.Fault{Stray: 2 * time.Second} }
		fresh, answered := p.login(1, "host", 1)
		<-answered
		p.links[1].Fault = nil
		p.run(1, fresh, cdb(0x03, 0, 0, 0, 18), 18, nil) // takes 29/00
		p.want(p.run(1, fresh, write10(0, 1), 0, pattern(512, 2)), "good")
		p.want(p.execute(t.Context(), 0, coming), "busy")
		time.Sleep(5 * time.Second) // what was lost arrives after all
		p.want(p.execute(t.Context(), 0, p.task(0, old, write10(1, 1), 0, pattern(512, 3))), "good")
		if !bytes.Equal(p.cluster.Bytes(block.Range{Count: 1}), pattern(512, 2)) {
			t.Error("the old session's write landed behind the new one's")
		}
	})
}

// RESERVE that is cut short while it waits for a write it shuts out is not answered GOOD before that has ended, nor is the next.
func TestReserveCutShortIsNotGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newNodes(t, scsi.ActiveNonOptimized, nil)
		holder, writer := p.loggedIn(0, "holder", 1), p.loggedIn(0, "writer", 1)
		p.takes(time.Second)
		writing := make(chan result, 1)
		task := p.task(0, writer, write10(0, 1), 0, pattern(512, 1))
		go func() { writing <- p.execute(context.Background(), 0, task) }()
		time.Sleep(10 * time.Millisecond)
		p.takes(0)
		reserving := make(chan result, 1)
		begun := time.Now()
		c, list := prout(reserve.RegisterAndIgnore, 0, 0, 1)
		p.want(p.run(0, holder, c, 0, list), "good")
		c, list = prout(reserve.ReserveAction, reserve.ExclusiveAccess, 1, 0)
		first := p.task(0, holder, c, 0, list)
		go func() { reserving <- p.execute(context.Background(), 0, first) }()
		synctest.Wait()
		_, answered := p.login(1, "holder", 1)
		p.want(<-reserving, "0B/2E/02") // it is in the log, but not everything that it shuts out has ended
		p.want(p.run(0, holder, c, 0, list), "good")
		if since := time.Since(begun); since < 900*time.Millisecond {
			t.Errorf("reserved after %v, while the write could still land", since)
		}
		p.want(<-writing, "good")
		<-answered
	})
}
