// Package transport carries the messages of all Raft groups of a node over one bundle of gRPC connections per peer.
//
// A peer pair shares three TCP connections per direction: control (heartbeats, votes, pings, small calls, batched),
// bulk (one stream per group with AppendEntries) and transfer (calls with large answers, the catalog's snapshots). A group
// whose disk is slow therefore stalls its own stream and nothing else, and no heartbeat ever waits behind bytes.
//
// Invariants:
//   - A request reaches a replica only if cluster, group, epoch and server id all match; it is refused with an error
//     the sender can tell apart otherwise. What was meant for an earlier incarnation never reaches a later one.
//   - Every request ends: with its answer, with an error, or at its deadline. A pipeline that failed once stays failed and
//     answers everything outstanding, so Raft falls back to plain requests instead of waiting for ever.
//   - Under TLS nobody speaks for another node: the certificate is compared with the name a sender gives (identity.go).
//   - Memory is bounded in bytes on both sides; a peer that stops reading costs its own share and blocks nobody else.
//   - Payloads are not copied on the way out: the bytes of a raft.Log given to AppendEntries must never change afterwards,
//     not even once the call has returned.
//
// It does not decide who may vote or lead, hold leases or strip payloads: replication does, through GroupConfig's hooks.
package transport
