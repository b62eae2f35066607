package replication

import (
	"errors"
	"testing"

	"sanctuary/blockstore/block"
)

// A COMPARE AND WRITE whose owner lost the LUN waits until it is certain what became of it. With three copies it may have been applied in a later
// term and wait for a copy in sync; then it has happened, whatever its term.
func TestSealDoesNotDenyWhatWaitsForACopy(t *testing.T) {
	for _, parked := range []bool{false, true} {
		w := &write{fence: 3, done: make(chan error, 1), late: make(chan error, 1), parts: 1}
		w.only.w = w
		p := &proposer{inflight: map[uint64]*entry{7: {parts: []*part{&w.only}}}, eager: 1}
		p.unknown(7)
		if err := <-w.done; !errors.Is(err, block.ErrUnknown) {
			t.Fatalf("after the loss of the LUN: %v", err)
		}
		if parked {
			p.park(7)
		}
		p.seal(4)
		p.settled(7, nil)
		err := <-w.late
		if parked && err != nil || !parked && !errors.Is(err, block.ErrNotOwner) {
			t.Errorf("applied and parked %v: the writer was told %v", parked, err)
		}
	}
}
