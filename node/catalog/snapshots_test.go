package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

var snap = strings.Repeat("0a", 16)

// cloneOf is a clone n of LUN of.
func cloneOf(of, n int, name string) *CreateLUN {
	c := mirrored(n, name)
	c.Origin = &NewOrigin{LUN: uid(of), Snapshot: snap, SnapshotName: "golden"}
	return c
}

func TestCloneLivesWhereItsOriginDoes(t *testing.T) {
	m, _ := must(t, threeNodes(t), mirrored(100, "vm1"))
	m, _ = must(t, m, &RegisterNode{Name: "c", ID: uid(4), Kind: KindData})
	for name, c := range map[string]struct {
		change func(*CreateLUN)
		code   error
	}{
		"no such LUN":           {func(c *CreateLUN) { c.Origin.LUN = uid(999) }, ErrNotFound},
		"no snapshot ID":        {func(c *CreateLUN) { c.Origin.Snapshot = "golden" }, ErrInvalid},
		"ID in capitals":        {func(c *CreateLUN) { c.Origin.Snapshot = strings.ToUpper(snap) }, ErrInvalid},
		"on other media":        {func(c *CreateLUN) { c.Media = MediaFile }, ErrInvalid},
		"with other blocks":     {func(c *CreateLUN) { c.Geometry.LogicalBlockBytes = 4096 }, ErrInvalid},
		"on another node":       {func(c *CreateLUN) { c.Replicas[1].Node = "c" }, ErrStale},
		"on one node only":      {func(c *CreateLUN) { c.Replicas = c.Replicas[:1] }, ErrStale},
		"data where it voted":   {func(c *CreateLUN) { c.Replicas[0].Node, c.Replicas[1].Node, c.Replicas[2].Node = "a", "c", "b" }, ErrStale},
		"witness held the data": {func(c *CreateLUN) { c.Replicas[2].Node = "c" }, ErrStale},
	} {
		change := cloneOf(100, 101, "vm2")
		c.change(change)
		if _, _, err := Apply(m, 99, change); !errors.Is(err, c.code) {
			t.Errorf("%s: %v", name, err)
		}
	}
	change := cloneOf(100, 101, "vm2")
	change.Origin.ReadOnly = true
	m, r := must(t, m, change)
	l := r.LUN
	if l.NAA == m.LUNs[uid(100)].NAA || l.IQN == m.LUNs[uid(100)].IQN || !l.ReadOnly {
		t.Errorf("%+v", l)
	}
	if want := (Origin{LUN: uid(100), LUNName: "vm1", Snapshot: snap, SnapshotName: "golden"}); l.Origin.LUN != want.LUN || l.Origin.LUNName != want.LUNName || l.Origin.SnapshotName != want.SnapshotName {
		t.Errorf("%+v", l.Origin)
	}
	if want := []string{l.Replicas[0].ID, l.Replicas[1].ID}; !slices.Equal(l.Origin.Waiting, want) {
		t.Errorf("waiting %v, want %v: the witness needs no snapshot", l.Origin.Waiting, want)
	}
	if _, _, err := Apply(m, 99, &ResizeLUN{LUN: l.ID, Capacity: 2 * gib.Capacity}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a read-only LUN grew: %v", err)
	}
}

// Until every first replica of a clone has been made, or will never be, neither the snapshot nor its LUN goes; a snapshot that is
// being deleted gets no clone.
func TestSnapshotIsKeptUntilItsClonesAreMade(t *testing.T) {
	m, _ := must(t, threeNodes(t), mirrored(100, "vm1"), cloneOf(100, 101, "vm2"))
	drop := &DropSnapshot{LUN: uid(100), Snapshot: snap}
	refused := func(c Change, code error) {
		t.Helper()
		if _, _, err := Apply(m, 99, c); !errors.Is(err, code) {
			t.Fatalf("%s: %v", c.kind(), err)
		}
	}
	refused(drop, ErrInUse)
	refused(&DeleteLUN{ID: uid(100)}, ErrInUse)
	reps := m.LUNs[uid(101)].Replicas
	refused(&ReplicaCopied{LUN: uid(101), Replica: reps[0].ID}, ErrStale) // has not even been started
	m, _ = must(t, m, started(m, uid(101))...)
	m, r := must(t, m, &ReplicaCopied{LUN: uid(101), Replica: reps[0].ID})
	if !r.Changed || m.LUNs[uid(101)].IsWaiting(reps[0].ID) {
		t.Fatalf("%+v", r.LUN.Origin)
	}
	refused(drop, ErrInUse)
	m, _ = must(t, m, &DropSnapshot{LUN: uid(100), Snapshot: strings.Repeat("0b", 16)}) // another one
	lost, _ := must(t, m, &ReplaceReplica{LUN: uid(101), Old: reps[1].ID, Claim: "x"})  // rebuilt from its peer
	must(t, lost, drop)
	gone, _ := must(t, m, &DeleteLUN{ID: uid(101)})
	must(t, gone, drop)
	m, _ = must(t, m, &ReplicaCopied{LUN: uid(101), Replica: reps[1].ID}, drop)
	refused(cloneOf(100, 102, "vm3"), ErrNotFound)
	m, _ = must(t, m, &DeleteLUN{ID: uid(100)})
	if o := m.LUNs[uid(101)].Origin; o == nil || o.LUNName != "vm1" {
		t.Errorf("the clone has forgotten where it came from: %+v", o)
	}
	refused(drop, ErrNotFound)
}

func TestDroppedSnapshotsAreForgottenInTheEnd(t *testing.T) {
	m, _ := must(t, threeNodes(t), mirrored(100, "vm1"))
	for n := range maxDropped + 3 {
		c := &DropSnapshot{LUN: uid(100), Snapshot: fmt.Sprintf("%032x", n)}
		var r Result
		if m, r = must(t, m, c); !r.Changed {
			t.Fatal("not noted")
		}
		if m, r = must(t, m, c); r.Changed {
			t.Fatal("a repeated request changed something")
		}
	}
	if got := m.LUNs[uid(100)].Dropped; len(got) != maxDropped || got[0] != fmt.Sprintf("%032x", 3) {
		t.Errorf("%v", got)
	}
}

func TestSchedulesOfALUN(t *testing.T) {
	m, _ := must(t, threeNodes(t), mirrored(100, "vm1"))
	set := func(prefix string, every time.Duration, keep int, since int64) *SetSchedule {
		return &SetSchedule{LUN: uid(100), Schedule: Schedule{Prefix: prefix, Every: int64(every / time.Second), Keep: keep, Since: since}}
	}
	for _, bad := range []*SetSchedule{
		set("", time.Hour, 1, 1), set("a b", time.Hour, 1, 1), set(strings.Repeat("a", MaxPrefixSize+1), time.Hour, 1, 1),
		set("x", time.Second, 1, 1), set("x", 400*24*time.Hour, 1, 1), set("x", time.Hour, 0, 1), set("x", time.Hour, 257, 1),
	} {
		if _, _, err := Apply(m, 99, bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", bad.Schedule, err)
		}
	}
	m, _ = must(t, m, set("hourly", time.Hour, 24, 100), set("daily", 24*time.Hour, 7, 100))
	if got := m.LUNs[uid(100)].Schedules; len(got) != 2 || got[0].Prefix != "daily" || got[1].Interval() != time.Hour {
		t.Fatalf("%+v", got)
	}
	if _, r := must(t, m, set("hourly", time.Hour, 24, 999)); r.Changed {
		t.Error("asked again, it began anew: its next snapshot would be put off each time")
	}
	if next, _ := must(t, m, set("hourly", time.Hour, 48, 999)); next.LUNs[uid(100)].Schedules[1] != (Schedule{"hourly", 3600, 48, 999}) {
		t.Errorf("%+v", next.LUNs[uid(100)].Schedules)
	}
	if _, _, err := Apply(m, 99, set("many", time.Hour, 256, 1)); err != nil {
		t.Error(err)
	}
	full, _ := must(t, m, set("many", time.Hour, 256, 1))
	if _, _, err := Apply(full, 99, set("more", time.Hour, 256, 1)); !errors.Is(err, ErrFull) {
		t.Errorf("more snapshots than a LUN can have: %v", err)
	}
	for n := len(m.LUNs[uid(100)].Schedules); n < MaxSchedules; n++ {
		m, _ = must(t, m, set(fmt.Sprint("s", n), time.Hour, 1, 1))
	}
	if _, _, err := Apply(m, 99, set("one-more", time.Hour, 1, 1)); !errors.Is(err, ErrFull) {
		t.Errorf("%v", err)
	}
	m, _ = must(t, m, &RemoveSchedule{LUN: uid(100), Prefix: "hourly"})
	if _, r := must(t, m, &RemoveSchedule{LUN: uid(100), Prefix: "hourly"}); r.Changed || len(r.LUN.Schedules) != MaxSchedules-1 {
		t.Errorf("%+v", r.LUN.Schedules)
	}
	if m, _ = must(t, m, &RemoveSchedule{LUN: uid(100)}); m.LUNs[uid(100)].Schedules != nil {
		t.Errorf("%+v", m.LUNs[uid(100)].Schedules)
	}
}

// What has to do with snapshots needs a newer program, and is kept by a snapshot of the catalog; without it an older one can read it.
func TestCatalogWithSnapshotsHasItsOwnVersion(t *testing.T) {
	m, _ := must(t, threeNodes(t), mirrored(100, "vm1"))
	if m.Version >= versionSnapshots {
		t.Fatal(m.Version)
	}
	for name, c := range map[string]Change{
		"clone": cloneOf(100, 101, "vm2"), "dropped": &DropSnapshot{LUN: uid(100), Snapshot: snap},
		"schedule": &SetSchedule{LUN: uid(100), Schedule: Schedule{Prefix: "hourly", Every: 3600, Keep: 2}},
	} {
		encoded, err := EncodeChange(c)
		if err != nil {
			t.Fatal(err)
		}
		decoded, err := DecodeChange(encoded)
		if err != nil || asJSON(t, decoded) != asJSON(t, c) {
			t.Errorf("%s: %s, %v", name, asJSON(t, decoded), err)
		}
		next, _ := must(t, m, c)
		b, err := encodeSnapshot(next)
		if err != nil {
			t.Fatal(err)
		}
		back, err := decodeSnapshot(bytes.NewReader(b), "lab")
		if err != nil || back.Version != versionSnapshots || asJSON(t, back) != asJSON(t, next) {
			t.Errorf("%s: version %d, %v", name, next.Version, err)
		}
	}
}
