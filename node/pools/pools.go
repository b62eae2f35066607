// Package pools says which pools this node has: those of its configuration, and those that were added while it ran, which pools.json
// remembers.
//
// Invariants: a pool is made where nothing of anybody else's is destroyed unless that was asked for. One that cannot be opened, or
// is not the one that was there, is out by itself: it is reported, nothing is made in its place, and the node and its other pools
// go on. It does not know which replicas are in a pool: node does.
package pools

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/vfs"
	"sanctuary/node/catalog"
)

// Names of the pools of the configuration. No other pool may have them, whether they are configured or not: replicas of programs
// before there were more pools are in them.
const (
	NameFile = "file"
	NameRAM  = "ram"
)

// Spec describes a pool.
type Spec struct {
	ID    string // UUID, chosen by whoever asks for the pool: asking twice makes one
	Name  string // empty: chosen, from the class
	Media blockstore.Media
	// Path is the directory (MediaFile) or the block device (MediaDevice), absolute.
	Path string
	// CapacityBytes of a pool of files or in memory, at least MinBytes; of a device, 0: all of it.
	CapacityBytes int64
	Class         catalog.Class // empty: found out
	// Sparse takes space on the file system when it is needed, instead of all of it at once (MediaFile only).
	Sparse bool
	// Force takes a device or directory though it holds something, which is lost. A directory with anything but a pool in it is refused all the same.
	Force bool
}

// MinBytes is the least capacity of a pool.
const MinBytes = 64 << 20

// Config says what there is besides pools.json.
type Config struct {
	Dir           string // the node's data directory
	Cluster, Node string // written into the pools that are made, and compared
	// Configured are the pools of the configuration: Name, Media, Path, CapacityBytes and perhaps Class.
	Configured []Spec
	Logger     *slog.Logger
}

// Pool is one pool of the node. What it says of itself never changes.
type Pool struct {
	Name, ID   string
	Media      blockstore.Media
	Path       string
	Class      catalog.Class
	ClassWhy   string // how the class is known
	Configured bool
	sparse     bool
	capacity   int64  // as asked for
	medium     string // of a device: the UUID in its header

	store *blockstore.Pool // nil: it could not be opened
	since time.Time        // when it was opened
	err   error            // why

	users    int  // replicas being made in it; guarded by Set.mu
	removing bool // guarded by Set.mu
}

// Store returns the pool itself, or why it cannot be used.
func (p *Pool) Store() (*blockstore.Pool, error) {
	if p.store == nil {
		return nil, fmt.Errorf("pool %q (%s) could not be opened when the node started: %w", p.Name, p.Where(), p.err)
	}
	return p.store, nil
}

// Err returns nil, or why the pool cannot be used (any more).
func (p *Pool) Err() error {
	if p.store == nil {
		return p.err
	}
	return p.store.Failed()
}

// Rotted returns how many pages of metadata the disk had changed when the pool was opened, without a loss (blockstore.Pool.Rotted), and when that was.
func (p *Pool) Rotted() (pages int, since time.Time) {
	if p.store == nil {
		return 0, time.Time{}
	}
	return p.store.Rotted(), p.since
}

// note logs how a pool was opened.
func (s *Set) note(p *Pool, how string) {
	p.since = time.Now()
	s.cfg.Logger.Info(how, "pool", p.Name, "on", p.Where(), "class", p.Class, "because", p.ClassWhy)
	if n := p.store.Rotted(); n > 0 {
		s.cfg.Logger.Warn("pages of a pool's metadata were damaged when it was opened; there was another copy of each, and they are written anew. Look at the disk", "pool", p.Name, "on", p.Where(), "pages", n)
	}
}

// Opened says whether the pool could be opened when the node started.
func (p *Pool) Opened() bool { return p.store != nil }

// Sparse says of a pool of files that it takes space on its file system as it is needed, so that what is free in it may be more than there is.
func (p *Pool) Sparse() bool { return p.Media == blockstore.MediaFile && p.sparse }

// Where says what the pool is on, for people.
func (p *Pool) Where() string {
	if p.Media == blockstore.MediaRAM {
		return "memory"
	}
	return p.Path
}

// Usage returns how full it is; of a pool that could not be opened, nothing but what it was asked to hold.
func (p *Pool) Usage() blockstore.PoolUsage {
	if p.store == nil {
		return blockstore.PoolUsage{CapacityBytes: p.capacity, AllocatedBytes: p.capacity}
	}
	return p.store.Usage()
}

// Set is the pools of a node. Its methods may be called concurrently.
type Set struct {
	cfg Config

	// changing is held by Add and Remove, which take as long as the medium does.
	changing sync.Mutex

	mu   sync.Mutex // guards what follows, never held across I/O
	list map[string]*Pool
}

// Open opens every pool. A pool that cannot be opened is no error: see Pool.Err. One that is: pools.json cannot be read, so that it
// is not known which pools there are.
func Open(cfg Config) (*Set, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Set{cfg: cfg, list: map[string]*Pool{}}
	known, err := readList(cfg.Dir)
	if err != nil {
		return nil, err
	}
	for _, spec := range cfg.Configured {
		s.list[spec.Name] = s.configured(spec)
	}
	for _, r := range known {
		p := r.pool()
		p.store, p.err = s.reopen(p)
		s.list[p.Name] = p
	}
	for _, p := range s.List() {
		if p.err != nil {
			cfg.Logger.Error("a pool cannot be opened; its replicas stay out of service", "pool", p.Name, "on", p.Where(), "error", p.err)
			continue
		}
		s.note(p, "pool opened")
	}
	return s, nil
}

func (s *Set) configured(spec Spec) *Pool {
	p := &Pool{
		Name: spec.Name, Media: spec.Media, Path: spec.Path, Class: spec.Class, Configured: true, sparse: true, capacity: spec.CapacityBytes,
		ClassWhy: "the configuration says so",
	}
	p.store, p.err = blockstore.OpenPool(p.config())
	if p.Class == "" { // after opening, for the directory is made by that
		p.Class, p.ClassWhy = classOf(p.Media, p.Path)
	}
	return p
}

func (p *Pool) config() blockstore.PoolConfig {
	c := blockstore.PoolConfig{Media: p.Media, CapacityBytes: p.capacity}
	switch p.Media {
	case blockstore.MediaFile:
		c.Dir, c.Preallocate = p.Path, !p.sparse
	case blockstore.MediaDevice:
		c.Path = p.Path
	case blockstore.MediaRAM:
	}
	return c
}

// classOf finds out the class of a pool that is to be on path.
func classOf(media blockstore.Media, path string) (catalog.Class, string) {
	if media == blockstore.MediaRAM {
		return catalog.ClassRAM, "it is in memory"
	}
	class, why := vfs.ClassOf(path)
	if class == vfs.ClassRAM {
		return catalog.ClassSSD, why + ", which is taken for a disk all the same: what is there is lost with the power"
	}
	return catalog.Class(class), why
}

// reopen opens a pool of pools.json, and only if it is the one that was made: a file system that is not mounted, or a disk that has
// taken another's name, must not be taken for an empty pool.
func (s *Set) reopen(p *Pool) (*blockstore.Pool, error) {
	if err := p.isThere(); err != nil {
		return nil, err
	}
	return blockstore.OpenPool(p.config())
}

// isThere returns nil if what lies where the pool was made is still this pool.
func (p *Pool) isThere() error {
	switch p.Media {
	case blockstore.MediaFile:
		m, err := readMarker(p.Path)
		switch {
		case err != nil:
			return err
		case m == nil:
			return fmt.Errorf("there is no %s in %s: its file system is not mounted, or somebody has emptied it", markerFile, p.Path)
		case m.Pool != p.ID:
			return fmt.Errorf("%s holds another pool now: %q of node %q of cluster %q", p.Path, m.Name, m.Node, m.Cluster)
		}
	case blockstore.MediaDevice:
		found, err := vfs.Probe(p.Path)
		if err != nil {
			return err
		}
		if uuid, ours := found.Pool(); !ours || uuid != p.medium {
			return fmt.Errorf("%s does not hold this pool: it holds %s. Disks may have changed names, which /dev/disk/by-id/… do not", p.Path, cmp.Or(found.String(), "nothing"))
		}
	case blockstore.MediaRAM:
	}
	return nil
}

// Close closes every pool.
func (s *Set) Close() error {
	s.changing.Lock()
	defer s.changing.Unlock()
	var err error
	for _, p := range s.List() {
		if p.store != nil {
			err = errors.Join(err, p.store.Close())
		}
	}
	return err
}

// List returns all pools, by name.
func (s *Set) List() []*Pool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.list), func(a, b *Pool) int { return cmp.Compare(a.Name, b.Name) })
}

// Get returns a pool by name.
func (s *Set) Get(name string) (*Pool, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.list[name]
	return p, ok
}

// suits says whether a replica that wants a class may be in a pool of that media and class.
func (p *Pool) suits(want catalog.Class) bool {
	if want == catalog.ClassAny {
		return p.Class != catalog.ClassRAM
	}
	return p.Class == want
}

// Place chooses the pool for a new replica: of those that suit, the one with the most free space. The pool is not removed before
// release is called, which is to be when the replica is known to be in it.
func (s *Set) Place(want catalog.Class) (pool *Pool, release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, p := range s.list {
		switch {
		case !p.suits(want) || p.removing:
		case p.Err() != nil:
			out = append(out, p.Name)
		case pool == nil, cmp.Or(cmp.Compare(p.Usage().FreeBytes(), pool.Usage().FreeBytes()), cmp.Compare(pool.Name, p.Name)) > 0:
			pool = p
		}
	}
	if pool == nil {
		what := "that lasts"
		if want != catalog.ClassAny {
			what = fmt.Sprintf("of class %s", want)
		}
		slices.Sort(out)
		return nil, nil, fmt.Errorf("this node has no pool %s that can be used (out of service: %q): add one with sanctuary pool add", what, out)
	}
	return pool, s.use(pool), nil
}

// use notes that somebody is about to put something into the pool, until release is called. Called with mu held.
func (s *Set) use(pool *Pool) (release func()) {
	pool.users++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		pool.users--
	}
}

// Take is Place for a pool that was chosen by its name.
func (s *Set) Take(name string) (pool *Pool, release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	pool = s.list[name]
	switch {
	case pool == nil:
		return nil, nil, fmt.Errorf("this node has no pool %q (any more): see sanctuary pool list, or add it with sanctuary pool add", name)
	case pool.removing:
		return nil, nil, fmt.Errorf("pool %q is about to be removed", name)
	case pool.Err() != nil:
		return nil, nil, fmt.Errorf("pool %q is out of service: %w", name, pool.Err())
	}
	return pool, s.use(pool), nil
}

// FreeBytes returns what one LUN could allocate, by class: in the pool that has most.
func (s *Set) FreeBytes() map[catalog.Class]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[catalog.Class]uint64{}
	for _, want := range []catalog.Class{catalog.ClassAny, catalog.ClassRAM, catalog.ClassSSD, catalog.ClassHDD} {
		for _, p := range s.list {
			if p.suits(want) && !p.removing && p.Err() == nil {
				out[want] = max(out[want], uint64(max(0, p.Usage().FreeBytes())))
			}
		}
	}
	return out
}
