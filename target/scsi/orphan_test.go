package scsi_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/target/scsi"
)

// orphans is a pair of nodes that ask each other for sessions.
type orphans struct {
	*nodePair
	silent    bool // the other node does not answer
	elsewhere bool // sessions of a node's own are in a target that has another unit for the LUN at the moment
	asked     int
}

func newOrphans(t *testing.T) *orphans {
	o := &orphans{}
	o.nodePair = newNodes(t, scsi.Standby, func(i int, cfg *scsi.UnitConfig) {
		cfg.HolderLives = func(_ context.Context, port uint16, session uint64) (bool, error) {
			if o.asked++; int(port) == i+1 {
				return o.elsewhere, nil
			}
			if o.silent {
				return false, block.ErrUnavailable
			}
			return o.units[port-1].HasSession(session), nil
		}
	})
	return o
}

// restart begins a node's process anew: its sessions are gone, and have released nothing.
func (o *orphans) restart(node int) {
	fresh := newNodes(o.t, scsi.Standby, func(i int, c *scsi.UnitConfig) {
		c.Backend, c.Access, c.AccessChanged, c.AskOwner = o.cluster.Node(i), o.cluster.Node(i).Access, o.cluster.Node(i).AccessChanged, o.links[i].Ask
	})
	o.units[node], o.targets[node] = fresh.units[node], fresh.targets[node]
}

var reserve6 = cdb(0x16)

// The node of the holder is another than the owner, and its process has ended and begun again.
func TestReserveEndsWithTheProcessOfAnotherNode(t *testing.T) {
	for name, again := range map[string]func(*orphans, *scsi.Nexus) result{
		"write":   func(o *orphans, n *scsi.Nexus) result { return o.run(0, n, write10(0, 1), 0, pattern(512, 1)) },
		"reserve": func(o *orphans, n *scsi.Nexus) result { return o.run(0, n, reserve6, 0, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := newOrphans(t)
				holder, other := o.attach(1, "holder"), o.attach(0, "other")
				o.want(o.run(1, holder, reserve6, 0, nil), "good")
				o.want(again(o, other), "status 18")
				time.Sleep(time.Hour)
				o.want(again(o, other), "status 18") // it lives
				for range 100 {
					o.want(again(o, other), "status 18")
				}
				if o.asked > 3 {
					t.Errorf("its node was asked %d times", o.asked)
				}
				time.Sleep(time.Second)
				o.restart(1)
				o.want(again(o, other), "good")
			})
		})
	}
}

// The session ends while nobody owns the LUN, which then goes to another node than the session's.
func TestReserveEndsWithASessionThatEndedWithoutAnOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOrphans(t)
		holder, other := o.attach(0, "holder"), o.attach(1, "other")
		o.want(o.run(0, holder, reserve6, 0, nil), "good")
		o.cluster.Move(-1)
		o.targets[0].Detach(holder)
		o.cluster.Move(1)
		o.run(1, other, tur, 0, nil) // 06/2A/06
		o.want(o.run(1, other, write10(0, 1), 0, pattern(512, 1)), "good")
	})
}

// The owner's own target has another unit for the LUN, as while a copy is being started.
func TestReserveStaysWithASessionThatHasAnotherUnitAtTheMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOrphans(t)
		holder, other := o.attach(0, "holder"), o.attach(0, "other")
		o.want(o.run(0, holder, reserve6, 0, nil), "good")
		o.elsewhere = true
		o.cluster.Move(-1) // so nobody releases it
		o.targets[0].Detach(holder)
		o.cluster.Move(0)
		o.run(0, other, tur, 0, nil) // 06/2A/06
		for range 3 {
			o.want(o.run(0, other, write10(0, 1), 0, pattern(512, 1)), "status 18")
		}
		o.elsewhere = false
		o.want(o.run(0, other, write10(0, 1), 0, pattern(512, 1)), "good")
	})
}

// The owner moves: the reservation stays with its session, and ends with it.
func TestReserveFollowsItsSessionOverAMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOrphans(t)
		holder, other := o.attach(0, "holder"), o.attach(1, "other")
		o.want(o.run(0, holder, reserve6, 0, nil), "good")
		o.cluster.Move(1)
		o.run(1, other, tur, 0, nil) // 06/2A/06
		o.want(o.run(1, other, write10(0, 1), 0, pattern(512, 1)), "status 18")
		o.targets[0].Detach(holder)
		o.want(o.run(1, other, write10(0, 1), 0, pattern(512, 1)), "good")
	})
}

// The node of the holder is lost. If it was only cut off, its initiator hears that the reservation has been released.
func TestReserveEndsWhenItsNodeIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOrphans(t)
		holder, other := o.attach(1, "holder"), o.attach(0, "other")
		o.want(o.run(1, holder, reserve6, 0, nil), "good")
		write := func() result { return o.run(0, other, write10(0, 1), 0, pattern(512, 1)) }
		refused := func(d time.Duration) {
			for began := time.Now(); time.Since(began) < d; time.Sleep(time.Second) {
				o.want(write(), "status 18")
			}
		}
		o.silent = true
		refused(14 * time.Second)
		o.silent = false
		refused(time.Second) // it was there all the time
		o.silent = true
		for range 10 { // nobody asks in between
			o.want(write(), "status 18")
			time.Sleep(time.Hour)
		}
		refused(15 * time.Second)
		o.want(write(), "good")
		o.want(o.run(1, holder, tur, 0, nil), "06/2A/04")
	})
}
