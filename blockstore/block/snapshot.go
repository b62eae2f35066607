package block

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"
)

// Limits of snapshots.
const (
	// MaxSnapshots bounds the snapshots of one volume. Those that were deleted and are kept for clones do not count: they are not the same on every copy.
	MaxSnapshots = 512
	// MaxSnapshotNameBytes bounds a snapshot's name.
	MaxSnapshotNameBytes = 64
)

// ErrNoSnapshot: the volume has no such snapshot.
var ErrNoSnapshot = errors.New("no such snapshot")

// SnapshotID names a snapshot of one volume for ever; it is drawn at random by whoever asks for the snapshot, so that
// asking twice makes one. The zero ID is no snapshot.
type SnapshotID [16]byte

// String returns the ID in hexadecimal.
func (id SnapshotID) String() string { return hex.EncodeToString(id[:]) }

// ParseSnapshotID is the reverse of String.
func ParseSnapshotID(s string) (id SnapshotID, err error) {
	if len(s) == 2*len(id) {
		if _, err := hex.Decode(id[:], []byte(s)); err == nil {
			return id, nil
		}
	}
	return SnapshotID{}, fmt.Errorf("snapshot ID %q: 32 hexadecimal digits are needed", s)
}

// SnapshotSpec is what OpSnapshot carries.
type SnapshotSpec struct {
	ID   SnapshotID
	Name string // 1 to MaxSnapshotNameBytes bytes of UTF-8; need not be unique here
	// Created is when it was asked for, in milliseconds since the Unix epoch. For people: nothing depends on it.
	Created int64
}

// Time returns Created.
func (s SnapshotSpec) Time() time.Time { return time.UnixMilli(s.Created) }

// Snapshot is a frozen state of a volume.
type Snapshot struct {
	SnapshotSpec
	Index    uint64 // of the log entry that made it: the contents are those of the log up to there
	Capacity Count  // the volume's at that moment
}

// Validate returns an error that names the field and the way out.
func (s SnapshotSpec) Validate() error {
	switch {
	case s.ID == SnapshotID{}:
		return errors.New("snapshot without an ID")
	case s.Name == "" || len(s.Name) > MaxSnapshotNameBytes || !utf8.ValidString(s.Name):
		return fmt.Errorf("snapshot name %q: use 1 to %d bytes of UTF-8", s.Name, MaxSnapshotNameBytes)
	}
	return nil
}

// encode makes Op.Data of OpSnapshot: 16 bytes of ID, 8 of Created (little endian), the name.
func (s SnapshotSpec) encode() []byte {
	b := binary.LittleEndian.AppendUint64(append([]byte(nil), s.ID[:]...), uint64(s.Created))
	return append(b, s.Name...)
}

func decodeSnapshotSpec(b []byte) (s SnapshotSpec, err error) {
	if len(b) < 24 {
		return s, fmt.Errorf("snapshot of %d bytes", len(b))
	}
	s = SnapshotSpec{ID: SnapshotID(b[:16]), Created: int64(binary.LittleEndian.Uint64(b[16:])), Name: string(b[24:])}
	return s, s.Validate()
}

// SnapshotOp returns the operation that makes a snapshot. Applying it when the volume has that snapshot already, or has
// MaxSnapshots of them, changes nothing.
func SnapshotOp(s SnapshotSpec) Op { return Op{Kind: OpSnapshot, Data: s.encode()} }

// DeleteSnapshotOp returns the operation that deletes a snapshot; of one that is not there it changes nothing.
func DeleteSnapshotOp(id SnapshotID) Op { return Op{Kind: OpDeleteSnapshot, Data: id[:]} }

// RollbackOp returns the operation that makes the volume's contents those of a snapshot. The volume keeps its size and all
// its snapshots; what was added to it since reads as zeros. If there is no such snapshot it changes nothing.
func RollbackOp(id SnapshotID) Op { return Op{Kind: OpRollback, Data: id[:]} }

// Snapshot returns what an OpSnapshot carries.
func (o Op) Snapshot() (SnapshotSpec, error) { return decodeSnapshotSpec(o.Data) }

// SnapshotID returns the snapshot an OpDeleteSnapshot or OpRollback is about.
func (o Op) SnapshotID() (SnapshotID, error) {
	if len(o.Data) != len(SnapshotID{}) {
		return SnapshotID{}, fmt.Errorf("snapshot ID of %d bytes", len(o.Data))
	}
	return SnapshotID(o.Data), nil
}

// checkSnapshot is Check for the kinds about snapshots.
func (o Op) checkSnapshot() error {
	if o.Range != (Range{}) || len(o.Sums) > 0 {
		return errors.New("an operation on a snapshot has no range and no checksums of blocks")
	}
	if o.Kind == OpSnapshot {
		_, err := o.Snapshot()
		return err
	}
	_, err := o.SnapshotID()
	return err
}
