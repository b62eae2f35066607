package scsi_test

import (
	"testing"

	"sanctuary/target/scsi"
)

// another returns a unit on the same storage that tells something else of itself.
func (g *rig) another(change func(*scsi.UnitConfig)) *scsi.Unit {
	g.t.Helper()
	cfg := scsi.UnitConfig{Identity: testIdentity, Backend: g.mem, Access: func() scsi.Access { return *g.access.Load() }}
	change(&cfg)
	u, err := scsi.NewUnit(cfg)
	if err != nil {
		g.t.Fatal(err)
	}
	return u
}

// replace puts another unit under a number.
func (g *rig) replace(lun uint16, u *scsi.Unit) {
	g.t.Helper()
	if err := g.target.Remove(g.t.Context(), lun); err != nil {
		g.t.Fatal(err)
	}
	if err := g.target.Add(lun, u); err != nil {
		g.t.Fatal(err)
	}
}

// told runs TEST UNIT READY until it is GOOD, and returns the unit attentions on the way.
func (g *rig) told(n *scsi.Nexus, lun uint16) (list []string) {
	g.t.Helper()
	for range 10 {
		task := g.task(n, tur, 0, nil)
		task.LUN = scsi.EncodeLUN(lun)
		r := g.execute(g.t.Context(), task)
		if r.Status == scsi.StatusGood {
			return list
		}
		list = append(list, outcome(&r.Task))
	}
	g.t.Fatalf("LUN %d does not become ready: %v", lun, list)
	return nil
}

func (g *rig) wantTold(n *scsi.Nexus, lun uint16, want ...string) {
	g.t.Helper()
	got := g.told(n, lun)
	if len(got) != len(want) {
		g.t.Errorf("LUN %d: told %v, want %v", lun, got, want)
		return
	}
	for i := range got {
		if got[i] != want[i] {
			g.t.Errorf("LUN %d: told %v, want %v", lun, got, want)
		}
	}
}

func TestChangedInquiryDataAreToldOncePerNexus(t *testing.T) {
	for name, change := range map[string]func(*scsi.UnitConfig){
		"another LUN":  func(c *scsi.UnitConfig) { c.Identity.NAA[15]++; c.Identity.Serial += "x" },
		"revision":     func(c *scsi.UnitConfig) { c.Identity.Revision = "2" },
		"block limits": func(c *scsi.UnitConfig) { c.MaxTransferBytes = 1 << 20 },
		"thresholds":   func(c *scsi.UnitConfig) { c.Space = func() scsi.Space { return scsi.Space{Available: 1 << 40} } },
	} {
		t.Run(name, func(t *testing.T) {
			g := newRig(t, 512, nil)
			idle := g.attach(2) // has never sent a command
			g.replace(0, g.another(change))
			late := g.attach(3)
			g.wantTold(g.nexus, 0, "06/29/00", "06/3F/03", "06/3F/0E")
			g.wantTold(g.nexus, 0)
			g.wantTold(idle, 0, "06/29/00", "06/3F/03", "06/3F/0E")
			g.wantTold(idle, 0)
			g.wantTold(late, 0, "06/29/00") // it has never seen what was there

			// Back again: that is a change too.
			g.replace(0, g.unit)
			for _, n := range []*scsi.Nexus{g.nexus, idle, late} {
				g.wantTold(n, 0, "06/29/00", "06/3F/03", "06/3F/0E")
				g.wantTold(n, 0)
			}
		})
	}
}

// What came back as it was, and what stands under a number of its own, has not changed.
func TestUnchangedInquiryDataAreNotTold(t *testing.T) {
	g := newRig(t, 512, nil)
	g.replace(0, g.another(func(c *scsi.UnitConfig) { c.Identity.Name = "a name that no initiator sees" }))
	g.wantTold(g.nexus, 0, "06/29/00", "06/3F/0E")
	if err := g.target.Add(1, g.another(func(c *scsi.UnitConfig) { c.Identity.NAA[15]++ })); err != nil {
		t.Fatal(err)
	}
	g.wantTold(g.nexus, 1, "06/29/00", "06/3F/0E")

	// A change under one number is none under another, nor in another target.
	second := scsi.NewTarget(scsi.TargetConfig{Name: "iqn.2024-01.test:host"})
	if err := second.Add(0, g.unit); err != nil {
		t.Fatal(err)
	}
	g.replace(1, g.another(func(c *scsi.UnitConfig) { c.Identity.NAA[15] += 2 }))
	g.wantTold(g.nexus, 0, "06/3F/0E")
	g.wantTold(g.nexus, 1, "06/29/00", "06/3F/03")
	n := &scsi.Nexus{Initiator: "iqn.2024-01.test:other", Port: 1}
	second.Attach(n)
	task := g.task(n, tur, 0, nil)
	second.Execute(t.Context(), task)
	if got := outcome(task); got != "06/29/00" {
		t.Error(got)
	}
	second.Execute(t.Context(), task)
	if got := outcome(task); got != "good" {
		t.Error(got)
	}
}
