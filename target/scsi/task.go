package scsi

import (
	"context"
	"sync/atomic"
	"time"

	"sanctuary/blockstore/block"
)

// Status is a SCSI status code (SAM-5 §5.3.1).
type Status uint8

// The status codes used here.
const (
	StatusGood                Status = 0x00
	StatusCheckCondition      Status = 0x02
	StatusConditionMet        Status = 0x04
	StatusBusy                Status = 0x08
	StatusReservationConflict Status = 0x18
	StatusTaskSetFull         Status = 0x28
	StatusTaskAborted         Status = 0x40
)

// Buffers lends byte slices for Data-In. Get returns exactly n bytes of undefined content; Put takes them back.
// Concurrent-safe. Get may block until others have been put back: that is how memory stays bounded. It does not when ctx has ended: a task
// that is aborted ends soon, whoever keeps the memory.
type Buffers interface {
	Get(ctx context.Context, n int) []byte
	Put(b []byte)
}

// Task is one SCSI command from the moment the transport has all of it (CDB and Data-Out) to its status.
// The transport owns it; Execute fills in the second half.
type Task struct {
	Nexus       *Nexus
	Tag         uint32   // initiator task tag, unique within the nexus while the task lives
	LUN         uint64   // the 8-byte LUN field as received, big endian
	CDB         [16]byte // longer CDBs are refused by the transport
	DataOut     []byte   // what the initiator sent; Execute must not keep it
	ExpectedIn  int      // bytes the initiator is prepared to take (EDTL of a read), 0 if none
	ExpectedOut int      // bytes the initiator said it would send (EDTL of a write), 0 if none
	Buffers     Buffers
	Fence       block.Fence // set by Accept
	Accepted    time.Time   // when the command arrived; zero: when Execute began
	// Revoked, unless nil, may be set before Manage is called for a task that Execute may not have been told of yet: a task
	// whose Execute begins later then ends in TASK ABORTED and does nothing, as one that Manage had found.
	Revoked *atomic.Bool

	// Set by Accept: what the LUN was then, and its era. Without Accept the command arrives when Execute begins.
	arrived struct {
		unit *Unit
		era  uint64
	}

	// Set by Execute.
	Status      Status
	Sense       []byte // sense data without a length prefix; only with CHECK CONDITION
	DataIn      []byte // at most ExpectedIn bytes, from Buffers.Get: the transport puts it back when sent
	TransferIn  int64  // bytes the CDB asked to receive; with ExpectedIn gives the residual
	TransferOut int64  // bytes the CDB asked to send; with ExpectedOut gives the residual
}

// Function is a task management function (RFC 7143 §11.5.1; the values are those on the wire).
type Function uint8

// Task management functions.
const (
	AbortTask        Function = 1
	AbortTaskSet     Function = 2
	ClearACA         Function = 3
	ClearTaskSet     Function = 4
	LogicalUnitReset Function = 5
	TargetWarmReset  Function = 6
	TargetColdReset  Function = 7
	TaskReassign     Function = 8
)

// FunctionResponse is the answer to a task management function (RFC 7143 §11.6.1).
type FunctionResponse uint8

// Task management responses.
const (
	FunctionComplete     FunctionResponse = 0
	TaskDoesNotExist     FunctionResponse = 1
	LUNDoesNotExist      FunctionResponse = 2
	ReassignNotSupported FunctionResponse = 4 // a session has one connection, and error recovery level 0
	FunctionNotSupported FunctionResponse = 5
	FunctionRejected     FunctionResponse = 255
)

// Executor is what target/session needs of a SCSI target; *Target is the only real one.
//
// Execute runs task to its end and blocks meanwhile; the caller runs as many at once as it wants. Every Execute returns
// exactly once, also when aborted (Status TASK ABORTED: the transport then sends no response). A write that has been
// handed to the Backend cannot be taken back: an aborted one is waited for, so that nothing lands after the answer.
//
// Accept is called when a command arrives, with the LUN and the CDB set, before any of its data is asked for: from here on it is
// in the task set, and whatever ends tasks ends it too, although its data may be long in coming. It returns how many bytes of
// Data-Out the command would use, so that the transport solicits no more than min(that, EDTL); 0 when the command takes none or
// will be refused anyway.
//
// Manage is called when a task management function arrives, in the order of the commands of its session, and returns at once.
// What it returns carries the function out, and returns when every task it affects has ended: those accepted before it, and,
// unless it is about single tasks, none that are accepted after it.
//
// Attach and Detach bracket the life of a nexus; Detach ends its tasks first, and drops what the nexus held.
// Reinstate is called after Attach and before the login is answered: it ends the tasks of other sessions of the same initiator port
// with the same target, on whatever node they are, or fails; then the login must not succeed.
type Executor interface {
	Execute(ctx context.Context, task *Task)
	Accept(task *Task) (dataOut int64)
	Manage(f Function, nexus *Nexus, lun uint64, tag uint32) func(context.Context) FunctionResponse
	Attach(n *Nexus)
	Reinstate(ctx context.Context, n *Nexus) error
	Detach(n *Nexus)
}

// Nexus is one I_T nexus: an initiator port (name and ISID) and a target port. Created by the transport at login.
type Nexus struct {
	Initiator string // iSCSI name of the initiator
	ISID      [6]byte
	Port      uint16 // relative target port identifier of the portal logged in through

	singlePath atomic.Bool

	units nexusUnits // per-LUN unit attentions and the like; owned by package scsi
}

// SetSinglePath says whether the initiator knows one path only and is asked to log in again where the LUN is, when that moves. Until it has done
// so, and for as long as nobody owns the LUN, it hears BUSY, which it repeats, and neither 02/04/0B nor 02/04/0A, which mean to others that they have to
// use another path, and to this one an I/O error. It is not told of asymmetric access either.
func (n *Nexus) SetSinglePath(on bool) { n.singlePath.Store(on) }

// SinglePath returns what SetSinglePath has set.
func (n *Nexus) SinglePath() bool { return n.singlePath.Load() }

// String returns the initiator port's name as in SPC-4 §7.6.4.6: "name,i,0xISID".
func (n *Nexus) String() string { return nexusName(n) }
