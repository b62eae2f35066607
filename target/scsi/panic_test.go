package scsi_test

import (
	"context"
	"testing"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/target/scsi"
)

// panics makes every operation of the backend that is named a mistake of ours.
func panics(g *rig, named string) {
	g.mem.Before(func(_ context.Context, op string, _ block.Range) error {
		if op == named {
			panic("a backend that panics")
		}
		return nil
	})
}

// The transport ends the session; that waits for its tasks, and the one that panicked must not be waited for.
func TestAPanicLeavesNothingBehind(t *testing.T) {
	g := newRig(t, 512, nil) // its end checks that the buffer was given back
	panics(g, "Read")
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the transport does not hear of the panic")
			}
		}()
		g.run(g.nexus, cdb(0x28, 0, 0, 0, 0, 0, 0, 0, 1), 512, nil)
	}()
	g.mem.Before(nil)
	g.want(g.run(g.nexus, cdb(0x28, 0, 0, 0, 0, 0, 0, 0, 1), 512, nil), "good")
	detached := make(chan struct{})
	go func() {
		defer close(detached)
		g.target.Detach(g.nexus)
	}()
	select {
	case <-detached:
	case <-time.After(10 * time.Second):
		t.Fatal("the session cannot end")
	}
}

// A reset of all LUNs runs beside the session's goroutines, where nobody else would catch it.
func TestAPanicInAResetIsARejection(t *testing.T) {
	g := newRig(t, 512, nil)
	panics(g, "SwapState")
	if r := g.target.Manage(scsi.TargetWarmReset, g.nexus, 0, 0)(t.Context()); r != scsi.FunctionRejected {
		t.Errorf("response %d", r)
	}
	g.mem.Before(nil)
	if r := g.target.Manage(scsi.TargetWarmReset, g.nexus, 0, 0)(t.Context()); r != scsi.FunctionComplete {
		t.Errorf("response %d afterwards", r)
	}
}

// What panics on the node an initiator is logged in to must not end the owner's process too, which is asked for the same.
func TestAPanicInARequestOfAnotherNodeIsAnError(t *testing.T) {
	p := newNodes(t, scsi.ActiveNonOptimized, nil)
	host := p.attach(1, "a")
	p.cluster.Slow = func() time.Duration { panic("a backend that panics") }
	r := p.run(1, host, cdb(0x28, 0, 0, 0, 0, 0, 0, 0, 1), 512, nil)
	if got := outcome(&r.Task); got == "good" {
		t.Errorf("answered %s", got)
	}
	p.cluster.Slow = func() time.Duration { return 0 }
	p.want(p.run(1, host, cdb(0x28, 0, 0, 0, 0, 0, 0, 0, 1), 512, nil), "good")
}
