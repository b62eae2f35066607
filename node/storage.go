package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
	"sanctuary/node/catalog"
	"sanctuary/node/pools"
	"sanctuary/replication"
	"sanctuary/replication/journal"
)

// What replicas have on disk and in memory: made, listed, opened and deleted here; replicas.go runs it.

// inMemory says whether a replica's storage ends with the process. A witness's never does: it holds no data.
func inMemory(l catalog.LUN, r catalog.Replica) bool {
	return l.Media == catalog.MediaRAM && !r.Witness
}

func (s *replicas) path(lun, replica string) (string, error) {
	_, incarnation, ok := catalog.SplitReplicaID(replica)
	if !ok || strings.ContainsAny(lun, "/.") {
		return "", fmt.Errorf("%q is not a replica of LUN %q", replica, lun)
	}
	return filepath.Join(s.dir, lun, fmt.Sprint(incarnation)), nil
}

func volumeID(lun, replica string) string {
	_, incarnation, _ := catalog.SplitReplicaID(replica)
	return fmt.Sprintf("%s.%d", lun, incarnation)
}

// Storage implements reconcile.Runner.
func (s *replicas) Storage(context.Context) (map[string][]string, error) {
	out := map[string][]string{}
	s.mu.Lock()
	for _, m := range s.memory {
		out[m.lun] = append(out[m.lun], m.id)
	}
	s.mu.Unlock()
	// One whose file cannot be read is there: it cannot be started, which is said then, and nothing is made in its place. The others can.
	err := s.eachOnDisk(func(_ string, f replicaFile, _ error) { out[f.LUN] = append(out[f.LUN], f.Replica) })
	if err != nil {
		return nil, err
	}
	return out, nil
}

// eachOnDisk calls f with the directory of every replica whose storage on disk is complete. If its file cannot be read there is only what its path says, and err says why.
func (s *replicas) eachOnDisk(f func(path string, r replicaFile, err error)) error {
	luns, err := os.ReadDir(s.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, l := range luns {
		dirs, err := os.ReadDir(filepath.Join(s.dir, l.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted meanwhile
		}
		if err != nil {
			return err
		}
		for _, d := range dirs {
			path := filepath.Join(s.dir, l.Name(), d.Name())
			r, err := s.markers.read(markerOf(path))
			switch {
			case errors.Is(err, os.ErrNotExist): // never completed
			case err != nil:
				id := s.n.cfg.Node + "/" + d.Name()
				if _, _, ok := catalog.SplitReplicaID(id); !ok {
					return err
				}
				f(path, replicaFile{LUN: l.Name(), Replica: id}, err)
			case r.Started && !s.hasLog(path, r):
				if _, goes := s.deleting.Load(path); goes || missing(markerOf(path)) {
					continue
				}
				s.n.log.Error("the log of a replica is gone from the journal, or so damaged that it is not known what the replica has voted for and acknowledged: it comes back as a new one",
					"lun", r.LUN, "replica", r.Replica)
			default:
				f(path, r, nil)
			}
		}
	}
	return nil
}

// journalDir is where in the data directory the journal is.
const journalDir = "journal"

// openJournal opens the journal of this node.
func (n *Node) openJournal() (*journal.Journal, error) {
	dir := filepath.Join(n.cfg.DataDir, journalDir)
	folder, err := vfs.OpenDir(dir)
	if err != nil {
		return nil, err
	}
	j, err := journal.Open(folder, journal.Options{SegmentBytes: int64(n.cfg.Journal.SegmentBytes), Logger: n.log.With("component", "journal")})
	if errors.Is(err, journal.ErrDamaged) {
		return nil, fmt.Errorf("%w. Is part of %s missing that can be brought back? If not, move that directory away: the replicas on this node then come back as new ones, and are rebuilt from the others", err, dir)
	}
	return j, err
}

// hasLog says whether a replica has a log that it can go on from.
func (s *replicas) hasLog(path string, r replicaFile) bool {
	return s.n.journal.Usable(volumeID(r.LUN, r.Replica)) || !missing(filepath.Join(path, oldJournal))
}

// oldJournal is where version 1 kept the log of a replica, in its own directory; importedJournal what it is called until it is deleted.
const (
	oldJournal      = "journal"
	importedJournal = "journal.imported"
)

// openLog opens a replica's log. One that an older program has left is moved into the node's journal first.
func (s *replicas) openLog(path, name string) (journal.Log, error) {
	old, imported := filepath.Join(path, oldJournal), filepath.Join(path, importedJournal)
	if !missing(old) {
		s.n.log.Info("moving the log of a replica into the node's journal", "from", old)
		if err := s.n.journal.Import(name, old); err != nil {
			return nil, err
		}
		if err := os.Rename(old, imported); err != nil {
			return nil, err
		}
		if err := vfs.SyncDir(path); err != nil {
			return nil, err
		}
	}
	if err := os.RemoveAll(imported); err != nil {
		return nil, err
	}
	return s.n.journal.Log(name)
}

// pool returns the pool of that name, if it can be used.
func (s *replicas) pool(name string) (*pools.Pool, *blockstore.Pool, error) {
	p, ok := s.n.pools.Get(name)
	if !ok {
		return nil, nil, fmt.Errorf("this node has no pool %q (any more), and the replica is in it: bring it back, in the configuration ([pools.%s]) or with sanctuary pool add", name, name)
	}
	store, err := p.Store()
	return p, store, err
}

// newVolume makes the volume of a new replica: in the pool that suits best; that of a clone in the pool of what it is cloned from. The
// caller calls release when the pool's space tells of the volume.
func (s *replicas) newVolume(l catalog.LUN, r catalog.Replica) (pool *pools.Pool, volume *blockstore.Volume, release func(), err error) {
	var from source
	if cloned(l, r) {
		if from, err = s.source(l); err != nil {
			return nil, nil, nil, err
		}
	}
	id := volumeID(l.ID, r.ID)
	for _, p := range s.n.pools.List() { // left by an attempt that failed, perhaps in another pool
		if p.Err() != nil {
			continue
		}
		if store, err := p.Store(); err == nil {
			if err := store.Delete(id); err != nil && !errors.Is(err, blockstore.ErrNotFound) && !errors.Is(err, block.ErrClosed) {
				return nil, nil, nil, err
			}
		}
	}
	pool, release = from.pool, func() {}
	switch {
	case pool != nil:
	case r.Pool != "":
		if pool, release, err = s.n.pools.Take(r.Pool); err != nil {
			return nil, nil, nil, err
		}
	default:
		if pool, release, err = s.n.pools.Place(l.WantedClass()); err != nil {
			return nil, nil, nil, err
		}
	}
	store, err := pool.Store()
	switch {
	case err != nil:
	case from.pool != nil:
		volume, err = store.Clone(id, from.volume, from.snapshot)
	default:
		volume, err = store.Create(id, l.Geometry)
	}
	if err != nil {
		release()
		return nil, nil, nil, err
	}
	return pool, volume, release, nil
}

// Create implements reconcile.Runner.
func (s *replicas) Create(_ context.Context, l catalog.LUN, r catalog.Replica) error {
	var volume *blockstore.Volume
	var pool *pools.Pool
	if !r.Witness {
		var release func()
		var err error
		if pool, volume, release, err = s.newVolume(l, r); err != nil {
			return err
		}
		defer release()
	}
	if inMemory(l, r) {
		s.mu.Lock()
		s.memory[memoryKey(l.ID, r.ID)] = &memoryReplica{lun: l.ID, id: r.ID, history: l.Epoch, journal: journal.NewMemory(), pool: pool, volume: volume}
		s.mu.Unlock()
		return nil
	}
	if volume != nil {
		if err := volume.Close(); err != nil {
			return err
		}
	}
	path, err := s.path(l.ID, r.ID)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	for _, dir := range []string{filepath.Dir(path), s.dir, s.n.cfg.DataDir} {
		if err := vfs.SyncDir(dir); err != nil {
			return err
		}
	}
	return writeJSON(markerOf(path), newReplicaFile(l, r, pool))
}

// openStorage opens what is on disk. started is to be called once the replica has been started.
func (s *replicas) openStorage(run *running, cfg *replication.Config) (started func() error, err error) {
	path, err := s.path(run.lun.ID, run.replica.ID)
	if err != nil {
		return nil, err
	}
	marker := markerOf(path)
	file, err := readReplicaFile(marker)
	if err != nil {
		return nil, err
	}
	cfg.First = !file.Started
	if !run.replica.Witness {
		var store *blockstore.Pool
		if run.pool, store, err = s.pool(file.pool()); err != nil {
			return nil, err
		}
		run.volume, err = store.Open(volumeID(run.lun.ID, run.replica.ID))
		if errors.Is(err, blockstore.ErrNotFound) {
			err = fmt.Errorf("%w: pool %q is empty, or another one than that this replica was made in. Mount the right disk and start the node again, or, if the disk was replaced, see \"A failed disk\" in docs/OPERATING.md", err, file.pool())
		}
		if err != nil {
			return nil, err
		}
	}
	if cfg.Journal, err = s.openLog(path, volumeID(run.lun.ID, run.replica.ID)); err != nil {
		if run.volume != nil {
			err = errors.Join(err, run.volume.Close())
		}
		return nil, err
	}
	if file.history() != run.lun.Epoch {
		if err = s.beginHistory(run.lun, run.replica, file.history(), cfg.Journal, run.store()); err == nil {
			file.of(run.lun.Epoch)
			err = writeJSON(marker, file)
		}
		if err != nil {
			err = errors.Join(err, cfg.Journal.Close())
			if run.volume != nil {
				err = errors.Join(err, run.volume.Close())
			}
			return nil, err
		}
	}
	return func() error {
		if file.Started {
			return nil
		}
		// From now on a log that is not there is a loss: so it is there, even of a replica that has yet to hear anything.
		if err := cfg.Journal.SetUint64([]byte("started"), 1); err != nil {
			return err
		}
		file.Started = true
		return writeJSON(marker, file)
	}, nil
}

// Delete implements reconcile.Runner.
func (s *replicas) Delete(_ context.Context, lun, replica string) error {
	s.endFilling(memoryKey(lun, replica))
	s.mu.Lock()
	m := s.memory[memoryKey(lun, replica)]
	delete(s.memory, memoryKey(lun, replica))
	s.mu.Unlock()
	if m != nil {
		err := m.volume.Close()
		store, serr := m.pool.Store()
		if serr == nil {
			serr = store.Delete(volumeID(lun, replica))
		}
		return errors.Join(err, serr)
	}
	path, err := s.path(lun, replica)
	if err != nil {
		return err
	}
	f, err := readReplicaFile(markerOf(path))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if pool, ok := s.n.pools.Get(f.pool()); ok { // one that is not there any more has taken its volumes with it
		store, err := pool.Store()
		if err != nil {
			return err // it is deleted when the pool is back
		}
		if err := store.Delete(volumeID(lun, replica)); err != nil && !errors.Is(err, blockstore.ErrNotFound) {
			return err
		}
	}
	return s.forget(path, lun, replica)
}

// forget deletes what a replica has besides its volume: its log and its directory.
func (s *replicas) forget(path, lun, replica string) error {
	s.deleting.Store(path, true)
	defer s.deleting.Delete(path)
	if err := s.n.journal.Remove(volumeID(lun, replica)); err != nil {
		return err
	}
	// replica.json goes last: what is left after a crash is still listed, and deleted again.
	if err := os.RemoveAll(filepath.Join(path, oldJournal)); err != nil {
		return err
	}
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	s.markers.forget(markerOf(path))
	_ = os.Remove(filepath.Dir(path)) // stays while another incarnation is there
	return vfs.SyncDir(s.dir)
}
