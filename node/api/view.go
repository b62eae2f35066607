package api

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// maxAnswerBytes bounds what is read of another node's answer: some 100,000 LUNs.
const maxAnswerBytes = 64 << 20

// ask gets path from another node, as a question it answers from its own state. A *Problem is that node's answer, any
// other error means that there was none.
func (s *Server) ask(ctx context.Context, node, path string, out any) error {
	addr, ok := s.svc.APIAddress(node)
	if !ok {
		return fmt.Errorf("the API address of node %s is not known", node)
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.AskTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.scheme()+"://"+addr+path, nil)
	if err != nil {
		return fmt.Errorf("ask node %s: %w", node, err)
	}
	req.Header.Set(HeaderForwardedBy, s.svc.Name())
	resp, err := s.peers.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("node %s did not answer within %v", node, s.cfg.AskTimeout)
		}
		return fmt.Errorf("node %s did not answer: %w", node, err)
	}
	defer func() { _ = resp.Body.Close() }() // read-only: nothing to lose
	body := json.NewDecoder(io.LimitReader(resp.Body, maxAnswerBytes))
	if resp.StatusCode != http.StatusOK {
		var p Problem
		if err := body.Decode(&p); err != nil || p.Status == 0 {
			return fmt.Errorf("node %s answered %s", node, resp.Status)
		}
		return &p
	}
	if err := body.Decode(out); err != nil {
		return fmt.Errorf("answer of node %s: %w", node, err)
	}
	return nil
}

// seal fills in what the API knows about a LUN of this node's own state.
func (s *Server) seal(l LUN, now time.Time) LUN {
	l.View = View{Node: s.svc.Name(), Source: SourceNode, AsOf: now}
	if l.Owner == s.svc.Name() {
		l.View.Source = SourceOwner
	}
	l.Replicas = orEmpty(l.Replicas)
	l.Portals = orEmpty(l.Portals)
	l.Access.Hosts = orEmpty(l.Access.Hosts)
	return l
}

// orEmpty returns s, or an empty slice if it is nil: lists in JSON are [], never null.
func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// informants are the nodes to ask about a LUN this node does not own: the owner it knows, or else all with data.
func (s *Server) informants(l LUN) []string {
	if l.Owner != "" {
		if l.Owner == s.svc.Name() {
			return nil
		}
		return []string{l.Owner}
	}
	var nodes []string
	for _, r := range l.Replicas {
		if r.Role == RoleData && r.Node != s.svc.Name() && !slices.Contains(nodes, r.Node) {
			nodes = append(nodes, r.Node)
		}
	}
	return nodes
}

// better returns the answer that knows more: of a newer history, an owner's before anybody else's, that of a node which is taken for the owner and
// denies it, then the newer term.
func better(a, b LUN) LUN {
	if a.History != b.History { // an owner of a history that has been given up is none
		if b.History > a.History {
			return b
		}
		return a
	}
	switch {
	case b.denies(a):
		return b
	case a.denies(b):
		return a
	}
	if byOwner := cmp.Compare(boolInt(b.View.Source == SourceOwner), boolInt(a.View.Source == SourceOwner)); byOwner != 0 {
		if byOwner > 0 && b.Term >= a.Term {
			return b
		}
		return a
	}
	if b.Term > a.Term {
		return b
	}
	return a
}

// denies says whether this is what the node knows that another answer of the same term takes for the owner, and it is not: it has been elected and does not
// serve yet, or has just ceased to.
func (l LUN) denies(other LUN) bool {
	return l.View.Node == other.Owner && l.Owner != l.View.Node && l.Term == other.Term
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// lookup returns a LUN as its owner sees it, or as this node does with a note why. localOnly asks nobody.
func (s *Server) lookup(ctx context.Context, ref string, localOnly bool) (LUN, error) {
	local, err := s.svc.LUN(ctx, ref)
	if err != nil {
		return LUN{}, err
	}
	local = s.seal(local, time.Now())
	if localOnly {
		return local, nil
	}
	return s.complete(ctx, []LUN{local})[0], nil
}

// complete replaces each LUN by what its owner says, asking every node at most once and all at the same time.
func (s *Server) complete(ctx context.Context, luns []LUN) []LUN {
	wanted := map[string][]string{} // node → IDs of LUNs to ask it about
	for _, l := range luns {
		for _, node := range s.informants(l) {
			wanted[node] = append(wanted[node], l.ID)
		}
	}
	var (
		mu       sync.Mutex // guards the two maps; not held while asking
		answers  = map[string][]LUN{}
		failures = map[string]error{}
		wg       sync.WaitGroup
	)
	for node, ids := range wanted {
		wg.Go(func() {
			got, err := s.askLUNs(ctx, node, ids)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failures[node] = err
			}
			for _, l := range got {
				answers[l.ID] = append(answers[l.ID], l)
			}
		})
	}
	wg.Wait()
	out := make([]LUN, 0, len(luns))
	for _, l := range luns {
		best := l
		for _, a := range answers[l.ID] {
			best = better(best, a)
		}
		if best.View.Source != SourceOwner {
			best.View.Note = s.whyNotOwner(best, failures)
		}
		if l.Owner != "" && failures[l.Owner] != nil && best.Owner == l.Owner {
			// Only this node's word is left for it, and the owner it names is silent: do not call it served.
			best.Portals = silence(best.Portals, l.Owner)
		}
		out = append(out, best)
	}
	return out
}

// silence marks the portals of a node that does not answer.
func silence(portals []Portal, node string) []Portal {
	out := slices.Clone(portals)
	for i := range out {
		if out[i].Node == node {
			out[i].State = PortalUnreachable
		}
	}
	return out
}

func (s *Server) whyNotOwner(l LUN, failures map[string]error) string {
	var notes []string
	if l.Owner == "" {
		notes = append(notes, "no owner is known")
	}
	for _, node := range s.informants(l) {
		if err := failures[node]; err != nil {
			notes = append(notes, err.Error())
		}
	}
	if len(notes) == 0 {
		notes = append(notes, fmt.Sprintf("node %s does not say that it is the owner", l.Owner))
	}
	return strings.Join(notes, "; ") + fmt.Sprintf(". This is what node %s knows", l.View.Node)
}

// askLUNs asks a node about LUNs: about one by its own address, so that a single question stays small.
func (s *Server) askLUNs(ctx context.Context, node string, ids []string) ([]LUN, error) {
	if len(ids) == 1 {
		var l LUN
		if err := s.ask(ctx, node, "/v1/luns/"+url.PathEscape(ids[0]), &l); err != nil {
			return nil, err
		}
		return []LUN{l}, nil
	}
	var list LUNList
	err := s.ask(ctx, node, "/v1/luns", &list)
	return list.LUNs, err
}

// luns returns all LUNs, completed unless localOnly.
func (s *Server) luns(ctx context.Context, localOnly bool) ([]LUN, error) {
	local, err := s.svc.LUNs(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	luns := make([]LUN, 0, len(local))
	for _, l := range local {
		luns = append(luns, s.seal(l, now))
	}
	if !localOnly {
		luns = s.complete(ctx, luns)
	}
	return luns, nil
}

// nodes returns all nodes with what the API adds.
func (s *Server) nodes(ctx context.Context, luns []LUN) ([]Node, error) {
	nodes, err := s.svc.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	owned := map[string]int{}
	for _, l := range luns {
		if l.Served() {
			owned[l.Owner]++
		}
	}
	leader := s.svc.Catalog().Leader
	out := slices.Clone(orEmpty(nodes))
	for i := range out {
		n := &out[i]
		n.Self = n.Name == s.svc.Name()
		n.CatalogLeader = n.Name == leader
		n.LUNsOwned = owned[n.Name]
	}
	return out, nil
}

// askDataNodes asks every other data node for its own part of a list, and returns the names of those that did not answer, in
// ascending order. take is called for one answer at a time.
func askDataNodes[T any](ctx context.Context, s *Server, path string, take func(theirs T)) (unreachable []string, err error) {
	return askNodes(ctx, s, path, func(n Node) bool { return n.Kind == "data" }, take)
}

// askNodes is askDataNodes for the other nodes that are wanted.
func askNodes[T any](ctx context.Context, s *Server, path string, wanted func(Node) bool, take func(theirs T)) (unreachable []string, err error) {
	nodes, err := s.svc.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	var (
		mu sync.Mutex // for unreachable and take; not held while asking
		wg sync.WaitGroup
	)
	for _, n := range nodes {
		if n.Name == s.svc.Name() || !wanted(n) {
			continue
		}
		wg.Go(func() {
			var theirs T
			err := s.ask(ctx, n.Name, path, &theirs)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				unreachable = append(unreachable, n.Name)
				return
			}
			take(theirs)
		})
	}
	wg.Wait()
	slices.Sort(unreachable)
	return unreachable, nil
}

// sessions returns the sessions of every node that may have some, and the nodes that did not answer.
func (s *Server) sessions(ctx context.Context, localOnly bool) (SessionList, error) {
	own, err := s.svc.Sessions(ctx)
	if err != nil {
		return SessionList{}, err
	}
	list := SessionList{Sessions: slices.Clone(orEmpty(own)), Logins: []Logins{}}
	if l, ok := s.svc.Logins(); ok {
		list.Logins = append(list.Logins, l)
	}
	if localOnly {
		return list, nil
	}
	list.Unreachable, err = askDataNodes(ctx, s, "/v1/sessions", func(theirs SessionList) {
		list.Sessions = append(list.Sessions, theirs.Sessions...)
		list.Logins = append(list.Logins, theirs.Logins...)
	})
	if err != nil {
		return SessionList{}, err
	}
	hosts, err := s.svc.Hosts(ctx)
	if err != nil {
		return SessionList{}, err
	}
	for i := range list.Sessions {
		list.Sessions[i].Host = hostOf(hosts, list.Sessions[i].Initiator)
	}
	slices.SortFunc(list.Logins, func(a, b Logins) int { return cmp.Compare(a.Node, b.Node) })
	slices.SortStableFunc(list.Sessions, func(a, b Session) int {
		return cmp.Or(cmp.Compare(a.Target, b.Target), cmp.Compare(a.Initiator, b.Initiator), cmp.Compare(a.Node, b.Node))
	})
	return list, nil
}
