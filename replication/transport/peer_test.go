package transport

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"sanctuary/proto/peerpb"
)

type peerEvent struct {
	node  string
	up    bool
	cause error
	at    time.Time
}

// events collects what observers are told.
type events struct {
	mu   sync.Mutex
	list []peerEvent
}

func watchPeers(m *Mux) *events {
	e := new(events)
	m.OnPeer(func(node string, up bool, cause error) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.list = append(e.list, peerEvent{node, up, cause, time.Now()})
	})
	return e
}

// await waits for the nth event (from 0), which must be up or not.
func (e *events) await(t *testing.T, n int, up bool) peerEvent {
	t.Helper()
	eventually(t, fmt.Sprintf("peer event %d", n), func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return len(e.list) > n
	})
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.list[n].up != up {
		t.Fatalf("event %d is %+v, want up=%v", n, e.list[n], up)
	}
	return e.list[n]
}

func TestAKilledPeerIsReportedAtOnceAndReachedAgainSoonAfterItsReturn(t *testing.T) {
	n := newNetwork()
	a, b := n.start(t, "a", ""), n.start(t, "b", "")
	tap := newTap(t, b.addr)
	n.set("b", tap.addr())
	seen := watchPeers(a.Mux)
	a.Connect("b")
	seen.await(t, 0, true)
	killed := time.Now()
	n.set("b", "127.0.0.1:1") // nobody listens
	tap.cut()
	down := seen.await(t, 1, false)
	if took := down.at.Sub(killed); took > 500*time.Millisecond || !errors.Is(down.cause, ErrUnreachable) {
		t.Errorf("down after %s with cause %v", took, down.cause)
	}
	if _, err := a.Call(t.Context(), "b", "x", nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("call to a dead peer: %v", err)
	}
	time.Sleep(time.Second) // long enough for the pauses to have grown to their longest
	back := time.Now()
	n.set("b", b.addr)
	up := seen.await(t, 2, true)
	// ReconnectMax is 200 ms; the rest is for a starved machine.
	if took := up.at.Sub(back); took > 700*time.Millisecond {
		t.Errorf("back up after %s", took)
	}
}

func TestAReturningPeerThatDialsIsReachedWithoutWaiting(t *testing.T) {
	n := newNetwork()
	a := n.start(t, "a", "", func(c *Config) { c.Limits.ReconnectMin, c.Limits.ReconnectMax = time.Minute, time.Minute })
	b := n.start(t, "b", "")
	n.set("b", "127.0.0.1:1")
	a.Connect("b")
	eventually(t, "first attempt fails", func() bool {
		_, err := a.Call(t.Context(), "b", "x", nil)
		return errors.Is(err, ErrUnreachable)
	})
	n.set("b", b.addr)
	b.Connect("a")
	eventually(t, "a dials back", func() bool { return a.Up("b") }) // or a minute passes, and the test fails
}

func TestASilentPeerIsDownAfterPeerTimeoutAndBlocksNobody(t *testing.T) {
	n := newNetwork()
	a := n.start(t, "a", "")
	b, c := n.start(t, "b", ""), n.start(t, "c", "")
	tap := newTap(t, b.addr)
	n.set("b", tap.addr())
	echo := func(_ context.Context, from string, req []byte) ([]byte, error) {
		return append([]byte(from+":"), req...), nil
	}
	for _, m := range []*testNode{b, c} {
		if err := m.Handle("echo", echo); err != nil {
			t.Fatal(err)
		}
	}
	seen := watchPeers(a.Mux)
	a.Connect("b")
	seen.await(t, 0, true)
	tap.hold()
	held := time.Now()
	var wg sync.WaitGroup
	wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if _, err := a.Call(ctx, "b", "echo", nil); !errors.Is(err, ErrUnreachable) {
			t.Errorf("call to a silent peer: %v", err)
		}
	})
	within(t, 5*time.Second, "calls to another peer", func() {
		for range 20 {
			if got, err := a.Call(context.Background(), "c", "echo", []byte("hi")); err != nil || string(got) != "a:hi" {
				t.Errorf("call to c: %q, %v", got, err)
			}
		}
	})
	wg.Wait()
	eventually(t, "b is down", func() bool { return !a.Up("b") })
	if took := time.Since(held); took < 900*time.Millisecond || took > 3*time.Second {
		t.Errorf("silence was noticed after %s", took)
	}
	tap.release()
	eventually(t, "b is up again", func() bool { return a.Up("b") })
	if _, err := a.Call(t.Context(), "b", "echo", nil); err != nil {
		t.Errorf("call after the silence: %v", err)
	}
}

func TestHelloRefusesForeignClustersAndWrongNodes(t *testing.T) {
	n := newNetwork()
	a := n.start(t, "a", "")
	foreign := n.start(t, "foreign", "", func(c *Config) { c.Cluster = "another" })
	n.set("alias", a.addr)
	b := n.start(t, "b", "")
	for _, c := range []struct {
		from *testNode
		to   string
		want error
	}{{foreign, "a", ErrWrongCluster}, {b, "foreign", ErrWrongCluster}, {b, "alias", ErrWrongNode}, {b, "nowhere", ErrUnreachable}} {
		if _, err := c.from.Call(t.Context(), c.to, "x", nil); !errors.Is(err, c.want) || !errors.Is(err, ErrUnreachable) {
			t.Errorf("call to %s: %v, want %v and unreachable", c.to, err, c.want)
		}
	}
}

func TestCallsCarryAnswersErrorsAndLimits(t *testing.T) {
	n := newNetwork()
	a, b := n.start(t, "a", ""), n.start(t, "b", "")
	big := make([]byte, a.cfg.Limits.BulkCallBytes)
	handlers := map[string]Handler{
		"big": func(context.Context, string, []byte) ([]byte, error) { return big, nil },
		"fail": func(context.Context, string, []byte) ([]byte, error) {
			return nil, &HandlerError{Code: 42, Text: "as agreed"}
		},
		"hang": func(ctx context.Context, _ string, _ []byte) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() },
	}
	for method, h := range handlers {
		if err := b.Handle(method, h); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Handle("big", handlers["big"]); !errors.Is(err, ErrExists) {
		t.Errorf("second handler: %v", err)
	}
	if _, err := a.Call(t.Context(), "b", "big", nil); !errors.Is(err, ErrTooLarge) {
		t.Errorf("large answer on the control connection: %v", err)
	}
	if got, err := a.CallBulk(t.Context(), "b", "big", nil); err != nil || len(got) != len(big) {
		t.Errorf("bulk: %d bytes, %v", len(got), err)
	}
	if _, err := a.CallBulk(t.Context(), "b", "big", append(big, 0)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large a bulk request: %v", err)
	}
	for name, call := range map[string]func(context.Context, string, string, []byte) ([]byte, error){"Call": a.Call, "CallBulk": a.CallBulk} {
		var remote *RemoteError
		if _, err := call(t.Context(), "b", "fail", nil); !errors.Is(err, ErrHandler) || !errors.As(err, &remote) ||
			remote.Detail != 42 || !strings.Contains(remote.Text, "as agreed") || errors.Is(err, ErrUnreachable) {
			t.Errorf("%s of a failing handler: %v", name, err)
		}
		if _, err := call(t.Context(), "b", "nobody", nil); !errors.Is(err, ErrUnknownMethod) {
			t.Errorf("%s of an unknown method: %v", name, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, err := call(ctx, "b", "hang", nil); !errors.Is(err, ErrTimeout) {
			t.Errorf("%s of a hanging handler: %v", name, err)
		}
		cancel()
		ctx, cancel = context.WithCancel(t.Context())
		cancel()
		if _, err := call(ctx, "b", "hang", nil); !errors.Is(err, context.Canceled) {
			t.Errorf("%s cancelled by its caller: %v", name, err)
		}
	}
}

func TestCallsBeyondTheLimitAreRefusedNotQueued(t *testing.T) {
	n := newNetwork()
	a := n.start(t, "a", "")
	b := n.start(t, "b", "", func(c *Config) { c.Limits.CallsPerPeer = 8 })
	entered := make(chan struct{}, 16)
	release := make(chan struct{})
	if err := b.Handle("hang", func(context.Context, string, []byte) ([]byte, error) {
		entered <- struct{}{}
		<-release
		return nil, nil
	}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		call  func(context.Context, string, string, []byte) ([]byte, error)
		limit int
	}{"Call": {a.Call, 8}, "CallBulk": {a.CallBulk, 2}} {
		var wg sync.WaitGroup
		for range c.limit {
			wg.Go(func() {
				if _, err := c.call(t.Context(), "b", "hang", nil); err != nil {
					t.Errorf("%s within the limit: %v", name, err)
				}
			})
		}
		for range c.limit {
			<-entered
		}
		if _, err := c.call(t.Context(), "b", "hang", nil); !errors.Is(err, ErrBusy) {
			t.Errorf("%s beyond the limit: %v", name, err)
		}
		for range c.limit {
			release <- struct{}{}
		}
		wg.Wait()
	}
}

func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	n := newNetwork()
	a, b := n.start(t, "a", ""), n.start(t, "b", "")
	entered := make(chan struct{}, 1)
	if err := b.Handle("hang", func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
		entered <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := a.Call(context.Background(), "b", "hang", nil)
		failed <- err
	}()
	<-entered
	within(t, 5*time.Second, "close of the called node", func() { b.stop(t) })
	if err := <-failed; !errors.Is(err, ErrUnreachable) {
		t.Errorf("call that was under way: %v", err)
	}
	within(t, 5*time.Second, "close of the calling node", func() { a.stop(t) })
	if _, err := a.Call(t.Context(), "b", "hang", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("call after close: %v", err)
	}
	if _, err := a.Group(GroupConfig{Group: "g", Self: "s"}); !errors.Is(err, ErrClosed) {
		t.Errorf("group after close: %v", err)
	}
}

// Versions are agreed on per connection, so that a cluster is upgraded node by node; what was spoken last is remembered.
func TestProtocolIsTheNewestBothSpeak(t *testing.T) {
	n := newNetwork()
	a, b := n.start(t, "a", ""), n.start(t, "b", "")
	if v := a.Protocol("b"); v != 0 {
		t.Fatalf("version %d before there was a connection", v)
	}
	a.Connect("b")
	eventually(t, "connected", func() bool { return a.Up("b") })
	if v := a.Protocol("b"); v != protocolMax {
		t.Fatalf("version %d, both speak %d", v, protocolMax)
	}
	b.stop(t)
	eventually(t, "it is gone", func() bool { return !a.Up("b") })
	if v := a.Protocol("b"); v != protocolMax {
		t.Fatalf("version %d of a node that is away", v)
	}
	for offered, want := range map[uint32]uint32{1: 1, ProtocolSnapshots: ProtocolSnapshots, protocolMax + 1: protocolMax} {
		got := a.greet(&peerpb.Hello{Cluster: a.cfg.Cluster, Node: "b", ToNode: "a", ProtocolMin: 1, ProtocolMax: offered})
		if got.GetStatus() != nil || got.GetProtocolMin() != want {
			t.Errorf("to a node that speaks up to %d: version %d, %v", offered, got.GetProtocolMin(), got.GetStatus())
		}
	}
}
