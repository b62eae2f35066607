package node

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sanctuary/node/api"
	"sanctuary/node/catalog"
	"sanctuary/replication"
)

// scrub returns how a replica is to be scrubbed: what the catalog says at the moment it is looked at. A copy in RAM is not
// scrubbed: it is read where it was written, and nothing of it lasts.
func (s *replicas) scrub(l catalog.LUN, r catalog.Replica) replication.ScrubConfig {
	path, err := s.path(l.ID, r.ID)
	if inMemory(l, r) || err != nil {
		return replication.ScrubConfig{}
	}
	return replication.ScrubConfig{
		Settings: func() replication.ScrubSettings {
			c := s.n.catalog.Model().ScrubOf(l.Name)
			return replication.ScrubSettings{BytesPerSecond: c.BytesPerSecond, Interval: c.Interval, Paused: c.Paused}
		},
		File: filepath.Join(path, "scrub.json"),
	}
}

// scrubView turns what the replicas say into what the API says.
func scrubView(all []replication.ScrubStatus) (out []api.ReplicaScrub) {
	at := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		return &t
	}
	for _, s := range all {
		v := api.ReplicaScrub{
			Replica: s.Replica, Enabled: s.Enabled, Paused: s.Paused, Running: s.Running, Percent: s.Percent, Bytes: s.Bytes,
			Started: at(s.Started), Completed: at(s.Completed),
			Bad: s.Repair.Bad, Repaired: s.Repair.Repaired, Unrepaired: s.Repair.Unrepaired, Pages: s.Repair.Pages, LastBad: at(s.Repair.Last),
			Compared: s.Compared, Diverged: s.Diverged, Mended: s.Mended, Waits: s.Waits,
		}
		for _, d := range s.Findings {
			v.Findings = append(v.Findings, api.Divergence(d))
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b api.ReplicaScrub) int { return strings.Compare(a.Replica, b.Replica) })
	return out
}

// StartScrub implements api.Service.
func (s service) StartScrub(ctx context.Context, ref string) error {
	l, err := find(s.n.catalog.Model(), ref)
	if err != nil {
		return err
	}
	run := s.n.replicas.get(l.ID)
	if run == nil || !run.group.Serving() {
		return api.NoOwner("node %q does not own LUN %q", s.n.cfg.Node, l.Name)
	}
	switch {
	case l.Media == catalog.MediaRAM:
		return api.Invalid("", "LUN %q is kept in RAM, which is not scrubbed", l.Name)
	case s.n.catalog.Model().ScrubOf(l.Name).Paused:
		return api.Conflict("Resume it first: sanctuary lun scrub "+l.Name+" --resume", "the scrub of LUN %q is paused", l.Name)
	}
	if err := run.group.StartScrub(ctx); err != nil {
		return api.Unavailable("the scrub of LUN %q was not begun on every copy: %v", l.Name, err)
	}
	return nil
}

// PauseScrub implements api.Service. Names of LUNs that are gone are taken off the list with it.
func (s service) PauseScrub(ctx context.Context, ref string, paused bool) error {
	model, err := s.n.catalog.Barrier(ctx)
	if err != nil {
		return problem(err)
	}
	l, err := find(model, ref)
	if err != nil {
		return err
	}
	names := slices.DeleteFunc(model.PausedScrubs(), func(name string) bool {
		_, known := model.LUNByName(name)
		return name == l.Name || name != "*" && !known
	})
	if !paused && slices.Contains(names, "*") {
		return api.Conflict("Clear it: sanctuary setting set "+catalog.SettingScrubPaused+` ""`, "the scrub of all LUNs is paused by the setting %s", catalog.SettingScrubPaused)
	}
	if paused {
		names = append(names, l.Name)
	}
	slices.Sort(names)
	_, err = s.n.catalog.Propose(ctx, &catalog.SetSetting{Key: catalog.SettingScrubPaused, Value: strings.Join(slices.Compact(names), ",")})
	return problem(err)
}
