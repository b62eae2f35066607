package catalog

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
)

// Inspected is what a catalog on disk holds, and what is wrong with it.
type Inspected struct {
	First       uint64          `json:"first_index"` // of the log; 0: it is empty
	Last        uint64          `json:"last_index"`
	CurrentTerm uint64          `json:"current_term"`
	VoteTerm    uint64          `json:"vote_term"` // 0: it has never voted
	VotedFor    string          `json:"voted_for"`
	Snapshot    uint64          `json:"snapshot_index"` // 0: there is none
	LUNs        int             `json:"luns"`           // in the newest snapshot
	Nodes       int             `json:"nodes"`
	Findings    []block.Finding `json:"findings"`
}

// What findings say.
const (
	dataCatalog = "This node's copy of the catalog cannot be used. The other nodes' are not touched by that, and neither are the LUNs' data."
	nextCatalog = "If the other nodes are up, remove this node from the cluster and add it again with an empty data directory. Look at the disk's health (smartctl)."
)

// Inspect looks at a catalog's directory, which may be in use. It writes nothing and locks nothing: the log is read from a copy in memory. cluster is the name of
// the node's cluster. The error says why the catalog could not be looked at.
func Inspect(ctx context.Context, dir, cluster string) (*Inspected, error) {
	r := &Inspected{Findings: []block.Finding{}}
	find := func(kind, path string, err error) {
		r.Findings = append(r.Findings, block.Finding{Kind: kind, Path: path, Offset: -1, What: err.Error(), Data: dataCatalog, Next: nextCatalog})
	}
	path := filepath.Join(dir, dbFile)
	s, err := openCopy(path)
	if errors.Is(err, os.ErrNotExist) {
		if r.Snapshot, err = r.inspectSnapshots(dir, cluster, find); err == nil && r.Snapshot > 0 {
			find("catalog log", path, errors.New("the file is missing, with the log and what this node has voted for"))
		}
		return r, err
	}
	if errors.Is(err, ErrCorrupt) {
		find("catalog log", path, err)
		_, err = r.inspectSnapshots(dir, cluster, find)
		return r, err
	}
	if err != nil {
		return nil, fmt.Errorf("inspect %s: %w", path, err)
	}
	defer func() { _ = s.Close() }() // a copy
	// The snapshots after the log: of a catalog in use they can only be newer.
	if r.Snapshot, err = r.inspectSnapshots(dir, cluster, find); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = s.guarded(func() error {
		var err error
		if r.First, err = s.FirstIndex(); err != nil {
			return err
		}
		if r.Last, err = s.LastIndex(); err != nil {
			return err
		}
		return s.verify(max(r.Snapshot, r.First-min(r.First, 1)))
	})
	if err == nil && r.First > r.Snapshot+1 {
		err = fmt.Errorf("%w: the log begins at entry %d, the newest snapshot that can be read ends at %d", ErrCorrupt, r.First, r.Snapshot)
	}
	if err != nil {
		find("catalog log", path, err)
	}
	if err := s.guarded(func() error { return r.stable(s) }); err != nil {
		find("catalog vote", path, err)
	}
	return r, nil
}

// openCopy opens a copy of the store: what lies on the disk is neither locked nor changed. errors.Is(err, ErrCorrupt): it makes no sense.
func openCopy(path string) (*store, error) {
	copied, err := vfs.CopyToMemory(path)
	if err != nil {
		return nil, err
	}
	s := &store{damaged: func(error) {}}
	err = s.guarded(func() (err error) {
		s.bolt, err = raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: &bbolt.Options{
			ReadOnly: true, OpenFile: func(string, int, os.FileMode) (*os.File, error) { return copied, nil },
		}})
		return err
	})
	if err != nil {
		_ = copied.Close() // bbolt may have done that
		return nil, fmt.Errorf("%w: it cannot be opened: %w", ErrCorrupt, err)
	}
	return s, nil
}

// guarded turns the panics of bbolt on a damaged file, and memory faults in its mapping, into errors.
func (s *store) guarded(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrCorrupt, r)
		}
	}()
	return fn()
}

// stable reads term and vote, and which node this is.
func (r *Inspected) stable(s *store) error {
	term, err := s.GetUint64(keyTerm)
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return err
	}
	if err != nil && (r.Snapshot > 0 || r.Last > firstIndex) {
		return fmt.Errorf("%w: the current term is missing", ErrCorrupt)
	}
	r.CurrentTerm = term
	vote, err := s.get(keyVote)
	if err == nil {
		r.VoteTerm, r.VotedFor = binary.LittleEndian.Uint64(vote), string(vote[8:])
	} else if !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return err
	}
	if _, err := s.get(keyMember); err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return err
	}
	if r.VoteTerm > r.CurrentTerm {
		return fmt.Errorf("%w: it has voted in term %d, and the current term is %d", ErrCorrupt, r.VoteTerm, r.CurrentTerm)
	}
	return nil
}

// inspectSnapshots reads all snapshots, and returns the index of the newest that is whole. The library's store is not used: it tries whether it may write.
func (r *Inspected) inspectSnapshots(dir, cluster string, find func(kind, path string, err error)) (newest uint64, err error) {
	dir = filepath.Join(dir, "snapshots")
	for range keepSnaps + 1 { // one that is read may be replaced meanwhile
		entries, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		replaced := false
		for _, e := range slices.Backward(entries) {
			if !e.IsDir() || strings.HasSuffix(e.Name(), ".tmp") { // cut off, or being written
				continue
			}
			path := filepath.Join(dir, e.Name())
			meta, m, err := readSnapshot(path, cluster)
			switch {
			case errors.Is(err, os.ErrNotExist):
				if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
					replaced = true
					continue
				}
				find("catalog snapshot", path, err)
			case errors.Is(err, ErrCorrupt):
				find("catalog snapshot", path, err)
			case err != nil:
				return 0, fmt.Errorf("inspect %s: %w", path, err)
			case meta.Index >= newest:
				newest, r.LUNs, r.Nodes = meta.Index, len(m.LUNs), len(m.Nodes)
			}
		}
		if !replaced || newest > 0 {
			return newest, nil
		}
	}
	return 0, fmt.Errorf("inspect %s: %w", dir, vfs.ErrUnsteady)
}

func readSnapshot(path, cluster string) (meta raft.SnapshotMeta, m *Model, err error) {
	raw, err := os.ReadFile(filepath.Join(path, "meta.json"))
	if err != nil {
		return meta, nil, err
	}
	if err := json.Unmarshal(raw, &meta); err != nil {
		return meta, nil, fmt.Errorf("%w: meta.json: %w", ErrCorrupt, err)
	}
	f, err := os.Open(filepath.Join(path, "state.bin"))
	if err != nil {
		return meta, nil, err
	}
	defer func() { _ = f.Close() }() // read-only: nothing to lose
	m, err = decodeSnapshot(f, cluster)
	return meta, m, err
}
