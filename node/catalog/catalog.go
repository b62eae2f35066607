package catalog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// Config is what a node's part of the catalog needs.
type Config struct {
	Cluster string // the cluster's name
	Node    string // this node's name: its server ID and address in the group
	NodeID  string // the UUID on this node's disk
	Dir     string // directory of its own on a disk that survives a power cut; created if missing

	// Initial are the names of the cluster's first members, in the same order on each of them; nil on a node that joins
	// later. It is used when Dir holds no state, and not looked at afterwards.
	Initial []string

	// Transport belongs to the catalog from Open on, also if that fails: it closes it if it can be closed.
	Transport Transport

	Heartbeat time.Duration // 0: 500 ms
	Election  time.Duration // 0: Heartbeat
	Lease     time.Duration // 0: half of Heartbeat; how long a leader stays one without a majority

	// SnapshotEntries is how many log entries make a snapshot worth while; as many are kept behind it for members that
	// are behind. 0: 1024.
	SnapshotEntries uint64

	Logger *slog.Logger // nil: discard

	// OnFailure is called once, on a goroutine of its own, when stored state turns out to be damaged while running. The catalog has
	// stopped by then: no change is made or seen here any more, and Err says why. May be nil.
	OnFailure func(error)
}

func (c *Config) complete() error {
	if !ValidName(c.Cluster) || !ValidName(c.Node) {
		return refuse(CodeInvalid, "cluster %q, node %q: both need a name of 1 to 63 of a-z, 0-9 and '-'", c.Cluster, c.Node)
	}
	if err := checkUUID("node", c.NodeID); err != nil {
		return err
	}
	found := len(c.Initial) == 0
	seen := map[string]bool{}
	for _, n := range c.Initial {
		if !ValidName(n) || seen[n] {
			return refuse(CodeInvalid, "first member %q is no valid name, or listed twice", n)
		}
		seen[n] = true
		found = found || n == c.Node
	}
	if !found {
		return refuse(CodeInvalid, "node %q is not among the first members: list it, or let it join", c.Node)
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = 500 * time.Millisecond
	}
	if c.Election == 0 {
		c.Election = c.Heartbeat
	}
	if c.Lease == 0 {
		c.Lease = c.Heartbeat / 2
	}
	if c.SnapshotEntries == 0 {
		c.SnapshotEntries = 1024
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Catalog is this node's member of the catalog's Raft group. All methods are safe for concurrent use.
type Catalog struct {
	cfg   Config
	fsm   *fsm
	store *store
	guard *guard
	raft  *raft.Raft

	done  chan struct{} // closed by Close
	close sync.Once
	wg    sync.WaitGroup
	// slots bounds the proposals in flight; more wait for one, as long as their context allows.
	slots chan struct{}

	mu  sync.Mutex
	err error // why the catalog has stopped by itself
}

const (
	maxInFlight  = 64               // proposals, barriers and changes of membership under way
	enqueueWait  = 5 * time.Second  // for Raft to take a proposal at all
	shutdownWait = 15 * time.Second // for Raft's goroutines to end; a disk that hangs must not hang Close
	keepSnaps    = 2
)

// Open starts this node's member. A first member with no state begins with the first configuration; one with state
// goes on from it. The error wraps ErrCorrupt when what is stored is damaged: then nothing has been started or changed.
func Open(cfg Config) (*Catalog, error) {
	c, err := open(cfg)
	if err != nil {
		if t, ok := cfg.Transport.(raft.WithClose); ok {
			err = errors.Join(err, t.Close())
		}
		return nil, fmt.Errorf("catalog: %w", err)
	}
	return c, nil
}

func open(cfg Config) (*Catalog, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	c := &Catalog{cfg: cfg, done: make(chan struct{}), slots: make(chan struct{}, maxInFlight)}
	c.fsm = newFSM(cfg.Cluster, c.noticeOwn, c.stop)
	st, err := openStore(cfg.Dir, c.stop)
	if err != nil {
		return nil, err
	}
	c.store = st
	if err := c.startRaft(); err != nil {
		return nil, errors.Join(err, st.Close())
	}
	return c, nil
}

func (c *Catalog) startRaft() error {
	logger := raftLogger(c.cfg.Logger)
	snaps, err := raft.NewFileSnapshotStoreWithLogger(c.cfg.Dir, keepSnaps, logger)
	if err != nil {
		return fmt.Errorf("open snapshots: %w", err)
	}
	through, err := c.checkSnapshots(snaps)
	if err != nil {
		return err
	}
	if err := c.checkWhole(through); err != nil {
		return fmt.Errorf("%w. This node's copy cannot be used; the others' are not touched. If they are up, remove this node "+
			"from the cluster and add it again with an empty data directory", err)
	}
	cache, err := raft.NewLogCache(512, c.store)
	if err != nil {
		return err
	}
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(c.cfg.Node)
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = c.cfg.Heartbeat, c.cfg.Election, c.cfg.Lease
	conf.SnapshotThreshold, conf.TrailingLogs = c.cfg.SnapshotEntries, c.cfg.SnapshotEntries
	conf.SnapshotInterval = 30 * time.Second
	conf.ShutdownOnRemove = false // a removed node still reads what it has, and says that it was removed
	conf.NoLegacyTelemetry = true
	conf.Logger = logger

	c.guard = &guard{
		Transport: c.cfg.Transport, first: len(c.cfg.Initial) > 0,
		confirm: func() error { return c.store.put(keyMember, []byte(c.cfg.NodeID)) },
		last: func() uint64 {
			last, err := c.store.LastIndex()
			if err != nil {
				return math.MaxUint64 // not known to be blank
			}
			return max(last, c.appliedIndex())
		},
		applied: c.appliedIndex,
	}
	if id, err := c.store.get(keyMember); err == nil {
		if string(id) != c.cfg.NodeID {
			return refuse(CodeIdentity, "the catalog in %s is of the node with ID %s, this is %s: the data directory has been mixed up with another node's", c.cfg.Dir, id, c.cfg.NodeID)
		}
		c.guard.confirmed.Store(true)
	} else if errors.Is(err, ErrCorrupt) {
		return err
	}
	if rescued, err := c.store.rescued(); err != nil {
		return err
	} else if rescued {
		c.guard.knows = c.knows
	}
	if err := c.bootstrap(through); err != nil {
		return fmt.Errorf("write the first configuration: %w", err)
	}
	c.guard.start()
	r, err := raft.NewRaft(conf, c.fsm, cache, c.store, snaps, c.guard)
	if err != nil {
		if damage := c.Err(); damage != nil {
			err = damage // Raft drops the cause
		}
		return errors.Join(err, c.guard.Close())
	}
	c.mu.Lock()
	c.raft = r
	err = c.err // damage met by a goroutine that NewRaft has started
	c.mu.Unlock()
	if err != nil {
		return errors.Join(err, r.Shutdown().Error(), c.guard.Close())
	}
	return nil
}

// bootstrap gives a first member with neither log nor snapshot the first configuration, which is the same entry on each of
// them. Raft's own BootstrapCluster would not finish what a power cut between its two writes left undone.
func (c *Catalog) bootstrap(snapshot uint64) error {
	last, err := c.store.LastIndex()
	if err != nil || last > 0 || snapshot > 0 || len(c.cfg.Initial) == 0 {
		return err
	}
	if _, err := c.store.GetUint64(keyTerm); errors.Is(err, raftboltdb.ErrKeyNotFound) {
		err = c.store.SetUint64(keyTerm, 1)
		if err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	var first raft.Configuration
	for _, n := range c.cfg.Initial {
		first.Servers = append(first.Servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(n), Address: raft.ServerAddress(n)})
	}
	return c.store.StoreLog(&raft.Log{Index: firstIndex, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(first)})
}

// checkSnapshots returns the index the newest snapshot ends at, after reading it: Raft would fall back to an older one and
// then panic over the entries missing after it.
func (c *Catalog) checkSnapshots(snaps *raft.FileSnapshotStore) (uint64, error) {
	list, err := snaps.List()
	if err != nil {
		return 0, fmt.Errorf("list snapshots: %w", err)
	}
	if len(list) == 0 {
		return 0, nil
	}
	path := filepath.Join(c.cfg.Dir, "snapshots", list[0].ID)
	meta, r, err := snaps.Open(list[0].ID) // verifies its checksum
	if err != nil {
		return 0, fmt.Errorf("%w: snapshot %s: %w", ErrCorrupt, path, err)
	}
	defer func() { _ = r.Close() }()
	if _, err := decodeSnapshot(io.Reader(r), c.cfg.Cluster); err != nil {
		return 0, fmt.Errorf("snapshot %s: %w", path, err)
	}
	return meta.Index, nil
}

// checkWhole verifies the log, and that it is there: a snapshot without the file that held the log and the votes comes
// from a disk that has lost a part, and a member that has forgotten its votes must not give any.
func (c *Catalog) checkWhole(snapshot uint64) error {
	_, err := c.store.GetUint64(keyTerm)
	if snapshot > 0 && errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return fmt.Errorf("%w: there are snapshots in %s, and raft.db is missing or empty", ErrCorrupt, c.cfg.Dir)
	}
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return err
	}
	return c.store.verify(snapshot)
}

func (c *Catalog) group() *raft.Raft {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.raft
}

func (c *Catalog) appliedIndex() uint64 {
	if r := c.group(); r != nil {
		return r.AppliedIndex()
	}
	return 0
}

// noticeOwn confirms this member when its catalog holds its registration (see guard).
func (c *Catalog) noticeOwn(m *Model) {
	n, ok := m.Nodes[c.cfg.Node]
	if !ok || n.ID != c.cfg.NodeID || c.guard == nil {
		return
	}
	if err := c.guard.setConfirmed(); err != nil {
		c.cfg.Logger.Error("this node's catalog cannot vote yet", "reason", err)
	}
}

// stop ends the group after damage has been found. It is called on Raft's own goroutines and must not wait for them.
func (c *Catalog) stop(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.closed() {
		return
	}
	c.err = err
	if c.raft == nil {
		return // Open returns the error
	}
	c.cfg.Logger.Error("the catalog on this node has stopped", "reason", err)
	r := c.raft
	c.wg.Go(func() {
		r.Shutdown() // waited for by Close
		if c.cfg.OnFailure != nil {
			c.cfg.OnFailure(err)
		}
	})
}

func (c *Catalog) closed() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// Err returns why the catalog has stopped by itself, or nil.
func (c *Catalog) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close stops this member and waits for everything it started, at most 15 seconds. OnFailure must not call it.
func (c *Catalog) Close() error {
	var err error
	c.close.Do(func() {
		c.mu.Lock()
		close(c.done)
		c.mu.Unlock()
		c.wg.Wait()
		ended := make(chan error, 1)
		go func() {
			e := c.raft.Shutdown().Error()
			ended <- errors.Join(e, c.guard.Close(), c.store.Close())
		}()
		select {
		case err = <-ended:
		case <-time.After(shutdownWait):
			err = fmt.Errorf("the catalog did not stop within %s: its disk may hang", shutdownWait)
		}
	})
	return err
}

// Model returns the newest model this node has. It must not be changed. On a node that is behind it is an older one;
// a deleted LUN is known by its tombstone, never by its absence.
func (c *Catalog) Model() *Model { return c.fsm.model.Load() }

// Watch returns the newest model and a channel that is closed when there is a newer one.
func (c *Catalog) Watch() (*Model, <-chan struct{}) { return c.fsm.watch() }

// WaitIndex returns the first model this node has with at least that Index (a Result's), or the context's error.
func (c *Catalog) WaitIndex(ctx context.Context, index uint64) (*Model, error) {
	for {
		m, newer := c.Watch()
		if m.Index >= index {
			return m, nil
		}
		select {
		case <-newer:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-c.done:
			return nil, ErrClosed
		}
	}
}

// Leader returns the name of the node that leads the catalog, as far as this one knows.
func (c *Catalog) Leader() (string, bool) {
	addr, _ := c.raft.LeaderWithID()
	return string(addr), addr != ""
}

// IsLeader says whether this node believes to lead the catalog.
func (c *Catalog) IsLeader() bool { return c.raft.State() == raft.Leader }

// Term returns the group's current Raft term.
func (c *Catalog) Term() uint64 { return c.raft.CurrentTerm() }
