// Package scsi executes SCSI commands (SPC-4, SBC-3) against a LUN's Backend.
//
// Invariant: a command that is not supported, or a field that is not honoured, ends in CHECK CONDITION with
// ILLEGAL REQUEST, never in GOOD; and GOOD for a write means what Backend.Write promises.
// It knows no iSCSI PDU (target/session does), no Raft and no disk format (the Backend hides both).
package scsi

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sanctuary/blockstore/block"
)

// Backend is a LUN's storage. nil from a write means acknowledged: durable on a quorum and on every replica in sync.
// All methods may be called concurrently. Ranges have been checked against Geometry. src and pattern are the callee's
// until it returns and never after. Errors are the sentinels of package block.
//
// What changes anything takes the Fence that was current when the command arrived (Task.Fence), and does nothing if another
// node may have owned the LUN since (block.ErrFenced): a command that was held, or stood still with its process, must not
// land behind newer ones that came over another path.
type Backend interface {
	Geometry() block.Geometry
	// Fence returns the mark for a command that arrives now, on any node. It must be quick and must not block.
	Fence() block.Fence
	Read(ctx context.Context, r block.Range, dst []byte) error
	Write(ctx context.Context, f block.Fence, r block.Range, src []byte) error
	// CompareAndWrite writes src if the range holds want, atomically against every other command. Otherwise it changes
	// nothing and mismatch is the byte offset of the first difference; mismatch is -1 when the write was done.
	CompareAndWrite(ctx context.Context, f block.Fence, r block.Range, want, src []byte) (mismatch int, err error)
	// Modify has change turn what the range holds into what it is to hold, atomically against every other command. change may
	// be called for pieces of the range, in order, each of whole logical blocks at byte offset off within the range.
	Modify(ctx context.Context, f block.Fence, r block.Range, change func(off int64, have []byte)) error
	// WriteSame repeats pattern (one logical block) over r. A nil pattern writes zeros.
	WriteSame(ctx context.Context, f block.Fence, r block.Range, pattern []byte) error
	// Unmap makes the ranges read as zeros and frees what it can.
	Unmap(ctx context.Context, f block.Fence, rs []block.Range) error
	// Allocated says whether the first sector of r has storage behind it (a sector that has none reads as zeros), and for
	// how many sectors from there on that goes: 1 to r.Count, on the boundary of a logical block. It may stop short of the
	// next change, so that the work of one call is bounded. r is not empty.
	Allocated(ctx context.Context, r block.Range) (allocated bool, n block.Count, err error)
	// Flush returns once every acknowledged write is durable (SYNCHRONIZE CACHE).
	Flush(ctx context.Context) error
	// State returns the replicated blob beside the data (persistent reservations) as this node has it: on the owner what was
	// last acknowledged, elsewhere perhaps an older one. Quick and never blocks. The blob must not be changed.
	State() block.State
	// Confirm returns nil if this node owned the LUN at some moment after the call: what State returned before it was current.
	Confirm(ctx context.Context) error
	// SwapState replaces the blob if its version is still old; block.ErrStale otherwise. block.ErrUnknown only when ctx ends
	// before the outcome is certain.
	SwapState(ctx context.Context, f block.Fence, old uint64, next []byte) (block.State, error)
}

// AccessState is an asymmetric access state (SPC-4 table "ASYMMETRIC ACCESS STATE"); the values are those on the wire.
type AccessState uint8

// The states used here. A port group in Standby moves no data but answers INQUIRY, REPORT LUNS, TEST UNIT READY,
// REPORT TARGET PORT GROUPS and their like.
//
// A group in ActiveNonOptimized moves data by asking the owner for each command (UnitConfig.AskOwner).
const (
	ActiveOptimized    AccessState = 0x0
	ActiveNonOptimized AccessState = 0x1
	Standby            AccessState = 0x2
	Unavailable        AccessState = 0x3
	Transitioning      AccessState = 0xF
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

// UnitConfig describes a logical unit.
type UnitConfig struct {
	Identity Identity
	// Backend is asked for its Geometry at every command; a capacity that changes is announced to every nexus (2A/09).
	// A Backend that is not the owner answers ErrNotOwner, having done nothing. ErrUnavailable also means that nothing was done.
	// When ctx ends, a write returns only once it has taken effect or never will.
	Backend Backend
	// Access says how this node may use the LUN now. Called at every command: it must be quick and must not block.
	// Groups must not be changed after it was returned.
	Access func() Access
	// AccessChanged, if set, returns a channel that is closed at the next change of Access, so that commands that wait for an
	// owner go on at once. Without it Access is looked at every 10 ms.
	AccessChanged func() <-chan struct{}
	// HoldFor bounds how long a command waits for an owner or a quorum before it is answered with BUSY or 02/04/0A; with a single path
	// (Nexus.SetSinglePath) always with BUSY.
	// 0 means DefaultHold. Longer is kinder to initiators with one path, shorter to those that can look elsewhere.
	HoldFor time.Duration
	// BusyFor is how long a LUN without owner or quorum answers BUSY after the hold, before it turns to 02/04/0A; 0 means
	// DefaultBusy. See Unit.notReady.
	BusyFor time.Duration
	// Space says how much room there is for the LUN, as far as this node knows. It must be quick and must not block. Without it
	// no thresholds are offered (LOG SENSE, mode page 1Ch/02h, unit attention 38/07).
	Space func() Space
	// WriteProtected refuses everything that changes the medium with 07/27/00.
	WriteProtected bool
	// AskOwner carries a request to ServePeer of the same LUN's unit on the node that owns it, and brings back the answer.
	// Errors: block.ErrUnavailable if nothing was done, block.ErrUnknown if it may have been done. Without it, a node that does
	// not own the LUN answers nothing that only the owner can.
	AskOwner func(ctx context.Context, request []byte) ([]byte, error)
	// HolderLives asks the node that has a target port whether a session that came through it is still there: attached to the unit (HasSession), or
	// to a target that has it to offer again in a moment. A node that cannot tell has it. An error says that the node does not answer. Without
	// it, a RESERVE whose holder's node was lost stays until a reset of the unit.
	HolderLives func(ctx context.Context, port uint16, session uint64) (bool, error)
	// SetPreferred moves the LUN to the node of a port group for SET TARGET PORT GROUPS, and returns when it is there or will
	// not go. Its error is the initiator's to hear as a failure (04/67/0A). Without it, access changes only implicitly.
	SetPreferred func(ctx context.Context, portGroup uint16) error
	// Log takes what an operator has to know; nil is slog.Default().
	Log *slog.Logger
	// MaxTransferBytes is the most one command may read, write or verify, at most and by default DefaultMaxTransfer;
	// a multiple of 4096. It bounds the memory of one command.
	MaxTransferBytes int64
}

const (
	// DefaultHold is long enough for a planned move of ownership, and short enough that an initiator with another path
	// looks there soon (SCST holds as long).
	DefaultHold = 500 * time.Millisecond
	// DefaultBusy covers an election, also on a machine too busy to be heard for a moment, and is short against the 10 s
	// that REPORT TARGET PORT GROUPS announces for a transition.
	DefaultBusy = 2 * time.Second
	// DefaultMaxTransfer is the largest transfer of one command, in bytes (VPD B0h).
	DefaultMaxTransfer = 16 << 20
	minTransfer        = 64 << 10 // room for the longest parameter list
	// accessPoll is how often Access is looked at by a waiting command without UnitConfig.AccessChanged.
	accessPoll = 10 * time.Millisecond
)

// Unit is a logical unit. Create with NewUnit, then Target.Add.
type Unit struct {
	cfg UnitConfig
	described
	known  atomic.Pointer[standing]
	ticket atomic.Pointer[heldTicket] // the newest the owner has given
	chosen atomic.Uint64              // Access.Generation that SET TARGET PORT GROUPS brought about
	peers  peerWork
	// process and made are what tickets count from.
	process uint64
	made    time.Time
	// era counts the functions that have arrived; from 1 on. See line.
	era atomic.Uint64

	// mu guards in. Taken before no other mutex.
	mu     sync.Mutex
	in     map[*Target]int // the targets it is in, and as how many LUNs
	copies copySlots
	copied copyLog
	space  spaceWatch
	holder holderWatch
	// outage is when a command first found neither owner nor quorum; nil when the last one to look found them.
	outage atomic.Pointer[time.Time]
}

// unready notes when an outage began, unless it has begun.
func (u *Unit) unready(now time.Time) { u.outage.CompareAndSwap(nil, &now) }

// notReady is the answer to a command that did nothing for want of an owner or a quorum and was held in vain: BUSY in the
// first moments of an outage, 02/04/0A after them, of which Execute makes BUSY again for an initiator that is known to have one path.
//
// QEMU and others that know one path retry BUSY and show NOT READY to their guest as an I/O error; those that know several
// must hear 02/04/0A in the end, because they wait with BUSY on this path and with 02/04/0A look for another: this node may
// be cut off while another owns the LUN. ESXi is not to see BUSY for long either.
func (u *Unit) notReady(now time.Time) error {
	if began := u.outage.Load(); began == nil || now.Sub(*began) < u.cfg.BusyFor {
		return statusError(StatusBusy)
	}
	return senseTransition
}

// ready ends an outage: a command found what it needs.
func (u *Unit) ready() {
	if u.outage.Load() != nil { // a load alone costs nothing; a store would share the cache line between all commands
		u.outage.Store(nil)
	}
}

// NewUnit checks cfg and returns a unit that is not yet part of a target.
func NewUnit(cfg UnitConfig) (*Unit, error) {
	id := cfg.Identity
	switch {
	case cfg.Backend == nil || cfg.Access == nil:
		return nil, fmt.Errorf("unit %q: Backend and Access are required", id.Name)
	case len(id.Vendor) > 8 || len(id.Product) > 16 || len(id.Revision) > 4 || len(id.Serial) > 64:
		return nil, fmt.Errorf("unit %q: vendor, product, revision and serial may have 8, 16, 4 and 64 characters", id.Name)
	case !printable(id.Vendor + id.Product + id.Revision + id.Serial):
		return nil, fmt.Errorf("unit %q: vendor, product, revision and serial must be printable ASCII", id.Name)
	case id.NAA[0]>>4 != 3 && id.NAA[0]>>4 != 6:
		return nil, fmt.Errorf("unit %q: NAA designator of type %d, use 3 (8 bytes) or 6 (16 bytes)", id.Name, id.NAA[0]>>4)
	case cfg.MaxTransferBytes != 0 && (cfg.MaxTransferBytes < minTransfer || cfg.MaxTransferBytes > DefaultMaxTransfer || cfg.MaxTransferBytes%block.Size != 0):
		return nil, fmt.Errorf("unit %q: transfer limit of %d bytes, use a multiple of %d from %d to %d", id.Name, cfg.MaxTransferBytes, block.Size, minTransfer, DefaultMaxTransfer)
	case cfg.HoldFor < 0 || cfg.BusyFor < 0:
		return nil, fmt.Errorf("unit %q: hold of %v, busy for %v: use 0 or more", id.Name, cfg.HoldFor, cfg.BusyFor)
	}
	if err := cfg.Backend.Geometry().Validate(); err != nil {
		return nil, fmt.Errorf("unit %q: %w", id.Name, err)
	}
	if cfg.MaxTransferBytes == 0 {
		cfg.MaxTransferBytes = DefaultMaxTransfer
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.HoldFor == 0 {
		cfg.HoldFor = DefaultHold
	}
	if cfg.BusyFor == 0 {
		cfg.BusyFor = DefaultBusy
	}
	u := &Unit{cfg: cfg, described: describe(&cfg), process: rand.Uint64(), made: time.Now(), in: map[*Target]int{}}
	u.era.Store(1)
	u.peers.target = NewTarget(TargetConfig{})
	u.peers.running, u.peers.refused = map[uint64]*request{}, map[uint64]time.Time{}
	u.peers.ports = map[initiatorPort][]portSession{}
	if err := u.peers.target.Add(0, u); err != nil {
		return nil, err
	}
	return u, nil
}

// join notes that u is about to be a LUN of t, part that it is one less.
func (u *Unit) join(t *Target) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.in[t]++
}

func (u *Unit) part(t *Target) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.in[t]--; u.in[t] <= 0 {
		delete(u.in, t)
	}
}

// targets returns the targets the unit is in, also the one for commands of other nodes.
func (u *Unit) targets() []*Target {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Collect(maps.Keys(u.in))
}

// Identity returns what NewUnit was given.
func (u *Unit) Identity() Identity { return u.cfg.Identity }

// naa returns the designator: 8 bytes for type 3, 16 for type 6.
func (u *Unit) naa() []byte {
	if u.cfg.Identity.NAA[0]>>4 == 3 {
		return u.cfg.Identity.NAA[:8]
	}
	return u.cfg.Identity.NAA[:]
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7E {
			return false
		}
	}
	return true
}
