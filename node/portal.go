package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"sanctuary/node/catalog"
	"sanctuary/node/config"
	"sanctuary/target"
)

// registration is what the catalog is told of this node.
func (n *Node) registration() *catalog.RegisterNode {
	c := &catalog.RegisterNode{Name: n.cfg.Node, ID: n.id.ID, Kind: catalog.Kind(n.cfg.Kind)}
	if n.cfg.Kind == config.KindData {
		for _, a := range n.cfg.Advertise.ISCSI {
			c.Portals = append(c.Portals, catalog.Portal{Address: a})
		}
	}
	return c
}

// openPortal begins to serve initiators. What it starts outlasts ctx, for the time in which the node leaves: until stop, and until the portal
// is closed.
func (n *Node) openPortal(ctx context.Context, self catalog.Node, serve func(string, func() error)) (stop func(), err error) {
	portal, err := target.New(target.Config{
		Directory: directory{n}, GroupOf: n.groupOf(self), Logger: n.log.With("component", "iscsi"),
		MemoryBytes: int64(n.cfg.ISCSI.Memory), Window: n.cfg.ISCSI.Window,
		MaxConnections: n.cfg.ISCSI.MaxConnections, MaxPerAddress: n.cfg.ISCSI.MaxPerAddress,
	})
	if err != nil {
		return nil, err
	}
	n.portal.Store(portal)
	ctx, stop = context.WithCancel(context.WithoutCancel(ctx))
	serve("sessions", func() error { return n.recheckSessions(ctx, portal) })
	for _, address := range n.cfg.Listen.ISCSI {
		l, err := net.Listen("tcp", address)
		if err != nil {
			stop()
			return nil, errors.Join(fmt.Errorf("listen.iscsi: %w", err), portal.Close())
		}
		serve("iscsi "+address, func() error { return portal.Serve(ctx, l) })
	}
	return stop, nil
}

// groupOf returns which of this node's portal groups an address of the machine is in. The subnets are those of when the node
// registered: the identifier of a target port must not change under its sessions. An address in a subnet in which the node
// has advertised no portal (it is reached through address translation) belongs to the first group.
func (n *Node) groupOf(self catalog.Node) func(netip.Addr) target.Group {
	groups, err := catalog.ParsePortalGroups(n.catalog.Model().Settings[catalog.SettingPortalGroups])
	if err != nil {
		n.log.Warn("the cluster's portal_groups cannot be read: all portals are in one group", "error", err)
	}
	mine := self.PortGroups()
	return func(local netip.Addr) target.Group {
		index := catalog.PortalGroup(groups, local.String())
		if !slices.Contains(mine, index) {
			index = mine[0]
		}
		id := self.PortID(index)
		return target.Group{Index: uint16(index), Tag: id, Port: id}
	}
}

// recheckWithin bounds how long one look at the sessions waits for the tasks of those it ended.
const recheckWithin = 10 * time.Second

// recheckSessions has the portal ask again about every session whenever n.recheck was called, until ctx ends: an initiator may
// have lost its right to a LUN, and one with a single path is sent on when the LUN has gone to another node.
func (n *Node) recheckSessions(ctx context.Context, portal *target.Portal) error {
	for {
		select {
		case <-n.rechecks:
		case <-ctx.Done():
			return nil
		}
		attempt, cancel := context.WithTimeout(ctx, recheckWithin)
		if err := portal.Recheck(attempt); err != nil && ctx.Err() == nil {
			n.log.Warn("the tasks of initiators that were cut off have not ended yet", "error", err)
		}
		cancel()
	}
}

// recheck asks for a look at the sessions, soon.
func (n *Node) recheck() {
	select {
	case n.rechecks <- struct{}{}:
	default: // one is due already, and has not begun
	}
}
