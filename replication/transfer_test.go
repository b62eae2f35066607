package replication

import (
	"context"
	"testing"
	"time"

	"sanctuary/blockstore"
)

// TestWritesGoOnAfterATransferThatFailed: the library answers that a transfer has failed a second before it takes proposals again, and drops
// what it is given meanwhile.
func TestWritesGoOnAfterATransferThatFailed(t *testing.T) {
	c := newCluster(t, blockstore.MediaRAM, "a", "b", "w")
	owner := c.owner()
	other := map[string]string{"a": "b", "b": "a"}[owner]
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := c.write(ctx, 1, 1); err != nil {
		t.Fatal(err)
	}
	silent := &c.group(other).promise.mu // without it that replica answers nothing
	silent.Lock()
	err := c.group(owner).Transfer(ctx, c.member(other).ID)
	g := c.group(owner)
	wrote := make(chan error, 1)
	go func() { wrote <- g.Write(ctx, g.Fence(), blockRange(1), tagged(1, 2)) }()
	select {
	case werr := <-wrote:
		silent.Unlock()
		if err == nil || werr != nil {
			t.Errorf("transfer to a copy that does not answer: %v; a write behind it: %v", err, werr)
		}
	case <-ctx.Done():
		silent.Unlock()
		t.Errorf("transfer to a copy that does not answer: %v; a write behind it has no answer", err)
	}
}
