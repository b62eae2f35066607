// Package target serves LUNs over iSCSI (RFC 7143): it listens, logs initiators in and hands their commands to
// target/scsi. It knows no Raft and no disk format, and nothing of the cluster beyond what a Directory tells it.
package target

import "sanctuary/target/scsi"

// PortalAddress is an address an initiator can connect to.
type PortalAddress struct {
	Address  string // host:port; IPv6 hosts in brackets
	GroupTag uint16 // target portal group tag, one per node: the port group's ID
}

// Listing is one target in the answer to SendTargets.
type Listing struct {
	Name    string // iSCSI name (IQN)
	Portals []PortalAddress
}

// Directory says which targets exist and who may use them. Implemented by node from the catalog. Concurrent-safe.
type Directory interface {
	// List returns the targets that initiator may use, each with the portals of every node that offers it.
	List(initiator string) []Listing
	// Open returns the target of that name as this node serves it, or ErrNoTarget, or ErrNotAllowed.
	Open(initiator, target string) (scsi.Executor, error)
}
