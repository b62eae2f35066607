package placement

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"sanctuary/node/catalog"
)

// Change says how the replicas of a LUN are to change.
type Change struct {
	Add     []string // data nodes to have a copy; "" is one that suits
	Remove  []string // nodes to have nothing of it any more
	Pool    string   // for the copies that are added
	Witness string   // to be the witness where there is one; "": the one there is, or one that suits
	// Bytes is what a copy takes now, as far as is known. One that is thin and larger than what is free may move: what it lacks room for
	// later waits for room, or is refused, wherever it is.
	Bytes int64
}

// Apply returns the places of the LUN's replicas after the change, the witness last. A change that has been made already gives the places as
// they are, so a request may be repeated.
func Apply(m *catalog.Model, up map[string]Node, l catalog.LUN, c Change) ([]catalog.Placement, error) {
	var data []string
	voter := ""
	for _, p := range l.Wanted() {
		if p.Witness {
			voter = p.Node
		} else {
			data = append(data, p.Node)
		}
	}
	absent := func(n string) bool { return !slices.Contains(data, n) && n != voter }
	made := func() bool {
		for _, n := range c.Add {
			if !slices.Contains(data, n) {
				return false
			}
		}
		for _, n := range c.Remove {
			if !absent(n) {
				return false
			}
		}
		return len(c.Add)+len(c.Remove) > 0 && c.Pool == "" && (c.Witness == "" || c.Witness == voter)
	}
	if made() {
		return l.Wanted(), nil
	}
	for _, n := range c.Remove {
		if absent(n) {
			return nil, fmt.Errorf("%w: node %q holds nothing of LUN %q", ErrImpossible, n, l.Name)
		}
		if n == voter {
			voter = ""
		}
		data = slices.DeleteFunc(data, func(d string) bool { return d == n })
	}
	added, err := newcomers(m, up, l, c, data)
	if err != nil {
		return nil, err
	}
	data = append(data, added...)
	if len(data) < 1 || len(data) > catalog.MaxCopies {
		return nil, fmt.Errorf("%w: LUN %q would have %s, and may have 1 to %d", ErrImpossible, l.Name, plural(len(data), "copy", "copies"), catalog.MaxCopies)
	}
	var out []catalog.Placement
	for _, n := range data {
		p := catalog.Placement{Node: n}
		if i := slices.IndexFunc(l.Wanted(), func(have catalog.Placement) bool { return have.Node == n && !have.Witness }); i >= 0 {
			p.Pool = l.Wanted()[i].Pool
		}
		if slices.Contains(added, n) {
			p.Pool = c.Pool
		}
		out = append(out, p)
	}
	switch {
	case len(data)%2 == 1 && c.Witness != "":
		return nil, fmt.Errorf("%w: %d copies need no witness", ErrImpossible, len(data))
	case len(data)%2 == 1:
		return out, nil
	}
	if voter, err = voterFor(m, up, l, c, data, voter); err != nil {
		return nil, err
	}
	return append(out, catalog.Placement{Node: voter, Witness: true}), nil
}

// newcomers returns the nodes that are to have a copy and have none.
func newcomers(m *catalog.Model, up map[string]Node, l catalog.LUN, c Change, data []string) (added []string, err error) {
	r := Request{Bytes: c.Bytes, Class: l.WantedClass()}
	fit, unfit := candidates(m, up, r)
	load := loads(m)
	for _, n := range c.Add {
		if n == "" {
			continue
		}
		if slices.Contains(data, n) {
			return nil, fmt.Errorf("%w: node %q has a copy of LUN %q already", ErrImpossible, n, l.Name)
		}
		// One that is about to leave may stay: what it holds is there.
		if !l.HasCopyOn(n) {
			if _, err := named(m, Request{Nodes: []string{n}}, fit, unfit); err != nil {
				return nil, err
			}
		}
		added = append(added, n)
	}
	for _, n := range c.Add {
		if n != "" {
			continue
		}
		free := slices.DeleteFunc(slices.Clone(fit), func(n string) bool {
			_, holds := l.ReplicaOn(n)
			return holds || slices.Contains(added, n)
		})
		if len(free) == 0 {
			return nil, fmt.Errorf("%w: no data node without a replica of LUN %q can take a copy%s", ErrImpossible, l.Name, because(unfit))
		}
		added = append(added, slices.MinFunc(free, func(a, b string) int {
			return cmp.Or(cmp.Compare(load[a].replicas, load[b].replicas), cmp.Compare(up[b].FreeBytes[r.Class], up[a].FreeBytes[r.Class]), cmp.Compare(a, b))
		}))
	}
	return added, nil
}

// voterFor returns the node to be the witness: the one that is named, or the one there is, or one that suits and holds nothing of the LUN.
func voterFor(m *catalog.Model, up map[string]Node, l catalog.LUN, c Change, data []string, present string) (string, error) {
	switch {
	case c.Witness != "" && slices.Contains(data, c.Witness):
		return "", fmt.Errorf("%w: node %q is to have a copy of LUN %q and cannot be its witness as well", ErrImpossible, c.Witness, l.Name)
	case c.Witness != "":
		if _, ok := m.Nodes[c.Witness]; !ok {
			return "", fmt.Errorf("%w: there is no node %q in the cluster", ErrImpossible, c.Witness)
		}
		return c.Witness, nil
	case present != "" && !slices.Contains(data, present):
		return present, nil
	}
	// Better not a node that has a copy, which would have to go first.
	others := maps.Clone(up)
	for _, r := range l.Replicas {
		if !slices.Contains(data, r.Node) && !r.Witness {
			delete(others, r.Node)
		}
	}
	if n, err := witness(m, others, data, loads(m)); err == nil && !slices.Contains(c.Remove, n) {
		return n, nil
	}
	return witness(m, up, data, loads(m))
}
