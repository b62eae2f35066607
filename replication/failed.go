package replication

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
)

// An error of the disk is final, whoever meets it: a write, a read of an initiator, the scrub, another LUN in the same pool. What the
// system says of the disk afterwards is not believed (an fsync that is repeated succeeds without having written anything), so nothing
// is tried again: this replica is out until its node is restarted, and the LUN goes on with the others.

// fail takes this replica out for good: its medium or its journal cannot be trusted any more. A replica that lies is worse
// than one that is gone; the others go on without it.
func (g *Group) fail(err error) {
	if !g.failed.CompareAndSwap(nil, &err) {
		return
	}
	g.log.Error("replica is out: its storage failed. The LUN goes on from its other replicas; replace the disk and restart this node", "error", err)
	g.endTenure()
	g.goFunc(func() { // the caller may be Raft's own goroutine
		g.sayOut()
		g.halt()
		g.cfg.OnChange()
	})
}

// sayOutWithin is how long another member may take to hear that this replica is out. It finds out by itself, later.
const sayOutWithin = 2 * time.Second

// sayOut tells the other members that this replica is out. Its process goes on, and so do its connections: they would wait for as long as
// for one that is merely slow, the owner to store without it, and the others to elect an owner.
func (g *Group) sayOut() {
	g.mu.Lock()
	members := slices.Collect(maps.Values(g.members))
	g.mu.Unlock()
	for _, m := range members {
		if m.Node != g.cfg.Self.Node {
			g.sayOutTo(m.Node)
		}
	}
}

func (g *Group) sayOutTo(node string) {
	g.goFunc(func() { // nobody waits for it
		ctx, cancel := context.WithTimeout(g.ctx, sayOutWithin)
		defer cancel()
		if _, err := g.host.mux.Call(ctx, node, methodOut, []byte(g.cfg.LUN+"\n"+string(g.cfg.Self.ID))); err != nil && ctx.Err() == nil {
			g.log.Info("a member was not told that this replica is out", "node", node, "error", err)
		}
	})
}

// serveOut takes what a member says of itself: LUN, newline, its replica.
func (h *Host) serveOut(_ context.Context, from string, req []byte) ([]byte, error) {
	lun, id, ok := strings.Cut(string(req), "\n")
	if !ok {
		return nil, errors.New("malformed request")
	}
	if nodeOf(raft.ServerID(id)) != from {
		return nil, fmt.Errorf("node %s speaks of %s", from, id)
	}
	g, err := h.group(lun)
	if err != nil {
		return nil, err
	}
	return nil, g.peerOut(raft.ServerID(id))
}

// peerOut is PeerLink for one replica that is out: the connection to its node stands.
func (g *Group) peerOut(id raft.ServerID) error {
	now := time.Now()
	g.mu.Lock()
	m, known := g.members[id]
	if known {
		g.out[id] = now
		if g.gate != nil && !m.Witness {
			g.gate.Link(string(id), false, now)
		}
	}
	g.mu.Unlock()
	if !known {
		return errNoReplica
	}
	g.log.Warn("a member's storage has failed: it is out", "member", string(id))
	g.linkLost(m.Node)
	g.cfg.OnChange()
	if inst := g.running(); inst != nil {
		if _, leader := inst.raft.LeaderWithID(); leader == id {
			g.setHeartbeat(inst, g.kickTimeout()+kickStep, now)
		}
	}
	return nil
}

// answersLocked notes that a member answers or leads: whatever was said of its connection, it is there. What it had sent when it said that it
// was out does not count. It is called with mu held.
func (g *Group) answersLocked(id raft.ServerID, now time.Time) bool {
	if out := g.out[id]; !out.IsZero() && now.Sub(out) < sayOutWithin {
		return false
	}
	delete(g.out, id) // it was an earlier process that said it
	delete(g.down, g.memberLocked(id).Node)
	return true
}

// IsOut says whether a node's replica has said that its storage has failed, and not come back since.
func (g *Group) IsOut(node string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for id := range g.out {
		if m, known := g.members[id]; known && m.Node == node {
			return true
		}
	}
	return false
}

// Err returns what took this replica out, or nil.
func (g *Group) Err() error {
	if p := g.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// outIfFailed takes the replica out if its medium has failed.
func (g *Group) outIfFailed(err error) error {
	if !errors.Is(err, block.ErrFailed) {
		return err
	}
	g.fail(err)
	return outNow(err)
}

// outNow is what a command is told here: go to, or wait for, the next owner. As a hardware error it would be an I/O error to whoever
// uses the disk, multipath or not.
func outNow(err error) error {
	return fmt.Errorf("%w: this replica is out: %v", block.ErrNotOwner, err)
}
