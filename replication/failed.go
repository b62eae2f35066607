package replication

import (
	"errors"
	"fmt"

	"sanctuary/blockstore/block"
)

// An error of the disk is final, whoever meets it: a write, a read of an initiator, the scrub, another LUN in the same pool. What the
// system says of the disk afterwards is not believed (an fsync that is repeated succeeds without having written anything), so nothing
// is tried again: this replica is out until its node is restarted, and the LUN goes on with the others.

// fail takes this replica out for good: its medium or its journal cannot be trusted any more. A replica that lies is worse
// than one that is gone; the others go on without it.
func (g *Group) fail(err error) {
	if !g.failed.CompareAndSwap(nil, &err) {
		return
	}
	g.log.Error("replica is out: its storage failed. The LUN goes on from its other replicas; replace the disk and restart this node", "error", err)
	g.endTenure()
	g.goFunc(func() { // the caller may be Raft's own goroutine
		g.halt()
		g.cfg.OnChange()
	})
}

// Err returns what took this replica out, or nil.
func (g *Group) Err() error {
	if p := g.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// outIfFailed takes the replica out if its medium has failed.
func (g *Group) outIfFailed(err error) error {
	if !errors.Is(err, block.ErrFailed) {
		return err
	}
	g.fail(err)
	return outNow(err)
}

// outNow is what a command is told here: go to, or wait for, the next owner. As a hardware error it would be an I/O error to whoever
// uses the disk, multipath or not.
func outNow(err error) error {
	return fmt.Errorf("%w: this replica is out: %v", block.ErrNotOwner, err)
}
