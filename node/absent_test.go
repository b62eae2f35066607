package node

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sanctuary/node/api"
	"sanctuary/target/initiator"
	"sanctuary/target/scsi"
)

// A LUN whose copy on a node does not run is still what it was in the target of a host there, and says that this path is unavailable; when
// there is a copy again, it is served. At no time does its number stand for nothing, which hosts take for the end of the device.
func TestLUNWithoutARunningCopyStaysInItsHostsTarget(t *testing.T) {
	c := newClassedCluster(t)
	cl, ctx := c.client(), t.Context()
	dirs := addPools(t, c, cl, "slow")
	createIn(t, cl, "archive", "hdd")
	createIn(t, cl, "fast", "ssd")
	if _, err := cl.SetHost(ctx, "ours", api.HostSpec{Initiators: []string{ourName}}, true); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"fast", "archive"} {
		c.lun(cl, name, func(l api.LUN) bool { return l.Health == api.HealthHealthy })
		number := uint16(i)
		if _, err := cl.GrantLUN(ctx, name, "ours", &number); err != nil {
			t.Fatal(err)
		}
	}
	c.stop("beta")
	unmount(t, dirs["beta"])
	c.start("beta")
	cl = c.client()
	c.lun(cl, "fast", func(l api.LUN) bool { return l.Health == api.HealthHealthy })

	cfg := initiator.Config{Address: c.cfgs["beta"].Listen.ISCSI[0], InitiatorName: ourName}
	var targets []initiator.Target
	until(t, "beta listens", func() bool {
		var err error
		targets, err = initiator.DiscoverAs(ctx, cfg)
		return err == nil && len(targets) == 1
	})
	cfg.Target, cfg.LUN = targets[0].Name, 1
	through := dial(t, cfg)
	there := cfg
	there.Address = c.cfgs["alpha"].Listen.ISCSI[0]
	other := dial(t, there)
	ready(t, other)

	sense := func() uint16 {
		t.Helper()
		err := through.TestUnitReady(ctx)
		var e *initiator.StatusError
		if err != nil && !errors.As(err, &e) {
			t.Fatal(err)
		}
		if err == nil {
			return 0
		}
		return e.Code
	}
	const unavailable = 0x040C
	if first, then := sense(), sense(); first != 0x2900 || then != unavailable {
		t.Fatalf("the LUN without a copy says %04X, then %04X", first, then)
	}
	for page, ask := range map[string]func(*initiator.Session) ([]byte, error){
		"INQUIRY": func(s *initiator.Session) ([]byte, error) { return s.Inquiry(ctx) },
		"NAA":     func(s *initiator.Session) ([]byte, error) { return s.NAA(ctx) },
		"VPD B0":  func(s *initiator.Session) ([]byte, error) { return s.VPD(ctx, 0xB0) },
	} {
		here, err := ask(through)
		want, err2 := ask(other)
		if err != nil || err2 != nil || !bytes.Equal(here, want) {
			t.Errorf("%s: %x (%v), through the other node %x (%v)", page, here, err, want, err2)
		}
	}
	groups, err := through.ReportTargetPortGroups(ctx)
	if err != nil || len(groups) != 1 || groups[0].State != scsi.Unavailable {
		t.Errorf("port groups: %+v, %v", groups, err)
	}
	block := make([]byte, 4096)
	var refusal *initiator.StatusError
	if err := through.Write(ctx, 0, 8, block); !errors.As(err, &refusal) || refusal.Code != unavailable {
		t.Errorf("a write: %v", err)
	}

	// Also when no LUN of the target runs here any more.
	if _, err := cl.RevokeLUN(ctx, "fast", "ours"); err != nil {
		t.Fatal(err)
	}
	until(t, "it is told", func() bool { return sense() == 0x3F0E })
	for range 50 {
		if code := sense(); code != unavailable {
			t.Fatalf("the only LUN that is left says %04X", code)
		}
		time.Sleep(10 * time.Millisecond)
	}

	// The pool is given up, and another takes its place.
	if _, err := cl.AddPool(ctx, "beta", api.PoolSpec{Media: "file", Path: filepath.Join(t.TempDir(), "new"), CapacityBytes: 128 << 20, Class: "hdd"}); err != nil {
		t.Fatal(err)
	}
	given := make(chan error, 1)
	go func() { given <- cl.RemovePool(ctx, "beta", "slow", api.PoolRemoval{Lost: true}) }()
	heard := map[string]int{}
	until(t, "the new copy is served", func() bool {
		code := sense()
		heard[fmt.Sprintf("%04X", code)]++
		return code == 0x040B || code == 0
	})
	if err := <-given; err != nil {
		t.Fatal(err)
	}
	if heard["2500"] > 0 {
		t.Errorf("the number stood for nothing: %v", heard)
	}
	t.Log("heard meanwhile: ", heard)
	until(t, "another write", func() bool { return other.Write(ctx, 0, 8, block) == nil })
}

// A replica whose file cannot be read is out, and nothing is made in its place; the others of its node are served.
func TestReplicaWhoseFileCannotBeReadIsOutByItself(t *testing.T) {
	c := newCluster(t)
	c.start("alpha", "beta", "witness")
	cl := c.client()
	for _, name := range []string{"bad", "good"} {
		if _, err := cl.CreateLUN(t.Context(), api.LUNSpec{Name: name, SizeBytes: 16 << 20, Open: true}, 30*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	c.lun(cl, "good", func(l api.LUN) bool { return l.Health == api.HealthHealthy })
	before := c.lun(cl, "bad", func(l api.LUN) bool { return l.Health == api.HealthHealthy })
	c.stop("beta")
	files, err := filepath.Glob(filepath.Join(c.cfgs["beta"].DataDir, "luns", before.ID, "*", "replica.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	was, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(files[0], was[:len(was)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	c.start("beta")
	cl = c.client()
	c.lun(cl, "good", func(l api.LUN) bool { return l.Health == api.HealthHealthy })
	if l := c.lun(cl, "bad", func(l api.LUN) bool { return l.Health == api.HealthDegraded }); replicasOf(l) != replicasOf(before) {
		t.Fatalf("replicas on %s, and before on %s", replicasOf(l), replicasOf(before))
	}
	// Put right, it goes on as what it was.
	c.stop("beta")
	if err := os.WriteFile(files[0], was, 0o600); err != nil {
		t.Fatal(err)
	}
	c.start("beta")
	cl = c.client()
	after := c.lun(cl, "bad", func(l api.LUN) bool { return l.Health == api.HealthHealthy })
	for i, r := range after.Replicas {
		if r.ID != before.Replicas[i].ID {
			t.Errorf("replica %s is %s now", before.Replicas[i].ID, r.ID)
		}
	}
}
