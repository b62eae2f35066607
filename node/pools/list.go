package pools

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"sanctuary/blockstore"
	"sanctuary/blockstore/vfs"
	"sanctuary/node/catalog"
)

// listFile is pools.json in the data directory: the pools that were added, by name.
const listFile = "pools.json"

const listVersion = 1

type list struct {
	Version int      `json:"version"`
	Pools   []record `json:"pools"`
}

// record is a pool in pools.json.
type record struct {
	Name     string `json:"name"`
	ID       string `json:"id"`
	Media    string `json:"media"`
	Path     string `json:"path,omitempty"`
	Capacity int64  `json:"capacity_bytes,omitempty"`
	Class    string `json:"class"`
	ClassWhy string `json:"class_because,omitempty"`
	Sparse   bool   `json:"sparse,omitempty"`
	Medium   string `json:"medium,omitempty"` // of a device: the UUID in its header
}

func (r record) pool() *Pool {
	return &Pool{
		Name: r.Name, ID: r.ID, Media: blockstore.Media(r.Media), Path: r.Path, capacity: r.Capacity, Class: catalog.Class(r.Class), ClassWhy: r.ClassWhy,
		sparse: r.Sparse, medium: r.Medium,
	}
}

// readList returns the pools of pools.json; none if there is no such file.
func readList(dir string) ([]record, error) {
	path := filepath.Join(dir, listFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var l list
	if err := json.Unmarshal(raw, &l); err != nil {
		return nil, fmt.Errorf("%s, the list of this node's pools, is damaged (%w). Nothing was started, and no pool was touched: restore it from a copy; each pool of files says in its %s what it is", path, err, markerFile)
	}
	if l.Version != listVersion {
		return nil, fmt.Errorf("%s has version %d, this program reads version %d: use the program that wrote it", path, l.Version, listVersion)
	}
	return l.Pools, nil
}

// Recorded is a pool that was added to a node, as its data directory says.
type Recorded struct {
	Name  string
	Media blockstore.Media
	Path  string // directory or device; "" of a pool in memory
}

// ReadRecorded returns the pools that were added to the node whose data directory it is.
func ReadRecorded(dataDir string) ([]Recorded, error) {
	list, err := readList(dataDir)
	if err != nil {
		return nil, err
	}
	var out []Recorded
	for _, r := range list {
		out = append(out, Recorded{Name: r.Name, Media: blockstore.Media(r.Media), Path: r.Path})
	}
	return out, nil
}

// writeList makes pools.json hold these pools, but for the configured ones, whole and durable.
func writeList(dir string, pools []*Pool) error {
	l := list{Version: listVersion, Pools: []record{}}
	for _, p := range pools {
		if !p.Configured {
			l.Pools = append(l.Pools, record{
				Name: p.Name, ID: p.ID, Media: string(p.Media), Path: p.Path, Capacity: p.capacity, Class: string(p.Class), ClassWhy: p.ClassWhy,
				Sparse: p.sparse, Medium: p.medium,
			})
		}
	}
	return writeJSON(filepath.Join(dir, listFile), l)
}

// markerFile is pool.json in the directory of a pool of files that was added: whose it is.
const markerFile = "pool.json"

const markerVersion = 1

type marker struct {
	Version int    `json:"version"`
	Cluster string `json:"cluster"`
	Node    string `json:"node"`
	Name    string `json:"name"`
	Pool    string `json:"pool"` // ID
}

// readMarker returns nil if there is none.
func readMarker(dir string) (*marker, error) {
	path := filepath.Join(dir, markerFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var m marker
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", path, err)
	}
	if m.Version != markerVersion {
		return nil, fmt.Errorf("%s has version %d, this program reads version %d", path, m.Version, markerVersion)
	}
	return &m, nil
}

func (s *Set) writeMarker(p *Pool) error {
	return writeJSON(filepath.Join(p.Path, markerFile), marker{markerVersion, s.cfg.Cluster, s.cfg.Node, p.Name, p.ID})
}

func writeJSON(path string, v any) error {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return vfs.ReplaceFile(path, append(raw, '\n'))
}
