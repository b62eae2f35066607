package api

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// Kinds of targets.
const (
	TargetOfLUN  = "lun"  // one LUN, number 0
	TargetOfHost = "host" // all LUNs granted to a host, under their numbers
)

// Target is an iSCSI target as the whole cluster offers it.
type Target struct {
	Name     string         `json:"name" doc:"iSCSI name (IQN)"`
	Kind     string         `json:"kind" enum:"lun,host" doc:"lun: the target of one LUN, number 0; host: the target of one host, with all LUNs granted to it"`
	Host     string         `json:"host,omitempty" doc:"The host, for kind host"`
	Open     bool           `json:"open" doc:"Anyone may log in"`
	Hosts    []string       `json:"hosts" nullable:"false" doc:"Hosts that may log in"`
	LUNs     []TargetLUN    `json:"luns" nullable:"false" doc:"What it presents, by number"`
	Portals  []TargetPortal `json:"portals" nullable:"false" doc:"Where it can be reached, on every node that offers it"`
	Sessions []Session      `json:"sessions" nullable:"false" doc:"Who is logged in to it, on any node"`
}

// TargetLUN is a LUN as a target presents it.
type TargetLUN struct {
	Number uint16 `json:"number" doc:"Logical unit number"`
	Name   string `json:"name" doc:"Name of the LUN"`
	ID     string `json:"id" doc:"UUID of the LUN"`
	NAA    string `json:"naa" doc:"NAA identifier (32 hex digits)"`
	Owner  string `json:"owner" doc:"Node that serves it now; empty while there is none"`
}

// TargetPortal is one address of a target.
type TargetPortal struct {
	Node    string `json:"node" doc:"Node behind the address"`
	Address string `json:"address" doc:"host:port"`
	Group   uint8  `json:"group" doc:"Portal group: which of the cluster's subnets, 0 for none of them"`
	Tag     uint16 `json:"tag" doc:"Target portal group tag, and relative target port identifier: unique in the cluster"`
}

// TargetList is what GET /v1/targets answers.
type TargetList struct {
	Targets     []Target  `json:"targets" nullable:"false"`
	Discovery   []Session `json:"discovery" nullable:"false" doc:"Discovery sessions, which belong to no target"`
	Logins      []Logins  `json:"logins" nullable:"false" doc:"How logins have ended, by node: one that was refused belongs to no target"`
	Unreachable []string  `json:"unreachable,omitempty" doc:"Nodes that did not answer: their sessions are missing here"`
	AsOf        time.Time `json:"as_of"`
}

// SessionParams are the values a session has negotiated (RFC 7143 §13).
type SessionParams struct {
	MaxRecvDataSegmentLength int  `json:"max_recv_data_segment_length" doc:"Longest data segment the node takes"`
	MaxSendDataSegmentLength int  `json:"max_send_data_segment_length" doc:"Longest data segment the initiator takes"`
	MaxBurstLength           int  `json:"max_burst_length"`
	FirstBurstLength         int  `json:"first_burst_length"`
	MaxOutstandingR2T        int  `json:"max_outstanding_r2t"`
	InitialR2T               bool `json:"initial_r2t"`
	ImmediateData            bool `json:"immediate_data"`
	ErrorRecoveryLevel       int  `json:"error_recovery_level"`
	DefaultTime2Wait         int  `json:"default_time2wait" doc:"Seconds"`
	DefaultTime2Retain       int  `json:"default_time2retain" doc:"Seconds"`
}

// SessionCounters are what a session has done beyond commands and bytes.
type SessionCounters struct {
	PDUsIn  uint64 `json:"pdus_in"`
	PDUsOut uint64 `json:"pdus_out"`
	R2Ts    uint64 `json:"r2ts" doc:"Ready To Transfer sent"`
	Rejects uint64 `json:"rejects" doc:"PDUs rejected"`
	Ignored uint64 `json:"ignored" doc:"PDUs outside the command window, or data of tasks that are no more"`
	Crowded uint64 `json:"crowded" doc:"Commands answered with TASK SET FULL for want of memory"`
	Aborted uint64 `json:"aborted" doc:"Commands aborted while they ran"`

	Outstanding  int     `json:"outstanding" doc:"Commands not yet answered, now"`
	LongestQueue int     `json:"longest_queue" doc:"Most commands outstanding there ever were"`
	Idle         float64 `json:"idle_seconds" doc:"Since the last command; -1: there was none"`
	Pings        uint64  `json:"pings" doc:"Sent because the initiator was silent"`
	DigestErrors uint64  `json:"digest_errors" doc:"PDUs damaged on the way"`
	Errors       uint64  `json:"errors" doc:"Commands answered with CHECK CONDITION, unit attentions left out"`
	Busy         uint64  `json:"busy" doc:"Commands answered with BUSY or TASK SET FULL"`
	Conflicts    uint64  `json:"conflicts" doc:"Commands answered with RESERVATION CONFLICT"`
	Attentions   uint64  `json:"unit_attentions" doc:"Unit attentions told"`
}

// SessionRequest is a request about one session.
type SessionRequest struct {
	Hop
	Session   string `path:"session" doc:"ID, as the list of sessions shows it" minLength:"3" maxLength:"80"`
	Initiator string `query:"initiator" doc:"If given, the session must be this initiator's: IDs are used again after a node was restarted"`
}

func (s *Server) registerTargets() {
	huma.Register(s.api, reads("list-targets", "/v1/targets", "iSCSI targets with portals and the sessions on all nodes", "cluster"), s.listTargets)
	closing := changes("close-session", http.MethodDelete, "/v1/sessions/{session}", "End a session", "cluster", http.StatusNoContent, s.toSessionsNode)
	closing.Description = "The initiator may log in again at once. To keep it out, take away what allows it."
	huma.Register(s.api, closing, s.closeSession)
}

// SessionID returns the ID of a node's session with that handle (TSIH).
func SessionID(node string, tsih string) string { return node + "." + tsih }

// toSessionsNode passes a request about a session on to the node it is connected to.
func (s *Server) toSessionsNode(ctx huma.Context, next func(huma.Context)) {
	s.forward(ctx, next, func(r *http.Request) (string, *Problem) {
		node, _, ok := strings.Cut(r.PathValue("session"), ".")
		if _, known := s.svc.APIAddress(node); !ok || !known {
			return "", NotFound("there is no session %q", r.PathValue("session"))
		}
		return node, nil
	})
}

func (s *Server) closeSession(ctx context.Context, in *SessionRequest) (*struct{}, error) {
	_, tsih, _ := strings.Cut(in.Session, ".")
	sessions, err := s.svc.Sessions(ctx)
	if err != nil {
		return nil, asProblem(err)
	}
	i := slices.IndexFunc(sessions, func(x Session) bool { return x.ID == in.Session })
	switch {
	case i < 0:
		return nil, NotFound("there is no session %q on node %s", in.Session, s.svc.Name())
	case in.Initiator != "" && !strings.EqualFold(in.Initiator, sessions[i].Initiator):
		return nil, Conflict("List the sessions again.", "session %s is of initiator %s, not of %s", in.Session, sessions[i].Initiator, in.Initiator)
	}
	if err := s.svc.CloseSession(ctx, tsih); err != nil {
		return nil, asProblem(err)
	}
	return nil, nil
}

func (s *Server) listTargets(ctx context.Context, in *request) (*reply[TargetList], error) {
	luns, err := s.luns(ctx, in.localOnly())
	if err != nil {
		return nil, asProblem(err)
	}
	hosts, err := s.svc.Hosts(ctx)
	if err != nil {
		return nil, asProblem(err)
	}
	nodes, err := s.svc.Nodes(ctx)
	if err != nil {
		return nil, asProblem(err)
	}
	sessions, err := s.sessions(ctx, in.localOnly())
	if err != nil {
		return nil, asProblem(err)
	}
	list := targets(luns, hosts, nodes, sessions.Sessions)
	list.Logins, list.Unreachable, list.AsOf = sessions.Logins, sessions.Unreachable, time.Now()
	return &reply[TargetList]{list}, nil
}

// targets joins what the cluster offers with who is logged in.
func targets(luns []LUN, hosts []Host, nodes []Node, sessions []Session) TargetList {
	list := TargetList{Targets: []Target{}, Discovery: []Session{}}
	at := map[string]int{} // target name → index in list.Targets
	add := func(t Target) {
		t.Sessions = []Session{}
		at[t.Name] = len(list.Targets)
		list.Targets = append(list.Targets, t)
	}
	byID := map[string]LUN{}
	for _, l := range luns {
		byID[l.ID] = l
		t := Target{
			Name: l.IQN, Kind: TargetOfLUN, Open: l.Access.Open, Hosts: []string{}, Portals: lunPortals(l, nodes),
			LUNs: []TargetLUN{{Name: l.Name, ID: l.ID, NAA: l.NAA, Owner: l.Owner}},
		}
		for _, g := range l.Access.Hosts {
			t.Hosts = append(t.Hosts, g.Host)
		}
		add(t)
	}
	for _, h := range hosts {
		if h.SinglePath && !slices.ContainsFunc(sessions, func(x Session) bool { return x.Target == h.Target }) {
			continue // no login to it is accepted
		}
		t := Target{Name: h.Target, Kind: TargetOfHost, Host: h.Name, Hosts: []string{h.Name}, LUNs: []TargetLUN{}, Portals: []TargetPortal{}}
		for _, g := range h.LUNs {
			l := byID[g.ID]
			t.LUNs = append(t.LUNs, TargetLUN{Number: g.Number, Name: g.LUN, ID: g.ID, NAA: l.NAA, Owner: l.Owner})
			for _, p := range lunPortals(l, nodes) {
				if !slices.Contains(t.Portals, p) {
					t.Portals = append(t.Portals, p)
				}
			}
		}
		slices.SortFunc(t.Portals, func(a, b TargetPortal) int {
			return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Address, b.Address))
		})
		add(t)
	}
	for _, x := range sessions {
		i, ok := at[x.Target]
		switch {
		case x.Target == "":
			list.Discovery = append(list.Discovery, x)
		case ok:
			list.Targets[i].Sessions = append(list.Targets[i].Sessions, x)
		default: // deleted a moment ago: its sessions are about to end
			add(Target{Name: x.Target, Kind: TargetOfLUN, Hosts: []string{}, LUNs: []TargetLUN{}, Portals: []TargetPortal{}})
			last := &list.Targets[len(list.Targets)-1]
			last.Sessions = append(last.Sessions, x)
		}
	}
	return list
}

// lunPortals returns a LUN's portals with their groups.
func lunPortals(l LUN, nodes []Node) []TargetPortal {
	out := []TargetPortal{}
	for _, p := range l.Portals {
		t := TargetPortal{Node: p.Node, Address: p.Address}
		for _, n := range nodes {
			if n.Name != p.Node {
				continue
			}
			t.Tag = n.PortGroup
			for _, known := range n.Portals {
				if known.Address == p.Address {
					t.Group, t.Tag = known.Group, known.Tag
				}
			}
		}
		out = append(out, t)
	}
	return out
}
