package transport

import (
	"context"
	"fmt"

	"sanctuary/proto/peerpb"
)

// Handler answers one method's calls. from is the calling node's name. It must end when ctx does: then the caller's time
// is over, its connection has broken, or this node is closing (a Call its caller cancels early runs on until then). req is the handler's to keep. An error travels as text, with the
// code of a *HandlerError.
type Handler func(ctx context.Context, from string, req []byte) ([]byte, error)

// Handle registers the handler of a method, for Call and CallBulk alike; ErrExists if it has one.
func (m *Mux) Handle(method string, h Handler) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.handlers[method]; ok {
		return fmt.Errorf("method %s: %w", method, ErrExists)
	}
	m.handlers[method] = h
	return nil
}

// Call calls method on node over the control connection: for what is small and urgent. Request and answer are at most
// Limits.CallBytes, else ErrTooLarge. Without a deadline in ctx it waits Limits.AppendTimeout. errors.Is: ErrUnreachable,
// ErrTimeout (both: it may have run all the same), ErrUnknownMethod, ErrBusy, ErrHandler (errors.As *RemoteError).
func (m *Mux) Call(ctx context.Context, node, method string, req []byte) ([]byte, error) {
	if len(req) > m.cfg.Limits.CallBytes {
		return nil, fmt.Errorf("call %s of %s: %w: request of %d bytes", method, node, ErrTooLarge, len(req))
	}
	ctx, cancel := m.callContext(ctx)
	defer cancel()
	l, err := m.link(ctx, node)
	if err != nil {
		return nil, fmt.Errorf("call %s: %w", method, err)
	}
	msg := &peerpb.ControlMessage{Body: &peerpb.ControlMessage_CallRequest{CallRequest: m.callRequest(node, method, req)}}
	answer, err := l.request(ctx, msg)
	if err != nil {
		return nil, fmt.Errorf("call %s: %w", method, err)
	}
	return finishCall(node, method, answer.GetCallReply())
}

// CallBulk is Call over the transfer connection, for requests and answers of up to Limits.BulkCallBytes.
func (m *Mux) CallBulk(ctx context.Context, node, method string, req []byte) ([]byte, error) {
	if len(req) > m.cfg.Limits.BulkCallBytes {
		return nil, fmt.Errorf("call %s of %s: %w: request of %d bytes", method, node, ErrTooLarge, len(req))
	}
	ctx, cancel := m.callContext(ctx)
	defer cancel()
	l, err := m.link(ctx, node)
	if err != nil {
		return nil, fmt.Errorf("call %s: %w", method, err)
	}
	msg := m.callRequest(node, method, req)
	msg.Reads = m.reads
	reply, err := peerpb.NewPeerClient(l.transfer).Call(ctx, msg)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("call %s of %s: %w", method, node, ctxError(ctx))
		}
		return nil, fmt.Errorf("call %s: %w", method, l.failure(err))
	}
	if err := unpackReply(reply, m.cfg.Limits.BulkCallBytes); err != nil {
		return nil, fmt.Errorf("call %s of %s: %w", method, node, err)
	}
	return finishCall(node, method, reply)
}

// callContext gives ctx a deadline, and an end when the Mux is closed.
func (m *Mux) callContext(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(m.ctx, func() { cancel(ErrClosed) })
	done := func() {
		stop()
		cancel(context.Canceled)
	}
	if _, ok := ctx.Deadline(); ok {
		return ctx, done
	}
	timed, release := context.WithTimeout(ctx, m.cfg.Limits.AppendTimeout)
	return timed, func() {
		release()
		done()
	}
}

func (m *Mux) callRequest(node, method string, req []byte) *peerpb.CallRequest {
	return &peerpb.CallRequest{Cluster: m.cfg.Cluster, FromNode: m.cfg.Node, ToNode: node, Method: method, Body: req}
}

func finishCall(node, method string, reply *peerpb.CallReply) ([]byte, error) {
	switch err := errorOf(node, reply.GetStatus()); {
	case err != nil:
		return nil, fmt.Errorf("call %s: %w", method, err)
	case reply == nil:
		return nil, fmt.Errorf("call %s of %s: %w: answer of another kind", method, node, ErrInternal)
	}
	return reply.GetBody(), nil
}

// takeCall runs a call's handler beside the control stream.
func (s *session) takeCall(msg *peerpb.ControlMessage, req *peerpb.CallRequest) error {
	m := s.mux
	answer := func(body []byte, st *peerpb.Status) error {
		return s.queue.push(&peerpb.ControlMessage{
			Id: msg.GetId(), Body: &peerpb.ControlMessage_CallReply{CallReply: &peerpb.CallReply{Body: body, Status: st}},
		})
	}
	if req.GetFromNode() != s.node { // whose right to its name was looked at with the hello
		return answer(nil, statusOf(fmt.Errorf("%w: %s speaks for %s", ErrWrongNode, s.node, req.GetFromNode()), peerpb.Code_CODE_INTERNAL))
	}
	slot := callSlot{node: s.node}
	if !m.calls.enter(slot, m.cfg.Limits.CallsPerPeer) {
		return answer(nil, statusOf(fmt.Errorf("%w: %d calls", ErrBusy, m.cfg.Limits.CallsPerPeer), peerpb.Code_CODE_BUSY))
	}
	if !m.spawn(func() {
		defer m.calls.leave(slot)
		ctx, cancel := context.WithTimeout(s.ctx, fromMillis(msg.GetTimeoutMillis()))
		defer cancel()
		body, st := m.handle(ctx, req, m.cfg.Limits.CallBytes)
		_ = answer(body, st) // a peer that does not read answers will find us silent
	}) {
		m.calls.leave(slot)
		return errShutdown
	}
	return nil
}

// Call runs a call that came over the transfer connection.
func (s *server) Call(ctx context.Context, req *peerpb.CallRequest) (*peerpb.CallReply, error) {
	m := s.mux
	if err := m.speaksFor(ctx, req.GetFromNode()); err != nil {
		return &peerpb.CallReply{Status: statusOf(err, peerpb.Code_CODE_INTERNAL)}, nil
	}
	slot := callSlot{node: req.GetFromNode(), bulk: true}
	limit := max(m.cfg.Limits.CallsPerPeer/4, 1)
	if !m.calls.enter(slot, limit) {
		return &peerpb.CallReply{Status: statusOf(fmt.Errorf("%w: %d calls", ErrBusy, limit), peerpb.Code_CODE_BUSY)}, nil
	}
	defer m.calls.leave(slot)
	body, st := m.handle(ctx, req, m.cfg.Limits.BulkCallBytes)
	reply := &peerpb.CallReply{Body: body, Status: st}
	m.packReply(req, reply)
	return reply, nil
}

func (m *Mux) handle(ctx context.Context, req *peerpb.CallRequest, limit int) ([]byte, *peerpb.Status) {
	var err error
	m.mu.RLock()
	h := m.handlers[req.GetMethod()]
	m.mu.RUnlock()
	switch {
	case req.GetCluster() != m.cfg.Cluster:
		err = fmt.Errorf("%w: this node belongs to %s, the call to %s", ErrWrongCluster, m.cfg.Cluster, req.GetCluster())
	case req.GetToNode() != m.cfg.Node:
		err = fmt.Errorf("%w: this node is %s, not %s", ErrWrongNode, m.cfg.Node, req.GetToNode())
	case h == nil:
		err = fmt.Errorf("%w: %q", ErrUnknownMethod, req.GetMethod())
	}
	if err != nil {
		return nil, statusOf(err, peerpb.Code_CODE_INTERNAL)
	}
	body, err := h(ctx, req.GetFromNode(), req.GetBody())
	switch {
	case err != nil && m.ctx.Err() != nil:
		return nil, statusOf(fmt.Errorf("%w: %s is shutting down: %w", ErrClosed, m.cfg.Node, err), peerpb.Code_CODE_SHUTDOWN)
	case err != nil && ctx.Err() != nil:
		// The caller finds the same by its own clock; which of the two comes first must not matter.
		return nil, statusOf(fmt.Errorf("%w: handler of %q: %w", ErrTimeout, req.GetMethod(), err), peerpb.Code_CODE_TIMEOUT)
	case err != nil:
		return nil, statusOf(err, peerpb.Code_CODE_HANDLER)
	case len(body) > limit:
		return nil, statusOf(fmt.Errorf("%w: answer of %d bytes to %q", ErrTooLarge, len(body), req.GetMethod()), peerpb.Code_CODE_TOO_LARGE)
	}
	return body, nil
}
