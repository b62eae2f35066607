package scsi

import (
	"bytes"

	"sanctuary/blockstore/block"
)

// perBlock returns the number of 512-byte sectors in a logical block.
func (r *request) perBlock() block.Count {
	return block.Count(r.geo.LogicalBlockBytes / block.SectorSize)
}

// capacity returns the number of logical blocks.
func (r *request) capacity() uint64 { return uint64(r.geo.Capacity / r.perBlock()) }

// span turns an LBA and a number of logical blocks, both straight from an initiator, into a range, or returns 05/21/00 with the
// first LBA that is not there (SBC-3 §4.18.1).
// No blocks at the very end are within the range, as SCST and LIO have it.
func (r *request) span(lba, blocks uint64) (block.Range, error) {
	capacity := r.capacity()
	if lba > capacity || blocks > capacity-lba {
		return block.Range{}, outOfRange(max(lba, capacity))
	}
	per := r.perBlock()
	return block.Range{Start: block.Sector(lba * uint64(per)), Count: block.Count(blocks) * per}, nil
}

func outOfRange(first uint64) error {
	return &Sense{Key: IllegalRequest, Code: senseOutOfRange.Code, Info: first, HasInfo: true}
}

// transferSpan is span for commands that move the blocks, within the transfer limit.
func (r *request) transferSpan() (block.Range, error) {
	lba, blocks := extent(&r.CDB)
	rng, err := r.span(lba, blocks)
	if err != nil {
		return rng, err
	}
	if rng.Bytes() > r.unit.cfg.MaxTransferBytes {
		return rng, senseInvalidField
	}
	return rng, nil
}

// lengthOf returns blocks logical blocks in bytes. blocks has at most 32 bits.
func lengthOf(u *Unit, blocks uint64) int64 {
	return int64(blocks) * int64(u.cfg.Backend.Geometry().LogicalBlockBytes)
}

// wholeTransfer is the Data-Out of WRITE.
func wholeTransfer(u *Unit, cdb *[16]byte) int64 {
	_, blocks := extent(cdb)
	return lengthOf(u, blocks)
}

// verifyTransfer is the Data-Out of VERIFY: what is compared if BYTCHK=01b, else none.
func verifyTransfer(u *Unit, cdb *[16]byte) int64 {
	if cdb[1]&bytchk1 == 0 {
		return 0
	}
	return wholeTransfer(u, cdb)
}

// twiceTransfer is the Data-Out of COMPARE AND WRITE: the blocks to compare, then the blocks to write.
func twiceTransfer(u *Unit, cdb *[16]byte) int64 { return 2 * lengthOf(u, uint64(cdb[13])) }

// oneBlock is the Data-Out of WRITE SAME; none with NDOB=1.
func oneBlock(u *Unit, cdb *[16]byte) int64 {
	if cdb[0] == 0x93 && cdb[1]&wsNoData != 0 {
		return 0
	}
	return lengthOf(u, 1)
}

// clamp returns the Data-Out that a write is to use, in whole blocks: what the CDB asks for, or less if the initiator said
// it would send less (RFC 7143 §11.4.5.2: the rest is the residual). A part of a block is refused, not left out in silence.
func (r *request) clamp(want int64) ([]byte, error) {
	r.TransferOut = want
	n := min(want, int64(r.ExpectedOut))
	if n%int64(r.geo.LogicalBlockBytes) != 0 {
		return nil, senseBadTransfer
	}
	if int64(len(r.DataOut)) < n {
		return nil, senseShortData
	}
	return r.DataOut[:n], nil
}

// exactly returns the Data-Out of a command that makes no sense with less or more than it asks for. 05/24/00, because it is the
// number of blocks in the CDB that does not fit (256 blocks are 0 in COMPARE AND WRITE).
func (r *request) exactly(want int64) ([]byte, error) {
	r.TransferOut = want
	switch {
	case int64(r.ExpectedOut) != want:
		return nil, senseInvalidField
	case int64(len(r.DataOut)) < want:
		return nil, senseShortData
	}
	return r.DataOut[:want], nil
}

func read(r *request) error {
	rng, err := r.transferSpan()
	if err != nil {
		return err
	}
	n := min(rng.Bytes(), int64(r.ExpectedIn))
	if n > 0 {
		// Whole blocks, also when the initiator takes less.
		size := int64(r.geo.LogicalBlockBytes)
		part := block.Range{Start: rng.Start, Count: block.CountOf((n + size - 1) / size * size)}
		r.DataIn = r.Buffers.Get(r.ctx, int(part.Bytes()))
		if err := r.unit.cfg.Backend.Read(r.ctx, part, r.DataIn); err != nil {
			return err
		}
		r.DataIn = r.DataIn[:n]
	}
	r.TransferIn = rng.Bytes()
	return nil
}

// write is WRITE: GOOD means what Backend.Write promises.
func write(r *request) error {
	rng, err := r.transferSpan()
	if err != nil {
		return err
	}
	data, err := r.clamp(rng.Bytes())
	if err != nil || len(data) == 0 {
		return err
	}
	rng.Count = block.CountOf(int64(len(data)))
	return r.unit.cfg.Backend.Write(r.ctx, r.Fence, rng, data)
}

// writeAndVerify writes, then reads the blocks back, which verifies their checksums; BYTCHK=01b also compares.
func writeAndVerify(r *request) error {
	if err := write(r); err != nil {
		return err
	}
	lba, _ := extent(&r.CDB)
	data, err := r.clamp(r.TransferOut)
	if err != nil {
		return err
	}
	rng, err := r.span(lba, uint64(len(data)/r.geo.LogicalBlockBytes))
	if err != nil {
		return err
	}
	if r.CDB[1]&bytchk1 == 0 {
		data = nil
	}
	return r.compare(rng, data)
}

func verify(r *request) error {
	rng, err := r.transferSpan()
	if err != nil {
		return err
	}
	var data []byte
	if r.CDB[1]&bytchk1 != 0 {
		if data, err = r.exactly(rng.Bytes()); err != nil {
			return err
		}
	}
	return r.compare(rng, data)
}

// verifyStep bounds the memory of a verification, in bytes; a multiple of every logical block length.
const verifyStep = 256 << 10

// compare reads rng and compares it with want, unless that is nil. INFORMATION is the offset of the first difference.
func (r *request) compare(rng block.Range, want []byte) error {
	if rng.Count == 0 {
		return nil
	}
	buf := r.Buffers.Get(r.ctx, int(min(rng.Bytes(), verifyStep)))
	defer r.Buffers.Put(buf)
	for done := int64(0); done < rng.Bytes(); {
		n := min(rng.Bytes()-done, verifyStep)
		part := block.Range{Start: rng.Start + block.Sector(block.CountOf(done)), Count: block.CountOf(n)}
		if err := r.unit.cfg.Backend.Read(r.ctx, part, buf[:n]); err != nil {
			return err
		}
		if want != nil && !bytes.Equal(buf[:n], want[done:done+n]) {
			return miscompare(done + int64(firstDifference(buf[:n], want[done:done+n])))
		}
		done += n
	}
	return nil
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

// miscompare is 0E/1D/00 with the byte offset of the first difference, which the transfer limit keeps within 32 bits.
func miscompare(offset int64) error {
	return &Sense{Key: Miscompare, Code: 0x1D00, Info: uint64(offset), HasInfo: true}
}

// compareLimit is the MAXIMUM COMPARE AND WRITE LENGTH, in logical blocks: what the field can hold and a transfer too.
func compareLimit(u *Unit) uint64 {
	return min(maxCompareBlocks, uint64(u.cfg.MaxTransferBytes/(2*lengthOf(u, 1))))
}

func compareAndWrite(r *request) error {
	lba, blocks := uint64(0), uint64(r.CDB[13])
	for _, b := range r.CDB[2:10] {
		lba = lba<<8 | uint64(b)
	}
	rng, err := r.span(lba, blocks)
	if err != nil {
		return err
	}
	if blocks > compareLimit(r.unit) {
		return senseInvalidField
	}
	data, err := r.exactly(2 * rng.Bytes())
	if err != nil || blocks == 0 {
		return err
	}
	mismatch, err := r.unit.cfg.Backend.CompareAndWrite(r.ctx, r.Fence, rng, data[:rng.Bytes()], data[rng.Bytes():])
	if err != nil {
		return err
	}
	if mismatch >= 0 {
		return miscompare(int64(mismatch))
	}
	return nil
}

// synchronizeCache flushes everything: the range is only checked. With IMMED=1 it may answer sooner and does not.
func synchronizeCache(r *request) error {
	lba, blocks := extent(&r.CDB)
	if _, err := r.span(lba, blocks); err != nil {
		return err
	}
	return r.unit.cfg.Backend.Flush(r.ctx)
}
