package replication

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
)

// serveTerm answers a readIndex of the owner.
func (h *Host) serveTerm(_ context.Context, _ string, req []byte) ([]byte, error) {
	lun, id, ok := bytes.Cut(req, []byte("\n"))
	if !ok {
		return nil, errors.New("malformed request")
	}
	g, err := h.group(string(lun))
	if err != nil {
		return nil, err
	}
	inst := g.running()
	if inst == nil || string(id) != string(g.cfg.Self.ID) {
		return nil, errNoReplica
	}
	return binary.LittleEndian.AppendUint64(nil, inst.raft.CurrentTerm()), nil
}

// Desired is one member the catalog asks for.
type Desired struct {
	Member
	Joining bool // an incarnation without data: a learner until it has caught up
}

// caughtUpEntries is the lag at which a learner may vote.
const caughtUpEntries = 64

// SetMembers brings the Raft group to what the catalog asks for, one change at a time; it does nothing unless this node
// owns the LUN. It returns the joining members that have become voters, and an error if something is left to do; calling
// it again goes on. A member the catalog does not name is removed: it was replaced, and its identity must not come back.
func (g *Group) SetMembers(ctx context.Context, want []Desired) (promoted []raft.ServerID, err error) {
	g.changing.Lock()
	defer g.changing.Unlock()
	byID := map[raft.ServerID]Desired{}
	g.mu.Lock()
	for _, d := range want {
		byID[d.ID] = d
		g.members[d.ID] = d.Member
	}
	g.mu.Unlock()
	inst, servers, err := g.configuration()
	if err != nil {
		return nil, err
	}
	have := map[raft.ServerID]bool{}
	for _, s := range servers {
		have[s.ID] = true
		if _, ok := byID[s.ID]; ok {
			continue
		}
		if s.ID == g.cfg.Self.ID {
			return nil, fmt.Errorf("the catalog no longer names this owner, %s: move the LUN first", s.ID)
		}
		g.log.Info("removing a replaced replica from the group", "peer", string(s.ID))
		if err := g.waitFor(ctx, inst.raft.RemoveServer(s.ID, 0, 0)); err != nil {
			return nil, fmt.Errorf("remove %s: %w", s.ID, err)
		}
		g.refreshVoters(inst)
	}
	for _, d := range want {
		if have[d.ID] {
			continue
		}
		g.host.mux.Connect(d.Node)
		g.log.Info("adding a learner to the group", "peer", string(d.ID))
		if err := g.waitFor(ctx, inst.raft.AddNonvoter(d.ID, raft.ServerAddress(d.Node), 0, 0)); err != nil {
			return nil, fmt.Errorf("add %s: %w", d.ID, err)
		}
	}
	left := g.settle(ctx)
	if _, servers, err = g.configuration(); err != nil {
		return nil, err
	}
	for _, s := range servers {
		if s.Suffrage == raft.Voter && byID[s.ID].Joining {
			promoted = append(promoted, s.ID)
		}
	}
	return promoted, left
}

// configuration returns the Raft this node leads and serves with, and its members.
func (g *Group) configuration() (*instance, []raft.Server, error) {
	inst := g.running()
	if inst == nil || g.tenure.Load() == nil {
		return nil, nil, block.ErrNotOwner
	}
	f := inst.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, nil, err
	}
	return inst, f.Configuration().Servers, nil
}

// settle moves every member towards a vote: one that cannot be served from the log is rebuilt, without a vote meanwhile; a
// learner that has caught up gets its vote (back). It returns an error while something is left to do. The caller holds
// changing.
func (g *Group) settle(ctx context.Context) error {
	inst, servers, err := g.configuration()
	if err != nil {
		return err
	}
	var left error
	for _, s := range servers {
		m := g.member(s.ID)
		if s.ID == g.cfg.Self.ID || m.ID == "" {
			continue
		}
		if err := g.rebuildPeer(ctx, inst, m, s.Suffrage == raft.Voter); err != nil {
			left = err
			continue
		}
		if s.Suffrage == raft.Voter {
			continue
		}
		if lag := g.lag(inst, s.ID); lag > caughtUpEntries {
			left = fmt.Errorf("%s is %d entries behind", s.ID, lag)
			continue
		}
		g.log.Info("a learner has caught up and may vote", "peer", string(s.ID))
		if err := g.waitFor(ctx, inst.raft.AddVoter(s.ID, s.Address, 0, 0)); err != nil {
			return fmt.Errorf("promote %s: %w", s.ID, err)
		}
		g.refreshVoters(inst)
		g.cfg.OnChange()
	}
	return left
}

// maintain settles members without being asked: a replica that was away for too long is rebuilt and votes again though
// nothing has changed in the catalog.
func (g *Group) maintain() {
	ticker := time.NewTicker(maintainEvery)
	defer ticker.Stop()
	for {
		select {
		case <-g.ctx.Done():
			return
		case <-ticker.C:
		}
		if g.tenure.Load() == nil || !g.changing.TryLock() {
			continue
		}
		ctx, cancel := context.WithTimeout(g.ctx, 10*time.Second)
		if err := g.settle(ctx); err != nil {
			g.log.Debug("members are not settled yet", "error", err)
		}
		cancel()
		g.changing.Unlock()
	}
}

const maintainEvery = 500 * time.Millisecond

// lag returns how many entries a member is behind, the whole log if it has acknowledged nothing yet in this term.
func (g *Group) lag(inst *instance, id raft.ServerID) uint64 {
	last := inst.raft.LastIndex()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.match[id] == 0 {
		return max(last, caughtUpEntries+1)
	}
	return last - min(last, g.match[id])
}

// refreshVoters tells lease and gate of a changed configuration.
func (g *Group) refreshVoters(inst *instance) {
	voters, copies := g.configured(inst)
	if voters == nil {
		return
	}
	g.lease.setVoters(voters)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gate == nil {
		return
	}
	keep := map[string]bool{}
	for _, c := range copies {
		keep[c] = true
		g.gate.Add(c, time.Now())
	}
	for id := range g.members {
		if !keep[string(id)] {
			g.gate.Remove(string(id))
		}
	}
	g.moveGateLocked()
}

// waitFor waits for a Raft future, which may never be answered after a shutdown.
func (g *Group) waitFor(ctx context.Context, f raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-g.ctx.Done():
		return block.ErrClosed
	}
}

// Transfer hands the LUN to another data replica: the lease ends, then that one is asked to stand.
func (g *Group) Transfer(ctx context.Context, to raft.ServerID) error {
	inst := g.running()
	m := g.member(to)
	switch {
	case inst == nil || g.tenure.Load() == nil:
		return block.ErrNotOwner
	case m.ID == "":
		return fmt.Errorf("%s is not a replica of this LUN", to)
	case m.Witness:
		return fmt.Errorf("%s is the witness: it holds no data and cannot own a LUN", to)
	case to == g.cfg.Self.ID:
		return nil
	}
	return g.waitFor(ctx, inst.raft.LeadershipTransferToServer(to, raft.ServerAddress(m.Node)))
}
