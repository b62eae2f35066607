package reserve

import (
	"fmt"
	"testing"
)

var (
	alice = Nexus{"iqn.2024-01.test:alice", [6]byte{0x80, 0, 0, 0, 0, 1}, 1}
	bob   = Nexus{"iqn.2024-01.test:bob", [6]byte{0x80, 0, 0, 0, 0, 2}, 1}
	carol = Nexus{"iqn.2024-01.test:carol", [6]byte{0x80, 0, 0, 0, 0, 3}, 2}
	dave  = Nexus{"iqn.2024-01.test:dave", [6]byte{0x80, 0, 0, 0, 0, 4}, 0x1001}
	all   = []uint16{1, 2, 0x1001}
)

var kinds = []Type{
	WriteExclusive, ExclusiveAccess, WriteExclusiveRegistrantsOnly, ExclusiveAccessRegistrantsOnly,
	WriteExclusiveAllRegistrants, ExclusiveAccessAllRegistrants,
}

// out carries out a request that must succeed.
func out(t *testing.T, table Table, from Nexus, r Request) Change {
	t.Helper()
	c, err := table.Out(from, &r, all)
	if err != nil {
		t.Fatalf("%+v of %v: %v", r, from, err)
	}
	return c
}

// registered is a table in which the given nexuses have registered, with keys 1, 2, 3.
func registered(t *testing.T, nexuses ...Nexus) Table {
	t.Helper()
	var table Table
	for i, n := range nexuses {
		table = out(t, table, n, Request{Action: Register, ServiceKey: uint64(i + 1)}).Table
	}
	return table
}

// TestCommandsInThePresenceOfReservations is SPC-4 r37 table 65 and SBC-3 table 13. Columns: the class; then for a nexus that is
// not registered, and for one that is but does not hold the reservation: a letter for each of the six types, A allowed, C conflict.
func TestCommandsInThePresenceOfReservations(t *testing.T) {
	for _, row := range []struct {
		class                  Class
		unregistered, register string
	}{
		//              WE EA WR ER WA EA
		{Changes, "CCCCCC", "CCAAAA"},
		{Reads, "ACACAC", "ACAAAA"},
		{Asks, "AAAAAA", "AAAAAA"},
		{Describes, "AAAAAA", "AAAAAA"},
		{Reserves, "AAAAAA", "AAAAAA"},
		{ReservesLegacy, "AAAAAA", "AAAAAA"},
	} {
		for i, kind := range kinds {
			table := out(t, registered(t, alice, bob), alice, Request{Action: ReserveAction, Key: 1, Type: kind}).Table
			for n, want := range map[Nexus]byte{alice: 'A', bob: row.register[i], carol: row.unregistered[i]} {
				if got := table.Allowed(n).Allow(row.class); got != (want == 'A') {
					t.Errorf("class %d under %v of %v: %v, want %c", row.class, kind, n, got, want)
				}
			}
		}
		if none := registered(t, alice); !none.Allowed(bob).Allow(row.class) {
			t.Errorf("class %d conflicts without a reservation", row.class)
		}
	}
}

func TestLegacyReservations(t *testing.T) {
	var empty Table
	c, err := empty.Reserve(alice, 7)
	if err != nil || !c.Changed || c.Table.Legacy().By != alice || c.Table.Legacy().Session != 7 {
		t.Fatal(c, err)
	}
	held := c.Table
	for class, want := range map[Class]string{Changes: "AC", Reads: "AC", Asks: "AC", Describes: "AA", Reserves: "CC", ReservesLegacy: "AA"} {
		for i, n := range []Nexus{alice, bob} {
			if got := held.Allowed(n).Allow(class); got != (want[i] == 'A') {
				t.Errorf("class %d of %v: %v", class, n, got)
			}
		}
	}
	if c, err := held.Reserve(alice, 7); err != nil || c.Changed {
		t.Error("reserving again:", c, err)
	}
	if c, err := held.Reserve(alice, 8); err != nil || c.Table.Legacy().Session != 8 {
		t.Error("reserving from a new session:", c, err)
	}
	if _, err := held.Reserve(bob, 9); err != ErrConflict {
		t.Error("another's reserve:", err)
	}
	if c, err := held.Release(bob); err != nil || c.Changed {
		t.Error("another's release does something:", c, err)
	}
	if _, err := held.Out(alice, &Request{Action: RegisterAndIgnore, ServiceKey: 1}, all); err != ErrConflict {
		t.Error("persistent reservations beside RESERVE:", err)
	}
	if c, err := held.Release(alice); err != nil || !c.Changed || c.Table.Legacy() != nil {
		t.Error("release:", c, err)
	}
	if c := held.Drop(); !c.Changed || c.Table.Legacy() != nil || len(c.Attentions) > 0 {
		t.Error("drop:", c)
	}
	// As soon as anyone has registered, both conflict for all to whom no persistent reservation gives access.
	one := registered(t, alice, bob)
	for _, n := range []Nexus{alice, bob, carol} {
		if _, err := one.Reserve(n, 1); err != ErrConflict {
			t.Error("reserve beside registrations:", err)
		}
		if _, err := one.Release(n); err != ErrConflict {
			t.Error("release beside registrations:", err)
		}
	}
	for _, kind := range kinds {
		table := out(t, one, alice, Request{Action: ReserveAction, Key: 1, Type: kind}).Table
		for n, good := range map[Nexus]bool{alice: true, bob: kind.forRegistrants(), carol: false} {
			reserve, err1 := table.Reserve(n, 1)
			release, err2 := table.Release(n)
			if good != (err1 == nil && err2 == nil) || reserve.Changed || release.Changed {
				t.Errorf("%v: RESERVE and RELEASE of %v: %v, %v", kind, n, err1, err2)
			}
		}
	}
}

func TestNames(t *testing.T) {
	for _, kind := range append(kinds, None, 2) {
		if fmt.Sprint(kind) == "" {
			t.Error(kind)
		}
	}
	if got := alice.String(); got != "iqn.2024-01.test:alice,i,0x800000000001 through port 1" {
		t.Error(got)
	}
}
