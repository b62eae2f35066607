package initiator

import (
	"errors"
	"fmt"
	"time"

	"sanctuary/target/pdu"
)

// read is the reader goroutine: it ends when the connection does, and never writes to it.
func (s *Session) read() {
	defer close(s.readerDone)
	var h pdu.Header
	for {
		if err := s.r.ReadHeader(&h); err != nil {
			s.end(err)
			return
		}
		s.lastReceived.Store(int64(time.Since(s.epoch)))
		if err := s.receive(&h); err != nil {
			s.end(err)
			return
		}
	}
}

// receive takes one PDU whose header has been read. An error ends the session.
func (s *Session) receive(h *pdu.Header) error {
	t := s.sequence(h)
	switch op := h.Opcode(); op {
	case pdu.OpDataIn:
		return s.receiveData(h, t)
	case pdu.OpR2T:
		return s.receiveR2T(h, t)
	case pdu.OpSCSIResponse, pdu.OpTaskResponse, pdu.OpTextResponse, pdu.OpLogoutResponse:
		return s.finish(h, t)
	case pdu.OpNopIn:
		if h.Tag() != pdu.NoTag {
			return s.finish(h, t)
		}
		if err := s.r.Discard(h.DataLength()); err != nil {
			return err
		}
		if h.TransferTag() == pdu.NoTag {
			return nil
		}
		select {
		case s.pongs <- pdu.NopOut{Tag: pdu.NoTag, TransferTag: h.TransferTag(), LUN: h.LUN()}:
			return nil
		default:
			return fmt.Errorf("%w: the target pings faster than it is answered", ErrProtocol)
		}
	case pdu.OpAsync:
		event, parameters := h.AsyncEvent()
		switch event {
		case pdu.AsyncSCSI:
		case pdu.AsyncLogoutRequest:
			s.askedToLeave(time.Duration(parameters[2]) * time.Second)
		default:
			return fmt.Errorf("the target ends the session (event %d)", event)
		}
		return s.r.Discard(h.DataLength())
	case pdu.OpReject:
		return fmt.Errorf("%w: the target rejected a PDU, reason %02Xh", ErrProtocol, h.Response())
	default:
		return fmt.Errorf("%w: %s from a target", ErrProtocol, op)
	}
}

// sequence takes the sequence numbers every PDU of a target carries and returns the task it belongs to, if any.
func (s *Session) sequence(h *pdu.Header) *task {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := h.MaxCmdSN(); pdu.SerialLess(s.maxCmdSN, m) && !pdu.SerialLess(m+1, h.ExpCmdSN()) {
		s.maxCmdSN = m
		close(s.window)
		s.window = make(chan struct{})
	}
	op := h.Opcode()
	counted := op != pdu.OpR2T && (op != pdu.OpDataIn || h.Has(pdu.FlagStatus)) && (op != pdu.OpNopIn || h.Tag() != pdu.NoTag)
	if counted && !pdu.SerialLess(h.StatSN(), s.expStatSN) {
		s.expStatSN = h.StatSN() + 1
	}
	return s.tasks[h.Tag()]
}

// receiveData puts Data-In where the command wants it.
func (s *Session) receiveData(h *pdu.Header, t *task) error {
	n, at := h.DataLength(), int(h.BufferOffset())
	switch {
	case t == nil:
		return fmt.Errorf("%w: Data-In for a task that does not exist", ErrProtocol)
	case at != t.received || n > len(t.in)-at:
		// DataPDUInOrder and DataSequenceInOrder: no gaps, nothing twice.
		return fmt.Errorf("%w: Data-In of %d bytes at %d, after %d of %d", ErrProtocol, n, at, t.received, len(t.in))
	}
	if err := s.r.ReadData(t.in[at : at+n]); err != nil {
		return err
	}
	t.received += n
	if h.Has(pdu.FlagStatus) {
		s.complete(h, t)
	}
	return nil
}

func (s *Session) receiveR2T(h *pdu.Header, t *task) error {
	if t == nil {
		return fmt.Errorf("%w: R2T for a task that does not exist", ErrProtocol)
	}
	select {
	case t.r2ts <- pdu.R2T{TransferTag: h.TransferTag(), BufferOffset: h.BufferOffset(), DesiredLength: h.DesiredLength()}:
		return s.r.Discard(h.DataLength())
	default:
		return fmt.Errorf("%w: more than %d R2Ts for one task", ErrProtocol, maxR2T)
	}
}

// finish takes a task's final response with its data segment.
func (s *Session) finish(h *pdu.Header, t *task) error {
	data := make([]byte, h.DataLength()) // bounded by MaxRecvData
	if err := s.r.ReadData(data); err != nil {
		return err
	}
	if t == nil {
		return fmt.Errorf("%w: %s for a task that does not exist", ErrProtocol, h.Opcode())
	}
	if h.Opcode() == pdu.OpSCSIResponse {
		var err error
		if h.Response() != 0 {
			return errors.New("the target could not complete a command")
		}
		if data, err = pdu.ParseSense(data); err != nil {
			return err
		}
	}
	t.data = data
	s.complete(h, t)
	return nil
}

func (s *Session) complete(h *pdu.Header, t *task) {
	t.header = *h
	if h.Opcode() == pdu.OpLogoutResponse && h.Response() == pdu.LogoutDone {
		s.loggedOut.Store(true)
	}
	s.forget(t)
	close(t.done)
}
