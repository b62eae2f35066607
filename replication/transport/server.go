package transport

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sanctuary/proto/peerpb"
)

// server is the receiving end of control streams, as gRPC calls it; append and snapshot streams are in receive.go and
// snapshot.go, calls in call.go.
type server struct {
	peerpb.UnimplementedPeerServer
	mux *Mux
}

var errShutdown = status.Error(codes.Unavailable, "node is shutting down")

// session is one peer's control stream as the node it dialled sees it.
type session struct {
	mux   *Mux
	node  string // who dialled
	ctx   context.Context
	queue *controlQueue
}

// Control serves a peer's control stream.
func (s *server) Control(stream grpc.BidiStreamingServer[peerpb.ControlFrame, peerpb.ControlFrame]) error {
	m := s.mux
	// Receiving runs beside the handler: only the handler's return ends a Recv, so the handler must be free to return.
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(ErrClosed)
	sess := &session{mux: m, ctx: ctx, queue: newControlQueue(m.cfg.Limits.ControlQueueBytes)}
	hello := time.AfterFunc(m.cfg.Limits.DialTimeout, func() { cancel(status.Error(codes.DeadlineExceeded, "no hello")) })
	defer hello.Stop()
	if !m.spawn(func() {
		frame, err := stream.Recv()
		if err != nil {
			cancel(err)
			return
		}
		hello.Stop()
		answer := m.greet(frame.GetHello())
		if err := m.speaksFor(ctx, frame.GetHello().GetNode()); err != nil && answer.GetStatus() == nil {
			answer.Status = statusOf(err, peerpb.Code_CODE_INTERNAL)
		}
		if err := stream.Send(&peerpb.ControlFrame{Hello: answer}); err != nil {
			cancel(err)
			return
		}
		if answer.GetStatus() != nil {
			cancel(nil)
			return
		}
		sess.node = frame.GetHello().GetNode()
		m.hint(sess.node)
		m.log.Debug("peer has dialled", "peer", sess.node)
		if !m.spawn(func() { cancel(sess.queue.run(ctx, stream.Send)) }) {
			cancel(errShutdown)
			return
		}
		cancel(sess.receive(stream))
	}) {
		return errShutdown
	}
	select {
	case <-ctx.Done():
	case <-m.ctx.Done():
		return errShutdown
	}
	if cause := context.Cause(ctx); cause != context.Canceled {
		return cause
	}
	return nil
}

// greet answers a hello; the answer has a status if the peer is refused.
func (m *Mux) greet(h *peerpb.Hello) *peerpb.Hello {
	answer := &peerpb.Hello{Cluster: m.cfg.Cluster, Node: m.cfg.Node, NodeId: m.cfg.NodeID, Reads: m.reads}
	version := min(h.GetProtocolMax(), protocolMax)
	var err error
	switch {
	case h.GetCluster() != m.cfg.Cluster:
		err = fmt.Errorf("%w: this node belongs to cluster %s, not %s", ErrWrongCluster, m.cfg.Cluster, h.GetCluster())
	case h.GetToNode() != m.cfg.Node:
		err = fmt.Errorf("%w: this node is %s, not %s", ErrWrongNode, m.cfg.Node, h.GetToNode())
	case h.GetNode() == "":
		err = fmt.Errorf("%w: hello without a name", ErrBadRequest)
	case version < h.GetProtocolMin() || version < protocolMin:
		err = fmt.Errorf("%w: this node speaks %d..%d, the peer %d..%d", ErrWrongVersion, protocolMin, protocolMax, h.GetProtocolMin(), h.GetProtocolMax())
	}
	if err != nil {
		answer.Status = statusOf(err, peerpb.Code_CODE_INTERNAL)
		return answer
	}
	answer.ProtocolMin, answer.ProtocolMax = version, version
	return answer
}

func (s *session) receive(stream grpc.BidiStreamingServer[peerpb.ControlFrame, peerpb.ControlFrame]) error {
	for {
		frame, err := stream.Recv()
		if err != nil {
			return err
		}
		for _, msg := range frame.GetMessages() {
			if err := s.take(msg); err != nil {
				return err
			}
		}
	}
}

// take begins to serve one message. It never waits: what does runs on a goroutine of its own, of which there are bounded
// numbers per group and per caller. An error ends the stream.
func (s *session) take(msg *peerpb.ControlMessage) error {
	switch body := msg.GetBody().(type) {
	case *peerpb.ControlMessage_Ping:
		return s.queue.push(&peerpb.ControlMessage{Id: msg.GetId(), Body: &peerpb.ControlMessage_Pong{Pong: &peerpb.Ping{}}})
	case *peerpb.ControlMessage_RaftRequest:
		return s.takeRaft(msg, body.RaftRequest)
	case *peerpb.ControlMessage_CallRequest:
		return s.takeCall(msg, body.CallRequest)
	}
	return nil // a newer peer's message that an older one can do without (peer.proto)
}

func (s *session) takeRaft(msg *peerpb.ControlMessage, req *peerpb.RaftRequest) error {
	g, err := s.mux.addressed(req.GetEnvelope())
	if from := req.GetEnvelope().GetFromNode(); err == nil && from != s.node { // whose right to its name was looked at with the hello
		err = fmt.Errorf("%w: %s speaks for %s", ErrWrongNode, s.node, from)
	}
	var cmd any
	if err == nil {
		cmd, err = requestFromWire(req)
	}
	if err == nil && !g.control.enter() {
		err = fmt.Errorf("%w: group %s has %d control requests waiting for Raft", ErrBusy, g.cfg.Group, g.control.limit)
	}
	if err != nil {
		return s.answerRaft(msg.GetId(), nil, err)
	}
	timeout := fromMillis(msg.GetTimeoutMillis())
	if !s.mux.spawn(func() {
		defer g.control.leave()
		resp, err := g.deliver(s.ctx, timeout, req.GetEnvelope(), cmd, nil)
		_ = s.answerRaft(msg.GetId(), resp, err) // a peer that does not read answers will find us silent
	}) {
		g.control.leave()
		return errShutdown
	}
	return nil
}

func (s *session) answerRaft(id uint64, resp any, err error) error {
	reply, bad := replyToWire(resp, err)
	if bad != nil {
		reply = &peerpb.RaftReply{Status: statusOf(bad, peerpb.Code_CODE_INTERNAL)}
	}
	return s.queue.push(&peerpb.ControlMessage{Id: id, Body: &peerpb.ControlMessage_RaftReply{RaftReply: reply}})
}
