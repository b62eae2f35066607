package scsi_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/target/reserve"
	"sanctuary/target/scsi"
	"sanctuary/target/scsi/scsitest"
)

// A COMPARE AND WRITE that another node carries out is never answered with what an initiator takes for "not done" while it may have been: it would
// do it again, and find its own data there.
func TestForwardedCompareAndWriteWhoseAnswerIsLost(t *testing.T) {
	lose := func(then func(asks int) scsitest.Fault) func(*nodePair) func(asks int) scsitest.Fault {
		return func(*nodePair) func(int) scsitest.Fault { return then }
	}
	for name, c := range map[string]struct {
		faults func(*nodePair) func(asks int) scsitest.Fault // by how many requests there were before
		want   string
		done   bool
	}{
		"answer lost":         {lose(func(n int) scsitest.Fault { return scsitest.Fault{Mute: n == 0} }), "good", true},
		"link broken for 3 s": {lose(func(n int) scsitest.Fault { return scsitest.Fault{Mute: n < 300} }), "good", true},
		"request comes too late": {lose(func(n int) scsitest.Fault {
			return scsitest.Fault{Stray: time.Duration(bit(n == 0)) * 100 * time.Millisecond}
		}), "busy", false},
		"link broken for good": {lose(func(int) scsitest.Fault { return scsitest.Fault{Mute: true} }), "0B/2E/02", true},
		"owner lost": {func(p *nodePair) func(int) scsitest.Fault {
			return func(n int) scsitest.Fault {
				if n == 0 {
					time.AfterFunc(50*time.Millisecond, func() { p.cluster.Move(1) })
				}
				return scsitest.Fault{Mute: n == 0, Stray: time.Duration(bit(n > 0)) * time.Hour}
			}
		}, "0B/2E/02", true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newNodes(t, scsi.ActiveNonOptimized, nil)
				b := p.attach(1, "host")
				p.run(1, b, tur, 0, nil)
				asks, fault := 0, c.faults(p)
				p.links[1].Fault = func() scsitest.Fault { asks++; return fault(asks - 1) }
				data := pattern(512, 1)
				caw := cdb(0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
				p.want(p.run(1, b, caw, 0, append(make([]byte, 512), data...)), c.want)
				time.Sleep(time.Hour)
				if done := bytes.Equal(p.cluster.Bytes(block.Range{Count: 1}), data); done != c.done {
					t.Errorf("it was done: %v, want %v", done, c.done)
				}
			})
		})
	}
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// So is the answer of one that compared and found a difference, and nobody hears of one when the owner has carried out many others since.
func TestOwnerRemembersHowCompareAndWriteEnded(t *testing.T) {
	for others, want := range map[int]string{0: "0E/1D/00", 1023: "0E/1D/00", 1100: "0B/2E/02"} {
		synctest.Test(t, func(t *testing.T) {
			p := newNodes(t, scsi.ActiveNonOptimized, nil)
			b := p.attach(1, "host")
			p.run(1, b, tur, 0, nil)
			caw := cdb(0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
			miss := append(pattern(512, 1), pattern(512, 2)...)
			asks := 0
			p.links[1].Fault = func() scsitest.Fault {
				if asks++; asks == 1 {
					return scsitest.Fault{Mute: true}
				}
				if asks == 2 { // the first request to end it
					for range others {
						p.run(1, b, caw, 0, miss)
					}
				}
				return scsitest.Fault{}
			}
			p.want(p.run(1, b, caw, 0, miss), want)
		})
	}
}

// The owner itself: a COMPARE AND WRITE whose fate its log does not tell.
func TestOwnCompareAndWriteOfUnknownFate(t *testing.T) {
	p := newNodes(t, scsi.Standby, nil)
	a := p.attach(0, "host")
	p.cluster.Forget = func() bool { return true }
	caw := cdb(0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
	p.want(p.run(0, a, caw, 0, append(make([]byte, 512), pattern(512, 1)...)), "0B/2E/02")
	p.want(p.run(0, a, write10(0, 1), 0, pattern(512, 1)), "busy") // to do it again is harmless
}

// PERSISTENT RESERVE OUT is asked for again until it is known whether the LUN's log has it. While it is not, the initiator is told so: it
// looks at the keys.
func TestReservationOfUnknownFate(t *testing.T) {
	for name, c := range map[string]struct {
		node   int
		broken func(p *nodePair)
		want   string
	}{
		"link broken for good": {1, func(p *nodePair) {
			p.links[1].Fault = func() scsitest.Fault { return scsitest.Fault{LoseAnswer: true} }
		}, "0B/2E/02"},
		"owner lost, none after it": {1, func(p *nodePair) {
			p.links[1].Fault = func() scsitest.Fault { p.cluster.Move(-1); return scsitest.Fault{Stray: time.Hour} }
		}, "0B/2E/02"},
		"owner lost for 2 s": {1, func(p *nodePair) {
			p.links[1].Fault = func() scsitest.Fault {
				p.links[1].Fault = nil
				time.AfterFunc(50*time.Millisecond, func() { p.cluster.Move(-1) })
				time.AfterFunc(2*time.Second, func() { p.cluster.Move(1) })
				return scsitest.Fault{LoseAnswer: true}
			}
		}, "good"},
		"slow owner": {1, func(p *nodePair) {
			p.takes(1500 * time.Millisecond)
			p.links[1].Fault = func() scsitest.Fault { p.links[1].Fault = nil; return scsitest.Fault{LoseAnswer: true} }
		}, "good"},
		"ownership lost while it is made": {0, func(p *nodePair) {
			p.takes(200 * time.Millisecond)
			time.AfterFunc(100*time.Millisecond, func() { p.cluster.Move(1) })
		}, "good"},
		"its own log never tells": {0, func(p *nodePair) {
			p.takes(200 * time.Millisecond)
			time.AfterFunc(100*time.Millisecond, func() { p.cluster.Move(-1) })
		}, "0B/2E/02"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newNodes(t, scsi.Standby, nil)
				n := p.attach(c.node, "host")
				c.broken(p)
				p.want(p.prout(c.node, n, reserve.Register, 0, 0, 7), c.want)
				time.Sleep(2 * time.Hour)
			})
		})
	}
}

// ABORT TASK is not answered FUNCTION COMPLETE while a PERSISTENT RESERVE OUT may yet be made, or may have been without anybody knowing.
func TestAbortedReservationOfUnknownFate(t *testing.T) {
	for name, c := range map[string]struct {
		node   int
		broken func(p *nodePair)
		answer scsi.FunctionResponse
	}{
		"made":                      {0, func(*nodePair) {}, scsi.FunctionComplete},
		"its own log does not tell": {0, func(p *nodePair) { p.cluster.Forget = func() bool { return true } }, scsi.FunctionRejected},
		"no answer of the owner": {1, func(p *nodePair) {
			p.links[1].Fault = func() scsitest.Fault { return scsitest.Fault{LoseAnswer: true} }
		}, scsi.FunctionRejected},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newNodes(t, scsi.Standby, nil)
				n := p.attach(c.node, "host")
				p.takes(100 * time.Millisecond)
				c.broken(p)
				cdb, list := prout(reserve.Register, 0, 0, 7)
				task := p.task(c.node, n, cdb, 0, list)
				done := make(chan result, 1)
				go func() { done <- p.execute(context.Background(), c.node, task) }()
				time.Sleep(50 * time.Millisecond)
				if r := p.targets[c.node].Manage(scsi.AbortTask, n, 0, task.Tag)(t.Context()); r != c.answer {
					t.Errorf("answered %d, want %d", r, c.answer)
				}
				p.want(<-done, "aborted")
				time.Sleep(2 * time.Hour)
			})
		})
	}
}

// PREEMPT AND ABORT ends a COMPARE AND WRITE of which its node cannot say what became of it. Asked for again it is made once, and answered when
// the owner has shown that nothing of the other can land any more.
func TestPreemptAndAbortOfATaskOfUnknownFate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newNodes(t, scsi.Standby, nil)
		a := p.attach(0, "a")
		victim := &scsi.Nexus{Initiator: "iqn.2024-01.test:victim", ISID: [6]byte{0x80, 7}, Port: 1}
		p.targets[0].Attach(victim)
		p.run(0, victim, tur, 0, nil)
		p.want(p.prout(0, a, reserve.Register, 0, 0, 7), "good")
		p.want(p.prout(0, victim, reserve.Register, 0, 0, 8), "good")
		p.want(p.prout(0, victim, reserve.ReserveAction, reserve.WriteExclusiveRegistrantsOnly, 8, 0), "good")
		p.takes(400 * time.Millisecond)
		caw := p.task(0, victim, cdb(0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1), 0, make([]byte, 1024))
		done := make(chan result, 1)
		go func() { done <- p.execute(context.Background(), 0, caw) }()
		time.Sleep(50 * time.Millisecond)
		p.takes(10 * time.Millisecond)
		var writes atomic.Int32
		p.cluster.Forget = func() bool { return writes.Add(1) == 2 } // the change is made first, then the task ends
		p.want(p.prout(0, a, reserve.PreemptAndAbort, reserve.WriteExclusiveRegistrantsOnly, 7, 8), "good")
		p.want(<-done, "aborted")
	})
}

// A LUN that is taken away ends tasks. What became of one is not known: all the same it has ended, and nothing of the unit stays behind.
func TestRemovedLUNLeavesNothingBehindThoughATaskIsOfUnknownFate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := scsitest.NewCluster(block.Geometry{Capacity: nodeSectors, LogicalBlockBytes: 512}, 1, scsi.Standby)
		cluster.Slow, cluster.Forget = func() time.Duration { return 100 * time.Millisecond }, func() bool { return true }
		unit, err := scsi.NewUnit(scsi.UnitConfig{
			Identity: testIdentity, Backend: cluster.Node(0), Access: cluster.Node(0).Access, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		p := &nodePair{t: t, cluster: cluster, targets: [2]*scsi.Target{scsi.NewTarget(scsi.TargetConfig{})}}
		if err := errors.Join(p.targets[0].Add(0, unit)); err != nil {
			t.Fatal(err)
		}
		n := &scsi.Nexus{Initiator: "iqn.2024-01.test:a", Port: 1}
		p.targets[0].Attach(n)
		p.run(0, n, tur, 0, nil)
		caw := p.task(0, n, cdb(0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1), 0, make([]byte, 1024))
		done := make(chan result, 1)
		go func() { done <- p.execute(context.Background(), 0, caw) }()
		time.Sleep(50 * time.Millisecond)
		if err := p.targets[0].Remove(t.Context(), 0); err != nil {
			t.Error(err)
		}
		p.want(<-done, "aborted")
		if in := scsi.TargetsOf(unit); in != 1 { // the one for other nodes
			t.Errorf("the unit is still found in %d targets", in)
		}
	})
}

// A LUN that another unit comes to stand for keeps its initiators: what runs, and what has come and has not begun, they send again at once.
func TestReplacedUnitAnswersWhatItHad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 512, nil)
		started, _ := blocked(g)
		unit := func(id scsi.Identity) *scsi.Unit {
			u, err := scsi.NewUnit(scsi.UnitConfig{
				Identity: id, Backend: scsitest.NewMemory(block.Geometry{Capacity: testSectors, LogicalBlockBytes: 512}),
				Access: func() scsi.Access { return *g.access.Load() },
			})
			if err != nil {
				t.Fatal(err)
			}
			return u
		}
		running, coming := g.task(g.nexus, read1, 512, nil), g.task(g.nexus, write1, 0, make([]byte, 512))
		g.target.Accept(running)
		g.target.Accept(coming)
		done := make(chan result, 1)
		go func() { done <- g.execute(t.Context(), running) }()
		<-started
		if err := g.target.Replace(t.Context(), 0, unit(testIdentity)); err != nil {
			t.Fatal(err)
		}
		g.want(<-done, "busy")
		for g.run(g.nexus, tur, 0, nil).Status != scsi.StatusGood {
		}
		g.want(g.execute(t.Context(), coming), "busy")
		g.want(g.run(g.nexus, write1, 0, make([]byte, 512)), "good")

		coming = g.task(g.nexus, write1, 0, make([]byte, 512))
		g.target.Accept(coming)
		another := testIdentity
		another.NAA[15]++
		if err := g.target.Replace(t.Context(), 0, unit(another)); err != nil {
			t.Fatal(err)
		}
		g.want(g.execute(t.Context(), coming), "aborted") // not for another LUN
	})
}

// An initiator that logs in anew is not refused because nobody knows what became of a command of its old session.
func TestLoginAfterATaskOfUnknownFate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newNodes(t, scsi.Standby, nil)
		old := p.loggedIn(0, "host", 1)
		p.takes(100 * time.Millisecond)
		var writes atomic.Int32
		p.cluster.Forget = func() bool { return writes.Add(1) == 1 }
		caw := p.task(0, old, cdb(0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1), 0, make([]byte, 1024))
		done := make(chan result, 1)
		go func() { done <- p.execute(context.Background(), 0, caw) }()
		time.Sleep(50 * time.Millisecond)
		fresh := &scsi.Nexus{Initiator: old.Initiator, ISID: old.ISID, Port: old.Port}
		p.targets[0].Attach(fresh)
		if err := p.targets[0].Reinstate(t.Context(), fresh); err != nil {
			t.Error("login:", err)
		}
		p.want(<-done, "0B/2E/02")
	})
}
