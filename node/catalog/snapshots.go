package catalog

import (
	"cmp"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"sanctuary/blockstore/block"
)

// What the catalog knows of snapshots: which LUN began as a clone of which, and when snapshots are to be made. The snapshots
// themselves are in the LUN's log; nothing here says whether one exists.

// Limits of schedules.
const (
	MaxSchedules  = 8 // of one LUN
	MinEvery      = time.Minute
	MaxEvery      = 366 * 24 * time.Hour
	MaxPrefixSize = 40 // bytes, so that a name with its time stays below block.MaxSnapshotNameBytes
	// maxDropped bounds LUN.Dropped. An older entry is of use only to a clone that was asked for before that many later
	// deletions and not recorded until after them; such a clone waits for a snapshot that does not come, and can be deleted.
	maxDropped = 8
)

// Origin says what a clone began as.
type Origin struct {
	LUN          string `json:"lun"`           // ID; the LUN may have been deleted since
	LUNName      string `json:"lun_name"`      // when the clone was made, for people
	Snapshot     string `json:"snapshot"`      // ID, 32 hex digits; the snapshot may have been deleted since
	SnapshotName string `json:"snapshot_name"` // for people
	// Waiting are the IDs of the replicas that have yet to be made from the snapshot, sorted. As long as there are any, neither
	// the snapshot nor its LUN may be deleted; from then on the storage keeps what the clone needs.
	Waiting []string `json:"waiting,omitempty"`
}

// Schedule has the LUN's owner make snapshots, and delete the oldest of those it has made.
type Schedule struct {
	Prefix string `json:"prefix"` // unique for the LUN; begins the snapshots' names
	Every  int64  `json:"every"`  // seconds
	Keep   int    `json:"keep"`   // that many of its snapshots are kept, the newest ones
	Since  int64  `json:"since"`  // Unix seconds: what would have been due before is not made
}

// Interval returns Every.
func (s Schedule) Interval() time.Duration { return time.Duration(s.Every) * time.Second }

// NewOrigin is what CreateLUN says of a clone.
type NewOrigin struct {
	LUN          string `json:"lun"`
	Snapshot     string `json:"snapshot"`
	SnapshotName string `json:"snapshot_name"`
	ReadOnly     bool   `json:"read_only,omitempty"` // see LUN.ReadOnly
}

// ReplicaCopied says that a clone's replica has been made from the snapshot on its node, durably.
type ReplicaCopied struct {
	LUN     string `json:"lun"`
	Replica string `json:"replica"`
}

// DropSnapshot is proposed before a snapshot is deleted, and refused while a clone has yet to be made from it; afterwards no clone
// of it is recorded any more. A LUN that does not exist is refused.
type DropSnapshot struct {
	LUN      string `json:"lun"`
	Snapshot string `json:"snapshot"` // 32 hex digits
}

// SetSchedule creates or replaces the schedule with that prefix.
type SetSchedule struct {
	LUN      string   `json:"lun"`
	Schedule Schedule `json:"schedule"`
}

// RemoveSchedule removes a schedule, or all if Prefix is empty. Its snapshots stay. One that is not there is a success.
type RemoveSchedule struct {
	LUN    string `json:"lun"`
	Prefix string `json:"prefix,omitempty"`
}

func (*ReplicaCopied) kind() string  { return "replica_copied" }
func (*DropSnapshot) kind() string   { return "drop_snapshot" }
func (*SetSchedule) kind() string    { return "set_schedule" }
func (*RemoveSchedule) kind() string { return "remove_schedule" }

// IsWaiting says whether a replica has yet to be made from the snapshot its LUN is a clone of.
func (l LUN) IsWaiting(replica string) bool {
	return l.Origin != nil && slices.Contains(l.Origin.Waiting, replica)
}

// waitingFor returns the first clone, by name, that needs a snapshot of the LUN; an empty snapshot stands for any.
func (m *Model) waitingFor(lun, snapshot string) (LUN, bool) {
	for _, l := range sortedLUNs(m) {
		if o := l.Origin; o != nil && o.LUN == lun && (snapshot == "" || o.Snapshot == snapshot) && len(o.Waiting) > 0 {
			return l, true
		}
	}
	return LUN{}, false
}

// checkOrigin checks a clone: it lives where its origin does, for it shares what that has stored.
func (c *CreateLUN) checkOrigin(m *Model) error {
	if c.Origin == nil {
		return nil
	}
	from, ok := m.LUNs[c.Origin.LUN]
	switch {
	case !ok:
		return refuse(CodeNotFound, "there is no LUN with ID %s to clone", c.Origin.LUN)
	case from.Lost:
		return refuse(CodeInvalid, "LUN %q is lost: there is nothing to clone", from.Name)
	case checkSnapshotID(c.Origin.Snapshot) != nil:
		return checkSnapshotID(c.Origin.Snapshot)
	case slices.Contains(from.Dropped, c.Origin.Snapshot):
		return refuse(CodeNotFound, "snapshot %s of LUN %q is being deleted: choose another", c.Origin.SnapshotName, from.Name)
	case c.Media != from.Media || c.Class != from.Class || c.Geometry.LogicalBlockBytes != from.Geometry.LogicalBlockBytes:
		return refuse(CodeInvalid, "a clone of LUN %q has its media, its class and its block length", from.Name)
	case len(c.Replicas) != len(from.Replicas):
		return refuse(CodeStale, "a clone has as many replicas as LUN %q, which has %d", from.Name, len(from.Replicas))
	}
	for _, p := range c.Replicas {
		if r, ok := from.ReplicaOn(p.Node); !ok || r.Witness != p.Witness {
			return refuse(CodeStale, "a clone lives where LUN %q does, and that has no such replica on node %q", from.Name, p.Node)
		}
	}
	return nil
}

// derive notes where a new LUN comes from.
func (c *CreateLUN) derive(m *Model, l *LUN) {
	if c.Origin == nil {
		return
	}
	o := Origin{
		LUN: c.Origin.LUN, LUNName: m.LUNs[c.Origin.LUN].Name, Snapshot: strings.ToLower(c.Origin.Snapshot), SnapshotName: c.Origin.SnapshotName,
	}
	for _, r := range l.Replicas {
		if !r.Witness {
			o.Waiting = append(o.Waiting, r.ID)
		}
	}
	slices.Sort(o.Waiting)
	l.Origin, l.ReadOnly = &o, c.Origin.ReadOnly
	m.needs(versionSnapshots)
}

// copied takes a replica off those a clone waits for. It says whether that changed anything.
func (l *LUN) copied(replica string) bool {
	if !l.IsWaiting(replica) {
		return false
	}
	o := *l.Origin
	o.Waiting = slices.DeleteFunc(slices.Clone(o.Waiting), func(id string) bool { return id == replica })
	l.Origin = &o
	return true
}

func checkSnapshotID(id string) error {
	if b, err := hex.DecodeString(id); err != nil || len(b) != len(block.SnapshotID{}) || id != strings.ToLower(id) {
		return refuse(CodeInvalid, "snapshot ID %q: 32 hexadecimal digits are needed", id)
	}
	return nil
}

func (c *ReplicaCopied) apply(m *Model, r *Result) error {
	l, i, err := m.replica(c.LUN, c.Replica)
	if err != nil {
		return err
	}
	if l.Replicas[i].State == ReplicaPending {
		return refuse(CodeStale, "replica %s of LUN %q has never been started", c.Replica, l.Name)
	}
	r.Changed = l.copied(c.Replica)
	m.put(l, i, r)
	return nil
}

func (c *DropSnapshot) apply(m *Model, r *Result) error {
	l, err := m.lun(c.LUN)
	if err != nil {
		return err
	}
	if err := checkSnapshotID(c.Snapshot); err != nil {
		return err
	}
	if clone, waits := m.waitingFor(l.ID, c.Snapshot); waits {
		return refuse(CodeInUse, "LUN %q, a clone of the snapshot, has yet to be made from it on %d of its nodes: wait until they are up, or delete that LUN",
			clone.Name, len(clone.Origin.Waiting))
	}
	r.Changed = !slices.Contains(l.Dropped, c.Snapshot)
	l.Dropped = append(slices.Clone(l.Dropped), c.Snapshot)
	l.Dropped = l.Dropped[max(0, len(l.Dropped)-maxDropped):]
	m.LUNs[l.ID] = l
	m.needs(versionSnapshots)
	r.LUN = &l
	return nil
}

// Validate returns a *Refusal that says what is wrong.
func (s Schedule) Validate() error {
	switch {
	case s.Prefix == "" || len(s.Prefix) > MaxPrefixSize || strings.Trim(s.Prefix, prefixCharacters) != "":
		return refuse(CodeInvalid, "prefix %q of a schedule: use 1 to %d letters, digits, dots, underscores and hyphens", s.Prefix, MaxPrefixSize)
	case s.Every < int64(MinEvery/time.Second) || s.Every > int64(MaxEvery/time.Second):
		return refuse(CodeInvalid, "a snapshot every %v: use a time from %v to %v", s.Interval(), MinEvery, MaxEvery)
	case s.Keep < 1 || s.Keep > block.MaxSnapshots/2:
		return refuse(CodeInvalid, "keep %d snapshots: use 1 to %d, so that there is room for others", s.Keep, block.MaxSnapshots/2)
	}
	return nil
}

const prefixCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"

func (c *SetSchedule) apply(m *Model, r *Result) error {
	l, err := m.lun(c.LUN)
	if err != nil {
		return err
	}
	if err := c.Schedule.Validate(); err != nil {
		return err
	}
	old := slices.IndexFunc(l.Schedules, func(s Schedule) bool { return s.Prefix == c.Schedule.Prefix })
	if old >= 0 && l.Schedules[old].Every == c.Schedule.Every && l.Schedules[old].Keep == c.Schedule.Keep {
		r.Changed, r.LUN = false, &l
		return nil
	}
	l.Schedules = slices.DeleteFunc(slices.Clone(l.Schedules), func(s Schedule) bool { return s.Prefix == c.Schedule.Prefix })
	l.Schedules = append(l.Schedules, c.Schedule)
	slices.SortFunc(l.Schedules, func(a, b Schedule) int { return cmp.Compare(a.Prefix, b.Prefix) })
	keep := 0
	for _, s := range l.Schedules {
		keep += s.Keep
	}
	switch {
	case len(l.Schedules) > MaxSchedules:
		return refuse(CodeFull, "LUN %q has %d schedules, the largest number supported: remove one first", l.Name, MaxSchedules)
	case keep > block.MaxSnapshots*3/4:
		return refuse(CodeFull, "the schedules of LUN %q would keep %d snapshots: at most %d, so that there is room for others", l.Name, keep, block.MaxSnapshots*3/4)
	}
	m.LUNs[l.ID] = l
	m.needs(versionSnapshots)
	r.LUN = &l
	return nil
}

func (c *RemoveSchedule) apply(m *Model, r *Result) error {
	l, err := m.lun(c.LUN)
	if err != nil {
		return err
	}
	left := slices.DeleteFunc(slices.Clone(l.Schedules), func(s Schedule) bool { return c.Prefix == "" || s.Prefix == c.Prefix })
	r.Changed = len(left) < len(l.Schedules)
	if l.Schedules = left; len(left) == 0 {
		l.Schedules = nil
	}
	m.LUNs[l.ID] = l
	r.LUN = &l
	return nil
}
