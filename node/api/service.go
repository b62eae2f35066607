package api

import "context"

// Service is what a node can do. Every method is safe for concurrent use, answers from local state unless it says
// otherwise, and returns a *Problem (NotFound, Conflict, Invalid, NoLeader, …) for a failure a client should understand;
// any other error becomes 500.
//
// A ref names a LUN by name or ID.
type Service interface {
	SnapshotService

	// Name returns this node's name. It never changes.
	Name() string
	// APIAddress returns host:port of the API of the named node, from gossip or configuration.
	APIAddress(node string) (address string, ok bool)
	// Health describes this process. It must not block.
	Health() NodeHealth
	// Cluster returns the cluster's name.
	Cluster() string
	// Catalog describes the catalog's Raft group; Leader decides where changes are forwarded to. It must not block.
	Catalog() Catalog

	// Nodes returns the members by name. CatalogLeader, Self and LUNsOwned are filled in by the API.
	Nodes(ctx context.Context) ([]Node, error)
	// LUNs returns all LUNs by name as this node sees them, replicas and portals included. View is filled in by the API.
	LUNs(ctx context.Context) ([]LUN, error)
	// LUN returns one of them, or NotFound.
	LUN(ctx context.Context, ref string) (LUN, error)
	// Sessions returns this node's iSCSI sessions.
	Sessions(ctx context.Context) ([]Session, error)
	// Logins counts how logins at this node have ended; ok is false if it has no portals.
	Logins() (l Logins, ok bool)
	// Settings returns the cluster's settings.
	Settings(ctx context.Context) (map[string]string, error)
	// Pools returns this node's pools, by name.
	Pools(ctx context.Context) ([]Pool, error)
	// Alerts returns what this node knows that cannot be told from its Nodes and LUNs: failing disks, full pools. The API
	// adds alerts for absent nodes and LUNs that are not healthy.
	Alerts(ctx context.Context) ([]Alert, error)

	// Hosts returns all hosts by name, with their LUN maps by number. No secrets.
	Hosts(ctx context.Context) ([]Host, error)
	// Reservations returns what this node knows of a LUN's persistent reservations, or NotFound; Unavailable if it knows
	// nothing of them. It must not block. Node, Host and LoggedIn of registrations, Unreachable and View are filled in by
	// the API.
	Reservations(ctx context.Context, ref string) (Reservations, error)

	// Recovery says what a forced recovery of a LUN would mean, after asking its other nodes. node: see RecoverSpec.Node.
	Recovery(ctx context.Context, ref, node string) (Recovery, error)

	// CloseSession ends the session of this node with that handle (the part of its ID behind the dot), or returns NotFound.
	CloseSession(ctx context.Context, handle string) error

	// AddPool makes a pool on this node and returns it. A spec whose ID exists is a repeated request and returns that pool.
	AddPool(ctx context.Context, spec PoolSpec) (Pool, error)
	// RemovePool removes a pool of this node: a Conflict while replicas are in it.
	RemovePool(ctx context.Context, name string, how PoolRemoval) error

	// The next ones run on the catalog leader only; elsewhere they return NoLeader.

	// CreateLUN places and records a LUN and returns it without waiting for it to be served. A spec whose ID exists with
	// the same name and size is a repeated request and returns that LUN; a name in use is a Conflict.
	CreateLUN(ctx context.Context, spec LUNSpec) (LUN, error)
	// DeleteLUN removes the LUN and, on every node, its data. The API has checked for sessions.
	DeleteLUN(ctx context.Context, ref string) error
	// SetHost creates or replaces a host; secrets left empty stay as they are. create: a host of that name that is not the
	// same one is a Conflict.
	SetHost(ctx context.Context, name string, spec HostSpec, create bool) error
	// RemoveHost forgets a host: a Conflict while LUNs are granted to it, unless force is set.
	RemoveHost(ctx context.Context, name string, force bool) error
	// GrantLUN lets a host use a LUN, under that number if it is not nil. Granting again what is granted changes nothing.
	GrantLUN(ctx context.Context, ref, host string, number *uint16) error
	// RevokeLUN takes a LUN from a host; its sessions with it are ended. Without a grant it changes nothing.
	RevokeLUN(ctx context.Context, ref, host string) error
	// OpenLUN says whether initiators without a grant may use a LUN.
	OpenLUN(ctx context.Context, ref string, access LUNOpen) error
	// ChangeLUN changes the attributes that are given.
	ChangeLUN(ctx context.Context, ref string, change LUNChange) error
	// RecoverLUN has a LUN go on from one copy, whatever is lost; a Conflict while it could help itself. The API has checked AcceptLoss.
	RecoverLUN(ctx context.Context, ref string, spec RecoverSpec) (Recovery, error)
	// RevertReplica gives the rebuild of this node's copy up and makes the copy what it held before; a Conflict while what it is rebuilt from answers.
	RevertReplica(ctx context.Context, ref string) (RebuildBefore, error)
	// ChangeReplicas records where a LUN's replicas shall be and returns without waiting for it to come about.
	ChangeReplicas(ctx context.Context, ref string, change ReplicaChange) (LUN, error)
	// DrainNode has everything a node holds moved to other nodes, as far as there is a place, and returns without waiting for it.
	DrainNode(ctx context.Context, node string) (Drain, error)
	// RemoveNode forgets a node: a Conflict while it runs or holds a replica. One that is not known is a success.
	RemoveNode(ctx context.Context, node string) error
	// PauseScrub says whether a LUN is to be scrubbed.
	PauseScrub(ctx context.Context, ref string, paused bool) error
	// SetSettings changes the settings given and leaves the others; an empty value means back to the default.
	SetSettings(ctx context.Context, change map[string]string) error
	// Propose applies one encoded change of the catalog for another node and returns the encoded result.
	Propose(ctx context.Context, change []byte) (result []byte, err error)

	// MoveLUN runs on the LUN's owner (elsewhere it returns NoOwner): it hands the ownership to a node with a replica in
	// sync and records it as preferred. It may return before the new owner serves: the API waits.
	MoveLUN(ctx context.Context, ref, node string) error
	// StartScrub runs on the LUN's owner (elsewhere it returns NoOwner): it begins a pass on every copy that can be reached.
	StartScrub(ctx context.Context, ref string) error
	// PurgeReservations runs on the LUN's owner (elsewhere it returns NoOwner): it removes registrations for good, on all
	// nodes, and returns how many. The initiators that lose one are told by unit attentions.
	PurgeReservations(ctx context.Context, ref string, what ReservationPurge) (removed int, err error)
}
