package catalog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// Propose makes a change, on the leader. It returns once the change is committed and applied here.
//
// Errors: *Refusal (nothing was changed; final), *NotLeaderError (nothing was done; ask that node), ErrUnknown (propose the
// same change again), ErrClosed, or what Err says. Proposals wait for their turn as long as ctx allows.
//
// The members of the Raft group follow the registered nodes: RegisterNode adds a node that is not a member, without a vote
// until it says it is Ready, and RemoveNode ends its membership. If that second step fails, so does Propose, and
// proposing the same again completes it.
func (c *Catalog) Propose(ctx context.Context, change Change) (Result, error) {
	data, err := EncodeChange(change)
	if err != nil {
		return Result{}, err
	}
	answer, err := c.do(ctx, func(r *raft.Raft) raft.Future { return r.Apply(data, enqueueWait) })
	if err != nil {
		return Result{}, err
	}
	a, ok := answer.(raft.ApplyFuture).Response().(applied)
	if !ok {
		return Result{}, fmt.Errorf("the catalog gave no answer to %s: %w", change.kind(), ErrUnknown)
	}
	if a.err != nil {
		return Result{}, a.err
	}
	if err := c.followMembers(ctx, change); err != nil {
		return Result{}, fmt.Errorf("%s is made, but the group's members are not adapted yet: %w", change.kind(), err)
	}
	return a.result, nil
}

// Barrier returns a model that holds every change made before the call, on the leader: a linearizable read. It goes
// through the log, since Raft's VerifyLeader may be answered by requests sent before it.
func (c *Catalog) Barrier(ctx context.Context) (*Model, error) {
	if _, err := c.do(ctx, func(r *raft.Raft) raft.Future { return r.Barrier(enqueueWait) }); err != nil {
		return nil, err
	}
	return c.Model(), nil
}

// Member is a member of the catalog's Raft group.
type Member struct {
	Node  string `json:"node"`
	Voter bool   `json:"voter"`
}

// Members returns the members of the group as this node knows them.
func (c *Catalog) Members() ([]Member, error) {
	if c.closed() {
		return nil, ErrClosed
	}
	f := c.raft.GetConfiguration() // answered from memory
	if err := f.Error(); err != nil {
		return nil, err
	}
	var out []Member
	for _, s := range f.Configuration().Servers {
		out = append(out, Member{Node: string(s.ID), Voter: s.Suffrage == raft.Voter})
	}
	return out, nil
}

// AddMember makes a registered node a member of the group; without a vote unless voter is set. Leader only. Propose does
// this for RegisterNode.
func (c *Catalog) AddMember(ctx context.Context, node string, voter bool) error {
	if _, ok := c.Model().Nodes[node]; !ok {
		return refuse(CodeNotFound, "there is no node %q in the cluster", node)
	}
	_, err := c.do(ctx, func(r *raft.Raft) raft.Future {
		if voter {
			return r.AddVoter(raft.ServerID(node), raft.ServerAddress(node), 0, enqueueWait)
		}
		return r.AddNonvoter(raft.ServerID(node), raft.ServerAddress(node), 0, enqueueWait)
	})
	return err
}

// RemoveMember ends a node's membership. Leader only. Propose does this for RemoveNode.
func (c *Catalog) RemoveMember(ctx context.Context, node string) error {
	_, err := c.do(ctx, func(r *raft.Raft) raft.Future { return r.RemoveServer(raft.ServerID(node), 0, enqueueWait) })
	return err
}

func (c *Catalog) followMembers(ctx context.Context, change Change) error {
	switch change := change.(type) {
	case *RegisterNode:
		members, err := c.Members()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(members, func(m Member) bool { return m.Node == change.Name })
		if i < 0 || change.Ready && !members[i].Voter {
			return c.AddMember(ctx, change.Name, change.Ready && i >= 0)
		}
	case *RemoveNode:
		members, err := c.Members()
		if err != nil {
			return err
		}
		if slices.ContainsFunc(members, func(m Member) bool { return m.Node == change.Name }) {
			return c.RemoveMember(ctx, change.Name)
		}
	}
	return nil
}

// HandOver gives the leadership to another member that votes, if this node has it, and returns when it is known who leads now: what is
// proposed after that waits for no election. An error says that this node still leads, or that it is not known who does.
func (c *Catalog) HandOver(ctx context.Context) error {
	if !c.IsLeader() {
		return nil
	}
	if _, err := c.do(ctx, func(r *raft.Raft) raft.Future { return r.LeadershipTransfer() }); err != nil {
		return err
	}
	tick := time.NewTicker(leaderPoll)
	defer tick.Stop()
	for {
		if leader, known := c.Leader(); known && leader != c.cfg.Node {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.done:
			return ErrClosed
		}
	}
}

// leaderPoll is how often it is looked who leads.
const leaderPoll = 5 * time.Millisecond

// do hands something to Raft and waits for it, for ctx or for Close, whichever is first: Raft's own futures may
// never be answered once it has been shut down (hashicorp/raft#498).
func (c *Catalog) do(ctx context.Context, call func(*raft.Raft) raft.Future) (raft.Future, error) {
	if err := c.Err(); err != nil {
		return nil, err
	}
	if c.closed() {
		return nil, ErrClosed
	}
	if c.raft.State() != raft.Leader {
		return nil, c.notLeader()
	}
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx) // nothing was handed over
	case <-c.done:
		return nil, ErrClosed
	}
	type outcome struct {
		future raft.Future
		err    error
	}
	answer := make(chan outcome, 1)
	go func() { // not waited for: see above. It holds its slot, so that there are never more than maxInFlight.
		f := call(c.raft)
		err := f.Error()
		<-c.slots
		answer <- outcome{f, err}
	}()
	select {
	case o := <-answer:
		return o.future, c.explain(o.err)
	case <-ctx.Done():
		return nil, fmt.Errorf("%w (%w)", ErrUnknown, context.Cause(ctx))
	case <-c.done:
		return nil, fmt.Errorf("%w (%w)", ErrUnknown, ErrClosed)
	}
}

func (c *Catalog) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return c.notLeader()
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("the catalog is busy and has not taken the change within %s; nothing was done", enqueueWait)
	default:
		// Leadership lost, shut down, or the log could not be written: the entry may be on another member's disk.
		return fmt.Errorf("%w (%w)", ErrUnknown, err)
	}
}

func (c *Catalog) notLeader() error {
	name, _ := c.Leader()
	if name == c.cfg.Node {
		name = "" // lost a moment ago
	}
	return &NotLeaderError{Leader: name}
}
