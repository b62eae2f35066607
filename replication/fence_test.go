package replication

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// moved hands the LUN to another node and waits until that serves it.
func (c *cluster) moved(t *testing.T, to string) {
	t.Helper()
	var away string // a node to hand it to first, where an election has brought it to the right one
	for _, m := range c.members {
		if n := c.nodes[m.Node]; n != nil && !m.Witness && m.Node != to {
			away = m.Node
		}
	}
	hand := func(from, to string) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		_ = c.group(from).Transfer(ctx, c.member(to).ID) // an error: on a busy machine an election came between; once more
	}
	eventually(t, to+" serves, and knows that it was handed the LUN", func() bool {
		from := c.owner()
		switch st := c.group(from).Status(); {
		case from == to && st.Serving && st.Handed:
			return true
		case st.Health != HealthHealthy: // not in sync yet: it would be refused
		case from == to:
			hand(from, away)
		default:
			hand(from, to)
		}
		return false
	})
}

// A command that stood still while the LUN went elsewhere and came back lands behind what was written there: it must do
// nothing. One that was only held until its node became the owner is carried out.
func TestCommandIsNotCarriedOutAfterAnotherNodeOwnedTheLUN(t *testing.T) {
	c := newCluster(t, blockstore.MediaRAM, "a", "b", "w")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	owner := c.owner()
	other := map[string]string{"a": "b", "b": "a"}[owner]
	if err := c.write(ctx, 1, 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other knows of it", func() bool { return c.group(other).Fence() != block.Fence{} })
	acceptedAsOwner, acceptedElsewhere := c.group(owner).Fence(), c.group(other).Fence()

	c.moved(t, other)
	// Nothing was written since it was accepted there: the command was held, and may go on.
	eventually(t, "the fence of a command that was held", func() bool {
		return c.group(other).Write(ctx, acceptedElsewhere, blockRange(2), tagged(2, 1)) == nil
	})
	if err := c.write(ctx, 1, 2); err != nil {
		t.Fatal(err)
	}
	c.moved(t, owner)

	g := c.group(owner)
	for name, f := range map[string]block.Fence{"as owner": acceptedAsOwner, "elsewhere": acceptedElsewhere, "zero": {}} {
		whole := tagged(1, 1)
		for command, err := range map[string]error{
			"write":      g.Write(ctx, f, blockRange(1), whole),
			"write same": g.WriteSame(ctx, f, blockRange(1), bytes.Repeat([]byte{7}, 512)),
			"zeros":      g.WriteSame(ctx, f, blockRange(1), nil),
			"unmap":      g.Unmap(ctx, f, []block.Range{blockRange(1)}),
			"modify":     g.Modify(ctx, f, blockRange(1), func(_ int64, b []byte) { clear(b) }),
			"compare":    func() error { _, err := g.CompareAndWrite(ctx, f, blockRange(1), tagged(1, 2), whole); return err }(),
			"state":      func() error { _, err := g.SwapState(ctx, f, g.State().Version, []byte("old")); return err }(),
		} {
			if !errors.Is(err, block.ErrFenced) {
				t.Errorf("%s accepted %s before the LUN was elsewhere: %v", command, name, err)
			}
		}
	}
	if v, err := c.read(1); err != nil || v != 2 {
		t.Fatalf("block holds version %d (%v), the newest acknowledged is 2", v, err)
	}
	if s := g.State(); s.Version != 0 {
		t.Fatalf("state %q", s.Blob)
	}
}

// Modify is atomic against other commands, for ranges that are not whole blocks and longer than one entry, too.
func TestModifyChangesEveryByteOnce(t *testing.T) {
	c := newCluster(t, blockstore.MediaRAM, "a")
	ctx, g := t.Context(), c.group(c.owner())
	r := block.Range{Start: 3, Count: block.CountOf(3*entryTargetBytes) + 7}
	const rounds = 8
	errs := make(chan error, rounds)
	for i := range rounds {
		go func() {
			errs <- g.Modify(ctx, g.Fence(), r, func(off int64, have []byte) {
				for j := range have {
					have[j] += byte(int64(1) << i)
				}
				if off%512 != 0 || len(have)%512 != 0 {
					t.Errorf("piece of %d bytes at %d", len(have), off)
				}
			})
		}()
	}
	for range rounds {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, (r.Count + 6).Bytes())
	if err := g.Read(ctx, block.Range{Start: 0, Count: r.Count + 6}, got); err != nil {
		t.Fatal(err)
	}
	for i, b := range got {
		want := byte(0)
		if i >= 3*512 && int64(i) < 3*512+r.Bytes() {
			want = 255
		}
		if b != want {
			t.Fatalf("byte %d is %d, want %d", i, b, want)
		}
	}
}
