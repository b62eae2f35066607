package scsi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"sanctuary/blockstore/block"
)

// How a copy reads or writes a unit that another node owns: as its owner carries out the commands of initiators that come in here
// (forward.go), piece by piece, with READ, WRITE, UNMAP and GET LBA STATUS.
//
// Each piece is accepted when it is asked for, so that the age of a long copy is no matter. What that gives up is made up for:
//
//   - Every piece brings the moment at which the copy was accepted, as a moment of the owner's clock. The owner refuses it if something
//     that ends the unit's tasks has arrived since: between two pieces there is no task that could be ended.
//   - A copy writes to a unit that another node owns for no longer than copyAwayFor after it was accepted. An initiator that has lost
//     the path to this node, and goes on over one to that node, must not be overtaken by what it had asked for here.
//   - Every piece is made under the fence of the moment when the copy looked at the unit: it does nothing if the unit has been owned by
//     anybody else since. A copy does not follow its units.

// copyAwayFor is how long after its arrival a copy may begin to write a piece to a unit that another node owns. With the time that piece
// may take (askFor) it is less than what an initiator takes to give up a path that has gone silent.
const copyAwayFor = 3 * time.Second

var errCopyTooLong = errors.New("a copy to a LUN of another node took too long")

// begin notes how old the copy is on the owner's clock. false: the owner does not answer.
func (c *copyUnit) begin(r *request) bool {
	p, err := c.unit.exchange(r.ctx, &ask{kind: askTicket})
	if err != nil || p.verdict != answered {
		return false
	}
	held := c.unit.ticket.Load()
	age := uint64(max(0, held.at.Sub(r.accepted)))
	c.away, c.began = true, held.ticket
	c.began.stamp -= min(age, c.began.stamp) // at the latest; the ticket may have travelled for as long
	c.unit.catchUp(r.ctx, p.version)
	return true
}

// ask has the unit's owner carry out one command of the copy.
func (c *copyUnit) ask(r *request, cdb [16]byte, in int, out []byte) (*reply, error) {
	q := &request{
		Task: &Task{Nexus: r.Nexus, CDB: cdb, Fence: c.fence}, ctx: r.ctx, target: r.target, set: r.set, unit: c.unit,
		cmd: find(&cdb), access: r.access, geo: c.geo, accepted: time.Now(), began: &c.began,
	}
	p, err := q.askCommand(&cdb, in, len(out), out)
	r.unsure = r.unsure || q.unsure
	if err == nil {
		err = p.err()
	}
	var sense *Sense
	if errors.As(err, &sense) && sense.Code == senseNoSpace.Code {
		err = block.ErrNoSpace
	}
	return p, err
}

// extentCDB is a command on an extent, with a CDB of 16 bytes.
func (c *copyUnit) extentCDB(opcode byte, part block.Range) (cdb [16]byte) {
	cdb[0] = opcode
	setExtent(&cdb, uint64(part.Start)/uint64(c.perBlock()), uint64(part.Count/c.perBlock()))
	return cdb
}

func (c *copyUnit) perBlock() block.Count {
	return block.Count(c.geo.LogicalBlockBytes / block.SectorSize)
}

// read fills dst, of at most copyPiece bytes.
func (c *copyUnit) read(r *request, part block.Range, dst []byte) error {
	if !c.away {
		return c.unit.cfg.Backend.Read(r.ctx, part, dst)
	}
	p, err := c.ask(r, c.extentCDB(opRead16, part), len(dst), nil)
	if err != nil {
		return err
	}
	if copy(dst, p.dataIn) != len(dst) {
		return fmt.Errorf("%w: %d bytes instead of %d", errAskDamaged, len(p.dataIn), len(dst))
	}
	return nil
}

// write writes at most copyPiece bytes.
func (c *copyUnit) write(r *request, part block.Range, data []byte) error {
	if !c.away {
		return c.unit.cfg.Backend.Write(r.ctx, c.fence, part, data)
	}
	if time.Since(r.accepted) > copyAwayFor {
		return errCopyTooLong
	}
	_, err := c.ask(r, c.extentCDB(opWrite16, part), 0, data)
	return err
}

// unmap makes a range of any length read as zeros.
func (c *copyUnit) unmap(r *request, part block.Range) error {
	if !c.away {
		return c.unit.cfg.Backend.Unmap(r.ctx, c.fence, []block.Range{part})
	}
	for part.Count > 0 {
		if time.Since(r.accepted) > copyAwayFor {
			return errCopyTooLong
		}
		n := min(part.Count/c.perBlock(), maxUnmapBlocks)
		list := make([]byte, 24)
		binary.BigEndian.PutUint16(list, 22)
		binary.BigEndian.PutUint16(list[2:], 16)
		binary.BigEndian.PutUint64(list[8:], uint64(part.Start)/uint64(c.perBlock()))
		binary.BigEndian.PutUint32(list[16:], uint32(n))
		if _, err := c.ask(r, [16]byte{0: opUnmap, 8: byte(len(list))}, 0, list); err != nil {
			return err
		}
		part = block.Range{Start: part.Start + block.Sector(n*c.perBlock()), Count: part.Count - n*c.perBlock()}
	}
	return nil
}

// allocated is Backend.Allocated.
func (c *copyUnit) allocated(r *request, part block.Range) (allocated bool, n block.Count, err error) {
	if !c.away {
		return c.unit.cfg.Backend.Allocated(r.ctx, part)
	}
	const header, each = 8, 16
	cdb := [16]byte{0: opServiceIn16, 1: actionLBAStatus, 13: header + each}
	binary.BigEndian.PutUint64(cdb[2:], uint64(part.Start)/uint64(c.perBlock()))
	p, err := c.ask(r, cdb, header+each, nil)
	if err != nil {
		return false, 0, err
	}
	if len(p.dataIn) < header+each || binary.BigEndian.Uint32(p.dataIn[header+8:]) == 0 {
		return false, 0, fmt.Errorf("%w: no LBA status in %d bytes", errAskDamaged, len(p.dataIn))
	}
	n = block.Count(binary.BigEndian.Uint32(p.dataIn[header+8:])) * c.perBlock()
	return p.dataIn[header+12] == provisionMapped, min(n, part.Count), nil
}
