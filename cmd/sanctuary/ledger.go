package main

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"

	"sanctuary/blockstore/block"
)

// A tagged block is 4 KiB, little-endian:
//
//	offset  bytes  content
//	0       8      "SANDRILL"
//	8       8      run: random, so that blocks of an earlier drill are never taken for this one's
//	16      8      block number on the LUN: a block in the wrong place is noticed
//	24      8      sequence: 1 for the first write of this block in this run, and so on
//	32      4060   a pattern that follows from the above: no part of two blocks is equal by chance
//	4092    4      CRC32C of all before it: a torn block is noticed
const (
	tagMagic   = "SANDRILL"
	tagPattern = 32
	tagCRC     = block.Size - 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// fillBlock writes a tagged block into p, which is block.Size long.
func fillBlock(p []byte, run, lba, seq uint64) {
	copy(p, tagMagic)
	binary.LittleEndian.PutUint64(p[8:], run)
	binary.LittleEndian.PutUint64(p[16:], lba)
	binary.LittleEndian.PutUint64(p[24:], seq)
	x := run ^ lba*0x9E3779B97F4A7C15 ^ seq*0xBF58476D1CE4E5B9 | 1
	for i := tagPattern; i < tagCRC; i += 4 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint32(p[i:], uint32(x>>16))
	}
	binary.LittleEndian.PutUint32(p[tagCRC:], crc32.Checksum(p[:tagCRC], castagnoli))
}

// readTag returns the sequence in a block. ours is false if no block of this run was ever there; err tells of one that is
// damaged or belongs elsewhere.
func readTag(p []byte, run, lba uint64) (seq uint64, ours bool, err error) {
	if string(p[:len(tagMagic)]) != tagMagic || binary.LittleEndian.Uint64(p[8:]) != run {
		return 0, false, nil
	}
	if crc32.Checksum(p[:tagCRC], castagnoli) != binary.LittleEndian.Uint32(p[tagCRC:]) {
		return 0, true, fmt.Errorf("block %d is torn or damaged: its checksum is wrong", lba)
	}
	if at := binary.LittleEndian.Uint64(p[16:]); at != lba {
		return 0, true, fmt.Errorf("block %d holds what was written to block %d", lba, at)
	}
	return binary.LittleEndian.Uint64(p[24:]), true, nil
}

// ledger remembers what was written to each block and what the LUN said about it, so that a read can be judged.
//
// Each block is a register with one writer at a time. A write is open from begin until acknowledge; one that never was
// acknowledged stays open: it may or may not have happened, and may still happen. A newer acknowledged write closes older
// open ones, for an older one that lands behind it is exactly what must not be.
type ledger struct {
	run uint64

	mu     sync.Mutex // guards blocks; never held during I/O
	blocks map[uint64]*register
}

type register struct {
	last  uint64   // newest sequence given out
	acked uint64   // newest acknowledged, or read back; 0 = none
	open  []uint64 // newer than acked, ascending
}

func newLedger(run uint64) *ledger { return &ledger{run: run, blocks: map[uint64]*register{}} }

// begin opens the next write of a block and fills p with it.
func (l *ledger) begin(lba uint64, p []byte) (seq uint64) {
	l.mu.Lock()
	r := l.blocks[lba]
	if r == nil {
		r = &register{}
		l.blocks[lba] = r
	}
	r.last++
	seq = r.last
	r.open = append(r.open, seq)
	l.mu.Unlock()
	fillBlock(p, l.run, lba, seq)
	return seq
}

// acknowledge records that the LUN answered GOOD to a write.
func (l *ledger) acknowledge(lba, seq uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.blocks[lba].settle(seq)
}

// settle makes seq the newest known value.
func (r *register) settle(seq uint64) {
	r.acked = max(r.acked, seq)
	r.open = slices.DeleteFunc(r.open, func(s uint64) bool { return s <= r.acked })
}

// judge returns an error that says what is wrong with p as the content of a block, read when no write to it was running.
// A good value becomes the newest known: a later read may not go behind it.
func (l *ledger) judge(lba uint64, p []byte) error {
	seq, ours, err := readTag(p, l.run, lba)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.blocks[lba]
	if r == nil {
		r = &register{}
	}
	switch {
	case !ours && r.acked == 0:
		return nil
	case !ours:
		return fmt.Errorf("block %d: acknowledged write %d is lost: nothing of this run is there", lba, r.acked)
	case seq == r.acked:
		return nil
	case slices.Contains(r.open, seq):
		r.settle(seq)
		return nil
	case seq < r.acked:
		return fmt.Errorf("block %d: acknowledged write %d is lost: write %d is there instead", lba, r.acked, seq)
	}
	return fmt.Errorf("block %d holds write %d, which was never made (the last was %d)", lba, seq, r.last)
}

// touched returns the blocks that were written to, ascending.
func (l *ledger) touched() []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]uint64, 0, len(l.blocks))
	for lba := range l.blocks {
		out = append(out, lba)
	}
	slices.Sort(out)
	return out
}
