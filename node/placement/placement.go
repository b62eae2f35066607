// Package placement chooses the nodes for a new LUN, and for the copies that one is to have more.
//
// Invariant: it is a pure function of the catalog and of what gossip says at that moment; the catalog checks again
// whatever must hold whoever proposed it. It moves nothing by itself.
package placement

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"sanctuary/node/catalog"
)

// ErrImpossible: the cluster as it is cannot take the LUN. The error says what is missing.
var ErrImpossible = errors.New("there is no place for the LUN")

// Node is what gossip says about a node at present. A node that is not listed is taken to be down.
type Node struct {
	// FreeBytes are what one LUN could allocate there, by class; of catalog.ClassAny in any pool that lasts.
	FreeBytes map[catalog.Class]uint64
}

// Request says what is wanted.
type Request struct {
	Bytes int64         // what a copy may come to take: the size of a new LUN
	Class catalog.Class // of the pools it may be in
	// Copies is the number of data replicas: 1, 3 or 5, or 2 or 4 and a witness; 0: the safest of 2 and 1 that the cluster's nodes allow
	// for, whether or not they are up at present: a LUN is not made less safe because a node is being restarted.
	Copies int
	// Nodes, if not empty, are the data nodes to use, the preferred owner first. Their number is Copies, which may be 0 then.
	Nodes []string
	// Overcommit: it may be larger than what is free.
	Overcommit bool
}

// Choice is where a LUN is to be.
type Choice struct {
	Replicas  []catalog.Placement // data replicas, the preferred owner first, then the witness
	Preferred string
}

// Choose places a LUN. up holds the nodes that gossip can reach, by name, this one included. Nodes with the fewest
// replicas come first, among these the ones with the most free space; the owner is the chosen node that owns fewest.
func Choose(m *catalog.Model, up map[string]Node, r Request) (Choice, error) {
	switch r.Class {
	case catalog.ClassAny, catalog.ClassRAM, catalog.ClassSSD, catalog.ClassHDD:
	default:
		return Choice{}, fmt.Errorf("class %q: use %q, %q, %q, or none for any that lasts", r.Class, catalog.ClassRAM, catalog.ClassSSD, catalog.ClassHDD)
	}
	copies, err := copiesOf(m, r)
	if err != nil {
		return Choice{}, err
	}
	load := loads(m)
	fit, unfit := candidates(m, up, r)
	data := fit
	if len(r.Nodes) > 0 {
		if data, err = named(m, r, fit, unfit); err != nil {
			return Choice{}, err
		}
	} else {
		slices.SortFunc(data, func(a, b string) int {
			return cmp.Or(cmp.Compare(load[a].replicas, load[b].replicas), cmp.Compare(up[b].FreeBytes[r.Class], up[a].FreeBytes[r.Class]), cmp.Compare(a, b))
		})
	}
	if len(data) < copies {
		return Choice{}, fmt.Errorf("%w: %s needed for %s and %d can take one%s", ErrImpossible, plural(copies, "data node is", "data nodes are"), plural(copies, "copy", "copies"), len(data), because(unfit))
	}
	data = data[:copies]
	choice := Choice{Preferred: data[0]}
	if len(r.Nodes) == 0 {
		choice.Preferred = slices.MinFunc(data, func(a, b string) int {
			return cmp.Or(cmp.Compare(load[a].owned, load[b].owned), cmp.Compare(a, b))
		})
	}
	slices.SortStableFunc(data, func(a, b string) int {
		return cmp.Compare(b2i(b == choice.Preferred), b2i(a == choice.Preferred))
	})
	for _, n := range data {
		choice.Replicas = append(choice.Replicas, catalog.Placement{Node: n})
	}
	if copies%2 == 0 {
		w, err := witness(m, up, data, load)
		if err != nil {
			return Choice{}, err
		}
		choice.Replicas = append(choice.Replicas, catalog.Placement{Node: w, Witness: true})
	}
	return choice, nil
}

func copiesOf(m *catalog.Model, r Request) (int, error) {
	copies := r.Copies
	if n := len(r.Nodes); n > 0 {
		if copies != 0 && copies != n {
			return 0, fmt.Errorf("%d copies on %d named nodes: name one node for each copy", copies, n)
		}
		copies = n
	}
	switch copies {
	case 1, 2, 3, 4, 5:
		return copies, nil
	case 0:
	default:
		return 0, fmt.Errorf("%d copies: use 1, 3 or 5, or 2 or 4 and a witness", copies)
	}
	data := 0
	for _, n := range m.Nodes {
		if n.Kind == catalog.KindData {
			data++
		}
	}
	if data >= 2 && len(m.Nodes) >= 3 {
		return 2, nil
	}
	return 1, nil
}

type load struct{ replicas, owned, witnesses int }

func loads(m *catalog.Model) map[string]load {
	out := map[string]load{}
	for _, l := range m.LUNs {
		for _, r := range l.Replicas {
			x := out[r.Node]
			if r.Witness {
				x.witnesses++
			} else {
				x.replicas++
			}
			if l.Preferred == r.Node {
				x.owned++
			}
			out[r.Node] = x
		}
	}
	return out
}

// poolOf names the pools of a class for a message.
func poolOf(class catalog.Class) string {
	if class == catalog.ClassAny {
		return "a pool that lasts"
	}
	return fmt.Sprintf("a pool of class %s", class)
}

// candidates returns the data nodes that can take a replica, by name, and why the others cannot.
func candidates(m *catalog.Model, up map[string]Node, r Request) (fit []string, unfit map[string]string) {
	unfit = map[string]string{}
	for name, n := range m.Nodes {
		if n.Kind != catalog.KindData {
			continue
		}
		state, alive := up[name]
		switch space := state.FreeBytes[r.Class]; {
		case !alive:
			unfit[name] = "is not reachable"
		case space == 0:
			unfit[name] = fmt.Sprintf("has no room in %s, or no such pool (sanctuary pool list)", poolOf(r.Class))
		case space < uint64(max(r.Bytes, 0)) && !r.Overcommit:
			unfit[name] = fmt.Sprintf("has %d MiB free in %s, %d MiB are needed", space>>20, poolOf(r.Class), (r.Bytes+1<<20-1)>>20)
		default:
			fit = append(fit, name)
		}
	}
	slices.Sort(fit)
	return fit, unfit
}

func named(m *catalog.Model, r Request, fit []string, unfit map[string]string) ([]string, error) {
	for i, n := range r.Nodes {
		node, known := m.Nodes[n]
		switch {
		case !known:
			return nil, fmt.Errorf("%w: there is no node %q in the cluster", ErrImpossible, n)
		case node.Kind != catalog.KindData:
			return nil, fmt.Errorf("%w: node %q is a witness and holds no data", ErrImpossible, n)
		case slices.Contains(r.Nodes[:i], n):
			return nil, fmt.Errorf("%w: node %q is named twice; one failure would take both copies", ErrImpossible, n)
		case !slices.Contains(fit, n):
			return nil, fmt.Errorf("%w: node %q %s", ErrImpossible, n, unfit[n])
		}
	}
	return slices.Clone(r.Nodes), nil
}

// witness prefers a node that is nothing else, then a data node that does not hold the LUN; both must be up.
func witness(m *catalog.Model, up map[string]Node, data []string, load map[string]load) (string, error) {
	var fit []string
	down := map[string]string{}
	for name := range m.Nodes {
		if slices.Contains(data, name) {
			continue
		}
		if _, alive := up[name]; alive {
			fit = append(fit, name)
		} else {
			down[name] = "is not reachable"
		}
	}
	if len(fit) == 0 {
		return "", fmt.Errorf("%w: an even number of copies needs another node to vote, a witness or a data node%s. Start one, or ask for one copy less", ErrImpossible, because(down))
	}
	return slices.MinFunc(fit, func(a, b string) int {
		return cmp.Or(
			cmp.Compare(b2i(m.Nodes[a].Kind != catalog.KindWitness), b2i(m.Nodes[b].Kind != catalog.KindWitness)),
			cmp.Compare(load[a].witnesses, load[b].witnesses), cmp.Compare(a, b))
	}), nil
}

func because(why map[string]string) string {
	if len(why) == 0 {
		return ""
	}
	var out []string
	for n, text := range why {
		out = append(out, fmt.Sprintf("node %q %s", n, text))
	}
	slices.Sort(out)
	return " (" + strings.Join(out, "; ") + ")"
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Beside returns the places of a clone: those of the LUN it comes from, since it shares what that has stored.
func Beside(l catalog.LUN) (out []catalog.Placement) {
	for _, p := range l.Wanted() {
		out = append(out, catalog.Placement{Node: p.Node, Witness: p.Witness})
	}
	return out
}
