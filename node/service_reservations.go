package node

import (
	"context"

	"sanctuary/node/api"
)

// Reservations implements api.Service.
func (s service) Reservations(_ context.Context, ref string) (api.Reservations, error) {
	m, err := s.model()
	if err != nil {
		return api.Reservations{}, err
	}
	l, err := find(m, ref)
	if err != nil {
		return api.Reservations{}, err
	}
	return api.Reservations{}, api.Unavailable("node %q knows nothing of the reservations of LUN %q", s.n.cfg.Node, l.Name)
}

// PurgeReservations implements api.Service.
func (s service) PurgeReservations(_ context.Context, ref string, _ api.ReservationPurge) (int, error) {
	m, err := s.model()
	if err != nil {
		return 0, err
	}
	l, err := find(m, ref)
	if err != nil {
		return 0, err
	}
	return 0, api.NoOwner("node %q does not serve LUN %q", s.n.cfg.Node, l.Name)
}
