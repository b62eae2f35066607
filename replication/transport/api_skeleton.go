package transport

import (
	"context"
	"io"
	"net"

	"github.com/hashicorp/raft"
)

// Handler answers one method's calls.
type Handler func(ctx context.Context, from string, req []byte) ([]byte, error)

type Mux struct{ cfg Config }

func New(cfg Config) (*Mux, error) { return &Mux{cfg: cfg}, nil }

func (m *Mux) Serve(l net.Listener) error                              { return ErrClosed }
func (m *Mux) Close() error                                            { return nil }
func (m *Mux) Connect(node string)                                     {}
func (m *Mux) OnPeer(fn func(node string, up bool, cause error))       {}
func (m *Mux) Group(cfg GroupConfig) (*GroupTransport, error)          { return nil, ErrClosed }
func (m *Mux) Handle(method string, h Handler) error                   { return nil }
func (m *Mux) Call(ctx context.Context, node, method string, req []byte) ([]byte, error) {
	return nil, ErrUnreachable
}

func (m *Mux) CallBulk(ctx context.Context, node, method string, req []byte) ([]byte, error) {
	return nil, ErrUnreachable
}

type GroupTransport struct{}

var (
	_ raft.Transport   = (*GroupTransport)(nil)
	_ raft.WithPreVote = (*GroupTransport)(nil)
	_ raft.WithClose   = (*GroupTransport)(nil)
)

func (g *GroupTransport) Consumer() <-chan raft.RPC     { return nil }
func (g *GroupTransport) LocalAddr() raft.ServerAddress { return "" }
func (g *GroupTransport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, ErrUnreachable
}
func (g *GroupTransport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	return ErrUnreachable
}
func (g *GroupTransport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return ErrUnreachable
}
func (g *GroupTransport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return ErrUnreachable
}
func (g *GroupTransport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	return ErrUnreachable
}
func (g *GroupTransport) EncodePeer(id raft.ServerID, addr raft.ServerAddress) []byte { return []byte(addr) }
func (g *GroupTransport) DecodePeer(b []byte) raft.ServerAddress                      { return raft.ServerAddress(b) }
func (g *GroupTransport) SetHeartbeatHandler(cb func(rpc raft.RPC))                   {}
func (g *GroupTransport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return ErrUnreachable
}
func (g *GroupTransport) Close() error { return nil }
