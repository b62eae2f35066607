package target

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sanctuary/target/login"
	"sanctuary/target/pdu"
	"sanctuary/target/scsi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lun is an Executor that counts nexuses. Operation 01h waits until its task is cancelled and then, like a write that is
// already with the backend, for release.
type lun struct {
	mu       sync.Mutex
	attached map[*scsi.Nexus]bool
	most     int           // nexuses attached at once
	waiting  chan struct{} // one for each command that waits
	release  chan struct{}
	running  atomic.Int32
	detach   atomic.Bool // panic at the next Detach

	elsewhere atomic.Bool // a session on another node cannot be ended
}

func newLUN() *lun {
	return &lun{attached: make(map[*scsi.Nexus]bool), waiting: make(chan struct{}, 100), release: make(chan struct{})}
}

func (l *lun) Execute(ctx context.Context, t *scsi.Task) {
	switch t.CDB[0] {
	case 0x02:
		panic("a command that panics")
	case 0x01:
	default:
		return
	}
	l.running.Add(1)
	defer l.running.Add(-1)
	l.waiting <- struct{}{}
	<-ctx.Done()
	<-l.release
	t.Status = scsi.StatusTaskAborted
}

func (l *lun) Accept(*scsi.Task) int64 { return 0 }

func (l *lun) Manage(scsi.Function, *scsi.Nexus, uint64, uint32) func(context.Context) scsi.FunctionResponse {
	return func(context.Context) scsi.FunctionResponse { return scsi.FunctionComplete }
}

func (l *lun) Reinstate(context.Context, *scsi.Nexus) error {
	if l.elsewhere.Load() {
		return errors.New("a task of the old session still runs on another node")
	}
	return nil
}

func (l *lun) Attach(n *scsi.Nexus) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.attached[n] = true
	l.most = max(l.most, len(l.attached))
}

func (l *lun) Detach(n *scsi.Nexus) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.attached[n] || l.running.Load() != 0 && len(l.attached) == 1 {
		panic("detached a nexus that was not attached, or whose tasks run")
	}
	delete(l.attached, n)
	if l.detach.CompareAndSwap(true, false) {
		panic("a target that panics")
	}
}

func (l *lun) nexuses() (now, most int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.attached), l.most
}

// directory knows iqn.test:a and iqn.test:b for everyone but iqn.test:stranger, and portals that panic on demand.
type directory struct {
	luns   map[string]*lun
	single *atomic.Bool // iqn.test:single knows one path
}

func (directory) Credentials(string) (login.Credentials, bool) { return login.Credentials{}, false }

func (d directory) List(initiator string, _ uint16) []Listing {
	if initiator == "iqn.test:stranger" {
		return nil
	}
	return []Listing{
		{Name: "iqn.test:a", Portals: []PortalAddress{
			{"0.0.0.0:3260", 2},
			{"192.0.2.7:3260", 7},
			{"[::]:3261", 2},
			{":3262", 2},
			{"nonsense", 2},
			{":0", 2},
			{"0.0.0.0:3260", 7},
			{"127.0.0.1:3260", 2},
			{"a,b:3260", 7},
			{"san.example:3260", 7},
			{"[::ffff:192.0.2.8]:3260", 7},
		}},
		{Name: "iqn.test:unreachable", Portals: []PortalAddress{{"0.0.0.0:3260", 7}}},
		{Name: "iqn.test:b", Portals: []PortalAddress{{"[2001:db8::1]:3260", 1}}},
	}
}

func (d directory) SinglePath(o Opening) bool {
	return d.single != nil && d.single.Load() && o.Initiator == "iqn.test:single"
}

func (d directory) Open(o Opening) (scsi.Executor, error) {
	initiator, target := o.Initiator, o.Target
	switch {
	case target == "iqn.test:panic":
		panic("a directory that panics")
	case target == "iqn.test:moved":
		return nil, &login.Refusal{Status: login.MovedTemporarily, Address: "192.0.2.9:3260", Reason: "moved"}
	case d.luns[target] == nil:
		return nil, ErrNoTarget
	case initiator == "iqn.test:stranger":
		return nil, ErrNotAllowed
	}
	return d.luns[target], nil
}

type bench struct {
	*testing.T
	p    *Portal
	addr string
	a, b *lun

	single atomic.Bool
}

func serve(t *testing.T, change func(*Config)) *bench {
	t.Helper()
	x := &bench{T: t, a: newLUN(), b: newLUN()}
	cfg := Config{Directory: directory{map[string]*lun{"iqn.test:a": x.a, "iqn.test:b": x.b}, &x.single}, GroupOf: OneGroup(2), Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&cfg)
	}
	var err error
	if x.p, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	x.addr = ln.Addr().String()
	served := make(chan error, 1)
	go func() { served <- x.p.Serve(context.Background(), ln) }()
	t.Cleanup(func() {
		if err := x.p.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
		for _, l := range []*lun{x.a, x.b} {
			if n, _ := l.nexuses(); n != 0 {
				t.Errorf("%d nexuses left attached", n)
			}
		}
		if n := x.p.MemoryUsed(); n != 0 {
			t.Errorf("%d bytes of buffers in use", n)
		}
	})
	return x
}

// rawInitiator is a connection with the least of an initiator.
type rawInitiator struct {
	*testing.T
	conn  net.Conn
	r     *pdu.Reader
	w     *pdu.Writer
	cmdSN uint32
}

func (x *bench) dial() *rawInitiator { return x.dialFrom("127.0.0.1") }

func (x *bench) dialFrom(local string) *rawInitiator {
	x.Helper()
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
	conn, err := from.Dial("tcp", x.addr)
	if err != nil {
		x.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	x.Cleanup(func() { conn.Close() })
	return &rawInitiator{T: x.T, conn: conn, r: pdu.NewReader(conn, 4096, pdu.MaxDataLength), w: pdu.NewWriter(conn), cmdSN: 1}
}

func (i *rawInitiator) send(h *pdu.Header, data string) {
	i.Helper()
	if err := errors.Join(i.w.Append(h, []byte(data)), i.w.Flush()); err != nil {
		i.Fatal(err)
	}
}

func (i *rawInitiator) read() (pdu.Header, string, error) {
	var h pdu.Header
	if err := i.r.ReadHeader(&h); err != nil {
		return h, "", err
	}
	data := make([]byte, h.DataLength())
	err := i.r.ReadData(data)
	return h, string(data), err
}

// login returns the status.
func (i *rawInitiator) login(name, target string, isid byte) (login.Status, string) {
	i.Helper()
	text := "InitiatorName=" + name + "\x00"
	if target == "" {
		text += "SessionType=Discovery\x00"
	} else {
		text += "TargetName=" + target + "\x00"
	}
	var h pdu.Header
	(&pdu.LoginRequest{Transit: true, Current: pdu.StageOperational, Next: pdu.StageFullFeature, ISID: [6]byte{isid}, CmdSN: i.cmdSN}).Put(&h)
	i.send(&h, text)
	h, data, err := i.read()
	if err != nil || h.Opcode() != pdu.OpLoginResponse {
		i.Fatalf("%v %v", h.Opcode(), err)
	}
	return login.Status(h.LoginStatus()), data
}

func (x *bench) loggedIn(name, target string, isid byte) *rawInitiator {
	x.Helper()
	i := x.dial()
	if s, _ := i.login(name, target, isid); s != login.Success {
		x.Fatalf("login status %04Xh", uint16(s))
	}
	return i
}

func (i *rawInitiator) command(op byte) {
	i.Helper()
	var h pdu.Header
	(&pdu.SCSICommand{Final: true, Tag: i.cmdSN, CmdSN: i.cmdSN, CDB: [16]byte{op}}).Put(&h)
	i.cmdSN++
	i.send(&h, "")
}

func (i *rawInitiator) alive() {
	i.Helper()
	i.command(0)
	if h, _, err := i.read(); err != nil || h.Opcode() != pdu.OpSCSIResponse {
		i.Errorf("%v %v, want a SCSI Response", h.Opcode(), err)
	}
}

func (i *rawInitiator) expectEnd() {
	i.Helper()
	for {
		if h, _, err := i.read(); err != nil {
			var t interface{ Timeout() bool }
			if errors.As(err, &t) && t.Timeout() {
				i.Error("the connection was not ended")
			}
			return
		} else if op := h.Opcode(); op != pdu.OpAsync && op != pdu.OpNopIn {
			i.Errorf("%v where the connection should have ended", op)
		}
	}
}

func TestLoginStatuses(t *testing.T) {
	x := serve(t, nil)
	for _, c := range []struct {
		initiator, target string
		want              login.Status
	}{
		{"iqn.test:i", "iqn.test:a", login.Success},
		{"iqn.test:i", "IQN.Test:A", login.Success},
		{"iqn.test:i", "", login.Success},
		{"iqn.test:i", "iqn.test:none", login.TargetNotFound},
		{"iqn.test:stranger", "iqn.test:a", login.TargetNotFound},
		{"iqn.test:stranger", "", login.Success},
		{"iqn.test:i", "iqn.test:moved", login.MovedTemporarily},
	} {
		i := x.dial()
		s, text := i.login(c.initiator, c.target, 1)
		if s != c.want {
			t.Errorf("%s at %s: status %04Xh, want %04Xh", c.initiator, c.target, uint16(s), uint16(c.want))
		}
		if s == login.MovedTemporarily && text != "TargetAddress=192.0.2.9:3260\x00" {
			t.Errorf("redirected with %q", text)
		}
		if s != login.Success {
			i.expectEnd()
		}
	}
}

// Whoever tries names learns nothing: a target that is not there and one that is not for it are answered alike, and as late.
func TestTargetsOfOthersAreNotToldFromThoseThatDoNotExist(t *testing.T) {
	var log safeBuffer
	x := serve(t, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	for _, target := range []string{"iqn.test:a", "iqn.test:none"} {
		i := x.dial()
		began := time.Now()
		s, text := i.login("iqn.test:stranger", target, 1)
		if took := time.Since(began); s != login.TargetNotFound || text != "" || took < unknownAfter {
			t.Errorf("%s: status %04Xh with %q after %v", target, uint16(s), text, took)
		}
		i.expectEnd()
	}
	eventually(t, "both are counted", func() bool { s := x.p.LoginStats(); return s.NotAllowed == 1 && s.NotFound == 1 })
	eventually(t, "the log tells which is which", func() bool {
		return strings.Contains(log.String(), "iqn.test:stranger at iqn.test:a: "+ErrNotAllowed.Error()) &&
			strings.Contains(log.String(), "iqn.test:stranger at iqn.test:none: "+ErrNoTarget.Error())
	})
}

func (i *rawInitiator) sendTargets(value string) string {
	i.Helper()
	var h pdu.Header
	(&pdu.TextRequest{Final: true, Tag: 77, TransferTag: pdu.NoTag, CmdSN: i.cmdSN}).Put(&h)
	i.cmdSN++
	i.send(&h, "SendTargets="+value+"\x00")
	h, data, err := i.read()
	if err != nil || h.Opcode() != pdu.OpTextResponse {
		i.Fatalf("%v %v", h.Opcode(), err)
	}
	return strings.ReplaceAll(data, "\x00", " ")
}

func TestSendTargetsNamesOnlyWhatCanBeReached(t *testing.T) {
	x := serve(t, nil)
	a := "TargetName=iqn.test:a TargetAddress=127.0.0.1:3260,2 TargetAddress=192.0.2.7:3260,7 " +
		"TargetAddress=127.0.0.1:3261,2 TargetAddress=127.0.0.1:3262,2 TargetAddress=san.example:3260,7 TargetAddress=192.0.2.8:3260,7 "
	b := "TargetName=iqn.test:b TargetAddress=[2001:db8::1]:3260,1 "
	i := x.loggedIn("iqn.test:i", "", 1)
	for value, want := range map[string]string{"All": a + b, "iqn.test:b": b, "iqn.test:c": ""} {
		if got := i.sendTargets(value); got != want {
			t.Errorf("%s: %q, want %q", value, got, want)
		}
	}
	if got := x.loggedIn("iqn.test:stranger", "", 1).sendTargets("All"); got != "" {
		t.Errorf("a stranger is told %q", got)
	}
	if got := x.loggedIn("iqn.test:i", "iqn.test:b", 1).sendTargets(""); got != b {
		t.Errorf("within a session: %q, want %q", got, b)
	}
}

func TestReinstatementEndsTheOldSessionsTasksBeforeTheLoginIsAnswered(t *testing.T) {
	x := serve(t, nil)
	old := x.loggedIn("iqn.test:i", "iqn.test:a", 1)
	old.command(0x01)
	<-x.a.waiting
	beside := x.loggedIn("iqn.test:i", "iqn.test:a", 2) // another ISID: another session
	again := x.dial()
	answered := make(chan login.Status, 1)
	go func() { s, _ := again.login("iqn.test:I", "iqn.test:a", 1); answered <- s }()
	old.expectEnd() // it has been told to end, but its task still runs
	select {
	case s := <-answered:
		t.Errorf("status %04Xh while a task of the old session was running", uint16(s))
	case <-time.After(50 * time.Millisecond):
	}
	if x.a.running.Load() != 1 {
		t.Error("the task is not running any more")
	}
	close(x.a.release)
	if s := <-answered; s != login.Success {
		t.Errorf("status %04Xh", uint16(s))
	}
	if x.a.running.Load() != 0 {
		t.Error("a task of the old session outlived it")
	}
	again.alive()
	beside.alive()
	if now, most := x.a.nexuses(); now != 2 || most != 2 {
		t.Errorf("%d nexuses, at most %d at once, want 2 and 2", now, most)
	}
}

func TestReinstatementThatCannotEndTheOldSessionIsRefused(t *testing.T) {
	x := serve(t, func(c *Config) { c.LoginTimeout = 100 * time.Millisecond })
	old := x.loggedIn("iqn.test:i", "iqn.test:a", 1)
	old.command(0x01)
	<-x.a.waiting
	again := x.dial()
	var h pdu.Header
	(&pdu.LoginRequest{Transit: true, Current: pdu.StageOperational, Next: pdu.StageFullFeature, ISID: [6]byte{1}}).Put(&h)
	again.send(&h, "InitiatorName=iqn.test:i\x00TargetName=iqn.test:a\x00")
	if h, _, err := again.read(); err == nil && h.LoginStatus() == uint16(login.Success) {
		t.Error("logged in beside a running task of the old session")
	}
	close(x.a.release)
}

func TestLoginWaitsForTasksOfASessionOnAnotherNode(t *testing.T) {
	x := serve(t, nil)
	x.a.elsewhere.Store(true)
	if s, _ := x.dial().login("iqn.test:i", "iqn.test:a", 1); s != login.ServiceUnavailable {
		t.Errorf("status %04Xh", uint16(s))
	}
	x.a.elsewhere.Store(false)
	x.loggedIn("iqn.test:i", "iqn.test:a", 1).alive()
	if now, _ := x.a.nexuses(); now != 1 {
		t.Errorf("%d nexuses, want the one", now)
	}
}

func TestSessionsAreListed(t *testing.T) {
	x := serve(t, nil)
	i := x.loggedIn("iqn.test:i", "iqn.test:a", 5)
	i.alive()
	j := x.loggedIn("iqn.test:j", "iqn.test:b", 6)
	j.alive()
	list := x.p.Sessions()
	if len(list) != 2 {
		t.Fatalf("%d sessions", len(list))
	}
	s := list[0]
	if s.Initiator != "iqn.test:i" || s.Target != "iqn.test:a" || s.ISID[0] != 5 || s.TSIH == 0 ||
		s.Remote != i.conn.LocalAddr().String() || s.Stats.Commands != 1 || s.Params.MaxRecvData != 256<<10 {
		t.Errorf("%+v", s)
	}
	if list[1].Initiator != "iqn.test:j" || list[1].TSIH == s.TSIH {
		t.Errorf("%+v", list[1])
	}
}

func TestCloseTargetEndsItsSessionsOnly(t *testing.T) {
	x := serve(t, nil)
	a, b := x.loggedIn("iqn.test:i", "iqn.test:a", 1), x.loggedIn("iqn.test:i", "iqn.test:b", 1)
	a.command(0x01)
	<-x.a.waiting
	short, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := x.p.CloseTarget(short, "iqn.test:a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v while a task was running", err)
	}
	close(x.a.release)
	if err := x.p.CloseTarget(context.Background(), "iqn.test:A"); err != nil {
		t.Error(err)
	}
	if n, _ := x.a.nexuses(); n != 0 {
		t.Errorf("%d nexuses after CloseTarget", n)
	}
	a.expectEnd()
	b.alive()
}

func TestDrainAsksForLogoutAndRefusesNewcomers(t *testing.T) {
	x := serve(t, nil)
	polite, deaf := x.loggedIn("iqn.test:i", "iqn.test:a", 1), x.loggedIn("iqn.test:j", "iqn.test:a", 1)
	polite.alive()
	deaf.alive()
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	drained := make(chan error, 1)
	go func() { drained <- x.p.Drain(ctx) }()
	h, _, err := polite.read()
	if err != nil || h.Opcode() != pdu.OpAsync {
		t.Fatalf("%v %v, want an Asynchronous Message", h.Opcode(), err)
	}
	if s, _ := x.dial().login("iqn.test:k", "iqn.test:a", 1); s != login.ServiceUnavailable {
		t.Errorf("newcomer: status %04Xh", uint16(s))
	}
	// One that belongs elsewhere is not told "not now", but where.
	if s, _ := x.dial().login("iqn.test:k", "iqn.test:moved", 1); s != login.MovedTemporarily {
		t.Errorf("newcomer that is sent on: status %04Xh", uint16(s))
	}
	(&pdu.LogoutRequest{Tag: 9, CmdSN: polite.cmdSN}).Put(&h)
	polite.send(&h, "")
	if h, _, err := polite.read(); err != nil || h.Opcode() != pdu.OpLogoutResponse {
		t.Errorf("%v %v, want a Logout Response", h.Opcode(), err)
	}
	if err := <-drained; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, though one did not log out", err)
	}
	deaf.expectEnd()
	if err := x.p.Drain(context.Background()); err != nil {
		t.Error(err)
	}
	x.p.Resume()
	x.loggedIn("iqn.test:k", "iqn.test:a", 1).alive()
}

// A nexus knows from its login on whether its initiator has one path, and after each Recheck.
func TestNexusesKnowTheirInitiatorsWithASinglePath(t *testing.T) {
	x := serve(t, nil)
	x.single.Store(true)
	x.loggedIn("iqn.test:single", "iqn.test:a", 1).alive()
	x.loggedIn("iqn.test:i", "iqn.test:a", 2).alive()
	want := func(single bool) {
		t.Helper()
		x.a.mu.Lock()
		defer x.a.mu.Unlock()
		for n := range x.a.attached {
			if n.SinglePath() != (single && n.Initiator == "iqn.test:single") {
				t.Errorf("%s: %v", n.Initiator, n.SinglePath())
			}
		}
	}
	want(true)
	x.single.Store(false)
	if err := x.p.Recheck(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(false)
}

func TestConnectionsAreLimited(t *testing.T) {
	x := serve(t, func(c *Config) { c.MaxConnections, c.MaxBeforeLogin = 3, 2 })
	first, second := x.dial(), x.dial()
	x.dial().expectEnd() // two have not logged in
	if s, _ := first.login("iqn.test:i", "iqn.test:a", 1); s != login.Success {
		t.Fatalf("status %04Xh", uint16(s))
	}
	first.alive()
	third := x.loggedIn("iqn.test:i", "iqn.test:a", 3)
	x.dial().expectEnd() // three are open
	second.conn.Close()
	first.alive()
	third.alive()
}

func TestWhoDoesNotLogInIsDropped(t *testing.T) {
	x := serve(t, func(c *Config) { c.LoginTimeout = 50 * time.Millisecond })
	x.dial().expectEnd()
	i := x.dial()
	if _, err := i.conn.Write(make([]byte, 20)); err != nil {
		t.Fatal(err)
	}
	i.expectEnd()
}

func TestNothingButLoginBeforeLogin(t *testing.T) {
	x := serve(t, nil)
	i := x.dial()
	i.command(0)
	if h, _, err := i.read(); err != nil || h.Opcode() != pdu.OpLoginResponse || h.LoginStatus() != uint16(login.InvalidDuringLogin) {
		t.Errorf("%v, status %04Xh, %v", h.Opcode(), h.LoginStatus(), err)
	}
	i.expectEnd()
}

func TestAPanicEndsOneConnectionOnly(t *testing.T) {
	x := serve(t, nil)
	i := x.loggedIn("iqn.test:i", "iqn.test:a", 1)
	var h pdu.Header
	(&pdu.LoginRequest{Transit: true, Current: pdu.StageOperational, Next: pdu.StageFullFeature}).Put(&h)
	bad := x.dial()
	bad.send(&h, "InitiatorName=iqn.test:i\x00TargetName=iqn.test:panic\x00")
	bad.expectEnd()
	i.alive()
}

// A panic in a command is the session's own to end, and in what comes after it the portal's; both are counted.
func TestPanicsAreCountedWhereverTheyAre(t *testing.T) {
	x := serve(t, nil)
	other := x.loggedIn("iqn.test:i", "iqn.test:b", 1)
	i := x.loggedIn("iqn.test:i", "iqn.test:a", 1)
	i.command(0x02)
	i.expectEnd()
	eventually(t, "the panic of a command is counted", func() bool { return x.p.LoginStats().Panics == 1 })
	i = x.loggedIn("iqn.test:i", "iqn.test:a", 1)
	x.a.detach.Store(true)
	i.conn.Close()
	eventually(t, "the panic behind the session is counted", func() bool { return x.p.LoginStats().Panics == 2 })
	// The name is free again all the same.
	x.loggedIn("iqn.test:i", "iqn.test:a", 1).alive()
	other.alive()
}

// RFC 7143 §11.5.1.
func TestColdResetEndsTheTargetsSessions(t *testing.T) {
	x := serve(t, nil)
	first, second := x.loggedIn("iqn.test:i", "iqn.test:a", 1), x.loggedIn("iqn.test:i", "iqn.test:a", 2)
	elsewhere := x.loggedIn("iqn.test:i", "iqn.test:b", 1)
	second.alive()
	var h pdu.Header
	(&pdu.TaskRequest{Immediate: true, Function: uint8(scsi.TargetColdReset), Tag: 50, ReferencedTag: pdu.NoTag, CmdSN: first.cmdSN}).Put(&h)
	first.send(&h, "")
	if h, _, err := first.read(); err != nil || h.Opcode() != pdu.OpTaskResponse || h.Response() != 0 {
		t.Fatalf("%v %v, response %d", h.Opcode(), err, h.Response())
	}
	first.expectEnd()
	second.expectEnd()
	elsewhere.alive()
}

func TestConfigNamesTheFieldThatIsWrong(t *testing.T) {
	good := Config{Directory: directory{}, GroupOf: OneGroup(1)}
	for field, spoil := range map[string]func(*Config){
		"Directory":   func(c *Config) { c.Directory = nil },
		"GroupOf":     func(c *Config) { c.GroupOf = nil },
		"Window":      func(c *Config) { c.Window = 5000 },
		"MemoryBytes": func(c *Config) { c.MemoryBytes = 5 },
		"MaxBurst":    func(c *Config) { c.Offer = login.DefaultOffer(); c.Offer.MaxBurst = 1 },
	} {
		c := good
		spoil(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}
