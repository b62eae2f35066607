package initiator

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"sanctuary/target/pdu"
	"sanctuary/target/scsi"
)

// Command is one SCSI command for the configured LUN. In and Out must not be touched until Do has returned.
type Command struct {
	CDB [16]byte
	Out []byte // Data-Out; len is the expected data transfer length of a write
	In  []byte // where Data-In goes; len is the expected data transfer length of a read. Not both.
}

// Result is how a command ended.
type Result struct {
	Status   scsi.Status
	Sense    []byte
	Received int   // bytes of Data-In
	Residual int64 // bytes that were not transferred (underflow, > 0), or could not be (overflow, < 0)
}

// Err returns nil for GOOD and a *StatusError otherwise.
func (r *Result) Err() error {
	if r.Status == scsi.StatusGood {
		return nil
	}
	e := &StatusError{Status: r.Status}
	if b := r.Sense; r.Status == scsi.StatusCheckCondition && len(b) >= 14 && b[0]&0x7E == 0x70 {
		e.Key, e.Code = scsi.SenseKey(b[2]&0x0F), binary.BigEndian.Uint16(b[12:])
		e.Info, e.HasInfo = binary.BigEndian.Uint32(b[3:]), b[0]&0x80 != 0
	} else if len(b) >= 4 && b[0]&0x7E == 0x72 { // descriptor format
		e.Key, e.Code = scsi.SenseKey(b[1]&0x0F), binary.BigEndian.Uint16(b[2:])
	}
	return e
}

// Do sends a command and waits for its end. An error means that there is no status: ErrSession (the outcome is unknown), or
// that of ctx. When ctx ends, the command is aborted at the target; if that fails the session is ended, so that once Do has
// returned nothing more happens to In and nothing more is sent of Out. Whether an aborted write took effect is unknown.
func (s *Session) Do(ctx context.Context, c *Command) (Result, error) {
	if len(c.In) > 0 && len(c.Out) > 0 {
		return Result{}, errors.New("bidirectional commands are not supported")
	}
	t := s.begin(c.In)
	if t == nil {
		return Result{}, notSent(s.Err())
	}
	sent, err := s.sendCommand(ctx, c, t)
	for err == nil {
		var more bool
		if more, err = s.solicited(ctx, c, t); err == nil && !more {
			return s.result(c, t), nil
		}
	}
	if !sent {
		s.forget(t)
		return Result{}, notSent(err)
	}
	if lost := s.Err(); lost != nil {
		<-s.readerDone // c.In is the caller's again from here on
		select {
		case <-t.done:
			return s.result(c, t), nil
		default:
			return Result{}, lost
		}
	}
	return s.abandon(c, t, err)
}

// solicited waits for the next event of a task: an R2T, which it answers, or the end (false).
func (s *Session) solicited(ctx context.Context, c *Command, t *task) (more bool, err error) {
	select {
	case r := <-t.r2ts:
		return true, s.answer(c, t, r)
	default:
	}
	select {
	case r := <-t.r2ts:
		return true, s.answer(c, t, r)
	case <-t.done:
		return false, nil
	case <-ctx.Done():
	case <-s.dead:
	}
	return false, s.wait(ctx, t)
}

// abandon aborts a command whose caller no longer waits. cause is what Do returns, unless the command had already ended.
func (s *Session) abandon(c *Command, t *task, cause error) (Result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.AbortTimeout)
	defer cancel()
	response, err := s.Manage(ctx, scsi.AbortTask, t.tag)
	select {
	case <-t.done: // the response was on its way
		return s.result(c, t), nil
	default:
	}
	if err != nil || response != scsi.FunctionComplete {
		// It may still answer, into a buffer that is no longer ours.
		s.end(fmt.Errorf("cannot abort a command: response %d, %w", response, errors.Join(cause, err)))
		<-s.readerDone
	}
	s.forget(t)
	return Result{}, cause
}

func (s *Session) result(c *Command, t *task) Result {
	h := &t.header
	r := Result{Status: scsi.Status(h.Status()), Received: t.received}
	if h.Opcode() == pdu.OpSCSIResponse {
		r.Sense = t.data
	}
	switch {
	case h.Has(pdu.FlagUnderflow):
		r.Residual = int64(h.Residual())
	case h.Has(pdu.FlagOverflow):
		r.Residual = -int64(h.Residual())
	}
	return r
}

// sendCommand sends the command with its immediate and unsolicited data. sent says whether anything may have been sent.
func (s *Session) sendCommand(ctx context.Context, c *Command, t *task) (sent bool, err error) {
	err = s.send(ctx, true, func(cmdSN, expStatSN uint32) error {
		sent = true
		s.mu.Lock()
		t.cmdSN = cmdSN
		s.mu.Unlock()
		burst := min(len(c.Out), s.params.firstBurst)
		immediate := 0
		if s.params.immediate {
			immediate = min(burst, s.params.maxSend)
		}
		if s.params.initialR2T {
			burst = immediate
		}
		var h pdu.Header
		(&pdu.SCSICommand{
			Final: burst == immediate, Read: len(c.In) > 0, Write: len(c.Out) > 0, Attribute: 1,
			LUN: scsi.EncodeLUN(s.cfg.LUN), Tag: t.tag, EDTL: uint32(len(c.In) + len(c.Out)),
			CmdSN: cmdSN, ExpStatSN: expStatSN, CDB: c.CDB,
		}).Put(&h)
		if err := s.w.Append(&h, c.Out[:immediate]); err != nil {
			return err
		}
		return s.dataOut(c.Out, immediate, burst, pdu.DataOut{Tag: t.tag, TransferTag: pdu.NoTag, ExpStatSN: expStatSN})
	})
	return sent, err
}

// answer sends what an R2T asks for.
func (s *Session) answer(c *Command, t *task, r pdu.R2T) error {
	from, n := int64(r.BufferOffset), int64(r.DesiredLength)
	if n == 0 || from+n > int64(len(c.Out)) {
		err := fmt.Errorf("%w: R2T for %d bytes at %d of %d", ErrProtocol, n, from, len(c.Out))
		s.end(err)
		return s.wait(context.Background(), t)
	}
	return s.send(context.Background(), false, func(_, expStatSN uint32) error {
		return s.dataOut(c.Out, int(from), int(from+n), pdu.DataOut{Tag: t.tag, TransferTag: r.TransferTag, ExpStatSN: expStatSN})
	})
}

// dataOut sends one sequence of Data-Out. The caller holds sending.
func (s *Session) dataOut(out []byte, from, to int, d pdu.DataOut) error {
	var h pdu.Header
	d.LUN = scsi.EncodeLUN(s.cfg.LUN)
	for from < to {
		n := min(to-from, s.params.maxSend)
		d.BufferOffset, d.Final = uint32(from), from+n == to
		d.Put(&h)
		if err := s.w.Append(&h, out[from:from+n]); err != nil {
			return err
		}
		d.DataSN++
		from += n
	}
	return nil
}
