package reserve

import (
	"slices"
)

// Action is a service action of PERSISTENT RESERVE OUT (SPC-4 r37 §6.16.2).
type Action uint8

// The service actions.
const (
	Register          Action = 0
	ReserveAction     Action = 1
	ReleaseAction     Action = 2
	Clear             Action = 3
	Preempt           Action = 4
	PreemptAndAbort   Action = 5
	RegisterAndIgnore Action = 6
	RegisterAndMove   Action = 7
)

// Port is an initiator port named by a TransportID.
type Port struct {
	Initiator string
	ISID      [6]byte
}

// Request is a PERSISTENT RESERVE OUT command, read by ParseOut.
type Request struct {
	Action     Action
	Scope      uint8 // 0 is the logical unit, the only scope there is
	Type       Type  // as in the CDB, perhaps invalid
	Key        uint64
	ServiceKey uint64
	Persist    bool   // APTPL
	AllPorts   bool   // ALL_TG_PT
	Specified  bool   // SPEC_I_PT
	Ports      []Port // the TransportIDs of SPEC_I_PT, or the one of REGISTER AND MOVE
	Unregister bool   // UNREG of REGISTER AND MOVE
	TargetPort uint16 // RELATIVE TARGET PORT IDENTIFIER of REGISTER AND MOVE
}

// Out carries out a request that came from a nexus. ports are the relative identifiers of all target ports of the unit.
// Every service action but the two that register compares the key first, and refuses with ErrConflict.
func (t Table) Out(from Nexus, r *Request, ports []uint16) (Change, error) {
	if t.legacy != nil {
		return Change{}, ErrConflict
	}
	if r.Action == Register || r.Action == RegisterAndIgnore {
		return t.register(from, r, ports)
	}
	at := t.find(from)
	if at < 0 || t.registrations[at].Key != r.Key {
		return Change{}, ErrConflict
	}
	switch r.Action {
	case ReserveAction:
		return t.reserve(from, r)
	case ReleaseAction:
		return t.release(from, r)
	case Clear:
		return t.clear(from), nil
	case Preempt, PreemptAndAbort:
		return t.preempt(from, r)
	case RegisterAndMove:
		return t.move(from, r, ports)
	}
	return Change{}, errInvalidCDB
}

// register is REGISTER and REGISTER AND IGNORE EXISTING KEY (SPC-4 r37 §5.13.7, tables 67 and 68), for every nexus concerned
// or for none.
func (t Table) register(from Nexus, r *Request, ports []uint16) (Change, error) {
	at := t.find(from)
	if r.Action == Register {
		switch {
		case at < 0 && r.Key != 0, at >= 0 && t.registrations[at].Key != r.Key:
			return Change{}, ErrConflict
		case r.Specified && at >= 0:
			return Change{}, errInvalidList
		}
	}
	if at < 0 && r.ServiceKey == 0 {
		return Change{Table: t}, nil // "do nothing except return GOOD status", whatever else is in the list
	}
	targets := []uint16{from.Port}
	if r.AllPorts {
		targets = slices.Compact(slices.Sorted(slices.Values(append(slices.Clone(ports), from.Port))))
	}
	before := t
	c := Change{Table: t.with()}
	for _, port := range targets {
		n := Nexus{from.Initiator, from.ISID, port}
		if r.Action == Register {
			// As if the command had come through each target port; but one that is not registered, though the nexus the command came through is, has been
			// added since: a node has got a copy.
			if i := before.find(n); i >= 0 && before.registrations[i].Key != r.Key {
				return Change{}, ErrConflict
			}
		}
		c.registerOne(n, from, r.ServiceKey)
	}
	for _, p := range r.Ports {
		for _, port := range targets {
			n := Nexus{p.Initiator, p.ISID, port}
			if n == from {
				continue
			}
			if before.find(n) >= 0 {
				// Table 67 registers the unregistered ones only: another's key is not replaced behind its back.
				return Change{}, errInvalidList
			}
			c.registerOne(n, from, r.ServiceKey)
		}
	}
	c.Table.generation++
	c.Table.persist = r.Persist
	c.forgetUnregistered()
	return before.bounded(c)
}

// forgetUnregistered drops what the change would tell a nexus about the reservation that has lost its registration as well.
func (c *Change) forgetUnregistered() {
	c.Attentions = slices.DeleteFunc(c.Attentions, func(a Attention) bool {
		return a.Code == ReservationsReleased && c.Table.find(a.Nexus) < 0
	})
}

// registerOne gives n the key, or removes its registration if the key is 0.
func (c *Change) registerOne(n, from Nexus, key uint64) {
	t := &c.Table
	at := t.find(n)
	switch {
	case key == 0 && at < 0:
		return
	case key == 0:
		c.unregister(n, from)
	case at < 0:
		t.registrations = append(t.registrations, Registration{n, key})
	default:
		t.registrations[at].Key = key
	}
	c.Changed = true
}

// unregister removes n (SPC-4 r37 §5.13.11.2.3 "unregistering"). A reservation that n held ends; one of all registrants ends
// with the last of them. Registered nexuses are told if the reservation gave them access.
func (c *Change) unregister(n, from Nexus) {
	t := &c.Table
	kind, held := t.kind, t.Holds(n)
	t.registrations = slices.Delete(t.registrations, t.find(n), t.find(n)+1)
	if !held || kind.AllRegistrants() && len(t.registrations) > 0 {
		return
	}
	t.kind, t.holder = None, Nexus{}
	if kind.forRegistrants() {
		c.tell(from, ReservationsReleased)
	}
}

// tell establishes a unit attention for every registered nexus except one.
func (c *Change) tell(except Nexus, code uint16) {
	for _, r := range c.Table.registrations {
		if r.Nexus != except {
			c.Attentions = append(c.Attentions, Attention{r.Nexus, code})
		}
	}
}

// reserve is RESERVE (SPC-4 r37 §5.13.9). Asking again for what one holds is GOOD.
func (t Table) reserve(from Nexus, r *Request) (Change, error) {
	switch {
	case r.Scope != 0 || !r.Type.valid():
		return Change{}, errInvalidCDB
	case t.kind != None && (!t.Holds(from) || t.kind != r.Type):
		return Change{}, ErrConflict
	case t.kind != None:
		return Change{Table: t}, nil
	}
	t.hold(from, r.Type)
	return Change{Table: t, Changed: true}, nil
}

// hold makes from the holder of a reservation.
func (t *Table) hold(from Nexus, kind Type) {
	t.kind, t.holder = kind, from
	if kind.AllRegistrants() {
		t.holder = Nexus{}
	}
}

// release is RELEASE (SPC-4 r37 §5.13.11.2.2). It is GOOD without effect for who holds nothing.
func (t Table) release(from Nexus, r *Request) (Change, error) {
	switch {
	case t.kind == None || !t.Holds(from):
		return Change{Table: t}, nil
	case r.Scope != 0 || r.Type != t.kind:
		return Change{}, errBadRelease
	}
	kind := t.kind
	t.kind, t.holder = None, Nexus{}
	c := Change{Table: t, Changed: true}
	if kind.forRegistrants() {
		c.tell(from, ReservationsReleased)
	}
	return c, nil
}

// clear is CLEAR (SPC-4 r37 §5.13.11.2.7). from may be no nexus at all: then everyone is told.
func (t Table) clear(from Nexus) Change {
	c := Change{Table: t, Changed: true}
	c.tell(from, ReservationsPreempted)
	c.Table.registrations, c.Table.kind, c.Table.holder = nil, None, Nexus{}
	c.Table.generation++
	return c
}

// preempt is PREEMPT and PREEMPT AND ABORT (SPC-4 r37 §5.13.11.2.4 to 2.6, table 72).
func (t Table) preempt(from Nexus, r *Request) (Change, error) {
	takes := false // the reservation, not only registrations
	switch {
	case r.ServiceKey == 0:
		if !t.kind.AllRegistrants() {
			return Change{}, errInvalidList
		}
		takes = true
	case t.kind != None && !t.kind.AllRegistrants():
		takes = t.registrations[t.find(t.holder)].Key == r.ServiceKey
	}
	if takes && (r.Scope != 0 || !r.Type.valid()) {
		return Change{}, errInvalidCDB
	}
	victim := func(x Registration) bool {
		return r.ServiceKey == 0 && x.Nexus != from || r.ServiceKey != 0 && x.Key == r.ServiceKey
	}
	if r.ServiceKey != 0 && !slices.ContainsFunc(t.registrations, victim) {
		return Change{}, ErrConflict
	}
	c := Change{Table: t.with(), Changed: true}
	c.Table.generation++
	var kept []Registration
	for _, x := range t.registrations {
		if !victim(x) {
			kept = append(kept, x)
			continue
		}
		if r.Action == PreemptAndAbort {
			c.Abort = append(c.Abort, x.Nexus)
		}
		switch {
		case x.Nexus != from:
			c.Attentions = append(c.Attentions, Attention{x.Nexus, RegistrationsPreempted})
		case takes:
			kept = append(kept, x) // who takes the reservation keeps its registration
		}
	}
	c.Table.registrations = kept
	switch {
	case takes:
		c.Table.hold(from, r.Type)
		if t.kind != r.Type {
			// SPC-4 r37 §5.13.11.2.4.3: those who keep their registration are told that the old reservation is gone.
			c.tell(from, ReservationsReleased)
		}
	case t.kind.AllRegistrants() && len(kept) == 0:
		c.Table.kind = None // the last of its holders is gone
	}
	return c, nil
}

// move is REGISTER AND MOVE (SPC-4 r37 §5.13.8).
func (t Table) move(from Nexus, r *Request, ports []uint16) (Change, error) {
	if t.kind == None {
		return Change{}, errInvalidCDB
	}
	if t.kind.AllRegistrants() || !t.Holds(from) {
		return Change{}, ErrConflict
	}
	if r.ServiceKey == 0 || len(r.Ports) != 1 || !slices.Contains(ports, r.TargetPort) {
		return Change{}, errInvalidList
	}
	if r.Ports[0] == (Port{from.Initiator, from.ISID}) {
		return Change{}, errInvalidList // also through another target port
	}
	to := Nexus{r.Ports[0].Initiator, r.Ports[0].ISID, r.TargetPort}
	before := t
	c := Change{Table: t.with()}
	c.registerOne(to, from, r.ServiceKey)
	c.Table.holder = to
	if r.Unregister {
		at := c.Table.find(from)
		c.Table.registrations = slices.Delete(c.Table.registrations, at, at+1)
	}
	c.Table.generation++
	c.Table.persist = r.Persist
	return before.bounded(c)
}

// bounded refuses a change that would not fit into MaxBytes. A table grows by registrations only.
func (t *Table) bounded(c Change) (Change, error) {
	if size := c.Table.size(); size > MaxBytes && size > t.size() {
		return Change{}, errNoSpaceForKey
	}
	return c, nil
}

// Purge removes the registrations an operator chooses, as PREEMPT would: those who lose one are told so, and if the
// reservation ends with it, those who keep theirs are told that. It may also end a reservation by RESERVE.
func (t Table) Purge(chosen func(Registration) bool, legacy bool) Change {
	c := Change{Table: t.with()}
	for _, x := range t.registrations {
		if !chosen(x) {
			continue
		}
		c.unregister(x.Nexus, Nexus{})
		c.Attentions = append(c.Attentions, Attention{x.Nexus, RegistrationsPreempted})
		c.Abort = append(c.Abort, x.Nexus)
		c.Changed = true
	}
	if c.Changed {
		c.Table.generation++
		c.forgetUnregistered()
	}
	if legacy && t.legacy != nil {
		c.Table.legacy, c.Changed = nil, true
	}
	return c
}

// ClearAll removes everything, as CLEAR would, for an operator.
func (t Table) ClearAll() Change {
	if t.Empty() {
		return Change{Table: t}
	}
	c := t.clear(Nexus{})
	c.Table.legacy = nil
	return c
}
