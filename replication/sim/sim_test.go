//go:build sim

package sim

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/lincheck"
)

const (
	leaderWithin     = 10 * time.Second // after everything is healed
	redundancyWithin = 3 * time.Minute
	hangs            = time.Minute // of real time: a run that has not ended by then never will, however busy the machine
)

// number reads a number from the environment.
func number(t *testing.T, name string, otherwise uint64) uint64 {
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestSimulation runs SIM_SEEDS seeds from SIM_FIRST on, every SIM_STRIDE-th. SIM_TRACE=1 prints what happened also if all went well, SIM_LOG=1
// with what the product says. It ends at the first seed that fails, unless SIM_KEEP=1.
func TestSimulation(t *testing.T) {
	first, seeds, stride := number(t, "SIM_FIRST", 1), number(t, "SIM_SEEDS", 20), number(t, "SIM_STRIDE", 1)
	large := number(t, "SIM_LARGE", largeOneIn)
	for n := range seeds {
		seed := first + n*stride
		fmt.Println("sim: begin", seed)
		var w *world
		watchdog := time.AfterFunc(hangs, func() {
			buf := make([]byte, 8<<20)
			fmt.Printf("%s\n%s\n", strings.Join(w.trace, "\n"), buf[:runtime.Stack(buf, true)])
			os.Exit(3)
		})
		start := time.Now()
		var virtual time.Duration
		left := bubble(t, func() {
			w = newWorld(seed, large)
			w.run()
			virtual = time.Since(w.began)
		})
		if left != "" {
			w.h.violation("goroutines are left behind:\n%s", left)
		}
		watchdog.Stop()
		err := w.h.check()
		if err != nil || os.Getenv("SIM_TRACE") != "" {
			fmt.Println(strings.Join(w.trace, "\n"))
		}
		if err == nil {
			fmt.Printf("sim: seed %d held: %+v, %d operations in %v, took %v\n", seed, w.shape, len(w.h.events), virtual.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
			continue
		}
		fmt.Printf("sim: seed %d FAILED: %s\n", seed, strings.ReplaceAll(err.Error(), "\n", "; "))
		t.Errorf("seed %d: %v\nreplay: make sim SIM_FIRST=%d SIM_SEEDS=1 SIM_LOG=1", seed, err, seed)
		if os.Getenv("SIM_KEEP") != "1" {
			return
		}
	}
}

// bubble runs f on a clock of its own, and returns the stacks of what it leaves behind. Whoever waits for a future of the library after it was
// shut down does so for ever (hashicorp/raft #498); the product looks after itself then, and only the goroutine that waits stays. Nothing else may.
func bubble(t *testing.T, f func()) (left string) {
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		buf := make([]byte, 8<<20)
		var others []string
		newest := 0 // bubbles are numbered; earlier ones have been judged
		for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			in := inBubble.FindStringSubmatch(g)
			if in == nil {
				continue
			}
			n, _ := strconv.Atoi(in[1]) // digits
			if n > newest {
				newest, others = n, nil
			}
			if n == newest && !strings.Contains(g, "raft.(*deferError).Error") {
				others = append(others, g)
			}
		}
		if left = strings.Join(others, "\n\n"); left == "" && !strings.HasPrefix(fmt.Sprint(r), "deadlock: main bubble goroutine has exited") {
			panic(r)
		}
	}()
	synctest.Test(t, func(*testing.T) { f() })
	return ""
}

var inBubble = regexp.MustCompile(`^goroutine \d+ \[[^\]]*synctest bubble (\d+)\]`)

func TestWhatIsLeftBehindIsSeen(t *testing.T) {
	for range 2 {
		left := bubble(t, func() {
			c := make(chan int)
			go func() { <-c }()
		})
		if strings.Count(left, "goroutine ") != 2 { // its own line, and who started it
			t.Errorf("a goroutine that waits for ever: %q", left)
		}
	}
	if left := bubble(t, func() {}); left != "" {
		t.Errorf("nothing was left: %q", left)
	}
}

// run is one seed, in its bubble.
func (w *world) run() {
	for _, m := range w.nodes {
		w.restart(m)
	}
	stopWatch, stopClients := make(chan struct{}), make(chan struct{})
	var watch, load sync.WaitGroup
	watch.Go(func() { w.watch(stopWatch) })
	for i := range clients {
		c := &client{w: w, id: i, rng: rand.New(rand.NewPCG(w.seed, uint64(10+i))), path: i, seen: map[uint64]value{}}
		load.Go(func() { c.run(stopClients) })
	}
	w.pass(time.Second)
	for range 4 + w.rng.IntN(8) {
		w.fault()
		w.pass(w.between(100*time.Millisecond, 1500*time.Millisecond))
		if w.rng.IntN(3) == 0 {
			w.aim()
		}
	}
	w.aimLate()
	w.recover()
	close(stopClients)
	load.Wait()
	w.ended.Store(true)
	w.pass(step) // a watch that has not seen it
	w.probes.Wait()
	w.compare()
	close(stopWatch)
	watch.Wait()
	w.note("the end")
	for _, m := range w.nodes {
		m.die(false, 0)
	}
	w.zombies.Wait()
	w.attempts.Wait()
}

// recover heals everything, and demands what is promised for that.
func (w *world) recover() {
	w.note("everything is healed")
	w.actions = nil
	w.net.heal()
	for _, m := range w.nodes {
		m.syncs.Store(int64(m.usual))
		m.full.Store(0)
		m.errors.Store(&diskErrors{})
		if p := w.process(m); p != nil && (m.failing || p.group.Err() != nil) {
			w.note("%s: its disk is connected again", m.name)
			m.die(true, w.rng.Uint64())
		}
		w.restart(m)
	}
	if !w.await(leaderWithin, func() bool { return w.owner() != nil }) {
		w.h.violation("nobody serves %v after everything was healed: %s", leaderWithin, w.standing())
		return
	}
	w.scrubbing.Store(w.damaged)
	if !w.await(redundancyWithin, w.redundant) {
		state := "has no owner"
		if p := w.owner(); p != nil {
			s := p.group.Status()
			state = fmt.Sprintf("is %s: %+v", s.Health, s.Peers)
		}
		w.h.violation("%v after everything was healed the LUN %s", redundancyWithin, state)
	}
}

// standing says how every process takes its group to stand.
func (w *world) standing() string {
	var b strings.Builder
	for _, p := range w.alive() {
		applied := uint64(0)
		if p.vol != nil {
			applied = uint64(p.vol.Applied())
		}
		fmt.Fprintf(&b, "\n%s, volume at %d, %v: %+v", p.m.member().ID, applied, p.group.Err(), p.group.Status())
	}
	return b.String()
}

func (w *world) await(limit time.Duration, done func() bool) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); w.pass(step) {
		if done() {
			return true
		}
	}
	return done()
}

// compare reads every copy and finds them the same, byte for byte, at the same index.
func (w *world) compare() {
	data := w.data()
	var evened time.Time
	same := func() bool {
		if !w.redundant() { // a copy that fell behind what so short a log keeps, when the load ended, is rebuilt once more
			return false
		}
		for _, m := range data {
			a, b := w.process(data[0]), w.process(m)
			if a == nil || b == nil || a.vol.Applied() != b.vol.Applied() {
				// A volume counts what was written to it, and one that was rebuilt what its source's log held: a change of members, perhaps.
				if p := w.owner(); p != nil && time.Since(evened) > 5*time.Second {
					evened = time.Now()
					w.each(func(c *client, n uint64) { c.attempt(p, c.access(lincheck.Write, n)) }, w.hot[0])
				}
				return false
			}
		}
		return true
	}
	if !w.await(30*time.Second, same) {
		w.h.violation("with no writes the copies do not come to the same index: %s", w.standing())
		return
	}
	if w.damaged && !w.await(redundancyWithin, w.scrubbed()) {
		w.h.violation("the scrub does not repair what was damaged")
		return
	}
	first, other := make([]byte, block.Size), make([]byte, block.Size)
	for n := range uint64(volumeBytes / block.Size) {
		for i, m := range data {
			into := other
			if i == 0 {
				into = first
			}
			if err := w.process(m).vol.ReadAt(rangeOf(n, 1), into); err != nil {
				w.h.violation("block %d on %s: %w", n, m.name, err)
				return
			}
			if i > 0 && !bytes.Equal(first, other) {
				w.h.violation("block %d is not the same on %s and %s, at index %d", n, data[0].name, m.name, w.process(m).vol.Applied())
				return
			}
		}
		v, err := valueOf(first, n)
		if err != nil {
			w.h.violation("at the end: %w", err)
		} else if v != 0 || containsBlock(w.hot, n) {
			call := w.h.tick()
			w.h.add(event{Op: lincheck.Op{Client: clients, Block: n, Kind: lincheck.Read, Value: v, Call: call, At: time.Since(w.began)}})
		}
	}
}

func containsBlock(hot []uint64, n uint64) bool {
	for _, h := range hot {
		if h == n {
			return true
		}
	}
	return false
}

// scrubbed begins a pass on every copy, and returns what says that it has found nothing that is not repaired.
func (w *world) scrubbed() func() bool {
	began := time.Now()
	started := false
	return func() bool {
		p := w.owner()
		if p == nil {
			return false
		}
		if !started {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			started = p.group.StartScrub(ctx) == nil
			return false
		}
		for _, m := range w.data() {
			if s := w.process(m).group.ScrubStatus(); s.Running || !s.Completed.After(began) || s.Repair.Unrepaired > 0 {
				return false
			}
		}
		return true
	}
}
