package transport

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"sanctuary/proto/peerpb"
)

func ping(id uint64) *peerpb.ControlMessage {
	return &peerpb.ControlMessage{Id: id, Body: &peerpb.ControlMessage_Ping{Ping: &peerpb.Ping{}}}
}

func TestWhatGathersWhileAFrameIsSentGoesOutAsOneFrame(t *testing.T) {
	q := newControlQueue(1 << 20)
	ctx, cancel := context.WithCancelCause(t.Context())
	frames := make(chan *peerpb.ControlFrame)
	ended := make(chan error, 1)
	go func() {
		ended <- q.run(ctx, func(f *peerpb.ControlFrame) error { frames <- f; return nil })
	}()
	if err := q.push(ping(1)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "first frame is being sent", func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.bytes == 0
	})
	for id := uint64(2); id <= 501; id++ { // heartbeats of 500 groups
		if err := q.push(ping(id)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len((<-frames).GetMessages()); n != 1 {
		t.Errorf("first frame has %d messages", n)
	}
	second := <-frames
	if n := len(second.GetMessages()); n != 500 {
		t.Errorf("second frame has %d messages, want all that were waiting", n)
	}
	for i, msg := range second.GetMessages() {
		if msg.GetId() != uint64(i)+2 {
			t.Fatalf("message %d is %d: order is lost", i, msg.GetId())
		}
	}
	cancel(ErrClosed)
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("ended with %v", err)
	}
}

func TestControlQueueIsBoundedAndCutsFrames(t *testing.T) {
	q := newControlQueue(1 << 20)
	body := make([]byte, 100<<10)
	pushed := 0
	for {
		err := q.push(&peerpb.ControlMessage{Body: &peerpb.ControlMessage_CallRequest{CallRequest: &peerpb.CallRequest{Body: body}}})
		if errors.Is(err, ErrBusy) {
			break
		}
		if pushed++; pushed > 11 {
			t.Fatal("the queue takes more than its limit")
		}
	}
	taken := 0
	for batch := q.take(); len(batch) > 0; batch = q.take() {
		if size := proto.Size(&peerpb.ControlFrame{Messages: batch}); size > maxControlFrame {
			t.Errorf("frame of %d bytes", size)
		}
		taken += len(batch)
	}
	if taken != pushed || q.bytes != 0 {
		t.Errorf("took %d of %d, %d bytes left on the books", taken, pushed, q.bytes)
	}
	if err := q.push(ping(1)); err != nil {
		t.Errorf("after the queue was emptied: %v", err)
	}
}

func TestBudgetIsHandedOutInOrderAndNeverLost(t *testing.T) {
	b := newBudget(100)
	if err := b.take(t.Context(), 80); err != nil {
		t.Fatal(err)
	}
	large := make(chan error, 1)
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() { large <- b.take(ctx, 90) }()
	waiting := func(n int) func() bool {
		return func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(b.waiting) == n }
	}
	eventually(t, "the large one waits", waiting(1))
	small := make(chan error, 1)
	go func() { small <- b.take(t.Context(), 10) }()
	eventually(t, "the small one waits behind it, though it would fit", waiting(2))
	cancel(ErrClosed)
	if err := <-large; !errors.Is(err, ErrClosed) {
		t.Errorf("cancelled: %v", err)
	}
	select {
	case err := <-small:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the small one was left behind by a waiter that gave up")
	}
	b.give(80)
	b.give(10)
	if b.free != 100 {
		t.Errorf("%d of 100 left", b.free)
	}
}
