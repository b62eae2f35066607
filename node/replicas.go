package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"

	"sanctuary/blockstore"
	"sanctuary/node/catalog"
	"sanctuary/node/pools"
	"sanctuary/node/reconcile"
	"sanctuary/replication"
	"sanctuary/replication/journal"
	"sanctuary/target/scsi"
)

// replicas are the LUN replicas of this node: their storage and what runs on it. It implements reconcile.Runner.
//
// A replica's directory is luns/<LUN ID>/<incarnation>: the journal, and replica.json, which is written last and so says
// that the storage is complete. A replica in RAM has no directory; its journal and volume live in memory and end with the
// process. Volumes are named <LUN ID>.<incarnation> in their pool.
type replicas struct {
	n       *Node
	dir     string
	markers markers

	mu      sync.Mutex
	running map[string]*running       // by LUN ID
	targets map[string]*running       // by IQN
	memory  map[string]*memoryReplica // by replica ID and LUN, see memoryKey
	// fillings are what is being filled beside the replica that runs, by replica ID and LUN.
	fillings map[string]*filling
	closed   bool

	deleting sync.Map // directories whose replica's log may be gone already
}

// running is a started replica.
type running struct {
	lun     catalog.LUN
	replica catalog.Replica
	group   *replication.Group
	volume  *blockstore.Volume // nil on a witness
	pool    *pools.Pool        // nil on a witness
	unit    *scsi.Unit         // nil on a witness
	target  *scsi.Target       // the LUN's own; nil on a witness

	access    atomic.Pointer[scsi.Access]
	preferred atomic.Bool // it has been handed to its preferred owner, or that was tried
	growing   atomic.Bool
	space     spaceView
	rolling   atomic.Bool // an operator's rollback is under way here, and tells the initiators itself
	mu        sync.Mutex
	changed   chan struct{} // closed and replaced when access has changed
}

type memoryReplica struct {
	lun, id string
	journal journal.Log
	history uint64 // the epoch its journal is of
	pool    *pools.Pool
	volume  *blockstore.Volume
	started bool // see replicaFile.Started; guarded by replicas.mu
}

func newReplicas(n *Node) *replicas {
	return &replicas{
		n: n, dir: filepath.Join(n.cfg.DataDir, "luns"),
		running: map[string]*running{}, targets: map[string]*running{}, memory: map[string]*memoryReplica{}, fillings: map[string]*filling{},
	}
}

func memoryKey(lun, replica string) string { return lun + " " + replica }

// Running implements reconcile.Runner.
func (s *replicas) Running() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]string, len(s.running))
	for id, r := range s.running {
		out[id] = r.replica.ID
	}
	return out
}

// Owns implements reconcile.Runner.
func (s *replicas) Owns(lun string) bool {
	r := s.get(lun)
	return r != nil && r.group.Serving()
}

func (s *replicas) get(lun string) *running {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running[lun]
}

// offered says whether initiators may log in to a LUN's own target here: not any more once it is being stopped.
func (s *replicas) offered(iqn string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.targets[iqn] != nil
}

// units returns the LUNs that can be served here, by LUN ID.
func (s *replicas) units() map[string]*scsi.Unit {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]*scsi.Unit{}
	for _, r := range s.targets {
		out[r.lun.ID] = r.unit
	}
	return out
}

// held returns what a replica has in memory.
func (s *replicas) held(l catalog.LUN, r catalog.Replica) (*memoryReplica, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.memory[memoryKey(l.ID, r.ID)]; m != nil {
		return m, nil
	}
	return nil, fmt.Errorf("replica %s has no storage here", r.ID)
}

// Start implements reconcile.Runner.
func (s *replicas) Start(_ context.Context, l catalog.LUN, r catalog.Replica, bootstrap []catalog.Replica) (err error) {
	s.mu.Lock()
	closed, exists := s.closed, s.running[l.ID] != nil
	s.mu.Unlock()
	if closed || exists {
		return fmt.Errorf("LUN %s: a replica runs already, or the node is stopping", l.Name)
	}
	run := &running{lun: l, replica: r, changed: make(chan struct{})}
	cfg := replication.Config{
		LUN: l.ID, Epoch: l.Epoch, Self: member(r), Geometry: l.Geometry, Logger: s.n.log.With("lun-name", l.Name),
		Timing: s.timing(), Limits: replication.Limits{JournalKeepBytes: int64(s.n.cfg.Journal.KeepBytes)},
		OnChange: func() { go s.changed(l.ID) }, OnRollback: func() { go s.rolledBack(l.ID) }, Scrub: s.scrub(l, r),
		Rebuild: s.rebuild(l, r),
	}
	cfg.Members, cfg.View, cfg.Bootstrap = members(l.Replicas), viewOf(s.n.catalog.Model(), l), members(bootstrap)
	var started func() error
	if inMemory(l, r) {
		m, err := s.held(l, r)
		if err != nil {
			return err
		}
		if err := s.recoverInMemory(l, r, m); err != nil {
			return err
		}
		cfg.Journal, run.volume, run.pool, cfg.First = m.journal, m.volume, m.pool, !m.started
		cfg.Limits.JournalKeepBytes = min(cfg.Limits.JournalKeepBytes, memoryJournalBytes)
		cfg.Limits.CheckpointBytes = memoryJournalBytes / 2 // costs nothing in RAM, and lets the log go
		started = func() error { m.started = true; return nil }
	} else if started, err = s.openStorage(run, &cfg); err != nil {
		return err
	}
	if run.volume != nil {
		cfg.Store = run.volume
	}
	if run.group, err = s.n.host.Open(cfg); err != nil {
		if run.volume != nil && !inMemory(l, r) {
			err = errors.Join(err, run.volume.Close())
		}
		if errors.Is(err, replication.ErrLogLost) {
			err = fmt.Errorf("%w: %w", reconcile.ErrStorageLost, err)
		}
		return err
	}
	if err := started(); err != nil {
		return errors.Join(err, s.end(run))
	}
	if run.volume != nil {
		if err := s.offer(run); err != nil {
			return errors.Join(err, s.end(run))
		}
	}
	s.mu.Lock()
	s.running[l.ID] = run
	if run.target != nil {
		s.targets[l.IQN] = run
	}
	s.mu.Unlock()
	s.followHosts()
	s.changed(l.ID)
	return nil
}

// followHosts makes the hosts' own targets what the catalog and the replicas here say now.
func (s *replicas) followHosts() {
	err := s.n.hostTargets.follow(s.n, func() (*catalog.Model, map[string]*scsi.Unit) { return s.n.catalog.Model(), s.units() })
	if err != nil {
		s.n.log.Error("a host's target does not hold what it should", "error", err)
	}
}

// memoryJournalBytes bounds the log of a replica in RAM, for peers that were away for a moment.
const memoryJournalBytes = 64 << 20

func member(r catalog.Replica) replication.Member {
	return replication.Member{
		ID: raft.ServerID(r.ID), Node: r.Node, Witness: r.Witness, Leaving: r.Leaving, Filled: r.Filled,
		Joining: r.State == catalog.ReplicaJoining,
	}
}

func members(rs []catalog.Replica) (out []replication.Member) {
	for _, r := range rs {
		out = append(out, member(r))
	}
	return out
}

// follow tells every replica what the catalog says of its LUN's members, until ctx ends: whoever becomes the owner next has
// to know.
func (s *replicas) follow(ctx context.Context) error {
	for {
		m, newer := s.n.catalog.Watch()
		for _, l := range m.LUNs {
			if run := s.get(l.ID); run != nil {
				run.group.Follow(members(l.Replicas), viewOf(m, l))
			}
		}
		s.followHosts()
		s.changed("")
		s.n.recheck()
		select {
		case <-newer:
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *replicas) timing() replication.Timing {
	c, t := s.n.cfg.Timing, replication.DefaultTiming()
	t.Heartbeat, t.Promise, t.Kick = c.Heartbeat.Std(), c.Lease.Std(), c.Lease.Std()
	t.LeaderLease = c.Lease.Std()
	t.Gate.NoProgress = c.OutOfSync.Std()
	t.Gate.CatchUp = max(t.Gate.CatchUp, c.OutOfSync.Std())
	return t
}

// offer makes the LUN a target of this node.
func (s *replicas) offer(run *running) error {
	cfg, err := s.n.describeUnit(run.lun)
	if err != nil {
		return err
	}
	s.refresh(run)
	cfg.Backend, cfg.Access, cfg.AccessChanged = run.group, func() scsi.Access { return *run.access.Load() }, run.accessChanged
	cfg.AskOwner, cfg.HolderLives, cfg.SetPreferred, cfg.Space = s.n.askOwner(run), s.n.holderLives(run), s.n.setPreferred(run), s.n.spaceOf(run)
	if run.unit, err = scsi.NewUnit(cfg); err != nil {
		return err
	}
	run.target = scsi.NewTarget(scsi.TargetConfig{Name: run.lun.IQN})
	return run.target.Add(uint16(run.lun.Number), run.unit)
}

// describeUnit returns what the unit of a LUN tells of itself, on every node and whether its copy there runs or not.
func (n *Node) describeUnit(l catalog.LUN) (scsi.UnitConfig, error) {
	naa, err := parseNAA(l.NAA)
	if err != nil {
		return scsi.UnitConfig{}, err
	}
	return scsi.UnitConfig{
		Identity: scsi.Identity{
			Vendor: "SANCTRY", Product: "Sanctuary LUN", Revision: "1", Serial: l.Serial, NAA: naa, Name: l.Name,
		},
		WriteProtected: l.ReadOnly, Log: n.log.With("lun-name", l.Name),
	}, nil
}

// prefer hands a LUN that has just been made, and holds nothing yet, to the node that was asked for. Later the ownership
// stays where it is: moving it costs initiators a pause, so it is left to the operator.
func (s *replicas) prefer(run *running) {
	l := run.current(s.n.catalog.Model())
	want, ok := l.ReplicaOn(l.Preferred)
	if !ok || want.Node == s.n.cfg.Node || run.preferred.Load() {
		return
	}
	st := run.group.Status()
	if !st.Serving || st.Applied > 0 || st.Handed { // somebody wants it here
		return
	}
	for _, p := range st.Peers {
		if string(p.ID) == want.ID && p.InSync && run.preferred.CompareAndSwap(false, true) {
			s.n.log.Info("handing a new LUN to its preferred owner", "lun", run.lun.Name, "node", want.Node)
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			go func() {
				defer cancel()
				if err := run.group.Transfer(ctx, p.ID); err != nil {
					s.n.log.Info("the LUN stays where it is", "lun", run.lun.Name, "reason", err)
				}
			}()
		}
	}
}

// changed is called when a LUN's owner or health may have changed; "" means any LUN.
func (s *replicas) changed(lun string) {
	s.mu.Lock()
	var runs []*running
	for id, r := range s.running {
		if (lun == "" || id == lun) && r.target != nil {
			runs = append(runs, r)
		}
	}
	s.mu.Unlock()
	for _, r := range runs {
		s.refresh(r)
		s.detectZeros(r)
		s.prefer(r)
		s.grow(r)
	}
	s.n.reconciler.Wake()
}

// detectZeros tells a replica whether its LUN has zero detection. mu keeps what an older catalog says from coming last.
func (s *replicas) detectZeros(run *running) {
	run.mu.Lock()
	defer run.mu.Unlock()
	run.group.DetectZeros(run.current(s.n.catalog.Model()).ZeroDetection)
}

// grow makes a LUN that is owned here as large as the catalog says. It is looked at again with every change and by every
// owner, so nothing is lost if this one does not get to it.
func (s *replicas) grow(run *running) {
	want := s.n.catalog.Model().LUNs[run.lun.ID].Geometry.Capacity
	if want <= run.group.Geometry().Capacity || !run.group.Serving() || !run.growing.CompareAndSwap(false, true) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), growWithin)
	go func() {
		defer cancel()
		defer run.growing.Store(false)
		if err := run.group.Grow(ctx, want); err != nil {
			s.n.log.Warn("the LUN has not been made larger yet", "lun", run.lun.Name, "error", err)
			return
		}
		s.n.log.Info("the LUN is larger now", "lun", run.lun.Name, "bytes", want.Bytes())
	}()
}

const growWithin = 10 * time.Second

// Stop implements reconcile.Runner. The replica counts as running until it has ended.
func (s *replicas) Stop(ctx context.Context, lun string) error {
	run := s.get(lun)
	if run == nil {
		return nil
	}
	if portal := s.n.portal.Load(); portal != nil && run.target != nil {
		s.mu.Lock()
		delete(s.targets, run.lun.IQN) // nobody logs in any more
		s.mu.Unlock()
		s.followHosts()
		if err := portal.CloseTarget(ctx, run.lun.IQN); err != nil {
			return err
		}
	}
	if err := s.end(run); err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.running, lun)
	s.mu.Unlock()
	return nil
}

// end stops what runs and leaves the storage, also that in RAM.
func (s *replicas) end(run *running) error {
	err := run.group.Close()
	if run.volume != nil && !inMemory(run.lun, run.replica) {
		err = errors.Join(err, run.volume.Close())
	}
	return err
}

func (s *replicas) close() error {
	s.mu.Lock()
	s.closed = true
	runs := slices.Collect(maps.Values(s.running))
	s.running, s.targets = map[string]*running{}, map[string]*running{}
	filling := slices.Collect(maps.Keys(s.fillings))
	s.mu.Unlock()
	for _, key := range filling {
		s.endFilling(key)
	}
	var (
		all   errgroup.Group
		errs  = make([]error, len(runs))
		began = time.Now()
	)
	all.SetLimit(endTogether)
	for i, r := range runs {
		all.Go(func() error { errs[i] = s.end(r); return nil })
	}
	_ = all.Wait()
	if took := time.Since(began); took > slowEnd {
		s.n.log.Info("the LUNs' last checkpoints took long: the disk is slow, or busy with something else", "took", took.Round(time.Millisecond))
	}
	return errors.Join(errs...)
}

const (
	// endTogether is how many replicas are ended at a time: each makes a checkpoint, and their syncs cost the disk little more than one.
	endTogether = 16
	// slowEnd is beyond what checkpoints take on a disk that is not busy.
	slowEnd = 2 * time.Second
)
