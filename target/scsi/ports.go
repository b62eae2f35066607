package scsi

import (
	"context"
	"encoding/binary"
	"errors"
	"time"
)

// implicitTransitionSeconds is how long an initiator should wait for a transition to end.
const implicitTransitionSeconds = 10

// Bits of a target port group descriptor (SPC-4 r37 §6.37): the states that are supported, and who changed the state. PREF is never
// set: dm-multipath ranks a preferred group above the active one and moves the LUN there as soon as it is back, but where a LUN goes
// after a failover is for the operator to say, because every move is a pause.
const (
	supportsOptimized = 0x01
	supportsOther     = 0x02 // ANO: asking the owner
	supportsStandby   = 0x04
	supportsUnavail   = 0x08
	supportsTransit   = 0x80
	changedExplicitly = 0x01 // by SET TARGET PORT GROUPS
	changedImplicitly = 0x02
)

// reportTargetPortGroups is SPC-4 r37 §6.37, with the extended header if asked for.
func reportTargetPortGroups(r *request) error {
	b := make([]byte, 4, 64)
	if r.CDB[1]>>5 == 1 {
		b = append(b, 0x10, implicitTransitionSeconds, 0, 0)
	}
	supported := byte(supportsTransit | supportsUnavail | supportsStandby | supportsOptimized)
	if r.unit.cfg.AskOwner != nil {
		supported |= supportsOther
	}
	status := byte(changedImplicitly)
	if r.unit.chosen.Load() == r.access.Generation && r.access.Generation != 0 {
		status = changedExplicitly
	}
	for _, g := range r.access.Groups {
		ports := g.Ports[:min(len(g.Ports), 255)]
		b = append(b, byte(g.State)&0x0F, supported, byte(g.ID>>8), byte(g.ID), 0, status, 0, byte(len(ports)))
		for _, p := range ports {
			b = append(b, 0, 0, byte(p>>8), byte(p))
		}
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return r.reply(b, allocation32(r.CDB[6:]))
}

// maxPortGroups bounds the parameter list of SET TARGET PORT GROUPS: one node has one group.
const maxPortGroups = 1024

// portGroupList is the Data-Out of SET TARGET PORT GROUPS; none if it is longer than any list that is read.
func portGroupList(u *Unit, cdb *[16]byte) int64 {
	n := int64(binary.BigEndian.Uint32(cdb[6:]))
	if u.cfg.SetPreferred == nil || n > 4+4*maxPortGroups {
		return 0
	}
	return n
}

var (
	senseSetGroupsFailed = &Sense{Key: HardwareError, Code: 0x670A} // SET TARGET PORT GROUPS COMMAND FAILED
	senseNotSupported    = senseInvalidOpcode
)

// setTargetPortGroups is SET TARGET PORT GROUPS (SPC-4 r37 §6.45). One group may be made active/optimized: the LUN moves to its
// node. For others, standby and active/non-optimized can be asked for if that is what they will be; a group cannot be made
// unavailable, and the LUN's owner cannot be told to step down without saying for whom.
func setTargetPortGroups(r *request) error {
	if r.unit.cfg.SetPreferred == nil {
		return senseNotSupported
	}
	want := int64(binary.BigEndian.Uint32(r.CDB[6:]))
	r.TransferOut = portGroupList(r.unit, &r.CDB)
	switch {
	case want == 0:
		return nil
	case want < 4, want%4 != 0, want > 4+4*maxPortGroups:
		return badField(6, 7) // not PARAMETER LIST LENGTH ERROR
	case int64(r.ExpectedOut) < want:
		return senseBadTransfer
	case int64(len(r.DataOut)) < want:
		return senseShortData
	}
	active, err := r.chosenGroup(r.DataOut[4:want])
	if err != nil {
		return err
	}
	if active == 0 {
		return nil
	}
	if err := r.unit.cfg.SetPreferred(r.ctx, active); err != nil {
		if r.ctx.Err() != nil {
			return r.ctx.Err()
		}
		return errors.Join(senseSetGroupsFailed, err)
	}
	// The one that asked knows; all others get 2A/06.
	now := r.settled(active)
	r.unit.chosen.Store(now.Generation)
	r.Nexus.units.toldAccess(r.unit, now.Generation)
	return nil
}

// settleFor bounds the wait for this node to hear of the move that it has asked for.
const settleFor = 2 * time.Second

// settled returns the access states once the group is active, or after settleFor as they are: the move is under way then, and
// REPORT TARGET PORT GROUPS says how far it is.
func (r *request) settled(active uint16) Access {
	ctx, cancel := context.WithTimeout(r.ctx, settleFor)
	defer cancel()
	for {
		now := r.unit.cfg.Access()
		for _, g := range now.Groups {
			if g.ID == active && g.State == ActiveOptimized {
				return now
			}
		}
		if !pause(ctx, accessPoll) {
			return now
		}
	}
}

// chosenGroup checks the descriptors and returns the group that is to own the LUN; 0 if all is to stay as it is.
func (r *request) chosenGroup(list []byte) (uint16, error) {
	states := map[uint16]AccessState{}
	var owner uint16
	for _, g := range r.access.Groups {
		states[g.ID] = g.State
		if g.State == ActiveOptimized {
			owner = g.ID
		}
	}
	var chosen uint16
	seen := map[uint16]bool{}
	for d := list; len(d) > 0; d = d[4:] {
		id := binary.BigEndian.Uint16(d[2:])
		_, known := states[id]
		switch wanted := AccessState(d[0] & 0x0F); {
		case !known, seen[id], wanted != ActiveOptimized && wanted != ActiveNonOptimized && wanted != Standby:
			return 0, senseInvalidList
		case wanted == ActiveOptimized && chosen != 0:
			return 0, senseInvalidList // one node owns a LUN
		case wanted == ActiveOptimized:
			chosen = id
		}
		seen[id] = true
	}
	for d := list; len(d) > 0; d = d[4:] {
		id, wanted := binary.BigEndian.Uint16(d[2:]), AccessState(d[0]&0x0F)
		switch {
		case wanted == ActiveOptimized:
		case id == owner && chosen == 0:
			return 0, senseInvalidList // whose it should be then is not said
		case id == owner:
			// Which of the two it becomes is not the initiator's to choose.
		case wanted != states[id] && states[id] != Transitioning:
			return 0, senseInvalidList
		}
	}
	if chosen == owner {
		return 0, nil
	}
	return chosen, nil
}
