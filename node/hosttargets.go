package node

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"sanctuary/node/catalog"
	"sanctuary/target/scsi"
)

// hostTargets are the hosts' own targets on this node. A host has one here while a LUN granted to it can be served here; its
// units are the same as those of the LUNs' own targets, so that a reset or a reservation is the same through both.
type hostTargets struct {
	following sync.Mutex // serializes follow, which waits for commands; never taken with mu held
	mu        sync.Mutex
	targets   map[string]*hostTarget
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

// follow makes the targets what the catalog says, of the units that can be served here (by LUN ID). It looks at both when its turn has
// come: of several that are called at once, the last has the newest.
func (h *hostTargets) follow(now func() (*catalog.Model, map[string]*scsi.Unit)) (err error) {
	h.following.Lock()
	defer h.following.Unlock()
	m, units := now()
	h.mu.Lock()
	gone := maps.Clone(h.targets) // what is wanted is taken out
	h.mu.Unlock()
	for _, name := range m.HostNames() {
		want := map[uint16]*scsi.Unit{}
		for _, mapped := range m.LUNMap(name) {
			if u := units[mapped.LUN.ID]; u != nil {
				want[mapped.Number] = u
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
		if want[number] != u {
			err = errors.Join(err, t.target.Remove(ctx, number))
			delete(t.units, number)
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
