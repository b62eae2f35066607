//go:build sim

package sim

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/replication"
)

// world is one run: a cluster, its network, its clients, and what is done to them.
type world struct {
	seed      uint64
	shape     shape
	began     time.Time
	rng       *rand.Rand // of the schedule only
	net       *network
	nodes     []*machine
	victim    *machine // the only one whose storage is ever damaged or lost
	h         *history
	hot       []uint64
	values    atomic.Uint64
	zombies   sync.WaitGroup // processes that were killed and have not ended
	probes    sync.WaitGroup // of new owners; none is begun when the load has ended
	ended     atomic.Bool
	attempts  sync.WaitGroup // operations that their clients may not wait for any more
	scrubbing atomic.Bool
	hushed    atomic.Bool   // the load pauses
	untells   atomic.Bool   // the catalog is not told who holds everything
	changed   chan struct{} // some replica says that something has changed
	damaged   bool          // somewhere blocks are wrong until a scrub finds them
	actions   []action

	mu    sync.Mutex // guards what follows
	trace []string
	procs map[*machine]*process // those that run
}

func newWorld(seed, large uint64) *world {
	w := &world{
		seed: seed, began: time.Now(), rng: rand.New(rand.NewPCG(seed, 1)), net: newNetwork(rand.New(rand.NewPCG(seed, 2))),
		h: &history{}, procs: map[*machine]*process{}, changed: make(chan struct{}, 1),
	}
	w.shape = shapeOf(seed, w.rng, large)
	for _, name := range strings.Fields(w.shape.nodes) {
		m := &machine{w: w, name: name, witness: name == "w", ram: w.shape.ram && name != "w", usual: w.between(100*time.Microsecond, 2*time.Millisecond)}
		w.nodes = append(w.nodes, m)
		m.blank()
	}
	w.victim = w.data()[w.rng.IntN(len(w.data()))]
	for len(w.hot) < hotBlocks {
		w.hot = append(w.hot, w.rng.Uint64N(volumeBytes/block.Size-4))
	}
	return w
}

func (w *world) data() (out []*machine) {
	for _, m := range w.nodes {
		if !m.witness {
			out = append(out, m)
		}
	}
	return out
}

func (w *world) value() value { return value(w.values.Add(1)) }

func (w *world) note(format string, args ...any) {
	line := fmt.Sprintf("%10.6f %s", time.Since(w.began).Seconds(), fmt.Sprintf(format, args...))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trace = append(w.trace, line)
}

func (w *world) process(m *machine) *process {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.procs[m]
}

func (w *world) setProcess(m *machine, p *process) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p == nil {
		delete(w.procs, m)
	} else {
		w.procs[m] = p
	}
}

func (w *world) alive() (out []*process) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.nodes {
		if p := w.procs[m]; p != nil {
			out = append(out, p)
		}
	}
	return out
}

func (w *world) members() (out []replication.Member) {
	for _, m := range w.nodes {
		out = append(out, m.member())
	}
	return out
}

// owner returns the process that serves in the highest term, or nil.
func (w *world) owner() (owner *process) {
	best := uint64(0)
	for _, p := range w.alive() {
		if f := p.group.Fence(); f.Index == math.MaxUint64 && f.Term > best {
			best, owner = f.Term, p
		}
	}
	return owner
}

// redundant says that every copy is in sync and every member has a vote, as the owner sees it, and that the catalog has been told.
func (w *world) redundant() bool {
	return w.healthy() && !slices.ContainsFunc(w.nodes, func(m *machine) bool { return m.joining.Load() })
}

// knownToHold says whether the catalog knows of a copy elsewhere that may hold the LUN.
func (w *world) knownToHold(beside *machine) bool {
	return slices.ContainsFunc(w.data(), func(m *machine) bool { return m != beside && (!m.joining.Load() || m.filled.Load()) })
}

// healthy is redundant, whatever the catalog has been told.
func (w *world) healthy() bool {
	p := w.owner()
	if p == nil {
		return false
	}
	s := p.group.Status()
	votes := 0
	for _, peer := range s.Peers {
		for _, m := range w.nodes {
			if peer.Voter && peer.ID == m.member().ID {
				votes++
			}
		}
	}
	return s.Health == replication.HealthHealthy && votes == len(w.nodes)
}

// wake has the watch look at once. It is called by the product.
func (w *world) wake() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// watch notes who leads and who serves, until stop is closed, asks each new owner at once, and tells the catalog's news as node does.
func (w *world) watch(stop <-chan struct{}) {
	news := time.Now()
	for {
		select {
		case <-stop:
			return
		case <-time.After(10 * time.Millisecond):
		case <-w.changed:
		}
		tell := time.Since(news) >= 200*time.Millisecond
		for _, p := range w.alive() {
			if term := p.leads(); term > 0 {
				w.h.leads(p.m.name, term)
			}
			if f := p.group.Fence(); f.Index == math.MaxUint64 && w.h.serves(p.m.name, f.Term) {
				w.note("%s serves in term %d", p.m.name, f.Term)
				if !w.ended.Load() {
					w.probes.Go(func() { w.askBoth(p, f.Term) })
				}
			}
			if tell {
				p.group.Learn(w.members())
			}
		}
		if tell {
			news = time.Now()
			w.settle()
		}
	}
}

// settle is the catalog: it has the owner make the group what is wanted.
func (w *world) settle() {
	joins := false
	var want []replication.Member
	for _, m := range w.nodes {
		joins = joins || m.joining.Load()
		want = append(want, m.member())
	}
	p := w.owner()
	if p == nil || !joins {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	now, _ := p.group.SetMembers(ctx, want) // what is left to do is done the next time
	for _, m := range w.nodes {
		switch id := m.member().ID; {
		case slices.Contains(now.CaughtUp, id):
			w.note("%s may vote", id)
			m.filled.Store(true)
		case m.joining.Load() && slices.Contains(now.Whole, id) && !w.untells.Load():
			w.note("%s has its vote", id)
			m.joining.Store(false)
		}
	}
}

func (w *world) dialer(from *port) func(ctx context.Context, addr string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) { return w.net.dial(ctx, from, addr) }
}

func (w *world) logger(node string) *slog.Logger {
	if !detailed {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(noteWriter{w, node}, &slog.HandlerOptions{Level: logLevel, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == "lun" {
			return slog.Attr{}
		}
		return a
	}}))
}

// noteWriter puts the product's own log into the trace.
type noteWriter struct {
	w    *world
	node string
}

func (n noteWriter) Write(p []byte) (int, error) {
	n.w.note("  %s| %s", n.node, strings.TrimSpace(string(p)))
	return len(p), nil
}

// logLevel of what the product says in the trace: with SIM_LOG=2, what the library says, too.
var logLevel = map[bool]slog.Level{false: slog.LevelInfo, true: slog.LevelDebug}[os.Getenv("SIM_LOG") == "2"]
