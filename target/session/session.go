// Package session is the full feature phase of an iSCSI session with one connection (RFC 7143), from the end of login
// to its last task.
//
// Invariant: a command reaches the Executor only with all of its Data-Out, received in order and intact; its status goes
// out at most once, after Execute has returned; and when Run returns, no task of the session runs any more.
// Error recovery level 0: whatever breaks the sequence of the stream ends the connection, and the initiator logs in again.
// It knows no SCSI command (the Executor does) and no other session (package target does).
//
// One goroutine reads, one writes, and workers, which stay, execute: as many as commands have ever run at once, at most the
// window and twice maxImmediate. The reader alone takes in PDUs and moves a command towards its execution; a worker has it
// while it runs; the writer has it until its answer is on the wire. Session.mu guards what they share.
package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"sanctuary/target/login"
	"sanctuary/target/pdu"
	"sanctuary/target/scsi"
)

// Defaults of Config.
const (
	DefaultWindow       = 128
	DefaultPingInterval = 5 * time.Second
	DefaultPingTimeout  = 5 * time.Second
	DefaultDataTimeout  = 30 * time.Second
)

const (
	maxImmediate   = 16       // immediate commands at work; more are rejected (RFC 7143 §4.2.2.1)
	maxTransfer    = 32 << 20 // bytes of Data-Out of one command; more is refused before anything is asked for
	maxText        = 64 << 10 // bytes of one text exchange
	maxUnsentBytes = 1 << 20  // answers the reader itself may leave unsent before it waits for the writer
	maxOrphans     = 4096     // transfer tags of aborted commands remembered
	writeTimeout   = 30 * time.Second
	lingerTime     = 500 * time.Millisecond
	lingerBytes    = 64 << 20
)

// Errors that end a session; errors.Is tells them apart.
var (
	ErrLoggedOut = errors.New("the initiator logged out")
	ErrSilent    = errors.New("the initiator does not answer")
	ErrNoData    = errors.New("the initiator does not send the data of its writes")
	ErrProtocol  = errors.New("the initiator broke the protocol")
	ErrPanic     = errors.New("internal error")
	ErrOverdue   = errors.New("the initiator was asked to log out and has not")
	ErrColdReset = errors.New("the target was reset")
)

// Config is what a session needs besides its connection. Durations and counts of zero mean the default.
type Config struct {
	Nexus    *scsi.Nexus   // nil in a discovery session
	Executor scsi.Executor // nil in a discovery session; attached before Run and detached after it, by the caller
	Memory   *Memory
	// SendTargets answers the key of that name: value is "All", a target's name, or empty for this session's target.
	SendTargets func(value string) []pdu.Pair
	// ColdReset, unless nil, is called when this session's initiator has reset the target cold and every task has ended; it
	// ends the other sessions of the target (RFC 7143 §11.5.1). This one ends by itself, after its answer.
	ColdReset   func()
	Watch       *Watch        // nil: commands are taken for new, however long this process stood still
	Window      int           // commands outstanding, 1..1024
	Ping        time.Duration // silence after which the initiator is pinged
	PingTimeout time.Duration // silence after a ping that ends the session
	DataTimeout time.Duration // without any data of writes that wait for theirs, which ends the session; a command's may take 20 times as long in all
	Logger      *slog.Logger
}

// Session is one logged-in initiator.
type Session struct {
	cfg    Config
	params login.Params
	conn   net.Conn
	live   *liveReader
	reader *pdu.Reader
	memory *account
	out    *outbox
	stats  counters
	stops  uint64 // Watch.count when the session began

	expCmdSN atomic.Uint32 // written by the reader
	maxCmdSN atomic.Uint32 // raised whenever a command that took a CmdSN has been dealt with
	pinged   atomic.Int64  // sinceEpoch of our last ping's departure
	fed      atomic.Int64  // sinceEpoch of when data of a write came last, or was asked for

	ctx    context.Context // of the tasks; set by Run, constant afterwards
	cancel context.CancelCauseFunc

	ready   chan *command // complete commands for the workers; never full, see run
	workers sync.WaitGroup

	mu        sync.Mutex
	changed   *sync.Cond // on mu; a command has left tasks
	tasks     map[uint32]*command
	transfers map[uint32]*transfer // by target transfer tag
	orphans   map[uint32]struct{}  // transfer tags of aborted commands whose data may still come
	nextTag   uint32               // next target transfer tag
	idle      int                  // workers waiting
	running   int                  // workers
	immediate int                  // immediate commands at work
	newest    uint64               // command.order of the newest command
	barriers  int                  // of tasks, those with an order of their own
	held      []*command           // dormant, in the order in which they were complete
	logout    *command             // answered once tasks is empty
	closing   bool
	spares    []*command  // answered, to be used again
	unused    []*transfer // the same of transfers
	asked     bool        // to log out
	leaving   *time.Timer // ends the session that was asked to go and stays
	longest   int         // most commands there were in tasks

	inline  inliner
	readEnd chan error // what the last reader returns

	// The reader's own.
	header  pdu.Header
	scratch []byte
	text    textExchange
	skipped []uint32 // CmdSNs from expCmdSN on that count as received, see skip
	warned  bool     // of data out of sequence
	log     *slog.Logger
}

// New returns the session of a finished login. Run must be called.
func New(hs *Handshake, cfg Config) *Session {
	if cfg.Window <= 0 || cfg.Window > 1024 {
		cfg.Window = DefaultWindow
	}
	if cfg.Ping <= 0 {
		cfg.Ping = DefaultPingInterval
	}
	if cfg.PingTimeout <= 0 {
		cfg.PingTimeout = DefaultPingTimeout
	}
	if cfg.DataTimeout <= 0 {
		cfg.DataTimeout = DefaultDataTimeout
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	p := hs.Params
	s := &Session{
		cfg: cfg, params: p, conn: hs.conn, live: hs.live, reader: hs.reader,
		memory:    &account{m: cfg.Memory},
		ready:     make(chan *command, cfg.Window+2*maxImmediate),
		tasks:     make(map[uint32]*command),
		transfers: make(map[uint32]*transfer),
		orphans:   make(map[uint32]struct{}),
		readEnd:   make(chan error, 1),
		log:       cfg.Logger,
		stops:     cfg.Watch.count(),
	}
	s.changed = sync.NewCond(&s.mu)
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.expCmdSN.Store(hs.cmdSN)
	s.maxCmdSN.Store(hs.cmdSN + uint32(cfg.Window) - 1)
	s.reader.MaxData = p.MaxRecvData
	s.reader.HeaderDigest, s.reader.DataDigest = p.HeaderDigest, p.DataDigest
	hs.writer.HeaderDigest, hs.writer.DataDigest = p.HeaderDigest, p.DataDigest
	s.out = newOutbox(s, hs.writer, hs.statSN)
	s.memory.short = s.out.wake
	return s
}

// Run serves the session until it ends, and returns why, never nil. When it returns the connection is closed, every task
// has ended and every buffer is back. ctx ends the session like Close.
func (s *Session) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.Close(context.Cause(ctx)) })
	defer stop()
	// What wakes the reader and the writer wherever they wait.
	unhook := context.AfterFunc(s.ctx, func() {
		_ = s.conn.Close()
		s.memory.close()
	})
	defer unhook()
	s.live.last.Store(sinceEpoch())
	pinger := newPinger(s)

	written := make(chan struct{})
	go func() {
		defer close(written)
		defer s.recoverPanic("writer")
		s.out.run()
	}()
	s.inline.timer = time.AfterFunc(time.Hour, s.watch)
	s.inline.timer.Stop()
	s.live.before = s.sendHeld
	go s.readOn()
	err := <-s.readEnd
	s.inline.timer.Stop()
	if errors.Is(err, pdu.ErrHeaderDigest) || errors.Is(err, pdu.ErrDataDigest) {
		s.stats.digestErrors.Add(1)
	}
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("the initiator closed the connection: %w", err)
	}
	switch {
	case errors.Is(err, ErrProtocol), errors.Is(err, pdu.ErrTooLong), errors.Is(err, pdu.ErrFormat):
		s.tellWhy(pdu.RejectProtocol)
	case errors.Is(err, pdu.ErrDataDigest): // RFC 7143 §7.8; after a header's, nothing in the PDU can be believed
		s.tellWhy(pdu.RejectDataDigest)
	}
	s.Close(err)
	pinger.stop()
	s.stopLeaving()
	_ = s.conn.Close()

	s.memory.close()
	s.mu.Lock()
	s.closing = true
	dropped := s.takeUnstarted(func(*command) bool { return true })
	s.mu.Unlock()
	s.release(dropped)
	close(s.ready)
	s.workers.Wait()
	s.out.close()
	<-written
	s.out.drop()
	return context.Cause(s.ctx)
}

// Close ends the session; Run then returns cause. It does not wait. Only the first cause counts.
func (s *Session) Close(cause error) { s.cancel(cause) }

func (s *Session) recoverPanic(who string) {
	if r := recover(); r != nil {
		s.log.Error("a panic ended this session only; its commands were not answered", "in", who, "panic", r, "stack", string(debug.Stack()))
		s.Close(fmt.Errorf("%w: panic in the %s: %v", ErrPanic, who, r))
	}
}

// readOn takes in PDUs until the stream ends or breaks, which Run is told, or until another goroutine has become the reader.
func (s *Session) readOn() {
	reader := true
	var err error
	defer func() {
		r := recover()
		if r != nil {
			s.log.Error("a panic ended this session only; its commands were not answered", "in", "reader", "panic", r, "stack", string(debug.Stack()))
			err = fmt.Errorf("%w: panic in the reader: %v", ErrPanic, r)
		}
		if reader {
			s.readEnd <- err
			return
		}
		s.workers.Done() // as a worker it ended; see watch
	}()
	for {
		if err = s.reader.ReadHeader(&s.header); err != nil {
			return
		}
		s.stats.pdusIn.Add(1)
		if err = s.dispatch(&s.header); err != nil {
			return
		}
		if c := s.inline.next; c != nil {
			s.inline.next = nil
			if reader = s.executeInline(c); !reader {
				return
			}
		}
	}
}

// tellWhy rejects the PDU that ends the session and gives the initiator a moment to read it: closing a connection with
// data unread resets it, and a reset may overtake the Reject.
func (s *Session) tellWhy(reason pdu.RejectReason) {
	s.reject(reason)
	s.out.flush()
	half, ok := s.conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || s.conn.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, s.conn, lingerBytes) // its end, whichever it is, is the end we wait for
}

func protocolError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// dispatch handles one PDU, whose data segment it reads. An error ends the connection.
func (s *Session) dispatch(h *pdu.Header) error {
	op := h.Opcode()
	switch op {
	case pdu.OpDataOut:
		return s.dataOut(h)
	case pdu.OpSNACK:
		// Recovery within a connection needs ErrorRecoveryLevel 1.
		s.reject(pdu.RejectSNACK)
		return s.reader.Discard(h.DataLength())
	case pdu.OpSCSICommand, pdu.OpNopOut, pdu.OpTaskRequest, pdu.OpTextRequest, pdu.OpLogoutRequest:
	default:
		if op == pdu.OpLoginRequest {
			return protocolError("login request in full feature phase")
		}
		s.reject(pdu.RejectNotSupported)
		return s.reader.Discard(h.DataLength())
	}
	if !h.Immediate() {
		if ignore, err := s.number(h.CmdSN()); err != nil {
			return err
		} else if ignore {
			s.stats.ignored.Add(1)
			return s.reader.Discard(h.DataLength())
		}
	}
	s.mu.Lock()
	leaving := s.logout != nil
	_, busy := s.tasks[h.Tag()]
	crowded := h.Immediate() && s.immediate >= maxImmediate
	s.mu.Unlock()
	refusal := pdu.RejectReason(0)
	switch {
	case leaving:
		refusal = pdu.RejectWaitForLogout
	case crowded && (op == pdu.OpSCSICommand || op == pdu.OpTaskRequest):
		refusal = pdu.RejectImmediate
	case busy && op != pdu.OpNopOut && op != pdu.OpTextRequest:
		refusal = pdu.RejectTaskInProgress
	case s.params.Discovery && (op == pdu.OpSCSICommand || op == pdu.OpTaskRequest):
		refusal = pdu.RejectProtocol // RFC 7143 §4.3: only text and logout
	}
	if refusal != 0 {
		s.reject(refusal)
		s.retire(h.Immediate())
		return s.reader.Discard(h.DataLength())
	}
	switch op {
	case pdu.OpSCSICommand:
		return s.scsiCommand(h)
	case pdu.OpNopOut:
		return s.nopOut(h)
	case pdu.OpTaskRequest:
		return s.taskRequest(h)
	case pdu.OpTextRequest:
		return s.textRequest(h)
	default:
		return s.logoutRequest(h)
	}
}

// retire opens the window by the place a command took.
func (s *Session) retire(immediate bool) {
	if !immediate {
		s.maxCmdSN.Add(1)
	}
}

// reject answers the PDU in s.header with a Reject that carries its header.
func (s *Session) reject(reason pdu.RejectReason) {
	s.stats.rejects.Add(1)
	var h pdu.Header
	(&pdu.Reject{Reason: reason}).Put(&h)
	bad := s.header
	s.out.postFromReader(item{header: h, data: bad[:], numbered: true})
}

// nopOut answers a ping, or takes the answer to ours.
func (s *Session) nopOut(h *pdu.Header) error {
	s.retire(h.Immediate())
	n := h.DataLength()
	if h.Tag() == pdu.NoTag {
		return s.reader.Discard(n)
	}
	var echo []byte
	if n > 0 {
		// Not from the budget: bounded by what the reader may leave unsent, and a ping must not wait for memory.
		echo = make([]byte, n)
		if err := s.reader.ReadData(echo); err != nil {
			return err
		}
		echo = echo[:min(n, s.params.MaxSendData)]
	}
	var r pdu.Header
	(&pdu.NopIn{LUN: h.LUN(), Tag: h.Tag(), TransferTag: pdu.NoTag}).Put(&r)
	s.out.postFromReader(item{header: r, data: echo, numbered: true})
	return nil
}

// logoutRequest ends what has not begun and answers when the rest has ended.
func (s *Session) logoutRequest(h *pdu.Header) error {
	reason, tag, immediate, cid := h.LogoutReason(), h.Tag(), h.Immediate(), h.CID()
	if err := s.reader.Discard(h.DataLength()); err != nil {
		return err
	}
	response := pdu.LogoutDone
	switch {
	case reason == pdu.LogoutRecovery:
		response = pdu.LogoutNoRecovery
	case reason > pdu.LogoutRecovery:
		s.retire(immediate)
		s.reject(pdu.RejectInvalidField)
		return nil
	case reason == pdu.LogoutConnection && cid != s.params.CID:
		response = pdu.LogoutNoCID
	}
	if response != pdu.LogoutDone {
		s.retire(immediate)
		var r pdu.Header
		(&pdu.LogoutResponse{Response: response, Tag: tag}).Put(&r)
		s.out.postFromReader(item{header: r, numbered: true})
		return nil
	}
	c := &command{tag: tag, immediate: immediate}
	s.mu.Lock()
	s.logout = c
	dropped := s.takeUnstarted(func(*command) bool { return true })
	s.finishLogout()
	s.mu.Unlock()
	s.release(dropped)
	return nil
}

// finishLogout answers the logout once the last task has ended; mu is held.
func (s *Session) finishLogout() {
	if s.logout == nil || len(s.tasks) > 0 || s.closing {
		return
	}
	s.closing = true
	s.retire(s.logout.immediate)
	var h pdu.Header
	wait := uint16(s.params.Time2Wait)
	if s.asked {
		wait = 0 // it is to come back at once, wherever it is sent to
	}
	(&pdu.LogoutResponse{
		Response: pdu.LogoutDone, Tag: s.logout.tag, Time2Wait: wait, Time2Retain: uint16(s.params.Time2Retain),
	}).Put(&h)
	s.out.post(item{header: h, numbered: true, end: ErrLoggedOut})
}
