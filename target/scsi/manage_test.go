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
	"sanctuary/target/scsi"
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
			return g.target.Manage(context.Background(), scsi.AbortTask, g.nexus, 0, k.Tag)
		},
		"abort task set": func(g *rig, _ *scsi.Task) scsi.FunctionResponse {
			return g.target.Manage(context.Background(), scsi.AbortTaskSet, g.nexus, 0, 0)
		},
		"clear task set": func(g *rig, _ *scsi.Task) scsi.FunctionResponse {
			return g.target.Manage(context.Background(), scsi.ClearTaskSet, g.attach(7), 0, 0)
		},
		"reset": func(g *rig, _ *scsi.Task) scsi.FunctionResponse {
			return g.target.Manage(context.Background(), scsi.LogicalUnitReset, g.attach(7), 0, 0)
		},
		"target reset": func(g *rig, _ *scsi.Task) scsi.FunctionResponse {
			return g.target.Manage(context.Background(), scsi.TargetWarmReset, g.attach(7), 0, 0)
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
			{8, 0, scsi.FunctionNotSupported},
		} {
			if got := g.target.Manage(ctx, c.f, g.nexus, c.lun, 1); got != c.want {
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
		if got := g.target.Manage(ctx, scsi.AbortTask, g.attach(9), 0, write.Tag); got != scsi.TaskDoesNotExist {
			t.Errorf("aborted another nexus' task: %d", got)
		}
		limited, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if got := g.target.Manage(limited, scsi.AbortTask, g.nexus, 0, write.Tag); got != scsi.FunctionRejected {
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
				go func() { answer <- g.target.Manage(context.Background(), scsi.AbortTask, n, 0, task.Tag) }()
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
					g.target.Manage(context.Background(), scsi.LogicalUnitReset, n, 0, 0)
				}
				g.target.Detach(n)
				commands.Wait()
			}
		})
	}
	wg.Wait()
}
