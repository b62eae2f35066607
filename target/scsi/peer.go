package scsi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/target/reserve"
)

// peerWork is what a unit carries out for other nodes while it is on the owner.
//
// A command another node asks for runs like any other, as the task of a nexus of its own within a target that no initiator can
// log in to: so whatever ends tasks of the unit ends these too.
type peerWork struct {
	target *Target

	mu      sync.Mutex
	running map[uint64]*request // by operation
	// refused holds operations that were cancelled before they arrived, until they would be too late anyway.
	refused map[uint64]time.Time
	// since is a moment of the owner's clock: what another node accepted before it is refused. See Unit.cut.
	since uint64
	// ended holds how commands that must not be done twice have ended, oldest first, for nodes that lost the answer. All that ended since
	// forgot are there.
	ended  []endedCommand
	forgot uint64
	// ports holds the sessions of initiator ports that have been seen.
	ports map[initiatorPort][]portSession
}

// endedCommand is the outcome of a command that another node asked for.
type endedCommand struct {
	operation uint64
	at        uint64 // stamp of the owner's clock
	outcome   reply
	unsure    bool // it may have been done
}

// Limits of the work for other nodes.
const (
	maxPeerEnded   = 1024
	peerEndedFor   = 30 * time.Second // longer than a node waits for an answer and then asks what became of the command
	maxPeerTasks   = 1024             // at once; beyond it nothing is done, and the other node asks again
	maxPeerRefused = 4096
)

// now returns a ticket for this moment.
func (u *Unit) now() ticket { return ticket{u.process, uint64(time.Since(u.made))} }

// ServePeer answers what another node's unit of the same LUN asked with UnitConfig.AskOwner. node names it, for messages.
// Errors: block.ErrNotOwner or block.ErrUnavailable if nothing was done; any other means that the request cannot be read.
// ctx should end when the other node can no longer receive the answer: a command that is not yet done is then aborted.
func (u *Unit) ServePeer(ctx context.Context, node string, request []byte) (answer []byte, err error) {
	defer u.recovered("a request of node "+node, &err)
	a, err := decodeAsk(request)
	if err != nil {
		u.cfg.Log.Error("a request of another node cannot be read: initiators of that node are told to try again",
			"lun", u.cfg.Identity.Name, "node", node, "error", err)
		return nil, fmt.Errorf("%w: %w", block.ErrUnavailable, err)
	}
	access := u.cfg.Access()
	if access.LocalState() != ActiveOptimized {
		return nil, block.ErrNotOwner
	}
	p := &reply{}
	switch a.kind {
	case askCommand, askPiece:
		err = u.serveCommand(ctx, a, p)
	case askCancel:
		if p.response = u.serveCancel(ctx, a, p); p.response == FunctionRejected {
			p.verdict = unresolved
		}
	case askManage:
		if u.tooOld(a) {
			p.verdict = tooLate
			break
		}
		before := u.cut()
		before.fence = a.fence
		err = u.manageHere(ctx, a.function, a.operation, before, a.nexus)
		p.response = response(err)
	case askArrive:
		if !u.tooOld(a) { // else the first command does it
			_, err = u.admit(ctx, a)
		}
	case askPurge:
		var n int
		n, err = u.purgeHere(ctx, a.operation, a.fence, a.purge, a.nexus, a.session)
		p.purged = uint32(n)
	}
	if err != nil {
		p.verdict = verdictOf(err)
		if outcome, ok := outcomeOf(err, false, 1).(*Sense); ok {
			p.status, p.sense = StatusCheckCondition, outcome
		} else {
			p.status = StatusBusy
		}
	}
	p.ticket, p.version = u.now(), u.cfg.Backend.State().Version
	return p.encode(), nil
}

// verdictOf says what an error means to the node that asked; answered if it is an outcome for the initiator.
func verdictOf(err error) verdict {
	switch {
	case errors.Is(err, senseTransition), errors.Is(err, block.ErrNotOwner), errors.Is(err, block.ErrUnavailable), errors.Is(err, block.ErrClosed):
		return nothingDone
	case errors.Is(err, block.ErrUnknown), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return unresolved
	}
	return answered
}

// tooOld says whether what is asked for was accepted longer ago than askFor, or cannot be shown not to have been.
func (u *Unit) tooOld(a *ask) bool {
	now := u.now()
	if a.ticket.process != now.process || a.ticket.stamp > now.stamp || a.elapsed > askFor {
		return true
	}
	return time.Duration(now.stamp-a.ticket.stamp)+a.elapsed > askFor
}

// serveCommand carries out a command of another node's nexus.
func (u *Unit) serveCommand(ctx context.Context, a *ask, p *reply) error {
	n := &Nexus{Initiator: a.nexus.Initiator, ISID: a.nexus.ISID, Port: a.nexus.Port}
	t := u.peers.target
	t.attach(n, a.session)
	defer t.discard(n)
	task := &Task{
		Nexus: n, CDB: a.cdb, DataOut: a.dataOut, ExpectedIn: int(a.expectedIn), ExpectedOut: int(a.expectedOut),
		Fence: a.fence, Buffers: plainBuffers{},
	}
	r := &request{Task: task, target: t, set: t.units.Load(), unit: u, cmd: find(&task.CDB), operation: a.operation, remote: true}
	r.ctx, r.cancel = context.WithCancel(ctx)
	defer r.cancel()
	if r.cmd == nil {
		return block.ErrUnavailable // a newer program asks; its initiators are told to try again
	}
	if u.tooOld(a) {
		// Seen to below.
	} else if ok, err := u.admit(ctx, a); err != nil {
		return err
	} else if !ok {
		p.status = StatusBusy // not "too late", which may be asked for again
		return nil
	}
	if late := u.peers.enter(u, a, r); late != answered {
		p.verdict = late
		if late == tooLate && r.cmd.access == throughOwner {
			// Too late to do it, but it may have been done. A node that is not the owner any more could not tell.
			if err := u.cfg.Backend.Confirm(ctx); err != nil {
				return err
			}
			if u.standing().applied(a.operation) {
				p.verdict = answered
			}
		}
		return nil
	}
	err := errPanic
	func() {
		defer func() { u.peers.leave(u, a.operation, r, err, p) }() // also when the command panics
		err = r.run()
	}()
	return nil
}

// answer writes the outcome of a command into the reply.
func (r *request) answer(err error, p *reply) {
	if r.aborted && !r.unsure {
		p.verdict = endedEarly
		return
	}
	if v := verdictOf(err); err != nil && v != answered {
		p.verdict = v
		return
	}
	p.transferIn, p.transferOut = r.TransferIn, r.TransferOut
	outcome := outcomeOf(err, false, r.blockSectors())
	if outcome == nil {
		p.status, p.dataIn = r.Status, r.DataIn
		return
	}
	p.transferIn = 0
	var sense *Sense
	var status statusError
	switch {
	case errors.As(outcome, &sense):
		p.status, p.sense = StatusCheckCondition, sense
	case errors.As(outcome, &status):
		p.status = Status(status)
	}
}

// enter admits a command, or says why not.
func (w *peerWork) enter(u *Unit, a *ask, r *request) verdict {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.running[a.operation] != nil:
		return unresolved // asked for again while it runs
	case u.tooOld(a) || a.ticket.stamp < w.since+uint64(a.elapsed):
		return tooLate
	case a.kind == askPiece && (a.began.process != u.process || w.since != 0 && a.began.stamp <= w.since):
		return tooLate // the copy ended with the other tasks
	case len(w.running) >= maxPeerTasks:
		return nothingDone
	}
	if _, refused := w.refused[a.operation]; refused || w.replaced(portOf(a.nexus, u.targetBits()), a) {
		return tooLate
	}
	r.era = u.era.Load()
	if r.begin() != StatusGood {
		return endedEarly
	}
	w.running[a.operation] = r
	return answered
}

// leave ends a command and writes its outcome into the reply.
func (w *peerWork) leave(u *Unit, operation uint64, r *request, err error, p *reply) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.running, operation)
	r.aborted = r.finish(err)
	r.answer(err, p)
	if r.comparesAndWrites() { // of changes the state tells, see applied
		now := u.now().stamp
		old := 0
		for old < len(w.ended) && (len(w.ended)-old >= maxPeerEnded || now-w.ended[old].at > uint64(peerEndedFor)) {
			w.forgot = w.ended[old].at + 1
			old++
		}
		w.ended = append(slices.Delete(w.ended, 0, old), endedCommand{operation, now, *p, r.unsure || p.verdict == unresolved})
	}
}

// serveCancel ends the command of an operation and waits for that, or sees to it that it never begins. FunctionComplete: it has done nothing and never
// will; functionOutcome: it has ended as the reply says; TaskDoesNotExist: it has ended, or had before, and may have been done; FunctionRejected:
// neither is certain.
func (u *Unit) serveCancel(ctx context.Context, a *ask, p *reply) FunctionResponse {
	w := &u.peers
	w.mu.Lock()
	r := w.running[a.operation]
	w.mu.Unlock()
	if r != nil {
		if err := await(ctx, w.target.mark(func(_ *Nexus, o *request) bool { return o == r }, fateAborted)); err != nil {
			return FunctionRejected
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range slices.Backward(w.ended) {
		switch {
		case e.operation != a.operation:
			continue
		case e.unsure:
			return TaskDoesNotExist
		case e.outcome.verdict != answered:
			return FunctionComplete
		}
		*p = e.outcome
		return functionOutcome
	}
	switch {
	case w.running[a.operation] != nil:
		return FunctionRejected // it has begun meanwhile
	case r != nil:
		return TaskDoesNotExist
	}
	w.refuse(a.operation, u.now().stamp)
	if a.cdb[0] == opCompareAndWrite && a.ticket.process == u.process && a.ticket.stamp >= w.forgot {
		return FunctionComplete // nobody else takes this ticket, and here it would be known
	}
	return TaskDoesNotExist
}

// refuse remembers an operation that must not begin. The caller holds mu.
func (w *peerWork) refuse(operation, stamp uint64) {
	now := time.Now()
	if len(w.refused) >= maxPeerRefused {
		for op, at := range w.refused {
			if now.Sub(at) > 2*askFor { // older than anything that could still be let in
				delete(w.refused, op)
			}
		}
	}
	if len(w.refused) >= maxPeerRefused {
		w.since = stamp // everything that is on its way now is refused instead
		return
	}
	w.refused[operation] = now
}

// applied says whether the change of an operation is part of the state.
func (s *standing) applied(operation uint64) bool {
	for _, op := range s.state.done {
		if op == operation {
			return true
		}
	}
	return false
}

// plainBuffers lends memory for the answers to other nodes, which the number of tasks bounds.
type plainBuffers struct{}

func (plainBuffers) Get(_ context.Context, n int) []byte { return make([]byte, n) }
func (plainBuffers) Put([]byte)                          {}

// named returns the nexus another node's command came through, or this node's own.
func (n *Nexus) named(name reserve.Nexus) bool { return n.units.name == name }
