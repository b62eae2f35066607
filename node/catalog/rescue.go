package catalog

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// When more than half of the catalog's members are gone for good, nobody can decide anything any more: not which LUN goes on from which copy, nor that a
// node is a member no more. An operator can have the catalog go on from what one node has. It keeps all of its log, also what it does not know to be
// committed (a change that was answered may be in it), and becomes the only voter behind it. From then on this member listens only to members that
// it knows itself: old ones that come back with their old disks are a majority among themselves, and would overwrite what was decided since.
// They must not be started again: each is removed, and comes back with an empty data directory.

// keyRescued marks a member whose catalog goes on from it alone: u64, when that was decided, in ms since the Unix epoch.
var keyRescued = []byte("Rescued")

// rescueGap lies between the newest term that is known and the first one after a rescue.
const rescueGap = 1000

// Rescue has the catalog in dir go on from there alone; the node must not be running. It may be repeated. It returns the nodes that the catalog knows
// besides this one, and the index up to which the change of members is.
func Rescue(dir, cluster, node, nodeID string) (others []string, index uint64, err error) {
	st, err := openStore(dir, func(error) {})
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	if id, err := st.get(keyMember); err != nil || string(id) != nodeID {
		return nil, 0, refuse(CodeIdentity, "the catalog in %s is not that of a member with ID %s that takes part in it (%v): there is nothing to go on from", dir, nodeID, err)
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, keepSnaps, raftLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		return nil, 0, err
	}
	c := &Catalog{cfg: Config{Cluster: cluster, Node: node, Dir: dir}, store: st}
	through, err := c.checkSnapshots(snaps)
	if err != nil {
		return nil, 0, err
	}
	if err := c.checkWhole(through); err != nil {
		return nil, 0, err
	}
	m, last, term, err := c.replay(snaps, through)
	if err != nil {
		return nil, 0, err
	}
	have, err := st.GetUint64(keyTerm)
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return nil, 0, err
	}
	term = max(term, have) + rescueGap
	if err := st.SetUint64(keyRescued, uint64(time.Now().UnixMilli())); err != nil { // first: what comes next holds only for whoever is deaf to the others
		return nil, 0, err
	}
	if err := st.SetUint64(keyTerm, term); err != nil {
		return nil, 0, err
	}
	alone := raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(node), Address: raft.ServerAddress(node)}}}
	if err := st.StoreLog(&raft.Log{Index: last + 1, Term: term, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(alone)}); err != nil {
		return nil, 0, err
	}
	for name := range m.Nodes {
		if name != node {
			others = append(others, name)
		}
	}
	slices.Sort(others)
	return others, last + 1, nil
}

// replay returns the model after everything that is stored, and where that ends.
func (c *Catalog) replay(snaps *raft.FileSnapshotStore, through uint64) (m *Model, last, term uint64, err error) {
	m = NewModel(c.cfg.Cluster)
	if through > 0 {
		list, err := snaps.List()
		if err != nil {
			return nil, 0, 0, err
		}
		meta, r, err := snaps.Open(list[0].ID)
		if err != nil {
			return nil, 0, 0, fmt.Errorf("%w: snapshot %s: %w", ErrCorrupt, filepath.Join(c.cfg.Dir, "snapshots", list[0].ID), err)
		}
		m, err = decodeSnapshot(io.Reader(r), c.cfg.Cluster)
		if err = errors.Join(err, r.Close()); err != nil {
			return nil, 0, 0, err
		}
		last, term = meta.Index, meta.Term
	}
	end, err := c.store.LastIndex()
	if err != nil {
		return nil, 0, 0, err
	}
	for i := last + 1; i <= end; i++ {
		var l raft.Log
		if err := c.store.GetLog(i, &l); err != nil {
			return nil, 0, 0, err
		}
		last, term = i, l.Term
		if l.Type != raft.LogCommand {
			continue
		}
		change, err := DecodeChange(l.Data)
		if err != nil {
			return nil, 0, 0, fmt.Errorf("log entry %d: %w", i, err)
		}
		m, _, _ = Apply(m, i, change) // what is refused changes nothing
	}
	if last == 0 {
		return nil, 0, 0, refuse(CodeNotFound, "the catalog in %s is empty: there is nothing to go on from", c.cfg.Dir)
	}
	return m, last, term, nil
}

// rescued says whether this member's catalog has gone on from it alone.
func (s *store) rescued() (bool, error) {
	_, err := s.get(keyRescued)
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return false, nil
	}
	return err == nil, err
}

// knows says whether a server is a member, as this one knows it.
func (c *Catalog) knows(id raft.ServerID) bool {
	r := c.group()
	if r == nil {
		return false
	}
	f := r.GetConfiguration() // answered from memory
	return f.Error() == nil && slices.ContainsFunc(f.Configuration().Servers, func(s raft.Server) bool { return s.ID == id })
}
