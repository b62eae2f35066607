//lint:file-ignore SA1019 Raft still fills in and reads the fields it calls deprecated; they travel like the others.

package transport

import (
	"fmt"
	"math"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"sanctuary/proto/peerpb"
)

// This file turns Raft's messages into those of peer.proto and back. Every field survives; a test compares them by reflection.

func marshalProto(m proto.Message) ([]byte, error)     { return proto.Marshal(m) }
func unmarshalProto(raw []byte, m proto.Message) error { return proto.Unmarshal(raw, m) }

func headerToWire(h raft.RPCHeader) *peerpb.RaftHeader {
	return &peerpb.RaftHeader{ProtocolVersion: int64(h.ProtocolVersion), Id: h.ID, Addr: h.Addr}
}

func headerFromWire(h *peerpb.RaftHeader) raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersion(h.GetProtocolVersion()), ID: h.GetId(), Addr: h.GetAddr()}
}

// isHeartbeat is Raft's own criterion (net_transport.go:623), and what its heartbeat goroutine sends.
func isHeartbeat(a *raft.AppendEntriesRequest) bool {
	return len(a.Entries) == 0 && a.PrevLogEntry == 0 && a.PrevLogTerm == 0 && a.LeaderCommitIndex == 0
}

func appendResponseToWire(r *raft.AppendEntriesResponse) *peerpb.AppendResponse {
	return &peerpb.AppendResponse{
		Header: headerToWire(r.RPCHeader), Term: r.Term, LastLog: r.LastLog, Success: r.Success, NoRetryBackoff: r.NoRetryBackoff,
	}
}

func appendResponseFromWire(r *peerpb.AppendResponse) *raft.AppendEntriesResponse {
	return &raft.AppendEntriesResponse{
		RPCHeader: headerFromWire(r.GetHeader()), Term: r.GetTerm(), LastLog: r.GetLastLog(), Success: r.GetSuccess(),
		NoRetryBackoff: r.GetNoRetryBackoff(),
	}
}

// requestToWire takes the requests that travel on the control stream.
func requestToWire(cmd any) (*peerpb.RaftRequest, error) {
	switch c := cmd.(type) {
	case *raft.AppendEntriesRequest:
		if !isHeartbeat(c) {
			return nil, fmt.Errorf("transport: AppendEntries %d is not a heartbeat", c.PrevLogEntry)
		}
		return &peerpb.RaftRequest{Request: &peerpb.RaftRequest_Heartbeat{Heartbeat: &peerpb.AppendRequest{
			Header: headerToWire(c.RPCHeader), Term: c.Term, Leader: c.Leader,
		}}}, nil
	case *raft.RequestVoteRequest:
		return &peerpb.RaftRequest{Request: &peerpb.RaftRequest_Vote{Vote: &peerpb.VoteRequest{
			Header: headerToWire(c.RPCHeader), Term: c.Term, Candidate: c.Candidate, LastLogIndex: c.LastLogIndex,
			LastLogTerm: c.LastLogTerm, LeadershipTransfer: c.LeadershipTransfer,
		}}}, nil
	case *raft.RequestPreVoteRequest:
		return &peerpb.RaftRequest{Request: &peerpb.RaftRequest_PreVote{PreVote: &peerpb.PreVoteRequest{
			Header: headerToWire(c.RPCHeader), Term: c.Term, LastLogIndex: c.LastLogIndex, LastLogTerm: c.LastLogTerm,
		}}}, nil
	case *raft.TimeoutNowRequest:
		return &peerpb.RaftRequest{Request: &peerpb.RaftRequest_TimeoutNow{TimeoutNow: &peerpb.TimeoutNowRequest{
			Header: headerToWire(c.RPCHeader),
		}}}, nil
	}
	return nil, fmt.Errorf("transport: %T does not travel on the control stream", cmd)
}

func requestFromWire(r *peerpb.RaftRequest) (any, error) {
	switch c := r.GetRequest().(type) {
	case *peerpb.RaftRequest_Heartbeat:
		h := c.Heartbeat
		return &raft.AppendEntriesRequest{RPCHeader: headerFromWire(h.GetHeader()), Term: h.GetTerm(), Leader: h.GetLeader()}, nil
	case *peerpb.RaftRequest_Vote:
		v := c.Vote
		return &raft.RequestVoteRequest{
			RPCHeader: headerFromWire(v.GetHeader()), Term: v.GetTerm(), Candidate: v.GetCandidate(), LastLogIndex: v.GetLastLogIndex(),
			LastLogTerm: v.GetLastLogTerm(), LeadershipTransfer: v.GetLeadershipTransfer(),
		}, nil
	case *peerpb.RaftRequest_PreVote:
		v := c.PreVote
		return &raft.RequestPreVoteRequest{
			RPCHeader: headerFromWire(v.GetHeader()), Term: v.GetTerm(), LastLogIndex: v.GetLastLogIndex(), LastLogTerm: v.GetLastLogTerm(),
		}, nil
	case *peerpb.RaftRequest_TimeoutNow:
		return &raft.TimeoutNowRequest{RPCHeader: headerFromWire(c.TimeoutNow.GetHeader())}, nil
	}
	return nil, fmt.Errorf("%w: raft request of an unknown kind", ErrBadRequest)
}

// replyToWire takes an answer to a request of the control stream; resp may be nil if err is not.
func replyToWire(resp any, err error) (*peerpb.RaftReply, error) {
	out := &peerpb.RaftReply{Status: statusOf(err, peerpb.Code_CODE_RAFT)}
	switch r := resp.(type) {
	case nil:
		if err == nil {
			return nil, fmt.Errorf("%w: neither answer nor error", ErrInternal)
		}
	case *raft.AppendEntriesResponse:
		out.Reply = &peerpb.RaftReply_Heartbeat{Heartbeat: appendResponseToWire(r)}
	case *raft.RequestVoteResponse:
		out.Reply = &peerpb.RaftReply_Vote{Vote: &peerpb.VoteResponse{
			Header: headerToWire(r.RPCHeader), Term: r.Term, Peers: r.Peers, Granted: r.Granted,
		}}
	case *raft.RequestPreVoteResponse:
		out.Reply = &peerpb.RaftReply_PreVote{PreVote: &peerpb.PreVoteResponse{
			Header: headerToWire(r.RPCHeader), Term: r.Term, Granted: r.Granted,
		}}
	case *raft.TimeoutNowResponse:
		out.Reply = &peerpb.RaftReply_TimeoutNow{TimeoutNow: &peerpb.TimeoutNowResponse{Header: headerToWire(r.RPCHeader)}}
	default:
		return nil, fmt.Errorf("%w: answer of type %T", ErrInternal, resp)
	}
	return out, nil
}

// replyFromWire fills resp, whose type says which answer is expected. An answer that came with an error is filled in as
// well, as Raft's own transport does.
func replyFromWire(node string, r *peerpb.RaftReply, resp any) error {
	err := errorOf(node, r.GetStatus())
	matched := false
	switch out := resp.(type) {
	case *raft.AppendEntriesResponse:
		var in *peerpb.RaftReply_Heartbeat
		if in, matched = r.GetReply().(*peerpb.RaftReply_Heartbeat); matched {
			*out = *appendResponseFromWire(in.Heartbeat)
		}
	case *raft.RequestVoteResponse:
		var in *peerpb.RaftReply_Vote
		if in, matched = r.GetReply().(*peerpb.RaftReply_Vote); matched {
			v := in.Vote
			*out = raft.RequestVoteResponse{RPCHeader: headerFromWire(v.GetHeader()), Term: v.GetTerm(), Peers: v.GetPeers(), Granted: v.GetGranted()}
		}
	case *raft.RequestPreVoteResponse:
		var in *peerpb.RaftReply_PreVote
		if in, matched = r.GetReply().(*peerpb.RaftReply_PreVote); matched {
			v := in.PreVote
			*out = raft.RequestPreVoteResponse{RPCHeader: headerFromWire(v.GetHeader()), Term: v.GetTerm(), Granted: v.GetGranted()}
		}
	case *raft.TimeoutNowResponse:
		var in *peerpb.RaftReply_TimeoutNow
		if in, matched = r.GetReply().(*peerpb.RaftReply_TimeoutNow); matched {
			*out = raft.TimeoutNowResponse{RPCHeader: headerFromWire(in.TimeoutNow.GetHeader())}
		}
	}
	if err == nil && !matched {
		return &RemoteError{Node: node, Code: peerpb.Code_CODE_INTERNAL, Text: fmt.Sprintf("answer does not match %T", resp)}
	}
	return err
}

func snapshotToWire(a *raft.InstallSnapshotRequest) *peerpb.SnapshotRequest {
	return &peerpb.SnapshotRequest{
		Header: headerToWire(a.RPCHeader), SnapshotVersion: int64(a.SnapshotVersion), Term: a.Term, Leader: a.Leader,
		LastLogIndex: a.LastLogIndex, LastLogTerm: a.LastLogTerm, Peers: a.Peers, Configuration: a.Configuration,
		ConfigurationIndex: a.ConfigurationIndex, Size: a.Size,
	}
}

func snapshotFromWire(a *peerpb.SnapshotRequest) *raft.InstallSnapshotRequest {
	return &raft.InstallSnapshotRequest{
		RPCHeader: headerFromWire(a.GetHeader()), SnapshotVersion: raft.SnapshotVersion(a.GetSnapshotVersion()), Term: a.GetTerm(),
		Leader: a.GetLeader(), LastLogIndex: a.GetLastLogIndex(), LastLogTerm: a.GetLastLogTerm(), Peers: a.GetPeers(),
		Configuration: a.GetConfiguration(), ConfigurationIndex: a.GetConfigurationIndex(), Size: a.GetSize(),
	}
}

// maxTimeoutMillis bounds what a sender may ask a receiver to wait: an hour.
const maxTimeoutMillis = 3600 * 1000

func toMillis(d time.Duration) uint32 {
	return uint32(min(max(d.Milliseconds(), 1), maxTimeoutMillis))
}

// fromMillis reads a sender's timeout; 0, which no version sends, means the longest.
func fromMillis(ms uint32) time.Duration {
	if ms == 0 || ms > maxTimeoutMillis {
		ms = maxTimeoutMillis
	}
	return time.Duration(ms) * time.Millisecond
}

// slowed is timeout, lengthened by the time n bytes take at rate bytes per second.
func slowed(timeout time.Duration, n int64, rate int) time.Duration {
	if n <= 0 {
		return timeout
	}
	extra := float64(n) / float64(rate) * float64(time.Second)
	if extra > float64(math.MaxInt64-int64(timeout)) {
		return math.MaxInt64
	}
	return timeout + time.Duration(extra)
}
