package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
	l := r.current(m)
	idle := scsi.Standby
	if l.NonOptimized {
		idle = scsi.ActiveNonOptimized
	}
	seen := map[string]bool{} // a node whose copy changes its pool has two
	for _, rep := range l.Replicas {
		node := m.Nodes[rep.Node]
		if rep.Witness || node.PortGroup == 0 || seen[rep.Node] {
			continue
		}
		seen[rep.Node] = true
		g := scsi.PortGroup{ID: node.PortGroup, State: idle, Ports: targetPorts(node)}
		switch {
		case s.Failed != nil && rep.Node == self, rep.Node != self && r.group.IsOut(rep.Node): // every node says the same of it
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

// current is the LUN as the catalog has it now: its copies change while one of them runs. As it was when this one started if it is deleted.
func (r *running) current(m *catalog.Model) catalog.LUN {
	if l, ok := m.LUNs[r.lun.ID]; ok {
		return l
	}
	return r.lun
}

// targetPorts returns the relative target port identifiers of a node: of the LUNs' own targets, and of the hosts'.
func targetPorts(node catalog.Node) (ids []uint16) {
	for _, index := range node.PortGroups() {
		ids = append(ids, node.PortID(index), node.PortID(index)|catalog.HostPorts)
	}
	return ids
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
		if a.Groups[i].ID != b.Groups[i].ID || a.Groups[i].State != b.Groups[i].State || !slices.Equal(a.Groups[i].Ports, b.Groups[i].Ports) {
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
		for _, r := range run.current(m).Replicas {
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
				return n.handOver(ctx, run, r.Node)
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
	return nil, n.handOver(ctx, run, node)
}

// handOver moves the LUN to another node unless it has been moved here less than holdDown ago.
func (n *Node) handOver(ctx context.Context, run *running, node string) error {
	st := run.group.Status()
	if !st.Serving {
		return block.ErrNotOwner
	}
	if since := time.Since(st.Since); st.Handed && since < holdDown {
		return fmt.Errorf("LUN %q was moved here %v ago and stays for %v", run.lun.Name, since.Round(time.Millisecond), holdDown)
	}
	to, ok := run.current(n.catalog.Model()).ReplicaOn(node)
	if !ok {
		return fmt.Errorf("node %q holds no replica of LUN %q", node, run.lun.Name)
	}
	return run.group.Transfer(ctx, raft.ServerID(to.ID))
}

// spaceOf implements scsi.UnitConfig.Space: initiators are warned before the pool is full.
func (n *Node) spaceOf(run *running) func() scsi.Space {
	return func() scsi.Space {
		return scsi.Space{
			Used: run.volume.Usage().AllocatedBytes, Available: run.group.Available(),
			WarnBelow: warnBelow(run.pool.Usage()),
		}
	}
}
