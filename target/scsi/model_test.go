package scsi_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"sanctuary/blockstore/block"
	"sanctuary/target/reserve"
	"sanctuary/target/scsi"
	"sanctuary/target/scsi/scsitest"
)

// The model: several hosts, each with a path to two nodes, write, read, compare and write, reserve, abort, reset and lose
// sessions, while the LUN moves and messages between the nodes are lost, late or strays. An observer sits where writes take
// effect. What must hold:
//
//   - A command takes effect at most once, and exactly once if it ended GOOD; a COMPARE AND WRITE that missed or is to be sent again, not at all.
//   - Once a task has ended, or a function that ends it is complete, it never takes effect.
//   - COMPARE AND WRITE takes effect on what it compared with.
//   - A read returns what the block held at some moment between its start and its end.
//   - What one path has begun takes effect no more once a write has ended through another that logged in later with its ISID.
//   - Nothing is written against a reservation that has been answered.
//   - Reservations are the same through both nodes.

// step is one thing that is done in a run.
type step struct {
	Gap   int // milliseconds after the one before
	Nexus int // of the four
	Kind  string
	Block int
	A, B  int
}

var stepKinds = []string{
	"write", "write", "write", "write", "read", "read", "caw", "caw", "caw", "register", "register", "reserve", "reserve", "release", "clear", "preempt",
	"preempt and abort", "reserve 6", "release 6", "abort", "abort", "reset", "clear tasks", "abort tasks", "target reset", "lose session", "log in elsewhere", "move", "move", "drop owner",
}

func stepGen() *rapid.Generator[step] {
	return rapid.Custom(func(t *rapid.T) step {
		return step{
			Gap: rapid.IntRange(0, 120).Draw(t, "gap"), Nexus: rapid.IntRange(0, 3).Draw(t, "nexus"), Kind: rapid.SampledFrom(stepKinds).Draw(t, "kind"),
			Block: rapid.IntRange(0, 2).Draw(t, "block"), A: rapid.IntRange(0, 3).Draw(t, "a"), B: rapid.IntRange(0, 8).Draw(t, "b"),
		}
	})
}

// deed is a command of the run, from its start to its end.
type deed struct {
	tag     uint64 // what it writes
	nexus   reserve.Nexus
	path    int
	kind    string
	block   int
	want    uint64 // of a COMPARE AND WRITE
	start   int
	applied []int
	closed  int // from here on it must not take effect; 0 while it may
	task    *scsi.Task
	began   time.Time
	note    string // how it ended, for the report
}

type version struct {
	at  int
	tag uint64
}

// world is the observer.
type world struct {
	*nodePair
	mu       sync.Mutex
	now      int // counts moments
	deeds    map[uint64]*deed
	history  [3][]version
	seen     [4][3]uint64 // by path: what it last read or wrote
	answered uint64       // the newest state version that somebody was told GOOD for
	changers int          // commands in flight that may change the state
	changes  int          // such commands so far
	paths    [4]*scsi.Nexus
	latest   [4]*deed
	failures []string
	rnd      *rand.Rand
	dice     func(n int) int // less than n
	quiet    bool            // no more faults
}

func (w *world) fail(format string, args ...any) {
	w.failures = append(w.failures, fmt.Sprintf(format, args...))
}

func (w *world) moment() int { w.now++; return w.now }

func tagged(tag uint64) []byte {
	return bytes.Repeat(binary.BigEndian.AppendUint64(nil, tag), 512/8)
}

func tagOf(b []byte) uint64 { return binary.BigEndian.Uint64(b) }

// apply is called when a write takes effect.
func (w *world) apply(r block.Range, data []byte, state block.State) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.deeds[tagOf(data)]
	at := w.moment()
	before := w.history[r.Start][len(w.history[r.Start])-1].tag
	w.history[r.Start] = append(w.history[r.Start], version{at, d.tag})
	d.applied = append(d.applied, at)
	if len(d.applied) > 1 {
		w.fail("%s %d took effect twice", d.kind, d.tag)
	}
	if d.closed != 0 {
		w.fail("%s %d (path %d) took effect after it had ended: %s; began %v now %v", d.kind, d.tag, d.path, d.note, d.began.Format("05.000"), time.Now().Format("05.000"))
	}
	if d.kind == "caw" && before != d.want {
		w.fail("compare and write %d of %d took effect on %d", d.tag, d.want, before)
	}
	if state.Version > 0 && state.Version <= w.answered {
		table, err := scsi.ReservationsOf(state.Blob)
		if err != nil {
			w.fail("state: %v", err)
		} else if !table.Allowed(d.nexus).Allow(reserve.Changes) {
			w.fail("%s %d of %v took effect against a reservation that had been answered", d.kind, d.tag, d.nexus)
		}
	}
}

// do starts a command and returns when it has ended.
func (w *world) do(path int, n *scsi.Nexus, kind string, blk int, c [16]byte, in int, out []byte, want uint64) (good bool) {
	node := path % 2
	w.mu.Lock()
	d := &deed{tag: uint64(len(w.deeds) + 1), path: path, kind: kind, block: blk, want: want, start: w.moment()}
	d.nexus = reserve.Nexus{Initiator: n.Initiator, ISID: n.ISID, Port: n.Port}
	if kind == "write" || kind == "caw" {
		copy(out[len(out)-512:], tagged(d.tag))
	}
	w.deeds[d.tag] = d
	w.mu.Unlock()
	task := w.task(node, n, c, in, out)
	w.mu.Lock()
	d.task, d.began = task, time.Now()
	w.latest[path] = d
	w.mu.Unlock()
	time.Sleep([]time.Duration{400, 150, 30, 0, 0}[w.dice(5)] * time.Millisecond) // its data is coming
	changes := c[0] == 0x5F || c[0] == 0x16 || c[0] == 0x17
	w.mu.Lock()
	if changes {
		w.changers++
		w.changes++
	}
	alone, nth := w.changers == 1, w.changes
	w.mu.Unlock()
	before := w.cluster.State().Version
	r := w.execute(context.Background(), node, task)
	after := w.cluster.State().Version
	w.mu.Lock()
	defer w.mu.Unlock()
	end := w.moment()
	d.closed = end
	if changes {
		w.changers--
		if alone && w.changes == nth && r.Status == scsi.StatusGood && after > before {
			w.answered = max(w.answered, after)
		}
	}
	got := outcome(&r.Task)
	d.note += " ended " + got + time.Now().Format(" 05.000")
	switch {
	case kind == "read" && got == "good":
		tag := tagOf(r.data)
		w.seen[path][blk] = tag
		if !w.held(blk, tag, d.start, end) {
			w.fail("read of block %d returned %d, which it did not hold meanwhile: %v", blk, tag, w.history[blk])
		}
	case got == "good" && (kind == "write" || kind == "caw"):
		w.seen[path][blk] = d.tag
		if len(d.applied) != 1 {
			w.fail("%s %d ended GOOD and took effect %d times", kind, d.tag, len(d.applied))
		}
	case got == "0E/1D/00" && len(d.applied) > 0:
		w.fail("compare and write %d missed and took effect", d.tag)
	case kind == "caw" && len(d.applied) > 0 && (got == "busy" || got[:2] == "02"):
		w.fail("compare and write %d ended %s, as if it had not been done", d.tag, got)
	case got == "04/44/00", kind != "pr" && got[:2] == "05":
		w.fail("%s %d ended %s", kind, d.tag, got)
	}
	return got == "good"
}

// held says whether the block held the tag at some moment of the interval.
func (w *world) held(blk int, tag uint64, from, to int) bool {
	h := w.history[blk]
	for i, v := range h {
		until := to + 1
		if i+1 < len(h) {
			until = h[i+1].at
		}
		if v.tag == tag && v.at <= to && until >= from {
			return true
		}
	}
	return false
}

// closing carries out a function and holds it to its word: what it ends takes no effect later.
func (w *world) closing(match func(*deed) bool, function func() bool) {
	w.mu.Lock()
	var doomed []*deed
	for _, d := range w.deeds {
		// One that began at this very moment may not be with the Executor yet, and is not found. Time stands still until it is.
		if d.closed == 0 && d.task != nil && d.began.Before(time.Now()) && match(d) {
			doomed = append(doomed, d)
		}
	}
	w.mu.Unlock()
	if !function() {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range doomed {
		if d.closed == 0 {
			d.closed = w.moment()
			d.note += " closed by function" + time.Now().Format(" 05.000")
		}
	}
}

func (w *world) login(path, isid int) *scsi.Nexus {
	node := path % 2
	n := &scsi.Nexus{Initiator: fmt.Sprintf("iqn.2024-01.test:h%d", path/2), ISID: [6]byte{0x80, byte(isid)}, Port: uint16(node + 1)}
	w.targets[node].Attach(n)
	if err := w.targets[node].Reinstate(context.Background(), n); err != nil {
		w.fail("login: %v", err)
	}
	return n
}

// take carries out one step; commands run on while later steps begin.
func (w *world) take(s step, running *sync.WaitGroup) {
	path, node := s.Nexus, s.Nexus%2
	n := w.paths[path]
	c := write10(uint32(s.Block), 1)
	pr := func(action reserve.Action, kind reserve.Type, key, service uint64) {
		c, list := prout(action, kind, key, service)
		running.Go(func() { w.do(path, n, "pr", 0, c, 0, list, 0) })
	}
	kind := []reserve.Type{1, 3, 5, 6, 7, 8, 1, 3, 5}[s.B]
	key := uint64(path + 1)
	manage := func(f scsi.Function, match func(*deed) bool) {
		running.Go(func() {
			w.closing(match, func() bool { return w.targets[node].Manage(f, n, 0, 0)(context.Background()) == scsi.FunctionComplete })
		})
	}
	everything := func(*deed) bool { return true }
	switch s.Kind {
	case "write":
		running.Go(func() { w.do(path, n, "write", s.Block, c, 0, make([]byte, 512), 0) })
	case "read":
		c[0] = 0x28
		running.Go(func() { w.do(path, n, "read", s.Block, c, 512, nil, 0) })
	case "caw":
		w.mu.Lock()
		want := w.seen[path][s.Block]
		w.mu.Unlock()
		caw := cdb(0x89, 0, 0, 0, 0, 0, 0, 0, 0, byte(s.Block), 0, 0, 0, 1)
		running.Go(func() { w.do(path, n, "caw", s.Block, caw, 0, append(tagged(want), make([]byte, 512)...), want) })
	case "register":
		if s.B == 0 {
			key = 0
		}
		pr(reserve.RegisterAndIgnore, 0, 0, key)
	case "reserve":
		pr(reserve.ReserveAction, kind, key, 0)
	case "release":
		pr(reserve.ReleaseAction, kind, key, 0)
	case "clear":
		pr(reserve.Clear, 0, key, 0)
	case "preempt":
		pr(reserve.Preempt, kind, key, uint64(s.A+1))
	case "preempt and abort":
		pr(reserve.PreemptAndAbort, kind, key, uint64(s.A+1))
	case "reserve 6":
		running.Go(func() { w.do(path, n, "pr", 0, cdb(0x16), 0, nil, 0) })
	case "release 6":
		running.Go(func() { w.do(path, n, "pr", 0, cdb(0x17), 0, nil, 0) })
	case "abort":
		w.mu.Lock()
		d := w.latest[path]
		w.mu.Unlock()
		if d == nil {
			return
		}
		running.Go(func() {
			w.closing(func(o *deed) bool { return o == d }, func() bool {
				return w.targets[node].Manage(scsi.AbortTask, n, 0, d.task.Tag)(context.Background()) == scsi.FunctionComplete
			})
		})
	case "abort tasks":
		manage(scsi.AbortTaskSet, func(d *deed) bool { return d.path == path && d.task.Nexus == n })
	case "reset":
		manage(scsi.LogicalUnitReset, everything)
	case "clear tasks":
		manage(scsi.ClearTaskSet, everything)
	case "target reset":
		manage(scsi.TargetWarmReset, everything)
	case "lose session":
		// The login that reinstates it waits.
		w.closing(func(d *deed) bool { return d.task.Nexus == n }, func() bool { w.targets[node].Detach(n); return true })
		w.paths[path] = w.login(path, path)
	case "log in elsewhere":
		// The host's other path begins anew, with the ISID of this one, which goes on. What it had begun before has ended at the
		// latest when a write through the new session has.
		other := path ^ 1
		w.targets[1-node].Detach(w.paths[other])
		w.closing(func(d *deed) bool { return d.task.Nexus == n }, func() bool {
			w.paths[other] = w.login(other, int(n.ISID[1]))
			fresh := w.paths[other]
			w.run(1-node, fresh, cdb(0x03, 0, 0, 0, 18), 18, nil) // takes 29/00
			return w.do(other, fresh, "write", s.Block, c, 0, make([]byte, 512), 0)
		})
	case "move":
		w.cluster.Move(s.A % 2)
	case "drop owner":
		w.cluster.Move(-1)
		time.Sleep(time.Duration(s.B) * 100 * time.Millisecond)
		w.cluster.Move(s.A % 2)
	}
}

// play runs the steps and returns what was wrong.
func play(t *testing.T, steps []step, seed uint64) []string {
	w := &world{nodePair: newNodesOf(t, 64, scsi.ActiveNonOptimized, nil), deeds: map[uint64]*deed{}, rnd: rand.New(rand.NewPCG(seed, 1))}
	for i := range w.history {
		w.history[i] = []version{{}}
	}
	dice := func(n int) int {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.quiet {
			return n - 1
		}
		return w.rnd.IntN(n)
	}
	w.dice = dice
	w.cluster.Slow = func() time.Duration { return []time.Duration{200, 60, 5, 1, 1, 0}[dice(6)] * time.Millisecond }
	w.cluster.Forget = func() bool { return dice(20) == 0 }
	w.cluster.Applied = w.apply
	w.cluster.Lag = time.Duration(seed%3) * 40 * time.Millisecond
	for i := range w.links {
		w.links[i].Fault = func() scsitest.Fault {
			switch dice(12) {
			case 0:
				return scsitest.Fault{LoseAnswer: true}
			case 1:
				return scsitest.Fault{Stray: time.Duration(dice(2000)+1) * time.Millisecond}
			case 2, 3:
				return scsitest.Fault{Delay: time.Duration(dice(300)) * time.Millisecond}
			}
			return scsitest.Fault{Delay: time.Millisecond}
		}
	}
	for path := range w.paths {
		w.paths[path] = w.login(path, path)
		w.run(path%2, w.paths[path], cdb(0x03, 0, 0, 0, 18), 18, nil) // takes 29/00
	}
	var running sync.WaitGroup
	for _, s := range steps {
		time.Sleep(time.Duration(s.Gap) * time.Millisecond)
		w.take(s, &running)
	}
	running.Wait()
	w.mu.Lock()
	w.quiet = true
	w.mu.Unlock()
	time.Sleep(5 * time.Second) // strays arrive
	synctest.Wait()
	if w.cluster.Owner() < 0 {
		w.fail("no owner")
	}
	// Reservations are the same through both nodes; RESERVE would hide them.
	for node := range 2 {
		w.targets[node].Manage(scsi.LogicalUnitReset, w.paths[node], 0, 0)(context.Background())
	}
	var answers [2][]byte
	for node := range 2 {
		for range 12 {
			r := w.run(node, w.paths[node], cdb(0x5E, 3, 0, 0, 0, 0, 0, 4, 0), 1024, nil)
			if answers[node] = r.data; r.Status == scsi.StatusGood {
				break
			}
		}
	}
	if len(answers[0]) < 8 || !bytes.Equal(answers[0], answers[1]) {
		w.fail("reservations through one node % x, through the other % x", answers[0], answers[1])
	}
	for blk := range w.history {
		have := tagOf(w.cluster.Bytes(block.Range{Start: block.Sector(blk), Count: 1}))
		if last := w.history[blk][len(w.history[blk])-1].tag; have != last {
			w.fail("block %d holds %d, not %d", blk, have, last)
		}
	}
	if n := w.buffers.lent.Load(); n != 0 {
		w.fail("%d buffers were never given back", n)
	}
	return w.failures
}

func TestTwoNodesBehaveAsOneUnit(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		steps := rapid.SliceOfN(stepGen(), 3, 60).Draw(rt, "steps")
		seed := rapid.Uint64().Draw(rt, "seed")
		var failures []string
		synctest.Test(t, func(t *testing.T) { failures = play(t, steps, seed) })
		if len(failures) > 0 {
			slices.Sort(failures)
			rt.Fatalf("%d violations, such as: %s", len(failures), failures[0])
		}
	})
}
