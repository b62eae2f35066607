package prove

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"sanctuary/node/api"
	"sanctuary/target/initiator"
)

// TestProveRecoveredByForce takes a LUN's newest copy away for good, as far as the others can tell, has it go on from the older one by force, and kills the node of that
// one in the middle of it. It must come to serve exactly what it held, and the other, when it is back, must change nothing and become a copy of that.
func TestProveRecoveredByForce(t *testing.T) {
	rng := prove(t)
	cl := startCluster(t, clusterSpec{media: "file", sizeBytes: 64 << 20, more: []string{gamma}})
	const blocks = 64
	version := func(n, v int) []byte { return bytes.Repeat([]byte(fmt.Sprintf("%07d %07d\n", n, v)), 256) }
	write := func(v, count int) {
		t.Helper()
		withDisk(t, cl, func(ctx context.Context, d *initiator.Disk) error {
			for n := range count {
				if _, err := d.WriteAt(ctx, version(n, v), int64(n)*4096); err != nil {
					return err
				}
			}
			return nil
		})
	}
	check := func(v int) {
		t.Helper()
		got := make([]byte, 4096)
		withDisk(t, cl, func(ctx context.Context, d *initiator.Disk) error {
			for n := range blocks {
				if _, err := d.ReadAt(ctx, got, int64(n)*4096); err != nil {
					return err
				}
				if !bytes.Equal(got, version(n, v)) {
					t.Fatalf("block %d holds %q, want version %d", n, got[:16], v)
				}
			}
			return nil
		})
	}
	for round := range count(t, "PROVE_RECOVERIES", 3) {
		kept := 10*round + 1
		cl.move(alpha)
		write(kept, blocks)
		cl.healthy()
		cl.kill(beta)
		write(kept+1, blocks/2) // on alpha, and in the log of the witness
		cl.kill(alpha)
		cl.start(beta)
		ctx, cancel := context.WithTimeout(t.Context(), healTimeout)
		var r api.Recovery
		cl.until(ctx, "recovery by force allowed", func() (err error) {
			if r, err = cl.api.Recovery(ctx, lunName, ""); err == nil && r.Refused != "" {
				err = errors.New(r.Refused)
			}
			return err
		})
		if r.Node != beta || r.Lost.Entries == 0 {
			t.Fatalf("round %d: %+v", round, r)
		}
		cl.until(ctx, "recovered by force", func() error {
			_, err := cl.api.Recover(ctx, lunName, api.RecoverSpec{AcceptLoss: true, History: r.History, By: "prove"}, 0)
			return err
		})
		kills := 3
		for range kills {
			wait(t, time.Duration(rng.IntN(400))*time.Millisecond)
			cl.kill(beta)
			cl.start(beta)
		}
		served := cl.owner()
		if served.Owner != beta || served.History != r.History+1 {
			t.Fatalf("round %d: %+v", round, served)
		}
		check(kept)
		write(kept+2, blocks)
		cl.start(alpha)
		after := cl.settled()
		cl.move(alpha)
		check(kept + 2)
		t.Logf("round %d: %s lost; recovered through %d kills, in sync again: history %d, %d records", round, r.Lost, kills, after.History, len(after.Recoveries))
		cancel()
	}
}

// withDisk opens the LUN over all portals for a while.
func withDisk(t *testing.T, c *cluster, use func(ctx context.Context, d *initiator.Disk) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	d, err := initiator.OpenMultipath(ctx, initiator.MultipathConfig{Paths: c.paths(c.owner())})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := use(ctx, d); err != nil {
		t.Fatal(err)
	}
}
