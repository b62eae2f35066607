package target

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/target/initiator"
	"sanctuary/target/login"
	"sanctuary/target/pdu"
	"sanctuary/target/scsi"
	"sanctuary/target/scsi/scsitest"
)

// rules is a Directory whose answers a test changes.
type rules struct {
	mu          sync.Mutex
	credentials map[string]login.Credentials // known initiators
	open        func(o Opening) (scsi.Executor, error)
	opened      []Opening
	listed      []uint16 // group indexes asked for
}

func (r *rules) Credentials(name string) (login.Credentials, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if name == "iqn.test:panic" {
		panic("a directory that panics")
	}
	c, ok := r.credentials[name]
	return c, ok
}

func (r *rules) List(_ string, group uint16) []Listing {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listed = append(r.listed, group)
	return []Listing{{Name: "iqn.test:a", Portals: []PortalAddress{{":3260", 2 + group<<12}, {fmt.Sprintf("192.0.2.%d:3260", group), 3 + group<<12}}}}
}

func (r *rules) SinglePath(Opening) bool { return false }

func (r *rules) Open(o Opening) (scsi.Executor, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.opened = append(r.opened, o)
	return r.open(o)
}

func (r *rules) set(open func(o Opening) (scsi.Executor, error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open = open
}

var alice = login.Credentials{User: "alice", Secret: "alice's secret"}

// guarded is a portal where iqn.test:alice must prove herself and others need not, and its log.
func guarded(t *testing.T, change func(*Config)) (*bench, *rules, *safeBuffer) {
	t.Helper()
	r, log := &rules{credentials: map[string]login.Credentials{"iqn.test:alice": alice}}, &safeBuffer{}
	x := serve(t, func(c *Config) {
		c.Directory, c.FailureDelay, c.Ping = r, time.Millisecond, time.Hour // a session that ends was ended
		c.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		if change != nil {
			change(c)
		}
	})
	r.set(func(Opening) (scsi.Executor, error) { return x.a, nil })
	return x, r, log
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (x *bench) as(name, secret string) (*initiator.Session, error) {
	cfg := initiator.Config{Address: x.addr, InitiatorName: name, Target: "iqn.test:a", KeepAlive: -1}
	if secret != "" {
		cfg.CHAP = login.Credentials{User: "alice", Secret: secret}
	}
	s, err := initiator.Dial(x.Context(), cfg)
	if err == nil {
		x.Cleanup(s.Close)
	}
	return s, err
}

func status(err error) login.Status {
	var e *initiator.LoginError
	if !errors.As(err, &e) {
		return 0xFFFF
	}
	return login.Status(e.Status)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func TestProofIsAskedForAndShown(t *testing.T) {
	x, r, log := guarded(t, nil)
	if _, err := x.as("iqn.test:alice", alice.Secret); err != nil {
		t.Fatal(err)
	}
	if _, err := x.as("iqn.test:stranger", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := x.as("iqn.test:ALICE", "not alice's secret"); status(err) != login.AuthenticationFailed {
		t.Errorf("wrong secret: %v", err)
	}
	if _, err := x.as("iqn.test:alice", ""); status(err) != login.AuthenticationFailed {
		t.Errorf("no secret: %v", err)
	}
	eventually(t, "both refusals in the log", func() bool { return strings.Count(log.String(), `msg="login refused"`) == 2 })
	text := log.String()
	for _, want := range []string{"iqn.test:alice", "iqn.test:a", "0201h", "wrong CHAP secret", "remote=127.0.0.1"} {
		if !strings.Contains(text, want) {
			t.Errorf("the log does not say %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, alice.Secret) || strings.Contains(text, "not alice's secret") || strings.Contains(text, "0x") {
		t.Errorf("the log shows a secret or a response:\n%s", text)
	}
	eventually(t, "both have begun", func() bool { return len(x.p.Sessions()) == 2 })
	list := x.p.Sessions()
	if len(list) != 2 || list[0].Params.User != "alice" || list[0].Params.Algorithm != login.SHA3256 || list[1].Params.User != "" {
		t.Errorf("%+v", list)
	}
	if s := x.p.LoginStats(); s.Succeeded != 2 || s.NotProved != 2 {
		t.Errorf("%+v", s)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	proved := map[string]bool{}
	for _, o := range r.opened {
		proved[o.Initiator] = proved[o.Initiator] || o.User == "alice"
	}
	if !proved["iqn.test:alice"] || proved["iqn.test:stranger"] {
		t.Errorf("opened by %v", r.opened)
	}
}

// QEMU's driver cannot be redirected after the security stage, so it is before; nothing else is told to strangers.
func TestBeforeTheProofOnlyARedirectionIsTold(t *testing.T) {
	x, r, _ := guarded(t, nil)
	for answer, want := range map[error]login.Status{
		ErrNoTarget:   login.AuthenticationFailed,
		ErrNotAllowed: login.AuthenticationFailed,
		&login.Refusal{Status: login.ServiceUnavailable}:                          login.AuthenticationFailed,
		&login.Refusal{Status: login.MovedTemporarily, Address: "192.0.2.1:3260"}: login.MovedTemporarily,
	} {
		r.set(func(Opening) (scsi.Executor, error) { return nil, answer })
		i := x.dial()
		if s, _ := i.login("iqn.test:alice", "iqn.test:a", 1); s != want {
			t.Errorf("%v: status %04Xh, want %04Xh", answer, uint16(s), uint16(want))
		}
		i.conn.Close()
	}
}

func TestGuessingIsLimited(t *testing.T) {
	x, _, log := guarded(t, nil)
	for i := range failuresPerLogin {
		if _, err := x.as("iqn.test:alice", "a wrong secret"); status(err) != login.AuthenticationFailed {
			t.Fatalf("try %d: %v", i, err)
		}
	}
	eventually(t, "the failures are counted", func() bool { return x.p.LoginStats().NotProved == failuresPerLogin })
	// Not even the right one, for a while: the guesser does not learn it.
	if _, err := x.as("iqn.test:alice", alice.Secret); status(err) != login.ServiceUnavailable {
		t.Errorf("after %d failures: %v", failuresPerLogin, err)
	}
	if s := x.p.LoginStats(); s.Throttled != 1 || s.Unavailable != 0 {
		t.Errorf("%+v", s)
	}
	// Others from the same address are not disturbed, nor is she at another target.
	if _, err := x.as("iqn.test:stranger", ""); err != nil {
		t.Error(err)
	}
	s, err := initiator.Dial(t.Context(), initiator.Config{Address: x.addr, InitiatorName: "iqn.test:alice", Target: "iqn.test:other", CHAP: alice})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	// Whoever goes on is not even heard.
	for i := range failuresPerAddress - failuresPerLogin {
		_, err := initiator.Dial(t.Context(), initiator.Config{
			Address: x.addr, InitiatorName: "iqn.test:alice", Target: fmt.Sprintf("iqn.test:%d", i),
			CHAP: login.Credentials{User: "alice", Secret: "a wrong secret"},
		})
		if status(err) != login.AuthenticationFailed {
			t.Fatalf("try %d: %v", i, err)
		}
	}
	eventually(t, "the failures are counted", func() bool { return x.p.LoginStats().NotProved == failuresPerAddress })
	if _, err := x.as("iqn.test:stranger", ""); err == nil || status(err) != 0xFFFF {
		t.Errorf("heard after %d failures: %v", failuresPerAddress, err)
	}
	if n := strings.Count(log.String(), `msg="login refused"`); n > linesPerAddress {
		t.Errorf("%d lines in the log", n)
	}
	// Those that exist are none of the door's business.
	eventually(t, "one session goes on", func() bool { return len(x.p.Sessions()) == 1 })
}

func TestFailureIsAnsweredAtOnceAndHeldForAWhile(t *testing.T) {
	x, _, _ := guarded(t, func(c *Config) { c.FailureDelay, c.MaxBeforeLoginPerAddress = time.Hour, 2 })
	for range 2 {
		if _, err := x.as("iqn.test:alice", "a wrong secret"); status(err) != login.AuthenticationFailed {
			t.Fatal(err)
		}
	}
	// Both places are still taken, though the guesser has closed its connections.
	if _, err := x.as("iqn.test:alice", "a wrong secret"); err == nil || status(err) != 0xFFFF {
		t.Errorf("a third guess was heard: %v", err)
	}
	if s := x.p.LoginStats(); s.TurnedAway != 1 {
		t.Errorf("%+v", s)
	}
	// Close, at the end of the test, does not wait an hour.
}

// Connections that have said nothing for a while keep nobody out. Who proved himself wrongly, and is made to wait, keeps his place.
func TestConnectionsThatDoNotLogInMakeRoom(t *testing.T) {
	x, _, _ := guarded(t, func(c *Config) { c.FailureDelay, c.MaxBeforeLogin = time.Hour, 4 })
	if _, err := x.as("iqn.test:alice", "a wrong secret"); status(err) != login.AuthenticationFailed {
		t.Fatal(err)
	}
	silent := []*rawInitiator{x.dial(), x.dial(), x.dial()}
	x.dial().expectEnd()
	time.Sleep(patience)
	var in []*rawInitiator
	for n, i := range silent {
		in = append(in, x.loggedIn("iqn.test:i", "iqn.test:a", byte(n))) // takes the place of the oldest
		in[n].alive()                                                    // and has given it up
		_ = i.conn.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := i.conn.Read(make([]byte, 1)); n == 0 && !errors.Is(err, io.EOF) {
			t.Errorf("the oldest was not closed: %v", err)
		} else if n > 0 && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("connection %d was closed for want of room, and there was room: %v", n, err)
		}
	}
	for _, i := range in {
		i.alive()
	}
	fourth := x.dial() // the last place
	x.dial()           // in that of the second
	_ = silent[1].conn.SetReadDeadline(time.Now().Add(time.Second))
	if _, err := silent[1].conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the oldest of those left was not closed: %v", err)
	}
	if s, _ := fourth.login("iqn.test:i", "iqn.test:a", 9); s != login.Success {
		t.Errorf("status %04Xh", uint16(s))
	}
}

func TestConnectionsOfOneAddressAreBounded(t *testing.T) {
	x, _, _ := guarded(t, func(c *Config) { c.MaxPerAddress, c.MaxBeforeLoginPerAddress = 3, 2 })
	first, second := x.dial(), x.dial()
	x.dial().expectEnd() // the third that has said nothing
	for n, i := range []*rawInitiator{first, second} {
		if s, _ := i.login("iqn.test:i", "iqn.test:a", byte(n)); s != login.Success {
			t.Fatalf("status %04Xh", uint16(s))
		}
		i.alive()
	}
	third := x.loggedIn("iqn.test:i", "iqn.test:a", 9)
	x.dial().expectEnd() // the fourth at all
	third.alive()
	first.conn.Close()
	eventually(t, "a place is free", func() bool {
		conn, err := net.Dial("tcp", x.addr)
		if err != nil {
			return false
		}
		defer conn.Close()
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		_, err = conn.Read(make([]byte, 1))
		return errors.Is(err, os.ErrDeadlineExceeded) // it is waited for
	})
	second.alive()
}

func TestTallyForgets(t *testing.T) {
	now := time.Now()
	c := newTally[int](time.Minute, 3)
	for range 4 {
		c.add(1, now)
	}
	if n := c.of(1, now.Add(59*time.Second)); n != 4 {
		t.Errorf("%d within the window", n)
	}
	if n := c.of(1, now.Add(time.Minute)); n != 0 {
		t.Errorf("%d after the window", n)
	}
	if n := c.add(1, now.Add(time.Minute)); n != 1 {
		t.Errorf("%d at the beginning of the next", n)
	}
	for k := range 100 {
		c.add(k, now.Add(time.Minute+time.Duration(k)))
		if len(c.counts) > 3 {
			t.Fatalf("%d keys kept", len(c.counts))
		}
	}
	if c.of(99, now.Add(time.Minute)) != 1 || c.of(1, now.Add(time.Minute)) != 0 {
		t.Error("the oldest should have been forgotten, not the newest")
	}
}

func TestDiscoverySessionsAreBoundedAndEndWhenIdle(t *testing.T) {
	x, _, _ := guarded(t, func(c *Config) { c.MaxDiscovery, c.DiscoveryIdle = 2, time.Second })
	first, second := x.loggedIn("iqn.test:i", "", 1), x.loggedIn("iqn.test:i", "", 1)
	if s, _ := x.dial().login("iqn.test:i", "", 1); s != login.OutOfResources {
		t.Errorf("a third: status %04Xh", uint16(s))
	}
	for range 4 { // longer than the limit in all, but never idle for it
		time.Sleep(300 * time.Millisecond)
		first.sendTargets("All")
	}
	second.expectEnd()
	first.expectEnd()
	normal := x.loggedIn("iqn.test:i", "iqn.test:a", 1)
	eventually(t, "the places are free", func() bool { return len(x.p.Sessions()) == 1 })
	if s, _ := x.dial().login("iqn.test:i", "", 1); s != login.Success {
		t.Errorf("after they ended: status %04Xh", uint16(s))
	}
	normal.alive()
}

// No proof is needed to hold one of the places, so nobody gets them all.
func TestDiscoverySessionsOfOneAddressAreBounded(t *testing.T) {
	x, _, _ := guarded(t, func(c *Config) { c.MaxDiscoveryPerAddress = 2 })
	first := x.loggedIn("iqn.test:i", "", 1)
	x.loggedIn("iqn.test:i", "", 1)
	if s, _ := x.dial().login("iqn.test:i", "", 1); s != login.OutOfResources {
		t.Errorf("a third: status %04Xh", uint16(s))
	}
	x.loggedIn("iqn.test:i", "iqn.test:a", 1).alive()
	i := x.dialFrom("127.0.0.2")
	if s, _ := i.login("iqn.test:i", "", 1); s != login.Success {
		t.Errorf("from another address: status %04Xh", uint16(s))
	}
	first.conn.Close()
	eventually(t, "a place is free", func() bool {
		s, _ := x.dial().login("iqn.test:i", "", 1)
		return s == login.Success
	})
}

// Nobody keeps the places by asking again and again.
func TestDiscoverySessionsThatLastMakeRoom(t *testing.T) {
	x, _, _ := guarded(t, func(c *Config) { c.MaxDiscovery = 2 })
	first, second := x.loggedIn("iqn.test:i", "", 1), x.loggedIn("iqn.test:i", "", 1)
	for range 5 {
		time.Sleep(patience / 5)
		first.sendTargets("All")
		second.sendTargets("All")
	}
	third := x.loggedIn("iqn.test:j", "", 1)
	first.expectEnd()
	second.sendTargets("All")
	third.sendTargets("All")
	if s, _ := x.dialFrom("127.0.0.2").login("iqn.test:k", "", 1); s != login.Success {
		t.Errorf("a fourth, in place of the second: status %04Xh", uint16(s))
	}
	second.expectEnd()
	if s, _ := x.dial().login("iqn.test:l", "", 1); s != login.OutOfResources {
		t.Errorf("a fifth: status %04Xh", uint16(s))
	}
	third.conn.Close()
	eventually(t, "a place is free", func() bool {
		s, _ := x.dial().login("iqn.test:l", "", 1)
		return s == login.Success
	})
}

// Every address of a node is in a portal group; one listener serves them all.
func TestPortalGroupsByLocalAddress(t *testing.T) {
	groups := map[netip.Addr]Group{
		netip.MustParseAddr("127.0.0.1"): {Index: 0, Tag: 2, Port: 2},
		netip.MustParseAddr("127.0.0.2"): {Index: 1, Tag: 2 + 1<<12, Port: 2 + 1<<12},
		netip.MustParseAddr("::1"):       {Index: 2, Tag: 2 + 2<<12, Port: 2 + 2<<12},
	}
	x, r, _ := guarded(t, func(c *Config) { c.GroupOf = func(a netip.Addr) Group { return groups[a] } })
	ln, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- x.p.Serve(ctx, ln) }()
	defer func() { cancel(); <-served }()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	isid := [6]byte{0x80, 1}
	var sessions []*initiator.Session
	for host, group := range map[string]Group{
		"127.0.0.1": groups[netip.MustParseAddr("127.0.0.1")], "127.0.0.2": groups[netip.MustParseAddr("127.0.0.2")], "::1": groups[netip.MustParseAddr("::1")],
	} {
		to := net.JoinHostPort(host, port)
		if host == "::1" {
			probe, err := net.Dial("tcp", to)
			if err != nil {
				t.Logf("no IPv6 here: %v", err)
				continue
			}
			probe.Close()
		}
		// One initiator port through several groups: several sessions (RFC 7143 §4.4.3), none ends another.
		s, err := initiator.Dial(t.Context(), initiator.Config{Address: to, InitiatorName: "iqn.test:i", Target: "iqn.test:a", ISID: isid, KeepAlive: -1})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		sessions = append(sessions, s)
		targets, err := initiator.DiscoverAs(t.Context(), initiator.Config{Address: to})
		want := []initiator.Portal{
			{Address: net.JoinHostPort(host, "3260"), GroupTag: group.Tag},
			{Address: fmt.Sprintf("192.0.2.%d:3260", group.Index), GroupTag: 3 + group.Index<<12},
		}
		if err != nil || len(targets) != 1 || fmt.Sprint(targets[0].Portals) != fmt.Sprint(want) {
			t.Errorf("%s: %+v, %v; want %v", host, targets, err, want)
		}
	}
	for _, s := range sessions {
		if err := s.Ping(t.Context(), []byte("still there")); err != nil {
			t.Error(err)
		}
	}
	normal := func() (n int) {
		for _, s := range x.p.Sessions() {
			if s.Target != "" {
				n++
			}
		}
		return n
	}
	eventually(t, "all have begun", func() bool { return normal() == len(sessions) })
	seen := map[Group]bool{}
	for _, s := range x.p.Sessions() {
		if s.Target != "" {
			seen[s.Group] = true
			if s.Port != s.Group.Port {
				t.Errorf("nexus at port %d in group %+v", s.Port, s.Group)
			}
		}
	}
	if len(seen) != len(sessions) {
		t.Errorf("groups %v of %d sessions", seen, len(sessions))
	}
	// The same initiator port in the same group is the same session.
	again, err := initiator.Dial(t.Context(), initiator.Config{Address: "127.0.0.2:" + port, InitiatorName: "iqn.test:i", Target: "iqn.test:a", ISID: isid})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	ended := 0
	for _, s := range sessions {
		if s.Ping(t.Context(), nil) != nil {
			ended++
		}
	}
	if ended != 1 {
		t.Errorf("%d sessions ended by the reinstatement of one", ended)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.opened {
		if o.Group != groups[netip.MustParseAddr("127.0.0.1")] && o.Group.Index == 0 {
			t.Errorf("opened through %+v", o.Group)
		}
	}
}

func TestAddressInNoGroupIsNotServed(t *testing.T) {
	x, _, _ := guarded(t, func(c *Config) { c.GroupOf = func(netip.Addr) Group { return Group{} } })
	x.dial().expectEnd()
	eventually(t, "it is counted", func() bool { return x.p.LoginStats().Unfinished == 1 })
}

func TestRecheckCutsOffWhomTheDirectoryNoLongerOpens(t *testing.T) {
	x, r, _ := guarded(t, nil)
	revoked, gone, stays, moved, unsure := x.loggedIn("iqn.test:revoked", "iqn.test:a", 1), x.loggedIn("iqn.test:gone", "iqn.test:a", 1),
		x.loggedIn("iqn.test:stays", "iqn.test:a", 1), x.loggedIn("iqn.test:moved", "iqn.test:a", 1), x.loggedIn("iqn.test:unsure", "iqn.test:a", 1)
	discovering := x.loggedIn("iqn.test:revoked", "", 1)
	eventually(t, "all have begun", func() bool { return len(x.p.Sessions()) == 6 })
	if err := x.p.Recheck(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, i := range []*rawInitiator{revoked, gone, stays, moved, unsure} {
		i.alive()
	}
	revoked.command(0x01)
	<-x.a.waiting
	r.set(func(o Opening) (scsi.Executor, error) {
		switch o.Initiator {
		case "iqn.test:revoked":
			return nil, ErrNotAllowed
		case "iqn.test:gone":
			return x.b, nil // another target under the same name
		case "iqn.test:moved":
			return nil, &login.Refusal{Status: login.MovedTemporarily, Address: "192.0.2.1:3260"}
		case "iqn.test:unsure":
			return nil, errors.New("not now")
		}
		return x.a, nil
	})
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := x.p.Recheck(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v while a task of a session that is cut off was running", err)
	}
	close(x.a.release)
	if err := x.p.Recheck(t.Context()); err != nil {
		t.Error(err)
	}
	revoked.expectEnd()
	gone.expectEnd()
	stays.alive()
	unsure.alive()
	if h, _, err := moved.read(); err != nil || h.Opcode() != pdu.OpAsync {
		t.Errorf("%v %v, want an Asynchronous Message", h.Opcode(), err)
	} else if event, p := h.AsyncEvent(); event != pdu.AsyncLogoutRequest || p[2] != uint16(moveWithin/time.Second) {
		t.Errorf("event %d, parameters %v", event, p)
	}
	discovering.sendTargets("All")
}

// A session that is being dropped, and takes its time, is cut off and waited for like any other.
func TestRecheckWaitsForTheTasksOfADroppedSession(t *testing.T) {
	x, r, _ := guarded(t, nil)
	i := x.loggedIn("iqn.test:i", "iqn.test:a", 1)
	eventually(t, "it has begun", func() bool { return len(x.p.Sessions()) == 1 })
	i.command(0x01)
	<-x.a.waiting
	if !x.p.CloseSession(x.p.Sessions()[0].TSIH) {
		t.Fatal("no session")
	}
	r.set(func(Opening) (scsi.Executor, error) { return nil, ErrNotAllowed })
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := x.p.Recheck(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v while its task was running", err)
	}
	close(x.a.release)
	if err := x.p.Recheck(t.Context()); err != nil {
		t.Error(err)
	}
}

// What changes while a login is being answered is not missed.
func TestRecheckDoesNotMissALoginUnderWay(t *testing.T) {
	x, r, _ := guarded(t, nil)
	var asked atomic.Int32
	r.set(func(Opening) (scsi.Executor, error) {
		// The last Open of the login is still yes, any after it no. Nobody calls Recheck later.
		if asked.Add(1) <= 3 {
			return x.a, nil
		}
		return nil, ErrNotAllowed
	})
	i := x.dial()
	if s, _ := i.login("iqn.test:i", "iqn.test:a", 1); s != login.Success {
		t.Fatalf("status %04Xh after %d questions", uint16(s), asked.Load())
	}
	i.expectEnd()
}

func TestAskForLogoutPicksSessions(t *testing.T) {
	x, _, _ := guarded(t, nil)
	one, other := x.loggedIn("iqn.test:one", "iqn.test:a", 1), x.loggedIn("iqn.test:other", "iqn.test:a", 1)
	eventually(t, "both have begun", func() bool { return len(x.p.Sessions()) == 2 })
	if n := x.p.AskForLogout(func(s Session) bool { return s.Initiator == "iqn.test:one" }, 3*time.Second); n != 1 {
		t.Errorf("%d asked", n)
	}
	h, _, err := one.read()
	if event, p := h.AsyncEvent(); err != nil || h.Opcode() != pdu.OpAsync || event != pdu.AsyncLogoutRequest || p != [3]uint16{0, 0, 3} {
		t.Errorf("%v, event %d, parameters %v, %v", h.Opcode(), event, p, err)
	}
	other.alive()
	if !x.p.CloseSession(x.p.Sessions()[1].TSIH) || x.p.CloseSession(0) {
		t.Error("CloseSession")
	}
	h, _, err = other.read()
	if event, p := h.AsyncEvent(); err != nil || h.Opcode() != pdu.OpAsync || event != pdu.AsyncDropSession || p != [3]uint16{} {
		t.Errorf("%v, event %d, parameters %v, %v", h.Opcode(), event, p, err)
	}
	other.expectEnd()
}

func TestPanicInALoginEndsThatConnectionOnly(t *testing.T) {
	x, _, log := guarded(t, nil)
	i := x.loggedIn("iqn.test:i", "iqn.test:a", 1)
	for range 3 {
		bad := x.dial()
		var h pdu.Header
		(&pdu.LoginRequest{Transit: true, Current: pdu.StageOperational, Next: pdu.StageFullFeature}).Put(&h)
		bad.send(&h, "InitiatorName=iqn.test:panic\x00TargetName=iqn.test:a\x00")
		bad.expectEnd()
	}
	i.alive()
	eventually(t, "they are counted", func() bool { return x.p.LoginStats().Panics == 3 })
	if !strings.Contains(log.String(), "a directory that panics") {
		t.Error("not reported")
	}
	if _, err := x.as("iqn.test:alice", alice.Secret); err != nil {
		t.Error(err)
	}
}

func TestSlowLoginIsCutOff(t *testing.T) {
	x, _, _ := guarded(t, func(c *Config) { c.LoginTimeout = 200 * time.Millisecond })
	start := time.Now()
	silent, dripping := x.dial(), x.dial()
	go func() { // a byte now and then does not buy more time
		for range 100 {
			if _, err := dripping.conn.Write([]byte{0x43}); err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	silent.expectEnd()
	dripping.expectEnd()
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("after %v", d)
	}
}

// libiscsi's tools log in with credentials in the URL.
func TestLibiscsiToolsWithCHAP(t *testing.T) {
	tool := func(name string) string {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Skipf("%s is not installed (Debian: libiscsi-bin): CHAP against libiscsi is not tested", name)
		}
		return path
	}
	ls, inq := tool("iscsi-ls"), tool("iscsi-inq")
	x, r, _ := guarded(t, nil)
	unit := newUnit(t)
	r.set(func(Opening) (scsi.Executor, error) { return unit, nil })
	run := func(tool, credentials, path string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, tool, "-i", "iqn.test:alice", "iscsi://"+credentials+x.addr+path).CombinedOutput()
		return string(out), err
	}
	const right = "alice%alice's secret@"
	if out, err := run(inq, right, "/iqn.test:a/0"); err != nil || !strings.Contains(out, "SANCTRY") {
		t.Errorf("iscsi-inq: %v\n%s", err, out)
	}
	if out, err := run(ls, right, ""); err != nil || !strings.Contains(out, "iqn.test:a") || !strings.Contains(out, "192.0.2.0:3260") {
		t.Errorf("iscsi-ls: %v\n%s", err, out)
	}
	for name, credentials := range map[string]string{"wrong secret": "alice%not alice's secret@", "no secret": ""} {
		if out, err := run(inq, credentials, "/iqn.test:a/0"); err == nil {
			t.Errorf("%s: iscsi-inq was let in:\n%s", name, out)
		}
		if out, _ := run(ls, credentials, ""); strings.Contains(out, "192.0.2.") {
			t.Errorf("%s: iscsi-ls was told:\n%s", name, out)
		}
	}
}

// newUnit is a target with a small LUN in memory.
func newUnit(t *testing.T) *scsi.Target {
	t.Helper()
	unit, err := scsi.NewUnit(scsi.UnitConfig{
		Identity: scsi.Identity{Vendor: "SANCTRY", Product: "volume", Revision: "1", Serial: "1", NAA: [16]byte{0x60, 1}},
		Backend:  scsitest.NewMemory(block.Geometry{Capacity: 2048, LogicalBlockBytes: 512}),
		Access: func() scsi.Access {
			return scsi.Access{Local: 2, LocalPort: 2, Groups: []scsi.PortGroup{{ID: 2, State: scsi.ActiveOptimized, Ports: []uint16{2}}}}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	d := scsi.NewTarget(scsi.TargetConfig{Name: "iqn.test:a"})
	if err := d.Add(0, unit); err != nil {
		t.Fatal(err)
	}
	return d
}
