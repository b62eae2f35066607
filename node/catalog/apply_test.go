package catalog

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"sanctuary/blockstore/block"
)

// uid returns a valid UUID that ends in n.
func uid(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", n) }

var gib = block.Geometry{Capacity: block.CountOf(1 << 30), LogicalBlockBytes: 512}

// must applies changes that are not refused, checking that the older model is untouched.
func must(t *testing.T, m *Model, changes ...Change) (*Model, Result) {
	t.Helper()
	var r Result
	for _, c := range changes {
		before := asJSON(t, m)
		next, res, err := Apply(m, m.Index+1, c)
		if err != nil {
			t.Fatalf("%s: %v", c.kind(), err)
		}
		if asJSON(t, m) != before {
			t.Fatalf("%s changed the model it was given", c.kind())
		}
		m, r = next, res
	}
	return m, r
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func threeNodes(t *testing.T) *Model {
	m, _ := must(t, NewModel("lab"),
		&RegisterNode{Name: "a", ID: uid(1), Kind: KindData},
		&RegisterNode{Name: "b", ID: uid(2), Kind: KindData},
		&RegisterNode{Name: "w", ID: uid(3), Kind: KindWitness})
	return m
}

func mirrored(n int, name string) *CreateLUN {
	return &CreateLUN{ID: uid(n), Name: name, Geometry: gib, Media: MediaRAM, Replicas: []Placement{{Node: "a"}, {Node: "b"}, {Node: "w", Witness: true}}}
}

func started(m *Model, lun string) []Change {
	var out []Change
	for _, r := range m.LUNs[lun].Replicas {
		out = append(out, &ReplicaStarted{LUN: lun, Replica: r.ID, Claim: "start-" + r.Node})
	}
	return out
}

func TestNodesGetPortGroupsThatAreNeverUsedAgain(t *testing.T) {
	m := threeNodes(t)
	m, _ = must(t, m, &RemoveNode{Name: "b"})
	m, r := must(t, m, &RegisterNode{Name: "b", ID: uid(9), Kind: KindData})
	if r.Node.PortGroup != 4 {
		t.Fatalf("port group %d, want 4: 2 was given out before", r.Node.PortGroup)
	}
	m.NextPort = MaxPortGroup
	m, r = must(t, m, &RegisterNode{Name: "last", ID: uid(10), Kind: KindData})
	if r.Node.PortGroup != MaxPortGroup {
		t.Fatal(r.Node.PortGroup)
	}
	if _, _, err := Apply(m, 99, &RegisterNode{Name: "more", ID: uid(11), Kind: KindData}); !errors.Is(err, ErrFull) {
		t.Fatalf("after the last port group: %v", err)
	}
}

func TestCreateLUNGivesOneIdentityForEver(t *testing.T) {
	m, r := must(t, threeNodes(t), mirrored(7, "vm1"))
	l := *r.LUN
	if l.IQN != "iqn.2026-11.local.sanctuary:vm1" || len(l.NAA) != 32 || l.NAA[0] != '6' || strings.Trim(l.NAA, "0123456789abcdef") != "" {
		t.Fatalf("identity %+v", l)
	}
	if l.Number != 0 || l.Epoch != 1 || l.Preferred != "a" || l.Serial != "00000000000040008000000000000007" {
		t.Fatalf("%+v", l)
	}
	want := []Replica{
		{ID: "a/1", Node: "a", State: ReplicaPending},
		{ID: "b/2", Node: "b", State: ReplicaPending},
		{ID: "w/3", Node: "w", Witness: true, State: ReplicaPending},
	}
	if asJSON(t, l.Replicas) != asJSON(t, want) {
		t.Fatalf("replicas %+v", l.Replicas)
	}
	m2, r := must(t, m, mirrored(7, "vm1"))
	if r.Changed || m2 != m || r.LUN.NAA != l.NAA {
		t.Fatal("the same proposal twice made something twice")
	}
	m, _ = must(t, m, &DeleteLUN{ID: uid(7)})
	_, r = must(t, m, mirrored(8, "vm1"))
	if r.LUN.NAA == l.NAA || r.LUN.Serial == l.Serial {
		t.Fatal("another LUN with the name of a deleted one has its identity")
	}
	if r.LUN.Replicas[0].ID != "a/4" {
		t.Fatalf("incarnation used again: %s", r.LUN.Replicas[0].ID)
	}
}

func TestRefusals(t *testing.T) {
	base, _ := must(t, threeNodes(t), mirrored(7, "vm1"))
	running, _ := must(t, base, started(base, uid(7))...)
	with := func(f func(*CreateLUN)) *CreateLUN { c := mirrored(8, "vm2"); f(c); return c }
	for name, test := range map[string]struct {
		change Change
		want   error
		says   string
	}{
		"blank disk":              {&RegisterNode{Name: "a", ID: uid(99), Kind: KindData}, ErrIdentity, "blank"},
		"renamed node":            {&RegisterNode{Name: "z", ID: uid(1), Kind: KindData}, ErrIdentity, `"a"`},
		"other kind":              {&RegisterNode{Name: "a", ID: uid(1), Kind: KindWitness}, ErrIdentity, "data"},
		"no kind":                 {&RegisterNode{Name: "z", ID: uid(99)}, ErrInvalid, "kind"},
		"node name":               {&RegisterNode{Name: "A b", ID: uid(99), Kind: KindData}, ErrInvalid, "a-z"},
		"node id":                 {&RegisterNode{Name: "z", ID: "7", Kind: KindData}, ErrInvalid, "UUID"},
		"remove in use":           {&RemoveNode{Name: "a"}, ErrInUse, "vm1"},
		"name taken":              {mirrored(8, "vm1"), ErrExists, "vm1"},
		"id of another":           {mirrored(7, "vm2"), ErrIdentity, "vm1"},
		"lun name":                {with(func(c *CreateLUN) { c.Name = "VM" }), ErrInvalid, "a-z"},
		"size zero":               {with(func(c *CreateLUN) { c.Geometry.Capacity = 0 }), ErrInvalid, "multiple of 4096"},
		"size too large":          {with(func(c *CreateLUN) { c.Geometry.Capacity = 1 << 40 }), ErrInvalid, "16 TiB"},
		"media":                   {with(func(c *CreateLUN) { c.Media = "tape" }), ErrInvalid, "file"},
		"two without witness":     {with(func(c *CreateLUN) { c.Replicas = c.Replicas[:2] }), ErrInvalid, "witness"},
		"no replica":              {with(func(c *CreateLUN) { c.Replicas = nil }), ErrInvalid, "one replica"},
		"same node twice":         {with(func(c *CreateLUN) { c.Replicas[1].Node = "a" }), ErrInvalid, "two replicas"},
		"data on witness":         {with(func(c *CreateLUN) { c.Replicas[2].Witness = false }), ErrInvalid, "holds no data"},
		"unknown node":            {with(func(c *CreateLUN) { c.Replicas[1].Node = "q" }), ErrNotFound, `"q"`},
		"preferred witness":       {with(func(c *CreateLUN) { c.Preferred = "w" }), ErrInvalid, "preferred"},
		"start again":             {&ReplicaStarted{LUN: uid(7), Replica: "a/1", Claim: "another start"}, ErrStale, "behind"},
		"start unknown":           {&ReplicaStarted{LUN: uid(7), Replica: "a/9", Claim: "x"}, ErrStale, "any more"},
		"start without claim":     {&ReplicaStarted{LUN: uid(7), Replica: "a/1"}, ErrInvalid, "claim"},
		"start of no LUN":         {&ReplicaStarted{LUN: uid(70), Replica: "a/1", Claim: "x"}, ErrNotFound, "no LUN"},
		"replace older":           {&ReplaceReplica{LUN: uid(7), Old: "a/0", Claim: "x"}, ErrStale, "behind"},
		"setting":                 {&SetSetting{Key: "A=B", Value: "x"}, ErrInvalid, "a-z"},
		"setting too long":        {&SetSetting{Key: "a", Value: strings.Repeat("x", 4097)}, ErrInvalid, "4096"},
		"prefer the witness":      {&SetPreferred{LUN: uid(7), Node: "w"}, ErrInvalid, "data replica"},
		"storage of a living LUN": {&StorageDeleted{LUN: uid(7), Node: "a"}, ErrInUse, "vm1"},
	} {
		t.Run(name, func(t *testing.T) {
			m, _, err := Apply(running, 100, test.change)
			if !errors.Is(err, test.want) {
				t.Fatalf("got %v, want %v", err, test.want.(*Refusal).Code)
			}
			if !strings.Contains(err.Error(), test.says) {
				t.Fatalf("%q does not say %q", err, test.says)
			}
			if m != running {
				t.Fatal("a refused change changed the model")
			}
		})
	}
}

func TestReplicaWithoutStorageComesBackUnderAnotherID(t *testing.T) {
	m, _ := must(t, threeNodes(t), mirrored(7, "vm1"))
	if _, _, err := Apply(m, 9, &ReplaceReplica{LUN: uid(7), Old: "b/2", Claim: "x"}); !errors.Is(err, ErrStale) {
		t.Fatalf("replacing a replica that never ran: %v", err)
	}
	m, _ = must(t, m, started(m, uid(7))...)
	m, r := must(t, m, &ReplaceReplica{LUN: uid(7), Old: "b/2", Claim: "second"})
	if *r.Replica != (Replica{ID: "b/4", Node: "b", State: ReplicaJoining, Replaces: "b/2", Claim: "second"}) {
		t.Fatalf("%+v", r.Replica)
	}
	again, r := must(t, m, &ReplaceReplica{LUN: uid(7), Old: "b/2", Claim: "second"})
	if r.Changed || again != m || r.Replica.ID != "b/4" {
		t.Fatal("asking twice took two incarnations")
	}
	// It loses its storage once more before it is promoted: both IDs have to leave the group.
	m, r = must(t, m, &ReplaceReplica{LUN: uid(7), Old: "b/4", Claim: "third"})
	if r.Replica.ID != "b/5" || fmt.Sprint(r.Replica.ReplacedIDs()) != "[b/2 b/4]" {
		t.Fatalf("%+v", r.Replica)
	}
	if r.LUN.Lost {
		t.Fatal("lost, though a/1 has the data")
	}
	if got := m.LUNs[uid(7)].Bootstrap()[1].ID; got != "b/2" {
		t.Fatalf("the first configuration has %s, want b/2", got)
	}
	if _, _, err := Apply(m, 50, &ReplicaPromoted{LUN: uid(7), Replica: "b/4"}); !errors.Is(err, ErrStale) {
		t.Fatalf("an older incarnation was promoted: %v", err)
	}
	m, r = must(t, m, &ReplicaPromoted{LUN: uid(7), Replica: "b/5"})
	if r.Replica.State != ReplicaActive || r.Replica.Replaces != "" {
		t.Fatalf("%+v", r.Replica)
	}
	if _, r := must(t, m, &ReplicaPromoted{LUN: uid(7), Replica: "b/5"}); r.Changed {
		t.Fatal("promoted twice")
	}
}

func TestLUNIsLostWithItsLastData(t *testing.T) {
	m, _ := must(t, threeNodes(t), mirrored(7, "vm1"))
	m, _ = must(t, m, started(m, uid(7))...)
	m, r := must(t, m, &ReplaceReplica{LUN: uid(7), Old: "b/2", Claim: "x"})
	if r.LUN.Lost {
		t.Fatal("lost too early")
	}
	m, r = must(t, m, &ReplaceReplica{LUN: uid(7), Old: "w/3", Claim: "x"})
	if r.LUN.Lost {
		t.Fatal("a witness holds no data to lose")
	}
	m, r = must(t, m, &ReplaceReplica{LUN: uid(7), Old: "a/1", Claim: "x"})
	if !r.LUN.Lost {
		t.Fatal("no replica has the data, and the LUN is not lost")
	}
	if _, _, err := Apply(m, 50, &ReplicaPromoted{LUN: uid(7), Replica: r.Replica.ID}); !errors.Is(err, ErrStale) {
		t.Fatalf("an empty replica of a lost LUN was promoted: %v", err)
	}
}

// A copy that has caught up may own the LUN before the catalog hears that it has been promoted: the last owner, which would have said so, is gone.
func TestLUNIsNotLostWhileAFilledReplicaMayHoldIt(t *testing.T) {
	m, _ := must(t, threeNodes(t), mirrored(7, "vm1"))
	m, _ = must(t, m, started(m, uid(7))...)
	m, r := must(t, m, &ReplaceReplica{LUN: uid(7), Old: "b/2", Claim: "x"})
	b := r.Replica.ID
	m, r = must(t, m, &ReplicaFilled{LUN: uid(7), Replica: b})
	if !r.Replica.Filled || r.Replica.State != ReplicaJoining || m.Version != versionMembers {
		t.Fatalf("%+v, version %d", r.Replica, m.Version)
	}
	m, r = must(t, m, &ReplaceReplica{LUN: uid(7), Old: "a/1", Claim: "x"})
	if r.LUN.Lost {
		t.Fatal("lost, though b may own it")
	}
	promoted, _ := must(t, m, &ReplicaPromoted{LUN: uid(7), Replica: b})
	if l := promoted.LUNs[uid(7)]; l.Lost || l.Replicas[1].State != ReplicaActive {
		t.Fatalf("%+v", l)
	}
	_, r = must(t, m, &ReplaceReplica{LUN: uid(7), Old: b, Claim: "y"})
	if !r.LUN.Lost || r.Replica.Filled {
		t.Fatalf("what b had is gone as well: %+v", r.LUN)
	}
}

func TestPromotionWaitsForFirstStarts(t *testing.T) {
	m, _ := must(t, threeNodes(t), mirrored(7, "vm1"))
	m, _ = must(t, m, started(m, uid(7))[:2]...) // the witness is still to start, with a/1 and b/2 in its configuration
	m, r := must(t, m, &ReplaceReplica{LUN: uid(7), Old: "b/2", Claim: "x"})
	if _, _, err := Apply(m, 50, &ReplicaPromoted{LUN: uid(7), Replica: r.Replica.ID}); !errors.Is(err, ErrStale) {
		t.Fatalf("promoted while the witness has not bootstrapped: %v", err)
	}
}

func TestTombstoneStaysUntilEveryNodeHasDeleted(t *testing.T) {
	m, _ := must(t, threeNodes(t), mirrored(7, "vm1"))
	m, r := must(t, m, &DeleteLUN{ID: uid(7)})
	if !r.Changed || fmt.Sprint(m.Deleted[uid(7)].Nodes) != "[a b w]" {
		t.Fatalf("%+v", m.Deleted)
	}
	if _, r := must(t, m, &DeleteLUN{ID: uid(7)}); r.Changed {
		t.Fatal("deleted twice")
	}
	if _, _, err := Apply(m, 50, mirrored(7, "vm1")); !errors.Is(err, ErrExists) {
		t.Fatalf("a deleted LUN's ID was used again: %v", err)
	}
	m, _ = must(t, m, &StorageDeleted{LUN: uid(7), Node: "a"}, &StorageDeleted{LUN: uid(7), Node: "a"}, &RemoveNode{Name: "w"})
	if fmt.Sprint(m.Deleted[uid(7)].Nodes) != "[b]" {
		t.Fatalf("%+v", m.Deleted)
	}
	m, _ = must(t, m, &StorageDeleted{LUN: uid(7), Node: "b"})
	if len(m.Deleted) != 0 {
		t.Fatalf("%+v", m.Deleted)
	}
}

func TestSettingsAndPreferredOwner(t *testing.T) {
	m, _ := must(t, threeNodes(t), mirrored(7, "vm1"))
	m, r := must(t, m, &SetSetting{Key: "scrub.hour", Value: "3"})
	if !r.Changed || m.Settings["scrub.hour"] != "3" {
		t.Fatal(m.Settings)
	}
	if _, r := must(t, m, &SetSetting{Key: "scrub.hour", Value: "3"}); r.Changed {
		t.Fatal("set twice")
	}
	m, _ = must(t, m, &SetSetting{Key: "scrub.hour"}, &SetPreferred{LUN: uid(7), Node: "b"})
	if len(m.Settings) != 0 || m.LUNs[uid(7)].Preferred != "b" {
		t.Fatalf("%+v", m)
	}
}

func TestChangeSurvivesTheLogAndNoFlippedBitDoes(t *testing.T) {
	changes := append([]Change{
		mirrored(7, "vm1"), &RegisterNode{Name: "a", ID: uid(1), Kind: KindData, Ready: true}, &RemoveNode{Name: "a"}, &DeleteLUN{ID: uid(7)},
		&ReplaceReplica{LUN: uid(7), Old: "a/1", Claim: "c"}, &ReplicaPromoted{LUN: uid(7), Replica: "a/1"}, &StorageDeleted{LUN: uid(7), Node: "a"},
		&SetPreferred{LUN: uid(7), Node: "a"}, &ReplicaStarted{LUN: uid(7), Replica: "a/1", Claim: "c"},
	}, &SetSetting{Key: "k", Value: "<&> \u2028 \"quoted\""})
	for _, c := range changes {
		b, err := EncodeChange(c)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeChange(b)
		if err != nil || asJSON(t, got) != asJSON(t, c) || got.kind() != c.kind() {
			t.Fatalf("%s came back as %v, %v", c.kind(), got, err)
		}
		for bit := range len(b) * 8 {
			b[bit/8] ^= 1 << (bit % 8)
			if got, err := DecodeChange(b); err == nil && asJSON(t, got) != asJSON(t, c) {
				t.Fatalf("%s with bit %d flipped was read as %+v", c.kind(), bit, got)
			}
			b[bit/8] ^= 1 << (bit % 8)
		}
	}
}

func TestUnknownChangesAreNotSkipped(t *testing.T) {
	for _, text := range []string{`{"v":2,"kind":"remove_node","body":{}}`, `{"v":1,"kind":"conquer","body":{}}`, `{"v":1,"kind":"remove_node","body":{"name":"a","force":true}}`} {
		var e envelope
		if err := json.Unmarshal([]byte(text), &e); err != nil {
			t.Fatal(err)
		}
		e.CRC = e.sum()
		b, _ := json.Marshal(e)
		if _, err := DecodeChange(b); err == nil || !strings.Contains(err.Error(), "upgrade") {
			t.Fatalf("%s: %v", text, err)
		}
	}
}

// TestEveryHistoryKeepsTheInvariants applies random changes and checks what must hold after each of them.
func TestEveryHistoryKeepsTheInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := NewModel("lab")
		usedIDs, usedPorts := map[string]string{}, map[uint16]string{}
		node := rapid.SampledFrom([]string{"a", "b", "c", "w"})
		for i := range rapid.IntRange(1, 60).Draw(t, "n") {
			lun := uid(rapid.IntRange(20, 23).Draw(t, "lun"))
			replica := "a/1"
			if l, ok := m.LUNs[lun]; ok {
				replica = rapid.SampledFrom(l.Replicas).Draw(t, "replica").ID
			}
			claim := rapid.SampledFrom([]string{"p", "q"}).Draw(t, "claim")
			name := node.Draw(t, "node")
			kind := KindData
			if name == "w" {
				kind = KindWitness
			}
			c := rapid.SampledFrom([]Change{
				&RegisterNode{Name: name, ID: uid(int(name[0])), Kind: kind}, &RegisterNode{Name: name, ID: uid(int(name[0])), Kind: kind},
				&CreateLUN{ID: lun, Name: "l" + lun[34:], Geometry: gib, Media: MediaFile, Replicas: []Placement{{Node: "a"}, {Node: "b"}, {Node: "w", Witness: true}}},
				&CreateLUN{ID: lun, Name: "l" + lun[34:], Geometry: gib, Media: MediaFile, Replicas: []Placement{{Node: name}}},
				&ReplicaStarted{LUN: lun, Replica: replica, Claim: claim}, &ReplaceReplica{LUN: lun, Old: replica, Claim: claim},
				&ReplicaFilled{LUN: lun, Replica: replica}, &ReplicaPromoted{LUN: lun, Replica: replica}, &DeleteLUN{ID: lun}, &RemoveNode{Name: name}, &StorageDeleted{LUN: lun, Node: name},
			}).Draw(t, "change")
			next, _, err := Apply(m, uint64(i+1), c)
			var refusal *Refusal
			if err != nil && (!errors.As(err, &refusal) || refusal.Text == "" || next != m) {
				t.Fatalf("%s: %v", c.kind(), err)
			}
			if again, r, err2 := Apply(next, uint64(i+1), c); err == nil && (err2 != nil || r.Changed || again != next) {
				t.Fatalf("%s %+v twice: %+v, %v", c.kind(), c, r, err2)
			}
			m = next
			for _, n := range m.Nodes {
				if was, ok := usedPorts[n.PortGroup]; ok && was != n.Name {
					t.Fatalf("port group %d used by %s and %s", n.PortGroup, was, n.Name)
				}
				usedPorts[n.PortGroup] = n.Name
			}
			for _, l := range m.LUNs {
				for _, r := range l.Replicas {
					where := l.ID + "@" + r.Node
					if was, ok := usedIDs[r.ID]; ok && was != where {
						t.Fatalf("replica ID %s used for %s and %s", r.ID, was, where)
					}
					usedIDs[r.ID] = where
					if _, ok := m.Nodes[r.Node]; !ok {
						t.Fatalf("replica %s of a node that is not there", r.ID)
					}
					if (r.State == ReplicaJoining) != (r.Replaces != "") || (r.State != ReplicaPending) != (r.Claim != "") {
						t.Fatalf("replica %+v", r)
					}
				}
				if !l.hasData() && !l.Lost {
					t.Fatalf("LUN %s has no data and is not lost", l.Name)
				}
			}
		}
	})
}
