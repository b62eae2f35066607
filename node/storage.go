package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sanctuary/blockstore"
	"sanctuary/blockstore/vfs"
	"sanctuary/node/catalog"
	"sanctuary/replication"
	"sanctuary/replication/journal"
)

// What replicas have on disk and in memory: made, listed, opened and deleted here; replicas.go runs it.

// replicaFile is replica.json.
type replicaFile struct {
	Version int    `json:"version"`
	LUN     string `json:"lun"`
	Replica string `json:"replica"`
	Media   string `json:"media"`
	Witness bool   `json:"witness"`
	Started bool   `json:"started"` // it has been started: from then on an absent journal is a loss
}

const replicaFileVersion = 1

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
	luns, err := os.ReadDir(s.dir)
	if errors.Is(err, os.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	for _, l := range luns {
		dirs, err := os.ReadDir(filepath.Join(s.dir, l.Name()))
		if err != nil {
			return nil, err
		}
		for _, d := range dirs {
			f, err := readReplicaFile(filepath.Join(s.dir, l.Name(), d.Name(), "replica.json"))
			switch {
			case errors.Is(err, os.ErrNotExist): // never completed
			case err != nil:
				return nil, err
			case f.Started && missing(filepath.Join(s.dir, l.Name(), d.Name(), "journal")):
				s.n.log.Error("the journal of a replica is gone, and with it what the replica has voted for and acknowledged: it comes back as a new one",
					"lun", f.LUN, "replica", f.Replica)
			default:
				out[f.LUN] = append(out[f.LUN], f.Replica)
			}
		}
	}
	return out, nil
}

func readReplicaFile(path string) (f replicaFile, err error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return f, err
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		return f, fmt.Errorf("%s: %w", path, err)
	}
	if f.Version != replicaFileVersion {
		return f, fmt.Errorf("%s has version %d, this program reads version %d", path, f.Version, replicaFileVersion)
	}
	return f, nil
}

func (s *replicas) pool(l catalog.LUN) (*blockstore.Pool, error) {
	if p := s.n.pools[l.Media]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("this node has no pool of media %q: add one to its configuration ([pools.%s] capacity) and restart it", l.Media, l.Media)
}

// Create implements reconcile.Runner.
func (s *replicas) Create(_ context.Context, l catalog.LUN, r catalog.Replica) error {
	var volume *blockstore.Volume
	if !r.Witness {
		pool, err := s.pool(l)
		if err != nil {
			return err
		}
		if volume, err = s.createVolume(pool, l, r); err != nil {
			return err
		}
	}
	if inMemory(l, r) {
		s.mu.Lock()
		s.memory[memoryKey(l.ID, r.ID)] = &memoryReplica{lun: l.ID, id: r.ID, journal: journal.NewMemory(), volume: volume}
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
	return writeJSON(filepath.Join(path, "replica.json"), replicaFile{
		Version: replicaFileVersion, LUN: l.ID, Replica: r.ID, Media: string(l.Media), Witness: r.Witness,
	})
}

// openStorage opens what is on disk. started is to be called once the replica has been started.
func (s *replicas) openStorage(run *running, cfg *replication.Config) (started func() error, err error) {
	path, err := s.path(run.lun.ID, run.replica.ID)
	if err != nil {
		return nil, err
	}
	marker := filepath.Join(path, "replica.json")
	file, err := readReplicaFile(marker)
	if err != nil {
		return nil, err
	}
	cfg.First = !file.Started
	options := journal.Options{}
	if run.replica.Witness {
		options.SegmentBytes, options.CacheBytes = witnessSegmentBytes, witnessCacheBytes
	} else {
		pool, err := s.pool(run.lun)
		if err != nil {
			return nil, err
		}
		if run.volume, err = pool.Open(volumeID(run.lun.ID, run.replica.ID)); err != nil {
			return nil, err
		}
	}
	if cfg.Journal, err = journal.Open(filepath.Join(path, "journal"), options); err != nil {
		if run.volume != nil {
			err = errors.Join(err, run.volume.Close())
		}
		return nil, err
	}
	return func() error {
		if file.Started {
			return nil
		}
		file.Started = true
		return writeJSON(marker, file)
	}, nil
}

// A witness's entries are a few bytes each.
const (
	witnessSegmentBytes = 1 << 20
	witnessCacheBytes   = 1 << 20
)

// Delete implements reconcile.Runner.
func (s *replicas) Delete(_ context.Context, lun, replica string) error {
	s.mu.Lock()
	m := s.memory[memoryKey(lun, replica)]
	delete(s.memory, memoryKey(lun, replica))
	s.mu.Unlock()
	if m != nil {
		return errors.Join(m.volume.Close(), s.n.pools[catalog.MediaRAM].Delete(volumeID(lun, replica)))
	}
	path, err := s.path(lun, replica)
	if err != nil {
		return err
	}
	f, err := readReplicaFile(filepath.Join(path, "replica.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !f.Witness {
		if pool := s.n.pools[catalog.Media(f.Media)]; pool != nil {
			if err := pool.Delete(volumeID(lun, replica)); err != nil && !errors.Is(err, blockstore.ErrNotFound) {
				return err
			}
		}
	}
	// replica.json goes last: what is left after a crash is still listed, and deleted again.
	if err := os.RemoveAll(filepath.Join(path, "journal")); err != nil {
		return err
	}
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	_ = os.Remove(filepath.Dir(path)) // stays while another incarnation is there
	return vfs.SyncDir(s.dir)
}
