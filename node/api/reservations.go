package api

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"sanctuary/node/catalog"
)

// Reservations are a LUN's persistent reservations (SPC-4 §5.13): the same through every node.
type Reservations struct {
	LUN           string         `json:"lun" doc:"Name of the LUN"`
	Generation    uint32         `json:"generation" doc:"PRGENERATION: rises with every change of registrations"`
	Type          string         `json:"type,omitempty" doc:"Type of the reservation that is held, in words; empty: none" example:"Write Exclusive, Registrants Only"`
	AllHold       bool           `json:"all_hold" doc:"Every registrant holds it (the two All Registrants types)"`
	Registrations []Registration `json:"registrations" nullable:"false"`
	// Reserved is the older kind, RESERVE(6), which ends with its session.
	Reserved    *ReservedBy `json:"reserved,omitempty" doc:"Who holds the LUN with RESERVE(6) or RESERVE(10)"`
	Unreachable []string    `json:"unreachable,omitempty" doc:"Nodes that did not answer: whether a registrant is logged in there is not known"`
	View        View        `json:"view" doc:"Whose knowledge this is"`
}

// Registration is one registered I_T nexus.
type Registration struct {
	Key       string `json:"key" doc:"Reservation key: 16 hex digits" example:"00000000abcd0001"`
	Initiator string `json:"initiator" doc:"Initiator name"`
	ISID      string `json:"isid" doc:"Initiator session ID (12 hex digits)"`
	Port      uint16 `json:"port" doc:"Relative target port identifier it registered through"`
	Node      string `json:"node,omitempty" doc:"Node of that port; empty: none has it any more"`
	Holder    bool   `json:"holder" doc:"Holds the reservation"`
	LoggedIn  bool   `json:"logged_in" doc:"It has a session now. A registration without one stays until somebody removes it"`
	Host      string `json:"host,omitempty" doc:"Host the initiator belongs to"`
}

// ReservedBy is the holder of a RESERVE(6) reservation.
type ReservedBy struct {
	Initiator string `json:"initiator"`
	ISID      string `json:"isid"`
	Port      uint16 `json:"port"`
}

// ReservationPurge says which registrations to remove: exactly one of the three.
type ReservationPurge struct {
	Key       *uint64 // every registration with this key, never 0
	Initiator string  // every registration of this initiator, in lower case
	All       bool    // all registrations and whatever reservation there is
}

// PurgeQuery is ReservationPurge as a request carries it. Exported only because huma needs it so.
type PurgeQuery struct {
	Key       string `query:"key" doc:"Every registration with this key: up to 16 hex digits, with or without 0x" example:"abcd0001"`
	Initiator string `query:"initiator" doc:"Every registration of this initiator"`
	All       bool   `query:"all" doc:"All registrations and the reservation, as PERSISTENT RESERVE OUT with CLEAR does; RESERVE(6) as well"`
}

func (q PurgeQuery) purge() (ReservationPurge, error) {
	ways := 0
	for _, given := range []bool{q.Key != "", q.Initiator != "", q.All} {
		if given {
			ways++
		}
	}
	p := ReservationPurge{Initiator: strings.ToLower(q.Initiator), All: q.All}
	if ways != 1 {
		return p, Invalid("Give one of them.", "say which registrations: key, initiator or all, and only one of these")
	}
	if q.Key != "" {
		k, err := strconv.ParseUint(strings.TrimPrefix(strings.ToLower(q.Key), "0x"), 16, 64)
		if err != nil || k == 0 {
			return p, Invalid("Copy it from the list of reservations.", "%q is no reservation key: up to 16 hex digits, and not 0", q.Key)
		}
		p.Key = &k
	}
	return p, nil
}

// Purged is what a purge removed.
type Purged struct {
	Removed int          `json:"removed" doc:"Registrations removed"`
	Left    Reservations `json:"left" doc:"What there is now"`
}

type purgeRequest struct {
	LUNRequest
	PurgeQuery
}

func (s *Server) registerReservations() {
	huma.Register(s.api, reads("get-reservations", "/v1/luns/{lun}/reservations", "Persistent reservations of a LUN, as its owner sees them", "luns"),
		s.getReservations)
	purge := changes("purge-reservations", http.MethodDelete, "/v1/luns/{lun}/reservations", "Remove persistent reservations of hosts that are gone", "luns",
		http.StatusOK, s.toOwner)
	purge.Description = "Give one of key, initiator and all. A cluster that still uses what is removed loses its protection against " +
		"two writers until it registers again: make sure that the initiators concerned are down."
	huma.Register(s.api, purge, s.purgeReservations)
}

func (s *Server) getReservations(ctx context.Context, in *LUNRequest) (*reply[Reservations], error) {
	r, err := s.reservations(ctx, in.LUN, in.localOnly())
	if err != nil {
		return nil, asProblem(err)
	}
	return &reply[Reservations]{r}, nil
}

// reservations returns what the LUN's owner says, or what this node knows with a note why.
func (s *Server) reservations(ctx context.Context, ref string, localOnly bool) (Reservations, error) {
	l, err := s.lookup(ctx, ref, localOnly)
	if err != nil {
		return Reservations{}, err
	}
	view := View{Node: s.svc.Name(), Source: SourceNode, AsOf: time.Now()}
	if l.Owner == s.svc.Name() {
		view.Source = SourceOwner
	} else if !localOnly {
		var theirs Reservations
		why := "no owner is known"
		if l.Owner != "" {
			err := s.ask(ctx, l.Owner, "/v1/luns/"+url.PathEscape(l.ID)+"/reservations", &theirs)
			if err == nil {
				return s.known(ctx, theirs)
			}
			why = err.Error()
		}
		view.Note = why + ". This is what node " + s.svc.Name() + " knows"
	}
	mine, err := s.svc.Reservations(ctx, l.ID)
	if err != nil {
		return Reservations{}, err
	}
	mine.LUN, mine.View, mine.Registrations = l.Name, view, orEmpty(mine.Registrations)
	if localOnly {
		return mine, nil
	}
	return s.known(ctx, mine)
}

// known adds what other parts of the API know about each registrant.
func (s *Server) known(ctx context.Context, r Reservations) (Reservations, error) {
	sessions, err := s.sessions(ctx, false)
	if err != nil {
		return r, err
	}
	nodes, err := s.svc.Nodes(ctx)
	if err != nil {
		return r, err
	}
	hosts, err := s.svc.Hosts(ctx)
	if err != nil {
		return r, err
	}
	r.Unreachable = sessions.Unreachable
	r.Registrations = slices.Clone(r.Registrations)
	for i := range r.Registrations {
		reg := &r.Registrations[i]
		for _, n := range nodes {
			if group, _ := catalog.PortGroupOf(reg.Port); n.PortGroup == group {
				reg.Node = n.Name
			}
		}
		reg.Host = hostOf(hosts, reg.Initiator)
		reg.LoggedIn = slices.ContainsFunc(sessions.Sessions, func(x Session) bool {
			return strings.EqualFold(x.Initiator, reg.Initiator) && x.ISID == reg.ISID && x.Port == reg.Port
		})
	}
	return r, nil
}

func hostOf(hosts []Host, initiator string) string {
	for _, h := range hosts {
		if slices.ContainsFunc(h.Initiators, func(i string) bool { return strings.EqualFold(i, initiator) }) {
			return h.Name
		}
	}
	return ""
}

func (s *Server) purgeReservations(ctx context.Context, in *purgeRequest) (*reply[Purged], error) {
	what, err := in.purge()
	if err != nil {
		return nil, err
	}
	n, err := s.svc.PurgeReservations(ctx, in.LUN, what)
	if err != nil {
		return nil, asProblem(err)
	}
	left, err := s.reservations(ctx, in.LUN, false)
	if err != nil {
		return nil, asProblem(err)
	}
	return &reply[Purged]{Purged{Removed: n, Left: left}}, nil
}
