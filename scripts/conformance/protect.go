package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"sanctuary/scripts/rig"
	"sanctuary/target/initiator"
	"sanctuary/target/scsi"
)

// dial logs in with this project's own initiator and takes the unit attentions that a login begins with.
func dial(ctx context.Context, url string) (*initiator.Session, error) {
	address, iqn, number, err := rig.SplitURL(url)
	if err != nil {
		return nil, err
	}
	lun, err := strconv.ParseUint(number, 10, 14)
	if err != nil {
		return nil, fmt.Errorf("LUN of %s: %w", url, err)
	}
	s, err := initiator.Dial(ctx, initiator.Config{Address: address, Target: iqn, LUN: uint16(lun), InitiatorName: firstInitiator})
	if err != nil {
		return nil, fmt.Errorf("log in to %s: %w", url, err)
	}
	const most = 16 // SAM-5 lets a target queue several; this many never end
	for range most {
		var status *initiator.StatusError
		if err = s.TestUnitReady(ctx); !errors.As(err, &status) || status.Key != scsi.UnitAttention {
			break
		}
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("TEST UNIT READY through %s: %w", url, err)
	}
	return s, nil
}

const (
	controlPage  = 0x0A
	swp          = 0x08 // in byte 4 of the control mode page (SPC-4 §7.5.8)
	modeHeader   = 4    // bytes of the mode parameter header of the 6-byte commands (SPC-4 §7.5.5)
	modeAnswered = 0xFF // allocation length
)

// writeProtect sets or clears SWP with MODE SELECT(6), as an initiator may.
func writeProtect(ctx context.Context, url string, on bool) error {
	s, err := dial(ctx, url)
	if err != nil {
		return err
	}
	defer s.Close()
	buf := make([]byte, modeAnswered)
	r, err := s.Do(ctx, &initiator.Command{CDB: [16]byte{0x1A, 0x08, controlPage, 0, modeAnswered}, In: buf}) // DBD: no block descriptors
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		return fmt.Errorf("MODE SENSE, control page: %w", err)
	}
	list, err := swpList(buf[:r.Received], on)
	if err != nil {
		return err
	}
	r, err = s.Do(ctx, &initiator.Command{CDB: [16]byte{0x15, 0x10, 0, 0, byte(len(list))}, Out: list}) // PF
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		return fmt.Errorf("MODE SELECT, SWP: %w", err)
	}
	return nil
}

// swpList makes the parameter list of a MODE SELECT(6) that changes nothing but SWP from what MODE SENSE(6) answered.
func swpList(sensed []byte, on bool) ([]byte, error) {
	if len(sensed) < modeHeader || len(sensed) < modeHeader+int(sensed[3])+5 {
		return nil, fmt.Errorf("MODE SENSE answered with %d bytes, too few for the control page", len(sensed))
	}
	page := sensed[modeHeader+int(sensed[3]):]
	size := 2 + int(page[1])
	if page[0]&0x3F != controlPage || len(page) < size || size < 5 {
		return nil, fmt.Errorf("MODE SENSE answered with % X: no control page", sensed)
	}
	list := make([]byte, modeHeader+size) // lengths and the device-specific parameter are reserved in a MODE SELECT
	copy(list[modeHeader:], page[:size])
	list[modeHeader] &= 0x3F // PS is reserved here too
	list[modeHeader+4] &^= swp
	if on {
		list[modeHeader+4] |= swp
	}
	return list, nil
}

// clearBlocks writes zeros to the first blocks of the LUN. MultipathIO.CompareAndWrite clears 256 of them and then compares
// 257 (test_multipathio_compareandwrite.c:68): it finds what another test, or an earlier run of itself, has left in the last.
func clearBlocks(ctx context.Context, url string) error {
	s, err := dial(ctx, url)
	if err != nil {
		return err
	}
	defer s.Close()
	const blocks, blockBytes = 512, 512
	if err := s.Write(ctx, 0, blocks, make([]byte, blocks*blockBytes)); err != nil {
		return fmt.Errorf("clear the first %d blocks: %w", blocks, err)
	}
	return nil
}
