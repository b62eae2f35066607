package scsi_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/target/reserve"
	"sanctuary/target/scsi"
	"sanctuary/target/scsi/scsitest"
)

// blocked makes writes wait until release is closed, deaf to their context as a replicated write may be.
func TestRevokedTaskDoesNothing(t *testing.T) {
	g := newRig(t, 512, nil)
	revoked := new(atomic.Bool)
	revoked.Store(true)
	task := g.task(g.nexus, cdb(0x2A, 0, 0, 0, 0, 0, 0, 0, 1), 0, pattern(512, 1))
	task.Revoked = revoked
	g.want(g.execute(t.Context(), task), "aborted")
	if !bytes.Equal(g.mem.Bytes(block.Range{Count: 1}), make([]byte, 512)) {
		t.Error("it wrote all the same")
	}
	// Neither does it take a unit attention that another command should have.
	g.want(g.run(g.nexus, cdb(0x00), 0, nil), "good")
	elsewhere := g.task(g.nexus, cdb(0x00), 0, nil)
	elsewhere.LUN, elsewhere.Revoked = 7<<48, revoked
	g.want(g.execute(t.Context(), elsewhere), "05/25/00")
}

func blocked(g *rig) (started <-chan struct{}, release chan struct{}) {
	begun := make(chan struct{}, 16)
	release = make(chan struct{})
	g.mem.Before(func(ctx context.Context, op string, _ block.Range) error {
		begun <- struct{}{}
		if op == "Read" {
			<-ctx.Done()
			return ctx.Err()
		}
		<-release
		return nil
	})
	return begun, release
}

func TestAbortWaitsForAWriteTheBackendHas(t *testing.T) {
	for name, manage := range map[string]func(*rig, *scsi.Task) scsi.FunctionResponse{
		"abort task": func(g *rig, k *scsi.Task) scsi.FunctionResponse {
			return g.target.Manage(scsi.AbortTask, g.nexus, 0, k.Tag)(context.Background())
		},
		"abort task set": func(g *rig, _ *scsi.Task) scsi.FunctionResponse {
			return g.target.Manage(scsi.AbortTaskSet, g.nexus, 0, 0)(context.Background())
		},
		"clear task set": func(g *rig, _ *scsi.Task) scsi.FunctionResponse {
			return g.target.Manage(scsi.ClearTaskSet, g.attach(7), 0, 0)(context.Background())
		},
		"reset": func(g *rig, _ *scsi.Task) scsi.FunctionResponse {
			return g.target.Manage(scsi.LogicalUnitReset, g.attach(7), 0, 0)(context.Background())
		},
		"target reset": func(g *rig, _ *scsi.Task) scsi.FunctionResponse {
			return g.target.Manage(scsi.TargetWarmReset, g.attach(7), 0, 0)(context.Background())
		},
		"detach": func(g *rig, _ *scsi.Task) scsi.FunctionResponse { g.target.Detach(g.nexus); return 0 },
		"remove": func(g *rig, _ *scsi.Task) scsi.FunctionResponse {
			if err := g.target.Remove(context.Background(), 0); err != nil {
				g.t.Error(err)
			}
			return 0
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newRig(t, 512, nil)
				started, release := blocked(g)
				write, read := g.task(g.nexus, write1, 0, make([]byte, 512)), g.task(g.nexus, read1, 512, nil)
				var wg sync.WaitGroup
				var w result
				wg.Go(func() { w = g.execute(context.Background(), write) })
				if name != "abort task" {
					wg.Go(func() { g.want(g.execute(context.Background(), read), "aborted") })
					<-started
				}
				<-started
				done := make(chan scsi.FunctionResponse, 1)
				go func() { done <- manage(g, write) }()
				synctest.Wait()
				select {
				case r := <-done:
					t.Fatalf("answered %d while the write could still land", r)
				default:
				}
				close(release)
				if r := <-done; r != scsi.FunctionComplete {
					t.Errorf("answered %d", r)
				}
				wg.Wait()
				g.want(w, "aborted")
				if name == "clear task set" {
					g.mem.Before(nil)
					g.want(g.run(g.nexus, tur, 0, nil), "06/2F/00")
				}
				if name == "detach" {
					g.want(g.run(g.nexus, tur, 0, nil), "aborted")
				}
			})
		})
	}
}

func TestManageAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 512, nil)
		ctx := t.Context()
		for _, c := range []struct {
			f    scsi.Function
			lun  uint64
			want scsi.FunctionResponse
		}{
			{scsi.AbortTask, 0, scsi.TaskDoesNotExist},
			{scsi.AbortTask, 5 << 48, scsi.LUNDoesNotExist},
			{scsi.LogicalUnitReset, 5 << 48, scsi.LUNDoesNotExist},
			{scsi.ClearACA, 0, scsi.FunctionNotSupported},
			{scsi.TargetColdReset, 5 << 48, scsi.FunctionComplete},
			{scsi.TaskReassign, 0, scsi.ReassignNotSupported},
			{9, 0, scsi.FunctionNotSupported},
		} {
			if got := g.target.Manage(c.f, g.nexus, c.lun, 1)(ctx); got != c.want {
				t.Errorf("function %d: %d, want %d", c.f, got, c.want)
			}
		}
		// Another nexus' task of the same tag is not ours to abort, and a time limit ends the waiting.
		g.clearReset()
		started, release := blocked(g)
		write := g.task(g.nexus, write1, 0, make([]byte, 512))
		done := make(chan result, 1)
		go func() { done <- g.execute(context.Background(), write) }()
		<-started
		if got := g.target.Manage(scsi.AbortTask, g.attach(9), 0, write.Tag)(ctx); got != scsi.TaskDoesNotExist {
			t.Errorf("aborted another nexus' task: %d", got)
		}
		limited, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if got := g.target.Manage(scsi.AbortTask, g.nexus, 0, write.Tag)(limited); got != scsi.FunctionRejected {
			t.Errorf("with the write still running: %d", got)
		}
		close(release)
		g.want(<-done, "aborted")
	})
}

func (g *rig) clearReset() {
	g.want(g.run(g.nexus, tur, 0, nil), "06/29/02")
	g.want(g.run(g.nexus, tur, 0, nil), "good")
}

// TestAbortIsCompleteOrTooLate races ABORT TASK with the task: FUNCTION COMPLETE exactly when there was no response.
func TestAbortIsCompleteOrTooLate(t *testing.T) {
	g := newRig(t, 512, nil)
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(worker)))
			n := g.attach(byte(10 + worker))
			for range 300 {
				task := g.task(n, write1, 0, make([]byte, 512))
				answer := make(chan scsi.FunctionResponse, 1)
				go func() { answer <- g.target.Manage(scsi.AbortTask, n, 0, task.Tag)(context.Background()) }()
				if rnd.IntN(2) == 0 {
					time.Sleep(time.Duration(rnd.IntN(3)) * time.Microsecond)
				}
				r := g.execute(context.Background(), task)
				if a := <-answer; (a == scsi.FunctionComplete) != (r.Status == scsi.StatusTaskAborted) {
					t.Errorf("abort answered %d, task ended %s", a, outcome(&r.Task))
				}
			}
			g.target.Detach(n)
		})
	}
	wg.Wait()
}

func TestResetsAndDetachesUnderLoad(t *testing.T) {
	g := newRig(t, 512, nil)
	g.mem.Before(func(ctx context.Context, _ string, r block.Range) error {
		if r.Start%3 != 0 {
			return nil
		}
		select { // an operation that takes a moment and can be cancelled
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Microsecond):
			return nil
		}
	})
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for round := range 15 {
				n := g.attach(byte(20 + worker))
				var commands sync.WaitGroup
				for lba := range 8 {
					commands.Go(func() {
						c := read1
						c[5] = byte(lba)
						r := g.run(n, c, 512, nil)
						if o := outcome(&r.Task); o != "good" && o != "aborted" && o != "06/29/00" && o != "06/29/03" {
							t.Errorf("ended %s", o)
						}
					})
				}
				if round%3 == 0 {
					g.target.Manage(scsi.LogicalUnitReset, n, 0, 0)(context.Background())
				}
				g.target.Detach(n)
				commands.Wait()
			}
		})
	}
	wg.Wait()
}

// A task is in the task set from the arrival of its command on, though its data is still coming: whatever ends the tasks of the unit
// ends it too, in whatever session, and leaves alone what arrives after itself, also in its own session and before it is answered.
func TestFunctionsEndWhatArrivedBeforeThemAndNothingElse(t *testing.T) {
	for _, c := range []struct {
		f     scsi.Function
		other string // what becomes of another session's task, and what the session is told after it
		told  string
	}{
		{scsi.AbortTaskSet, "good", "good"},
		{scsi.ClearTaskSet, "aborted", "06/2F/00"},
		{scsi.LogicalUnitReset, "aborted", "06/29/03"},
		{scsi.TargetWarmReset, "aborted", "06/29/02"},
		{scsi.TargetColdReset, "aborted", "06/29/02"},
	} {
		g := newRig(t, 512, nil)
		other := g.attach(9)
		g.clear(other)
		accept := func(n *scsi.Nexus, lba byte) *scsi.Task {
			task := g.task(n, cdb(0x2A, 0, 0, 0, 0, lba, 0, 0, 1), 0, pattern(512, lba+1))
			if g.target.Accept(task) != 512 {
				t.Fatal("it solicits nothing")
			}
			return task
		}
		own, first, second := accept(g.nexus, 0), accept(other, 1), accept(other, 2)
		carryOut := g.target.Manage(c.f, g.nexus, 0, 0)
		next, later := accept(g.nexus, 3), accept(other, 4)
		if r := carryOut(t.Context()); r != scsi.FunctionComplete {
			t.Fatalf("function %d: %d", c.f, r)
		}
		g.want(g.execute(t.Context(), first), c.other)
		g.want(g.run(other, tur, 0, nil), c.told)
		g.want(g.execute(t.Context(), second), c.other) // also when the unit attention has been heard
		g.want(g.execute(t.Context(), own), "aborted")
		for g.run(g.nexus, tur, 0, nil).Status != scsi.StatusGood {
		}
		g.want(g.run(other, tur, 0, nil), "good") // it was told once
		g.want(g.execute(t.Context(), next), "good")
		g.want(g.execute(t.Context(), later), "good")
		for lba, lands := range []bool{false, c.other == "good", c.other == "good", true, true} {
			if landed := g.mem.Bytes(block.Range{Start: block.Sector(lba), Count: 1})[1] != 0; landed != lands {
				t.Errorf("function %d: write %d landed: %v", c.f, lba, landed)
			}
		}
	}
}

// PREEMPT AND ABORT ends what the preempted nexus has sent the command of, though it would be allowed now.
func TestPreemptAndAbortEndsWhatHasArrived(t *testing.T) {
	g := newRig(t, 512, nil)
	victim := g.attach(9)
	g.clear(victim)
	register := func(n *scsi.Nexus, key uint64) {
		c, list := prout(reserve.Register, 0, 0, key)
		g.want(g.run(n, c, 0, list), "good")
	}
	register(g.nexus, 1)
	register(victim, 2)
	coming := g.task(victim, write1, 0, pattern(512, 1))
	g.target.Accept(coming)
	c, list := prout(reserve.PreemptAndAbort, 0, 1, 2)
	g.want(g.run(g.nexus, c, 0, list), "good")
	g.want(g.run(victim, tur, 0, nil), "06/2A/05")
	g.want(g.execute(t.Context(), coming), "aborted")
	g.want(g.run(victim, write1, 0, pattern(512, 1)), "good") // nothing is reserved
}

// A command belongs to the unit that had its number when it arrived.
func TestCommandDoesNotReachAnotherUnitOfItsNumber(t *testing.T) {
	g := newRig(t, 512, nil)
	coming := g.task(g.nexus, write1, 0, pattern(512, 1))
	g.target.Accept(coming)
	if err := g.target.Remove(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	mem := scsitest.NewMemory(block.Geometry{Capacity: testSectors, LogicalBlockBytes: 512})
	other := testIdentity
	other.NAA[15]++
	another, err := scsi.NewUnit(scsi.UnitConfig{Identity: other, Backend: mem, Access: func() scsi.Access { return *g.access.Load() }})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.target.Add(0, another); err != nil {
		t.Fatal(err)
	}
	for g.run(g.nexus, tur, 0, nil).Status != scsi.StatusGood {
	}
	g.want(g.execute(t.Context(), coming), "aborted")
	if !bytes.Equal(mem.Bytes(block.Range{Count: 1}), make([]byte, 512)) {
		t.Error("it was written to a unit it was not meant for")
	}
}

// Who aborts a COMPARE AND WRITE hears whether it was done: it would do it again, and find its own data there.
func TestAbortedCompareAndWriteIsNotDoneBehindItsBack(t *testing.T) {
	for name, test := range map[string]struct {
		node    int // 0 is the owner
		stops   bool
		forgets bool // what became of it
		answer  scsi.FunctionResponse
		outcome string
	}{
		"done":             {answer: scsi.TaskDoesNotExist, outcome: "good"},
		"ended":            {stops: true, answer: scsi.FunctionComplete, outcome: "aborted"},
		"unknown":          {forgets: true, answer: scsi.FunctionRejected, outcome: "aborted"},
		"done, forwarded":  {node: 1, answer: scsi.TaskDoesNotExist, outcome: "good"},
		"ended, forwarded": {node: 1, stops: true, answer: scsi.FunctionComplete, outcome: "aborted"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newNodes(t, scsi.ActiveNonOptimized, nil)
				n := p.attach(test.node, "a")
				p.run(test.node, n, tur, 0, nil)
				p.cluster.Waits, p.cluster.Forget = func() bool { return test.stops }, func() bool { return test.forgets }
				p.takes(100 * time.Millisecond)
				caw := p.task(test.node, n, cdb(0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1), 0, make([]byte, 1024))
				done := make(chan result, 1)
				go func() { done <- p.execute(context.Background(), test.node, caw) }()
				time.Sleep(50 * time.Millisecond)
				if r := p.targets[test.node].Manage(scsi.AbortTask, n, 0, caw.Tag)(t.Context()); r != test.answer {
					t.Errorf("answered %d, want %d", r, test.answer)
				}
				p.want(<-done, test.outcome)
			})
		})
	}
}
