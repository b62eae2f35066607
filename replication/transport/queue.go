package transport

import (
	"context"
	"fmt"
	"sync"

	"google.golang.org/protobuf/proto"

	"sanctuary/proto/peerpb"
)

// maxControlFrame is where a batch of control messages ends, in bytes; one larger message may go alone.
const maxControlFrame = 256 << 10

// controlQueue is what waits to be sent on one control stream. Whatever gathers while a frame is being sent goes out as the
// next frame: batching without delay. Beyond limit bytes push refuses with ErrBusy: the other end does not read.
type controlQueue struct {
	limit int
	wake  chan struct{} // capacity 1

	mu      sync.Mutex
	waiting []*peerpb.ControlMessage
	bytes   int
}

func newControlQueue(limit int) *controlQueue {
	return &controlQueue{limit: limit, wake: make(chan struct{}, 1)}
}

func (q *controlQueue) push(msg *peerpb.ControlMessage) error {
	size := proto.Size(msg) + messageOverhead
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.bytes+size > q.limit {
		return fmt.Errorf("%w: %d bytes of control messages", ErrBusy, q.bytes)
	}
	q.bytes += size
	q.waiting = append(q.waiting, msg)
	select {
	case q.wake <- struct{}{}:
	default:
	}
	return nil
}

// messageOverhead stands for the memory a message takes beside its bytes on the wire.
const messageOverhead = 128

// take gives the next batch, empty if nothing waits.
func (q *controlQueue) take() []*peerpb.ControlMessage {
	q.mu.Lock()
	defer q.mu.Unlock()
	bytes, n := 0, 0
	for n < len(q.waiting) {
		size := proto.Size(q.waiting[n]) + messageOverhead
		if n > 0 && bytes+size > maxControlFrame {
			break
		}
		bytes += size
		n++
	}
	batch := q.waiting[:n:n]
	q.waiting = q.waiting[n:]
	if len(q.waiting) == 0 {
		q.waiting = nil // let the array go
	}
	q.bytes -= bytes
	return batch
}

// run sends until ctx ends or send fails.
func (q *controlQueue) run(ctx context.Context, send func(*peerpb.ControlFrame) error) error {
	for {
		select {
		case <-q.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		for batch := q.take(); len(batch) > 0; batch = q.take() {
			if err := send(&peerpb.ControlFrame{Messages: batch}); err != nil {
				return err
			}
		}
	}
}
