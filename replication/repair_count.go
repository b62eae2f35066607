package replication

import (
	"bytes"
	"cmp"
	"math/bits"
	"slices"
	"sync"
	"time"
)

// repairs counts bad blocks, and remembers where some are left so that they are tried again and an operator hears of them.
type repairs struct {
	mu   sync.Mutex
	n    RepairStatus
	left map[chunkKey]uint64
}

// maxLeft bounds the chunks whose bad blocks are remembered: 16 GiB of them. What is beyond it the next scrub finds again.
const maxLeft = 65536

// RepairStatus counts blocks of one replica, since its process has started.
type RepairStatus struct {
	Bad        uint64    `json:"bad"`        // did not match their checksum, or the record of it was bad
	Repaired   uint64    `json:"repaired"`   // of those, written again from another copy
	Unrepaired uint64    `json:"unrepaired"` // bad now: no other copy could be read
	Pages      uint64    `json:"pages"`      // of metadata and checksums: damaged on the medium, and written again from memory
	Last       time.Time `json:"last"`       // when a block or page was found; zero: never
}

// found notes bad blocks and says whether some of them were not known.
func (r *repairs) found(key chunkKey, bad uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	fresh := bad &^ r.left[key]
	if fresh == 0 {
		return false
	}
	r.n.Bad += uint64(bits.OnesCount64(fresh))
	r.n.Last = time.Now()
	if r.left == nil {
		r.left = map[chunkKey]uint64{}
	}
	if _, known := r.left[key]; known || len(r.left) < maxLeft {
		r.left[key] |= bad
	}
	return true
}

// pages notes damaged pages that have been written again.
func (r *repairs) pages(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n.Pages += uint64(n)
	r.n.Last = time.Now()
}

func (r *repairs) repaired(key chunkKey, blocks uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n.Repaired += uint64(bits.OnesCount64(blocks))
	r.keepLocked(key, r.left[key]&^blocks)
}

// good notes what of a chunk is still bad: the rest has been overwritten.
func (r *repairs) good(key chunkKey, bad uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keepLocked(key, r.left[key]&bad)
}

func (r *repairs) keepLocked(key chunkKey, bad uint64) {
	if bad == 0 {
		delete(r.left, key)
		return
	}
	r.left[key] = bad
}

// chunks returns where something is left to repair, the live contents first: a snapshot's lost block may have to wait for them.
func (r *repairs) chunks() []chunkKey {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]chunkKey, 0, len(r.left))
	for k := range r.left {
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b chunkKey) int {
		return cmp.Or(bytes.Compare(a.snapshot[:], b.snapshot[:]), cmp.Compare(a.chunk, b.chunk)) // the zero ID is the live state's
	})
	return out
}

func (r *repairs) status() RepairStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.n
	for _, bad := range r.left {
		s.Unrepaired += uint64(bits.OnesCount64(bad))
	}
	return s
}
