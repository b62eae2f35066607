package replication

import (
	"errors"
	"math"
	"time"

	"github.com/hashicorp/raft"
)

// witnessEntryBytes is what a witness's entry counts for: a checkpoint every few thousand keeps its log short.
const witnessEntryBytes = 64 << 10

// countApplied adds to what a crash now would have to replay, and makes a checkpoint due when that is much.
func (g *Group) countApplied(n int64) {
	if g.appliedBytes.Add(n) >= g.cfg.Limits.CheckpointBytes {
		g.dueCheckpoint()
	}
}

// checkpoints makes the volume durable from time to time and lets the log before that go, except for what is kept for
// replicas that come back: they then need no rebuild.
func (g *Group) checkpoints() {
	ticker := time.NewTicker(g.cfg.Timing.Checkpoint)
	defer ticker.Stop()
	for {
		select {
		case <-g.ctx.Done():
			return
		case <-g.checkpointDue:
		case <-ticker.C:
		}
		inst := g.running()
		if inst == nil || g.Err() != nil || inst.raft.AppliedIndex() <= g.checkpointed() {
			continue
		}
		g.appliedBytes.Store(0)
		g.setTrailing(inst)
		if err := g.waitFor(g.ctx, inst.raft.Snapshot()); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
			g.log.Debug("checkpoint put off", "error", err)
		}
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
	case errors.Join(err1, err2) != nil:
	case g.pinned() && held < pinnedTimes*g.cfg.Limits.JournalKeepBytes: // beyond, the rebuild has to begin again
	case g.cfg.Self.Witness:
		keep = witnessTrailing
	case held > g.cfg.Limits.JournalKeepBytes:
		keep = max(1, uint64(float64(last-first+1)*float64(g.cfg.Limits.JournalKeepBytes)/float64(held)))
	}
	g.reloading.Lock()
	defer g.reloading.Unlock()
	rc := inst.raft.ReloadableConfig()
	if rc.TrailingLogs != keep {
		rc.TrailingLogs = keep
		if err := inst.raft.ReloadConfig(rc); err != nil {
			g.log.Error("journal bound not set", "error", err)
		}
	}
}

// pinnedTimes bounds the log while a rebuild runs, in times of what is kept otherwise.
const pinnedTimes = 4

// witnessTrailing is the log a witness keeps beyond its snapshot, in entries.
const witnessTrailing = 4096
