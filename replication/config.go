package replication

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/replication/journal"
	"sanctuary/replication/witness"
)

// Store is a replica's data: one volume of a pool. Apply is called by one goroutine, in index order; everything else
// concurrently with it.
type Store interface {
	Geometry() block.Geometry // grows with block.OpGrow
	// Apply makes the operations of one log entry take effect. An index at or below Applied is a no-op, so that replay is
	// safe. No durability is asked for: the journal has the entry.
	Apply(index uint64, ops []block.Op) error
	Applied() uint64
	// Volatile says that nothing of it outlives the process. Only then may ApplyUnlogged be called (alone.go), by any goroutine.
	Volatile() bool
	ApplyUnlogged(ops []block.Op) error
	// Durable is the index up to which the newest checkpoint holds everything.
	Durable() uint64
	// ReadAt fills dst; a block that does not match its checksum is a *block.CorruptError and dst is undefined.
	ReadAt(r block.Range, dst []byte) error
	// Allocated says whether the first sector of r is stored, and for how many sectors from there on that goes.
	Allocated(r block.Range) (allocated bool, n block.Count, err error)
	State() block.State
	Failed() error // of the medium: final, for every volume on it
	Checkpoint(ctx context.Context) (applied uint64, err error)
	// Needs returns at most what applying ops would allocate, in bytes of the pool; Promise sets as much aside, or returns
	// block.ErrNoSpace, and takes it back when called with the negative; FreeBytes is what is not promised.
	Needs(ops []block.Op) int64
	Promise(bytes int64) error
	FreeBytes() int64
	// NeedsMetadata and PromiseMetadata are the same for pages of metadata, besides what comes with those bytes; MetadataRoom is what is not promised. A
	// count that is not exact is quick, and may be far too high.
	NeedsMetadata(ops []block.Op, exact bool) int64
	PromiseMetadata(pages int64) error
	MetadataRoom() int64
	// Snapshots are those after the newest applied entry, oldest first; View is one to read from, and Diff what two states may
	// differ in. Space may take seconds.
	Snapshots() []block.Snapshot
	View(id block.SnapshotID) (*blockstore.View, error)
	Diff(from, to block.SnapshotID, fn func(r block.Range) error) error
	Space(ctx context.Context) (blockstore.Space, error)
	// Reclaim frees what deleted snapshots have left, up to limit chunks of it, and says whether there is more.
	Reclaim(limit int) (more bool, err error)
	Rebuildable
	Mendable
}

// Member is one server of the LUN's Raft group.
type Member struct {
	ID      raft.ServerID // one incarnation of one replica: "<node>/<incarnation>"
	Node    string        // the node's name: its raft.ServerAddress
	Witness bool
	Leaving bool // it goes when all others hold everything; until then it counts as ever
	// Joining: an incarnation without data, as far as the catalog knows: a learner until it has caught up.
	Joining bool
	// Filled: the catalog knows that a joining copy holds what the LUN held a moment ago, as a learner, or beside a member on its node that leaves and
	// whose place it can take (Host.Fill). It may vote from then on, and not before: see Standing.
	Filled bool
}

// View says how new a list of members is.
type View struct {
	Index uint64 // of the catalog it is from; 0: not known
	Next  uint64 // the incarnation that catalog gives out next: a server with a lower one that is not in the list has been removed
}

// Timing sets the pace of failure detection. Default fits a LAN.
type Timing struct {
	Heartbeat   time.Duration // silence after which a follower stands for election; a heartbeat goes out 10 times as often
	LeaderLease time.Duration // silence of a quorum after which the owner steps down; at most Kick
	Kick        time.Duration // replaces Heartbeat when the owner's connection breaks; at least Promise
	Promise     time.Duration // how long a voter that answered the owner votes for nobody else (rule L)
	Commit      time.Duration // how soon followers hear of a commit when no further write tells them
	Checkpoint  time.Duration // between checkpoints of a busy replica
	DiskStall   time.Duration // how long the journal may take for one write before its disk counts as failed
	Gate        witness.Timing
}

// DefaultTiming is the pace for nodes on one LAN. The lease leaves room for a machine that is busy: an owner that is not
// scheduled, or whose peers are not, for LeaderLease steps down for nothing.
func DefaultTiming() Timing {
	return Timing{
		Heartbeat: time.Second, LeaderLease: 400 * time.Millisecond, Kick: 400 * time.Millisecond,
		Promise: 400 * time.Millisecond, Commit: 50 * time.Millisecond, Checkpoint: 30 * time.Second, DiskStall: 15 * time.Second,
		Gate: witness.Timing{
			LinkGrace: 100 * time.Millisecond, NoProgress: 2 * time.Second, CatchUp: time.Second, Window: 256,
			Settle: time.Second, SettleMax: 32 * time.Second,
		},
	}
}

// Validate returns an error that names the field and the way out.
func (t Timing) Validate() error {
	switch {
	case t.Promise <= 0 || t.Kick < t.Promise:
		return fmt.Errorf("timing: kick %v is shorter than the voters' promise %v: raise kick", t.Kick, t.Promise)
	case t.LeaderLease > t.Kick || t.LeaderLease <= 0:
		return fmt.Errorf("timing: leader lease %v exceeds kick %v: lower it", t.LeaderLease, t.Kick)
	case t.Heartbeat < t.Kick:
		return fmt.Errorf("timing: heartbeat %v is shorter than kick %v: raise it", t.Heartbeat, t.Kick)
	case t.Gate.LinkGrace <= 0 || t.Gate.NoProgress <= 0 || t.Gate.CatchUp <= 0:
		return errors.New("timing: the gate's limits must be positive")
	case t.Gate.Settle <= 0 || t.Gate.SettleMax < t.Gate.Settle:
		return fmt.Errorf("timing: settle %v is not positive or exceeds its maximum %v: lower it", t.Gate.Settle, t.Gate.SettleMax)
	}
	return nil
}

// Limits bound a group's memory, in bytes of payload. Zero fields mean the default.
type Limits struct {
	InflightBytes    int64 // writes accepted and not yet acknowledged; beyond it Write waits. Default 32 MiB
	JournalKeepBytes int64 // log kept behind a checkpoint for peers that come back. Default 1 GiB
	BacklogBytes     int64 // committed entries that a copy has yet to apply; beyond it AppendEntries wait (backlog.go). Default 32 MiB
	CheckpointBytes  int64 // payload applied since the last checkpoint that makes the next one due. Default 256 MiB
}

// Config is what a Group needs.
type Config struct {
	LUN     string // UUID: the Raft group's name
	Epoch   uint64 // history of the LUN; groups of different epochs do not talk
	Self    Member
	Members []Member // every member the catalog knows, Self included
	View    View     // of Members
	// Bootstrap is the group's first voters: set at the very first start of a replica that was created with the LUN, and never
	// again. Of a clone, that means: with its contents. One that comes without them joins, like a new incarnation. A replica that has been started before and finds its log gone has lost its storage (ErrLogLost).
	Bootstrap []Member
	// First says that this replica has never been started: an empty log is no loss.
	First    bool
	Geometry block.Geometry // what the LUN was made with, or has grown to
	Store    Store          // nil for a witness; stays the caller's
	Journal  journal.Log    // becomes the Group's
	Timing   Timing
	Limits   Limits
	Scrub    ScrubConfig
	Rebuild  RebuildConfig
	Logger   *slog.Logger
	// OnChange is called when the owner, the health or a member's state may have changed. It must neither block nor call the
	// Group: Raft's own goroutine may be the caller.
	OnChange func()
	// OnRollback is called on every copy when the contents have become those of a snapshot, behind the initiators' backs: the
	// time for a unit attention. The same rule. It is called again when a restart repeats the entry, and not on a copy that was
	// rebuilt meanwhile; neither has initiators who remember anything but what the owner told them.
	OnRollback func()
}

func (c *Config) validate() error {
	if c.LUN == "" || c.Self.ID == "" || c.Self.Node == "" || c.Journal == nil {
		return errors.New("replication: LUN, Self and Journal are required")
	}
	if (c.Store == nil) != c.Self.Witness {
		return errors.New("replication: a data replica has a store, a witness none")
	}
	if c.Store != nil {
		if err := c.Geometry.Validate(); err != nil {
			return err
		}
	}
	return c.Timing.Validate()
}

// ErrLogLost: a replica that has been started before has no log any more. It may have voted and acknowledged what it does
// not know; it must not come back under its ID.
var ErrLogLost = errors.New("the replica's log is gone")
