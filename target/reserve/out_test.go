package reserve

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// attended lists attentions as "bob 2A05", sorted.
func attended(c Change) string {
	var list []string
	for _, a := range c.Attentions {
		name := a.Nexus.Initiator[strings.LastIndexByte(a.Nexus.Initiator, ':')+1:]
		list = append(list, fmt.Sprintf("%s %04X", name, a.Code))
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

func keys(t Table) string {
	var list []string
	for _, r := range t.registrations {
		list = append(list, fmt.Sprintf("%s=%d", r.Nexus.Initiator[strings.LastIndexByte(r.Nexus.Initiator, ':')+1:], r.Key))
	}
	return strings.Join(list, " ")
}

func code(err error) string {
	var refused *Refusal
	switch {
	case err == nil:
		return "good"
	case errors.Is(err, ErrConflict):
		return "conflict"
	case errors.As(err, &refused):
		return fmt.Sprintf("%04X", refused.Code)
	}
	return err.Error()
}

// TestRegister is SPC-4 r37 tables 67 and 68. alice has key 1, carol is not registered.
func TestRegister(t *testing.T) {
	other := []Port{{bob.Initiator, bob.ISID}}
	fresh := []Port{{dave.Initiator, dave.ISID}}
	for _, c := range []struct {
		name string
		from Nexus
		r    Request
		want string
		keys string
	}{
		{"unregistered, key", carol, Request{Action: Register, Key: 9, ServiceKey: 3}, "conflict", ""},
		{"unregistered, register", carol, Request{Action: Register, ServiceKey: 3}, "good", "alice=1 bob=2 carol=3"},
		{"unregistered, nothing", carol, Request{Action: Register}, "good", "alice=1 bob=2"},
		{"unregistered, specified, nothing", carol, Request{Action: Register, Specified: true, Ports: fresh}, "good", "alice=1 bob=2"},
		{"unregistered, specified", carol, Request{Action: Register, ServiceKey: 3, Specified: true, Ports: fresh}, "good", "alice=1 bob=2 carol=3 dave=3"},
		{"unregistered, itself specified", carol, Request{Action: Register, ServiceKey: 3, Specified: true, Ports: []Port{{carol.Initiator, carol.ISID}}}, "good", "alice=1 bob=2 carol=3"},
		{"unregistered, registered one specified", bob2(), Request{Action: Register, ServiceKey: 3, Specified: true, Ports: other}, "2600", ""},
		{"registered, wrong key", alice, Request{Action: Register, Key: 2, ServiceKey: 3}, "conflict", ""},
		{"registered, no key", alice, Request{Action: Register, ServiceKey: 3}, "conflict", ""},
		{"registered, change", alice, Request{Action: Register, Key: 1, ServiceKey: 3}, "good", "alice=3 bob=2"},
		{"registered, unregister", alice, Request{Action: Register, Key: 1}, "good", "bob=2"},
		{"registered, specified", alice, Request{Action: Register, Key: 1, ServiceKey: 3, Specified: true, Ports: fresh}, "2600", ""},
		{"registered, specified, zero key", alice, Request{Action: Register, Key: 1, Specified: true, Ports: fresh}, "2600", ""},
		{"ignore, unregistered", carol, Request{Action: RegisterAndIgnore, Key: 77, ServiceKey: 3}, "good", "alice=1 bob=2 carol=3"},
		{"ignore, nothing", carol, Request{Action: RegisterAndIgnore, Key: 77}, "good", "alice=1 bob=2"},
		{"ignore, change", alice, Request{Action: RegisterAndIgnore, Key: 77, ServiceKey: 3}, "good", "alice=3 bob=2"},
		{"ignore, unregister", alice, Request{Action: RegisterAndIgnore, Key: 77}, "good", "bob=2"},
		{"all ports", carol, Request{Action: Register, ServiceKey: 3, AllPorts: true}, "good", "alice=1 bob=2 carol=3 carol=3 carol=3"},
		{"all ports, one taken", Nexus{alice.Initiator, alice.ISID, 2}, Request{Action: Register, ServiceKey: 3, AllPorts: true}, "conflict", ""},
		{"all ports, some added since", alice, Request{Action: Register, Key: 1, ServiceKey: 3, AllPorts: true}, "good", "alice=3 bob=2 alice=3 alice=3"},
		{"all ports, some added since, unregister", alice, Request{Action: Register, Key: 1, AllPorts: true}, "good", "bob=2"},
		{"all ports, nothing", carol, Request{Action: Register, AllPorts: true}, "good", "alice=1 bob=2"},
		{"all ports, ignore, another port registered, nothing", alice2(), Request{Action: RegisterAndIgnore, AllPorts: true}, "good", "alice=1 bob=2"},
		{"all ports, ignore, one taken", Nexus{alice.Initiator, alice.ISID, 2}, Request{Action: RegisterAndIgnore, ServiceKey: 3, AllPorts: true}, "good", "alice=3 bob=2 alice=3 alice=3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := registered(t, alice, bob)
			encoded := string(before.AppendTo(nil))
			got, err := before.Out(c.from, &c.r, all)
			if code(err) != c.want {
				t.Fatalf("%s, want %s", code(err), c.want)
			}
			if string(before.AppendTo(nil)) != encoded {
				t.Error("the table before was modified")
			}
			if err != nil {
				return
			}
			if keys(got.Table) != c.keys {
				t.Errorf("registered: %s, want %s", keys(got.Table), c.keys)
			}
			raised := uint32(1)
			if c.r.ServiceKey == 0 && (c.from == carol || c.from == alice2()) {
				raised = 0
			}
			if got.Table.generation != before.generation+raised || got.Changed != (raised == 1) {
				t.Errorf("generation %d after %d, changed %v", got.Table.generation, before.generation, got.Changed)
			}
		})
	}
}

// alice2 is alice through a port that she has not registered for.
func alice2() Nexus { return Nexus{alice.Initiator, alice.ISID, 2} }

// bob2 is another port of the unit for which bob is registered on port 1: the one that SPEC_I_PT would register is.
func bob2() Nexus { return Nexus{"iqn.2024-01.test:eve", [6]byte{1}, 1} }

func TestUnregisteringTheHolder(t *testing.T) {
	for _, c := range []struct {
		kind       Type
		left       Type
		attentions string
	}{
		{WriteExclusive, None, ""},
		{ExclusiveAccess, None, ""},
		{WriteExclusiveRegistrantsOnly, None, "bob 2A04, carol 2A04"},
		{ExclusiveAccessRegistrantsOnly, None, "bob 2A04, carol 2A04"},
		{WriteExclusiveAllRegistrants, WriteExclusiveAllRegistrants, ""},
		{ExclusiveAccessAllRegistrants, ExclusiveAccessAllRegistrants, ""},
	} {
		table := out(t, registered(t, alice, bob, carol), alice, Request{Action: ReserveAction, Key: 1, Type: c.kind}).Table
		got := out(t, table, alice, Request{Action: Register, Key: 1})
		if got.Table.kind != c.left || attended(got) != c.attentions {
			t.Errorf("%v: %v is left, told: %s", c.kind, got.Table.kind, attended(got))
		}
		if other := out(t, table, bob, Request{Action: Register, Key: 2}); other.Table.kind != c.kind || len(other.Attentions) > 0 {
			t.Errorf("%v: another that leaves ends it", c.kind)
		}
		got = out(t, out(t, got.Table, bob, Request{Action: Register, Key: 2}).Table, carol, Request{Action: Register, Key: 3})
		if got.Table.kind != None || len(got.Attentions) > 0 {
			t.Errorf("%v: left when all have gone: %v", c.kind, got.Table.kind)
		}
	}
}

func TestReserveAndRelease(t *testing.T) {
	for _, kind := range kinds {
		free := registered(t, alice, bob)
		held := out(t, free, alice, Request{Action: ReserveAction, Key: 1, Type: kind})
		if held.Table.kind != kind || held.Table.generation != free.generation || len(held.Attentions) > 0 || !held.Changed {
			t.Errorf("%v: %+v", kind, held)
		}
		bobs := "conflict"
		if kind.AllRegistrants() {
			bobs = "good" // bob holds it as well
		}
		another := kinds[(slices.Index(kinds, kind)+1)%len(kinds)]
		for _, c := range []struct {
			from Nexus
			r    Request
			want string
		}{
			{alice, Request{Action: ReserveAction, Key: 1, Type: kind}, "good"},
			{alice, Request{Action: ReserveAction, Key: 2, Type: kind}, "conflict"},
			{alice, Request{Action: ReserveAction, Key: 1, Type: another}, "conflict"},
			{bob, Request{Action: ReserveAction, Key: 2, Type: kind}, bobs},
			{carol, Request{Action: ReserveAction, Type: kind}, "conflict"},
			{alice, Request{Action: ReserveAction, Key: 1, Type: kind, Scope: 1}, "2400"},
			{alice, Request{Action: ReserveAction, Key: 1, Type: 2}, "2400"},
			{alice, Request{Action: ReleaseAction, Key: 1, Type: another}, "2604"},
			{alice, Request{Action: ReleaseAction, Key: 1, Type: kind, Scope: 1}, "2604"},
			{alice, Request{Action: ReleaseAction, Key: 2, Type: kind}, "conflict"},
			{carol, Request{Action: ReleaseAction, Type: kind}, "conflict"},
		} {
			got, err := held.Table.Out(c.from, &c.r, all)
			if code(err) != c.want || got.Changed {
				t.Errorf("%v: %+v of %v: %s, changed %v", kind, c.r, c.from, code(err), got.Changed)
			}
		}
		told := ""
		if kind.forRegistrants() {
			told = "bob 2A04"
		}
		free2 := out(t, held.Table, alice, Request{Action: ReleaseAction, Key: 1, Type: kind})
		if free2.Table.kind != None || attended(free2) != told || free2.Table.generation != free.generation {
			t.Errorf("%v: released: %v, told: %s", kind, free2.Table.kind, attended(free2))
		}
		if again := out(t, free2.Table, alice, Request{Action: ReleaseAction, Key: 1, Type: kind}); again.Changed {
			t.Errorf("%v: released what nobody held", kind)
		}
		if !kind.AllRegistrants() {
			if idle := out(t, held.Table, bob, Request{Action: ReleaseAction, Key: 2, Type: kind}); idle.Changed {
				t.Errorf("%v: released by one that does not hold it", kind)
			}
		}
	}
}

func TestClear(t *testing.T) {
	table := out(t, registered(t, alice, bob, carol), alice, Request{Action: ReserveAction, Key: 1, Type: ExclusiveAccess}).Table
	got := out(t, table, bob, Request{Action: Clear, Key: 2})
	if got.Table.kind != None || keys(got.Table) != "" || attended(got) != "alice 2A03, carol 2A03" || got.Table.generation != table.generation+1 {
		t.Errorf("%+v, told: %s", got.Table, attended(got))
	}
	for n, key := range map[Nexus]uint64{bob: 1, dave: 0} {
		if _, err := table.Out(n, &Request{Action: Clear, Key: key}, all); err != ErrConflict {
			t.Error(err)
		}
	}
}

// TestPreempt is SPC-4 r37 table 72. alice has key 1 and holds what is reserved, bob key 2, carol 3 and dave 3 as well.
func TestPreempt(t *testing.T) {
	const we, ea, wero, wear, eaar = WriteExclusive, ExclusiveAccess, WriteExclusiveRegistrantsOnly, WriteExclusiveAllRegistrants, ExclusiveAccessAllRegistrants
	for _, c := range []struct {
		name    string
		held    Type
		from    Nexus
		key     uint64
		service uint64
		take    Type
		want    string
		keys    string
		kind    Type
		holder  Nexus
		told    string
		aborted int
	}{
		{"holder's key", we, bob, 2, 1, ea, "good", "bob=2 carol=3 dave=3", ea, bob, "alice 2A05, carol 2A04, dave 2A04", 1},
		{"holder's key, same type", ea, bob, 2, 1, ea, "good", "bob=2 carol=3 dave=3", ea, bob, "alice 2A05", 1},
		{"holder's key, bad type", we, bob, 2, 1, 2, "2400", "", 0, Nexus{}, "", 0},
		{"another key", we, bob, 2, 3, 2, "good", "alice=1 bob=2", we, alice, "carol 2A05, dave 2A05", 2},
		{"own key, not holding", we, carol, 3, 3, ea, "good", "alice=1 bob=2", we, alice, "dave 2A05", 2},
		{"own reservation", wero, alice, 1, 1, we, "good", "alice=1 bob=2 carol=3 dave=3", we, alice, "bob 2A04, carol 2A04, dave 2A04", 1},
		{"unknown key", we, bob, 2, 9, ea, "conflict", "", 0, Nexus{}, "", 0},
		{"zero key", we, bob, 2, 0, ea, "2600", "", 0, Nexus{}, "", 0},
		{"wrong own key", we, bob, 3, 1, ea, "conflict", "", 0, Nexus{}, "", 0},
		{"nothing reserved", None, bob, 2, 3, ea, "good", "alice=1 bob=2", None, Nexus{}, "carol 2A05, dave 2A05", 2},
		{"nothing reserved, own key", None, carol, 3, 3, ea, "good", "alice=1 bob=2", None, Nexus{}, "dave 2A05", 2},
		{"nothing reserved, zero key", None, bob, 2, 0, ea, "2600", "", 0, Nexus{}, "", 0},
		{"nothing reserved, unknown key", None, bob, 2, 9, ea, "conflict", "", 0, Nexus{}, "", 0},
		{"all registrants, zero key", wear, bob, 2, 0, ea, "good", "bob=2", ea, bob, "alice 2A05, carol 2A05, dave 2A05", 3},
		{"all registrants, a key", eaar, bob, 2, 3, we, "good", "alice=1 bob=2", eaar, Nexus{}, "carol 2A05, dave 2A05", 2},
		{"all registrants, unknown key", eaar, bob, 2, 9, we, "conflict", "", 0, Nexus{}, "", 0},
	} {
		for _, action := range []Action{Preempt, PreemptAndAbort} {
			table := registered(t, alice, bob, carol)
			table = out(t, table, dave, Request{Action: Register, ServiceKey: 3}).Table
			if c.held != None {
				table = out(t, table, alice, Request{Action: ReserveAction, Key: 1, Type: c.held}).Table
			}
			got, err := table.Out(c.from, &Request{Action: action, Key: c.key, ServiceKey: c.service, Type: c.take}, all)
			if code(err) != c.want {
				t.Errorf("%s: %s, want %s", c.name, code(err), c.want)
			}
			if err != nil {
				continue
			}
			if keys(got.Table) != c.keys || got.Table.kind != c.kind || got.Table.holder != c.holder || got.Table.generation != table.generation+1 {
				t.Errorf("%s: %s, %v held by %v", c.name, keys(got.Table), got.Table.kind, got.Table.holder)
			}
			if attended(got) != c.told {
				t.Errorf("%s: told %s, want %s", c.name, attended(got), c.told)
			}
			aborted := 0
			if action == PreemptAndAbort {
				aborted = c.aborted
			}
			if len(got.Abort) != aborted {
				t.Errorf("%s: aborts tasks of %v", c.name, got.Abort)
			}
		}
	}
	// The last of all registrants removes itself.
	table := out(t, registered(t, alice), alice, Request{Action: ReserveAction, Key: 1, Type: wear}).Table
	if got := out(t, table, alice, Request{Action: Preempt, Key: 1, ServiceKey: 1, Type: we}); got.Table.kind != None || keys(got.Table) != "" {
		t.Errorf("%+v", got.Table)
	}
}

func TestRegisterAndMove(t *testing.T) {
	to := []Port{{carol.Initiator, carol.ISID}}
	good := Request{Action: RegisterAndMove, Key: 1, ServiceKey: 9, Ports: to, TargetPort: carol.Port}
	with := func(change func(*Request)) Request { r := good; change(&r); return r }
	for _, c := range []struct {
		name string
		held Type
		from Nexus
		r    Request
		want string
		keys string
	}{
		{"moves", WriteExclusive, alice, good, "good", "alice=1 bob=2 carol=9"},
		{"and unregisters", ExclusiveAccess, alice, with(func(r *Request) { r.Unregister = true }), "good", "bob=2 carol=9"},
		{"to one that is registered", WriteExclusiveRegistrantsOnly, alice, with(func(r *Request) { r.Ports, r.TargetPort = []Port{{bob.Initiator, bob.ISID}}, 1 }), "good", "alice=1 bob=9"},
		{"nothing reserved", None, alice, good, "2400", ""},
		{"all registrants", WriteExclusiveAllRegistrants, alice, good, "conflict", ""},
		{"not the holder", WriteExclusive, bob, with(func(r *Request) { r.Key = 2 }), "conflict", ""},
		{"wrong key", WriteExclusive, alice, with(func(r *Request) { r.Key = 2 }), "conflict", ""},
		{"unregistered", WriteExclusive, dave, with(func(r *Request) { r.Key = 0 }), "conflict", ""},
		{"zero key", WriteExclusive, alice, with(func(r *Request) { r.ServiceKey = 0 }), "2600", ""},
		{"no such port", WriteExclusive, alice, with(func(r *Request) { r.TargetPort = 77 }), "2600", ""},
		{"to itself through another port", WriteExclusive, alice, with(func(r *Request) { r.Ports, r.TargetPort = []Port{{alice.Initiator, alice.ISID}}, 2 }), "2600", ""},
		{"to itself", WriteExclusive, alice, with(func(r *Request) { r.Ports, r.TargetPort = []Port{{alice.Initiator, alice.ISID}}, 1 }), "2600", ""},
	} {
		table := registered(t, alice, bob)
		if c.held != None {
			table = out(t, table, alice, Request{Action: ReserveAction, Key: 1, Type: c.held}).Table
		}
		got, err := table.Out(c.from, &c.r, all)
		if code(err) != c.want {
			t.Errorf("%s: %s", c.name, code(err))
		}
		if err != nil {
			continue
		}
		holder := Nexus{c.r.Ports[0].Initiator, c.r.Ports[0].ISID, c.r.TargetPort}
		if keys(got.Table) != c.keys || got.Table.kind != c.held || !got.Table.Holds(holder) || len(got.Attentions) > 0 || got.Table.generation != table.generation+1 {
			t.Errorf("%s: %s, %v held by %v", c.name, keys(got.Table), got.Table.kind, got.Table.holder)
		}
	}
}

func TestPersistIsWhatTheLastRegistrationAsked(t *testing.T) {
	table := out(t, Table{}, alice, Request{Action: Register, ServiceKey: 1, Persist: true}).Table
	if !table.Persists() || table.Capabilities()[3]&1 == 0 {
		t.Error("not reported")
	}
	table = out(t, table, alice, Request{Action: ReserveAction, Key: 1, Type: WriteExclusive}).Table
	if !table.Persists() {
		t.Error("lost with a reservation")
	}
	if table = out(t, table, bob, Request{Action: Register, ServiceKey: 2}).Table; table.Persists() || table.Capabilities()[3]&1 != 0 {
		t.Error("still reported")
	}
}

func TestTableIsBounded(t *testing.T) {
	var table Table
	for i := 0; ; i++ {
		if i > 5000 {
			t.Fatal("no bound")
		}
		n := Nexus{fmt.Sprintf("iqn.2024-01.test:%0200d", i/4), [6]byte{byte(i >> 8), byte(i)}, uint16(i % 4)}
		c, err := table.Out(n, &Request{Action: Register, ServiceKey: 1}, all)
		if err != nil {
			if code(err) != "5504" || i < 100 {
				t.Fatalf("number %d: %v", i, err)
			}
			break
		}
		table = c.Table
	}
	b := table.AppendTo(nil)
	if len(b) > MaxBytes || len(b) != table.size() {
		t.Fatalf("%d bytes, counted %d", len(b), table.size())
	}
	// A full table can still be changed and emptied.
	first := table.registrations[0].Nexus
	table = out(t, table, first, Request{Action: Register, Key: 1, ServiceKey: 5}).Table
	if table = out(t, table, first, Request{Action: Clear, Key: 5}).Table; !table.Empty() {
		t.Error("not empty")
	}
}

func TestPurge(t *testing.T) {
	table := out(t, registered(t, alice, bob, carol), alice, Request{Action: ReserveAction, Key: 1, Type: WriteExclusiveRegistrantsOnly}).Table
	got := table.Purge(func(r Registration) bool { return r.Nexus == alice || r.Nexus == bob }, false)
	if keys(got.Table) != "carol=3" || got.Table.kind != None || attended(got) != "alice 2A05, bob 2A05, carol 2A04" || len(got.Abort) != 2 {
		t.Errorf("%s, told: %s", keys(got.Table), attended(got))
	}
	if c := table.Purge(func(Registration) bool { return false }, true); c.Changed {
		t.Error("purged nothing and changed")
	}
	if c := table.ClearAll(); !c.Table.Empty() || attended(c) != "alice 2A03, bob 2A03, carol 2A03" {
		t.Errorf("told: %s", attended(c))
	}
	legacy, _ := Table{}.Reserve(alice, 1)
	if c := legacy.Table.Purge(func(Registration) bool { return true }, true); !c.Changed || !c.Table.Empty() {
		t.Error("RESERVE stays")
	}
	if c := legacy.Table.ClearAll(); !c.Changed || !c.Table.Empty() {
		t.Error("RESERVE stays")
	}
	if c := (Table{}).ClearAll(); c.Changed {
		t.Error("cleared nothing and changed")
	}
}
