package prove

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"testing"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/lincheck"
)

// A value is what a block holds: 0 is all zeros, anything else is a number given to one write only.
type value = lincheck.Value

// A tagged sector is 512 bytes, little-endian, so that a block put together from two writes is noticed:
//
//	offset  bytes  content
//	0       8      "SANPROVE"
//	8       8      value
//	16      8      block number on the LUN
//	24      8      sector within the block, 0 to 7
//	32      476    a pattern that follows from the above
//	508     4      CRC32C of all before it
//
// What ends in its own CRC32C leaves the same CRC32C, whatever it is: so all tagged blocks, and any mixture of their sectors, have one and
// the same checksum for the product. That is on purpose. It does not notice here that a block is torn or of another time, and cannot make
// good for it from another copy: such a block must not come about.
const (
	tagMagic = "SANPROVE"
	tagCRC   = block.SectorSize - 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// fill makes p, block.Size long, the content of a block that holds v.
func fill(p []byte, v value, number uint64) {
	clear(p)
	if v == 0 {
		return
	}
	for n := range uint64(block.SectorsPerBlock) {
		s := p[n*block.SectorSize:][:block.SectorSize]
		copy(s, tagMagic)
		binary.LittleEndian.PutUint64(s[8:], uint64(v))
		binary.LittleEndian.PutUint64(s[16:], number)
		binary.LittleEndian.PutUint64(s[24:], n)
		x := uint64(v)*0x9E3779B97F4A7C15 ^ number*0xBF58476D1CE4E5B9 ^ n<<32 | 1
		for i := 32; i < tagCRC; i += 4 {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
			binary.LittleEndian.PutUint32(s[i:], uint32(x>>16))
		}
		binary.LittleEndian.PutUint32(s[tagCRC:], crc32.Checksum(s[:tagCRC], castagnoli))
	}
}

// valueOf reads a block back; an error says that no single write can have left it so.
func valueOf(p []byte, number uint64) (value, error) {
	var first value
	for n := range uint64(block.SectorsPerBlock) {
		v, err := sectorValue(p[n*block.SectorSize:][:block.SectorSize], number, n)
		switch {
		case err != nil:
			return 0, err
		case n == 0:
			first = v
		case v != first:
			return 0, fmt.Errorf("block %d is torn: sector 0 holds value %d, sector %d value %d", number, first, n, v)
		}
	}
	return first, nil
}

func sectorValue(s []byte, number, n uint64) (value, error) {
	if string(s[:len(tagMagic)]) != tagMagic {
		for _, b := range s {
			if b != 0 {
				return 0, fmt.Errorf("block %d, sector %d holds what nobody wrote", number, n)
			}
		}
		return 0, nil
	}
	if crc32.Checksum(s[:tagCRC], castagnoli) != binary.LittleEndian.Uint32(s[tagCRC:]) {
		return 0, fmt.Errorf("block %d, sector %d is damaged: its checksum is wrong", number, n)
	}
	if at, sector := binary.LittleEndian.Uint64(s[16:]), binary.LittleEndian.Uint64(s[24:]); at != number || sector != n {
		return 0, fmt.Errorf("block %d, sector %d holds what was written to block %d, sector %d", number, n, at, sector)
	}
	return value(binary.LittleEndian.Uint64(s[8:])), nil
}

func TestValueOfNoticesTornMisplacedAndDamagedBlocks(t *testing.T) {
	t.Parallel()
	const number = 77
	p, q := make([]byte, block.Size), make([]byte, block.Size)
	for _, v := range []value{0, 1, 1 << 60} {
		fill(p, v, number)
		if got, err := valueOf(p, number); got != v || err != nil {
			t.Errorf("valueOf(fill(%d)) = %d, %v", v, got, err)
		}
	}
	fill(q, 2, number)
	for name, spoil := range map[string]func(){
		"torn with another":  func() { copy(p[3*block.SectorSize:], q[3*block.SectorSize:]) },
		"torn with zeros":    func() { clear(p[7*block.SectorSize:]) },
		"one bit":            func() { p[100] ^= 4 },
		"of another block":   func() { fill(p, 1, number+1) },
		"sectors exchanged":  func() { copy(p[:block.SectorSize], p[block.SectorSize:]) },
		"not of this test's": func() { clear(p); p[9] = 1 },
	} {
		fill(p, 1, number)
		spoil()
		if v, err := valueOf(p, number); err == nil {
			t.Errorf("%s: taken for value %d", name, v)
		}
	}
}
