package reserve

// Class is what a command has to do with reservations; the rows of SPC-4 r37 table 65 and SBC-3 r36 table 13 that are alike.
type Class uint8

// The zero Class is the strictest of those that have no rules of their own, so that what is not placed is not let through.
const (
	// Changes: only by those the reservation gives access: WRITE and all else that changes the medium, SYNCHRONIZE CACHE,
	// MODE SELECT, EXTENDED COPY, SET TARGET PORT GROUPS.
	Changes Class = iota
	// Reads: also allowed where only writing is exclusive: READ, VERIFY, PRE-FETCH, GET LBA STATUS, MODE SENSE, the REPORT
	// SUPPORTED commands.
	Reads
	// Asks: allowed under every persistent reservation, not while another nexus has reserved with RESERVE: TEST UNIT READY,
	// LOG SENSE, START STOP UNIT that starts, RECEIVE COPY RESULTS.
	Asks
	// Describes: allowed always, also while another nexus has reserved with RESERVE: INQUIRY, REPORT LUNS, REQUEST SENSE,
	// READ CAPACITY, REPORT TARGET PORT GROUPS.
	Describes
	// Reserves: PERSISTENT RESERVE IN and OUT. OUT has rules of its own beyond this; both conflict with any RESERVE.
	Reserves
	// ReservesLegacy: RESERVE and RELEASE, (6) and (10), which have rules of their own.
	ReservesLegacy
)

// Classes is a set of classes.
type Classes uint8

// Allow says whether a command of class c may run.
func (s Classes) Allow(c Class) bool { return s>>c&1 != 0 }

// Everything is what a unit without reservations allows.
const Everything = Classes(1<<Describes | 1<<Asks | 1<<Reads | 1<<Changes | 1<<Reserves | 1<<ReservesLegacy)

// Allowed returns what commands of n the reservations allow; all others end in RESERVATION CONFLICT.
func (t *Table) Allowed(n Nexus) Classes {
	const always = Classes(1<<Describes | 1<<ReservesLegacy)
	switch {
	case t.legacy != nil && t.legacy.By != n:
		return always
	case t.legacy != nil:
		// SPC-2 r20 §5.5.1: the two kinds exclude each other, also for the nexus that holds the one.
		return Everything &^ (1 << Reserves)
	case t.kind == None, t.Holds(n), t.kind.forRegistrants() && t.find(n) >= 0:
		return Everything
	case t.kind.writeExclusive():
		return always | 1<<Asks | 1<<Reads | 1<<Reserves
	}
	return always | 1<<Asks | 1<<Reserves
}

// Reserve is RESERVE (6) and (10) for a whole unit. session is kept in Legacy.
//
// Compatible reservation handling (SPC-4 r37 §5.13.3): a nexus that a persistent reservation gives access is told GOOD, and
// nothing changes. Any other conflicts as soon as anyone has registered (SPC-2 r20 §5.5.1).
func (t Table) Reserve(from Nexus, session uint64) (Change, error) {
	switch {
	case t.compatible(from):
		return Change{Table: t}, nil
	case len(t.registrations) > 0, t.legacy != nil && t.legacy.By != from:
		return Change{}, ErrConflict
	case t.legacy != nil && t.legacy.Session == session:
		return Change{Table: t}, nil
	}
	t.legacy = &Legacy{By: from, Session: session}
	return t.bounded(Change{Table: t, Changed: true})
}

// Release is RELEASE (6) and (10) for a whole unit. A nexus that holds nothing is told GOOD, and nothing changes.
func (t Table) Release(from Nexus) (Change, error) {
	switch {
	case t.compatible(from):
		return Change{Table: t}, nil
	case len(t.registrations) > 0:
		return Change{}, ErrConflict
	case t.legacy == nil || t.legacy.By != from:
		return Change{Table: t}, nil
	}
	return t.Drop(), nil
}

// compatible says whether RESERVE and RELEASE of the nexus are GOOD without effect.
func (t *Table) compatible(n Nexus) bool {
	return t.Holds(n) || t.kind.forRegistrants() && t.find(n) >= 0
}

// Drop ends a reservation by RESERVE, as a reset of the unit or the loss of its session does. No unit attention tells of it.
func (t Table) Drop() Change {
	changed := t.legacy != nil
	t.legacy = nil
	return Change{Table: t, Changed: changed}
}
