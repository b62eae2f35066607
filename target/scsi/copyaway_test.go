package scsi_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/target/reserve"
	"sanctuary/target/scsi"
	"sanctuary/target/scsi/scsitest"
)

// twoOwners is a nodePair with a second LUN, number 1, which node 1 owns; node 0 owns the first.
type twoOwners struct {
	*nodePair
	other *scsitest.Cluster
	units [2]*scsi.Unit // of the second LUN
	link  *scsitest.Link
	naa   []byte
	host  *scsi.Nexus // at node 0
}

func newTwoOwners(t *testing.T) *twoOwners {
	t.Helper()
	p := &twoOwners{nodePair: newNodes(t, scsi.Standby, nil)}
	p.other = scsitest.NewCluster(block.Geometry{Capacity: nodeSectors, LogicalBlockBytes: 512}, 2, scsi.Standby)
	id := testIdentity
	id.NAA[15] = 0x77
	p.naa = id.NAA[:]
	for i := range p.units {
		link := &scsitest.Link{Cluster: p.other, From: i, Serve: func(n int) *scsi.Unit { return p.units[n] }}
		node := p.other.Node(i)
		unit, err := scsi.NewUnit(scsi.UnitConfig{
			Identity: id, Backend: node, Access: node.Access, AccessChanged: node.AccessChanged, AskOwner: link.Ask,
			Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			p.link = link
		}
		p.units[i] = unit
		if err := p.targets[i].Add(1, unit); err != nil {
			t.Fatal(err)
		}
	}
	p.other.Move(1)
	p.host = p.session(0, "host", 1)
	time.Sleep(time.Second) // the clocks of units count from when they were made
	return p
}

// on carries a command out on the second LUN.
func (p *twoOwners) on(node int, n *scsi.Nexus, c [16]byte, out []byte) result {
	task := &scsi.Task{
		Nexus: n, Tag: p.tags.Add(1), LUN: scsi.EncodeLUN(1), CDB: c, ExpectedOut: len(out), DataOut: out, Buffers: &p.buffers, Accepted: time.Now(),
	}
	p.targets[node].Accept(task)
	return p.execute(context.Background(), node, task)
}

// session logs in and uses both LUNs.
func (p *twoOwners) session(node int, name string, isid byte) *scsi.Nexus {
	p.t.Helper()
	n, answered := p.login(node, name, isid)
	<-answered
	for range 3 { // what there is to be told
		p.run(node, n, tur, 0, nil)
		p.on(node, n, tur, nil)
	}
	return n
}

// lists returns parameter lists that copy so many blocks from the first LUN to the second, and back.
func (p *twoOwners) lists(blocks uint16) (there, back []byte) {
	cscds := [][]byte{identified(testIdentity.NAA[:], 512), identified(p.naa, 512)}
	return copyListOf(1, 0, cscds, copySegment{from: 0, to: 1, blocks: blocks}), copyListOf(2, 0, cscds, copySegment{from: 1, to: 0, blocks: blocks})
}

func (p *twoOwners) copy(list []byte) result { return p.run(0, p.host, copyCDB(len(list)), 0, list) }

// put writes to a LUN past the targets.
func (p *twoOwners) put(c *scsitest.Cluster, at block.Sector, data []byte) {
	p.t.Helper()
	node := c.Node(c.Owner())
	if err := node.Write(context.Background(), node.Fence(), block.Range{Start: at, Count: block.CountOf(int64(len(data)))}, data); err != nil {
		p.t.Fatal(err)
	}
}

const awayBlocks = 9000 // five pieces

// Data, holes and zeros arrive, whichever of the two LUNs is elsewhere, and what had no storage gets none.
func TestCopyBetweenOwners(t *testing.T) {
	for _, there := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			p := newTwoOwners(t)
			from, to := p.cluster, p.other
			list, back := p.lists(awayBlocks)
			if !there {
				from, to, list = to, from, back
			}
			p.put(from, 0, pattern(1<<20, 1))
			p.put(from, 5000, pattern(700<<10, 2))
			p.put(to, 0, pattern(awayBlocks*512+512, 3)) // the last block is to stay
			p.want(p.copy(list), "good")
			whole := block.Range{Count: awayBlocks}
			if !bytes.Equal(from.Bytes(whole), to.Bytes(whole)) {
				t.Errorf("to the other owner %v: not the same, from byte %d on", there, firstDifference(from.Bytes(whole), to.Bytes(whole)))
			}
			if got := to.Bytes(block.Range{Start: awayBlocks, Count: 1}); !bytes.Equal(got, pattern(awayBlocks*512+512, 3)[awayBlocks*512:]) {
				t.Error("what lies behind was written")
			}
			for _, at := range []block.Sector{2048, 4000, 8000} {
				if mapped, n, err := to.Node(to.Owner()).Allocated(t.Context(), block.Range{Start: at, Count: 500}); err != nil || mapped || n != 500 {
					t.Errorf("to the other owner %v: the hole at %d has got storage: %v %d %v", there, at, mapped, n, err)
				}
			}
		})
	}
}

// What ends the tasks of the LUN that is elsewhere, or takes it away from its owner, also ends the copy: also between two pieces, when
// there is no task, and nothing is written once it has been answered.
func TestCopyToAnotherOwnerEndsWithItsTasks(t *testing.T) {
	reset := func(p *twoOwners, n *scsi.Nexus) {
		if r := p.targets[1].Manage(scsi.LogicalUnitReset, n, scsi.EncodeLUN(1), 0)(context.Background()); r != scsi.FunctionComplete {
			p.t.Errorf("reset: %d", r)
		}
	}
	for name, do := range map[string]func(*twoOwners, *scsi.Nexus){
		"reset": reset,
		"moved": func(p *twoOwners, _ *scsi.Nexus) { p.other.Move(0) },
		"moved away and back": func(p *twoOwners, _ *scsi.Nexus) {
			p.other.Move(0)
			p.other.Move(1)
		},
		"no owner": func(p *twoOwners, _ *scsi.Nexus) { p.other.Move(-1) },
		"reserved": func(p *twoOwners, n *scsi.Nexus) {
			for _, a := range []struct {
				action reserve.Action
				key    uint64
			}{{reserve.Register, 0}, {reserve.ReserveAction, 7}} {
				c, list := prout(a.action, reserve.WriteExclusive, a.key, 7)
				p.want(p.on(1, n, c, list), "good")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newTwoOwners(t)
				n := p.session(1, "another", 2)
				p.put(p.cluster, 0, pattern(awayBlocks*512, 1))
				p.put(p.other, 0, pattern(awayBlocks*512, 2))
				writes := 0
				p.other.Applied = func(r block.Range, _ []byte, _ block.State) {
					if r.Count == block.CountOf(1<<20) {
						writes++
					}
				}
				done := false
				p.link.Fault = func() scsitest.Fault {
					if writes == 2 && !done { // the third piece is on its way
						done = true
						do(p, n)
					}
					return scsitest.Fault{}
				}
				list, _ := p.lists(awayBlocks)
				p.want(p.copy(list), "0A/0D/01")
				if !done || writes != 2 {
					t.Errorf("%d pieces were written", writes)
				}
			})
		})
	}
}

// A copy that takes long goes no further than an initiator waits, and says how far it got.
func TestCopyToAnotherOwnerEndsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoOwners(t)
		p.put(p.cluster, 0, pattern(awayBlocks*512, 1))
		p.other.Slow = func() time.Duration { return 900 * time.Millisecond }
		list, _ := p.lists(awayBlocks)
		began := time.Now()
		p.want(p.copy(list), "0A/0D/01")
		if took := time.Since(began); took < 3*time.Second || took > 4*time.Second {
			t.Errorf("it took %v", took)
		}
		c := [16]byte{0: 0x84, 1: 0x00, 2: 1}
		binary.BigEndian.PutUint32(c[10:], 64)
		if r := p.run(0, p.host, c, 64, nil); r.Status != scsi.StatusGood || len(r.data) < 12 || r.data[4]&0x7F != 2 {
			t.Errorf("status of the copy: %v %x", r.Status, r.data)
		}
	})
}

// Rights are those of the nexus, as they stand at the owner.
func TestCopyBetweenOwnersIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoOwners(t)
		there, back := p.lists(8)
		n := p.session(1, "another", 2)
		for _, a := range []reserve.Action{reserve.Register, reserve.ReserveAction} {
			key := uint64(0)
			if a == reserve.ReserveAction {
				key = 7
			}
			c, list := prout(a, reserve.ExclusiveAccess, key, 7)
			p.want(p.on(1, n, c, list), "good")
		}
		p.want(p.copy(there), "status 18")
		p.want(p.copy(back), "status 18")

		p = newTwoOwners(t)
		there, back = p.lists(8)
		p.other.Move(-1)
		p.want(p.copy(there), "0A/0D/02") // nobody owns it
		p.other.Move(1)
		p.on(0, p.host, tur, nil) // hears of the new owner
		p.want(p.copy(back), "good")
		late := p.task(0, p.host, copyCDB(len(there)), 0, there)
		late.Accepted = time.Now().Add(-time.Second)
		p.want(p.execute(t.Context(), 0, late), "0A/0D/02")
		p.link.Fault = func() scsitest.Fault { return scsitest.Fault{Stray: 10 * time.Millisecond} } // nothing is heard of the owner
		p.want(p.copy(there), "0A/0D/02")
		time.Sleep(time.Second) // what has gone astray arrives
	})
}

// A LUN that has been owned by another node between two pieces is not written any more, even if its owner has it back.
func TestCopyToAnotherOwnerDoesNotFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoOwners(t)
		p.put(p.cluster, 0, pattern(awayBlocks*512, 1))
		writes, moved := 0, false
		p.other.Applied = func(block.Range, []byte, block.State) { writes++ }
		p.cluster.Slow = func() time.Duration { // the source is looked at, and no piece is on its way
			if writes == 2 && !moved {
				moved = true
				p.other.Move(0)
				p.other.Move(1)
			}
			return 0
		}
		list, _ := p.lists(awayBlocks)
		p.want(p.copy(list), "0A/0D/01")
		if !moved || writes != 2 {
			t.Errorf("%d pieces were written", writes)
		}
	})
}
