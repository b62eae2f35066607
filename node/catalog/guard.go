package catalog

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// Transport is what the catalog's group needs of the peer transport. A server's address is its node's name.
type Transport interface {
	raft.Transport
	raft.WithPreVote
}

// guard stands between Raft and the transport and keeps a member with amnesia from doing harm.
//
// A first member whose disk was lost starts like one that never ran: under the old name, with the same first
// configuration and an empty log. As a voter it could then help elect a node that lacks what the old disk had
// acknowledged (measured: committed data lost in 71 of 200 runs). Nothing on the blank disk tells the two cases
// apart; the catalog does: it holds the ID of the disk it knows under that name. So a member answers requests for votes only
// once it is *confirmed*, which is written to disk when
//
//   - its catalog holds its own name with its own ID (a lost disk's successor has another ID, and never gets there), or
//   - it takes part in the cluster's very first election, which is seen by the candidate's log: it holds nothing but the first
//     configuration, as does ours. A member that has lost its disk cannot see that while another still has its log,
//     because pre-vote and vote both refuse a candidate whose log is shorter.
//
// In the first election a majority is confirmed before any entry after the first exists, so later elections always have
// enough voters. What is left: a majority of first members blank at once is a lost quorum, by any rule.
//
// It also refuses snapshots that would move the catalog backwards, which Raft installs without looking, and it does not pass
// on Raft's heartbeat short cut, which changes Raft's state off its own goroutine (hashicorp/raft#695).
type guard struct {
	Transport
	first     bool                        // this node is one of the first members
	last      func() uint64               // last index in our own log
	applied   func() uint64               // last index applied here
	confirm   func() error                // makes the confirmation durable
	knows     func(id raft.ServerID) bool // whether a server is a member; nil: all are listened to. See Rescue
	confirmed atomic.Bool                 //
	consumer  chan raft.RPC               //
	done      chan struct{}               //
	stop      sync.Once                   //
	wg        sync.WaitGroup              //
}

// firstIndex is the index of the first configuration: a log that ends there holds nothing else.
const firstIndex = 1

var (
	errUnconfirmed = errors.New("this member of the catalog does not vote yet: it has not found its own registration in the catalog")
	errStopped     = errors.New("the catalog is being closed")
	errStranger    = errors.New("the catalog has gone on without this member: remove it, and let it join again with an empty data directory")
)

func (g *guard) start() {
	g.consumer = make(chan raft.RPC)
	g.done = make(chan struct{})
	g.wg.Go(g.run)
}

func (g *guard) run() {
	in := g.Transport.Consumer()
	for {
		select {
		case <-g.done:
			return
		case rpc := <-in:
			if err := g.check(rpc); err != nil {
				rpc.Respond(nil, err)
				continue
			}
			select {
			case g.consumer <- rpc:
			case <-g.done:
				rpc.Respond(nil, errStopped)
				return
			}
		}
	}
}

func (g *guard) check(rpc raft.RPC) error {
	if h, ok := rpc.Command.(raft.WithRPCHeader); g.knows != nil && (!ok || !g.knows(raft.ServerID(h.GetRPCHeader().ID))) {
		return errStranger
	}
	switch c := rpc.Command.(type) {
	case *raft.RequestPreVoteRequest:
		return g.mayVote(c.LastLogIndex)
	case *raft.RequestVoteRequest:
		if err := g.mayVote(c.LastLogIndex); err != nil {
			return err
		}
		return g.setConfirmed() // before Raft can grant it
	case *raft.InstallSnapshotRequest:
		if have := g.applied(); c.LastLogIndex <= have {
			return fmt.Errorf("snapshot of index %d refused: %d has been applied here", c.LastLogIndex, have)
		}
	}
	return nil
}

func (g *guard) mayVote(candidateLast uint64) error {
	if g.confirmed.Load() || g.first && candidateLast <= firstIndex && g.last() <= firstIndex {
		return nil
	}
	return errUnconfirmed
}

// setConfirmed is safe to repeat. Nothing may be voted after it has failed.
func (g *guard) setConfirmed() error {
	if g.confirmed.Load() {
		return nil
	}
	if err := g.confirm(); err != nil {
		return fmt.Errorf("make the membership durable: %w", err)
	}
	g.confirmed.Store(true)
	return nil
}

func (g *guard) Consumer() <-chan raft.RPC { return g.consumer }

func (*guard) SetHeartbeatHandler(func(raft.RPC)) {}

// RequestVote is our own candidacy. In the first election (our log holds nothing but the first configuration, and a
// majority granted the pre-vote) we are confirmed by it; a member that is not confirmed later does not stand.
func (g *guard) RequestVote(id raft.ServerID, to raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if err := g.mayVote(req.LastLogIndex); err != nil {
		return err
	}
	if err := g.setConfirmed(); err != nil {
		return err
	}
	return g.Transport.RequestVote(id, to, req, resp)
}

func (g *guard) RequestPreVote(id raft.ServerID, to raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if err := g.mayVote(req.LastLogIndex); err != nil {
		return err
	}
	return g.Transport.RequestPreVote(id, to, req, resp)
}

// Close ends the guard and the transport it was given. Raft calls it at the end of its shutdown.
func (g *guard) Close() error {
	var err error
	g.stop.Do(func() {
		close(g.done)
		g.wg.Wait()
		if c, ok := g.Transport.(raft.WithClose); ok {
			err = c.Close()
		}
	})
	return err
}
