package node

import (
	"bytes"
	"context"
	"testing"
	"time"

	"sanctuary/node/api"
	"sanctuary/node/config"
)

// Nodes with different settings serve a LUN together. Each packs what it sends as it is set to, and says what that has spared.
func TestNodesPackWhatTheySendAsTheyAreSet(t *testing.T) {
	c := newCluster(t)
	set := map[string]string{"alpha": config.CompressionZstd, "beta": config.CompressionS2}
	for node, other := range map[string]string{"alpha": "beta", "beta": "alpha"} {
		cfg := c.cfgs[node]
		cfg.Links.To = map[string]string{other: set[node]}
		c.cfgs[node] = cfg
	}
	c.start("alpha", "beta", "witness")
	cl := c.client()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	if _, err := cl.CreateLUN(ctx, api.LUNSpec{Name: "vm1", SizeBytes: 64 << 20, Media: "file", Open: true}, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	healthy := func(l api.LUN) bool { return l.Health == api.HealthHealthy && len(l.Portals) == 2 }
	d := openDisk(t, c.lun(cl, "vm1", healthy))
	defer d.Close()
	const size = 1 << 20
	for round, owner := range []string{"alpha", "beta"} {
		if c.lun(cl, "vm1", healthy).Owner != owner {
			if _, err := cl.MoveLUN(ctx, "vm1", owner, 30*time.Second); err != nil {
				t.Fatal(err)
			}
		}
		c.lun(cl, "vm1", func(l api.LUN) bool { return healthy(l) && l.Owner == owner })
		data := bytes.Repeat([]byte("a line of some log, as there are many; "), size/39+1)[:size]
		for i := range 16 {
			if _, err := d.WriteAt(ctx, data, int64(16*round+i)*size); err != nil {
				t.Fatal(err)
			}
		}
		other := map[string]string{"alpha": "beta", "beta": "alpha"}[owner]
		nodes, err := c.clientOf(owner).Nodes(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes.Nodes {
			switch b := n.Bulk; n.Name {
			case owner:
				if b != nil {
					t.Errorf("%s has sent itself %+v", owner, b)
				}
			case other:
				if b == nil || b.Compression != set[owner] || b.Bytes < 16*size || b.Sent > b.Bytes/4 {
					t.Errorf("%s has sent %s %+v, want at least 16 MiB, packed with %s to less than a quarter", owner, other, b, set[owner])
				}
			default:
				if b == nil || b.Compression != config.CompressionOff || b.Sent != b.Bytes {
					t.Errorf("%s has sent %s %+v, want it as it is", owner, n.Name, b)
				}
			}
		}
		got := make([]byte, size)
		for i := range 16 {
			if _, err := d.ReadAt(ctx, got, int64(16*round+i)*size); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("MiB %d is not what was written: %v", 16*round+i, err)
			}
		}
	}
}
