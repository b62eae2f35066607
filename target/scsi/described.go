package scsi

import "maps"

// When INQUIRY answers something else.
//
// A unit's INQUIRY data and vital product data never change while it exists: they follow from its Identity and UnitConfig, and those of
// a session (target, port) from the login. What a newer program answers is seen by nobody before it has logged in again, which unit
// attention 29/00 tells. But a number of a target can come to stand for another unit while sessions go on, and to a host that has a disk
// under that number its INQUIRY data have changed then: only 3F/03 makes Linux and Windows look at what it is before they go on writing.
// So every nexus that was there before hears it once, whether it has used the number or not. A unit that comes back as it was, because
// its node took it up again, has not changed.

// described is what INQUIRY and the vital product data pages tell of a unit, as far as two units of a target can differ in it.
type described struct {
	identity             Identity // without Name, which no initiator sees
	logicalBlockBytes    int      // block limits
	maxTransferBytes     int64    // block limits
	explicit, thresholds bool     // standard data (TPGS), logical block provisioning (THRESHOLD EXPONENT)
}

func describe(cfg *UnitConfig) described {
	d := described{
		identity: cfg.Identity, logicalBlockBytes: cfg.Backend.Geometry().LogicalBlockBytes, maxTransferBytes: cfg.MaxTransferBytes,
		explicit: cfg.SetPreferred != nil, thresholds: cfg.Space != nil,
	}
	d.identity.Name = ""
	return d
}

// sameAs says whether another unit, nil for none, is of the same LUN.
func (u *Unit) sameAs(other *Unit) bool {
	return other != nil && u.described.identity == other.described.identity
}

// next returns a copy of the set for the next change, in which u, nil for none, stands under a number. One that takes the place of another that
// tells the same changes nothing that is reported.
func (s *unitSet) next(lun uint16, u *Unit) *unitSet {
	n := &unitSet{byLUN: maps.Clone(s.byLUN), version: s.version, was: s.was, renewed: s.renewed}
	if old := s.byLUN[lun]; old == nil || u == nil || old.described != u.described {
		n.version++
	}
	if n.byLUN == nil {
		n.byLUN = map[uint16]*Unit{}
	}
	if u == nil {
		delete(n.byLUN, lun)
		return n
	}
	n.byLUN[lun] = u
	before, known := s.was[lun]
	if known && before == u.described {
		return n
	}
	n.was = with(s.was, lun, u.described)
	if known {
		n.renewed = with(s.renewed, lun, n.version)
	}
	return n
}

func with[V any](m map[uint16]V, k uint16, v V) map[uint16]V {
	c := maps.Clone(m)
	if c == nil {
		c = map[uint16]V{}
	}
	c[k] = v
	return c
}

// renewed notes in v, the nexus' view of the unit that a LUN field addresses, that the number has come to stand for other INQUIRY data since
// the nexus was last told, or since its login. The caller holds mu.
func (n *nexusUnits) renewed(v *lunView, field uint64, set *unitSet) {
	lun, _ := decodeLUN(field)
	at := set.renewed[lun]
	if at <= n.joined || at <= n.heard[lun] {
		return
	}
	if n.heard == nil {
		n.heard = map[uint16]uint64{}
	}
	n.heard[lun] = at
	v.pending |= attendInquiry
}
