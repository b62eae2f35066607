package transport

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// pair is two nodes with a replica each of group "g", without Raft: the test answers for b itself.
type pair struct {
	net  *network
	a, b *testNode
	from *GroupTransport // on a
	to   *GroupTransport // on b
	tap  *tap            // between them, seen from a
}

func newPair(t testing.TB, change func(*GroupConfig), limits ...func(*Config)) *pair {
	t.Helper()
	p := &pair{net: newNetwork()}
	p.a, p.b = p.net.start(t, "a", "", limits...), p.net.start(t, "b", "", limits...)
	p.tap = newTap(t, p.b.addr)
	p.net.set("b", p.tap.addr())
	var err error
	cfg := GroupConfig{Group: "g", Epoch: 7, Self: "server-a"}
	if change != nil {
		change(&cfg)
	}
	if p.from, err = p.a.Group(cfg); err != nil {
		t.Fatal(err)
	}
	cfg.Self = "server-b"
	if p.to, err = p.b.Group(cfg); err != nil {
		t.Fatal(err)
	}
	return p
}

// serve answers b's requests as a follower's Raft that accepts everything, until the test ends.
func (p *pair) serve(t testing.TB) { serveWith(t, p.to, accept) }

func serveWith(t testing.TB, g *GroupTransport, answer func(raft.RPC)) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case rpc := <-g.Consumer():
				answer(rpc)
			case <-stop:
				return
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-stopped })
}

func accept(rpc raft.RPC) {
	switch c := rpc.Command.(type) {
	case *raft.AppendEntriesRequest:
		last := c.PrevLogEntry
		if n := len(c.Entries); n > 0 {
			last = c.Entries[n-1].Index
		}
		rpc.Respond(&raft.AppendEntriesResponse{Term: c.Term, Success: true, LastLog: last}, nil)
	case *raft.RequestVoteRequest:
		rpc.Respond(&raft.RequestVoteResponse{Term: c.Term, Granted: true}, nil)
	case *raft.RequestPreVoteRequest:
		rpc.Respond(&raft.RequestPreVoteResponse{Term: c.Term, Granted: true}, nil)
	case *raft.TimeoutNowRequest:
		rpc.Respond(&raft.TimeoutNowResponse{}, nil)
	case *raft.InstallSnapshotRequest:
		_, err := io.Copy(io.Discard, rpc.Reader)
		rpc.Respond(&raft.InstallSnapshotResponse{Term: c.Term, Success: err == nil}, err)
	}
}

// request makes an AppendEntries of one entry after index prev.
func request(prev uint64, data []byte) *raft.AppendEntriesRequest {
	return &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte("server-a"), Addr: []byte("a")}, Term: 2,
		PrevLogEntry: prev, PrevLogTerm: 2, LeaderCommitIndex: prev, Entries: []*raft.Log{{Index: prev + 1, Term: 2, Data: data}},
	}
}

// everyRequest sends one of each kind and gives the errors by name.
func (p *pair) everyRequest(id raft.ServerID) map[string]error {
	out := map[string]error{
		"heartbeat":  p.from.AppendEntries(id, "b", &raft.AppendEntriesRequest{Term: 2}, new(raft.AppendEntriesResponse)),
		"vote":       p.from.RequestVote(id, "b", &raft.RequestVoteRequest{Term: 2}, new(raft.RequestVoteResponse)),
		"pre-vote":   p.from.RequestPreVote(id, "b", &raft.RequestPreVoteRequest{Term: 2}, new(raft.RequestPreVoteResponse)),
		"timeout":    p.from.TimeoutNow(id, "b", &raft.TimeoutNowRequest{}, new(raft.TimeoutNowResponse)),
		"append":     p.from.AppendEntries(id, "b", request(1, []byte("x")), new(raft.AppendEntriesResponse)),
		"big append": p.from.AppendEntries(id, "b", request(1, make([]byte, 3<<20)), new(raft.AppendEntriesResponse)),
	}
	pipe, err := p.from.AppendEntriesPipeline(id, "b")
	if err == nil {
		var f raft.AppendFuture
		if f, err = pipe.AppendEntries(request(1, []byte("x")), new(raft.AppendEntriesResponse)); err == nil {
			err = f.Error()
		}
		_ = pipe.Close()
	}
	out["pipeline"] = err
	if p.from.cfg.AllowSnapshot {
		out["snapshot"] = p.from.InstallSnapshot(id, "b", &raft.InstallSnapshotRequest{Term: 2, Size: 600 << 10},
			new(raft.InstallSnapshotResponse), bytes.NewReader(make([]byte, 600<<10)))
	}
	return out
}

func TestEveryRequestIsCarriedOutWhenAddressedRightly(t *testing.T) {
	p := newPair(t, func(c *GroupConfig) { c.AllowSnapshot = true })
	p.serve(t)
	for kind, err := range p.everyRequest("server-b") {
		if err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

func TestRequestsForAnotherIncarnationAreRefusedBeforeRaftSeesThem(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*pair)
		id     raft.ServerID
		want   error
	}{
		"server id": {func(*pair) {}, "server-b-before-its-restart", ErrWrongServer},
		"epoch":     {func(p *pair) { p.from.cfg.Epoch = 6 }, "server-b", ErrWrongEpoch},
		"group":     {func(p *pair) { p.from.cfg.Group = "h" }, "server-b", ErrUnknownGroup},
		"closed":    {func(p *pair) { _ = p.to.Close() }, "server-b", ErrUnknownGroup},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, func(c *GroupConfig) { c.AllowSnapshot = true })
			serveWith(t, p.to, func(rpc raft.RPC) {
				t.Errorf("Raft was given %T", rpc.Command)
				accept(rpc)
			})
			c.change(p)
			for kind, err := range p.everyRequest(c.id) {
				if !errors.Is(err, c.want) {
					t.Errorf("%s: %v, want %v", kind, err, c.want)
				}
			}
		})
	}
	t.Run("cluster", func(t *testing.T) {
		p := newPair(t, nil)
		p.a.Connect("b")
		eventually(t, "connection", func() bool { return p.a.Up("b") })
		p.a.cfg.Cluster = "another" // after the hello: what each request carries counts
		for kind, err := range p.everyRequest("server-b") {
			if !errors.Is(err, ErrWrongCluster) {
				t.Errorf("%s: %v", kind, err)
			}
		}
	})
}

// TestAReplicaReopenedAsAnotherIncarnationIsNotReachedOverAnOldStream: streams outlive replicas, the check must not be theirs.
func TestAReplicaReopenedAsAnotherIncarnationIsNotReachedOverAnOldStream(t *testing.T) {
	p := newPair(t, nil)
	p.serve(t)
	pipe, err := p.from.AppendEntriesPipeline("server-b", "b")
	if err != nil {
		t.Fatal(err)
	}
	send := func() error {
		f, err := pipe.AppendEntries(request(1, []byte("x")), new(raft.AppendEntriesResponse))
		if err != nil {
			return err
		}
		return f.Error()
	}
	if err := send(); err != nil {
		t.Fatal(err)
	}
	_ = p.to.Close()
	again, err := p.b.Group(GroupConfig{Group: "g", Epoch: 7, Self: "server-b-with-amnesia"})
	if err != nil {
		t.Fatal(err)
	}
	serveWith(t, again, accept)
	if err := send(); !errors.Is(err, ErrWrongServer) {
		t.Errorf("to another incarnation over an old stream: %v", err)
	}
}

func TestSnapshotsAreRefusedOnBothSidesUnlessAllowed(t *testing.T) {
	p := newPair(t, nil)
	send := func() error {
		return p.from.InstallSnapshot("server-b", "b", &raft.InstallSnapshotRequest{Size: 1}, new(raft.InstallSnapshotResponse), strings.NewReader("x"))
	}
	err := send()
	var remote *RemoteError
	if !errors.Is(err, ErrSnapshotRefused) || errors.As(err, &remote) {
		t.Errorf("own side: %v", err)
	}
	p.from.cfg.AllowSnapshot = true
	if err := send(); !errors.Is(err, ErrSnapshotRefused) || !errors.As(err, &remote) {
		t.Errorf("other side: %v", err)
	}
}

func TestHooksSeeEveryRequestAndMayAnswer(t *testing.T) {
	var mu sync.Mutex
	var log []string
	note := func(s string) { mu.Lock(); defer mu.Unlock(); log = append(log, s) }
	p := newPair(t, func(c *GroupConfig) {
		c.Incoming = func(from raft.ServerID, node string, cmd any) (any, error, bool) {
			if from != "server-a" || node != "a" {
				t.Errorf("from %s on %s", from, node)
			}
			switch v := cmd.(type) {
			case *raft.RequestVoteRequest:
				return &raft.RequestVoteResponse{Term: 99}, nil, true
			case *raft.RequestPreVoteRequest:
				return nil, errors.New("lease: unexpected command"), true
			case *raft.AppendEntriesRequest:
				note("in")
				_ = v
			}
			return nil, nil, false
		}
		c.Answered = func(from raft.ServerID, cmd, resp any, err error) {
			if _, ok := resp.(*raft.AppendEntriesResponse); !ok || from != "server-a" || err != nil {
				t.Errorf("answered %T with %T, %v", cmd, resp, err)
			}
			note("answered")
		}
	})
	p.serve(t)
	var vote raft.RequestVoteResponse
	if err := p.from.RequestVote("server-b", "b", &raft.RequestVoteRequest{Term: 2}, &vote); err != nil || vote.Term != 99 {
		t.Errorf("hook's answer: %+v, %v", vote, err)
	}
	err := p.from.RequestPreVote("server-b", "b", &raft.RequestPreVoteRequest{Term: 2}, new(raft.RequestPreVoteResponse))
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "lease") || strings.Contains(err.Error(), "unexpected command") {
		t.Errorf("hook's refusal: %v", err)
	}
	for _, req := range []*raft.AppendEntriesRequest{{Term: 2}, request(1, []byte("x"))} {
		if err := p.from.AppendEntries("server-b", "b", req, new(raft.AppendEntriesResponse)); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		if got := strings.Join(log, " "); got != "in answered" {
			t.Errorf("when the answer arrived, hooks had seen %q", got)
		}
		log = nil
		mu.Unlock()
	}
}

func TestRequestsAStuckRaftDoesNotTakeAreWithdrawn(t *testing.T) {
	p := newPair(t, nil, func(c *Config) {
		c.Limits.HeartbeatTimeout, c.Limits.AppendTimeout, c.Limits.ControlPerGroup = time.Second, 300*time.Millisecond, 4
	})
	p.a.Connect("b")
	eventually(t, "connection", func() bool { return p.a.Up("b") })
	var wg sync.WaitGroup
	busy := make(chan error, 64)
	for range cap(busy) {
		wg.Go(func() {
			err := p.from.AppendEntries("server-b", "b", &raft.AppendEntriesRequest{Term: 2}, new(raft.AppendEntriesResponse))
			if !errors.Is(err, ErrTimeout) && !errors.Is(err, ErrBusy) {
				t.Errorf("heartbeat to a stuck Raft: %v", err)
			}
			busy <- err
		})
	}
	wg.Wait()
	close(busy)
	refused := 0
	for err := range busy {
		if errors.Is(err, ErrBusy) {
			refused++
		}
	}
	if refused == 0 {
		t.Error("requests piled up beyond ControlPerGroup")
	}
	if err := p.from.AppendEntries("server-b", "b", request(1, []byte("x")), new(raft.AppendEntriesResponse)); !errors.Is(err, ErrTimeout) {
		t.Errorf("append to a stuck Raft: %v", err)
	}
	// None is served late: the first thing Raft sees is new.
	p.serve(t)
	var resp raft.AppendEntriesResponse
	eventually(t, "service again", func() bool {
		return p.from.AppendEntries("server-b", "b", request(5, []byte("x")), &resp) == nil
	})
	if resp.LastLog != 6 {
		t.Errorf("answer %+v is another request's", resp)
	}
}

// While Raft is at the entries of an owner, and as long as that owner waits for their answer, its heartbeats are answered all the same. Those of another
// term are not.
func TestHeartbeatsAreAnsweredWhileRaftIsAtItsSendersEntries(t *testing.T) {
	stuck := make(chan raft.RPC, 1)
	p := newPair(t, func(c *GroupConfig) {
		c.StandIn = func(from raft.ServerID, heartbeat *raft.AppendEntriesRequest) *raft.AppendEntriesResponse {
			if from != "server-a" || heartbeat.Term != 2 {
				t.Errorf("asked to stand in for an answer to %s in term %d", from, heartbeat.Term)
			}
			return &raft.AppendEntriesResponse{Term: 2, LastLog: 77, Success: true}
		}
	}, func(c *Config) {
		c.Limits.HeartbeatTimeout, c.Limits.AppendTimeout = 300*time.Millisecond, 2*time.Second
	})
	serveWith(t, p.to, func(rpc raft.RPC) {
		stuck <- rpc
		<-t.Context().Done()
	})
	heartbeat := func(term uint64) (resp raft.AppendEntriesResponse, err error) {
		err = p.from.AppendEntries("server-b", "b", &raft.AppendEntriesRequest{Term: term}, &resp)
		return resp, err
	}
	appended := make(chan error, 1)
	entries := request(1, []byte("x"))
	go func() { appended <- p.from.AppendEntries("server-b", "b", entries, new(raft.AppendEntriesResponse)) }()
	<-stuck
	for range 5 {
		if resp, err := heartbeat(2); err != nil || !resp.Success || resp.LastLog != 77 {
			t.Fatalf("while Raft is busy: %+v, %v", resp, err)
		}
	}
	if _, err := heartbeat(3); !errors.Is(err, ErrTimeout) {
		t.Errorf("of another term: %v", err)
	}
	if err := <-appended; !errors.Is(err, ErrTimeout) {
		t.Errorf("the entries: %v", err)
	}
	if _, err := heartbeat(2); !errors.Is(err, ErrTimeout) {
		t.Errorf("after their sender has given up waiting: %v", err)
	}
}

func TestPipelineBoundsBytesInFlightAndLetsOneLargeRequestGoAlone(t *testing.T) {
	p := newPair(t, func(c *GroupConfig) { c.MaxInflightBytes, c.MaxInflightRequests = 100<<10, 16 })
	got := make(chan raft.RPC)
	serveWith(t, p.to, func(rpc raft.RPC) { got <- rpc })
	pipe, err := p.from.AppendEntriesPipeline("server-b", "b")
	if err != nil {
		t.Fatal(err)
	}
	sent := make(chan int, 16)
	failed := make(chan error, 1)
	go func() {
		for i, size := range []int{40 << 10, 40 << 10, 40 << 10, 300 << 10} {
			if _, err := pipe.AppendEntries(request(uint64(i+1), make([]byte, size)), new(raft.AppendEntriesResponse)); err != nil {
				failed <- err
				return
			}
			sent <- i
		}
		failed <- nil
	}()
	first := <-got
	for range 2 {
		<-sent
	}
	select {
	case i := <-sent:
		t.Fatalf("request %d was sent beyond the bound", i)
	case <-time.After(200 * time.Millisecond): // the absence of an event can only be waited for
	}
	accept(first)
	for range 3 {
		accept(<-got)
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		f := <-pipe.Consumer()
		if f.Error() != nil || !f.Response().Success || f.Request().PrevLogEntry != uint64(i+1) {
			t.Errorf("answer %d: %+v, %v", i, f.Response(), f.Error())
		}
	}
	_ = pipe.Close()
}

func TestABrokenPipelineAnswersEverythingAndStaysBroken(t *testing.T) {
	breaks := map[string]func(p *pair, pipe raft.AppendPipeline){
		"close":            func(_ *pair, pipe raft.AppendPipeline) { _ = pipe.Close() },
		"reset connection": func(p *pair, _ raft.AppendPipeline) { p.tap.cut() },
		"silent peer":      func(p *pair, _ raft.AppendPipeline) { p.tap.hold() },
		"group closed":     func(p *pair, _ raft.AppendPipeline) { _ = p.from.Close() },
		"peer's group":     func(p *pair, _ raft.AppendPipeline) { _ = p.to.Close() },
		"no progress":      func(*pair, raft.AppendPipeline) {},
		// Nobody but the sender's own clock can tell: pings are not expected back, and the receiver's refusal cannot arrive.
		"no answer": func(p *pair, _ raft.AppendPipeline) { p.tap.hold() },
	}
	for name, hit := range breaks {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, func(c *GroupConfig) { c.MaxInflightRequests = 4 }, func(c *Config) {
				c.Limits.AppendTimeout = 2 * time.Second
				if name == "no answer" {
					c.Limits.PeerTimeout = time.Minute
				}
			})
			taken := make(chan raft.RPC, 1)
			serveWith(t, p.to, func(rpc raft.RPC) { taken <- rpc })
			pipe, err := p.from.AppendEntriesPipeline("server-b", "b")
			if err != nil {
				t.Fatal(err)
			}
			var futures []raft.AppendFuture
			for i := range 4 {
				f, err := pipe.AppendEntries(request(uint64(i+1), []byte("x")), new(raft.AppendEntriesResponse))
				if err != nil {
					t.Fatal(err)
				}
				futures = append(futures, f)
			}
			<-taken
			blocked := make(chan error, 1)
			go func() { // beyond the bound: waits
				_, err := pipe.AppendEntries(request(5, []byte("x")), new(raft.AppendEntriesResponse))
				blocked <- err
			}()
			hit(p, pipe)
			within(t, 10*time.Second, "the end of everything outstanding", func() {
				for i, f := range futures {
					if f.Error() == nil {
						t.Errorf("request %d was never answered, but has no error", i)
					}
				}
				if err := <-blocked; err == nil {
					t.Error("the waiting request was taken by a broken pipeline")
				}
			})
			if _, err := pipe.AppendEntries(request(9, nil), new(raft.AppendEntriesResponse)); err == nil {
				t.Error("a broken pipeline took another request")
			}
			select {
			case f := <-pipe.Consumer():
				t.Errorf("request %d was never answered, but Raft is told of a contact", f.Request().PrevLogEntry)
			default:
			}
			_ = pipe.Close()
		})
	}
}

func TestRaftErrorsReachTheConsumerSinceTheyAreASignOfLife(t *testing.T) {
	p := newPair(t, nil)
	serveWith(t, p.to, func(rpc raft.RPC) { rpc.Respond(&raft.AppendEntriesResponse{Term: 5}, errors.New("disk")) })
	pipe, err := p.from.AppendEntriesPipeline("server-b", "b")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pipe.AppendEntries(request(1, []byte("x")), new(raft.AppendEntriesResponse)); err != nil {
		t.Fatal(err)
	}
	f := <-pipe.Consumer()
	if !errors.Is(f.Error(), ErrRaft) || f.Response().Term != 5 || f.Response().Success {
		t.Errorf("%+v, %v", f.Response(), f.Error())
	}
	_ = pipe.Close()
}

// TestAGroupThatIsStuckBlocksNoOther: its bytes fill its own stream's window; the connection is shared.
func TestAGroupThatIsStuckBlocksNoOther(t *testing.T) {
	p := newPair(t, func(c *GroupConfig) { c.MaxInflightBytes, c.MaxInflightRequests = 64<<20, 64 })
	stuck, err := p.from.AppendEntriesPipeline("server-b", "b") // nobody reads p.to's Consumer
	if err != nil {
		t.Fatal(err)
	}
	other := GroupConfig{Group: "other", Self: "server-a"}
	from, err := p.a.Group(other)
	if err != nil {
		t.Fatal(err)
	}
	other.Self = "server-b"
	to, err := p.b.Group(other)
	if err != nil {
		t.Fatal(err)
	}
	serveWith(t, to, accept)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for i := uint64(1); ; i++ {
			if _, err := stuck.AppendEntries(request(i, make([]byte, 1<<20)), new(raft.AppendEntriesResponse)); err != nil {
				return
			}
		}
	}()
	within(t, 9*time.Second, "the other group's requests", func() { // less than the stuck stream's own timeout
		for i := range uint64(50) {
			if err := from.AppendEntries("server-b", "b", request(i+1, make([]byte, 256<<10)), new(raft.AppendEntriesResponse)); err != nil {
				t.Errorf("other group: %v", err)
			}
			if err := from.AppendEntries("server-b", "b", &raft.AppendEntriesRequest{Term: 2}, new(raft.AppendEntriesResponse)); err != nil {
				t.Errorf("other group's heartbeat: %v", err)
			}
		}
	})
	_ = stuck.Close()
	<-ended
}

func heap() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// TestAPeerThatStopsReadingCostsBoundedMemory floods a held peer from many groups.
func TestAPeerThatStopsReadingCostsBoundedMemory(t *testing.T) {
	const groups, inflight = 8, 2 << 20
	p := newPair(t, nil, func(c *Config) { c.Limits.PeerTimeout, c.Limits.AppendTimeout = time.Minute, time.Minute })
	data := make([]byte, 256<<10) // one for all: what is measured is the transport's own
	var wg sync.WaitGroup
	var pipes []raft.AppendPipeline
	for g := range groups {
		cfg := GroupConfig{Group: nodeName(g), Self: "server-a", MaxInflightBytes: inflight, MaxInflightRequests: 64}
		from, err := p.a.Group(cfg)
		if err != nil {
			t.Fatal(err)
		}
		pipe, err := from.AppendEntriesPipeline("server-b", "b")
		if err != nil {
			t.Fatal(err)
		}
		pipes = append(pipes, pipe)
	}
	p.tap.hold()
	before := heap()
	for _, pipe := range pipes {
		wg.Go(func() {
			for i := uint64(1); ; i++ {
				if _, err := pipe.AppendEntries(request(i, data), new(raft.AppendEntriesResponse)); err != nil {
					return
				}
			}
		})
	}
	wg.Go(func() {
		for range 20_000 { // the control stream is flooded, too
			if err := p.from.AppendEntries("server-b", "b", &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{Addr: data[:4096]}, Term: 2}, new(raft.AppendEntriesResponse)); err != nil {
				return
			}
		}
	})
	most := 0
	for range 20 {
		time.Sleep(25 * time.Millisecond)
		most = max(most, heap()-before)
	}
	if bound := groups*inflight + 8<<20; most > bound {
		t.Errorf("%d bytes held for a peer that does not read, want at most %d", most, bound)
	}
	for _, pipe := range pipes {
		_ = pipe.Close()
	}
	_ = p.from.Close()
	wg.Wait()
}

func TestRequestsBeyondTheReceiversLimitAreRefusedBeforeTheyAreHeld(t *testing.T) {
	p := newPair(t, nil)
	p.serve(t)
	p.b.cfg.Limits.RequestBytes = 1 << 20
	err := p.from.AppendEntries("server-b", "b", request(1, make([]byte, 3<<20)), new(raft.AppendEntriesResponse))
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("request of 3 MiB where 1 MiB is taken: %v", err)
	}
	if err := p.from.AppendEntries("server-b", "b", request(1, make([]byte, 900<<10)), new(raft.AppendEntriesResponse)); err != nil {
		t.Errorf("the next request: %v", err)
	}
}
