// Package target serves LUNs over iSCSI (RFC 7143): it listens, logs initiators in and hands their commands to
// target/scsi. It knows no Raft and no disk format, and nothing of the cluster beyond what a Directory tells it.
package target

import (
	"sanctuary/target/login"
	"sanctuary/target/scsi"
)

// Group is a portal group of this node: its portals in one network.
type Group struct {
	Index uint16 // which network; portals of other nodes in it are in groups of the same index
	Tag   uint16 // target portal group tag, 1..65535, unique in the cluster
	Port  uint16 // relative target port identifier of its sessions, 1..65535, unique in the cluster
}

// PortalAddress is an address an initiator can connect to.
type PortalAddress struct {
	Address  string // host:port; IPv6 hosts in brackets
	GroupTag uint16 // target portal group tag: Group.Tag of the node that has the address
}

// Listing is one target in the answer to SendTargets.
type Listing struct {
	Name    string // iSCSI name (IQN)
	Portals []PortalAddress
}

// Opening is an initiator that wants a target.
type Opening struct {
	Initiator string // iSCSI name, normalised (login.ParseName)
	Target    string // iSCSI name, normalised
	User      string // CHAP user it has proved to be; empty: it was not asked, or not yet (see Directory.Open)
	Group     Group  // portal group it has come in by
}

// Directory says which targets exist, who may use them and how initiators prove who they are. It decides what depends on
// the initiator, such as whether one with a single path is sent on to the owner. Its methods are called concurrently, and
// answer from memory: a login, and after a change every session, waits for them.
type Directory interface {
	// Credentials returns what initiator must prove, in discovery as well as in normal sessions, before List or Open is
	// asked for it. known is false for a name the Directory has never heard of: such a one proves nothing, and List
	// and Open show it what is open to all. Known with login.Credentials of no User: nothing to prove either.
	Credentials(initiator string) (c login.Credentials, known bool)
	// List returns the targets that initiator may use, each with the portals, on every node that offers it, that are in
	// the portal group with this index. A target without such a portal is left out.
	List(initiator string, group uint16) []Listing
	// Open returns the target as this node serves it, or ErrNoTarget, ErrNotServed or ErrNotAllowed, or a *login.Refusal; one with
	// login.MovedTemporarily and an Address sends the initiator there for this session, any other counts for new logins only. Any other error means
	// "not now". Open is also asked before the initiator has proved anything, and then only a redirection counts; and
	// again for sessions that exist (Portal.Recheck): it must be free of side effects, and return the same Executor for the
	// same target as long as that lives.
	Open(o Opening) (scsi.Executor, error)
	// SinglePath says whether Open sends the initiator on when the target's owner is elsewhere. It is asked before the first command
	// of a session, and again with Recheck: see scsi.Nexus.SetSinglePath.
	SinglePath(o Opening) bool
}
