package replication

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// What becomes of a LUN in RAM whose processes are killed, and start again in some order. A copy's process has no data any more, and
// comes back as a new incarnation; the witness keeps its log.
const (
	ramServed = "served"                 // at once, by whoever is left, without loss
	ramWaits  = "waits for the witness"  // and then served without loss
	ramStuck  = "waits for the operator" // its data is there, and no majority of those who knew of it will ever be
	ramLost   = "lost"                   // no copy is left
)

// TestReplicasInRAMRestarted tries every set of processes that can be killed at once, in every order of return.
func TestReplicasInRAMRestarted(t *testing.T) {
	for _, x := range []struct {
		third   string // "w": a witness; "c": another copy
		killed  string // the owner "o", the copy "p", and the third
		becomes string
	}{
		{"w", "o", ramServed},
		{"w", "p", ramServed},
		{"w", "w", ramServed},
		{"w", "p w", ramWaits},
		{"w", "w p", ramWaits},
		{"w", "o w", ramWaits},
		{"w", "w o", ramWaits},
		{"w", "o p", ramLost},
		{"w", "p o", ramLost},
		{"w", "o p w", ramLost},
		{"w", "o w p", ramLost},
		{"w", "p o w", ramLost},
		{"w", "p w o", ramLost},
		{"w", "w o p", ramLost},
		{"w", "w p o", ramLost},
		{"c", "o", ramServed},
		{"c", "p", ramServed},
		{"c", "o p", ramStuck},
		{"c", "p c", ramStuck},
		{"c", "o p c", ramLost},
		{"c", "c p o", ramLost},
	} {
		t.Run(x.third+" beside two copies, killed and back "+x.killed+", "+x.becomes, func(t *testing.T) {
			t.Parallel() // they wait, most of the time
			restartInRAM(t, x.third, strings.Fields(x.killed), x.becomes)
		})
	}
}

func restartInRAM(t *testing.T, third string, killed []string, becomes string) {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	c := newCluster(t, blockstore.MediaRAM, "a", "b", third)
	const blocks = 40
	c.writeAll(ctx, t, everyBlock(0, blocks, 1), 1)
	owner := c.owner()
	eventually(t, "every copy in sync", func() bool { return c.group(owner).Status().Health == HealthHealthy })
	c.writeAll(ctx, t, everyBlock(0, blocks, 1), 2) // acknowledged: every copy in sync has it
	names := map[string]string{"o": owner, third: third}
	for _, m := range c.members { // with three copies the owner may be any
		if m.Node != owner && !m.Witness {
			if names["p"] == "" {
				names["p"] = m.Node
			} else {
				names["c"] = m.Node
			}
		}
	}
	for _, k := range killed {
		c.stop(names[k])
	}
	want := slices.Clone(c.members)
	settled := func() bool { // what the node's reconciler asks for, of whoever serves
		for node, n := range c.nodes {
			if n.group.Status().Serving {
				_, err := c.setMembers(node, want)
				return err == nil
			}
		}
		return false
	}
	if becomes == ramServed {
		if err := c.write(ctx, 0, 3); err != nil {
			t.Fatalf("while %v is away: %v", killed, err)
		}
	} else {
		refused(t, c)
	}
	for i, k := range killed {
		node := names[k]
		if !c.member(node).Witness {
			want = c.rename(node, "2")
			for j := range want { // and those that came back before it
				want[j].Joining = strings.HasSuffix(string(want[j].ID), "/2")
			}
		}
		c.start(node, false)
		if becomes != ramServed && !(becomes == ramWaits && (k == third || i == len(killed)-1)) {
			settled()
			refused(t, c)
		}
	}
	if becomes == ramServed || becomes == ramWaits {
		eventually(t, "every copy in sync again", func() bool {
			return settled() && c.group(c.owner()).Status().Health == HealthHealthy
		})
		for n := 1; n < blocks; n++ {
			if v, err := c.read(n); err != nil || v != 2 {
				t.Fatalf("block %d is of version %d, %v", n, v, err)
			}
		}
		compareCopies(t, c, "a", "b")
		return
	}
	// Long enough for elections, of whoever might stand.
	for began := time.Now(); time.Since(began) < 4*DefaultTiming().Heartbeat; time.Sleep(5 * time.Millisecond) {
		settled()
		refused(t, c)
	}
	for node, n := range c.nodes {
		if n.vol == nil {
			continue
		}
		buf := make([]byte, block.Size)
		if err := n.vol.ReadAt(blockRange(1), buf); err != nil {
			t.Fatal(err)
		}
		v, err := untag(1, buf)
		fresh := strings.HasSuffix(string(c.member(node).ID), "/2")
		if err != nil || fresh && v != 0 || !fresh && v != 2 {
			t.Errorf("%s has version %d (%v), new incarnation %v", node, v, err, fresh)
		}
	}
}

// refused makes sure that nobody serves: a copy without data would answer with zeros.
func refused(t *testing.T, c *cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for node, n := range c.nodes {
		buf := make([]byte, block.Size)
		if err := n.group.Read(ctx, blockRange(1), buf); err == nil {
			if v, err := untag(1, buf); v != 2 {
				t.Fatalf("%s answers a read with version %d (%v)", node, v, err)
			}
		}
		if n.group.Write(ctx, n.group.Fence(), blockRange(1), tagged(1, 2)) == nil {
			t.Fatalf("%s has acknowledged a write without a majority", node)
		}
	}
}
