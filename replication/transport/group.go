package transport

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/proto/peerpb"
)

// GroupTransport is one replica's transport. It implements raft.Transport, raft.WithPreVote and raft.WithClose; a
// raft.ServerAddress is a node's name.
type GroupTransport struct {
	mux      *Mux
	cfg      GroupConfig
	consumer chan raft.RPC
	control  slots // Limits.ControlPerGroup

	ctx    context.Context // ends with Close
	cancel context.CancelCauseFunc

	appending atomic.Pointer[appending] // what Raft has taken and not answered; nil: none

	mu    sync.Mutex // guards plain
	plain map[target]*appendStream
}

var (
	_ raft.Transport   = (*GroupTransport)(nil)
	_ raft.WithPreVote = (*GroupTransport)(nil)
	_ raft.WithClose   = (*GroupTransport)(nil)
)

// target is one incarnation of a replica, and where it is.
type target struct {
	id   raft.ServerID
	node raft.ServerAddress
}

// appending is an AppendEntries with entries, or the news of a commit.
type appending struct {
	from raft.ServerID
	term uint64
}

func newGroup(m *Mux, cfg GroupConfig) *GroupTransport {
	g := &GroupTransport{
		mux: m, cfg: cfg,
		// Unbuffered: a request either reaches Raft or is withdrawn at its deadline; none is left behind to be served late.
		consumer: make(chan raft.RPC),
		control:  slots{limit: m.cfg.Limits.ControlPerGroup},
		plain:    make(map[target]*appendStream),
	}
	g.ctx, g.cancel = context.WithCancelCause(m.ctx)
	return g
}

// Close takes the replica off the Mux and fails everything it has under way with ErrClosed. raft.Raft calls it once its own
// goroutines have ended; calling it before Shutdown spares Raft from waiting for requests to time out. It does not wait.
func (g *GroupTransport) Close() error {
	g.cancel(ErrClosed)
	g.mux.forget(g)
	return nil
}

// Consumer gives the requests of peers, for Raft to answer.
func (g *GroupTransport) Consumer() <-chan raft.RPC { return g.consumer }

// Feed gives Raft a request, also one that no peer has sent, if it is waiting for one at this moment; it does not wait.
func (g *GroupTransport) Feed(rpc raft.RPC) bool {
	select {
	case g.consumer <- rpc:
		return true
	default:
		return false
	}
}

// LocalAddr is this node's name.
func (g *GroupTransport) LocalAddr() raft.ServerAddress { return raft.ServerAddress(g.mux.cfg.Node) }

// EncodePeer gives the node's name: addresses change, names do not.
func (g *GroupTransport) EncodePeer(_ raft.ServerID, addr raft.ServerAddress) []byte {
	return []byte(addr)
}

// DecodePeer undoes EncodePeer.
func (g *GroupTransport) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// SetHeartbeatHandler does nothing: Raft's fast path changes term and state beside the main loop (hashicorp/raft #695), so
// heartbeats go to Consumer like everything else; or, while Raft is busy with entries, to GroupConfig.StandIn.
func (g *GroupTransport) SetHeartbeatHandler(func(raft.RPC)) {}

// RequestVote asks for a vote, within Limits.VoteTimeout.
func (g *GroupTransport) RequestVote(id raft.ServerID, node raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return g.ask(target{id, node}, args, resp, g.mux.cfg.Limits.VoteTimeout)
}

// RequestPreVote asks whether a vote would be given, within Limits.VoteTimeout.
func (g *GroupTransport) RequestPreVote(id raft.ServerID, node raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return g.ask(target{id, node}, args, resp, g.mux.cfg.Limits.VoteTimeout)
}

// TimeoutNow tells the peer to start an election, within Limits.VoteTimeout.
func (g *GroupTransport) TimeoutNow(id raft.ServerID, node raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return g.ask(target{id, node}, args, resp, g.mux.cfg.Limits.VoteTimeout)
}

// ask sends a request on the control stream and fills in resp, which it touches no more once it has returned.
func (g *GroupTransport) ask(to target, cmd, resp any, timeout time.Duration) error {
	req, err := requestToWire(cmd)
	if err != nil {
		return err
	}
	req.Envelope = g.envelope(to)
	ctx, cancel := context.WithTimeout(g.ctx, timeout)
	defer cancel()
	l, err := g.mux.link(ctx, string(to.node))
	if err != nil {
		return err
	}
	answer, err := l.request(ctx, &peerpb.ControlMessage{Body: &peerpb.ControlMessage_RaftRequest{RaftRequest: req}})
	if err != nil {
		return err
	}
	return replyFromWire(string(to.node), answer.GetRaftReply(), resp)
}

func (g *GroupTransport) envelope(to target) *peerpb.Envelope {
	return &peerpb.Envelope{
		Cluster: g.mux.cfg.Cluster, Group: g.cfg.Group, Epoch: g.cfg.Epoch,
		FromServer: string(g.cfg.Self), ToServer: string(to.id), FromNode: g.mux.cfg.Node,
	}
}

// AppendEntries sends a heartbeat on the control stream, within Limits.HeartbeatTimeout, or entries on the group's own bulk
// stream to the peer, within Limits.AppendTimeout and what their bytes take.
//
// args.Entries is cut short where the request would be longer than GroupConfig.PlainBytes (but for its first entry), before
// anything is sent. Raft takes what args says after the call as sent and follows with the rest: its own limit is a count,
// and a count of large entries is no bound.
func (g *GroupTransport) AppendEntries(id raft.ServerID, node raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	to := target{id, node}
	if isHeartbeat(args) {
		return g.ask(to, args, resp, g.mux.cfg.Limits.HeartbeatTimeout)
	}
	if err := cut(args, min(g.cfg.PlainBytes, g.mux.cfg.Limits.RequestBytes), g.mux.cfg.Limits.RequestBytes); err != nil {
		return err
	}
	s, err := g.plainStream(to)
	if err != nil {
		return err
	}
	var got raft.AppendEntriesResponse
	f, err := s.submit(args, &got)
	if err == nil {
		err = f.Error()
		*resp = got
	}
	if err != nil {
		g.dropPlain(to, s)
	}
	return err
}

// cut shortens a to soft bytes, keeping at least one entry, which must not be larger than hard bytes.
func cut(a *raft.AppendEntriesRequest, soft, hard int) error {
	bytes := 0
	for i, e := range a.Entries {
		bytes += entryBytes(e)
		switch {
		case i == 0 && bytes > hard:
			return fmt.Errorf("%w: log entry %d takes %d bytes, RequestBytes is %d", ErrTooLarge, e.Index, bytes, hard)
		case i > 0 && bytes > soft:
			a.Entries = a.Entries[:i]
			return nil
		}
	}
	return nil
}

func (g *GroupTransport) plainStream(to target) (*appendStream, error) {
	g.mu.Lock()
	s := g.plain[to]
	g.mu.Unlock()
	if s != nil && s.failed() == nil {
		return s, nil
	}
	fresh, err := g.openStream(to, false)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	old := g.plain[to]
	g.plain[to] = fresh
	g.mu.Unlock()
	if old != nil {
		old.fail(ErrClosed) // Raft has one caller per peer: nobody waits on it
	}
	return fresh, nil
}

func (g *GroupTransport) dropPlain(to target, s *appendStream) {
	g.mu.Lock()
	if g.plain[to] == s {
		delete(g.plain, to)
	}
	g.mu.Unlock()
	s.fail(ErrClosed)
}

// AppendEntriesPipeline opens a stream of its own to the peer's replica. See pipeline for what is promised.
func (g *GroupTransport) AppendEntriesPipeline(id raft.ServerID, node raft.ServerAddress) (raft.AppendPipeline, error) {
	to := target{id, node}
	g.mu.Lock()
	plain := g.plain[to]
	delete(g.plain, to)
	g.mu.Unlock()
	if plain != nil {
		plain.fail(ErrClosed) // Raft sends plain requests to this peer no more until the pipeline has ended
	}
	s, err := g.openStream(to, true)
	if err != nil {
		return nil, err
	}
	return &pipeline{stream: s}, nil
}

// deliver hands a request to the hooks and to Raft, and waits for the answer until timeout, ctx or the group's end. The
// error is what the sender is told.
func (g *GroupTransport) deliver(ctx context.Context, timeout time.Duration, e *peerpb.Envelope, cmd any, data io.Reader) (any, error) {
	from := raft.ServerID(e.GetFromServer())
	if g.cfg.Incoming != nil {
		resp, err, handled := g.cfg.Incoming(from, e.GetFromNode(), cmd)
		if handled {
			if err != nil {
				err = fmt.Errorf("%w: %w", ErrRefused, err)
			}
			return resp, err
		}
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	answer := make(chan raft.RPCResponse, 1) // Raft never waits for us, however late it answers
	if resp, err := g.hand(ctx, timer.C, timeout, from, raft.RPC{Command: cmd, Reader: data, RespChan: answer}); resp != nil || err != nil {
		return resp, err
	}
	if req, ok := cmd.(*raft.AppendEntriesRequest); ok && !isHeartbeat(req) {
		a := &appending{from: from, term: req.Term}
		g.appending.Store(a)
		defer g.appending.CompareAndSwap(a, nil) // unless Raft has answered and is at the next one already
	}
	select {
	case a := <-answer:
		if g.cfg.Answered != nil {
			g.cfg.Answered(from, cmd, a.Response, a.Error)
		}
		if a.Error != nil {
			return a.Response, fmt.Errorf("%w: %w", ErrRaft, a.Error)
		}
		return a.Response, nil
	case <-timer.C:
		return nil, fmt.Errorf("%w: Raft has not answered in %s", ErrTimeout, timeout)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-g.ctx.Done():
		return nil, fmt.Errorf("group %s: %w", g.cfg.Group, ErrClosed)
	}
}

// standInAfter is how long a heartbeat waits for Raft before somebody else may answer it: short against the 100 ms between two of an owner.
const standInAfter = 20 * time.Millisecond

// hand gives Raft a request. If it does not take a heartbeat because it is busy with entries of the same owner, the response may be StandIn's.
func (g *GroupTransport) hand(ctx context.Context, late <-chan time.Time, timeout time.Duration, from raft.ServerID, rpc raft.RPC) (resp any, err error) {
	if g.Feed(rpc) { // as a rule, without a clock
		return nil, nil
	}
	var busy <-chan time.Time
	heartbeat, ok := rpc.Command.(*raft.AppendEntriesRequest)
	if ok && g.cfg.StandIn != nil && isHeartbeat(heartbeat) {
		ticker := time.NewTicker(standInAfter)
		defer ticker.Stop()
		busy = ticker.C
	}
	for {
		select {
		case g.consumer <- rpc:
			return nil, nil
		case <-busy:
			if a := g.appending.Load(); a != nil && a.from == from && a.term == heartbeat.Term {
				if r := g.cfg.StandIn(from, heartbeat); r != nil {
					return r, nil
				}
			}
		case <-late:
			return nil, fmt.Errorf("%w: Raft has not taken the request in %s", ErrTimeout, timeout)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-g.ctx.Done():
			return nil, fmt.Errorf("group %s: %w", g.cfg.Group, ErrClosed)
		}
	}
}
