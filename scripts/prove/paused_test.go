package prove

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/node/api"
	"sanctuary/target/initiator"
	"sanctuary/target/scsi"
)

const (
	longPause  = 10 * time.Second
	shortPause = 3 * time.Second // long enough for a takeover; waking up is a race, so it is tried more often than not
	// askEvery is how often a session without multipath logic asks the stopped owner. What it sends waits in the kernel's
	// buffers until the process runs again: 100 commands of each session in 10 s, within the target's window.
	askEvery       = 100 * time.Millisecond
	directSessions = 16
)

// TestProveOwnerPaused stops the owner's process for ten seconds, and some more times for three, and lets it go on. While it
// is stopped another node takes over and is written to; meanwhile reads, writes and swaps are sent to the stopped process
// straight, on sessions that were open before, so that they are the first thing it finds when it wakes, believing what it
// believed when it fell asleep.
func TestProveOwnerPaused(t *testing.T) {
	rng := prove(t)
	cl := startCluster(t, clusterSpec{media: "file", sizeBytes: 256 << 20})
	l := cl.healthy()
	w := startLoad(t, cl, l, rng)
	pauses := pauses{c: cl, w: w, rng: rng}
	long := count(t, "PROVE_PAUSES", max(2, kills(t)/20))
	for i := range 3 * long {
		pause := longPause
		if i >= long {
			pause = shortPause
		}
		wait(t, time.Second)
		l = pauses.stop(l, pause, i%2 == 0)
	}
	w.finish(cl)
	pauses.judge()
}

// pauses are times for which the owner's process was stopped.
type pauses struct {
	c       *cluster
	w       *load
	rng     *rand.Rand
	longest []time.Duration // I/O of each
	tally   answers
}

// stop stops the owner of l, lets it go on, and returns the LUN as it is when all is whole again. back: the node that slept owns it again at once, when what it
// still has from before must not land any more.
func (p *pauses) stop(l api.LUN, pause time.Duration, back bool) api.LUN {
	t := p.c.t
	t.Helper()
	d := startDirect(t, p.w, p.c.portal(l, l.Owner), p.rng)
	wait(t, 500*time.Millisecond)
	stopped := time.Now()
	p.c.pause(l.Owner)
	served := p.w.answered(time.Now())
	wait(t, pause-time.Since(stopped))
	p.c.signal(l.Owner, syscall.SIGCONT)
	resumed := time.Now()
	d.hurry()
	now := p.c.healthyBehind(l.Term)
	if back {
		p.c.move(l.Owner)
		now = p.c.owner()
	}
	settled := p.w.answered(time.Now())
	wait(t, 500*time.Millisecond)
	got := d.finish()
	p.tally.add(got)
	longest := p.w.longest(stopped, settled)
	p.longest = append(p.longest, longest)
	t.Logf("pause %d: %s; first I/O after %v, longest %v, in sync %v after it went on; asked directly: %+v", len(p.longest)-1, l.Owner,
		served.Sub(stopped).Round(time.Millisecond), longest.Round(time.Millisecond), settled.Sub(resumed).Round(time.Millisecond), got)
	p.w.heat(p.rng)
	return now
}

// judge says whether there was anything to see, and whether I/O was held up for too long.
func (p *pauses) judge() {
	t := p.c.t
	t.Helper()
	if p.tally.Good == 0 || p.tally.Asleep == 0 {
		t.Errorf("asked directly: %+v; want commands answered GOOD by the owner, and some sent while it was stopped", p.tally)
	}
	stalls(t, "pauses of the owner", p.longest, stallLimit(t))
}

// answers is what came of commands sent to one node without any multipath logic.
type answers struct {
	Good, Refused, Cut int // GOOD, another status, or none because the session ended
	Asleep             int // of all, those sent while the owner was stopped
}

func (a *answers) add(b answers) {
	a.Good += b.Good
	a.Refused += b.Refused
	a.Cut += b.Cut
	a.Asleep += b.Asleep
}

// direct is an initiator that knows one portal only, and has several sessions there: on waking the node finds them all at
// once, in a race with its own discovery that it owns nothing any more.
type direct struct {
	w        *load
	sessions []*initiator.Session
	stop     chan struct{}
	fast     chan struct{} // closed: ask without pause
	wg       sync.WaitGroup
	ctx      context.Context
	cancel   context.CancelFunc

	mu  sync.Mutex // guards got
	got answers
}

func startDirect(t *testing.T, w *load, p initiator.PathConfig, rng *rand.Rand) *direct {
	t.Helper()
	d := &direct{w: w, stop: make(chan struct{}), fast: make(chan struct{})}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	t.Cleanup(func() {
		d.cancel()
		for _, s := range d.sessions {
			s.Close()
		}
		d.wg.Wait()
	})
	for range directSessions {
		s := dialDirect(t, p)
		d.sessions = append(d.sessions, s)
		r, seed := w.h.recorder(), rng.Uint64()
		d.wg.Go(func() { d.run(s, r, rand.New(rand.NewPCG(seed, 0))) })
	}
	return d
}

// hurry makes it ask as fast as it is answered, for what a node does in the first moments after it woke is of most interest.
func (d *direct) hurry() { close(d.fast) }

func (d *direct) finish() answers {
	close(d.stop)
	// What the node never answered, because it reset nothing and lost interest, ends with the session.
	for _, s := range d.sessions {
		s.Close()
	}
	d.wg.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.got
}

// run sends a command at a time of its own choosing, without waiting for the one before.
func (d *direct) run(s *initiator.Session, r *recorder, rng *rand.Rand) {
	var commands sync.WaitGroup
	defer commands.Wait()
	slots := make(chan struct{}, 110) // below the target's window: beyond it sending would wait for the stopped process
	for io := uint64(1); ; io++ {
		select {
		case <-d.stop:
			return
		case <-d.fast:
			<-time.After(20 * time.Millisecond)
		case <-time.After(askEvery):
		}
		select {
		case slots <- struct{}{}:
		default:
			continue
		}
		n, dice := d.w.pick(rng), rng.IntN(10)
		v := value(d.w.values.Add(1))
		commands.Go(func() {
			d.one(s, r, io, n, v, dice)
			<-slots
		})
	}
}

// one sends a command and records it like a Disk's attempt.
func (d *direct) one(s *initiator.Session, r *recorder, io, n uint64, v value, dice int) {
	p, want := make([]byte, block.Size), make([]byte, block.Size)
	a := initiator.Attempt{IO: io, Offset: int64(n) * block.Size, Data: p, Want: want, Start: time.Now()}
	lba, blocks := n*block.SectorsPerBlock, uint32(block.SectorsPerBlock)
	var send func() error
	switch {
	case dice < 7:
		a.Op = initiator.OpRead
		send = func() error { return s.Read(d.ctx, lba, blocks, p) }
	case dice < 9:
		a.Op = initiator.OpWrite
		fill(p, v, n)
		send = func() error { return s.Write(d.ctx, lba, blocks, p) }
	default:
		a.Op = initiator.OpCompareAndWrite
		d.w.mu.Lock()
		last := d.w.current[n]
		d.w.mu.Unlock()
		fill(want, last, n)
		fill(p, v, n)
		send = func() error { return s.CompareAndWrite(d.ctx, lba, byte(blocks), want, p) }
	}
	r.attempt(a)
	a.Err = send()
	a.End = time.Now()
	d.mu.Lock()
	if a.End.Sub(a.Start) > time.Second {
		d.got.Asleep++
	}
	a.Outcome = d.got.judge(a.Err)
	d.mu.Unlock()
	r.attempt(a)
}

// judge counts an answer and says what it means, as a Disk does. With no session to follow that would be a fence, what is
// unknown stays so for ever.
func (a *answers) judge(err error) initiator.Outcome {
	var s *initiator.StatusError
	switch {
	case err == nil:
		a.Good++
		return initiator.Acknowledged
	case !errors.As(err, &s):
		a.Cut++
		return initiator.Unknown
	}
	a.Refused++
	if s.Status != scsi.StatusCheckCondition && s.Status != scsi.StatusTaskSetFull {
		return initiator.Unknown
	}
	if s.Key == scsi.AbortedCommand || s.Key == scsi.HardwareError {
		return initiator.Unknown
	}
	return initiator.Failed
}
