package catalog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const (
	esx = "iqn.1998-01.com.vmware:esx1-4a5b6c7d"
	win = "iqn.1991-05.com.microsoft:win1"
)

// closed returns three nodes with LUN vm1 (ID 7), which nobody may use, and hosts esx and win.
func closed(t *testing.T) *Model {
	l := mirrored(7, "vm1")
	l.Access = &NewAccess{}
	m, _ := must(t, threeNodes(t), l,
		&SetHost{Host: Host{Name: "esx", Initiators: []string{esx}}}, &SetHost{Host: Host{Name: "win", Initiators: []string{win}}})
	return m
}

func number(n uint16) *uint16 { return &n }

func TestWhoMayUseALUN(t *testing.T) {
	m := closed(t)
	may := func(m *Model, initiator string) string {
		n, ok := m.MayUse(initiator, uid(7))
		if !ok {
			return "no"
		}
		return fmt.Sprint(n)
	}
	if may(m, esx) != "no" || may(m, "iqn.x:unknown") != "no" || len(m.UsableBy(esx)) != 0 {
		t.Error("a new LUN may be used before anybody was let in")
	}
	m, _ = must(t, m, &GrantLUN{LUN: uid(7), Host: "esx", Number: number(9)})
	if may(m, esx) != "9" || may(m, strings.ToUpper(esx)) != "9" || may(m, win) != "no" || len(m.UsableBy(esx)) != 1 || len(m.UsableBy(win)) != 0 {
		t.Error("granted to esx")
	}
	m, _ = must(t, m, &SetOpen{LUN: uid(7), Open: true})
	if may(m, esx) != "9" || may(m, win) != "0" || may(m, "iqn.x:unknown") != "0" || len(m.UsableBy("iqn.x:unknown")) != 1 {
		t.Error("open and granted to esx")
	}
	m, _ = must(t, m, &SetOpen{LUN: uid(7)}, &RevokeLUN{LUN: uid(7), Host: "esx"})
	if may(m, esx) != "no" {
		t.Error("revoked")
	}
	if _, ok := m.MayUse(esx, uid(99)); ok {
		t.Error("a LUN that is not there")
	}
}

func TestDiscoveryShowsEachLUNOnce(t *testing.T) {
	open := mirrored(8, "open")
	open.Access = &NewAccess{Open: true}
	m, _ := must(t, closed(t), open)
	shown := func(m *Model, initiator string) string {
		host, luns := m.Discovery(initiator)
		out := []string{host}
		for _, l := range luns {
			out = append(out, l.Name)
		}
		return strings.Join(out, " ")
	}
	if a, b := shown(m, esx), shown(m, "iqn.x:unknown"); a != " open" || b != " open" {
		t.Errorf("%q, %q", a, b)
	}
	m, _ = must(t, m, &GrantLUN{LUN: uid(7), Host: "esx"})
	if a, b := shown(m, esx), shown(m, win); a != "esx open" || b != " open" {
		t.Errorf("%q, %q", a, b)
	}
	m, _ = must(t, m, &GrantLUN{LUN: uid(8), Host: "esx"})
	if a := shown(m, esx); a != "esx" {
		t.Errorf("%q", a)
	}
	m, _ = must(t, m, &SetHost{Host: Host{Name: "esx", Initiators: []string{esx}, SinglePath: true}})
	if a := shown(m, esx); a != " open vm1" {
		t.Errorf("with a single path %q", a)
	}
}

func TestLUNsMadeBeforeAccessControlStayOpen(t *testing.T) {
	m, _ := must(t, threeNodes(t), mirrored(7, "vm1"), &SetHost{Host: Host{Name: "esx", Initiators: []string{esx}}})
	if l := m.LUNs[uid(7)]; l.Access != nil || !l.IsOpen() || m.SinglePath(win, uid(7)) {
		t.Errorf("%+v", l.Access)
	}
	m, _ = must(t, m, &GrantLUN{LUN: uid(7), Host: "esx"})
	if l := m.LUNs[uid(7)]; !l.IsOpen() {
		t.Error("a grant has cut off everybody else")
	}
	m, r := must(t, m, &SetOpen{LUN: uid(7)})
	if _, ok := m.MayUse(win, uid(7)); ok || !r.Changed {
		t.Error("closed, and open all the same")
	}
}

func TestSinglePathIsTheHostsOrTheOpenLUNs(t *testing.T) {
	m, _ := must(t, closed(t), &SetOpen{LUN: uid(7), Open: true, SinglePath: true},
		&SetHost{Host: Host{Name: "win", Initiators: []string{win}, SinglePath: true}})
	if !m.SinglePath("iqn.x:unknown", uid(7)) || m.SinglePath(esx, uid(7)) || !m.SinglePath(win, uid(7)) {
		t.Error("single path")
	}
	m, _ = must(t, m, &SetOpen{LUN: uid(7), SinglePath: true})
	if m.LUNs[uid(7)].Access.SinglePath {
		t.Error("an attribute of open LUNs stays on a closed one")
	}
}

func TestHostsAreFoundByInitiatorAndTarget(t *testing.T) {
	m := closed(t)
	if h, ok := m.HostOf(strings.ToUpper(win)); !ok || h.Name != "win" {
		t.Error(h, ok)
	}
	if _, ok := m.HostOf("iqn.x:unknown"); ok {
		t.Error("unknown")
	}
	target := m.TargetOf("esx")
	if target != "iqn.2026-11.local.sanctuary:host.lab.esx" {
		t.Error(target)
	}
	if h, ok := m.HostByTarget(strings.ToUpper(target)); !ok || h.Name != "esx" {
		t.Error(h, ok)
	}
	for _, no := range []string{"", "iqn.2026-11.local.sanctuary:vm1", "iqn.2026-11.local.sanctuary:host.lab.", "iqn.2026-11.local.sanctuary:host.other.esx"} {
		if h, ok := m.HostByTarget(no); ok {
			t.Errorf("%q is %s", no, h.Name)
		}
	}
	if l, ok := m.LUNByIQN("IQN.2026-11.local.sanctuary:vm1"); !ok || l.ID != uid(7) {
		t.Error(l.ID, ok)
	}
	if _, ok := m.LUNByIQN(target); ok {
		t.Error("a host's target is a LUN's")
	}
}

func TestAccessRefusals(t *testing.T) {
	m, _ := must(t, closed(t), &GrantLUN{LUN: uid(7), Host: "esx", Number: number(3)}, mirrored(8, "vm2"))
	host := func(h Host) *SetHost { return &SetHost{Host: h} }
	chap := func(c CHAP) *SetHost { return host(Host{Name: "new", CHAP: &c}) }
	const good, other = Secret("123456789012"), Secret("abcdefghijkl")
	many := make([]string, MaxInitiators+1)
	for i := range many {
		many[i] = fmt.Sprintf("iqn.2000-01.a:%d", i)
	}
	for name, c := range map[string]struct {
		change Change
		want   error
		word   string
	}{
		"host name":             {host(Host{Name: "A b"}), ErrInvalid, "a-z"},
		"initiator of another":  {host(Host{Name: "new", Initiators: []string{strings.ToUpper(esx)}}), ErrExists, `"esx"`},
		"no iSCSI name":         {host(Host{Name: "new", Initiators: []string{"esx1"}}), ErrInvalid, "iqn."},
		"month 13":              {host(Host{Name: "new", Initiators: []string{"iqn.1998-13.com.vmware:a"}}), ErrInvalid, "iqn."},
		"blank in a name":       {host(Host{Name: "new", Initiators: []string{"iqn.1998-01.com.vmware:a b"}}), ErrInvalid, "iqn."},
		"no ASCII":              {host(Host{Name: "new", Initiators: []string{"iqn.1998-01.com.vmware:ä"}}), ErrInvalid, "iqn."},
		"name too long":         {host(Host{Name: "new", Initiators: []string{"iqn.1998-01.com.vmware:" + strings.Repeat("a", 201)}}), ErrInvalid, "iqn."},
		"short eui":             {host(Host{Name: "new", Initiators: []string{"eui.0123"}}), ErrInvalid, "eui."},
		"too many initiators":   {host(Host{Name: "new", Initiators: many}), ErrInvalid, "64"},
		"create again":          {&SetHost{Host: Host{Name: "esx", Initiators: []string{esx, "iqn.2000-01.a:b"}}, Create: true}, ErrExists, "already"},
		"no CHAP user":          {chap(CHAP{Secret: good}), ErrInvalid, "user"},
		"blank in a CHAP user":  {chap(CHAP{User: "a b", Secret: good}), ErrInvalid, "user"},
		"no secret":             {chap(CHAP{User: "u"}), ErrInvalid, "0 bytes"},
		"short secret":          {chap(CHAP{User: "u", Secret: "12345678901"}), ErrInvalid, "11 bytes"},
		"long secret":           {chap(CHAP{User: "u", Secret: Secret(strings.Repeat("s", 256))}), ErrInvalid, "256 bytes"},
		"control in a secret":   {chap(CHAP{User: "u", Secret: "1234567890\t12"}), ErrInvalid, "printable"},
		"mutual without secret": {chap(CHAP{User: "u", Secret: good, MutualUser: "m"}), ErrInvalid, "mutual"},
		"mutual without user":   {chap(CHAP{User: "u", Secret: good, MutualSecret: other}), ErrInvalid, "mutual"},
		"the same secret twice": {chap(CHAP{User: "u", Secret: good, MutualUser: "m", MutualSecret: good}), ErrInvalid, "the same"},
		"grant of no LUN":       {&GrantLUN{LUN: uid(99), Host: "esx"}, ErrNotFound, "LUN"},
		"grant to no host":      {&GrantLUN{LUN: uid(7), Host: "nobody"}, ErrNotFound, `"nobody"`},
		"number taken":          {&GrantLUN{LUN: uid(8), Host: "esx", Number: number(3)}, ErrExists, `"vm1"`},
		"number too high":       {&GrantLUN{LUN: uid(8), Host: "esx", Number: number(255)}, ErrInvalid, "254"},
		"another number":        {&GrantLUN{LUN: uid(7), Host: "esx", Number: number(4)}, ErrExists, "number 3"},
		"revoke of no LUN":      {&RevokeLUN{LUN: uid(99), Host: "esx"}, ErrNotFound, "LUN"},
		"open no LUN":           {&SetOpen{LUN: uid(99)}, ErrNotFound, "LUN"},
		"paths of no LUN":       {&SetNonOptimized{LUN: uid(99)}, ErrNotFound, "LUN"},
		"host in use":           {&RemoveHost{Name: "esx"}, ErrInUse, "vm1"},
		"new LUN for no host": {
			&CreateLUN{
				ID: uid(9), Name: "vm3", Geometry: gib, Media: MediaRAM, Replicas: []Placement{{Node: "a"}},
				Access: &NewAccess{Hosts: []string{"esx", "nobody"}},
			}, ErrNotFound, `"nobody"`,
		},
		"portal without port": {&RegisterNode{Name: "a", ID: uid(1), Kind: KindData, Portals: []Portal{{Address: "10.0.0.1"}}}, ErrInvalid, "host:port"},
		"portal without host": {&RegisterNode{Name: "a", ID: uid(1), Kind: KindData, Portals: []Portal{{Address: ":3260"}}}, ErrInvalid, "host:port"},
		"portal twice": {
			&RegisterNode{Name: "a", ID: uid(1), Kind: KindData, Portals: []Portal{{Address: "10.0.0.1:3260"}, {Address: "10.0.0.1:3260"}}}, ErrInvalid, "twice",
		},
		"too many portals": {&RegisterNode{Name: "a", ID: uid(1), Kind: KindData, Portals: make([]Portal, 17)}, ErrInvalid, "16"},
		"portal groups":    {&SetSetting{Key: SettingPortalGroups, Value: "10.0.0.1/24"}, ErrInvalid, "10.0.0.0/24"},
		"algorithms":       {&SetSetting{Key: SettingCHAPAlgorithms, Value: "md5,md4"}, ErrInvalid, "md4"},
	} {
		before := asJSON(t, m)
		next, r, err := Apply(m, 99, c.change)
		var refusal *Refusal
		if !errors.Is(err, c.want) || !errors.As(err, &refusal) || !strings.Contains(refusal.Text, c.word) || next != m || r.Changed {
			t.Errorf("%s: %v", name, err)
		}
		for _, s := range []Secret{good, other, "12345678901"} {
			if err != nil && strings.Contains(err.Error(), string(s)) {
				t.Errorf("%s shows a secret: %v", name, err)
			}
		}
		if asJSON(t, m) != before {
			t.Errorf("%s changed the model", name)
		}
	}
}

func TestAForcedRemovalRevokesAndKeepsTheData(t *testing.T) {
	m, _ := must(t, closed(t), &GrantLUN{LUN: uid(7), Host: "esx"}, &GrantLUN{LUN: uid(7), Host: "win"}, &RemoveHost{Name: "esx", Force: true})
	if _, ok := m.Hosts["esx"]; ok || len(m.LUNs[uid(7)].Access.Grants) != 1 {
		t.Errorf("%+v", m.LUNs[uid(7)].Access)
	}
	if _, r := must(t, m, &RemoveHost{Name: "esx"}); r.Changed {
		t.Error("removed twice")
	}
}

// The wrong device under a number that was used before is what this is about.
func TestFreedNumbersComeBackLast(t *testing.T) {
	m := closed(t)
	var changes []Change
	for i := range 4 {
		l := mirrored(20+i, fmt.Sprintf("l%d", i))
		l.Access = &NewAccess{Hosts: []string{"esx"}}
		changes = append(changes, l)
	}
	m, _ = must(t, m, changes...)
	numbers := func(m *Model) string {
		var out []string
		for _, l := range m.LUNMap("esx") {
			out = append(out, fmt.Sprintf("%d=%s", l.Number, l.LUN.Name))
		}
		return strings.Join(out, " ")
	}
	if got := numbers(m); got != "0=l0 1=l1 2=l2 3=l3" {
		t.Fatal(got)
	}
	m, _ = must(t, m, &RevokeLUN{LUN: uid(21), Host: "esx"}, &DeleteLUN{ID: uid(20)}, &GrantLUN{LUN: uid(7), Host: "esx"})
	if got := numbers(m); got != "2=l2 3=l3 4=vm1" {
		t.Fatalf("a freed number was given out at once: %s", got)
	}
	m, _ = must(t, m, &GrantLUN{LUN: uid(21), Host: "esx"})
	if got := numbers(m); got != "1=l1 2=l2 3=l3 4=vm1" {
		t.Fatalf("the same LUN has come back under another number: %s", got)
	}
	if past := m.Hosts["esx"].Past; len(past) != 1 || past[0] != (PastGrant{Number: 0, LUN: uid(20)}) {
		t.Fatalf("%+v", past)
	}
	if kept, _ := must(t, m, &SetHost{Host: Host{Name: "esx", Initiators: []string{esx}, SinglePath: true}}); len(kept.Hosts["esx"].Past) != 1 {
		t.Fatal("a change of the host has forgotten which numbers it had")
	}
	// Explicitly it may be had.
	if again, _ := must(t, m, &RevokeLUN{LUN: uid(7), Host: "esx"}, &GrantLUN{LUN: uid(7), Host: "esx", Number: number(0)}); numbers(again) != "0=vm1 1=l1 2=l2 3=l3" {
		t.Fatal(numbers(again))
	}
	// When all have been used, the one that has been free for longest comes first.
	h := m.Hosts["esx"]
	h.Past = nil
	for n := uint16(MaxNumber); n >= 10; n-- {
		h.Past = append(h.Past, PastGrant{Number: n, LUN: uid(99)})
	}
	for _, n := range []uint16{8, 0, 5, 6, 7, 9} {
		h.Past = append(h.Past, PastGrant{Number: n, LUN: uid(99)})
	}
	m.Hosts["esx"] = h
	l := mirrored(30, "late")
	l.Access = &NewAccess{Hosts: []string{"esx"}}
	m, _ = must(t, m, l)
	if g, _ := m.LUNs[uid(30)].GrantTo("esx"); g.Number != MaxNumber {
		t.Errorf("number %d", g.Number)
	}
}

func TestNumbersAreUsedUp(t *testing.T) {
	m := closed(t)
	for i := range MaxNumber + 1 {
		id := uid(1000 + i)
		m.LUNs[id] = LUN{ID: id, Name: fmt.Sprint("l", i), Access: &Access{Grants: []Grant{{Host: "esx", Number: uint16(i)}}}}
	}
	if _, _, err := Apply(m, 99, &GrantLUN{LUN: uid(7), Host: "esx"}); !errors.Is(err, ErrFull) {
		t.Error(err)
	}
}

func TestSecretsStayWhenTheyAreLeftEmpty(t *testing.T) {
	full := Host{Name: "h", Initiators: []string{win + "2"}, CHAP: &CHAP{User: "u", Secret: "123456789012", MutualUser: "m", MutualSecret: "abcdefghijkl"}}
	m, r := must(t, closed(t), &SetHost{Host: full})
	if r.Host == nil || r.Host.CHAP.Secret != "" || r.Host.CHAP.MutualSecret != "" || r.Host.CHAP.User != "u" {
		t.Errorf("the answer has secrets: %s", asJSON(t, r))
	}
	named := full
	named.CHAP = &CHAP{User: "u2", MutualUser: "m"}
	m, _ = must(t, m, &SetHost{Host: named})
	if c := m.Hosts["h"].CHAP; c.User != "u2" || c.Secret.Reveal() != "123456789012" || c.MutualSecret.Reveal() != "abcdefghijkl" || !c.Mutual() {
		t.Error("a secret is gone, or changed")
	}
	named.CHAP = &CHAP{User: "u2"}
	m, _ = must(t, m, &SetHost{Host: named})
	if c := m.Hosts["h"].CHAP; c.MutualSecret != "" || c.Mutual() {
		t.Error("mutual CHAP is still on")
	}
	named.CHAP = nil
	if m, _ = must(t, m, &SetHost{Host: named}); m.Hosts["h"].CHAP != nil {
		t.Error("CHAP is still on")
	}
}

func TestSecretsAreInNoText(t *testing.T) {
	const text = "open sesame, now"
	c := CHAP{User: "u", Secret: text, MutualUser: "m", MutualSecret: text + "!"}
	h := Host{Name: "h", CHAP: &c}
	change := &SetHost{Host: h}
	var out bytes.Buffer
	for _, v := range []any{Secret(text), c, &c, h, &h, change, *change, []Host{h}, map[string]Host{"h": h}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
	}
	for _, v := range []any{Secret(text), c, &c, h, &h, change} {
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "v", v)
	}
	for l := range strings.SplitSeq(out.String(), "\n") {
		if strings.Contains(l, "sesame") || strings.Contains(l, fmt.Sprintf("%x", text)[:12]) {
			t.Errorf("%s", l)
		}
	}
}

func TestPortals(t *testing.T) {
	m := threeNodes(t)
	ports := []Portal{{Address: "10.0.1.1:3260", Group: 9}, {Address: "[fd00:2::1]:3260"}, {Address: "san.example:3260"}}
	reg := func(p ...Portal) *RegisterNode {
		return &RegisterNode{Name: "a", ID: uid(1), Kind: KindData, Portals: p}
	}
	m, r := must(t, m, reg(ports...))
	if !r.Changed || !slices.Equal(m.Nodes["a"].PortGroups(), []uint8{0}) || m.Nodes["a"].PortGroup != 1 {
		t.Errorf("%+v", m.Nodes["a"])
	}
	m, _ = must(t, m, &SetSetting{Key: SettingPortalGroups, Value: "fd00:2::/64, 10.0.1.0/24"})
	if m.Nodes["a"].Portals[0].Group != 0 {
		t.Error("the groups of a node that runs have changed under its sessions")
	}
	m, r = must(t, m, reg(ports...))
	want := []Portal{{"10.0.1.1:3260", 2}, {"[fd00:2::1]:3260", 1}, {"san.example:3260", 0}}
	if !r.Changed || !slices.Equal(m.Nodes["a"].Portals, want) || !slices.Equal(r.Node.PortGroups(), []uint8{0, 1, 2}) {
		t.Errorf("%+v", m.Nodes["a"])
	}
	if _, r := must(t, m, reg(ports...)); r.Changed || len(r.Node.Portals) != 3 {
		t.Error("the same again is a change")
	}
	if next, r := must(t, m, reg()); r.Changed || len(next.Nodes["a"].Portals) != 3 {
		t.Error("a registration of an older program took the portals away")
	}
	if m, _ = must(t, m, reg(ports[0])); len(m.Nodes["a"].Portals) != 1 {
		t.Error("portals that are gone stay")
	}
	if !slices.Equal(Node{}.PortGroups(), []uint8{0}) || m.Nodes["a"].PortID(2) != 0x2001 || PortID(MaxPortGroup, 15)|HostPorts != 0xFFFF {
		t.Error("port identifiers")
	}
}

func TestPortalGroupOfAnAddress(t *testing.T) {
	groups, err := ParsePortalGroups("10.0.1.0/24, 10.0.2.0/24,fd00:1::/64")
	if err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]uint8{
		"10.0.1.7:3260": 1, "10.0.2.255": 2, "10.0.3.1:3260": 0, "[fd00:1::7]:3260": 3, "fd00:1::7": 3, "[fd00:1::7%eth0]:3260": 3, "fd00:2::1": 0,
		"::ffff:10.0.1.7": 1, "[::ffff:10.0.2.7]:3260": 2, "san.example:3260": 0, "": 0, ":3260": 0, "[::]:3260": 0,
	} {
		if got := PortalGroup(groups, address); got != want {
			t.Errorf("%q is in group %d, want %d", address, got, want)
		}
	}
	if PortalGroup(nil, "10.0.1.7:3260") != 0 {
		t.Error("no groups")
	}
	var sixteen []string
	for i := range 16 {
		sixteen = append(sixteen, fmt.Sprintf("10.%d.0.0/16", i))
	}
	for _, bad := range []string{"10.0.0.0", "10.0.0.1/24", "10.0.0.0/33", "fd00::1/64", "10.0.0.0/8,10.1.0.0/16", "10.0.0.0/8,,", "x", strings.Join(sixteen, ",")} {
		if _, err := ParsePortalGroups(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if g, err := ParsePortalGroups(strings.Join(sixteen[:15], ",")); err != nil || PortalGroup(g, "10.14.0.1") != 15 {
		t.Errorf("fifteen: %v", err)
	}
}

func TestAlgorithms(t *testing.T) {
	m, _ := must(t, threeNodes(t))
	if got := m.CHAPAlgorithms(); !slices.Equal(got, []string{"sha3-256", "sha-256", "sha-1", "md5"}) {
		t.Error(got)
	}
	m, _ = must(t, m, &SetSetting{Key: SettingCHAPAlgorithms, Value: " md5,sha-256,md5"})
	if got := m.CHAPAlgorithms(); !slices.Equal(got, []string{"sha-256", "md5"}) {
		t.Error(got)
	}
	for _, s := range KnownSettings() {
		if s.About == "" || CheckSetting(s.Key, s.Default) != nil {
			t.Errorf("%+v", s)
		}
	}
}

// testdata/snapshot-1.json was written by the program before there was access control.
func TestAnOlderCatalogIsReadAndLeftAsItIs(t *testing.T) {
	old, err := os.ReadFile("testdata/snapshot-1.json")
	if err != nil {
		t.Fatal(err)
	}
	m, err := decodeSnapshot(bytes.NewReader(old), "lab")
	if err != nil {
		t.Fatal(err)
	}
	if m.Version != 1 || len(m.Nodes) != 3 || len(m.LUNs) != 1 || len(m.Deleted) != 1 || m.Nodes["a"].PortGroup != 1 || !m.LUNs[uid(7)].IsOpen() {
		t.Fatalf("%+v", m)
	}
	again, err := encodeSnapshot(m)
	if err != nil || !bytes.Equal(again, bytes.TrimSpace(old)) {
		t.Errorf("an older program could not read it any more: %v\n%s", err, again)
	}
	// What it knows already does not raise the version; what it does not know does, and is kept by a snapshot.
	m, _ = must(t, m, &RegisterNode{Name: "a", ID: uid(1), Kind: KindData, Ready: true}, &SetSetting{Key: SettingCHAPAlgorithms, Value: "md5"})
	if m.Version != 1 {
		t.Errorf("version %d", m.Version)
	}
	l := mirrored(9, "vm3")
	l.Access = &NewAccess{Open: true}
	for name, c := range map[string]Change{
		"host": &SetHost{Host: Host{Name: "esx", Initiators: []string{esx}}}, "access": l, "paths": &SetNonOptimized{LUN: uid(7), On: true},
		"open": &SetOpen{LUN: uid(7)}, "portals": &RegisterNode{Name: "a", ID: uid(1), Kind: KindData, Portals: []Portal{{Address: "10.0.0.1:3260"}}},
	} {
		next, _ := must(t, m, c)
		b, err := encodeSnapshot(next)
		if err != nil {
			t.Fatal(err)
		}
		back, err := decodeSnapshot(bytes.NewReader(b), "lab")
		if err != nil || back.Version != 2 || asJSON(t, back) != asJSON(t, next) {
			t.Errorf("%s: version %d, %v", name, next.Version, err)
		}
	}
}

func TestANewerCatalogIsNotRead(t *testing.T) {
	m := closed(t)
	m.Version = newestVersion + 1
	b, err := encodeSnapshot(m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeSnapshot(bytes.NewReader(b), "lab"); err == nil || !strings.Contains(err.Error(), "upgrade") {
		t.Error(err)
	}
}

func TestAccessChangesSurviveTheLog(t *testing.T) {
	l := mirrored(7, "vm1")
	l.Access = &NewAccess{Hosts: []string{"esx"}}
	for _, c := range []Change{
		l, &SetHost{Host: Host{Name: "h", Initiators: []string{esx}, CHAP: &CHAP{User: "u", Secret: "123456789012"}, SinglePath: true}, Create: true},
		&RemoveHost{Name: "h", Force: true}, &GrantLUN{LUN: uid(7), Host: "h", Number: number(0)}, &GrantLUN{LUN: uid(7), Host: "h"},
		&RevokeLUN{LUN: uid(7), Host: "h"}, &SetOpen{LUN: uid(7), Open: true, SinglePath: true}, &SetNonOptimized{LUN: uid(7), On: true},
		&RegisterNode{Name: "a", ID: uid(1), Kind: KindData, Portals: []Portal{{Address: "10.0.0.1:3260"}}}, &SetZeroDetection{LUN: uid(7), On: true},
	} {
		b, err := EncodeChange(c)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeChange(b); err != nil || asJSON(t, got) != asJSON(t, c) || got.kind() != c.kind() {
			t.Errorf("%s came back as %v, %v", c.kind(), got, err)
		}
	}
}

// TestEveryHistoryKeepsTheLUNMapsSound applies random changes of access and checks what must hold after each.
func TestEveryHistoryKeepsTheLUNMapsSound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := NewModel("lab")
		for i, n := range []string{"a", "b"} {
			m, _, _ = Apply(m, uint64(i+1), &RegisterNode{Name: n, ID: uid(i + 1), Kind: KindData})
		}
		initiators := []string{"iqn.2000-01.a:1", "iqn.2000-01.a:2", "iqn.2000-01.a:3"}
		for i := range rapid.IntRange(1, 60).Draw(t, "n") {
			lun, host := uid(rapid.IntRange(20, 24).Draw(t, "lun")), rapid.SampledFrom([]string{"x", "y", "z"}).Draw(t, "host")
			var n *uint16
			if rapid.Bool().Draw(t, "numbered") {
				n = number(uint16(rapid.IntRange(0, 3).Draw(t, "number")))
			}
			yes := rapid.Bool().Draw(t, "yes")
			c := rapid.SampledFrom([]Change{
				&CreateLUN{ID: lun, Name: "l" + lun[34:], Geometry: gib, Media: MediaFile, Replicas: []Placement{{Node: "a"}}, Access: &NewAccess{Open: yes, Hosts: []string{host}}},
				&CreateLUN{ID: lun, Name: "l" + lun[34:], Geometry: gib, Media: MediaFile, Replicas: []Placement{{Node: "a"}}},
				&SetHost{Host: Host{Name: host, Initiators: rapid.SliceOfN(rapid.SampledFrom(initiators), 0, 2).Draw(t, "initiators"), SinglePath: yes}},
				&GrantLUN{LUN: lun, Host: host, Number: n}, &GrantLUN{LUN: lun, Host: host}, &RevokeLUN{LUN: lun, Host: host},
				&SetOpen{LUN: lun, Open: yes}, &RemoveHost{Name: host, Force: yes}, &DeleteLUN{ID: lun}, &SetNonOptimized{LUN: lun, On: yes}, &SetZeroDetection{LUN: lun, On: yes},
			}).Draw(t, "change")
			index := uint64(i + 10)
			before, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			next, _, err := Apply(m, index, c)
			var refusal *Refusal
			if err != nil && (!errors.As(err, &refusal) || refusal.Text == "" || next != m) {
				t.Fatalf("%s: %v", c.kind(), err)
			}
			if after, _ := json.Marshal(m); !bytes.Equal(before, after) {
				t.Fatalf("%s changed the model it was given", c.kind())
			}
			if again, r, err2 := Apply(next, index, c); err == nil && (err2 != nil || r.Changed || again != next) {
				t.Fatalf("%s %+v twice: %+v, %v", c.kind(), c, r, err2)
			}
			m = next
			owner := map[string]string{}
			for name, h := range m.Hosts {
				for _, in := range h.Initiators {
					if other, ok := owner[in]; ok {
						t.Fatalf("%s is in %s and %s", in, other, name)
					}
					owner[in] = name
				}
				used := map[uint16]bool{}
				for _, l := range m.LUNMap(name) {
					if used[l.Number] || l.Number > MaxNumber {
						t.Fatalf("number %d of %s twice", l.Number, name)
					}
					used[l.Number] = true
				}
				past := map[uint16]bool{}
				for _, p := range h.Past {
					if used[p.Number] || past[p.Number] {
						t.Fatalf("number %d of %s is in use, or past twice", p.Number, name)
					}
					past[p.Number] = true
				}
			}
			for _, l := range m.LUNs {
				if l.Access == nil {
					continue
				}
				for _, g := range l.Access.Grants {
					if _, ok := m.Hosts[g.Host]; !ok {
						t.Fatalf("LUN %s is granted to %s, which is not there", l.Name, g.Host)
					}
				}
				if !slices.IsSortedFunc(l.Access.Grants, func(a, b Grant) int { return strings.Compare(a.Host, b.Host) }) {
					t.Fatalf("grants of %s: %+v", l.Name, l.Access.Grants)
				}
			}
		}
	})
}
