//go:build sim

package sim

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"sanctuary/blockstore/block"
)

// A tagged sector is 512 bytes: the mark, value, block and sector, and then a pattern that follows from them. No two have the same
// checksum for the product but by chance, so what it stores in a wrong place it can notice.
var sectorMark = []byte("SANSIMUL")

func fill(p []byte, v value, n uint64) {
	clear(p)
	if v == 0 {
		return
	}
	for i := range uint64(block.SectorsPerBlock) {
		s := p[i*block.SectorSize:][:block.SectorSize]
		copy(s, sectorMark)
		binary.LittleEndian.PutUint64(s[8:], uint64(v))
		binary.LittleEndian.PutUint64(s[16:], n)
		binary.LittleEndian.PutUint64(s[24:], i)
		x := uint64(v)*0x9E3779B97F4A7C15 ^ n*0xBF58476D1CE4E5B9 ^ i<<32
		for at := 32; at < len(s); at += 8 {
			x = x*6364136223846793005 + 1442695040888963407
			binary.LittleEndian.PutUint64(s[at:], x)
		}
	}
}

// valueOf reads a block back; an error says that no single write has left it so.
func valueOf(p []byte, n uint64) (value, error) {
	v := value(0)
	if bytes.Equal(p[:len(sectorMark)], sectorMark) {
		v = value(binary.LittleEndian.Uint64(p[8:]))
	}
	want := make([]byte, block.Size)
	if fill(want, v, n); !bytes.Equal(p, want) {
		return 0, fmt.Errorf("block %d is torn, misplaced or damaged: it begins like value %d", n, v)
	}
	return v, nil
}

func rangeOf(n uint64, count int) block.Range {
	return block.BytesRange(int64(n)*block.Size, int64(count)*block.Size)
}
