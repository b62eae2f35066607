package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/node/pools"
)

// Stored is what lies in a data directory, for those who look at it from outside: nothing is opened, locked or written.
type Stored struct {
	Cluster, Node string
	Catalog       string // its directory
	Journal       string // likewise; "": there is none yet
	Pools         []StoredPool
	Replicas      []StoredReplica // those whose storage is complete
	Notes         []string
	Findings      []block.Finding // of the files that say what is there
}

// StoredPool is a pool of the node, but for those in memory.
type StoredPool struct {
	Name string
	Path string // directory or device
}

// StoredReplica is a replica of a LUN.
type StoredReplica struct {
	LUN, Replica string
	Volume       string // name of its volume; "" of a witness
	Log          string // name of its log in the journal
	Pool         string // name of the pool that holds it
	Started      bool   // its log must be in the journal
	OldLog       bool   // its log is where version 1 of the journal kept it
}

// ErrNoDataDir: the directory is not that of a node.
var ErrNoDataDir = errors.New("this is no data directory of a node: it has no node.json")

// ReadStored reads what lies in a data directory. The directory of a pool of the configuration is found if it is the default; where else it may be, only
// the configuration says.
func ReadStored(dir string) (*Stored, error) {
	s := &Stored{Catalog: filepath.Join(dir, "catalog"), Journal: filepath.Join(dir, journalDir)}
	find := func(kind, path, what, next string) {
		s.Findings = append(s.Findings, block.Finding{
			Kind: kind, Path: path, Offset: -1, What: what, Data: "The node, or this replica, does not start. The data are where they were, and the other copies are not touched by that.", Next: next,
		})
	}
	path := filepath.Join(dir, "node.json")
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNoDataDir)
	}
	if err != nil {
		return nil, err
	}
	var id identity
	const restore = "Restore it, or remove the whole data directory and let this node's replicas be rebuilt."
	switch err := json.Unmarshal(raw, &id); {
	case err != nil:
		find("identity", path, fmt.Sprintf("the node's identity does not decode: %v", err), restore)
	case id.Version != identityVersion:
		return nil, fmt.Errorf("%s has version %d, this program reads version %d", path, id.Version, identityVersion)
	}
	s.Cluster, s.Node = id.Cluster, id.Node
	if missing(s.Catalog) {
		find("identity", s.Catalog, "the catalog is missing, and the node's identity is there", restore)
		s.Catalog = ""
	}
	if err := s.readPools(dir); err != nil {
		find("pools", filepath.Join(dir, "pools.json"), err.Error(), "Restore it from a copy; each pool of files says in its pool.json what it is.")
	}
	return s, s.readReplicas(filepath.Join(dir, "luns"), find)
}

func (s *Stored) readPools(dir string) error {
	configured := filepath.Join(dir, "pool")
	if there, err := blockstore.HasPool(configured); err == nil && there {
		s.Pools = append(s.Pools, StoredPool{Name: string(blockstore.MediaFile), Path: configured})
	}
	added, err := pools.ReadRecorded(dir)
	for _, p := range added {
		if p.Path != "" {
			s.Pools = append(s.Pools, StoredPool{Name: p.Name, Path: p.Path})
		}
	}
	return err
}

func (s *Stored) readReplicas(dir string, find func(kind, path, what, next string)) error {
	files, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	if err != nil {
		return err
	}
	slices.Sort(files)
	for _, path := range files {
		marker := markerOf(path)
		f, err := readReplicaFile(marker)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			s.Notes = append(s.Notes, fmt.Sprintf("%s was never completed; it is made anew or deleted when the node starts", path))
			continue
		case err != nil:
			find("replica", marker, err.Error(), "Restore it, or delete the directory: then the replica is replaced by a new one.")
			continue
		}
		r := StoredReplica{LUN: f.LUN, Replica: f.Replica, Pool: f.pool(), Log: volumeID(f.LUN, f.Replica)}
		if !f.Witness {
			r.Volume = volumeID(f.LUN, f.Replica)
		}
		r.OldLog = !missing(filepath.Join(path, oldJournal))
		r.Started = f.Started && !r.OldLog
		if r.OldLog {
			s.Notes = append(s.Notes, fmt.Sprintf("the log of replica %s is still where version 1 of the journal kept it, in %s: it is moved into the node's journal when the node starts, and was not looked at", f.Replica, filepath.Join(path, oldJournal)))
		}
		s.Replicas = append(s.Replicas, r)
	}
	return nil
}
