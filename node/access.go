package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
	"sanctuary/node/catalog"
	"sanctuary/target/scsi"
)

// computeAccess returns a LUN's port groups: the owner's is active; the others stand by, or serve by forwarding if the LUN is
// set so; while nobody owns it, all are in transition and commands wait a moment.
func (r *running) computeAccess(m *catalog.Model, self string) scsi.Access {
	s := r.group.Status()
	a := scsi.Access{Local: m.Nodes[self].PortGroup, LocalPort: m.Nodes[self].PortGroup}
	idle := scsi.Standby
	if m.LUNs[r.lun.ID].NonOptimized {
		idle = scsi.ActiveNonOptimized
	}
	for _, rep := range r.lun.Replicas {
		node := m.Nodes[rep.Node]
		if rep.Witness || node.PortGroup == 0 {
			continue
		}
		g := scsi.PortGroup{ID: node.PortGroup, State: idle}
		for _, index := range node.PortGroups() {
			g.Ports = append(g.Ports, node.PortID(index), node.PortID(index)|catalog.HostPorts)
		}
		switch {
		case s.Failed != nil && rep.Node == self:
			g.State = scsi.Unavailable
		case s.Owner.Node == "" || s.Owner.Node == self && !s.Serving:
			g.State = scsi.Transitioning
		case s.Owner.Node == rep.Node:
			g.State = scsi.ActiveOptimized
		}
		a.Groups = append(a.Groups, g)
	}
	return a
}

func (r *running) accessChanged() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// refresh recomputes a LUN's access states; a change raises the generation, of which every initiator is told. Initiators
// with a single path do not listen to that: when it is known where the LUN has gone, the portal asks them to log in again, and
// they are redirected.
func (s *replicas) refresh(run *running) {
	run.mu.Lock()
	a := run.computeAccess(s.n.catalog.Model(), s.n.cfg.Node)
	old := run.access.Load()
	if old != nil {
		a.Generation = old.Generation
		if sameAccess(*old, a) {
			run.mu.Unlock()
			return
		}
		a.Generation++
	}
	run.access.Store(&a)
	close(run.changed)
	run.changed = make(chan struct{})
	run.mu.Unlock()
	if old != nil {
		s.n.recheck()
	}
}

func sameAccess(a, b scsi.Access) bool {
	if len(a.Groups) != len(b.Groups) || a.Local != b.Local {
		return false
	}
	for i := range a.Groups {
		if a.Groups[i].ID != b.Groups[i].ID || a.Groups[i].State != b.Groups[i].State {
			return false
		}
	}
	return true
}

// methodMove asks a LUN's owner to hand it to another node: LUN ID, newline, node.
const methodMove = "lun.move"

// holdDown is how long a LUN stays where an initiator's SET TARGET PORT GROUPS put it, so that two hosts that prefer
// different paths do not throw it to and fro. Operators are not held down, and the loss of the owner is no move.
const holdDown = 10 * time.Second

// setPreferred implements scsi.UnitConfig.SetPreferred: an initiator makes a node's port group the optimized one.
func (n *Node) setPreferred(run *running) func(ctx context.Context, portGroup uint16) error {
	return func(ctx context.Context, portGroup uint16) error {
		m := n.catalog.Model()
		for _, r := range run.lun.Replicas {
			if r.Witness || m.Nodes[r.Node].PortGroup != portGroup {
				continue
			}
			owner := run.group.Status().Owner.Node
			switch owner {
			case r.Node:
				return nil
			case "":
				return block.ErrUnavailable
			case n.cfg.Node:
				return run.handOver(ctx, r.Node)
			}
			_, err := n.mux.Call(ctx, owner, methodMove, []byte(run.lun.ID+"\n"+r.Node))
			return err
		}
		return fmt.Errorf("port group %d has no copy of LUN %q", portGroup, run.lun.Name)
	}
}

// serveMove is the owner's side of setPreferred.
func (n *Node) serveMove(ctx context.Context, _ string, req []byte) ([]byte, error) {
	lun, node, _ := strings.Cut(string(req), "\n")
	run := n.replicas.get(lun)
	if run == nil {
		return nil, errors.New("no replica of this LUN runs here")
	}
	return nil, run.handOver(ctx, node)
}

// handOver moves the LUN to another node unless it has been here for less than holdDown.
func (r *running) handOver(ctx context.Context, node string) error {
	st := r.group.Status()
	if !st.Serving {
		return block.ErrNotOwner
	}
	if since := time.Since(st.Since); since < holdDown {
		return fmt.Errorf("LUN %q came here %v ago and stays for %v", r.lun.Name, since.Round(time.Millisecond), holdDown)
	}
	to, ok := r.lun.ReplicaOn(node)
	if !ok {
		return fmt.Errorf("node %q holds no replica of LUN %q", node, r.lun.Name)
	}
	return r.group.Transfer(ctx, raft.ServerID(to.ID))
}

// spaceOf implements scsi.UnitConfig.Space: initiators are warned before the pool is full.
func (n *Node) spaceOf(run *running) func() scsi.Space {
	return func() scsi.Space {
		return scsi.Space{
			Used: run.volume.Usage().AllocatedBytes, Available: run.group.Available(),
			WarnBelow: run.pool.Usage().CapacityBytes / warnFraction,
		}
	}
}

// warnFraction of a pool is left when initiators are warned, unless they have chosen otherwise.
const warnFraction = 10
