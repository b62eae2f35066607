package node

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/node/api"
	"sanctuary/node/catalog"
	"sanctuary/replication"
	"sanctuary/replication/command"
)

// Forced recovery, as far as it is a question to the nodes: what is left of a LUN, could it still help itself, and what would be lost if it
// went on from one copy. The catalog decides (catalog.RecoverLUN), and the copy does it (members.go, replication.Recover).

// methodSurvey: LUN ID → a nodeSurvey as JSON.
const methodSurvey = "lun.survey"

// nodeSurvey is what a node says of a LUN's replica.
type nodeSurvey struct {
	Survey *replication.Survey `json:"survey,omitempty"` // of the replica that runs
	// Stored: none runs, though there is storage of one; Why says why, if it is more than that the node has just started.
	Stored bool   `json:"stored,omitempty"`
	Why    string `json:"why,omitempty"`
}

// surveyed is what was found out about one replica in the catalog.
type surveyed struct {
	catalog.Replica
	nodeSurvey
	alive bool  // gossip reaches its node
	err   error // its node did not answer
}

const surveyWait = 3 * time.Second

func (n *Node) serveSurvey(ctx context.Context, _ string, req []byte) ([]byte, error) {
	s, err := n.replicas.survey(ctx, string(req))
	if err != nil {
		return nil, err
	}
	return json.Marshal(s)
}

func (s *replicas) survey(ctx context.Context, lun string) (out nodeSurvey, err error) {
	if run := s.get(lun); run != nil {
		survey, err := run.group.Survey()
		if err != nil {
			survey.Failed = cmp.Or(survey.Failed, err.Error())
		}
		return nodeSurvey{Survey: &survey}, nil
	}
	storage, err := s.Storage(ctx)
	if err != nil {
		return nodeSurvey{Stored: true, Why: err.Error()}, nil
	}
	status, _, _ := s.n.reconciler.Status()
	for _, st := range status {
		if st.LUN == lun {
			out.Why = st.Reason
		}
	}
	out.Stored = len(storage[lun]) > 0
	return out, nil
}

// surveyLUN asks every node of a LUN at the same time.
func (s service) surveyLUN(ctx context.Context, l catalog.LUN) []surveyed {
	ctx, cancel := context.WithTimeout(ctx, surveyWait)
	defer cancel()
	out := make([]surveyed, len(l.Replicas))
	var wg sync.WaitGroup
	for i, r := range l.Replicas {
		out[i].Replica = r
		_, out[i].alive = s.n.members().Lookup(r.Node)
		if r.Node == s.n.cfg.Node {
			out[i].alive = true
			out[i].nodeSurvey, out[i].err = s.n.replicas.survey(ctx, l.ID)
			continue
		}
		wg.Go(func() {
			answer, err := s.n.mux.Call(ctx, r.Node, methodSurvey, []byte(l.ID))
			if err == nil {
				err = json.Unmarshal(answer, &out[i].nodeSurvey)
			}
			out[i].err = err
		})
	}
	wg.Wait()
	return out
}

// usable returns why a replica is no copy to go on from; empty if it is one. One whose log is damaged is, if nobody is left to fetch from what it lacks: then its log
// is cut off there.
func (r *surveyed) usable(history uint64, found []surveyed) string {
	if why := r.spoiled(history); why != "" {
		return why
	}
	if s := r.Survey; s.Damaged > 0 && (len(s.DamagedAt) == 0 || r.mended(history, found)) {
		return fmt.Sprintf("%d entries of its log are damaged: it takes part in nothing before it has them from another copy", s.Damaged)
	}
	return ""
}

// spoiled returns why a replica is no copy to go on from, whatever its log lacks.
func (r *surveyed) spoiled(history uint64) string {
	switch s := r.Survey; {
	case r.Witness:
		return "a witness holds no data"
	case r.err != nil:
		return "its node does not answer"
	case s == nil && r.Stored:
		return cmp.Or(r.Why, "it is still being started")
	case s == nil:
		return "there is nothing of it on its node"
	case s.Epoch != history:
		return fmt.Sprintf("it is of history %d of the LUN", s.Epoch)
	case s.Failed != "":
		return s.Failed
	case s.Inconsistent && s.Kept:
		return "it is in the middle of being rebuilt: what it holds is of no one moment; what it held before is kept (sanctuary lun replica revert)"
	case s.Inconsistent:
		return "it is in the middle of being rebuilt: what it holds is of no one moment"
	case s.Holds().Index == 0:
		return "it holds nothing yet"
	}
	return ""
}

// votes says whether a replica could vote for one that ends at last, now or when what is damaged of its log has been fetched. What one that has given up its log
// must have again first, only an owner could give it.
func (r *surveyed) votes(history uint64, last replication.Position, found []surveyed) bool {
	s := r.Survey
	return s != nil && s.Epoch == history && s.Failed == "" && !s.Inconsistent && !s.Abstains() && !last.Less(s.Last) && (s.Damaged == 0 || r.mended(history, found))
}

// mended says whether the copies that can be reached have all that is damaged of a replica's log, so that it will have it again by itself.
func (r *surveyed) mended(history uint64, found []surveyed) bool {
	at := r.Survey.DamagedAt
	if len(at) > 0 && r.Survey.Damaged > len(at) {
		return false // of some it is not told which
	}
	if len(at) == 0 { // an older program does not say which
		at = []uint64{r.Survey.Last.Index}
	}
	for _, index := range at {
		has := func(o surveyed) bool { return o.ID != r.ID && o.gives(index, r.Survey, history) }
		if !slices.ContainsFunc(found, has) {
			return false
		}
	}
	return true
}

// gives says whether a replica has an entry of another's log, whole. A witness has no blocks.
func (r *surveyed) gives(index uint64, to *replication.Survey, history uint64) bool {
	s := r.Survey
	switch {
	case r.Witness, r.err != nil, s == nil || s.Epoch != history || s.Failed != "" || s.Inconsistent || s.Empty || len(s.Runs) == 0:
		return false
	case s.Damaged > 0 && (s.Damaged > len(s.DamagedAt) || slices.Contains(s.DamagedAt, index)):
		return false
	}
	return index >= s.Runs[len(s.Runs)-1].Index && index <= to.Shared(s)
}

// assess says what a recovery of the LUN would mean: a pure function. node is the one whose copy is asked for; empty: the best.
func assess(l catalog.LUN, found []surveyed, node string) api.Recovery {
	out := api.Recovery{LUN: l.Name, ID: l.ID, History: l.Epoch, Replicas: []api.RecoveryReplica{}}
	var best *surveyed
	for i := range found {
		r := &found[i]
		out.Replicas = append(out.Replicas, describe(l, r, found))
		if r.usable(l.Epoch, found) == "" && (best == nil || r.better(best)) {
			best = r
		}
	}
	chosen := best
	if node != "" {
		chosen = nil
		for i := range found {
			if found[i].Node == node {
				chosen = &found[i]
			}
		}
	}
	out.Refused = refusal(l, found, best, chosen, node)
	if chosen != nil && chosen.usable(l.Epoch, found) == "" {
		out.From, out.Node = chosen.ID, chosen.Node
		out.Lost = loss(l, chosen, found)
	}
	return out
}

// better says whether a copy holds more than another, or as much and with a log that is whole.
func (r *surveyed) better(than *surveyed) bool {
	a, b := r.Survey, than.Survey
	return b.HoldsLess(a) || !a.HoldsLess(b) && a.Damaged == 0 && b.Damaged > 0
}

// refusal returns why the LUN is not recovered from the chosen copy, empty if it may be.
func refusal(l catalog.LUN, found []surveyed, best, chosen *surveyed, node string) string {
	for i := range found {
		r := &found[i]
		if s := r.Survey; s != nil && s.Serving && s.Epoch == l.Epoch {
			return fmt.Sprintf("it is served, by node %s", r.Node)
		}
		if d, ok := elects(l, found, r); ok {
			return fmt.Sprintf("it can help itself: %d of its %d voters can be reached and would elect the copy on node %s. Wait a moment", d, len(r.Survey.Voters), r.Node)
		}
	}
	for i := range found {
		r := &found[i]
		switch {
		case r.err != nil && r.alive:
			return fmt.Sprintf("node %s is alive and has not answered (%v). Wait until it does, or until it is known to be down", r.Node, r.err)
		case r.err == nil && r.Survey == nil && r.Stored && r.Why == "":
			return fmt.Sprintf("the replica on node %s is still being started. Wait until it is", r.Node)
		}
	}
	switch {
	case node != "" && chosen == nil:
		return fmt.Sprintf("node %s has no replica of it", node)
	case chosen == nil:
		return "no copy that could go on can be reached"
	case chosen.usable(l.Epoch, found) != "":
		return fmt.Sprintf("the copy on node %s cannot be used: %s", chosen.Node, chosen.usable(l.Epoch, found))
	case chosen.Survey.HoldsLess(best.Survey):
		return fmt.Sprintf("the copy on node %s holds more, and can be reached: recover from that one", best.Node)
	}
	return ""
}

// elects says whether the voters that can be reached would elect a copy by themselves, and how many they are: now, or when what is damaged of logs has been
// fetched.
func elects(l catalog.LUN, found []surveyed, r *surveyed) (votes int, ok bool) {
	if r.spoiled(l.Epoch) != "" || r.Survey.Abstains() || r.Survey.Damaged > 0 && (len(r.Survey.DamagedAt) == 0 || !r.mended(l.Epoch, found)) || !slices.Contains(r.Survey.Voters, r.ID) {
		return 0, false
	}
	for i := range found {
		if v := &found[i]; v.votes(l.Epoch, r.Survey.Last, found) && slices.Contains(r.Survey.Voters, string(v.Survey.Replica)) {
			votes++
		}
	}
	return votes, votes > len(r.Survey.Voters)/2
}

// loss compares what a copy holds with what others, and it itself, prove to have existed.
func loss(l catalog.LUN, from *surveyed, found []surveyed) api.RecoveryLoss {
	out := api.RecoveryLoss{Unknown: []string{}}
	mine, holds := from.Survey, from.Survey.Holds()
	var ahead *surveyed
	for i := range found {
		r := &found[i]
		switch {
		case r == from:
		case r.Survey != nil && r.Survey.Epoch == l.Epoch:
			if mine.EndsBefore(r.Survey.Last) && (ahead == nil || ahead.Survey.Last.Less(r.Survey.Last)) {
				ahead = r
			}
		case r.err != nil, r.Stored:
			out.Unknown = append(out.Unknown, r.ID)
		}
	}
	if ahead != nil {
		theirs := ahead.Survey
		shared := mine.Shared(theirs)
		switch {
		case shared == 0:
			shared = min(holds.Index, theirs.Last.Index)
		case holds.Index > mine.Last.Index: // what a volume has applied was committed, and a log that ends later has it
			shared = max(shared, holds.Index)
		default:
			shared = min(shared, holds.Index)
		}
		out.ProvenBy, out.Entries = ahead.ID, theirs.Last.Index-min(shared, theirs.Last.Index)
		if !mine.LastAt.IsZero() && theirs.LastAt.After(mine.LastAt) {
			out.Seconds = theirs.LastAt.Sub(mine.LastAt).Seconds()
		}
	}
	if had := max(mine.Last.Index, mine.Reach); had > holds.Index {
		out.LostFrom, out.LostTo = holds.Index+1, had
	}
	for i := range found { // who has lost them, too, knows that there were entries
		r := &found[i]
		if r.Survey == nil || r.Survey.Epoch != l.Epoch {
			continue
		}
		had := r.Survey.Reach
		if r == from {
			had = out.LostTo
		}
		if had > holds.Index+out.Entries {
			out.ProvenBy, out.Entries = r.ID, had-holds.Index
		}
	}
	out.BytesAtMost = int64(out.Entries) * command.MaxEntryBytes
	return out
}

// describe is one replica for the operator.
func describe(l catalog.LUN, r *surveyed, found []surveyed) api.RecoveryReplica {
	out := api.RecoveryReplica{Replica: r.ID, Node: r.Node, Role: api.RoleData, Reached: r.err == nil, Unusable: r.usable(l.Epoch, found)}
	if r.Witness {
		out.Role, out.Unusable = api.RoleWitness, ""
		if r.err != nil {
			out.Unusable = "its node does not answer"
		}
	}
	if s := r.Survey; s != nil {
		out.Term, out.Index = s.Last.Term, s.Last.Index
		if !s.LastAt.IsZero() {
			at := s.LastAt.UTC()
			out.NewestEntry = &at
		}
		return out
	}
	heard, since := time.Time{}, time.Time{}
	for i := range found {
		s := found[i].Survey
		if s == nil {
			continue
		}
		if at := s.Heard[raft.ServerID(r.ID)]; at.After(heard) {
			heard = at
		}
		if since.IsZero() || s.Since.Before(since) {
			since = s.Since
		}
	}
	switch {
	case !heard.IsZero():
		heard = heard.UTC()
		out.LastHeard = &heard
	case !since.IsZero():
		since = since.UTC()
		out.NotHeardSince = &since
	}
	return out
}

// Recovery implements api.Service.
func (s service) Recovery(ctx context.Context, ref, node string) (api.Recovery, error) {
	model, err := s.model()
	if err != nil {
		return api.Recovery{}, err
	}
	l, err := find(model, ref)
	if err != nil {
		return api.Recovery{}, err
	}
	return assess(l, s.surveyLUN(ctx, l), node), nil
}

// RecoverLUN implements api.Service.
func (s service) RecoverLUN(ctx context.Context, ref string, spec api.RecoverSpec) (api.Recovery, error) {
	model, err := s.n.catalog.Barrier(ctx)
	if err != nil {
		return api.Recovery{}, problem(err)
	}
	l, err := find(model, ref)
	if err != nil {
		return api.Recovery{}, err
	}
	if rec, ok := l.RecoveredBy(); ok && spec.History == l.Epoch-1 && (spec.Node == "" || nodeOf(rec.Replica) == spec.Node) {
		done := assess(l, s.surveyLUN(ctx, l), "")
		done.Done, done.From, done.Node, done.Refused = true, rec.Replica, nodeOf(rec.Replica), ""
		return done, nil // a repeated request
	}
	if spec.History != l.Epoch {
		return api.Recovery{}, api.Conflict("Look again: sanctuary lun recover "+l.Name+".", "LUN %q is in history %d, not %d any more", l.Name, l.Epoch, spec.History)
	}
	found := s.surveyLUN(ctx, l)
	out := assess(l, found, spec.Node)
	if out.Refused != "" {
		p := api.Conflict("Bring its other replicas back, or do what the message says.", "LUN %q is not recovered by force: %s", l.Name, out.Refused)
		return out, p
	}
	rec := catalog.Recovery{
		Epoch: l.Epoch + 1, Replica: out.From, At: s.n.clock().UnixMilli(), Through: s.n.cfg.Node, By: spec.By, Why: spec.Why, Lost: out.Lost.String(),
	}
	for _, r := range found {
		if r.Survey != nil {
			rec.Term = max(rec.Term, r.Survey.Term, r.Survey.Last.Term)
		}
	}
	s.n.log.Warn("an operator has a LUN recovered by force", "lun", l.Name, "from", out.From, "by", spec.By, "why", spec.Why, "lost", rec.Lost)
	if _, err := s.n.catalog.Propose(ctx, &catalog.RecoverLUN{LUN: l.ID, Recovery: rec}); err != nil {
		return out, problem(err)
	}
	out.Done, out.History = true, rec.Epoch
	return out, nil
}

func nodeOf(replica string) string {
	node, _, _ := catalog.SplitReplicaID(replica)
	return node
}
