package blockstore

import (
	"fmt"
	"math"
	"math/bits"

	"sanctuary/blockstore/block"
)

// maxSlots bounds a pool: slot numbers have 32 bits, of which the last is lostSlot. That is 1 PiB.
const maxSlots = math.MaxUint32

// slots knows which data slots of a medium are taken: one bit each. It takes the lowest free ones, so that a thin file
// stays short and large writes get neighbours. It is guarded by Pool.slotsMu.
type slots struct {
	taken []uint64
	count uint32 // slots there are; they are numbered from 1
	free  uint32
	hint  int // no word before it has a free slot
}

func newSlots(count uint32) *slots {
	s := &slots{taken: make([]uint64, (uint64(count)+1+63)/64), count: count, free: count}
	if tail := (uint64(count) + 1) % 64; tail != 0 {
		s.taken[len(s.taken)-1] = ^uint64(0) << tail // beyond the end
	}
	s.taken[0] |= 1 // there is no slot 0
	return s
}

// mark takes one slot; false says that there is no such slot, or that it was taken before.
func (s *slots) mark(slot uint32) bool {
	if slot > s.count || s.taken[slot/64]>>(slot%64)&1 == 1 {
		return false
	}
	s.taken[slot/64] |= 1 << (slot % 64)
	s.free--
	return true
}

// take appends n free slots to dst in ascending order, or returns block.ErrNoSpace and takes none.
func (s *slots) take(n int, dst []uint32) ([]uint32, error) {
	if uint64(n) > uint64(s.free) {
		return dst, fmt.Errorf("%w: %d chunks needed, %d free", block.ErrNoSpace, n, s.free)
	}
	for ; n > 0; n-- {
		for s.taken[s.hint] == math.MaxUint64 {
			s.hint++
		}
		bit := bits.TrailingZeros64(^s.taken[s.hint])
		s.taken[s.hint] |= 1 << bit
		s.free--
		dst = append(dst, uint32(s.hint*64+bit))
	}
	return dst, nil
}

func (s *slots) release(slot uint32) {
	word := int(slot / 64)
	s.taken[word] &^= 1 << (slot % 64)
	s.free++
	s.hint = min(s.hint, word)
}
