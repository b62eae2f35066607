package api

import "time"

// Health says whether a LUN's data can be used, and whether it would survive the next failure.
type Health string

// Health of a LUN.
const (
	HealthCreating    Health = "creating"    // replicas are being made; never served yet
	HealthHealthy     Health = "healthy"     // served; every data replica in sync
	HealthDegraded    Health = "degraded"    // served; a replica is missing, so one more failure may stop I/O
	HealthCatchingUp  Health = "catching-up" // served; a replica is back and receives what it missed
	HealthUnavailable Health = "unavailable" // not served: no owner, or no quorum; nothing acknowledged is lost, I/O waits
	HealthLost        Health = "lost"        // every replica that held the data is gone; only an operator can go on from here
)

// Replica roles.
const (
	RoleData    = "data"
	RoleWitness = "witness"
)

// Sources of a View.
const (
	SourceOwner = "owner" // the LUN's owner said so itself
	SourceNode  = "node"  // what the answering node knows: may be behind
)

// View says who knows this and since when, so that nobody takes an old answer for a fresh one.
type View struct {
	Node   string    `json:"node" doc:"Node whose knowledge this is"`
	Source string    `json:"source" enum:"owner,node" doc:"owner: the LUN's owner answered; node: the answering node's own state, which may be behind"`
	AsOf   time.Time `json:"as_of" doc:"When that node looked (its clock)"`
	Note   string    `json:"note,omitempty" doc:"Why this is not the owner's answer, if it should have been"`
}

// LUN is a logical unit as it is right now.
type LUN struct {
	Name         string    `json:"name" doc:"Unique name; ends the IQN" example:"vm1"`
	ID           string    `json:"id" doc:"UUID; never reused" format:"uuid"`
	SizeBytes    int64     `json:"size_bytes" doc:"Capacity in bytes" example:"10737418240"`
	Allocated    int64     `json:"allocated_bytes" doc:"What it occupies in the pool of the node in view, in bytes: a copy on another node takes as much"`
	BlockBytes   int       `json:"block_bytes" doc:"Logical block length in bytes" enum:"512,4096"`
	Class        string    `json:"class,omitempty" enum:"ram,ssd,hdd" doc:"Class of the pools its replicas want; absent: any that lasts"`
	Media        string    `json:"media" enum:"file,ram" doc:"What replicas are kept on: file survives a power cut; ram is gone when the process ends and is rebuilt from a peer"`
	IQN          string    `json:"iqn" doc:"iSCSI target name, the same on every node"`
	Number       uint32    `json:"number" doc:"Logical unit number within the target"`
	NAA          string    `json:"naa" doc:"NAA identifier (32 hex digits), the same on every node and path"`
	Serial       string    `json:"serial" doc:"Unit serial number"`
	Owner        string    `json:"owner" doc:"Node that serves the LUN now; empty while there is none"`
	Preferred    string    `json:"preferred,omitempty" doc:"Node that should own the LUN when it is healthy"`
	Health       Health    `json:"health" enum:"creating,healthy,degraded,catching-up,unavailable,lost" doc:"Whether the data can be used and would survive the next failure"`
	Reason       string    `json:"reason,omitempty" doc:"Why it is not healthy, or what it is waiting for"`
	Term         uint64    `json:"term" doc:"Raft term of the LUN's group: rises with every change of owner"`
	AppliedIndex uint64    `json:"applied_index" doc:"Last log entry applied by the node in view"`
	Replicas     []Replica `json:"replicas" nullable:"false" doc:"Copies of the data, and the witness"`
	Portals      []Portal  `json:"portals" nullable:"false" doc:"Addresses for initiators; use all of them (multipath)"`
	View         View      `json:"view" doc:"Whose knowledge this is"`
	Access       LUNAccess `json:"access" doc:"Who may use it"`
	// NonOptimizedPaths: see LUNChange.
	NonOptimizedPaths bool `json:"non_optimized_paths" doc:"Nodes that do not own it serve data by forwarding to the owner, instead of standing by"`
	ZeroDetection     bool `json:"zero_detection" doc:"Blocks that initiators write as zeros are stored as unmapped ones"`

	ReadOnly  bool       `json:"read_only,omitempty" doc:"Initiators see a write-protected disk"`
	Origin    *LUNOrigin `json:"origin,omitempty" doc:"What it began as, if it is a clone"`
	Schedules []Schedule `json:"schedules,omitempty" doc:"Schedules of its snapshots"`
	Space     *LUNSpace  `json:"space,omitempty" doc:"What it and its snapshots hold in one copy; counted in the background, absent at first"`

	History    uint64           `json:"history,omitempty" doc:"Number of its history, if it has been recovered by force"`
	Recoveries []RecoveryRecord `json:"recoveries,omitempty" doc:"Its forced recoveries, the newest last"`

	Scrub []ReplicaScrub `json:"scrub,omitempty" doc:"The scrub of each copy, as far as the node in view knows: all of them if it is the owner"`
}

// Served says whether initiators can read and write now.
func (l LUN) Served() bool {
	if l.Owner == "" {
		return false
	}
	switch l.Health {
	case HealthHealthy, HealthDegraded, HealthCatchingUp:
		return true
	default:
		return false
	}
}

// Replica is one copy of a LUN, or its witness.
type Replica struct {
	ID         string `json:"id" doc:"Raft server ID: <node>/<incarnation>, used for one storage only"`
	Node       string `json:"node" doc:"Node that holds it"`
	Role       string `json:"role" enum:"data,witness" doc:"data: holds blocks; witness: votes only"`
	State      string `json:"state" enum:"pending,active,joining" doc:"pending: being created; active: has data; joining: receives its data, does not vote yet"`
	Leaving    bool   `json:"leaving,omitempty" doc:"It goes when all others hold everything; until then it is one like any other"`
	Connected  bool   `json:"connected" doc:"The owner reaches it (from a node that is not the owner: gossip believes it alive)"`
	InSync     bool   `json:"in_sync" doc:"Has every acknowledged write; an acknowledgement waits for it"`
	IsOwner    bool   `json:"is_owner" doc:"Serves the LUN"`
	MatchIndex uint64 `json:"match_index" doc:"Last log entry known to be durable on it; 0 = not known here"`
	Error      string `json:"error,omitempty" doc:"Why it is not running, if that is known"`

	Rebuild *ReplicaRebuild `json:"rebuild,omitempty" doc:"How far its rebuild is, while there is one"`
}

// Portal is an address where initiators find the LUN.
type Portal struct {
	Node    string `json:"node" doc:"Node behind the address"`
	Address string `json:"address" doc:"host:port"`
	URL     string `json:"url" doc:"As libiscsi and QEMU write it" example:"iscsi://127.0.0.1:3260/iqn.2026-11.local.sanctuary:vm1/0"`
	State   string `json:"state" enum:"active,non-optimized,standby,unreachable" doc:"ALUA: active serves I/O; standby answers and waits; unreachable: the node does not answer"`
}

// Portal states.
const (
	PortalActive      = "active"
	PortalForwarding  = "non-optimized" // serves by asking the owner
	PortalStandby     = "standby"
	PortalUnreachable = "unreachable"
)

// LUNSpec asks for a LUN.
type LUNSpec struct {
	Name       string   `json:"name" minLength:"1" maxLength:"63" pattern:"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$" doc:"Lower-case letters, digits and hyphens, because it ends the IQN" example:"vm1"`
	ID         string   `json:"id,omitempty" format:"uuid" doc:"UUID chosen by the client, so that a repeated request makes one LUN, not two; chosen by the node if empty"`
	SizeBytes  int64    `json:"size_bytes" minimum:"4096" maximum:"17592186044416" multipleOf:"4096" doc:"Capacity in bytes: a multiple of 4096, at most 16 TiB. Space is allocated when it is written" example:"10737418240"`
	BlockBytes int      `json:"block_bytes,omitempty" enum:"512,4096" default:"512" doc:"Logical block length in bytes; 512 suits every hypervisor"`
	Class      string   `json:"class,omitempty" enum:"ram,ssd,hdd" doc:"Class of the pools it is to be in; ram: gone when the process ends, rebuilt from a peer. Empty: any that survives a power cut"`
	Media      string   `json:"media,omitempty" enum:"file,ram" doc:"Older than class: file is any class that survives a power cut, ram is class ram"`
	Copies     int      `json:"copies,omitempty" minimum:"0" maximum:"5" doc:"Copies of the data, and a witness if that is an even number; 0 = 2 if there are two data nodes, otherwise 1"`
	Nodes      []string `json:"nodes,omitempty" maxItems:"5" doc:"Data nodes to place the copies on; empty = chosen by free space and load"`
	Preferred  string   `json:"preferred,omitempty" doc:"Node that should own it"`
	Hosts      []string `json:"hosts,omitempty" maxItems:"256" doc:"Hosts that may use it"`
	Open       bool     `json:"open,omitempty" doc:"Let anyone who reaches a portal use it. Without hosts and open nobody may, until it is granted"`
	SinglePath bool     `json:"single_path,omitempty" doc:"While open: redirect initiators that belong to no host to the owner"`

	Overcommit    bool `json:"overcommit,omitempty" doc:"Make it though it is larger than what is free in its pools now. When they are full, writes that need new space are refused (27h/07h)"`
	ZeroDetection bool `json:"zero_detection,omitempty" doc:"Store blocks that initiators write as zeros as unmapped ones, which take no space. Every node must run a program that knows it"`
}

// LUNList is what GET /v1/luns answers.
type LUNList struct {
	LUNs []LUN `json:"luns" nullable:"false"`
}

// LUNMove asks for another owner.
type LUNMove struct {
	Node string `json:"node" minLength:"1" maxLength:"63" doc:"Data node that should own the LUN: it must hold a replica that is in sync"`
}

// Node is a member of the cluster.
type Node struct {
	Name           string   `json:"name" doc:"Unique name"`
	ID             string   `json:"id" doc:"UUID on its disk: another disk is another node"`
	Kind           string   `json:"kind" enum:"data,witness" doc:"data: holds replicas and serves initiators; witness: votes only"`
	Alive          bool     `json:"alive" doc:"Gossip reaches it. A hint: it never decides who may write"`
	Self           bool     `json:"self" doc:"It is the node that answers"`
	CatalogLeader  bool     `json:"catalog_leader" doc:"It accepts changes to the catalog now"`
	PeerAddress    string   `json:"peer_address,omitempty" doc:"host:port for replication"`
	GossipAddress  string   `json:"gossip_address,omitempty" doc:"host:port for gossip"`
	APIAddress     string   `json:"api_address,omitempty" doc:"host:port of this API there"`
	ISCSIAddresses []string `json:"iscsi_addresses,omitempty" doc:"host:port for initiators"`
	PortGroup      uint16   `json:"port_group" doc:"ALUA target port group"`
	// Portals are the catalog's; ISCSIAddresses are what gossip says now.
	Portals   []NodePortal `json:"portals,omitempty" doc:"Portals as the node registered them when it started, with their groups"`
	Version   string       `json:"version,omitempty" doc:"Version of the program it runs"`
	LUNsOwned int          `json:"luns_owned" doc:"LUNs it serves now"`
	Bulk      *Bulk        `json:"bulk,omitempty" doc:"What the node that answers has sent it; not of that node itself"`
}

// Bulk is what one node has sent another since its process started: entries and rebuilds.
type Bulk struct {
	Compression string `json:"compression" enum:"off,s2,zstd" doc:"What it packs with for that node, where that node can read it"`
	Bytes       int64  `json:"bytes" doc:"Bytes before packing"`
	Sent        int64  `json:"sent" doc:"Bytes that went over the link"`
}

// NodePortal is an address at which a node serves initiators.
type NodePortal struct {
	Address string `json:"address" doc:"host:port"`
	Group   uint8  `json:"group" doc:"Portal group: position of its subnet in the setting portal_groups, 0 for none of them"`
	Tag     uint16 `json:"tag" doc:"Target portal group tag, and relative target port identifier: unique in the cluster"`
}

// NodeList is what GET /v1/nodes answers.
type NodeList struct {
	Nodes []Node `json:"nodes" nullable:"false"`
}

// Session is one iSCSI session.
type Session struct {
	ID           string    `json:"id" doc:"Names it while it lasts: <node>.<session handle>" example:"alpha.17"`
	Node         string    `json:"node" doc:"Node it is connected to"`
	Initiator    string    `json:"initiator" doc:"Initiator name (IQN)"`
	ISID         string    `json:"isid" doc:"Initiator session ID (12 hex digits)"`
	Target       string    `json:"target" doc:"Target name (IQN); empty for a discovery session"`
	Remote       string    `json:"remote" doc:"host:port of the initiator"`
	Since        time.Time `json:"since" doc:"When it logged in"`
	HeaderDigest bool      `json:"header_digest"`
	DataDigest   bool      `json:"data_digest"`
	Commands     uint64    `json:"commands" doc:"SCSI commands received"`
	ReadBytes    uint64    `json:"read_bytes"`
	WrittenBytes uint64    `json:"written_bytes"`

	Host        string          `json:"host,omitempty" doc:"Host the initiator belongs to"`
	Alias       string          `json:"alias,omitempty" doc:"What the initiator calls itself"`
	Local       string          `json:"local" doc:"host:port of the portal"`
	PortalGroup uint16          `json:"portal_group" doc:"Target portal group tag of the portal"`
	Port        uint16          `json:"port" doc:"Relative target port identifier: what its reservations are registered under"`
	CHAPUser    string          `json:"chap_user,omitempty" doc:"Name it has proven; empty: no proof was asked for"`
	Algorithm   string          `json:"chap_algorithm,omitempty" doc:"CHAP algorithm used"`
	Params      SessionParams   `json:"params" doc:"As negotiated"`
	Counters    SessionCounters `json:"counters"`
}

// SessionList is what GET /v1/sessions answers.
type SessionList struct {
	Sessions    []Session `json:"sessions" nullable:"false"`
	Logins      []Logins  `json:"logins" nullable:"false" doc:"How logins have ended, by node"`
	Unreachable []string  `json:"unreachable,omitempty" doc:"Nodes that did not answer: their sessions are missing here"`
}

// Settings are the cluster's settings: names and values as the catalog holds them.
type Settings struct {
	Settings map[string]string `json:"settings" nullable:"false" doc:"Name to value; in a change an empty value means back to the default, and names not given stay"`
}

// Catalog is the state of the catalog's Raft group as the answering node sees it.
type Catalog struct {
	Leader string `json:"leader" doc:"Node that accepts changes; empty while there is none"`
	Term   uint64 `json:"term"`
	Index  uint64 `json:"index" doc:"Last change this node has applied"`
	Voters int    `json:"voters" doc:"Members that vote"`
}

// Alert is something an operator should know or do.
type Alert struct {
	Severity string `json:"severity" enum:"critical,warning,info"`
	Subject  string `json:"subject" doc:"What it is about: lun/<name>, node/<name>, catalog"`
	What     string `json:"what" doc:"What happened"`
	Data     string `json:"data" doc:"What it means for the data"`
	Next     string `json:"next" doc:"What to do next"`
}

// Severities of an Alert.
const (
	SeverityCritical = "critical"
	SeverityWarning  = "warning"
	SeverityInfo     = "info"
)

// Status is the whole cluster at a glance.
type Status struct {
	Cluster string    `json:"cluster" doc:"Cluster name"`
	Node    string    `json:"node" doc:"Node that answers"`
	AsOf    time.Time `json:"as_of"`
	Catalog Catalog   `json:"catalog"`
	Nodes   []Node    `json:"nodes" nullable:"false"`
	LUNs    []LUN     `json:"luns" nullable:"false"`
	Alerts  []Alert   `json:"alerts" nullable:"false" doc:"Most severe first"`
}

// AlertList is what GET /v1/alerts answers. Of a node that another one asks it is what that node itself reports.
type AlertList struct {
	Alerts []Alert `json:"alerts" nullable:"false"`
}

// NodeHealth is this process's own state.
type NodeHealth struct {
	Node    string `json:"node"`
	ID      string `json:"id"`
	Kind    string `json:"kind" enum:"data,witness"`
	Version string `json:"version"`
	PID     int    `json:"pid"`
	Ready   bool   `json:"ready" doc:"Catalog loaded, and every LUN of this node started or its failure reported"`
	Reason  string `json:"reason,omitempty" doc:"What it waits for when not ready"`
}

// Proposal carries one change of the catalog, encoded by node/catalog. Between nodes only.
type Proposal struct {
	Change []byte `json:"change" doc:"Encoded change (base64)"`
}

// ProposalResult carries what the catalog answered. Between nodes only.
type ProposalResult struct {
	Result []byte `json:"result,omitempty" doc:"Encoded result (base64)"`
}
