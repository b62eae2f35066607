package node

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"sanctuary/node/api"
)

// The only other copy burns down while this one is being rebuilt from it. What this one held before is whole, and the operator lets the LUN go on from that.
func TestCopyIsRevertedAndTheLUNGoesOnFromIt(t *testing.T) {
	t.Cleanup(func() { nothingRuns(t) }) // when the nodes have stopped
	c := newClusterOf(t, "alpha", "beta", "gamma", "witness")
	for _, name := range []string{"alpha", "beta"} {
		cfg := c.cfgs[name]
		cfg.Journal.KeepBytes, cfg.Rebuild.MaxRate = 16<<20, 1<<20
		c.cfgs[name] = cfg
	}
	c.start("alpha", "beta", "gamma", "witness")
	cl := c.client()
	ctx, cancel := context.WithTimeout(context.Background(), 180*time.Second)
	defer cancel()
	const size, piece = 64 << 20, 256 << 10
	if _, err := cl.CreateLUN(ctx, api.LUNSpec{Name: "vm1", SizeBytes: size, Open: true, Nodes: []string{"alpha", "beta"}}, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	c.lun(cl, "vm1", func(l api.LUN) bool { return l.Health == api.HealthHealthy && l.Owner == "alpha" })
	fill := func(version byte) {
		t.Helper()
		d := openDisk(t, c.lun(cl, "vm1", api.LUN.Served))
		defer d.Close()
		for off := int64(0); off < size; off += piece {
			if _, err := d.WriteAt(ctx, bytes.Repeat([]byte{version}, piece), off); err != nil {
				t.Fatal(err)
			}
		}
	}
	fill(1)
	refused := func(node string, status int) {
		t.Helper()
		var p *api.Problem
		if b, err := cl.RevertReplica(ctx, "vm1", node); !errors.As(err, &p) || p.Status != status {
			t.Fatalf("a copy that must stay as it is was reverted: %+v, %v", b, err)
		}
	}
	refused("beta", 409)    // it is not being rebuilt
	refused("witness", 409) // it holds nothing
	c.stop("beta")
	c.lun(cl, "vm1", func(l api.LUN) bool { return l.Health == api.HealthDegraded })
	for version := byte(2); version < 8; version++ { // more than a checkpoint and what is kept behind it
		fill(version)
	}
	c.start("beta")
	cl = c.clientOf("beta", "gamma", "witness")
	c.lun(cl, "vm1", func(l api.LUN) bool {
		for _, r := range l.Replicas {
			if r.Node == "beta" && r.Rebuild != nil && r.Rebuild.Copied >= 2<<20 {
				return true
			}
		}
		return false
	})
	refused("beta", 409) // its source answers
	c.stop("alpha")
	if r, err := cl.Recovery(ctx, "vm1", "beta"); err != nil || !slices.ContainsFunc(r.Replicas, func(x api.RecoveryReplica) bool {
		return x.Node == "beta" && strings.Contains(x.Unusable, "sanctuary lun replica revert")
	}) {
		t.Errorf("the operator is not told that what was before is kept: %+v, %v", r, err)
	}

	var b api.RebuildBefore
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		var err error
		if b, err = c.clientOf("gamma").RevertReplica(ctx, "vm1", "beta"); err == nil { // asked through another node
			break
		}
		var p *api.Problem
		if !errors.As(err, &p) || time.Now().After(deadline) {
			t.Fatalf("it is not reverted: %v", err)
		}
	}
	if b.Index == 0 || b.Began.IsZero() {
		t.Errorf("reverted to %+v", b)
	}
	c.recover(cl, "vm1", func(r api.Recovery) bool { return r.Node == "beta" && r.Lost.ProvenBy != "" && r.Lost.Entries > 0 })
	d := openDisk(t, c.lun(cl, "vm1", api.LUN.Served))
	defer d.Close()
	got, want := make([]byte, piece), bytes.Repeat([]byte{1}, piece)
	for off := int64(0); off < size; off += piece {
		if _, err := d.ReadAt(ctx, got, off); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("at %d: version %d, want 1 throughout (%v)", off, got[0], err)
		}
	}
}
