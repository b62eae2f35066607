package replication

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore"
	"sanctuary/replication/transport"
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

// A transfer to a copy that does not answer comes to nothing, and the lease is back as soon as an entry behind it is committed. What was asked of the copy
// may arrive at any time, and wait there for as long: then it is refused, and so is what the copy would have been elected by.
func TestLeaseComesBackAfterATransferThatFailed(t *testing.T) {
	for name, protocol := range map[string]uint32{"copy of this program": transport.ProtocolTransfers, "copy of an older one": transport.ProtocolTransfers - 1} {
		t.Run(name, func(t *testing.T) {
			for range 5 {
				if transferThatFails(t, protocol) {
					return
				}
			}
			t.Fatal("the copy has stood for it each time")
		})
	}
}

// transferThatFails returns false if the copy has stood for the transfer after all: when it answers again it may look at the request before it looks at the entry behind
// it. Then it is elected by nobody, for a majority has that entry, and whoever owns the LUN next has it, too.
func transferThatFails(t *testing.T, protocol uint32) bool {
	t.Helper()
	c := newCluster(t, blockstore.MediaRAM, "a", "b", "w")
	owner := c.owner()
	other := map[string]string{"a": "b", "b": "a"}[owner]
	g, target := c.group(owner), c.group(other)
	g.host.protocol = func(string) uint32 { return protocol }
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := c.write(ctx, 1, 1); err != nil {
		t.Fatal(err)
	}
	begun := g.tenure.Load()
	if begun == nil {
		return false
	}
	term, end := begun.term, g.running().raft.LastIndex()
	lost := func() bool { return g.tenure.Load() != begun }
	leased := func() bool { return g.lease.valid(term, time.Now()) }
	reads := func() time.Duration {
		began := time.Now()
		for range 200 {
			if v, err := c.read(1); err != nil || v != 1 {
				t.Fatalf("version %d, %v", v, err)
			}
		}
		return time.Since(began) / 200
	}
	eventually(t, "the lease", func() bool { return leased() || lost() })
	with := reads()
	target.promise.mu.Lock() // without it that replica answers nothing
	err := g.Transfer(ctx, c.member(other).ID)
	if err == nil || leased() {
		t.Errorf("a transfer to a copy that does not answer: %v; leased: %v", err, leased())
	}
	without := reads()
	eventually(t, "an entry behind it", func() bool { return g.running().raft.CommitIndex() > end || lost() })
	committed := !lost()
	if protocol < transport.ProtocolTransfers {
		time.Sleep(200 * time.Millisecond)
		if leased() {
			t.Error("leased, though the copy may still stand")
		}
	} else {
		eventually(t, "the lease is back", func() bool { return leased() || lost() })
	}
	target.promise.mu.Unlock()
	eventually(t, "the copy has the entry behind it", func() bool { return target.running().raft.LastIndex() > end || lost() })
	if lost() {
		next := c.group(c.owner())
		var behind raft.Log
		if err := next.cfg.Journal.Head(end+1, &behind); committed && (err != nil || behind.Term != term) {
			t.Fatalf("%s owns the LUN, and has of term %d at %d, where there was an entry of term %d: %v", next.cfg.Self.ID, behind.Term, end+1, term, err)
		}
		if target.offered.Load() != term {
			t.Fatalf("in term %d it was, now it is %+v, and the copy has not been asked", term, g.tenure.Load())
		}
		return false
	}
	t.Logf("a read takes %v with the lease, %v without", with, without)
	late := &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3, Addr: transferTerm(term), ID: transferEnd(end)}}
	if err := g.running().peers.inner.TimeoutNow(c.member(other).ID, raft.ServerAddress(other), late, &raft.TimeoutNowResponse{}); err == nil {
		t.Error("it stands for a transfer that has failed")
	}
	ask := &raft.RequestVoteRequest{Term: term + 1, LastLogIndex: target.running().raft.LastIndex(), LastLogTerm: term, LeadershipTransfer: true}
	if err := target.running().peers.RequestVote(c.member("w").ID, "w", ask, &raft.RequestVoteResponse{}); !errors.Is(err, errTransferOver) {
		t.Errorf("it asks for a vote for that: %v", err)
	}
	return true
}
