package scsi_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/target/scsi"
	"sanctuary/target/scsi/scsitest"
)

// copying has a copy stand still in its second write. release lets it go on,
// and writes counts what it has written.
func copying(g *rig, other *scsitest.Memory, list []byte) (ended <-chan result, release chan struct{}, writes *int) {
	g.t.Helper()
	begun, release := make(chan struct{}), make(chan struct{})
	writes = new(int)
	hook := func(_ context.Context, op string, _ block.Range) error {
		if op == "Write" || op == "Unmap" {
			if *writes++; *writes == 2 {
				close(begun)
				<-release
			}
		}
		return nil
	}
	g.mem.Before(hook)
	other.Before(hook)
	done := make(chan result, 1)
	go func() { done <- g.copy(g.nexus, list) }()
	<-begun
	return done, release, writes
}

// Whatever ends the tasks of a unit, or shuts its nexus out, also ends a copy that another unit carries out on it, and is answered
// when that has stopped.
func TestCopyEndsWithTheTasksOfEitherUnit(t *testing.T) {
	to := func(lun uint16, do func(g *rig, n *scsi.Nexus, lun uint16)) func(*rig, *scsi.Nexus) {
		return func(g *rig, n *scsi.Nexus) { do(g, n, lun) }
	}
	reset := func(g *rig, n *scsi.Nexus, lun uint16) {
		if r := g.target.Manage(scsi.LogicalUnitReset, n, scsi.EncodeLUN(lun), 0)(context.Background()); r != scsi.FunctionComplete {
			g.t.Errorf("reset of LUN %d: %d", lun, r)
		}
	}
	for name, c := range map[string]struct {
		do   func(*rig, *scsi.Nexus)
		want string
	}{
		"reset of its own":                      {to(0, reset), "aborted"},
		"reset of the other":                    {to(1, reset), "0A/0D/01"},
		"reservation of its own, as the source": {to(0, (*rig).reserveAll), "0A/0D/01"},
		"reservation of the destination":        {to(1, (*rig).reserveWrites), "0A/0D/01"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, other, naa := newPair(t, nil)
				n := g.attach(2)
				for lun := range uint16(2) {
					task := g.task(n, cdb(0x00), 0, nil)
					task.LUN = scsi.EncodeLUN(lun)
					g.execute(t.Context(), task) // 29/00
				}
				if err := g.mem.Write(t.Context(), block.Fence{}, block.Range{Count: testSectors}, pattern(testSectors*512, 1)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Millisecond)
				same := copySegment{from: 0, to: 1, bytes: testSectors * 512}
				done, release, writes := copying(g, other, copyListOf(1, 0, [][]byte{self[0], identified(naa, 4096)}, same, same))
				answered := make(chan int, 1)
				go func() { c.do(g, n); answered <- *writes }()
				synctest.Wait()
				select {
				case <-answered:
					t.Error("answered while the copy could still write")
				default:
				}
				close(release)
				after := <-answered
				g.want(<-done, c.want)
				if *writes != 2 || after != 2 {
					t.Errorf("%d writes, %d when it was answered", *writes, after)
				}
			})
		})
	}
}

// A copy that arrived before a reset of the other unit and has not begun does nothing to it.
func TestCopyThatArrivedBeforeAResetOfTheOtherUnit(t *testing.T) {
	g, _, naa := newPair(t, nil)
	list := copyListOf(1, 0, [][]byte{self[0], identified(naa, 4096)}, copySegment{from: 0, to: 1, blocks: 8})
	late := g.task(g.nexus, copyCDB(len(list)), 0, list)
	late.Accepted = time.Now()
	g.target.Accept(late)
	if r := g.target.Manage(scsi.LogicalUnitReset, g.nexus, scsi.EncodeLUN(1), 0)(t.Context()); r != scsi.FunctionComplete {
		t.Fatal(r)
	}
	for g.ready(1) != "good" {
	}
	g.want(g.execute(t.Context(), late), "0A/0D/02")
	g.want(g.copy(g.nexus, list), "good")
}
