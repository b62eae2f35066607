// Package replication keeps a LUN's replicas the same and says when a write is safe. A Group is one replica of one LUN:
// one member of one Raft group. The LUN's owner is that group's leader, and nothing else.
//
// What is promised: nil from Write means the write is durable on a quorum and on every data replica in sync; a read
// returns the newest acknowledged value or later; neither is ever answered by a node that another has succeeded. Four
// rules carry this, each argued where it is kept:
//
//	G  commit implies durable      journal.Log: StoreLogs returns after fdatasync
//	W  the witness stays quiet     witness.Gate, applied in peers.go
//	F  the fence                   machine.go: an entry of another term than it was accepted in changes nothing
//	L  leases                      lease.go, checked after every read in backend.go
//
// A write's way through the package: backend.go (range lock, whole blocks, fence) → proposer.go (packs waiting writes into
// entries) → Raft → peers.go and transport → machine.go (apply to the Store, wake the writer).
//
// It does not know iSCSI, does not decide where replicas live (node/placement) nor which exist (node/catalog).
package replication

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
	"sanctuary/replication/witness"
)

// Group is one replica of a LUN. It implements what target/scsi asks of a Backend. All methods are concurrent-safe.
type Group struct {
	cfg  Config
	log  *slog.Logger
	host *Host

	lease   *lease
	promise *promise
	locks   rangeLocks
	writes  *proposer
	alone   alone

	detectZeros   atomic.Bool // see DetectZeros
	frozen        atomic.Pointer[freeze]
	reshaped      atomic.Uint64 // see noteReshape
	reclaimDue    chan struct{} // capacity 1: there may be something to reclaim
	settledIndex  atomic.Uint64 // up to here entries have been applied and whoever waited for them has been told
	appliedBytes  atomic.Int64  // payload applied since the last checkpoint
	checkpointDue chan struct{} // capacity 1: appliedBytes has reached its limit

	backlog  backlog
	mending  mending
	repairs  repairs
	room     room
	scrub    scrub
	quiet    atomic.Pointer[quiet]  // owner: nobody writes, and no heartbeats are sent
	awake    atomic.Pointer[error]  // owner: why not, when it was looked at last
	lull     atomic.Pointer[lull]   // owner: what would tell its members nothing is held
	hushed   atomic.Pointer[hushed] // follower: the same
	storing  atomic.Uint64          // calls of Raft that store entries: begun
	stored   atomic.Uint64          // and ended
	activity atomic.Uint64          // reads and applied entries, for whoever waits for a quiet moment

	space    space
	full     atomic.Bool // applying waits for room in the pool
	tenure   atomic.Pointer[tenure]
	failed   atomic.Pointer[error]
	asking   atomic.Bool  // see noteRefused
	storedAt atomic.Int64 // when Raft stored entries last, in ms since the Unix epoch; see noteTime
	usedAt   atomic.Int64 // and when commands among them, in ns since opened
	opened   time.Time

	timeNoted int64     // see noteTime
	shortened time.Time // tick's: when the log was last to be made short for want of room
	// offered is the last term whose owner wanted to hand the LUN to this node.
	offered    atomic.Uint64
	offeredEnd atomic.Uint64 // and where its log ended then

	// mu guards what follows; never held across disk or network.
	mu          sync.Mutex
	closing     bool      // nothing is started any more
	inst        *instance // the running Raft; replaced by a rebuild, nil while one runs
	members     map[raft.ServerID]Member
	view        View          // of members
	gate        *witness.Gate // only while this node leads
	gateTerm    uint64
	gateMove    chan struct{} // closed and replaced when the gate's limit may have changed
	linkMove    chan struct{} // the same when a connection has come or gone, or this node no longer leads
	match       map[raft.ServerID]uint64
	heard       map[raft.ServerID]time.Time // when a member last took entries
	heardCommit map[raft.ServerID]uint64    // the newest commit index a member has been told and has answered
	contacts    map[raft.ServerID]time.Time // when a server was last heard, in whatever term
	begun       uint64                      // owner: the end of the log that it was elected with
	changed     uint64                      // owner: the log's index behind which there is no change of members; see knowMembers
	pace        time.Duration               // between entries, while a copy catches up
	paceLag     uint64                      // its lag at the last tick
	parked      []parked                    // applied entries that some replica in sync has yet to acknowledge, by index
	down        map[string]time.Time        // node -> since when its connection is broken
	out         map[raft.ServerID]time.Time // since when it has said that its storage has failed
	kicked      time.Time                   // when the election timers were shortened; zero: they are not
	// kickedAgain: the second kick has been given. kickJitter keeps several survivors from standing at the same moment.
	kickedAgain bool
	kickJitter  time.Duration
	rebuild     rebuildState
	needs       map[raft.ServerID]bool      // owner: members that cannot be served from the log
	claimed     map[raft.ServerID]time.Time // owner: of which Raft has said so first, and it may not be true; see needsRebuild

	// changing is held while the group's members are being changed.
	changing sync.Mutex
	// reloading is held from reading Raft's reloadable settings to writing them back.
	reloading sync.Mutex

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// instance is one life of the Raft library over the group's journal.
type instance struct {
	raft   *raft.Raft
	peers  *peers
	notify chan bool
	ctx    context.Context // ends when this life does
	stop   context.CancelFunc
	done   chan struct{} // closed when the goroutine that follows notify has ended
	exact  atomic.Bool   // see Group.exact
}

// open starts the group; Host.Open is the way in.
func open(host *Host, cfg Config) (*Group, error) {
	if cfg.Timing == (Timing{}) {
		cfg.Timing = DefaultTiming()
	}
	if cfg.Limits.InflightBytes == 0 {
		cfg.Limits.InflightBytes = 32 << 20
	}
	if cfg.Limits.BacklogBytes == 0 {
		cfg.Limits.BacklogBytes = 32 << 20
	}
	if cfg.Limits.JournalKeepBytes == 0 {
		cfg.Limits.JournalKeepBytes = 1 << 30
	}
	if cfg.Limits.CheckpointBytes == 0 {
		cfg.Limits.CheckpointBytes = 256 << 20
	}
	cfg.Rebuild.setDefaults()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.OnChange == nil {
		cfg.OnChange = func() {}
	}
	if cfg.OnRollback == nil {
		cfg.OnRollback = func() {}
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	g := &Group{
		cfg: cfg, host: host, log: cfg.Logger.With("lun", cfg.LUN, "replica", string(cfg.Self.ID)),
		lease:   newLease(cfg.Self.ID, cfg.Timing.Promise),
		promise: newPromise(cfg.Timing.Promise, time.Now()),
		members: map[raft.ServerID]Member{}, match: map[raft.ServerID]uint64{}, heard: map[raft.ServerID]time.Time{}, heardCommit: map[raft.ServerID]uint64{}, down: map[string]time.Time{}, out: map[raft.ServerID]time.Time{},
		contacts: map[raft.ServerID]time.Time{}, opened: time.Now(),
		needs: map[raft.ServerID]bool{}, claimed: map[raft.ServerID]time.Time{}, checkpointDue: make(chan struct{}, 1), reclaimDue: make(chan struct{}, 1), gateMove: make(chan struct{}), linkMove: make(chan struct{}),
	}
	g.scrub.wake, g.scrub.peers = make(chan struct{}, 1), map[raft.ServerID]ScrubStatus{}
	if cfg.View.Index > 0 {
		g.Follow(cfg.Members, cfg.View)
	} else {
		g.Learn(cfg.Members)
		g.Learn([]Member{cfg.Self})
	}
	if cfg.Store != nil {
		g.reshaped.Store(cfg.Store.Applied())
	}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.writes = newProposer(g, cfg.Limits.InflightBytes)
	g.mending.init()
	if err := g.beginMending(); err != nil {
		g.cancel()
		return nil, err
	}
	if err := g.checkStore(); err != nil {
		g.cancel()
		return nil, err
	}
	born, err := g.bootstrap()
	if err != nil {
		g.cancel()
		return nil, err
	}
	if born {
		g.promise = &promise{duration: cfg.Timing.Promise}
	}
	if cfg.Store == nil || !cfg.Store.Inconsistent() {
		if err := g.start(); err != nil {
			g.cancel()
			return nil, err
		}
		if inst := g.running(); born && inst != nil && len(cfg.Bootstrap) > 0 && cfg.Bootstrap[0].ID == cfg.Self.ID {
			// Nobody owns a new LUN, nor has promised anybody anything: no need to wait for an owner to be silent.
			g.setHeartbeat(inst, g.kickTimeout()+kickStep, time.Now())
		}
	}
	if cfg.Store != nil && cfg.Store.Inconsistent() { // a rebuild was interrupted; it goes on
		g.rebuild.running = true
		g.startRebuild(g.nextSource(""))
	}
	g.goFunc(g.tick)
	g.goFunc(g.mendLog)
	g.goFunc(g.maintain)
	g.goFunc(g.checkpoints)
	if cfg.Store != nil {
		g.goFunc(g.scrubLoop)
		g.goFunc(g.reclaim)
	}
	return g, nil
}

// goFunc runs f on a goroutine that Close waits for, unless the group is closing.
func (g *Group) goFunc(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closing {
		g.wg.Go(f)
	}
}

// checkStore refuses a volume that is older than the log believes: entries between the two would be missing for ever.
func (g *Group) checkStore() error {
	if g.cfg.Store == nil || g.cfg.Store.Inconsistent() {
		return nil
	}
	_, body, ok := g.cfg.Journal.Snapshots().Newest()
	if !ok {
		return nil
	}
	mark, err := decodeMark(body)
	if err != nil {
		return err
	}
	if have := g.cfg.Store.Durable(); have < mark.Applied {
		return fmt.Errorf("LUN %s: the volume is durable to index %d, but the log before %d is gone: this is an older copy of the volume; "+
			"remove this replica and let it be rebuilt", g.cfg.LUN, have, mark.Applied)
	}
	return nil
}

func (g *Group) raftConfig(notify chan bool) *raft.Config {
	t := g.cfg.Timing
	c := raft.DefaultConfig()
	c.LocalID = g.cfg.Self.ID
	c.HeartbeatTimeout, c.ElectionTimeout = t.Heartbeat, t.Heartbeat
	c.LeaderLeaseTimeout = t.LeaderLease
	if g.cfg.Self.Witness {
		c.LeaderLeaseTimeout = witnessKick // it never leads; this only lets its timer be kicked lower
	}
	c.CommitTimeout = t.Commit
	c.MaxAppendEntries = maxAppendEntries
	c.BatchApplyCh = true
	c.ShutdownOnRemove = false
	// Snapshots here are checkpoints, taken when checkpoints says so, and never restored into the volume.
	c.SnapshotInterval, c.SnapshotThreshold = 24*time.Hour, math.MaxUint64>>1
	c.NoSnapshotRestoreOnStart = true
	c.TrailingLogs = math.MaxUint64 >> 1
	c.NotifyCh = notify
	c.NoLegacyTelemetry = true // nobody reads its metrics, least of all twice
	c.Logger = raftLogger(g.log)
	return c
}

const (
	// maxAppendEntries bounds the entries in one AppendEntries. It must not be below maxInflightEntries: a pipeline sends
	// one request per trigger, and what does not fit waits for the next write.
	maxAppendEntries = 64
	// witnessKick is how soon a kicked witness forgets the owner, so that it is ready to vote before the data replicas,
	// kicked to Timing.Kick at the same moment, ask it. Its promise still holds it back.
	witnessKick = 50 * time.Millisecond
)

// start brings Raft up over the journal.
func (g *Group) start() error {
	tr, err := g.host.openTransport(g)
	if err != nil {
		return err
	}
	inst := &instance{peers: newPeers(g, tr), notify: make(chan bool, 16), done: make(chan struct{})}
	inst.ctx, inst.stop = context.WithCancel(g.ctx)
	g.backlog.reset()
	if err = g.newRaft(inst); err != nil {
		inst.stop()
		return errors.Join(fmt.Errorf("start Raft: %w", err), tr.Close())
	}
	inst.raft.RegisterObserver(raft.NewObserver(nil, false, func(o *raft.Observation) bool {
		if _, ok := o.Data.(raft.LeaderObservation); ok {
			g.cfg.OnChange()
		}
		return false // nothing is queued
	}))
	g.mu.Lock()
	closing := g.closing
	if !closing {
		g.inst = inst
		g.wg.Go(func() {
			defer close(inst.done)
			g.followLeadership(inst.ctx, inst)
		})
	}
	g.mu.Unlock()
	if closing {
		close(inst.done)
		g.end(inst)
		return block.ErrClosed
	}
	return nil
}

// newRaft starts the library, which panics when an entry of the log cannot be read: then this replica stays out, not the
// whole process with every other LUN.
func (g *Group) newRaft(inst *instance) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the log cannot be read: %v", r)
		}
	}()
	j := &raftLog{Log: g.cfg.Journal, g: g, inst: inst}
	inst.peers.starting = func() { j.running.Store(true) }
	inst.raft, err = raft.NewRaft(g.raftConfig(inst.notify), &machine{g: g, ctx: inst.ctx}, j, j, j.Snapshots(), inst.peers)
	return err
}

// halt ends the running Raft, if any; the journal stays open.
func (g *Group) halt() {
	g.mu.Lock()
	inst := g.inst
	g.inst = nil
	g.mu.Unlock()
	g.stir()
	if inst == nil {
		return
	}
	g.endTenure()
	g.end(inst)
	g.host.elections.over(g)
	g.writes.abandon()
}

// end stops one life of Raft. The transport goes first: it ends the requests that Raft would wait for, and the heartbeats
// of a Raft that hangs with its disk.
func (g *Group) end(inst *instance) {
	inst.stop()
	_ = inst.peers.Close()
	<-inst.done
	drained := make(chan struct{})
	go func() { // Raft blocks on notify while it steps down
		for {
			select {
			case <-inst.notify:
			case <-drained:
				return
			}
		}
	}()
	ended := make(chan struct{})
	go func() {
		_ = inst.raft.Shutdown().Error()
		close(drained)
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(g.shutdownWait()): // what it may still write nobody will read as acknowledged
		g.log.Error("Raft did not stop in time: its disk may hang, or be full")
	}
}

// shutdownWait is how long Raft is given to stop.
const shutdownWait = 15 * time.Second

// shutdownWait is less while the journal has no room: Raft then waits for some that nobody may make, and a node that is stopped does not.
func (g *Group) shutdownWait() time.Duration {
	if g.isClosing() && !g.cfg.Journal.Takes() {
		return time.Second
	}
	return shutdownWait
}

func (g *Group) isClosing() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closing
}

// Close ends the group: I/O in flight is answered with block.ErrUnknown or block.ErrClosed. The Store stays open.
func (g *Group) Close() error {
	g.host.forget(g)
	g.mu.Lock()
	g.closing = true
	g.mu.Unlock()
	g.halt()
	g.cancel()
	g.wg.Wait()
	g.halt() // a rebuild may have ended meanwhile
	g.noteTime(true)
	g.writes.close()
	if g.cfg.Store != nil {
		g.room.drop(g, time.Now().Add(time.Hour))
	}
	return g.cfg.Journal.Close()
}

// running returns the current Raft or nil.
func (g *Group) running() *instance {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.inst
}
