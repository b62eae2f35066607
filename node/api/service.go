package api

import "context"

// Service is what a node can do. Every method is safe for concurrent use, answers from local state unless it says
// otherwise, and returns a *Problem (NotFound, Conflict, Invalid, NoLeader, …) for a failure a client should understand;
// any other error becomes 500.
//
// A ref names a LUN by name or ID.
type Service interface {
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
	// Settings returns the cluster's settings.
	Settings(ctx context.Context) (map[string]string, error)
	// Alerts returns what this node knows that cannot be told from its Nodes and LUNs: failing disks, full pools. The API
	// adds alerts for absent nodes and LUNs that are not healthy.
	Alerts(ctx context.Context) ([]Alert, error)

	// The next four run on the catalog leader only; elsewhere they return NoLeader.

	// CreateLUN places and records a LUN and returns it without waiting for it to be served. A spec whose ID exists with
	// the same name and size is a repeated request and returns that LUN; a name in use is a Conflict.
	CreateLUN(ctx context.Context, spec LUNSpec) (LUN, error)
	// DeleteLUN removes the LUN and, on every node, its data. The API has checked for sessions.
	DeleteLUN(ctx context.Context, ref string) error
	// SetSettings changes the settings given and leaves the others; an empty value means back to the default.
	SetSettings(ctx context.Context, change map[string]string) error
	// Propose applies one encoded change of the catalog for another node and returns the encoded result.
	Propose(ctx context.Context, change []byte) (result []byte, err error)

	// MoveLUN runs on the LUN's owner (elsewhere it returns NoOwner): it hands the ownership to a node with a replica in
	// sync and records it as preferred. It may return before the new owner serves: the API waits.
	MoveLUN(ctx context.Context, ref, node string) error
}
