package session

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"sanctuary/target/login"
	"sanctuary/target/pdu"
	"sanctuary/target/scsi"
)

// ping sends a NOP-Out and fails unless the next PDU is its answer.
func (p *peer) ping(data []byte) {
	p.Helper()
	tag := p.tag
	p.tag++
	var h pdu.Header
	(&pdu.NopOut{Immediate: true, Tag: tag, TransferTag: pdu.NoTag, CmdSN: p.cmdSN}).Put(&h)
	p.send(&h, data)
	r, got := p.expect(pdu.OpNopIn)
	if r.Tag() != tag || !bytes.Equal(got, data[:min(len(data), p.params.MaxSendData)]) {
		p.Errorf("NOP-In for task %d with %d bytes, want %d with %d", r.Tag(), len(got), tag, len(data))
	}
}

func TestPingIsEchoedUpToWhatTheInitiatorTakes(t *testing.T) {
	p := connect(t, setup{keys: all()})
	for _, n := range []int{0, 1, 100, 4096, 5000} {
		p.ping(pattern(n, 3))
	}
	var h pdu.Header
	(&pdu.NopOut{Immediate: true, Tag: pdu.NoTag, TransferTag: pdu.NoTag, CmdSN: p.cmdSN}).Put(&h)
	p.send(&h, nil) // wants no answer: alive would see one
	p.alive()
}

func TestCommandsOutsideTheWindowAreIgnored(t *testing.T) {
	p := connect(t, setup{keys: all()})
	p.alive()
	for _, sn := range []uint32{p.cmdSN - 1, p.cmdSN - 1000, p.cmdSN + 32, p.cmdSN + 100000} {
		c := p.rw(true, 0, 4096, 4096)
		p.cmdSN-- // the number was not used up
		c.CmdSN, c.Final = sn, false
		p.issue(c, make([]byte, 100))
		p.dataOut(pdu.DataOut{Tag: c.Tag, TransferTag: pdu.NoTag, BufferOffset: 100, Final: true}, make([]byte, 3996))
	}
	p.alive()
	if n := p.disk.executed(); n != 2 {
		t.Errorf("%d commands executed, want the 2 inside the window", n)
	}
	if got := p.s.Stats().Ignored; got != 8 {
		t.Errorf("%d PDUs ignored, want 4 commands and their 4 Data-Outs", got)
	}
}

func TestSkippedCmdSNEndsTheConnection(t *testing.T) {
	p := connect(t, setup{keys: all()})
	p.cmdSN++
	p.issue(p.command(0), nil)
	p.expectClosed(pdu.RejectProtocol, ErrProtocol)
}

func TestWindowOpensAsCommandsEnd(t *testing.T) {
	p := connect(t, setup{keys: all()})
	start := p.cmdSN
	var tags []uint32
	for range 32 {
		c := p.command(0)
		c.CDB[15] = 1
		p.issue(c, nil)
		tags = append(tags, c.Tag)
	}
	for range 32 {
		<-p.disk.entered // all 32 are running at once: none waits for another's backend
	}
	over := p.command(0)
	p.issue(over, nil) // outside the window
	p.cmdSN--
	p.ping(nil)
	close(p.disk.gate)
	seen := map[uint32]bool{}
	var top uint32
	for range tags {
		h, _ := p.expect(pdu.OpSCSIResponse)
		seen[h.Tag()], top = true, h.MaxCmdSN()
		if h.ExpCmdSN() != start+32 {
			t.Errorf("ExpCmdSN %d, want %d", h.ExpCmdSN(), start+32)
		}
	}
	if len(seen) != 32 || seen[over.Tag] || top != start+32+31 {
		t.Errorf("%d tasks answered, MaxCmdSN %d, want 32 and %d", len(seen), top, start+63)
	}
	p.alive()
}

func TestImmediateCommandsTakeNoNumberAndAreBounded(t *testing.T) {
	p := connect(t, setup{keys: all()})
	for range maxImmediate {
		c := p.command(0)
		p.cmdSN--
		c.Immediate, c.CDB[15] = true, 1
		p.issue(c, nil)
	}
	for range maxImmediate {
		<-p.disk.entered
	}
	c := p.command(0)
	p.cmdSN--
	c.Immediate = true
	p.issue(c, nil)
	if h, _ := p.expect(pdu.OpReject); pdu.RejectReason(h.Response()) != pdu.RejectImmediate {
		t.Errorf("reason %02Xh", h.Response())
	}
	close(p.disk.gate)
	for range maxImmediate {
		if h, _ := p.expect(pdu.OpSCSIResponse); h.MaxCmdSN() != p.cmdSN+31 {
			t.Errorf("MaxCmdSN %d, want %d", h.MaxCmdSN(), p.cmdSN+31)
		}
	}
	p.alive()
}

func TestATagInUseIsRejected(t *testing.T) {
	p := connect(t, setup{keys: all()})
	c := p.command(0)
	c.CDB[15] = 1
	p.issue(c, nil)
	<-p.disk.entered
	again := p.command(0)
	again.Tag = c.Tag
	p.issue(again, nil)
	if h, _ := p.expect(pdu.OpReject); pdu.RejectReason(h.Response()) != pdu.RejectTaskInProgress {
		t.Errorf("reason %02Xh", h.Response())
	}
	close(p.disk.gate)
	p.expectStatus(c.Tag, scsi.StatusGood)
	p.alive()
}

func TestWhatIsNotSupportedIsRejectedAndTheSessionGoesOn(t *testing.T) {
	p := connect(t, setup{keys: all()})
	for _, c := range []struct {
		op     pdu.Opcode
		reason pdu.RejectReason
	}{{pdu.OpSNACK, pdu.RejectSNACK}, {0x1C, pdu.RejectNotSupported}, {pdu.OpNopIn, pdu.RejectNotSupported}} {
		h := pdu.Header{0: byte(c.op), 1: 0x80}
		p.send(&h, []byte("data"))
		if r, data := p.expect(pdu.OpReject); pdu.RejectReason(r.Response()) != c.reason || data[0] != byte(c.op) {
			t.Errorf("%v: reason %02Xh, data % x", c.op, r.Response(), data)
		}
	}
	c := p.rw(true, 0, 512, 512)
	c.Read = true
	p.issue(c, make([]byte, 512))
	if r, _ := p.expect(pdu.OpReject); pdu.RejectReason(r.Response()) != pdu.RejectNotSupported {
		t.Errorf("bidirectional command: reason %02Xh", r.Response())
	}
	p.alive()
}

func (p *peer) manage(f scsi.Function, lun uint64, referenced uint32) uint32 {
	p.Helper()
	tag := p.tag
	p.tag++
	var h pdu.Header
	(&pdu.TaskRequest{Immediate: true, Function: uint8(f), LUN: lun, Tag: tag, ReferencedTag: referenced, CmdSN: p.cmdSN}).Put(&h)
	p.send(&h, nil)
	return tag
}

func (p *peer) expectManaged(tag uint32, want scsi.FunctionResponse) {
	p.Helper()
	if h, _ := p.expect(pdu.OpTaskResponse); h.Tag() != tag || scsi.FunctionResponse(h.Response()) != want {
		p.Errorf("response %d of task %d, want %d of %d", h.Response(), h.Tag(), want, tag)
	}
}

func TestAbortTask(t *testing.T) {
	p := connect(t, setup{keys: all()})
	// Running: the Executor ends it, and only the function is answered.
	c := p.command(0)
	c.CDB[15] = 1
	p.issue(c, nil)
	<-p.disk.entered
	p.expectManaged(p.manage(scsi.AbortTask, 0, c.Tag), scsi.FunctionComplete)
	// Waiting for solicited data: the session drops it, and the data that still comes.
	w := p.rw(true, 0, 40960, 40960)
	p.issue(w, make([]byte, 8192))
	a, _ := p.expect(pdu.OpR2T)
	b, _ := p.expect(pdu.OpR2T)
	p.expectManaged(p.manage(scsi.AbortTask, 0, w.Tag), scsi.FunctionComplete)
	for _, r := range []pdu.Header{a, b} {
		p.dataOut(pdu.DataOut{Tag: w.Tag, TransferTag: r.TransferTag(), BufferOffset: r.BufferOffset(), Final: true}, make([]byte, r.DesiredLength()))
	}
	// Waiting for unsolicited data.
	u := p.rw(true, 0, 8192, 8192)
	u.Final = false
	p.issue(u, nil)
	p.expectManaged(p.manage(scsi.AbortTask, 0, u.Tag), scsi.FunctionComplete)
	p.dataOut(pdu.DataOut{Tag: u.Tag, TransferTag: pdu.NoTag, Final: true}, make([]byte, 8192))
	// Not there.
	p.expectManaged(p.manage(scsi.AbortTask, 0, u.Tag), scsi.TaskDoesNotExist)
	p.alive()
	if n := p.disk.executed(); n != 1 {
		t.Errorf("%d commands ran to their end, want only the last", n)
	}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if len(p.s.tasks)+len(p.s.transfers)+len(p.s.orphans) != 0 {
		t.Errorf("left behind: %d tasks, %d transfers, %d orphans", len(p.s.tasks), len(p.s.transfers), len(p.s.orphans))
	}
}

func TestResetsEndEveryTaskOfTheLUN(t *testing.T) {
	for _, f := range []scsi.Function{scsi.AbortTaskSet, scsi.ClearTaskSet, scsi.LogicalUnitReset, scsi.TargetWarmReset, scsi.TargetColdReset} {
		p := connect(t, setup{keys: all()})
		for range 5 {
			c := p.command(0)
			c.CDB[15] = 1
			p.issue(c, nil)
			<-p.disk.entered
		}
		w := p.rw(true, 0, 40960, 40960)
		p.issue(w, make([]byte, 8192))
		p.expect(pdu.OpR2T)
		p.expect(pdu.OpR2T)
		p.expectManaged(p.manage(f, 0, pdu.NoTag), scsi.FunctionComplete)
		if f == scsi.TargetColdReset {
			p.expectClosed(0, ErrColdReset)
			continue
		}
		p.alive()
		if n := p.disk.executed(); n != 1 {
			t.Errorf("function %d: %d commands ran to their end", f, n)
		}
		p.expectManaged(p.manage(f, 9, pdu.NoTag), scsi.LUNDoesNotExist)
	}
}

// A worker may have a command that the Executor does not know yet: "does not exist" must not overtake its status.
func TestTaskManagementIsAnsweredAfterTheTasksItIsAbout(t *testing.T) {
	p := connect(t, setup{keys: all()})
	c := p.command(0)
	c.CDB[15] = 2
	p.issue(c, nil)
	<-p.disk.entered
	tag := p.manage(scsi.AbortTask, 0, c.Tag)
	p.ping(nil) // read after the request; an answer given at once would soon come
	_ = p.conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if h, _, err := p.read(); err == nil {
		t.Fatalf("%v while the task was running", h.Opcode())
	}
	_ = p.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	close(p.disk.gate)
	p.expectStatus(c.Tag, scsi.StatusGood)
	p.expectManaged(tag, scsi.TaskDoesNotExist)
}

// A command that came before the function, but has not begun when it is carried out, is one of those it ends.
func TestTaskManagementEndsCommandsThatHaveNotBegun(t *testing.T) {
	for _, f := range []scsi.Function{scsi.AbortTask, scsi.AbortTaskSet, scsi.LogicalUnitReset, scsi.TargetWarmReset} {
		p := connect(t, setup{keys: all()})
		c := p.command(0)
		c.CDB[15] = 3
		p.issue(c, nil)
		<-p.disk.entered
		tag := p.manage(f, 0, c.Tag)
		p.ping(nil) // the request has been read
		close(p.disk.gate)
		p.expectManaged(tag, scsi.FunctionComplete)
		p.alive()
		if n := p.disk.executed(); n != 1 {
			t.Errorf("function %d: %d commands ran to their end, want one", f, n)
		}
	}
	// Of another LUN than the function names: not concerned.
	p := connect(t, setup{keys: all()})
	c := p.command(0)
	c.CDB[15] = 3
	p.issue(c, nil)
	<-p.disk.entered
	tag := p.manage(scsi.AbortTask, 9, c.Tag)
	p.ping(nil)
	close(p.disk.gate)
	p.expectStatus(c.Tag, scsi.StatusGood)
	p.expectManaged(tag, scsi.LUNDoesNotExist)
}

func (p *peer) logoutRequest(reason uint8, cid uint16) {
	p.Helper()
	var h pdu.Header
	(&pdu.LogoutRequest{Reason: reason, CID: cid, Tag: p.tag, CmdSN: p.cmdSN}).Put(&h)
	p.tag++
	p.cmdSN++
	p.send(&h, nil)
}

func TestLogoutWaitsForWhatRunsAndDropsTheRest(t *testing.T) {
	p := connect(t, setup{keys: all()})
	c := p.command(0)
	c.CDB[15] = 1
	p.issue(c, nil)
	<-p.disk.entered
	w := p.rw(true, 0, 40960, 40960)
	p.issue(w, make([]byte, 8192))
	p.expect(pdu.OpR2T)
	p.expect(pdu.OpR2T)
	p.logoutRequest(pdu.LogoutSession, 0)
	p.issue(p.command(0), nil)
	if h, _ := p.expect(pdu.OpReject); pdu.RejectReason(h.Response()) != pdu.RejectWaitForLogout {
		t.Errorf("command after the logout request: reason %02Xh", h.Response())
	}
	close(p.disk.gate)
	p.expectStatus(c.Tag, scsi.StatusGood)
	if h, _ := p.expect(pdu.OpLogoutResponse); h.Response() != pdu.LogoutDone {
		t.Errorf("response %d", h.Response())
	}
	p.expectClosed(0, ErrLoggedOut)
}

func TestLogoutsThatCannotBeDoneAreAnswered(t *testing.T) {
	p := connect(t, setup{keys: all()})
	p.logoutRequest(pdu.LogoutRecovery, 0)
	if h, _ := p.expect(pdu.OpLogoutResponse); h.Response() != pdu.LogoutNoRecovery {
		t.Errorf("recovery: response %d", h.Response())
	}
	p.logoutRequest(pdu.LogoutConnection, 9)
	if h, _ := p.expect(pdu.OpLogoutResponse); h.Response() != pdu.LogoutNoCID {
		t.Errorf("another connection: response %d", h.Response())
	}
	p.alive()
}

func (p *peer) textRequest(t pdu.TextRequest, text string) {
	p.Helper()
	t.CmdSN = p.cmdSN
	p.cmdSN++
	var h pdu.Header
	t.Put(&h)
	p.send(&h, []byte(text))
}

func TestSendTargets(t *testing.T) {
	for _, c := range []struct {
		text, want string // want empty: Reject
	}{
		{"SendTargets=All\x00", "TargetName=iqn.x:All\x00TargetAddress=127.0.0.1:3260,1\x00"},
		{"SendTargets=\x00", "TargetName=iqn.x:\x00TargetAddress=127.0.0.1:3260,1\x00"},
		{"SendTargets=IQN.b\x00", "TargetName=iqn.x:iqn.b\x00TargetAddress=127.0.0.1:3260,1\x00"},
		{"X-com.example=1\x00", "X-com.example=NotUnderstood\x00"},
		{"SendTargets=nonsense\x00", ""},
		{"SendTargets=All\x00SendTargets=All\x00", ""},
		{"sendtargets=All\x00", ""},
		{"no pair at all", ""},
	} {
		p := connect(t, setup{keys: all()})
		p.textRequest(pdu.TextRequest{Final: true, Tag: 50, TransferTag: pdu.NoTag}, c.text)
		if c.want == "" {
			if h, _ := p.expect(pdu.OpReject); pdu.RejectReason(h.Response()) != pdu.RejectProtocol {
				t.Errorf("%q: reason %02Xh", c.text, h.Response())
			}
		} else if h, got := p.expect(pdu.OpTextResponse); string(got) != c.want || !h.Final() || h.TransferTag() != pdu.NoTag {
			t.Errorf("%q: %q, flags %02Xh", c.text, got, h.Flags())
		}
		p.alive()
	}
}

func TestLongAnswersAreFetchedInPieces(t *testing.T) {
	long := strings.Repeat("x", 200)
	keys := all()
	keys[5].Value = "512"
	p := connect(t, setup{discovery: true, keys: keys, config: func(c *Config) {
		c.Executor = nil
		c.SendTargets = func(string) (list []pdu.Pair) {
			for range 20 {
				list = append(list, pdu.Pair{Key: "TargetName", Value: long})
			}
			return list
		}
	}})
	// The request comes in two pieces as well.
	p.textRequest(pdu.TextRequest{Continue: true, Tag: 50, TransferTag: pdu.NoTag}, "SendTar")
	h, data := p.expect(pdu.OpTextResponse)
	if h.Final() || h.TransferTag() == pdu.NoTag || len(data) != 0 {
		t.Fatalf("answer to half a request: flags %02Xh, %q", h.Flags(), data)
	}
	p.textRequest(pdu.TextRequest{Final: true, Tag: 50, TransferTag: h.TransferTag()}, "gets=All\x00")
	var got []byte
	for {
		h, data = p.expect(pdu.OpTextResponse)
		got = append(got, data...)
		if len(data) > 512 {
			t.Fatalf("piece of %d bytes", len(data))
		}
		if h.Final() {
			break
		}
		if !h.Has(pdu.FlagContinue) {
			t.Fatalf("flags %02Xh", h.Flags())
		}
		p.textRequest(pdu.TextRequest{Final: true, Tag: 50, TransferTag: h.TransferTag()}, "")
	}
	if pairs, err := pdu.ParseText(got); err != nil || len(pairs) != 20 {
		t.Errorf("%d pairs, %v", len(pairs), err)
	}
	// No SCSI in a discovery session.
	p.issue(p.command(0), nil)
	p.expect(pdu.OpReject)
}

func TestEndlessTextIsCutOff(t *testing.T) {
	p := connect(t, setup{keys: all()})
	handle := pdu.NoTag
	for i := 0; ; i++ {
		p.textRequest(pdu.TextRequest{Continue: true, Tag: 50, TransferTag: handle}, strings.Repeat("A", 8192))
		h, _, err := p.read()
		if err != nil {
			t.Fatal(err)
		}
		if h.Opcode() == pdu.OpReject {
			if i != maxText/8192 {
				t.Errorf("cut off after %d pieces of 8 KiB, want %d", i, maxText/8192)
			}
			break
		}
		handle = h.TransferTag()
	}
	p.statSN = 0
	p.alive()
}

func TestSilentInitiatorIsPingedAndThenDropped(t *testing.T) {
	p := connect(t, setup{keys: all(), config: func(c *Config) { c.Ping, c.PingTimeout = 30*time.Millisecond, 150*time.Millisecond }})
	// As long as pings are answered the session lives: read answers several, then we fall silent.
	begun := time.Now()
	_ = p.conn.SetReadDeadline(begun.Add(400 * time.Millisecond))
	if _, _, err := p.read(); !errors.Is(err, errTimeout(err)) {
		t.Fatalf("%v while answering pings, want only our own deadline", err)
	}
	select {
	case err := <-p.ended:
		t.Fatalf("ended though it was answered: %v", err)
	default:
	}
	_ = p.conn.SetReadDeadline(begun.Add(20 * time.Second))
	p.answerPings = false
	for {
		if _, _, err := p.read(); err != nil {
			break
		}
	}
	p.expectClosed(0, ErrSilent)
}

// errTimeout returns err itself if it is a timeout, otherwise something it is not.
func errTimeout(err error) error {
	var t interface{ Timeout() bool }
	if errors.As(err, &t) && t.Timeout() {
		return err
	}
	return io.ErrNoProgress
}

func TestPanicInACommandEndsThatSessionOnly(t *testing.T) {
	p := connect(t, setup{keys: all()})
	other := connect(t, setup{keys: all()})
	p.issue(p.command(0x02), nil)
	p.expectClosed(0, ErrPanic)
	other.alive()
}

func TestLosingTheConnectionAbortsItsTasks(t *testing.T) {
	p := connect(t, setup{keys: all()})
	for range 3 {
		c := p.rw(true, 0, 4096, 4096)
		c.CDB[15] = 1
		p.issue(c, make([]byte, 4096))
		<-p.disk.entered
	}
	w := p.rw(true, 0, 40960, 40960)
	p.issue(w, make([]byte, 8192))
	p.expect(pdu.OpR2T)
	p.conn.Close() // the cleanup checks that Run returns and every buffer is back
	err := <-p.ended
	p.ended <- err
	if n := p.disk.executed(); n != 0 {
		t.Errorf("%d commands took effect", n)
	}
}

func TestLogoutRequestIsAskedFor(t *testing.T) {
	p := connect(t, setup{keys: all()})
	p.s.AskForLogout(3 * time.Second)
	h, _ := p.expect(pdu.OpAsync)
	if e, params := h.AsyncEvent(); e != pdu.AsyncLogoutRequest || params[2] != 3 {
		t.Errorf("event %d, parameters %v", e, params)
	}
	p.alive()
}

func TestCloseFromOutsideEndsTheSession(t *testing.T) {
	p := connect(t, setup{keys: all(), offer: func(*login.Params) {}})
	why := errors.New("because")
	p.s.Close(why)
	p.expectClosed(0, why)
}
