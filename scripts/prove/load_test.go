package prove

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/node/api"
	"sanctuary/target/initiator"
)

const (
	loadDisks      = 2  // initiators, each with sessions of its own
	clientsPerDisk = 6  // per initiator
	hotBlocks      = 24 // at a time; another set after each fault, so that no block's history grows beyond judging
	// thinkTime bounds the pause between two commands of a client: load enough to have commands under way at any moment,
	// and not more than a small machine that also runs the cluster can carry.
	thinkTime = 8 * time.Millisecond
	// patience is what one I/O may take before it counts as failed: "I/O waits" is promised, an answer in the end too.
	patience = 90 * time.Second
	// checkLimit bounds the judging of one campaign's history; beyond it the campaign has failed.
	checkLimit = 3 * time.Minute
)

// load is clients that read and write hot blocks of the LUN until they are told to stop. What they saw is in its history.
type load struct {
	t      *testing.T
	h      *history
	disks  []*initiator.Disk
	blocks uint64
	values atomic.Uint64
	stop   chan struct{}
	wg     sync.WaitGroup
	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex // guards what follows; never held during I/O
	hot     []uint64
	older   []uint64 // hot before
	ios     []timed
	current map[uint64]value // what a client saw or wrote last, to compare with
}

// timed is when one I/O ran, retries included.
type timed struct{ start, end time.Time }

// startLoad opens the LUN over both portals and begins.
func startLoad(t *testing.T, c *cluster, l api.LUN, rng *rand.Rand) *load {
	t.Helper()
	w := &load{t: t, h: newHistory(), blocks: uint64(l.SizeBytes) / block.Size, stop: make(chan struct{}), current: map[uint64]value{}}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	for range loadDisks {
		r := w.h.recorder()
		ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
		d, err := initiator.OpenMultipath(ctx, initiator.MultipathConfig{
			Paths: c.paths(l), OnAttempt: r.attempt, OnPath: r.fences.path,
		})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		w.disks = append(w.disks, d)
	}
	w.heat(rng)
	for _, d := range w.disks {
		for range clientsPerDisk {
			seed := rng.Uint64()
			w.wg.Go(func() { w.client(d, rand.New(rand.NewPCG(seed, 0))) })
		}
	}
	t.Cleanup(func() { // whatever became of the test; after finish there is nothing left to do
		w.cancel()
		for _, d := range w.disks {
			d.Close()
		}
		w.wg.Wait()
	})
	return w
}

// heat chooses other blocks to use from now on.
func (w *load) heat(rng *rand.Rand) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.older = append(w.older, w.hot...)
	w.hot = nil
	for len(w.hot) < hotBlocks {
		w.hot = append(w.hot, rng.Uint64N(w.blocks))
	}
}

// pick returns a block to use: one in twenty was hot before, for what lies there must not change by itself either.
func (w *load) pick(rng *rand.Rand) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.older) > 0 && rng.IntN(20) == 0 {
		return w.older[rng.IntN(len(w.older))]
	}
	return w.hot[rng.IntN(len(w.hot))]
}

func (w *load) saw(n uint64, v value) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.current[n] = v
}

func (w *load) client(d *initiator.Disk, rng *rand.Rand) {
	p, want := make([]byte, block.Size), make([]byte, block.Size)
	for {
		select {
		case <-w.stop:
			return
		case <-w.ctx.Done():
			return
		case <-time.After(time.Duration(rng.Int64N(int64(thinkTime)))):
		}
		start := time.Now()
		if err := w.one(d, rng, p, want); err != nil {
			if w.ctx.Err() == nil {
				w.h.violation(fmt.Errorf("I/O waits, it does not fail: %w", err))
			}
			return
		}
		w.mu.Lock()
		w.ios = append(w.ios, timed{start, time.Now()})
		w.mu.Unlock()
	}
}

// done returns how many I/Os have been done.
func (w *load) done() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.ios)
}

// one does one I/O: 45 % reads, 45 % writes, 5 % compare-and-write, 5 % flush and unmap.
func (w *load) one(d *initiator.Disk, rng *rand.Rand, p, want []byte) error {
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	n, dice := w.pick(rng), rng.IntN(100)
	off := int64(n) * block.Size
	next := value(w.values.Add(1))
	switch {
	case dice < 45:
		_, err := d.ReadAt(ctx, p, off)
		if err == nil {
			if v, verr := valueOf(p, n); verr == nil { // otherwise the recorder has it
				w.saw(n, v)
			}
		}
		return err
	case dice < 90:
		fill(p, next, n)
		_, err := d.WriteAt(ctx, p, off)
		if err == nil {
			w.saw(n, next)
		}
		return err
	case dice < 95:
		w.mu.Lock()
		last := w.current[n]
		w.mu.Unlock()
		fill(want, last, n)
		fill(p, next, n)
		_, err := d.CompareAndWrite(ctx, want, p, off)
		switch {
		case err == nil:
			w.saw(n, next)
		case isMiscompare(err): // somebody else was faster, which the history judges
			return nil
		}
		return err
	case dice < 98:
		_, err := d.Flush(ctx)
		return err
	default:
		_, err := d.Unmap(ctx, off, block.Size)
		if err == nil {
			w.saw(n, 0)
		}
		return err
	}
}

// answered waits until an I/O begun after from has been acknowledged, and returns when that was.
func (w *load) answered(from time.Time) time.Time {
	w.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		w.mu.Lock()
		for i := len(w.ios) - 1; i >= 0 && w.ios[i].end.After(from); i-- {
			if w.ios[i].start.After(from) {
				end := w.ios[i].end
				w.mu.Unlock()
				return end
			}
		}
		w.mu.Unlock()
		select {
		case <-tick.C:
		case <-w.t.Context().Done():
			w.t.FailNow()
		case <-deadline.C:
			w.t.Fatalf("no I/O was answered for %v", patience)
		}
	}
}

// longest returns the I/O that took longest of those that ended between two moments, both inclusive.
func (w *load) longest(from, to time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	var longest time.Duration
	for i := len(w.ios) - 1; i >= 0; i-- {
		if io := w.ios[i]; !io.end.Before(from) && !io.end.After(to) {
			longest = max(longest, io.end.Sub(io.start))
		}
	}
	return longest
}

// finish stops the clients, reads every block that was ever used through each data node as owner, and judges everything.
func (w *load) finish(c *cluster) {
	w.t.Helper()
	close(w.stop)
	w.wg.Wait()
	var copies []string
	for _, r := range c.healthy().Replicas {
		if r.Role == api.RoleData {
			copies = append(copies, r.Node)
		}
	}
	for _, node := range copies {
		c.healthy()
		c.move(node)
		w.readBack(c, node)
	}
	began := time.Now()
	verdict := "every history has a linearization"
	if err := w.h.check(checkLimit, c.dir); err != nil {
		verdict = "broken"
		w.t.Error(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.t.Logf("%d I/Os, %d commands to %d blocks judged in %v: %s", len(w.ios), w.h.length(), len(w.older)+len(w.hot), time.Since(began).Round(time.Millisecond), verdict)
}

// readBack reads every block that was ever used through one node: a copy that differs from the other one cannot agree
// with the history. The reads become part of it.
func (w *load) readBack(c *cluster, node string) {
	w.t.Helper()
	w.mu.Lock()
	all := slices.Compact(slices.Sorted(slices.Values(append(slices.Clone(w.older), w.hot...))))
	w.mu.Unlock()
	s := dialDirect(w.t, c.portal(c.owner(), node))
	defer s.Close()
	r := w.h.recorder()
	for i, n := range all {
		if err := directRead(w.t.Context(), s, r, uint64(i)+1, n); err != nil {
			w.t.Fatalf("read block %d back through %s: %v", n, node, err)
		}
	}
}

// dialDirect logs in to one portal, without any multipath logic, and waits long enough for a stopped node.
func dialDirect(t *testing.T, p initiator.PathConfig) *initiator.Session {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	s, err := initiator.Dial(ctx, initiator.Config{
		Address: p.Address, Target: p.Target, LUN: p.LUN, KeepAlive: -1, SilentTimeout: time.Minute, AbortTimeout: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 8 { // unit attentions of a new session
		if err = s.TestUnitReady(ctx); err == nil {
			return s
		}
	}
	t.Fatalf("%s is not ready: %v", p.Address, err)
	return nil
}

// directRead reads one block and records it.
func directRead(ctx context.Context, s *initiator.Session, r *recorder, io, n uint64) error {
	p := make([]byte, block.Size)
	a := initiator.Attempt{IO: io, Op: initiator.OpRead, Offset: int64(n) * block.Size, Data: p, Start: time.Now()}
	r.attempt(a)
	a.Err = s.Read(ctx, n*block.SectorsPerBlock, block.SectorsPerBlock, p)
	a.End, a.Outcome = time.Now(), initiator.Acknowledged
	if a.Err != nil {
		a.Outcome = initiator.Failed
	}
	r.attempt(a)
	return a.Err
}

// stalls reports on a series of stalls, and fails the test if one is longer than limit.
func stalls(t *testing.T, what string, all []time.Duration, limit time.Duration) {
	t.Helper()
	if len(all) == 0 {
		t.Fatalf("%s: nothing was measured", what)
	}
	sorted := slices.SortedFunc(slices.Values(all), func(a, b time.Duration) int { return cmp.Compare(a, b) })
	median, longest := sorted[len(sorted)/2], sorted[len(sorted)-1]
	t.Logf("%s: %d, longest I/O of each: median %v, max %v", what, len(all), median.Round(time.Millisecond), longest.Round(time.Millisecond))
	if longest > limit {
		t.Errorf("%s: an I/O was held up for %v, more than %v", what, longest.Round(time.Millisecond), limit)
	}
}
