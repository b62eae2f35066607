package replication

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// Rule L as arithmetic: whenever the owner's lease is valid, no majority of voters is free to elect another, however
// heartbeats and answers are delayed.
func TestLeaseEndsBeforeAnyMajorityIsFree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.SampledFrom([]int{1, 2, 3, 5}).Draw(t, "voters")
		const hold = 250 * time.Millisecond
		start := time.Unix(1000, 0)
		voters := make([]raft.ServerID, n)
		promises := make([]*promise, n)
		for i := range voters {
			voters[i] = raft.ServerID(fmt.Sprint("v", i))
			promises[i] = newPromise(hold, start.Add(-time.Hour))
		}
		owner := newLease(voters[0], hold)
		owner.begin(7, voters)
		now := start
		type answer struct {
			voter int
			sent  time.Time
		}
		var onTheWay []answer
		for range rapid.IntRange(5, 80).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 120).Draw(t, "ms")) * time.Millisecond)
			switch rapid.IntRange(0, 3).Draw(t, "event") {
			case 0, 1: // a heartbeat sent some time ago is answered now
				v := rapid.IntRange(0, n-1).Draw(t, "voter")
				sent := now.Add(-time.Duration(rapid.IntRange(0, 400).Draw(t, "delay")) * time.Millisecond)
				promises[v].give(voters[0], 7, now)
				onTheWay = append(onTheWay, answer{v, sent})
			case 2: // an answer arrives, in any order
				if len(onTheWay) > 0 {
					i := rapid.IntRange(0, len(onTheWay)-1).Draw(t, "which")
					a := onTheWay[i]
					onTheWay = append(onTheWay[:i], onTheWay[i+1:]...)
					owner.renew(voters[a.voter], 7, a.sent)
				}
			}
			if !owner.valid(7, now) {
				continue
			}
			free := 0
			for i := 1; i < n; i++ {
				if !promises[i].forbids("someone-else", now) {
					free++
				}
			}
			if free >= n/2+1 {
				t.Fatalf("the lease is valid while %d of %d voters may elect another", free, n)
			}
		}
	})
}

func TestLeaseIsForOneTermAndEndsWithATransfer(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newLease("a", 250*time.Millisecond)
	l.begin(3, []raft.ServerID{"a", "b", "c"})
	if l.valid(3, now) {
		t.Fatal("valid before anyone answered")
	}
	l.renew("b", 2, now) // an answer of an earlier term
	l.renew("x", 3, now) // not a voter
	if l.valid(3, now) {
		t.Fatal("valid without a quorum's answers")
	}
	l.renew("b", 3, now)
	if !l.valid(3, now.Add(200*time.Millisecond)) || l.valid(4, now) {
		t.Fatal("not valid in its term, or in another")
	}
	if l.valid(3, now.Add(226*time.Millisecond)) {
		t.Fatal("outlives nine tenths of the promise")
	}
	l.revoke()
	l.renew("c", 3, now.Add(time.Millisecond))
	if l.valid(3, now.Add(2*time.Millisecond)) {
		t.Fatal("came back after it was given up for a transfer")
	}
	once := l.revocations()
	l.restore(4, once)
	l.revoke()
	l.restore(3, once)
	if l.valid(3, now.Add(2*time.Millisecond)) {
		t.Fatal("came back in another term, or after another transfer")
	}
	l.restore(3, l.revocations())
	if !l.valid(3, now.Add(2*time.Millisecond)) {
		t.Fatal("did not come back")
	}
}

func TestRestartedVoterWaitsOutWhatItMayHavePromised(t *testing.T) {
	now := time.Unix(1000, 0)
	p := newPromise(250*time.Millisecond, now)
	if !p.forbids("b", now.Add(249*time.Millisecond)) || p.forbids("b", now.Add(251*time.Millisecond)) {
		t.Fatal("a fresh process votes too early or too late")
	}
	if !p.give("a", 2, now.Add(time.Second)) || p.forbids("a", now.Add(time.Second)) || !p.forbids("b", now.Add(time.Second)) {
		t.Fatal("the promise is to the leader it was given to")
	}
	if p.give("b", 1, now.Add(time.Second)) || p.forbids("a", now.Add(time.Second)) || !p.forbids("b", now.Add(time.Second)) {
		t.Fatal("what an earlier term's leader still says takes the promise away")
	}
}

func TestOverlappingRangesGoOneAfterAnotherInOrder(t *testing.T) {
	var l rangeLocks
	ctx := context.Background()
	a, _ := l.lock(ctx, block.Range{Start: 0, Count: 8})
	far, err := l.lock(ctx, block.Range{Start: 100, Count: 8})
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if _, err := l.lock(short, block.Range{Start: 4, Count: 8}); err == nil {
		t.Fatal("an overlapping range was granted")
	}
	var mu sync.Mutex
	var order []int
	var wg sync.WaitGroup
	queued := func(n int) bool { l.mu.Lock(); defer l.mu.Unlock(); return len(l.tickets) == n }
	for i := range 3 {
		wg.Go(func() {
			tk, err := l.lock(ctx, block.Range{Start: 7, Count: 2})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			order = append(order, i)
			mu.Unlock()
			l.unlock(tk)
		})
		eventually(t, "the command waits", func() bool { return queued(3 + i) })
	}
	l.unlock(a)
	wg.Wait()
	l.unlock(far)
	if fmt.Sprint(order) != "[0 1 2]" || !queued(0) {
		t.Fatalf("order %v, left %d", order, len(l.tickets))
	}
}

// Raft alone would wait for an owner to be silent for Heartbeat to 2 * Heartbeat.
func TestNewLUNIsServedAtOnce(t *testing.T) {
	began := time.Now()
	c := newCluster(t, blockstore.MediaFile, "a")
	c.owner()
	if took := time.Since(began); took >= DefaultTiming().Heartbeat {
		t.Errorf("served after %v", took)
	}
}
