package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"sanctuary/blockstore"
	"sanctuary/node/api"
	"sanctuary/node/catalog"
	"sanctuary/node/config"
	"sanctuary/node/pools"
)

// pooled is a replica in a pool.
type pooled struct {
	lun, replica string // IDs
	path         string // its directory; empty in memory
}

// inPools returns what is in each pool, by its name, in order.
func (s *replicas) inPools() (map[string][]pooled, error) {
	out := map[string][]pooled{}
	s.mu.Lock()
	for _, m := range s.memory {
		out[m.pool.Name] = append(out[m.pool.Name], pooled{lun: m.lun, replica: m.id})
	}
	s.mu.Unlock()
	var unread error // it may be in any pool
	err := s.eachOnDisk(func(path string, r replicaFile, err error) {
		unread = errors.Join(unread, err)
		if name := r.pool(); err == nil && name != "" {
			out[name] = append(out[name], pooled{r.LUN, r.Replica, path})
		}
	})
	err = errors.Join(err, unread)
	for _, list := range out {
		slices.SortFunc(list, func(a, b pooled) int { return cmp.Or(cmp.Compare(a.lun, b.lun), cmp.Compare(a.replica, b.replica)) })
	}
	return out, err
}

// lunName returns what a LUN is called, its ID if the catalog does not know it.
func (n *Node) lunName(id string) string { return cmp.Or(n.catalog.Model().LUNs[id].Name, id) }

// Pools implements api.Service.
func (s service) Pools(context.Context) ([]api.Pool, error) {
	in, err := s.n.replicas.inPools()
	if err != nil {
		return nil, fmt.Errorf("what is in the pools of node %q cannot be told: %w", s.n.cfg.Node, err)
	}
	out := []api.Pool{}
	for _, p := range s.n.pools.List() {
		out = append(out, s.pool(p, in[p.Name]))
	}
	return out, nil
}

func (s service) pool(p *pools.Pool, in []pooled) api.Pool {
	u := p.Usage()
	out := api.Pool{
		Node: s.n.cfg.Node, Name: p.Name, ID: p.ID, Media: string(p.Media), Path: p.Path, Class: string(p.Class), ClassBecause: p.ClassWhy,
		CapacityBytes: u.CapacityBytes, AllocatedBytes: u.AllocatedBytes, FreeBytes: u.FreeBytes(), State: api.PoolOK, Configured: p.Configured, Sparse: p.Sparse(),
		Replicas: []api.PoolReplica{},
	}
	if err := p.Err(); err != nil {
		out.State, out.Reason = api.PoolFailed, err.Error()
	}
	if !p.Opened() {
		out.AllocatedBytes = 0 // not known
	}
	for _, r := range in {
		out.Replicas = append(out.Replicas, api.PoolReplica{LUN: s.n.lunName(r.lun), LUNID: r.lun, Replica: r.replica})
	}
	return out
}

// AddPool implements api.Service.
func (s service) AddPool(_ context.Context, spec api.PoolSpec) (api.Pool, error) {
	if s.n.cfg.Kind != config.KindData {
		return api.Pool{}, api.Invalid("Name a data node.", "node %q is a witness and holds no data", s.n.cfg.Node)
	}
	p, err := s.n.pools.Add(pools.Spec{
		ID: spec.ID, Name: spec.Name, Media: blockstore.Media(spec.Media), Path: spec.Path, CapacityBytes: spec.CapacityBytes,
		Class: catalog.Class(spec.Class), Sparse: spec.Sparse, Force: spec.Force,
	})
	if err != nil {
		return api.Pool{}, poolProblem(err)
	}
	s.n.poolsChanged()
	return s.pool(p, nil), nil
}

// RemovePool implements api.Service.
func (s service) RemovePool(_ context.Context, name string, how api.PoolRemoval) error {
	inUse := func() ([]string, error) {
		in, err := s.n.replicas.inPools()
		if err != nil {
			return nil, err
		}
		if how.Lost {
			return nil, s.giveUp(name, in[name])
		}
		var names []string
		for _, r := range in[name] {
			names = append(names, fmt.Sprintf("%s of LUN %s", r.replica, s.n.lunName(r.lun)))
		}
		return names, nil
	}
	if err := s.n.pools.Remove(name, pools.Removal{Wipe: how.Wipe, InUse: inUse}); err != nil {
		return poolProblem(err)
	}
	s.n.poolsChanged()
	return nil
}

// giveUp forgets the replicas in a pool whose medium is lost, so that the reconciler asks for new ones: their votes and
// acknowledgements are forgotten with their IDs.
func (s service) giveUp(name string, in []pooled) error {
	p, ok := s.n.pools.Get(name)
	if !ok || p.Opened() {
		return api.Conflict("If its disk has failed, restart the node, and repeat this once pool show says failed.",
			"pool %q of node %q was opened when the node started, and is not lost", name, s.n.cfg.Node)
	}
	for _, r := range in {
		s.n.log.Warn("a replica is given up with its pool; it comes back as a new one", "lun", s.n.lunName(r.lun), "replica", r.replica, "pool", name)
		if err := s.n.replicas.forget(r.path, r.lun, r.replica); err != nil {
			return err
		}
	}
	return nil
}

// poolsChanged lets everybody know at once what room there is.
func (n *Node) poolsChanged() {
	if err := n.members().Update(n.meta(n.catalog.Model().Nodes[n.cfg.Node].PortGroup)); err != nil {
		n.log.Warn("gossip does not carry this node's state yet", "error", err)
	}
	n.reconciler.Wake()
}

// poolProblem turns the pools' refusals into what a client understands.
func poolProblem(err error) error {
	var refusal *pools.Refusal
	switch {
	case !errors.As(err, &refusal):
		return err
	case refusal.Missing:
		return api.NotFound("%s", refusal.What)
	case refusal.Conflict:
		return api.Conflict(refusal.Next, "%s", refusal.What)
	}
	return api.Invalid(refusal.Next, "%s", refusal.What)
}

// rottedFor is how long an alert tells of what had rotted when a pool was opened.
const rottedFor = 24 * time.Hour

// poolAlerts are the pools that cannot be used, those that run full, and those whose disk has changed what was written.
func (s service) poolAlerts() []api.Alert {
	var out []api.Alert
	for _, p := range s.n.pools.List() {
		if n, since := p.Rotted(); n > 0 && time.Since(since) < rottedFor {
			out = append(out, api.Alert{
				Severity: api.SeverityWarning, Subject: "node/" + s.n.cfg.Node,
				What: fmt.Sprintf("%d page(s) of the metadata of pool %s of node %s (%s) were damaged when it was opened", n, p.Name, s.n.cfg.Node, p.Where()),
				Data: "Nothing is lost: there was another copy of each, and they are written anew.",
				Next: "Look at the disk's health: it has changed what was written, and will do it again. The alert ends after a day.",
			})
		}
		err := p.Err()
		if err == nil {
			if a, tight := roomAlert(s.n.cfg.Node, p.Name, p.Where(), p.Usage()); tight {
				out = append(out, a)
			}
			continue
		}
		a := api.Alert{
			Severity: api.SeverityCritical, Subject: "node/" + s.n.cfg.Node,
			What: fmt.Sprintf("Pool %s of node %s (%s) cannot be used: %v", p.Name, s.n.cfg.Node, p.Where(), err),
			Data: "Its replicas are out of service, and kept as they are; their LUNs go on from their other copies.",
			Next: "Bring the disk back and restart the node. If it is lost for good: sanctuary pool remove " + p.Name + " --node " + s.n.cfg.Node + " --lost.",
		}
		if p.Configured {
			a.Next = "Bring the disk back and restart the node. If it is lost for good: \"A failed disk\" in docs/OPERATING.md."
		}
		out = append(out, a)
	}
	return out
}
