package catalog

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"

	"sanctuary/blockstore/block"
)

// Change is one proposed change of the catalog: one of the exported structs of this file. Every change may be proposed
// twice without doing more than once: each names what it is about by an ID that is never used again.
type Change interface {
	kind() string
	// apply changes m, whose maps are its own but whose values are shared, or returns a *Refusal and leaves m unspecified.
	apply(m *Model, r *Result) error
}

// RegisterNode makes a node known and gives it a port group. The same name and ID again updates the portals and is
// answered with what is known.
type RegisterNode struct {
	Name string `json:"name"`
	ID   string `json:"id"` // UUID from the node's disk
	Kind Kind   `json:"kind"`
	// Ready is set by a node that was added later, once its own catalog holds its registration: the leader then makes it
	// a voter of the catalog's group. A node must not vote before it has caught up: until then it would only raise the
	// number of votes needed. It changes nothing in the model.
	Ready bool `json:"ready,omitempty"`
	// Portals replace those that are known; none leaves them. Their groups are decided by the catalog: see Portal.Group.
	Portals []Portal `json:"portals,omitempty"`
}

// RemoveNode forgets a node that holds no replica. A node that is not known is a success.
type RemoveNode struct {
	Name string `json:"name"`
}

// Placement asks for one replica.
type Placement struct {
	Node    string `json:"node"`
	Witness bool   `json:"witness,omitempty"`
	Pool    string `json:"pool,omitempty"` // see Replica.Pool; only of a replica that is added to a LUN
}

// CreateLUN makes a LUN. ID is a UUID made by the proposer (nothing in apply is random).
type CreateLUN struct {
	ID        string         `json:"id"`
	Name      string         `json:"name"`
	Geometry  block.Geometry `json:"geometry"`
	Media     Media          `json:"media"`
	Class     Class          `json:"class,omitempty"`     // see LUN.Class; every node must know it
	Replicas  []Placement    `json:"replicas"`            // see CheckShape
	Preferred string         `json:"preferred,omitempty"` // the node to own it; empty: the first data replica's
	// Access says who may use it from the start; nil, as programs before access control wrote it: anyone.
	Access *NewAccess `json:"access,omitempty"`
	// Origin makes it a clone: its replicas are where the origin's are, and begin with the contents of the snapshot.
	Origin *NewOrigin `json:"origin,omitempty"`
	// ZeroDetection: see LUN.ZeroDetection; every node must know it.
	ZeroDetection bool `json:"zero_detection,omitempty"`
}

// NewAccess is the access to a new LUN.
type NewAccess struct {
	Open       bool     `json:"open,omitempty"`
	SinglePath bool     `json:"single_path,omitempty"` // see Access.SinglePath
	Hosts      []string `json:"hosts,omitempty"`       // granted, each under the number GrantLUN would choose
}

// DeleteLUN removes a LUN for good and leaves a tombstone. A LUN that does not exist (any more) is a success.
type DeleteLUN struct {
	ID string `json:"id"`
}

// ReplicaStarted turns a pending replica active, and gives a joining one that nobody has claimed to the process that asks. It is proposed BEFORE the storage is created and the replica started:
// from then on a missing storage under this ID means a loss, and never a second first start.
type ReplicaStarted struct {
	LUN     string `json:"lun"`
	Replica string `json:"replica"`
	Claim   string `json:"claim"` // see Replica.Claim; another claim on an active replica is refused as stale
}

// ReplaceReplica gives the node a new incarnation for a replica whose storage is gone.
type ReplaceReplica struct {
	LUN   string `json:"lun"`
	Old   string `json:"old"`   // the replica ID found without storage; if that is not the current one: stale
	Claim string `json:"claim"` // see Replica.Claim
}

// ReplicaPromoted says that the owner has made a joining replica a voter, in sync, and has removed what it replaces.
type ReplicaPromoted struct {
	LUN     string `json:"lun"`
	Replica string `json:"replica"`
}

// StorageDeleted says that a node has no storage of a deleted LUN (any more).
type StorageDeleted struct {
	LUN  string `json:"lun"`
	Node string `json:"node"`
}

// SetSetting sets a cluster-wide setting; an empty value removes it.
type SetSetting struct {
	Key   string `json:"key"`   // a-z 0-9 . _ -, at most 64 characters
	Value string `json:"value"` // at most 4096 bytes
}

// SetPreferred says which node should own the LUN while it is healthy.
type SetPreferred struct {
	LUN  string `json:"lun"`
	Node string `json:"node"` // one that holds a data replica
}

// SetHost creates or replaces a host. If it had credentials and c.Host.CHAP leaves a secret empty, the secret stays as it
// is. Host.Past is the catalog's own business and not looked at.
type SetHost struct {
	Host Host `json:"host"`
	// Create refuses to replace: a host of that name must not exist, unless it is the same one (a repeated request).
	Create bool `json:"create,omitempty"`
}

// RemoveHost forgets a host; one that is not known is a success. It is refused while LUNs are granted to it unless Force is
// set, which revokes them.
type RemoveHost struct {
	Name  string `json:"name"`
	Force bool   `json:"force,omitempty"`
}

// GrantLUN lets a host use a LUN. What has been granted stays as it is.
type GrantLUN struct {
	LUN  string `json:"lun"` // ID
	Host string `json:"host"`
	// Number is the LUN number in the host's own target, 0 to MaxNumber; nil: see Model.chooseNumber. One that the host has
	// for another LUN is refused, as is another one than it has for this LUN.
	Number *uint16 `json:"number,omitempty"`
}

// RevokeLUN takes a LUN from a host. A grant that does not exist is a success.
type RevokeLUN struct {
	LUN  string `json:"lun"` // ID
	Host string `json:"host"`
}

// SetOpen says whether initiators without a grant may use a LUN.
type SetOpen struct {
	LUN        string `json:"lun"` // ID
	Open       bool   `json:"open"`
	SinglePath bool   `json:"single_path,omitempty"` // see Access.SinglePath
}

// SetNonOptimized sets LUN.NonOptimized.
type SetNonOptimized struct {
	LUN string `json:"lun"` // ID
	On  bool   `json:"on"`
}

// SetZeroDetection sets LUN.ZeroDetection; every node must know it.
type SetZeroDetection struct {
	LUN string `json:"lun"` // ID
	On  bool   `json:"on"`
}

func (*RegisterNode) kind() string     { return "register_node" }
func (*RemoveNode) kind() string       { return "remove_node" }
func (*CreateLUN) kind() string        { return "create_lun" }
func (*DeleteLUN) kind() string        { return "delete_lun" }
func (*ReplicaStarted) kind() string   { return "replica_started" }
func (*ReplaceReplica) kind() string   { return "replace_replica" }
func (*ReplicaPromoted) kind() string  { return "replica_promoted" }
func (*StorageDeleted) kind() string   { return "storage_deleted" }
func (*SetSetting) kind() string       { return "set_setting" }
func (*SetPreferred) kind() string     { return "set_preferred" }
func (*SetHost) kind() string          { return "set_host" }
func (*RemoveHost) kind() string       { return "remove_host" }
func (*GrantLUN) kind() string         { return "grant_lun" }
func (*RevokeLUN) kind() string        { return "revoke_lun" }
func (*SetOpen) kind() string          { return "set_open" }
func (*SetNonOptimized) kind() string  { return "set_non_optimized" }
func (*SetZeroDetection) kind() string { return "set_zero_detection" }

func newChange(kind string) Change {
	for _, c := range []Change{
		&RegisterNode{}, &RemoveNode{}, &CreateLUN{}, &DeleteLUN{}, &ReplicaStarted{}, &ReplaceReplica{},
		&ReplicaPromoted{}, &StorageDeleted{}, &SetSetting{}, &SetPreferred{},
		&SetHost{}, &RemoveHost{}, &GrantLUN{}, &RevokeLUN{}, &SetOpen{}, &SetNonOptimized{}, &ResizeLUN{},
		&ReplicaCopied{}, &DropSnapshot{}, &SetSchedule{}, &RemoveSchedule{}, &RecoverLUN{},
		&SetReplicas{}, &ReplicaRemoved{}, &ReplicaDeleted{}, &ReplicaFilled{}, &SetZeroDetection{},
	} {
		if c.kind() == kind {
			return c
		}
	}
	return nil
}

// changeVersion is the version of the envelope and of the bodies in it. A node that meets a newer one stops applying:
// skipping a change it does not understand would make its model differ from the others'.
const changeVersion = 1

// maxChangeBytes bounds an encoded change. The largest real one, a LUN with three replicas, is under 2 KiB.
const maxChangeBytes = 64 << 10

// envelope is a log entry of the catalog:
//
//	{"v":1,"kind":"create_lun","crc":<CRC32C of "1 create_lun " and the body's bytes>,"body":{...}}
//
// The checksum is ours because the log store has none: one flipped bit in it is silently wrong data.
type envelope struct {
	Version int             `json:"v"`
	Kind    string          `json:"kind"`
	CRC     uint32          `json:"crc"`
	Body    json.RawMessage `json:"body"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (e *envelope) sum() uint32 {
	crc := crc32.Checksum(fmt.Appendf(nil, "%d %s ", e.Version, e.Kind), castagnoli)
	return crc32.Update(crc, castagnoli, e.Body)
}

// EncodeChange returns the change as it stands in the log and travels to the leader.
func EncodeChange(c Change) ([]byte, error) {
	if c == nil {
		return nil, refuse(CodeInvalid, "there is no change in the proposal")
	}
	body, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", c.kind(), err)
	}
	e := envelope{Version: changeVersion, Kind: c.kind(), Body: body}
	e.CRC = e.sum()
	b, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", c.kind(), err)
	}
	if len(b) > maxChangeBytes {
		return nil, refuse(CodeInvalid, "the change is %d bytes long, at most %d are allowed", len(b), maxChangeBytes)
	}
	return b, nil
}

// DecodeChange is the inverse of EncodeChange. Its error wraps ErrCorrupt unless the version or kind is unknown.
func DecodeChange(b []byte) (Change, error) {
	if len(b) > maxChangeBytes {
		return nil, fmt.Errorf("%w: change of %d bytes, at most %d", ErrCorrupt, len(b), maxChangeBytes)
	}
	var e envelope
	if err := strictJSON(b, &e); err != nil {
		return nil, fmt.Errorf("%w: change: %w", ErrCorrupt, err)
	}
	if e.CRC != e.sum() {
		return nil, fmt.Errorf("%w: change %q does not match its checksum", ErrCorrupt, e.Kind)
	}
	if e.Version != changeVersion {
		return nil, fmt.Errorf("change of format %d: this program knows format %d; upgrade it", e.Version, changeVersion)
	}
	c := newChange(e.Kind)
	if c == nil {
		return nil, fmt.Errorf("change of unknown kind %q: written by a newer program; upgrade this one", e.Kind)
	}
	if err := strictJSON(e.Body, c); err != nil {
		return nil, fmt.Errorf("change %q holds what this program does not know (%w); upgrade it", e.Kind, err)
	}
	return c, nil
}

// strictJSON decodes exactly one value and refuses fields it does not know: they would be lost without notice.
func strictJSON(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("data after the end")
	}
	return nil
}
