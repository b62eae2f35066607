package node

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"sanctuary/node/catalog"
	"sanctuary/node/config"
)

// Rescue has the cluster's catalog go on from what the node with this data directory has, alone; see catalog.Rescue. The node must have been stopped. It returns the
// node's name and those of the others the catalog knows.
func Rescue(dataDir string) (name string, others []string, err error) {
	path := filepath.Join(dataDir, "node.json")
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", nil, fmt.Errorf("%s is not the data directory of a node: %w", dataDir, err)
	}
	var id identity
	if err := json.Unmarshal(raw, &id); err != nil {
		return "", nil, fmt.Errorf("%s is damaged: %w", path, err)
	}
	n := &Node{cfg: config.Config{DataDir: dataDir, Cluster: id.Cluster, Node: id.Node}}
	unlock, err := n.openIdentity()
	if err != nil {
		return id.Node, nil, err
	}
	others, _, err = catalog.Rescue(filepath.Join(dataDir, "catalog"), id.Cluster, id.Node, id.ID)
	if uerr := unlock(); err == nil {
		err = uerr
	}
	return id.Node, others, err
}
