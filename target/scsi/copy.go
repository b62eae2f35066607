package scsi

import (
	"bytes"
	"encoding/binary"
	"errors"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/target/reserve"
)

// copyUnit is a logical unit that takes part in a copy.
type copyUnit struct {
	unit  *Unit
	geo   block.Geometry
	fence block.Fence
	away  bool   // another node owns it, and is asked for every piece
	began ticket // if away: see begin
}

// copyPiece is the most that is in memory of one copy, in bytes.
const copyPiece = 1 << 20

// copyParameterList is the Data-Out of EXTENDED COPY; 0 if it is longer than any list that is supported.
func copyParameterList(_ *Unit, cdb *[16]byte) int64 {
	n := int64(binary.BigEndian.Uint32(cdb[10:]))
	if n > 16<<10 {
		return 0
	}
	return n
}

// extendedCopy is EXTENDED COPY (LID1) (SPC-4 r37 §6.4, §5.17.7).
//
// Every segment is checked before the first is copied: what can be known to fail does no half of the work. CSCDs are looked up
// only among the LUNs of the target the command came through, so that nobody reaches by its name what he may not see.
func extendedCopy(r *request) error {
	want := int64(binary.BigEndian.Uint32(r.CDB[10:]))
	r.TransferOut = copyParameterList(r.unit, &r.CDB)
	switch {
	case want == 0:
		return nil
	case want < copyHeaderBytes, r.TransferOut == 0:
		return senseListLength
	case int64(r.ExpectedOut) < want:
		return senseBadTransfer
	case int64(len(r.DataOut)) < want:
		return senseShortData
	}
	list, err := parseCopyList(r.DataOut[:want])
	if err != nil {
		return err
	}
	record, err := r.unit.copied.begin(r, &list)
	if err != nil {
		return err
	}
	if !r.unit.copies.enter() {
		record.forget()
		return statusError(StatusTaskSetFull)
	}
	defer r.unit.copies.leave()
	err = r.copySegments(&list, record)
	if r.worthWaiting(err) { // nothing has been done: the command may come again
		record.forget()
		return err
	}
	record.end(r, err)
	return err
}

// copySegments resolves and carries out all segments in order.
func (r *request) copySegments(list *copyList, record *copyRecord) error {
	var units copyUnits
	moves := make([]move, 0, len(list.segments))
	defer r.reach(nil)
	for i := range list.segments {
		m, err := list.segments[i].resolve(i, func(id uint16) (*copyUnit, uint16) { return units.find(r, list, id) })
		if err != nil {
			return err
		}
		moves = append(moves, m)
	}
	// From here on what ends the tasks of a unit ends the copy too; what arrived before that, reachable refuses.
	r.reach(units.known)
	for i := range moves {
		m := &moves[i]
		if err := m.from.mayUse(r, reserve.Reads, m.number, 4); err != nil {
			return err
		}
		if err := m.to.mayUse(r, reserve.Changes, m.number, 6); err != nil {
			return err
		}
	}
	for i := range moves {
		if err := r.copyMove(&moves[i], record); err != nil {
			return r.copyError(err, &moves[i], record)
		}
		record.segments.Add(1)
	}
	return nil
}

// copyUnits are the units of one command, by CSCD descriptor ID.
type copyUnits struct {
	known map[uint16]*copyUnit
}

// find returns the unit of a CSCD descriptor ID, or the additional sense code that says why there is none.
func (c *copyUnits) find(r *request, list *copyList, id uint16) (*copyUnit, uint16) {
	if u := c.known[id]; u != nil {
		return u, 0
	}
	unit := r.unit
	if id != cscdSelf {
		if int(id) >= len(list.cscds) {
			return nil, codeUnreachableTarget
		}
		d := &list.cscds[id]
		if d.peripheral != 0 {
			return nil, codeWrongDeviceType
		}
		if unit = d.lookup(r); unit == nil || d.blockBytes != 0 && d.blockBytes != unit.cfg.Backend.Geometry().LogicalBlockBytes {
			return nil, codeNotReachable
		}
	}
	u := &copyUnit{unit: unit, geo: unit.cfg.Backend.Geometry(), fence: r.Fence}
	if unit != r.unit {
		// The fence is as old as this command's beginning, not as its arrival. What lies between is closed by told.
		u.fence = unit.cfg.Backend.Fence()
	}
	if c.known == nil {
		c.known = map[uint16]*copyUnit{}
	}
	c.known[id] = u
	return u, 0
}

// lookup finds the unit an identification descriptor designates: by its NAA designator, the only one of VPD page 83h that
// names a logical unit and fits into the descriptor.
func (d *cscd) lookup(r *request) *Unit {
	if d.null || d.codeSet != codeBinary || d.kind != designatesUnit|typeNAA {
		return nil
	}
	if bytes.Equal(d.designator, r.unit.naa()) {
		return r.unit // also for another node, which sees no other
	}
	for _, u := range r.set.byLUN {
		if bytes.Equal(d.designator, u.naa()) {
			return u
		}
	}
	return nil
}

// maxCopyAge is how long after its arrival a command may begin to change a unit other than the one it was sent to. No LUN
// moves to another node and back within it.
const maxCopyAge = time.Second

// reachable says whether this node may move data of the unit for the nexus, itself or by asking the owner. The unit the command was sent to was looked at
// before it began.
func (c *copyUnit) reachable(r *request) bool {
	if c.unit == r.unit {
		return true
	}
	access := c.unit.cfg.Access()
	if time.Since(r.accepted) >= maxCopyAge || !r.Nexus.units.told(c.unit, access.Generation) {
		return false
	}
	if access.LocalState() == ActiveOptimized {
		return c.unit.uncutSince(r.accepted)
	}
	return c.away || access.owned() && c.begin(r)
}

// told says whether the nexus has used the unit and knows how ownership stands. While it does not, a copy it started earlier may
// be an old duplicate, behind which newer commands went over another path: it is to ask the unit first, as any command would
// make it do.
func (n *nexusUnits) told(u *Unit, generation uint64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range n.luns {
		if v := &n.luns[i]; v.unit == u {
			return v.generation == generation && v.pending&(attendAccess|attendResets) == 0
		}
	}
	return false
}

// uncutSince says whether nothing that ends all tasks of the unit has arrived since a command did: such a copy, if it has not begun
// by then, is as old as those tasks, and the unit had no part in accepting it.
func (u *Unit) uncutSince(accepted time.Time) bool {
	u.peers.mu.Lock()
	defer u.peers.mu.Unlock()
	return u.peers.since == 0 || accepted.Sub(u.made) > time.Duration(u.peers.since)
}

// reach notes the other units a copy uses.
func (r *request) reach(units map[uint16]*copyUnit) {
	n := &r.Nexus.units
	n.mu.Lock()
	defer n.mu.Unlock()
	r.others = nil
	for _, u := range units {
		if u.unit != r.unit {
			r.others = append(r.others, u.unit)
		}
	}
}

// mayUse refuses a unit that this node, or the nexus, may not use as the source or the destination of a segment. field is where
// the segment descriptor names the unit.
func (c *copyUnit) mayUse(r *request, class reserve.Class, number, field int) error {
	if !c.reachable(r) {
		return copyAborted(codeNotReachable, number, field)
	}
	return r.mayUse(c.unit, class)
}

// copyError turns an error in a segment into the end of the command. As long as nothing was written, and no other unit is
// concerned, it is passed on, and the command may be held and tried again; afterwards it must not be: a segment that overlaps
// itself has changed its own source. A copy that is cut short because the tasks of another unit are ended is answered, too.
func (r *request) copyError(err error, m *move, record *copyRecord) error {
	switch {
	case errors.Is(err, block.ErrNoSpace):
		return err // 07/27/07: the host is to find out that space, not the copy, is the matter
	case !record.wrote && didNothing(err) && m.from.unit == r.unit && m.to.unit == r.unit:
		return err
	}
	return copyAborted(codeThirdPartyFailed, m.number, -1)
}

// copyMove copies one segment in pieces: from its end if it would else overwrite what it has yet to read.
func (r *request) copyMove(m *move, record *copyRecord) error {
	if m.source.Count == 0 || m.from.unit == m.to.unit && m.source.Start == m.target {
		return nil
	}
	backward := m.overlaps() && m.target > m.source.Start
	buf := r.Buffers.Get(r.ctx, int(min(m.source.Bytes(), copyPiece)))
	defer r.Buffers.Put(buf)
	for left := m.source; left.Count > 0; {
		if err := r.mayGoOn(m); err != nil {
			return err
		}
		piece := block.Range{Start: left.Start, Count: min(left.Count, block.CountOf(copyPiece))}
		if backward {
			piece.Start = left.Start + block.Sector(left.Count-piece.Count)
		} else {
			n, err := r.copyHole(m, left, record)
			if err != nil {
				return err
			}
			if n > 0 {
				left = block.Range{Start: left.Start + block.Sector(n), Count: left.Count - n}
				continue
			}
			left.Start += block.Sector(piece.Count)
		}
		if err := r.copyBlocks(m, piece, buf, record); err != nil {
			return err
		}
		left.Count -= piece.Count
	}
	return nil
}

// mayGoOn is asked between pieces: a reservation that shuts the copy out, made meanwhile, is answered once it has stopped (Unit.drain).
func (r *request) mayGoOn(m *move) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	if err := r.mayUse(m.from.unit, reserve.Reads); err != nil {
		return err
	}
	return r.mayUse(m.to.unit, reserve.Changes)
}

// at returns where a part of the source goes.
func (m *move) at(part block.Range) block.Range {
	return block.Range{Start: m.target + (part.Start - m.source.Start), Count: part.Count}
}

// copyHole copies what has no storage behind it at the start of left, without reading it, however long it is: thin stays
// thin. It returns how many sectors that were; 0 if the first has storage.
func (r *request) copyHole(m *move, left block.Range, record *copyRecord) (block.Count, error) {
	allocated, n, err := m.from.allocated(r, left)
	if err != nil || allocated {
		return 0, err
	}
	hole := block.Range{Start: left.Start, Count: n}
	return n, r.copyWrite(m, hole, nil, record)
}

// copyWrite writes data, or zeros if it is nil, to where part of the source goes.
func (r *request) copyWrite(m *move, part block.Range, data []byte, record *copyRecord) error {
	var err error
	if data == nil {
		err = m.to.unmap(r, m.at(part))
	} else {
		err = m.to.write(r, m.at(part), data)
	}
	if err == nil {
		record.bytes.Add(uint64(part.Bytes()))
	}
	record.wrote = record.wrote || !didNothing(err)
	return err
}

// didNothing says whether a Backend's error means that nothing was changed.
func didNothing(err error) bool {
	for _, e := range []error{block.ErrNotOwner, block.ErrUnavailable, block.ErrFenced, block.ErrNoSpace, block.ErrClosed} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// run is a part of a piece that has storage behind it throughout, or nowhere.
type run struct {
	block.Range
	allocated bool
}

// smallHole is what is copied as zeros, in sectors: leaving out so little saves less than another entry in the log costs.
const smallHole = 64 << 10 / block.SectorSize

// runs divides a piece.
func (r *request) runs(m *move, piece block.Range) ([]run, error) {
	var all, kept []run
	for left := piece; left.Count > 0; {
		allocated, n, err := m.from.allocated(r, left)
		if err != nil {
			return nil, err
		}
		all = join(all, run{block.Range{Start: left.Start, Count: n}, allocated})
		left = block.Range{Start: left.Start + block.Sector(n), Count: left.Count - n}
	}
	for _, part := range all {
		part.allocated = part.allocated || part.Count < smallHole && len(all) > 1
		kept = join(kept, part)
	}
	return kept, nil
}

// join appends a run to those that end where it begins.
func join(runs []run, next run) []run {
	if last := len(runs) - 1; last >= 0 && runs[last].allocated == next.allocated {
		runs[last].Count += next.Count
		return runs
	}
	return append(runs, next)
}

// copyBlocks copies one piece: all of it is read before any of it is written.
func (r *request) copyBlocks(m *move, piece block.Range, buf []byte, record *copyRecord) error {
	runs, err := r.runs(m, piece)
	if err != nil {
		return err
	}
	data := func(part block.Range) []byte {
		off := block.Count(part.Start - piece.Start).Bytes()
		return buf[off : off+part.Bytes()]
	}
	for _, part := range runs {
		if part.allocated {
			if err := m.from.read(r, part.Range, data(part.Range)); err != nil {
				return err
			}
		}
	}
	for _, part := range runs {
		var src []byte
		if part.allocated {
			src = data(part.Range)
		}
		if err := r.copyWrite(m, part.Range, src, record); err != nil {
			return err
		}
	}
	return nil
}
