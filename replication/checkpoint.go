package replication

import (
	"errors"
	"math"
	"time"

	"github.com/hashicorp/raft"
)

// checkpoints makes the volume durable from time to time and lets the log before that go, except for what is kept for
// replicas that come back: they then need no rebuild.
func (g *Group) checkpoints() {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	last, taken := g.checkpointed(), time.Now()
	for {
		select {
		case <-g.ctx.Done():
			return
		case <-ticker.C:
		}
		inst := g.running()
		if inst == nil || g.Err() != nil {
			continue
		}
		grown := inst.raft.AppliedIndex() - min(last, inst.raft.AppliedIndex())
		if grown == 0 || (grown < g.cfg.Limits.CheckpointEntries && time.Since(taken) < g.cfg.Timing.Checkpoint) {
			continue
		}
		g.setTrailing(inst)
		taken = time.Now()
		if err := g.waitFor(g.ctx, inst.raft.Snapshot()); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
			g.log.Debug("checkpoint put off", "error", err)
			continue
		}
		last = g.checkpointed()
	}
}

func (g *Group) checkpointed() uint64 {
	meta, _, _ := g.cfg.Journal.Snapshots().Newest()
	return meta.Index
}

// setTrailing tells Raft how many entries to leave in the log. The bound is in bytes, Raft counts entries: what the log
// holds now gives the rate. While a replica is being rebuilt from this one, everything stays.
func (g *Group) setTrailing(inst *instance) {
	keep := uint64(math.MaxUint64 >> 1)
	first, err1 := g.cfg.Journal.FirstIndex()
	last, err2 := g.cfg.Journal.LastIndex()
	held := g.cfg.Journal.Bytes()
	switch {
	case errors.Join(err1, err2) != nil || g.pinned():
	case g.cfg.Self.Witness:
		keep = witnessTrailing
	case held > g.cfg.Limits.JournalKeepBytes:
		keep = max(1, uint64(float64(last-first+1)*float64(g.cfg.Limits.JournalKeepBytes)/float64(held)))
	}
	rc := inst.raft.ReloadableConfig()
	if rc.TrailingLogs != keep {
		rc.TrailingLogs = keep
		if err := inst.raft.ReloadConfig(rc); err != nil {
			g.log.Error("journal bound not set", "error", err)
		}
	}
}

// witnessTrailing is the log a witness keeps beyond its snapshot, in entries.
const witnessTrailing = 4096
