package replication

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// stoppedStore applies nothing while it is held.
type stoppedStore struct {
	Store
	held *atomic.Pointer[chan struct{}]
}

func (s stoppedStore) Apply(index uint64, ops []block.Op) error {
	if held := s.held.Load(); held != nil {
		<-*held
	}
	return s.Store.Apply(index, ops)
}

// A copy whose volume stands still, while its journal does not, takes in what it may have in memory and no more. Its owner keeps the LUN and goes on without the copy, which
// catches up when it can.
func TestCopyThatCannotApplyTakesInNoMoreThanItsBacklog(t *testing.T) {
	const writers, writes, slots, each, limit = 8, 256, 64, 256 << 10, 4 << 20
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	held := map[string]*atomic.Pointer[chan struct{}]{"a": {}, "b": {}}
	c := &cluster{
		limits:    Limits{BacklogBytes: limit},
		wrapStore: func(node string, s Store) Store { return stoppedStore{s, held[node]} },
	}
	c.timing = DefaultTiming() // with time for a machine that is busy
	c.timing.Heartbeat, c.timing.LeaderLease, c.timing.Kick, c.timing.Promise = 4*time.Second, 2*time.Second, 2*time.Second, 2*time.Second
	newClusterWith(t, c, blockstore.MediaFile, "a", "b", "w")
	owner := c.owner()
	other := map[string]string{"a": "b", "b": "a"}[owner]
	g, copyOf := c.group(owner), c.group(other)
	eventually(t, "healthy", func() bool { return g.Status().Health == HealthHealthy })
	term := g.running().raft.CurrentTerm()
	buf := make([]byte, each)
	for n := range slots { // what is written later needs no room: whoever needs some waits for the copy to have applied
		for i := 0; i < each; i += block.Size {
			copy(buf[i:], tagged(n, 1))
		}
		if err := g.Write(ctx, g.Fence(), block.BytesRange(int64(n)*each, each), buf); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the copy has applied that", func() bool { return c.nodes[other].vol.Applied() == c.nodes[owner].vol.Applied() })
	stop := make(chan struct{})
	release := sync.OnceFunc(func() {
		held[other].Store(nil)
		close(stop)
	})
	t.Cleanup(release)
	held[other].Store(&stop)

	var load sync.WaitGroup
	var next, longest atomic.Int64
	for range writers {
		load.Go(func() {
			for {
				n := next.Add(1) - 1
				if n >= writes {
					return
				}
				began := time.Now()
				if err := g.Write(ctx, g.Fence(), block.BytesRange(n%slots*each, each), buf); err != nil {
					t.Errorf("write %d: %v", n, err)
					return
				}
				for took := int64(time.Since(began)); ; {
					if was := longest.Load(); took <= was || longest.CompareAndSwap(was, took) {
						break
					}
				}
			}
		})
	}
	load.Wait()
	waiting, _ := copyOf.backlog.waiting(copyOf.running().raft.CommitIndex())
	t.Logf("%d MiB written, of which %d KiB wait at the copy; the longest write took %v", writes*each>>20, waiting>>10, time.Duration(longest.Load()).Round(time.Millisecond))
	// What came with the request that reached the limit, and what that commits: each of at most maxAppendEntries.
	if most := int64(limit + 2*maxAppendEntries*(entryTargetBytes+entryCost)); waiting < limit/2 || waiting > most {
		t.Errorf("%d bytes wait to be applied, want about %d and at most %d", waiting, limit, most)
	}
	if last, err := copyOf.cfg.Journal.LastIndex(); err != nil || last >= g.running().raft.LastIndex() {
		t.Errorf("the copy has taken in all %d entries (%v): nothing was held", last, err)
	}
	if most := g.cfg.Timing.Gate.NoProgress + 3*time.Second; time.Duration(longest.Load()) > most {
		t.Errorf("a write took %v, the copy is to be given up after %v", time.Duration(longest.Load()), g.cfg.Timing.Gate.NoProgress)
	}
	if s := g.Status(); !s.Serving || s.Term != term {
		t.Errorf("the owner of term %d has not kept the LUN: %+v", term, s)
	}
	release()
	eventually(t, "healthy again", func() bool { return g.Status().Health == HealthHealthy })
	eventually(t, "the copy has applied everything", func() bool { return c.nodes[other].vol.Applied() == c.nodes[owner].vol.Applied() })
}

// The backlog counts what is committed and not applied, whatever is sent twice or replaced.
func TestBacklogCountsWhatIsCommittedAndNotApplied(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b backlog
		sizes := map[uint64]int64{}
		var last, committed, applied uint64
		largest := int64(0)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 2).Draw(t, "kind") {
			case 0:
				first := rapid.Uint64Range(max(applied, 1), last+1).Draw(t, "first")
				var entries []*raft.Log
				whole := int64(0)
				n := rapid.Uint64Range(1, 5).Draw(t, "entries")
				if first+n <= committed {
					n = committed - first + 1 // an owner never has less than what is committed
				}
				for i := range n {
					size := rapid.IntRange(0, 1000).Draw(t, "bytes")
					if was, ok := sizes[first+i]; ok && first+i <= committed {
						size = int(was) - entryCost
					}
					entries = append(entries, &raft.Log{Index: first + i, Data: make([]byte, size)})
					sizes[first+i] = int64(size) + entryCost
					whole += sizes[first+i]
				}
				last = first + n - 1
				largest = max(largest, whole)
				b.add(entries)
			case 1:
				committed = rapid.Uint64Range(committed, max(committed, last)).Draw(t, "committed")
			case 2:
				applied = rapid.Uint64Range(applied, committed).Draw(t, "applied")
				b.apply(applied)
			}
			want := int64(0)
			for i := applied + 1; i <= committed; i++ {
				want += sizes[i]
			}
			// To a request: of one that is committed or applied in part, nothing or all counts.
			if got, _ := b.waiting(committed); got < want-2*largest || got > want+2*largest {
				t.Fatalf("%d bytes, want %d to within twice %d", got, want, largest)
			}
			if applied == committed && committed == last {
				if got, _ := b.waiting(committed); got != 0 || len(b.pieces) > 0 {
					t.Fatalf("%d bytes in %d pieces are left", got, len(b.pieces))
				}
			}
		}
	})
}
