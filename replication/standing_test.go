package replication

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore"
	"sanctuary/replication/journal"
	"sanctuary/replication/witness"
)

// stallingJournal holds up what is stored behind an index for as long as it is told to: a disk that stalls.
type stallingJournal struct {
	journal.Log
	mu     sync.Mutex
	behind uint64
	goOn   chan struct{} // closed when it does not stall
}

func newStallingJournal(j journal.Log) *stallingJournal {
	s := &stallingJournal{Log: j, goOn: make(chan struct{})}
	close(s.goOn)
	return s
}

// stall holds up every batch with an entry behind index.
func (j *stallingJournal) stall(index uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.behind, j.goOn = index, make(chan struct{})
}

func (j *stallingJournal) recover() {
	j.mu.Lock()
	defer j.mu.Unlock()
	select {
	case <-j.goOn:
	default:
		close(j.goOn)
	}
}

func (j *stallingJournal) StoreLogs(logs []*raft.Log) error {
	j.mu.Lock()
	behind, goOn := j.behind, j.goOn
	j.mu.Unlock()
	if logs[len(logs)-1].Index > behind {
		<-goOn
	}
	return j.Log.StoreLogs(logs)
}

// load writes through one node, a block after another, until it is stopped, and notes what was acknowledged.
type load struct {
	t       *testing.T
	g       *Group
	stop    context.CancelFunc
	ended   chan struct{}
	acked   atomic.Uint64 // so many writes: number n is version n of block n modulo loadBlocks
	longest atomic.Int64  // nanoseconds
}

const loadBlocks = 16

func startLoad(t *testing.T, g *Group) *load {
	ctx, stop := context.WithCancel(t.Context())
	l := &load{t: t, g: g, stop: stop, ended: make(chan struct{})}
	go func() {
		defer close(l.ended)
		for n := uint64(1); ctx.Err() == nil; {
			started, block := time.Now(), int(n%loadBlocks)
			err := g.Write(ctx, g.Fence(), blockRange(block), tagged(block, n))
			switch {
			case err == nil:
				l.acked.Store(n)
				n++
				l.longest.Store(max(l.longest.Load(), int64(time.Since(started))))
			case ctx.Err() == nil && !retryable(err):
				t.Errorf("write %d: %v", n, err)
				return
			}
		}
	}()
	t.Cleanup(l.end)
	return l
}

func (l *load) end() { l.stop(); <-l.ended }

// goesOn waits for so many more writes.
func (l *load) goesOn(writes uint64) {
	l.t.Helper()
	from := l.acked.Load()
	eventually(l.t, "writes go on", func() bool { return l.acked.Load() >= from+writes })
}

// check reads back, through whoever owns the LUN, what was acknowledged. The load must have ended.
func (l *load) check(c *cluster) {
	l.t.Helper()
	l.checkUpTo(c, l.acked.Load())
}

func (l *load) checkUpTo(c *cluster, acked uint64) {
	l.t.Helper()
	for n := acked; n > 0 && n+loadBlocks > acked; n-- {
		got, err := c.read(int(n % loadBlocks))
		// The one write that was not acknowledged may have taken effect.
		if err != nil || got != n && got != acked+1 {
			l.t.Fatalf("block %d: version %d (%v), acknowledged was %d", n%loadBlocks, got, err, n)
		}
	}
}

func (c *cluster) standing(owner, of string) witness.Level {
	g := c.group(owner)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gate == nil {
		return witness.Out
	}
	return g.gate.Level(string(c.member(of).ID))
}

func (c *cluster) healthy(owner string) {
	c.t.Helper()
	eventually(c.t, "both copies in sync", func() bool { return c.group(owner).Status().Health == HealthHealthy })
}

// patientTiming is that of owners who are not deposed because a machine is busy: what is tested here is what happens to the others.
func patientTiming() Timing {
	t := DefaultTiming()
	t.Heartbeat, t.Kick, t.Promise, t.LeaderLease = 2*time.Second, 1500*time.Millisecond, 1500*time.Millisecond, 1500*time.Millisecond
	return t
}

// pair starts two copies and a witness and returns the owner, the other copy and that one's journal.
func pair(t *testing.T, timing Timing) (c *cluster, owner, other string, disk *stallingJournal) {
	t.Helper()
	t.Parallel() // they wait most of the time
	disks := map[string]*stallingJournal{}
	c = newClusterWith(t, &cluster{timing: timing, wrap: func(node string, j journal.Log) journal.Log {
		if old := disks[node]; old != nil {
			old.Log = j // a restart: what it stalls stays
			return old
		}
		disks[node] = newStallingJournal(j)
		return disks[node]
	}}, blockstore.MediaFile, "a", "b", "w")
	owner = c.owner()
	other = map[string]string{"a": "b", "b": "a"}[owner]
	t.Cleanup(func() {
		for _, d := range disks {
			d.recover()
		}
	})
	c.healthy(owner)
	return c, owner, other, disks[other]
}

// A copy that lives and stores nothing is given up after NoProgress, and let in again as soon as it has caught up.
func TestSlowCopyIsGivenUpAndLetInAgain(t *testing.T) {
	timing := patientTiming()
	timing.Gate.NoProgress = 300 * time.Millisecond
	c, owner, other, disk := pair(t, timing)
	l := startLoad(t, c.group(owner))
	l.goesOn(20)
	disk.stall(0)
	eventually(t, "it is out", func() bool { return c.standing(owner, other) == witness.Out })
	l.goesOn(20)
	if s := c.group(owner).Status(); s.Health != HealthDegraded {
		t.Errorf("health %q with a copy that stores nothing", s.Health)
	}
	disk.recover()
	eventually(t, "it is in sync", func() bool { return c.standing(owner, other) == witness.InSync })
	l.goesOn(20)
	l.end()
	longest := time.Duration(l.longest.Load())
	t.Logf("%d writes, the longest took %v", l.acked.Load(), longest)
	if longest > stalledRequest/2 {
		t.Errorf("a write took %v: not NoProgress has ended the wait", longest)
	}
	compareCopies(t, c, "a", "b")
	c.stop(owner)
	l.check(c)
}

// stalledRequest is when the transport gives up a request that is not answered.
const stalledRequest = 10 * time.Second

// A copy that stalls whenever it is in sync must keep up for longer each time before it is let in; writes go on meanwhile.
func TestCopyThatStallsAgainAndAgainFallsEverMoreRarely(t *testing.T) {
	timing := patientTiming()
	timing.Gate.NoProgress, timing.Gate.Settle, timing.Gate.SettleMax = 200*time.Millisecond, 400*time.Millisecond, 1600*time.Millisecond
	c, owner, other, disk := pair(t, timing)
	l := startLoad(t, c.group(owner))
	term := c.group(owner).Status().Term
	settle := 400 * time.Millisecond
	for fall := range 5 {
		disk.stall(0)
		eventually(t, "it is out", func() bool { return c.standing(owner, other) == witness.Out })
		from := time.Now()
		disk.recover()
		before := l.acked.Load()
		eventually(t, "it is in sync", func() bool { return c.standing(owner, other) == witness.InSync })
		took := time.Since(from)
		switch {
		case fall == 0:
		case took < settle:
			t.Errorf("after fall %d it was let in again after %v, want %v at least", fall+1, took, settle)
		default:
			settle = min(2*settle, timing.Gate.SettleMax)
		}
		if writes := l.acked.Load() - before; fall > 0 && writes < 10 {
			t.Errorf("%d writes in %v while the copy settled", writes, took)
		}
	}
	if s := c.group(owner).Status(); s.Term != term {
		t.Errorf("the owner lost the LUN meanwhile: term %d, then %d", term, s.Term)
	}
	l.end()
	compareCopies(t, c, "a", "b")
}

// A copy that stalls when it is nearly there holds the writers up no longer than CatchUp.
func TestCopyThatStallsWhileItCatchesUpIsOutAgain(t *testing.T) {
	timing := patientTiming()
	timing.Gate.NoProgress, timing.Gate.CatchUp = 30*time.Second, 500*time.Millisecond // only CatchUp can end this
	c, owner, other, disk := pair(t, timing)
	g := c.group(owner)
	c.stop(other)
	for n := range maxAppendEntries + 30 { // an entry each, of which one request carries maxAppendEntries
		if err := g.Write(t.Context(), g.Fence(), blockRange(n), tagged(n, 1)); err != nil {
			t.Fatal(err)
		}
	}
	have, _ := disk.LastIndex()
	disk.stall(have + maxAppendEntries)
	c.start(other, false)
	eventually(t, "it is catching up", func() bool { return c.standing(owner, other) == witness.CatchingUp })
	from := time.Now()
	if err := g.Write(t.Context(), g.Fence(), blockRange(1), tagged(1, 2)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(from); took > stalledRequest/2 {
		t.Errorf("a write took %v: not CatchUp has ended the wait", took)
	}
	if got := c.standing(owner, other); got != witness.Out {
		t.Errorf("written with a copy that stalls %v", got)
	}
	disk.recover()
	c.healthy(owner)
	compareCopies(t, c, "a", "b")
}

// Rule W with real replicas: while the copy counts as in sync, the witness has nothing that it lacks, so the two elect an owner, and
// nothing acknowledged is lost. Without the rule the witness would refuse its vote to the copy, and nobody could be elected.
func TestCopyInSyncIsElectableWhenItsOwnerDies(t *testing.T) {
	timing := patientTiming()
	timing.Gate.NoProgress = time.Minute // it is not given up
	c, owner, other, disk := pair(t, timing)
	l := startLoad(t, c.group(owner))
	l.goesOn(20)
	disk.stall(0)
	g, tail := c.group(owner), uint64(0)
	eventually(t, "a write waits for the copy", func() bool {
		was := tail
		tail = g.Status().LastIndex
		have, err := disk.LastIndex()
		return err == nil && tail == was && tail > have
	})
	for from := time.Now(); time.Since(from) < 10*witnessWait; time.Sleep(witnessDelay) { // the owner looks at the gate so often
		last, err := c.group("w").cfg.Journal.LastIndex()
		have, err2 := disk.LastIndex()
		if err != nil || err2 != nil || last > have {
			t.Fatalf("the witness has entry %d (%v), the copy in sync %d (%v)", last, err, have, err2)
		}
	}
	if got := c.standing(owner, other); got != witness.InSync {
		t.Fatalf("the copy is %v", got)
	}
	c.stop(owner)
	l.end()
	disk.recover()
	l.check(c)
}

// At the beginning of a term every copy counts as in sync, so that nothing is acknowledged without it. It may lack everything: the LUN is not
// healthy before it has been heard.
func TestCopyThatWasNotHeardInThisTermIsNotHealthy(t *testing.T) {
	c := newCluster(t, blockstore.MediaRAM, "a", "b", "w")
	owner := c.owner()
	g, other := c.group(owner), c.group(map[string]string{"a": "b", "b": "a"}[owner])
	eventually(t, "the LUN is healthy", func() bool { return g.Status().Health == HealthHealthy })
	other.promise.mu.Lock() // without it that replica answers nothing
	time.Sleep(2 * c.nodes[owner].group.cfg.Timing.Commit)
	g.mu.Lock()
	clear(g.match)
	clear(g.heard)
	g.mu.Unlock()
	s, whole := g.Status(), g.whole(other.cfg.Self, raft.Server{ID: other.cfg.Self.ID, Suffrage: raft.Voter})
	other.promise.mu.Unlock()
	if s.Health == HealthHealthy {
		t.Errorf("a copy of which nothing has been heard is called healthy: %+v", s)
	}
	if whole {
		t.Error("a copy of which nothing has been heard is said to hold everything")
	}
	eventually(t, "the LUN is healthy again", func() bool { return g.Status().Health == HealthHealthy })
}
