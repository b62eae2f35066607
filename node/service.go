package node

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
	"sanctuary/node/api"
	"sanctuary/node/catalog"
	"sanctuary/node/placement"
	"sanctuary/replication"
	"sanctuary/replication/transport"
)

// service is what this node tells and does over the API.
type service struct{ n *Node }

var _ api.Service = service{}

// Name implements api.Service.
func (s service) Name() string { return s.n.cfg.Node }

// Cluster implements api.Service.
func (s service) Cluster() string { return s.n.cfg.Cluster }

// APIAddress implements api.Service.
func (s service) APIAddress(node string) (string, bool) {
	if node == s.n.cfg.Node {
		return s.n.cfg.Advertise.API, true
	}
	m, ok := s.n.members().Lookup(node)
	return m.Meta.API, ok && m.Meta.API != ""
}

// Health implements api.Service.
func (s service) Health() api.NodeHealth {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	return api.NodeHealth{
		Node: s.n.cfg.Node, ID: s.n.id.ID, Kind: s.n.cfg.Kind, Version: s.n.version, PID: os.Getpid(),
		Ready: s.n.ready, Reason: s.n.reason,
	}
}

// Catalog implements api.Service.
func (s service) Catalog() api.Catalog {
	leader, _ := s.n.catalog.Leader()
	c := api.Catalog{Leader: leader, Term: s.n.catalog.Term(), Index: s.n.catalog.Model().Index}
	members, err := s.n.catalog.Members()
	if err != nil {
		return c
	}
	for _, m := range members {
		if m.Voter {
			c.Voters++
		}
	}
	return c
}

// model returns the catalog, or a problem while this node has none yet: an empty answer would be taken for an empty cluster.
func (s service) model() (*catalog.Model, error) {
	m := s.n.catalog.Model()
	if m.Index == 0 {
		return nil, api.Unavailable("node %q has just started and does not know the catalog yet", s.n.cfg.Node)
	}
	return m, nil
}

// Nodes implements api.Service.
func (s service) Nodes(context.Context) ([]api.Node, error) {
	model, err := s.model()
	if err != nil {
		return nil, err
	}
	out := make([]api.Node, 0, len(model.Nodes))
	for name, m := range model.Nodes {
		node := api.Node{Name: name, ID: m.ID, Kind: string(m.Kind), PortGroup: m.PortGroup, Portals: nodePortals(m)}
		if name == s.n.cfg.Node {
			a := s.n.cfg.Advertise
			node.Alive, node.Version = true, s.n.version
			node.PeerAddress, node.GossipAddress, node.APIAddress, node.ISCSIAddresses = a.Peer, a.Gossip, a.API, a.ISCSI
		} else if g, ok := s.n.members().Lookup(name); ok {
			node.Alive = true
			node.PeerAddress, node.GossipAddress, node.APIAddress, node.ISCSIAddresses = g.Meta.Peer, g.Gossip, g.Meta.API, g.Meta.ISCSI
		}
		if name != s.n.cfg.Node {
			sent := s.n.mux.Traffic(name)
			node.Bulk = &api.Bulk{Compression: s.n.cfg.Links.CompressionTo(name), Bytes: sent.Bytes, Sent: sent.Sent}
		}
		out = append(out, node)
	}
	slices.SortFunc(out, func(a, b api.Node) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// LUNs implements api.Service.
func (s service) LUNs(ctx context.Context) ([]api.LUN, error) {
	model, err := s.model()
	if err != nil {
		return nil, err
	}
	s.countSpace(ctx, slices.Collect(maps.Keys(model.LUNs))...)
	out := make([]api.LUN, 0, len(model.LUNs))
	for _, l := range model.LUNs {
		out = append(out, s.lun(model, l))
	}
	slices.SortFunc(out, func(a, b api.LUN) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// LUN implements api.Service.
func (s service) LUN(ctx context.Context, ref string) (api.LUN, error) {
	model, err := s.model()
	if err != nil {
		return api.LUN{}, err
	}
	l, err := find(model, ref)
	if err != nil {
		return api.LUN{}, err
	}
	s.countSpace(ctx, l.ID)
	return s.lun(model, l), nil
}

func find(m *catalog.Model, ref string) (catalog.LUN, error) {
	if l, ok := m.LUNs[ref]; ok {
		return l, nil
	}
	if l, ok := m.LUNByName(ref); ok {
		return l, nil
	}
	return catalog.LUN{}, api.NotFound("there is no LUN %q", ref)
}

// lun joins what the catalog wants with what this node knows of it.
func (s service) lun(model *catalog.Model, l catalog.LUN) api.LUN {
	out := api.LUN{
		Name: l.Name, ID: l.ID, SizeBytes: l.Geometry.Capacity.Bytes(), BlockBytes: l.Geometry.LogicalBlockBytes,
		Media: string(l.Media), Class: string(l.WantedClass()), IQN: l.IQN, Number: l.Number, NAA: l.NAA, Serial: l.Serial, Preferred: l.Preferred,
		Health: api.HealthUnavailable, Replicas: []api.Replica{}, Portals: []api.Portal{},
		Access: lunAccess(l), NonOptimizedPaths: l.NonOptimized, ReadOnly: l.ReadOnly, Origin: lunOrigin(model, l),
		ZeroDetection: l.ZeroDetection,
	}
	for _, x := range l.Schedules {
		out.Schedules = append(out.Schedules, scheduleView(x))
	}
	if len(l.Recoveries) > 0 {
		out.History, out.Recoveries = l.Epoch, recoveriesView(l)
	}
	var st replication.Status
	if run := s.n.replicas.get(l.ID); run != nil {
		st = run.group.Status()
		out.Term, out.AppliedIndex, out.Owner = st.Term, st.Applied, st.Owner.Node
		if st.IsOwner && !st.Serving {
			out.Owner, out.Reason = "", "its new owner is applying what came before"
		}
		out.Health = lunHealth(st)
		if st.Failed != nil {
			out.Reason = st.Failed.Error()
		}
	} else {
		out.Reason = "no replica of it runs on this node"
	}
	if run := s.n.replicas.get(l.ID); run != nil && run.volume != nil {
		out.Allocated, out.Space = run.volume.Usage().AllocatedBytes, run.space.get()
		out.Scrub = scrubView(run.group.ScrubStatuses())
	}
	peers := map[raft.ServerID]replication.PeerStatus{}
	for _, p := range st.Peers {
		peers[p.ID] = p
	}
	pending := true
	for _, r := range l.Replicas {
		pending = pending && r.State == catalog.ReplicaPending
		out.Replicas = append(out.Replicas, s.replica(l.ID, r, st, peers))
		if r.Witness {
			continue
		}
		for _, p := range s.n.portals(model, r.Node) {
			out.Portals = append(out.Portals, api.Portal{
				Node: r.Node, Address: p.Address, URL: fmt.Sprintf("iscsi://%s/%s/%d", p.Address, l.IQN, l.Number), State: s.portalState(l, r.Node, out.Owner),
			})
		}
	}
	switch {
	case l.Lost:
		out.Health, out.Owner = api.HealthLost, ""
		out.Reason = "every replica that held the data is gone"
	case pending:
		out.Health, out.Reason = api.HealthCreating, "its replicas are being created"
		if l.Origin != nil {
			out.Reason = "its copies are being made from the snapshot"
		}
	case !out.Served() && out.Reason == "":
		out.Reason = "no owner: more than half of its voters must be up and reach one another"
	}
	return out
}

func lunHealth(st replication.Status) api.Health {
	switch st.Health {
	case replication.HealthHealthy:
		return api.HealthHealthy
	case replication.HealthDegraded:
		return api.HealthDegraded
	case replication.HealthCatchingUp:
		return api.HealthCatchingUp
	case replication.HealthUnavailable, replication.HealthFailed:
	}
	return api.HealthUnavailable
}

func (s service) replica(lun string, r catalog.Replica, st replication.Status, peers map[raft.ServerID]replication.PeerStatus) api.Replica {
	out := api.Replica{
		ID: r.ID, Node: r.Node, Role: api.RoleData, State: string(r.State), Connected: s.n.mux.Up(r.Node) || r.Node == s.n.cfg.Node,
		IsOwner: st.Owner.Node == r.Node,
	}
	if r.Witness {
		out.Role = api.RoleWitness
	}
	out.Leaving = r.Leaving
	if p, ok := peers[raft.ServerID(r.ID)]; ok {
		out.InSync, out.MatchIndex = p.InSync, p.Match
		switch {
		case p.Rebuild:
			out.Error, out.Rebuild = "being rebuilt", rebuildView(p.Progress)
		case p.Level == "learner":
			out.Error = fmt.Sprintf("catching up, %d entries behind", p.Lag)
		}
	}
	s.n.replicas.showRebuild(&out, lun, st)
	return out
}

func (s service) portalState(l catalog.LUN, node, owner string) string {
	idle := api.PortalStandby
	if l.NonOptimized {
		idle = api.PortalForwarding
	}
	switch node {
	case owner:
		return api.PortalActive
	case s.n.cfg.Node:
		return idle
	}
	if _, up := s.n.members().Lookup(node); !up {
		return api.PortalUnreachable
	}
	return idle
}

// Sessions implements api.Service.
func (s service) Sessions(context.Context) ([]api.Session, error) {
	portal := s.n.portal.Load()
	out := []api.Session{}
	if portal == nil {
		return out, nil
	}
	for _, x := range portal.Sessions() {
		out = append(out, s.sessionView(x))
	}
	return out, nil
}

// Settings implements api.Service.
func (s service) Settings(context.Context) (map[string]string, error) {
	return s.n.catalog.Model().Settings, nil
}

// CreateLUN implements api.Service.
func (s service) CreateLUN(ctx context.Context, spec api.LUNSpec) (api.LUN, error) {
	model, err := s.n.catalog.Barrier(ctx)
	if err != nil {
		return api.LUN{}, problem(err)
	}
	media, class, err := wanted(spec)
	if err != nil {
		return api.LUN{}, err
	}
	change := &catalog.CreateLUN{
		ID: spec.ID, Name: spec.Name, Media: media, Class: class,
		Geometry: block.Geometry{Capacity: block.CountOf(spec.SizeBytes), LogicalBlockBytes: spec.BlockBytes}, Preferred: spec.Preferred,
		Access: newAccess(spec), ZeroDetection: spec.ZeroDetection,
	}
	if change.ID == "" {
		change.ID = catalog.NewID()
	}
	if change.Geometry.LogicalBlockBytes == 0 {
		change.Geometry.LogicalBlockBytes = 512
	}
	if known, ok := model.LUNs[change.ID]; ok && known.Name == change.Name && known.Geometry == change.Geometry {
		return s.lun(model, known), nil // a repeated request
	}
	choice, err := placement.Choose(model, s.reachable(), placement.Request{
		Bytes: spec.SizeBytes, Class: catalog.LUN{Media: media, Class: class}.WantedClass(), Copies: spec.Copies, Nodes: spec.Nodes, Overcommit: spec.Overcommit,
	})
	if err != nil {
		return api.LUN{}, api.Invalid("Change the request, or add what is missing. One that is only larger than what is free can be made all the same (--overcommit).", "%v", err)
	}
	change.Replicas = choice.Replicas
	if change.Preferred == "" {
		change.Preferred = choice.Preferred
	}
	result, err := s.n.catalog.Propose(ctx, change)
	if err != nil {
		return api.LUN{}, problem(err)
	}
	return s.lun(s.n.catalog.Model(), *result.LUN), nil
}

// wanted turns what a request says of media and class, of which one is enough, into what the catalog records.
func wanted(spec api.LUNSpec) (catalog.Media, catalog.Class, error) {
	media, class := catalog.Media(spec.Media), catalog.Class(spec.Class)
	ram := media == catalog.MediaRAM
	switch {
	case class == catalog.ClassRAM && media == catalog.MediaFile, ram && class != catalog.ClassAny && class != catalog.ClassRAM:
		return "", "", api.Invalid("Give the class only.", "media %q and class %q contradict each other", media, class)
	case ram, class == catalog.ClassRAM:
		return catalog.MediaRAM, catalog.ClassAny, nil
	}
	return catalog.MediaFile, class, nil
}

// reachable is what gossip says about the nodes, this one included.
func (s service) reachable() map[string]placement.Node {
	out := map[string]placement.Node{s.n.cfg.Node: {FreeBytes: s.n.pools.FreeBytes()}}
	for _, m := range s.n.members().Members() {
		out[m.Name] = placement.Node{FreeBytes: map[catalog.Class]uint64{
			catalog.ClassAny: m.Meta.FreeFileBytes, catalog.ClassRAM: m.Meta.FreeRAMBytes,
			catalog.ClassSSD: m.Meta.FreeSSDBytes, catalog.ClassHDD: m.Meta.FreeHDDBytes,
		}}
	}
	return out
}

// DeleteLUN implements api.Service.
func (s service) DeleteLUN(ctx context.Context, ref string) error {
	model, err := s.n.catalog.Barrier(ctx)
	if err != nil {
		return problem(err)
	}
	l, err := find(model, ref)
	if err != nil {
		return err
	}
	_, err = s.n.catalog.Propose(ctx, &catalog.DeleteLUN{ID: l.ID})
	return problem(err)
}

// SetSettings implements api.Service.
func (s service) SetSettings(ctx context.Context, change map[string]string) error {
	for k, v := range change {
		if _, err := s.n.catalog.Propose(ctx, &catalog.SetSetting{Key: k, Value: v}); err != nil {
			return problem(err)
		}
	}
	return nil
}

// Propose implements api.Service.
func (s service) Propose(ctx context.Context, change []byte) ([]byte, error) {
	c, err := catalog.DecodeChange(change)
	if err != nil {
		return nil, api.Invalid("Use the same version of the program on every node.", "%v", err)
	}
	result, err := s.n.catalog.Propose(ctx, c)
	if err != nil {
		return nil, problem(err)
	}
	return json.Marshal(result)
}

// MoveLUN implements api.Service.
func (s service) MoveLUN(ctx context.Context, ref, node string) error {
	model := s.n.catalog.Model()
	l, err := find(model, ref)
	if err != nil {
		return err
	}
	r, ok := l.ReplicaOn(node)
	if !ok || r.Witness {
		return api.Invalid("Choose a node that holds a copy of its data.", "node %q holds no data replica of LUN %q", node, l.Name)
	}
	run := s.n.replicas.get(l.ID)
	if run == nil || !run.group.Serving() {
		return api.NoOwner("node %q does not own LUN %q", s.n.cfg.Node, l.Name)
	}
	for _, p := range run.group.Status().Peers {
		if string(p.ID) == r.ID && !p.InSync {
			return api.Conflict("Wait until it is in sync.", "the replica on node %q is %s", node, p.Level)
		}
	}
	if err := run.group.Transfer(ctx, raft.ServerID(r.ID)); err != nil {
		return api.Unavailable("LUN %q was not moved: %v", l.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err = proposer(s).Propose(ctx, &catalog.SetPreferred{LUN: l.ID, Node: node})
	return problem(err)
}

// problem turns the catalog's errors into what a client understands.
func problem(err error) error {
	var refusal *catalog.Refusal
	var notLeader *catalog.NotLeaderError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refusal):
		switch refusal.Code {
		case catalog.CodeNotFound:
			return api.NotFound("%s", refusal.Text)
		case catalog.CodeExists, catalog.CodeInUse, catalog.CodeIdentity, catalog.CodeStale:
			return api.Conflict("", "%s", refusal.Text)
		case catalog.CodeInvalid, catalog.CodeFull:
		}
		return api.Invalid("", "%s", refusal.Text)
	case errors.As(err, &notLeader), errors.Is(err, transport.ErrUnreachable):
		return api.NoLeader("%v", err)
	case errors.Is(err, catalog.ErrUnknown):
		return api.OutcomeUnknown("%v", err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, catalog.ErrClosed):
		return api.Unavailable("%v", err)
	}
	return err
}

// parseNAA reads the catalog's 32 hex digits.
func parseNAA(text string) (naa [16]byte, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(naa) {
		return naa, fmt.Errorf("NAA %q is not 32 hex digits", text)
	}
	return [16]byte(b), nil
}
