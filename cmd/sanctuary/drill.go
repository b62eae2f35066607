package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/node/api"
)

// drillOptions are the flags of a drill.
type drillOptions struct {
	enabled bool
	kills   int
}

func (o drillOptions) validate(d demoOptions) error {
	switch {
	case !o.enabled:
		return nil
	case o.kills < 1 || o.kills > 1000:
		return fmt.Errorf("--drill-kills %d: use 1 to 1000", o.kills)
	case d.nodes == 1 && d.media == "ram":
		return errors.New("--drill with --nodes 1 --media ram: the only copy is gone with its process, so there is nothing to promise; use --media file or --nodes 3")
	case d.sizeBytes < drillWriters*block.Size:
		return fmt.Errorf("--drill needs a LUN of at least %s", formatSize(drillWriters*block.Size))
	}
	return nil
}

// rhythm says how long the drill lets the load run. The load goes on during everything else too.
type rhythm struct {
	before time.Duration // a kill
	after  time.Duration // the first I/O after it, until the node is started again
	tail   time.Duration // after the last node is in sync
	limit  time.Duration // for each step that should take about a second
}

var drillRhythm = rhythm{before: 2 * time.Second, after: 1500 * time.Millisecond, tail: 1500 * time.Millisecond, limit: healTimeout}

// stage is what a drill needs of the cluster it runs on.
type stage interface {
	// lun returns the LUN as its owner sees it.
	lun(ctx context.Context) (api.LUN, error)
	// killNode ends a node's process without warning.
	killNode(name string) error
	// restart starts it again.
	restart(name string) (pid int, err error)
	// untilHealthy waits until every copy is in sync.
	untilHealthy(ctx context.Context) (api.LUN, error)
	// open opens the LUN over all portals; event is called when a path comes or goes.
	open(ctx context.Context, l api.LUN, event func(string)) (disk, error)
}

// event is a line of the timeline.
type event struct {
	At   time.Duration `json:"at_ns"` // since the load began
	What string        `json:"what"`
}

// report is what a drill found; printed as JSON with -o json.
type report struct {
	Held          bool          `json:"held"`
	Broken        []string      `json:"broken"`
	Kills         int           `json:"kills"`
	Writes        int           `json:"writes_acknowledged"`
	Reads         int           `json:"reads"`
	Verified      int           `json:"blocks_verified"`
	LongestIO     time.Duration `json:"longest_io_ns"`
	Stalled       int           `json:"ios_stalled"`
	Timeline      []event       `json:"timeline"`
	Interruptions []int64       `json:"interruptions_ms"` // for each kill: until the first I/O begun after it was answered
}

// timeline collects events from several goroutines.
type timeline struct {
	start time.Time
	mu    sync.Mutex // guards events
	all   []event
	show  func(event) // called under mu, in order
}

func (t *timeline) add(format string, args ...any) { t.addAt(time.Now(), format, args...) }

func (t *timeline) addAt(at time.Time, format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := event{at.Sub(t.start), fmt.Sprintf(format, args...)}
	t.all = append(t.all, e)
	t.show(e)
}

// runDrill kills the owner kills times under load and reports. An error means that it could not be done at all; broken
// promises are in the report.
func runDrill(ctx context.Context, s stage, l api.LUN, kills int, pace rhythm, show func(event)) (r report, err error) {
	r.Broken, r.Interruptions = []string{}, []int64{} // [] in JSON, not null
	t := &timeline{start: time.Now(), show: show}
	openCtx, opened := context.WithTimeout(ctx, pace.limit)
	d, err := s.open(openCtx, l, func(what string) { t.add("path %s", what) })
	opened()
	if err != nil {
		return r, fmt.Errorf("open LUN %s over iSCSI: %w", l.Name, err)
	}
	work := &load{disk: d, ledger: newLedger(rand.Uint64()), blocks: uint64(l.SizeBytes) / block.Size}
	stop, done := make(chan struct{}), make(chan struct{})
	loadCtx, cutOff := context.WithCancel(ctx)
	defer cutOff()
	t.add("load started: %d writers over %d portals, LUN owned by %s", drillWriters, len(l.Portals), l.Owner)
	go func() { defer close(done); work.run(loadCtx, stop) }()

	var broken []string
	for range kills {
		why, took, kerr := killOnce(ctx, s, t, work, len(dataNodesOf(l)) == 1, pace)
		if kerr != nil {
			err = kerr
			break
		}
		if took > 0 {
			r.Interruptions = append(r.Interruptions, took.Milliseconds())
		}
		r.Kills++
		if why != "" {
			broken = append(broken, why)
			break
		}
	}
	if err == nil {
		err = pause(ctx, pace.tail)
	}
	close(stop)
	if err != nil {
		cutOff() // nothing will be judged: do not wait for stalled I/O
	}
	<-done
	if cerr := d.Close(); cerr != nil && err == nil {
		t.add("close of the LUN: %v", cerr)
	}
	if err != nil {
		return r, err
	}
	t.add("load ended: %d writes acknowledged, %d reads", work.writes, work.reads)
	if r.Verified, err = verifyAll(ctx, s, t, work, pace.limit); err != nil {
		if ctx.Err() != nil {
			return r, ctx.Err()
		}
		broken = append(broken, "what was acknowledged can be read: "+err.Error())
	}
	r.fill(work, broken, t)
	return r, nil
}

// verifyAll reads everything back over new sessions: nothing an initiator may have kept can hide a loss.
func verifyAll(ctx context.Context, s stage, t *timeline, work *load, limit time.Duration) (int, error) {
	openCtx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	l, err := s.lun(openCtx)
	if err != nil {
		return 0, fmt.Errorf("verify: %w", err)
	}
	d, err := s.open(openCtx, l, func(string) {})
	if err != nil {
		return 0, fmt.Errorf("open LUN %s again to verify it: %w", l.Name, err)
	}
	n := work.verify(ctx, d)
	if cerr := d.Close(); cerr != nil {
		t.add("close of the LUN: %v", cerr)
	}
	if ctx.Err() != nil {
		return n, ctx.Err()
	}
	t.add("verified %d blocks: %d wrong", n, len(work.violations))
	return n, nil
}

// fill completes the report from the load, which has ended.
func (r *report) fill(work *load, broken []string, t *timeline) {
	r.Writes, r.Reads, r.LongestIO, r.Stalled = work.writes, work.reads, work.longest, work.stalled
	for _, v := range work.violations {
		r.Broken = append(r.Broken, "an acknowledged write is never lost, a read is never stale: "+v.Error())
	}
	for _, f := range work.failures {
		r.Broken = append(r.Broken, "I/O waits, it does not fail: "+f.Error())
	}
	r.Broken = append(r.Broken, broken...)
	if r.Writes == 0 {
		r.Broken = append(r.Broken, "I/O waits, it does not fail: not one write was acknowledged")
	}
	r.Held = len(r.Broken) == 0
	r.Timeline = t.all
}

func dataNodesOf(l api.LUN) []string {
	var out []string
	for _, rep := range l.Replicas {
		if rep.Role == api.RoleData && !slices.Contains(out, rep.Node) {
			out = append(out, rep.Node)
		}
	}
	return out
}

// pause lets the load run for a time.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// killOnce kills the owner, waits for the takeover, starts the node again and waits until it is in sync. broken names the
// promise that did not hold; took is how long I/O was interrupted.
func killOnce(ctx context.Context, s stage, t *timeline, work *load, single bool, pace rhythm) (broken string, took time.Duration, err error) {
	if err := pause(ctx, pace.before); err != nil {
		return "", 0, err
	}
	before, err := s.lun(ctx)
	if err != nil {
		return "", 0, fmt.Errorf("ask for the owner: %w", err)
	}
	if before.Owner == "" {
		return "one owner, always: the LUN had none before the kill", 0, nil
	}
	first := work.markNow()
	killed := time.Now()
	t.addAt(killed, "owner %s killed (SIGKILL)", before.Owner) // now, so that what follows from it is shown after it
	if err := s.killNode(before.Owner); err != nil {
		return "", 0, err
	}
	if single { // nobody can take over: I/O waits for the node itself
		if err := restart(s, t, before.Owner); err != nil {
			return "", 0, err
		}
	}
	limit := time.NewTimer(pace.limit)
	defer limit.Stop()
	select {
	case at := <-first:
		took = at.Sub(killed)
		t.addAt(at, "first I/O answered after the kill: %v", took.Round(time.Millisecond))
	case <-ctx.Done():
		return "", 0, ctx.Err()
	case <-limit.C:
		return fmt.Sprintf("a survivor takes over: no I/O was answered for %v after %s was killed", pace.limit, before.Owner), 0, nil
	}
	if !single {
		after, why, err := newOwner(ctx, s, before, pace.limit)
		if err != nil || why != "" {
			return why, took, err
		}
		t.add("new owner %s (term %d, before %d)", after.Owner, after.Term, before.Term)
		if err := pause(ctx, pace.after); err != nil {
			return "", took, err
		}
		if err := restart(s, t, before.Owner); err != nil {
			return "", took, err
		}
	}
	healCtx, cancel := context.WithTimeout(ctx, pace.limit)
	defer cancel()
	healed, err := s.untilHealthy(healCtx)
	switch {
	case ctx.Err() != nil:
		return "", took, ctx.Err()
	case err != nil:
		return fmt.Sprintf("a node that returns catches up: %s was not in sync %v after it was started again: %v", before.Owner, pace.limit, err), took, nil
	}
	t.add("in sync again, LUN %s, owned by %s", healed.Health, healed.Owner)
	return "", took, nil
}

func restart(s stage, t *timeline, name string) error {
	pid, err := s.restart(name)
	if err != nil {
		return err
	}
	t.add("node %s started again (pid %d)", name, pid)
	return nil
}

// newOwner waits until somebody else says that it owns the LUN.
func newOwner(ctx context.Context, s stage, before api.LUN, limit time.Duration) (l api.LUN, broken string, err error) {
	askCtx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		l, err := s.lun(askCtx)
		if err == nil && l.Owner != "" && l.Owner != before.Owner && l.View.Source == api.SourceOwner {
			if l.Term <= before.Term {
				return l, fmt.Sprintf("one owner: %s owns the LUN in term %d, which %s had in term %d", l.Owner, l.Term, before.Owner, before.Term), nil
			}
			return l, "", nil
		}
		select {
		case <-ctx.Done():
			return l, "", ctx.Err()
		case <-askCtx.Done():
			return l, fmt.Sprintf("a survivor takes over: no new owner is known %v after %s was killed", limit, before.Owner), nil
		case <-tick.C:
		}
	}
}

// drill runs the drill on this cluster and prints what came of it.
func (d *demo) drill(ctx context.Context, l api.LUN, o drillOptions) error {
	text := d.cli.output != outputJSON
	show := func(e event) {
		if text {
			line(d.cli.env.out, "%9.3fs  %s", e.At.Seconds(), e.What)
		}
	}
	if text {
		line(d.cli.env.out, "\nDrill: writing tagged blocks, killing the owner %d time(s).", o.kills)
	}
	r, err := runDrill(ctx, d, l, o.kills, drillRhythm, show)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		return &failure{
			what: fmt.Errorf("the drill could not be done: %w", err), data: "Nothing was proven, for or against.",
			next: "See the end of each node's log:\n" + d.logTails(),
		}
	}
	if err := d.cli.print(r, func(w io.Writer) { printReport(w, r) }); err != nil {
		return err
	}
	if !r.Held {
		return &brokenPromise{fmt.Errorf("%d promise(s) broken, first: %s", len(r.Broken), r.Broken[0])}
	}
	return nil
}

func printReport(w io.Writer, r report) {
	line(w, "\n%d kill(s), %d writes acknowledged, %d reads, %d blocks verified.", r.Kills, r.Writes, r.Reads, r.Verified)
	line(w, "Longest I/O stall %v; %d I/O(s) took %v or more.", r.LongestIO.Round(time.Millisecond), r.Stalled, slowIO)
	if r.Held {
		line(w, "Every promise held: no acknowledged write lost, no stale read, no I/O error, one owner at a time, in sync again.")
		return
	}
	line(w, "BROKEN:")
	for _, b := range r.Broken {
		line(w, "  %s", b)
	}
}
