package replication

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
	"sanctuary/replication/command"
)

// The methods here are what target/scsi asks of a Backend. Each takes the tenure once, at the start: its term is the fence
// of whatever the command proposes (rule F). What changes anything also brings the fence of the moment it was accepted.

// Geometry returns the LUN's size, as far as this replica has applied its growth.
func (g *Group) Geometry() block.Geometry {
	if g.cfg.Store == nil {
		return g.cfg.Geometry // a witness does not look into entries
	}
	return g.cfg.Store.Geometry()
}

func (g *Group) capacity() block.Count { return g.Geometry().Capacity }

// Grow makes the LUN that large unless it is already; it never shrinks. The growth is a log entry, so that every replica has
// it before the first write to what was added. Errors: block.ErrNotOwner, or an invalid size.
func (g *Group) Grow(ctx context.Context, capacity block.Count) error {
	t, err := g.owned()
	if err != nil {
		return err
	}
	want := block.Geometry{Capacity: capacity, LogicalBlockBytes: g.cfg.Geometry.LogicalBlockBytes}
	if err := want.Validate(); err != nil {
		return err
	}
	lock, err := g.locks.lock(ctx, growLock)
	if err != nil {
		return err
	}
	defer g.locks.unlock(lock)
	if capacity <= g.capacity() {
		return nil
	}
	return g.proposeSurely(ctx, t, []block.Op{{Kind: block.OpGrow, Range: block.Range{Count: capacity}}})
}

// owned returns the current tenure, or the error that says why there is none.
func (g *Group) owned() (*tenure, error) {
	if err := g.Err(); err != nil {
		return nil, outNow(err)
	}
	if t := g.tenure.Load(); t != nil {
		return t, nil
	}
	inst := g.running()
	if inst == nil {
		return nil, block.ErrNotOwner
	}
	if _, leader := inst.raft.LeaderWithID(); leader == "" || leader == g.cfg.Self.ID {
		return nil, block.ErrUnavailable // nobody, or this node in a moment
	}
	return nil, block.ErrNotOwner
}

// Fence marks the present moment for a command that has just arrived: as the owner, this tenure; else, the end of the log.
// A log that cannot be read gives the zero fence, under which nothing is done.
func (g *Group) Fence() block.Fence {
	if t := g.tenure.Load(); t != nil {
		return block.Fence{Term: t.term, Index: math.MaxUint64}
	}
	inst := g.running()
	if inst == nil {
		return block.Fence{}
	}
	var l raft.Log
	if g.cfg.Journal.Head(inst.raft.LastIndex(), &l) != nil {
		return block.Fence{}
	}
	return block.Fence{Term: l.Term, Index: l.Index}
}

// accepted returns the current tenure if a command accepted at f may be carried out in it.
//
// Between f and this tenure nobody else may have served. Whoever did has committed an entry of its own term first, and one
// for each change it acknowledged; the log this tenure began with holds them all. So if nobody did, that log ends no later
// than f: in an entry of a lower term, or of the same term and no higher index. An index alone would not do, for an entry
// that was never committed may have been replaced.
func (g *Group) accepted(f block.Fence) (*tenure, error) {
	t, err := g.owned()
	if err != nil {
		return nil, err
	}
	if !t.before.Before(f) {
		return nil, block.ErrFenced
	}
	return t, nil
}

// Read fills dst with the newest acknowledged data, or later. The lease is checked after the blocks have been read: a
// process that was stopped in between, for however long, finds out here and discards them (rule L).
func (g *Group) Read(ctx context.Context, r block.Range, dst []byte) error {
	t, err := g.owned()
	if err != nil {
		return err
	}
	if err := g.readAt(ctx, t, block.Range{}, r, dst); err != nil {
		return err
	}
	g.activity.Add(1)
	return g.confirm(ctx, t)
}

// confirm returns nil if this node owned the LUN in t's term at some moment after confirm was called.
func (g *Group) confirm(ctx context.Context, t *tenure) error {
	inst := g.running()
	if inst == nil || inst.raft.State() != raft.Leader || inst.raft.CurrentTerm() != t.term {
		return block.ErrNotOwner // it may have voted for another itself, whatever the others have promised
	}
	if g.leased(t.term, time.Now()) {
		return nil
	}
	return g.readIndex(ctx, t)
}

// readIndex is the slow half of rule L, for when the lease has lapsed or was given up: ask every voter, now, whether this
// term still stands. A majority that is still in it has elected nobody else up to that moment, so nothing was acknowledged
// elsewhere before the read began. Answers to anything sent earlier prove nothing, which is why the library's VerifyLeader
// will not do.
func (g *Group) readIndex(ctx context.Context, t *tenure) error {
	inst := g.running()
	if inst == nil {
		return block.ErrNotOwner
	}
	voters, _ := g.configured(inst)
	ctx, cancel := context.WithTimeout(ctx, 4*g.cfg.Timing.Heartbeat)
	defer cancel()
	answers := make(chan bool, len(voters))
	need := len(voters)/2 + 1
	for _, v := range voters {
		if v == g.cfg.Self.ID {
			answers <- inst.raft.CurrentTerm() == t.term && inst.raft.State() == raft.Leader
			continue
		}
		m := g.member(v)
		go func() { answers <- g.host.askTerm(ctx, g, m) == t.term }()
	}
	for refused := 0; need > 0 && refused <= len(voters)-(len(voters)/2+1); {
		select {
		case <-t.ended:
			return block.ErrNotOwner
		case <-ctx.Done():
			return block.ErrUnavailable
		case yes := <-answers:
			if yes {
				need--
			} else {
				refused++
			}
		}
	}
	if need > 0 {
		return block.ErrUnavailable
	}
	return nil
}

// Write stores src and returns when it is acknowledged.
func (g *Group) Write(ctx context.Context, f block.Fence, r block.Range, src []byte) error {
	t, err := g.accepted(f)
	if err != nil {
		return err
	}
	lock, err := g.locks.lock(ctx, r.Widen())
	if err != nil {
		return err
	}
	defer g.locks.unlock(lock)
	wide, data, err := g.wholeBlocks(ctx, t, r, src)
	if err != nil {
		return err
	}
	return g.change(ctx, t, g.writeOps(wide, data))
}

// change proposes operations whose ranges the caller has locked.
func (g *Group) change(ctx context.Context, t *tenure, ops []block.Op) error {
	release, err := g.takeRoom(ctx, ops)
	if err != nil {
		return err
	}
	defer release()
	if done, err := g.applyAlone(t, ops); done {
		return err
	}
	_, err = g.writes.propose(ctx, t.term, ops, false)
	return err
}

// writeOp is a write of r as one operation, on whole blocks. The caller holds the lock on r.Widen().
func (g *Group) writeOp(ctx context.Context, t *tenure, r block.Range, src []byte) (block.Op, error) {
	wide, data, err := g.wholeBlocks(ctx, t, r, src)
	if err != nil {
		return block.Op{}, err
	}
	return dataOp(wide, data), nil
}

// wholeBlocks makes whole blocks of a write, reading what it does not cover. The caller holds the lock on r.Widen(), and every
// write acknowledged before is applied, so what is read is what the write changes.
func (g *Group) wholeBlocks(ctx context.Context, t *tenure, r block.Range, src []byte) (wide block.Range, data []byte, err error) {
	if wide = r.Widen(); wide == r {
		return wide, src, nil
	}
	data = make([]byte, wide.Bytes())
	head := r.Offset() - wide.Offset()
	tail := wide.Bytes() - head - r.Bytes()
	if head > 0 {
		if err := g.readAt(ctx, t, wide, block.BytesRange(wide.Offset(), block.Size), data[:block.Size]); err != nil {
			return wide, nil, err
		}
	}
	if last := wide.Bytes() - block.Size; tail > 0 && (last > 0 || head == 0) {
		if err := g.readAt(ctx, t, wide, block.BytesRange(wide.Offset()+last, block.Size), data[last:]); err != nil {
			return wide, nil, err
		}
	}
	copy(data[head:], src)
	return wide, data, nil
}

// CompareAndWrite writes src if the range holds want; otherwise mismatch is the offset of the first difference, in bytes.
// It is decided here, under the range lock and the fence, so that what is proposed is an absolute write in one entry. If
// ownership is lost meanwhile it waits until the outcome is certain (proposeSurely): a false answer would make an
// initiator see its own write as somebody else's.
func (g *Group) CompareAndWrite(ctx context.Context, f block.Fence, r block.Range, want, src []byte) (mismatch int, err error) {
	t, err := g.accepted(f)
	if err != nil {
		return 0, err
	}
	lock, err := g.locks.lock(ctx, r.Widen())
	if err != nil {
		return 0, err
	}
	defer g.locks.unlock(lock)
	have := make([]byte, r.Bytes())
	if err := g.readAt(ctx, t, r.Widen(), r, have); err != nil {
		return 0, err
	}
	if !bytes.Equal(have, want) {
		if err := g.confirm(ctx, t); err != nil {
			return 0, err
		}
		for i := range have {
			if have[i] != want[i] {
				return i, nil
			}
		}
	}
	op, err := g.writeOp(ctx, t, r, src)
	if err != nil {
		return 0, err
	}
	ops := []block.Op{op}
	if size := command.Size(ops); size > command.MaxEntryBytes {
		return 0, fmt.Errorf("compare and write of %d bytes exceeds one log entry of %d", size, command.MaxEntryBytes)
	}
	release, err := g.takeRoom(ctx, ops)
	if err != nil {
		return 0, err
	}
	defer release()
	return -1, g.proposeSurely(ctx, t, ops)
}

// Modify has change turn what the range holds into what it is to hold. The range is cut where entries are; every piece is
// read, changed and proposed under the lock on all of it.
func (g *Group) Modify(ctx context.Context, f block.Fence, r block.Range, change func(off int64, have []byte)) error {
	t, err := g.accepted(f)
	if err != nil {
		return err
	}
	lock, err := g.locks.lock(ctx, r.Widen())
	if err != nil {
		return err
	}
	defer g.locks.unlock(lock)
	for done := int64(0); done < r.Bytes(); {
		// Pieces end on block boundaries, so that no block is written twice.
		n := min(r.Bytes()-done, entryTargetBytes-(r.Offset()+done)%block.Size)
		piece := block.BytesRange(r.Offset()+done, n)
		have := make([]byte, n)
		err := g.readAt(ctx, t, r.Widen(), piece, have)
		if err == nil {
			change(done, have)
			var op block.Op
			if op, err = g.writeOp(ctx, t, piece, have); err == nil {
				err = g.change(ctx, t, []block.Op{op})
			}
		}
		switch {
		case err != nil && done > 0 && errors.Is(err, block.ErrNotOwner):
			return block.ErrUnknown // a part of it has been done
		case err != nil:
			return err
		}
		done += n
	}
	return nil
}

// WriteSame repeats pattern, one logical block, over r; nil writes zeros.
func (g *Group) WriteSame(ctx context.Context, f block.Fence, r block.Range, pattern []byte) error {
	if len(bytes.Trim(pattern, "\x00")) == 0 {
		return g.Unmap(ctx, f, []block.Range{r})
	}
	if len(pattern) == 0 || block.Size%len(pattern) != 0 {
		return fmt.Errorf("pattern of %d bytes does not divide a block", len(pattern))
	}
	t, err := g.accepted(f)
	if err != nil {
		return err
	}
	lock, err := g.locks.lock(ctx, r.Widen())
	if err != nil {
		return err
	}
	defer g.locks.unlock(lock)
	full := bytes.Repeat(pattern, block.Size/len(pattern))
	head, body, tail := cut(r)
	var ops []block.Op
	for _, edge := range []block.Range{head, tail} {
		if edge.Count > 0 {
			op, err := g.writeOp(ctx, t, edge, full[:edge.Bytes()])
			if err != nil {
				return err
			}
			ops = append(ops, op)
		}
	}
	if body.Count > 0 {
		ops = append(ops, block.Op{Kind: block.OpFill, Range: body, Data: full, Sums: []uint32{block.Sum(full)}})
	}
	return g.change(ctx, t, ops)
}

// Unmap makes the ranges read as zeros and frees what it can.
func (g *Group) Unmap(ctx context.Context, f block.Fence, rs []block.Range) error {
	t, err := g.accepted(f)
	if err != nil {
		return err
	}
	wide := make([]block.Range, len(rs))
	for i, r := range rs {
		wide[i] = r.Widen()
	}
	lock, err := g.locks.lock(ctx, wide...)
	if err != nil {
		return err
	}
	defer g.locks.unlock(lock)
	// One range at a time: two of one command may share a block, whose zeros must not undo each other.
	for _, r := range rs {
		var ops []block.Op
		head, body, tail := cut(r)
		for _, edge := range []block.Range{head, tail} {
			if edge.Count > 0 {
				op, err := g.writeOp(ctx, t, edge, make([]byte, edge.Bytes()))
				if err != nil {
					return err
				}
				if block.AllZero(op.Data) {
					// Nothing is left in the block: storing zeros would take space, of which there may be none.
					op = block.Op{Kind: block.OpZero, Range: op.Range}
				}
				ops = append(ops, op)
			}
		}
		if body.Count > 0 {
			ops = append(ops, block.Op{Kind: block.OpZero, Range: body})
		}
		if len(ops) == 0 {
			continue
		}
		if err := g.change(ctx, t, ops); err != nil {
			return err
		}
	}
	return nil
}

// Allocated says whether this replica stores the first sector of r, and for how many sectors from there on that goes. Every
// copy that is in sync has the same map.
func (g *Group) Allocated(ctx context.Context, r block.Range) (allocated bool, n block.Count, err error) {
	t, err := g.owned()
	if err != nil {
		return false, 0, err
	}
	if allocated, n, err = g.cfg.Store.Allocated(r); err != nil {
		return false, 0, g.outIfFailed(err)
	}
	// As in Read: what was looked up counts only if this node owned the LUN afterwards (rule L).
	return allocated, n, g.confirm(ctx, t)
}

// cut divides a range into what lies before its first whole block, the whole blocks, and what lies after them. A range
// within one block is all head.
func cut(r block.Range) (head, body, tail block.Range) {
	start := (r.Start + block.SectorsPerBlock - 1) / block.SectorsPerBlock * block.SectorsPerBlock
	end := r.End() / block.SectorsPerBlock * block.SectorsPerBlock
	if start > end {
		return r, block.Range{}, block.Range{}
	}
	return block.Range{Start: r.Start, Count: block.Count(start - r.Start)},
		block.Range{Start: start, Count: block.Count(end - start)},
		block.Range{Start: end, Count: block.Count(r.End() - end)}
}

// Flush returns once every acknowledged write is durable. They are: acknowledging waits for the journals (rule G). What is
// left is to be sure that this node may still speak for the LUN.
func (g *Group) Flush(ctx context.Context) error { return g.Confirm(ctx) }

// Confirm returns nil if this node owned the LUN at some moment after the call.
func (g *Group) Confirm(ctx context.Context) error {
	t, err := g.owned()
	if err != nil {
		return err
	}
	return g.confirm(ctx, t)
}
