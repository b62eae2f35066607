// Package api is the management API of a node: REST, described by OpenAPI 3.1, with RFC 9457 errors.
//
// Invariant: every node answers every request, and none answers with more certainty than it has. Reads come from this
// node's own state, completed by what a LUN's owner says when it answers in time, and say so (View). Changes are made by
// the catalog leader, ownership moves by the LUN's owner: a request that arrives elsewhere is forwarded exactly once
// (HeaderForwardedBy), so two nodes with different ideas of who leads can never play ball with it.
//
// It decides nothing about LUNs and keeps no state: Service does, and package node implements it.
package api

// Limits of the server. Each is far above what a console and a handful of operators need.
const (
	// maxBodyBytes bounds a request body. Beyond it the request is refused with 413.
	maxBodyBytes = 1 << 20
	// maxHeaderBytes bounds a request's header. Beyond it net/http answers 431.
	maxHeaderBytes = 16 << 10
	// maxInFlight bounds the requests being worked on, waiting ones included. Beyond it: 503 with Retry-After, because a
	// node that is busy with its disks must not be brought down by a monitoring loop.
	maxInFlight = 256
)

// HeaderForwardedBy names the node that passed a request on. A request that carries it is answered here or refused,
// never forwarded again, and a read that carries it is answered from this node's own state alone.
const HeaderForwardedBy = "Sanctuary-Forwarded-By"

// DefaultPort is the TCP port of the API unless configured otherwise.
const DefaultPort = 7442
