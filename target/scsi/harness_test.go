package scsi_test

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"sanctuary/blockstore/block"
	"sanctuary/target/scsi"
	"sanctuary/target/scsi/scsitest"
)

// buffers counts what is lent, and fills it with garbage so that a byte left unset shows.
type buffers struct{ lent atomic.Int64 }

func (b *buffers) Get(_ context.Context, n int) []byte {
	b.lent.Add(1)
	return bytes.Repeat([]byte{0xDB}, n)
}
func (b *buffers) Put([]byte) { b.lent.Add(-1) }

// rig is a target with one LUN 0 in memory and one nexus.
type rig struct {
	t       *testing.T
	target  *scsi.Target
	unit    *scsi.Unit
	mem     *scsitest.Memory
	access  atomic.Pointer[scsi.Access]
	nexus   *scsi.Nexus
	buffers *buffers
	tags    atomic.Uint32
}

var testIdentity = scsi.Identity{
	Vendor: "SANCTURY", Product: "volume", Revision: "1", Serial: "0123456789abcdef", Name: "test",
	NAA: [16]byte{0x60, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
}

const testSectors = 4096 // 2 MiB

func access(generation uint64, local, other scsi.AccessState) *scsi.Access {
	return &scsi.Access{Local: 1, LocalPort: 1, Generation: generation, Groups: []scsi.PortGroup{
		{ID: 1, State: local, Ports: []uint16{1}}, {ID: 2, State: other, Ports: []uint16{0x0203}},
	}}
}

func newRig(t *testing.T, logical int, change func(*scsi.UnitConfig)) *rig {
	t.Helper()
	g := &rig{t: t, mem: scsitest.NewMemory(block.Geometry{Capacity: testSectors, LogicalBlockBytes: logical}), buffers: &buffers{}}
	g.access.Store(access(1, scsi.ActiveOptimized, scsi.Standby))
	cfg := scsi.UnitConfig{Identity: testIdentity, Backend: g.mem, Access: func() scsi.Access { return *g.access.Load() }}
	if change != nil {
		change(&cfg)
	}
	unit, err := scsi.NewUnit(cfg)
	if err != nil {
		t.Fatal(err)
	}
	g.unit = unit
	g.target = scsi.NewTarget(scsi.TargetConfig{Name: "iqn.2024-01.test:lun"})
	if err := g.target.Add(0, unit); err != nil {
		t.Fatal(err)
	}
	g.nexus = g.attach(1)
	g.clear(g.nexus)
	t.Cleanup(func() {
		if n := g.buffers.lent.Load(); n != 0 {
			t.Errorf("%d buffers were never given back", n)
		}
	})
	return g
}

func (g *rig) attach(id byte) *scsi.Nexus {
	n := &scsi.Nexus{Initiator: "iqn.2024-01.test:host", ISID: [6]byte{0x80, 0, 0, 0, 0, id}, Port: 1}
	g.target.Attach(n)
	return n
}

// clear takes the unit attention of a new nexus.
func (g *rig) clear(n *scsi.Nexus) {
	g.t.Helper()
	g.want(g.run(n, cdb(0x00), 0, nil), "06/29/00")
	g.want(g.run(n, cdb(0x00), 0, nil), "good")
}

func cdb(b ...byte) (c [16]byte) {
	copy(c[:], b)
	return c
}

// result is a finished task with its Data-In copied.
type result struct {
	scsi.Task
	data []byte
}

func (g *rig) task(n *scsi.Nexus, c [16]byte, in int, out []byte) *scsi.Task {
	return &scsi.Task{Nexus: n, Tag: g.tags.Add(1), CDB: c, ExpectedIn: in, ExpectedOut: len(out), DataOut: out, Buffers: g.buffers}
}

// dataOut is what a command solicits.
func (g *rig) dataOut(lun uint64, c [16]byte) int64 {
	return g.target.Accept(&scsi.Task{LUN: lun, CDB: c})
}

func (g *rig) run(n *scsi.Nexus, c [16]byte, in int, out []byte) result {
	return g.execute(context.Background(), g.task(n, c, in, out))
}

func (g *rig) execute(ctx context.Context, task *scsi.Task) result {
	g.target.Execute(ctx, task)
	r := result{Task: *task, data: bytes.Clone(task.DataIn)}
	if task.DataIn != nil {
		g.buffers.Put(task.DataIn)
	}
	return r
}

// outcome is "good", "busy", "aborted" or key/asc/ascq.
func outcome(r *scsi.Task) string {
	switch r.Status {
	case scsi.StatusGood:
		return "good"
	case scsi.StatusBusy:
		return "busy"
	case scsi.StatusTaskAborted:
		return "aborted"
	case scsi.StatusCheckCondition:
		if len(r.Sense) >= 8 && r.Sense[0] == 0x72 {
			return fmt.Sprintf("%02X/%02X/%02X", r.Sense[1], r.Sense[2], r.Sense[3])
		}
		if len(r.Sense) < 14 {
			return "sense too short"
		}
		return fmt.Sprintf("%02X/%02X/%02X", r.Sense[2], r.Sense[12], r.Sense[13])
	}
	return fmt.Sprintf("status %02X", r.Status)
}

func (g *rig) want(r result, want string) {
	g.t.Helper()
	if got := outcome(&r.Task); got != want {
		g.t.Errorf("CDB % x: %s, want %s", r.CDB, got, want)
	}
}

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>8)*31 + byte(i)*7 + seed
	}
	return b
}
