package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sanctuary/blockstore/vfs"
	"sanctuary/node/catalog"
)

// identity is who this node's disk says it is: written at the first start, never changed. A disk that says otherwise than
// the configuration is another node's.
type identity struct {
	Version int    `json:"version"`
	Cluster string `json:"cluster"`
	Node    string `json:"node"`
	ID      string `json:"id"` // UUID
}

const identityVersion = 1

// openIdentity locks the data directory against a second process and reads or writes who we are.
func (n *Node) openIdentity() (unlock func() error, err error) {
	dir := n.cfg.DataDir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data_dir: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data_dir: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("data_dir %s is in use by another process: stop that one, or give this node a directory of its own", dir), lock.Close())
	}
	path := filepath.Join(dir, "node.json")
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		n.id = identity{Version: identityVersion, Cluster: n.cfg.Cluster, Node: n.cfg.Node, ID: catalog.NewID()}
		if err := os.MkdirAll(filepath.Join(dir, "catalog"), 0o700); err != nil {
			return nil, errors.Join(err, lock.Close())
		}
		if err := writeJSON(path, n.id); err != nil {
			return nil, errors.Join(err, lock.Close())
		}
		return lock.Close, nil
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	if err := json.Unmarshal(raw, &n.id); err != nil {
		return nil, errors.Join(fmt.Errorf("%s is damaged (%w): restore it, or remove the whole data_dir and let this node's replicas be rebuilt", path, err), lock.Close())
	}
	switch {
	case n.id.Version != identityVersion:
		err = fmt.Errorf("%s has version %d, this program reads version %d", path, n.id.Version, identityVersion)
	case missing(filepath.Join(dir, "catalog")):
		// A member that forgot its votes must not come back under its old identity.
		err = fmt.Errorf("data_dir %s has lost its catalog but not its identity: restore it, or remove the whole directory and the node from the cluster, and let it join anew", dir)
	case n.id.Cluster != n.cfg.Cluster || n.id.Node != n.cfg.Node:
		err = fmt.Errorf("data_dir %s belongs to node %q of cluster %q: use that configuration, or another directory", dir, n.id.Node, n.id.Cluster)
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock.Close, nil
}

// writeJSON makes path hold v, whole and durable, or leaves it as it was.
func writeJSON(path string, v any) error {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return vfs.ReplaceFile(path, append(raw, '\n'))
}

func missing(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, os.ErrNotExist)
}
