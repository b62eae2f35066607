package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"sanctuary/target/initiator"
)

// checkShape looks whether the LUN is one on which every test can run: 512e, thin, deallocating in every way, zeros where
// nothing is. Otherwise tests would leave out what they are for, some of them without a word (CU_PASS prints nothing).
func checkShape(ctx context.Context, url string) error {
	s, err := dial(ctx, url)
	if err != nil {
		return err
	}
	defer s.Close()
	standard, err := s.Inquiry(ctx)
	if err != nil {
		return fmt.Errorf("INQUIRY: %w", err)
	}
	capacity, err := s.ReadCapacity16(ctx)
	if err != nil {
		return fmt.Errorf("READ CAPACITY(16): %w", err)
	}
	limits, err := s.VPD(ctx, 0xB0)
	if err != nil {
		return fmt.Errorf("VPD page B0h: %w", err)
	}
	thin, err := s.VPD(ctx, 0xB2)
	if err != nil {
		return fmt.Errorf("VPD page B2h: %w", err)
	}
	return shapeErrors(standard, capacity, limits, thin)
}

func shapeErrors(standard []byte, c initiator.Capacity, limits, thin []byte) error {
	if len(standard) < 36 || len(limits) < 64 || len(thin) < 8 {
		return fmt.Errorf("INQUIRY of %d bytes, VPD B0h of %d, B2h of %d: want at least 36, 64, 8", len(standard), len(limits), len(thin))
	}
	maxTransfer := binary.BigEndian.Uint32(limits[8:])
	var wrong []error
	for _, c := range []struct {
		holds bool
		what  string
	}{
		{standard[1]&0x80 == 0, "the medium is fixed (RMB=0)"},
		{c.BlockBytes == 512 && c.PhysicalPerUnit == 8, "logical blocks are of 512 bytes, physical ones of 4096 (512e)"},
		{c.Blocks > 1<<16 && c.Blocks < 1<<31, "there are 65537 to 2147483647 blocks"},
		{c.Thin, "LBPME=1"},
		{c.ReadsZero, "LBPRZ=1"},
		{thin[5]&0x80 != 0, "LBPU=1"},
		{thin[5]&0x40 != 0, "LBPWS=1"},
		{thin[5]&0x20 != 0, "LBPWS10=1"},
		{maxTransfer == 0 || maxTransfer >= 256, "MAXIMUM TRANSFER LENGTH is at least 256 blocks"},
		{limits[5] > 1, "MAXIMUM COMPARE AND WRITE LENGTH is at least 2 blocks"},
	} {
		if !c.holds {
			wrong = append(wrong, fmt.Errorf("the LUN is not one to test on: want that %s", c.what))
		}
	}
	return errors.Join(wrong...)
}
