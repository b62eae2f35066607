// Package reserve is a logical unit's reservations as a pure state machine: persistent reservations (SPC-4 r37 §5.13, §6.15,
// §6.16) and the older RESERVE and RELEASE (SPC-2 r20 §5.5.1, SPC-4 r37 annex on compatible reservation handling).
//
// Invariant: a Table is a value that is never modified. A service action returns another Table together with everything that
// has to follow from it (unit attentions, commands to abort), or a refusal and then nothing has changed.
// It has no goroutine, no clock and no I/O: package scsi replicates the Table, and answers GOOD only after that.
package reserve

import (
	"errors"
	"fmt"
	"slices"
)

// Nexus names an I_T nexus: an initiator port and a target port. Comparable.
type Nexus struct {
	Initiator string  // iSCSI name, 1 to MaxNameBytes bytes, as normalised at login
	ISID      [6]byte // the initiator port within that name
	Port      uint16  // relative target port identifier
}

// String returns the initiator port's name as in SPC-4 r37 §7.6.4.6 and the target port.
func (n Nexus) String() string {
	return fmt.Sprintf("%s,i,0x%012x through port %d", n.Initiator, n.ISID, n.Port)
}

// MaxNameBytes is the longest iSCSI name (RFC 7143 §4.2.7.1).
const MaxNameBytes = 223

// Type is the type of a persistent reservation (SPC-4 r37 table 79, "persistent reservation type codes").
type Type uint8

// The six types. None is no reservation.
const (
	None                           Type = 0
	WriteExclusive                 Type = 1
	ExclusiveAccess                Type = 3
	WriteExclusiveRegistrantsOnly  Type = 5
	ExclusiveAccessRegistrantsOnly Type = 6
	WriteExclusiveAllRegistrants   Type = 7
	ExclusiveAccessAllRegistrants  Type = 8
)

func (t Type) valid() bool {
	return t == WriteExclusive || t == ExclusiveAccess || t >= WriteExclusiveRegistrantsOnly && t <= ExclusiveAccessAllRegistrants
}

// AllRegistrants: every registered nexus holds the reservation.
func (t Type) AllRegistrants() bool {
	return t == WriteExclusiveAllRegistrants || t == ExclusiveAccessAllRegistrants
}

// forRegistrants: every registered nexus has access, whoever holds the reservation.
func (t Type) forRegistrants() bool { return t >= WriteExclusiveRegistrantsOnly }

// writeExclusive: everyone may read.
func (t Type) writeExclusive() bool {
	return t == WriteExclusive || t == WriteExclusiveRegistrantsOnly || t == WriteExclusiveAllRegistrants
}

// String names the type as the standard does.
func (t Type) String() string {
	switch t {
	case None:
		return "none"
	case WriteExclusive:
		return "write exclusive"
	case ExclusiveAccess:
		return "exclusive access"
	case WriteExclusiveRegistrantsOnly:
		return "write exclusive, registrants only"
	case ExclusiveAccessRegistrantsOnly:
		return "exclusive access, registrants only"
	case WriteExclusiveAllRegistrants:
		return "write exclusive, all registrants"
	case ExclusiveAccessAllRegistrants:
		return "exclusive access, all registrants"
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// Registration is a nexus that has registered, with its key, which is never 0.
type Registration struct {
	Nexus Nexus
	Key   uint64
}

// Legacy is a reservation by RESERVE (6) or (10).
type Legacy struct {
	By Nexus
	// Session tells one session of the nexus from the next: the reservation ends with the session that made it.
	Session uint64
}

// Table is a unit's reservations at one moment. The zero Table has none. Copies share memory that is never written to.
type Table struct {
	generation    uint32 // PRGENERATION; wraps around
	persist       bool   // APTPL of the last registration
	registrations []Registration
	kind          Type
	holder        Nexus // unless kind is None or one of all registrants
	legacy        *Legacy
}

// Generation returns PRGENERATION.
func (t *Table) Generation() uint32 { return t.generation }

// Registrations returns the registered nexuses, those who came first in front. The slice is the caller's.
func (t *Table) Registrations() []Registration { return slices.Clone(t.registrations) }

// Persists says whether the last registration asked for reservations that survive a loss of power (APTPL). They do in any case.
func (t *Table) Persists() bool { return t.persist }

// Type returns the type of the persistent reservation, None if there is none.
func (t *Table) Type() Type { return t.kind }

// Legacy returns the reservation by RESERVE, nil if there is none.
func (t *Table) Legacy() *Legacy {
	if t.legacy == nil {
		return nil
	}
	l := *t.legacy
	return &l
}

// Holds says whether n holds the persistent reservation.
func (t *Table) Holds(n Nexus) bool {
	switch {
	case t.kind == None:
		return false
	case t.kind.AllRegistrants():
		return t.find(n) >= 0
	}
	return t.holder == n
}

// Empty says whether nothing is reserved or registered.
func (t *Table) Empty() bool { return len(t.registrations) == 0 && t.legacy == nil }

// find returns the index of n's registration, -1 if it has none.
func (t *Table) find(n Nexus) int {
	return slices.IndexFunc(t.registrations, func(r Registration) bool { return r.Nexus == n })
}

// with returns a copy whose registrations may be changed.
func (t Table) with() Table {
	t.registrations = slices.Clone(t.registrations)
	return t
}

// Attention is a unit attention condition that a change causes for one nexus.
type Attention struct {
	Nexus Nexus
	Code  uint16 // additional sense code and qualifier
}

// The unit attention conditions reservations cause.
const (
	ReservationsPreempted  uint16 = 0x2A03
	ReservationsReleased   uint16 = 0x2A04
	RegistrationsPreempted uint16 = 0x2A05
)

// Change is the outcome of a service action.
type Change struct {
	Table      Table
	Changed    bool // Table differs from the one before, and must be kept before GOOD is answered
	Attentions []Attention
	// Abort names nexuses whose commands are to be aborted, without the command that asked for it.
	Abort []Nexus
}

// ErrConflict is the status RESERVATION CONFLICT.
var ErrConflict = errors.New("reservation conflict")

// Refusal is a CHECK CONDITION with sense key ILLEGAL REQUEST.
type Refusal struct {
	Code uint16 // additional sense code and qualifier
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("illegal request, %02X/%02X", r.Code>>8, r.Code&0xFF)
}

// What is refused, and with which code.
var (
	errListLength    = &Refusal{0x1A00} // PARAMETER LIST LENGTH ERROR
	errInvalidCDB    = &Refusal{0x2400} // INVALID FIELD IN CDB
	errInvalidList   = &Refusal{0x2600} // INVALID FIELD IN PARAMETER LIST
	errBadRelease    = &Refusal{0x2604} // INVALID RELEASE OF PERSISTENT RESERVATION
	errNoSpaceForKey = &Refusal{0x5504} // INSUFFICIENT REGISTRATION RESOURCES
)
