// Package scsi executes SCSI commands (SPC-4, SBC-3) against a LUN's Backend.
//
// Invariant: a command that is not supported, or a field that is not honoured, ends in CHECK CONDITION with
// ILLEGAL REQUEST, never in GOOD; and GOOD for a write means what Backend.Write promises.
// It knows no iSCSI PDU (target/session does), no Raft and no disk format (the Backend hides both).
package scsi

import (
	"context"

	"sanctuary/blockstore/block"
)

// Backend is a LUN's storage. nil from a write means acknowledged: durable on a quorum and on every replica in sync.
// All methods may be called concurrently. Ranges have been checked against Geometry. src and pattern are the callee's
// until it returns and never after. Errors are the sentinels of package block.
type Backend interface {
	Geometry() block.Geometry
	Read(ctx context.Context, r block.Range, dst []byte) error
	Write(ctx context.Context, r block.Range, src []byte) error
	// CompareAndWrite writes src if the range holds want, atomically against every other command. Otherwise it changes
	// nothing and mismatch is the byte offset of the first difference; mismatch is -1 when the write was done.
	CompareAndWrite(ctx context.Context, r block.Range, want, src []byte) (mismatch int, err error)
	// WriteSame repeats pattern (one logical block) over r. A nil pattern writes zeros.
	WriteSame(ctx context.Context, r block.Range, pattern []byte) error
	// Unmap makes the ranges read as zeros and frees what it can.
	Unmap(ctx context.Context, rs []block.Range) error
	// Flush returns once every acknowledged write is durable (SYNCHRONIZE CACHE).
	Flush(ctx context.Context) error
	// State returns the replicated blob beside the data (persistent reservations).
	State(ctx context.Context) (block.State, error)
	// SwapState replaces the blob if its version is still old; block.ErrStale otherwise.
	SwapState(ctx context.Context, old uint64, next []byte) (block.State, error)
}

// AccessState is an asymmetric access state (SPC-4 table "ASYMMETRIC ACCESS STATE"); the values are those on the wire.
type AccessState uint8

// The states used here. A port group in Standby moves no data but answers INQUIRY, REPORT LUNS, TEST UNIT READY,
// REPORT TARGET PORT GROUPS and their like.
const (
	ActiveOptimized AccessState = 0x0
	Standby         AccessState = 0x2
	Unavailable     AccessState = 0x3
	Transitioning   AccessState = 0xF
)

// PortGroup is one target port group: all portals of one node.
type PortGroup struct {
	ID    uint16 // 1..65535, one per node, unique in the cluster
	State AccessState
	Ports []uint16 // relative target port identifiers, unique in the cluster
}

// Access is a LUN's asymmetric access as this node sees it at one moment.
type Access struct {
	Local      uint16 // the PortGroup.ID of this node
	LocalPort  uint16 // the relative target port identifier the command arrived through
	Generation uint64 // raised whenever a state changes: every nexus then gets unit attention 2Ah/06h
	Groups     []PortGroup
}

// LocalState returns the state of this node's group, Unavailable if it has none.
func (a Access) LocalState() AccessState {
	for _, g := range a.Groups {
		if g.ID == a.Local {
			return g.State
		}
	}
	return Unavailable
}

// Identity is what tells initiators that two paths lead to one LUN. It is the same on every node and never changes.
type Identity struct {
	Vendor   string   // T10 vendor identification, at most 8 ASCII characters
	Product  string   // at most 16 ASCII characters
	Revision string   // at most 4 ASCII characters
	Serial   string   // VPD 80h, at most 64 ASCII characters
	NAA      [16]byte // VPD 83h designator of NAA type 3 or 6, 16 bytes or its first 8
	Name     string   // the LUN's name, for messages
}
