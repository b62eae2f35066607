//go:build sim

package sim

import (
	"context"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"sanctuary/blockstore/lincheck"
)

// Faults that are aimed at one rule each: what chance would bring about once in thousands of runs. Each begins with a cluster that is whole, which
// makes what it may demand simple, and keeps to the atlas (world.fault). scripts/simmutants takes the rules out and expects to be told.
// fits says of which shapes a fault makes sense; of the others there is nobody to play some part in it.
var aims = []aimed{
	{"an acknowledgement that is not on disk", onDisk, (*world).cutUnsynced},
	{"a vote that is not on disk", func(s shape) bool { return onDisk(s) && twoAndWitness(s) }, (*world).forgottenVote},
	{"the owner is lost while all copies are in sync", severalCopies, (*world).failover},
	{"the owner is cut off from the other copies, then from the witness", shape.hasWitness, (*world).promiseTested},
	{"answers come late, then none", severalVoters, (*world).lateAnswers},
	{"the LUN goes away and comes back", severalCopies, (*world).thereAndBack},
	{"a copy comes back empty while another is behind", func(s shape) bool { return s.copies() > 2 }, (*world).emptied},
	{"a quiet LUN loses its owner", severalVoters, (*world).quietened},
	{"a copy that came back empty is in sync, its owner comes back empty, and the catalog was told of neither", severalCopies, (*world).untold},
}

type aimed struct {
	name string
	fits func(s shape) bool
	do   func(w *world, owner *process)
}

// lateAims come behind everything else, in one of lateOneIn seeds, drawn from a stream of their own: so one more of them leaves what seeds do before as it was.
var lateAims = []aimed{
	{"a transfer that has failed arrives late", func(s shape) bool { return severalVoters(s) && severalCopies(s) }, (*world).transferredLate},
	{"a LUN is quiet without a member", severalVoters, (*world).quietWithout},
}

const lateOneIn = 4

func onDisk(s shape) bool        { return !s.ram }
func severalCopies(s shape) bool { return s.copies() > 1 }
func severalVoters(s shape) bool { return s.voters() > 2 }

// twoAndWitness: the witness decides between two.
func twoAndWitness(s shape) bool { return s.copies() == 2 && s.hasWitness() }

// aim brings about one of them.
func (w *world) aim() {
	n := w.rng.IntN(len(aims))
	for !aims[n].fits(w.shape) {
		n = w.rng.IntN(len(aims))
	}
	w.take(aims[n])
}

// aimLate brings about one that comes behind everything else.
func (w *world) aimLate() {
	rng := rand.New(rand.NewPCG(w.seed, 4))
	if a := lateAims[rng.IntN(len(lateAims))]; rng.IntN(lateOneIn) == 0 && a.fits(w.shape) {
		w.take(a)
	}
}

// take brings about what is aimed at a cluster that is whole, and puts an end to it.
func (w *world) take(a aimed) {
	for len(w.actions) > 0 {
		w.pass(step)
	}
	w.net.heal()
	if !w.await(leaderWithin, w.redundant) || len(w.alive()) < len(w.nodes) {
		w.note("not whole, so not aimed: %s", a.name)
		return
	}
	w.note("aimed: %s", a.name)
	a.do(w, w.owner())
	w.net.heal()
	for _, m := range w.nodes {
		m.syncs.Store(int64(m.usual))
		w.restart(m)
	}
}

func (w *world) witness() *machine {
	if last := w.nodes[len(w.nodes)-1]; last.witness {
		return last
	}
	return nil
}

// others returns the machines but m, in an order of the schedule's.
func (w *world) others(m *machine) (out []*machine) {
	for _, i := range w.rng.Perm(len(w.nodes)) {
		if n := w.nodes[i]; n != m {
			out = append(out, n)
		}
	}
	return out
}

// firstCopy returns the first of them that holds data.
func firstCopy(machines []*machine) *machine {
	for _, m := range machines {
		if !m.witness {
			return m
		}
	}
	return nil
}

// hush has the load pause for a moment, so that what comes next is not held up by what is under way.
func (w *world) hush() {
	w.hushed.Store(true)
	defer w.hushed.Store(false)
	w.pass(300 * time.Millisecond)
}

// isolate cuts both directions between m and each of others.
func (w *world) isolate(m *machine, others ...*machine) {
	for _, n := range others {
		w.net.sever([2]string{m.name, n.name}, [2]string{n.name, m.name})
	}
}

// cutUnsynced (rule G): the power fails on a machine whose syncs are slow, and the other copies are away when it returns.
func (w *world) cutUnsynced(owner *process) {
	data := w.data()
	m := data[w.rng.IntN(len(data))]
	m.syncs.Store(int64(w.between(10*time.Millisecond, 40*time.Millisecond)))
	if last := w.witness(); last != nil { // what it had, it would not let go
		w.net.setSlow(owner.m.name, last.name, delay{least: w.between(10*time.Millisecond, 60*time.Millisecond)})
	}
	w.pass(w.between(50*time.Millisecond, 400*time.Millisecond))
	w.hush()
	if w.process(m) == nil {
		return
	}
	w.probes.Go(func() { w.each(func(c *client, n uint64) { c.attempt(owner, c.access(lincheck.Write, n)) }, w.hot...) })
	time.Sleep(w.between(2*time.Millisecond, 8*time.Millisecond)) // enough for an answer that does not wait for the sync
	w.note("%s: its power is cut while it syncs", m.name)
	m.die(true, w.rng.Uint64())
	for _, n := range data {
		if n != m && (len(data) == 2 || w.rng.IntN(2) == 0) {
			w.kill(n, false, 3*time.Second)
		}
	}
	w.pass(step)
	w.restart(m)
	w.pass(w.between(2*time.Second, 4*time.Second))
}

// forgottenVote: the witness votes, its power fails before the vote is on disk, and somebody else asks it in the same term.
func (w *world) forgottenVote(owner *process) {
	data, voter := w.data(), w.witness()
	w.isolate(data[0], data[1])
	voter.syncs.Store(int64(w.between(20*time.Millisecond, 80*time.Millisecond)))
	before := owner.term()
	w.kill(owner.m, false, step)
	elected := w.elected(before)
	if elected == nil || w.process(voter) == nil {
		return
	}
	w.note("%s was elected in term %d; the witness that voted for it loses its power", elected.m.name, elected.term())
	w.isolate(elected.m, voter)
	voter.die(true, w.rng.Uint64())
	w.pass(step)
	w.restart(voter)
	w.pass(4 * time.Second)
}

// failover (rules W and F): the copies in sync that are left can own the LUN at once, with all that was acknowledged.
func (w *world) failover(owner *process) {
	for _, m := range w.others(owner.m) { // the witness would have all before them, if it were let
		if !m.witness {
			m.syncs.Store(int64(w.between(time.Millisecond, 20*time.Millisecond)))
			w.net.setSlow(owner.m.name, m.name, delay{least: w.between(30*time.Millisecond, 60*time.Millisecond)})
		}
	}
	w.pass(w.between(200*time.Millisecond, time.Second))
	w.hush()
	if w.owner() != owner || !w.redundant() {
		return
	}
	w.probes.Go(func() {
		w.each(func(c *client, n uint64) { c.attempt(owner, c.access(lincheck.Write, n)) }, w.hot[:2]...)
	})
	time.Sleep(w.between(13*time.Millisecond, 25*time.Millisecond)) // enough for a witness that is told at once, and too little for the copy
	w.note("%s is lost, with every copy in sync", owner.m.name)
	owner.m.die(w.rng.IntN(2) == 0, w.rng.Uint64())
	if !w.await(leaderWithin, func() bool { return w.owner() != nil }) {
		w.h.violation("nobody serves %v after the owner was lost, though every copy was in sync", leaderWithin)
	}
	w.pass(w.between(100*time.Millisecond, time.Second))
}

// untold: whoever got back what it had lost holds the LUN alone, before the catalog hears that it does. The LUN must not count as lost.
func (w *world) untold(owner *process) {
	m := firstCopy(w.others(owner.m))
	w.note("%s: loses its disk", m.name)
	m.lose(w.rng.Uint64())
	w.untells.Store(true)
	defer w.untells.Store(false)
	w.restart(m)
	if !w.await(leaderWithin, func() bool { return w.owner() == owner && w.healthy() }) {
		w.note("%s is not in sync in time", m.name)
		return
	}
	w.note("%s: loses its disk", owner.m.name)
	owner.m.lose(w.rng.Uint64())
	if !w.await(leaderWithin, func() bool { return w.owner() != nil }) {
		w.h.violation("nobody serves %v after the owner was lost, though every copy was in sync", leaderWithin)
	}
}

// promiseTested (rule L): a copy that does not hear the owner asks for votes all the time; the witness, once it does not hear it either, has
// promised not to give its own. Nothing is written meanwhile, or the witness would have what that copy has not.
func (w *world) promiseTested(owner *process) {
	w.hushed.Store(true)
	defer w.hushed.Store(false)
	w.pass(w.between(100*time.Millisecond, 300*time.Millisecond))
	for _, m := range w.data() {
		if m != owner.m {
			w.isolate(owner.m, m)
		}
	}
	w.pass(w.between(1100*time.Millisecond, 1400*time.Millisecond))
	for range 6 { // until it asks in time
		w.isolate(owner.m, w.witness())
		w.net.reset(owner.m.name, w.witness().name)
		w.pass(300 * time.Millisecond)
		if w.owner() != owner {
			break
		}
		w.net.mend(owner.m.name, w.witness().name)
		w.pass(w.between(200*time.Millisecond, 600*time.Millisecond))
	}
	w.pass(w.between(step, time.Second))
}

// lateAnswers (rule L): what the owner is answered was true a while ago, and it goes on being answered for as long when nobody hears it any more.
func (w *world) lateAnswers(owner *process) {
	others := w.others(owner.m)
	for _, m := range others {
		w.net.setSlowFrom(m.name, owner.m.name, delay{least: w.between(200*time.Millisecond, 350*time.Millisecond)})
	}
	w.pass(w.between(time.Second, 2*time.Second))
	w.note("nobody hears %s any more", owner.m.name)
	for _, m := range others {
		w.net.sever([2]string{owner.m.name, m.name})
		w.net.leaveHalf(owner.m.name, m.name)
	}
	w.pass(w.between(time.Second, 3*time.Second))
}

// quietWithin is how long after the last write a LUN falls quiet at the latest, from when it is whole.
const quietWithin = 15 * time.Second

// quietened (rules L and F): the LUN has fallen quiet, so that its heartbeats are vouches for the node, and then its owner is cut off, or lost, or
// heard again by who has voted for another, or one of those who vouch forgets that it is quiet. A quiet LUN is taken over as any other.
func (w *world) quietened(owner *process) {
	w.hushed.Store(true)
	defer w.hushed.Store(false)
	whole, quiet := time.Now(), false
	tooLong := func() bool { return time.Since(whole) >= quietWithin }
	w.await(4*quietWithin, func() bool {
		if w.owner() != owner || !w.redundant() { // a copy that fell behind under the load may be back late; without it the LUN may be quiet, too
			whole = time.Now()
			return false
		}
		quiet = owner.group.Status().Quiet
		return quiet || tooLong()
	})
	if !quiet {
		if tooLong() {
			w.h.violation("all has been whole and nobody has written for %v, and the LUN is not quiet: %s", quietWithin, w.standing())
		}
		return
	}
	w.pass(w.between(step, time.Second))
	others := w.others(owner.m)
	lost := false
	switch w.rng.IntN(5) {
	case 0:
		w.note("quiet: nobody hears %s any more, nor does it", owner.m.name)
		w.isolate(owner.m, others...)
		lost = true
	case 1:
		if !w.mayDie(owner.m) {
			return
		}
		w.note("quiet: %s is lost", owner.m.name)
		owner.m.die(w.rng.IntN(2) == 0, w.rng.Uint64())
		lost = true
	case 2:
		w.votedAndVouching(owner, others)
	case 3:
		m := others[0]
		if !w.mayDie(m) {
			return
		}
		w.note("quiet: %s forgets it, and does not hear %s from then on", m.name, owner.m.name)
		m.die(w.rng.IntN(2) == 0, w.rng.Uint64())
		w.isolate(owner.m, m)
		w.restart(m)
		w.pass(w.between(step, 2*time.Second))
		w.isolate(owner.m, others[1:]...)
	default:
		w.note("quiet: %s is handed over", owner.m.name)
		w.handOver(owner, firstCopy(others))
	}
	w.pass(w.between(0, time.Second))
	w.hushed.Store(false)
	if lost && !w.await(leaderWithin, func() bool { p := w.owner(); return p != nil && p != owner }) {
		w.h.violation("nobody serves %v after the owner of a quiet LUN was lost", leaderWithin)
	}
	w.pass(w.between(step, 2*time.Second))
}

// quietWithout (rules L, W and F): a member is away, the LUN is quiet without it, and then it comes back; or to others than the owner only, or while
// the owner is lost to all.
func (w *world) quietWithout(owner *process) {
	w.hushed.Store(true)
	defer w.hushed.Store(false)
	others := w.others(owner.m)
	m := others[0]
	if !w.mayDie(m) {
		return
	}
	died := w.rng.IntN(2) == 0
	if died {
		m.die(w.rng.IntN(2) == 0, w.rng.Uint64())
	} else {
		w.isolate(m, w.others(m)...)
	}
	w.note("%s is away (dead: %v)", m.name, died)
	w.pass(2 * time.Second) // for it to be missed: until then the LUN may be quiet with it
	if !w.await(2*quietWithin, func() bool { return w.owner() != owner || owner.group.Status().Quiet }) {
		w.h.violation("nobody has written for %v, and the LUN is not quiet without %s: %s", 2*quietWithin, m.name, w.standing())
	}
	if w.owner() != owner {
		return
	}
	w.pass(w.between(step, time.Second))
	w.note("quiet: %s comes back", m.name)
	choice := w.rng.IntN(3)
	if choice == 2 {
		w.note("quiet: nobody hears %s any more, nor does it", owner.m.name)
		w.isolate(owner.m, others[1:]...)
	}
	for _, n := range others[1:] {
		w.net.mend(m.name, n.name)
	}
	if choice == 0 {
		w.net.mend(m.name, owner.m.name)
	} else {
		w.isolate(m, owner.m)
	}
	w.restart(m)
	w.pass(w.between(step, 2*time.Second))
	w.hushed.Store(false)
	w.pass(w.between(step, 3*time.Second))
}

// votedAndVouching: who has voted for another, but has not yet been sent anything by it, is asked again by the node of the old owner.
func (w *world) votedAndVouching(owner *process, others []*machine) {
	voter, candidate := others[0], others[1]
	if candidate.witness {
		voter, candidate = candidate, voter
	}
	before := owner.term()
	w.isolate(owner.m, others...)
	w.net.setSlowFrom(candidate.name, voter.name, delay{least: w.between(200*time.Millisecond, 800*time.Millisecond)})
	if p := w.elected(before); p == nil || p.m != candidate { // of three copies, the other may have been
		return
	}
	w.note("quiet: %s has voted for %s, and hears %s again", voter.name, candidate.name, owner.m.name)
	w.net.mend(owner.m.name, voter.name)
	w.pass(w.between(300*time.Millisecond, 1200*time.Millisecond))
}

// elected waits until somebody is elected in a later term than that, and returns it; nil if nobody is for long.
func (w *world) elected(before uint64) *process {
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if len(w.actions) > 0 {
			w.pass(time.Millisecond)
		}
		for _, p := range w.alive() {
			if p.leads() > before {
				return p
			}
		}
	}
	return nil
}

// thereAndBack (rule F): the LUN is handed over and back, and then commands arrive that were sent to the owner before.
func (w *world) thereAndBack(owner *process) {
	var to *machine
	for _, m := range w.others(owner.m) {
		if !m.witness {
			to = m
		}
	}
	arrive := make(chan struct{})
	for i := range 4 {
		c := w.prober(i)
		c.held = func(p *process) bool {
			select {
			case <-arrive:
				return true
			case <-p.dead:
				return false
			}
		}
		w.attempts.Go(func() { c.attempt(owner, c.access(lincheck.Write, w.hot[i])) })
	}
	w.pass(step)
	w.handOver(owner, to)
	if p := w.process(to); p != nil && w.await(2*time.Second, func() bool { return w.owner() == p }) {
		w.pass(w.between(10*time.Millisecond, 300*time.Millisecond))
		w.handOver(p, owner.m)
		w.await(2*time.Second, func() bool { return w.owner() == owner })
	}
	w.note("what was sent to %s before arrives", owner.m.name)
	close(arrive)
	w.pass(w.between(step, time.Second))
}

func (w *world) handOver(p *process, to *machine) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := p.group.Transfer(ctx, to.member().ID)
	w.note("%s handed over to %s: %v", p.m.name, to.name, err)
}

// transferredLate (rule L): what asks a copy to stand for the owner is on its way for so long that the owner has given it up, and has a lease again; then it arrives,
// and the owner does not hear of it. What the copy is sent over other connections overtakes it.
func (w *world) transferredLate(owner *process) {
	others := w.others(owner.m)
	to := firstCopy(others)
	late := w.between(1500*time.Millisecond, 3*time.Second)
	w.net.setSlowFrom(owner.m.name, to.name, delay{least: late})
	asked := time.Now()
	w.attempts.Go(func() { w.handOver(owner, to) })
	w.pass(w.between(20*time.Millisecond, 200*time.Millisecond))
	w.net.quicken(owner.m.name, to.name)
	time.Sleep(time.Until(asked.Add(late - w.between(10*time.Millisecond, 100*time.Millisecond))))
	if w.owner() != owner {
		return
	}
	w.note("%s hears nobody any more, and only %s hears it", owner.m.name, to.name)
	for _, m := range others {
		w.net.sever([2]string{m.name, owner.m.name})
		if m != to {
			w.net.sever([2]string{owner.m.name, m.name})
		}
	}
	var next *process
	for end := time.Now().Add(time.Second); time.Now().Before(end) && (next == nil || next == owner); w.pass(2 * time.Millisecond) {
		next = w.owner()
	}
	if next == nil || next == owner {
		return
	}
	for _, n := range w.hot { // it acknowledges nothing before it has given the old owner up; but what it has committed it shows
		w.probes.Go(func() { w.each(func(c *client, n uint64) { c.attempt(next, c.access(lincheck.Write, n)) }, n) })
		w.pass(5 * time.Millisecond)
		w.probes.Go(func() {
			w.each(func(c *client, n uint64) {
				c.attempt(next, c.access(lincheck.Read, n))
				c.attempt(owner, c.access(lincheck.Read, n))
			}, n)
		})
	}
	w.pass(w.between(500*time.Millisecond, 2*time.Second))
}

// emptied: one copy is behind, another comes back with an empty disk, and the owner, which has everything, is not heard. The two must not elect one
// of them. The copy that is emptied is not the only one with what was acknowledged, and every other keeps its disk.
func (w *world) emptied(owner *process) {
	others := w.others(owner.m)
	behind, lost := others[0], others[1]
	w.isolate(behind, owner.m, lost)
	w.net.reset(behind.name, owner.m.name)
	w.pass(w.between(300*time.Millisecond, 600*time.Millisecond)) // within what the log keeps: else it would count as lost, too
	if w.owner() != owner || w.process(lost) == nil || lost.failing {
		return
	}
	w.note("%s: loses its disk while %s is behind; nobody hears %s", lost.name, behind.name, owner.m.name)
	lost.lose(w.rng.Uint64())
	w.net.heal()
	w.isolate(owner.m, behind, lost)
	w.pass(step)
	w.restart(lost)
	w.pass(w.between(3*time.Second, 5*time.Second))
}

// prober returns a client that does what it is told.
func (w *world) prober(n int) *client {
	return &client{w: w, id: clients + 1 + n, rng: rand.New(rand.NewPCG(w.seed, uint64(1000+n))), seen: map[uint64]value{}}
}

// access is an operation on one block.
func (c *client) access(k lincheck.Kind, n uint64) *request {
	return c.about(&request{kind: k, first: n}, 1)
}

// askBoth asks an owner as soon as it is seen: everything that was acknowledged before must be there. Whoever else takes itself for the owner is
// asked, too, for what is written behind its back.
func (w *world) askBoth(p *process, term uint64) {
	w.each(func(c *client, n uint64) { c.attempt(p, c.access(lincheck.Read, n)) }, w.hot...)
	for _, old := range w.alive() {
		if old == p {
			continue
		}
		for round := 0; round < 20; round++ {
			if f := old.group.Fence(); f.Index != math.MaxUint64 || f.Term >= term {
				break
			}
			w.each(func(c *client, n uint64) {
				c.attempt(p, c.access(lincheck.Write, n))
				c.attempt(old, c.access(lincheck.Read, n))
			}, w.hot[round%(hotBlocks-2):][:3]...)
			time.Sleep(5 * time.Millisecond)
		}
	}
}

// each has a prober do something to each block, at the same time.
func (w *world) each(do func(c *client, n uint64), blocks ...uint64) {
	var all sync.WaitGroup
	for i, n := range blocks {
		all.Go(func() { do(w.prober(10+i), n) })
	}
	all.Wait()
}
