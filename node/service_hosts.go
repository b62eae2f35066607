package node

import (
	"context"

	"sanctuary/blockstore/block"
	"sanctuary/node/api"
	"sanctuary/node/catalog"
)

// Hosts implements api.Service.
func (s service) Hosts(context.Context) ([]api.Host, error) {
	m, err := s.model()
	if err != nil {
		return nil, err
	}
	out := make([]api.Host, 0, len(m.Hosts))
	for _, name := range m.HostNames() {
		h := m.Hosts[name]
		v := api.Host{Name: name, Target: m.TargetOf(name), Initiators: h.Initiators, SinglePath: h.SinglePath, LUNs: []api.HostLUN{}}
		if h.Initiators == nil {
			v.Initiators = []string{}
		}
		if h.CHAP != nil {
			v.CHAP = &api.HostCHAP{User: h.CHAP.User, MutualUser: h.CHAP.MutualUser}
		}
		for _, l := range m.LUNMap(name) {
			v.LUNs = append(v.LUNs, api.HostLUN{Number: l.Number, LUN: l.LUN.Name, ID: l.LUN.ID})
		}
		out = append(out, v)
	}
	return out, nil
}

// lunAccess is a LUN's access as the API shows it.
func lunAccess(l catalog.LUN) api.LUNAccess {
	out := api.LUNAccess{Open: l.IsOpen(), Hosts: []api.LUNGrant{}}
	if l.Access != nil {
		out.SinglePath = l.Access.SinglePath
		for _, g := range l.Access.Grants {
			out.Hosts = append(out.Hosts, api.LUNGrant{Host: g.Host, Number: g.Number})
		}
	}
	return out
}

// newAccess is the access a request to create a LUN asks for.
func newAccess(spec api.LUNSpec) *catalog.NewAccess {
	return &catalog.NewAccess{Open: spec.Open, SinglePath: spec.SinglePath, Hosts: spec.Hosts}
}

// nodePortals are the portals a node has registered.
func nodePortals(n catalog.Node) []api.NodePortal {
	var out []api.NodePortal
	for _, p := range n.Portals {
		out = append(out, api.NodePortal{Address: p.Address, Group: p.Group, Tag: n.PortID(p.Group)})
	}
	return out
}

// SetHost implements api.Service.
func (s service) SetHost(ctx context.Context, name string, spec api.HostSpec, create bool) error {
	h := catalog.Host{Name: name, Initiators: spec.Initiators, SinglePath: spec.SinglePath}
	if c := spec.CHAP; c != nil {
		h.CHAP = &catalog.CHAP{
			User: c.User, Secret: catalog.Secret(c.Secret), MutualUser: c.MutualUser, MutualSecret: catalog.Secret(c.MutualSecret),
		}
	}
	return s.propose(ctx, &catalog.SetHost{Host: h, Create: create})
}

// RemoveHost implements api.Service.
func (s service) RemoveHost(ctx context.Context, name string, force bool) error {
	return s.propose(ctx, &catalog.RemoveHost{Name: name, Force: force})
}

// GrantLUN implements api.Service.
func (s service) GrantLUN(ctx context.Context, ref, host string, number *uint16) error {
	return s.change(ctx, ref, func(l catalog.LUN) catalog.Change { return &catalog.GrantLUN{LUN: l.ID, Host: host, Number: number} })
}

// RevokeLUN implements api.Service.
func (s service) RevokeLUN(ctx context.Context, ref, host string) error {
	return s.change(ctx, ref, func(l catalog.LUN) catalog.Change { return &catalog.RevokeLUN{LUN: l.ID, Host: host} })
}

// OpenLUN implements api.Service.
func (s service) OpenLUN(ctx context.Context, ref string, access api.LUNOpen) error {
	return s.change(ctx, ref, func(l catalog.LUN) catalog.Change {
		return &catalog.SetOpen{LUN: l.ID, Open: access.Open, SinglePath: access.SinglePath}
	})
}

// ChangeLUN implements api.Service.
func (s service) ChangeLUN(ctx context.Context, ref string, change api.LUNChange) error {
	if size := change.SizeBytes; size != nil {
		if *size <= 0 || *size%block.Size != 0 {
			return api.Invalid("Round it up.", "size of %d bytes: use a multiple of %d", *size, block.Size)
		}
		if err := s.change(ctx, ref, func(l catalog.LUN) catalog.Change {
			return &catalog.ResizeLUN{LUN: l.ID, Capacity: block.CountOf(*size)}
		}); err != nil {
			return err
		}
	}
	if on := change.ZeroDetection; on != nil {
		if err := s.change(ctx, ref, func(l catalog.LUN) catalog.Change {
			if l.ZeroDetection == *on {
				return nil // a node with an older program would stop at it
			}
			return &catalog.SetZeroDetection{LUN: l.ID, On: *on}
		}); err != nil {
			return err
		}
	}
	if change.NonOptimizedPaths == nil {
		return nil
	}
	return s.change(ctx, ref, func(l catalog.LUN) catalog.Change {
		return &catalog.SetNonOptimized{LUN: l.ID, On: *change.NonOptimizedPaths}
	})
}

func (s service) propose(ctx context.Context, c catalog.Change) error {
	_, err := s.n.catalog.Propose(ctx, c)
	return problem(err)
}

// change proposes a change of the LUN that ref names, by its ID: the name may be given to another one meanwhile. nil: it is as it is to be.
func (s service) change(ctx context.Context, ref string, of func(l catalog.LUN) catalog.Change) error {
	m, err := s.n.catalog.Barrier(ctx)
	if err != nil {
		return problem(err)
	}
	l, err := find(m, ref)
	if err != nil {
		return err
	}
	c := of(l)
	if c == nil {
		return nil
	}
	return s.propose(ctx, c)
}
