package node

import (
	"io"
	"log/slog"
	"testing"

	"sanctuary/blockstore/block"
	"sanctuary/node/catalog"
	"sanctuary/node/config"
	"sanctuary/target/scsi"
	"sanctuary/target/scsi/scsitest"
)

// A session is in its host's target, whichever unit stands for the LUN there, for as long as the LUN is granted to the host.
func TestSessionStaysWhileAnotherUnitStandsForItsLUN(t *testing.T) {
	n := &Node{cfg: config.Config{Node: "alpha"}, log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	geometry := block.Geometry{Capacity: 2048, LogicalBlockBytes: 512}
	m := &catalog.Model{
		Nodes: map[string]catalog.Node{"alpha": {Name: "alpha", PortGroup: 1}},
		Hosts: map[string]catalog.Host{"ours": {Name: "ours", Initiators: []string{ourName}}},
		LUNs: map[string]catalog.LUN{"1": {
			ID: "1", Name: "vm1", NAA: "6e843b600000000100000000000000aa", Geometry: geometry, Access: &catalog.Access{Grants: []catalog.Grant{{Host: "ours"}}},
			Replicas: []catalog.Replica{{ID: "alpha/1", Node: "alpha"}},
		}},
	}
	unit := func() *scsi.Unit {
		cfg, err := n.describeUnit(m.LUNs["1"])
		if err != nil {
			t.Fatal(err)
		}
		cfg.Backend, cfg.Access = scsitest.NewMemory(geometry), func() scsi.Access {
			return scsi.Access{Local: 1, LocalPort: 1, Groups: []scsi.PortGroup{{ID: 1, State: scsi.ActiveOptimized, Ports: []uint16{1}}}}
		}
		u, err := scsi.NewUnit(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	follow := func(units map[string]*scsi.Unit) {
		t.Helper()
		if err := n.hostTargets.follow(n, func() (*catalog.Model, map[string]*scsi.Unit) { return m, units }); err != nil {
			t.Fatal(err)
		}
	}
	copyHere := unit()
	follow(map[string]*scsi.Unit{"1": copyHere})
	nexus := &scsi.Nexus{Initiator: ourName}
	n.hostTargets.get("ours").Attach(nexus)
	execute := func(op byte) scsi.Status {
		task := &scsi.Task{Nexus: nexus, CDB: [16]byte{op}}
		n.hostTargets.get("ours").Execute(t.Context(), task)
		return task.Status
	}
	execute(0) // 29/00
	if got := execute(0x16); got != scsi.StatusGood {
		t.Fatalf("RESERVE: status %v", got)
	}
	r, err := copyHere.Reservations()
	if err != nil || r.Table.Legacy() == nil {
		t.Fatalf("%+v, %v", r, err)
	}
	session := r.Table.Legacy().Session
	here := func(want bool, when string) {
		t.Helper()
		if got := n.hostTargets.hasSession(m, "1", session); got != want {
			t.Errorf("%s: %t", when, got)
		}
	}
	here(true, "the copy runs")
	follow(nil)
	if copyHere.HasSession(session) {
		t.Error("the unit of a copy that does not run any more has the session, and this test shows nothing")
	}
	here(true, "the copy has been stopped")
	follow(map[string]*scsi.Unit{"1": unit()})
	here(true, "it runs again")
	n.hostTargets.get("ours").Detach(nexus)
	here(false, "the session has ended")
	n.hostTargets.get("ours").Attach(nexus)
	l := m.LUNs["1"]
	l.Access = &catalog.Access{}
	m.LUNs["1"] = l
	here(false, "it is not granted to the host any more")
}
