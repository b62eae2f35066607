package placement

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"sanctuary/blockstore/block"
	"sanctuary/node/catalog"
)

const gib = 1 << 30

// model makes a catalog; names that begin with w are witnesses. luns are "owner,other,witness".
func model(t *testing.T, nodes string, luns ...string) *catalog.Model {
	t.Helper()
	m := catalog.NewModel("lab")
	apply := func(c catalog.Change) {
		next, _, err := catalog.Apply(m, m.Index+1, c)
		if err != nil {
			t.Fatal(err)
		}
		m = next
	}
	for i, n := range strings.Fields(nodes) {
		kind := catalog.KindData
		if n[0] == 'w' {
			kind = catalog.KindWitness
		}
		apply(&catalog.RegisterNode{Name: n, ID: fmt.Sprintf("00000000-0000-4000-8000-%012d", i+1), Kind: kind})
	}
	for i, l := range luns {
		c := &catalog.CreateLUN{
			ID: fmt.Sprintf("00000000-0000-4000-8000-%012d", i+100), Name: fmt.Sprintf("l%d", i), Media: catalog.MediaRAM,
			Geometry: block.Geometry{Capacity: block.CountOf(gib), LogicalBlockBytes: 512},
		}
		for j, n := range strings.Split(l, ",") {
			c.Replicas = append(c.Replicas, catalog.Placement{Node: n, Witness: j == 2})
		}
		apply(c)
	}
	return m
}

func up(nodes string) map[string]Node {
	out := map[string]Node{}
	for _, n := range strings.Fields(nodes) {
		name, ram, _ := strings.Cut(n, ":")
		x := Node{FreeBytes: map[catalog.Class]uint64{catalog.ClassRAM: 10 * gib, catalog.ClassAny: 10 * gib, catalog.ClassSSD: 2 * gib, catalog.ClassHDD: 10 * gib}}
		if ram != "" {
			var g uint64
			_, _ = fmt.Sscan(ram, &g)
			x.FreeBytes[catalog.ClassRAM] = g * gib
		}
		out[name] = x
	}
	return out
}

func TestChoose(t *testing.T) {
	for _, test := range []struct {
		name  string
		nodes string
		luns  []string
		up    string
		ask   Request
		want  string // "owner other witness*"
		fails string
	}{
		{name: "pair and witness by default", nodes: "a b w", up: "a b w", want: "a b w*"},
		{name: "owners spread", nodes: "a b w", luns: []string{"a,b,w"}, up: "a b w", want: "b a w*"},
		{name: "and come back", nodes: "a b w", luns: []string{"a,b,w", "b,a,w"}, up: "a b w", want: "a b w*"},
		{name: "one node", nodes: "a", up: "a", want: "a"},
		{name: "two nodes without a third vote", nodes: "a b", up: "a b", want: "a"},
		{name: "one copy if asked", nodes: "a b w", up: "a b w", ask: Request{Copies: 1}, want: "a"},
		{name: "three copies", nodes: "a b c", up: "a b c", ask: Request{Copies: 3}, want: "a b c"},
		{name: "a data node votes where there is no witness", nodes: "a b c", up: "a b c", want: "a b c*"},
		{name: "fewest replicas first", nodes: "a b c w", luns: []string{"a,b,w"}, up: "a b c w", want: "c a w*"},
		{name: "then most free", nodes: "a b c w", up: "a:2 b:3 c:9 w", want: "b c w*"},
		{name: "the less loaded witness", nodes: "a b w1 w2", luns: []string{"a,b,w1"}, up: "a b w1 w2", want: "b a w2*"},
		{name: "the witness that is up", nodes: "a b w1 w2", up: "a b w2", want: "a b w2*"},
		{name: "named nodes, the owner first", nodes: "a b c w", up: "a b c w", ask: Request{Nodes: []string{"c", "a"}}, want: "c a w*"},
		{name: "a node that is down is not replaced by less safety", nodes: "a b w", up: "a w", fails: `node "b" is not reachable`},
		{name: "no witness up", nodes: "a b w", up: "a b", fails: `node "w" is not reachable`},
		{name: "no third node", nodes: "a b", up: "a b", ask: Request{Copies: 2}, fails: "another node to vote"},
		{name: "too few for three", nodes: "a b w", up: "a b w", ask: Request{Copies: 3}, fails: "3 data nodes are needed"},
		{name: "full", nodes: "a b w", up: "a b:0 w", fails: "no room in a pool of class ram"},
		{name: "too little room", nodes: "a b w", up: "a b:1 w", ask: Request{Bytes: gib + 1}, fails: "1024 MiB free in a pool of class ram, 1025 MiB are needed"},
		{name: "too little room, knowingly", nodes: "a b w", up: "a b:1 w", ask: Request{Bytes: gib + 1, Overcommit: true}, want: "a b w*"},
		{name: "none at all, knowingly", nodes: "a b w", up: "a b:0 w", ask: Request{Overcommit: true}, fails: "no room in a pool of class ram"},
		{name: "four copies", nodes: "a b c d w", up: "a b c d w", ask: Request{Copies: 4}, want: "a b c d w*"},
		{name: "five copies", nodes: "a b c d e", up: "a b c d e", ask: Request{Copies: 5}, want: "a b c d e"},
		{name: "six copies", nodes: "a", up: "a", ask: Request{Copies: 6}, fails: "use 1, 3 or 5"},
		{name: "copies and names differ", nodes: "a b w", up: "a b w", ask: Request{Copies: 2, Nodes: []string{"a"}}, fails: "name one node"},
		{name: "named node unknown", nodes: "a", up: "a", ask: Request{Nodes: []string{"q"}}, fails: `no node "q"`},
		{name: "named node twice", nodes: "a b w", up: "a b w", ask: Request{Nodes: []string{"a", "a"}}, fails: "twice"},
		{name: "named witness", nodes: "a b w", up: "a b w", ask: Request{Nodes: []string{"w"}}, fails: "witness"},
		{name: "named node down", nodes: "a b w", up: "a w", ask: Request{Nodes: []string{"a", "b"}}, fails: "not reachable"},
		{name: "unknown class", nodes: "a", up: "a", ask: Request{Class: "tape"}, fails: "tape"},
		{name: "the class's own room counts", nodes: "a b w", up: "a b w", ask: Request{Class: catalog.ClassSSD, Bytes: 3 * gib}, fails: "2048 MiB free in a pool of class ssd"},
		{name: "another class has room", nodes: "a b w", up: "a b w", ask: Request{Class: catalog.ClassHDD, Bytes: 3 * gib}, want: "a b w*"},
		{name: "empty cluster", fails: "1 data node is needed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.ask.Class == "" {
				test.ask.Class = catalog.ClassRAM
			}
			if test.ask.Bytes == 0 {
				test.ask.Bytes = gib
			}
			m := model(t, test.nodes, test.luns...)
			got, err := Choose(m, up(test.up), test.ask)
			if test.fails != "" {
				if err == nil || !strings.Contains(err.Error(), test.fails) {
					t.Fatalf("%+v, %v; want an error that says %q", got, err, test.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var out []string
			for _, r := range got.Replicas {
				if r.Witness {
					r.Node += "*"
				}
				out = append(out, r.Node)
			}
			if s := strings.Join(out, " "); s != test.want || got.Preferred != out[0] {
				t.Fatalf("%s (preferred %s), want %s", s, got.Preferred, test.want)
			}
			// What is chosen is what the catalog takes.
			c := &catalog.CreateLUN{
				ID: "00000000-0000-4000-8000-000000000999", Name: "new", Media: catalog.MediaFile, Replicas: got.Replicas, Preferred: got.Preferred,
				Geometry: block.Geometry{Capacity: block.CountOf(gib), LogicalBlockBytes: 512},
			}
			if _, _, err := catalog.Apply(m, m.Index+1, c); err != nil {
				t.Fatalf("the catalog refuses the choice: %v", err)
			}
		})
	}
}

func TestChooseSpreadsOwnersEvenly(t *testing.T) {
	m := model(t, "a b c d w")
	owned := map[string]int{}
	for i := range 40 {
		got, err := Choose(m, up("a b c d w"), Request{Bytes: gib, Class: catalog.ClassRAM})
		if err != nil {
			t.Fatal(err)
		}
		owned[got.Preferred]++
		next, _, err := catalog.Apply(m, m.Index+1, &catalog.CreateLUN{
			ID: fmt.Sprintf("00000000-0000-4000-8000-%012d", i+100), Name: fmt.Sprintf("l%d", i), Media: catalog.MediaRAM, Replicas: got.Replicas,
			Preferred: got.Preferred, Geometry: block.Geometry{Capacity: block.CountOf(gib), LogicalBlockBytes: 512},
		})
		if err != nil {
			t.Fatal(err)
		}
		m = next
	}
	for _, n := range []string{"a", "b", "c", "d"} {
		if owned[n] != 10 {
			t.Fatalf("owners %v, want ten each", owned)
		}
	}
}

func TestImpossibleIsDistinguishable(t *testing.T) {
	if _, err := Choose(model(t, "a b w"), up("a"), Request{Bytes: gib, Class: catalog.ClassRAM}); !errors.Is(err, ErrImpossible) {
		t.Fatal(err)
	}
}
