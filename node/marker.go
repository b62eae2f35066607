package node

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"sanctuary/node/catalog"
	"sanctuary/node/pools"
)

// replicaFile is replica.json.
type replicaFile struct {
	Version int    `json:"version"`
	LUN     string `json:"lun"`
	Replica string `json:"replica"`
	Media   string `json:"media"`
	Witness bool   `json:"witness"`
	Started bool   `json:"started"` // it has been started: from then on an absent journal is a loss
	// Pool is the name of the pool the data are in. Version 1 does not have it: the pool is the one of the configuration, called as Media.
	Pool string `json:"pool,omitempty"`
	// History is the epoch of the LUN that the journal is of. Older versions do not have it: it is 1.
	History uint64 `json:"history,omitempty"`
}

// Versions of replica.json. It is written in the lower one where that can say it, so that an older program can be gone back to.
const (
	replicaFileVersion = 1
	replicaFilePool    = 2 // Pool
	replicaFileHistory = 3 // History
)

// history returns the epoch of the LUN that the journal is of.
func (f replicaFile) history() uint64 { return max(1, f.History) }

// of sets the epoch.
func (f *replicaFile) of(epoch uint64) {
	if epoch > 1 {
		f.Version, f.History = replicaFileHistory, epoch
	}
}

// newReplicaFile describes a replica; pool is nil for a witness.
func newReplicaFile(l catalog.LUN, r catalog.Replica, pool *pools.Pool) replicaFile {
	f := replicaFile{Version: replicaFileVersion, LUN: l.ID, Replica: r.ID, Media: string(l.Media), Witness: r.Witness}
	if pool != nil && pool.Name != f.Media {
		f.Version, f.Pool = replicaFilePool, pool.Name
	}
	f.of(l.Epoch)
	return f
}

// pool returns the name of the pool the data are in, "" of a witness.
func (f replicaFile) pool() string {
	if f.Witness {
		return ""
	}
	return cmp.Or(f.Pool, f.Media)
}

// markerOf returns where it is in a replica's directory.
func markerOf(dir string) string { return filepath.Join(dir, "replica.json") }

// readReplicaFile reads and checks one.
func readReplicaFile(path string) (f replicaFile, err error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return f, err
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		return f, fmt.Errorf("%s: %w", path, err)
	}
	if f.Version < replicaFileVersion || f.Version > replicaFileHistory {
		return f, fmt.Errorf("%s has version %d, this program reads versions %d to %d", path, f.Version, replicaFileVersion, replicaFileHistory)
	}
	return f, nil
}

// markers are the files that have been read, by path. All of them are looked at every two seconds, and hardly ever change.
type markers struct {
	mu    sync.Mutex
	known map[string]marker
}

// marker is a file as it was, and what was in it. It is another file as soon as it has been written anew (writeJSON).
type marker struct {
	info os.FileInfo
	file replicaFile
}

// read returns what is in a replica.json.
func (m *markers) read(path string) (replicaFile, error) {
	info, err := os.Stat(path)
	if err != nil {
		m.forget(path)
		return replicaFile{}, err
	}
	m.mu.Lock()
	known, ok := m.known[path]
	m.mu.Unlock()
	if ok && os.SameFile(known.info, info) && known.info.ModTime().Equal(info.ModTime()) && known.info.Size() == info.Size() {
		return known.file, nil
	}
	f, err := readReplicaFile(path)
	if err != nil {
		return f, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known == nil {
		m.known = map[string]marker{}
	}
	m.known[path] = marker{info, f}
	return f, nil
}

// forget lets go of a file that is no more.
func (m *markers) forget(path string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.known, path)
}
