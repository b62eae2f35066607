package node

import (
	"path/filepath"

	"sanctuary/node/api"
	"sanctuary/node/catalog"
	"sanctuary/replication"
)

// rebuild returns how a replica is rebuilt, and others from it.
func (s *replicas) rebuild(l catalog.LUN, r catalog.Replica) replication.RebuildConfig {
	c := replication.RebuildConfig{BusyPercent: s.n.cfg.Rebuild.BusyPercent, BytesPerSecond: int64(s.n.cfg.Rebuild.MaxRate)}
	if path, err := s.path(l.ID, r.ID); err == nil && !inMemory(l, r) && !r.Witness {
		c.File = filepath.Join(path, "rebuild.json")
	}
	return c
}

// rebuildView turns how far a rebuild is into what the API says.
func rebuildView(p replication.RebuildProgress) *api.ReplicaRebuild {
	return &api.ReplicaRebuild{
		Copied: p.Copied, Total: p.Total, ToGo: p.ToGo(), PerSecond: p.PerSecond, SecondsLeft: int64(p.Left().Seconds() + 0.5),
	}
}

// showRebuild says on the node that is being rebuilt how far that is, and what is kept from before it: its owner may be gone.
func (s *replicas) showRebuild(out *api.Replica, lun string, st replication.Status) {
	run := s.get(lun)
	if out.Node != s.n.cfg.Node || run == nil || run.replica.ID != out.ID || !st.Rebuilding {
		return
	}
	out.Rebuild = rebuildView(st.RebuildProgress)
	out.Error = "being rebuilt"
	b, ok := run.group.Before()
	if !ok {
		return
	}
	before := beforeView(b)
	out.Rebuild.Before = &before
}

func beforeView(b replication.RebuildBefore) api.RebuildBefore {
	out := api.RebuildBefore{Index: b.Index, Began: b.Began}
	if !b.AsOf.IsZero() {
		out.AsOf = &b.AsOf
	}
	return out
}
