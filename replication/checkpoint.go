package replication

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/replication/journal"
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
		if inst == nil || g.Err() != nil {
			continue
		}
		if inst.raft.AppliedIndex() > g.checkpointed() {
			g.appliedBytes.Store(0)
			g.setTrailing(inst)
			if err := g.snapshot(g.ctx, inst); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
				g.log.Debug("checkpoint put off", "error", err)
			}
		}
		if g.cfg.Journal.Tight() {
			if err := g.cutShort(); err != nil {
				g.log.Warn("the log is not cut off", "error", err)
			}
		}
	}
}

// snapshot has Raft make a checkpoint. While the journal has no room it does not wait for long: Raft's goroutine, which has a part in it, may be waiting for room, which
// comes of cutting logs off behind the last one.
func (g *Group) snapshot(ctx context.Context, inst *instance) error {
	done := inst.raft.Snapshot()
	if !g.cfg.Journal.Tight() {
		return g.waitFor(ctx, done)
	}
	ctx, cancel := context.WithTimeout(ctx, tightSnapshot)
	defer cancel()
	return g.waitFor(ctx, done)
}

// tightSnapshot is enough for a checkpoint of a busy volume.
const tightSnapshot = 10 * time.Second

// shortEvery is how often a log is made short, with a checkpoint before it, while the journal has no room.
const shortEvery = time.Second

// A log that is made short keeps so much for peers in step: more than is on its way to them at most times. Who is further behind is rebuilt.
const (
	shortBytes   = 1 << 20
	shortEntries = 64
)

// cutShort lets go of what the newest checkpoint covers of the log, whatever is kept of it otherwise; also for a rebuild, which then begins again, once nothing is
// stored any more without.
func (g *Group) cutShort() error {
	first, err1 := g.cfg.Journal.FirstIndex()
	last, err2 := g.cfg.Journal.LastIndex()
	if err := errors.Join(err1, err2); err != nil || last == 0 || g.pinned() && g.fits(journal.Cost(1, entryTargetBytes)) { // the next entry that is full
		return err
	}
	keep := uint64(shortEntries)
	if held := g.cfg.Journal.Bytes(); held > 0 {
		keep = max(keep, uint64(float64(last-first+1)*shortBytes/float64(held)))
	}
	if keep > last {
		return nil
	}
	if upTo := min(g.checkpointed(), last-keep); upTo >= first {
		return g.cfg.Journal.DeleteRange(first, upTo)
	}
	return nil
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
