package initiator_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sanctuary/target"
	"sanctuary/target/initiator"
	"sanctuary/target/login"
)

var (
	oneWay = login.Credentials{User: "alice", Secret: "alice's secret"}
	mutual = login.Credentials{User: "alice", Secret: "alice's secret", MutualUser: "target", MutualSecret: "the target's secret"}
)

func TestCHAPBetweenInitiatorAndTarget(t *testing.T) {
	c := newCluster(t, 1)
	n := c.nodes[0]
	for _, a := range login.Strongest() {
		with := func(c login.Credentials) login.Credentials { c.Algorithms = []login.Algorithm{a}; return c }
		for name, x := range map[string]struct{ asked, ours login.Credentials }{
			"one way":               {oneWay, with(oneWay)},
			"mutual":                {with(mutual), mutual},
			"mutual, not asked for": {mutual, with(oneWay)},
		} {
			n.credentials.Store(ptr(x.asked))
			s := dial(t, c, func(cfg *initiator.Config) { cfg.CHAP = x.ours })
			awaitSessions(t, n, 1)
			awaitSessions(t, n, 1)
			list := n.portal.Sessions()
			if len(list) != 1 || list[0].Params.User != "alice" || list[0].Params.Algorithm != a || list[0].Params.Mutual != (name == "mutual") {
				t.Errorf("%v, %s: %+v", a, name, list)
			}
			if err := s.Logout(t.Context()); err != nil {
				t.Error(err)
			}
			awaitSessions(t, n, 0)
			if _, err := initiator.DiscoverAs(t.Context(), initiator.Config{Address: n.address, CHAP: x.ours}); err != nil {
				t.Errorf("%v, %s: discovery: %v", a, name, err)
			}
			awaitSessions(t, n, 0)
		}
	}
}

// awaitSessions waits until the portal has that many sessions.
func awaitSessions(t *testing.T, n *node, want int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); len(n.portal.Sessions()) != want; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d sessions, want %d", len(n.portal.Sessions()), want)
		}
	}
}

func TestCHAPFailures(t *testing.T) {
	c := newCluster(t, 1)
	n := c.nodes[0]
	change := func(c login.Credentials, f func(*login.Credentials)) login.Credentials { f(&c); return c }
	refused := func(err error) bool {
		var e *initiator.LoginError
		return errors.As(err, &e) && e.Status == uint16(login.AuthenticationFailed)
	}
	for name, x := range map[string]struct {
		asked, ours login.Credentials
		good        func(error) bool
	}{
		"wrong secret": {oneWay, change(oneWay, func(c *login.Credentials) { c.Secret = "mallory's secret" }), refused},
		"no secret":    {oneWay, login.Credentials{}, refused},
		"MD5 switched off": {
			change(oneWay, func(c *login.Credentials) { c.Algorithms = []login.Algorithm{login.SHA256} }),
			change(oneWay, func(c *login.Credentials) { c.Algorithms = []login.Algorithm{login.MD5} }), refused,
		},
		"the target does not ask for proof":   {login.Credentials{}, oneWay, refused},
		"the target cannot prove itself":      {oneWay, mutual, refused},
		"the secret is another":               {change(mutual, func(c *login.Credentials) { c.MutualSecret = "somebody else's" }), mutual, func(err error) bool { return errors.Is(err, initiator.ErrNotProved) }},
		"the name is another":                 {change(mutual, func(c *login.Credentials) { c.MutualUser = "other" }), mutual, func(err error) bool { return errors.Is(err, initiator.ErrNotProved) }},
		"credentials that are no credentials": {oneWay, login.Credentials{User: "alice", Secret: "short"}, func(err error) bool { return strings.Contains(err.Error(), "bytes") }},
	} {
		n.credentials.Store(ptr(x.asked))
		s, err := initiator.Dial(t.Context(), initiator.Config{
			Address: n.address, Target: targetName, CHAP: x.ours, InitiatorName: "iqn.2024-01.test:" + strings.ReplaceAll(strings.ReplaceAll(strings.ToLower(name), " ", "-"), "'", ""),
		})
		if err == nil {
			s.Close()
		}
		if err == nil || !x.good(err) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (strings.Contains(err.Error(), x.ours.Secret) && x.ours.Secret != "" || x.ours.MutualSecret != "" && strings.Contains(err.Error(), x.ours.MutualSecret)) {
			t.Errorf("%s: the error shows a secret: %v", name, err)
		}
	}
}

func TestRedirectIsForOneSession(t *testing.T) {
	c := newCluster(t, 2)
	a, b := c.nodes[0], c.nodes[1]
	a.credentials.Store(ptr(mutual))
	b.credentials.Store(ptr(mutual))
	chap := func(cfg *initiator.Config) { cfg.CHAP = mutual }
	a.moved.Store(b.address)
	s := dial(t, c, chap)
	awaitSessions(t, b, 1)
	if len(a.portal.Sessions()) != 0 {
		t.Error("not redirected")
	}
	if err := s.Logout(t.Context()); err != nil {
		t.Error(err)
	}
	awaitSessions(t, b, 0)
	a.moved.Store("")
	dial(t, c, chap)
	awaitSessions(t, a, 1)
	if len(b.portal.Sessions()) != 0 {
		t.Error("the next login did not begin at the configured address")
	}
	// Whoever is only sent around is told so, in time.
	a.moved.Store(b.address)
	b.moved.Store(a.address)
	if _, err := initiator.Dial(t.Context(), initiator.Config{Address: a.address, Target: targetName, CHAP: mutual}); !errors.Is(err, initiator.ErrProtocol) {
		t.Errorf("sent in a circle: %v", err)
	}
}

// A disk with one path follows the owner: it is asked to log out, comes back at once and is sent on. Nothing it does fails.
func TestDiskFollowsTheOwnerByLogoutAndRedirect(t *testing.T) {
	c := newCluster(t, 2)
	var logouts, active atomic.Int32
	d, err := initiator.OpenMultipath(t.Context(), initiator.MultipathConfig{
		Paths: []initiator.PathConfig{{Address: c.nodes[0].address, Target: targetName}},
		OnAttempt: func(a initiator.Attempt) {
			if !a.End.IsZero() && a.Outcome == initiator.Unknown {
				t.Errorf("attempt with an unknown outcome: %v", a.Err)
			}
		},
		OnPath: func(e initiator.PathEvent) {
			if e.What == initiator.PathActive {
				active.Add(1)
			}
			if e.What == initiator.PathLost && errors.Is(e.Err, initiator.ErrAskedToLeave) {
				logouts.Add(1)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	written := make(chan error, 1)
	stop := make(chan struct{})
	go func() {
		for i := int64(0); ; i++ {
			select {
			case <-stop:
				written <- nil
				return
			default:
			}
			if _, err := d.WriteAt(ctx, pattern(4096, byte(i)), i%64*4096); err != nil {
				written <- err
				return
			}
		}
	}()
	everybody := func(target.Session) bool { return true }
	for i := range 6 {
		from, to := c.nodes[i%2], c.nodes[(i+1)%2]
		awaitSessions(t, from, 1)
		// Whoever comes to the old owner is sent on; the others are asked to come again.
		to.moved.Store("")
		from.moved.Store(to.address)
		if n := from.portal.AskForLogout(everybody, 5*time.Second); n != 1 {
			t.Errorf("move %d: %d sessions asked", i, n)
		}
		awaitSessions(t, to, 1)
		awaitSessions(t, from, 0)
		c.move(to.index)
		for deadline := time.Now().Add(10 * time.Second); active.Load() != int32(i+2); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("move %d: the path has been active %d times, want %d", i, active.Load(), i+2)
			}
		}
	}
	close(stop)
	if err := <-written; err != nil {
		t.Error(err)
	}
	if n := logouts.Load(); n != 6 {
		t.Errorf("%d logouts, want 6", n)
	}
	// Also with nothing to do.
	c.nodes[1].moved.Store("")
	c.nodes[0].moved.Store(c.nodes[1].address)
	c.nodes[0].portal.AskForLogout(everybody, 5*time.Second)
	awaitSessions(t, c.nodes[1], 1)
}

func TestDiscoveryOfManyTargets(t *testing.T) {
	c := newCluster(t, 2)
	c.nodes[0].listed.Store(2000)
	for _, segment := range []int{512, 8192, 262144} {
		targets, err := initiator.DiscoverAs(t.Context(), initiator.Config{Address: c.nodes[0].address, MaxRecvData: segment})
		if err != nil {
			t.Fatalf("in segments of %d bytes: %v", segment, err)
		}
		if len(targets) != 2001 || targets[2000].Name != "iqn.2024-01.test:further-1999" || len(targets[2000].Portals) != 2 ||
			targets[2000].Portals[1] != (initiator.Portal{Address: c.nodes[1].address, GroupTag: 2}) {
			t.Errorf("in segments of %d bytes: %d targets, the last %+v", segment, len(targets), targets[len(targets)-1])
		}
	}
}

func TestIPv6(t *testing.T) {
	ln, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skipf("this machine has no IPv6: %v", err)
	}
	c := newCluster(t, 1)
	n := c.nodes[0]
	n.served.Go(func() { _ = n.portal.Serve(context.Background(), ln) }) // beside IPv4, until the portal closes
	to := ln.Addr().String()
	targets, err := initiator.DiscoverAs(t.Context(), initiator.Config{Address: to})
	if err != nil || len(targets) != 1 || targets[0].Portals[0].Address != n.address {
		t.Errorf("%+v, %v: addresses of the group belong in the list whatever their family", targets, err)
	}
	awaitSessions(t, n, 0) // discovery has logged out
	s, err := initiator.Dial(t.Context(), initiator.Config{Address: to, Target: targetName})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	awaitSessions(t, n, 1)
	awaitSessions(t, n, 1)
	if list := n.portal.Sessions(); len(list) != 1 || !strings.HasPrefix(list[0].Remote, "[::1]:") || list[0].Local != to {
		t.Errorf("%+v", list)
	}
	_ = s.TestUnitReady(t.Context()) // the unit attention of the login
	if err := s.TestUnitReady(t.Context()); err != nil {
		t.Error(err)
	}
}
