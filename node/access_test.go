package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"sanctuary/node/api"
	"sanctuary/node/client"
	"sanctuary/target/initiator"
	"sanctuary/target/login"
	"sanctuary/target/scsi"
)

const (
	ourName   = "iqn.2026-11.test:ours"
	ourSecret = "a-secret-of-the-host"
)

// refused returns the status of a login that was refused, 0 if it was not.
func refused(t *testing.T, cfg initiator.Config) uint16 {
	t.Helper()
	s, err := initiator.Dial(t.Context(), cfg)
	var status *initiator.LoginError
	switch {
	case err == nil:
		s.Close()
		return 0
	case errors.As(err, &status):
		return status.Status
	}
	t.Fatal(err)
	return 0
}

func dial(t *testing.T, cfg initiator.Config) *initiator.Session {
	t.Helper()
	s, err := initiator.Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain until ", what)
		}
	}
}

// ready gets unit attentions out of the way.
func ready(t *testing.T, s *initiator.Session) {
	t.Helper()
	until(t, "the unit is ready", func() bool { return s.TestUnitReady(t.Context()) == nil })
}

func idle(l api.LUN) string {
	for _, p := range l.Portals {
		if p.Node != l.Owner {
			return p.Node
		}
	}
	return ""
}

// A LUN that nobody was granted is not found, not even by its name; a host that was granted it proves who it is, sees it in the
// LUN's target and in its own, and is cut off when the grant is taken back.
func TestOnlyHostsWithAGrantGetIn(t *testing.T) {
	c := newCluster(t)
	c.start("alpha", "beta", "witness")
	cl, ctx := c.client(), t.Context()
	for _, name := range []string{"vm1", "vm2"} {
		if _, err := cl.CreateLUN(ctx, api.LUNSpec{Name: name, SizeBytes: 16 << 20, Media: "ram"}, 30*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	l := c.lun(cl, "vm1", func(l api.LUN) bool { return l.Health == api.HealthHealthy && len(l.Portals) == 2 })
	c.lun(cl, "vm2", func(l api.LUN) bool { return l.Health == api.HealthHealthy })
	portal := c.cfgs[l.Owner].Listen.ISCSI[0]
	cfg := initiator.Config{Address: portal, Target: l.IQN, InitiatorName: ourName}
	discovered := func(cfg initiator.Config) (names []string) {
		t.Helper()
		cfg.Target = ""
		targets, err := initiator.DiscoverAs(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range targets {
			names = append(names, x.Name)
		}
		return names
	}
	if s := refused(t, cfg); s != uint16(login.TargetNotFound) {
		t.Fatalf("login without a grant: %04X", s)
	}
	until(t, "it is counted", func() bool {
		list, err := cl.Targets(ctx)
		return err == nil && slices.ContainsFunc(list.Logins, func(l api.Logins) bool { return l.NotAllowed == 1 && l.NotFound == 0 })
	})
	if names := discovered(cfg); len(names) > 0 {
		t.Fatalf("discovered %v", names)
	}
	spec := api.HostSpec{Initiators: []string{"IQN.2026-11.test:Ours"}, CHAP: &api.CHAPSpec{User: "ours", Secret: ourSecret}}
	if _, err := cl.SetHost(ctx, "ours", spec, true); err != nil {
		t.Fatal(err)
	}
	number := uint16(7)
	if _, err := cl.GrantLUN(ctx, "vm1", "ours", &number); err != nil {
		t.Fatal(err)
	}
	until(t, "the secret is asked for", func() bool { return refused(t, cfg) == uint16(login.AuthenticationFailed) })
	wrong := cfg
	wrong.CHAP = login.Credentials{User: "ours", Secret: "another secret, as long"}
	if s := refused(t, wrong); s != uint16(login.AuthenticationFailed) {
		t.Fatalf("wrong secret: %04X", s)
	}
	cfg.CHAP = login.Credentials{User: "ours", Secret: ourSecret}
	s := dial(t, cfg)
	ready(t, s)
	own := ""                              // the host's own target
	for _, name := range discovered(cfg) { // the LUN is in it, and so not listed by itself
		if name != l.IQN {
			own = name
		}
	}
	hosts := cfg
	hosts.Target, hosts.LUN = own, number
	h := dial(t, hosts)
	ready(t, h)
	a, err := s.NAA(ctx)
	b, err2 := h.NAA(ctx)
	if err != nil || err2 != nil || !bytes.Equal(a, b) {
		t.Fatalf("LUN 7 of the host's target is %x (%v), the LUN %x (%v)", b, err2, a, err)
	}
	// A stranger does not get into the host's target.
	stranger := hosts
	stranger.InitiatorName, stranger.CHAP = "iqn.2026-11.test:stranger", login.Credentials{}
	if s := refused(t, stranger); s != uint16(login.TargetNotFound) {
		t.Fatalf("a stranger in the host's target: %04X", s)
	}
	if _, err := cl.GrantLUN(ctx, "vm2", "ours", nil); err != nil {
		t.Fatal(err)
	}
	until(t, "the second LUN shows", func() bool {
		list := make([]byte, 256)
		r, err := h.Do(ctx, &initiator.Command{CDB: [16]byte{0xA0, 8: 1}, In: list})
		return err == nil && r.Err() == nil && binary.BigEndian.Uint32(list) == 16
	})
	if _, err := cl.RevokeLUN(ctx, "vm1", "ours"); err != nil {
		t.Fatal(err)
	}
	until(t, "the session is cut off", func() bool { return s.Err() != nil })
	if s := refused(t, cfg); s != uint16(login.TargetNotFound) {
		t.Fatalf("login after the grant was taken back: %04X", s)
	}
	until(t, "LUN 7 is gone from the host's target", func() bool {
		var e *initiator.StatusError
		return errors.As(h.TestUnitReady(ctx), &e) && e.Code == 0x2500
	})
}

// sessionsOn returns on which nodes an initiator has sessions with a target.
func sessionsOn(t *testing.T, cl *client.Client, name string) (nodes []string) {
	t.Helper()
	list, err := cl.Targets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range list.Targets {
		for _, s := range x.Sessions {
			if s.Initiator == name {
				nodes = append(nodes, s.Node)
			}
		}
	}
	return nodes
}

// An initiator with a single path is sent to the owner when it logs in elsewhere, and sent on when the LUN moves.
func TestSinglePathFollowsTheOwner(t *testing.T) {
	c := newCluster(t)
	c.start("alpha", "beta", "witness")
	cl, ctx := c.client(), t.Context()
	if _, err := cl.CreateLUN(ctx, api.LUNSpec{Name: "vm1", SizeBytes: 16 << 20, Media: "ram", Open: true, SinglePath: true}, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	settled := func(l api.LUN) bool {
		return l.Health == api.HealthHealthy && len(l.Portals) == 2 && (l.AppliedIndex > 0 || l.Owner == l.Preferred)
	}
	l := c.lun(cl, "vm1", settled)
	cfg := initiator.Config{Address: c.cfgs[idle(l)].Listen.ISCSI[0], Target: l.IQN, InitiatorName: ourName}
	s := dial(t, cfg)
	ready(t, s)
	data := bytes.Repeat([]byte{7}, 4096)
	if err := s.Write(ctx, 0, 8, data); err != nil {
		t.Fatal(err)
	}
	if on := sessionsOn(t, cl, ourName); !slices.Equal(on, []string{l.Owner}) {
		t.Fatalf("sessions on %v, the owner is %s", on, l.Owner)
	}
	to := idle(l)
	if _, err := cl.MoveLUN(ctx, "vm1", to, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	until(t, "it has been asked to leave", func() bool { return errors.Is(s.Err(), initiator.ErrAskedToLeave) })
	s = dial(t, cfg)
	ready(t, s)
	got := make([]byte, 4096)
	if err := s.Read(ctx, 0, 8, got); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("read %v: %v", got[:8], err)
	}
	if on := sessionsOn(t, cl, ourName); !slices.Equal(on, []string{to}) {
		t.Fatalf("sessions on %v, the owner is %s", on, to)
	}
}

// The same with a secret: libiscsi must be redirected before the proof.
func TestSinglePathHostIsSentOnBeforeItProvesItself(t *testing.T) {
	c := newCluster(t)
	c.start("alpha", "beta", "witness")
	cl, ctx := c.client(), t.Context()
	if _, err := cl.CreateLUN(ctx, api.LUNSpec{Name: "vm1", SizeBytes: 16 << 20, Media: "ram"}, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	l := c.lun(cl, "vm1", func(l api.LUN) bool {
		return l.Health == api.HealthHealthy && len(l.Portals) == 2 && l.Owner == l.Preferred
	})
	spec := api.HostSpec{Initiators: []string{ourName}, CHAP: &api.CHAPSpec{User: "ours", Secret: ourSecret}, SinglePath: true}
	h, err := cl.SetHost(ctx, "ours", spec, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cl.GrantLUN(ctx, "vm1", "ours", nil); err != nil {
		t.Fatal(err)
	}
	portal := c.cfgs[idle(l)].Listen.ISCSI[0]
	cfg := initiator.Config{Address: portal, Target: l.IQN, InitiatorName: ourName, CHAP: login.Credentials{User: "ours", Secret: ourSecret}}
	ready(t, dial(t, cfg))
	if on := sessionsOn(t, cl, ourName); !slices.Equal(on, []string{l.Owner}) {
		t.Fatalf("sessions on %v, the owner is %s", on, l.Owner)
	}
	if s := refused(t, initiator.Config{Address: portal, Target: h.Target, InitiatorName: ourName, CHAP: cfg.CHAP}); s != uint16(login.TargetNotFound) {
		t.Fatalf("its host's target, whose LUNs may have several owners: %04X", s)
	}
	cfg.CHAP.Secret = "another secret, as long"
	if s := refused(t, cfg); s != uint16(login.AuthenticationFailed) {
		t.Fatalf("wrong secret behind a redirect: %04X", s)
	}
	tool, err := exec.LookPath("iscsi-inq")
	if err != nil {
		t.Skip("iscsi-inq is not installed: libiscsi is not tried (scripts/setup test)")
	}
	url := "iscsi://ours%" + ourSecret + "@" + portal + "/" + l.IQN + "/0"
	if out, err := exec.CommandContext(ctx, tool, "-i", ourName, strings.ReplaceAll(url, " ", "%20")).CombinedOutput(); err != nil || !strings.Contains(string(out), "SANCTRY") {
		t.Fatalf("iscsi-inq: %v\n%s", err, out)
	}
}

// Through a node that does not own the LUN: reservations and, if the LUN is set so, data.
func TestOtherNodesAskTheOwner(t *testing.T) {
	c := newCluster(t)
	c.start("alpha", "beta", "witness")
	cl, ctx := c.client(), t.Context()
	if _, err := cl.CreateLUN(ctx, api.LUNSpec{Name: "vm1", SizeBytes: 16 << 20, Media: "ram", Open: true}, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	l := c.lun(cl, "vm1", func(l api.LUN) bool {
		return l.Health == api.HealthHealthy && len(l.Portals) == 2 && l.Owner == l.Preferred
	})
	through := func(node, name string) *initiator.Session {
		s := dial(t, initiator.Config{Address: c.cfgs[node].Listen.ISCSI[0], Target: l.IQN, InitiatorName: name})
		ready(t, s)
		return s
	}
	var code *initiator.StatusError
	near := dial(t, initiator.Config{Address: c.cfgs[l.Owner].Listen.ISCSI[0], Target: l.IQN, InitiatorName: ourName})
	ready(t, near)
	far := dial(t, initiator.Config{Address: c.cfgs[idle(l)].Listen.ISCSI[0], Target: l.IQN, InitiatorName: ourName})
	until(t, "the other node stands by", func() bool { return errors.As(far.TestUnitReady(ctx), &code) && code.Code == 0x040B })
	data := bytes.Repeat([]byte{9}, 64<<10)
	if err := far.Write(ctx, 8, 128, data); !errors.As(err, &code) || code.Code != 0x040B {
		t.Fatalf("a write through standby: %v", err)
	}
	// Registering and reserving through standby keeps others out on the owner.
	reserve := func(s *initiator.Session, action, kind byte, key, service uint64) error {
		out := make([]byte, 24)
		binary.BigEndian.PutUint64(out, key)
		binary.BigEndian.PutUint64(out[8:], service)
		r, err := s.Do(ctx, &initiator.Command{CDB: [16]byte{0x5F, action, kind, 8: 24}, Out: out})
		if err != nil {
			return err
		}
		return r.Err()
	}
	if err := errors.Join(reserve(far, 0, 0, 0, 0xAB), reserve(far, 1, 1, 0xAB, 0)); err != nil {
		t.Fatal(err)
	}
	if err := near.Write(ctx, 8, 128, data); !errors.As(err, &code) || code.Status != scsi.StatusReservationConflict {
		t.Fatalf("a write through the owner against the reservation: %v", err)
	}
	r, err := cl.Reservations(ctx, "vm1")
	if err != nil || len(r.Registrations) != 1 || r.Registrations[0].Key != "00000000000000ab" || !r.Registrations[0].Holder || r.Registrations[0].Node != idle(l) || !r.Registrations[0].LoggedIn {
		t.Fatalf("%+v, %v", r, err)
	}
	if p, err := cl.PurgeReservations(ctx, "vm1", api.ReservationPurge{Initiator: ourName}); err != nil || p.Removed != 1 {
		t.Fatalf("%+v, %v", p, err)
	}
	until(t, "the owner takes writes again", func() bool { return near.Write(ctx, 8, 128, data) == nil })

	on := true
	if _, err := cl.ChangeLUN(ctx, "vm1", api.LUNChange{NonOptimizedPaths: &on}); err != nil {
		t.Fatal(err)
	}
	far = through(idle(l), ourName)
	got := make([]byte, len(data))
	if err := far.Read(ctx, 8, 128, got); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("a read by forwarding: %v", err)
	}
	data = bytes.Repeat([]byte{11}, 3<<20)
	if err := far.Write(ctx, 0, 6144, data); err != nil {
		t.Fatalf("a long write by forwarding: %v", err)
	}
	near = through(l.Owner, ourName)
	got = make([]byte, len(data))
	if err := near.Read(ctx, 0, 6144, got); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("what was written by forwarding: %v", err)
	}
}

// An initiator moves the LUN with SET TARGET PORT GROUPS; the LUN grows, and initiators of all nodes are told.
func TestInitiatorsMoveTheLUNAndSeeItGrow(t *testing.T) {
	c := newCluster(t)
	c.start("alpha", "beta", "witness")
	cl, ctx := c.client(), t.Context()
	if _, err := cl.CreateLUN(ctx, api.LUNSpec{Name: "vm1", SizeBytes: 16 << 20, Media: "file", Open: true}, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	l := c.lun(cl, "vm1", func(l api.LUN) bool {
		return l.Health == api.HealthHealthy && len(l.Portals) == 2 && l.Owner == l.Preferred
	})
	to := idle(l)
	nodes, err := cl.Nodes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	group := map[string]uint16{}
	for _, n := range nodes.Nodes {
		group[n.Name] = n.PortGroup
	}
	near := dial(t, initiator.Config{Address: c.cfgs[l.Owner].Listen.ISCSI[0], Target: l.IQN, InitiatorName: ourName})
	far := dial(t, initiator.Config{Address: c.cfgs[to].Listen.ISCSI[0], Target: l.IQN, InitiatorName: ourName})
	ready(t, near)
	set := func(through *initiator.Session, node string) error {
		out := []byte{0, 0, 0, 0, byte(scsi.ActiveOptimized), 0, byte(group[node] >> 8), byte(group[node])}
		r, err := through.Do(ctx, &initiator.Command{CDB: [16]byte{0xA4, 0x0A, 9: byte(len(out))}, Out: out})
		if err != nil {
			return err
		}
		return r.Err()
	}
	var code *initiator.StatusError
	until(t, "it is carried out", func() bool { return set(far, to) == nil })
	if moved := c.lun(cl, "vm1", func(l api.LUN) bool { return l.Owner == to }); moved.Term <= l.Term {
		t.Fatalf("term %d before, %d after", l.Term, moved.Term)
	}
	until(t, "the owner before hears of it", func() bool { return errors.As(near.TestUnitReady(ctx), &code) && code.Code == 0x2A06 })
	until(t, "it is refused because the LUN has only just come", func() bool { return errors.As(set(near, l.Owner), &code) && code.Code == 0x670A })
	ready(t, far)

	size := int64(48 << 20)
	if grown, err := cl.ChangeLUN(ctx, "vm1", api.LUNChange{SizeBytes: &size}); err != nil || grown.SizeBytes != size {
		t.Fatalf("%d bytes, %v", grown.SizeBytes, err)
	}
	smaller := size / 2
	if _, err := cl.ChangeLUN(ctx, "vm1", api.LUNChange{SizeBytes: &smaller}); err == nil {
		t.Fatal("the LUN shrank")
	}
	told := false
	until(t, "it has grown and says so", func() bool {
		if err := far.TestUnitReady(ctx); errors.As(err, &code) && code.Code == 0x2A09 {
			told = true
		}
		a, err := far.ReadCapacity16(ctx)
		b, err2 := near.ReadCapacity16(ctx)
		return told && err == nil && err2 == nil && a.Bytes() == size && b.Bytes() == size
	})
	if err := far.Write(ctx, uint64(size/512)-8, 8, bytes.Repeat([]byte{1}, 4096)); err != nil {
		t.Fatalf("a write at the new end: %v", err)
	}
	// The new size is in the log and in every copy: it outlives everything stopping.
	cctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	for _, name := range []string{"alpha", "beta", "witness"} {
		c.stop(name)
	}
	c.start("beta", "witness", "alpha")
	l = c.lun(c.client(), "vm1", func(l api.LUN) bool { return l.Health == api.HealthHealthy && len(l.Portals) == 2 })
	s := dial(t, initiator.Config{Address: c.cfgs[l.Owner].Listen.ISCSI[0], Target: l.IQN, InitiatorName: ourName})
	ready(t, s)
	got := make([]byte, 4096)
	if err := s.Read(cctx, uint64(size/512)-8, 8, got); err != nil || got[0] != 1 {
		t.Fatalf("the new end after a restart: %d, %v", got[0], err)
	}
}
