package session

import (
	"errors"
	"testing"
	"time"

	"sanctuary/target/pdu"
	"sanctuary/target/scsi"
)

func TestWhoWasAskedToLogOutComesBackAtOnce(t *testing.T) {
	p := connect(t, setup{keys: append(all(), pdu.Pair{Key: "DefaultTime2Wait", Value: "7"})})
	if p.params.Time2Wait == 0 {
		t.Fatal("Time2Wait 0 was negotiated: this test would show nothing")
	}
	p.s.AskForLogout(5 * time.Second)
	p.s.AskForLogout(9 * time.Second) // once is enough
	if h, _ := p.expect(pdu.OpAsync); h.Opcode() != pdu.OpAsync {
		t.Fatal("not asked")
	}
	p.logoutRequest(pdu.LogoutSession, 0)
	h, _ := p.expect(pdu.OpLogoutResponse)
	if wait, _ := h.LogoutTimes(); wait != 0 || h.Response() != pdu.LogoutDone {
		t.Errorf("response %d, Time2Wait %d, want 0 and 0", h.Response(), wait)
	}
	p.expectClosed(0, ErrLoggedOut)
}

func TestWhoWasAskedToLogOutAndStaysIsCutOff(t *testing.T) {
	p := connect(t, setup{keys: all()})
	p.s.AskForLogout(time.Nanosecond) // the least is a second
	p.expect(pdu.OpAsync)
	p.alive()
	p.expectClosed(0, ErrOverdue)
}

func TestADroppedSessionIsToldAndEndsAlsoIfItDoesNotListen(t *testing.T) {
	why := errors.New("because")
	p := connect(t, setup{keys: all()})
	p.s.Drop(why, 3*time.Second)
	h, _ := p.expect(pdu.OpAsync)
	if e, params := h.AsyncEvent(); e != pdu.AsyncDropSession || params != [3]uint16{0, 3, 0} {
		t.Errorf("event %d, parameters %v", e, params)
	}
	p.expectClosed(0, why)

	deaf := connect(t, setup{keys: all()})
	for range 64 { // more than the sockets hold
		c := deaf.rw(false, 0, 2<<20, 2<<20)
		if c.CmdSN-deaf.s.expCmdSN.Load() > 31 {
			break
		}
		deaf.issue(c, nil)
		if deaf.s.out.since.Load() != 0 {
			break
		}
	}
	deaf.s.Drop(why, 0)
	select {
	case err := <-deaf.ended:
		if !errors.Is(err, why) {
			t.Errorf("ended with %v", err)
		}
		deaf.ended <- err
	case <-time.After(10 * time.Second):
		t.Fatal("a session that does not listen was not cut off")
	}
}

// An immediate ABORT TASK may overtake nothing on one connection, but it may name a command the initiator will never send.
func TestAbortingACommandThatNeverCameTakesItsNumber(t *testing.T) {
	p := connect(t, setup{keys: all()})
	p.alive()
	abort := func(refCmdSN, cmdSN uint32) uint32 {
		tag := p.tag
		p.tag++
		var h pdu.Header
		(&pdu.TaskRequest{Immediate: true, Function: uint8(scsi.AbortTask), Tag: tag, ReferencedTag: 0xABCD, RefCmdSN: refCmdSN, CmdSN: cmdSN}).Put(&h)
		p.send(&h, nil)
		return tag
	}
	for _, o := range []struct {
		what         string
		ref, request uint32
		want         scsi.FunctionResponse
	}{
		{"answered long ago", p.cmdSN - 1, p.cmdSN, scsi.TaskDoesNotExist},
		{"beyond the window", p.cmdSN + 500, p.cmdSN + 501, scsi.TaskDoesNotExist},
		{"later than the request", p.cmdSN + 1, p.cmdSN, scsi.TaskDoesNotExist},
		{"the number after the next", p.cmdSN + 1, p.cmdSN + 2, scsi.FunctionComplete},
		{"the same again", p.cmdSN + 1, p.cmdSN + 2, scsi.FunctionComplete},
	} {
		t.Log(o.what)
		p.expectManaged(abort(o.ref, o.request), o.want)
	}
	p.alive()
	late := p.command(0) // has the number that was taken
	p.issue(late, nil)
	p.alive() // and no answer to late
	p.expectManaged(abort(p.cmdSN, p.cmdSN+1), scsi.FunctionComplete)
	p.cmdSN++
	p.alive()
	if n := p.disk.executed(); n != 4 {
		t.Errorf("%d commands executed, want 4", n)
	}
}

func TestAbortTaskNamesTheLUNToo(t *testing.T) {
	p := connect(t, setup{keys: all()})
	u := p.rw(true, 0, 8192, 8192)
	u.Final = false
	p.issue(u, nil)
	p.expectManaged(p.manage(scsi.AbortTask, 9, u.Tag), scsi.TaskDoesNotExist)
	p.dataOut(pdu.DataOut{Tag: u.Tag, TransferTag: pdu.NoTag, Final: true}, make([]byte, 8192))
	p.expectStatus(u.Tag, scsi.StatusGood)
}

func TestStatsTellWhatASessionDoes(t *testing.T) {
	p := connect(t, setup{keys: all(), config: func(c *Config) { c.Ping = time.Hour }})
	if got := p.s.Stats().SinceCommand; got != -1 {
		t.Errorf("%v s since the last command, and there was none", got)
	}
	c := p.command(0)
	c.CDB[15] = 1
	p.issue(c, nil)
	<-p.disk.entered
	w := p.rw(true, 0, 20000, 20000)
	p.issue(w, nil)
	p.expect(pdu.OpR2T)
	p.expect(pdu.OpR2T)
	st := p.s.Stats()
	if st.Commands != 2 || st.Outstanding != 2 || st.LongestQueue != 2 || st.R2Ts != 2 || st.SinceCommand < 0 || st.SinceCommand > 10 {
		t.Errorf("%+v", st)
	}
	p.expectManaged(p.manage(scsi.AbortTaskSet, 0, pdu.NoTag), scsi.FunctionComplete)
	if st := p.s.Stats(); st.Outstanding != 0 || st.LongestQueue != 2 || st.Aborted != 1 {
		t.Errorf("%+v", st)
	}
}
