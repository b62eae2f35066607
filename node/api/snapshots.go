package api

import (
	"context"
	"time"
)

// SnapshotService is the part of Service about snapshots and clones. A snap names a snapshot of the LUN: by its name if only
// one has it, or by its ID or the beginning of that, at least 4 digits.
//
// All but the last two run on the LUN's owner; elsewhere they return NoOwner.
type SnapshotService interface {
	// Snapshots returns the LUN's snapshots, oldest first. With space it walks the LUN's map, about a second for a TiB.
	Snapshots(ctx context.Context, ref string, space bool) (SnapshotList, error)
	// CreateSnapshots makes one snapshot of each LUN, under the same ID and name: all or none, and of the same moment. Those
	// that are there already under that ID are a repeated request. Owner of each LUN is filled in by the API.
	CreateSnapshots(ctx context.Context, spec SnapshotSpec, of []SnapshotOf) (SnapshotSet, error)
	// DeleteSnapshot deletes a snapshot: a Conflict while a clone has yet to be made from it.
	DeleteSnapshot(ctx context.Context, ref, snap string) error
	// RollBack makes the LUN what it was when the snapshot was made. The API has checked for sessions and reservations.
	RollBack(ctx context.Context, ref string, spec RollbackSpec) (Rollback, error)
	// Diff returns ranges in which two states of the LUN may differ, ascending, from byte start on.
	Diff(ctx context.Context, ref string, q DiffQuery) (Diff, error)
	// CloneLUN records a LUN that begins as a snapshot and returns it without waiting for it to be served.
	CloneLUN(ctx context.Context, ref string, spec CloneSpec) (LUN, error)

	// SetSchedule and RemoveSchedule run on the catalog leader only; elsewhere they return NoLeader. An empty prefix removes
	// all schedules of the LUN.
	SetSchedule(ctx context.Context, ref string, schedule Schedule) error
	RemoveSchedule(ctx context.Context, ref, prefix string) error
}

// Space says how much a LUN or a snapshot holds, in whole blocks, in one copy.
type Space struct {
	LogicalBytes   int64 `json:"logical_bytes" doc:"Its size as an initiator sees it"`
	StoredBytes    int64 `json:"stored_bytes" doc:"Blocks that hold data"`
	ExclusiveBytes int64 `json:"exclusive_bytes" doc:"Of those, what nothing else refers to: what deleting it alone would free"`
	SharedBytes    int64 `json:"shared_bytes" doc:"Of those, what is shared with other snapshots, clones or the LUN they belong to"`
}

// LUNSpace is what a LUN and its snapshots hold.
type LUNSpace struct {
	Space
	Snapshots      int       `json:"snapshots" doc:"Number of snapshots"`
	SnapshotsBytes int64     `json:"snapshots_exclusive_bytes" doc:"Sum of what each of its snapshots holds alone. Deleting several may free more: what only they share"`
	KeptBytes      int64     `json:"kept_bytes" doc:"What deleted snapshots still take: until it has been reclaimed, or because clones need it"`
	AsOf           time.Time `json:"as_of" doc:"When it was counted"`
}

// LUNOrigin says what a clone began as.
type LUNOrigin struct {
	LUN        string `json:"lun" doc:"Name of the LUN, as it was"`
	LUNID      string `json:"lun_id"`
	Snapshot   string `json:"snapshot" doc:"Name of the snapshot"`
	SnapshotID string `json:"snapshot_id"`
	Exists     bool   `json:"exists" doc:"The LUN it came from still exists"`
	Waiting    int    `json:"waiting" doc:"Copies that have yet to be made from the snapshot, which cannot be deleted until then"`
}

// Snapshot is a LUN as it was at one moment.
type Snapshot struct {
	ID        string    `json:"id" doc:"32 hex digits; the same for all LUNs of a group snapshot"`
	Name      string    `json:"name"`
	Created   time.Time `json:"created" doc:"When it was asked for (clock of the node that owned the LUN)"`
	SizeBytes int64     `json:"size_bytes" doc:"Size of the LUN at that moment"`
	Space     *Space    `json:"space,omitempty"`
	Schedule  string    `json:"schedule,omitempty" doc:"Schedule that made it, and will delete it"`
	Clones    []string  `json:"clones,omitempty" doc:"LUNs that began as this snapshot"`
}

// SnapshotList is what GET /v1/luns/{lun}/snapshots answers.
type SnapshotList struct {
	LUN       string         `json:"lun" doc:"Its name"`
	ID        string         `json:"id" doc:"Its UUID"`
	Snapshots []Snapshot     `json:"snapshots" nullable:"false" doc:"Oldest first"`
	Space     *LUNSpace      `json:"space,omitempty" doc:"What the LUN itself holds"`
	Schedules []ScheduleView `json:"schedules" nullable:"false"`
}

// SnapshotSpec asks for a snapshot of a LUN, or for one of several LUNs at the same moment.
type SnapshotSpec struct {
	ID   string   `json:"id,omitempty" pattern:"^[0-9a-f]{32}$" doc:"Chosen by the client at random, so that a repeated request makes one; chosen by the node if empty"`
	Name string   `json:"name,omitempty" pattern:"^[A-Za-z0-9][A-Za-z0-9._+:-]{0,63}$" doc:"Unique for the LUN; empty: made from the time"`
	With []string `json:"with,omitempty" maxItems:"63" doc:"Other LUNs to take at the same moment: writes to all of them are held for as long as it takes, and either all get a snapshot or none"`
}

// SnapshotOf is a LUN to take a snapshot of, and its owner.
type SnapshotOf struct {
	LUN, ID, Owner string
}

// SnapshotSet is what has been made.
type SnapshotSet struct {
	ID      string        `json:"id"`
	Name    string        `json:"name"`
	Created time.Time     `json:"created"`
	LUNs    []string      `json:"luns" nullable:"false" doc:"Names of the LUNs"`
	Held    time.Duration `json:"held_ns" doc:"How long writes were held at most, in nanoseconds; 0 for a single LUN, whose writes wait for about as long as one takes"`
}

// RollbackSpec asks for a rollback.
type RollbackSpec struct {
	Snapshot string `json:"snapshot" minLength:"1" maxLength:"64" doc:"Name, ID or its beginning"`
	Force    bool   `json:"force,omitempty" doc:"Although initiators are logged in, hold reservations, or a node cannot be asked. Their caches know nothing of it: what they write back destroys what was rolled back"`
	NoSafety bool   `json:"no_safety,omitempty" doc:"Do not take a snapshot of what is there now first"`
}

// Rollback is what a rollback did.
type Rollback struct {
	LUN    string    `json:"lun"`
	To     Snapshot  `json:"to"`
	Safety *Snapshot `json:"safety,omitempty" doc:"What was there before"`
}

// DiffQuery says which states to compare.
type DiffQuery struct {
	From  string `query:"from" maxLength:"64" doc:"Snapshot; empty: an empty disk, so that everything stored is told"`
	To    string `query:"to" maxLength:"64" doc:"Snapshot; empty: the LUN as it is now, which may change meanwhile"`
	Start int64  `query:"start" minimum:"0" doc:"Byte to begin at: next of the answer before"`
	Limit int    `query:"limit" minimum:"0" maximum:"65536" doc:"Ranges in an answer at most; 0 is 65536"`
}

// Diff is what differs.
type Diff struct {
	LUN       string      `json:"lun"`
	From      string      `json:"from,omitempty" doc:"ID of the snapshot; absent: an empty disk"`
	To        string      `json:"to,omitempty" doc:"ID of the snapshot; absent: the LUN as it is"`
	SizeBytes int64       `json:"size_bytes" doc:"Size of the newer state"`
	Ranges    []DiffRange `json:"ranges" nullable:"false" doc:"Ascending, not overlapping. Whatever lies outside is equal"`
	Next      int64       `json:"next,omitempty" doc:"There is more: ask again with start"`
}

// DiffRange is a range of bytes that may differ.
type DiffRange struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// CloneSpec asks for a LUN that begins as a snapshot.
type CloneSpec struct {
	Name       string   `json:"name" minLength:"1" maxLength:"63" pattern:"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$" doc:"Of the new LUN"`
	ID         string   `json:"id,omitempty" format:"uuid" doc:"UUID of the new LUN, chosen by the client so that a repeated request makes one"`
	Snapshot   string   `json:"snapshot,omitempty" maxLength:"64" doc:"Name, ID or its beginning; empty: take one now"`
	ReadOnly   bool     `json:"read_only,omitempty" doc:"Initiators see a write-protected disk"`
	Hosts      []string `json:"hosts,omitempty" maxItems:"256" doc:"Hosts that may use it"`
	Open       bool     `json:"open,omitempty" doc:"Let anyone who reaches a portal use it"`
	SinglePath bool     `json:"single_path,omitempty" doc:"While open: redirect initiators that belong to no host to the owner"`
}

// Schedule has the LUN's owner make snapshots.
type Schedule struct {
	Prefix       string `json:"prefix,omitempty" maxLength:"40" doc:"Names it, and begins its snapshots' names; empty: hourly, daily, weekly or every-…"`
	EverySeconds int64  `json:"every_seconds" minimum:"60" maximum:"31622400" doc:"Due at multiples of it, counted from Monday 00:00 UTC"`
	Keep         int    `json:"keep" minimum:"1" maximum:"256" doc:"That many are kept; older ones it has made are deleted"`
}

// ScheduleView is a schedule and what has become of it.
type ScheduleView struct {
	Schedule
	Last  *time.Time `json:"last,omitempty" doc:"Time of its newest snapshot"`
	Next  time.Time  `json:"next" doc:"When it is due again"`
	Error string     `json:"error,omitempty" doc:"Why the last attempt failed"`
}

// ScheduleList is what GET /v1/luns/{lun}/schedules answers.
type ScheduleList struct {
	LUN       string         `json:"lun"`
	Schedules []ScheduleView `json:"schedules" nullable:"false"`
}
