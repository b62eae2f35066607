package scsi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/target/reserve"
)

// A session that takes another's place on another node.
//
// An initiator that has lost its connection to one node may log in at another, and from then on nothing may land that it had sent
// before. To iSCSI these are two sessions, since each node is a target portal group of its own, and an initiator may use one ISID
// for both and keep both (RFC 7143 §4.4.3): so the old session is not ended, but its tasks are. Those that run are cancelled and
// waited for, those whose data is coming do not begin; an initiator that still listens gets BUSY for them and sends them again.
//
// The node of the login does that for its own tasks, and asks the owner for the others. If the owner cannot be reached, it does it
// before the first command of the new session: it knows which sessions it has seen. What other nodes have accepted by then and
// not asked for yet, the owner refuses by its age. What they hold, or still take the data of, until they own the LUN themselves, nobody
// can reach for certain: so the owner puts an entry into the LUN's log that changes nothing (fenceOff). Whoever owns the LUN later has that
// entry, and finds what it accepted before it fenced (block.ErrFenced). Without an owner there is no entry, and need be none: whoever
// becomes the owner begins with one, and ends what it has itself when the new session's first command comes to it.

const (
	// reinstateFor is how long a login waits for the owner. One that cannot be reached is noticed sooner.
	reinstateFor    = 5 * time.Second
	maxPortSessions = 32 // of one initiator port that a node knows; beyond them, all count as new again
	maxPorts        = 4096
)

// initiatorPort is what two sessions must have in common for one to take the other's place: initiator, ISID and target, which is
// told by the bits its ports have of their own.
type initiatorPort struct {
	initiator string
	isid      [6]byte
	target    uint16
}

// portSession is a session of an initiator port, and when it was first seen, by this node's clock: what others of the port had
// accepted before is refused.
type portSession struct{ session, since uint64 }

// targetBits returns the bits of a relative target port identifier that tell the unit's targets apart.
func (u *Unit) targetBits() (bits uint16) {
	for _, t := range u.targets() {
		bits |= t.cfg.Ports
	}
	return bits
}

// portOf returns the initiator port of a nexus.
func portOf(n reserve.Nexus, targetBits uint16) initiatorPort {
	return initiatorPort{n.Initiator, n.ISID, n.Port & targetBits}
}

// Reinstate implements Executor.
func (t *Target) Reinstate(ctx context.Context, n *Nexus) error {
	return onEach(maps.Values(t.units.Load().byLUN), "the reinstatement of a session", func(u *Unit) error { return u.reinstate(ctx, n) })
}

func (u *Unit) reinstate(ctx context.Context, n *Nexus) error {
	accepted := time.Now()
	if err := u.arrive(ctx, n.units.name, n.units.session); errors.Is(err, errNotFenced) {
		// Nor will this node serve a read before it has its quorum back, and with it the entry.
		u.cfg.Log.Debug("a login is not in the LUN's log", "lun", u.cfg.Identity.Name, "initiator", n.Initiator, "error", err)
	} else if err != nil {
		return err
	}
	access := u.cfg.Access()
	if access.LocalState() == ActiveOptimized || !access.owned() || u.cfg.AskOwner == nil {
		return nil
	}
	asking, cancel := context.WithTimeout(ctx, reinstateFor)
	defer cancel()
	if _, err := u.ask(asking, &ask{kind: askArrive, nexus: n.units.name, session: n.units.session}, accepted); err != nil {
		u.cfg.Log.Debug("the owner was not told of a login: it will find out with the first command", "lun", u.cfg.Identity.Name,
			"initiator", n.Initiator, "error", err)
	}
	return ctx.Err()
}

// errNotFenced: the tasks on this node have ended, but the LUN's log does not say so.
var errNotFenced = errors.New("no entry in the log")

// fenceOff returns when the LUN's log has an entry that is newer than the call. This node owns the LUN.
func (u *Unit) fenceOff(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, reinstateFor)
	defer cancel()
	fence, now := u.cfg.Backend.Fence(), u.cfg.Backend.State()
	// The same state as before. If it is not current any more, somebody else has just made that entry.
	if _, err := u.cfg.Backend.SwapState(ctx, fence, now.Version, now.Blob); err != nil && !errors.Is(err, block.ErrStale) {
		return fmt.Errorf("%w: %w", errNotFenced, err)
	}
	return nil
}

// arrive ends what this node has accepted from other sessions of the same initiator port, unless the session is known, and returns
// when that has ended; on the owner also what other nodes have accepted, should they own the LUN later.
func (u *Unit) arrive(ctx context.Context, name reserve.Nexus, session uint64) error {
	bits := u.targetBits()
	port, w := portOf(name, bits), &u.peers
	w.mu.Lock()
	known := func(p portSession) bool { return p.session == session }
	if slices.ContainsFunc(w.ports[port], known) {
		w.mu.Unlock()
		return nil
	}
	since := u.now().stamp
	if len(w.ports) >= maxPorts || len(w.ports[port]) >= maxPortSessions {
		clear(w.ports)
		w.since = since // what they would have refused
	}
	era := u.era.Add(1) - 1
	w.ports[port] = append(w.ports[port], portSession{since: since}) // of no session yet: the next command does it again
	w.mu.Unlock()
	running, _ := u.endTasks(func(n *Nexus) bool {
		return n.units.session != session && portOf(n.units.name, bits) == port
	}, ending{era: era, busy: true}, nil)
	// What became of one that has ended matters to nobody here: what it had proposed comes before the entry below or never, and what an owner
	// is still at is ended by that owner, before it takes the new session's first command.
	if err := await(ctx, running); err != nil && !errors.Is(err, errUnsure) {
		return err
	}
	if access := u.cfg.Access(); access.LocalState() == ActiveOptimized {
		if err := u.fenceOff(ctx); err != nil {
			return err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, p := range w.ports[port] {
		if p.session == 0 && p.since == since {
			w.ports[port][i].session = session
			break
		}
	}
	return nil
}

// replaced says whether another session has taken the place of the one that accepted a command. The caller holds w.mu.
func (w *peerWork) replaced(port initiatorPort, a *ask) bool {
	return slices.ContainsFunc(w.ports[port], func(p portSession) bool {
		return p.session != a.session && a.ticket.stamp < p.since+uint64(a.elapsed)
	})
}

// admit is asked before a command of another node begins, and when that node has a login: false if it is from before the login of
// a newer session, and nothing is to be done.
func (u *Unit) admit(ctx context.Context, a *ask) (bool, error) {
	port := portOf(a.nexus, u.targetBits())
	u.peers.mu.Lock()
	late := u.peers.replaced(port, a)
	u.peers.mu.Unlock()
	if late {
		return false, nil
	}
	if err := u.arrive(ctx, a.nexus, a.session); err != nil {
		return false, block.ErrUnavailable
	}
	return true, nil
}
