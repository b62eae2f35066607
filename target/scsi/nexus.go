package scsi

import (
	"fmt"
	"sync"
	"sync/atomic"

	"sanctuary/blockstore/block"
	"sanctuary/target/reserve"
)

// nexusUnits is what package scsi keeps per nexus: its running tasks and, per LUN, what the initiator has been told.
type nexusUnits struct {
	// mu guards everything below. Held for a few instructions only, never while a command runs.
	mu       sync.Mutex
	attached bool
	first    *request          // running tasks, linked through request.next and prev
	luns     []lunView         // few; searched from the start
	luSet    uint64            // Target.luSet as last told (unit attention 3F/0E)
	joined   uint64            // Target.luSet at the login
	heard    map[uint16]uint64 // by number, unitSet.renewed as last told (3F/03); nil at first
	spare    *request          // ended, for the next commands; linked through request.next
	spares   int
	ended    map[*Unit]ending // units on which tasks were ended; nil at first

	// Set by Attach, constant from then on.
	name    reserve.Nexus
	id      uint64 // nexusID of name
	session uint64 // random, tells this session from others of the same nexus

	stats nexusCounters
}

// lunView is how a nexus last saw a unit. A change is not announced but noticed: the next command compares these with the
// unit's present values, so that nothing need be walked or locked when ownership moves.
type lunView struct {
	unit       *Unit
	pending    attention
	generation uint64      // Access.Generation
	capacity   block.Count // of the Backend
	crossings  crossings   // of thresholds, as last told
	known      *standing   // Unit.standing
	seq        uint64      // number of the newest event of known, or of an older one if known cannot be read
	allowed    reserve.Classes
}

// attention is a set of unit attention conditions; the lowest bit is reported first (SPC-4 r37 §5.17: resets before all others).
type attention uint16

const (
	attendPowerOn attention = 1 << iota
	attendTargetReset
	attendReset
	attendCleared
	attendMode
	attendPreempted
	attendReleased
	attendRegistrations
	attendCapacity
	attendAccess
	attendInquiry
	attendInventory
	attendSpace // and the next bit: one for each of thresholdKinds

	attendResets = attendPowerOn | attendTargetReset | attendReset
)

// attentionSenses is indexed by bit number.
var attentionSenses = [...]*Sense{
	{Key: UnitAttention, Code: 0x2900}, // power on, reset, or bus device reset occurred
	{Key: UnitAttention, Code: codeTargetReset},
	{Key: UnitAttention, Code: codeUnitReset},
	{Key: UnitAttention, Code: codeCleared},
	{Key: UnitAttention, Code: codeModeChanged},
	{Key: UnitAttention, Code: reserve.ReservationsPreempted},
	{Key: UnitAttention, Code: reserve.ReservationsReleased},
	{Key: UnitAttention, Code: reserve.RegistrationsPreempted},
	{Key: UnitAttention, Code: 0x2A09}, // capacity data has changed
	{Key: UnitAttention, Code: 0x2A06}, // asymmetric access state changed
	{Key: UnitAttention, Code: 0x3F03}, // inquiry data has changed
	{Key: UnitAttention, Code: 0x3F0E}, // reported LUNs data has changed
	thresholdReached(0),
	thresholdReached(1),
}

// Codes of unit attentions that events carry (see event); those of reservations are in package reserve.
const (
	codeTargetReset uint16 = 0x2902 // SCSI bus reset occurred: a reset of the target (SAM-5 §6.3.2)
	codeUnitReset   uint16 = 0x2903 // bus device reset function occurred: LOGICAL UNIT RESET (SAM-5 §6.3.3)
	codeCleared     uint16 = 0x2F00 // commands cleared by another initiator
	codeModeChanged uint16 = 0x2A01 // mode parameters changed
)

// attentionFor returns the condition of an event. A code this program does not know becomes the one that covers everything.
func attentionFor(code uint16) attention {
	for i, s := range attentionSenses {
		if s.Code == code {
			return 1 << i
		}
	}
	return attendPowerOn
}

// take removes the first condition of the set and returns its sense, nil if there is none.
func (a *attention) take() *Sense {
	for i, s := range attentionSenses {
		if *a&(1<<i) != 0 {
			*a &^= 1 << i
			if attendResets&(1<<i) != 0 {
				// SPC-4: a reset takes the place of every other reset condition.
				*a &^= attendResets | attendCleared
			}
			return s
		}
	}
	return nil
}

// view returns the nexus' view of u brought up to date with now. The caller holds mu.
func (n *nexusUnits) view(now lunView, luSet uint64) *lunView {
	for i := range n.luns {
		v := &n.luns[i]
		if v.unit != now.unit {
			continue
		}
		if v.generation != now.generation {
			v.pending |= attendAccess
		}
		if v.capacity != now.capacity {
			v.pending |= attendCapacity
		}
		for i := range v.crossings {
			if v.crossings[i] != now.crossings[i] {
				v.pending |= attendSpace << i
			}
		}
		if n.luSet != luSet {
			n.luSet = luSet // reported once per nexus, not once per LUN
			v.pending |= attendInventory
		}
		if v.known != now.known && v.known.version < now.known.version {
			n.notice(v, now.known)
		}
		v.generation, v.capacity, v.crossings = now.generation, now.capacity, now.crossings
		return v
	}
	// Also after the loss of an I_T nexus, for which SAM-5 has 29/07 besides: a node does not know whether the initiator port was there before,
	// here, elsewhere or before a start. 29/00 stands for all of them, and is what Linux looks at the port groups again for (scsi_dh_alua): what
	// has changed while there was no session is told to nobody.
	now.pending = attendPowerOn
	now.seq = now.known.state.seq
	now.allowed = now.known.state.reservations.Allowed(n.name)
	n.luns = append(n.luns, now)
	return &n.luns[len(n.luns)-1]
}

// notice takes in a newer state of the unit: the events the nexus has not seen, and what it may do now.
func (n *nexusUnits) notice(v *lunView, now *standing) {
	v.known = now
	if now.err != nil {
		return
	}
	s := &now.state
	if missed := s.seq - v.seq; missed > uint64(len(s.events)) {
		v.pending |= attendPowerOn // more has happened than is remembered
	} else {
		for _, e := range s.events[len(s.events)-int(missed):] {
			if e.concerns(n.id) {
				v.pending |= attentionFor(e.code)
			}
		}
	}
	v.seq = s.seq
	v.allowed = s.reservations.Allowed(n.name)
}

// attend takes the next unit attention of the nexus for now.unit, which a LUN field addresses in set, nil if there is none, and says what
// commands now.known allows.
func (n *nexusUnits) attend(now lunView, field uint64, set *unitSet) (*Sense, reserve.Classes) {
	n.mu.Lock()
	defer n.mu.Unlock()
	v := n.view(now, set.version)
	if len(set.renewed) > 0 {
		n.renewed(v, field, set)
	}
	return v.pending.take(), v.allowed
}

// inventoried notes that the nexus has just been told which LUNs there are (SPC-4 r37 §6.33: clears 3F/0E on every LUN).
func (n *nexusUnits) inventoried(luSet uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.luSet = luSet
	for i := range n.luns {
		n.luns[i].pending &^= attendInventory
	}
}

// toldAccess notes that the nexus knows the access states of a generation: it has set them itself.
func (n *nexusUnits) toldAccess(u *Unit, generation uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range n.luns {
		if v := &n.luns[i]; v.unit == u {
			v.generation = generation
			v.pending &^= attendAccess
		}
	}
}

// post establishes a unit attention for the nexus on a unit it has already used; one it has not used owes it 29/00 anyway.
// The caller holds mu.
func (n *nexusUnits) post(u *Unit, a attention) {
	for i := range n.luns {
		if n.luns[i].unit == u {
			n.luns[i].pending |= a
		}
	}
}

// forget drops the view of a unit that is gone.
func (n *nexusUnits) forget(u *Unit) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.ended, u)
	for i := range n.luns {
		if n.luns[i].unit == u {
			n.luns = append(n.luns[:i], n.luns[i+1:]...)
			return
		}
	}
}

// introduce fills in what Attach sets.
func (n *Nexus) introduce(session uint64) {
	n.units.name = reserve.Nexus{Initiator: n.Initiator, ISID: n.ISID, Port: n.Port}
	n.units.id = nexusID(n.units.name)
	n.units.session = session
}

func nexusName(n *Nexus) string { return fmt.Sprintf("%s,i,0x%012x", n.Initiator, n.ISID) }

// NexusStats counts what a nexus has done since its login.
type NexusStats struct {
	Commands   uint64 `json:"commands"`
	ReadBytes  uint64 `json:"read_bytes"`  // sent to the initiator
	WriteBytes uint64 `json:"write_bytes"` // taken from the initiator by commands that ended well
	Errors     uint64 `json:"errors"`      // CHECK CONDITION other than unit attentions
	Busy       uint64 `json:"busy"`        // BUSY and TASK SET FULL
	Conflicts  uint64 `json:"conflicts"`   // RESERVATION CONFLICT
	Attentions uint64 `json:"attentions"`  // unit attentions reported
	Aborted    uint64 `json:"aborted"`     // tasks that ended without a response
}

// nexusCounters are the counters behind NexusStats.
type nexusCounters struct {
	commands, readBytes, writeBytes, errors, busy, conflicts, attentions, aborted atomic.Uint64
}

// Stats returns the nexus' counters.
func (n *Nexus) Stats() NexusStats {
	c := &n.units.stats
	return NexusStats{
		Commands: c.commands.Load(), ReadBytes: c.readBytes.Load(), WriteBytes: c.writeBytes.Load(), Errors: c.errors.Load(),
		Busy: c.busy.Load(), Conflicts: c.conflicts.Load(), Attentions: c.attentions.Load(), Aborted: c.aborted.Load(),
	}
}

// count adds a finished task.
func (c *nexusCounters) count(t *Task, outcome error) {
	c.commands.Add(1)
	switch t.Status {
	case StatusGood, StatusConditionMet:
		if len(t.DataIn) > 0 {
			c.readBytes.Add(uint64(len(t.DataIn)))
		}
		if len(t.DataOut) > 0 {
			c.writeBytes.Add(uint64(len(t.DataOut)))
		}
	case StatusTaskAborted:
		c.aborted.Add(1)
	case StatusReservationConflict:
		c.conflicts.Add(1)
	case StatusBusy, StatusTaskSetFull:
		c.busy.Add(1)
	default:
		if s, ok := outcome.(*Sense); ok && s.Key == UnitAttention {
			c.attentions.Add(1)
		} else {
			c.errors.Add(1)
		}
	}
}
