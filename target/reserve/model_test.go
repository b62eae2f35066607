package reserve

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// oracle holds the same reservations in the plainest way: a map of keys and who holds what. It is written from the standard's
// text and shares nothing with Table.
type oracle struct {
	keys   map[Nexus]uint64
	order  []Nexus
	kind   int // 0: none
	holder Nexus
	gen    uint32
	legacy *Nexus
}

func (o *oracle) drop(n Nexus) {
	delete(o.keys, n)
	o.order = slices.DeleteFunc(o.order, func(x Nexus) bool { return x == n })
}

func (o *oracle) isHolder(n Nexus) bool {
	_, known := o.keys[n]
	return (o.kind == 7 || o.kind == 8) && known || o.kind != 0 && o.kind < 7 && o.holder == n
}

// others tells every registered nexus but one.
func (o *oracle) others(but Nexus, code string, told map[string]bool) {
	for n := range o.keys {
		if n != but {
			told[fmt.Sprint(n, code)] = true
		}
	}
}

// out returns what a PERSISTENT RESERVE OUT ends with and who is told what.
func (o *oracle) out(from Nexus, action, kind int, key, service uint64) (string, map[string]bool) {
	told := map[string]bool{}
	mine, known := o.keys[from]
	if o.legacy != nil {
		return "conflict", told
	}
	if action == 0 && mine != key {
		return "conflict", told // an unregistered nexus has key 0
	}
	if action == 0 || action == 6 {
		switch {
		case service == 0 && !known:
			return "good", told
		case service == 0:
			wasHolder, was := o.isHolder(from), o.kind
			o.drop(from)
			if wasHolder && (was < 7 || len(o.keys) == 0) {
				o.kind = 0
				if was == 5 || was == 6 {
					o.others(from, "2A04", told)
				}
			}
		case known:
			o.keys[from] = service
		default:
			o.keys[from] = service
			o.order = append(o.order, from)
		}
		o.gen++
		return "good", told
	}
	if !known || mine != key {
		return "conflict", told
	}
	valid := kind == 1 || kind == 3 || kind >= 5 && kind <= 8
	switch action {
	case 1:
		switch {
		case !valid:
			return "2400", told
		case o.kind == 0:
			o.kind, o.holder = kind, from
		case !o.isHolder(from) || kind != o.kind:
			return "conflict", told
		}
	case 2:
		switch {
		case !o.isHolder(from):
		case kind != o.kind:
			return "2604", told
		default:
			if o.kind >= 5 {
				o.others(from, "2A04", told)
			}
			o.kind = 0
		}
	case 3:
		o.others(from, "2A03", told)
		o.keys, o.order, o.kind = map[Nexus]uint64{}, nil, 0
		o.gen++
	case 4, 5:
		allRegistrants := o.kind == 7 || o.kind == 8
		takes := allRegistrants && service == 0 || !allRegistrants && o.kind != 0 && service != 0 && o.keys[o.holder] == service
		if service == 0 && !allRegistrants {
			return "2600", told
		}
		var victims []Nexus
		for n, k := range o.keys {
			if service == 0 && n != from || service != 0 && k == service {
				victims = append(victims, n)
			}
		}
		if takes && !valid {
			return "2400", told
		}
		if len(victims) == 0 && service != 0 {
			return "conflict", told
		}
		for _, v := range victims {
			if v == from && takes {
				continue
			}
			o.drop(v)
			if v != from {
				told[fmt.Sprint(v, "2A05")] = true
			}
		}
		if takes {
			if o.kind != kind {
				o.others(from, "2A04", told)
			}
			o.kind, o.holder = kind, from
		} else if allRegistrants && len(o.keys) == 0 {
			o.kind = 0
		}
		o.gen++
	}
	return "good", told
}

// allows is SPC-4 r37 table 65 once more, as sentences.
func (o *oracle) allows(n Nexus, class Class) bool {
	_, registered := o.keys[n]
	switch {
	case o.legacy != nil && *o.legacy != n:
		return class == Describes || class == ReservesLegacy
	case o.legacy != nil:
		return class != Reserves
	case o.kind == 0, o.isHolder(n), registered && o.kind >= 5:
		return true
	case class == Changes:
		return false
	case class == Reads:
		return o.kind == 1 || o.kind == 5 || o.kind == 7
	}
	return true
}

func TestTableAgreesWithThePlainModel(t *testing.T) {
	nexuses := []Nexus{alice, bob, carol, dave}
	rapid.Check(t, func(t *rapid.T) {
		var table Table
		o := &oracle{keys: map[Nexus]uint64{}}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			from := rapid.SampledFrom(nexuses).Draw(t, "from")
			before := string(table.AppendTo(nil))
			previous := table
			switch what := rapid.IntRange(0, 9).Draw(t, "what"); what {
			case 8:
				c, err := table.Reserve(from, 1)
				_, registered := o.keys[from]
				switch {
				case o.isHolder(from) || registered && o.kind >= 5, o.legacy != nil && *o.legacy == from:
					if err != nil || c.Changed {
						t.Fatalf("RESERVE: %v", err)
					}
				case len(o.keys) > 0 || o.legacy != nil:
					if err != ErrConflict {
						t.Fatalf("RESERVE: %v", err)
					}
					continue
				default:
					o.legacy = &from
				}
				table = c.Table
			case 9:
				if rapid.Bool().Draw(t, "reset") {
					table, o.legacy = table.Drop().Table, nil
					break
				}
				c, err := table.Release(from)
				_, registered := o.keys[from]
				if conflict := len(o.keys) > 0 && !o.isHolder(from) && !(registered && o.kind >= 5); conflict != (err == ErrConflict) {
					t.Fatalf("RELEASE: %v", err)
				}
				if err == nil {
					table = c.Table
				}
				if o.legacy != nil && *o.legacy == from {
					o.legacy = nil
				}
			default:
				action := rapid.SampledFrom([]int{0, 0, 1, 1, 2, 3, 4, 4, 5, 6, 6, 6}).Draw(t, "action")
				kind := rapid.SampledFrom([]int{1, 3, 5, 6, 7, 8, 2}).Draw(t, "type")
				key := rapid.Uint64Range(0, 3).Draw(t, "key")
				if rapid.Bool().Draw(t, "right key") {
					key = o.keys[from]
				}
				service := rapid.Uint64Range(0, 3).Draw(t, "service key")
				c, err := table.Out(from, &Request{Action: Action(action), Type: Type(kind), Key: key, ServiceKey: service}, all)
				want, told := o.out(from, action, kind, key, service)
				if code(err) != want {
					t.Fatalf("action %d: %s, want %s", action, code(err), want)
				}
				if err != nil {
					break
				}
				got := map[string]bool{}
				for _, a := range c.Attentions {
					got[fmt.Sprint(a.Nexus, fmt.Sprintf("%04X", a.Code))] = true
				}
				if fmt.Sprint(got) != fmt.Sprint(told) || len(c.Attentions) != len(told) {
					t.Fatalf("action %d told %v, want %v", action, got, told)
				}
				if c.Changed == bytes.Equal(c.Table.AppendTo(nil), []byte(before)) && action != 0 && action != 6 {
					t.Fatalf("action %d: changed %v", action, c.Changed)
				}
				table = c.Table
			}
			if string(previous.AppendTo(nil)) != before {
				t.Fatal("a table was modified")
			}
			if table.generation != o.gen || int(table.kind) != o.kind || len(table.registrations) != len(o.keys) {
				t.Fatalf("generation %d, type %d, %d keys; want %d, %d, %d", table.generation, table.kind, len(table.registrations), o.gen, o.kind, len(o.keys))
			}
			for i, n := range o.order {
				if r := table.registrations[i]; r.Nexus != n || r.Key != o.keys[n] {
					t.Fatalf("registration %d: %+v", i, r)
				}
			}
			for _, n := range nexuses {
				if table.Holds(n) != o.isHolder(n) {
					t.Fatalf("%v holds: %v", n, table.Holds(n))
				}
				for class := Changes; class <= ReservesLegacy; class++ {
					if table.Allowed(n).Allow(class) != o.allows(n, class) {
						t.Fatalf("class %d of %v", class, n)
					}
				}
			}
			encoded := table.AppendTo(nil)
			again, err := Decode(encoded)
			if err != nil || !bytes.Equal(again.AppendTo(nil), encoded) || len(encoded) != table.size() {
				t.Fatalf("decoded: %v, %d bytes of %d", err, len(encoded), table.size())
			}
		}
	})
}
