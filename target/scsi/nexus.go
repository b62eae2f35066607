package scsi

import (
	"fmt"
	"sync"

	"sanctuary/blockstore/block"
)

// nexusUnits is what package scsi keeps per nexus: its running tasks and, per LUN, what the initiator has been told.
type nexusUnits struct {
	// mu guards everything below. Held for a few instructions only, never while a command runs.
	mu       sync.Mutex
	attached bool
	first    *request  // running tasks, linked through request.next and prev
	luns     []lunView // few; searched from the start
	luSet    uint64    // Target.luSet as last told (unit attention 3F/0E)
}

// lunView is how a nexus last saw a unit. A change is not announced but noticed: the next command compares these with the
// unit's present values, so that nothing need be walked or locked when ownership moves.
type lunView struct {
	unit       *Unit
	pending    attention
	generation uint64      // Access.Generation
	capacity   block.Count // of the Backend
	resets     uint64      // Unit.resets
}

// attention is a set of unit attention conditions; the lowest bit is reported first (SPC-4 r37 §5.17: resets before all others).
type attention uint16

const (
	attendPowerOn attention = 1 << iota
	attendReset
	attendCleared
	attendCapacity
	attendAccess
	attendInventory
)

// attentionSenses is indexed by bit number.
var attentionSenses = [...]*Sense{
	{Key: UnitAttention, Code: 0x2900}, // power on, reset, or bus device reset occurred
	{Key: UnitAttention, Code: 0x2903}, // bus device reset function occurred
	{Key: UnitAttention, Code: 0x2F00}, // commands cleared by another initiator
	{Key: UnitAttention, Code: 0x2A09}, // capacity data has changed
	{Key: UnitAttention, Code: 0x2A06}, // asymmetric access state changed
	{Key: UnitAttention, Code: 0x3F0E}, // reported LUNs data has changed
}

// take removes the first condition of the set and returns its sense, nil if there is none.
func (a *attention) take() *Sense {
	for i, s := range attentionSenses {
		if *a&(1<<i) != 0 {
			*a &^= 1 << i
			if i <= 1 {
				// SPC-4: a reset takes the place of every other reset condition.
				*a &^= attendPowerOn | attendReset | attendCleared
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
		if v.resets != now.resets {
			v.pending |= attendReset
		}
		if n.luSet != luSet {
			n.luSet = luSet // reported once per nexus, not once per LUN
			v.pending |= attendInventory
		}
		v.generation, v.capacity, v.resets = now.generation, now.capacity, now.resets
		return v
	}
	now.pending = attendPowerOn
	n.luns = append(n.luns, now)
	return &n.luns[len(n.luns)-1]
}

// attend takes the next unit attention of the nexus for now.unit, nil if there is none.
func (n *nexusUnits) attend(now lunView, luSet uint64) *Sense {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.view(now, luSet).pending.take()
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
	for i := range n.luns {
		if n.luns[i].unit == u {
			n.luns = append(n.luns[:i], n.luns[i+1:]...)
			return
		}
	}
}

func nexusName(n *Nexus) string { return fmt.Sprintf("%s,i,0x%012x", n.Initiator, n.ISID) }
