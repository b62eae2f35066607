package transport

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sanctuary/proto/peerpb"
)

// snapshotChunk is how much snapshot data goes into one message, in bytes.
const snapshotChunk = 256 << 10

// InstallSnapshot sends a snapshot on the transfer connection, within Limits.SnapshotTimeout and what its bytes take; or
// refuses with ErrSnapshotRefused (GroupConfig.AllowSnapshot).
func (g *GroupTransport) InstallSnapshot(id raft.ServerID, node raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if !g.cfg.AllowSnapshot {
		return fmt.Errorf("group %s to %s: %w", g.cfg.Group, node, ErrSnapshotRefused)
	}
	limits := &g.mux.cfg.Limits
	timeout := slowed(limits.SnapshotTimeout, args.Size, limits.MinBytesPerSecond)
	ctx, cancel := context.WithTimeout(g.ctx, timeout)
	defer cancel()
	l, err := g.mux.link(ctx, string(node))
	if err != nil {
		return err
	}
	stream, err := peerpb.NewPeerClient(l.transfer).Snapshot(ctx)
	if err == nil {
		err = stream.Send(&peerpb.SnapshotFrame{Envelope: g.envelope(target{id, node}), Request: snapshotToWire(args)})
	}
	for left := args.Size; err == nil && left > 0; {
		// A buffer per message: gRPC refers to it after Send has returned.
		chunk := make([]byte, min(left, snapshotChunk))
		if _, err := io.ReadFull(data, chunk); err != nil {
			return fmt.Errorf("read snapshot for %s: %w", node, err)
		}
		left -= int64(len(chunk))
		err = stream.Send(&peerpb.SnapshotFrame{Chunk: chunk})
	}
	var reply *peerpb.SnapshotReply
	if err == nil || errors.Is(err, errEOF) { // after EOF the answer is there already
		reply, err = stream.CloseAndRecv()
	}
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("%s: %w", node, ctxError(ctx))
		}
		return fromGRPC(string(node), err)
	}
	*resp = raft.InstallSnapshotResponse{RPCHeader: headerFromWire(reply.GetHeader()), Term: reply.GetTerm(), Success: reply.GetSuccess()}
	return errorOf(string(node), reply.GetStatus())
}

// Snapshot receives one InstallSnapshot.
func (s *server) Snapshot(stream grpc.ClientStreamingServer[peerpb.SnapshotFrame, peerpb.SnapshotReply]) error {
	m := s.mux
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	refuse := func(err error) error {
		return stream.SendAndClose(&peerpb.SnapshotReply{Status: statusOf(err, peerpb.Code_CODE_INTERNAL)})
	}
	g, err := m.addressed(first.GetEnvelope())
	if err == nil {
		err = m.speaksFor(stream.Context(), first.GetEnvelope().GetFromNode())
	}
	if err != nil {
		return refuse(err)
	}
	if !g.cfg.AllowSnapshot {
		return refuse(fmt.Errorf("group %s: %w", g.cfg.Group, ErrSnapshotRefused))
	}
	req := first.GetRequest()
	if req == nil || req.GetSize() < 0 {
		return status.Errorf(codes.InvalidArgument, "snapshot of group %s begins without a request", g.cfg.Group)
	}
	limits := &m.cfg.Limits
	timeout := slowed(limits.SnapshotTimeout, req.GetSize(), limits.MinBytesPerSecond)
	ctx, cancel := context.WithTimeout(stream.Context(), timeout)
	defer cancel()
	resp, err := g.deliver(ctx, timeout, first.GetEnvelope(), snapshotFromWire(req), &snapshotReader{stream: stream, left: req.GetSize()})
	reply := &peerpb.SnapshotReply{Status: statusOf(err, peerpb.Code_CODE_INTERNAL)}
	if r, ok := resp.(*raft.InstallSnapshotResponse); ok {
		reply.Header, reply.Term, reply.Success = headerToWire(r.RPCHeader), r.Term, r.Success
	} else if err == nil {
		reply.Status = statusOf(fmt.Errorf("%w: answer of type %T", ErrInternal, resp), peerpb.Code_CODE_INTERNAL)
	}
	return stream.SendAndClose(reply)
}

// snapshotReader is a snapshot's data as Raft reads it, on its own goroutine. When the stream's handler has returned, reads
// fail: gRPC ends the stream.
type snapshotReader struct {
	stream grpc.ClientStreamingServer[peerpb.SnapshotFrame, peerpb.SnapshotReply]
	left   int64 // bytes still to come, beyond rest
	rest   []byte
}

func (r *snapshotReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.left == 0 {
			return 0, io.EOF
		}
		frame, err := r.stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return 0, io.ErrUnexpectedEOF
		case err != nil:
			return 0, err
		case int64(len(frame.GetChunk())) > r.left:
			return 0, fmt.Errorf("%w: snapshot is longer than announced", ErrBadRequest)
		}
		r.rest = frame.GetChunk()
		r.left -= int64(len(r.rest))
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
