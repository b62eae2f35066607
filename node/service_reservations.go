package node

import (
	"context"
	"encoding/hex"
	"fmt"

	"sanctuary/node/api"
	"sanctuary/target/reserve"
	"sanctuary/target/scsi"
)

// unitOf returns the LUN's replica that runs here, and a problem if none with data does.
func (s service) unitOf(ref string) (*running, error) {
	m, err := s.model()
	if err != nil {
		return nil, err
	}
	l, err := find(m, ref)
	if err != nil {
		return nil, err
	}
	run := s.n.replicas.get(l.ID)
	if run == nil || run.unit == nil {
		return nil, api.Unavailable("node %q holds no copy of LUN %q and knows nothing of its reservations: ask a node that does", s.n.cfg.Node, l.Name)
	}
	return run, nil
}

// Reservations implements api.Service.
func (s service) Reservations(_ context.Context, ref string) (api.Reservations, error) {
	run, err := s.unitOf(ref)
	if err != nil {
		return api.Reservations{}, err
	}
	r, err := run.unit.Reservations()
	if err != nil {
		return api.Reservations{}, fmt.Errorf("the reservations of LUN %q cannot be read: %w", run.lun.Name, err)
	}
	t := &r.Table
	out := api.Reservations{Generation: t.Generation(), Registrations: []api.Registration{}}
	if t.Type() != reserve.None {
		out.Type, out.AllHold = t.Type().String(), t.Type().AllRegistrants()
	}
	for _, reg := range t.Registrations() {
		out.Registrations = append(out.Registrations, api.Registration{
			Key: fmt.Sprintf("%016x", reg.Key), Initiator: reg.Nexus.Initiator, ISID: hex.EncodeToString(reg.Nexus.ISID[:]),
			Port: reg.Nexus.Port, Holder: t.Holds(reg.Nexus),
		})
	}
	if l := t.Legacy(); l != nil {
		out.Reserved = &api.ReservedBy{Initiator: l.By.Initiator, ISID: hex.EncodeToString(l.By.ISID[:]), Port: l.By.Port}
	}
	return out, nil
}

// PurgeReservations implements api.Service.
func (s service) PurgeReservations(ctx context.Context, ref string, what api.ReservationPurge) (int, error) {
	run, err := s.unitOf(ref)
	if err != nil {
		return 0, err
	}
	p := scsi.Purge{What: scsi.PurgeAll}
	switch {
	case what.Key != nil:
		p = scsi.Purge{What: scsi.PurgeKey, Key: *what.Key}
	case what.Initiator != "":
		p = scsi.Purge{What: scsi.PurgeInitiator, Initiator: what.Initiator}
	}
	n, err := run.unit.PurgeReservations(ctx, p)
	if err != nil {
		return n, api.Unavailable("the reservations of LUN %q may not have been removed: %v", run.lun.Name, err)
	}
	s.n.log.Warn("an operator removed reservations", "lun", run.lun.Name, "removed", n, "initiator", what.Initiator, "all", what.All)
	return n, nil
}
