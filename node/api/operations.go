package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// Waiting. maxWait bounds what a client may ask for; a longer wait is two requests.
const (
	defaultWait = 30 * time.Second
	maxWait     = 5 * time.Minute
)

// Hop is part of every request: who passed it on.
type Hop struct {
	ForwardedBy string `header:"Sanctuary-Forwarded-By" hidden:"true" doc:"Node that passed the request on"`
}

func (h Hop) localOnly() bool { return h.ForwardedBy != "" }

// WaitQuery is part of a request that may wait. Like Hop it is exported only because huma does not see fields of
// embedded types that are not.
type WaitQuery struct {
	Wait string `query:"wait" doc:"How long to wait for the change to take effect, 0s to 5m: a number with a unit" example:"30s"`
}

// LUNRequest is part of a request about one LUN.
type LUNRequest struct {
	Hop
	LUN string `path:"lun" doc:"Name or ID" minLength:"1" maxLength:"63"`
}

type (
	reply[T any]  struct{ Body T }
	request       struct{ Hop }
	createRequest struct {
		Hop
		WaitQuery
		Body LUNSpec
	}
	createReply struct {
		Status int
		Body   LUN
	}
	deleteRequest struct {
		LUNRequest
		Force bool `query:"force" doc:"Delete although initiators are connected, or although some node cannot be asked whether any are"`
	}
	moveRequest struct {
		LUNRequest
		WaitQuery
		Body LUNMove
	}
	settingsRequest struct {
		Hop
		Body Settings
	}
	proposeRequest struct {
		Hop
		Body Proposal
	}
)

// duration returns the time to wait; an empty parameter means otherwise.
func (q WaitQuery) duration(otherwise time.Duration) (time.Duration, error) {
	if q.Wait == "" {
		return otherwise, nil
	}
	d, err := time.ParseDuration(q.Wait)
	if err != nil || d < 0 || d > maxWait {
		return 0, Invalid("Use a number with a unit, for example wait=30s.", "wait=%q is not a time from 0s to %v", q.Wait, maxWait)
	}
	return d, nil
}

// reads describes a request that changes nothing.
func reads(id, path, summary, tag string) huma.Operation {
	return huma.Operation{
		OperationID: id, Method: http.MethodGet, Path: path, Summary: summary, Tags: []string{tag},
		Errors: []int{http.StatusForbidden, http.StatusNotFound, http.StatusServiceUnavailable},
	}
}

// changes describes a request that changes something; via passes it on to the node that can make the change.
func changes(id, method, path, summary, tag string, status int, via func(huma.Context, func(huma.Context))) huma.Operation {
	return huma.Operation{
		OperationID: id, Method: method, Path: path, Summary: summary, Tags: []string{tag}, DefaultStatus: status,
		Middlewares: huma.Middlewares{via}, MaxBodyBytes: maxBodyBytes,
		Errors: []int{
			http.StatusForbidden, http.StatusNotFound, http.StatusConflict, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity,
			http.StatusServiceUnavailable, http.StatusGatewayTimeout,
		},
	}
}

func (s *Server) register() {
	huma.Register(s.api, reads("get-health", "/v1/health", "This process is running", "node"), s.getHealth)
	huma.Register(s.api, reads("get-ready", "/v1/ready", "This node has started what it should (503 if not)", "node"), s.getReady)
	huma.Register(s.api, reads("get-status", "/v1/status", "The whole cluster at a glance", "cluster"), s.getStatus)
	huma.Register(s.api, reads("list-alerts", "/v1/alerts", "What calls for attention, most severe first", "cluster"), s.listAlerts)
	huma.Register(s.api, reads("list-nodes", "/v1/nodes", "Members of the cluster", "cluster"), s.listNodes)
	huma.Register(s.api, reads("list-sessions", "/v1/sessions", "iSCSI sessions on all nodes", "cluster"), s.listSessions)
	huma.Register(s.api, reads("get-settings", "/v1/settings", "Settings of the cluster", "cluster"), s.getSettings)
	huma.Register(s.api, reads("list-luns", "/v1/luns", "All LUNs", "luns"), s.listLUNs)
	huma.Register(s.api, reads("get-lun", "/v1/luns/{lun}", "One LUN, as its owner sees it", "luns"), s.getLUN)

	create := changes("create-lun", http.MethodPost, "/v1/luns", "Create a LUN and wait until it is served", "luns", http.StatusCreated, s.toLeader)
	create.Description = "201: served. 202: recorded, and not served yet when the wait was over; reason says what it waits for."
	create.Responses = map[string]*huma.Response{"202": {
		Description: "Recorded, not served yet",
		Content: map[string]*huma.MediaType{"application/json": {
			Schema: s.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[LUN](), true, ""),
		}},
	}}
	huma.Register(s.api, create, s.createLUN)
	huma.Register(s.api, changes("delete-lun", http.MethodDelete, "/v1/luns/{lun}", "Delete a LUN and its data on every node", "luns",
		http.StatusNoContent, s.toLeader), s.deleteLUN)
	huma.Register(s.api, changes("move-lun", http.MethodPost, "/v1/luns/{lun}/move", "Make another node the owner", "luns",
		http.StatusOK, s.toOwner), s.moveLUN)
	huma.Register(s.api, changes("set-settings", http.MethodPut, "/v1/settings", "Change settings of the cluster", "cluster",
		http.StatusOK, s.toLeader), s.setSettings)
	huma.Register(s.api, changes("propose", http.MethodPost, "/v1/internal/propose", "Pass a change of the catalog to its leader (between nodes)",
		"internal", http.StatusOK, s.toLeader), s.propose)
	s.registerCatalog()
	s.registerAccess()
	s.registerTargets()
	s.registerReservations()
	s.registerScrub()
	s.registerPools()
	s.registerRecovery()
	s.registerReplicas()
	s.registerNodes()
	s.registerSnapshots()
}

func (s *Server) getHealth(context.Context, *request) (*reply[NodeHealth], error) {
	return &reply[NodeHealth]{s.svc.Health()}, nil
}

func (s *Server) getReady(context.Context, *request) (*reply[NodeHealth], error) {
	h := s.svc.Health()
	if !h.Ready {
		return nil, Unavailable("node %s is not ready: %s", h.Node, h.Reason)
	}
	return &reply[NodeHealth]{h}, nil
}

func (s *Server) getStatus(ctx context.Context, in *request) (*reply[Status], error) {
	luns, err := s.luns(ctx, in.localOnly())
	if err != nil {
		return nil, asProblem(err)
	}
	nodes, err := s.nodes(ctx, luns)
	if err != nil {
		return nil, asProblem(err)
	}
	reported, err := s.reported(ctx, in.localOnly())
	if err != nil {
		return nil, asProblem(err)
	}
	cat := s.svc.Catalog()
	return &reply[Status]{Status{
		Cluster: s.svc.Cluster(), Node: s.svc.Name(), AsOf: time.Now(), Catalog: cat,
		Nodes: nodes, LUNs: luns, Alerts: alerts(cat, nodes, luns, reported, time.Now()),
	}}, nil
}

func (s *Server) listAlerts(ctx context.Context, in *request) (*reply[AlertList], error) {
	if in.localOnly() {
		own, err := s.reported(ctx, true)
		if err != nil {
			return nil, asProblem(err)
		}
		return &reply[AlertList]{AlertList{orEmpty(own)}}, nil
	}
	status, err := s.getStatus(ctx, in)
	if err != nil {
		return nil, err
	}
	return &reply[AlertList]{AlertList{status.Body.Alerts}}, nil
}

func (s *Server) listNodes(ctx context.Context, in *request) (*reply[NodeList], error) {
	luns, err := s.luns(ctx, in.localOnly())
	if err != nil {
		return nil, asProblem(err)
	}
	nodes, err := s.nodes(ctx, luns)
	if err != nil {
		return nil, asProblem(err)
	}
	return &reply[NodeList]{NodeList{nodes}}, nil
}

func (s *Server) listSessions(ctx context.Context, in *request) (*reply[SessionList], error) {
	list, err := s.sessions(ctx, in.localOnly())
	if err != nil {
		return nil, asProblem(err)
	}
	return &reply[SessionList]{list}, nil
}

func (s *Server) getSettings(ctx context.Context, _ *request) (*reply[Settings], error) {
	return s.settings(ctx)
}

func (s *Server) settings(ctx context.Context) (*reply[Settings], error) {
	set, err := s.svc.Settings(ctx)
	if err != nil {
		return nil, asProblem(err)
	}
	if set == nil {
		set = map[string]string{}
	}
	return &reply[Settings]{Settings{set}}, nil
}

func (s *Server) setSettings(ctx context.Context, in *settingsRequest) (*reply[Settings], error) {
	if len(in.Body.Settings) == 0 {
		return nil, Invalid("Give at least one name and value.", "no setting to change")
	}
	if err := checkSettings(in.Body.Settings); err != nil {
		return nil, err
	}
	if err := s.svc.SetSettings(ctx, in.Body.Settings); err != nil {
		return nil, asProblem(err)
	}
	s.settle(ctx)
	return s.settings(ctx)
}

func (s *Server) listLUNs(ctx context.Context, in *request) (*reply[LUNList], error) {
	luns, err := s.luns(ctx, in.localOnly())
	if err != nil {
		return nil, asProblem(err)
	}
	return &reply[LUNList]{LUNList{luns}}, nil
}

func (s *Server) getLUN(ctx context.Context, in *LUNRequest) (*reply[LUN], error) {
	l, err := s.lookup(ctx, in.LUN, in.localOnly())
	if err != nil {
		return nil, asProblem(err)
	}
	return &reply[LUN]{l}, nil
}

func (s *Server) createLUN(ctx context.Context, in *createRequest) (*createReply, error) {
	wait, err := in.duration(defaultWait)
	if err != nil {
		return nil, err
	}
	made, err := s.svc.CreateLUN(ctx, in.Body)
	if err != nil {
		return nil, asProblem(err)
	}
	return s.created(ctx, made.ID, wait, "waiting for a replica to be elected owner")
}

// created answers for a LUN that has been recorded, when it is served or wait is over; pending says what is waited for then, if
// nobody else does.
func (s *Server) created(ctx context.Context, id string, wait time.Duration, pending string) (*createReply, error) {
	l, err := s.await(ctx, id, wait, LUN.Served)
	if err != nil {
		return nil, asProblem(err)
	}
	out := &createReply{Status: http.StatusCreated, Body: l}
	if !l.Served() {
		out.Status = http.StatusAccepted
		if out.Body.Reason == "" {
			out.Body.Reason = "recorded, but not served yet: " + pending
		}
	}
	return out, nil
}

// await looks at a LUN until done likes it, wait is over or this server stops; it returns the last look in any case.
func (s *Server) await(ctx context.Context, id string, wait time.Duration, done func(LUN) bool) (LUN, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	over := time.NewTimer(wait)
	defer over.Stop()
	tick := time.NewTicker(s.cfg.PollInterval)
	defer tick.Stop()
	for {
		l, err := s.lookup(ctx, id, false)
		if err != nil || done(l) || wait == 0 {
			return l, err
		}
		select {
		case <-ctx.Done():
			return l, nil
		case <-s.draining:
			return l, nil
		case <-over.C:
			return l, nil
		case <-tick.C:
		}
	}
}

func (s *Server) deleteLUN(ctx context.Context, in *deleteRequest) (*struct{}, error) {
	l, err := s.svc.LUN(ctx, in.LUN)
	if err != nil {
		return nil, asProblem(err)
	}
	if !in.Force {
		if err := s.unused(ctx, l, use{done: "deleted", force: "delete with force (--force): a guest that uses it loses its disk"}); err != nil {
			return nil, err
		}
	}
	if err := s.svc.DeleteLUN(ctx, l.ID); err != nil {
		return nil, asProblem(err)
	}
	return nil, nil
}

// use says what must not be done to a LUN while initiators use it, for messages.
type use struct {
	done  string // what has not been done
	force string // how it is done nevertheless, and what that means
}

// unused refuses to go on while a LUN is used, or may be.
func (s *Server) unused(ctx context.Context, l LUN, u use) error {
	list, err := s.sessions(ctx, false)
	if err != nil {
		return asProblem(err)
	}
	hosts, err := s.svc.Hosts(ctx)
	if err != nil {
		return asProblem(err)
	}
	through := []string{l.IQN} // the targets that present it
	for _, h := range hosts {
		if slices.ContainsFunc(h.LUNs, func(m HostLUN) bool { return m.ID == l.ID }) {
			through = append(through, h.Target)
		}
	}
	for _, sess := range list.Sessions {
		if slices.Contains(through, sess.Target) {
			return (&Problem{
				Status: http.StatusConflict, Code: CodeInUse,
				Detail: fmt.Sprintf("LUN %s is in use: initiator %s is logged in to node %s from %s", l.Name, sess.Initiator, sess.Node, sess.Remote),
				Data:   "Nothing was " + u.done + ".", Next: "Log the initiator out first, or " + u.force + ".",
			}).complete()
		}
	}
	for _, r := range l.Replicas {
		for _, node := range list.Unreachable {
			if r.Node == node && r.Role == RoleData {
				return (&Problem{
					Status: http.StatusConflict, Code: CodeInUse,
					Detail: fmt.Sprintf("node %s, which holds a replica of LUN %s, does not answer: whether initiators use it there is not known", node, l.Name),
					Data:   "Nothing was " + u.done + ".", Next: "Bring the node back, or " + u.force + ".",
				}).complete()
			}
		}
	}
	return nil
}

func (s *Server) moveLUN(ctx context.Context, in *moveRequest) (*reply[LUN], error) {
	wait, err := in.duration(defaultWait)
	if err != nil {
		return nil, err
	}
	l, err := s.svc.LUN(ctx, in.LUN)
	if err != nil {
		return nil, asProblem(err)
	}
	if err := s.svc.MoveLUN(ctx, l.ID, in.Body.Node); err != nil {
		return nil, asProblem(err)
	}
	moved, err := s.await(ctx, l.ID, wait, func(l LUN) bool { return l.Owner == in.Body.Node && l.Served() })
	if err != nil {
		return nil, asProblem(err)
	}
	if wait > 0 && moved.Owner != in.Body.Node {
		return nil, Unavailable("LUN %s is still owned by %q after %v, not by %s", l.Name, moved.Owner, wait, in.Body.Node)
	}
	return &reply[LUN]{moved}, nil
}

func (s *Server) propose(ctx context.Context, in *proposeRequest) (*reply[ProposalResult], error) {
	if len(in.Body.Change) == 0 {
		return nil, Invalid("", "empty change")
	}
	result, err := s.svc.Propose(ctx, in.Body.Change)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
			return nil, OutcomeUnknown("the catalog did not answer in time: %v", err)
		}
		return nil, asProblem(err)
	}
	return &reply[ProposalResult]{ProposalResult{result}}, nil
}
