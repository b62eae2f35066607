package replication

import (
	"encoding/binary"
	"errors"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
	"sanctuary/replication/journal"
	"sanctuary/replication/mutant"
)

// raftLog is the log as the Raft library sees it.
//
// Rule G, commit implies durable. An owner's log is made durable while its entries are on their way to the peers (Raft thesis §10.2.1), so that
// a write takes the longer of the two, not both: StoreLogs of an owner that needs a peer's answer to commit anything only
// queues. The library then counts the entries as stored here, which they are not yet; so the group holds the peers' answers back (hold): a success to
// entries up to i is told to the library when this log is durable up to i. To commit i takes the answer of at least one peer, which is given when it is durable there; so
// what is committed is durable here and there. Where that argument does not hold, StoreLogs waits:
//
//   - an owner that needs nobody: the only voter;
//   - an entry that changes the members, since it counts from when it is stored on, and may make this the only voter: everything before it is durable by then;
//   - a follower: its answer is what others count.
//
// An owner that is deposed before its log is durable is a follower with entries that a crash may take back. Nobody was told that they are here: what it answers as a
// follower is held back in the same way (raftAnswered). As a candidate it may be elected for them, and they are then durable before anything of its own term is
// committed, in the same log behind them.
//
// When the library starts it reads the whole log, for the configurations in it: what an entry of ours carries is left out then, so that a start does
// not take as long as reading all data that is kept. Later, an entry that cannot be read would make it panic, and end the process with every other LUN
// it serves. So the goroutine that asks waits until the entry has been fetched from another copy (mendlog.go), which is as good as the
// replica being away; if that comes to nothing, the goroutine ends, not the process. If it was the one that sends to a peer it leaves behind the
// one that reads the answers, without which Raft does not stop: the pipeline that it closes gives that a last one (holding.Close).
type raftLog struct {
	journal.Log
	g       *Group
	inst    *instance
	running atomic.Bool // the library has read the log
	others  suffrage    // Raft's own goroutine's: whether this owner needs a peer's answer to commit anything
}

// suffrage is what is known of the other members' votes. It is asked for again when the members may have changed: that takes an entry, which is stored, and counts for
// the library before it stores the next one; or a follower cuts one off, and stores others in its place.
type suffrage int

const (
	unknown suffrage = iota
	othersVote
	votesAlone
)

// StoreLogs implements raft.LogStore.
func (l *raftLog) StoreLogs(logs []*raft.Log) error {
	now := time.Now()
	l.g.noteStored(now)
	if slices.ContainsFunc(logs, func(e *raft.Log) bool { return e.Type == raft.LogCommand }) {
		l.g.usedAt.Store(int64(now.Sub(l.g.opened)))
	}
	return l.g.rouse(func() error {
		defer l.g.writes.stored(logs)
		if l.overlaps(logs) || mutant.Ack && l.g.termLed() == 0 {
			return l.Log.Append(logs)
		}
		return l.Log.StoreLogs(logs)
	})
}

// noteStored notes when something was stored last, for whoever has to decide whether to go on from this copy.
func (g *Group) noteStored(now time.Time) { g.storedAt.Store(now.UnixMilli()) }

// StoreLog implements raft.LogStore.
func (l *raftLog) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

// overlaps says whether entries may be made durable while they are sent. Only Raft's own goroutine stores entries, so nothing changes meanwhile.
func (l *raftLog) overlaps(logs []*raft.Log) bool {
	if !l.running.Load() || l.inst.raft.State() != raft.Leader {
		l.others = unknown
		return false
	}
	for _, e := range logs {
		if e.Type == raft.LogConfiguration {
			l.others = unknown
			return false
		}
	}
	if l.others == unknown {
		f := l.inst.raft.GetConfiguration()
		if f.Error() != nil {
			return false
		}
		l.others = votesAlone
		for _, s := range f.Configuration().Servers {
			if s.Suffrage == raft.Voter && s.ID != l.g.cfg.Self.ID {
				l.others = othersVote
			}
		}
	}
	return l.others == othersVote
}

// hold waits until this replica's log is durable as far as the success of an AppendEntries reaches, and says whether it is: if not, the success
// must be told to nobody.
func (g *Group) hold(req *raft.AppendEntriesRequest) bool {
	inst := g.running()
	if inst == nil {
		return false
	}
	index := req.PrevLogEntry
	if n := len(req.Entries); n > 0 {
		index = req.Entries[n-1].Index
	}
	if index <= g.cfg.Journal.Durable() {
		return true
	}
	if mark, _, ok := g.cfg.Journal.Snapshots().Newest(); ok && index <= mark.Index {
		return true // a snapshot covers it, and that is durable; what is in the log may be older (a witness that was away)
	}
	return g.cfg.Journal.AwaitDurable(index, inst.ctx.Done()) == nil
}

// Set implements raft.StableStore.
func (l *raftLog) Set(key, value []byte) error {
	if mutant.Vote {
		go func() { _ = l.Log.Set(key, value) }()
		return nil
	}
	return l.Log.Set(key, value)
}

// SetUint64 implements raft.StableStore. Where a term cannot be stored the library would panic: this replica is out, and the goroutine ends, not the process.
// When the library starts it stores the term that it has read: without room in the journal that would keep the whole node from starting.
func (l *raftLog) SetUint64(key []byte, v uint64) error {
	if !l.running.Load() && string(key) == keyCurrentTerm && !l.Takes() {
		if have, err := l.GetUint64(key); err == nil && have == v {
			return nil
		}
	}
	err := l.Set(key, binary.BigEndian.AppendUint64(nil, v))
	if err != nil && string(key) == keyCurrentTerm && l.running.Load() {
		l.g.fail(err)
		runtime.Goexit()
	}
	return err
}

// keyCurrentTerm is the library's name for its term in the stable store.
const keyCurrentTerm = "CurrentTerm"

// GetLog implements raft.LogStore.
func (l *raftLog) GetLog(index uint64, out *raft.Log) error {
	if !l.running.Load() {
		err := l.Log.Head(index, out)
		if err != nil || out.Type == raft.LogCommand {
			return err
		}
	}
	for {
		err := l.Log.GetLog(index, out)
		var corrupt *block.CorruptError
		if err == nil || !errors.As(err, &corrupt) {
			if err != nil && !errors.Is(err, raft.ErrLogNotFound) && l.running.Load() {
				l.g.fail(err)
				runtime.Goexit()
			}
			return err
		}
		if !l.running.Load() {
			return err // a configuration: newRaft says that the log cannot be read
		}
		select {
		case <-l.g.mending.found():
		case <-l.inst.ctx.Done():
			runtime.Goexit()
		}
	}
}
