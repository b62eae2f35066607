package scsi

import (
	"time"

	"sanctuary/blockstore/block"
)

// What was accepted before a function arrived, and what after it.
//
// A task is in the task set from the arrival of its PDU on, though nothing of it runs while its data is coming. A function that
// ends tasks has to end such a one too, in whatever session it is, and has to leave alone what arrived after itself, also in its
// own session. A clock cannot tell the two apart. So a unit counts eras: a task belongs to the era in which it arrived, a function
// that arrives ends that era, and when it is carried out, each nexus concerned is told up to which era its tasks are ended. The
// running ones are found in the nexus' list; the others find it out when they are about to run. Both look under the nexus' mutex, so
// that a task is either found or finds out.
//
// What other nodes have accepted is told apart by their tickets: see peerWork.

// line lies between what a unit had accepted when a function arrived and what it accepted later.
type line struct {
	era   uint64 // of the newest task before it
	at    time.Time
	fence block.Fence
}

// cut draws a line, also below what other nodes have accepted up to now and is still on its way here: a function that ends all
// tasks is answered by the owner, which cannot see those. Some that they accepted a moment later are refused too; either kind
// ends in BUSY, or is asked for again with a ticket that shows it to be newer.
func (u *Unit) cut() line {
	w := &u.peers
	w.mu.Lock()
	defer w.mu.Unlock()
	w.since = u.now().stamp
	return line{u.era.Add(1) - 1, time.Now(), u.cfg.Backend.Fence()}
}

// ending is what a nexus knows of the end of its tasks on a unit.
type ending struct {
	era  uint64    // tasks up to this one have been ended
	tell attention // what the first one hears of it that had not begun; it is silent itself
	busy bool      // they are answered with BUSY
}

// endTasks ends the tasks of nexuses on this node, in whatever target, that arrived before a line. It cancels those that run and
// returns them, each with a done channel, and the nexuses they belong to. It leaves the request alone that asks for it, if one
// does.
func (u *Unit) endTasks(whose func(*Nexus) bool, with ending, but *request) (running []*request, of []*Nexus) {
	for _, t := range u.targets() {
		t.mu.Lock()
		for n := range t.nexuses {
			if !whose(n) {
				continue
			}
			found := n.units.endTasks(u, with, but)
			if len(found) > 0 {
				of = append(of, n)
			}
			running = append(running, found...)
		}
		t.mu.Unlock()
	}
	return running, of
}

// endTasks is that for one nexus.
func (n *nexusUnits) endTasks(u *Unit, with ending, but *request) (running []*request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for r := n.first; r != nil; r = r.next {
		switch {
		case r == but:
			continue
		case r.unit == u && r.era <= with.era && !with.busy:
			r.meet(fateAborted)
		case r.unit == u && r.era <= with.era, r.reaches(u): // a copy that only reaches u is no task of u
			r.meet(fateAnswered)
		default:
			continue
		}
		running = append(running, r)
	}
	if len(running) > 0 {
		with.tell = 0 // they were found, and whoever ends them sees to it
	}
	if n.ended == nil {
		n.ended = map[*Unit]ending{}
	}
	if n.ended[u].era <= with.era {
		n.ended[u] = with
	}
	return running
}

// endedBefore says whether a task of an era was ended before it began, and how it is to be answered. The caller holds mu.
func (n *nexusUnits) endedBefore(u *Unit, era uint64) (Status, bool) {
	e, ok := n.ended[u]
	if !ok || era > e.era {
		return StatusGood, false
	}
	if e.busy {
		return StatusBusy, true
	}
	n.post(u, e.tell)
	e.tell = 0
	n.ended[u] = e
	return StatusTaskAborted, true
}
