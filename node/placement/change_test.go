package placement

import (
	"strings"
	"testing"

	"sanctuary/node/catalog"
)

func TestChange(t *testing.T) {
	for _, test := range []struct {
		name  string
		lun   string // "a b w*", a minus behind one that leaves
		up    string // default all
		ask   Change
		want  string
		fails string
	}{
		{name: "move", lun: "a b w*", ask: Change{Add: []string{"c"}, Remove: []string{"b"}}, want: "a c w*"},
		{name: "move again", lun: "a b- w* c", ask: Change{Add: []string{"c"}, Remove: []string{"b"}}, want: "a w* c"},
		{name: "undo a move", lun: "a b- w* c", ask: Change{Add: []string{"b"}, Remove: []string{"c"}}, want: "a b w*"},
		{name: "undo it although its node seems full", lun: "a b- w* c", up: "a b:0 c w", ask: Change{Add: []string{"b"}, Remove: []string{"c"}}, want: "a b w*"},
		{name: "a third copy needs no witness", lun: "a b w*", ask: Change{Add: []string{"c"}}, want: "a b c"},
		{name: "a copy somewhere", lun: "a b w*", ask: Change{Add: []string{""}}, want: "a b c"},
		{name: "two copies somewhere", lun: "a", ask: Change{Add: []string{"", ""}}, want: "a b c"},
		{name: "two of three need one", lun: "a b c", ask: Change{Remove: []string{"c"}}, want: "a b v*"},
		{name: "which may be named", lun: "a b c", ask: Change{Remove: []string{"c"}, Witness: "w"}, want: "a b w*"},
		{name: "two and a witness from one", lun: "a", ask: Change{Add: []string{"d"}}, want: "a d v*"},
		{name: "one from two and a witness", lun: "a b w*", ask: Change{Remove: []string{"b"}}, want: "a"},
		{name: "another witness", lun: "a b w*", ask: Change{Remove: []string{"w"}}, want: "a b v*"},
		{name: "a witness that is named", lun: "a b w*", ask: Change{Witness: "c"}, want: "a b c*"},
		{name: "the witness's node is to have a copy: another witness", lun: "a b c*", ask: Change{Add: []string{"c"}, Remove: []string{"b"}}, want: "a c v*"},
		{name: "no node for a witness but the one whose copy goes: its place", lun: "a b c", up: "a b c", ask: Change{Remove: []string{"c"}}, want: "a b c*"},
		{name: "the witness's node gets a copy", lun: "a b c*", ask: Change{Add: []string{"c"}}, want: "a b c"},
		{name: "another pool", lun: "a b w*", ask: Change{Add: []string{"b"}, Remove: []string{"b"}, Pool: "ssd1"}, want: "a b:ssd1 w*"},
		{name: "four", lun: "a b c", ask: Change{Add: []string{"d"}}, want: "a b c d v*"},
		{name: "six", lun: "a b c d e", ask: Change{Add: []string{"f"}}, fails: "1 to 5"},
		{name: "none", lun: "a", ask: Change{Remove: []string{"a"}}, fails: "0 copies"},
		{name: "has it already", lun: "a b w*", ask: Change{Add: []string{"b", "c"}}, fails: "already"},
		{name: "has none", lun: "a b w*", ask: Change{Remove: []string{"c"}, Witness: "v"}, fails: "holds nothing"},
		{name: "removed already", lun: "a b w*", ask: Change{Remove: []string{"c"}}, want: "a b w*"},
		{name: "node that is down", lun: "a b w*", up: "a b w", ask: Change{Add: []string{"c"}, Remove: []string{"b"}}, fails: "not reachable"},
		{name: "node that is full", lun: "a b w*", up: "a b c:0 w", ask: Change{Add: []string{"c"}, Remove: []string{"b"}}, fails: "no room"},
		{name: "node without room for what a copy takes", lun: "a b w*", up: "a b c:1 w", ask: Change{Add: []string{"c"}, Remove: []string{"b"}, Bytes: gib + 1}, fails: "1025 MiB are needed"},
		{name: "node with room for what a copy takes", lun: "a b w*", up: "a b c:1 w", ask: Change{Add: []string{"c"}, Remove: []string{"b"}, Bytes: gib}, want: "a c w*"},
		{name: "witness that is needless", lun: "a b w*", ask: Change{Add: []string{"c"}, Witness: "v"}, fails: "no witness"},
		{name: "witness with a copy", lun: "a b w*", ask: Change{Witness: "a"}, fails: "as well"},
		{name: "witness unknown", lun: "a b w*", ask: Change{Witness: "q"}, fails: "no node"},
		{name: "nobody left to have one", lun: "a b c d e", ask: Change{Add: []string{""}, Remove: []string{"a"}}, want: "b c d e f"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := model(t, "a b c d e f v w")
			for _, n := range []string{"v"} {
				x := m.Nodes[n]
				x.Kind = catalog.KindWitness
				m.Nodes[n] = x
			}
			l := catalog.LUN{Name: "vm1", Media: catalog.MediaRAM}
			for _, f := range strings.Fields(test.lun) {
				n := strings.TrimRight(f, "*-")
				l.Replicas = append(l.Replicas, catalog.Replica{ID: n + "/1", Node: n, Witness: strings.Contains(f, "*"), Leaving: strings.Contains(f, "-"), State: catalog.ReplicaActive})
			}
			if test.up == "" {
				test.up = "a b c d e f v w"
			}
			got, err := Apply(m, up(test.up), l, test.ask)
			if test.fails != "" {
				if err == nil || !strings.Contains(err.Error(), test.fails) {
					t.Fatalf("%+v, %v; want an error that says %q", got, err, test.fails)
				}
				return
			}
			var out []string
			for _, p := range got {
				if p.Witness {
					p.Node += "*"
				}
				if p.Pool != "" {
					p.Node += ":" + p.Pool
				}
				out = append(out, p.Node)
			}
			if text := strings.Join(out, " "); err != nil || text != test.want {
				t.Fatalf("%q, %v; want %q", text, err, test.want)
			}
		})
	}
}
