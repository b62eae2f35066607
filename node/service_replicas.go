package node

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"time"

	"sanctuary/node/api"
	"sanctuary/node/catalog"
	"sanctuary/node/placement"
)

// ChangeReplicas implements api.Service.
func (s service) ChangeReplicas(ctx context.Context, ref string, change api.ReplicaChange) (api.LUN, error) {
	model, err := s.n.catalog.Barrier(ctx)
	if err != nil {
		return api.LUN{}, problem(err)
	}
	l, err := find(model, ref)
	if err != nil {
		return api.LUN{}, err
	}
	l, err = s.changeReplicas(ctx, model, l, placement.Change{Add: change.Add, Remove: change.Remove, Pool: change.Pool, Witness: change.Witness})
	if err != nil {
		return api.LUN{}, err
	}
	return s.lun(s.n.catalog.Model(), l), nil
}

func (s service) changeReplicas(ctx context.Context, m *catalog.Model, l catalog.LUN, change placement.Change) (catalog.LUN, error) {
	if len(change.Add) > 0 {
		change.Bytes = s.n.takes(ctx, l)
	}
	places, err := placement.Apply(m, s.reachable(), l, change)
	if err != nil {
		return l, api.Invalid("Change the request, or add what is missing.", "%v", err)
	}
	wanted := &catalog.SetReplicas{LUN: l.ID, Replicas: places}
	for _, r := range l.Replicas {
		wanted.Was = append(wanted.Was, r.ID)
	}
	result, err := s.n.catalog.Propose(ctx, wanted)
	if err != nil {
		return l, problem(err)
	}
	return *result.LUN, nil
}

// methodTakes asks a node what its copy of a LUN takes in its pool: LUN ID → bytes, 8, big endian.
const methodTakes = "lun.takes"

// takes returns what a copy of the LUN takes now, in bytes, as a node that has a whole one says; if nobody can be asked, what it may come to take.
func (n *Node) takes(ctx context.Context, l catalog.LUN) int64 {
	for _, r := range l.Replicas {
		if r.Witness {
			continue
		}
		if r.Node == n.cfg.Node {
			if bytes, err := n.takesHere(l.ID); err == nil {
				return bytes
			}
			continue
		}
		within, cancel := context.WithTimeout(ctx, 2*time.Second)
		answer, err := n.mux.Call(within, r.Node, methodTakes, []byte(l.ID))
		cancel()
		if err == nil && len(answer) == 8 {
			return int64(binary.BigEndian.Uint64(answer))
		}
	}
	return l.Geometry.Capacity.Bytes()
}

func (n *Node) serveTakes(_ context.Context, _ string, lun []byte) ([]byte, error) {
	bytes, err := n.takesHere(string(lun))
	if err != nil {
		return nil, err
	}
	return binary.BigEndian.AppendUint64(nil, uint64(bytes)), nil
}

func (n *Node) takesHere(lun string) (int64, error) {
	run := n.replicas.get(lun)
	if run == nil || run.volume == nil {
		return 0, errors.New("no data replica of this LUN runs here")
	}
	if st := run.group.Status(); st.Rebuilding || st.Failed != nil {
		return 0, errors.New("the copy here is not whole")
	}
	return run.volume.Usage().AllocatedBytes, nil
}

// DrainNode implements api.Service.
func (s service) DrainNode(ctx context.Context, node string) (api.Drain, error) {
	model, err := s.n.catalog.Barrier(ctx)
	if err != nil {
		return api.Drain{}, problem(err)
	}
	if _, ok := model.Nodes[node]; !ok {
		return api.Drain{}, api.NotFound("there is no node %q in the cluster", node)
	}
	out := api.Drain{Node: node}
	luns := slices.SortedFunc(maps.Values(model.LUNs), func(a, b catalog.LUN) int { return cmp.Compare(a.Name, b.Name) })
	for _, l := range luns {
		i := slices.IndexFunc(l.Wanted(), func(p catalog.Placement) bool { return p.Node == node })
		if i < 0 {
			if _, leaves := l.ReplicaOn(node); leaves { // that was asked for before, and has yet to be done
				out.LUNs = append(out.LUNs, api.DrainLUN{LUN: l.Name, ID: l.ID})
			}
			continue
		}
		change := placement.Change{Remove: []string{node}}
		if !l.Wanted()[i].Witness {
			change.Add = []string{""}
		}
		moved := api.DrainLUN{LUN: l.Name, ID: l.ID}
		// Each with the newest catalog, so that all do not go to the node that was the emptiest at first.
		if _, err := s.changeReplicas(ctx, s.n.catalog.Model(), l, change); err != nil {
			moved.Error = err.Error()
		}
		out.LUNs = append(out.LUNs, moved)
	}
	return out, nil
}

// RemoveNode implements api.Service.
func (s service) RemoveNode(ctx context.Context, node string) error {
	if node == s.n.cfg.Node {
		return api.Conflict("Stop it first.", "node %q leads the catalog: it cannot be removed while it runs", node)
	}
	if _, alive := s.n.members().Lookup(node); alive {
		return api.Conflict("Stop it first; then wait until sanctuary node list says that it is not alive.", "node %q runs: it would come back", node)
	}
	_, err := s.n.catalog.Propose(ctx, &catalog.RemoveNode{Name: node})
	return problem(err)
}

// recoveriesView is a LUN's record of forced recoveries, as the API shows it.
func recoveriesView(l catalog.LUN) (out []api.RecoveryRecord) {
	for _, r := range l.Recoveries {
		out = append(out, api.RecoveryRecord{History: r.Epoch, Replica: r.Replica, At: r.Time().UTC(), Through: r.Through, By: r.By, Why: r.Why, Lost: r.Lost})
	}
	return out
}
