package replication

import (
	"context"
	"slices"
	"sync"

	"sanctuary/blockstore/block"
)

// rangeLocks lets commands on overlapping ranges run one after another, in the order they came. Commands elsewhere do not
// wait for each other. The number of tickets is bounded by the commands in flight (a few hundred), so a list is enough.
type rangeLocks struct {
	mu      sync.Mutex
	tickets []*rangeTicket // held and waiting, in order of arrival
}

type rangeTicket struct {
	ranges   []block.Range
	blockers int           // earlier tickets that overlap this one
	granted  chan struct{} // closed when blockers reaches 0

	one [1]block.Range // memory of ranges
}

func (t *rangeTicket) overlaps(o *rangeTicket) bool {
	for _, a := range t.ranges {
		for _, b := range o.ranges {
			if a.Overlaps(b) {
				return true
			}
		}
	}
	return false
}

// lock waits until no earlier command holds an overlapping range, or ctx ends. The caller must unlock the ticket.
func (l *rangeLocks) lock(ctx context.Context, ranges ...block.Range) (*rangeTicket, error) {
	t := &rangeTicket{}
	t.ranges = append(t.one[:0], ranges...)
	l.mu.Lock()
	for _, o := range l.tickets {
		if t.overlaps(o) {
			t.blockers++
		}
	}
	l.tickets = append(l.tickets, t)
	if t.blockers == 0 {
		l.mu.Unlock()
		return t, nil
	}
	t.granted = make(chan struct{})
	l.mu.Unlock()
	select {
	case <-t.granted:
		return t, nil
	case <-ctx.Done():
		l.unlock(t)
		return nil, ctx.Err()
	}
}

func (l *rangeLocks) unlock(t *rangeTicket) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.tickets, t)
	l.tickets = slices.Delete(l.tickets, i, i+1)
	for _, o := range l.tickets[i:] {
		if o.overlaps(t) {
			if o.blockers--; o.blockers == 0 {
				close(o.granted)
			}
		}
	}
}
