// Package peerpb is what is on the wire between nodes, generated from ../peer.proto, where the meaning of every field and
// the rules of versioning are written down.
//
// Invariant: a released field number keeps its meaning for ever.
// It does not say who sends what when: replication/transport does.
package peerpb

//go:generate ../../scripts/generate
