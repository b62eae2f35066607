package initiator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"sanctuary/target/pdu"
	"sanctuary/target/scsi"
)

// Session is a logged-in session of one connection. Its methods may be called concurrently. Close it.
type Session struct {
	cfg    Config
	params params
	conn   net.Conn
	r      *pdu.Reader // the reader goroutine's, after the login

	// sending guards w and cmdSN: commands go out in the order of their numbers. Held while writing to the connection,
	// which SilentTimeout bounds. Taken before mu.
	sending sync.Mutex
	w       *pdu.Writer
	cmdSN   uint32

	// mu guards what follows. Never held across I/O.
	mu        sync.Mutex
	tasks     map[uint32]*task
	nextTag   uint32
	expStatSN uint32
	expCmdSN  uint32
	maxCmdSN  uint32
	window    chan struct{} // closed and replaced when maxCmdSN grows
	err       error         // why the session ended
	loggedOut atomic.Bool   // the target has answered a logout
	leaving   chan struct{} // not nil: the target has asked for a logout; closed when no task is left

	lastReceived atomic.Int64 // time since epoch
	epoch        time.Time
	pongs        chan pdu.NopOut // answers to the target's pings, sent by the keeper
	dead         chan struct{}   // closed when the session has ended
	readerDone   chan struct{}
	keeperDone   chan struct{}
	leaver       sync.WaitGroup // the goroutine of leave; started by the reader only
}

// task is a request on its way. The reader goroutine fills it in until done is closed.
type task struct {
	tag      uint32
	cmdSN    uint32 // guarded by Session.mu
	in       []byte // destination of Data-In
	received int    // end of the Data-In received so far
	r2ts     chan pdu.R2T
	done     chan struct{}
	header   pdu.Header // of the final response
	data     []byte     // its data segment (sense, text, ping)
}

func newSession(cfg Config, conn net.Conn) *Session {
	return &Session{
		cfg: cfg, params: defaultParams(), conn: conn,
		r: pdu.NewReader(conn, 64<<10, cfg.MaxRecvData), w: pdu.NewWriter(conn), cmdSN: 1,
		tasks: map[uint32]*task{}, nextTag: 2, window: make(chan struct{}), epoch: time.Now(),
		pongs: make(chan pdu.NopOut, 16), dead: make(chan struct{}),
		readerDone: make(chan struct{}), keeperDone: make(chan struct{}),
	}
}

func (s *Session) start() {
	_ = s.conn.SetDeadline(time.Time{})
	s.lastReceived.Store(int64(time.Since(s.epoch)))
	go s.read()
	go s.keep()
}

// Done returns a channel that is closed when the session has ended; Err then says why.
func (s *Session) Done() <-chan struct{} { return s.dead }

// Err returns why the session ended, nil while it lives. It is ErrSession with its cause.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// end ends the session once; the connection is reset, so that what the target has not read yet it will not read.
func (s *Session) end(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	if s.leaving != nil && s.loggedOut.Load() && !errors.Is(cause, ErrAskedToLeave) {
		// The answer to the logout was read, and then the end of the connection, before the one who waits for the answer ran.
		cause = errors.Join(ErrAskedToLeave, cause)
	}
	s.err = fmt.Errorf("%w: %w", ErrSession, cause)
	if c, ok := s.conn.(*net.TCPConn); ok {
		_ = c.SetLinger(0)
	}
	_ = s.conn.Close()
	close(s.dead)
}

var errClosed = errors.New("closed")

// Close ends the session at once, without a logout, and waits until its goroutines have ended. Commands on it end with ErrSession.
func (s *Session) Close() {
	s.end(errClosed)
	<-s.readerDone
	<-s.keeperDone
	s.leaver.Wait()
}

// begin registers a task under a new tag; nil if the session has ended.
func (s *Session) begin(in []byte) *task {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil
	}
	for s.nextTag == pdu.NoTag || s.tasks[s.nextTag] != nil {
		s.nextTag++
	}
	t := &task{tag: s.nextTag, in: in, r2ts: make(chan pdu.R2T, maxR2T), done: make(chan struct{})}
	s.nextTag++
	s.tasks[t.tag] = t
	return t
}

// rename gives a task that has not been sent another tag; nil if that is in use.
func (s *Session) rename(t *task, tag uint32) *task {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tasks, t.tag)
	if s.tasks[tag] != nil {
		return nil
	}
	t.tag = tag
	s.tasks[tag] = t
	return t
}

func (s *Session) forget(t *task) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tasks, t.tag)
	s.checkLeft()
}

// send writes PDUs made by build, which gets CmdSN and ExpStatSN. If numbered it waits for the command window and takes a CmdSN.
func (s *Session) send(ctx context.Context, numbered bool, build func(cmdSN, expStatSN uint32) error) error {
	for {
		s.sending.Lock()
		s.mu.Lock()
		open := !numbered || !pdu.SerialLess(s.maxCmdSN, s.cmdSN)
		window, expStatSN, err := s.window, s.expStatSN, s.err
		if err == nil && numbered && s.leaving != nil {
			err = fmt.Errorf("%w: %w: %w", ErrSession, ErrAskedToLeave, errNotSent)
		}
		s.mu.Unlock()
		if err == nil && open {
			defer s.sending.Unlock()
			cmdSN := s.cmdSN
			if numbered {
				s.cmdSN++
			}
			// Only its own failure counts: the answer may come, and the session end, before send returns.
			err := s.conn.SetWriteDeadline(time.Now().Add(s.cfg.SilentTimeout))
			if err == nil {
				err = build(cmdSN, expStatSN)
			}
			if err == nil {
				err = s.w.Flush()
			}
			if err != nil {
				s.end(err)
				return s.Err()
			}
			return nil
		}
		s.sending.Unlock()
		if err != nil {
			return err
		}
		select {
		case <-window:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.dead:
		}
	}
}

// wait returns nil when t is done. If the session ends first it waits for the reader, so that t.in is no longer written to.
func (s *Session) wait(ctx context.Context, t *task) error {
	select {
	case <-t.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.dead:
	}
	<-s.readerDone
	select {
	case <-t.done: // answered just before
		return nil
	default:
		return s.Err()
	}
}

// keep pings a silent target, ends the session of one that stays silent, and answers the target's pings.
func (s *Session) keep() {
	defer close(s.keeperDone)
	var tick <-chan time.Time
	if s.cfg.KeepAlive > 0 {
		ticker := time.NewTicker(max(min(s.cfg.KeepAlive, s.cfg.SilentTimeout)/4, time.Millisecond))
		defer ticker.Stop()
		tick = ticker.C
	}
	var pinged time.Duration // when, 0: not since something was received
	for {
		select {
		case <-s.dead:
			return
		case pong := <-s.pongs:
			_ = s.nop(pong, nil) // an error has ended the session
		case <-tick:
			now, last := time.Since(s.epoch), time.Duration(s.lastReceived.Load())
			switch {
			case pinged > last && now-pinged > s.cfg.SilentTimeout:
				s.end(ErrSilent)
			case pinged <= last && now-last > s.cfg.KeepAlive:
				pinged = now
				if t := s.begin(nil); t != nil {
					_ = s.nop(pdu.NopOut{Tag: t.tag, TransferTag: pdu.NoTag}, nil)
				}
			}
		}
	}
}

func (s *Session) nop(n pdu.NopOut, data []byte) error {
	return s.send(context.Background(), false, func(cmdSN, expStatSN uint32) error {
		var h pdu.Header
		n.Immediate, n.CmdSN, n.ExpStatSN = true, cmdSN, expStatSN
		n.Put(&h)
		return s.w.Append(&h, data)
	})
}

// Ping sends a NOP-Out and waits for its answer, which must echo data (at most 4 KiB).
func (s *Session) Ping(ctx context.Context, data []byte) error {
	t := s.begin(nil)
	if t == nil {
		return s.Err()
	}
	defer s.forget(t)
	if err := s.nop(pdu.NopOut{Tag: t.tag, TransferTag: pdu.NoTag, LUN: scsi.EncodeLUN(s.cfg.LUN)}, data); err != nil {
		return err
	}
	if err := s.wait(ctx, t); err != nil {
		return err
	}
	if string(t.data) != string(data) {
		return fmt.Errorf("%w: ping of %d bytes came back as %d others", ErrProtocol, len(data), len(t.data))
	}
	return nil
}

// Logout ends the session in an orderly way: running commands are not waited for.
func (s *Session) Logout(ctx context.Context) error {
	defer s.Close()
	return s.logout(ctx)
}

func (s *Session) logout(ctx context.Context) error {
	t := s.begin(nil)
	if t == nil {
		return s.Err()
	}
	err := s.send(ctx, false, func(cmdSN, expStatSN uint32) error {
		var h pdu.Header
		(&pdu.LogoutRequest{Immediate: true, Reason: pdu.LogoutSession, Tag: t.tag, CmdSN: cmdSN, ExpStatSN: expStatSN}).Put(&h)
		return s.w.Append(&h, nil)
	})
	if err == nil {
		err = s.wait(ctx, t)
	}
	if err == nil && t.header.Response() != pdu.LogoutDone {
		err = fmt.Errorf("%w: logout answered %d", ErrProtocol, t.header.Response())
	}
	return err
}

// maxTextAnswer bounds the answer to one text request: some 100,000 targets.
const maxTextAnswer = 16 << 20

// text sends one text request and collects its answer.
func (s *Session) text(ctx context.Context, ask []pdu.Pair) ([]byte, error) {
	request, out, answer := pdu.TextRequest{Final: true, TransferTag: pdu.NoTag}, pdu.FormatText(ask), []byte(nil)
	for {
		// RFC 7143 §11.10.3: one task tag for the whole sequence.
		t := s.begin(nil)
		if t == nil {
			return nil, s.Err()
		}
		if request.TransferTag == pdu.NoTag {
			request.Tag = t.tag
		} else if t = s.rename(t, request.Tag); t == nil {
			return nil, fmt.Errorf("%w: text exchange overtaken", ErrProtocol)
		}
		err := s.send(ctx, true, func(cmdSN, expStatSN uint32) error {
			var h pdu.Header
			request.CmdSN, request.ExpStatSN = cmdSN, expStatSN
			request.Put(&h)
			return s.w.Append(&h, out)
		})
		if err == nil {
			err = s.wait(ctx, t)
		}
		s.forget(t)
		if err != nil {
			return nil, err
		}
		if t.header.Opcode() != pdu.OpTextResponse {
			return nil, fmt.Errorf("%w: %s in answer to a text request", ErrProtocol, t.header.Opcode())
		}
		if answer = append(answer, t.data...); t.header.Final() {
			return answer, nil
		}
		if len(t.data) == 0 || len(answer) > maxTextAnswer {
			return nil, fmt.Errorf("%w: text answer without end", ErrProtocol)
		}
		request.TransferTag, out = t.header.TransferTag(), nil
	}
}

// Manage sends a task management function for the configured LUN; tag is that of the task to abort (Command.Tag).
func (s *Session) Manage(ctx context.Context, f scsi.Function, tag uint32) (scsi.FunctionResponse, error) {
	t := s.begin(nil)
	if t == nil {
		return 0, s.Err()
	}
	defer s.forget(t)
	err := s.send(ctx, false, func(cmdSN, expStatSN uint32) error {
		refCmdSN := cmdSN
		s.mu.Lock()
		if referenced := s.tasks[tag]; referenced != nil {
			refCmdSN = referenced.cmdSN
		}
		s.mu.Unlock()
		var h pdu.Header
		(&pdu.TaskRequest{
			Immediate: true, Function: uint8(f), LUN: scsi.EncodeLUN(s.cfg.LUN), Tag: t.tag, ReferencedTag: tag,
			CmdSN: cmdSN, ExpStatSN: expStatSN, RefCmdSN: refCmdSN,
		}).Put(&h)
		return s.w.Append(&h, nil)
	})
	if err == nil {
		err = s.wait(ctx, t)
	}
	if err != nil {
		return 0, err
	}
	if t.header.Opcode() != pdu.OpTaskResponse {
		return 0, fmt.Errorf("%w: %s in answer to a task management function", ErrProtocol, t.header.Opcode())
	}
	return scsi.FunctionResponse(t.header.Response()), nil
}
