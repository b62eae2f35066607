//go:build sim

package sim

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
	"sanctuary/blockstore/vfs/crashdev"
	"sanctuary/replication"
	"sanctuary/replication/journal"
	"sanctuary/replication/transport"
)

const (
	lun           = "6f1d"
	volumeBytes   = 4 << 20
	poolBytes     = 8 << 20
	segmentBytes  = 1 << 20
	keepBytes     = 256 << 10 // so little that a replica that was away for long must be rebuilt
	checkpointing = 128 << 10
)

// machine is a node's hardware, and what the catalog says of the replica on it.
type machine struct {
	w       *world
	name    string
	witness bool
	ram     bool // its replica's data and log end with the process

	power   *crashdev.Power
	folder  *crashdev.Folder // the journal's
	disk    *crashdev.Dev    // the pool's; nil for a witness or in RAM
	life    atomic.Int64     // incarnation of the replica
	joining atomic.Bool      // it began empty, and has not been given a vote yet
	filled  atomic.Bool      // it has caught up and may be given one
	started bool             // its replica has been started before
	failing bool             // its disk has failed, whoever has noticed
	syncs   atomic.Int64     // nanoseconds that a sync of its disks takes
	usual   time.Duration    // as it is without a fault
	full    atomic.Int64     // until when there is no room for another file of the journal, in nanoseconds since 1970
	errors  atomic.Pointer[diskErrors]
}

// process is what runs on a machine until it is killed.
type process struct {
	m       *machine
	port    *port
	mux     *transport.Mux
	host    *replication.Host
	journal *journal.Journal // nil: in memory
	pool    *blockstore.Pool
	vol     *blockstore.Volume
	group   *replication.Group
	served  chan struct{}
	dead    chan struct{} // closed when the process has been killed: what it says from then on is not heard
	seen    atomic.Uint64
}

func (m *machine) member() replication.Member {
	return replication.Member{
		ID: raft.ServerID(fmt.Sprintf("%s/%d", m.name, m.life.Load())), Node: m.name, Witness: m.witness,
		Joining: m.joining.Load(), Filled: m.filled.Load(),
	}
}

// blank gives the machine empty storage and its replica a new identity.
func (m *machine) blank() {
	m.power, m.failing = crashdev.NewPower(-1), false
	m.full.Store(0)
	m.folder, m.disk = crashdev.NewFolder(m.power), nil
	if !m.witness && !m.ram {
		m.disk = crashdev.New(blockstore.MediumBytes(poolBytes), m.power)
	}
	if m.life.Load() > 0 && !m.w.ended.Load() && !m.w.knownToHold(m) {
		m.w.h.violation("%s has lost what it held, and the catalog, which knows of nobody else who may hold the LUN, takes it for lost", m.name)
	}
	m.filled.Store(false)
	m.joining.Store(m.life.Add(1) > 1)
	m.started = false
	m.connect()
}

// diskErrors are what the disks of a machine do not do any more.
type diskErrors struct{ journal, pool []crashdev.Kind }

// connect puts the machine's disks behind its controller: a sync takes its time, and what is to fail fails.
func (m *machine) connect() {
	m.errors.Store(&diskErrors{})
	m.syncs.Store(int64(m.usual))
	power := m.power
	ask := func(k crashdev.Kind, failing func(e *diskErrors) []crashdev.Kind) error {
		if power.Lost() {
			return nil // the disk itself says so
		}
		if k == crashdev.Sync {
			time.Sleep(time.Duration(m.syncs.Load()))
		}
		if slices.Contains(failing(m.errors.Load()), k) {
			return errDisk
		}
		return nil
	}
	m.folder.SetHook(func(_ string, k crashdev.Kind, _, _ int64) error {
		if k == crashdev.Allocate && time.Now().UnixNano() < m.full.Load() && !power.Lost() {
			return vfs.ErrNoSpace
		}
		return ask(k, func(e *diskErrors) []crashdev.Kind { return e.journal })
	})
	if m.disk != nil {
		m.disk.SetHook(func(k crashdev.Kind, _, _ int64) error {
			return ask(k, func(e *diskErrors) []crashdev.Kind { return e.pool })
		})
	}
}

// start starts the process, which must not run.
func (m *machine) start() error {
	w := m.w
	p := &process{m: m, served: make(chan struct{}), dead: make(chan struct{})}
	p.port = w.net.listen(m.name)
	var err error
	p.mux, err = transport.New(transport.Config{
		Cluster: "sim", Node: m.name, NodeID: m.name + "-id", Logger: w.logger(m.name),
		Resolve: func(node string) (string, bool) { return node, true },
		Dial:    w.dialer(p.port),
	})
	if err != nil {
		return err
	}
	go func() {
		defer close(p.served)
		_ = p.mux.Serve(p.port)
	}()
	if p.host, err = replication.NewHost(p.mux); err == nil {
		err = p.open()
	}
	if err != nil {
		p.stop()
		return err
	}
	m.started = true
	w.setProcess(m, p)
	return nil
}

func (p *process) open() (err error) {
	m, w := p.m, p.m.w
	g := block.Geometry{Capacity: block.CountOf(volumeBytes), LogicalBlockBytes: 512}
	cfg := replication.Config{
		LUN: lun, Epoch: 1, Self: m.member(), Members: w.members(), Geometry: g, Logger: w.logger(m.name), First: !m.started,
		OnChange: w.wake,
		Limits:   replication.Limits{JournalKeepBytes: keepBytes, CheckpointBytes: checkpointing},
		Scrub: replication.ScrubConfig{Retry: time.Second, Settings: func() replication.ScrubSettings {
			return replication.ScrubSettings{BytesPerSecond: 1 << 30, Paused: !w.scrubbing.Load()}
		}},
	}
	if !m.started && !m.joining.Load() {
		cfg.Bootstrap = w.members()
	}
	if m.ram {
		cfg.Journal = journal.NewMemory()
	} else {
		p.journal, err = journal.Open(m.folder, journal.Options{SegmentBytes: segmentBytes, Logger: w.logger(m.name)})
		if err != nil {
			return fmt.Errorf("journal: %w", err)
		}
		l, err := p.journal.Log(string(m.member().ID))
		if err != nil {
			return fmt.Errorf("log: %w", err)
		}
		cfg.Journal = l
	}
	if !m.witness {
		pc := blockstore.PoolConfig{Media: blockstore.MediaRAM, CapacityBytes: poolBytes}
		if !m.ram {
			pc.Device = m.disk
		}
		if p.pool, err = blockstore.OpenPool(pc); err != nil {
			return fmt.Errorf("pool: %w", err)
		}
		if m.started && !m.ram {
			p.vol, err = p.pool.Open(lun)
		} else {
			p.vol, err = p.pool.Create(lun, g)
		}
		if err != nil {
			return fmt.Errorf("volume: %w", err)
		}
		cfg.Store = p.vol
	}
	p.group, err = p.host.Open(cfg)
	return err
}

// stop ends the process's goroutines. What it may still do to its disks nobody sees: they are not the machine's any more, or it is
// the end of the run.
func (p *process) stop() {
	_ = p.mux.Close()
	<-p.served
	var err error
	if p.group != nil {
		err = p.group.Close()
	}
	if p.vol != nil {
		err = errors.Join(err, p.vol.Close())
	}
	if p.pool != nil {
		err = errors.Join(err, p.pool.Close())
	}
	if p.journal != nil {
		err = errors.Join(err, p.journal.Close())
	}
	p.m.w.note("%s: its process has ended (%v)", p.m.name, err)
}

// die ends the process at once. With the power gone, so is what was not synced; else the system keeps it.
func (m *machine) die(powerCut bool, seed uint64) {
	p := m.w.process(m)
	if p == nil {
		return
	}
	m.w.h.inTerm(p.term())
	m.w.setProcess(m, nil)
	m.power.Cut()
	close(p.dead)
	m.w.net.leave(m.name, powerCut)
	m.disks(powerCut, seed)
	m.w.zombies.Go(p.stop)
	if m.ram {
		m.blank()
	}
}

// lose ends the machine's process and takes its disk.
func (m *machine) lose(seed uint64) {
	m.die(true, seed)
	if !m.ram {
		m.blank()
	}
}

// disks gives the machine what is left on its disks: nobody else has them open, and none of them fails.
func (m *machine) disks(powerCut bool, seed uint64) {
	old, oldDisk := m.folder, m.disk
	m.power, m.failing = crashdev.NewPower(-1), false
	if powerCut {
		m.folder = old.CloneForCrash(seed, m.power)
	} else {
		m.folder = old.Clone(m.power)
	}
	switch {
	case oldDisk == nil:
	case powerCut:
		m.disk = oldDisk.CloneForCrash(seed+1, m.power)
	default:
		m.disk = oldDisk.Clone(m.power)
	}
	m.connect()
}

// term is the newest term that the process was seen in.
func (p *process) term() uint64 {
	t := p.group.Status().Term
	for old := p.seen.Load(); old < t && !p.seen.CompareAndSwap(old, t); old = p.seen.Load() {
	}
	return p.seen.Load()
}

// leads returns the term that the process was elected in, 0 if it leads in none.
func (p *process) leads() uint64 {
	before, after := p.group.Status(), p.group.Status()
	if !before.IsOwner || !after.IsOwner || before.Term != after.Term {
		return 0
	}
	return after.Term
}
