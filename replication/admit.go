package replication

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
	"sanctuary/replication/command"
	"sanctuary/replication/journal"
)

// Raft's goroutine waits when it stores what the journal has no room for, and then nothing can be done that makes some: that takes a checkpoint, and for one the
// goroutine is needed. So entries are let through to Raft only if the journal admits them, an owner's own when they are proposed, those of others when they come.
// The owner's count as on their way until they have been stored.

// errNoRoom is what an owner hears from a follower whose journal has none.
var errNoRoom = errors.New("the journal here has no room for entries")

// takesPause is between two looks at a journal without room.
const takesPause = 20 * time.Millisecond

// awaitTakes holds the owner's own entries back as awaitRoom those of others.
func (g *Group) awaitTakes(ctx context.Context) error {
	for !g.cfg.Journal.Takes() {
		if g.tenure.Load() == nil {
			return block.ErrNotOwner
		}
		if err := g.pause(ctx, takesPause); err != nil {
			return err
		}
	}
	return nil
}

// awaitRoom holds entries back while the journal has no room for them. Raft's goroutine, which waits when it stores them, is needed for the checkpoint behind which
// the log is cut off. What is let through does not count as on its way until it is stored: how that ends is not always heard, and one request of each group is
// all there can be of it at a time, for which there is room beside the reserve.
func (g *Group) awaitRoom(inst *instance, req *raft.AppendEntriesRequest) error {
	if len(req.Entries) == 0 {
		return nil
	}
	var bytes int64
	for _, e := range req.Entries {
		bytes += int64(len(e.Data) + len(e.Extensions))
	}
	cost := journal.Cost(len(req.Entries), bytes)
	for since := time.Now(); !g.fits(cost); {
		if time.Since(since) > behindWait || g.pause(inst.ctx, takesPause) != nil {
			return errNoRoom
		}
	}
	return nil
}

// fits says whether the journal would admit so much now. It does not count as on its way.
func (g *Group) fits(cost int64) bool {
	if !g.cfg.Journal.Admit(cost) {
		return false
	}
	g.cfg.Journal.Arrived(cost)
	return true
}

// admitLocked lets the next entry through, or has somebody look again later.
func (p *proposer) admitLocked(cost int64) bool {
	if p.g.cfg.Journal.Admit(cost) {
		return true
	}
	if !p.cramped {
		p.cramped = true
		time.AfterFunc(takesPause, p.relieve)
	}
	return false
}

// relieve looks again whether the journal has room.
func (p *proposer) relieve() {
	p.mu.Lock()
	p.cramped = false
	p.mu.Unlock()
	p.pump()
}

// stored notes that Raft has given entries to the journal.
func (p *proposer) stored(logs []*raft.Log) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range logs {
		if len(p.inflight) == 0 {
			return
		}
		if l.Type == raft.LogCommand {
			p.arrivedLocked(p.inflight[command.Proposal(l.Data)])
		}
	}
}

func (p *proposer) arrivedLocked(e *entry) {
	if e != nil && e.cost > 0 {
		p.g.cfg.Journal.Arrived(e.cost)
		e.cost = 0
	}
}
