//go:build sim

package sim

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs/crashdev"
	"sanctuary/replication"
)

// action is something that is due later: a machine starts again, a cable is plugged in.
type action struct {
	at time.Time
	do func()
}

func (w *world) later(d time.Duration, do func()) {
	w.actions = append(w.actions, action{time.Now().Add(d), do})
}

const step = 50 * time.Millisecond

// pass lets time go by, and does what is due meanwhile.
func (w *world) pass(d time.Duration) {
	for end := time.Now().Add(d); ; {
		now := time.Now()
		for i := 0; i < len(w.actions); i++ {
			if a := w.actions[i]; !a.at.After(now) {
				w.actions = slices.Delete(w.actions, i, i+1)
				a.do()
				i = -1
			}
		}
		if !now.Before(end) {
			return
		}
		time.Sleep(min(step, end.Sub(now)))
	}
}

func (w *world) between(from, to time.Duration) time.Duration {
	return from + time.Duration(w.rng.Int64N(int64(to-from)))
}

// kill ends a machine's process and starts it again after a while.
func (w *world) kill(m *machine, power bool, pause time.Duration) {
	if w.process(m) == nil {
		return
	}
	w.note("%s: killed, power cut: %v, for %v", m.name, power, pause)
	m.die(power, w.rng.Uint64())
	w.later(pause, func() { w.restart(m) })
}

func (w *world) restart(m *machine) {
	if w.process(m) != nil {
		return
	}
	w.net.back(m.name)
	err := m.start()
	if errors.Is(err, replication.ErrLogLost) && m.joining.Load() {
		// It was killed before it was sent anything. The catalog replaces what cannot be started.
		w.note("%s: its replica has nothing, and begins anew", m.name)
		m.blank()
		err = m.start()
	}
	if err != nil {
		m.power.Cut()
		m.disks(false, 0)
		w.h.violation("%s does not start: %w", m.name, err)
		w.note("%s does not start: %v", m.name, err)
		return
	}
	w.note("%s: started", m.name)
}

// sound says that the loss of one copy takes nothing that was promised.
func (w *world) sound() bool {
	return len(w.data()) > 1 && len(w.alive()) == len(w.nodes) && w.healthy()
}

// mayDie says whether a process may be ended: in memory, its replica ends with it.
func (w *world) mayDie(m *machine) bool { return w.process(m) != nil && (!m.ram || w.sound()) }

// fault does one thing to the cluster. Atlas: power cuts, kills and the network spare what was synced, so they may meet anybody at any time. What
// takes or damages a copy meets one machine of a run only, while every other copy is in sync; in memory, any machine, under the same condition.
func (w *world) fault() {
	m := w.nodes[w.rng.IntN(len(w.nodes))]
	if w.rng.IntN(3) == 0 {
		if p := w.owner(); p != nil { // the more interesting one
			m = p.m
		}
	}
	other := w.nodes[w.rng.IntN(len(w.nodes))]
	short, long := w.between(50*time.Millisecond, time.Second), w.between(time.Second, 5*time.Second)
	pause := short
	if w.rng.IntN(3) == 0 {
		pause = long
	}
	switch dice := w.rng.IntN(100); {
	case dice < 20:
		if w.mayDie(m) {
			w.kill(m, false, pause)
		}
	case dice < 38:
		if w.mayDie(m) {
			w.kill(m, true, pause)
		}
	case dice < 44:
		w.blackout()
	case dice < 64:
		w.partition(m, other, pause)
	case dice < 68:
		w.note("connections between %s and %s break", m.name, other.name)
		w.net.reset(m.name, other.name)
	case dice < 74:
		d := delay{least: w.between(100*time.Microsecond, 20*time.Millisecond), spread: w.between(1, 20*time.Millisecond), lossOneIn: 10 + w.rng.IntN(100)}
		w.note("%s and %s: delay %+v for %v", m.name, other.name, d, long)
		w.net.setSlow(m.name, other.name, d)
		w.later(long, w.net.heal)
	case dice < 80:
		w.transfer(other)
	case dice < 85:
		w.wipe(pause)
	case dice < 90:
		w.rot()
	case dice < 95:
		w.diskError(m, pause)
	case dice < 97:
		d := w.between(2*time.Second, 15*time.Second)
		w.note("%s: the journal's file system is full for %v", m.name, d)
		m.full.Store(time.Now().Add(d).UnixNano())
	default:
		pause := w.between(time.Millisecond, 40*time.Millisecond)
		w.note("%s: each sync takes %v, for %v", m.name, pause, long)
		m.syncs.Store(int64(pause))
		w.later(long, func() { m.syncs.Store(int64(m.usual)) })
	}
}

func (w *world) blackout() {
	if w.shape.ram {
		return
	}
	w.note("blackout")
	for _, m := range w.nodes {
		w.kill(m, true, w.between(50*time.Millisecond, 3*time.Second))
	}
}

// partition stops what m sends, what it is sent, or both, to one other node or to all.
func (w *world) partition(m, other *machine, d time.Duration) {
	var cut [][2]string
	way, all := w.rng.IntN(4), w.rng.IntN(2) == 0
	for _, n := range w.nodes {
		if n == m || !all && n != other {
			continue
		}
		if way != 0 {
			cut = append(cut, [2]string{m.name, n.name})
		}
		if way != 1 {
			cut = append(cut, [2]string{n.name, m.name})
		}
	}
	w.note("nothing passes %v for %v", cut, d)
	w.net.sever(cut...)
	w.later(d, func() {
		w.note("the network is whole")
		w.net.heal()
	})
}

func (w *world) transfer(to *machine) {
	p := w.owner()
	if p == nil || to.witness || to == p.m {
		return
	}
	w.note("%s is to hand over to %s", p.m.name, to.name)
	w.attempts.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		err := p.group.Transfer(ctx, to.member().ID)
		w.note("%s handed over to %s: %v", p.m.name, to.name, err)
	})
}

// wipe takes the victim's, or the witness's, storage; it comes back empty as another incarnation.
func (w *world) wipe(pause time.Duration) {
	m := w.victim
	if last := w.nodes[len(w.nodes)-1]; last.witness && w.rng.IntN(3) == 0 {
		m = last
	}
	if !w.sound() {
		return
	}
	w.note("%s: loses its disk", m.name)
	w.kill(m, true, pause)
	if !m.ram {
		m.blank()
	}
}

// rot damages blocks on the victim's disk: bits flip, or a block lies where another belongs.
func (w *world) rot() {
	m := w.victim
	if m.disk == nil || !w.sound() {
		return
	}
	if _, err := w.process(m).vol.Checkpoint(context.Background()); err != nil {
		return
	}
	var blocks []int64 // that hold data
	p := make([]byte, block.Size)
	for off := int64(0); off+block.Size <= m.disk.Size(); off += block.Size {
		if m.disk.ReadAt(p, off) == nil && bytes.HasPrefix(p, sectorMark) {
			blocks = append(blocks, off)
		}
	}
	if len(blocks) == 0 {
		return
	}
	w.damaged = true
	for range 1 + w.rng.IntN(3) {
		at, from := blocks[w.rng.IntN(len(blocks))], blocks[w.rng.IntN(len(blocks))]
		if w.rng.IntN(2) == 0 {
			w.note("%s: a bit flips at %d", m.name, at)
			m.disk.FlipBit(at+w.rng.Int64N(block.Size), uint(w.rng.IntN(8)))
			continue
		}
		w.note("%s: the block at %d lies at %d, too", m.name, from, at)
		if err := errors.Join(m.disk.ReadAt(p, from), m.disk.WriteAt(p, at)); err != nil {
			w.note("%s: %v", m.name, err)
		}
	}
}

var errDisk = errors.New("input/output error")

// diskError makes a machine's disk fail for good; some time later it has another controller and the same disk.
func (w *world) diskError(m *machine, pause time.Duration) {
	if w.process(m) == nil || m.ram {
		return
	}
	m.failing = true
	kinds := [][]crashdev.Kind{{crashdev.Sync}, {crashdev.Write}, {crashdev.Write, crashdev.Sync, crashdev.Read}}[w.rng.IntN(3)]
	if w.rng.IntN(2) == 0 || m.disk == nil {
		w.note("%s: the journal's disk fails: %v", m.name, kinds)
		m.errors.Store(&diskErrors{journal: kinds})
	} else {
		w.note("%s: the pool's disk fails: %v", m.name, kinds)
		m.errors.Store(&diskErrors{pool: kinds})
	}
	w.later(pause, func() {
		w.kill(m, true, 100*time.Millisecond)
	})
}
