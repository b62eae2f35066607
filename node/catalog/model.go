// Package catalog is the cluster's desired state: which nodes there are, which LUNs, and where their replicas live.
//
// Invariant: every node that has applied the same index of the catalog's Raft group holds the same Model; a change is
// a Change applied by a pure function, and nothing here depends on the clock, on gossip or on the node it runs on.
// It does not make anything happen: node/reconcile turns what is written here into running groups.
package catalog

import "sanctuary/blockstore/block"

// Kind says what a node is for.
type Kind string

// Node kinds.
const (
	KindData    Kind = "data"    // holds replicas and serves initiators
	KindWitness Kind = "witness" // votes, holds no data
)

// Media says what a LUN's replicas are kept on.
type Media string

// Media.
const (
	MediaFile Media = "file" // survives a power cut
	MediaRAM  Media = "ram"  // gone when the process ends; rebuilt from a peer
)

// Class says what kind of medium a LUN's replicas want.
type Class string

// Classes.
const (
	ClassAny Class = "" // any that lasts
	ClassRAM Class = "ram"
	ClassSSD Class = "ssd"
	ClassHDD Class = "hdd"
)

// WantedClass returns the class that the LUN's replicas want. Memory is a Media, since it was there before classes.
func (l LUN) WantedClass() Class {
	if l.Media == MediaRAM {
		return ClassRAM
	}
	return l.Class
}

// Node is a member of the cluster.
type Node struct {
	Name      string `json:"name"`       // unique, chosen by the operator; the address of Raft peers
	ID        string `json:"id"`         // UUID written to the node's disk at its first start: another disk is another node
	Kind      Kind   `json:"kind"`       //
	PortGroup uint16 `json:"port_group"` // ALUA target port group, 1 to MaxPortGroup; never reused. See PortID
	// Portals are where initiators reach it, as it said when it registered last; none for a witness.
	Portals []Portal `json:"portals,omitempty"`
}

// ReplicaState is how far a replica has come.
type ReplicaState string

// Replica states.
const (
	ReplicaPending ReplicaState = "pending" // placed; its node has yet to create it, empty, with the LUN itself
	ReplicaActive  ReplicaState = "active"  // has started at least once under this ID; a blank disk under this ID is a loss
	ReplicaJoining ReplicaState = "joining" // a new incarnation without data: learner, to be rebuilt, then voter
)

// Replica is one copy of a LUN, or its witness.
type Replica struct {
	// ID is the Raft server ID: "<node>/<incarnation>". It is used for one storage only and never again: a replica that
	// lost its storage comes back under a new one (a voter with amnesia could vote twice).
	ID      string       `json:"id"`
	Node    string       `json:"node"`
	Witness bool         `json:"witness,omitempty"`
	State   ReplicaState `json:"state"`
	// Replaces names the IDs this incarnation takes the place of, oldest first, separated by commas, until the owner has
	// removed them from the Raft group. More than one: the replica lost its storage again before it was promoted.
	Replaces string `json:"replaces,omitempty"`
	// Claim is the random name of the process start that may create this ID's storage, once. A process that finds
	// no storage under an ID claimed by another start has lost it, and must ask for a new incarnation.
	Claim string `json:"claim,omitempty"`
	// Leaving: it goes as soon as every replica that stays or comes holds the data. Until then it counts as it always did.
	Leaving bool `json:"leaving,omitempty"`
	// Pool is where on its node the data of a replica that was added are to be, if somebody chose it; empty: in the pool that suits best.
	Pool string `json:"pool,omitempty"`
	// Filled: a joining replica holds what the LUN held a moment ago. It may vote from now on, if it is a member; one whose node has another
	// that leaves joins when that one has left.
	Filled bool `json:"filled,omitempty"`
}

// LUN is a logical unit.
type LUN struct {
	ID        string         `json:"id"`   // UUID; names the Raft group
	Name      string         `json:"name"` // unique among LUNs that exist; ends the IQN
	Number    uint32         `json:"number"`
	Geometry  block.Geometry `json:"geometry"`
	Media     Media          `json:"media"`
	Class     Class          `json:"class,omitempty"` // with MediaFile: ClassSSD, ClassHDD, or any. See WantedClass
	Replicas  []Replica      `json:"replicas"`
	Epoch     uint64         `json:"epoch"` // raised by forced recovery: histories of different epochs never mix
	IQN       string         `json:"iqn"`
	NAA       string         `json:"naa"`    // 32 hex digits: NAA type 6, derived from ID
	Serial    string         `json:"serial"` // derived from ID
	Preferred string         `json:"preferred,omitempty"`
	// Lost is set when the last replica that held the data is gone; only an operator can go on from there.
	Lost bool `json:"lost,omitempty"`
	// Access is nil for a LUN made before there was access control: anyone may use it.
	Access *Access `json:"access,omitempty"`
	// NonOptimized makes nodes that do not own the LUN serve data by forwarding (ALUA Active/Non-optimized) instead of
	// standing by.
	NonOptimized bool `json:"non_optimized,omitempty"`
	// ZeroDetection makes the owner store blocks that initiators write as zeros as unmapped ones.
	ZeroDetection bool `json:"zero_detection,omitempty"`
	// Origin is set on a clone.
	Origin *Origin `json:"origin,omitempty"`
	// ReadOnly makes initiators see a write-protected disk. Set when the LUN is made, and never changed.
	ReadOnly  bool       `json:"read_only,omitempty"`
	Schedules []Schedule `json:"schedules,omitempty"` // by prefix
	// Dropped are the IDs of the snapshots deleted last, the newest at the end; see maxDropped.
	Dropped []string `json:"dropped,omitempty"`
	// Left are the IDs of replicas that have been removed, until their nodes have deleted what they held.
	Left []string `json:"left,omitempty"`
	// Recoveries are the LUN's forced recoveries, the newest at the end.
	Recoveries []Recovery `json:"recoveries,omitempty"`
}

// Tombstone remembers a deleted LUN until every node has deleted its storage. Storage is deleted on the evidence of a
// tombstone only: a catalog that does not know a LUN may merely be behind, or be a new one over old disks.
type Tombstone struct {
	Name  string   `json:"name"`
	Nodes []string `json:"nodes"` // those that have yet to delete their storage, sorted
}

// Model is everything in the catalog. A *Model that has been published is never changed.
type Model struct {
	Version  uint64               `json:"version"` // format this model needs, see needs; docs/FORMATS.md
	Index    uint64               `json:"index"`   // Raft index of the last change
	Cluster  string               `json:"cluster"` // name, also the gossip label and checked in every peer connection
	Nodes    map[string]Node      `json:"nodes"`
	LUNs     map[string]LUN       `json:"luns"` // by ID
	Settings map[string]string    `json:"settings"`
	Deleted  map[string]Tombstone `json:"deleted"`     // by LUN ID
	NextPort uint16               `json:"next_port"`   // next port group to give out
	NextInc  uint64               `json:"incarnation"` // next incarnation number to give out
	Hosts    map[string]Host      `json:"hosts,omitempty"`
}
