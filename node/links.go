package node

import (
	"sanctuary/node/config"
	"sanctuary/replication/transport"
)

// compression is what bulk data to a node is packed with.
func (n *Node) compression(node string) transport.Compression {
	switch n.cfg.Links.CompressionTo(node) {
	case config.CompressionS2:
		return transport.CompressionS2
	case config.CompressionZstd:
		return transport.CompressionZstd
	}
	return transport.CompressionOff
}
