package node

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/node/catalog"
	"sanctuary/target/scsi"
)

// hostTargets are the hosts' own targets on this node. A host has one here while a LUN granted to it can be served here; its
// units are the same as those of the LUNs' own targets, so that a reset or a reservation is the same through both. Of its other LUNs, those
// with a copy here have a unit that is unavailable (Node.absentUnit); a target that is there stays while it has but those, for the sessions in it.
type hostTargets struct {
	following sync.Mutex // serializes follow, which waits for commands; never taken with mu held
	mu        sync.Mutex
	targets   map[string]*hostTarget
	absent    map[string]absentLUN // by LUN ID; follow's
}

// absentLUN is the unit that stands for a LUN whose copy here does not run.
type absentLUN struct {
	geometry block.Geometry // it was made for
	unit     *scsi.Unit
}

type hostTarget struct {
	target *scsi.Target
	units  map[uint16]*scsi.Unit // follow's
}

// removeWait bounds how long taking a LUN away waits for its last commands; they are aborted, so it is short.
const removeWait = 10 * time.Second

func (h *hostTargets) get(host string) *scsi.Target {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := h.targets[host]; t != nil {
		return t.target
	}
	return nil
}

// hasSession says whether a session is in the target of a host that is granted the LUN, whichever unit stands for it there: while a copy
// is started or stopped, that is not the replica's.
func (h *hostTargets) hasSession(m *catalog.Model, lun string, session uint64) bool {
	access := m.LUNs[lun].Access
	return access != nil && slices.ContainsFunc(access.Grants, func(g catalog.Grant) bool {
		t := h.get(g.Host)
		return t != nil && t.HasSession(session)
	})
}

// follow makes the targets what the catalog says, of the units that can be served on n (by LUN ID). It looks at both when its turn has
// come: of several that are called at once, the last has the newest.
func (h *hostTargets) follow(n *Node, now func() (*catalog.Model, map[string]*scsi.Unit)) (err error) {
	h.following.Lock()
	defer h.following.Unlock()
	m, units := now()
	h.mu.Lock()
	gone := maps.Clone(h.targets) // what is wanted is taken out
	h.mu.Unlock()
	was := h.absent
	h.absent = map[string]absentLUN{} // those that are still needed
	for _, name := range m.HostNames() {
		mapped := m.LUNMap(name)
		if gone[name] == nil && !slices.ContainsFunc(mapped, func(x catalog.MappedLUN) bool { return units[x.LUN.ID] != nil }) {
			continue
		}
		want := map[uint16]*scsi.Unit{}
		for _, x := range mapped {
			u := units[x.LUN.ID]
			if u == nil && x.LUN.HasCopyOn(n.cfg.Node) {
				var uerr error
				u, uerr = h.standIn(n, m, x.LUN, was[x.LUN.ID])
				err = errors.Join(err, uerr)
			}
			if u != nil {
				want[x.Number] = u
			}
		}
		if len(want) == 0 {
			continue
		}
		t := gone[name]
		if t == nil {
			t = &hostTarget{target: scsi.NewTarget(scsi.TargetConfig{Name: m.TargetOf(name), Ports: catalog.HostPorts}), units: map[uint16]*scsi.Unit{}}
		}
		err = errors.Join(err, t.follow(want))
		h.put(name, t) // with its LUNs: an initiator must not find it empty
		delete(gone, name)
	}
	for name, t := range gone {
		h.put(name, nil) // the portal ends its sessions when it asks again
		err = errors.Join(err, t.follow(nil))
	}
	return err
}

// standIn returns the unit that stands for a LUN whose copy here does not run: the same in all targets, and the one there was before if that still fits.
func (h *hostTargets) standIn(n *Node, m *catalog.Model, l catalog.LUN, was absentLUN) (*scsi.Unit, error) {
	if now, ok := h.absent[l.ID]; ok {
		return now.unit, nil
	}
	if was.unit == nil || was.geometry != l.Geometry {
		u, err := n.absentUnit(m, l)
		if err != nil {
			return nil, err
		}
		was = absentLUN{l.Geometry, u}
	}
	h.absent[l.ID] = was
	return was.unit, nil
}

// put makes a target known, or forgets it: nil.
func (h *hostTargets) put(host string, t *hostTarget) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case t == nil:
		delete(h.targets, host)
	case h.targets == nil:
		h.targets = map[string]*hostTarget{host: t}
	default:
		h.targets[host] = t
	}
}

func (t *hostTarget) follow(want map[uint16]*scsi.Unit) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), removeWait)
	defer cancel()
	for number, u := range t.units {
		switch now := want[number]; now {
		case u:
		case nil:
			err = errors.Join(err, t.target.Remove(ctx, number))
			delete(t.units, number)
		default:
			err = errors.Join(err, t.target.Replace(ctx, number, now))
			t.units[number] = now
		}
	}
	for number, u := range want {
		if t.units[number] == nil {
			if aerr := t.target.Add(number, u); aerr != nil {
				err = errors.Join(err, aerr)
				continue
			}
			t.units[number] = u
		}
	}
	return err
}
