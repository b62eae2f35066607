package initiator

import (
	"context"
	"encoding/binary"
	"fmt"

	"sanctuary/target/scsi"
)

// run is Do for commands of which only GOOD with all its data will do; it returns the bytes received.
func (s *Session) run(ctx context.Context, c *Command) (int, error) {
	r, err := s.Do(ctx, c)
	if err != nil {
		return 0, err
	}
	return r.Received, r.Err()
}

// exact is run for data whose length is known.
func (s *Session) exact(ctx context.Context, c *Command) error {
	r, err := s.Do(ctx, c)
	if err == nil {
		err = r.Err()
	}
	if err == nil && (r.Received != len(c.In) || r.Residual != 0) {
		err = fmt.Errorf("%w: GOOD with %d of %d bytes, residual %d", ErrProtocol, r.Received, len(c.In), r.Residual)
	}
	return err
}

// TestUnitReady returns nil if the LUN is ready, else a *StatusError.
func (s *Session) TestUnitReady(ctx context.Context) error {
	_, err := s.run(ctx, &Command{})
	return err
}

// Inquiry returns the standard INQUIRY data.
func (s *Session) Inquiry(ctx context.Context) ([]byte, error) {
	return s.inquire(ctx, 0, 0)
}

// VPD returns a vital product data page with its header.
func (s *Session) VPD(ctx context.Context, page byte) ([]byte, error) {
	b, err := s.inquire(ctx, 1, page)
	if err == nil && (len(b) < 4 || b[1] != page || 4+int(binary.BigEndian.Uint16(b[2:])) != len(b)) {
		err = fmt.Errorf("%w: VPD page %02Xh of %d bytes", ErrProtocol, page, len(b))
	}
	return b, err
}

func (s *Session) inquire(ctx context.Context, evpd, page byte) ([]byte, error) {
	b := make([]byte, 4096)
	n, err := s.run(ctx, &Command{CDB: [16]byte{0x12, evpd, page, byte(len(b) >> 8), byte(len(b))}, In: b})
	return b[:n], err
}

// NAA returns the NAA designator of VPD page 83h, 8 or 16 bytes.
func (s *Session) NAA(ctx context.Context) ([]byte, error) {
	b, err := s.VPD(ctx, 0x83)
	if err != nil {
		return nil, err
	}
	for b = b[4:]; len(b) >= 4 && len(b) >= 4+int(b[3]); b = b[4+int(b[3]):] {
		if b[0]&0x0F == 1 && b[1]&0x3F == 3 {
			return b[4 : 4+int(b[3])], nil
		}
	}
	return nil, fmt.Errorf("%w: no NAA designator", ErrProtocol)
}

// Capacity is what READ CAPACITY (16) says.
type Capacity struct {
	Blocks          uint64 // logical blocks
	BlockBytes      int    // length of a logical block
	PhysicalPerUnit int    // logical blocks in a physical one
	Thin, ReadsZero bool   // LBPME, LBPRZ
}

// Bytes returns the size in bytes.
func (c Capacity) Bytes() int64 { return int64(c.Blocks) * int64(c.BlockBytes) }

// ReadCapacity16 returns the size of the LUN.
func (s *Session) ReadCapacity16(ctx context.Context) (Capacity, error) {
	var b [32]byte
	err := s.exact(ctx, &Command{CDB: [16]byte{0x9E, 0x10, 13: byte(len(b))}, In: b[:]})
	if err != nil {
		return Capacity{}, err
	}
	c := Capacity{
		Blocks: binary.BigEndian.Uint64(b[:]) + 1, BlockBytes: int(binary.BigEndian.Uint32(b[8:])),
		PhysicalPerUnit: 1 << (b[13] & 0x0F), Thin: b[14]&0x80 != 0, ReadsZero: b[14]&0x40 != 0,
	}
	if c.BlockBytes < 512 || c.BlockBytes > 1<<16 || c.BlockBytes&(c.BlockBytes-1) != 0 || c.Blocks == 0 || c.Blocks > 1<<54 {
		return Capacity{}, fmt.Errorf("%w: capacity of %d blocks of %d bytes", ErrProtocol, c.Blocks, c.BlockBytes)
	}
	return c, nil
}

// cdb16 is the layout READ (16), WRITE (16), WRITE SAME (16) and SYNCHRONIZE CACHE (16) share.
func cdb16(op, flags byte, lba uint64, blocks uint32) (c [16]byte) {
	c[0], c[1] = op, flags
	binary.BigEndian.PutUint64(c[2:], lba)
	binary.BigEndian.PutUint32(c[10:], blocks)
	return c
}

func readCommand(lba uint64, blocks uint32, p []byte) *Command {
	return &Command{CDB: cdb16(0x88, 0, lba, blocks), In: p}
}

func writeCommand(lba uint64, blocks uint32, p []byte) *Command {
	return &Command{CDB: cdb16(0x8A, 0, lba, blocks), Out: p}
}

func compareAndWriteCommand(lba uint64, blocks byte, want, p []byte) *Command {
	c := cdb16(0x89, 0, lba, 0)
	c[13] = blocks
	return &Command{CDB: c, Out: append(append(make([]byte, 0, len(want)+len(p)), want...), p...)}
}

func unmapCommand(lba uint64, blocks uint32) *Command {
	list := make([]byte, 24)
	list[1], list[3] = 22, 16
	binary.BigEndian.PutUint64(list[8:], lba)
	binary.BigEndian.PutUint32(list[16:], blocks)
	return &Command{CDB: [16]byte{0x42, 8: byte(len(list))}, Out: list}
}

// Read reads len(p) bytes, which must be blocks logical blocks, from lba on.
func (s *Session) Read(ctx context.Context, lba uint64, blocks uint32, p []byte) error {
	return s.exact(ctx, readCommand(lba, blocks, p))
}

// Write writes p, which must be blocks logical blocks, from lba on.
func (s *Session) Write(ctx context.Context, lba uint64, blocks uint32, p []byte) error {
	return s.exact(ctx, writeCommand(lba, blocks, p))
}

// CompareAndWrite writes p if the blocks hold want; otherwise it returns a *StatusError with scsi.Miscompare. Both are
// blocks logical blocks, 1..255.
func (s *Session) CompareAndWrite(ctx context.Context, lba uint64, blocks byte, want, p []byte) error {
	return s.exact(ctx, compareAndWriteCommand(lba, blocks, want, p))
}

// Unmap frees the blocks.
func (s *Session) Unmap(ctx context.Context, lba uint64, blocks uint32) error {
	return s.exact(ctx, unmapCommand(lba, blocks))
}

// WriteSame repeats pattern, one logical block, over the blocks; a nil pattern means zeros (NDOB).
func (s *Session) WriteSame(ctx context.Context, lba uint64, blocks uint32, pattern []byte) error {
	flags := byte(0)
	if pattern == nil {
		flags = 0x01
	}
	return s.exact(ctx, &Command{CDB: cdb16(0x93, flags, lba, blocks), Out: pattern})
}

// SyncCache returns when everything acknowledged is durable.
func (s *Session) SyncCache(ctx context.Context) error {
	return s.exact(ctx, &Command{CDB: cdb16(0x91, 0, 0, 0)})
}

// ReportTargetPortGroups returns the LUN's port groups as this path sees them.
func (s *Session) ReportTargetPortGroups(ctx context.Context) ([]scsi.PortGroup, error) {
	b := make([]byte, 4096)
	n, err := s.run(ctx, &Command{CDB: [16]byte{0xA3, 0x0A, 8: byte(len(b) >> 8), 9: byte(len(b))}, In: b})
	if err != nil {
		return nil, err
	}
	if b = b[:n]; n < 4 || int64(binary.BigEndian.Uint32(b)) != int64(n-4) {
		return nil, fmt.Errorf("%w: target port groups in %d bytes", ErrProtocol, n)
	}
	var groups []scsi.PortGroup
	for b = b[4:]; len(b) > 0; {
		if len(b) < 8 || len(b) < 8+4*int(b[7]) {
			return nil, fmt.Errorf("%w: truncated target port group", ErrProtocol)
		}
		g := scsi.PortGroup{ID: binary.BigEndian.Uint16(b[2:]), State: scsi.AccessState(b[0] & 0x0F)}
		for i := range int(b[7]) {
			g.Ports = append(g.Ports, binary.BigEndian.Uint16(b[8+4*i+2:]))
		}
		groups, b = append(groups, g), b[8+4*int(b[7]):]
	}
	return groups, nil
}
