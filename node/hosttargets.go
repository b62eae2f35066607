package node

import (
	"context"
	"errors"
	"sync"
	"time"

	"sanctuary/node/catalog"
	"sanctuary/target/scsi"
)

// hostTargets are the hosts' own targets on this node. A host has one here while a LUN granted to it can be served here; its
// units are the same as those of the LUNs' own targets, so that a reset or a reservation is the same through both.
type hostTargets struct {
	mu      sync.Mutex // also serializes follow
	targets map[string]*hostTarget
}

type hostTarget struct {
	target *scsi.Target
	units  map[uint16]*scsi.Unit
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

// follow makes the targets what the catalog says, of the units that can be served here now (by LUN ID).
func (h *hostTargets) follow(m *catalog.Model, units map[string]*scsi.Unit) (err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.targets == nil {
		h.targets = map[string]*hostTarget{}
	}
	for _, name := range m.HostNames() {
		want := map[uint16]*scsi.Unit{}
		for _, mapped := range m.LUNMap(name) {
			if u := units[mapped.LUN.ID]; u != nil {
				want[mapped.Number] = u
			}
		}
		t := h.targets[name]
		switch {
		case t == nil && len(want) == 0:
			continue
		case t == nil:
			t = &hostTarget{target: scsi.NewTarget(scsi.TargetConfig{Name: m.TargetOf(name), Ports: catalog.HostPorts}), units: map[uint16]*scsi.Unit{}}
			h.targets[name] = t
		}
		err = errors.Join(err, t.follow(want))
		if len(want) == 0 {
			delete(h.targets, name) // the portal ends its sessions when it asks again
		}
	}
	for name, t := range h.targets {
		if _, ok := m.Hosts[name]; !ok {
			err = errors.Join(err, t.follow(nil))
			delete(h.targets, name)
		}
	}
	return err
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
